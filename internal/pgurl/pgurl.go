// Package pgurl holds a Postgres connection URL as Heroku and PlanetScale hand it out: it parses it,
// gives it to pgx and to libpq's programs alike, and keeps its password out of whatever is printed.
//
// A URL means the same wherever it is used. PG* environment variables, service files, password files
// and the certificates in ~/.postgresql take no part; what matters has to stand in the URL.
package pgurl

import (
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
)

const (
	defaultPort = 5432
	poolerPort  = 6432 // PgBouncer's port, with PlanetScale and by default
	masked      = "***"
)

// URL is a parsed connection URL; [Parse] makes one. Printing it, in whatever way, does not show the
// password.
type URL struct {
	hosts    []hostPort // never empty
	user     string
	database string
	params   map[string]string // by libpq's names; sslmode is always there

	// The secrets are behind a function, because fmt, the dumpers of test libraries and
	// debuggers print unexported fields without asking for a String method.
	secret func() secret
}

type secret struct {
	password string
	typed    string // as it stood in the URL, percent-encoded or not
}

type hostPort struct {
	host string // a name, an address without brackets, or the directory of a Unix socket
	port uint16
}

func (h hostPort) String() string {
	if strings.ContainsRune(h.host, ':') {
		return net.JoinHostPort(strings.ReplaceAll(h.host, "%", "%25"), strconv.Itoa(int(h.port)))
	}
	return escape(h.host) + ":" + strconv.Itoa(int(h.port))
}

// Host is the server's name or address, the first one if the URL names several. It is a path that
// begins with a slash if the URL names the directory of a Unix socket.
func (u URL) Host() string {
	if len(u.hosts) == 0 {
		return ""
	}
	return u.hosts[0].host
}

// Port is the port that belongs to [URL.Host].
func (u URL) Port() int {
	if len(u.hosts) == 0 {
		return 0
	}
	return int(u.hosts[0].port)
}

// User is the name of the role.
func (u URL) User() string { return u.user }

// Database is the name of the database.
func (u URL) Database() string { return u.database }

// Redacted is the URL in its normal form, with *** for the password. [Parse] refuses it, so that a
// redacted URL pasted from a message is not mistaken for a wrong password.
func (u URL) Redacted() string {
	if len(u.hosts) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("postgres://")
	b.WriteString(escape(u.user))
	if u.password() != "" {
		b.WriteString(":" + masked)
	}
	for i, h := range u.hosts {
		b.WriteString([]string{"@", ","}[min(i, 1)])
		b.WriteString(h.String())
	}
	b.WriteString("/" + escape(u.database))
	for i, name := range slices.Sorted(maps.Keys(u.params)) {
		b.WriteString([]string{"?", "&"}[min(i, 1)])
		b.WriteString(name + "=" + escape(u.params[name]))
	}
	return b.String()
}

// String is [URL.Redacted].
func (u URL) String() string { return u.Redacted() }

// GoString shows no password either.
func (u URL) GoString() string { return fmt.Sprintf("pgurl.URL(%q)", u.Redacted()) }

// Format implements [fmt.Formatter], for every verb, by [URL.Redacted].
func (u URL) Format(f fmt.State, verb rune) {
	text := u.Redacted()
	switch {
	case verb == 'q':
		text = strconv.Quote(text)
	case verb == 'v' && f.Flag('#'):
		text = u.GoString()
	}
	_, _ = io.WriteString(f, text)
}

// LogValue implements [slog.LogValuer] by [URL.Redacted].
func (u URL) LogValue() slog.Value { return slog.StringValue(u.Redacted()) }

// MarshalText implements [encoding.TextMarshaler] by [URL.Redacted]: it is for showing a URL, not for
// keeping one.
func (u URL) MarshalText() ([]byte, error) { return []byte(u.Redacted()), nil }

// Same reports whether both URLs name the same database: the same hosts, ports and database name,
// whoever logs in and however.
func (u URL) Same(other *URL) bool {
	return other != nil && u.database == other.database &&
		slices.EqualFunc(u.hosts, other.hosts, func(a, b hostPort) bool {
			return a.port == b.port && normalHost(a.host) == normalHost(b.host)
		})
}

func normalHost(host string) string {
	if strings.HasPrefix(host, "/") {
		return host
	}
	return strings.TrimSuffix(strings.ToLower(host), ".")
}

// IsPlanetScalePooler reports whether the URL leads to PgBouncer (port 6432) instead of Postgres, and
// returns the redacted URL that leads to Postgres itself (port 5432). Transaction pooling has
// no sessions, and the migrator needs them. It goes by the port, whatever the host: 6432 is
// PgBouncer's everywhere.
func (u URL) IsPlanetScalePooler() (direct string, ok bool) {
	u.hosts = slices.Clone(u.hosts)
	for i := range u.hosts {
		if u.hosts[i].port == poolerPort {
			u.hosts[i].port = defaultPort
			ok = true
		}
	}
	if !ok {
		return "", false
	}
	return u.Redacted(), true
}

func (u URL) password() string { return u.secrets().password }

func (u URL) secrets() secret {
	if u.secret == nil {
		return secret{}
	}
	return u.secret()
}

// list returns the hosts and ports as libpq takes them: two lists of equal length, separated by commas.
func (u URL) list() (hosts, ports string) {
	h, p := make([]string, len(u.hosts)), make([]string, len(u.hosts))
	for i, hp := range u.hosts {
		h[i], p[i] = hp.host, strconv.Itoa(int(hp.port))
	}
	return strings.Join(h, ","), strings.Join(p, ",")
}

// escape percent-encodes all but the characters that never need it.
func escape(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-._~", c) >= 0:
			b.WriteByte(c)
		default:
			b.WriteByte('%')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		}
	}
	return b.String()
}
