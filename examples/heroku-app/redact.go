package main

import (
	"io"
	"strings"

	"github.com/heroku-migrator/migrator/internal/pgurl"
)

// redacting keeps secrets out of what is printed, whoever wrote them into a message.
type redacting struct {
	w       io.Writer
	urls    []*pgurl.URL
	secrets *strings.Replacer
}

func newRedacting(w io.Writer, urls []*pgurl.URL, secrets []string) *redacting {
	const shortest = 6 // what is shorter cannot be told from ordinary text
	var pairs []string
	for _, s := range secrets {
		if len(s) >= shortest {
			pairs = append(pairs, s, "***")
		}
	}
	return &redacting{w: w, urls: urls, secrets: strings.NewReplacer(pairs...)}
}

func (r *redacting) Write(b []byte) (int, error) {
	_, err := io.WriteString(r.w, r.secrets.Replace(pgurl.Redact(string(b), r.urls...)))
	return len(b), err
}
