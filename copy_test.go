package migrator_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
)

// Rows of about 1000 bytes, seven a page, and chunks of four pages.
const (
	wideTable  = `CREATE TABLE wide (id int PRIMARY KEY, u int UNIQUE, v text) WITH (autovacuum_enabled = off)`
	wideRows   = `INSERT INTO wide SELECT i, i + 0, repeat('x', 1000) || i FROM generate_series(1, 280) i`
	chunkBytes = 32 << 10
)

// Chunks cover every page of every leaf exactly once, the last reaches to the end, and bytes add up.
func TestPlanChunksCoversEveryPageOnce(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(3, 4))
	for range 500 {
		table := &migrator.Table{Relation: migrator.Relation{ID: 7}, Key: []string{"id"}}
		for i := range random.IntN(4) {
			pages := random.Int64N(1 << random.IntN(22))
			leaf := migrator.Leaf{Relation: migrator.Relation{ID: uint32(10 + i)}, Filenode: uint32(100 + i), Pages: pages, Bytes: pages * 8192}
			if random.IntN(2) == 0 {
				leaf.Bytes += random.Int64N(1 << 40) // TOAST
			}
			table.Leaves = append(table.Leaves, leaf)
		}
		size := 1 + random.Int64N(1<<random.IntN(40))
		size = max(size, table.Bytes()/300)
		chunks := migrator.PlanChunks(table, size)
		at := 0
		for _, leaf := range table.Leaves {
			next, bytes, last := int64(0), int64(0), false
			for ; at < len(chunks) && chunks[at].Leaf.ID == leaf.ID; at++ {
				c := chunks[at]
				require.False(t, last, "a chunk after the last")
				require.Equal(t, at, c.No)
				require.Equal(t, uint32(7), c.Table)
				require.Equal(t, leaf.Filenode, c.Filenode)
				require.Equal(t, next, c.From)
				require.GreaterOrEqual(t, c.Bytes, int64(0))
				last = c.To == -1
				if !last {
					require.Greater(t, c.To, c.From, "an empty chunk")
				}
				next, bytes = c.To, bytes+c.Bytes
			}
			require.True(t, last, "the end of the leaf is missing: %v", leaf)
			require.Equal(t, leaf.Bytes, bytes)
		}
		require.Len(t, chunks, at)
	}
}

// I2: rows that change before, between and while chunks are read, so that their new versions land in chunks
// that are copied already, and in ones that are not, arrive exactly once.
func TestRowsMoveBetweenChunks(t *testing.T) {
	t.Parallel()
	w := newWorld(t, wideTable, wideRows, `INSERT INTO wide SELECT i, i + 0, repeat('x', 1000) FROM generate_series(500, 503) i`, `DELETE FROM wide WHERE id % 10 = 0 AND id < 300`, `VACUUM wide`).captured(t)
	writer := w.source.Connect(t)
	execute(t, writer, `SET statement_timeout = '10s'`)
	random := rand.New(rand.NewPCG(5, 6))
	write := func() {
		a := random.IntN(280)
		for _, s := range []string{
			fmt.Sprintf(`UPDATE wide SET v = repeat('y', 1000) || id WHERE id BETWEEN %d AND %d`, a, a+9),                    // anywhere there is room, and at the end
			fmt.Sprintf(`DELETE FROM wide WHERE id = %d`, a),                                                                 // one that was copied, or not
			fmt.Sprintf(`INSERT INTO wide VALUES (%d, %d, 'new') ON CONFLICT DO NOTHING`, a, 10_000+random.IntN(1000)),       // the key comes back
			fmt.Sprintf(`UPDATE wide SET id = id + 1000 WHERE id BETWEEN %d AND %d AND id < 1000`, a+20, a+22),               // the key moves
			fmt.Sprintf(`UPDATE wide SET u = -u WHERE id IN (%d, %d)`, a+30, a+60),                                           // a unique value is free
			fmt.Sprintf(`INSERT INTO wide SELECT %d, u, 'taken' FROM wide WHERE id = %d ON CONFLICT DO NOTHING`, 5000+a, -a), // nothing
			fmt.Sprintf(`INSERT INTO wide VALUES (%d, %d, 'takes it') ON CONFLICT DO NOTHING`, 7000+a, a+30),
		} {
			_, err := writer.Exec(t.Context(), s)
			if state(err) != "23505" { // a unique violation is as good as any
				assert.NoError(t, err, s) // not require: this is called on other goroutines
			}
		}
	}
	open := begin(t, w.source, `UPDATE wide SET v = 'open during the whole copy' WHERE id IN (500, 502)`, `DELETE FROM wide WHERE id = 501`)
	n := 0
	src := hookedSource{
		Source: w.src,
		opened: write, // after the snapshot, before the rows are read
		copied: func(*migrator.Chunk) { // read, but not committed
			if n++; n%3 == 0 {
				_, err := writer.Exec(t.Context(), `VACUUM wide`) // pages of chunks that are done are filled again
				require.NoError(t, err)
			}
			write()
		},
	}
	cfg := migrator.CopyConfig{Workers: 1, ChunkBytes: chunkBytes, OnEvent: func(migrator.Event) { write() }}
	require.NoError(t, migrator.Copy(t.Context(), src, w.dst, cfg))
	require.Greater(t, n, 5, "chunks")
	commit(t, open)
	w.indexed(t) // unique indexes can be built (a duplicate would show here)
	w.requireSame(t)
}

