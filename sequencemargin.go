package migrator

import (
	"context"
	"math"
	"time"
)

// Nothing keeps a client from drawing numbers on the side that was left: nextval is no write to a table, so no trigger
// sees it. Numbers drawn there would be drawn again on the other side. So the other side begins further ahead, by more
// numbers than are drawn within marginTime.

const (
	// marginTime is how long a client may go on drawing numbers on the side that was left, at the rate that was seen
	// before the switch.
	marginTime = 10 * time.Minute
	// leastMargin is the margin, in steps, of a sequence from which nothing was drawn while it was watched.
	leastMargin = 1000
	// cachedBlocks is for how many sessions' blocks a sequence with a CACHE has room, whatever the rate: each takes as
	// many numbers as the cache has.
	cachedBlocks = 100
	// roomShare is the part of the numbers left that a margin may take at most: a smallint sequence near its end stays
	// usable.
	roomShare = 10
)

// sequenceWatch is the state of a side's sequences at a moment, from which the rate is told later.
type sequenceWatch struct {
	at   time.Time
	seen map[uint32]Sequence
}

// watchSequences looks at the sequences before the switch or revert. Where that fails, the margins have no rate, and
// the switch reads them again anyhow.
func watchSequences(ctx context.Context, side ChangeLog) sequenceWatch {
	w := sequenceWatch{at: time.Now(), seen: map[uint32]Sequence{}}
	snap, err := side.Snapshot(ctx)
	if err != nil {
		return w
	}
	defer closeSnapshot(ctx, snap)
	list, err := snap.Sequences(ctx)
	if err != nil {
		return w
	}
	for _, s := range list {
		w.seen[s.ID] = s
	}
	return w
}

// margins fills in how far beyond its value each sequence is set on the other side, in steps, and returns the largest.
// configured is [CutoverConfig].SequenceMargin.
func (w sequenceWatch) margins(list []Sequence, configured int64) (largest int64) {
	elapsed := max(time.Since(w.at), time.Second).Seconds()
	for i := range list {
		s := &list[i]
		switch {
		case configured < 0:
			s.Margin = 0
		case configured > 0:
			s.Margin = min(configured, s.room()/2)
		case !s.IsCalled: // nobody has ever drawn from it
			s.Margin = 0
		default:
			rate := 0.0
			if before, ok := w.seen[s.ID]; ok {
				rate = s.stepsSince(before) / elapsed
			}
			wanted := max(leastMargin, rate*marginTime.Seconds(), float64(s.Cache)*cachedBlocks)
			s.Margin = min(int64(min(wanted, math.MaxInt64/2)), s.room()/roomShare)
		}
		largest = max(largest, s.Margin)
	}
	return largest
}

// stepsSince is how many numbers were drawn since. One that was set back or has begun again tells nothing.
func (s Sequence) stepsSince(before Sequence) float64 {
	if s.Increment == 0 {
		return 0
	}
	steps := (float64(s.LastValue) - float64(before.LastValue)) / float64(s.Increment)
	if s.IsCalled && !before.IsCalled {
		steps++
	}
	return max(steps, 0)
}

// room is how many numbers are left before the sequence ends, or begins again.
func (s Sequence) room() int64 {
	var room uint64 // differences of int64 fit in
	switch {
	case s.Increment > 0 && s.Max > s.LastValue:
		room = (uint64(s.Max) - uint64(s.LastValue)) / uint64(s.Increment)
	case s.Increment < 0 && s.LastValue > s.Min:
		room = (uint64(s.LastValue) - uint64(s.Min)) / -uint64(s.Increment)
	}
	return int64(min(room, math.MaxInt64))
}
