package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"strings"
	"sync"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/pgurl"
)

// output prints for people, or one JSON object per line for programs. No password passes it.
type output struct {
	w       io.Writer
	json    bool
	command string
	secrets []*pgurl.URL
	broken  func() // called once when nobody reads any more

	mu sync.Mutex
}

// linef prints text for people.
func (o *output) linef(format string, args ...any) {
	if !o.json {
		o.write(pgurl.Redact(fmt.Sprintf(format, args...), o.secrets...))
	}
}

// object prints v for programs.
func (o *output) object(v any) {
	if !o.json {
		return
	}
	text, err := json.Marshal(v)
	if err != nil { // what is printed consists of strings and numbers
		text = []byte(`{"type":"result","ok":false,"error":"the output could not be encoded"}`)
	}
	o.write(redactJSON(string(text), o.secrets))
}

// result prints how a command ended.
func (o *output) result(fields map[string]any, text string) {
	all := map[string]any{"type": "result", "at": now()}
	if o.command != "" {
		all["command"] = o.command
	}
	maps.Copy(all, fields)
	o.object(all)
	if text != "" {
		o.linef("%s", text)
	}
}

// through sends what follows to another writer: bars on a terminal make room for lines only if they know of them.
func (o *output) through(w io.Writer) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.w = w
}

func (o *output) write(text string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, err := io.WriteString(o.w, text+"\n"); err != nil && o.broken != nil {
		o.broken()
		o.broken = nil
	}
}

// end reports an error and returns the exit status.
func (o *output) end(err error) int {
	if err == nil {
		return exitDone
	}
	fields := map[string]any{"ok": false, "error": err.Error()}
	status := exitFailed
	var refused *migrator.RefusedError
	switch {
	case errors.As(err, new(usageError)):
		status = exitUsage
		fields["command"] = o.command
		if _, known := flagsOf[o.command]; !known { // it may be a URL that went astray
			fields["command"] = ""
		}
	case errors.As(err, &refused):
		status = exitRefused
	case errors.Is(err, migrator.ErrNoMigration):
		status, refused = exitRefused, &migrator.RefusedError{Action: o.command, Reasons: []string{err.Error()}}
	}
	if refused != nil {
		fields["refused"], fields["reasons"], fields["can_force"] = true, refused.Reasons, refused.CanForce
	}
	if in := new(phaseError); errors.As(err, in) {
		fields["phase"] = in.phase
	}
	if o.json {
		o.result(fields, "")
		return status
	}
	text := &strings.Builder{}
	switch {
	case refused == nil:
		fmt.Fprintf(text, "heroku-migrate: %v\n", err)
	case o.command == "preflight": // they have been printed
		fmt.Fprintf(text, "\nheroku-migrate: the migration cannot start; blockers: %d, see above\n", len(refused.Reasons))
	default:
		fmt.Fprintf(text, "heroku-migrate: %s refused:\n", refused.Action)
		for _, r := range refused.Reasons {
			fmt.Fprintf(text, "  - %s\n", r)
		}
		if refused.CanForce && o.command != "abort" {
			fmt.Fprintf(text, "heroku-migrate %s --force does it all the same.\n", o.command)
		}
	}
	_, _ = os.Stderr.WriteString(pgurl.Redact(text.String(), o.secrets...)) // there is nobody else to tell
	return status
}

// phaseError is an error of run, with the phase that the migration is left in.
type phaseError struct {
	error

	phase migrator.Phase
}

func (e phaseError) Unwrap() error { return e.error }

// jsonString matches strings; one that is a field's name comes with its colon.
var jsonString = regexp.MustCompile(`"(?:[^"\\]|\\.)*":?`)

// vocabulary are fields whose values are words of ours. A password that happens to be one of them is not
// given away by it.
var vocabulary = map[string]bool{
	`"type":`: true, `"phase":`: true, `"state":`: true, `"command":`: true, `"severity":`: true, `"check":`: true,
	`"level":`: true, `"format":`: true, `"at":`: true, `"started_at":`: true, `"switched_at":`: true, `"completed_at":`: true,
}

// redactJSON redacts values that are texts, and nothing else: a password may consist of digits, or be the name of a field.
func redactJSON(text string, secrets []*pgurl.URL) string {
	field := ""
	return jsonString.ReplaceAllStringFunc(text, func(s string) string {
		if strings.HasSuffix(s, ":") {
			field = s
			return s
		}
		if vocabulary[field] {
			return s
		}
		return `"` + pgurl.Redact(s[1:len(s)-1], secrets...) + `"`
	})
}

// redacting keeps passwords out of the log.
type redacting struct {
	w io.Writer
	o *output
}

func (r redacting) Write(b []byte) (int, error) {
	w := r.w
	if onTerminal(w) { // which it shares with the lines, and the bars below them
		r.o.mu.Lock()
		defer r.o.mu.Unlock()
		if r.o.w != io.Writer(os.Stdout) {
			w = r.o.w
		}
	}
	_, err := io.WriteString(w, pgurl.Redact(string(b), r.o.secrets...))
	return len(b), err
}

func size(n int64) string {
	const unit = 1024
	v, i := float64(n), 0
	for ; v >= unit && i < 5; i++ {
		v /= unit
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %ciB", v, " KMGTP"[i])
}
