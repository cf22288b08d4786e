package migrator

import (
	"context"
	"math"
	"time"
)

// Trend tells where the lag goes.
type Trend string

// The trends.
const (
	TrendSteady    Trend = "steady"
	TrendGrowing   Trend = "growing"   // more is written than can be applied
	TrendShrinking Trend = "shrinking" // a backlog is being worked off
)

// lagMeter watches rounds. A round's lag is the time from its snapshot to its commit: that old is the oldest change which the other side does
// not have just before the commit.
type lagMeter struct {
	last       time.Time // when the last round began
	in, out    float64   // rows per second, smoothed
	fast, slow float64   // lag of rounds in seconds, over about five seconds and half a minute
}

// smooth moves an average towards a value, by how much time has passed.
func smooth(average *float64, value, passed, over float64) {
	*average += (value - *average) * (1 - math.Exp(-passed/over))
}

// saw takes a round into account: when it began, how many rows it found, and how long it took.
func (l *lagMeter) saw(began time.Time, rows int64, took time.Duration) {
	if !l.last.IsZero() {
		passed := max(began.Sub(l.last).Seconds(), 1e-3)
		smooth(&l.in, float64(rows)/passed, passed, 5)
		smooth(&l.fast, took.Seconds(), passed, 5)
		smooth(&l.slow, took.Seconds(), passed, 30)
	}
	if rows > 0 {
		rate := float64(rows) / max(took.Seconds(), 1e-3)
		if l.out == 0 {
			l.out = rate
		}
		smooth(&l.out, rate, took.Seconds(), 2)
	}
	l.last = began
}

func (l *lagMeter) trend() Trend {
	const matters, change = 1.0, 1.2 // a second; a fifth
	switch {
	case l.fast > matters && l.fast > l.slow*change:
		return TrendGrowing
	case l.slow > matters && l.fast*change < l.slow:
		return TrendShrinking
	}
	return TrendSteady
}

// Lag is how far the target is behind, as the process that replicates saw it last.
type Lag struct {
	// Waiting are entries of the change log that were found and are not applied yet.
	Waiting int64
	// In and Out are rows per second: changed on the source, and applied while rounds were applied.
	In, Out float64
	Trend   Trend
	// Idle tells that the last look found nothing that waits.
	Idle bool
}

// catchUp is how long it takes until nothing waits, in seconds; nil if that cannot be said, or never.
func (l Lag) catchUp() *float64 {
	var seconds float64
	switch {
	case l.Waiting == 0:
	case l.Out <= l.In || l.Out == 0:
		return nil
	default:
		seconds = float64(l.Waiting) / (l.Out - l.In)
	}
	return &seconds
}

func (l *lagMeter) lag(waiting int64, idle bool) Lag {
	return Lag{Waiting: waiting, In: l.in, Out: l.out, Trend: l.trend(), Idle: idle}
}

// Synced notes how far the target is behind: it holds everything that was committed on the source age ago. A negative age leaves that as it is.
func (j *Journal) Synced(ctx context.Context, age time.Duration, lag Lag) error {
	return j.exec(ctx, "note the lag", `
		UPDATE heroku_migrator.progress SET rows_waiting = $2, rate_in = $3, rate_out = $4, trend = $5, idle = $6, seen_at = clock_timestamp(),
		synced_at = CASE WHEN $1::float8 < 0 THEN synced_at ELSE greatest(synced_at, clock_timestamp() - make_interval(secs => $1::float8)) END`,
		age.Seconds(), lag.Waiting, lag.In, lag.Out, string(lag.Trend), lag.Idle)
}

// LogStatus is the size of the change log on the source, after the switch on the target, with what a replication slot retains, as the process
// that leads saw it last.
type LogStatus struct {
	Bytes int64 `json:"bytes"`
	// AgeSeconds is how old its oldest entry can be.
	AgeSeconds float64 `json:"age_seconds"`
	// Warning is set long before the size hurts.
	Warning string `json:"warning,omitempty"`
}

// setLog notes the log's size and what it is trimmed up to next, acknowledged how long ago; a negative age leaves that as it is.
func (j *Journal) setLog(ctx context.Context, bytes int64, next Position, age time.Duration) error {
	return j.exec(ctx, "note the log's size", `
		UPDATE heroku_migrator.progress SET log_bytes = $1,
			log_from = CASE WHEN $2::float8 < 0 THEN log_from ELSE clock_timestamp() - make_interval(secs => $2::float8) END,
			log_next = CASE WHEN $2::float8 < 0 THEN log_next ELSE $3 END`, bytes, age.Seconds(), next.String())
}

// logEvery is how often the log is measured.
const logEvery = 10 * time.Second

// watchLog measures the log while nothing is trimmed, until the channel is closed.
func watchLog(ctx context.Context, src ChangeLog, journal *Journal, done <-chan struct{}) error {
	for {
		bytes, err := src.LogSize(ctx)
		if err != nil {
			return err
		}
		if err := journal.setLog(ctx, bytes, Position{}, -1); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-done:
			return nil
		case <-time.After(logEvery):
		}
	}
}