// I2: a transaction that took its snapshot before capture was there, and writes afterwards.
func TestRepeatableReadWriterOlderThanCapture(t *testing.T) {
	t.Parallel()
	w := newWorld(t, wideTable, wideRows)
	old := begin(t, w.source, `SET TRANSACTION ISOLATION LEVEL REPEATABLE READ`, `SELECT pg_current_xact_id(), count(*) FROM wide`)
	serializable := begin(t, w.source, `SET TRANSACTION ISOLATION LEVEL SERIALIZABLE`, `SELECT count(*) FROM wide`)
	w.captured(t)
	_, err := old.Exec(t.Context(), `UPDATE wide SET v = 'old' WHERE id < 20; DELETE FROM wide WHERE id = 30; INSERT INTO wide VALUES (1000, 1000, 'old')`)
	require.NoError(t, err)
	require.NoError(t, migrator.Copy(t.Context(), w.src, w.dst, migrator.CopyConfig{ChunkBytes: chunkBytes}))
	_, err = serializable.Exec(t.Context(), `UPDATE wide SET id = id + 2000 WHERE id = 100`)
	require.NoError(t, err)
	commit(t, old)
	w.indexed(t)
	w.requireSame(t)
	commit(t, serializable)
	w.round(t)
	w.requireSame(t)
}

// I2: row addresses mean nothing after a rewrite: the table is copied again, nothing is lost or doubled.
func TestTableRewrittenInTheMiddleOfTheCopy(t *testing.T) {
	t.Parallel()
	w := newWorld(t, wideTable, wideRows,
		`CREATE TABLE part (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)`,
		`CREATE TABLE part_a PARTITION OF part FOR VALUES FROM (0) TO (150)`, `CREATE TABLE part_b PARTITION OF part FOR VALUES FROM (150) TO (1000)`,
		`INSERT INTO part SELECT id, v FROM wide`).captured(t)
	writer := w.source.Connect(t)
	n, warnings := 0, 0
	rewrite := map[int]string{
		2: `VACUUM FULL wide`, 4: `VACUUM FULL part_b`, 6: `CLUSTER wide USING wide_pkey`, 9: `ALTER TABLE wide SET UNLOGGED`,
		12: `TRUNCATE part_a`, 13: `INSERT INTO part SELECT i, 'after' FROM generate_series(1, 20) i`,
		16: `BEGIN; TRUNCATE wide; INSERT INTO wide SELECT i, i + 0, 'after' FROM generate_series(100, 400) i; COMMIT`, 18: `UPDATE wide SET v = 'again' WHERE id < 200`,
	}
	next := func() {
		n++
		if s, ok := rewrite[n]; ok {
			_, err := writer.Exec(t.Context(), s)
			assert.NoError(t, err, s)
		}
	}
	// Between the plan and the snapshot, and between the snapshot and the read.
	src := hookedSource{Source: w.src, opened: next}
	cfg := migrator.CopyConfig{Workers: 1, ChunkBytes: chunkBytes, OnEvent: func(e migrator.Event) {
		if e.Kind == migrator.EventWarning {
			warnings++
		}
	}}
	require.NoError(t, migrator.Copy(t.Context(), src, w.dst, cfg))
	require.Greater(t, n, 18)
	require.GreaterOrEqual(t, warnings, 3, "it says so")
	w.indexed(t)
	w.requireSame(t)
}

