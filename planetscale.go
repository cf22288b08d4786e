package migrator

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/heroku-migrator/migrator/internal/checks"
	"github.com/heroku-migrator/migrator/internal/pgurl"
)

// PlanetScaleConfig configures [OpenPlanetScale]. The zero value is good.
type PlanetScaleConfig struct {
	// MaxConns bounds the connections to the target. One more holds the lead. Default: 16, opened as they are needed.
	MaxConns int
	// URL is as in [HerokuConfig].
	URL func(ctx context.Context) (string, error)
	// Capture is how changes are captured after the switch, for the way back. Default: see [CaptureAuto].
	Capture CaptureMethod
	// SlotTimeout is how long a switch waits for a replication slot to be made, which has to wait for every transaction
	// of the server that writes. Default: 20 s.
	SlotTimeout time.Duration
	// BufferBytes is how much is read ahead of what the target has taken, for each chunk that is being copied.
	// Default: 1 MiB.
	BufferBytes int
}

// PlanetScale is a [Target] on PlanetScale Postgres, or any Postgres whose role owns its database.
type PlanetScale struct {
	url     *address
	pool    *pgxpool.Pool
	journal *Journal
	buffer  int

	slotPatience time.Duration

	ops     operatorCache
	checks  checks.Reader
	decoder *decoder
	way     *giveWay
	mu      sync.Mutex
	silent  *bool
}

var _ Target = (*PlanetScale)(nil)

// OpenPlanetScale prepares a target from its URL. It does not connect yet. A URL without sslmode gets
// sslmode=require.
func OpenPlanetScale(ctx context.Context, rawURL string, cfg PlanetScaleConfig) (*PlanetScale, error) {
	url, err := pgurl.Parse(rawURL)
	if err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	if err := cfg.Capture.check(); err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	if cfg.MaxConns <= 0 {
		cfg.MaxConns = 16
	}
	if cfg.BufferBytes <= 0 {
		cfg.BufferBytes = defaultBuffer
	}
	at := &address{url: url, renew: cfg.URL}
	pool, err := openPool(ctx, at, int32(min(cfg.MaxConns, 1000)), map[string]string{
		"lock_timeout":                        "0",
		"idle_in_transaction_session_timeout": "0",
		"check_function_bodies":               "off",
		"heroku_migrator.pass":                "on", // through the fence that a revert leaves up
	})
	if err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	p := &PlanetScale{url: at, pool: pool, journal: NewJournal(pool), buffer: cfg.BufferBytes,
		slotPatience: cmp.Or(max(cfg.SlotTimeout, 0), slotPatience), way: newGiveWay(pool)}
	p.decoder = &decoder{method: cfg.Capture, side: "target", at: at, pool: pool, change: p.journal.tx,
		leads: func() bool { return p.journal.epoch.Load() != 0 }}
	return p, nil
}

// Close closes the connections.
func (p *PlanetScale) Close() {
	p.decoder.close()
	p.pool.Close()
}

// Journal implements [Target].
func (p *PlanetScale) Journal() *Journal { return p.journal }

// directURL is the URL without the pooler, if one can be told.
func (p *PlanetScale) directURL() (string, bool) { return p.url.last().IsPlanetScalePooler() }

// Identify implements [Target].
func (p *PlanetScale) Identify(ctx context.Context) (Identity, error) {
	return identify(ctx, p.pool, p.url.last())
}

// AppliesSilently implements [Target]. The server is asked, once, not a table of what platforms allow.
func (p *PlanetScale) AppliesSilently(ctx context.Context) (silent bool, err error) {
	p.mu.Lock()
	known := p.silent
	p.mu.Unlock()
	if known != nil {
		return *known, nil
	}
	err = pgx.BeginFunc(ctx, p.pool, func(tx pgx.Tx) error {
		silent, err = p.silence(ctx, tx)
		return err
	})
	return silent, err
}

// silence makes foreign keys and triggers silent for the rest of the transaction, and tells whether that can be done.
func (p *PlanetScale) silence(ctx context.Context, tx pgx.Tx) (bool, error) {
	p.mu.Lock()
	known := p.silent
	p.mu.Unlock()
	if known != nil && !*known {
		return false, nil
	}
	err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { // a savepoint, since it may be refused
		_, err := tx.Exec(ctx, `SET LOCAL session_replication_role = replica`)
		return err
	})
	if err != nil && sqlState(err) != "42501" {
		return false, fmt.Errorf("set session_replication_role: %w", err)
	}
	can := err == nil
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silent = &can
	return can, nil
}

