package browsertest

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/chromedp/cdproto/audits"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
)

// watch notes what a page must not do: errors and warnings in the console, violations of its policy, requests to other hosts.
type watch struct {
	host string

	mu       sync.Mutex
	problems []string
	refused  []string // answers to commands that were refused: the browser itself prints them, and they are no error
	away     bool     // the server is, and the browser says so for each request
	locked   bool     // a password is asked for
}

// complaint is what the browser prints of an answer.
var complaint = regexp.MustCompile(`^Failed to load resource: the server responded with a status of (4\d\d)`)

// commands may be refused.
var commands = []string{
	"start-migration", "start-copy", "pause-sync", "resume-sync", "switch-traffic", "revert-switch", "cleanup", "abort", "retry", "reset", "verify", "retry-indexes",
}

// listen takes the events of a tab. It runs where they are read.
func (w *watch) listen(event any) {
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		text := e.ExceptionDetails.Text
		if x := e.ExceptionDetails.Exception; x != nil {
			text += " " + x.Description
		}
		w.note("exception: " + text)
	case *runtime.EventConsoleAPICalled:
		if slices.Contains([]runtime.ConsoleAPICalledType{"error", "warning", "assert"}, e.Type) {
			var args []string
			for _, a := range e.Args {
				args = append(args, string(a.Value)+a.Description)
			}
			w.note("console: " + strings.Join(args, " "))
		}
	case *log.EventEntryAdded:
		w.entry(e.Entry)
	case *audits.EventIssueAdded:
		w.note(fmt.Sprintf("issue: %s %s", e.Issue.Code, describe(e.Issue)))
	case *network.EventRequestWillBeSent:
		u, err := url.Parse(e.Request.URL)
		if err != nil || (u.Host != w.host && u.Scheme != "data") {
			w.note("request to another host: " + e.Request.URL)
		}
	}
}

func describe(issue *audits.InspectorIssue) string {
	if d := issue.Details; d != nil && d.GenericIssueDetails != nil {
		return string(d.GenericIssueDetails.ErrorType)
	} else if d != nil && d.ContentSecurityPolicyIssueDetails != nil {
		return d.ContentSecurityPolicyIssueDetails.ViolatedDirective + " " + d.ContentSecurityPolicyIssueDetails.BlockedURL
	}
	return ""
}

func (w *watch) entry(e *log.Entry) {
	if e.Level != log.EntryLevelError && e.Level != log.EntryLevelWarning {
		return
	}
	text := fmt.Sprintf("log: %s: %s (%s)", e.Source, e.Text, e.URL)
	if e.Source == log.EntrySourceNetwork {
		m := complaint.FindStringSubmatch(e.Text)
		u, err := url.Parse(e.URL)
		w.mu.Lock()
		defer w.mu.Unlock()
		switch {
		case w.away && strings.Contains(e.Text, "net::ERR_"):
			return
		case err == nil && u.Path == "/favicon.ico": // of what is no page, such as the answer to no password; the page names its own
			return
		case m != nil && err == nil && (m[1] == "401" && w.locked || slices.Contains(commands, u.Path[strings.LastIndex(u.Path, "/")+1:])):
			w.refused = append(w.refused, m[1]+" "+u.Path)
			return
		}
		w.problems = append(w.problems, text)
		return
	}
	w.note(text)
}

func (w *watch) note(problem string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.problems = append(w.problems, problem)
}

func (w *watch) found() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.problems)
}

// refusals are the answers that refused a command.
func (w *watch) refusals() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.refused)
}

// expect says that the server goes away, or comes back.
func (w *watch) expect(away bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.away = away
}

func (w *watch) lock(locked bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.locked = locked
}
