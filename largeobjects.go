package migrator

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// Large objects have no triggers, so they are not followed. They are made equal by comparing hashes of pieces, once
// before the fence, so that little is left, and once behind it. See ARCHITECTURE.md, Large objects.

// LargeObjectPiece is a part of a large object: what is compared and copied as one.
type LargeObjectPiece struct {
	Object uint32
	At     int64
}

// LargeObjectDiff says what was found when the large objects of both sides were compared.
type LargeObjectDiff struct {
	Objects int64 // on the source
	Bytes   int64 // on the source
	// Differing is how many objects are on one side only, or not the same.
	Differing int64
	// Moving is how many pieces changed on the source while they were copied: they have to be copied again.
	Moving int64
	// Comparing is how long it took to compare them.
	Comparing time.Duration
}

const (
	largeObjectPiece = 256 << 10
	// largeObjectBatch is how many bytes are copied in one transaction, a piece counting for 8 KiB at least.
	largeObjectBatch = 32 << 20
	// largeObjectLocks is how many objects are dropped in one transaction: each takes a lock.
	largeObjectLocks = 1000
)

// One row per piece of each large object, an empty one having one piece. Its tables cannot be read without superuser
// rights, but its functions can be called. OFFSET 0 keeps the calls apart: each object is opened, measured and closed
// before the next, since descriptors cost memory until the transaction ends. 262144 is INV_READ.
var largeObjectPieces = fmt.Sprintf(`
	SELECT o.oid, p.at, least(o.size - p.at, %[1]d)::int AS bytes, sha256(lo_get(o.oid, p.at, %[1]d)) AS sum,
	       CASE WHEN p.at = 0 THEN obj_description(o.oid, 'pg_largeobject') END AS comment
	FROM (SELECT oid, size, lo_close(fd) FROM (
		SELECT oid, fd, lo_lseek64(fd, 0, 2) AS size FROM (
			SELECT oid, lo_open(oid, 262144) AS fd FROM pg_largeobject_metadata OFFSET 0) AS opened OFFSET 0) AS measured OFFSET 0) AS o
	CROSS JOIN LATERAL generate_series(0, greatest(o.size - 1, 0), %[1]d) AS p(at)`, largeObjectPiece)

// LargeObjects implements [Snapshot].
func (s *herokuSnapshot) LargeObjects(ctx context.Context, w io.Writer) (int64, error) {
	n, err := copyTo(ctx, s.conn.Conn(), `COPY (`+largeObjectPieces+`) TO STDOUT`, w)
	if err != nil {
		return n, fmt.Errorf("hash large objects: %w", err)
	}
	return n, nil
}

// CopyLargeObjects implements [Snapshot].
func (s *herokuSnapshot) CopyLargeObjects(ctx context.Context, pieces []LargeObjectPiece, w io.Writer) (int64, error) {
	objects, offsets := make([]string, len(pieces)), make([]string, len(pieces))
	for i, p := range pieces {
		objects[i], offsets[i] = fmt.Sprint(p.Object), fmt.Sprint(p.At)
	}
	n, err := copyTo(ctx, s.conn.Conn(), fmt.Sprintf(`
		COPY (SELECT p.oid, p.at, lo_get(p.oid, p.at, %d) FROM unnest('{%s}'::oid[], '{%s}'::int8[]) AS p(oid, at)
		      WHERE p.oid IN (SELECT oid FROM pg_largeobject_metadata)) TO STDOUT (FORMAT binary)`,
		largeObjectPiece, strings.Join(objects, ","), strings.Join(offsets, ",")), w)
	if err != nil {
		return n, fmt.Errorf("read large objects: %w", err)
	}
	return n, nil
}

// openSnapshot is [Source.Snapshot].
type openSnapshot = func(ctx context.Context) (Snapshot, error)

// CompareLargeObjects implements [Target]. Both sides hash at the same time, each its own. What differs is kept in the
// journal's schema, in ordinary tables: a list that a crash of the server emptied would read as "delete all".
func (p *PlanetScale) CompareLargeObjects(ctx context.Context, open openSnapshot) (diff LargeObjectDiff, err error) {
	return compareLargeObjects(ctx, p.journal.tx, open)
}

