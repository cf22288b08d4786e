package migrator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// CopyConfig configures [Copy]. The zero value is good.
type CopyConfig struct {
	// Workers is how many chunks are copied at once; each takes one connection on either side. Default: half of
	// what the smaller server calls its parallel workers, which providers set to its cores: 2 to 8. It is lowered
	// to what the servers and the pools have connections for. If the servers are far away, up to twice as many chunks
	// more are claimed and ready, each on its own connections, and for every third of these one more flows, so that
	// waits for the network cost little; one is always ready, unless Workers is 1.
	Workers int
	// ChunkBytes is about how much of a table, in bytes on disk, is copied in one transaction, and so how much
	// an interruption costs each worker. Default: a 64th of the database, 8 to 64 MiB.
	ChunkBytes int64
	// MaxBytesPerSecond limits what this process copies, all workers together, in bytes as they are sent.
	// Default: no limit.
	MaxBytesPerSecond int64
	Throttle          ThrottleConfig
	Logger            *slog.Logger
	// OnEvent is called for every chunk. It must return soon, and may be called concurrently.
	OnEvent func(Event)

	standby int // further workers, whose chunks are claimed and ready to flow
}

const (
	roundTripsPerChunk = 5.0
	usualChunk         = 400 * time.Millisecond
	smallestChunk      = 8 << 20
	largestChunk       = 64 << 20
	// spareConnections are those of the pools that are not for chunks: index builds, the journal, the throttle.
	spareConnections = 6
)

// derived fills in what depends on the servers.
func (c CopyConfig) derived(src, dst Identity, logger *slog.Logger) CopyConfig {
	c.Logger = logger
	if c.Workers <= 0 {
		c.Workers = min(max(2, min(src.ParallelWorkers, dst.ParallelWorkers)/2), 8)
	}
	most := max(1, min(src.Connections, dst.Connections)-spareConnections)
	if c.Workers > most {
		logger.Info("fewer copy workers than wanted: there are no connections for more", "wanted", c.Workers,
			"workers", most)
		c.Workers = most
	}
	// While a chunk is claimed or committed, the rows of another can flow: one more is always ready (but not where one
	// at a time was asked for), and if the network makes them wait, as many as it takes, half as many again since
	// chunks come and go in bursts.
	waits := float64(src.RoundTrip+dst.RoundTrip) / 2 * roundTripsPerChunk
	c.standby = min(min(c.Workers-1, 1)+int(math.Round(1.5*float64(c.Workers)*waits/float64(usualChunk))), 2*c.Workers,
		most-c.Workers)
	if c.ChunkBytes <= 0 {
		c.ChunkBytes = min(max(src.Size/64, smallestChunk), largestChunk)
	}
	if src.Version < 140000 { // a range of pages could only be had by reading all of them
		c.ChunkBytes = math.MaxInt64
		c.standby = 0 // it would hold its snapshot for as long as other tables take
	}
	return c
}

// Copy copies the rows that were there when capture was installed, and have not changed since, in chunks,
// several at once. It returns when all chunks are committed on the target. Interrupted and repeated, it
// goes on with the chunks that are left; several processes may share the work.
//
// Capture has to be installed on every table before (I2).
func Copy(ctx context.Context, src Source, dst Target, cfg CopyConfig) error {
	// All that has to be known, at once: far from the servers, each of these is several waits.
	var c *copier
	var now map[uint32]*Table
	var tables []TableStatus
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		c, err = newCopier(gctx, src, dst, cfg)
		return err
	})
	g.Go(func() (err error) {
		now, err = current(gctx, src)
		return err
	})
	g.Go(func() (err error) {
		tables, err = dst.Journal().Tables(gctx)
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	g, gctx = errgroup.WithContext(ctx)
	g.Go(func() error { return c.plan(gctx, now, tables) }) // while workers connect
	g.Go(func() error { return c.run(gctx, c.noteThrottle) })
	if err := g.Wait(); err != nil {
		return err
	}
	tables, err := dst.Journal().Tables(ctx)
	if err != nil {
		return err
	}
	for _, t := range tables {
		// One that was set aside may be about to be copied again.
		if t.State == TableCopying && t.Chunks == t.ChunksDone {
			if err := dst.Journal().SetTable(ctx, t.Table, TableCopying, TableIndexing); err != nil {
				return err
			}
		}
	}
	return nil
}

type copier struct {
	src      Source
	dst      Target
	cfg      CopyConfig
	captured Position // on which server capture was installed
	pace     *pace
	// throttled is what the last event said; used by the goroutine of the throttle alone.
	throttled bool
	finish    func()        // closes finished, once
	finished  chan struct{} // nothing is left
}

func newCopier(ctx context.Context, src Source, dst Target, cfg CopyConfig) (*copier, error) {
	var state *State
	var from, to Identity
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		state, err = dst.Journal().State(gctx)
		return err
	})
	g.Go(func() (err error) {
		from, err = src.Identify(gctx)
		return err
	})
	g.Go(func() (err error) {
		to, err = dst.Identify(gctx)
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if g, ok := src.(guarder); ok {
		g.guardIntervals(to, from)
	}
	cfg = cfg.derived(from, to, logger(cfg.Logger))
	finished := make(chan struct{})
	return &copier{
		src: src, dst: dst, cfg: cfg, captured: state.Captured, pace: newPace(cfg.Workers+cfg.standby/3,
			cfg.MaxBytesPerSecond),
		finished: finished, finish: sync.OnceFunc(func() { close(finished) }),
	}, nil
}

// run copies chunks with all workers until none is left, and watches the source meanwhile. What the throttle does
// is told to note.
func (c *copier) run(ctx context.Context, note func(context.Context, float64, string)) error {
	watching, stop := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		throttle(watching, c.src, c.pace, c.cfg.Throttle, note)
	}()
	defer func() {
		stop()
		<-watched
	}()
	g, gctx := errgroup.WithContext(ctx)
	for range c.cfg.Workers + c.cfg.standby {
		g.Go(func() error { return c.work(gctx) })
	}
	return g.Wait()
}

