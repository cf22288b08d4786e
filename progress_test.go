package migrator_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
)

// bulk is about 13 MB on disk, and as much as COPY sends it.
var bulk = []string{
	`CREATE TABLE bulk (id bigint PRIMARY KEY, filler text NOT NULL)`,
	`INSERT INTO bulk SELECT i, repeat(md5(i::text), 12) FROM generate_series(1, 30000) i`, `ANALYZE`,
}

// slowly starts a migration of bulk that is held to a speed.
func slowly(t *testing.T, bytesPerSecond int64, change ...func(*migrator.Config)) (*pair, *migrator.Migrator, <-chan error) {
	t.Helper()
	p := newPair(t)
	p.sql(t, bulk...)
	m := p.migrator(t, append([]func(*migrator.Config){func(c *migrator.Config) {
		c.Copy.Workers, c.Copy.ChunkBytes, c.Copy.MaxBytesPerSecond = 2, 2<<20, bytesPerSecond
	}}, change...)...)
	done := make(chan error, 1)
	ctx := withTimeout(t, 4*time.Minute)
	go func() { done <- m.Run(ctx, migrator.UntilInSync) }()
	return p, m, done
}

func eventually(t *testing.T, m *migrator.Migrator, what string, is func(*migrator.Status) bool) *migrator.Status {
	t.Helper()
	var last *migrator.Status
	require.Eventually(t, func() bool {
		var err error
		last, err = m.Status(context.Background())
		return err == nil && is(last)
	}, 2*time.Minute, 50*time.Millisecond, what)
	return last
}

// What is on its way can be seen, by any process; the speed is that of the limit; a pause takes effect at once, and
// is not counted.
func TestProgressLimitAndPause(t *testing.T) {
	t.Parallel()
	const limit = 3 << 19
	p, m, done := slowly(t, limit)
	watcher := p.migrator(t) // another process, as it were
	st := eventually(t, watcher, "both workers are seen", func(s *migrator.Status) bool {
		return len(s.Workers) == 2 && s.ProgressSignals.ByteWeighted.CopiedBytes > 4<<20
	})
	for _, w := range st.Workers {
		require.Equal(t, "public.bulk", w.Table)
		require.NotEmpty(t, w.Process)
	}
	require.Positive(t, st.Tables[0].BytesInFlight)
	require.LessOrEqual(t, st.Tables[0].BytesCopied+st.Tables[0].BytesInFlight, st.Tables[0].BytesTotal)
	signals := st.ProgressSignals
	require.NotNil(t, signals.ThroughputETA.ETASeconds)
	require.Less(t, *signals.ThroughputETA.ETASeconds, 60.0)

	do(t, m, migrator.CommandPause)
	require.Eventually(t, func() bool {
		return count(t, p.target.ConnectAdmin(t), `SELECT count(*) FROM pg_stat_progress_copy WHERE datname = current_database()`)+
			count(t, p.source.ConnectAdmin(t), `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_xmin IS NOT NULL AND application_name LIKE 'heroku_migrator%'`) == 0
	}, 10*time.Second, 20*time.Millisecond, "nothing is copied, and no snapshot held")
	paused := eventually(t, watcher, "paused", func(s *migrator.Status) bool { return s.State == migrator.StatePaused })
	require.Nil(t, paused.ProgressSignals.ThroughputETA.ETASeconds)
	require.Empty(t, paused.Workers)
	time.Sleep(3 * time.Second)
	still, err := watcher.Status(t.Context())
	require.NoError(t, err)
	require.Equal(t, paused.ProgressSignals.ByteWeighted.CopiedBytes, still.ProgressSignals.ByteWeighted.CopiedBytes)
	require.InDelta(t, paused.ProgressSignals.ThroughputETA.AverageBytesPerSecond, still.ProgressSignals.ThroughputETA.AverageBytesPerSecond, 1)

	do(t, m, migrator.CommandResume)
	require.NoError(t, <-done)
	p.requireEqual(t)
	// The limit is one of bytes sent; the first MiB is free.
	var sent int64
	var seconds float64
	require.NoError(t, p.target.Connect(t).QueryRow(t.Context(), `
		SELECT sum(stream_bytes), sum(extract(epoch FROM done_at - began_at)) / 2 FROM heroku_migrator.chunks`).Scan(&sent, &seconds))
	require.Greater(t, seconds, float64(sent-(2<<20))/limit*0.8)
}

