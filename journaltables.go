package migrator

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// The journal's tables, chunks and objects.

// AddTables records the tables to be moved. Those known already are left as they are.
func (j *Journal) AddTables(ctx context.Context, tables []*Table) error {
	err := j.tx(ctx, func(tx pgx.Tx) error { return insertTables(ctx, tx, tables) })
	if err != nil {
		return fmt.Errorf("journal: add tables: %w", err)
	}
	return nil
}

func insertTables(ctx context.Context, tx pgx.Tx, tables []*Table) error {
	ids, specs := make([]int64, len(tables)), make([]string, len(tables))
	for i, t := range tables {
		spec, err := jsonText(t)
		if err != nil {
			return err
		}
		ids[i], specs[i] = int64(t.ID), spec
	}
	_, err := tx.Exec(ctx, `INSERT INTO heroku_migrator.tables (id, spec) SELECT id, spec::jsonb
		FROM unnest($1::int8[], $2::text[]) AS t(id, spec) ON CONFLICT (id) DO NOTHING`, ids, specs)
	return err
}

// addSchema records the tables to be moved and the objects of the schema, as they are at one moment.
func (j *Journal) addSchema(ctx context.Context, cat *Catalog, objects []SchemaObject) error {
	err := j.tx(ctx, func(tx pgx.Tx) error {
		if err := insertTables(ctx, tx, cat.Tables); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE heroku_migrator.migration SET schema = $1, search_path = $2`, cat.Fingerprint, cat.SearchPath); err != nil {
			return err
		}
		return insertObjects(ctx, tx, objects)
	})
	if err != nil {
		return fmt.Errorf("journal: record the schema: %w", err)
	}
	return nil
}

// MarkCaptured notes that the table's capture is committed on the source.
func (j *Journal) MarkCaptured(ctx context.Context, table *Table) error {
	return j.exec(ctx, "mark a table captured", `UPDATE heroku_migrator.tables SET captured = true WHERE id = $1`,
		table.ID)
}

// SetTable moves a table from one state to another. It does nothing if the table is in another state than from.
func (j *Journal) SetTable(ctx context.Context, table *Table, from, to TableState) error {
	return j.exec(ctx, "set a table's state", `UPDATE heroku_migrator.tables SET state = $3
		WHERE id = $1 AND state = $2`, table.ID, string(from), string(to))
}

// Tables reads the tables with their progress.
func (j *Journal) Tables(ctx context.Context) ([]TableStatus, error) {
	rows, err := j.pool.Query(ctx, `
		SELECT t.spec, t.state, t.plan, t.captured, t.error, t.copied_at, coalesce(c.rows, 0), coalesce(c.copied, 0),
			c.total, coalesce(c.stream, 0),
		       c.n, c.done
		FROM heroku_migrator.tables t CROSS JOIN LATERAL (
			SELECT sum(rows)::int8 AS rows, (sum(bytes) FILTER (WHERE done))::int8 AS copied, sum(bytes)::int8 AS total,
			       sum(stream_bytes)::int8 AS stream, count(*) AS n, count(*) FILTER (WHERE done) AS done
			FROM heroku_migrator.chunks WHERE table_id = t.id) c
		ORDER BY t.id`)
	if err != nil {
		return nil, fmt.Errorf("journal: read tables: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (s TableStatus, err error) {
		var spec []byte
		var total *int64
		var copiedAt string
		err = row.Scan(&spec, &s.State, &s.Plan, &s.Captured, &s.Error, &copiedAt, &s.RowsCopied, &s.BytesCopied,
			&total, &s.StreamBytes, &s.Chunks, &s.ChunksDone)
		if err != nil {
			return s, err
		}
		s.Table = new(Table)
		if err := json.Unmarshal(spec, s.Table); err != nil {
			return s, err
		}
		if s.CopiedAt, err = ParsePosition(copiedAt); err != nil {
			return s, err
		}
		s.BytesTotal = s.Table.Bytes()
		if total != nil {
			s.BytesTotal = *total
		}
		return s, nil
	})
	if err != nil {
		return nil, fmt.Errorf("journal: read tables: %w", err)
	}
	return list, nil
}

// chunksLeft counts the chunks that are not done, and tables that are still to be cut into some.
func (j *Journal) chunksLeft(ctx context.Context) (left int, err error) {
	err = j.pool.QueryRow(ctx, `
		SELECT (SELECT count(*) FROM heroku_migrator.chunks c JOIN heroku_migrator.tables t ON t.id = c.table_id
		        WHERE NOT c.done AND t.state <> 'set_aside')
		     + (SELECT count(*) FROM heroku_migrator.tables WHERE state = 'pending')`).Scan(&left)
	if err != nil {
		err = fmt.Errorf("journal: count chunks: %w", err)
	}
	return left, err
}

// setThrottle notes at which share of full speed rows are copied, and why.
func (j *Journal) setThrottle(ctx context.Context, share float64, reason string) error {
	return j.exec(ctx, "note the throttle", `UPDATE heroku_migrator.progress SET copy_share = $1, throttled = $2`,
		share, reason)
}

// setFilenodes notes which files hold the table, for whoever looks for rewrites later.
func (j *Journal) setFilenodes(ctx context.Context, table *Table, now map[uint32]uint32) error {
	return j.tx(ctx, func(tx pgx.Tx) error { return setFilenodes(ctx, tx, table.ID, now) })
}

func setFilenodes(ctx context.Context, tx pgx.Tx, id uint32, now map[uint32]uint32) error {
	var spec []byte
	err := tx.QueryRow(ctx, `SELECT spec FROM heroku_migrator.tables WHERE id = $1 FOR UPDATE`, id).Scan(&spec)
	if err == nil {
		spec, err = withFilenodes(spec, now)
	}
	if err == nil {
		_, err = tx.Exec(ctx, `UPDATE heroku_migrator.tables SET spec = $2 WHERE id = $1`, id, string(spec))
	}
	if err != nil {
		return fmt.Errorf("note a table's files: %w", err)
	}
	return nil
}

// withFilenodes returns a table's entry with other files.
func withFilenodes(spec []byte, now map[uint32]uint32) ([]byte, error) {
	var t Table
	if err := json.Unmarshal(spec, &t); err != nil {
		return nil, err
	}
	for i, l := range t.Leaves {
		t.Leaves[i].Filenode = now[l.ID]
	}
	return json.Marshal(t)
}

func insertObjects(ctx context.Context, tx pgx.Tx, objects []SchemaObject) error {
	_, err := tx.CopyFrom(ctx, pgx.Identifier{SchemaName, "objects"},
		[]string{
			"id", "stage", "type", "schema", "name", "table_id", "sql", "undo", "state", "error",
			"parent", "drop_sql", "needs", "class", "oid", "functions",
		},
		pgx.CopyFromSlice(len(objects), func(i int) ([]any, error) {
			o := objects[i]
			needs := append([]int{}, o.Needs...)
			return []any{
				o.ID, string(o.Stage), o.Type, o.Schema, o.Name, int64(o.Table), o.SQL, o.Undo, string(o.State),
				o.Error,
				o.Parent, o.Drop, needs, int64(o.Class), int64(o.OID), append([]string{}, o.Functions...),
			}, nil
		}))
	return err
}

func jsonText(v any) (string, error) {
	text, err := json.Marshal(v)
	return string(text), err
}

// Objects reads the schema, in the order of creation.
func (j *Journal) Objects(ctx context.Context) ([]SchemaObject, error) {
	rows, err := j.pool.Query(ctx, `
		SELECT id, stage, type, schema, name, table_id, sql, undo, state, error, parent, drop_sql, needs, class, oid,
			functions
		FROM heroku_migrator.objects ORDER BY id`)
	if err != nil {
		return nil, fmt.Errorf("journal: read objects: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (o SchemaObject, err error) {
		err = row.Scan(&o.ID, &o.Stage, &o.Type, &o.Schema, &o.Name, &o.Table, &o.SQL, &o.Undo, &o.State, &o.Error,
			&o.Parent, &o.Drop, &o.Needs, &o.Class, &o.OID, &o.Functions)
		return o, err
	})
	if err != nil {
		return nil, fmt.Errorf("journal: read objects: %w", err)
	}
	return list, nil
}

// MarkObject records what became of an object.
func (j *Journal) MarkObject(ctx context.Context, id int, state ObjectState, reason string) error {
	return j.exec(ctx, "mark an object", `UPDATE heroku_migrator.objects SET state = $2, error = $3 WHERE id = $1`, id,
		string(state), reason)
}