// noteThrottle records that the copy is slowed down, or no longer, and tells when that begins and ends.
func (c *copier) noteThrottle(ctx context.Context, share float64, reason string) {
	if err := c.dst.Journal().setThrottle(ctx, share, reason); err != nil && ctx.Err() == nil {
		c.cfg.Logger.WarnContext(ctx, "the throttle could not be noted", "error", err)
	}
	if (reason != "") == c.throttled {
		return
	}
	c.throttled = reason != ""
	message := "the source is at ease: copying at full speed"
	if c.throttled {
		message = "slowing down the copy: " + reason
	}
	notify(c.cfg.OnEvent, Event{Kind: EventThrottle, Phase: PhaseCopying, Message: message})
}

// plan cuts the tables that have no plan yet into chunks, given the catalog.
func (c *copier) plan(ctx context.Context, now map[uint32]*Table, tables []TableStatus) error {
	var plans []TablePlan
	for _, t := range tables {
		if !t.Captured {
			return fmt.Errorf("copy: changes of %s are not captured yet", t.Table)
		}
		if t.State != TablePending {
			continue
		}
		current, err := stillThere(t.Table, now)
		if err != nil {
			return err
		}
		plans = append(plans, TablePlan{current, PlanChunks(current, c.cfg.ChunkBytes)})
	}
	if len(plans) == 0 {
		return nil
	}
	return c.dst.Plan(ctx, plans)
}

// current reads the catalog anew: sizes and files of tables change.
func current(ctx context.Context, src Source) (map[uint32]*Table, error) {
	cat, err := src.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	byID := make(map[uint32]*Table, len(cat.Tables))
	for _, t := range cat.Tables {
		byID[t.ID] = t
	}
	return byID, nil
}

func (c *copier) replan(ctx context.Context, t *Table, after int, now map[uint32]*Table) (bool, error) {
	current, err := stillThere(t, now)
	if err != nil {
		return false, err
	}
	return c.dst.Restart(ctx, current, after, PlanChunks(current, c.cfg.ChunkBytes))
}

func stillThere(t *Table, now map[uint32]*Table) (*Table, error) {
	current, ok := now[t.ID]
	if !ok {
		return nil, fmt.Errorf("%s is not a table of its own any more: %w", t, ErrSchemaChanged)
	}
	return current, nil
}

// PlanChunks cuts a table into chunks of about the given size on disk, TOAST counted. The last chunk of
// each leaf reaches to its end, wherever that is when it is read. A table without a key is one chunk, since what
// changes while it is copied is told from what was there by the one snapshot that it is read from.
func PlanChunks(t *Table, chunkBytes int64) []Chunk {
	if t.Keyless() {
		return []Chunk{{Table: t.ID, Leaf: t.Relation, To: -1, Bytes: t.Bytes()}}
	}
	chunkBytes = max(chunkBytes, 1)
	var chunks []Chunk
	for _, leaf := range t.Leaves {
		n := max(1, min((leaf.Bytes-1)/chunkBytes+1, leaf.Pages))
		for i := range n {
			chunk := Chunk{
				Table: t.ID, No: len(chunks), Leaf: leaf.Relation, Filenode: leaf.Filenode,
				From: leaf.Pages * i / n, To: leaf.Pages * (i + 1) / n,
				Bytes: leaf.Bytes*(i+1)/n - leaf.Bytes*i/n,
			}
			if i == n-1 {
				chunk.To = -1
			}
			chunks = append(chunks, chunk)
		}
	}
	return chunks
}

