package pgurl

import (
	"cmp"
	"encoding/json"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// shortest is the length from which a password is replaced wherever it stands. One or two characters
// occur everywhere; they are replaced only where a URL has its password.
const shortest = 3

var percentEncoded = regexp.MustCompile(`%[0-9A-F]{2}`)

// Redact replaces the passwords of the URLs in s by ***, in whatever way they may have been written down:
// as they are, percent-encoded, or escaped in a string of Go, JSON or libpq. It is for texts that others
// wrote: errors, and what pg_dump prints.
func Redact(s string, urls ...*URL) string {
	var forms []string
	for _, u := range urls {
		if u != nil {
			forms = append(forms, u.secrets().forms()...)
		}
	}
	if len(forms) == 0 {
		return s
	}
	// The replacer tries the forms in this order: the longest first, so that none leaves the rest of another.
	slices.SortFunc(forms, func(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) })
	var pairs []string
	for _, form := range slices.Compact(forms) {
		if len(form) < shortest {
			pairs = append(pairs, ":"+form+"@", ":"+masked+"@")
			continue
		}
		pairs = append(pairs, form, masked)
	}
	return strings.NewReplacer(pairs...).Replace(s)
}

// forms lists the ways in which the password may have been written.
func (s secret) forms() []string {
	if s.password == "" {
		return nil
	}
	quoted := strconv.Quote(s.password)
	quoted = quoted[1 : len(quoted)-1]
	inJSON, err := json.Marshal(s.password)
	if err != nil { // cannot be: every string has a form in JSON
		inJSON = []byte(`""`)
	}
	forms := []string{
		s.password, s.typed, quoted, string(inJSON[1 : len(inJSON)-1]), kvEscaper.Replace(s.password),
		escape(s.password), url.QueryEscape(s.password), url.PathEscape(s.password),
		strings.TrimPrefix(url.UserPassword("", s.password).String(), ":"),
	}
	for _, form := range forms {
		forms = append(forms, percentEncoded.ReplaceAllStringFunc(form, strings.ToLower))
	}
	return slices.DeleteFunc(forms, func(form string) bool { return form == "" })
}
