package migrator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/heroku-migrator/migrator/internal/definition"
)

// What the application adds on the target after the switch is made on the source, behind its fence, before the rows
// that need it come back. See ARCHITECTURE.md, Additions on the target.

// ListObjects implements [Source].
func (h *Heroku) ListObjects(ctx context.Context) ([]definition.Object, error) {
	var list []definition.Object
	err := pgx.BeginTxFunc(ctx, h.pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `SELECT set_config('search_path', '', true)`) // names come out in full, as the target's
		if err == nil {
			list, err = definition.List(ctx, tx, SchemaName)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("survey the source's schema: %w", err)
	}
	return list, nil
}

// AddObjects implements [Source]. One transaction, in which each unit may fail by itself. What a unit needs may come
// with a later one, so those that fail are tried again for as long as others succeed.
func (h *Heroku) AddObjects(ctx context.Context, additions *Additions) error {
	var todo []*schemaUnit
	for _, u := range additions.units {
		switch {
		case u.err != nil || u.skipped:
		case !u.first:
			todo = append(todo, u)
		default: // a label cannot be used by the transaction that adds it
			err := h.change(ctx, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, strings.Join(u.steps, ";\n"))
				return err
			})
			if err != nil && (sqlState(err) == "" || Retryable(err)) {
				return fmt.Errorf("make on the source what was added on the target: %w", err)
			}
			u.err = err
		}
	}
	if len(todo) == 0 {
		return nil
	}
	err := h.change(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, passFence+`; SET LOCAL lock_timeout = '2s'; SET LOCAL check_function_bodies = off`)
		if err != nil {
			return err
		}
		for again := true; again; {
			again = false
			var failed []*schemaUnit
			for _, u := range todo {
				u.err = addUnit(ctx, tx, u)
				switch {
				case u.err == nil:
					again = true
				case sqlState(u.err) == "55P03":
					return ErrBusy
				case sqlState(u.err) == "" || Retryable(u.err):
					return u.err
				default:
					failed = append(failed, u)
				}
			}
			todo = failed
		}
		return guardAdded(ctx, tx, additions.units)
	})
	h.ops.forget()
	if err != nil {
		return fmt.Errorf("make on the source what was added on the target: %w", err)
	}
	return nil
}

// addUnit carries out one unit. That something is there already is no failure: it came with what it belongs to.
func addUnit(ctx context.Context, tx pgx.Tx, u *schemaUnit) error {
	return savepoint(ctx, tx, func(tx executor) error {
		for _, sql := range u.steps {
			err := savepoint(ctx, tx, func(tx executor) error {
				_, err := tx.Exec(ctx, sql)
				return err
			})
			switch sqlState(err) {
			case "42P07", "42710", "42723", "42701":
				continue
			case "42P16": // it has come with the partition
				if strings.Contains(sql, " PRIMARY KEY ") {
					continue
				}
			}
			if err != nil {
				return err
			}
		}
		if u.attach != "" {
			return attachAdded(ctx, tx, u)
		}
		if u.late { // what is due at the end would fail all others with it
			_, err := tx.Exec(ctx, `SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED`)
			return err
		}
		return nil
	})
}