// Sessions of the application that pile up slow the copy down, visibly, and no longer than they last.
func TestThrottle(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var events []string
	p, m, done := slowly(t, 200<<10, func(c *migrator.Config) {
		c.Copy.Throttle = migrator.ThrottleConfig{ActiveSessions: 2, Latency: time.Hour}
		c.Copy.OnEvent = func(e migrator.Event) {
			if e.Kind == migrator.EventThrottle {
				mu.Lock()
				defer mu.Unlock()
				events = append(events, e.Message)
			}
		}
	})
	eventually(t, m, "copying", func(s *migrator.Status) bool { return len(s.Workers) > 0 })
	ctx, stop := context.WithCancel(t.Context())
	var sessions sync.WaitGroup
	for range 4 {
		c := p.source.Connect(t)
		sessions.Go(func() { _, _ = c.Exec(ctx, `SELECT pg_sleep(60)`) })
	}
	st := eventually(t, m, "throttled", func(s *migrator.Status) bool { return s.Throttle != nil && s.Throttle.Percent <= 25 })
	require.Contains(t, st.Throttle.Reason, "sessions are at work on the source (limit 2)")
	stop()
	sessions.Wait()
	eventually(t, m, "at full speed", func(s *migrator.Status) bool { return s.Throttle == nil && s.Phase == migrator.PhaseCopying })
	do(t, m, migrator.CommandAbort)
	require.ErrorIs(t, <-done, migrator.ErrAborted)
	mu.Lock()
	defer mu.Unlock()
	require.NotEmpty(t, events)
	require.Contains(t, events[0], "slowing down the copy: ")
	require.Contains(t, events[len(events)-1], "full speed")
}

// blindSource cannot tell its load at first.
type blindSource struct {
	migrator.Source
	looks *atomic.Int32
}

var errBlind = errors.New("no look at the source")

func (b blindSource) Load(context.Context) (migrator.Load, error) {
	if b.looks.Add(1) == 1 {
		return migrator.Load{}, errBlind
	}
	return migrator.Load{ActiveSessions: 20, ReplicaLag: time.Minute, Latency: time.Millisecond}, nil // as always
}

// A source that is always this busy, and that could not be looked at the first time, does not slow the copy down.
func TestThrottleKnowsWhatIsUsual(t *testing.T) {
	t.Parallel()
	looks := &atomic.Int32{}
	var throttled atomic.Bool
	_, m, done := slowly(t, 2<<20, func(c *migrator.Config) {
		c.Source = blindSource{c.Source, looks}
		c.Copy.OnEvent = func(e migrator.Event) { throttled.Store(throttled.Load() || e.Kind == migrator.EventThrottle) }
	})
	require.NoError(t, <-done)
	require.Greater(t, looks.Load(), int32(2))
	require.False(t, throttled.Load())
	st, err := m.Status(t.Context())
	require.NoError(t, err)
	require.Nil(t, st.Throttle)
}

// Indexes that are being built are told apart; those that mark their table (CLUSTER ON, REPLICA IDENTITY) are not built beside
// each other, where each would wait for the other's end.
func TestIndexBuildsAreSeenAndDoNotDeadlock(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, bulk...)
	p.sql(t, `INSERT INTO bulk SELECT i, repeat(md5(i::text), 12) FROM generate_series(30001, 60000) i`, // no small table
		`ALTER TABLE bulk ADD a int NOT NULL DEFAULT 1`, `CREATE UNIQUE INDEX identity ON bulk (id, a)`, `ALTER TABLE bulk REPLICA IDENTITY USING INDEX identity`,
		`CREATE INDEX clustered ON bulk (md5(filler))`, `ALTER TABLE bulk CLUSTER ON clustered`,
		`CREATE FUNCTION slow(bigint) RETURNS bigint IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN
			IF $1 % 10000 = 0 AND current_database() LIKE 'target%' THEN PERFORM pg_sleep(0.5); END IF; RETURN $1; END $$`,
		`CREATE INDEX slow_one ON bulk (slow(id))`, `CREATE INDEX slow_two ON bulk (slow(id + 1))`)
	m := p.migrator(t, func(c *migrator.Config) { c.Indexes.Workers = 4 })
	events, unsubscribe := m.Subscribe(1000)
	defer unsubscribe()
	done := make(chan error, 1)
	ctx := withTimeout(t, time.Minute)
	go func() { done <- m.Run(ctx, migrator.UntilInSync) }()
	seen := map[string]bool{}
	eventually(t, m, "both builds are seen", func(s *migrator.Status) bool {
		for _, b := range s.Builds {
			seen[b.Object] = true
		}
		return seen["index public.slow_one"] && seen["index public.slow_two"]
	})
	require.NoError(t, <-done)
	for len(events) > 0 {
		e := <-events
		require.NotEqual(t, migrator.EventWaiting, e.Kind, e.Message)
	}
	target := p.target.Connect(t)
	require.Equal(t, int64(1), count(t, target, `SELECT count(*) FROM pg_index WHERE indexrelid = 'clustered'::regclass AND indisclustered`))
	require.Equal(t, int64(1), count(t, target, `SELECT count(*) FROM pg_index WHERE indexrelid = 'identity'::regclass AND indisreplident`))
}

