package migrator

import (
	"log/slog"
	"sync"
	"time"
)

// EventKind tells what an event is about.
type EventKind string

// The kinds of events.
const (
	EventPhase    EventKind = "phase"    // the phase changed
	EventTable    EventKind = "table"    // a table reached another state
	EventObject   EventKind = "object"   // an index or a constraint was built
	EventChunk    EventKind = "chunk"    // a chunk was committed on the target
	EventThrottle EventKind = "throttle" // the copy gives way to the application, or no longer
	EventRound    EventKind = "round"    // a round was committed on the target
	EventCommand  EventKind = "command"  // a command was taken or ended
	EventWaiting  EventKind = "waiting"  // something outside is in the way; tried again
	EventWarning  EventKind = "warning"  // somebody should know
	EventSchema   EventKind = "schema"   // the source's schema changed, and was followed
	EventVerify   EventKind = "verify"   // a table was compared
	EventFailure  EventKind = "failure"  // a step failed
	EventSwitched EventKind = "switched" // the switch is done; Report is set
)

// Event is something that happened. Which of the fields below Message are set depends on the kind.
type Event struct {
	At      time.Time
	Kind    EventKind
	Phase   Phase
	Message string
	Table   *Table
	Rows    int64
	Bytes   int64
	Took    time.Duration
	Report  *SwitchReport
	// Missed is how many events were dropped for this subscriber just before, because it was slow.
	Missed int
}

// events delivers to subscribers through bounded channels. A subscriber that does not keep up misses
// events; it never slows the migration.
type events struct {
	mu   sync.Mutex
	subs map[*subscriber]struct{}
}

type subscriber struct {
	ch     chan Event
	missed int
}

func (e *events) subscribe(buffer int) (<-chan Event, func()) {
	s := &subscriber{ch: make(chan Event, max(buffer, 1))}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.subs == nil {
		e.subs = map[*subscriber]struct{}{}
	}
	e.subs[s] = struct{}{}
	return s.ch, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if _, ok := e.subs[s]; ok {
			delete(e.subs, s)
			close(s.ch)
		}
	}
}

func (e *events) publish(ev Event) {
	if ev.At.IsZero() {
		ev.At = time.Now()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for s := range e.subs {
		ev.Missed = s.missed
		select {
		case s.ch <- ev:
			s.missed = 0
		default:
			s.missed++
		}
	}
}

// notify calls fn, if there is one.
func notify(fn func(Event), ev Event) {
	if fn != nil {
		ev.At = time.Now()
		fn(ev)
	}
}

func logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}
