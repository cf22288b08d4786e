package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/heroku-migrator/migrator/internal/pgtest"
)

//go:embed replication.sql
var replicationSQL string

// follower is a tool that captures changes and carries them over.
type follower struct {
	name    string
	missing string
	// capture installs what captures changes on the source, and returns with nothing running.
	capture func(context.Context, *job) error
	// follow copies what there is and carries changes over from then on. It returns when it is in sync.
	follow func(context.Context, *job) (*following, error)
}

// following can be stopped, and started again.
type following struct {
	stop, start func(context.Context) error
}

func (b *bench) followers() []*follower {
	return []*follower{
		{name: ourselves, capture: b.oursCapture, follow: b.oursFollow("triggers")},
		{name: decoding, follow: b.oursFollow("decoding")},
		{name: "Bucardo", missing: bucardoMissing(), capture: b.bucardoCapture, follow: b.bucardoFollow},
	}
}

// oursFollow runs the program, which goes on until it is told to end.
func (b *bench) oursFollow(capture string) func(context.Context, *job) (*following, error) {
	return func(ctx context.Context, j *job) (*following, error) {
		if capture == "decoding" { // which Heroku's roles may not
			if err := execute(ctx, j.from.AdminURL, fmt.Sprintf("ALTER ROLE %s REPLICATION", pgx.Identifier{j.from.Role}.Sanitize())); err != nil {
				return nil, err
			}
		}
		return b.oursFollowBy(ctx, j, capture)
	}
}

func (b *bench) oursFollowBy(ctx context.Context, j *job, capture string) (*following, error) {
	j.cleanUp = b.abort
	var cmd *exec.Cmd
	f := &following{}
	f.start = func(ctx context.Context) error {
		cmd = j.command(ctx, b.migrate, "run", "--until", "switched", "--capture", capture, "--json", "--pg-dump", filepath.Join(b.tools, "pg_dump"))
		cmd.Env = append(slices.Clone(j.env), "HEROKU_URL="+j.from.URL, "PLANETSCALE_URL="+j.to.URL)
		return j.start(cmd)
	}
	f.stop = func(context.Context) error {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			return err
		}
		_ = j.wait(cmd) // it says that it was interrupted
		return nil
	}
	if err := f.start(ctx); err != nil {
		return nil, err
	}
	return f, b.beats(ctx, j)
}

func (b *bench) oursCapture(ctx context.Context, j *job) error {
	f, err := b.oursFollowBy(ctx, j, "triggers")
	if err != nil {
		return err
	}
	return f.stop(ctx)
}

// bucardoAdd makes Bucardo's triggers.
func (b *bench) bucardoAdd(ctx context.Context, j *job) (func(...string) *exec.Cmd, *pgtest.Cluster, error) {
	control, err := pgtest.StartWith(ctx, plperlVersion(), pgtest.Options{Backend: "binaries"})
	if err != nil {
		return nil, nil, err
	}
	j.cleanUp = func(ctx context.Context, j *job) error {
		return errors.Join(execute(ctx, j.from.AdminURL, "DROP SCHEMA IF EXISTS bucardo CASCADE"), control.Close(ctx))
	}
	bucardo, err := b.bucardoProgram(ctx, j, control)
	if err != nil {
		return nil, nil, err
	}
	j.restart(ctx)
	if err := b.preData(ctx, j); err != nil {
		return nil, nil, err
	}
	if err := b.postData(ctx, j); err != nil {
		return nil, nil, err
	}
	for _, args := range [][]string{
		bucardoDatabase("source", j.from),
		bucardoDatabase("target", j.to),
		{"add", "all", "tables", "db=source", "relgroup=bench"},
		{"add", "sync", "bench", "relgroup=bench", "dbs=source:source,target:target", "onetimecopy=2"},
	} {
		if err := j.run(bucardo(args...)); err != nil {
			return nil, nil, err
		}
	}
	return bucardo, control, nil
}

func (b *bench) bucardoCapture(ctx context.Context, j *job) error {
	_, _, err := b.bucardoAdd(ctx, j)
	return err
}

func (b *bench) bucardoFollow(ctx context.Context, j *job) (*following, error) {
	bucardo, control, err := b.bucardoAdd(ctx, j)
	if err != nil {
		return nil, err
	}
	f := &following{
		start: func(context.Context) error { return j.run(bucardo("start")) },
		stop:  func(context.Context) error { return j.run(bucardo("stop")) },
	}
	if err := f.start(ctx); err != nil {
		return nil, err
	}
	if err := b.bucardoWait(ctx, control.AdminURL("postgres")); err != nil {
		return nil, err
	}
	return f, b.beats(ctx, j)
}

