package dashboard

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/pgtest"
	"github.com/heroku-migrator/migrator/internal/shop"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// pair is a source and a target on real servers.
type pair struct {
	source, target *pgtest.Database
	pgDump         string
}

func newPair(t *testing.T) *pair {
	t.Helper()
	source := pgtest.Shared(t, pgtest.SourceVersion())
	target := pgtest.Shared(t, pgtest.TargetVersion())
	tools, err := source.PgTools(t.Context())
	require.NoError(t, err)
	return &pair{source: source.NewSource(t), target: target.NewTarget(t), pgDump: filepath.Join(tools, "pg_dump")}
}

// process is the program that serves the dashboard, as one that is deployed: stop ends it, and another one may follow.
func (p *pair) process(t *testing.T, change ...func(*Config)) (s *site, stop func()) {
	t.Helper()
	src, err := migrator.OpenHeroku(t.Context(), p.source.URL, migrator.HerokuConfig{PgDump: p.pgDump})
	require.NoError(t, err)
	dst, err := migrator.OpenPlanetScale(t.Context(), p.target.URL, migrator.PlanetScaleConfig{})
	require.NoError(t, err)
	log := NewLog(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn}), 1000)
	m, err := migrator.New(migrator.Config{
		Source: src, Target: dst, Logger: slog.New(log), HoldBeforeCopy: true, Copy: migrator.CopyConfig{ChunkBytes: 256 << 10},
	})
	require.NoError(t, err)
	cfg := Config{Password: password, SourceURL: p.source.URL, TargetURL: p.target.URL, Log: log}
	for _, c := range change {
		c(&cfg)
	}
	d, err := New(m, cfg)
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.Handle("/admin/migration/", http.StripPrefix("/admin/migration", d))
	server := httptest.NewServer(mux)
	stop = sync.OnceFunc(func() {
		d.Close()
		server.Close()
		src.Close()
		dst.Close()
	})
	t.Cleanup(stop)
	return &site{Dashboard: d, url: server.URL + "/admin/migration", client: server.Client()}, stop
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	if w.t.Context().Err() == nil { // not after the test's end
		w.t.Log(string(b[:len(b)-1]))
	}
	return len(b), nil
}