// Create implements [Target].
func (p *PlanetScale) Create(ctx context.Context, objects []SchemaObject) error {
	return p.journal.tx(ctx, func(tx pgx.Tx) error { return create(ctx, tx, objects) })
}

func create(ctx context.Context, tx pgx.Tx, objects []SchemaObject) error {
	if len(objects) == 0 {
		return nil
	}
	// What a dump expects: names are written in full. All of it is one script, and so one round trip.
	// It begins with a name, by which the progress of a build is told from others.
	name := strings.ReplaceAll(objects[0].String(), "*/", "* /")
	script := []string{`/* ` + strings.ReplaceAll(name, "/*", "/ *") + ` */ SELECT ` + buildSettings}
	ids := make([]string, len(objects))
	var functions []string
	for i, o := range objects {
		ids[i] = strconv.Itoa(o.ID)
		script = append(script, o.underPath(o.SQL))
		functions = append(functions, o.Functions...)
	}
	if err := preparePath(ctx, tx, functions); err != nil {
		return err
	}
	script = append(script, leavePath, `UPDATE heroku_migrator.objects SET state = 'done', error = '' WHERE id IN
		(`+strings.Join(ids, ", ")+`)`)
	_, err := tx.Exec(ctx, strings.Join(script, "\n;\n"))
	if err != nil && len(objects) == 1 {
		err = fmt.Errorf("%s: %w", objects[0], err)
	}
	return err
}

// buildSettings give index builds what a server of this size can spare: a quarter of shared_buffers, which is a
// sixteenth of the memory where that is set as usual, and a quarter of its parallel workers.
const buildSettings = `
	set_config('maintenance_work_mem', greatest(pg_size_bytes(current_setting('maintenance_work_mem')) / 1024,
		least(2097152, pg_size_bytes(current_setting('shared_buffers')) / 4 / 1024)) || 'kB', true),
	set_config('max_parallel_maintenance_workers', greatest(current_setting('max_parallel_maintenance_workers')::int,
		current_setting('max_parallel_workers')::int / 4)::text, true)`

// CopyChunk implements [Target]. The claim is a row lock of the very transaction that carries the rows:
// whoever dies gives its chunk back, and nobody else can copy it meanwhile. Statements travel together where
// they can: a chunk costs three round trips here, which is what counts when the servers are far away.
func (p *PlanetScale) CopyChunk(ctx context.Context, read ReadChunk) (chunk *Chunk, err error) {
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = ctx.Err() // whatever it looked like on the wire
		}
		if err != nil {
			err = fmt.Errorf("copy: %w", err)
		}
	}()
	silent, err := p.AppliesSilently(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := p.pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Release() // closes it if the transaction was not ended
	chunk, table, err := claimChunk(ctx, conn.Conn(), silent)
	if err != nil {
		return nil, err
	}
	var read1, written int64
	counted := &countingWriter{}
	if chunk != nil {
		written, err = stream(ctx, p.buffer,
			func(ctx context.Context, w io.Writer) (err error) {
				counted.w = w
				read1, err = read(ctx, table, chunk, counted)
				return err
			},
			func(ctx context.Context, r io.Reader) (int64, error) { return copyInto(ctx, conn.Conn(), table, r) })
		if err == nil && written != read1 {
			err = fmt.Errorf("%s: %d rows were read, but %d written", chunk.Leaf, read1, written)
		}
	}
	if err != nil {
		// the next one needs the chunk's row at once
		return chunk, errors.Join(refusedRows(table, chunk, err), rollback(ctx, conn))
	}
	var last pgx.Batch
	last.Queue(leavePath)
	if chunk != nil {
		last.Queue(`
			UPDATE heroku_migrator.chunks SET done = true, rows = $3, stream_bytes = $4, began_at = now(), done_at =
			clock_timestamp(), copied_by = $5
			WHERE table_id = $1 AND no = $2`, chunk.Table, chunk.No, written, counted.n, thisProcess())
		if table.Keyless() {
			last.Queue(`UPDATE heroku_migrator.tables SET copied_at = $2 WHERE id = $1`, chunk.Table, chunk.At.String())
		}
	}
	return chunk, p.journal.commit(ctx, conn, &last)
}

