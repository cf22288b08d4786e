package migrator_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/pgtest"
	"github.com/heroku-migrator/migrator/internal/shop"
)

// A prepared transaction has no session that could be ended: it is named, whatever the policy, and everything stays as it was until
// somebody ends it. That holds on both sides.
func TestPreparedTransactionsAreInTheWay(t *testing.T) {
	t.Parallel()
	for _, policy := range []migrator.WriterPolicy{migrator.WritersWait, migrator.WritersGiveUp, migrator.WritersTerminate} {
		t.Run(string(policy), func(t *testing.T) {
			t.Parallel()
			p := newPair(t)
			p.sql(t, smallSchema...)
			p.sql(t, `CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id)`, `CREATE TABLE parted_a PARTITION OF parted DEFAULT`)
			m := p.migrator(t, func(c *migrator.Config) {
				c.Cutover.Writers, c.Cutover.FenceTimeout, c.Cutover.DrainTime = policy, 2*time.Second, 500*time.Millisecond
			})
			require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
			untouched := p.loud(t)
			source, target := p.source.Connect(t), p.target.Connect(t)
			gid := p.source.Name + ` "it's"` // names are those of the whole server
			blocked := func(c *pgx.Conn, command migrator.CommandName, prepare string, table string) {
				t.Helper()
				// One that is none of our business is not named.
				execute(t, c, `CREATE TEMP TABLE other (a int)`, `DROP TABLE other`, `BEGIN`, `SELECT pg_advisory_xact_lock(1)`, `PREPARE TRANSACTION 'idle `+p.source.Name+`'`)
				execute(t, c, `BEGIN`, prepare, fmt.Sprintf(`PREPARE TRANSACTION '%s "it''s"'`, p.source.Name))
				was := phase(t, m)
				_, err := m.Do(withTimeout(t, time.Minute), command, false)
				require.ErrorAs(t, err, new(*migrator.RefusedError))
				require.ErrorContains(t, err, `prepared transaction '`+p.source.Name+` "it''s"'`)
				require.NotContains(t, err.Error(), "idle "+p.source.Name)
				require.ErrorContains(t, err, "ROLLBACK PREPARED")
				require.Equal(t, was, phase(t, m))
				// Whoever could write can go on, in this table and in others.
				execute(t, c, `INSERT INTO journal (what) VALUES ('goes on')`, `INSERT INTO `+table+` (name) VALUES (NULL)`)
				var there bool
				require.NoError(t, c.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_prepared_xacts WHERE gid = $1)`, gid).Scan(&there))
				require.True(t, there, "nobody but its owner ends it")
				execute(t, c, fmt.Sprintf(`COMMIT PREPARED '%s "it''s"'`, p.source.Name), `ROLLBACK PREPARED 'idle `+p.source.Name+`'`)
			}
			// The first time, it is in the way of the triggers; then in the way of closing the fence.
			blocked(source, migrator.CommandSwitch, `UPDATE children SET n = n + 1 WHERE id = 5`, "parents")
			require.Equal(t, untouched, p.loud(t))
			blocked(source, migrator.CommandSwitch, `INSERT INTO parted_a VALUES (1)`, "parents")
			require.Equal(t, untouched, p.loud(t))
			do(t, m, migrator.CommandSwitch)
			p.requireEqual(t)
			require.EqualValues(t, 1, count(t, target, `SELECT count(*) FROM parted`), "what was prepared and committed is there")
			blocked(target, migrator.CommandRevert, `DELETE FROM children WHERE id = 6`, "parents")
			do(t, m, migrator.CommandRevert)
			p.requireEqual(t)
			require.Zero(t, count(t, source, `SELECT count(*) FROM children WHERE id = 6`))
			require.Equal(t, untouched, p.loud(t))
		})
	}
}

// load is the shop under write transactions, replicating.
type load struct {
	*pair
	m         *migrator.Migrator
	writers   *shop.Writers
	untouched map[string]string
	acl       map[string]string
}

func underLoad(t *testing.T, rate float64, change ...func(*migrator.Config)) *load {
	t.Helper()
	l := &load{pair: newPair(t)}
	l.shop(t, 0.05)
	l.acl = l.pair.acl(t)
	l.m = l.migrator(t, change...)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.m.Run(ctx, "") }()
	t.Cleanup(func() {
		stop()
		<-ended
	})
	require.Eventually(t, func() bool { return phase(t, l.m) == migrator.PhaseReplicating }, 2*time.Minute, 100*time.Millisecond)
	l.untouched = l.loud(t)
	var err error
	l.writers, err = shop.StartWriters(t.Context(), l.source.URL, 6, shop.Options{Rate: rate, Rest: 4, KeyChanges: true, MaxHold: 200 * time.Millisecond})
	require.NoError(t, err)
	t.Cleanup(func() { l.writers.Stop() })
	l.await(t, 200)
	return l
}

// await waits until the writers have committed so many more transactions.
func (l *load) await(t *testing.T, transactions int64) {
	t.Helper()
	at := l.writers.Stats().Committed
	require.Eventually(t, func() bool { return l.writers.Stats().Committed >= at+transactions }, 5*time.Minute, 20*time.Millisecond)
}

// finish stops the writers, who write to the target by now, and checks everything there, and again on the source.
func (l *load) finish(t *testing.T) {
	t.Helper()
	stats := l.writers.Stop()
	t.Log(stats)
	require.Zero(t, stats.Other, stats.OtherSample)
	require.NoError(t, l.writers.CheckLedger(t.Context(), l.target.Connect(t)))
	do(t, l.m, migrator.CommandRevert)
	require.NoError(t, l.writers.CheckLedger(t.Context(), l.source.Connect(t)))
	require.Equal(t, l.untouched, l.loud(t))
	do(t, l.m, migrator.CommandSwitch)
	l.requireEqual(t)
	do(t, l.m, migrator.CommandComplete)
	l.requireNoTrace(t)
	require.Equal(t, l.acl, l.pair.acl(t))
}

// insister reconnects and writes again without any pause. It goes to the database that it is told.
type insister struct {
	url                   atomic.Pointer[string]
	acknowledged, refused map[int]bool
	connections           int
	stop                  chan struct{}
	done                  chan error
}

func insist(url string) *insister {
	i := &insister{acknowledged: map[int]bool{}, refused: map[int]bool{}, stop: make(chan struct{}), done: make(chan error, 1)}
	i.url.Store(&url)
	go func() { i.done <- i.write() }()
	return i
}

func (i *insister) write() error {
	ctx := context.Background()
	for n := 1; ; n++ {
		select {
		case <-i.stop:
			return nil
		default:
		}
		c, err := pgx.Connect(ctx, *i.url.Load())
		if err != nil {
			return err
		}
		i.connections++
		_, err = c.Exec(ctx, `INSERT INTO page_views (path) VALUES ($1)`, fmt.Sprintf("/insister/%d", n))
		_ = c.Close(ctx)
		switch {
		case err == nil:
			i.acknowledged[n] = true
		case state(err) == "42501":
			i.refused[n] = true
		default:
			return err
		}
	}
}

func (i *insister) check(t *testing.T, c *pgx.Conn) {
	t.Helper()
	rows, err := c.Query(t.Context(), `SELECT substr(path, 11)::int FROM page_views WHERE path LIKE '/insister/%'`)
	require.NoError(t, err)
	list, err := pgx.CollectRows(rows, pgx.RowTo[int])
	require.NoError(t, err)
	there := map[int]bool{}
	for _, n := range list {
		require.False(t, i.refused[n], "%d was refused, and is there", n)
		require.False(t, there[n], "%d is there twice", n)
		there[n] = true
	}
	for n := range i.acknowledged {
		require.True(t, there[n], "%d was acknowledged, and is gone", n)
	}
}

// A switch under load: what was acknowledged is on the target, what was refused is not. A client that comes back at once, again and again,
// changes nothing about it.
func TestSwitchUnderLoad(t *testing.T) {
	t.Parallel()
	rate := 60.0 // what is left of a machine on which all tests run
	if long() {
		rate = 200
	}
	l := underLoad(t, rate, func(c *migrator.Config) { c.Cutover.CatchUp = 5 * time.Minute })
	tireless := insist(l.source.URL)
	l.await(t, 200)
	for _, way := range []struct {
		command migrator.CommandName
		to      *pgtest.Database
	}{{migrator.CommandSwitch, l.target}, {migrator.CommandRevert, l.source}, {migrator.CommandSwitch, l.target}} {
		r, err := l.m.Do(withTimeout(t, 6*time.Minute), way.command, false)
		require.NoError(t, err)
		t.Log(r.Message)
		l.writers.Redirect(way.to.URL)
		tireless.url.Store(&way.to.URL)
		l.await(t, 200)
	}
	close(tireless.stop)
	require.NoError(t, <-tireless.done)
	t.Logf("tireless: %d connections, %d acknowledged, %d refused", tireless.connections, len(tireless.acknowledged), len(tireless.refused))
	require.NotEmpty(t, tireless.refused)
	tireless.check(t, l.target.Connect(t))
	l.finish(t)
	tireless.check(t, l.source.Connect(t))
}

// One transaction is held open for long while a switch is asked for, under load, and then while a revert is: each policy does what it says, and
// what the holder was told is true.
func TestSwitchWhileATransactionIsHeldOpen(t *testing.T) {
	t.Parallel()
	hold := 4 * time.Second
	if long() {
		hold = 30 * time.Second
	}
	for _, policy := range []migrator.WriterPolicy{migrator.WritersWait, migrator.WritersGiveUp, migrator.WritersTerminate} {
		t.Run(string(policy), func(t *testing.T) { // one after the other: each is a load
			l := underLoad(t, 50, func(c *migrator.Config) {
				c.Cutover.Writers, c.Cutover.DrainTime, c.Cutover.FenceTimeout = policy, time.Second, hold+2*time.Minute
			})
			here, there := l.source, l.target
			for i, command := range []migrator.CommandName{migrator.CommandSwitch, migrator.CommandRevert, migrator.CommandSwitch} {
				holder := here.Connect(t)
				mark := fmt.Sprintf("/holder/%d", i)
				execute(t, holder, `BEGIN`, `INSERT INTO page_views (path) VALUES ('`+mark+`')`)
				began := time.Now()
				if policy == migrator.WritersWait {
					time.AfterFunc(hold, func() { _, _ = holder.Exec(context.Background(), `COMMIT`) })
				}
				r, err := l.m.Do(withTimeout(t, 5*time.Minute), command, false)
				took := time.Since(began)
				switch policy {
				case migrator.WritersWait:
					require.NoError(t, err)
					require.Greater(t, took, hold)
				case migrator.WritersTerminate:
					require.NoError(t, err)
					_, err = holder.Exec(t.Context(), `COMMIT`)
					require.Error(t, err, "its session was ended")
				case migrator.WritersGiveUp:
					require.ErrorAs(t, err, new(*migrator.RefusedError))
					require.ErrorContains(t, err, "pid ")
					l.await(t, 30) // everybody writes on
					if long() {
						time.Sleep(time.Until(began.Add(hold)))
					}
					execute(t, holder, `COMMIT`)
					for tries := 0; ; tries++ { // somebody else may be in the way for a moment
						r, err = l.m.Do(withTimeout(t, 5*time.Minute), command, false)
						if tries == 9 || !errors.As(err, new(*migrator.RefusedError)) {
							break
						}
					}
					require.NoError(t, err)
				}
				t.Logf("%s with a transaction open for %s: took %s, %s", command, hold, took.Round(time.Millisecond), r.Message)
				l.writers.Redirect(there.URL)
				require.Equal(t, policy != migrator.WritersTerminate, count(t, there.Connect(t), `SELECT count(*) FROM page_views WHERE path = '`+mark+`'`) == 1)
				l.await(t, 50)
				here, there = there, here
			}
			l.finish(t)
		})
	}
}

// Many writes of every kind on the target come back, under eyes that compare every row; and the migration goes on from there to its end.
func TestManyWritesOnTheTargetComeBack(t *testing.T) {
	t.Parallel()
	rows := int64(20_000)
	if long() {
		rows = 100_000
	}
	p := newPair(t)
	p.shop(t, 0.1)
	p.sql(t, `CREATE TABLE bag (a int, b text)`, `INSERT INTO bag SELECT i % 100, 'b' || i % 7 FROM generate_series(1, 1000) i`)
	acl := p.acl(t)
	m := p.migrator(t)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx, "") }()
	defer func() {
		stop()
		<-ended
	}()
	require.Eventually(t, func() bool { return phase(t, m) == migrator.PhaseReplicating }, 2*time.Minute, 100*time.Millisecond)
	untouched := p.loud(t)
	_, err := m.Do(withTimeout(t, 5*time.Minute), migrator.CommandSwitch, false)
	require.NoError(t, err)
	began := time.Now()
	writers, err := shop.StartWriters(ctx, p.target.URL, 4, shop.Options{KeyChanges: true, Truncate: true, MaxHold: 200 * time.Millisecond, Seed: uint64(began.UnixNano())})
	require.NoError(t, err)
	defer writers.Stop()
	c := p.target.Connect(t)
	for i := 0; writers.Stats().Rows < rows; i++ { // beside them, the table without a key
		execute(t, c, fmt.Sprintf(`INSERT INTO bag SELECT %d, 'new' FROM generate_series(1, 3)`, i%100), fmt.Sprintf(`UPDATE bag SET b = b || '+' WHERE a = %d`, (i*7)%100),
			fmt.Sprintf(`DELETE FROM bag WHERE ctid IN (SELECT ctid FROM bag WHERE a = %d LIMIT 2)`, (i*3)%100))
		if i%50 == 49 {
			execute(t, c, `BEGIN; CREATE TEMP TABLE keep ON COMMIT DROP AS TABLE bag; TRUNCATE bag; INSERT INTO bag SELECT * FROM keep LIMIT 500; COMMIT`)
		}
		time.Sleep(10 * time.Millisecond)
		require.Less(t, time.Since(began), 10*time.Minute)
	}
	stats, wrote := writers.Stop(), time.Since(began) // a machine that is busy with other tests would never catch up with them
	r, err := m.Do(withTimeout(t, 5*time.Minute), migrator.CommandRevert, false)
	require.NoError(t, err)
	t.Logf("written in %s: %s; %s", wrote.Round(time.Millisecond), stats, r.Message)
	require.Zero(t, stats.Other, stats.OtherSample)
	s, err := m.Status(t.Context())
	require.NoError(t, err)
	t.Logf("revert: %+v", *s.RevertReport)
	require.Equal(t, untouched, p.loud(t))
	p.requireEqual(t)
	require.NoError(t, writers.CheckLedger(t.Context(), p.source.Connect(t)))
	for _, sequence := range []string{"shop.invoice_number", "shop.ticket_wheel", "shop.countdown"} {
		q := `SELECT last_value FROM ` + sequence
		require.Equal(t, count(t, p.target.Connect(t), q), count(t, p.source.Connect(t), q), sequence)
	}
	p.sql(t, `INSERT INTO bag VALUES (1, 'forth')`, `DELETE FROM bag WHERE a = 5`)
	do(t, m, migrator.CommandSwitch)
	p.requireEqual(t)
	require.NoError(t, writers.CheckLedger(t.Context(), p.target.Connect(t)))
	do(t, m, migrator.CommandComplete)
	p.requireNoTrace(t)
	require.Equal(t, acl, p.acl(t))
}
