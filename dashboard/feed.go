package dashboard

import (
	"net/http"
	"strings"
	"time"

	"github.com/heroku-migrator/migrator"
)

// Activity is something of note that happened.
type Activity struct {
	ID      int64              `json:"id"`
	At      time.Time          `json:"at"`
	Kind    migrator.EventKind `json:"kind"`
	Level   string             `json:"level"` // info, warning, error
	Phase   migrator.Phase     `json:"phase"`
	Table   string             `json:"table"`
	Message string             `json:"message"`
}

// levels are the kinds of events that are of note.
var levels = map[migrator.EventKind]string{
	migrator.EventPhase: "info", migrator.EventTable: "info", migrator.EventCommand: "info", migrator.EventSchema: "info",
	migrator.EventVerify: "info", migrator.EventSwitched: "info", migrator.EventWaiting: "warning", migrator.EventWarning: "warning",
	migrator.EventFailure: "error",
}

// activities is how many are kept. With a thousand tables, each of which passes four states, they go back to the beginning.
const activities = 6000

// listen takes the migration's events until the subscription ends.
func (d *Dashboard) listen(events <-chan migrator.Event) {
	var waiting string
	for e := range events {
		d.metrics.events.WithLabelValues(string(e.Kind)).Inc()
		level, ok := levels[e.Kind]
		if !ok {
			continue
		}
		if e.Kind == migrator.EventWaiting {
			if e.Message == waiting { // said already: it is tried again and again
				continue
			}
			waiting = e.Message
		} else if e.Kind != migrator.EventTable {
			waiting = ""
		}
		if e.Kind != migrator.EventCommand || !d.isOurs(e) {
			d.note(level, e)
		}
		d.notifyOf(e)
		d.wake()
	}
}

// isOurs tells whether an event is about a command that came through this dashboard, which notes its end itself.
func (d *Dashboard) isOurs(e migrator.Event) bool {
	name, _, _ := strings.Cut(e.Message, ":")
	const lately = 5 * time.Second
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.known.running; c != nil && c.name == name {
		return true
	}
	last := d.known.last
	return last != nil && last.Command == name && time.Since(last.Ended) < lately && e.At.Before(last.Ended)
}

// note adds an activity.
func (d *Dashboard) note(level string, e migrator.Event) {
	a := Activity{At: e.At.UTC(), Kind: e.Kind, Level: level, Phase: e.Phase, Message: e.Message}
	if e.At.IsZero() {
		a.At = time.Now().UTC()
	}
	if e.Table != nil {
		a.Table = e.Table.String()
	}
	if a.Message == "" {
		a.Message = string(e.Phase)
	}
	if e.Kind == migrator.EventVerify {
		d.verify.add(a.At, a.Message)
	}
	d.feed.add(func(id int64) Activity {
		a.ID = id
		return a
	})
}

type activityAnswer struct {
	Events []Activity `json:"events"`
	Last   int64      `json:"last"`
}

func (d *Dashboard) serveActivity(w http.ResponseWriter, r *http.Request) {
	after, err := number(r.URL.Query().Get("after"), 0, 0, 1<<53)
	if err != nil {
		d.fail(w, badRequest("after: %v", err))
		return
	}
	most := activities
	if after == 0 {
		most = 200
	}
	events, last := d.feed.after(after, most)
	d.answer(w, http.StatusOK, activityAnswer{Events: events, Last: last})
}