// attachAdded attaches a partition. It needs the CHECK constraints that its table has on this side now. Rows of it that
// are in the default partition move; foreign keys that would act on that are taken away meanwhile.
func attachAdded(ctx context.Context, tx executor, u *schemaUnit) error {
	_, rest, _ := strings.Cut(u.attach, "ALTER TABLE ONLY ")
	parent, bound, _ := strings.Cut(rest, " ATTACH PARTITION ")
	bound = strings.TrimPrefix(bound, u.leaf+" ")
	name, err := relationNamed(ctx, tx, u.leaf)
	if err != nil {
		return err
	}
	var is, done bool
	if err := tx.QueryRow(ctx, `
		SELECT c.relispartition, c.relispartition AND pg_get_expr(c.relpartbound, c.oid) = $2
		       AND (SELECT inhparent = to_regclass($3) FROM pg_inherits WHERE inhrelid = c.oid)
		FROM pg_class c WHERE c.oid = $1`, name.ID, bound, parent).Scan(&is, &done); err != nil || done {
		return err
	}
	var before string
	if is {
		before = detach(name) + ";"
	}
	if u.emptied {
		before += `DELETE FROM ` + u.leaf + `; SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED;`
	}
	_, err = tx.Exec(ctx, before+fmt.Sprintf(`DO $checks$ DECLARE k record; BEGIN
		FOR k IN SELECT p.conname, pg_get_constraintdef(p.oid) AS def FROM pg_constraint p
			WHERE p.conrelid = '%[1]s'::regclass AND p.contype = 'c' AND NOT p.connoinherit
			  AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conrelid = '%[2]s'::regclass AND c.contype = 'c'
			  	AND c.conname = p.conname)
		LOOP
			EXECUTE format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s', '%[2]s'::regclass, k.conname, k.def);
		END LOOP; END $checks$`, quoteText(parent), quoteText(u.leaf)))
	if err != nil {
		return err
	}
	err = savepoint(ctx, tx, func(tx executor) error {
		_, err := tx.Exec(ctx, u.attach)
		return err
	})
	if sqlState(err) != "23514" {
		return err
	}
	acting, err := actingKeys(ctx, tx, parent)
	if err != nil {
		return err
	}
	drop, attach := detachment(acting)
	step := SchemaStep{SQL: u.attach, Object: &SchemaObject{Type: "TABLE ATTACH", Schema: name.Schema, Name: name.Name}}
	_, err = tx.Exec(ctx, `SET CONSTRAINTS ALL DEFERRED;`+drop+besideDefault(step)+`; SET CONSTRAINTS ALL IMMEDIATE;
		SET CONSTRAINTS ALL DEFERRED;`+attach)
	return err
}

func relationNamed(ctx context.Context, q querier, ident string) (r Relation, err error) {
	err = q.QueryRow(ctx, `SELECT c.oid, n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid =
		c.relnamespace WHERE c.oid = to_regclass($1)`, ident).
		Scan(&r.ID, &r.Schema, &r.Name)
	return r, err
}

// actingKeys lists the foreign keys that refer to a partitioned table and do something when its rows go.
func actingKeys(ctx context.Context, q querier, root string) ([]foreignKey, error) {
	rows, err := q.Query(ctx, `
		SELECT k.conname, c.oid, n.nspname, c.relname, pg_get_constraintdef(k.oid), coalesce(obj_description(k.oid,
			'pg_constraint'), '')
		FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE k.contype = 'f' AND k.conparentid = 0 AND (k.confdeltype IN ('c', 'n', 'd', 'r') OR k.confupdtype IN
			('c', 'n', 'd', 'r'))
		  AND k.confrelid IN (SELECT pg_partition_root(to_regclass($1)) UNION SELECT relid FROM
		  	pg_partition_ancestors(to_regclass($1)))`, root)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (k foreignKey, err error) {
		k.acts = true
		err = row.Scan(&k.name, &k.relation.ID, &k.relation.Schema, &k.relation.Name, &k.def, &k.describe)
		return k, err
	})
}

// guardAdded puts the fence on relations that are new, and notes the triggers that they have from their tables: these
// are silent there, and so here; they are to be what those will be.
func guardAdded(ctx context.Context, tx pgx.Tx, units []*schemaUnit) error {
	var relations []string
	for _, u := range units {
		for _, name := range []string{u.created, u.leaf} {
			if u.err == nil && !u.skipped && name != "" {
				relations = append(relations, name)
			}
		}
	}
	if len(relations) == 0 {
		return nil
	}
	_, err := tx.Exec(ctx, fmt.Sprintf(`DO $guard$ DECLARE r record; BEGIN
		FOR r IN SELECT c.oid::regclass AS rel FROM pg_class c
			WHERE c.oid IN (SELECT to_regclass(n) FROM unnest(%[1]s::text[]) AS n) AND c.relkind IN ('r', 'p')
			  AND NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND g.tgname = 'heroku_migrator_fence')
		LOOP
			EXECUTE format('CREATE TRIGGER heroku_migrator_fence BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON %%s
				FOR EACH STATEMENT EXECUTE FUNCTION heroku_migrator.fence()', r.rel);
			EXECUTE format('ALTER TABLE ONLY %%s ENABLE ALWAYS TRIGGER heroku_migrator_fence', r.rel);
		END LOOP;
		FOR r IN SELECT DISTINCT ON (g.tgrelid, g.tgname) g.tgrelid AS id, g.tgrelid::regclass AS rel, g.tgname AS
			name, g.tgenabled AS enabled, s.state
			FROM pg_trigger g CROSS JOIN LATERAL pg_partition_ancestors(g.tgrelid) WITH ORDINALITY AS a(relid, n)
			JOIN heroku_migrator.silenced s ON s.relid = a.relid AND s.kind = 'TRIGGER' AND s.name = g.tgname
			WHERE g.tgrelid IN (SELECT p.relid FROM unnest(%[1]s::text[]) AS n CROSS JOIN LATERAL
				pg_partition_tree(to_regclass(n)) AS p)
			  AND a.relid <> g.tgrelid AND g.tgparentid <> 0
			  AND NOT EXISTS (SELECT FROM heroku_migrator.silenced o WHERE o.relid = g.tgrelid AND o.kind = 'TRIGGER'
			  	AND o.name = g.tgname)
			ORDER BY g.tgrelid, g.tgname, a.n DESC
		LOOP
			INSERT INTO heroku_migrator.silenced (relid, kind, name, state) VALUES (r.id, 'TRIGGER', r.name, r.state);
			IF r.enabled <> 'D' THEN
				EXECUTE format('ALTER TABLE ONLY %%s DISABLE TRIGGER %%I', r.rel, r.name);
			END IF;
		END LOOP;
	END $guard$`, quoteLiteral(textArray(relations))))
	if err != nil {
		return fmt.Errorf("guard what is new: %w", err)
	}
	return nil
}

