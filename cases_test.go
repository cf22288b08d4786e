package migrator_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/foreign"
	"github.com/heroku-migrator/migrator/internal/pgtest"
)

// TestCases moves small, difficult databases there and back and there again. See testdata/cases/README.md.
func TestCases(t *testing.T) {
	t.Parallel()
	dirs, err := filepath.Glob("testdata/cases/*/source.sql")
	require.NoError(t, err)
	require.NotEmpty(t, dirs)
	for _, file := range dirs {
		dir := filepath.Dir(file)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			t.Parallel()
			if reason, err := os.ReadFile(filepath.Join(dir, "pending")); err == nil {
				t.Skipf("known not to pass yet: %s", reason)
			}
			newCase(t, dir).run(t)
		})
	}
}

// migrationCase is one small database: SQL files in a folder, and the pair of databases that it is moved between.
type migrationCase struct {
	*pair

	dir      string
	settings map[string]string
	psql     string
}

const caseFlow = "sync switch write revert switch complete"

func newCase(t *testing.T, dir string) *migrationCase {
	t.Helper()
	c := &migrationCase{dir: dir, settings: map[string]string{
		"SRC_VERSION": strconv.Itoa(pgtest.SourceVersion()),
		"DST_VERSION": strconv.Itoa(pgtest.TargetVersion()),
		"FLOW":        caseFlow,
	}}
	assignment := regexp.MustCompile(`(?m)([A-Z_]+)=("([^"]*)"|\S*)`)
	for _, m := range assignment.FindAllStringSubmatch(c.read("settings"), -1) {
		c.settings[m[1]] = strings.Trim(m[2], `"`)
	}
	// Whatever concerns a whole server, as roles and server settings do, needs a server of its own.
	own := strings.Contains(c.read("super.sql")+c.read("target_super.sql"), "ROLE")
	source := c.cluster(t, "SRC", own)
	target := c.cluster(t, "DST", own)
	tools, err := target.PgTools(t.Context()) // of the newer one: both sides are dumped in one way
	require.NoError(t, err)
	c.psql = filepath.Join(tools, "psql")
	c.pair = &pair{source: source.NewSource(t), target: target.NewTarget(t), pgDump: filepath.Join(tools, "pg_dump")}
	return c
}

func (c *migrationCase) cluster(t *testing.T, side string, own bool) *pgtest.Cluster {
	t.Helper()
	version, err := strconv.Atoi(c.settings[side+"_VERSION"])
	require.NoError(t, err)
	opts := pgtest.Options{Settings: map[string]string{}}
	options := regexp.MustCompile(`-c ([a-z_.]+)=(\S+)`)
	for _, option := range options.FindAllStringSubmatch(c.settings[side+"_OPTS"], -1) {
		opts.Settings[option[1]] = option[2]
	}
	if !own && len(opts.Settings) == 0 {
		return pgtest.SharedFor(t, version, "cases "+side)
	}
	cluster, err := pgtest.StartWith(t.Context(), version, opts)
	require.NoError(t, err)
	t.Cleanup(func() { _ = cluster.Close(context.Background()) })
	return cluster
}

// read returns a file of the case; "" if there is none.
func (c *migrationCase) read(name string) string {
	content, err := os.ReadFile(filepath.Join(c.dir, name))
	if err != nil {
		return ""
	}
	return string(content)
}

// file runs one of the case's files, if it is there. A case names the source's role app_owner, the target's ps, and
// both databases app.
func (c *migrationCase) file(t *testing.T, url, name string) {
	t.Helper()
	sql := c.read(name)
	if sql == "" {
		return
	}
	names := map[string]string{
		`\bapp_owner\b`: pgx.Identifier{c.source.Role}.Sanitize(), `\bps\b`: pgx.Identifier{c.target.Role}.Sanitize(),
		`\bDATABASE app\b`: "DATABASE " + pgx.Identifier{c.nameOf(url)}.Sanitize(),
	}
	if name == "schema.sql" { // somebody else's, in which a word may be anything
		names = nil
	}
	for old, value := range names {
		sql = regexp.MustCompile(old).ReplaceAllLiteralString(sql, value)
	}
	cmd := exec.CommandContext(t.Context(), c.psql, url, "-Xq", "-v", "ON_ERROR_STOP=1", "-f", "-")
	cmd.Stdin = strings.NewReader(sql)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s: %s", name, out)
}

func (c *migrationCase) nameOf(url string) string {
	if url == c.target.URL || url == c.target.AdminURL {
		return c.target.Name
	}
	return c.source.Name
}

func (c *migrationCase) open(t *testing.T) *migrator.Migrator {
	t.Helper()
	return c.migrator(t)
}

