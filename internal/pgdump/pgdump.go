// Package pgdump runs pg_dump, and reads the table of contents of the archive that it writes: one entry per object.
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

// Tools is pg_dump's path and version.
type Tools struct {
	Dump    string
	Major   int
	Version string
}

// ErrNotFound says that pg_dump is not installed.
var ErrNotFound = errors.New("pg_dump was not found; install the Postgres client programs (Debian and Ubuntu: " +
	"apt-get install postgresql-client)")

// Find returns the newest pg_dump, or the one given.
func Find(ctx context.Context, dump string) (Tools, error) {
	if dump != "" {
		t, err := version(ctx, dump)
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
		t, err := version(ctx, filepath.Join(dir, "pg_dump"))
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

func version(ctx context.Context, dump string) (Tools, error) {
	out, err := exec.CommandContext(ctx, dump, "--version").Output()
	if err != nil {
		return Tools{}, err
	}
	m := versionText.FindSubmatch(out)
	if m == nil {
		return Tools{}, fmt.Errorf("%q is no version of pg_dump", strings.TrimSpace(string(out)))
	}
	major, err := strconv.Atoi(string(m[2]))
	return Tools{Dump: dump, Major: major, Version: string(m[1])}, err
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
	ID      int // within the dump
	Section Section
	Type    string // as pg_dump names it: TABLE, INDEX, FK CONSTRAINT, …
	Schema  string // empty if the object is in none
	Name    string // as pg_dump tags it: "table constraint" for constraints, triggers, rules, policies and defaults
	Owner   string
	SQL     string
	Drop    string // the statement that drops it, if pg_dump has one
	// Class and OID are the object's row in the catalog. They are zero for a comment, and for what has no row of its
	// own.
	Class, OID uint32
	Needs      []int // IDs of entries that have to be created before, some of which are not definitions
}

// SchemaOptions say what a dump is of.
type SchemaOptions struct {
	// Snapshot is one that was exported. Empty: pg_dump takes its own.
	Snapshot string
	// LeaveOut are schemas that are left out with all that is in them.
	LeaveOut []string
	// LeaveOutTables are relations that are left out: schema and name.
	LeaveOutTables [][2]string
}

// Schema dumps the definition of a database. env is the environment of pg_dump beyond PATH: libpq's variables.
// If pg_dump fails, the error is an [*Error]; if it writes an unknown format, [ErrArchive].
func Schema(ctx context.Context, tools Tools, env []string, o SchemaOptions) ([]Entry, error) {
	args := []string{
		"--schema-only", "--format=custom", "--compress=0",
		"--encoding=UTF8", // what we speak to the target, whatever the source's own is
		"--no-owner", "--no-privileges", "--no-tablespaces", "--no-subscriptions", "--no-publications",
		"--no-security-labels",
		"--quote-all-identifiers", "--lock-wait-timeout=2000", "--no-password",
	}
	if o.Snapshot != "" {
		args = append(args, "--snapshot="+o.Snapshot)
	}
	for _, name := range o.LeaveOut {
		args = append(args, "--exclude-schema="+pattern(name))
	}
	for _, name := range o.LeaveOutTables {
		args = append(args, "--exclude-table="+pattern(name[0])+"."+pattern(name[1]))
	}
	data, err := run(ctx, tools.Dump, env, args...)
	if err != nil {
		return nil, err
	}
	return readArchive(data)
}

// pattern is a name in the language of pg_dump's options, in which quotes take the meaning from every other character.
func pattern(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

func run(ctx context.Context, program string, env []string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "PGAPPNAME=heroku_migrator"}, env...)
	// where buildpacks put libraries
	for _, name := range []string{"LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "HOME", "TMPDIR"} {
		if value, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
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
		"terminating connection", "server closed the connection", "connection to server", "connection has been closed",
		"could not receive data",
		"could not send data", "the database system is", "connection slots", "deadlock detected", "canceling statement",
		"cache lookup failed", "could not open relation", "does not exist",
	} {
		if strings.Contains(e.Stderr, text) {
			return true
		}
	}
	return false
}
