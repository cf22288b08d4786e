package dashboard

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"

	"github.com/heroku-migrator/migrator/internal/pgurl"
)

// redactor takes secrets out of everything that leaves the dashboard.
type redactor struct {
	urls    []*pgurl.URL
	secrets *strings.Replacer
}

// anyURL finds passwords in URLs, whoever's they are.
var anyURL = regexp.MustCompile(`([a-zA-Z][a-zA-Z0-9+.-]*://[^\s:/@"\\]*:)[^\s@"/]+@`)

// shortSecret is the length below which a secret other than a URL's password cannot be told from ordinary text.
const shortSecret = 6

func newRedactor(urls, secrets []string) (*redactor, error) {
	r := &redactor{}
	for _, raw := range urls {
		if raw == "" {
			continue
		}
		u, err := pgurl.Parse(raw)
		if err != nil {
			return nil, err
		}
		r.urls = append(r.urls, u)
	}
	var pairs []string
	for _, s := range secrets {
		if len(s) < shortSecret {
			continue
		}
		pairs = append(pairs, s, "***")
		if quoted, err := json.Marshal(s); err == nil && string(quoted[1:len(quoted)-1]) != s {
			pairs = append(pairs, string(quoted[1:len(quoted)-1]), "***")
		}
	}
	r.secrets = strings.NewReplacer(pairs...)
	return r, nil
}

func (r *redactor) text(s string) string {
	s = r.secrets.Replace(pgurl.Redact(s, r.urls...))
	if strings.Contains(s, "://") {
		s = anyURL.ReplaceAllString(s, "${1}***@")
	}
	return s
}

// words are fields whose values come from a fixed list. A password that happens to be one of these words is no secret there.
var words = map[string]bool{
	"phase": true, "failed_phase": true, "state": true, "goal": true, "kind": true, "level": true, "code": true, "severity": true, "trend": true,
	"check": true, "command": true, "point": true, "format": true, "outcome": true,
}

// encode encodes v, with the secrets taken out of its texts. Names of fields stay as they are, whatever the password.
func (r *redactor) encode(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	if r.text(string(b)) == string(b) {
		return b, nil
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var tree any
	if err := d.Decode(&tree); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return json.Marshal(r.walk(tree, ""))
}

func (r *redactor) walk(v any, name string) any {
	switch v := v.(type) {
	case string:
		if words[name] {
			return v
		}
		return r.text(v)
	case []any:
		for i := range v {
			v[i] = r.walk(v[i], name)
		}
	case map[string]any:
		for k := range v {
			v[k] = r.walk(v[k], k)
		}
	}
	return v
}
