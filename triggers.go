package migrator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// captureSQL holds the statements that install capture for one table, in the two steps in which they
// are run. See ARCHITECTURE.md, Capture.
type captureSQL struct {
	log, functions string // nobody waits for these
	attach         string // triggers
}

// buildCapture writes the statements. always makes the triggers fire for sessions with
// session_replication_role = replica too.
func buildCapture(t *Table, ops []keyOperator, always bool) captureSQL {
	if t.Keyless() {
		return buildKeylessCapture(t, always)
	}
	log, fn := logName(t.ID), SchemaName+"."+fmt.Sprintf("capture_%d", t.ID)
	var c captureSQL
	into := fmt.Sprintf("%s (%s)", log, t.logColumns())
	keys, rows := t.keyList(""), "heroku_migrator_rows"
	oldKeys := `VALUES (` + t.keyList("OLD.") + `)`
	if places, ok := t.keyByPlace(); ok { // a key column that the application renames must not break its writes
		aliases := make([]string, len(places))
		picked := make([]string, len(places))
		for i, place := range places {
			// The other columns keep their names, of which none may be one of these.
			aliases[i], picked[i] = fmt.Sprintf("heroku_migrator_k%d", i+1), fmt.Sprintf("r.heroku_migrator_k%d",
				place+1)
		}
		keys, rows = strings.Join(picked, ", "), "heroku_migrator_rows AS r("+strings.Join(aliases, ", ")+")"
		oldKeys = fmt.Sprintf("SELECT %s FROM (SELECT OLD.*) AS r(%s)", keys, strings.Join(aliases, ", "))
	}
	c.log = t.createLog()
	c.functions = fmt.Sprintf(`
		CREATE OR REPLACE FUNCTION %s_old() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $capture$
		BEGIN
			INSERT INTO %s %s;
			RETURN NULL;
		END $capture$;`, fn, into, oldKeys)

	var b strings.Builder
	trigger := func(on Relation, name, rest string) { b.WriteString(createTrigger(on, name, rest, always)) }
	keyChanged := "(" + matchKey(t, ops, "OLD.", "NEW.") + ") IS NOT TRUE" // a key may be NULL within a transaction
	if t.Kind == KindOrdinary {
		c.functions += fmt.Sprintf(`
			CREATE OR REPLACE FUNCTION %s() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $capture$
			%s
			$capture$;`, fn, t.logStatement(keys, rows))
		for _, e := range []struct{ name, event, rows string }{
			{"insert", "INSERT", "NEW"}, {"update", "UPDATE", "NEW"}, {"delete", "DELETE", "OLD"},
		} {
			trigger(t.Relation, e.name, fmt.Sprintf(`AFTER %s ON %s REFERENCING %s TABLE AS heroku_migrator_rows
				FOR EACH STATEMENT EXECUTE FUNCTION %s()`, e.event, t.Ident(), e.rows, fn))
		}
	} else {
		// Row-level: Postgres clones these to every partition, present and future, and a statement on
		// an inheritance parent fires those of the children whose rows it changes.
		c.functions += fmt.Sprintf(`
			CREATE OR REPLACE FUNCTION %s() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $capture$
			BEGIN
				INSERT INTO %s VALUES (%s);
				RETURN NULL;
			END $capture$;`, fn, into, t.keyList("NEW."))
		trigger(t.Relation, fmt.Sprintf("row_write_%d", t.ID), fmt.Sprintf(`AFTER INSERT OR UPDATE ON %s FOR EACH ROW
			EXECUTE FUNCTION %s()`, t.Ident(), fn))
		trigger(t.Relation, fmt.Sprintf("row_delete_%d", t.ID), fmt.Sprintf(`AFTER DELETE ON %s FOR EACH ROW EXECUTE
			FUNCTION %s_old()`, t.Ident(), fn))
	}
	key := "key"
	// a table that has triggers of its own, partitioned or not, can be attached as a partition: no name may be there
	// twice
	if t.Kind != KindOrdinary {
		key = fmt.Sprintf("row_key_%d", t.ID)
	}
	trigger(t.Relation, key, fmt.Sprintf(`AFTER UPDATE ON %s FOR EACH ROW WHEN (%s) EXECUTE FUNCTION %s_old()`,
		t.Ident(), keyChanged, fn))
	c.attach = b.String() + truncateTriggers(t, always)
	return c
}

