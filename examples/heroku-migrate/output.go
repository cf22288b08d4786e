package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strings"
	"sync"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/pgurl"
)

// output prints for people, or one JSON object per line for programs. No password passes it.
type output struct {
	w       io.Writer
	json    bool
	secrets []*pgurl.URL
	mu      sync.Mutex
}

// linef prints text for people.
func (o *output) linef(format string, args ...any) {
	if !o.json {
		o.write(fmt.Sprintf(format, args...))
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
	o.write(string(text))
}

// result prints how a command ended.
func (o *output) result(fields map[string]any, text string) {
	all := map[string]any{"type": "result", "at": now()}
	maps.Copy(all, fields)
	o.object(all)
	if text != "" {
		o.linef("%s", text)
	}
}

func (o *output) write(text string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, _ = io.WriteString(o.w, pgurl.Redact(text, o.secrets...)+"\n") // whoever read it is gone
}

// end reports an error and returns the exit status.
func (o *output) end(opts options, err error) int {
	if err == nil {
		return exitDone
	}
	fields := map[string]any{"ok": false, "command": opts.command, "error": err.Error()}
	status := exitFailed
	var refused *migrator.RefusedError
	switch {
	case errors.As(err, new(usageError)):
		status = exitUsage
	case errors.As(err, &refused):
		status = exitRefused
		fields["refused"], fields["reasons"], fields["can_force"] = true, refused.Reasons, refused.CanForce
	}
	o.result(fields, "")
	if o.json {
		return status
	}
	text := &strings.Builder{}
	if refused != nil {
		fmt.Fprintf(text, "heroku-migrate: %s refused:\n", refused.Action)
		for _, r := range refused.Reasons {
			fmt.Fprintf(text, "  - %s\n", r)
		}
	} else {
		fmt.Fprintf(text, "heroku-migrate: %v\n", err)
	}
	_, _ = os.Stderr.WriteString(pgurl.Redact(text.String(), o.secrets...))
	return status
}

// redacting keeps passwords out of the log.
type redacting struct {
	w io.Writer
	o *output
}

func (r redacting) Write(b []byte) (int, error) {
	_, err := io.WriteString(r.w, pgurl.Redact(string(b), r.o.secrets...))
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
