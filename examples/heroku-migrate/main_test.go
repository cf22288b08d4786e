package main_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	neturl "net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator/internal/pgtest"
	"github.com/heroku-migrator/migrator/internal/pgurl"
)

var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "heroku-migrate")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "heroku-migrate")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		panic(string(out))
	}
	status := pgtest.Main(m)
	_ = os.RemoveAll(dir)
	os.Exit(status)
}

type cli struct {
	source, target *pgtest.Database
	path           string
}

func newCLI(t *testing.T) *cli {
	t.Helper()
	server := pgtest.Shared(t, pgtest.SourceVersion())
	tools, err := server.PgTools(t.Context())
	require.NoError(t, err)
	return &cli{
		source: server.NewSource(t), target: pgtest.Shared(t, pgtest.TargetVersion()).NewTarget(t),
		path: tools + ":" + os.Getenv("PATH"),
	}
}

func (c *cli) cmd(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, args...)
	cmd.Env = []string{"PATH=" + c.path, "HEROKU_URL=" + c.source.URL, "PLANETSCALE_URL=" + c.target.URL, "HOME=" + t.TempDir()}
	return cmd
}

// run returns what a command prints and its status. No password may be in it.
func (c *cli) run(t *testing.T, args ...string) (output string, status int) {
	t.Helper()
	cmd := c.cmd(t, args...)
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	err := cmd.Run()
	c.requireNoPassword(t, out.String()+log.String())
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		return out.String() + log.String(), exit.ExitCode()
	}
	require.NoError(t, err)
	return out.String(), 0
}

func (c *cli) requireNoPassword(t *testing.T, text string) {
	t.Helper()
	for _, db := range []*pgtest.Database{c.source, c.target} {
		url, err := pgurl.Parse(db.URL)
		require.NoError(t, err)
		require.Equal(t, text, pgurl.Redact(text, url))
	}
}

// lines parses what --json prints: every line is an object.
func lines(t *testing.T, text string) []map[string]any {
	t.Helper()
	var list []map[string]any
	s := bufio.NewScanner(strings.NewReader(text))
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		var o map[string]any
		require.NoError(t, json.Unmarshal(s.Bytes(), &o), s.Text())
		list = append(list, o)
	}
	require.NotEmpty(t, list)
	return list
}

func (c *cli) fill(t *testing.T) {
	t.Helper()
	_, err := c.source.Connect(t).Exec(t.Context(), `
		CREATE TABLE people (id bigserial PRIMARY KEY, name text);
		CREATE TABLE pets (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), owner bigint REFERENCES people, tags text[]);
		INSERT INTO people (name) SELECT 'p' || i FROM generate_series(1, 5000) i;
		INSERT INTO pets (owner, tags) SELECT id, ARRAY['a', 'b'] FROM people`)
	require.NoError(t, err)
}

func TestUsage(t *testing.T) {
	t.Parallel()
	c := &cli{
		source: &pgtest.Database{URL: "postgres://u:secretsecret@127.0.0.1:1/d?sslmode=disable"},
		target: &pgtest.Database{URL: "postgres://u:secretsecret@127.0.0.1:1/d?sslmode=disable"},
		path:   os.Getenv("PATH"),
	}
	for _, args := range [][]string{
		{}, {"fly"}, {"run", "--until", "tomorrow"}, {"run", "--frce"}, {"status", "--force"}, {"switch", "--watch"}, {"run", "status"},
		{"run", "--workers", "0"}, {"run", "--workers=x"}, {"status", "--source", "mysql://x"}, {"status", "--target="},
		{"run", "--until="}, {"run", "--log-level", "loud"}, {"copy-worker", "--until", "switched"},
		{c.source.URL}, {"switch", c.source.URL}, {"run", "--workers", c.source.URL}, {"run", "--until", c.source.URL},
		{"run", "--log-level=" + c.source.URL}, {"status", "--source", strings.Replace(c.source.URL, ":1/", ":port/", 1)},
	} {
		out, status := c.run(t, args...)
		require.Equal(t, 64, status, "%v: %s", args, out)
		out, status = c.run(t, append(args, "--json")...)
		require.Equal(t, 64, status, "%v: %s", args, out)
		require.Len(t, lines(t, out), 1)
		require.Equal(t, false, lines(t, out)[0]["ok"])
		require.NotEmpty(t, lines(t, out)[0]["error"])
	}
	for _, command := range []string{"help", "version"} {
		out, status := c.run(t, command, "--json=true")
		require.Zero(t, status)
		require.Equal(t, true, lines(t, out)[0]["ok"])
	}
	out, status := c.run(t, "help")
	require.Zero(t, status)
	require.Contains(t, out, "preflight")
	_, status = c.run(t, "version")
	require.Zero(t, status)
	_, status = c.run(t, "status")
	require.Equal(t, 1, status, "it cannot be reached")
	out, status = c.run(t, "status", "--json")
	require.Equal(t, 1, status)
	require.Equal(t, "status", lines(t, out)[0]["command"])
	out, status = c.run(t, "preflight")
	require.Equal(t, 2, status)
	require.Contains(t, out, "blocker  The source cannot be reached")
	out, status = c.run(t, "abort", "--force")
	require.Equal(t, 1, status, "nobody knows whether a migration is alive")
	require.Contains(t, out, "a new, empty one")
	began := time.Now()
	_, status = c.run(t, "run")
	require.Equal(t, 1, status)
	require.Less(t, time.Since(began), 20*time.Second)
}