// textArray writes an array of texts as Postgres reads it.
func textArray(list []string) string {
	b := make([]string, len(list))
	for i, s := range list {
		b[i] = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
	}
	return "{" + strings.Join(b, ",") + "}"
}

// Additions is what was added on the target since the switch, with the statements that make it on the source.
type Additions struct{ units []*schemaUnit }

// CaptureAdded implements [Target]. The rows that are there already come back with the next round: their keys are
// entered after capture has been committed, so none is written in between that is neither captured nor entered.
func (p *PlanetScale) CaptureAdded(ctx context.Context, t *Table, leaves []Relation) error {
	here, err := p.located(ctx, []*Table{t})
	if err != nil || len(here) == 0 {
		return err
	}
	var known bool
	if err := p.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM heroku_migrator.captured WHERE relid = $1 AND name IS
		NOT NULL)`, t.ID).Scan(&known); err != nil {
		return fmt.Errorf("capture %s on the target: %w", t, err)
	}
	if known && leaves != nil {
		err = p.adoptAdded(ctx, t, leaves)
	} else {
		err = p.captureTable(ctx, t)
	}
	if errors.Is(err, ErrBusy) {
		return fmt.Errorf("capture %s on the target: %w; %s", t, ErrBusy, holders(ctx, p.pool, here[0].relations()))
	}
	if err != nil {
		return fmt.Errorf("capture %s on the target: %w", t, err)
	}
	return nil
}

// captureTable captures a table that is new there, and has it sent whole.
func (p *PlanetScale) captureTable(ctx context.Context, t *Table) error {
	decode, err := p.decoder.look(ctx)
	if err != nil {
		return err
	}
	err = p.journal.tx(ctx, func(tx pgx.Tx) error {
		var done bool
		if err := tx.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, logName(t.ID)).Scan(&done); err != nil ||
			done {
			return err
		}
		if decode {
			if decode, err = decodable(ctx, tx, t); err != nil {
				return err
			}
		}
		var c captureSQL
		if decode {
			c = p.decoder.capture(t)
		} else if c, err = captureByTriggers(ctx, tx, t, false); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, c.log+c.functions); err != nil {
			return err
		}
		if err := lock(ctx, tx, t.Only(), "SHARE ROW EXCLUSIVE", inPath(c.attach)); err != nil {
			return err
		}
		ids, names := idsAndNames([]*Table{t})
		_, err := tx.Exec(ctx, `
			INSERT INTO heroku_migrator.captured (relid, name, columns, files, here, key, decoded)
			SELECT t.id, t.name, `+columnsHere+`, `+filesHere+`, to_regclass(t.name), CASE WHEN $4 THEN $3::text[]
				END, $4
			FROM unnest($1::int8[], $2::text[]) AS t(id, name)
			ON CONFLICT (relid) DO UPDATE SET name = excluded.name, columns = excluded.columns, files = excluded.files,
				here = excluded.here, key = excluded.key, decoded = excluded.decoded, trimmed =
					false`, ids, names, t.Key, decode)
		return err
	})
	if err != nil {
		return err
	}
	return touch(ctx, p.journal.tx, t, strings.NewReader(""), true, `SELECT $1::oid`)
}

// adoptAdded enters the keys of rows that partitions brought along. That their files are new is known then, unless
// others are new, too.
func (p *PlanetScale) adoptAdded(ctx context.Context, t *Table, leaves []Relation) error {
	var decoded bool
	if err := p.pool.QueryRow(ctx, `SELECT coalesce(bool_or(decoded), false) FROM heroku_migrator.captured WHERE
		relid = $1`, t.ID).Scan(&decoded); err != nil {
		return err
	}
	for _, leaf := range leaves {
		err := p.journal.tx(ctx, func(tx pgx.Tx) error {
			script, mode, err := releaseLeaf(ctx, tx, leaf)
			if err != nil {
				return err
			}
			if !decoded {
				script += truncateTriggers(&Table{Relation: leaf}, false)
			}
			if script != "" {
				if err := lock(ctx, tx, "ONLY "+leaf.Ident(), mode, script); err != nil {
					return err
				}
			}
			if t.Keyless() {
				_, err := tx.Exec(ctx, `INSERT INTO heroku_migrator.truncated (relid) VALUES ($1::text::regclass)`,
					t.Ident())
				return err
			}
			_, err = tx.Exec(ctx, fmt.Sprintf(`INSERT INTO %s (%s) SELECT %s FROM ONLY %s`, logName(t.ID),
				t.logColumns(), t.keyList(""), leaf.Ident()))
			return err
		})
		if err != nil {
			return err
		}
	}
	names := make([]string, len(leaves))
	for i, l := range leaves {
		names[i] = l.Ident()
	}
	return p.journal.tx(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE heroku_migrator.captured t SET files = `+filesHere+` WHERE t.relid = $1
			AND string_to_array(`+filesHere+`, ' ') <@ (string_to_array(t.files, ' ') || ARRAY(SELECT `+fileHere+`
				FROM (
				SELECT p.relid FROM unnest($2::text[]) AS n CROSS JOIN LATERAL pg_partition_tree(to_regclass(n)) AS
					p) AS r))`,
			t.ID, names)
		return err
	})
}

