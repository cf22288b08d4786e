package pgurl

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// A parameter tells what a URL's query may say: to whom each name means something, and which values
// it takes (none listed: any).
type parameter struct {
	env    string // libpq's environment variable
	pgx    bool   // pgx knows it
	values []string
}

// The query parameters that have a meaning here. What is not among them is an error, as it is for libpq:
// it might have been meant to change where we connect, or how safely.
var parameters = map[string]parameter{
	"application_name":     {env: "PGAPPNAME", pgx: true},
	"channel_binding":      {env: "PGCHANNELBINDING", pgx: true, values: []string{"disable", "prefer", "require"}},
	"connect_timeout":      {env: "PGCONNECT_TIMEOUT", pgx: true},
	"gssencmode":           {env: "PGGSSENCMODE", values: []string{"disable", "prefer"}}, // pgx has no "require"
	"max_protocol_version": {env: "PGMAXPROTOCOLVERSION", pgx: true, values: []string{"3.0", "3.2", "latest"}},
	"min_protocol_version": {env: "PGMINPROTOCOLVERSION", pgx: true, values: []string{"3.0", "3.2", "latest"}},
	"options":              {env: "PGOPTIONS", pgx: true},
	"require_auth":         {env: "PGREQUIREAUTH", pgx: true},
	"sslcert":              {env: "PGSSLCERT", pgx: true},
	"sslcertmode":          {env: "PGSSLCERTMODE", pgx: true, values: []string{"disable", "allow", "require"}},
	"sslkey":               {env: "PGSSLKEY", pgx: true},
	"sslmode":              {env: "PGSSLMODE", pgx: true, values: []string{"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}},
	"sslnegotiation":       {env: "PGSSLNEGOTIATION", pgx: true, values: []string{"postgres", "direct"}},
	"sslrootcert":          {env: "PGSSLROOTCERT", pgx: true},
	"sslsni":               {env: "PGSSLSNI", pgx: true, values: []string{"0", "1"}},
	"target_session_attrs": {env: "PGTARGETSESSIONATTRS", pgx: true, values: []string{"any", "read-write", "read-only", "primary", "standby", "prefer-standby"}},

	"default_query_exec_mode":    {pgx: true, values: []string{"cache_statement", "cache_describe", "describe_exec", "exec", "simple_protocol"}},
	"description_cache_capacity": {pgx: true},
	"statement_cache_capacity":   {pgx: true},
}

// errEncode is what a URL comes to whose parts cannot be told apart.
var errEncode = errors.New("connection URL: its parts cannot be told apart; special characters in the user name, " +
	"the password or the database name have to be percent-encoded (@ as %40, / as %2F, % as %25, a space as %20)")

// Parse parses a URL of the form
//
//	postgres://user:password@host:5432/database?sslmode=require
//
// postgresql:// will do as well. Several hosts, Unix sockets and percent-encoding are understood as libpq
// understands them. Without sslmode the URL gets sslmode=require, or verify-full if sslrootcert=system
// asks for it. An error says what to do, and quotes neither the password nor the URL.
func Parse(raw string) (*URL, error) {
	rest, err := cutScheme(strings.TrimSpace(raw))
	if err != nil {
		return nil, err
	}
	if strings.ContainsFunc(rest, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) ||
		strings.Count(rest, "@") > 1 {
		return nil, errEncode
	}

	// As in libpq, only a slash ends the search for the "@": "?" and "#" may stand in a password.
	userinfo, rest, found := cutUserinfo(rest)
	if !found && strings.Contains(rest, "@") {
		return nil, errEncode
	}
	rest, query, _ := strings.Cut(rest, "?")
	authority, database, _ := strings.Cut(rest, "/")
	if strings.Contains(database, "/") {
		return nil, errEncode
	}

	p := parts{params: map[string]string{}}
	user, password, _ := strings.Cut(userinfo, ":")
	p.secret.typed = password
	hosts, ports, err := splitAuthority(authority)
	if err != nil {
		return nil, err
	}
	for _, part := range []struct {
		to   *string
		from string
	}{{&p.user, user}, {&p.secret.password, password}, {&p.hosts, hosts}, {&p.ports, ports}, {&p.database, database}} {
		if *part.to, err = decode(part.from); err != nil {
			return nil, err
		}
	}
	if err := p.parseQuery(query); err != nil {
		return nil, err
	}
	return p.url()
}

func cutScheme(raw string) (string, error) {
	for _, scheme := range []string{"postgres://", "postgresql://"} {
		if rest, ok := strings.CutPrefix(raw, scheme); ok {
			return rest, nil
		}
	}
	const form = "postgres://user:password@host:5432/database"
	switch {
	case raw == "":
		return "", errors.New("connection URL: it is empty; give one of the form " + form)
	case strings.ContainsAny(raw[:1], `"'`):
		return "", errors.New("connection URL: it begins with a quotation mark; give it without quotation marks")
	case strings.Contains(raw, "=") && !strings.Contains(raw, "://"):
		return "", errors.New("connection URL: this is a list of key=value pairs; give a URL of the form " + form)
	default:
		return "", errors.New("connection URL: it does not begin with postgres:// or postgresql://; give one of the form " + form)
	}
}

func cutUserinfo(s string) (userinfo, rest string, found bool) {
	if i := strings.IndexAny(s, "@/"); i >= 0 && s[i] == '@' {
		return s[:i], s[i+1:], true
	}
	return "", s, false
}

// splitAuthority takes host:port,host:port apart into two lists of equal length, separated by commas.
func splitAuthority(authority string) (hosts, ports string, err error) {
	var h, p []string
	for entry := range strings.SplitSeq(authority, ",") {
		host, port, _ := strings.Cut(entry, ":")
		if rest, ok := strings.CutPrefix(entry, "["); ok {
			host, port, ok = strings.Cut(rest, "]")
			if !ok || host == "" || (port != "" && port[0] != ':') {
				return "", "", errors.New("connection URL: an IPv6 address stands in brackets, as in [2001:db8::1]:5432")
			}
			port = strings.TrimPrefix(port, ":")
		}
		h, p = append(h, host), append(p, port)
	}
	return strings.Join(h, ","), strings.Join(p, ","), nil
}

// parts is what a URL says, before it is checked.
type parts struct {
	user, database, hosts, ports string
	secret                       secret
	params                       map[string]string
}

// parseQuery lets the query's parameters add to the parts, or replace them.
func (p *parts) parseQuery(query string) error {
	if query == "" {
		return nil
	}
	for pair := range strings.SplitSeq(query, "&") {
		rawName, rawValue, ok := strings.Cut(pair, "=")
		if !ok || strings.Contains(rawValue, "=") {
			return errors.New("connection URL: what follows the question mark has to be name=value&name=value; percent-encode special characters (= as %3D, & as %26)")
		}
		name, err := decode(rawName)
		if err != nil {
			return err
		}
		value, err := decode(rawValue)
		if err != nil {
			return err
		}
		switch name {
		case "user":
			p.user = value
		case "password":
			p.secret = secret{password: value, typed: rawValue}
		case "host":
			p.hosts = value
		case "port":
			p.ports = value
		case "dbname", "database":
			p.database = value
		case "ssl":
			if value != "true" {
				return errors.New(`connection URL: ssl takes no value but "true"; use sslmode`)
			}
			p.params["sslmode"] = "require"
		default:
			if err := checkParameter(name, value); err != nil {
				return err
			}
			p.params[name] = value
		}
	}
	return nil
}

func checkParameter(name, value string) error {
	known, ok := parameters[name]
	switch {
	case name == "service" || name == "servicefile" || name == "passfile":
		return fmt.Errorf("connection URL: %s is not supported; everything has to stand in the URL itself", name)
	case name == "sslpassword":
		return errors.New("connection URL: sslpassword is not supported, as pg_dump would not get it; use a key file without a password")
	case !ok:
		return fmt.Errorf("connection URL: unknown parameter %q; remove it (settings of the server go into options=-c%%20name%%3Dvalue)", name)
	case known.values != nil && !slices.Contains(known.values, value):
		return fmt.Errorf("connection URL: %s has to be one of %s", name, strings.Join(known.values, ", "))
	case name == "connect_timeout", strings.HasSuffix(name, "_cache_capacity"):
		if n, err := strconv.Atoi(value); err != nil || n < 0 {
			return fmt.Errorf("connection URL: %s has to be a number", name)
		}
	}
	return nil
}

// url checks the parts and makes a URL of them.
func (p *parts) url() (*URL, error) {
	hosts, err := pairHosts(p.hosts, p.ports)
	switch {
	case err != nil:
		return nil, err
	case p.user == "":
		return nil, errors.New("connection URL: the user name is missing; it stands before the host, as in postgres://user:password@host/database")
	case p.database == "":
		return nil, errors.New("connection URL: the database name is missing; it stands after the host, as in postgres://user:password@host/database")
	case p.secret.password == masked:
		return nil, errors.New("connection URL: its password is ***, so this is a URL copied from a message; put the real password in")
	}
	if err := defaultTLS(p.params); err != nil {
		return nil, err
	}
	secrets := p.secret
	return &URL{hosts: hosts, user: p.user, database: p.database, params: p.params, secret: func() secret { return secrets }}, nil
}

// pairHosts gives each host its port: one port serves all hosts, and an empty one is 5432.
func pairHosts(hosts, ports string) ([]hostPort, error) {
	names, numbers := strings.Split(hosts, ","), strings.Split(ports, ",")
	if len(numbers) != 1 && len(numbers) != len(names) {
		return nil, errors.New("connection URL: give one port for all hosts, or one for each")
	}
	list := make([]hostPort, len(names))
	for i, host := range names {
		if host == "" {
			return nil, errors.New("connection URL: the host is missing; it stands after the password, as in postgres://user:password@host:5432/database")
		}
		if strings.ContainsFunc(host, func(r rune) bool { return r == '@' || unicode.IsSpace(r) || unicode.IsControl(r) }) {
			return nil, errEncode
		}
		number, port := numbers[min(i, len(numbers)-1)], uint64(defaultPort)
		if number != "" {
			var err error
			if port, err = strconv.ParseUint(number, 10, 16); err != nil || port == 0 {
				// What stands here may well be a piece of the password.
				return nil, errors.New("connection URL: the port is not a number from 1 to 65535; if the password " +
					"holds one of the characters / ? # @ : they have to be percent-encoded (%2F %3F %23 %40 %3A)")
			}
		}
		list[i] = hostPort{host: host, port: uint16(port)}
	}
	return list, nil
}

// defaultTLS fills sslmode in, and refuses what libpq refuses: pgx would quietly make it stronger, or not.
func defaultTLS(params map[string]string) error {
	mode, given := params["sslmode"]
	switch {
	case !given && params["sslrootcert"] == systemRoots:
		params["sslmode"] = "verify-full"
	case !given:
		params["sslmode"] = "require"
	case params["sslrootcert"] == systemRoots && mode != "verify-full":
		return errors.New("connection URL: sslrootcert=system needs sslmode=verify-full")
	case params["sslnegotiation"] == "direct" && !slices.Contains([]string{"require", "verify-ca", "verify-full"}, mode):
		return errors.New("connection URL: sslnegotiation=direct needs sslmode=require, verify-ca or verify-full")
	}
	if (params["sslcert"] == "") != (params["sslkey"] == "") {
		return errors.New("connection URL: sslcert and sslkey have to be given together")
	}
	return nil
}

// decode resolves percent-encoding. Unlike in net/url, "+" is no space and all other characters stand for
// themselves; this is libpq's rule.
func decode(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", errEncode
		}
		c, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
		if err != nil || c == 0 {
			return "", errEncode
		}
		b.WriteByte(byte(c))
		i += 2
	}
	return b.String(), nil
}