// A password that is a word or number of the protocol's own does not spoil the JSON.
func TestPasswordsLikeJSON(t *testing.T) {
	t.Parallel()
	for _, password := range []string{"error", "result", "true", "202", `a"b\\`} {
		cmd := exec.CommandContext(t.Context(), binary, "status", "--json")
		url := "postgres://u:" + neturl.QueryEscape(password) + "@127.0.0.1:1/d"
		cmd.Env = []string{"HEROKU_URL=" + url, "PLANETSCALE_URL=" + url}
		out, err := cmd.Output()
		require.Error(t, err)
		o := lines(t, string(out))[0]
		require.Equal(t, "result", o["type"])
		require.Equal(t, false, o["ok"])
		require.NotEmpty(t, o["error"])
	}
}

func TestWholeMigration(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	c.fill(t)
	out, status := c.run(t, "preflight", "--json")
	require.Zero(t, status, out)
	require.Equal(t, "finding", lines(t, out)[0]["type"])
	out, status = c.run(t, "status", "--json")
	require.Zero(t, status)
	require.Equal(t, "waiting", lines(t, out)[0]["phase"])
	for _, command := range []string{"switch", "revert", "complete", "abort", "pause"} {
		out, status = c.run(t, command)
		require.Equal(t, 2, status, "%s: %s", command, out)
	}

	out, status = c.run(t, "--json", "run", "--until", "in-sync")
	require.Zero(t, status, out)
	events := lines(t, out)
	last := events[len(events)-1]
	require.Equal(t, true, last["ok"])
	require.Equal(t, "result", last["type"])
	require.Equal(t, "replicating", last["phase"])
	kinds := map[any]bool{}
	for _, e := range events {
		kinds[e["type"]] = true
		require.Contains(t, e, "at")
		require.Contains(t, e, "message")
	}
	for _, kind := range []string{"phase", "table", "chunk"} {
		require.True(t, kinds[kind], kind)
	}
	out, status = c.run(t, "status", "--json")
	require.Zero(t, status)
	s := lines(t, out)
	require.Len(t, s, 1)
	require.Equal(t, "replicating", s[0]["phase"])
	for _, field := range []string{"state", "started_at", "switched_at", "completed_at", "error", "message", "cutover_readiness", "progress_signals", "lag_seconds"} {
		require.Contains(t, s[0], field)
	}
	tables, ok := s[0]["tables"].([]any)
	require.True(t, ok)
	require.Len(t, tables, 2)
	table, ok := tables[0].(map[string]any)
	require.True(t, ok)
	require.Equal(t, "people", table["name"])
	require.InDelta(t, 5000, table["rows_copied"], 0)
	require.Equal(t, table["bytes_total"], table["bytes_copied"])

	for _, command := range []string{"revert", "complete"} {
		out, status = c.run(t, command, "--json")
		require.Equal(t, 2, status, out)
		require.Equal(t, true, lines(t, out)[0]["refused"])
		require.NotEmpty(t, lines(t, out)[0]["reasons"])
		require.Equal(t, false, lines(t, out)[0]["can_force"])
	}
	for _, command := range []string{"pause", "resume"} {
		out, status = c.run(t, "--json", command)
		require.Zero(t, status, out)
		require.Equal(t, command, lines(t, out)[0]["command"])
	}
	out, status = c.run(t, "switch")
	require.Zero(t, status, out)
	require.Contains(t, out, "without writes")
	require.Contains(t, out, "heroku config:set")
	_, status = c.run(t, "abort")
	require.Equal(t, 2, status)
	out, status = c.run(t, "status")
	require.Zero(t, status)
	require.Contains(t, out, "ms without writes")
	out, status = c.run(t, "run", "--until", "switched", "--json")
	require.Zero(t, status, out)
	require.Equal(t, "switched", lines(t, out)[0]["phase"])
	out, status = c.run(t, "complete")
	require.Zero(t, status, out)
	require.Contains(t, out, "pg_namespace")
	_, status = c.run(t, "run")
	require.Equal(t, 2, status, "the target is not empty")
	var left int
	require.NoError(t, c.target.ConnectAdmin(t).QueryRow(t.Context(), `SELECT count(*) FROM pg_namespace WHERE nspname = 'heroku_migrator'`).Scan(&left))
	require.Zero(t, left, "a refused run leaves nothing on a database that may be in production")
	_, status = c.run(t, "abort")
	require.Equal(t, 2, status)
}

