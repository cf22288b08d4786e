package pgtest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Standby starts a streaming standby of the server. Roles and passwords are the same.
func (c *Cluster) Standby(ctx context.Context) (*Cluster, error) {
	return StartWith(ctx, c.Version, Options{primary: c})
}

// Follow waits until the standby has replayed what the primary has written until now.
func (c *Cluster) Follow(ctx context.Context, primary *Cluster) error {
	var lsn string
	if err := primary.admin(ctx, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `SELECT pg_current_wal_lsn()::text`).Scan(&lsn)
	}); err != nil {
		return err
	}
	return c.admin(ctx, func(conn *pgx.Conn) error {
		for {
			var there bool
			if err := conn.QueryRow(ctx, `SELECT coalesce(pg_last_wal_replay_lsn() >= $1::text::pg_lsn, false)`, lsn).Scan(&there); err != nil || there {
				return err
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
}

// Detach ends the standby's streaming: what the primary commits from now on, it will never have.
func (c *Cluster) Detach(ctx context.Context) error {
	return c.admin(ctx, func(conn *pgx.Conn) error {
		for _, sql := range []string{`ALTER SYSTEM SET primary_conninfo = ''`, `SELECT pg_reload_conf()`} {
			if _, err := conn.Exec(ctx, sql); err != nil {
				return err
			}
		}
		for streaming := true; streaming; time.Sleep(20 * time.Millisecond) {
			if err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM pg_stat_wal_receiver)`).Scan(&streaming); err != nil {
				return err
			}
		}
		return nil
	})
}

// Promote makes the standby a primary, on a timeline of its own.
func (c *Cluster) Promote(ctx context.Context) error {
	return c.admin(ctx, func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `SELECT pg_promote()`)
		return err
	})
}

func (c *Cluster) admin(ctx context.Context, fn func(*pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, c.AdminURL("postgres"))
	if err != nil {
		return fmt.Errorf("pgtest: %w", err)
	}
	defer conn.Close(ctx)
	if err := fn(conn); err != nil {
		return fmt.Errorf("pgtest: %w", err)
	}
	return nil
}

// Address is an address that stays the same while the server behind it changes, as a platform's does in a failover.
type Address struct {
	listener net.Listener
	mu       sync.Mutex
	to       string // "" for nobody
	conns    map[net.Conn]struct{}
}

// NewAddress listens for as long as the test lasts, and passes connections on to the cluster.
func NewAddress(t *testing.T, c *Cluster) *Address {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &Address{listener: listener, conns: map[net.Conn]struct{}{}}
	a.Point(c)
	t.Cleanup(func() {
		_ = listener.Close()
		a.Point(nil)
	})
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go a.serve(client)
		}
	}()
	return a
}

// Point cuts all connections, and passes new ones on to the cluster; to nobody, if it is nil.
func (a *Address) Point(c *Cluster) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.to = ""
	if c != nil {
		a.to = net.JoinHostPort("127.0.0.1", strconv.Itoa(c.port))
	}
	for conn := range a.conns {
		_ = conn.Close()
	}
}

// Of is the database as it is reached at this address.
func (a *Address) Of(d *Database) *Database { return d.at(a.listener.Addr().String()) }

// On is the database as it is on a standby of its cluster.
func (d *Database) On(c *Cluster) *Database {
	other := d.at(net.JoinHostPort("127.0.0.1", strconv.Itoa(c.port)))
	other.Cluster = c
	return other
}

// WithPassword is the database as its role reaches it with another password.
func (d *Database) WithPassword(password string) *Database {
	other := *d
	other.URL = d.Cluster.url(d.Role, password, d.Name)
	return &other
}

func (d *Database) at(address string) *Database {
	other := *d
	for _, raw := range []*string{&other.URL, &other.AdminURL} {
		u, err := url.Parse(*raw)
		if err != nil {
			panic(err) // it is ours
		}
		u.Host = address
		*raw = u.String()
	}
	return &other
}

func (a *Address) serve(client net.Conn) {
	defer client.Close()
	a.mu.Lock()
	to := a.to
	a.mu.Unlock()
	if to == "" {
		return
	}
	server, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer server.Close()
	a.mu.Lock()
	if a.to != to {
		a.mu.Unlock()
		return
	}
	a.conns[client], a.conns[server] = struct{}{}, struct{}{}
	a.mu.Unlock()
	go func() {
		_, _ = io.Copy(client, server)
		_ = client.Close()
	}()
	_, _ = io.Copy(server, client)
	a.mu.Lock()
	delete(a.conns, client)
	delete(a.conns, server)
	a.mu.Unlock()
}