// claimChunk begins a transaction that has a chunk to itself. It returns nil if there is none that nobody has.
func claimChunk(ctx context.Context, conn *pgx.Conn, silent bool) (*Chunk, *Table, error) {
	var batch pgx.Batch
	batch.Queue("BEGIN")
	// Chunks need not be durable at once: one that a crash of the server takes back is copied again.
	batch.Queue("SET LOCAL synchronous_commit = off")
	if silent {
		batch.Queue("SET LOCAL session_replication_role = replica")
	}
	var spec, tableSpec []byte
	batch.Queue(`
		SELECT c.spec, t.spec FROM heroku_migrator.chunks c JOIN heroku_migrator.tables t ON t.id = c.table_id
		WHERE NOT c.done AND t.state <> 'set_aside' ORDER BY c.priority, c.no LIMIT 1 FOR UPDATE OF c SKIP LOCKED`).
		Query(func(rows pgx.Rows) error {
			_, err := pgx.ForEachRow(rows, []any{&spec, &tableSpec}, func() error { return nil })
			return err
		})
	if err := conn.SendBatch(ctx, &batch).Close(); err != nil || spec == nil {
		return nil, nil, err
	}
	chunk, table := new(Chunk), new(Table)
	return chunk, table, errors.Join(json.Unmarshal(spec, chunk), json.Unmarshal(tableSpec, table))
}

// copyInto streams rows into a table, whose partitions sort themselves out. The transaction is left in the application's path.
func copyInto(ctx context.Context, conn *pgx.Conn, t *Table, r io.Reader) (int64, error) {
	n, err := copyFrom(ctx, conn, enterPath+fmt.Sprintf(`; COPY %s %s FROM STDIN (FORMAT %s)`, t.Ident(),
		t.copiedList(), t.Format()), r)
	if err != nil {
		return n, fmt.Errorf("write %s: %w", t, err)
	}
	return n, nil
}

// stream connects a writer of rows with a reader of rows. Of two errors it returns the one that came first,
// which is the cause of the other.
func stream(ctx context.Context, size int, write func(context.Context, io.Writer) error, read func(context.Context,
	io.Reader) (int64, error)) (int64, error) {
	pipe := newBlockPipe(size)
	ended := make(chan error, 1)
	var first error
	var once sync.Once
	fail := func(err error) error {
		if err != nil {
			once.Do(func() { first = err })
		}
		return err
	}
	go func() {
		err := errWriterGone
		defer func() { // whatever ends the writer, a panic too, ends the reader
			pipe.end(fail(err))
			ended <- err
		}()
		if err = write(ctx, pipe); err != nil {
			err = readError{err}
		}
	}()
	n, err := read(ctx, pipe)
	pipe.leave(fail(err))
	if e := <-ended; e != nil || err != nil {
		return n, first
	}
	return n, nil
}

// defaultBuffer is how much is read ahead where nobody says.
const defaultBuffer = 1 << 20

var errWriterGone = errors.New("the writer of rows ended without a word")

// countingWriter counts bytes.
type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

// Plan implements [Target]: two round trips, however many tables there are.
func (p *PlanetScale) Plan(ctx context.Context, plans []TablePlan) error {
	byID := make(map[int64]TablePlan, len(plans))
	ids := make([]int64, len(plans))
	for i, plan := range plans {
		ids[i], byID[int64(plan.Table.ID)] = int64(plan.Table.ID), plan
	}
	err := p.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		specs := map[int64][]byte{}
		var first, last pgx.Batch
		first.Queue("BEGIN")
		first.Queue(`SELECT id, spec FROM heroku_migrator.tables WHERE plan = 0 AND id = ANY ($1::int8[]) ORDER BY id
			FOR UPDATE`, ids).
			Query(func(rows pgx.Rows) error {
				var id int64
				var spec []byte
				_, err := pgx.ForEachRow(rows, []any{&id, &spec}, func() error {
					specs[id] = slices.Clone(spec)
					return nil
				})
				return err
			})
		err := conn.SendBatch(ctx, &first).Close()
		for id, spec := range specs {
			if err == nil {
				err = queuePlan(&last, byID[id], 1, spec)
			}
		}
		if err != nil {
			return errors.Join(err, rollback(ctx, conn))
		}
		return p.journal.commit(ctx, conn, &last)
	})
	if err != nil {
		return fmt.Errorf("plan the copy: %w", err)
	}
	return nil
}

