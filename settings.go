package migrator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// How a session gets its settings. Behind a pooler that gives each transaction another session of the server, a
// setting would land on somebody else's: that is found out before the first one. Afterwards each is looked at once
// more, since whatever passes our statements on may keep some of them for itself, and floats or intervals would arrive
// as other values.

// ErrPooler is returned when a connection goes through a pooler that gives each transaction another session of the
// server (PgBouncer in transaction or statement mode, say). Nothing was set or changed. A migration needs the server's
// own address.
var ErrPooler = errors.New("the connection goes through a pooler that gives each transaction another session: use " +
	"the server's own address and port")

// soundAddresses remembers where connections pass through something that keeps sessions apart.
type soundAddresses struct {
	mu    sync.Mutex
	known map[string]bool
}

func (s *soundAddresses) has(address string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known[address]
}

func (s *soundAddresses) add(address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil {
		s.known = map[string]bool{}
	}
	s.known[address] = true
}

// prepareSession makes sure that the session is one, gives it the settings, and looks whether it has them.
func prepareSession(ctx context.Context, at *address, c *pgx.Conn, settings map[string]string) error {
	pid, err := backendOf(ctx, c.PgConn())
	if err != nil {
		return fmt.Errorf("session settings: %w", err)
	}
	if pid != c.PgConn().PID() { // the server itself says who it is when it accepts a connection
		if err := probePooler(ctx, at, c); err != nil {
			return err
		}
	}
	all := maps.Clone(commonSettings)
	maps.Copy(all, settings)
	names := slices.Sorted(maps.Keys(all))
	values := make([]string, len(names))
	for i, name := range names {
		values[i] = all[name]
	}
	// The second statement is a transaction of its own.
	rows, err := c.Query(ctx, `
		SELECT v.name, pg_catalog.set_config(v.name, ($2::pg_catalog.text[])[v.n], false)
		FROM pg_catalog.unnest($1::pg_catalog.text[]) WITH ORDINALITY AS v(name, n)
		WHERE pg_catalog.pg_backend_pid() OPERATOR(pg_catalog.=) $3
		  AND (pg_catalog.current_setting(v.name, true) IS NOT NULL
			OR pg_catalog.starts_with(v.name, 'heroku_migrator.'))`, names, values, int32(pid))
	if err != nil {
		return fmt.Errorf("session settings: %w", err)
	}
	set, err := readPairs(rows)
	if err != nil {
		return fmt.Errorf("session settings: %w", err)
	}
	if len(set) == 0 {
		return ErrPooler
	}
	rows, err = c.Query(ctx, `
		SELECT v.name, pg_catalog.current_setting(v.name, true) FROM pg_catalog.unnest($1::pg_catalog.text[]) AS v(name)
		WHERE pg_catalog.pg_backend_pid() OPERATOR(pg_catalog.=) $2`, slices.Sorted(maps.Keys(set)), int32(pid))
	if err != nil {
		return fmt.Errorf("session settings: %w", err)
	}
	now, err := readPairs(rows)
	if err != nil {
		return fmt.Errorf("session settings: %w", err)
	}
	if len(now) == 0 {
		return ErrPooler
	}
	for name, value := range set {
		if now[name] != value {
			return fmt.Errorf("session settings: %s was set to %q and is %q: something between here and the server "+
				"changes settings; use the server's own address and port",
				name, value, now[name])
		}
	}
	return nil
}

func readPairs(rows pgx.Rows) (map[string]string, error) {
	pairs := map[string]string{}
	var name, value string
	_, err := pgx.ForEachRow(rows, []any{&name, &value}, func() error {
		pairs[name] = value
		return nil
	})
	return pairs, err
}

// backendOf asks, in a transaction of its own, which process of the server answers.
func backendOf(ctx context.Context, c *pgconn.PgConn) (uint32, error) {
	results, err := c.Exec(ctx, `SELECT pg_catalog.pg_backend_pid()`).ReadAll()
	if err != nil {
		return 0, err
	}
	var pid uint32
	_, err = fmt.Sscan(string(results[0].Rows[0][0]), &pid)
	return pid, err
}

const (
	probes        = 5
	probePatience = 10 * time.Second
)

// probePooler looks whether the server's session goes to somebody else between two transactions. With a second
// connection in a
// transaction, a pooler gives that the session which the first one has just left, or another one to the first.
func probePooler(ctx context.Context, at *address, c *pgx.Conn) error {
	cfg := c.Config()
	place := fmt.Sprintf("%s:%d %s", cfg.Host, cfg.Port, cfg.User)
	if at.sound.has(place) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, probePatience)
	defer cancel()
	second, err := pgconn.ConnectConfig(ctx, &cfg.Config)
	if err != nil {
		return fmt.Errorf("look for a pooler: %w", err)
	}
	defer second.Close(context.WithoutCancel(ctx))
	for range probes {
		before, err := backendOf(ctx, c.PgConn())
		if err != nil {
			return fmt.Errorf("look for a pooler: %w", err)
		}
		if _, err := second.Exec(ctx, `BEGIN`).ReadAll(); err != nil {
			if strings.Contains(err.Error(), "statement pooling") {
				return ErrPooler
			}
			return fmt.Errorf("look for a pooler: %w", err)
		}
		other, err := backendOf(ctx, second)
		if err != nil {
			return fmt.Errorf("look for a pooler: %w", err)
		}
		if other == before {
			return ErrPooler
		}
		after, err := backendOf(ctx, c.PgConn())
		_, endErr := second.Exec(ctx, `ROLLBACK`).ReadAll()
		if cmp.Or(err, endErr) != nil {
			return fmt.Errorf("look for a pooler: %w", errors.Join(err, endErr))
		}
		if after != before {
			return ErrPooler
		}
	}
	at.sound.add(place)
	return nil
}