// releaseLeaf writes the statements that end the capture of a partition which was a table before: its root's triggers
// see what is written to it now, and its rows come whole.
func releaseLeaf(ctx context.Context, tx pgx.Tx, leaf Relation) (script, mode string, err error) {
	var own uint32
	var published bool
	err = tx.QueryRow(ctx, `
		SELECT k.relid, EXISTS (SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
			WHERE p.pubname = $2 AND r.prrelid = to_regclass(k.name))
		FROM heroku_migrator.captured k WHERE k.name = $1`, leaf.Ident(), decodeName).Scan(&own, &published)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", "SHARE ROW EXCLUSIVE", nil
	}
	script = dropCapture(own)
	if published {
		script += fmt.Sprintf("ALTER PUBLICATION %s DROP TABLE ONLY %s;\n", decodeName, leaf.Ident())
	}
	return script, "ACCESS EXCLUSIVE", err
}

// errFollowed has a round begin again, with a snapshot of what the source is now in line with.
var errFollowed = fmt.Errorf("the target's schema was followed: %w", errPassing)

// settleSurvey makes sure that the journal knows what the target's schema was when it was switched. What the switch
// itself has made is on the source, too. It has to be done before the source is made ready to take rows, since that
// changes its constraints.
func settleSurvey(ctx context.Context, src Source, dst Target) error {
	before, err := dst.Journal().surveyed(ctx)
	if err != nil || (before != nil && before.Settled) {
		return err
	}
	now, err := dst.SurveySchema(ctx)
	if err != nil {
		return err
	}
	source, err := src.ListObjects(ctx)
	if err != nil {
		return err
	}
	if before == nil { // switched by an earlier version
		before = &surveyed{Fingerprint: now.fingerprint, Tables: now.tables, Objects: now.objects}
	}
	on := map[string]bool{}
	for _, o := range source {
		on[o.Key()] = true
	}
	known := map[string]int{}
	for i, o := range before.Objects {
		known[o.Key()] = i
	}
	for _, o := range now.objects {
		if i, ok := known[o.Key()]; ok {
			if o.Kind == definition.Constraint || o.Kind == definition.ForeignKey || o.Kind == definition.Trigger {
				before.Objects[i] = o
			}
		} else if on[o.Key()] {
			before.Objects = append(before.Objects, o)
		}
	}
	before.Settled = true
	return dst.Journal().tx(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, surveySchema); err != nil {
			return err
		}
		return saveSurvey(ctx, tx, before)
	})
}

