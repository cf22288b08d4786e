package migrator_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/foreign"
	"github.com/heroku-migrator/migrator/internal/pgtest"
)

// TestForeign moves schemas that we did not write, with rows that we made up, there, back and there again.
// `make foreign SCHEMAS=dir` gives it a folder of them (each with schema.sql, and super.sql and settings as in
// testdata/cases); without, it moves a small one of ours.
func TestForeign(t *testing.T) {
	t.Parallel()
	root, limit := os.Getenv("FOREIGN_SCHEMAS"), time.Hour
	if root == "" {
		root, limit = "testdata/foreign", 5*time.Minute
	}
	only := strings.FieldsFunc(os.Getenv("FOREIGN_ONLY"), func(r rune) bool { return r == ',' || r == ' ' })
	files, err := filepath.Glob(filepath.Join(root, "*", "schema.sql"))
	require.NoError(t, err)
	require.NotEmpty(t, files, "no schema.sql below %s", root)
	for _, file := range files {
		name := filepath.Base(filepath.Dir(file))
		if len(only) > 0 && !slices.Contains(only, name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			f := &foreignCase{migrationCase: newCase(t, filepath.Dir(file)), limit: limit, name: name}
			f.began = time.Now()
			defer f.report(t)
			f.run(t)
		})
	}
}

type foreignCase struct {
	*migrationCase

	limit time.Duration
	name  string
	began time.Time
	seed  uint64
	stage string // the last one begun

	tables, rows, taken int
}

// report prints a line for the table in bench/RESULTS.md.
func (f *foreignCase) report(t *testing.T) {
	t.Helper()
	outcome := f.stage
	if t.Failed() {
		outcome = "fails: " + outcome
	}
	fmt.Printf("| %s | %d to %d | %d | %d | %d | %s | %s |\n",
		f.name, f.source.Cluster.Version, f.target.Cluster.Version, f.tables, f.rows, f.taken,
		time.Since(f.began).Round(time.Second), outcome)
}

func setting(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

func (f *foreignCase) filler(t *testing.T, db *pgtest.Database) *foreign.Filler {
	t.Helper()
	f.seed++
	seed := f.seed + uint64(setting("FOREIGN_SEED", 1))*100
	filler, err := foreign.NewFiller(t.Context(), db.Connect(t), seed)
	require.NoError(t, err)
	return filler
}

// churn writes here and there.
func (f *foreignCase) churn(t *testing.T, db *pgtest.Database) {
	t.Helper()
	taken, err := f.filler(t, db).Churn(t.Context(), 3)
	require.NoError(t, err)
	f.taken += taken
}

func (f *foreignCase) run(t *testing.T) {
	t.Helper()
	f.stage = "load"
	f.file(t, f.source.AdminURL, "super.sql")
	f.file(t, f.target.AdminURL, "target_super.sql")
	f.file(t, f.source.URL, "schema.sql")
	filler := f.filler(t, f.source)
	var err error
	f.rows, err = filler.Fill(t.Context(), setting("FOREIGN_ROWS", 10))
	require.NoError(t, err)
	f.tables = filler.Tables()
	require.NotZero(t, f.rows)
	t.Logf("%d tables, %d rows; without rows: %v", f.tables, f.rows, filler.Refused)
	// Maintenance changes no schema, but fills what plans are made from.
	_, err = f.source.Connect(t).Exec(t.Context(), `ANALYZE`)
	require.NoError(t, err)
	before := f.schema(t, f.source)

	f.stage = "preflight"
	m := f.migrator(t)
	report, err := m.Preflight(withTimeout(t, f.limit))
	require.NoError(t, err)
	for _, finding := range report.Findings {
		if finding.Severity != migrator.SeverityOK {
			t.Logf("preflight: %s: %s %s %s", finding.Severity, finding.Check, finding.Message, finding.Remedy)
		}
	}
	require.NoError(t, report.Err())

	f.stage = "run until in sync"
	require.NoError(t, m.Run(withTimeout(t, f.limit), migrator.UntilInSync))
	f.requireSameRows(t, "in sync")
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx, "") }()
	defer func() { stop(); <-ended }()

	f.stage = "changes on the source"
	f.churn(t, f.source)
	for turn := range 2 {
		f.command(t, m, migrator.CommandSwitch)
		f.requireSameRows(t, "after the switch")
		if turn == 1 {
			break
		}
		f.stage = "changes on the target"
		f.churn(t, f.target)
		f.command(t, m, migrator.CommandRevert)
		f.requireSameRows(t, "after the revert")
		// Our triggers are there again, so the dump of now leaves them out.
		requireSameLines(t, before, f.without(f.schema(t, f.source)), "the source's schema changed by the revert")
	}
	f.command(t, m, migrator.CommandComplete)
	f.requireNoTrace(t)
	requireSameLines(t, before, f.schema(t, f.source), "after complete, the source's schema is not what it was")
	f.requireSameSchema(t)
	f.stage = "passed"
}

// without leaves our triggers out of a dump.
func (f *foreignCase) without(schema string) string {
	var lines []string
	for line := range strings.SplitSeq(schema, "\n") {
		if !strings.Contains(line, "heroku_migrator") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "\n")
}

func (f *foreignCase) command(t *testing.T, m *migrator.Migrator, name migrator.CommandName) {
	t.Helper()
	f.stage = string(name)
	_, err := m.Do(withTimeout(t, f.limit), name, false)
	require.NoError(t, err, name)
}
