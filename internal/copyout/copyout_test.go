package copyout_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator/internal/copyout"
	"github.com/heroku-migrator/migrator/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

func connect(t *testing.T) *pgconn.PgConn {
	t.Helper()
	return pgtest.Shared(t, pgtest.SourceVersion()).NewSource(t).Connect(t).PgConn()
}

// The same bytes and counts as pgconn's own CopyTo, for rows of all sizes.
func TestSameAsPgconn(t *testing.T) {
	t.Parallel()
	conn := connect(t)
	for _, sql := range []string{
		`COPY (SELECT 1 WHERE false) TO STDOUT`,
		`COPY (SELECT FROM generate_series(1, 1000)) TO STDOUT`,
		`COPY (SELECT i, repeat('x', i % 700) FROM generate_series(1, 20000) i) TO STDOUT`,
		`COPY (SELECT repeat('y', 131072 - 7 + i) FROM generate_series(1, 14) i) TO STDOUT (FORMAT binary)`,
		`COPY (SELECT repeat('z', 5000000), i FROM generate_series(1, 3) i) TO STDOUT`,
	} {
		var want, got bytes.Buffer
		tag, err := conn.CopyTo(t.Context(), &want, sql)
		require.NoError(t, err)
		rows, err := copyout.Run(t.Context(), conn, sql, &got)
		require.NoError(t, err)
		require.Equal(t, tag.RowsAffected(), rows, sql)
		require.True(t, bytes.Equal(want.Bytes(), got.Bytes()), sql)
	}
}

func TestServerErrorKeepsTheConnection(t *testing.T) {
	t.Parallel()
	conn := connect(t)
	var got bytes.Buffer
	for _, sql := range []string{
		`COPY nowhere TO STDOUT`,
		`COPY (SELECT 1 / (5000 - i), repeat('x', 100) FROM generate_series(1, 9000) i) TO STDOUT`,
	} {
		_, err := copyout.Run(t.Context(), conn, sql, &got)
		require.ErrorAs(t, err, new(*pgconn.PgError))
		rows, err := copyout.Run(t.Context(), conn, `COPY (SELECT 1) TO STDOUT`, &got)
		require.NoError(t, err)
		require.EqualValues(t, 1, rows)
	}
}

var errFull = errors.New("full")

type failingWriter struct{ left int }

func (w *failingWriter) Write(b []byte) (int, error) {
	if w.left -= len(b); w.left < 0 {
		return 0, errFull
	}
	return len(b), nil
}

func TestWriterFails(t *testing.T) {
	t.Parallel()
	conn := connect(t)
	_, err := copyout.Run(t.Context(), conn, `COPY (SELECT repeat('x', 100) FROM generate_series(1, 100000) i) TO STDOUT`, &failingWriter{1 << 20})
	require.ErrorIs(t, err, errFull)
	require.Error(t, conn.Ping(t.Context()), "the stream cannot be left in the middle")
}

func TestCancelled(t *testing.T) {
	t.Parallel()
	conn := connect(t)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := copyout.Run(ctx, conn, `COPY (SELECT pg_sleep(30)) TO STDOUT`, &bytes.Buffer{})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Less(t, time.Since(began), 5*time.Second)
	require.Error(t, conn.Ping(t.Context()))
}

func BenchmarkRun(b *testing.B) {
	conn := pgtest.Shared(b, pgtest.SourceVersion()).NewSource(b).Connect(b).PgConn()
	sql := `COPY (SELECT i, '` + strings.Repeat("x", 100) + `' FROM generate_series(1, 1000000) i) TO STDOUT`
	b.Run("copyout", func(b *testing.B) {
		for b.Loop() {
			_, err := copyout.Run(b.Context(), conn, sql, &failingWriter{1 << 40})
			require.NoError(b, err)
		}
	})
	b.Run("pgconn", func(b *testing.B) {
		for b.Loop() {
			_, err := conn.CopyTo(b.Context(), &failingWriter{1 << 40}, sql)
			require.NoError(b, err)
		}
	})
}

// A connection whose stream was cut knows that it is closed: a pool would hand it out again otherwise.
func TestConnectionOfACutStreamIsClosed(t *testing.T) {
	t.Parallel()
	db := pgtest.Shared(t, pgtest.TargetVersion()).NewTarget(t)
	conn := db.Connect(t)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := copyout.Run(ctx, conn.PgConn(), `COPY (SELECT repeat('x', 1000) FROM generate_series(1, 1000000)) TO STDOUT`, writerFunc(func(b []byte) (int, error) {
		cancel()
		return len(b), nil
	}))
	require.Error(t, err)
	require.True(t, conn.IsClosed())
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