// followTarget makes on the source what was added on the target, and finds out which tables cannot come back.
func (w *wayBack) followTarget(ctx context.Context) error {
	journal := w.dst.Journal()
	before, err := journal.surveyed(ctx)
	if err != nil {
		return err
	}
	if before == nil || !before.Settled {
		return fmt.Errorf("the survey of the target's schema is missing: %w", errPassing)
	}
	now, err := w.dst.SurveySchema(ctx)
	if err != nil {
		return err
	}
	statuses, err := journal.Tables(ctx)
	if err != nil {
		return err
	}
	p := compareSurveys(before, now, statuses)
	if len(p.wanted) > 0 {
		sql, err := w.dst.DefineObjects(ctx, p.wanted)
		if err != nil {
			return err
		}
		source, err := w.src.ListObjects(ctx)
		if err != nil {
			return err
		}
		p.makeUnits(sql, source)
	}
	if len(p.units) > 0 {
		if err := w.src.AddObjects(ctx, &Additions{p.units}); err != nil {
			return err
		}
	}
	if err := w.recordAdditions(ctx, p, statuses); err != nil {
		return err
	}
	w.schema, w.surveyed = now.fingerprint, time.Now() // rounds come before what is left is tried again
	return nil
}

// recordAdditions captures what is new on both sides, and writes down what the source has now.
func (w *wayBack) recordAdditions(ctx context.Context, p *surveyPlan, statuses []TableStatus) error {
	left := p.settleUnits()
	cat, err := w.src.Catalog(ctx)
	if err != nil {
		return err
	}
	record := &additionsRecord{}
	changed, err := w.captureAdded(ctx, p, cat, statuses, record)
	if err != nil {
		return err
	}
	record.survey = p.remembered(left)
	record.held = p.heldTables()
	wasHeld, err := w.dst.Journal().Held(ctx)
	if err != nil {
		return err
	}
	var there, again []*Table
	for _, s := range statuses {
		ident := s.Table.Ident()
		if _, held := p.held[ident]; held || slices.Contains(record.dropped, s.Table.ID) {
			continue
		}
		there = append(there, record.spec(s.Table))
		released := slices.ContainsFunc(wasHeld, func(t HeldTable) bool { return t.ID == s.Table.ID })
		if released || p.resent[ident] {
			again = append(again, record.spec(s.Table))
		}
	}
	if err := w.dst.ResendRewritten(ctx, there); err != nil { // a new column may have been a rewrite
		return err
	}
	if len(again) > 0 {
		if err := w.dst.Resend(ctx, again, true); err != nil {
			return err
		}
	}
	changed = changed || p.made()
	if changed {
		if record.objects, record.fingerprint, err = w.src.DumpSchema(ctx); err != nil {
			return err
		}
		silent, err := w.dst.AppliesSilently(ctx)
		if err != nil {
			return err
		}
		for i, o := range record.objects {
			if !silent && (o.Stage == StageForeign || o.Type == "TRIGGER") { // a revert takes it away, as the others
				record.objects[i].Stage = StageSwitch
			}
		}
	}
	if err := w.dst.Journal().recordAdditions(ctx, record); err != nil {
		return err
	}
	w.tellAdditions(ctx, p, record, left)
	return w.reload(ctx, changed)
}

// made tells whether anything was made on the source.
func (p *surveyPlan) made() bool {
	return slices.ContainsFunc(p.units, func(u *schemaUnit) bool { return u.err == nil && !u.skipped })
}

// settleUnits holds back the tables whose rows need what could not be made, and returns what is missing of the rest.
func (p *surveyPlan) settleUnits() (left []*schemaUnit) {
	for _, u := range p.units {
		if u.err == nil {
			continue
		}
		left = append(left, u)
		reason := fmt.Sprintf("%s could not be made on the source: %v", u.what, u.err)
		switch {
		case u.table != "":
			p.holdf(u.table, "%s", reason)
		case u.created != "":
			p.holdf(u.created, "%s", reason)
		case !u.late || !strings.HasPrefix(sqlState(u.err), "23"):
			p.told = append(p.told, reason)
		}
	}
	return left
}

// additionsRecord is what is written down of additions, in one transaction.
type additionsRecord struct {
	tables      []*Table
	dropped     []uint32
	objects     []SchemaObject
	fingerprint string
	survey      *surveyed
	held        []HeldTable
}

// spec is a table as it is recorded now.
func (r *additionsRecord) spec(t *Table) *Table {
	for _, n := range r.tables {
		if n.ID == t.ID {
			return n
		}
	}
	return t
}

