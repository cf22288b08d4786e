// Package foreign moves databases that we did not make. It compares two of them without any of the migrator's own code,
// so that one fault cannot hide another, and it fills tables of a schema that it does not know with rows.
package foreign

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"
)

// others holds the condition for schemas of the application: neither the server's, the platform's, nor ours.
const others = `nspname !~ '^(pg_|information_schema$|heroku_migrator|_heroku$)'`

const digest = `
	SELECT count(*)::text || ' rows, ' || coalesce(md5(string_agg(r, E'\n' ORDER BY r COLLATE "C")), '')
	FROM (SELECT to_jsonb(t)::text AS r FROM ONLY %s t) q`

// Rows returns the number of rows and a digest of them for each ordinary table, by its name. The session's
// search path is the application's, since functions in generated columns and the like may be called.
func Rows(ctx context.Context, conn *pgx.Conn) (map[string]string, error) {
	// A session of the migrator's may have another path than the application's.
	if _, err := conn.Exec(ctx, `SET search_path TO DEFAULT`); err != nil {
		return nil, err
	}
	rows, err := conn.Query(ctx, `
		SELECT quote_ident(nspname) || '.' || quote_ident(relname)
		FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
		WHERE relkind = 'r' AND `+others+` AND NOT EXISTS (
			SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
		ORDER BY 1`)
	if err != nil {
		return nil, err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	digests := make(map[string]string, len(names))
	for len(names) > 0 {
		batch := &pgx.Batch{}
		part := names[:min(100, len(names))]
		names = names[len(part):]
		for _, name := range part {
			batch.Queue(fmt.Sprintf(digest, name)).QueryRow(func(row pgx.Row) error {
				var value string
				if err := row.Scan(&value); err != nil {
					return fmt.Errorf("rows of %s: %w", name, err)
				}
				digests[name] = value
				return nil
			})
		}
		if err := conn.SendBatch(ctx, batch).Close(); err != nil {
			return nil, err
		}
	}
	return digests, nil
}

// noise is what pg_dump writes besides the objects.
var noise = regexp.MustCompile(`^(--|SET |SELECT pg_catalog\.set_config|\\|$)`)

// Schema returns the schema as pg_dump writes it, in lines, and which materialized views hold rows. It leaves out
// owners, privileges, publications, our own schema, and event triggers of a superuser, which belong to the platform.
func Schema(ctx context.Context, pgDump, url string, conn *pgx.Conn) ([]string, error) {
	platform := map[string]bool{}
	rows, err := conn.Query(ctx, `
		SELECT quote_ident(evtname) FROM pg_event_trigger JOIN pg_roles r ON r.oid = evtowner WHERE rolsuper`)
	if err != nil {
		return nil, err
	}
	var name string
	if _, err := pgx.ForEachRow(rows, []any{&name}, func() error { platform[name] = true; return nil }); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, pgDump,
		"--schema-only", "--no-owner", "--no-privileges", "--no-publications",
		"--exclude-schema=heroku_migrator", "--exclude-schema=_heroku", url)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("pg_dump: %w: %s", err, stderr.String())
	}
	var lines []string
	skip := false
	scanner := bufio.NewScanner(bytes.NewReader(out))
	scanner.Buffer(nil, 64<<20)
	for scanner.Scan() {
		line := scanner.Text()
		if rest, ok := strings.CutPrefix(line, "CREATE EVENT TRIGGER "); ok && platform[strings.Fields(rest)[0]] {
			skip = true
		}
		if !skip && !noise.MatchString(line) {
			lines = append(lines, line)
		}
		if skip && strings.HasSuffix(line, ";") {
			skip = false
		}
	}
	if err := scanner.Err(); err != nil {
		return nil, err
	}
	rows, err = conn.Query(ctx, `SELECT format('%I.%I populated: %s', nspname, relname, relispopulated)
		FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE relkind = 'm' AND `+others+` ORDER BY 1`)
	if err != nil {
		return nil, err
	}
	populated, err := pgx.CollectRows(rows, pgx.RowTo[string])
	return append(lines, populated...), err
}

// Differences lists what differs between two maps, at most ten entries.
func Differences(a, b map[string]string) []string {
	var list []string
	for name, digest := range a {
		if b[name] != digest {
			list = append(list, fmt.Sprintf("%s: %s | %s", name, digest, b[name]))
		}
	}
	for name, digest := range b {
		if _, ok := a[name]; !ok {
			list = append(list, fmt.Sprintf("%s: none | %s", name, digest))
		}
	}
	return list[:min(10, len(list))]
}

var (
	query  = regexp.MustCompile(`^CREATE (OR REPLACE )?(MATERIALIZED VIEW|VIEW|RULE|POLICY) `)
	prefix = regexp.MustCompile(`\b(\w+|"[^"]+")\.`)
)

// Unqualified leaves out the qualification of names in views, rules and policies. Servers from version 16 on write
// columns without their table's name where they can, so dumps of two versions differ.
func Unqualified(lines []string) []string {
	list := make([]string, len(lines))
	within := false
	for i, line := range lines {
		if query.MatchString(line) {
			within = true
		}
		if list[i] = line; within {
			list[i] = prefix.ReplaceAllString(line, "")
		}
		if strings.HasSuffix(line, ";") {
			within = false
		}
	}
	return list
}