// I2: a snapshot from before a rewriting ALTER sees nothing in the new file, even with a plan made after it.
func TestSnapshotOlderThanThePlan(t *testing.T) {
	t.Parallel()
	w := newWorld(t, wideTable, wideRows).captured(t)
	old := w.snapshot(t)
	w.sql(t, `ALTER TABLE wide SET UNLOGGED`)
	cat, err := w.src.Catalog(t.Context())
	require.NoError(t, err)
	chunk := migrator.PlanChunks(cat.Tables[0], 1<<30)[0]
	var rows bytes.Buffer
	_, err = old.CopyChunk(t.Context(), cat.Tables[0], &chunk, &rows)
	require.ErrorIs(t, err, migrator.ErrRewritten)
	require.Zero(t, rows.Len())
	n, err := w.snapshot(t).CopyChunk(t.Context(), cat.Tables[0], &chunk, &rows)
	require.NoError(t, err)
	require.Positive(t, n)
}

// I2: who plans a table anew when all of its chunks are done was late, and may not empty it.
func TestLateRestartLeavesAFinishedTable(t *testing.T) {
	t.Parallel()
	w := newWorld(t, wideTable, wideRows).live(t)
	table, status := w.table(t, "wide"), w.statuses(t)[0]
	restarted, err := w.dst.Restart(t.Context(), table, status.Plan, migrator.PlanChunks(table, chunkBytes))
	require.NoError(t, err)
	require.False(t, restarted)
	require.Equal(t, migrator.TableLive, w.statuses(t)[0].State)
	w.requireSame(t)
}

// I7: workers that wait for somebody else's chunk leave the source alone.
func TestIdleWorkersLeaveTheSourceAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, wideTable, `INSERT INTO wide SELECT i, i + 0, 'x' FROM generate_series(1, 10) i`).captured(t)
	var snapshots atomic.Int32
	held := make(chan struct{})
	let := sync.OnceFunc(func() { close(held) })
	defer let()
	src := hookedSource{Source: w.src, opened: func() { snapshots.Add(1) }, copied: func(*migrator.Chunk) { <-held }}
	done := make(chan error, 1)
	go func() { done <- migrator.Copy(t.Context(), src, w.dst, migrator.CopyConfig{Workers: 4}) }()
	time.Sleep(2 * time.Second)
	before := snapshots.Load()
	time.Sleep(2 * time.Second)
	require.Equal(t, before, snapshots.Load())
	require.LessOrEqual(t, before, int32(6), "each worker tries once")
	let()
	require.NoError(t, <-done)
	w.indexed(t)
	w.requireSame(t)
}

// I2: the copy of an inheritance parent starts over without the children, whose chunks are done.
func TestInheritanceParentRewrittenAfterItsChildWasCopied(t *testing.T) {
	t.Parallel()
	w := newWorld(t, `CREATE TABLE parent (id int PRIMARY KEY, v text)`, `CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent)`,
		`INSERT INTO parent VALUES (1, 'parent')`, `INSERT INTO child SELECT i, repeat('x', 500) FROM generate_series(10, 40) i`).captured(t)
	writer := w.source.Connect(t)
	done := false
	src := hookedSource{Source: w.src, copied: func(c *migrator.Chunk) { // the largest table comes first
		if c.Leaf.Name == "child" && !done {
			done = true
			_, err := writer.Exec(t.Context(), `VACUUM FULL parent`)
			assert.NoError(t, err)
		}
	}}
	require.NoError(t, migrator.Copy(t.Context(), src, w.dst, migrator.CopyConfig{Workers: 1}))
	require.True(t, done)
	w.indexed(t)
	w.requireSame(t)
}