func createTrigger(on Relation, name, rest string, always bool) string {
	sql := fmt.Sprintf("CREATE TRIGGER heroku_migrator_%s %s;\n", name, rest)
	if always {
		sql += fmt.Sprintf("ALTER TABLE %s ENABLE ALWAYS TRIGGER heroku_migrator_%s;\n", on.Ident(), name)
	}
	return sql
}

func truncateTriggers(t *Table, always bool) string {
	var b strings.Builder
	for _, r := range t.relations() {
		// of a partition that was detached
		fmt.Fprintf(&b, "DROP TRIGGER IF EXISTS heroku_migrator_truncate ON %s;\n", r.Ident())
		b.WriteString(createTrigger(r, "truncate", fmt.Sprintf(`AFTER TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION
			heroku_migrator.truncate()`, r.Ident()), always))
	}
	return b.String()
}

// keyByPlace tells whether capture finds the key by the place of its columns, not by their names: they are the first
// ones. It returns the place of each.
func (t *Table) keyByPlace() (places []int, ok bool) {
	if t.Kind != KindOrdinary { // a partition may have its columns in another order
		return nil, false
	}
	for _, k := range t.Key {
		place := slices.IndexFunc(t.Columns, func(c Column) bool { return c.Name == k })
		if place < 0 || place >= len(t.Key) {
			return nil, false
		}
		places = append(places, place)
	}
	return places, true
}

func logName(id uint32) string { return fmt.Sprintf("%s.changes_%d", SchemaName, id) }

// createLog writes the statements that make the log of a table with a key. Its columns are numbered, so that a key
// column may be renamed.
func (t *Table) createLog() string {
	columns, values, options := t.logColumns(), t.keyList(""), ""
	if t.logsArrays() {
		for i, k := range t.Key {
			columns += fmt.Sprintf(", keys_%d", i+1)
			values += ", ARRAY[" + quoteName(k) + "]"
			options += fmt.Sprintf("ALTER TABLE %s ALTER COLUMN keys_%d SET STORAGE EXTERNAL;\n", logName(t.ID), i+1)
		}
	}
	return fmt.Sprintf(`
		CREATE TABLE %[1]s (%[2]s) AS SELECT %[3]s FROM %[4]s WITH NO DATA; %[5]s
		ALTER TABLE %[1]s ADD COLUMN heroku_migrator_xid xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id();
		ALTER TABLE %[1]s REPLICA IDENTITY FULL;`, // a publication FOR ALL TABLES would have trimming refused
		logName(t.ID), columns, values, t.Only(), options)
}

// arrayTypes are types whose values can be put into an array and taken out again one by one, which is not so for
// arrays.
var arrayTypes = []string{
	"bigint", "integer", "smallint", "uuid", "text", "character varying", "numeric", "date", "bytea",
	"timestamp", "timestamp with time zone", "timestamp without time zone",
}

// logsArrays tells whether the log has columns for arrays of keys, in which bulk statements enter theirs. It depends on
// nothing that may change while the table is captured.
func (t *Table) logsArrays() bool {
	for _, k := range t.Key {
		at := slices.IndexFunc(t.Columns, func(c Column) bool { return c.Name == k })
		if at < 0 {
			return false
		}
		name, modified, _ := strings.Cut(t.Columns[at].Type, "(")
		if strings.HasSuffix(modified, "]") || !slices.Contains(arrayTypes, name) {
			return false
		}
	}
	return len(t.Key) > 0
}

// shortKey tells whether the key's values take but a few bytes: an array of them is limited to 1 GiB.
func (t *Table) shortKey() bool {
	for _, c := range t.Columns {
		name, _, _ := strings.Cut(c.Type, "(")
		if slices.Contains(t.Key, c.Name) && slices.Contains([]string{"text", "character varying", "numeric", "bytea"},
			name) {
			return false
		}
	}
	return true
}

