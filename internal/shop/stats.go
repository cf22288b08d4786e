package shop

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Stats is what writers have done so far.
type Stats struct {
	Committed  int64 // transactions the server acknowledged
	RolledBack int64 // transactions rolled back on purpose
	Rows       int64 // rows that committed statements inserted, changed or deleted
	Refused    int64 // transactions a write fence refused: SQLSTATE 42501 or 25006
	Retried    int64 // collisions among writers: serialization, deadlock, unique, foreign key, exclusion
	Lost       int64 // connections lost or not to be had
	Unknown    int64 // commits whose answer was lost with the connection
	Other      int64 // any other error
	// OtherSample is one of the other errors, with the operation it hit.
	OtherSample string
	// LongestStatement is how long the slowest statement took, a commit
	// included, and LongestOperation the operation it was part of. Pauses that
	// a writer makes itself do not count; waiting for another writer does.
	LongestStatement time.Duration
	LongestOperation string
	// LastCommit is when the last commit was acknowledged, and LongestGap the
	// longest time between two of them, all writers together.
	LastCommit time.Time
	LongestGap time.Duration
	// Operations counts committed transactions by operation; those rolled
	// back on purpose are in it too, under "rollback".
	Operations map[string]int64
}

// String is the statistics on one line.
func (s Stats) String() string {
	text := fmt.Sprintf("%d committed, %d rolled back, %d rows, %d refused, %d retried, %d connections lost, %d unknown, %d other errors, longest statement %d ms (%s), longest gap %d ms",
		s.Committed, s.RolledBack, s.Rows, s.Refused, s.Retried, s.Lost, s.Unknown, s.Other,
		s.LongestStatement.Milliseconds(), s.LongestOperation, s.LongestGap.Milliseconds())
	if s.OtherSample != "" {
		text += ", other error: " + s.OtherSample
	}
	return text
}

// Mix lists the operations and their counts.
func (s Stats) Mix() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(s.Operations)) {
		fmt.Fprintf(&b, "%s=%d ", name, s.Operations[name])
	}
	return strings.TrimSpace(b.String())
}

// counters are the statistics of all writers together.
type counters struct {
	mu sync.Mutex
	s  Stats
}

func (c *counters) update(f func(s *Stats)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.s)
}

func (c *counters) committed(operation string, rows int64) {
	c.update(func(s *Stats) {
		now := time.Now()
		if !s.LastCommit.IsZero() {
			s.LongestGap = max(s.LongestGap, now.Sub(s.LastCommit))
		}
		s.LastCommit = now
		s.Committed++
		s.Rows += rows
		s.Operations[operation]++
	})
}

func (c *counters) statement(operation string, d time.Duration) {
	c.update(func(s *Stats) {
		if d > s.LongestStatement {
			s.LongestStatement, s.LongestOperation = d, operation
		}
	})
}

func (c *counters) snapshot() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.s
	s.Operations = maps.Clone(c.s.Operations)
	return s
}
