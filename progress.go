package migrator

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// WorkerStatus is a chunk on its way, as the target sees it: of any process that shares the copy.
type WorkerStatus struct {
	Process string  `json:"process"` // host and process
	Table   string  `json:"table"`
	Rows    int64   `json:"rows"`    // so far
	Bytes   int64   `json:"bytes"`   // as sent, so far
	Seconds float64 `json:"seconds"` // since the chunk was claimed
}

// BuildStatus is an index, or a constraint, that is being built on the target.
type BuildStatus struct {
	Object  string  `json:"object"` // the first, if small ones are built together
	Table   string  `json:"table"`
	Phase   string  `json:"phase"`   // as pg_stat_progress_create_index has it
	Percent float64 `json:"percent"` // of that phase
	Seconds float64 `json:"seconds"`
}

// ThrottleStatus says that the copy gives way to the application.
type ThrottleStatus struct {
	Percent float64 `json:"percent"` // of full speed
	Reason  string  `json:"reason"`
}

// ObjectCounts counts the objects of a stage of the schema.
type ObjectCounts struct {
	Done   int `json:"done"`
	Failed int `json:"failed"`
	Total  int `json:"total"`
}

// FailedObject is an object of the schema that could not be created, and what the target said.
type FailedObject struct {
	Object string `json:"object"`
	Error  string `json:"error"`
}

// rateWindow is how far back the speed "now" looks, in seconds: some chunks' worth.
const rateWindow = 20.0

// copyRate is how fast something is copied, in bytes on disk.
type copyRate struct {
	inFlight int64   // about how many bytes are on their way
	rows     int64   // on their way
	now      float64 // per second, lately
	active   float64 // seconds in which anything of it was copied
}

// copyProgress is what the journal and the target's own views say of the copy.
type copyProgress struct {
	all      copyRate
	tables   map[uint32]*copyRate
	workers  []WorkerStatus
	builds   []BuildStatus
	throttle *ThrottleStatus
}

// finishedChunk is a chunk that was committed lately.
type finishedChunk struct {
	table       uint32
	bytes       float64
	began, done float64 // seconds ago
}

// copyProgress looks at the copy, in one round trip.
func (j *Journal) copyProgress(ctx context.Context, tables []TableStatus) (*copyProgress, error) {
	p := &copyProgress{tables: map[uint32]*copyRate{}}
	byName := map[string]TableStatus{}
	for _, t := range tables {
		p.tables[t.Table.ID] = &copyRate{}
		byName[t.Table.String()] = t
	}
	var recent []finishedChunk
	var batch pgx.Batch
	// Time in which nothing was copied, such as a pause, does not count.
	batch.Queue(`
		SELECT coalesce(table_id, 0), extract(epoch FROM sum(greatest(done_at - greatest(began_at, before), '0')))::float8
		FROM (SELECT table_id, began_at, done_at, max(done_at) OVER (PARTITION BY table_id ORDER BY began_at ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
		      FROM heroku_migrator.chunks WHERE done
		      UNION ALL
		      SELECT NULL, began_at, done_at, max(done_at) OVER (ORDER BY began_at ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
		      FROM heroku_migrator.chunks WHERE done) AS c
		GROUP BY 1`).Query(func(rows pgx.Rows) error {
		var id int64
		var seconds float64
		_, err := pgx.ForEachRow(rows, []any{&id, &seconds}, func() error {
			if r, ok := p.tables[uint32(id)]; ok {
				r.active = seconds
			} else {
				p.all.active = seconds
			}
			return nil
		})
		return err
	})
	batch.Queue(`
		SELECT table_id, bytes, extract(epoch FROM clock_timestamp() - began_at)::float8, extract(epoch FROM clock_timestamp() - done_at)::float8
		FROM heroku_migrator.chunks WHERE done AND done_at > clock_timestamp() - make_interval(secs => $1)`, rateWindow).Query(func(rows pgx.Rows) error {
		var c finishedChunk
		var id int64
		_, err := pgx.ForEachRow(rows, []any{&id, &c.bytes, &c.began, &c.done}, func() error {
			c.table = uint32(id)
			recent = append(recent, c)
			return nil
		})
		return err
	})
	batch.Queue(`
		SELECT substr(a.application_name, 17), coalesce(n.nspname || '.' || c.relname, ''), p.tuples_processed, p.bytes_processed,
		       extract(epoch FROM clock_timestamp() - a.xact_start)::float8
		FROM pg_stat_progress_copy p JOIN pg_stat_activity a ON a.pid = p.pid
		JOIN pg_class c ON c.oid = p.relid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE p.datname = current_database() AND p.command = 'COPY FROM' AND a.application_name LIKE 'heroku\_migrator %' AND a.xact_start IS NOT NULL
		ORDER BY a.application_name, p.pid`).Query(func(rows pgx.Rows) error {
		var w WorkerStatus
		_, err := pgx.ForEachRow(rows, []any{&w.Process, &w.Table, &w.Rows, &w.Bytes, &w.Seconds}, func() error {
			p.workers = append(p.workers, w)
			return nil
		})
		return err
	})
	batch.Queue(`
		SELECT a.query, coalesce(n.nspname || '.' || c.relname, ''), p.phase,
		       coalesce(CASE WHEN p.tuples_total > 0 THEN 100.0 * p.tuples_done / p.tuples_total
		                     WHEN p.blocks_total > 0 THEN 100.0 * p.blocks_done / p.blocks_total END, 0)::float8,
		       extract(epoch FROM clock_timestamp() - a.query_start)::float8
		FROM pg_stat_progress_create_index p JOIN pg_stat_activity a ON a.pid = p.pid
		LEFT JOIN pg_class c ON c.oid = p.relid LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE p.datname = current_database() AND a.application_name LIKE 'heroku\_migrator %' AND a.query_start IS NOT NULL
		ORDER BY a.query_start`).Query(func(rows pgx.Rows) error {
		var b BuildStatus
		_, err := pgx.ForEachRow(rows, []any{&b.Object, &b.Table, &b.Phase, &b.Percent, &b.Seconds}, func() error {
			b.Object = buildName(b.Object)
			p.builds = append(p.builds, b)
			return nil
		})
		return err
	})
	batch.Queue(`SELECT copy_share, throttled FROM heroku_migrator.progress WHERE throttled <> ''`).Query(func(rows pgx.Rows) error {
		var share float64
		var reason string
		_, err := pgx.ForEachRow(rows, []any{&share, &reason}, func() error {
			p.throttle = &ThrottleStatus{Percent: share * 100, Reason: reason}
			return nil
		})
		return err
	})
	if err := j.pool.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, fmt.Errorf("journal: read the copy's progress: %w", err)
	}
	p.addRates(recent, byName)
	return p, nil
}