// logStatement is the body of a statement-level trigger. The first keys are entered one by one, as most statements have
// few; those of a bulk statement as one array, which costs a fraction of as many rows; and, so that memory is bounded,
// those of a huge one as many.
func (t *Table) logStatement(keys, rows string) string {
	const few, each = 50, 1000
	much := 250_000
	if !t.shortKey() {
		much = 10_000
	}
	one := fmt.Sprintf("INSERT INTO %s (%s) SELECT %s FROM %s", logName(t.ID), t.logColumns(), keys, rows)
	if !t.logsArrays() {
		return fmt.Sprintf(`
			#variable_conflict use_column
			BEGIN
				%s;
				RETURN NULL;
			END`, one)
	}
	var names, columns, arrays []string
	for i := range t.Key {
		names = append(names, fmt.Sprintf("v%d", i+1))
		columns = append(columns, fmt.Sprintf("keys_%d", i+1))
		arrays = append(arrays, fmt.Sprintf("pg_catalog.array_agg(v%d)", i+1))
	}
	many := fmt.Sprintf("INSERT INTO %s (%s) SELECT %s", logName(t.ID), strings.Join(columns, ", "),
		strings.Join(arrays, ", "))
	as := "(" + strings.Join(names, ", ")
	return fmt.Sprintf(`
			#variable_conflict use_column
			DECLARE entered pg_catalog.int8;
			BEGIN
				%[1]s LIMIT %[2]d;
				GET DIAGNOSTICS entered = ROW_COUNT;
				IF entered OPERATOR(pg_catalog.<) %[2]d THEN
					RETURN NULL;
				END IF;
				%[3]s FROM (SELECT %[4]s FROM %[5]s OFFSET %[2]d LIMIT %[6]d) AS s%[7]s) HAVING pg_catalog.count(*)
				OPERATOR(pg_catalog.>) 0
					RETURNING pg_catalog.cardinality(keys_1) INTO entered;
				IF entered OPERATOR(pg_catalog.=) %[6]d THEN
					%[3]s FROM (SELECT %[4]s, pg_catalog.row_number() OVER () OPERATOR(pg_catalog./) %[8]d FROM %[5]s
					OFFSET %[9]d) AS s%[7]s, part) GROUP BY part;
				END IF;
				RETURN NULL;
			END`, one, few, many, keys, rows, much, as, each, few+much)
}

// logColumns are the log's columns for the key.
func (t *Table) logColumns() string {
	b := make([]string, len(t.Key))
	for i := range t.Key {
		b[i] = fmt.Sprintf("key_%d", i+1)
	}
	return strings.Join(b, ", ")
}

// logRows is the query for a log's entries: the key's columns by their names.
func (t *Table) logRows() string {
	if !t.logsArrays() {
		return t.logEntries(logName(t.ID))
	}
	var names, arrays, values []string
	for i := range t.Key {
		names = append(names, fmt.Sprintf("v%d", i+1))
		arrays = append(arrays, fmt.Sprintf("pg_catalog.unnest(keys_%d)", i+1))
		values = append(values, fmt.Sprintf("v%d, ", i+1))
	}
	return t.logEntries(logName(t.ID)) + fmt.Sprintf(" WHERE keys_1 IS NULL UNION ALL SELECT %sheroku_migrator_xid "+
		"FROM %s CROSS JOIN LATERAL ROWS FROM (%s) AS u(%s) WHERE keys_1 IS NOT NULL",
		strings.Join(values, ""), logName(t.ID), strings.Join(arrays, ", "), strings.Join(names, ", "))
}

// logEntries is logRows of a log without arrays.
func (t *Table) logEntries(log string) string {
	b := make([]string, len(t.Key))
	for i, k := range t.Key {
		b[i] = fmt.Sprintf("key_%d AS %s, ", i+1, quoteName(k))
	}
	return fmt.Sprintf("SELECT %sheroku_migrator_xid FROM %s", strings.Join(b, ""), log)
}

// relations lists the table and the leaves that differ from it.
func (t *Table) relations() []Relation {
	list := []Relation{t.Relation}
	for _, l := range t.Leaves {
		if l.ID != t.ID {
			list = append(list, l.Relation)
		}
	}
	return list
}

// relationNames are the names of relations, for SQL.
func (t *Table) relationNames() []string {
	relations := t.relations()
	names := make([]string, len(relations))
	for i, r := range relations {
		names[i] = r.Ident()
	}
	return names
}

// stillNamed writes the statement that fails if a name leads to another relation by now, as of a table that does not
// exist: the schema is followed then.
func stillNamed(relations []Relation) string {
	var b strings.Builder
	b.WriteString("DO $named$ BEGIN\n")
	for _, r := range relations {
		fmt.Fprintf(&b, "IF to_regclass('%[1]s')::oid IS DISTINCT FROM %[2]d THEN RAISE undefined_table USING "+
			"MESSAGE = '%[1]s is not the relation %[2]d any more'; END IF;\n", quoteText(r.Ident()), r.ID)
	}
	return b.String() + "END $named$;\n"
}