func compareLargeObjects(ctx context.Context, change beginner, open openSnapshot) (diff LargeObjectDiff, err error) {
	began := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return change(gctx, func(tx pgx.Tx) error {
			_, err := tx.Exec(gctx, `
				DROP TABLE IF EXISTS heroku_migrator.large_objects_source;
				CREATE TABLE heroku_migrator.large_objects_source (oid oid, at int8, bytes int, sum bytea, comment text)`)
			if err != nil {
				return err
			}
			snap, err := open(gctx)
			if err != nil {
				return err
			}
			defer closeSnapshot(gctx, snap)
			if _, err := stream(gctx, defaultBuffer,
				func(ctx context.Context, w io.Writer) error {
					_, err := snap.LargeObjects(ctx, w)
					return err
				},
				func(ctx context.Context, r io.Reader) (int64, error) {
					return copyFrom(ctx, tx.Conn(), `COPY heroku_migrator.large_objects_source FROM STDIN`, r)
				}); err != nil {
				return err
			}
			_, err = tx.Exec(gctx, `ANALYZE heroku_migrator.large_objects_source`)
			return err
		})
	})
	g.Go(func() error {
		return change(gctx, func(tx pgx.Tx) error {
			_, err := tx.Exec(gctx, `
				DROP TABLE IF EXISTS heroku_migrator.large_objects_target;
				CREATE TABLE heroku_migrator.large_objects_target AS `+largeObjectPieces+`;
				ANALYZE heroku_migrator.large_objects_target`)
			return err
		})
	})
	if err := g.Wait(); err != nil {
		return diff, fmt.Errorf("compare large objects: %w", err)
	}
	err = change(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, fmt.Sprintf(`
			DROP TABLE IF EXISTS heroku_migrator.large_objects_todo;
			CREATE TABLE heroku_migrator.large_objects_todo AS
			SELECT s.oid, s.at, s.sum, (sum(greatest(s.bytes, 8192)) OVER (ORDER BY s.oid, s.at) / %d)::int AS batch
			FROM heroku_migrator.large_objects_source s LEFT JOIN heroku_migrator.large_objects_target t USING (oid, at)
			WHERE (t.bytes, t.sum) IS DISTINCT FROM (s.bytes, s.sum);
			CREATE INDEX ON heroku_migrator.large_objects_todo (batch)`, largeObjectBatch))
		if err != nil {
			return err
		}
		return tx.QueryRow(ctx, `
			SELECT (SELECT count(*) FROM heroku_migrator.large_objects_source WHERE at = 0),
			       (SELECT coalesce(sum(bytes), 0) FROM heroku_migrator.large_objects_source),
			       (SELECT count(DISTINCT oid) FROM heroku_migrator.large_objects_source s FULL JOIN heroku_migrator.large_objects_target t USING (oid, at)
			        WHERE (s.bytes, s.sum, s.comment) IS DISTINCT FROM (t.bytes, t.sum, t.comment))`).
			Scan(&diff.Objects, &diff.Bytes, &diff.Differing)
	})
	if err != nil {
		return diff, fmt.Errorf("compare large objects: %w", err)
	}
	diff.Comparing = time.Since(began)
	return diff, nil
}

// SyncLargeObjects implements [Target]. Each batch is a transaction of its own on either side, so that none is long;
// what was done is not done again by whoever goes on, since it compares equal.
func (p *PlanetScale) SyncLargeObjects(ctx context.Context, open openSnapshot) (LargeObjectDiff, error) {
	return syncLargeObjects(ctx, p.journal.tx, open)
}

// ReturnLargeObjects implements [Source].
func (h *Heroku) ReturnLargeObjects(ctx context.Context, open openSnapshot) (LargeObjectDiff, error) {
	return syncLargeObjects(ctx, h.change, open)
}

func syncLargeObjects(ctx context.Context, change beginner, open openSnapshot) (LargeObjectDiff, error) {
	diff, err := compareLargeObjects(ctx, change, open)
	if err != nil || diff.Differing == 0 {
		return diff, err
	}
	for _, step := range []func(context.Context, pgx.Tx) (int64, error){dropLargeObjects, truncateLargeObjects} {
		for n := int64(1); n > 0; {
			err := change(ctx, func(tx pgx.Tx) (err error) {
				n, err = step(ctx, tx)
				return err
			})
			if err != nil {
				return diff, fmt.Errorf("copy large objects: %w", err)
			}
		}
	}
	for batch := 0; batch >= 0; {
		err := change(ctx, func(tx pgx.Tx) (err error) {
			moving, next, err := copyLargeObjects(ctx, tx, open, batch)
			diff.Moving += moving
			batch = next
			return err
		})
		if err != nil {
			return diff, fmt.Errorf("copy large objects: %w", err)
		}
	}
	for after := int64(0); after >= 0; {
		err := change(ctx, func(tx pgx.Tx) (err error) {
			after, err = commentLargeObjects(ctx, tx, after)
			return err
		})
		if err != nil {
			return diff, fmt.Errorf("comment on large objects: %w", err)
		}
	}
	return diff, nil
}

