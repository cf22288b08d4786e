package shop_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/heroku-migrator/migrator/internal/pgtest"
	"github.com/heroku-migrator/migrator/internal/shop"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

func newShop(t *testing.T) (url string, conn *pgx.Conn) {
	t.Helper()
	db := pgtest.Shared(t, pgtest.SourceVersion()).NewSource(t)
	conn = db.Connect(t)
	start := time.Now()
	if err := shop.Install(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	rows, err := shop.Seed(t.Context(), conn, 0.02)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d rows in %v", rows, time.Since(start))
	return db.URL, conn
}

// TestWriters lets writers do everything they can for a while and then holds
// them to what the server told them.
func TestWriters(t *testing.T) {
	url, conn := newShop(t)
	opts := shop.Options{KeyChanges: true, Truncate: true, MaxHold: 300 * time.Millisecond, Seed: 1}
	w, err := shop.StartWriters(t.Context(), url, 4, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	time.Sleep(3 * time.Second)
	until(t, "operation of each kind", func(s shop.Stats) bool {
		for _, name := range shop.OperationNames(opts) {
			if s.Operations[name] == 0 {
				return false
			}
		}
		return true
	}, w)
	stats := w.Stop()
	t.Log(stats)
	t.Log(stats.Mix())
	if stats.Other != 0 || stats.Refused != 0 || stats.Lost != 0 {
		t.Errorf("unexpected errors: %v", stats)
	}
	if err := w.CheckLedger(t.Context(), conn); err != nil {
		t.Error(err)
	}

	// The check must notice a lost transaction and an invented one.
	if _, err := conn.Exec(t.Context(), `DELETE FROM shop.ledger WHERE ctid = (SELECT min(ctid) FROM shop.ledger)`); err != nil {
		t.Fatal(err)
	}
	if err := w.CheckLedger(t.Context(), conn); err == nil {
		t.Error("a lost transaction was not noticed")
	}
	if _, err := conn.Exec(t.Context(), `INSERT INTO shop.ledger SELECT run, writer, seq + 1000000, operation FROM shop.ledger LIMIT 1`); err != nil {
		t.Fatal(err)
	}
	if err := w.CheckLedger(t.Context(), conn); err == nil || !strings.Contains(err.Error(), "never begun") {
		t.Errorf("an invented transaction was not noticed: %v", err)
	}
}

// TestFence refuses writes for a while: writers count that and carry on after.
func TestFence(t *testing.T) {
	url, conn := newShop(t)
	w, err := shop.StartWriters(t.Context(), url, 2, shop.Options{Rate: 100, KeyChanges: true, MaxHold: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	until(t, "commits", func(s shop.Stats) bool { return s.Committed > 10 }, w)
	fence(t, conn, "on")
	until(t, "refusals", func(s shop.Stats) bool { return s.Refused > 3 && s.Lost > 0 }, w)
	if err := w.CheckLedger(t.Context(), conn); err != nil {
		t.Error(err)
	}
	fence(t, conn, "off")
	before := w.Stats().Committed
	until(t, "commits after the fence", func(s shop.Stats) bool { return s.Committed > before+10 }, w)

	lost := w.Stats().Lost
	w.Redirect("postgres://nobody@127.0.0.1:1/nothing")
	until(t, "failed connections", func(s shop.Stats) bool { return s.Lost > lost+2 }, w)
	w.Redirect(url)
	before = w.Stats().Committed
	until(t, "commits after the detour", func(s shop.Stats) bool { return s.Committed > before+10 }, w)
	stats := w.Stop()
	t.Log(stats)
	if stats.Other != 0 {
		t.Errorf("unexpected errors: %v", stats)
	}
	if err := w.CheckLedger(t.Context(), conn); err != nil {
		t.Error(err)
	}
}

// fence makes new sessions of the role read-only, or not, and ends the
// sessions there are.
func fence(t *testing.T, conn *pgx.Conn, setting string) {
	t.Helper()
	for _, sql := range []string{
		`DO $$ BEGIN EXECUTE format('ALTER ROLE %I IN DATABASE %I SET default_transaction_read_only = ` + setting + `', current_user, current_database()); END $$`,
		`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = current_user AND datname = current_database()`,
	} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
}

func until(t *testing.T, what string, reached func(shop.Stats) bool, w *shop.Writers) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for !reached(w.Stats()) {
		select {
		case <-ctx.Done():
			t.Fatalf("no %s in time: %v", what, w.Stats())
		case <-time.After(20 * time.Millisecond):
		}
	}
}