// Capture implements [Source].
func (h *Heroku) Capture(ctx context.Context, t *Table) error {
	decode, err := h.decoder.wanted(ctx)
	if err == nil && decode && !h.decoder.enabled.Load() {
		err = h.prepareDecoding(ctx)
	}
	if err != nil {
		return fmt.Errorf("capture %s: %w", t, err)
	}
	err = h.change(ctx, func(tx pgx.Tx) error {
		var key []string
		var decoded, done bool
		err := tx.QueryRow(ctx, `SELECT key, decoded FROM heroku_migrator.captured WHERE relid = $1`, t.ID).Scan(&key,
			&decoded)
		if done = err == nil; done && (decoded || slices.Equal(key, t.Key)) {
			return nil
		}
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		if done { // its key's columns have other names
			c, err := captureByTriggers(ctx, tx, t, true)
			if err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, c.functions); err != nil {
				return err
			}
			_, err = tx.Exec(ctx, `UPDATE heroku_migrator.captured SET key = $2 WHERE relid = $1`, t.ID, t.Key)
			return err
		}
		c, decoded, err := h.captureBy(ctx, tx, t)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, c.log+c.functions); err != nil {
			if sqlState(err) == "55P03" {
				return ErrBusy
			}
			return err
		}
		if _, err := tx.Exec(ctx, `INSERT INTO heroku_migrator.captured (relid, here, kind, key, decoded) VALUES ($1,
			$1, $2, $3, $4)`, t.ID, string(t.Kind), append([]string{}, t.Key...), decoded); err != nil {
			return err
		}
		return lock(ctx, tx, t.Only(), "SHARE ROW EXCLUSIVE", stillNamed(t.relations())+inPath(c.attach)+fmt.Sprintf(`;
			UPDATE heroku_migrator.captured SET triggers = ARRAY(SELECT tgname FROM pg_trigger WHERE tgrelid = relid AND
			tgname LIKE 'heroku\_migrator\_%%') WHERE relid = %d`, t.ID))
	})
	if errors.Is(err, ErrBusy) {
		return fmt.Errorf("capture %s: %w; %s", t, err, holders(ctx, h.pool, t.relations()))
	}
	if err != nil {
		return fmt.Errorf("capture %s: %w", t, err)
	}
	return nil
}

// prepareDecoding is the decoder's, once: several tables are captured at a time.
func (h *Heroku) prepareDecoding(ctx context.Context) error {
	h.preparing.Lock()
	defer h.preparing.Unlock()
	if h.decoder.enabled.Load() {
		return nil
	}
	return h.decoder.prepare(ctx)
}

// captureBy writes the statements that capture a table, and tells whether they do it by decoding.
func (h *Heroku) captureBy(ctx context.Context, tx pgx.Tx, t *Table) (c captureSQL, decoded bool, err error) {
	if h.decoder.method == CaptureDecoding {
		if decoded, err = decodable(ctx, tx, t); err != nil || decoded {
			return h.decoder.capture(t), decoded, err
		}
	}
	c, err = captureByTriggers(ctx, tx, t, true)
	return c, false, err
}

// captureByTriggers writes the statements; always is as for buildCapture.
func captureByTriggers(ctx context.Context, tx pgx.Tx, t *Table, always bool) (c captureSQL, err error) {
	var ops []keyOperator
	if !t.Keyless() {
		if ops, err = keyEquals(ctx, tx, t); err != nil {
			return c, err
		}
	}
	return buildCapture(t, ops, always), nil
}

// Trim implements [Source]. The mark of how far the log was trimmed is kept, so that a target that
// went back to an earlier position is noticed.
func (h *Heroku) Trim(ctx context.Context, tables []*Table, upTo Position) error {
	return trimLogs(ctx, h.pool, h.change, tables, upTo)
}

// LogSize implements [Source].
func (h *Heroku) LogSize(ctx context.Context) (int64, error) { return h.decoder.logSize(ctx) }

func logSize(ctx context.Context, q querier) (bytes int64, err error) {
	err = q.QueryRow(ctx, `
		SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::int8 FROM pg_class c
		WHERE c.relnamespace = to_regnamespace('heroku_migrator') AND c.relkind = 'r' AND (c.relname LIKE 'changes\_%'
		OR c.relname = 'truncated')`).Scan(&bytes)
	if err != nil {
		err = fmt.Errorf("measure the change log: %w", err)
	}
	return bytes, err
}