// captureAdded captures tables and partitions that are new. On the source they have to be captured before its fence is
// lifted; on the target, before their rows are sent.
func (w *wayBack) captureAdded(ctx context.Context, p *surveyPlan, cat *Catalog, statuses []TableStatus,
	record *additionsRecord) (changed bool, err error) {
	known := map[uint32]*Table{}
	for _, s := range statuses {
		known[s.Table.ID] = s.Table
	}
	onTarget := map[string]bool{}
	for _, t := range p.now.tables {
		onTarget[t.Ident()] = true
	}
	for _, t := range cat.Tables {
		t.Silenced = false
		k := known[t.ID]
		delete(known, t.ID)
		if _, held := p.held[t.Ident()]; held || (k == nil && !onTarget[t.Ident()]) {
			continue
		}
		if k == nil {
			changed = true
			record.tables = append(record.tables, t)
			if err := w.src.Capture(ctx, t); err != nil {
				return changed, err
			}
			if err := w.dst.CaptureAdded(ctx, t, nil); err != nil {
				return changed, err
			}
			continue
		}
		leaves := newLeaves(k, t, p.leaves[t.Ident()])
		if len(leaves) == 0 && k.sameShape(t) {
			continue
		}
		changed = true
		t.Key = k.Key
		record.tables = append(record.tables, withFilesOf(k, t))
		if len(leaves) > 0 {
			if err := w.src.Adopt(ctx, t, leaves); err != nil {
				return changed, err
			}
		}
		if err := w.dst.CaptureAdded(ctx, t, leaves); err != nil {
			return changed, err
		}
	}
	for id, t := range known { // a table that is a partition now
		if _, held := p.held[t.Ident()]; held {
			continue
		}
		for _, o := range cat.Tables {
			if slices.ContainsFunc(o.Leaves, func(l Leaf) bool { return l.ID == id && o.ID != id }) {
				changed = true
				record.dropped = append(record.dropped, id)
			}
		}
	}
	return changed, nil
}

// newLeaves are the partitions whose rows have to be sent: those that the journal does not know, and those that were
// attached again.
func newLeaves(k, t *Table, attached []Relation) []Relation {
	list := []Relation{}
	for _, l := range t.Leaves {
		if l.ID == t.ID {
			continue
		}
		known := slices.ContainsFunc(k.Leaves, func(o Leaf) bool { return o.ID == l.ID })
		again := slices.ContainsFunc(attached, func(r Relation) bool {
			return r.Schema == l.Schema &&
				r.Name == l.Name
		})
		if !known || again {
			list = append(list, l.Relation)
		}
	}
	return list
}

// remembered is the survey without what could not be carried back.
func (p *surveyPlan) remembered(left []*schemaUnit) *surveyed {
	s := &surveyed{Fingerprint: p.now.fingerprint, Settled: true, Told: slices.Clone(p.told)}
	missing := map[string]bool{}
	for _, u := range left {
		for _, key := range u.keys {
			missing[key] = true
		}
	}
	heldIdent := func(ident string) bool {
		_, held := p.held[ident]
		return held
	}
	was := map[string]*Table{}
	for _, t := range p.before.Tables {
		was[t.Ident()] = t
		if heldIdent(t.Ident()) {
			s.Tables = append(s.Tables, t)
		}
	}
	for _, t := range p.now.tables {
		t = t.withoutNotNull(left)
		if !heldIdent(t.Ident()) && !slices.ContainsFunc(s.Tables, func(o *Table) bool { return o.ID == t.ID }) {
			s.Tables = append(s.Tables, t)
		}
	}
	held := func(objects []definition.Object, o definition.Object) bool {
		name := o.Relation
		if o.Kind == definition.Label {
			return p.unlabeled[identOf(o, o.Relation)]
		}
		if o.Kind == definition.Table || o.Kind == definition.Attach {
			name = o.Name
			if root := rootOf(objects, o.ID); root != "" && heldIdent(root) {
				return true
			}
		}
		return name != "" && heldIdent(identOf(o, name))
	}
	for _, o := range p.before.Objects {
		if held(p.before.Objects, o) {
			s.Objects = append(s.Objects, o)
		}
	}
	for _, o := range p.now.objects {
		if !held(p.now.objects, o) && !missing[o.Key()] {
			s.Objects = append(s.Objects, o)
		}
	}
	return s
}

// withoutNotNull is a table as it would be without the NOT NULLs that could not be carried back.
func (t *Table) withoutNotNull(left []*schemaUnit) *Table {
	copied := *t
	copied.Columns = slices.Clone(t.Columns)
	for _, u := range left {
		for i, c := range copied.Columns {
			if u.of == t.ID && u.notNull == c.Name {
				copied.Columns[i].NotNull = false
			}
		}
	}
	return &copied
}

