package dashboard

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/heroku-migrator/migrator"
)

// Milestone names what a notification is about.
type Milestone string

// The milestones.
const (
	MilestoneStarted   Milestone = "started"
	MilestoneCopied    Milestone = "copied"  // every row; indexes are being built
	MilestoneInSync    Milestone = "in_sync" // the target follows the source
	MilestoneSwitched  Milestone = "switched"
	MilestoneReverted  Milestone = "reverted"
	MilestoneCompleted Milestone = "completed"
	MilestoneAborted   Milestone = "aborted"
	MilestoneFailed    Milestone = "failed"  // a person is needed
	MilestoneWaiting   Milestone = "waiting" // for minutes, for something that failed and is tried again
)

// Notification is what a [Notifier] is told. It holds no secret.
type Notification struct {
	Milestone Milestone      `json:"event"`
	Phase     migrator.Phase `json:"phase"`
	Message   string         `json:"message"`
	At        time.Time      `json:"at"`
	Source    string         `json:"source,omitempty"` // host and database
	Target    string         `json:"target,omitempty"`
	Version   string         `json:"version"`
}

// Notifier tells somebody outside. Calls come one at a time. After an error it is called again with the same notification, later and later, some
// times; not if the error is a [*PermanentError]. It has to return when its context is done, which is so after 20 seconds.
type Notifier interface {
	Notify(ctx context.Context, n Notification) error
}

// PermanentError says that trying again is of no use.
type PermanentError struct{ Err error }

func (e *PermanentError) Error() string { return e.Err.Error() }

// Unwrap returns what is wrapped.
func (e *PermanentError) Unwrap() error { return e.Err }

// Webhook is a [Notifier] that posts JSON. The body suits Slack ("text"), Discord ("content") and receivers that take the fields of [Notification]
// ("event", "phase", "message", …), all at once. Its errors do not tell the address, which often is a secret itself.
type Webhook struct {
	URL string
	// Client sends the requests. Default: one that follows no redirects.
	Client *http.Client
}

// NewWebhook returns a webhook if the address is one of http or https.
func NewWebhook(address string) (*Webhook, error) {
	u, err := url.Parse(address)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" {
		return nil, errors.New("the webhook's address is not a URL that begins with https:// or http://")
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return &Webhook{URL: address, Client: client}, nil
}

type webhookBody struct {
	Notification

	Text            string         `json:"text"`
	Content         string         `json:"content"`
	AllowedMentions map[string]any `json:"allowed_mentions"` // Discord: names in a message call nobody
}

// Notify implements [Notifier].
func (h *Webhook) Notify(ctx context.Context, n Notification) error {
	text := "Heroku migrator: " + n.Message
	if n.Source != "" && n.Target != "" {
		text += fmt.Sprintf(" (%s to %s)", n.Source, n.Target)
	}
	const discord = 2000 // characters
	content := []rune(text)
	body, err := json.Marshal(webhookBody{
		Notification: n, Text: text, Content: string(content[:min(len(content), discord)]), AllowedMentions: map[string]any{"parse": []string{}},
	})
	if err != nil {
		return &PermanentError{fmt.Errorf("encode the notification: %w", err)}
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, h.URL, bytes.NewReader(body))
	if err != nil {
		return &PermanentError{errors.New("the webhook's address is no URL")}
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "heroku-migrator")
	client := h.Client
	if client == nil {
		client = http.DefaultClient
	}
	answer, err := client.Do(r)
	if err != nil {
		cause := new(url.Error)
		if errors.As(err, &cause) { // its text has the address
			err = cause.Err
		}
		return fmt.Errorf("the webhook cannot be reached: %w", err)
	}
	defer answer.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, 64<<10)) // so that the connection can be used again
	switch {
	case answer.StatusCode < 300:
		return nil
	case answer.StatusCode == http.StatusTooManyRequests, answer.StatusCode == http.StatusRequestTimeout, answer.StatusCode >= 500:
		return &retryError{status: answer.Status, after: retryAfter(answer.Header)}
	}
	return &PermanentError{fmt.Errorf("the webhook answered %s", answer.Status)}
}

// retryError says that it is to be tried again, and perhaps when.
type retryError struct {
	status string
	after  time.Duration
}

func (e *retryError) Error() string { return "the webhook answered " + e.status }

func retryAfter(h http.Header) time.Duration {
	seconds, err := strconv.ParseFloat(h.Get("Retry-After"), 64)
	if err != nil || seconds < 0 {
		return 0
	}
	const most = 5 * time.Minute
	return min(time.Duration(seconds*float64(time.Second)), most)
}

// notices delivers notifications, one after the other, without holding up anybody.
type notices struct {
	to      Notifier
	say     *slog.Logger
	metrics *metrics
	queue   chan Notification
	pause   time.Duration // before the second attempt

	mu       sync.Mutex
	failures []string // that were told, so that none is told twice
}

