package pgtest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

//go:embed keeper.sh
var keeperScript string

// defaultSettings suit tests: quick, and with everything a migration may use.
var defaultSettings = map[string]string{
	"fsync":                     "off",
	"max_connections":           "300",
	"max_prepared_transactions": "20",
	"wal_level":                 "logical",
	"max_locks_per_transaction": "256",
	"shared_buffers":            "128MB",
	"max_wal_senders":           "20",
	"max_replication_slots":     "20",
}

// Options say how a cluster differs from the usual one.
type Options struct {
	// Settings are server settings that replace or extend the usual ones, for
	// instance {"fsync": "on"} for the default durability.
	Settings map[string]string
	// Backend is how the server is run: docker, binaries, or, if empty, what PGTEST_BACKEND says.
	Backend string

	// SmallDisk is the size of a disk at the path [SmallDisk], in bytes, for a tablespace. Docker alone has it.
	SmallDisk int64

	primary *Cluster // whose standby it is
}

// SmallDisk is where a small disk is.
const SmallDisk = "/small"

// Cluster is a running Postgres server of one major version.
type Cluster struct {
	// Version is the major version.
	Version int

	port     int
	password string
	primary  string // its address, if this is a standby

	smallDisk int64
	log       *tailBuffer
	server    server
	grants    sync.Mutex // GRANT … ON PARAMETER, and DROP OWNED that takes it back, of two sessions at once can collide
}

// server is what differs between a container and a child process.
type server interface {
	// exited is closed once the server is known to have ended.
	exited() <-chan struct{}
	// close ends the server and waits until nothing of it is left.
	close(ctx context.Context) error
	// toolsDir returns a directory with pg_dump, pg_restore and psql.
	toolsDir(ctx context.Context) (string, error)
	// write writes a file of the server's machine, which is there whole or not at all.
	write(ctx context.Context, path string, content []byte) error
	// address is where other servers of the same kind reach it: host and port, with a space between.
	address(ctx context.Context) (string, error)
}

// Start starts a server of the given major version with the usual settings.
// The caller has to Close it; should the process die before, it ends as well.
func Start(ctx context.Context, version int) (*Cluster, error) {
	return StartWith(ctx, version, Options{})
}

// StartWith is Start with options.
//
// It takes the image postgres:NN, or heroku-migrator-postgres:NN, whichever is
// there; else it pulls postgres:NN; else it builds the second one from Debian
// packages, which takes about a minute, once. Without a Docker daemon it uses
// the binaries under /usr/lib/postgresql/NN.
func StartWith(ctx context.Context, version int, opts Options) (*Cluster, error) {
	settings := maps.Clone(defaultSettings)
	maps.Copy(settings, opts.Settings)
	var args []string
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	c := &Cluster{Version: version, password: randomPassword(), log: &tailBuffer{}, smallDisk: opts.SmallDisk}
	if opts.primary != nil {
		c.password = opts.primary.password
		var err error
		if c.primary, err = opts.primary.server.address(ctx); err != nil {
			return nil, fmt.Errorf("pgtest: %w", err)
		}
	}

	start := startContainer
	switch backend := cmp.Or(opts.Backend, os.Getenv("PGTEST_BACKEND")); backend {
	case "", "docker":
		if err := dockerAvailable(ctx); err != nil {
			if backend == "docker" {
				return nil, fmt.Errorf("pgtest: %w", err)
			}
			start = startBinaries
		} else if err := ensureImage(ctx, version); err != nil {
			if backend == "docker" || !haveBinaries(version) {
				return nil, fmt.Errorf("pgtest: Postgres %d: %w", version, err)
			}
			start = startBinaries
		}
	case "binaries":
		start = startBinaries
	default:
		return nil, fmt.Errorf("pgtest: PGTEST_BACKEND is %q; it can be docker or binaries", backend)
	}

	if err := start(ctx, c, args); err != nil {
		return nil, fmt.Errorf("pgtest: starting Postgres %d: %w", version, err)
	}
	if err := c.waitReady(ctx); err != nil {
		_ = c.Close(context.WithoutCancel(ctx))
		return nil, fmt.Errorf("pgtest: starting Postgres %d: %w\nits log ends with:\n%s", version, err, c.Log())
	}
	return c, nil
}

// Close stops the server and removes its data. A second call does nothing.
func (c *Cluster) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := c.server.close(ctx); err != nil {
		return fmt.Errorf("pgtest: stopping Postgres %d: %w", c.Version, err)
	}
	return nil
}

// AdminURL is the URL of a database of the cluster for the superuser.
func (c *Cluster) AdminURL(db string) string {
	return c.url("postgres", c.password, db)
}

// Port is the port on 127.0.0.1 the server listens on.
func (c *Cluster) Port() int { return c.port }

// Log is the end of the server's log.
func (c *Cluster) Log() string { return c.log.String() }

// PgTools returns a directory that holds executable pg_dump, pg_restore and
// psql of the cluster's version. They run on this machine, as ordinary
// processes, and reach the cluster by its URLs.
func (c *Cluster) PgTools(ctx context.Context) (dir string, err error) {
	if haveTools(binDir(c.Version)) {
		return binDir(c.Version), nil
	}
	dir, err = c.server.toolsDir(ctx)
	if err != nil {
		return "", fmt.Errorf("pgtest: pg_dump of Postgres %d: %w", c.Version, err)
	}
	return dir, nil
}

// AddExtension makes an extension of version 1.0 available: a control file with the lines given, and a script.
func (c *Cluster) AddExtension(ctx context.Context, name, control, script string) error {
	dir := fmt.Sprintf("/usr/share/postgresql/%d/extension/", c.Version) // Debian's, in the official image too
	err := c.server.write(ctx, dir+name+"--1.0.sql", []byte(script))
	if err == nil { // last: what has it is available
		err = c.server.write(ctx, dir+name+".control", []byte("default_version = '1.0'\n"+control+"\n"))
	}
	if err != nil {
		return fmt.Errorf("pgtest: adding extension %s: %w", name, err)
	}
	return nil
}

func (c *Cluster) url(user, password, db string) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(user, password),
		Host:     net.JoinHostPort("127.0.0.1", strconv.Itoa(c.port)),
		Path:     "/" + db,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// waitReady returns once the superuser can connect.
func (c *Cluster) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, c.AdminURL("postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-c.server.exited():
			return errors.New("the server ended")
		case <-ctx.Done():
			return fmt.Errorf("the server does not answer: %w", err)
		case <-time.After(30 * time.Millisecond):
		}
	}
}

// randomPassword returns a password with every character that a URL, a
// connection string or an SQL literal has to escape.
func randomPassword() string {
	return `p'"@:/?#[]%20&+= $` + randomHex(8)
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// tailBuffer keeps the last bytes written to it.
type tailBuffer struct {
	mu  sync.Mutex
	buf []byte
}

const tailSize = 64 << 10

// Write implements io.Writer.
func (b *tailBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf = append(b.buf, p...)
	if len(b.buf) > 2*tailSize {
		b.buf = slices.Clone(b.buf[len(b.buf)-tailSize:])
	}
	return len(p), nil
}

func (b *tailBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(bytes.ToValidUTF8(b.buf, []byte("?")))
}
