package migrator_test

import (
	"context"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
)

// A row that knows what its large object holds.
const filesTable = `CREATE TABLE files (id bigserial PRIMARY KEY, lo oid NOT NULL UNIQUE, sum bytea)`

// The statements of a transaction each. Some objects are longer than a piece (256 KiB), or end where one ends.
var fileWrites = []string{
	`INSERT INTO files (lo) SELECT lo_from_bytea(0, decode(repeat(md5(random()::text), (random() * 30)::int), 'hex'));`,
	`INSERT INTO files (lo) SELECT lo_from_bytea(0, decode(repeat(md5(random()::text), 16384 * (1 + (random() * 2)::int)), 'hex'));`,
	`SELECT lo_put(lo, (random() * 600000)::int, convert_to(random()::text, 'UTF8')) FROM files WHERE id % 10 = (random() * 9)::int;`,
	`SELECT lo_truncate(lo_open(lo, 131072), 262144 * (random() * 2)::int) FROM files WHERE id % 10 = (random() * 9)::int;`,
	`SELECT lo_unlink(lo) FROM (DELETED) AS d;`,
	`UPDATE files SET lo = lo_create(0) WHERE id = (SELECT max(id) FROM files);`, // the old one is an orphan
}

func writeFiles(ctx context.Context, c *pgx.Conn, statement string) error {
	return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
		if statement == fileWrites[4] {
			statement = `WITH d AS (DELETE FROM files WHERE id IN (SELECT id FROM files ORDER BY random() LIMIT 1) RETURNING lo) SELECT lo_unlink(lo) FROM d`
		}
		// One at a time, so that the sum of an object is that of its row's transaction.
		_, err := tx.Exec(ctx, `LOCK TABLE files IN SHARE ROW EXCLUSIVE MODE; `+statement)
		if err == nil {
			_, err = tx.Exec(ctx, `UPDATE files SET sum = sha256(lo_get(lo)) WHERE sum IS DISTINCT FROM sha256(lo_get(lo))`)
		}
		return err
	})
}

type object struct {
	OID     uint32
	Size    int64
	Sum     []byte
	Comment *string
}

func objects(t *testing.T, c *pgx.Conn) []object {
	t.Helper()
	rows, err := c.Query(t.Context(), `
		SELECT oid, size, (SELECT sha256(string_agg(sha256(lo_get(oid, at, 100000)), '' ORDER BY at)) FROM generate_series(0, size, 100000) AS at),
		       obj_description(oid, 'pg_largeobject')
		FROM (SELECT oid, lo_lseek64(lo_open(oid, 262144), 0, 2) AS size FROM pg_largeobject_metadata) AS o ORDER BY oid`)
	require.NoError(t, err)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[object])
	require.NoError(t, err)
	return list
}

func (p *pair) requireSameObjects(t *testing.T) {
	t.Helper()
	want := objects(t, p.source.ConnectAdmin(t))
	require.NotEmpty(t, want)
	target := p.target.ConnectAdmin(t)
	require.Equal(t, want, objects(t, target))
	require.Zero(t, count(t, target, `SELECT count(*) FROM files WHERE sum IS DISTINCT FROM sha256(lo_get(lo))`), "rows and objects are of different moments")
}

// Large objects are added, changed and dropped together with rows all the time; each row finds its object as it
// left it.
func TestLargeObjectsAreWrittenMeanwhile(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	c := p.source.Connect(t)
	execute(t, c, filesTable)
	for i := range 60 {
		require.NoError(t, writeFiles(t.Context(), c, fileWrites[i%len(fileWrites)]))
	}
	execute(t, c, `SELECT lo_put(lo_create(4000000000), 3000000, 'after a hole')`, `SELECT lo_create(4000000001)`,
		`COMMENT ON LARGE OBJECT 4000000000 IS 'it''s sparse'`, `COMMENT ON LARGE OBJECT 4000000001 IS 'empty'`)
	if os.Getenv("MIGRATOR_LONG") != "" {
		execute(t, c, `SELECT lo_put(lo_create(4000000002), 1500000000, 'beyond 1 GB')`)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wait sync.WaitGroup
	stop := sync.OnceFunc(func() { cancel(); wait.Wait() })
	defer stop()
	var written, refused atomic.Int32
	wait.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			err := writeFiles(ctx, c, fileWrites[i%len(fileWrites)])
			switch {
			case err == nil:
				written.Add(1)
			case state(err) == "42501":
				refused.Add(1)
			case ctx.Err() == nil:
				assert.NoError(t, err)
			}
			_ = sleepFor(ctx, 10*time.Millisecond)
		}
	})
	m := p.migrator(t)
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	do(t, m, migrator.CommandSwitch)
	p.requireSameObjects(t)
	time.Sleep(200 * time.Millisecond)
	p.requireSameObjects(t)
	p.requireEqual(t)

	// Back, and on, and once more.
	do(t, m, migrator.CommandRevert)
	before := written.Load()
	time.Sleep(500 * time.Millisecond)
	execute(t, p.source.Connect(t), `SELECT lo_truncate(lo_open(4000000000, 131072), 262144)`, `COMMENT ON LARGE OBJECT 4000000001 IS NULL`)
	do(t, m, migrator.CommandSwitch)
	p.requireSameObjects(t)
	p.requireEqual(t)

	// What is written on the target since comes back.
	execute(t, p.target.Connect(t), `SELECT lo_put(4000000001, 0, 'new')`, `SELECT lo_create(4000000009)`)
	do(t, m, migrator.CommandRevert)
	require.EqualValues(t, 1, count(t, p.source.Connect(t), `SELECT count(*) FROM pg_largeobject_metadata WHERE oid = 4000000009`))
	do(t, m, migrator.CommandSwitch)
	stop()
	require.Greater(t, written.Load(), before)
	require.NotZero(t, refused.Load())
	t.Logf("%d written, %d refused", written.Load(), refused.Load())
	p.requireSameObjects(t)
	s, err := m.Status(t.Context())
	require.NoError(t, err)
	require.Equal(t, migrator.PhaseSwitched, s.Phase)
	do(t, m, migrator.CommandComplete)
	p.requireNoTrace(t)
	p.requireSameObjects(t)
}