// await waits as a script does: it asks for the status until the phase is there, and gives up when an error shows.
func (s *site) await(t *testing.T, phase string) map[string]any {
	t.Helper()
	deadline := time.Now().Add(5 * time.Minute)
	for {
		st := s.get(t, "/status").json
		switch {
		case st["phase"] == phase:
			return st
		case st["phase"] == "error", time.Now().After(deadline):
			t.Fatalf("phase %v instead of %s: %v", st["phase"], phase, st["error"])
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// knows waits until the process knows that a migration is under way.
func (s *site) knows(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool { return s.get(t, "/status").json["migration_id"] != nil }, time.Minute, 50*time.Millisecond)
}

// succeed posts, and waits for the end of what takes long.
func (s *site) succeed(t *testing.T, path string) answer {
	t.Helper()
	began := time.Now()
	defer func() { t.Logf("%s: %s", path, time.Since(began).Round(time.Millisecond)) }()
	a := s.post(t, path)
	if a.status == http.StatusAccepted {
		require.Eventually(t, func() bool { return s.get(t, "/status").json["running"] == nil }, 5*time.Minute, 200*time.Millisecond)
		last := s.get(t, "/status").json["last_command"].(map[string]any)
		require.Equal(t, true, last["success"], last["message"])
		return a
	}
	require.Equal(t, http.StatusOK, a.status, "%s: %s", path, a.body)
	require.Equal(t, true, a.json["success"])
	return a
}

func count(t *testing.T, db *pgtest.Database, sql string) (n int64) {
	t.Helper()
	c, err := pgx.Connect(t.Context(), db.URL)
	require.NoError(t, err)
	defer c.Close(context.Background())
	require.NoError(t, c.QueryRow(t.Context(), sql).Scan(&n))
	return n
}

func execute(t *testing.T, db *pgtest.Database, sql string) error {
	t.Helper()
	c, err := pgx.Connect(t.Context(), db.URL)
	require.NoError(t, err)
	defer c.Close(context.Background())
	_, err = c.Exec(t.Context(), sql)
	return err
}

// What a script for the tool before this one does: start, wait for ready_to_copy, start the copy, wait for replicating, switch, revert, switch,
// clean up. In between the process is restarted twice, the application writes, and rows are compared.
func TestWholeMigrationOverHTTP(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	c := p.source.Connect(t)
	require.NoError(t, shop.Install(t.Context(), c))
	_, err := shop.Seed(t.Context(), c, 0.05)
	require.NoError(t, err)
	require.NoError(t, execute(t, p.source, `CREATE TABLE notes (id int PRIMARY KEY, text text); INSERT INTO notes VALUES (1, 'from the source')`))

	writers, err := shop.StartWriters(t.Context(), p.source.URL, 3, shop.Options{Rate: 60, Rest: 4, Seed: 6})
	require.NoError(t, err)
	defer writers.Stop()

	s, stop := p.process(t)
	st := s.await(t, "waiting")
	require.Nil(t, st["started_at"])
	for _, path := range []string{"/start-copy", "/pause-sync", "/resume-sync", "/switch-traffic", "/revert-switch", "/cleanup", "/abort", "/retry", "/reset", "/verify"} {
		a := s.post(t, path)
		require.Equal(t, http.StatusConflict, a.status, "%s: %s", path, a.body)
		require.Equal(t, "wrong_phase", a.json["code"], path)
	}
	checks := s.get(t, "/preflight-checks").json
	require.Equal(t, true, checks["ok"], checks)
	require.NotEmpty(t, checks["findings"])

	require.Equal(t, "starting", s.succeed(t, "/start-migration").json["phase"])
	st = s.await(t, "ready_to_copy")
	require.NotNil(t, st["started_at"])
	require.Equal(t, http.StatusConflict, s.post(t, "/start-migration").status)
	stop()

	s, stop = p.process(t) // restarted: it goes on, and still holds
	require.Equal(t, "ready_to_copy", s.await(t, "ready_to_copy")["phase"])
	s.succeed(t, "/start-copy")
	reports := make(chan *Report, 4)
	to := &receiver{}
	s, _ = p.process(t, func(cfg *Config) { // both are there for a while, as when a dyno is replaced
		cfg.OnReport = func(_ context.Context, r *Report) { reports <- r }
		cfg.Notifier = to
	})
	s.knows(t)
	stop() // in the middle of the copy, or soon after
	st = s.await(t, "replicating")
	require.InDelta(t, 100, st["progress_signals"].(map[string]any)["byte_weighted"].(map[string]any)["percent"], 0.01)
	require.NotEmpty(t, st["tables"])
	databases := st["databases"].(map[string]any)
	require.Equal(t, p.source.Name, databases["source"].(map[string]any)["database"])
	require.Equal(t, p.target.Role, databases["target"].(map[string]any)["role"])

	s.succeed(t, "/pause-sync")
	require.Equal(t, "paused", s.get(t, "/status").json["state"])
	require.True(t, s.allowed(t)["resume"])
	a := s.post(t, "/switch-traffic")
	require.Equal(t, http.StatusConflict, a.status)
	require.Equal(t, "cutover_blocked", a.json["code"], a.body)
	require.Equal(t, false, a.json["cutover_readiness"].(map[string]any)["can_force"])
	require.NotEmpty(t, a.json["reasons"])
	s.succeed(t, "/resume-sync")

	require.NoError(t, execute(t, p.source, `INSERT INTO notes VALUES (2, 'while it follows')`))
	s.succeed(t, "/verify")
	out := s.get(t, "/verify-output").json
	require.Contains(t, out["output"], "public.notes: 2 rows are the same on both sides")
	require.Empty(t, out["verification"].(map[string]any)["differences"])
	require.Eventually(t, func() bool {
		st = s.get(t, "/status").json
		return st["cutover_readiness"].(map[string]any)["level"] == "ready"
	}, time.Minute, 200*time.Millisecond, "%v", st)

	s.succeed(t, "/switch-traffic")
	st = s.await(t, "switched")
	require.NotNil(t, st["switched_at"])
	require.Error(t, execute(t, p.source, `INSERT INTO notes VALUES (3, 'too late')`))
	writers.Redirect(p.target.URL)
	require.NoError(t, execute(t, p.target, `INSERT INTO notes VALUES (3, 'on the target')`))
	require.Equal(t, "wrong_phase", s.post(t, "/abort").json["code"])

	s.succeed(t, "/revert-switch")
	s.await(t, "replicating")
	require.Equal(t, int64(3), count(t, p.source, `SELECT count(*) FROM notes`), "what was written on the target came back")
	writers.Redirect(p.source.URL)
	require.NoError(t, execute(t, p.source, `INSERT INTO notes VALUES (4, 'on the source again')`))

	s.succeed(t, "/switch-traffic?force=1")
	s.await(t, "switched")
	writers.Redirect(p.target.URL)
	require.Equal(t, int64(4), count(t, p.target, `SELECT count(*) FROM notes`))
	a = s.succeed(t, "/cleanup")
	if a.status == http.StatusOK {
		require.Equal(t, "completed", a.json["phase"], "as soon as it is answered")
	}
	st = s.await(t, "completed")
	require.NotNil(t, st["completed_at"])
	require.NotNil(t, st["started_at"])
	require.NotNil(t, st["switch_report"])
	require.Positive(t, writers.Stop().Committed)
	require.NoError(t, writers.CheckLedger(t.Context(), p.target.Connect(t)), "everything that was committed anywhere is on the target")
	for _, db := range []*pgtest.Database{p.source, p.target} {
		require.Zero(t, count(t, db, `SELECT (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'heroku\_migrator%') + (SELECT count(*) FROM pg_namespace WHERE nspname = 'heroku_migrator')`))
	}

	r := s.get(t, "/export/report.json")
	var report Report
	require.NoError(t, json.Unmarshal([]byte(r.body), &report))
	require.Equal(t, migrator.PhaseCompleted, report.Outcome)
	require.NotNil(t, report.Switch)
	require.Positive(t, report.Switch.WithoutWritesMS)
	require.NotNil(t, report.Revert)
	require.NotNil(t, report.Verification)
	require.Positive(t, report.RowsCopied)
	require.Equal(t, report.MigrationID, (<-reports).MigrationID)
	require.Empty(t, reports)
	require.Contains(t, s.get(t, "/export/report.html").body, "The migration is completed.")
	require.Eventually(t, func() bool { return len(to.milestones()) >= 4 }, 10*time.Second, 50*time.Millisecond)
	require.Subset(t, to.milestones(), []Milestone{MilestoneSwitched, MilestoneReverted, MilestoneCompleted})

	s.succeed(t, "/reset")
	s.await(t, "waiting")
	a = s.succeed(t, "/start-migration") // the target is not empty any more
	require.Equal(t, "starting", a.json["phase"])
	st = s.waitPhase(t, migrator.PhaseError)
	require.NotEmpty(t, st["reasons"])
	for _, path := range []string{"/status", "/export/diagnostics.json", "/logs?lines=5000", "/activity", "/metrics"} {
		body := s.get(t, path).body
		for _, db := range []*pgtest.Database{p.source, p.target} {
			require.NotContains(t, body, passwordOf(t, db.URL), path)
		}
	}
}

// A run-book in shell, of the kind that was written for the tool before this one.
func TestRunbook(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("there is no curl here")
	}
	p := newPair(t)
	require.NoError(t, execute(t, p.source, `CREATE TABLE notes (id int PRIMARY KEY); INSERT INTO notes SELECT generate_series(1, 1000)`))
	s, _ := p.process(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "testdata/runbook.sh")
	cmd.Env = append(os.Environ(), "MIGRATOR="+s.url, "PASSWORD="+password)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "phase completed")
	require.Equal(t, int64(1000), count(t, p.target, `SELECT count(*) FROM notes`))
}

