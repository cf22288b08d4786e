package shop

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Options say how writers write. The zero value writes as fast as the server
// lets it, with neither key changes nor TRUNCATE.
type Options struct {
	// Rate limits the transactions per second of all writers together. Zero
	// means no limit.
	Rate float64
	// Rest makes each writer pause, after each attempt, for so many times as long
	// as that took, a second at most: a machine that is slow has less to do.
	Rest float64
	// KeyChanges adds operations that change keys, move rows between
	// partitions and swap unique values.
	KeyChanges bool
	// Truncate adds, rarely, a TRUNCATE of exchange_rates. It waits for every
	// other transaction that uses the table.
	Truncate bool
	// MaxHold is how long a transaction that is held open stays open at most;
	// zero means 1.5 seconds and a negative value leaves such transactions out.
	MaxHold time.Duration
	// Seed varies the mix. Equal seeds give each writer the same choices.
	Seed uint64
}

func (o Options) withDefaults() Options {
	if o.MaxHold == 0 {
		o.MaxHold = 1500 * time.Millisecond
	}
	return o
}

// Pauses between attempts, and how long Stop waits for a statement.
const (
	refusedPause   = 50 * time.Millisecond
	reconnectPause = 200 * time.Millisecond
	stopGrace      = 15 * time.Second
)

// Writers are connections that write until they are stopped.
type Writers struct {
	run     int64 // tells the ledger rows of these writers from others'
	opts    Options
	url     atomic.Pointer[string]
	bounds  bounds
	limit   limiter
	count   counters
	writers []*writer

	stop   chan struct{} // closed: begin no other transaction
	once   sync.Once
	cancel context.CancelFunc
	done   chan struct{} // closed: no writer runs any more
}

// StartWriters starts n connections to url that write until [Writers.Stop] or
// until ctx ends. The database holds a seeded shop. Errors of the first
// connection are returned; later ones are counted and retried.
func StartWriters(ctx context.Context, url string, n int, opts Options) (*Writers, error) {
	if n < 1 {
		return nil, fmt.Errorf("shop: %d writers", n)
	}
	opts = opts.withDefaults()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("shop: connect: %w", err)
	}
	b, err := readBounds(ctx, conn)
	closeErr := conn.Close(ctx)
	if err = errors.Join(err, closeErr); err != nil {
		return nil, fmt.Errorf("shop: read bounds: %w", err)
	}

	ctx, cancel := context.WithCancel(ctx)
	w := &Writers{
		run:    time.Now().UnixNano(),
		opts:   opts,
		bounds: b,
		limit:  limiter{rate: opts.Rate},
		count:  counters{s: Stats{Operations: map[string]int64{}}},
		stop:   make(chan struct{}),
		cancel: cancel,
		done:   make(chan struct{}),
	}
	w.url.Store(&url)
	var running sync.WaitGroup
	for i := range n {
		wr := &writer{w: w, number: i, rng: rand.New(rand.NewPCG(opts.Seed, uint64(i)+1)), deck: newDeck(opts)}
		w.writers = append(w.writers, wr)
		running.Go(func() { wr.loop(ctx) })
	}
	go func() {
		running.Wait()
		cancel()
		close(w.done)
	}()
	return w, nil
}

// Redirect makes the writers use the database at url from each one's next
// transaction on, as an application does whose configuration changed.
func (w *Writers) Redirect(url string) { w.url.Store(&url) }

// SetRate changes the transactions per second of all writers together, from the next transaction on.
func (w *Writers) SetRate(rate float64) {
	w.limit.mu.Lock()
	defer w.limit.mu.Unlock()
	w.limit.rate = rate
}

// Stop lets each writer finish its transaction, closes the connections and
// returns the statistics. A transaction that does not end within 15 seconds is
// abandoned. Stop may be called more than once.
func (w *Writers) Stop() Stats {
	w.once.Do(func() { close(w.stop) })
	select {
	case <-w.done:
	case <-time.After(stopGrace):
		w.cancel()
		<-w.done
	}
	return w.Stats()
}

// Stats returns what the writers have done so far.
func (w *Writers) Stats() Stats { return w.count.snapshot() }

// stopped reports whether no writer runs any more.
func (w *Writers) stopped() bool {
	select {
	case <-w.done:
		return true
	default:
		return false
	}
}

// pause waits for d and reports false when the writers shall stop.
func (w *Writers) pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(max(d, 0))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-w.stop:
		return false
	case <-timer.C:
		return ctx.Err() == nil
	}
}