// work copies chunks until none is left. A chunk that another process has claimed may come back, so it
// waits for those too.
func (c *copier) work(ctx context.Context) error {
	for attempt, idle := 0, 0; ; {
		began := time.Now()
		chunk, rows, bytes, err := c.next(ctx, idle == 0)
		switch {
		case err == nil && chunk != nil:
			attempt, idle = 0, 0
			notify(c.cfg.OnEvent, Event{Kind: EventChunk, Phase: PhaseCopying, Table: &Table{Relation: chunk.Leaf},
				Rows: rows, Bytes: bytes, Took: time.Since(began),
				Message: fmt.Sprintf("%s: chunk %d copied", chunk.Leaf, chunk.No)})
		case err == nil:
			left, err := c.dst.Journal().chunksLeft(ctx)
			if err != nil {
				return err
			}
			if left == 0 {
				c.finish()
				return nil
			}
			idle++
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-c.finished: // by another worker, who found nothing left
				return nil
			case <-time.After(backoff(idle, 50*time.Millisecond, time.Second)):
			}
		case errors.Is(err, ErrRewritten):
			if err := c.restart(ctx, chunk); err != nil {
				return err
			}
		case errors.Is(err, errGaveWay) && ctx.Err() == nil:
			attempt++
			c.cfg.Logger.InfoContext(ctx, "a chunk gave way to others, and is read again", "error", err)
			if err := sleep(ctx, backoff(attempt, 300*time.Millisecond, 5*time.Second)); err != nil {
				return err
			}
		case sqlState(err) == "55P03" && ctx.Err() == nil:
			// Somebody holds an exclusive lock on this table. It will not last.
			attempt++
			c.cfg.Logger.InfoContext(ctx, "waiting for a lock on the source", "error", err)
			if err := sleep(ctx, backoff(attempt, 500*time.Millisecond, 10*time.Second)); err != nil {
				return err
			}
		default:
			return err
		}
	}
}

// next copies one chunk, if there is one that nobody has. The snapshot is opened while the chunk is claimed, if one is
// likely to be had: one wait for the network, not two. A snapshot in vain is waited for: to cancel it would cost the
// source a connection.
func (c *copier) next(ctx context.Context, likely bool) (chunk *Chunk, rows, bytes int64, err error) {
	opened := make(chan error, 1)
	var snap Snapshot
	open := sync.OnceFunc(func() {
		go func() {
			s, err := c.src.Snapshot(ctx)
			if err == nil {
				snap = s
			}
			opened <- err
		}()
	})
	if likely {
		open()
	}
	closed := make(chan struct{})
	shut := sync.OnceFunc(func() { // in the background: the target still works on the last rows
		go func() {
			defer close(closed)
			if snap != nil {
				closeSnapshot(ctx, snap)
			}
		}()
	})
	var waited bool
	var paced *pacedWriter
	defer func() { paced.end() }() // when the target has taken all of it, whatever the network holds meanwhile
	chunk, err = c.dst.CopyChunk(ctx, func(ctx context.Context, t *Table, chunk *Chunk, w io.Writer) (int64, error) {
		waited = true
		defer shut()
		open()
		if err := <-opened; err != nil {
			return 0, err
		}
		if !c.captured.SameServer(snap.Position()) {
			return 0, ErrFailedOver
		}
		chunk.At = snap.Position()
		paced = c.pace.writer(ctx, w)
		counted := &countingWriter{w: paced}
		n, err := snap.CopyChunk(ctx, t, chunk, counted)
		rows, bytes = n, counted.n
		return n, err
	})
	switch {
	case waited:
	case !likely:
		return chunk, rows, bytes, err
	case <-opened == nil: // in vain
		shut()
	default:
		return chunk, rows, bytes, err
	}
	<-closed
	return chunk, rows, bytes, err
}

// restart plans the copy of a chunk's table anew.
func (c *copier) restart(ctx context.Context, chunk *Chunk) error {
	now, err := current(ctx, c.src)
	if err != nil {
		return err
	}
	t, ok := now[chunk.Table]
	if !ok {
		t = &Table{Relation: Relation{ID: chunk.Table, Schema: chunk.Leaf.Schema, Name: chunk.Leaf.Name}}
	}
	restarted, err := c.replan(ctx, t, chunk.Plan, now)
	if err != nil || !restarted { // another worker noticed it first
		return err
	}
	message := fmt.Sprintf("%s was rewritten on the source (VACUUM FULL, CLUSTER, TRUNCATE or ALTER TABLE): its copy "+
		"starts over", t)
	c.cfg.Logger.WarnContext(ctx, message)
	notify(c.cfg.OnEvent, Event{Kind: EventWarning, Phase: PhaseCopying, Table: t, Message: message})
	return c.dst.Journal().Record(ctx, Event{Kind: EventWarning, Message: message})
}