func newNotices(to Notifier, say *slog.Logger, m *metrics) *notices {
	return &notices{to: to, say: say, metrics: m, queue: make(chan Notification, 64), pause: time.Second}
}

func (n *notices) add(v Notification) {
	if n.to == nil {
		return
	}
	select {
	case n.queue <- v:
	default:
		n.metrics.notices.WithLabelValues("dropped").Inc()
		n.say.Warn("a notification was dropped: too many wait", "event", string(v.Milestone))
	}
}

const (
	notifyAttempts = 8
	notifyTimeout  = 20 * time.Second
)

// deliver sends what is queued until the context is done.
func (n *notices) deliver(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case v := <-n.queue:
			n.send(ctx, v)
		}
	}
}

func (n *notices) send(ctx context.Context, v Notification) {
	for attempt, pause := 1, n.pause; ; attempt, pause = attempt+1, min(2*pause, time.Minute) {
		limited, cancel := context.WithTimeout(ctx, notifyTimeout)
		err := n.to.Notify(limited, v)
		cancel()
		switch {
		case err == nil:
			n.metrics.notices.WithLabelValues("sent").Inc()
			return
		case ctx.Err() != nil:
			return
		case attempt == notifyAttempts || errors.As(err, new(*PermanentError)):
			n.metrics.notices.WithLabelValues("failed").Inc()
			n.say.Warn("a notification could not be sent", "event", string(v.Milestone), "attempts", attempt, "error", err)
			return
		}
		wait := pause
		if later := new(retryError); errors.As(err, &later) {
			wait = max(wait, later.after)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// firstTime tells whether a failure was not told lately.
func (n *notices) firstTime(failure string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, f := range n.failures {
		if strings.Contains(failure, f) || strings.Contains(f, failure) {
			return false
		}
	}
	const kept = 8
	n.failures = append(n.failures, failure)
	n.failures = n.failures[max(0, len(n.failures)-kept):]
	return true
}

func (n *notices) forgetFailures() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.failures = nil
}

// milestone tells the notifier. d.mu is held.
func (d *Dashboard) milestone(m Milestone, phase migrator.Phase, message string) {
	d.notices.add(Notification{
		Milestone: m, Phase: phase, Message: d.redact.text(message), At: time.Now().UTC(), Version: d.cfg.Version,
		Source: d.known.source.name(), Target: d.known.target.name(),
	})
}

func (s *Side) name() string {
	if s.Host == nil || s.Database == nil {
		return ""
	}
	return *s.Host + "/" + *s.Database
}

// notifyOf tells the notifier of an event that is a milestone. Only the process that leads the migration has these events, so nothing is told twice.
func (d *Dashboard) notifyOf(e migrator.Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch e.Kind { //nolint:exhaustive // the others are none
	case migrator.EventFailure:
		d.failure(e.Phase, e.Message)
	case migrator.EventSwitched:
		message := "switched: the target takes writes now"
		if e.Report != nil {
			message += fmt.Sprintf("; nobody could write for %d ms", e.Report.WithoutWrites.Milliseconds())
		}
		d.milestone(MilestoneSwitched, migrator.PhaseSwitched, message)
	case migrator.EventPhase:
		d.notices.forgetFailures()
		switch e.Phase { //nolint:exhaustive // the others are none
		case migrator.PhaseConfiguring:
			if d.cfg.HostRuns { // else it was told by whoever started it
				d.milestone(MilestoneStarted, e.Phase, "the migration has been started")
			}
		case migrator.PhaseRebuildingIndexes:
			d.milestone(MilestoneCopied, e.Phase, "every row is copied; indexes and constraints are being built")
		case migrator.PhaseReplicating:
			d.milestone(MilestoneInSync, e.Phase, "everything is built; the target follows the source")
		case migrator.PhaseCompleted:
			d.milestone(MilestoneCompleted, e.Phase, completedMessage)
		case migrator.PhaseAborted:
			d.milestone(MilestoneAborted, e.Phase, abortedMessage)
		}
	}
}

// failed tells that a run ended with an error. d.mu is held.
func (d *Dashboard) failed(err error) {
	phase := migrator.PhaseError
	if d.known.recorded != nil {
		phase = d.known.recorded.Phase
	}
	if d.failure(phase, err.Error()) {
		d.note("error", migrator.Event{Kind: migrator.EventFailure, Phase: phase, Message: err.Error()})
	}
}

func (d *Dashboard) failure(phase migrator.Phase, message string) (first bool) {
	first = d.notices.firstTime(message)
	if first {
		d.milestone(MilestoneFailed, phase, "the migration needs a person: "+message)
	}
	return first
}