func trimLogs(ctx context.Context, pool *pgxpool.Pool, change beginner, tables []*Table, upTo Position) error {
	var due []string // logs that hold many dead entries: autovacuum would come late, and every round reads them
	err := change(ctx, func(tx pgx.Tx) error {
		var before string
		if err := tx.QueryRow(ctx, `SELECT coalesce(trimmed, '') FROM heroku_migrator.migration FOR
			UPDATE`).Scan(&before); err != nil {
			return err
		}
		mark, err := ParsePosition(before)
		if err != nil {
			return err
		}
		// The mark never goes back: an earlier process had come further than the journal knows.
		if done, err := mark.Covers(upTo); done || err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE heroku_migrator.migration SET trimmed = $1`, upTo.String()); err != nil {
			return err
		}
		for _, t := range tables {
			if _, err := tx.Exec(ctx, `
				UPDATE heroku_migrator.captured SET trimmed = true, trimmed_to = $2 WHERE relid = $1`, t.ID,
				upTo.String()); err != nil {
				return err
			}
			var deleted, size int64
			err := tx.QueryRow(ctx, `
				WITH gone AS (DELETE FROM `+logName(t.ID)+` WHERE pg_visible_in_snapshot(heroku_migrator_xid,
					$1::pg_snapshot) RETURNING 1)
				SELECT count(*), pg_total_relation_size($2) FROM
				gone`, upTo.Snapshot, logName(t.ID)).Scan(&deleted, &size)
			if err != nil {
				return err
			}
			const many, large = 10000, 8 << 20 // a few entries may be large arrays
			if deleted >= many || (deleted > 0 && size > large) {
				due = append(due, logName(t.ID))
			}
			_, err = tx.Exec(ctx, `
				DELETE FROM heroku_migrator.truncated WHERE relid IN (SELECT to_regclass(n)::oid FROM unnest($1::text[])
				AS n)
				AND pg_visible_in_snapshot(xid, $2::pg_snapshot)`, t.relationNames(), upTo.Snapshot)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("trim the change logs: %w", err)
	}
	for _, log := range due {
		if _, err := pool.Exec(ctx, `VACUUM (SKIP_LOCKED) `+log); err != nil {
			return fmt.Errorf("vacuum a change log: %w", err)
		}
	}
	return nil
}

// Touch implements [Source]. A table without a key is always sent whole.
func (h *Heroku) Touch(ctx context.Context, t *Table, keys io.Reader, all bool) error {
	change := func(ctx context.Context, fn func(pgx.Tx) error) error {
		return h.change(ctx, func(tx pgx.Tx) error {
			if all || t.Keyless() {
				if err := holdName(ctx, tx, t.Relation, t.Only()); err != nil {
					return err
				}
			}
			if all && !t.Keyless() {
				return h.way.during(ctx, tx, "mark "+t.String(), func() error { return fn(tx) })
			}
			return fn(tx)
		})
	}
	return touch(ctx, change, t, keys, all, `SELECT $1::oid`)
}

// holdName makes sure that a name leads to its relation until the transaction ends.
func holdName(ctx context.Context, tx pgx.Tx, r Relation, locked string) error {
	_, err := tx.Exec(ctx, fmt.Sprintf(`LOCK TABLE %s IN ACCESS SHARE MODE; %s`, locked, stillNamed([]Relation{r})))
	return err
}

// touch is Touch with one statement more about the table in the same transaction.
func touch(ctx context.Context, change beginner, t *Table, keys io.Reader, all bool, and string) error {
	err := change(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, and, t.ID); err != nil {
			return err
		}
		if all || t.Keyless() { // whatever the other side has now
			if _, err := tx.Exec(ctx, `INSERT INTO heroku_migrator.truncated (relid) VALUES ($1::text::regclass)`,
				t.Ident()); err != nil {
				return err
			}
		}
		if t.Keyless() {
			return nil
		}
		if all {
			if _, err := tx.Exec(ctx, inPath(fmt.Sprintf(`INSERT INTO %s (%s) SELECT %s FROM %s`, logName(t.ID),
				t.logColumns(), t.keyList(""), t.Only()))); err != nil {
				return err
			}
		}
		_, err := copyFrom(ctx, tx.Conn(), enterPath+fmt.Sprintf(`; COPY %s (%s) FROM STDIN`, logName(t.ID), t.logColumns()), keys)
		if err == nil {
			_, err = tx.Exec(ctx, leavePath)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("touch rows of %s: %w", t, err)
	}
	return nil
}
