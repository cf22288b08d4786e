package migrator

import (
	"context"
	"fmt"
	"io"
	"math"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// ThrottleConfig tells when the copy gives way to the application. The zero value is good.
type ThrottleConfig struct {
	// Off copies at full speed, whatever that does to the source.
	Off bool
	// ActiveSessions is how many sessions of others may be at work on the source at once. Default: 8 more than
	// twice what was seen before the first chunk.
	ActiveSessions int
	// Latency is how much longer than at its best a small query may take. Default: 100 ms.
	Latency time.Duration
	// ReplicaLag is how far the source's followers may be behind, where the role may see that. Default: 10 s
	// more than twice what was seen before the first chunk.
	ReplicaLag time.Duration
}

func (c ThrottleConfig) withDefaults(before Load) ThrottleConfig {
	if c.ActiveSessions <= 0 {
		c.ActiveSessions = 2*before.ActiveSessions + 8
	}
	if c.Latency <= 0 {
		c.Latency = 100 * time.Millisecond
	}
	if c.ReplicaLag <= 0 {
		c.ReplicaLag = 10*time.Second + 2*before.ReplicaLag // one may be behind on purpose
	}
	return c
}

// complaint says what of the load is too much, if anything is.
func (c ThrottleConfig) complaint(load Load, best time.Duration) string {
	switch {
	case load.ActiveSessions > c.ActiveSessions:
		return fmt.Sprintf("%d sessions are at work on the source (limit %d)", load.ActiveSessions, c.ActiveSessions)
	case load.ReplicaLag > c.ReplicaLag:
		return fmt.Sprintf("a follower of the source is %.0f s behind (limit %.0f s)", load.ReplicaLag.Seconds(), c.ReplicaLag.Seconds())
	case load.Latency > best+c.Latency:
		return fmt.Sprintf("a small query on the source takes %d ms (at best %d ms, limit %d ms more)",
			load.Latency.Milliseconds(), best.Milliseconds(), c.Latency.Milliseconds())
	}
	return ""
}

const (
	throttleInterval = time.Second
	// leastShare is what is left of the speed at worst: a copy that stops altogether while the source is busy
	// keeps its change logs growing, and may never end.
	leastShare = 0.05
)

// throttle looks at the source every second. As long as it has reason to complain it halves the speed; then it
// goes back up, more slowly. It returns when the context is done.
func throttle(ctx context.Context, src Source, p *pace, cfg ThrottleConfig, note func(context.Context, float64, string)) {
	if cfg.Off {
		note(ctx, 1, "")
		return
	}
	best := time.Duration(math.MaxInt64)
	share, noted := 1.0, "an earlier process" // whose note may still be there
	for known := false; ; {
		load, err := look(ctx, src)
		if err == nil {
			if !known {
				cfg, known = cfg.withDefaults(load), true
			}
			best = min(best, load.Latency)
			reason := cfg.complaint(load, best)
			if reason != "" {
				share = max(share/2, leastShare)
			} else {
				share = min(share*1.25, 1)
			}
			p.share.Store(math.Float64bits(share))
			switch {
			case reason != "":
				note(ctx, share, reason)
				noted = reason
			case noted != "" && share == 1:
				note(ctx, 1, "")
				noted = ""
			case noted != "":
				note(ctx, share, noted+"; speeding up again")
			}
		}
		if sleep(ctx, throttleInterval) != nil {
			return
		}
	}
}

// look asks for the load, but not for long: a source that does not answer must not leave the speed as it is.
func look(ctx context.Context, src Source) (Load, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return src.Load(ctx)
}

// pace slows down what workers of this process copy: to a limit in bytes per second for all of them, and to a share
// of the time for each.
type pace struct {
	streams chan struct{} // one for each chunk whose rows flow now
	limit   *rate.Limiter
	share   atomic.Uint64 // the bits of a float64: which part of the time a worker may spend on copying
}

const paceBurst = 1 << 20

func newPace(streams int, bytesPerSecond int64) *pace {
	p := &pace{streams: make(chan struct{}, streams), limit: rate.NewLimiter(rate.Inf, 0)}
	if bytesPerSecond > 0 {
		p.limit = rate.NewLimiter(rate.Limit(bytesPerSecond), paceBurst)
	}
	p.share.Store(math.Float64bits(1))
	return p
}

// writer passes rows on, at this pace. Nobody else has to know: while it waits, the source's send buffer is full,
// and its backend does nothing.
func (p *pace) writer(ctx context.Context, w io.Writer) *pacedWriter {
	return &pacedWriter{pace: p, ctx: ctx, w: w}
}

type pacedWriter struct {
	*pace
	ctx  context.Context //nolint:containedctx // an io.Writer has no other way to it
	w    io.Writer
	last time.Time
	flow bool // it is one of the streams
}

func (w *pacedWriter) Write(b []byte) (int, error) {
	if !w.flow {
		select {
		case <-w.ctx.Done():
			return 0, w.ctx.Err()
		case w.streams <- struct{}{}:
			w.flow, w.last = true, time.Now()
		}
	}
	n, err := w.w.Write(b)
	for left := n; left > 0 && err == nil; left -= paceBurst {
		if w.limit.Limit() != rate.Inf {
			err = w.limit.WaitN(w.ctx, min(left, paceBurst))
		}
	}
	if share := math.Float64frombits(w.share.Load()); share < 1 && err == nil {
		busy := min(time.Since(w.last), 100*time.Millisecond) // longer: it was the target that took its time
		err = sleep(w.ctx, time.Duration(float64(busy)*(1/share-1)))
	}
	w.last = time.Now()
	return n, err
}

// end lets another chunk's rows flow.
func (w *pacedWriter) end() {
	if w != nil && w.flow {
		<-w.streams
	}
}

// Load implements [Source].
func (h *Heroku) Load(ctx context.Context) (l Load, err error) {
	conn, err := h.pool.Acquire(ctx)
	if err != nil {
		return l, fmt.Errorf("look at the source's load: %w", err)
	}
	defer conn.Release()
	var lag float64
	// Sessions of ours are left out by name: those of other processes that share the copy, too.
	err = conn.QueryRow(ctx, `
		SELECT (SELECT count(*) FROM pg_stat_activity
		        WHERE backend_type = 'client backend' AND state = 'active' AND application_name NOT LIKE 'heroku\_migrator %'
		          AND pid <> pg_backend_pid()),
		       coalesce((SELECT extract(epoch FROM max(replay_lag)) FROM pg_stat_replication), 0)::float8`).
		Scan(&l.ActiveSessions, &lag)
	l.Latency, l.ReplicaLag = math.MaxInt64, time.Duration(lag*float64(time.Second))
	for i := 0; i < 3 && err == nil; i++ { // the best of three: one may have met a hiccup of this machine
		began := time.Now()
		_, err = conn.Conn().PgConn().Exec(ctx, `SELECT 1 FROM pg_class WHERE oid = 1259`).ReadAll() // one round trip
		l.Latency = min(l.Latency, time.Since(began))
	}
	if err != nil {
		return l, fmt.Errorf("look at the source's load: %w", err)
	}
	return l, nil
}