func passwordOf(t *testing.T, url string) string {
	t.Helper()
	cfg, err := pgx.ParseConfig(url)
	require.NoError(t, err)
	require.NotEmpty(t, cfg.Password)
	return cfg.Password
}

// Aborting in the copy leaves nothing on the source, and the outcome is known until reset.
func TestAbortOverHTTP(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	require.NoError(t, execute(t, p.source, `CREATE TABLE notes (id int PRIMARY KEY)`))
	s, _ := p.process(t)
	s.await(t, "waiting")
	s.succeed(t, "/start-migration")
	s.await(t, "ready_to_copy")
	require.True(t, s.allowed(t)["abort"])
	a := s.succeed(t, "/abort")
	if a.status == http.StatusOK {
		require.Equal(t, "aborted", a.json["phase"])
	}
	s.await(t, "aborted")
	require.Zero(t, count(t, p.source, `SELECT count(*) FROM pg_namespace WHERE nspname = 'heroku_migrator'`))
	require.Equal(t, "aborted", s.get(t, "/export/report.json").json["outcome"])
	s.succeed(t, "/reset")
	s.await(t, "waiting")
}

// A wrong address of the target: everything is served, and says so.
func TestTargetThatIsNotThere(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	gone := *p.target
	gone.URL = strings.Replace(gone.URL, fmt.Sprintf(":%d/", portOf(t, gone.URL)), ":1/", 1)
	p.target = &gone
	s, _ := p.process(t)
	require.Equal(t, http.StatusOK, s.get(t, "/").status)
	var st map[string]any
	require.Eventually(t, func() bool {
		st = s.get(t, "/status").json
		return st["unreachable"] != nil
	}, time.Minute, 100*time.Millisecond)
	require.Equal(t, "waiting", st["phase"])
	require.Contains(t, st["error"], "refused")
	require.Equal(t, "unreachable", s.post(t, "/start-migration").json["code"])
	checks := s.get(t, "/preflight-checks").json
	require.Equal(t, false, checks["ok"])
	require.Contains(t, fmt.Sprint(checks["findings"]), "The target cannot be reached")
}

func portOf(t *testing.T, url string) uint16 {
	t.Helper()
	cfg, err := pgx.ParseConfig(url)
	require.NoError(t, err)
	return cfg.Port
}