const patience = 15 * time.Minute

// beats writes a heartbeat, and waits for it on the target.
func (b *bench) beats(ctx context.Context, j *job) error {
	var n int64
	if err := queryRow(ctx, j.from.URL, "UPDATE heartbeat SET n = n + 1 RETURNING n", &n); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, j.to.AdminURL)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for {
		var seen int64
		err := conn.QueryRow(ctx, "SELECT n FROM heartbeat").Scan(&seen) // no such table yet, perhaps
		if err == nil && seen >= n {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("what was written on the source did not come: %w", ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// The load of the cases.
const (
	loadClients = 4
	bulkRows    = 200_000
	patientRows = 1_000_000 // of a larger backlog, Bucardo is spared
	steadyRate  = 200       // transactions a second
	steadyTime  = 30 * time.Second
	fullTime    = 15 * time.Second
	beat        = 50 * time.Millisecond
)

// drained is how fast a backlog was carried over.
type drained struct {
	took time.Duration
	peak int64
	cpu  time.Duration
}

// drain stops the tool, changes many rows, and starts it again.
func (b *bench) drain(ctx context.Context, r *report) error {
	return b.eachFollower(ctx, func(f *follower, j *job, run *following) error {
		if err := run.stop(ctx); err != nil {
			return err
		}
		updated := min(b.cfg.rows/3, 200_000)
		err := execute(ctx, j.from.URL,
			fmt.Sprintf("UPDATE accounts SET balance = balance + 1 WHERE id <= %d", updated),
			fmt.Sprintf("INSERT INTO bulk (id, account_id, a, b) SELECT i, 1 + i * 7 %% 200000, i, 'text of row ' || i FROM generate_series(1, %d) i", b.cfg.rows-2*updated),
			fmt.Sprintf("UPDATE order_lines SET quantity = quantity + 1 WHERE order_id <= %d", updated/3),
			"ANALYZE accounts, bulk, order_lines")
		if err != nil {
			return err
		}
		j.restart(ctx)
		begin := time.Now()
		if err := run.start(ctx); err != nil {
			return err
		}
		if err := b.beats(ctx, j); err != nil {
			return err
		}
		d := drained{took: time.Since(begin)}
		if err := run.stop(ctx); err != nil {
			return err
		}
		d.cpu, d.peak = j.finish()
		b.sayf("%-8s carried %d changed rows in %.1f s: %.0f rows/s; CPU %.1f s, peak %.0f MiB", f.name, b.cfg.rows, d.took.Seconds(), float64(b.cfg.rows)/d.took.Seconds(), d.cpu.Seconds(), float64(d.peak)/(1<<20))
		if r.drains == nil {
			r.drains = map[string][]drained{}
		}
		r.drains[f.name] = append(r.drains[f.name], d)
		return run.start(ctx) // for who stops it
	})
}

// eachFollower has each tool follow a database of its own, as often as there are rounds.
func (b *bench) eachFollower(ctx context.Context, do func(*follower, *job, *following) error) error {
	for range b.cfg.rounds {
		for _, f := range b.followers() {
			if f.missing != "" || (f.name == "Bucardo" && b.cfg.rows > patientRows) {
				continue
			}
			db, err := b.generate(ctx, replicationSQL)
			if err != nil {
				return err
			}
			_, err = b.measure(ctx, db, func(ctx context.Context, j *job) error {
				j.sample.part = true
				run, err := f.follow(ctx, j)
				if err != nil {
					return err
				}
				err = do(f, j, run)
				if err == nil {
					err = b.beats(ctx, j) // rows are counted next
				}
				return errors.Join(err, run.stop(ctx))
			})
			err = errors.Join(err, db.Drop(context.WithoutCancel(ctx)))
			if err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
		}
	}
	return nil
}

// lagged is how late the target was, and at which rate.
type lagged struct {
	steady, full []time.Duration // of each heartbeat, in order
	rate         float64         // transactions/s at full speed
	catchUp      time.Duration   // from the end of the load at full speed
	cpu          time.Duration   // at the steady rate
	peak         int64
	steadyRate   float64
}

// lag measures from outside: when a heartbeat that was committed on the source is there on the target.
func (b *bench) lag(ctx context.Context, r *report) error {
	return b.eachFollower(ctx, func(f *follower, j *job, _ *following) error {
		var l lagged
		used := j.used()
		var err error
		if l.steady, l.steadyRate, err = b.underLoad(ctx, j, steadyRate, steadyTime); err != nil {
			return err
		}
		l.cpu = j.used() - used
		if l.full, l.rate, err = b.underLoad(ctx, j, 0, fullTime); err != nil {
			return err
		}
		begin := time.Now()
		if err := b.beats(ctx, j); err != nil {
			return err
		}
		l.catchUp, l.peak = time.Since(begin), j.highest()
		b.sayf("%-8s at %.0f transactions/s: lag %s; CPU %.1f s in %v; at %.0f/s: lag %s, caught up after %.1f s; peak %.0f MiB", f.name, l.steadyRate, quantiles(l.steady), l.cpu.Seconds(), steadyTime,
			l.rate, quantiles(l.full), l.catchUp.Seconds(), float64(l.peak)/(1<<20))
		if r.lags == nil {
			r.lags = map[string][]lagged{}
		}
		r.lags[f.name] = append(r.lags[f.name], l)
		return nil
	})
}

func quantiles(lags []time.Duration) string {
	return fmt.Sprintf("p50 %d ms, p95 %d ms, max %d ms", quantile(lags, 0.5).Milliseconds(), quantile(lags, 0.95).Milliseconds(), quantile(lags, 1).Milliseconds())
}

func quantile(lags []time.Duration, q float64) time.Duration {
	if len(lags) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(lags))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// underLoad writes at a rate (0: as fast as the source can), and tells the lag of each heartbeat.
func (b *bench) underLoad(ctx context.Context, j *job, rate float64, d time.Duration) (lags []time.Duration, done float64, err error) {
	loaded, stop := context.WithTimeout(ctx, d)
	defer stop()
	var transactions atomic.Int64
	var g errgroup.Group
	began := time.Now()
	for i := range loadClients {
		g.Go(func() error { return small(loaded, j.from, uint64(i), rate/loadClients, &transactions) })
	}
	sent := make(chan time.Time, 1<<16)
	var first int64
	if err := queryRow(ctx, j.from.URL, "SELECT n FROM heartbeat", &first); err != nil {
		return nil, 0, err
	}
	g.Go(func() error {
		defer close(sent)
		return heartbeats(loaded, j.from, sent)
	})
	g.Go(func() (err error) {
		lags, err = watchHeartbeats(ctx, j.to, first, sent)
		return err
	})
	err = g.Wait()
	return lags, float64(transactions.Load()) / min(time.Since(began), d).Seconds(), err
}

// heartbeats sends the time at which each was committed.
func heartbeats(ctx context.Context, db *pgtest.Database, sent chan<- time.Time) error {
	conn, err := pgx.Connect(ctx, db.URL)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		// Not cancelled half way: it would not be known whether it was committed.
		if _, err := conn.Exec(context.WithoutCancel(ctx), "UPDATE heartbeat SET n = n + 1"); err != nil {
			return err
		}
		sent <- time.Now()
	}
}

// watchHeartbeats looks at the target every few milliseconds until all that were sent have come.
func watchHeartbeats(ctx context.Context, db *pgtest.Database, first int64, sent <-chan time.Time) (lags []time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, db.AdminURL)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	n := first
	for at := range sent {
		n++
		for {
			var seen int64
			if err := conn.QueryRow(ctx, "SELECT n FROM heartbeat").Scan(&seen); err != nil {
				return nil, err
			}
			if seen >= n {
				break
			}
			time.Sleep(2 * time.Millisecond)
		}
		lags = append(lags, time.Since(at))
	}
	return lags, nil
}

// small is one client: transactions of four single-row statements.
func small(ctx context.Context, db *pgtest.Database, seed uint64, rate float64, done *atomic.Int64) error {
	conn, err := pgx.Connect(ctx, db.URL)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	random := rand.New(rand.NewPCG(seed, 3)) //nolint:gosec // a load, not a secret
	begin := time.Now()
	for i := 0; ctx.Err() == nil; i++ {
		var batch pgx.Batch
		batch.Queue("UPDATE accounts SET balance = balance + 1, updated_at = now() WHERE id = $1", 1+random.Int64N(200_000))
		batch.Queue("UPDATE orders SET state = 'paid' WHERE id = $1", 1+random.Int64N(200_000))
		batch.Queue("INSERT INTO orders (account_id, state, total) VALUES ($1, 'open', 10)", 1+random.Int64N(200_000))
		batch.Queue("UPDATE order_lines SET quantity = quantity + 1 WHERE order_id = $1 AND line_no = 1", 1+random.Int64N(200_000))
		if err := conn.SendBatch(context.WithoutCancel(ctx), &batch).Close(); err != nil { // one implicit transaction
			return fmt.Errorf("writing to the source: %w", err)
		}
		done.Add(1)
		if rate > 0 {
			time.Sleep(time.Until(begin.Add(time.Duration(float64(i+1) / rate * float64(time.Second)))))
		}
	}
	return nil
}