// queuePlan adds the statements that record a plan. spec is the table's entry in the journal.
func queuePlan(batch *pgx.Batch, plan TablePlan, number int, spec []byte) error {
	t := plan.Table
	files := map[uint32]uint32{}
	for _, l := range t.Leaves {
		files[l.ID] = l.Filenode
	}
	var known Table
	if err := json.Unmarshal(spec, &known); err != nil {
		return err
	}
	// The known columns and another file would hide that a column that is new, or of another type, came with a rewrite.
	if !slices.EqualFunc(known.Columns, t.Columns, func(a, b Column) bool {
		return a.Num == b.Num &&
			a.Name == b.Name && a.Type == b.Type
	}) {
		return fmt.Errorf("%s: %w", t, ErrSchemaChanged)
	}
	spec, err := withFilenodes(spec, files)
	if err != nil {
		return err
	}
	specs, sizes := make([]string, len(plan.Chunks)), make([]int64, len(plan.Chunks))
	for i, c := range plan.Chunks {
		c.Plan = number
		spec, err := json.Marshal(c)
		if err != nil {
			return err
		}
		specs[i], sizes[i] = string(spec), c.Bytes
	}
	// Largest tables first, so that no worker ends alone.
	batch.Queue(`
		INSERT INTO heroku_migrator.chunks (table_id, no, priority, spec, bytes)
		SELECT $1, (c.spec ->> 'no')::int, $2, c.spec, c.bytes FROM unnest($3::jsonb[], $4::int8[]) AS c(spec, bytes)`,
		int64(t.ID), -t.Bytes(), specs, sizes)
	batch.Queue(`UPDATE heroku_migrator.tables SET plan = $3, state = 'copying', spec = $2 WHERE id = $1`, t.ID,
		string(spec), number)
	return nil
}

// Restart implements [Target].
func (p *PlanetScale) Restart(ctx context.Context, t *Table, after int, chunks []Chunk) (restarted bool, err error) {
	err = p.journal.tx(ctx, func(tx pgx.Tx) error {
		restarted = false
		var plan int
		var spec []byte
		err := tx.QueryRow(ctx, `SELECT plan, spec FROM heroku_migrator.tables WHERE id = $1 FOR UPDATE`,
			t.ID).Scan(&plan, &spec)
		if err != nil || plan != after {
			return err
		}
		// The locks on the chunks' rows come first: whoever is copying one of them ends before. If all are done then,
		// whoever asked for this was late: the table may be live by now.
		var chunksNow, undone int
		err = tx.QueryRow(ctx, `
			SELECT count(*), count(*) FILTER (WHERE NOT done)
			FROM (SELECT done FROM heroku_migrator.chunks WHERE table_id = $1 FOR UPDATE) AS
			c`, t.ID).Scan(&chunksNow, &undone)
		if err != nil || (chunksNow > 0 && undone == 0) {
			return err
		}
		var batch pgx.Batch
		batch.Queue(`DELETE FROM heroku_migrator.chunks WHERE table_id = $1`, t.ID)
		if plan > 0 {
			batch.Queue(`TRUNCATE ` + t.Only())
		}
		if err := queuePlan(&batch, TablePlan{t, chunks}, plan+1, spec); err != nil {
			return err
		}
		restarted = true
		return tx.SendBatch(ctx, &batch).Close()
	})
	if err != nil {
		return false, fmt.Errorf("plan the copy of %s: %w", t, err)
	}
	return restarted, nil
}

// Analyze implements [Target].
func (p *PlanetScale) Analyze(ctx context.Context, t *Table) error {
	err := pgx.BeginFunc(ctx, p.pool, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT DISTINCT f FROM heroku_migrator.objects CROSS JOIN LATERAL unnest(functions) AS f WHERE table_id = $1`, int64(t.ID))
		if err != nil {
			return err
		}
		functions, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err == nil {
			err = preparePath(ctx, tx, functions)
		}
		if err == nil {
			_, err = tx.Exec(ctx, SchemaObject{Functions: functions}.underPath(`ANALYZE `+t.Ident()))
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("analyze %s: %w", t, err)
	}
	return nil
}

// Digest implements [Target].
func (p *PlanetScale) Digest(ctx context.Context, t *Table) (d Digest, err error) {
	err = pgx.BeginTxFunc(ctx, p.pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		return withinPath(ctx, tx, func() (err error) {
			d, err = digest(ctx, tx, t)
			return err
		})
	})
	return d, err
}