// I5: a transaction that wrote to large objects alone is waited for, whatever it did to them.
func TestFenceWaitsForLargeObjects(t *testing.T) {
	t.Parallel()
	for name, statement := range map[string]string{
		"written":   `SELECT lo_put(1001, 0, 'late')`,
		"dropped":   `SELECT lo_unlink(1001)`,
		"created":   `SELECT lo_from_bytea(1002, 'late')`,
		"truncated": `SELECT lo_truncate(lo_open(1001, 131072), 1)`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, filesTable, `SELECT lo_from_bytea(1001, 'early')`, `SELECT lo_create(1000)`).live(t)
			require.NoError(t, w.dst.Journal().Advance(t.Context(), migrator.PhaseStarting, migrator.PhaseConfiguring, ""))
			for _, step := range [][2]migrator.Phase{
				{migrator.PhaseConfiguring, migrator.PhaseReadyToCopy}, {migrator.PhaseReadyToCopy, migrator.PhaseCopying},
				{migrator.PhaseCopying, migrator.PhaseRebuildingIndexes}, {migrator.PhaseRebuildingIndexes, migrator.PhaseReplicating},
			} {
				require.NoError(t, w.dst.Journal().Advance(t.Context(), step[0], step[1], ""))
			}
			tx := begin(t, w.source, `SELECT 1`)
			var open atomic.Bool
			committed := make(chan error, 1)
			src := &beforeFence{Source: w.src, do: func() { // what was compared before is equal
				_, err := tx.Exec(t.Context(), statement)
				assert.NoError(t, err)
				open.Store(true)
				time.AfterFunc(time.Second, func() {
					open.Store(false)
					committed <- tx.Commit(t.Context())
				})
			}}
			_, err := migrator.Cutover(t.Context(), src, w.dst, migrator.CutoverConfig{})
			assert.False(t, open.Load(), "the switch did not wait")
			require.NoError(t, err)
			require.NoError(t, <-committed)
			require.Equal(t, objects(t, w.adminSource), objects(t, w.adminTarget))
		})
	}
}

type beforeFence struct {
	migrator.Source
	do func()
}

func (b *beforeFence) Fence(ctx context.Context, tables []*migrator.Table, cfg migrator.FenceConfig) error {
	b.do()
	return b.Source.Fence(ctx, tables, cfg)
}

func TestPreflightOfLargeObjects(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, filesTable, `SELECT lo_from_bytea(0, 'mine') FROM generate_series(1, 3)`)
	m := p.migrator(t)
	find := func(check string) *migrator.Finding {
		report, err := m.Preflight(t.Context())
		require.NoError(t, err)
		for _, f := range report.Findings {
			if f.Check == check {
				return &f
			}
		}
		return nil
	}
	f := find("large_objects")
	require.NotNil(t, f)
	require.Equal(t, migrator.SeverityWarning, f.Severity)
	require.Contains(t, f.Message, "3 large objects")
	require.Nil(t, find("large_objects_readable"))

	admin := p.source.ConnectAdmin(t)
	execute(t, admin, `SELECT lo_from_bytea(777, 'not mine')`)
	f = find("large_objects_readable")
	require.NotNil(t, f)
	require.Equal(t, migrator.SeverityBlocker, f.Severity)
	require.Contains(t, f.Message, "777")
	execute(t, admin, `GRANT SELECT ON LARGE OBJECT 777 TO PUBLIC`)
	require.Nil(t, find("large_objects_readable"))

	require.Nil(t, find("target_empty"))
	execute(t, p.target.Connect(t), `SELECT lo_create(5)`)
	require.NotNil(t, find("target_empty"), "it would be dropped")
}