// dropLargeObjects drops some of those that the source does not have.
func dropLargeObjects(ctx context.Context, tx pgx.Tx) (int64, error) {
	tag, err := tx.Exec(ctx, `
		WITH gone AS MATERIALIZED (
			SELECT oid FROM pg_largeobject_metadata m
			WHERE NOT EXISTS (SELECT 1 FROM heroku_migrator.large_objects_source s WHERE s.oid = m.oid) LIMIT $1)
		SELECT lo_unlink(oid) FROM gone`, largeObjectLocks)
	return tag.RowsAffected(), err
}

// truncateLargeObjects cuts off what some objects have beyond their end on the source. 131072 is INV_WRITE.
func truncateLargeObjects(ctx context.Context, tx pgx.Tx) (int64, error) {
	tag, err := tx.Exec(ctx, `
		WITH longer AS MATERIALIZED (
			SELECT oid, s.size
			FROM (SELECT oid, sum(bytes)::int8 AS size FROM heroku_migrator.large_objects_source GROUP BY oid) s
			JOIN (SELECT oid, sum(bytes)::int8 AS size FROM heroku_migrator.large_objects_target GROUP BY oid) t USING (oid)
			WHERE t.size > s.size LIMIT $1),
		cut AS MATERIALIZED (SELECT oid, lo_truncate64(lo_open(oid, 131072), size) FROM longer)
		DELETE FROM heroku_migrator.large_objects_target WHERE oid IN (SELECT oid FROM cut)`, largeObjectLocks)
	return tag.RowsAffected(), err
}

// copyLargeObjects copies a batch of pieces, and returns the number of the next batch, or -1. What arrives is compared
// with the hash that asked for it.
func copyLargeObjects(ctx context.Context, tx pgx.Tx, open openSnapshot, batch int) (moving int64, next int, err error) {
	rows, err := tx.Query(ctx, `
		SELECT oid, at FROM heroku_migrator.large_objects_todo
		WHERE batch = (SELECT min(batch) FROM heroku_migrator.large_objects_todo WHERE batch >= $1)`, batch)
	if err != nil {
		return 0, 0, err
	}
	pieces, err := pgx.CollectRows(rows, pgx.RowToStructByPos[LargeObjectPiece])
	if err != nil || len(pieces) == 0 {
		return 0, -1, err
	}
	if _, err := tx.Exec(ctx, `CREATE TEMP TABLE heroku_migrator_pieces (oid oid, at int8, data bytea) ON COMMIT DROP`); err != nil {
		return 0, 0, err
	}
	snap, err := open(ctx)
	if err != nil {
		return 0, 0, err
	}
	defer closeSnapshot(ctx, snap)
	if _, err := stream(ctx, defaultBuffer,
		func(ctx context.Context, w io.Writer) error {
			_, err := snap.CopyLargeObjects(ctx, pieces, w)
			return err
		},
		func(ctx context.Context, r io.Reader) (int64, error) {
			return copyFrom(ctx, tx.Conn(), `COPY pg_temp.heroku_migrator_pieces FROM STDIN (FORMAT binary)`, r)
		}); err != nil {
		return 0, 0, err
	}
	for _, sql := range []string{
		`SELECT lo_create(oid) FROM (SELECT DISTINCT oid FROM pg_temp.heroku_migrator_pieces EXCEPT SELECT oid FROM pg_largeobject_metadata) AS missing`,
		`SELECT lo_put(oid, at, data) FROM pg_temp.heroku_migrator_pieces`,
	} {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return 0, 0, err
		}
	}
	err = tx.QueryRow(ctx, `
		SELECT count(*) FILTER (WHERE sha256(p.data) IS DISTINCT FROM d.sum), max(d.batch) + 1
		FROM heroku_migrator.large_objects_todo d LEFT JOIN pg_temp.heroku_migrator_pieces p USING (oid, at)
		WHERE d.batch = (SELECT min(batch) FROM heroku_migrator.large_objects_todo WHERE batch >= $1)`, batch).Scan(&moving, &next)
	return moving, next, err
}