// Commands from another terminal reach the run that is alive, and SIGTERM ends it with its state kept.
func TestBesideARun(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	c.fill(t)
	start := func() (cmd *exec.Cmd, out *bytes.Buffer) {
		cmd, out = c.cmd(t, "run"), new(bytes.Buffer)
		cmd.Stdout, cmd.Stderr = out, out
		require.NoError(t, cmd.Start())
		return cmd, out
	}
	phase := func() any {
		out, status := c.run(t, "status", "--json")
		require.Zero(t, status)
		return lines(t, out)[0]["phase"]
	}
	cmd, out := start()
	require.Eventually(t, func() bool { return phase() == "replicating" }, 30*time.Second, 100*time.Millisecond)
	_, status := c.run(t, "complete")
	require.Equal(t, 2, status)

	second, seen := c.cmd(t, "run"), new(bytes.Buffer)
	second.Stdout, second.Stderr = seen, seen
	require.NoError(t, second.Start())
	time.Sleep(6 * time.Second)
	require.NoError(t, second.Process.Signal(os.Interrupt))
	require.NoError(t, second.Wait(), seen.String())
	require.Contains(t, seen.String(), "another process leads")

	for _, command := range []string{"pause", "resume", "switch", "revert"} {
		text, status := c.run(t, command)
		require.Zero(t, status, text)
	}
	began := time.Now()
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, cmd.Wait(), out.String())
	require.Less(t, time.Since(began), 20*time.Second)
	require.Contains(t, out.String(), "stopped")
	require.NotContains(t, out.String(), "another process leads")
	require.Equal(t, "replicating", phase())

	// A command that comes before run leads is carried out by its own process, so wait until run does.
	cmd, out = start()
	require.Eventually(t, func() bool {
		text, status := c.run(t, "status", "--json")
		leader, _ := lines(t, text)[0]["leader"].(string)
		return status == 0 && strings.HasSuffix(leader, fmt.Sprintf(" %d", cmd.Process.Pid))
	}, 20*time.Second, 100*time.Millisecond)
	waiting, waitingOut := start()
	time.Sleep(5 * time.Second) // until it says that it waits
	text, status := c.run(t, "switch")
	require.Zero(t, status, text)
	text, status = c.run(t, "complete")
	require.Zero(t, status, text)
	require.NoError(t, cmd.Wait(), out.String())
	c.requireNoPassword(t, out.String())

	// One that only waited cannot know whether it was completed or aborted: it fails, and says so.
	exit := new(exec.ExitError)
	require.ErrorAs(t, waiting.Wait(), &exit)
	require.Equal(t, 1, exit.ExitCode())
	require.Contains(t, waitingOut.String(), "another process leads")
	require.Contains(t, waitingOut.String(), "completed or aborted by another process")
}

// The target is gone: abort --force cleans the source.
func TestAbortWithoutTarget(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	c.fill(t)
	_, status := c.run(t, "run", "--until", "in-sync")
	require.Zero(t, status)
	c.target = pgtest.Shared(t, pgtest.TargetVersion()).NewTarget(t)
	out, status := c.run(t, "run")
	require.Equal(t, 2, status, out)
	require.Contains(t, out, "abort --force")
	out, status = c.run(t, "abort")
	require.Equal(t, 2, status, out)
	_, status = c.run(t, "abort", "--force")
	require.Zero(t, status)
	_, status = c.run(t, "abort", "--force")
	require.Zero(t, status, "a second time, nothing is left to do")
	var left int
	require.NoError(t, c.source.ConnectAdmin(t).QueryRow(t.Context(), `SELECT count(*) FROM pg_namespace WHERE nspname = 'heroku_migrator'`).Scan(&left))
	require.Zero(t, left)
}

// A URL in the arguments is moved out of the process list.
func TestURLsAreHidden(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	c.fill(t)
	cmd := c.cmd(t, "status", "--watch", "--source", c.source.URL, "--target="+c.target.URL)
	cmd.Env = []string{"PATH=" + c.path}
	require.NoError(t, cmd.Start())
	defer cmd.Wait()
	defer cmd.Process.Kill()
	require.Eventually(t, func() bool {
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", cmd.Process.Pid))
		return err == nil && len(args) > 0 && !bytes.Contains(args, []byte("postgres"))
	}, 5*time.Second, 20*time.Millisecond)
}

// Who reads may go away.
func TestClosedStdout(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	for _, args := range [][]string{{"status", "--watch"}, {"status", "--watch", "--json"}, {"preflight"}} {
		cmd := c.cmd(t, args...)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		_, err = out.Read(make([]byte, 1))
		require.NoError(t, err)
		require.NoError(t, out.Close())
		began := time.Now()
		require.NoError(t, cmd.Wait(), args)
		require.Less(t, time.Since(began), 10*time.Second)
	}
}
