package migrator

import (
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParsePosition(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"7331/1/10:10:", "7331/4294967295/10:20:10,11,19", "1/1/4294967300:4294967399:4294967300"} {
		p, err := ParsePosition(text)
		require.NoError(t, err, text)
		assert.Equal(t, text, p.String())
		assert.False(t, p.IsZero())
	}
	zero, err := ParsePosition("")
	require.NoError(t, err)
	assert.True(t, zero.IsZero())
	assert.Empty(t, zero.String())
	for _, text := range []string{
		" ", "/", "//", "1/1", "1/1/", "1/1/1", "1/1/1:2", "1/1/1:2:3:4", "1/1/a:2:", "1/1/1:b:", "1/1/1:2:x", "1/1/1:2:1,", "1/1/1:2:,1",
		"1/1/-1:2:", "1/1/1:+2:", "1/x/1:2:", "1//1:2:", "1/1/1:2:/", "1/1/1:2:'", "1/1/ 1:2:", "1/1/1:99999999999999999999999:",
		"1/1/1:2:');DROP TABLE t;--", "1:2:3",
	} {
		_, err := ParsePosition(text)
		assert.Error(t, err, text)
	}
}

func TestPositionCovers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		p, q string
		want bool
	}{
		{"10:10:", "10:10:", true},
		{"10:12:", "10:10:", true},
		{"10:10:", "10:12:", false},
		{"10:20:10", "10:20:", false},              // 10 ended between p and q
		{"10:20:", "10:20:10", true},               // 10 ended since q
		{"10:20:10", "10:20:10", true},             // 10 is open at both
		{"10:30:10", "10:20:10,15", true},          // 15 ended since
		{"10:30:15", "10:20:10", false},            // 15 had ended at q
		{"10:30:25", "10:20:", true},               // 25 began after q
		{"10:30:20", "10:20:", true},               // as did 20: xmax is the first that had not begun
		{"10:30:19", "10:20:", false},              // 19 had ended
		{"10:30:10,15,19", "10:20:15,19,10", true}, // the order does not matter
	} {
		p, q := Position{"1", 1, c.p}, Position{"1", 1, c.q}
		got, err := p.Covers(q)
		require.NoError(t, err)
		assert.Equal(t, c.want, got, "%s covers %s", c.p, c.q)
		for _, other := range []Position{{"2", 1, c.q}, {"1", 2, c.q}} { // another server, another timeline
			got, err := p.Covers(other)
			require.NoError(t, err)
			assert.False(t, got)
		}
	}
	p := Position{"1", 1, "10:10:"}
	for _, c := range []struct {
		p, q Position
		want bool
	}{{Position{}, Position{}, true}, {p, Position{}, true}, {Position{}, p, false}} {
		got, err := c.p.Covers(c.q)
		require.NoError(t, err)
		assert.Equal(t, c.want, got)
	}
	for _, bad := range []Position{{"1", 1, "10"}, {"1", 1, "x:1:"}, {"1", 1, "1:1:x"}} {
		_, err := p.Covers(bad)
		assert.Error(t, err)
		_, err = bad.Covers(p)
		assert.Error(t, err)
	}
}

// Covers never claims what does not hold: every transaction that is visible at q is visible at p. On one
// server, where snapshots only ever see more, a later one always covers an earlier one.
func TestPositionCoversIsExactOnRandomHistories(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	position := func(xmin, xmax uint64, xip []uint64) Position {
		fields := make([]string, len(xip))
		for i, x := range xip {
			fields[i] = strconv.FormatUint(x, 10)
		}
		return Position{"1", 1, strconv.FormatUint(xmin, 10) + ":" + strconv.FormatUint(xmax, 10) + ":" + strings.Join(fields, ",")}
	}
	for range 300 {
		var history []Position
		var visible []map[uint64]bool
		var open []uint64
		done := map[uint64]bool{}
		next := uint64(3)
		for range 12 {
			for range random.IntN(4) {
				open = append(open, next)
				next++
			}
			for range random.IntN(len(open) + 1) {
				i := random.IntN(len(open))
				done[open[i]] = true
				open = slices.Delete(open, i, i+1)
			}
			xmin := next
			if len(open) > 0 {
				xmin = slices.Min(open)
			}
			// Postgres ends a snapshot after the last transaction that ended, not after the last that began.
			xmax := uint64(3)
			for x := range done {
				xmax = max(xmax, x+1)
			}
			xip := slices.DeleteFunc(slices.Clone(open), func(x uint64) bool { return x >= xmax })
			history = append(history, position(min(xmin, xmax), xmax, xip))
			seen := map[uint64]bool{}
			for x := range done {
				seen[x] = true
			}
			visible = append(visible, seen)
		}
		for i := range history {
			for j := range history {
				want := true
				for x := range visible[j] {
					want = want && visible[i][x]
				}
				got, err := history[i].Covers(history[j])
				require.NoError(t, err)
				require.Equal(t, want, got, "%v covers %v", history[i], history[j])
			}
		}
	}
}