func (c *migrationCase) rows(t *testing.T) (source, target map[string]string) {
	t.Helper()
	// The superuser sees every row; where reading calls functions with bare names, the role has the path for them.
	read := func(db *pgtest.Database) (rows map[string]string) {
		var err error
		for _, url := range []string{db.AdminURL, db.URL} {
			var conn *pgx.Conn
			if conn, err = pgx.Connect(t.Context(), url); err != nil {
				continue
			}
			rows, err = foreign.Rows(t.Context(), conn)
			_ = conn.Close(t.Context())
			if err == nil {
				break
			}
		}
		require.NoError(t, err)
		return rows
	}
	return read(c.source), read(c.target)
}

func (c *migrationCase) schema(t *testing.T, db *pgtest.Database) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), db.AdminURL)
	require.NoError(t, err)
	defer conn.Close(t.Context())
	lines, err := foreign.Schema(t.Context(), c.pgDump, db.AdminURL, conn)
	require.NoError(t, err)
	return strings.Join(lines, "\n")
}

func (c *migrationCase) requireSameRows(t *testing.T, when string) {
	t.Helper()
	source, target := c.rows(t)
	require.Empty(t, foreign.Differences(source, target), "%s: rows differ", when)
}

func (c *migrationCase) run(t *testing.T) {
	t.Helper()
	c.file(t, c.source.AdminURL, "super.sql")
	c.file(t, c.target.AdminURL, "target_super.sql")
	c.file(t, c.source.URL, "source.sql")
	before := c.schema(t, c.source)

	report, err := c.open(t).Preflight(withTimeout(t, 5*time.Minute))
	require.NoError(t, err)
	if expected, refused := strings.CutPrefix(strings.TrimSpace(c.read("expect")), "refused "); refused {
		err := report.Err()
		require.Error(t, err, "preflight lets it pass")
		require.Regexp(t, expected, err.Error())
		if c.read("mend.sql")+c.read("target_mend.sql") == "" {
			return
		}
		c.file(t, c.source.URL, "mend.sql") // as the remedy says
		c.file(t, c.target.URL, "target_mend.sql")
		before = c.schema(t, c.source)
		report, err = c.open(t).Preflight(withTimeout(t, 5*time.Minute))
		require.NoError(t, err)
	}
	require.NoError(t, report.Err())

	m := c.open(t)
	require.NoError(t, m.Run(withTimeout(t, 5*time.Minute), migrator.UntilInSync))
	c.requireSameRows(t, "in sync")
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx, "") }()
	defer func() { stop(); <-ended }()
	for step := range strings.FieldsSeq(c.settings["FLOW"]) {
		c.step(t, m, step)
	}

	if strings.Contains(c.settings["FLOW"], "complete") {
		c.requireNoTrace(t)
		if c.read("sync.sql")+c.read("target.sql") == "" {
			requireSameLines(t, before, c.schema(t, c.source), "the source's schema is not what it was")
		}
	}
	c.requireSameSchema(t)
}

// requireSameSchema compares the dumps of both sides, which are of one version of pg_dump.
func (c *migrationCase) requireSameSchema(t *testing.T) {
	t.Helper()
	source, target := c.schema(t, c.source), c.schema(t, c.target)
	if c.source.Cluster.Version != c.target.Cluster.Version {
		source = strings.Join(foreign.Unqualified(strings.Split(source, "\n")), "\n")
		target = strings.Join(foreign.Unqualified(strings.Split(target, "\n")), "\n")
	}
	requireSameLines(t, source, target, "the schemas differ")
}

func (c *migrationCase) step(t *testing.T, m *migrator.Migrator, step string) {
	t.Helper()
	switch step {
	case "sync":
		c.file(t, c.source.URL, "sync.sql")
		require.Eventually(t, func() bool {
			source, target := c.rows(t)
			return len(foreign.Differences(source, target)) == 0
		}, 3*time.Minute, 200*time.Millisecond, "what was written on the source does not arrive")
	case "switch":
		do(t, m, migrator.CommandSwitch)
		c.requireSameRows(t, "after the switch")
	case "write":
		c.file(t, c.target.URL, "target.sql")
	case "revert":
		do(t, m, migrator.CommandRevert)
		c.requireSameRows(t, "after the revert")
	case "complete":
		do(t, m, migrator.CommandComplete)
	default:
		t.Fatalf("unknown step %q", step)
	}
}

// requireSameLines shows the lines that only one of two texts has, rather than both as a whole.
func requireSameLines(t *testing.T, a, b, message string) {
	t.Helper()
	if a == b {
		return
	}
	var out bytes.Buffer
	left, right := strings.Split(a, "\n"), strings.Split(b, "\n")
	only := func(sign string, these, those []string) {
		n := 0
		for _, line := range these {
			if !slices.Contains(those, line) && n < 20 {
				n++
				out.WriteString(sign + line + "\n")
			}
		}
	}
	only("< ", left, right)
	only("> ", right, left)
	if out.Len() == 0 {
		for i := range min(len(left), len(right)) {
			if left[i] != right[i] {
				out.WriteString("the order: < " + left[i] + " > " + right[i])
				break
			}
		}
	}
	t.Errorf("%s:\n%s", message, out.String())
}