func (p *surveyPlan) heldTables() []HeldTable {
	var list []HeldTable
	for _, ident := range sortedKeys(p.held) {
		list = append(list, HeldTable{ID: p.ids[ident], Table: strings.ReplaceAll(ident, `"`, ""),
			Reason: p.held[ident]})
	}
	return list
}

// tellAdditions says what was carried back, and what was not, once.
func (w *wayBack) tellAdditions(ctx context.Context, p *surveyPlan, record *additionsRecord, left []*schemaUnit) {
	var made []string
	for _, u := range p.units {
		if u.err == nil && !u.skipped {
			made = append(made, u.what)
		}
	}
	if len(made) > 0 {
		message := "added on the target since the switch, and made on the source: " + abbreviate(made)
		w.cfg.Logger.InfoContext(ctx, message)
		notify(w.cfg.OnEvent, Event{Kind: EventSchema, Phase: PhaseSwitched, Message: message})
		// what is recorded there is for people
		_ = w.dst.Journal().Record(ctx, Event{Kind: EventSchema, Message: message})
	}
	for _, t := range record.held {
		message := fmt.Sprintf("rows of %s are held back on the target: %s. All other tables go on", t.Table, t.Reason)
		if !slices.ContainsFunc(w.held, func(o HeldTable) bool { return o.Table == t.Table && o.Reason == t.Reason }) {
			w.warn(ctx, message)
			_ = w.dst.Journal().Record(ctx, Event{Kind: EventWarning, Message: message})
		}
	}
	for _, text := range record.survey.Told {
		if !slices.Contains(p.before.Told, text) {
			w.warn(ctx, text)
			_ = w.dst.Journal().Record(ctx, Event{Kind: EventWarning, Message: text})
		}
	}
	w.left = len(left) > 0
	w.again = slices.ContainsFunc(left, func(u *schemaUnit) bool { return u.late })
}

// holdRelated holds back a table whose rows refer to, or are referred to by, rows of one that is held back: a foreign
// key of the source refused them.
func (w *wayBack) holdRelated(ctx context.Context, cause error) error {
	pg := new(pgconn.PgError)
	if !errors.As(cause, &pg) {
		return cause
	}
	named := func(t *Table) bool {
		return slices.ContainsFunc(t.relations(), func(r Relation) bool {
			return r.Schema == pg.SchemaName && r.Name == pg.TableName
		})
	}
	at := slices.IndexFunc(w.tables, named)
	if at < 0 { // the one that refers is held back, so it is the other's turn
		if parts := strings.SplitN(pg.Message, `"`, 3); len(parts) == 3 {
			at = slices.IndexFunc(w.tables, func(t *Table) bool { return t.Name == parts[1] })
		}
	}
	if at < 0 {
		return cause
	}
	t := HeldTable{
		ID: w.tables[at].ID, Table: w.tables[at].String(),
		Reason: fmt.Sprintf("foreign key %s relates it to a table that is held back, and its rows do not go without",
			pg.ConstraintName),
	}
	err := w.dst.Journal().exec(ctx, "hold a table back", `
		INSERT INTO heroku_migrator.held (name, table_id, reason) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING`,
		t.Table, int64(t.ID), t.Reason)
	if err != nil {
		return err
	}
	w.warn(ctx, fmt.Sprintf("rows of %s are held back on the target: %s", t.Table, t.Reason))
	return w.reload(ctx, false)
}

// reload has the next rounds carry the tables that are known now.
func (w *wayBack) reload(ctx context.Context, changed bool) error {
	statuses, err := w.dst.Journal().Tables(ctx)
	if err != nil {
		return err
	}
	if w.held, err = w.dst.Journal().Held(ctx); err != nil {
		return err
	}
	w.tables, w.all = nil, nil
	for _, s := range statuses {
		w.all = append(w.all, s.Table)
		if !slices.ContainsFunc(w.held, func(t HeldTable) bool { return t.ID == s.Table.ID }) {
			w.tables = append(w.tables, s.Table)
		}
	}
	if !changed {
		return nil
	}
	if err := w.src.Fence(ctx, w.all, FenceConfig{Keep: true}); err != nil {
		return err
	}
	state, err := w.dst.Journal().State(ctx)
	if err != nil {
		return err
	}
	return w.src.OpenWayBack(ctx, w.all, state.Switches)
}

