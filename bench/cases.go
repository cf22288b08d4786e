package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/heroku-migrator/migrator/internal/pgtest"
)

// distance is the delay of the network case, each way.
const distance = 40 * time.Millisecond

// delay compares our copy through two distant networks with the same through the same proxies without delay, so
// that what the proxies cost does not count.
func (b *bench) delay(ctx context.Context, r *report) error {
	large := map[string]bool{}
	for _, t := range b.tables {
		if t.bytes >= b.bytes()/20 {
			large[t.name] = true
		}
	}
	for round := range b.cfg.rounds {
		for _, far := range []bool{false, true} {
			var delay time.Duration
			if far {
				delay = distance
			}
			d := delayed{}
			s, err := b.measure(ctx, b.db, func(ctx context.Context, j *job) error {
				proxies, stop := context.WithCancel(ctx)
				defer stop()
				source, err := pgtest.DelayProxy(proxies, serverAddr(j.from), delay)
				if err != nil {
					return err
				}
				target, err := pgtest.DelayProxy(proxies, serverAddr(j.to), delay)
				if err != nil {
					return err
				}
				f, err := b.oursThrough(ctx, j, through(j.from.URL, source), through(j.to.URL, target))
				if err == nil {
					d.data, d.large = f.copied(everyTable), f.copied(func(name string) bool { return large[name] })
				}
				return err
			})
			if err != nil {
				return err
			}
			d.whole, d.phases = s.whole, s.note
			b.sayf("round %d: delay %-5v %s; last chunk of the large tables after %.1f s of copying, of all after %.1f s", round+1, delay, s, d.large.Seconds(), d.data.Seconds())
			if far {
				r.far = append(r.far, d)
			} else {
				r.near = append(r.near, d)
			}
		}
	}
	return nil
}

// delayed is one of our copies through the proxies.
type delayed struct {
	whole       time.Duration
	data, large time.Duration // until the last chunk of all tables, of the large ones
	phases      string
}

// kill ends our process at half of the bytes, and starts it again.
func (b *bench) kill(ctx context.Context, r *report) error {
	for round := range b.cfg.rounds {
		// Right before: what was measured earlier may have met another load of the machine.
		unbroken, err := b.measure(ctx, b.db, b.ours)
		if err != nil {
			return err
		}
		var at float64
		var first time.Duration
		s, err := b.measure(ctx, b.db, func(ctx context.Context, j *job) error {
			percent, done, err := status(ctx, j)
			if err != nil {
				return err
			}
			defer done()
			f, err := b.startOurs(ctx, j, j.from.URL, j.to.URL)
			if err != nil {
				return err
			}
			defer func() { _ = f.cmd.Process.Kill() }() // whatever goes wrong
			for at < 50 {
				select {
				case <-f.told:
					return errors.Join(errors.New("it ended before half of the bytes were copied"), f.wait(j))
				case <-time.After(20 * time.Millisecond):
				}
				at, _ = percent() // there is no journal at first
			}
			if err := f.cmd.Process.Signal(syscall.SIGKILL); err != nil {
				return err
			}
			_ = f.wait(j) // killed
			first = time.Since(j.began)
			_, err = b.oursThrough(ctx, j, j.from.URL, j.to.URL)
			return err
		})
		if err != nil {
			return err
		}
		b.sayf("round %d: killed at %.0f %% after %.1f s, in all %.1f s; uninterrupted %.1f s", round+1, at, first.Seconds(), s.whole.Seconds(), unbroken.whole.Seconds())
		r.unbroken, r.killed = append(r.unbroken, unbroken.whole), append(r.killed, s.whole)
	}
	return nil
}

// rows looks at the memory that long rows take.
func (b *bench) rows(ctx context.Context, r *report) (err error) {
	b.sayf("generating rows of 20 KB and of 50 MB")
	db, err := b.generate(ctx, rowsSQL)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Drop(context.WithoutCancel(ctx))) }()
	s, err := b.measure(ctx, db, b.ours)
	if err != nil {
		return err
	}
	b.sayf("rows of 20 KB and of 50 MB: %s", s)
	r.longRows = s
	return nil
}

// The load of the xmin case.
const (
	writers     = 4
	sampleXmin  = 100 * time.Millisecond
	writerPause = 5 * time.Millisecond
)

// held is how long transactions of ours held back the source's vacuum.
type held struct {
	copying, whole time.Duration // the oldest backend_xmin seen while rows were copied, and at any time
	copyingBy      string
	wholeBy        string
	chunk          time.Duration // the longest chunk
	written        int
}