// writer is one connection and its memory.
type writer struct {
	w      *Writers
	number int
	rng    *rand.Rand
	deck   deck
	ledger ledger

	conn    *pgx.Conn
	url     string
	version int // server_version_num
}

func (wr *writer) loop(ctx context.Context) {
	defer wr.disconnect()
	var op *operation // nil: draw the next one
	for wr.w.pause(ctx, wr.w.limit.reserve()) {
		if err := wr.connect(ctx); err != nil {
			wr.w.count.update(func(s *Stats) { s.Lost++ })
			wr.disconnect()
			wr.w.pause(ctx, reconnectPause)
			continue
		}
		if op == nil {
			op = wr.deck.draw(wr.rng)
		}
		began := time.Now()
		if wr.attempt(ctx, op) {
			op = nil
		}
		wr.w.pause(ctx, min(time.Duration(wr.w.opts.Rest*float64(time.Since(began))), time.Second))
	}
}

// connect makes sure that there is a connection to the current url.
func (wr *writer) connect(ctx context.Context) error {
	url := *wr.w.url.Load()
	if wr.conn != nil && !wr.conn.IsClosed() && wr.url == url {
		return nil
	}
	wr.disconnect()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	wr.conn, wr.url = conn, url
	return conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int`).Scan(&wr.version)
}

func (wr *writer) disconnect() {
	if wr.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_ = wr.conn.Close(ctx) // nothing is lost: no transaction is open
	wr.conn = nil
}

// attempt runs op as one transaction with a ledger row of its own, records
// the outcome and reports false when the same operation shall be tried again.
func (wr *writer) attempt(ctx context.Context, op *operation) bool {
	seq := wr.ledger.begin()
	t := &txn{writer: wr, operation: op.name}
	err := t.run(ctx, op, seq)
	switch {
	case err == nil:
		wr.ledger.settle(seq, present)
		wr.w.count.committed(op.name, t.rows)
		return true
	case errors.Is(err, errRollback):
		wr.ledger.settle(seq, absent)
		wr.w.count.update(func(s *Stats) {
			s.RolledBack++
			s.Operations[op.name]++
		})
		return true
	}

	// The server cannot have committed what it was not told to commit, nor
	// what it answered with an error while the session stayed alive.
	kind := classify(err)
	if kind == kindOther && wr.conn.IsClosed() {
		kind = kindLost
	}
	if t.committing && kind == kindLost {
		wr.w.count.update(func(s *Stats) { s.Unknown++ })
	} else {
		wr.ledger.settle(seq, absent)
	}
	if ctx.Err() != nil {
		wr.disconnect()
		return true
	}
	switch kind {
	case kindRefused:
		wr.w.count.update(func(s *Stats) { s.Refused++ })
		wr.w.pause(ctx, refusedPause)
		return false
	case kindCollision:
		wr.w.count.update(func(s *Stats) { s.Retried++ })
		return wr.rng.IntN(3) == 0 // rather another operation than a endless collision
	case kindLost:
		wr.w.count.update(func(s *Stats) { s.Lost++ })
		wr.disconnect()
		wr.w.pause(ctx, reconnectPause)
		return true
	default:
		wr.w.count.update(func(s *Stats) {
			s.Other++
			s.OtherSample = op.name + ": " + err.Error()
		})
		wr.w.pause(ctx, refusedPause)
		return true
	}
}

// errorKind is what a writer does about an error.
type errorKind int

const (
	kindOther errorKind = iota
	kindRefused
	kindCollision
	kindLost
)

func classify(err error) errorKind {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return kindOther // of this side, unless the connection is closed now
	}
	switch pgErr.Code {
	case "42501", "25006": // insufficient_privilege, read_only_sql_transaction
		return kindRefused
	case "40001", "40P01", "23505", "23503", "23P01":
		return kindCollision
	case "57P01", "57P02", "57P03", "57P05", "25P03":
		return kindLost
	}
	if class := pgErr.Code[:2]; class == "08" || pgErr.Severity == "FATAL" {
		return kindLost
	}
	return kindOther
}

// limiter spreads transactions evenly over time.
type limiter struct {
	rate float64
	mu   sync.Mutex
	next time.Time
}

// reserve takes the next free moment and returns how long it is until then.
func (l *limiter) reserve() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate <= 0 {
		return 0
	}
	now := time.Now()
	if l.next.Before(now) {
		l.next = now
	}
	wait := l.next.Sub(now)
	l.next = l.next.Add(time.Duration(float64(time.Second) / l.rate))
	return wait
}