// commentLargeObjects brings the comments of some objects after the one given up to date, and returns the last of them,
// or -1.
func commentLargeObjects(ctx context.Context, tx pgx.Tx, after int64) (last int64, err error) {
	rows, err := tx.Query(ctx, `
		SELECT oid::int8, format('COMMENT ON LARGE OBJECT %s IS %L', s.oid, s.comment)
		FROM heroku_migrator.large_objects_source s JOIN pg_largeobject_metadata m USING (oid)
		WHERE s.at = 0 AND s.comment IS DISTINCT FROM obj_description(s.oid, 'pg_largeobject') AND oid > $1::int8::oid
		ORDER BY oid LIMIT $2`, after, largeObjectLocks)
	if err != nil {
		return 0, err
	}
	last = -1
	var statements []string
	var statement string
	if _, err := pgx.ForEachRow(rows, []any{&last, &statement}, func() error {
		statements = append(statements, statement)
		return nil
	}); err != nil || len(statements) == 0 {
		return -1, err
	}
	_, err = tx.Exec(ctx, strings.Join(statements, ";\n"))
	return last, err
}

// syncObjects makes the large objects of one side those of the other.
type syncObjects = func(ctx context.Context, snapshot func(context.Context) (Snapshot, error)) (LargeObjectDiff, error)

// prepareLargeObjects copies large objects while the application writes, until little is left to do behind the fence.
func prepareLargeObjects(ctx context.Context, sync syncObjects, from ChangeLog, cfg CutoverConfig) (diff LargeObjectDiff, err error) {
	const attempts = 3 // each has less to copy than the one before
	for range attempts {
		diff, err = sync(ctx, from.Snapshot)
		if err != nil {
			return diff, err
		}
		if diff.Objects > 0 {
			cfg.Logger.InfoContext(ctx, "large objects", "objects", diff.Objects, "bytes", diff.Bytes, "differed", diff.Differing, "compared_in", diff.Comparing)
		}
		if diff.Differing < 100 {
			break
		}
	}
	return diff, nil
}

// finishLargeObjects makes the large objects equal behind the fence.
func finishLargeObjects(ctx context.Context, sync syncObjects, from ChangeLog) (diff LargeObjectDiff, err error) {
	for {
		if diff, err = sync(ctx, from.Snapshot); err != nil || diff.Moving == 0 {
			return diff, err
		}
		// Somebody writes large objects, and touches no table.
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return diff, err
		}
	}
}

// largeObjectsBlockRevert says which large objects a revert would leave behind.
func largeObjectsBlockRevert(ctx context.Context, src Source, dst Target) error {
	diff, err := dst.CompareLargeObjects(ctx, src.Snapshot)
	if err != nil || diff.Differing == 0 {
		return err
	}
	e := refuse("revert", "%d large objects were written or removed on the target since the switch: this would stay behind. Force the revert to go back without it.", diff.Differing)
	e.CanForce = true
	return e
}

var largeObjectChecks = []check{
	{
		"large_objects_readable", SeverityBlocker,
		`SELECT format('%s (owned by %s)', oid, pg_get_userbyid(lomowner)) FROM pg_largeobject_metadata m
		 WHERE NOT current_setting('lo_compat_privileges')::bool AND NOT EXISTS (
			SELECT 1 FROM aclexplode(coalesce(lomacl, acldefault('L', lomowner))) AS a
			WHERE a.privilege_type = 'SELECT' AND CASE WHEN a.grantee = 0 THEN true ELSE pg_has_role(current_user, a.grantee, 'USAGE') END)
		   AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) ORDER BY oid`,
		"The role may not read these large objects: %s.",
		"GRANT SELECT ON LARGE OBJECT … TO the role, or remove them.",
	},
	{
		// About what one core hashes and reads.
		"large_objects", SeverityWarning,
		`SELECT format('%s large objects, %s on disk. They are copied before the switch, and compared once more while writes are refused, which takes about %s s',
		        count(*), pg_size_pretty(pg_table_size('pg_catalog.pg_largeobject')), ceil(pg_table_size('pg_catalog.pg_largeobject') / 1e8 + count(*) / 2e4))
		 FROM pg_largeobject_metadata HAVING count(*) > 0`,
		"The database holds %s. An application that writes large objects without writing to any table in the same transaction is not held back by the fence.",
		"Keep such an application from writing during the switch. A transaction that reads large objects is waited for like one that writes.",
	},
}
