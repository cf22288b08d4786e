package dashboard

import (
	"context"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Log is a [slog.Handler] that keeps the latest records in memory, for the page, and hands all of them on. It is safe for concurrent use.
type Log struct {
	next   slog.Handler
	ring   *ring[Entry]
	attrs  []slog.Attr
	prefix string // of the open groups, with a dot at its end
}

// Entry is a log record. The values of its attributes are texts.
type Entry struct {
	ID      int64             `json:"id"`
	At      time.Time         `json:"at"`
	Level   string            `json:"level"`
	Message string            `json:"message"`
	Attrs   map[string]string `json:"attrs"`

	level slog.Level
	line  string
}

// NewLog returns a handler that keeps size records of level INFO and above, and of lower ones that next takes. next may be nil.
//
// The program gives it to the migrator as its logger, and to the dashboard as [Config].Log.
func NewLog(next slog.Handler, size int) *Log {
	if next == nil {
		next = slog.DiscardHandler
	}
	return &Log{next: next, ring: newRing[Entry](size)}
}

// Enabled implements [slog.Handler].
func (l *Log) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo || l.next.Enabled(ctx, level)
}

// longest is how much of a message or a value is kept.
const longest = 8 << 10

// Handle implements [slog.Handler].
func (l *Log) Handle(ctx context.Context, record slog.Record) error {
	e := Entry{At: record.Time.UTC(), Level: record.Level.String(), Message: shorten(record.Message), Attrs: map[string]string{}, level: record.Level}
	var line strings.Builder
	line.WriteString(e.At.Format("2006-01-02T15:04:05.000Z") + " " + e.Level + " " + e.Message)
	var add func(prefix string, a slog.Attr)
	add = func(prefix string, a slog.Attr) {
		v := a.Value.Resolve()
		if v.Kind() == slog.KindGroup {
			if a.Key != "" {
				prefix += a.Key + "."
			}
			for _, inner := range v.Group() {
				add(prefix, inner)
			}
			return
		}
		if a.Key == "" {
			return
		}
		text := shorten(v.String())
		e.Attrs[prefix+a.Key] = text
		if text == "" || strings.ContainsAny(text, " \"=\n\t") {
			text = strconv.Quote(text)
		}
		line.WriteString(" " + prefix + a.Key + "=" + text)
	}
	for _, a := range l.attrs {
		add("", a)
	}
	record.Attrs(func(a slog.Attr) bool {
		add(l.prefix, a)
		return true
	})
	e.line = line.String()
	l.ring.add(func(id int64) Entry {
		e.ID = id
		return e
	})
	if !l.next.Enabled(ctx, record.Level) {
		return nil
	}
	return l.next.Handle(ctx, record)
}

// WithAttrs implements [slog.Handler].
func (l *Log) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *l
	c.next = l.next.WithAttrs(attrs)
	c.attrs = make([]slog.Attr, 0, len(l.attrs)+len(attrs))
	c.attrs = append(c.attrs, l.attrs...)
	for _, a := range attrs {
		a.Key = l.prefix + a.Key
		c.attrs = append(c.attrs, a)
	}
	return &c
}

// WithGroup implements [slog.Handler].
func (l *Log) WithGroup(name string) slog.Handler {
	if name == "" {
		return l
	}
	c := *l
	c.next = l.next.WithGroup(name)
	c.prefix = l.prefix + name + "."
	return &c
}

func shorten(s string) string {
	if len(s) <= longest {
		return s
	}
	return strings.ToValidUTF8(s[:longest], "") + "…"
}

const (
	defaultLines = 200
	mostLines    = 5000
)

type logsAnswer struct {
	Logs    []string `json:"logs"`
	Entries []Entry  `json:"entries"`
	Last    int64    `json:"last"`
}

// selectLogs picks the latest lines that pass.
func (l *Log) selectLogs(after int64, lines int, level slog.Level, text string) logsAnswer {
	all, last := l.ring.after(after, l.ring.size)
	text = strings.ToLower(text)
	var picked []Entry
	for i := len(all) - 1; i >= 0 && len(picked) < lines; i-- {
		if e := all[i]; e.level >= level && strings.Contains(strings.ToLower(e.line), text) {
			picked = append(picked, e)
		}
	}
	answer := logsAnswer{Logs: make([]string, len(picked)), Entries: make([]Entry, len(picked)), Last: last}
	for i, e := range picked {
		answer.Entries[len(picked)-1-i], answer.Logs[len(picked)-1-i] = e, e.line
	}
	return answer
}

func (d *Dashboard) serveLogs(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	lines, err := number(q.Get("lines"), defaultLines, 1, mostLines)
	if err != nil {
		d.fail(w, badRequest("lines: %v", err))
		return
	}
	after, err := number(q.Get("after"), 0, 0, 1<<53)
	if err != nil {
		d.fail(w, badRequest("after: %v", err))
		return
	}
	level := slog.LevelDebug - 4
	if text := q.Get("level"); text != "" {
		if err := level.UnmarshalText([]byte(text)); err != nil {
			d.fail(w, badRequest("level: %q is none; it is debug, info, warn or error", text))
			return
		}
	}
	d.answer(w, http.StatusOK, d.log.selectLogs(after, int(lines), level, q.Get("q")))
}
