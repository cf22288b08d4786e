// Package pgdump runs pg_dump and pg_restore, and takes what they print apart into one entry per object.
// The database's password is handed over in the environment, so it is not visible in the process list.
package pgdump

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Tools are the paths of pg_dump and pg_restore, and pg_dump's major version.
type Tools struct {
	Dump, Restore string
	Major         int
	Version       string
}

// ErrNotFound says that pg_dump or pg_restore is not installed.
var ErrNotFound = errors.New("pg_dump and pg_restore were not found; install the Postgres client programs (Debian and Ubuntu: apt-get install postgresql-client)")

// Find returns the newest pair of programs, or the one given.
func Find(ctx context.Context, dump, restore string) (Tools, error) {
	if dump != "" {
		if restore == "" {
			restore = filepath.Join(filepath.Dir(dump), "pg_restore")
		}
		t, err := version(ctx, dump, restore)
		if err != nil {
			return t, fmt.Errorf("%s: %w", dump, err)
		}
		return t, nil
	}
	var dirs []string
	if path, err := exec.LookPath("pg_dump"); err == nil {
		dirs = append(dirs, filepath.Dir(path))
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/libpq/bin",
		"/opt/homebrew/opt/postgresql@*/bin", "/usr/local/opt/postgresql@*/bin", "/app/.apt/usr/lib/postgresql/*/bin",
	} {
		found, _ := filepath.Glob(pattern) // the patterns are well formed
		dirs = append(dirs, found...)
	}
	var best Tools
	for _, dir := range dirs {
		t, err := version(ctx, filepath.Join(dir, "pg_dump"), filepath.Join(dir, "pg_restore"))
		if err == nil && t.Major > best.Major {
			best = t
		}
	}
	if best.Major == 0 {
		return best, ErrNotFound
	}
	return best, nil
}

var versionText = regexp.MustCompile(`\(PostgreSQL\) ((\d+)[^ ]*)`)

func version(ctx context.Context, dump, restore string) (Tools, error) {
	if _, err := os.Stat(restore); err != nil {
		return Tools{}, err
	}
	out, err := exec.CommandContext(ctx, dump, "--version").Output()
	if err != nil {
		return Tools{}, err
	}
	m := versionText.FindSubmatch(out)
	if m == nil {
		return Tools{}, fmt.Errorf("%q is no version of pg_dump", strings.TrimSpace(string(out)))
	}
	major, err := strconv.Atoi(string(m[2]))
	return Tools{Dump: dump, Restore: restore, Major: major, Version: string(m[1])}, err
}

// Section is a part of a dump.
type Section string

// The sections that hold definitions.
const (
	PreData  Section = "pre-data"
	PostData Section = "post-data"
)

// Entry is the definition of one object.
type Entry struct {
	Section Section
	Type    string // as pg_restore names it: TABLE, INDEX, FK CONSTRAINT, …
	Schema  string // empty if the object is in none
	Name    string // as pg_restore prints it: "table constraint" for constraints, triggers and rules
	SQL     string
}

// Schema dumps the definition of a database, but for the schema left out. env is the environment of the
// programs beyond PATH: libpq's variables. snapshot is one that was exported; empty: one of its own.
func Schema(ctx context.Context, tools Tools, env []string, leaveOut, snapshot string) ([]Entry, error) {
	args := []string{
		"--schema-only", "--format=custom", "--compress=0",
		"--encoding=UTF8", // what we speak to the target, whatever the source's own is
		"--no-owner", "--no-privileges", "--no-tablespaces", "--no-subscriptions", "--no-publications", "--no-security-labels",
		"--quote-all-identifiers", "--lock-wait-timeout=2000", "--no-password", "--exclude-schema=" + leaveOut,
	}
	if snapshot != "" {
		args = append(args, "--snapshot="+snapshot)
	}
	archive, err := run(ctx, tools.Dump, env, nil, args...)
	if err != nil {
		return nil, err
	}
	var entries []Entry
	for _, section := range []Section{PreData, PostData} {
		script, err := run(ctx, tools.Restore, nil, archive, "--section="+string(section), "--no-owner",
			"--no-privileges", "--no-tablespaces", "--file=-")
		if err != nil {
			return nil, err
		}
		entries = append(entries, split(section, string(script))...)
	}
	return entries, nil
}

var header = regexp.MustCompile(`(?m)^--\n-- Name: (.*); Type: ([A-Z ]+); Schema: (.*); Owner: .*\n--\n`)

// setting is what pg_restore writes behind an object for the sake of the next one, which depends on what else there is.
var setting = regexp.MustCompile(`(\s+SET default_(table_access_method|tablespace) = [^\n]*;)+$`)

// split takes a script apart at the headers that pg_restore writes before each object.
func split(section Section, script string) []Entry {
	var entries []Entry
	heads := header.FindAllStringSubmatchIndex(script, -1)
	for i, h := range heads {
		end := len(script)
		if i+1 < len(heads) {
			end = heads[i+1][0]
		}
		e := Entry{Section: section, Name: script[h[2]:h[3]], Type: script[h[4]:h[5]], Schema: script[h[6]:h[7]]}
		if e.Schema == "-" {
			e.Schema = ""
		}
		// psql's \unrestrict may stand at the end of the script, after the last object.
		body, _, _ := strings.Cut(script[h[1]:end], "\n--\n-- PostgreSQL database dump complete\n--")
		e.SQL = setting.ReplaceAllString(strings.TrimSpace(body), "")
		entries = append(entries, e)
	}
	return entries
}

func run(ctx context.Context, program string, env []string, stdin []byte, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "PGAPPNAME=heroku_migrator"}, env...)
	for _, name := range []string{"LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "HOME", "TMPDIR"} { // where buildpacks put libraries
		if value, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, &Error{Program: filepath.Base(program), Stderr: strings.TrimSpace(stderr.String()), Err: err}
	}
	return stdout.Bytes(), nil
}

// Error says that one of the programs failed.
type Error struct {
	Program string
	Stderr  string
	Err     error
}

func (e *Error) Error() string { return fmt.Sprintf("%s: %v: %s", e.Program, e.Err, e.Stderr) }

func (e *Error) Unwrap() error { return e.Err }

// LockTimeout tells whether pg_dump gave up waiting for a lock.
func (e *Error) LockTimeout() bool {
	return strings.Contains(e.Stderr, "LOCK TABLE") && strings.Contains(e.Stderr, "timeout")
}

// Passing tells whether what it failed at may be gone the next time: a connection that was cut, a server that starts,
// a table that was dropped while it was dumped.
func (e *Error) Passing() bool {
	if strings.Contains(e.Stderr, "authentication") || strings.Contains(e.Stderr, "FATAL:  database ") {
		return false
	}
	for _, text := range []string{
		"terminating connection", "server closed the connection", "connection to server", "connection has been closed", "could not receive data",
		"could not send data", "the database system is", "connection slots", "deadlock detected", "canceling statement",
		"cache lookup failed", "could not open relation", "does not exist",
	} {
		if strings.Contains(e.Stderr, text) {
			return true
		}
	}
	return false
}
