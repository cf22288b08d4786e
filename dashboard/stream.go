package dashboard

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	streamWrite = 30 * time.Second // a client that takes nothing for so long is gone
	firstItems  = 100              // of the past, for one who comes without a cursor
	mostItems   = 500              // in one event
)

// stream is one client of /events.
type stream struct {
	d        *Dashboard
	w        http.ResponseWriter
	control  *http.ResponseController
	role     Role
	seq      int64 // of the status that was sent last
	activity int64 // the newest that was sent
	log      int64
	sent     time.Time
	buffer   bytes.Buffer
	packed   *gzip.Writer // nil if the client does not take that
}

// serveEvents sends server-sent events until the client goes, the dashboard is closed, or an hour has passed, after which the browser comes back.
func (d *Dashboard) serveEvents(w http.ResponseWriter, r *http.Request) {
	select {
	case d.streams <- struct{}{}:
		defer func() { <-d.streams }()
	default:
		d.fail(w, &apiError{
			status: http.StatusServiceUnavailable, Code: "too_many_streams", retryAfter: 10 * time.Second,
			Text: "As many event streams as allowed are open. Poll status and activity instead.",
		})
		return
	}
	s := &stream{d: d, w: w, control: http.NewResponseController(w), role: roleOf(r)}
	s.place(r)
	h := w.Header()
	h.Set("Content-Type", "text/event-stream; charset=utf-8")
	h.Set("X-Accel-Buffering", "no")
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") { // a thousand tables are 300 kB as they are, and 20 so
		s.packed = gzip.NewWriter(w)
		defer s.packed.Close() // if it fails, the client is gone
		h.Set("Content-Encoding", "gzip")
		h.Add("Vary", "Accept-Encoding")
	}
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), d.timing.lifetime)
	defer cancel()
	d.current(ctx)
	tick := time.NewTicker(d.timing.stream)
	defer tick.Stop()
	s.buffer.WriteString("retry: 2000\n\n")
	for {
		if err := s.send(); err != nil {
			return // the client is gone, or the server cannot stream
		}
		select {
		case <-ctx.Done():
			return
		case <-d.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// place finds where the client is: after what it had, or a little before now.
func (s *stream) place(r *http.Request) {
	s.activity, s.log = s.d.feed.last()-firstItems, s.d.log.ring.last()-firstItems
	text := r.Header.Get("Last-Event-ID")
	if text == "" {
		text = r.URL.Query().Get("after") // for those that cannot set the header
	}
	a, l, ok := strings.Cut(text, "-")
	activity, err := strconv.ParseInt(a, 10, 64)
	if err != nil || !ok {
		return
	}
	log, err := strconv.ParseInt(l, 10, 64)
	if err != nil {
		return
	}
	s.activity, s.log = activity, log
}

// send sends what is new: all that came since the last time in one event of each kind.
func (s *stream) send() error {
	d := s.d
	d.mu.Lock()
	v := d.view
	d.mu.Unlock()
	var parts [][]byte
	if v != nil && v.seq != s.seq {
		s.seq = v.seq
		parts = v.bytes(s.role)
	}
	if len(parts) > 0 {
		s.buffer.WriteString("event: status\ndata: ")
		for _, part := range parts {
			s.buffer.Write(part)
		}
		s.buffer.WriteString("\n\n")
	}
	activities, last := d.feed.after(s.activity, mostItems)
	s.activity = last
	if err := s.event("activity", activities, len(activities)); err != nil {
		return err
	}
	entries, last := d.log.ring.after(s.log, mostItems)
	s.log = last
	if err := s.event("log", entries, len(entries)); err != nil {
		return err
	}
	if s.buffer.Len() == 0 {
		if time.Since(s.sent) < d.timing.heartbeat {
			return nil
		}
		s.buffer.WriteString(": still here\n\n")
	}
	// The server's own limit for a response would end the stream. Where it cannot be moved, it holds.
	_ = s.control.SetWriteDeadline(time.Now().Add(streamWrite))
	if err := s.write(s.buffer.Bytes()); err != nil {
		return fmt.Errorf("send an event: %w", err)
	}
	s.sent = time.Now()
	s.buffer.Reset()
	const large = 1 << 20
	if s.buffer.Cap() > large {
		s.buffer = bytes.Buffer{}
	}
	return s.control.Flush()
}

func (s *stream) write(b []byte) error {
	if s.packed == nil {
		_, err := s.w.Write(b)
		return err
	}
	if _, err := s.packed.Write(b); err != nil {
		return err
	}
	return s.packed.Flush()
}

func (s *stream) event(name string, items any, n int) error {
	if n == 0 {
		return nil
	}
	b, err := s.d.redact.encode(items)
	if err != nil {
		return err
	}
	fmt.Fprintf(&s.buffer, "id: %d-%d\nevent: %s\ndata: %s\n\n", s.activity, s.log, name, b)
	return nil
}
