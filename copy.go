package migrator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"time"

	"golang.org/x/sync/errgroup"
)

// CopyConfig configures [Copy]. The zero value is good.
type CopyConfig struct {
	// Workers is how many chunks are copied at once; each takes one connection on either side. Default: 4.
	Workers int
	// ChunkBytes is about how much of a table, in bytes on disk, is copied in one transaction. Default: 64 MiB.
	ChunkBytes int64
	Logger     *slog.Logger
	// OnEvent is called for every chunk. It must return soon, and may be called concurrently.
	OnEvent func(Event)
}

func (c CopyConfig) withDefaults() CopyConfig {
	if c.Workers <= 0 {
		c.Workers = 4
	}
	if c.ChunkBytes <= 0 {
		c.ChunkBytes = 64 << 20
	}
	c.Logger = logger(c.Logger)
	return c
}

// Copy copies the rows that were there when capture was installed, and have not changed since, in chunks,
// several at once. It returns when all chunks are committed on the target. Interrupted and repeated, it
// goes on with the chunks that are left; several processes may share the work.
//
// Capture has to be installed on every table before (I2).
func Copy(ctx context.Context, src Source, dst Target, cfg CopyConfig) error {
	cfg = cfg.withDefaults()
	c, err := newCopier(ctx, src, dst, cfg)
	if err != nil {
		return err
	}
	if err := c.plan(ctx); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	for range cfg.Workers {
		g.Go(func() error { return c.work(gctx) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	tables, err := dst.Journal().Tables(ctx)
	if err != nil {
		return err
	}
	for _, t := range tables {
		if t.State == TableCopying {
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
}

func newCopier(ctx context.Context, src Source, dst Target, cfg CopyConfig) (*copier, error) {
	state, err := dst.Journal().State(ctx)
	if err != nil {
		return nil, err
	}
	id, err := src.Identify(ctx)
	if err != nil {
		return nil, err
	}
	if id.Version < 140000 { // a range of pages could only be had by reading all of them
		cfg.ChunkBytes = math.MaxInt64
	}
	return &copier{src: src, dst: dst, cfg: cfg, captured: state.Captured}, nil
}

// plan cuts the tables that have no plan yet into chunks.
func (c *copier) plan(ctx context.Context) error {
	tables, err := c.dst.Journal().Tables(ctx)
	if err != nil {
		return err
	}
	var todo []TableStatus
	for _, t := range tables {
		if !t.Captured {
			return fmt.Errorf("copy: changes of %s are not captured yet", t.Table)
		}
		if t.State == TablePending {
			todo = append(todo, t)
		}
	}
	if len(todo) == 0 {
		return nil
	}
	now, err := c.current(ctx)
	if err != nil {
		return err
	}
	for _, t := range todo {
		if _, err := c.replan(ctx, t.Table, t.Plan, now); err != nil {
			return err
		}
	}
	return nil
}

// current reads the catalog anew: sizes and files of tables change.
func (c *copier) current(ctx context.Context) (map[uint32]*Table, error) {
	cat, err := c.src.Catalog(ctx)
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
	current, ok := now[t.ID]
	if !ok {
		return false, fmt.Errorf("%s was dropped on the source since the migration began: abort, and start again with an empty target", t)
	}
	return c.dst.Restart(ctx, current, after, PlanChunks(current, c.cfg.ChunkBytes))
}

// PlanChunks cuts a table into chunks of about the given size on disk, TOAST counted. The last chunk of
// each leaf reaches to its end, wherever that is when it is read.
func PlanChunks(t *Table, chunkBytes int64) []Chunk {
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
	for attempt := 0; ; {
		began := time.Now()
		var rows, bytes int64
		chunk, err := c.dst.CopyChunk(ctx, func(ctx context.Context, t *Table, chunk *Chunk, w io.Writer) (int64, error) {
			snap, err := c.src.Snapshot(ctx)
			if err != nil {
				return 0, err
			}
			defer closeSnapshot(ctx, snap)
			if !c.captured.SameServer(snap.Position()) {
				return 0, ErrFailedOver
			}
			counted := &countingWriter{w: w}
			rows, err = snap.CopyChunk(ctx, t, chunk, counted)
			bytes = counted.n
			return rows, err
		})
		switch {
		case err == nil && chunk != nil:
			attempt = 0
			notify(c.cfg.OnEvent, Event{Kind: EventChunk, Phase: PhaseCopying, Table: &Table{Relation: chunk.Leaf}, Rows: rows, Bytes: bytes, Took: time.Since(began),
				Message: fmt.Sprintf("%s: chunk %d copied", chunk.Leaf, chunk.No)})
		case err == nil:
			left, err := c.left(ctx)
			if err != nil || left == 0 {
				return err
			}
			if err := sleep(ctx, 200*time.Millisecond); err != nil {
				return err
			}
		case errors.Is(err, ErrRewritten):
			if err := c.restart(ctx, chunk); err != nil {
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

// restart plans the copy of a chunk's table anew.
func (c *copier) restart(ctx context.Context, chunk *Chunk) error {
	now, err := c.current(ctx)
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
	message := fmt.Sprintf("%s was rewritten on the source (VACUUM FULL, CLUSTER, TRUNCATE or ALTER TABLE): its copy starts over", t)
	c.cfg.Logger.WarnContext(ctx, message)
	notify(c.cfg.OnEvent, Event{Kind: EventWarning, Phase: PhaseCopying, Table: t, Message: message})
	return c.dst.Journal().Record(ctx, Event{Kind: EventWarning, Message: message})
}

func (c *copier) left(ctx context.Context) (int, error) {
	tables, err := c.dst.Journal().Tables(ctx)
	left := 0
	for _, t := range tables {
		left += t.Chunks - t.ChunksDone
	}
	return left, err
}