// xmin looks every 100 ms at the oldest transaction of ours that has a snapshot, while others write.
func (b *bench) xmin(ctx context.Context, r *report) error {
	for round := range b.cfg.rounds {
		h := held{}
		_, err := b.measure(ctx, b.db, func(ctx context.Context, j *job) error {
			j.sample.part = true
			loaded, stop := context.WithCancel(ctx)
			defer stop()
			g, gctx := errgroup.WithContext(loaded)
			transactions := make([]int, writers)
			for i := range writers {
				g.Go(func() error { return write(gctx, j.from, uint64(round*writers+i), &transactions[i]) })
			}
			var seen []age
			g.Go(func() (err error) {
				seen, err = watchXmin(gctx, j.from)
				return err
			})
			f, err := b.startOurs(ctx, j, j.from.URL, j.to.URL)
			if err != nil {
				return err
			}
			err = f.wait(j)
			stop()
			err = errors.Join(err, g.Wait())
			if err == nil { // what was written after the last round has to arrive before rows are counted
				var rest *follow
				if rest, err = b.startOurs(ctx, j, j.from.URL, j.to.URL); err == nil {
					err = rest.wait(j)
				}
			}
			if err != nil {
				return err
			}
			h.chunk = f.longest()
			for _, n := range transactions {
				h.written += n
			}
			for _, a := range seen {
				if a.held > h.whole {
					h.whole, h.wholeBy = a.held, a.query
				}
				if a.held > h.copying && a.at.After(f.entered("copying")) && a.at.Before(f.entered("rebuilding_indexes")) {
					h.copying, h.copyingBy = a.held, a.query
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		b.sayf("round %d: oldest backend_xmin %.2f s while copying, %.2f s in all; longest chunk %.2f s; %d transactions written meanwhile", round+1, h.copying.Seconds(), h.whole.Seconds(), h.chunk.Seconds(), h.written)
		b.sayf("  while copying: %s", h.copyingBy)
		b.sayf("  in all: %s", h.wholeBy)
		r.held = append(r.held, h)
	}
	return nil
}

// age is how old the oldest transaction with a snapshot was.
type age struct {
	at    time.Time
	held  time.Duration
	query string
}

func watchXmin(ctx context.Context, db *pgtest.Database) (seen []age, err error) {
	conn, err := pgx.Connect(ctx, db.AdminURL)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	tick := time.NewTicker(sampleXmin)
	defer tick.Stop()
	for {
		var seconds float64
		var query string
		err := conn.QueryRow(ctx, `
			SELECT extract(epoch FROM clock_timestamp() - xact_start)::float8, left(regexp_replace(query, '\s+', ' ', 'g'), 100) FROM pg_stat_activity
			WHERE (application_name LIKE 'heroku_migrator%' OR application_name = 'pg_dump') AND datname = current_database()
				AND backend_xmin IS NOT NULL AND xact_start IS NOT NULL
			ORDER BY xact_start LIMIT 1`).Scan(&seconds, &query)
		switch {
		case ctx.Err() != nil:
			return seen, nil
		case err == nil:
			seen = append(seen, age{time.Now(), time.Duration(seconds * float64(time.Second)), query})
		case !errors.Is(err, pgx.ErrNoRows):
			return seen, err
		}
		select {
		case <-ctx.Done():
			return seen, nil
		case <-tick.C:
		}
	}
}

// write is one client of the application: short transactions, until the context is done.
func write(ctx context.Context, db *pgtest.Database, seed uint64, transactions *int) error {
	conn, err := pgx.Connect(ctx, db.URL)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	random := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a load, not a secret
	var orders, events int64
	if err := conn.QueryRow(ctx, "SELECT (SELECT max(id) FROM orders), (SELECT max(id) FROM events)").Scan(&orders, &events); err != nil {
		return err
	}
	for ctx.Err() == nil {
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			for _, sql := range []string{
				fmt.Sprintf("UPDATE orders SET total = total + 1 WHERE id = %d", 1+random.Int64N(orders)),
				fmt.Sprintf("UPDATE events SET kind = 'changed' WHERE id = %d", 1+random.Int64N(events)),
				fmt.Sprintf("INSERT INTO events (user_id, kind, at, payload) VALUES (%d, 'new', now(), '{\"new\": true}')", 1+random.Int64N(100)),
			} {
				if _, err := tx.Exec(ctx, sql); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("writing to the source: %w", err)
		}
		*transactions++
		select {
		case <-ctx.Done():
		case <-time.After(writerPause):
		}
	}
	return nil
}
