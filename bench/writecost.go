package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/heroku-migrator/migrator/internal/pgtest"
)

// cost is the source's speed in one round.
type cost struct {
	tps                        float64
	insert, update, deleteTime time.Duration
}

// A round has many short turns: the machine's speed changes from second to second by more than what is to be told apart.
const (
	costTurns = 40
	costTurn  = time.Second
)

// mix is nine single-row statements in a transaction, for pgbench.
const mix = `\set a random(1, 200000)
\set b random(1, 200000)
\set o random(1, 200000)
\set n random(1, 9000000000000)
BEGIN;
UPDATE accounts SET balance = balance - 1, updated_at = now() WHERE id = :a;
UPDATE accounts SET balance = balance + 1, updated_at = now() WHERE id = :b;
INSERT INTO orders (account_id, state, total) VALUES (:a, 'open', 10);
UPDATE orders SET state = 'paid' WHERE id = :o;
INSERT INTO order_lines VALUES (:n, 1, 'sku-1', 1), (:n, 2, 'sku-2', 1) ON CONFLICT DO NOTHING;
UPDATE order_lines SET quantity = quantity + 1 WHERE order_id = :o AND line_no = 0;
UPDATE order_lines SET quantity = quantity + 1 WHERE order_id = :b AND line_no = 1;
DELETE FROM order_lines WHERE order_id = :n AND line_no = 2;
DELETE FROM orders WHERE id = (SELECT max(id) - 1000 FROM orders);
COMMIT;
`

// writeCost measures the source without triggers, with ours and with Bucardo's, alternating. Nothing else runs.
func (b *bench) writeCost(ctx context.Context, r *report) error {
	r.costs = map[string][]cost{}
	return b.costsOf(ctx, append([]*follower{{name: bare, capture: func(context.Context, *job) error { return nil }}}, b.followers()...), r.costs)
}

// costsOf measures the source with each way of capture. Each has a database of its own on the same server, for the whole time: what it
// takes to install them is not between the turns.
func (b *bench) costsOf(ctx context.Context, all []*follower, costs map[string][]cost) error {
	pgbench := filepath.Join(b.tools, "pgbench")
	if _, err := os.Stat(pgbench); err != nil {
		return fmt.Errorf("pgbench is missing: apt-get install postgresql-%d", pgtest.SourceVersion())
	}
	all = slices.DeleteFunc(slices.Clone(all), func(f *follower) bool { return f.missing != "" || f.capture == nil })
	return b.captureAll(ctx, all, nil, func(jobs []*job) error {
		for _, j := range jobs { // sampling takes CPU time
			j.stop()
			<-j.stopped
		}
		for round := range b.cfg.rounds {
			speeds, err := b.speeds(ctx, jobs, pgbench)
			if err != nil {
				return err
			}
			for i := range all {
				i = (i + round) % len(all) // nobody is always first
				c := cost{tps: speeds[i]}
				if err := c.bulk(ctx, jobs[i]); err != nil {
					return fmt.Errorf("%s: %w", all[i].name, err)
				}
				b.sayf("round %d: %-12s %5.0f transactions/s; bulk INSERT %.2f s, UPDATE %.2f s, DELETE %.2f s", round+1, all[i].name, c.tps, c.insert.Seconds(), c.update.Seconds(), c.deleteTime.Seconds())
				costs[all[i].name] = append(costs[all[i].name], c)
			}
		}
		return nil
	})
}

// captureAll makes a database for each, and installs its capture.
func (b *bench) captureAll(ctx context.Context, all []*follower, jobs []*job, do func([]*job) error) (err error) {
	if len(jobs) == len(all) {
		return do(jobs)
	}
	f := all[len(jobs)]
	db, err := b.generate(ctx, replicationSQL)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Drop(context.WithoutCancel(ctx))) }()
	_, err = b.measure(ctx, db, func(ctx context.Context, j *job) error {
		j.sample.unchecked = true
		if err := f.capture(ctx, j); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		return b.captureAll(ctx, all, append(jobs, j), do)
	})
	return err
}

// speeds are the transactions/s of a round for each. All loads are there all the time, and all but one stand still.
func (b *bench) speeds(ctx context.Context, jobs []*job, pgbench string) (speeds []float64, err error) {
	loads := make([]*exec.Cmd, len(jobs))
	defer func() {
		for _, l := range loads {
			if l != nil && l.Process != nil {
				_ = l.Process.Kill()
				_ = l.Wait() // it was killed
			}
		}
	}()
	speeds = make([]float64, len(jobs))
	for i, j := range jobs {
		if err := execute(ctx, j.from.AdminURL, "VACUUM accounts, orders, order_lines", "CHECKPOINT"); err != nil {
			return nil, err
		}
		file := filepath.Join(j.dir, "mix.sql")
		if err := os.WriteFile(file, []byte(mix), 0o600); err != nil {
			return nil, err
		}
		loads[i] = j.command(ctx, pgbench, "-n", "-M", "prepared", "-f", file, "-c", strconv.Itoa(loadClients), "-j", "1", "-T", "86400", "-d", passless(j.from))
		if err := loads[i].Start(); err != nil {
			return nil, err
		}
		time.Sleep(2 * costTurn) // connections, plans and caches are not what is measured
		if err := loads[i].Process.Signal(syscall.SIGSTOP); err != nil {
			return nil, fmt.Errorf("pgbench: %w", err)
		}
	}
	for turn := range costTurns {
		for i := range jobs {
			i = (i + turn/2) % len(jobs) // nobody is always first, or always after the same one
			if turn%2 == 1 {
				i = len(jobs) - 1 - i
			}
			tps, err := turnOf(ctx, jobs[i], loads[i])
			if err != nil {
				return nil, err
			}
			speeds[i] += tps / costTurns
		}
	}
	return speeds, nil
}

// turnOf lets a load run for a while.
func turnOf(ctx context.Context, j *job, load *exec.Cmd) (tps float64, err error) {
	conn, err := pgx.Connect(ctx, j.from.AdminURL)
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	count := func() (n int64, err error) { // every transaction takes one
		err = conn.QueryRow(ctx, "SELECT last_value FROM orders_id_seq").Scan(&n)
		return n, err
	}
	before, err := count()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := load.Process.Signal(syscall.SIGCONT); err != nil {
		return 0, fmt.Errorf("pgbench: %w", err)
	}
	time.Sleep(costTurn)
	if err := load.Process.Signal(syscall.SIGSTOP); err != nil {
		return 0, fmt.Errorf("pgbench: %w", err)
	}
	took := time.Since(began)
	after, err := count()
	if err == nil && after == before {
		err = errors.New("pgbench did not write")
	}
	return float64(after-before) / took.Seconds(), err
}

// bulk measures bulk statements.
func (c *cost) bulk(ctx context.Context, j *job) error {
	if err := execute(ctx, j.from.AdminURL, "TRUNCATE bulk"); err != nil {
		return err
	}
	for _, bulk := range []struct {
		sql  string
		took *time.Duration
	}{
		{fmt.Sprintf("INSERT INTO bulk (id, account_id, a, b) SELECT i, 1 + i * 7 %% 200000, i, 'text of row ' || i FROM generate_series(1, %d) i", bulkRows), &c.insert},
		{"UPDATE bulk SET a = a + 1", &c.update},
		{"DELETE FROM bulk", &c.deleteTime},
	} {
		if err := execute(ctx, j.from.AdminURL, "CHECKPOINT"); err != nil {
			return err
		}
		begin := time.Now()
		if err := execute(ctx, j.from.URL, bulk.sql); err != nil {
			return err
		}
		*bulk.took = time.Since(begin)
	}
	return nil
}
