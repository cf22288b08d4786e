package migrator_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/pgtest"
	"github.com/heroku-migrator/migrator/internal/shop"
)

func TestMain(m *testing.M) {
	if os.Getenv("CHILD_SOURCE") != "" {
		os.Exit(child())
	}
	os.Exit(pgtest.Main(m))
}

// pair is a source and a target on real servers, with the roles that the platforms give.
type pair struct {
	source, target *pgtest.Database
	pgDump         string
	capture        migrator.CaptureMethod // by decoding in the subtests of TestDecoding
	slotTimeout    time.Duration          // other tests on the same server write, too
}

func newPair(t *testing.T, opts ...pgtest.DatabaseOption) *pair {
	t.Helper()
	p := &pair{}
	var purpose string
	if strings.HasPrefix(t.Name(), "TestDecoding/") {
		p.capture, p.slotTimeout, purpose = migrator.CaptureDecoding, 50*time.Second, "decoding"
	}
	source := pgtest.SharedFor(t, pgtest.SourceVersion(), purpose)
	target := pgtest.SharedFor(t, pgtest.TargetVersion(), purpose)
	tools, err := source.PgTools(t.Context())
	require.NoError(t, err)
	p.source, p.target, p.pgDump = p.newSource(t, source), target.NewTarget(t, opts...), filepath.Join(tools, "pg_dump")
	return p
}

// newSource makes a source on a server, whose role may do what the method of capture needs.
func (p *pair) newSource(t *testing.T, server *pgtest.Cluster) *pgtest.Database {
	t.Helper()
	if p.capture == migrator.CaptureDecoding {
		return server.NewSource(t, pgtest.WithReplication())
	}
	return server.NewSource(t)
}

// open returns both ends, as a process of its own would open them.
func (p *pair) open(t *testing.T) (*migrator.Heroku, *migrator.PlanetScale) {
	t.Helper()
	src, err := migrator.OpenHeroku(t.Context(), p.source.URL, migrator.HerokuConfig{PgDump: p.pgDump,
		Capture: p.capture})
	require.NoError(t, err)
	t.Cleanup(src.Close)
	dst, err := migrator.OpenPlanetScale(t.Context(), p.target.URL, migrator.PlanetScaleConfig{Capture: p.capture,
		SlotTimeout: p.slotTimeout})
	require.NoError(t, err)
	t.Cleanup(dst.Close)
	return src, dst
}

func (p *pair) migrator(t *testing.T, change ...func(*migrator.Config)) *migrator.Migrator {
	t.Helper()
	src, dst := p.open(t)
	cfg := migrator.Config{Source: src, Target: dst, Logger: testLogger(t),
		Copy: migrator.CopyConfig{ChunkBytes: 256 << 10}}
	// sequences are compared exactly; TestSequencesDrawnThroughTheSwitch has the margins
	cfg.Cutover.SequenceMargin = -1
	for _, c := range change {
		c(&cfg)
	}
	m, err := migrator.New(cfg)
	require.NoError(t, err)
	return m
}

func testLogger(t *testing.T) *slog.Logger {
	t.Helper()
	return slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	if w.t.Context().Err() == nil { // not after the test's end
		w.t.Log(string(b[:len(b)-1]))
	}
	return len(b), nil
}

// sql runs statements on the source.
func (p *pair) sql(t *testing.T, statements ...string) {
	t.Helper()
	c := p.source.Connect(t)
	defer c.Close(t.Context())
	for _, s := range statements {
		_, err := c.Exec(t.Context(), s)
		require.NoError(t, err, s)
	}
}

// requireEqual compares every row of every table on both sides.
func (p *pair) requireEqual(t *testing.T) {
	t.Helper()
	src, dst := p.open(t)
	cat, err := src.Catalog(t.Context())
	require.NoError(t, err)
	report, err := migrator.Verify(t.Context(), src, dst, cat.Tables, migrator.VerifyConfig{})
	require.NoError(t, err)
	require.Empty(t, report.Differences)
	require.NotZero(t, report.Tables)
}

// requireNoTrace checks I8.
func (p *pair) requireNoTrace(t *testing.T) {
	t.Helper()
	for _, db := range []*pgtest.Database{p.source, p.target} {
		c := db.ConnectAdmin(t)
		execute(t, c, `SET search_path = pg_catalog`) // the database may say otherwise
		var triggers, schemas, functions, slots int
		require.NoError(t, c.QueryRow(t.Context(), `
			SELECT (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'heroku\_migrator%'),
			       (SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'heroku\_migrator%'),
			       (SELECT count(*) FROM pg_proc WHERE proname LIKE 'heroku\_migrator%'),
			       (SELECT count(*) FROM pg_replication_slots WHERE database = current_database()) + (SELECT count(*)
			FROM pg_publication WHERE pubname LIKE 'heroku\_migrator%')`).
			Scan(&triggers, &schemas, &functions, &slots))
		require.Zero(t, triggers, "triggers left")
		require.Zero(t, schemas, "schemas left")
		require.Zero(t, functions, "functions left")
		require.Zero(t, slots, "slots or publications left")
	}
}

func (p *pair) shop(t *testing.T, scale float64) {
	t.Helper()
	c := p.source.Connect(t)
	require.NoError(t, shop.Install(t.Context(), c))
	_, err := shop.Seed(t.Context(), c, scale)
	require.NoError(t, err)
}

// acl reads every privilege of the source, as it is stored.
func (p *pair) acl(t *testing.T) map[string]string {
	t.Helper()
	c := p.source.ConnectAdmin(t)
	rows, err := c.Query(t.Context(), `
		SELECT 'relation ' || c.oid::regclass::text, coalesce(relacl::text, 'default') FROM pg_class c JOIN pg_namespace
		n ON n.oid = c.relnamespace
		WHERE relkind IN ('r','p','v','m','S') AND nspname NOT LIKE 'pg\_%' AND nspname NOT IN ('information_schema',
		'heroku_migrator')
		UNION ALL
		SELECT 'column ' || attrelid::regclass::text || '.' || attname, attacl::text FROM pg_attribute WHERE attacl IS
		NOT NULL
		UNION ALL
		SELECT 'schema ' || nspname, coalesce(nspacl::text, 'default') FROM pg_namespace WHERE nspname NOT LIKE 'pg\_%'
		AND nspname <> 'heroku_migrator'
		UNION ALL
		SELECT 'database', coalesce(datacl::text, 'default') FROM pg_database WHERE datname = current_database()`)
	require.NoError(t, err)
	defer rows.Close()
	acl := map[string]string{}
	for rows.Next() {
		var name, value string
		require.NoError(t, rows.Scan(&name, &value))
		acl[name] = value
	}
	require.NoError(t, rows.Err())
	return acl
}

func withTimeout(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