// recordAdditions writes down what was added: tables are live at once, since both sides have all their changes in logs.
func (j *Journal) recordAdditions(ctx context.Context, r *additionsRecord) error {
	err := j.tx(ctx, func(tx pgx.Tx) error {
		for _, t := range r.tables {
			spec, err := jsonText(t)
			if err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, `
				INSERT INTO heroku_migrator.tables (id, spec, state, captured) VALUES ($1, $2, 'live', true)
				ON CONFLICT (id) DO UPDATE SET spec = excluded.spec`, int64(t.ID), spec); err != nil {
				return err
			}
		}
		for _, id := range r.dropped {
			if err := forgetTable(ctx, tx, id); err != nil {
				return err
			}
		}
		if r.fingerprint != "" {
			if err := recordObjects(ctx, tx, r); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(ctx, `DELETE FROM heroku_migrator.held WHERE name <> ALL ($1::text[])`,
			heldNames(r.held)); err != nil {
			return err
		}
		for _, t := range r.held {
			if _, err := tx.Exec(ctx, `
				INSERT INTO heroku_migrator.held (name, table_id, reason) VALUES ($1, $2, $3)
				ON CONFLICT (name) DO UPDATE SET reason = excluded.reason, table_id =
					excluded.table_id`, t.Table, int64(t.ID), t.Reason); err != nil {
				return err
			}
		}
		return saveSurvey(ctx, tx, r.survey)
	})
	if err != nil {
		return fmt.Errorf("journal: record what was added on the target: %w", err)
	}
	return nil
}

func heldNames(held []HeldTable) []string {
	names := make([]string, len(held))
	for i, t := range held {
		names[i] = t.Table
	}
	return names
}

// forgetTable drops what is of a table that is a partition of another by now, whose log has its rows.
func forgetTable(ctx context.Context, tx pgx.Tx, id uint32) error {
	for _, sql := range []string{
		`DELETE FROM heroku_migrator.chunks WHERE table_id = $1`, `DELETE FROM heroku_migrator.tables WHERE id = $1`,
	} {
		if _, err := tx.Exec(ctx, sql, int64(id)); err != nil {
			return err
		}
	}
	return nil
}

// replacedTypes are the types of objects that the source may have in another form by now, but for those that are
// silent.
var replacedTypes = []string{"FUNCTION", "PROCEDURE", "VIEW", "COMMENT", "TABLE", "TYPE", "TABLE ATTACH", "DEFAULT"}

// recordObjects adds the objects of the source that are new, for the comparison with what it has later. What was there
// has to be as it was before the source was made ready to take rows.
func recordObjects(ctx context.Context, tx pgx.Tx, r *additionsRecord) error {
	rows, err := tx.Query(ctx, `SELECT id, type, schema, name, sql FROM heroku_migrator.objects`)
	if err != nil {
		return err
	}
	known, highest := map[string]string{}, 0
	var o SchemaObject
	if _, err := pgx.ForEachRow(rows, []any{&o.ID, &o.Type, &o.Schema, &o.Name, &o.SQL}, func() error {
		known[o.String()], highest = o.SQL, max(highest, o.ID)
		return nil
	}); err != nil {
		return err
	}
	var added []SchemaObject
	for _, o := range r.objects {
		sql, there := known[o.String()]
		delete(known, o.String())
		if !there {
			highest++
			o.ID, o.State = highest, ObjectDone
			added = append(added, o)
		} else if sql != o.SQL && slices.Contains(replacedTypes, o.Type) {
			if _, err := tx.Exec(ctx, `
				UPDATE heroku_migrator.objects SET sql = $4 WHERE type = $1 AND schema = $2 AND name = $3`,
				o.Type, o.Schema, o.Name, o.SQL); err != nil {
				return err
			}
		}
	}
	if err := insertObjects(ctx, tx, added); err != nil {
		return err
	}
	var gone []string
	for name := range known {
		gone = append(gone, name)
	}
	if _, err := tx.Exec(ctx, `
		DELETE FROM heroku_migrator.objects WHERE type IN ('TABLE ATTACH', 'TABLE', 'INDEX ATTACH', 'INDEX',
			'CONSTRAINT', 'DEFAULT')
		AND lower(type) || ' ' || CASE WHEN schema <> '' THEN schema || '.' ELSE '' END || name = ANY
			($1::text[])`, gone); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `UPDATE heroku_migrator.migration SET schema = $1`, r.fingerprint)
	return err
}
