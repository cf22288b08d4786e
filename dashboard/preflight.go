package dashboard

import (
	"net/http"
	"sync"
	"time"

	"github.com/heroku-migrator/migrator"
)

// keepPreflight is how long a result is served again.
const keepPreflight = 5 * time.Second

// Checks is the result of a preflight.
type Checks struct {
	OK        bool               `json:"ok"`
	CheckedAt time.Time          `json:"checked_at"`
	Findings  []migrator.Finding `json:"findings"`
}

// preflights runs one preflight at a time, for everybody who asks meanwhile.
type preflights struct {
	mu      sync.Mutex
	running chan struct{} // closed at the end; nil if none runs
	result  *Checks
	err     error
}

// latest is what was found last, or nil.
func (p *preflights) latest() *Checks {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.result
}

// checkNow returns the channel that is closed when there is a result, beginning a run if there is none; nil if the result is fresh.
func (d *Dashboard) checkNow() (ended <-chan struct{}, refused *apiError) {
	p := &d.checks
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.running != nil:
		return p.running, nil
	case p.result != nil && time.Since(p.result.CheckedAt) < keepPreflight:
		return nil, nil
	}
	done := make(chan struct{})
	d.mu.Lock()
	begun := d.goOn(func() {
		defer close(done)
		report, err := d.m.Preflight(d.ctx)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.running, p.err = nil, err
		if err == nil {
			p.result = &Checks{OK: len(report.Blockers()) == 0, CheckedAt: time.Now().UTC(), Findings: report.Findings}
			if p.result.Findings == nil {
				p.result.Findings = []migrator.Finding{}
			}
		}
	})
	d.mu.Unlock()
	if !begun {
		return nil, closing()
	}
	p.running = done
	return done, nil
}

func (d *Dashboard) servePreflight(w http.ResponseWriter, r *http.Request) {
	ended, refused := d.checkNow()
	if refused != nil {
		d.fail(w, refused)
		return
	}
	if ended != nil {
		patience := time.NewTimer(d.timing.command)
		defer patience.Stop()
		select {
		case <-ended:
		case <-r.Context().Done():
			return
		case <-patience.C:
			d.fail(w, &apiError{
				status: http.StatusServiceUnavailable, Code: "preflight_running", retryAfter: 5 * time.Second,
				Text: "The checks take longer than usual and go on: ask again for their result.",
			})
			return
		}
	}
	d.checks.mu.Lock()
	result, err := d.checks.result, d.checks.err
	d.checks.mu.Unlock()
	if err != nil || result == nil {
		text := "The checks could not be made: try again."
		if err != nil {
			text = "The checks could not be made: " + err.Error() + "."
		}
		d.fail(w, &apiError{status: http.StatusServiceUnavailable, Code: "unreachable", Text: text, retryAfter: 5 * time.Second})
		return
	}
	d.answer(w, http.StatusOK, result)
}

// transcript is what the last verification said.
type transcript struct {
	mu      sync.Mutex
	began   time.Time
	running bool
	lines   []string
}

// mostTranscript bounds it: a line for each table.
const mostTranscript = 20000

func (t *transcript) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.began, t.running, t.lines = time.Now(), true, nil
}

func (t *transcript) add(at time.Time, line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	const apart = time.Hour // a verification that another process asked for has no beginning here
	if !t.running && at.Sub(t.began) > apart {
		t.lines = nil
		t.began = at
	}
	if len(t.lines) < mostTranscript {
		t.lines = append(t.lines, line)
	}
}

func (t *transcript) end(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.running = false
	t.lines = append(t.lines, line)
}

type verifyAnswer struct {
	Running      bool                   `json:"running"`
	Output       string                 `json:"output"`
	Lines        []string               `json:"lines"`
	Verification *migrator.Verification `json:"verification"`
}

func (d *Dashboard) serveVerifyOutput(w http.ResponseWriter, r *http.Request) {
	v := d.current(r.Context())
	d.verify.mu.Lock()
	a := verifyAnswer{Running: d.verify.running, Lines: append([]string{}, d.verify.lines...), Verification: v.status.Verification}
	d.verify.mu.Unlock()
	if len(a.Lines) == 0 && a.Verification == nil && !a.Running {
		d.fail(w, &apiError{status: http.StatusNotFound, Code: "not_found", Text: "Rows were not compared yet: POST verify does that."})
		return
	}
	if a.Running {
		a.Verification = nil // of the one before
	}
	for _, line := range a.Lines {
		a.Output += line + "\n"
	}
	d.answer(w, http.StatusOK, a)
}