// addRates works out the speeds from the chunks of the last seconds and those on their way.
func (p *copyProgress) addRates(recent []finishedChunk, byName map[string]TableStatus) {
	var copied, sent float64
	for _, t := range byName {
		copied, sent = copied+float64(t.BytesCopied), sent+float64(t.StreamBytes)
	}
	window := 1.0
	for _, w := range p.workers {
		window = max(window, min(w.Seconds, rateWindow))
	}
	for _, c := range recent {
		window = max(window, min(c.began, rateWindow))
	}
	add := func(table uint32, bytes, began, done float64) { // the part of it that falls into the window
		part := bytes
		if began > window {
			part *= (window - done) / (began - done)
		}
		p.all.now += part / window
		p.tables[table].now += part / window
	}
	for _, c := range recent {
		if _, ok := p.tables[c.table]; ok && c.done < window {
			add(c.table, c.bytes, c.began, c.done)
		}
	}
	for _, w := range p.workers {
		t, ok := byName[w.Table]
		if !ok {
			continue
		}
		disk := float64(w.Bytes) // rows are not as long on the wire as on disk
		switch {
		case t.StreamBytes > 0:
			disk *= float64(t.BytesCopied) / float64(t.StreamBytes)
		case sent > 0:
			disk *= copied / sent
		}
		r := p.tables[t.Table.ID]
		disk = min(disk, float64(t.BytesTotal-t.BytesCopied-r.inFlight))
		r.inFlight += int64(disk)
		r.rows += w.Rows
		p.all.inFlight += int64(disk)
		p.all.rows += w.Rows
		add(t.Table.ID, disk, w.Seconds, 0)
	}
}

// average is the speed over all the time in which something was copied; 0 if that is not known yet.
func (r *copyRate) average(copied int64) float64 {
	if r.active <= 0 {
		return 0
	}
	return float64(copied) / r.active
}

// left is how many seconds the rest takes at today's speed; nil if there is none to tell.
func (r *copyRate) left(copied, total int64) *float64 {
	speed := r.now
	if speed <= 0 || copied >= total {
		return nil
	}
	seconds := float64(total-copied-r.inFlight) / speed
	return &seconds
}

// buildName is what create wrote before its statements.
func buildName(script string) string {
	_, name, _ := strings.Cut(script, "/* ")
	name, _, _ = strings.Cut(name, " */")
	return name
}
