package migrator

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Position is an instant of the source: which transactions were visible in one snapshot, on one
// server's timeline. It is what the target has, once a round to it was committed there.
//
// Positions are snapshots and not numbers: the order in which transactions take numbers is not the
// order in which they commit.
type Position struct {
	System   string // system identifier of the server
	Timeline int64  // changes when a standby is promoted
	Snapshot string // as pg_current_snapshot() prints it: xmin:xmax:xip,xip,…
}

// String is the position's form in the journal: system/timeline/snapshot, or "" for the zero position.
func (p Position) String() string {
	if p.IsZero() {
		return ""
	}
	return fmt.Sprintf("%s/%d/%s", p.System, p.Timeline, p.Snapshot)
}

// ParsePosition reads what [Position.String] wrote.
func ParsePosition(text string) (Position, error) {
	if text == "" {
		return Position{}, nil
	}
	fail := fmt.Errorf("%q is not a position of the form system/timeline/snapshot", text)
	parts := strings.Split(text, "/")
	if len(parts) != 3 || parts[0] == "" {
		return Position{}, fail
	}
	timeline, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil {
		return Position{}, fail
	}
	if _, err := parseSnapshot(parts[2]); err != nil {
		return Position{}, err
	}
	return Position{System: parts[0], Timeline: timeline, Snapshot: parts[2]}, nil
}

// IsZero tells whether p is the position before everything.
func (p Position) IsZero() bool { return p.Snapshot == "" }

// xmin is the oldest transaction that was running: all before it are visible, or were rolled back.
func (p Position) xmin() string {
	xmin, _, _ := strings.Cut(p.Snapshot, ":")
	return xmin
}

// SameServer tells whether two positions can be compared at all.
func (p Position) SameServer(q Position) bool {
	return p.System == q.System && p.Timeline == q.Timeline
}

// Covers tells whether everything that is visible at q is visible at p too.
func (p Position) Covers(q Position) (bool, error) {
	if q.IsZero() {
		return true, nil
	}
	if p.IsZero() || !p.SameServer(q) {
		return false, nil
	}
	a, err := parseSnapshot(p.Snapshot)
	if err != nil {
		return false, err
	}
	b, err := parseSnapshot(q.Snapshot)
	if err != nil {
		return false, err
	}
	if a.xmax < b.xmax {
		return false, nil
	}
	for _, xid := range a.xip { // still running at p: must not have been finished at q
		if xid < b.xmax && !slices.Contains(b.xip, xid) {
			return false, nil
		}
	}
	return true, nil
}

type snapshotText struct {
	xmin, xmax uint64
	xip        []uint64
}

func parseSnapshot(text string) (snapshotText, error) {
	var s snapshotText
	malformed := fmt.Errorf("%q is not a snapshot of the form xmin:xmax:xip,…", text)
	parts := strings.Split(text, ":")
	if len(parts) != 3 {
		return s, malformed
	}
	var err error
	if s.xmin, err = strconv.ParseUint(parts[0], 10, 64); err != nil {
		return s, malformed
	}
	if s.xmax, err = strconv.ParseUint(parts[1], 10, 64); err != nil {
		return s, malformed
	}
	if parts[2] == "" {
		return s, nil
	}
	for field := range strings.SplitSeq(parts[2], ",") {
		xid, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return s, malformed
		}
		s.xip = append(s.xip, xid)
	}
	return s, nil
}
