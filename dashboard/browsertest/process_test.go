package browsertest

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/dashboard"
	"github.com/heroku-migrator/migrator/internal/pgtest"
)

const password = "correct horse"

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

// site is a program that serves the dashboard.
type site struct {
	host string // and port
	url  string // without the last slash
	stop func()
}

// serve starts a program that serves the dashboard, as one that is deployed. With a site given it takes the place of that one, which has stopped.
func (p *pair) serve(t *testing.T, before *site, change ...func(*migrator.Config)) *site {
	t.Helper()
	src, err := migrator.OpenHeroku(t.Context(), p.source.URL, migrator.HerokuConfig{PgDump: p.pgDump})
	require.NoError(t, err)
	dst, err := migrator.OpenPlanetScale(t.Context(), p.target.URL, migrator.PlanetScaleConfig{})
	require.NoError(t, err)
	lines := dashboard.NewLog(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn}), 1000)
	cfg := migrator.Config{Source: src, Target: dst, Logger: slog.New(lines), HoldBeforeCopy: true, Copy: migrator.CopyConfig{ChunkBytes: 256 << 10}}
	for _, c := range change {
		c(&cfg)
	}
	m, err := migrator.New(cfg)
	require.NoError(t, err)
	d, err := dashboard.New(m, dashboard.Config{Password: password, SourceURL: p.source.URL, TargetURL: p.target.URL, Log: lines, Version: "v1.2.3"})
	require.NoError(t, err)
	address := "127.0.0.1:0"
	if before != nil {
		address = before.host
	}
	listener, err := net.Listen("tcp", address)
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.Handle("/admin/migration/", http.StripPrefix("/admin/migration", d))
	server := httptest.NewUnstartedServer(mux)
	require.NoError(t, server.Listener.Close())
	server.Listener = listener
	server.Start()
	s := &site{host: listener.Addr().String(), url: server.URL + "/admin/migration", stop: sync.OnceFunc(func() {
		d.Close()
		server.CloseClientConnections()
		server.Close()
		src.Close()
		dst.Close()
	})}
	t.Cleanup(s.stop)
	return s
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	if w.t.Context().Err() == nil { // not after the test's end
		w.t.Log(string(b[:len(b)-1]))
	}
	return len(b), nil
}

func execute(t *testing.T, db *pgtest.Database, sql string) {
	t.Helper()
	c, err := pgx.Connect(t.Context(), db.URL)
	require.NoError(t, err)
	defer c.Close(context.Background())
	_, err = c.Exec(t.Context(), sql)
	require.NoError(t, err)
}

func count(t *testing.T, db *pgtest.Database, sql string) (n int64) {
	t.Helper()
	c, err := pgx.Connect(t.Context(), db.URL)
	require.NoError(t, err)
	defer c.Close(context.Background())
	require.NoError(t, c.QueryRow(t.Context(), sql).Scan(&n))
	return n
}

// notes are a few rows to migrate.
const notes = `CREATE TABLE notes (id int PRIMARY KEY, text text); INSERT INTO notes SELECT i, 'note ' || i FROM generate_series(1, 500) i`