// An index that cannot be built is reported with its reason, does not keep the others from being built, is not built
// again and again, and can be retried when its reason is gone.
func TestFailedIndexIsReportedAndRetried(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, bulk...)
	p.sql(t, `INSERT INTO bulk SELECT i, repeat(md5(i::text), 12) FROM generate_series(30001, 60000) i`, // no small table
		`CREATE FUNCTION picky(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN
			IF current_database() LIKE 'target%' AND to_regclass('public.forgiven') IS NULL THEN RAISE 'not on this server'; END IF;
			RETURN $1; END $$`,
		`CREATE INDEX picky ON bulk (picky(filler))`, `CREATE INDEX fine ON bulk (md5(filler))`,
		`CREATE TABLE child (id int PRIMARY KEY, bulk_id bigint REFERENCES bulk)`, `INSERT INTO child SELECT i, i FROM generate_series(1, 100) i`)
	m := p.migrator(t)
	err := m.Run(withTimeout(t, time.Minute), migrator.UntilInSync)
	failed := new(migrator.ObjectError)
	require.ErrorAs(t, err, &failed)
	require.Contains(t, err.Error(), "not on this server")
	st, err := m.Status(t.Context())
	require.NoError(t, err)
	require.Equal(t, migrator.PhaseError, st.Phase)
	require.Len(t, st.Failed, 1)
	require.Contains(t, st.Failed[0].Object, "index public.picky")
	require.Contains(t, st.Failed[0].Error, "not on this server")
	target := p.target.Connect(t)
	require.Equal(t, int64(1), count(t, target, `SELECT count(*) FROM pg_indexes WHERE indexname = 'fine'`))

	_, err = target.Exec(t.Context(), `CREATE TABLE forgiven ()`)
	require.NoError(t, err)
	require.NoError(t, p.migrator(t).Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	require.Equal(t, int64(1), count(t, target, `SELECT count(*) FROM pg_indexes WHERE indexname = 'picky'`))
	require.Equal(t, int64(1), count(t, target, `SELECT count(*) FROM pg_constraint WHERE conrelid = 'child'::regclass AND contype = 'f' AND convalidated`))
	p.requireEqual(t)
}

// A foreign key that rows of the source violate is found, with its reason, and validated once they are mended there.
func TestForeignKeyThatRowsViolate(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, `CREATE TABLE parent (id int PRIMARY KEY)`, `CREATE TABLE child (id int PRIMARY KEY, parent_id int)`,
		`INSERT INTO child VALUES (1, 1)`)
	_, err := p.source.ConnectAdmin(t).Exec(t.Context(), `SET session_replication_role = replica; INSERT INTO parent VALUES (1);
		ALTER TABLE child ADD CONSTRAINT to_parent FOREIGN KEY (parent_id) REFERENCES parent; DELETE FROM parent`)
	require.NoError(t, err)
	m := p.migrator(t)
	err = m.Run(withTimeout(t, time.Minute), migrator.UntilInSync)
	require.ErrorContains(t, err, "to_parent")
	require.Contains(t, err.Error(), "fk validation")
	p.sql(t, `INSERT INTO parent VALUES (1)`)
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	require.Equal(t, int64(1), count(t, p.target.Connect(t), `SELECT count(*) FROM pg_constraint WHERE conname = 'to_parent' AND convalidated`))
	do(t, m, migrator.CommandSwitch)
	p.requireEqual(t)
}

func ExampleThrottleConfig() {
	cfg := migrator.CopyConfig{
		MaxBytesPerSecond: 50 << 20,
		Throttle:          migrator.ThrottleConfig{ActiveSessions: 40, Latency: 50 * time.Millisecond},
	}
	fmt.Println(cfg.MaxBytesPerSecond)
	// Output: 52428800
}
