package migrator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A transaction of ours that reads a table holds its lock until it ends. An ALTER TABLE of the application waits for
// that, and everybody else queues behind it. So while such transactions are open, a watch looks for sessions that wait
// for them, and ends ours: a chunk or a round that is cut is done again, and nobody of the application waits longer
// than half a second. See ARCHITECTURE.md, I7.

// errGaveWay says that a transaction of ours was ended because others waited for it.
var errGaveWay = fmt.Errorf("others waited for a lock that it held: %w", errPassing)

const (
	watchEvery = 200 * time.Millisecond
	// patience is how long somebody may wait for us. It doubles with every third time in a row that the same work gives
	// way, so that it gets done however often others come.
	patience = 200 * time.Millisecond
)

// giveWay watches one server while work of ours holds locks there.
type giveWay struct {
	pool *pgxpool.Pool

	mu      sync.Mutex
	holders []*lockHolder
	waiting map[int32]time.Time // sessions that wait for us: since when that is known
	given   map[string]int      // how often in a row work gave way
	stop    context.CancelFunc
	stopped chan struct{}
}

// lockHolder is a transaction of ours that may hold locks: of one backend, or of all that have this application_name.
type lockHolder struct {
	way         *giveWay
	backend     int32
	application string

	purpose string // guarded by way.mu, as gone is
	gone    bool
}

func newGiveWay(pool *pgxpool.Pool) *giveWay {
	return &giveWay{pool: pool, waiting: map[int32]time.Time{}, given: map[string]int{}}
}

// enter makes a transaction known, and watches from now on.
func (g *giveWay) enter(ctx context.Context, backend int32, application, purpose string) *lockHolder {
	h := &lockHolder{way: g, backend: backend, application: application, purpose: purpose}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.holders = append(g.holders, h)
	if len(g.holders) == 1 {
		var watching context.Context // it ends with the last transaction, not with this call
		watching, g.stop = context.WithCancel(context.WithoutCancel(ctx))
		g.stopped = make(chan struct{})
		go g.watch(watching, g.stopped)
	}
	return h
}

// does says what the transaction does now: how often that gave way before decides how soon it does again.
func (h *lockHolder) does(purpose string) {
	h.way.mu.Lock()
	defer h.way.mu.Unlock()
	h.purpose = purpose
}

// leave has to be called before the transaction ends, since its backend does other things then. It tells whether the
// transaction gave way: its connection has to be closed then.
func (h *lockHolder) leave() (gone bool) {
	g := h.way
	g.mu.Lock()
	at := slices.Index(g.holders, h)
	if at >= 0 {
		g.holders = slices.Delete(g.holders, at, at+1)
		if !h.gone {
			delete(g.given, h.purpose)
		}
	}
	last := at >= 0 && len(g.holders) == 0
	stop, stopped := g.stop, g.stopped
	if last {
		clear(g.waiting)
	}
	gone = h.gone
	g.mu.Unlock()
	if last {
		stop()
		<-stopped
	}
	return gone
}

// failed adds to an error that it came from giving way.
func (h *lockHolder) failed(err error) error {
	if err == nil || h == nil {
		return err
	}
	h.way.mu.Lock()
	defer h.way.mu.Unlock()
	if !h.gone {
		return err
	}
	return fmt.Errorf("%w: %w", errGaveWay, err)
}

// during does a part of a transaction that may take long, such as reading a whole table. If it gives way, the
// transaction is lost.
func (g *giveWay) during(ctx context.Context, tx pgx.Tx, purpose string, do func() error) error {
	var backend int32
	if err := tx.QueryRow(ctx, `SELECT pg_backend_pid()`).Scan(&backend); err != nil {
		return err
	}
	h := g.enter(ctx, backend, "", purpose)
	err := do()
	if h.leave() {
		_ = tx.Conn().Close(context.WithoutCancel(ctx)) // its backend may not have noticed yet
		return fmt.Errorf("%w: %w", errGaveWay, cmp.Or(err, context.Cause(ctx), errors.New("nothing was committed")))
	}
	return err
}

// gaveWay adds to the error of work with a snapshot that this came from giving way.
func gaveWay(snap Snapshot, err error) error {
	if s, ok := snap.(*herokuSnapshot); ok && !errors.Is(err, errGaveWay) {
		return s.locks.failed(err)
	}
	return err
}

// watch ends with the last transaction. What keeps it from looking passes, or keeps the transactions from going on as
// well.
func (g *giveWay) watch(ctx context.Context, stopped chan struct{}) {
	defer close(stopped)
	ticks := time.NewTicker(watchEvery)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
		if conn, err := g.pool.Acquire(ctx); err == nil {
			limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
			_ = g.look(limited, conn)
			cancel()
			conn.Release()
		}
	}
}

// look looks once for those who wait for us, and ends the transactions that they have waited for long enough.
func (g *giveWay) look(ctx context.Context, conn *pgxpool.Conn) error {
	backends := []int32{}
	applications := []string{}
	g.mu.Lock()
	for _, h := range g.holders {
		switch {
		case h.gone:
		case h.application != "":
			applications = append(applications, h.application)
		default:
			backends = append(backends, h.backend)
		}
	}
	g.mu.Unlock()
	rows, err := conn.Query(ctx, `
		SELECT w.pid, b.pid, coalesce(a.application_name, '')
		FROM (SELECT DISTINCT pid FROM pg_locks WHERE NOT granted AND pid IS NOT NULL) AS w
		CROSS JOIN LATERAL unnest(pg_blocking_pids(w.pid)) AS b(pid) LEFT JOIN pg_stat_activity a ON a.pid = b.pid
		WHERE (b.pid = ANY ($1::int4[]) OR a.application_name = ANY ($2::text[])) AND w.pid <> ALL
		($1::int4[])`, backends, applications)
	if err != nil {
		return err
	}
	type wait struct {
		waiter, blocker int32
		application     string
	}
	waits, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (w wait, err error) {
		err = row.Scan(&w.waiter, &w.blocker, &w.application)
		return w, err
	})
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock() // until they are ended: who leaves waits for that, and closes its connection
	now := time.Now()
	for pid := range g.waiting {
		if !slices.ContainsFunc(waits, func(w wait) bool { return w.waiter == pid }) {
			delete(g.waiting, pid)
		}
	}
	var due []int32
	for _, w := range waits {
		if _, known := g.waiting[w.waiter]; !known {
			g.waiting[w.waiter] = now
		}
		for _, h := range g.holders {
			if h.gone || (h.application == "" && h.backend != w.blocker) || (h.application != "" &&
				h.application != w.application) {
				continue
			}
			if now.Sub(g.waiting[w.waiter]) >= patience<<min(g.given[h.purpose]/3, 16)*9/10 { // ticks are not exact
				h.gone = true
				g.given[h.purpose]++
				due = append(due, w.blocker)
			}
		}
	}
	if len(due) == 0 {
		return nil
	}
	_, err = conn.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM unnest($1::int4[]) AS pid`, due)
	return err
}