// I3: a chunk whose transaction dies on either side goes to somebody else, whole; meanwhile nobody copies it
// twice.
func TestChunkOfATransactionThatDied(t *testing.T) {
	t.Parallel()
	w := newWorld(t, wideTable, wideRows).captured(t)
	first := true
	var lost migrator.Chunk
	src := hookedSource{Source: w.src, copied: func(c *migrator.Chunk) {
		if first {
			first = false
			lost = *c
			_, err := w.adminTarget.Exec(t.Context(), `
				SELECT pg_terminate_backend(pid) FROM pg_locks WHERE relation = 'public.wide'::regclass AND mode = 'RowExclusiveLock'`)
			assert.NoError(t, err)
		}
	}}
	cfg := migrator.CopyConfig{Workers: 1, ChunkBytes: chunkBytes}
	err := migrator.Copy(t.Context(), src, w.dst, cfg)
	require.Error(t, err)
	require.True(t, migrator.Retryable(err), err)
	require.Empty(t, contents(t, w.adminTarget)["public.wide"])

	// Now a claim that lives while all others are copied.
	claimed, die := make(chan *migrator.Chunk), make(chan struct{})
	died := make(chan error, 1)
	go func() {
		_, err := w.dst.CopyChunk(t.Context(), func(_ context.Context, _ *migrator.Table, c *migrator.Chunk, out io.Writer) (int64, error) {
			claimed <- c
			<-die
			_, err := out.Write([]byte("1\t1\thalf a chunk\n"))
			return 0, errors.Join(errBroken, err)
		})
		died <- err
	}()
	held := <-claimed
	require.Equal(t, lost.No, held.No)
	var copied atomic.Int32
	cfg.OnEvent = func(migrator.Event) { copied.Add(1) }
	finished := make(chan error, 1)
	go func() { finished <- migrator.Copy(t.Context(), w.src, w.dst, cfg) }()
	all := w.statuses(t)[0].Chunks
	require.Eventually(t, func() bool { return int(copied.Load()) == all-1 }, 10*time.Second, 5*time.Millisecond)
	select {
	case err := <-finished:
		t.Fatal("the copy ended without the chunk that is claimed", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(die)
	require.ErrorIs(t, <-died, errBroken)
	require.NoError(t, <-finished)
	require.EqualValues(t, all, copied.Load())
	w.indexed(t)
	w.requireSame(t)
}

// I3: a copy that is cancelled again and again gets to its end, and copies nothing twice.
func TestCopyCancelledAgainAndAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, wideTable, wideRows).captured(t)
	random := rand.New(rand.NewPCG(7, 8))
	doneAt := func() map[int]time.Time {
		rows, err := w.adminTarget.Query(t.Context(), `SELECT no, done_at FROM heroku_migrator.chunks WHERE done`)
		require.NoError(t, err)
		defer rows.Close()
		done := map[int]time.Time{}
		for rows.Next() {
			var no int
			var at time.Time
			require.NoError(t, rows.Scan(&no, &at))
			done[no] = at
		}
		require.NoError(t, rows.Err())
		return done
	}
	before := map[int]time.Time{}
	for attempt := 0; ; attempt++ {
		require.Less(t, attempt, 100)
		ctx, cancel := context.WithCancel(t.Context())
		left := random.IntN(3)
		stop := func() {
			if left--; left < 0 && attempt < 12 {
				cancel()
			}
		}
		src := hookedSource{Source: w.src}
		cfg := migrator.CopyConfig{Workers: 1, ChunkBytes: chunkBytes}
		switch attempt % 3 { // where it strikes
		case 0:
			cfg.OnEvent = func(migrator.Event) { stop() }
		case 1:
			src.copied = func(*migrator.Chunk) { stop() }
		case 2:
			src.opened = stop
		}
		err := migrator.Copy(ctx, src, w.dst, cfg)
		cancel()
		now := doneAt()
		for no, at := range before {
			require.Equal(t, at, now[no], "chunk %d was copied again", no)
		}
		before = now
		if err == nil {
			break
		}
		require.ErrorIs(t, err, context.Canceled)
		w.sql(t, fmt.Sprintf(`UPDATE wide SET v = 'changed' WHERE id = %d`, attempt*20))
	}
	require.Greater(t, len(before), 5)
	w.indexed(t)
	w.requireSame(t)
}

// I6, I2: chunks that the first leader committed are not copied again by the second.
func TestSecondLeaderGoesOnWithTheCopy(t *testing.T) {
	t.Parallel()
	w := newWorld(t, wideTable, wideRows).captured(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	require.ErrorIs(t, migrator.Copy(ctx, w.src, w.dst, migrator.CopyConfig{Workers: 1, ChunkBytes: chunkBytes, OnEvent: func(migrator.Event) { cancel() }}), context.Canceled)
	done := w.statuses(t)[0].ChunksDone
	require.NotZero(t, done)
	second := w.takeOver(t)
	var copied atomic.Int32
	require.NoError(t, migrator.Copy(t.Context(), second.src, second.dst, migrator.CopyConfig{OnEvent: func(migrator.Event) { copied.Add(1) }}))
	require.EqualValues(t, second.statuses(t)[0].Chunks-done, copied.Load())
	second.indexed(t)
	second.requireSame(t)
}
