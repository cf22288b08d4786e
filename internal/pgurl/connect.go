package pgurl

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// systemRoots, as the value of sslrootcert, stands for the certificate authorities that the system trusts.
	systemRoots = "system"
	// nowhere is a path at which no file can be, neither now nor later.
	nowhere = "/dev/null/none"
)

// ConnConfig is the URL in pgx's words. Nothing but the URL decides where and how it connects; see the
// package's comment. Files that the URL names (sslrootcert, sslcert, sslkey) are read now.
//
// sslmode=verify-ca and verify-full without sslrootcert trust the system's certificate authorities.
func (u URL) ConnConfig() (*pgx.ConnConfig, error) {
	// Every setting that pgx would otherwise take from the environment or the home directory is given,
	// if only as an empty one.
	settings := map[string]string{
		"passfile": nowhere,
		"sslcert":  "", "sslkey": "", "sslrootcert": "", "sslpassword": "", "sslcertmode": "allow", "sslsni": "1",
		"sslnegotiation": "postgres", "connect_timeout": "0", "target_session_attrs": "any",
		"min_protocol_version": "", "max_protocol_version": "", "channel_binding": "prefer", "require_auth": "",
	}
	for name, value := range u.params {
		if parameters[name].pgx {
			settings[name] = value
		}
	}
	settings["host"], settings["port"] = u.list()
	settings["user"], settings["database"], settings["password"] = u.user, u.database, u.password()

	// PGSERVICE alone cannot be overridden by an empty value, but by a service that says nothing.
	if os.Getenv("PGSERVICE") != "" {
		file, err := emptyServiceFile()
		if err != nil {
			return nil, fmt.Errorf("connection URL: to get round the environment variable PGSERVICE: %w", err)
		}
		defer func() { _ = os.Remove(file) }()
		settings["service"], settings["servicefile"] = emptyService, file
	}

	cfg, err := pgx.ParseConfig(keywordValue(settings))
	if err != nil {
		if parseErr, ok := errors.AsType[*pgconn.ParseConfigError](err); ok {
			parseErr.ConnString = "" // it would be quoted
		}
		text := strings.TrimPrefix(err.Error(), "cannot parse ``: ")
		return nil, errors.New("connection URL: " + Redact(text, &u)) // not wrapped: the error holds the password
	}
	maps.DeleteFunc(cfg.RuntimeParams, func(name, _ string) bool {
		_, ok := u.params[name]
		return !ok // from PGAPPNAME, PGOPTIONS, PGTZ
	})
	return cfg, nil
}

const emptyService = "none"

func emptyServiceFile() (path string, err error) {
	f, err := os.CreateTemp("", "heroku-migrator-*.conf")
	if err != nil {
		return "", err
	}
	_, err = f.WriteString("[" + emptyService + "]\n")
	return f.Name(), errors.Join(err, f.Close())
}

// keywordValue writes the settings as libpq's list of key='value' pairs.
func keywordValue(settings map[string]string) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		b.WriteString(name + "='" + kvEscaper.Replace(settings[name]) + "' ")
	}
	return b.String()
}

var kvEscaper = strings.NewReplacer(`\`, `\\`, `'`, `\'`)

// LibpqEnv is the URL as environment variables for a libpq program such as pg_dump, so that nothing secret
// stands in its arguments. Append them to a minimal environment (PATH, and no PG* variables). They
// switch off password files and the certificates in ~/.postgresql, and so mean what
// [URL.ConnConfig] means. Give the program --no-password, or it asks on the terminal for one that is missing;
// and pg_restore wants a --dbname all the same: the empty string will do.
//
// Some settings are younger than the programs in use, Debian 12's being version 15:
//
//   - sslrootcert=system came with libpq 16. Older ones would take it for a file's name, so the file in
//     which this system keeps the authorities it trusts is named instead; verification is as strict.
//     Where no such file is found, "system" stays, and only 16 and newer can connect.
//   - sslnegotiation=direct came with 17. Older ones ask for TLS in the usual way, which servers
//     that know the direct one accept as well. It saves a round trip and has no other effect.
//   - sslcertmode and require_auth came with 16, min_protocol_version and max_protocol_version with 18.
//     Older ones ignore them.
func (u URL) LibpqEnv() []string {
	env := map[string]string{
		"PGUSER": u.user, "PGDATABASE": u.database,
		"PGPASSFILE": nowhere, "PGSSLCERT": nowhere, "PGSSLKEY": nowhere, "PGSSLROOTCERT": nowhere,
		"PGGSSENCMODE": "disable", // pgx does not have it
	}
	env["PGHOST"], env["PGPORT"] = u.list()
	if password := u.password(); password != "" {
		env["PGPASSWORD"] = password
	}
	for name, value := range u.params {
		if variable := parameters[name].env; variable != "" && value != "" {
			env[variable] = value
		}
	}
	roots := u.params["sslrootcert"]
	if roots == systemRoots || (roots == "" && strings.HasPrefix(u.params["sslmode"], "verify-")) {
		env["PGSSLROOTCERT"] = systemRootsFile()
	}
	list := make([]string, 0, len(env))
	for _, name := range slices.Sorted(maps.Keys(env)) {
		list = append(list, name+"="+env[name])
	}
	return list
}

// systemRootsFile finds the file in which the system keeps the certificate authorities it trusts, at the
// places where Go looks too. Without one, it returns "system".
func systemRootsFile() string {
	for _, file := range []string{
		os.Getenv("SSL_CERT_FILE"),
		"/etc/ssl/certs/ca-certificates.crt",                // Debian, Ubuntu, Alpine, Heroku
		"/etc/pki/tls/certs/ca-bundle.crt",                  // Fedora, RHEL 6
		"/etc/ssl/ca-bundle.pem",                            // openSUSE
		"/etc/pki/tls/cacert.pem",                           // OpenELEC
		"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // RHEL 7 and newer
		"/etc/ssl/cert.pem",                                 // Alpine, macOS, the BSDs
	} {
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() {
			return file
		}
	}
	return systemRoots
}
