package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator/internal/pgtest"
	"github.com/heroku-migrator/migrator/internal/shop"
)

var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "heroku-app")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "heroku-app")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		panic(string(out))
	}
	status := pgtest.Main(m)
	_ = os.RemoveAll(dir)
	os.Exit(status)
}

const password = "sesame-open-sesame"

// pair is a source and a target on real servers.
type pair struct {
	source, target *pgtest.Database
	path           string
}

func newPair(t *testing.T) *pair {
	t.Helper()
	server := pgtest.Shared(t, pgtest.SourceVersion())
	tools, err := server.PgTools(t.Context())
	require.NoError(t, err)
	return &pair{source: server.NewSource(t), target: pgtest.Shared(t, pgtest.TargetVersion()).NewTarget(t), path: tools + ":" + os.Getenv("PATH")}
}

// process is the program as a process of its own.
type process struct {
	*exec.Cmd

	url  string
	out  *output
	done chan struct{}
	err  error // set when done is closed
}

// output is safe for reading while the process writes.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// start starts the program with this environment and nothing else. It does not wait.
func start(t *testing.T, command string, env ...string) *process {
	t.Helper()
	port := freePort(t)
	p := &process{Cmd: exec.Command(binary, command), url: "http://127.0.0.1:" + port, out: &output{}, done: make(chan struct{})}
	p.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "PORT=" + port}, env...)
	p.Stdout, p.Stderr = p.out, p.out
	require.NoError(t, p.Start())
	go func() {
		p.err = p.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = p.Process.Kill()
		<-p.done
		if t.Failed() {
			t.Logf("%s %d said:\n%s", command, p.Process.Pid, p.out)
		}
	})
	return p
}

// web starts the program between the pair's databases, and waits until it answers.
func (p *pair) web(t *testing.T, env ...string) *process {
	t.Helper()
	s := start(t, "web", append([]string{"PATH=" + p.path, "HEROKU_URL=" + p.source.URL, "PLANETSCALE_URL=" + p.target.URL, "PASSWORD=" + password}, env...)...)
	s.awaitUp(t)
	return s
}

func (p *process) awaitUp(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool {
		r, err := http.Get(p.url + "/health")
		if err != nil {
			return false
		}
		defer r.Body.Close()
		return r.StatusCode == http.StatusOK
	}, 30*time.Second, 10*time.Millisecond, "it does not answer")
}

// terminate sends SIGTERM, and waits for the end, which has to be a good one.
func (p *process) terminate(t *testing.T) {
	t.Helper()
	began := time.Now()
	require.NoError(t, p.Process.Signal(syscall.SIGTERM))
	select {
	case <-p.done:
	case <-time.After(20 * time.Second): // after 30, Heroku kills
		t.Fatal("it did not end within 20 s")
	}
	require.NoError(t, p.err, p.out)
	t.Logf("ended %s after SIGTERM", time.Since(began).Round(time.Millisecond))
}

func (p *process) request(t *testing.T, method, path string, change ...func(*http.Request)) (status int, body string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, p.url+path, nil)
	require.NoError(t, err)
	r.SetBasicAuth("admin", password)
	for _, c := range change {
		c(r)
	}
	answer, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	return answer.StatusCode, string(b)
}

func (p *process) status(t *testing.T) map[string]any {
	t.Helper()
	code, body := p.request(t, http.MethodGet, "/status")
	require.Equal(t, http.StatusOK, code, body)
	var st map[string]any
	require.NoError(t, json.Unmarshal([]byte(body), &st))
	return st
}

// await waits for a phase; an error ends it.
func (p *process) await(t *testing.T, phase string) map[string]any {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		st := p.status(t)
		if st["phase"] == phase {
			return st
		}
		if st["phase"] == "error" || time.Now().After(deadline) {
			t.Fatalf("phase %v instead of %s: %v", st["phase"], phase, st["error"])
		}
	}
}

func (p *process) post(t *testing.T, path string) {
	t.Helper()
	code, body := p.request(t, http.MethodPost, path)
	require.Contains(t, []int{http.StatusOK, http.StatusAccepted}, code, "%s: %s", path, body)
	require.Eventually(t, func() bool { return p.status(t)["running"] == nil }, 5*time.Minute, 100*time.Millisecond)
}

func (p *pair) requireNoSecret(t *testing.T, text string) {
	t.Helper()
	require.NotContains(t, text, password)
	for _, db := range []*pgtest.Database{p.source, p.target} {
		cfg, err := pgx.ParseConfig(db.URL)
		require.NoError(t, err)
		require.NotEmpty(t, cfg.Password)
		require.NotContains(t, text, cfg.Password)
	}
}

func execute(t *testing.T, db *pgtest.Database, sql string) {
	t.Helper()
	_, err := db.Connect(t).Exec(t.Context(), sql)
	require.NoError(t, err)
}

func count(t *testing.T, db *pgtest.Database, sql string) (n int64) {
	t.Helper()
	require.NoError(t, db.Connect(t).QueryRow(t.Context(), sql).Scan(&n))
	return n
}

// requireNoTrace looks whether anything of the migration is left.
func (p *pair) requireNoTrace(t *testing.T) {
	t.Helper()
	for _, db := range []*pgtest.Database{p.source, p.target} {
		require.Zero(t, count(t, db, `SELECT (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'heroku\_migrator%') + (SELECT count(*) FROM pg_namespace WHERE nspname = 'heroku_migrator')`))
	}
}

// Databases that cannot be reached, or answer nothing at all, hold up neither the start nor the page nor the end.
func TestListensWhateverTheDatabases(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, and says nothing
	require.NoError(t, err)
	defer silent.Close()
	s := start(t, "web", "PASSWORD="+password, "HEROKU_URL=postgres://u:not-shown-1@"+silent.Addr().String()+"/d?sslmode=disable",
		"PLANETSCALE_URL=postgres://u:not-shown-2@127.0.0.1:1/d?sslmode=disable")
	s.awaitUp(t)
	code, body := s.request(t, http.MethodGet, "/")
	require.Equal(t, http.StatusOK, code, body)
	require.Eventually(t, func() bool { return s.status(t)["unreachable"] != nil }, time.Minute, 100*time.Millisecond)
	st := s.status(t)
	require.Equal(t, "waiting", st["phase"])
	require.Contains(t, st["error"], "refused")
	code, body = s.request(t, http.MethodPost, "/start-migration")
	require.Equal(t, http.StatusServiceUnavailable, code, body)
	require.Contains(t, body, `"code":"unreachable"`)
	s.terminate(t)
	require.NotContains(t, s.out.String(), "not-shown")
}

// Whatever is wrong with the environment, the page is served and names it, with what to do.
func TestMistakesInTheEnvironmentAreShown(t *testing.T) {
	t.Parallel()
	good := "postgres://u:not-shown@127.0.0.1:1/d?sslmode=disable"
	for name, c := range map[string]struct {
		env  []string
		want []string
	}{
		"nothing is set":      {nil, []string{"HEROKU_URL is not set. Set it to the URL", "PLANETSCALE_URL is not set"}},
		"a URL is none":       {[]string{"HEROKU_URL=mysql://u:not-shown@h/d", "PLANETSCALE_URL=" + good}, []string{"HEROKU_URL cannot be used", "postgres://"}},
		"the pooler's port":   {[]string{"HEROKU_URL=" + good, "PLANETSCALE_URL=postgres://u:not-shown@h.horizon.psdb.cloud:6432/d"}, []string{"PLANETSCALE_URL leads to PgBouncer (port 6432)", "Use port 5432: postgres://u:***@h.horizon.psdb.cloud:5432/d"}},
		"numbers and words":   {[]string{"HEROKU_URL=" + good, "PLANETSCALE_URL=" + good, "COPY_WORKERS=many", "SWITCH_WRITERS=never"}, []string{"COPY_WORKERS is \\\"many\\\"", "SWITCH_WRITERS is \\\"never\\\". Set it to wait, give-up or terminate"}},
		"where to notify":     {[]string{"HEROKU_URL=" + good, "PLANETSCALE_URL=" + good, "NOTIFICATION_URL=hooks/not-shown"}, []string{"NOTIFICATION_URL cannot be used"}},
		"half of the hook":    {[]string{"HEROKU_URL=" + good, "PLANETSCALE_URL=" + good, "HEROKU_APP=shop"}, []string{"HEROKU_API_KEY is not set, and HEROKU_APP needs it"}},
		"the hook's own app":  {[]string{"HEROKU_URL=" + good, "PLANETSCALE_URL=" + good, "HEROKU_APP=mover", "HEROKU_APP_NAME=mover"}, []string{"HEROKU_APP names this very app"}},
		"on Heroku":           {[]string{"DYNO=web.1", "HEROKU_APP_NAME=mover", "PLANETSCALE_URL=" + good}, []string{"heroku config:set HEROKU_URL=… -a mover"}},
		"an origin with path": {[]string{"HEROKU_URL=" + good, "PLANETSCALE_URL=" + good, "TRUSTED_ORIGINS=https://a.example/x"}, []string{"TRUSTED_ORIGINS has an entry"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t, "web", append(c.env, "PASSWORD="+password)...)
			s.awaitUp(t)
			code, body := s.request(t, http.MethodGet, "/")
			require.Equal(t, http.StatusOK, code, body)
			code, body = s.request(t, http.MethodGet, "/status", func(r *http.Request) { r.Header.Del("Authorization") })
			require.Equal(t, http.StatusUnauthorized, code, body)
			_, status := s.request(t, http.MethodGet, "/status")
			_, checks := s.request(t, http.MethodGet, "/preflight-checks")
			for _, want := range c.want {
				require.Contains(t, status, want)
			}
			require.Contains(t, status, `"phase":"waiting"`)
			require.Contains(t, checks, `"check":"configuration"`)
			require.Contains(t, checks, `"ok":false`)
			require.NotContains(t, status, `"unreachable"`)
			code, body = s.request(t, http.MethodPost, "/switch-traffic")
			require.Equal(t, http.StatusConflict, code, body)
			code, body = s.request(t, http.MethodPost, "/start-migration")
			require.Equal(t, http.StatusOK, code, body)
			require.Eventually(t, func() bool { return s.status(t)["phase"] == "error" }, 30*time.Second, 50*time.Millisecond)
			require.NotEmpty(t, s.status(t)["reasons"])
			code, body = s.request(t, http.MethodGet, "/readyz")
			require.Equal(t, http.StatusServiceUnavailable, code, body)
			s.terminate(t)
			require.NotContains(t, s.out.String()+status+checks, "not-shown")
		})
	}
}

// Without a password nobody sees anything, whatever the path. /health is open, so that the platform leaves the app alone.
func TestNothingWithoutPassword(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	s := start(t, "web", "PATH="+p.path, "HEROKU_URL="+p.source.URL, "PLANETSCALE_URL="+p.target.URL)
	s.awaitUp(t)
	for _, path := range []string{"/", "/status", "/metrics", "/readyz", "/logs", "/export/diagnostics.json", "/static/index.html", "//health", "/health/"} {
		code, body := s.request(t, http.MethodGet, path)
		require.Equal(t, http.StatusServiceUnavailable, code, path)
		require.Contains(t, body, "PASSWORD is not set", path)
		require.NotContains(t, body, p.source.Name)
	}
	for _, path := range []string{"/start-migration", "/abort", "/health"} {
		code, body := s.request(t, http.MethodPost, path)
		require.Equal(t, http.StatusServiceUnavailable, code, path)
		require.Contains(t, body, `"code":"password_missing"`)
	}
	_, body := s.request(t, http.MethodGet, "/", func(r *http.Request) { r.Header.Set("Accept", "text/html") })
	require.Contains(t, body, "<h1>Heroku migrator</h1>")
	s.terminate(t)

	s = start(t, "web", "PATH="+p.path, "HEROKU_URL="+p.source.URL, "PLANETSCALE_URL="+p.target.URL, "DISABLE_AUTH=true")
	s.awaitUp(t)
	code, body := s.request(t, http.MethodGet, "/status", func(r *http.Request) { r.Header.Del("Authorization") })
	require.Equal(t, http.StatusOK, code, body)
	require.Contains(t, s.out.String(), "DISABLE_AUTH is set")
}

// A run-book for the tool before this one moves a database, and the program stays small.
func TestRunbook(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("there is no curl here")
	}
	p := newPair(t)
	c := p.source.Connect(t)
	require.NoError(t, shop.Install(t.Context(), c))
	_, err := shop.Seed(t.Context(), c, 0.3)
	require.NoError(t, err)
	execute(t, p.source, `CREATE TABLE wide (id int PRIMARY KEY, payload text);
		INSERT INTO wide SELECT i, repeat(md5(i::text), 3000) FROM generate_series(1, 1500) i`)
	told := make(chan string, 64)
	receiver := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		var n struct {
			Event string `json:"event"`
		}
		_ = json.Unmarshal(b, &n)
		told <- n.Event
	})
	s := p.web(t, "NOTIFICATION_URL="+receiver)
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "testdata/runbook.sh")
	cmd.Env = append(os.Environ(), "MIGRATOR_APP="+s.url, "MIGRATOR_PASSWORD="+password)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "migration finished")
	require.Equal(t, int64(1500), count(t, p.target, `SELECT count(*) FROM wide`))
	p.requireNoTrace(t)
	require.Less(t, peakMiB(t, s.Process.Pid), int64(80), "MiB resident")
	s.terminate(t)
	p.requireNoSecret(t, s.out.String())
	var events []string
	for range len(told) {
		events = append(events, <-told)
	}
	require.Subset(t, events, []string{"started", "in_sync", "switched", "reverted", "completed"})
}

func serve(t *testing.T, handle http.HandlerFunc) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := &http.Server{Handler: handle}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return "http://" + l.Addr().String()
}

var peakResident = regexp.MustCompile(`VmHWM:\s*(\d+) kB`)

// peakMiB is the most that a process has had in memory.
func peakMiB(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Skip("there is no /proc here")
	}
	m := peakResident.FindSubmatch(b)
	require.NotNil(t, m)
	n, err := strconv.ParseInt(string(m[1]), 10, 64)
	require.NoError(t, err)
	t.Logf("%d MiB resident at most", n/1024)
	return n / 1024
}

// A process is stopped in the middle of the copy. Another one, started before that as when a dyno is replaced, goes on; a worker helps.
func TestRestartOverlapAndWorker(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	c := p.source.Connect(t)
	require.NoError(t, shop.Install(t.Context(), c))
	_, err := shop.Seed(t.Context(), c, 0.2)
	require.NoError(t, err)
	execute(t, p.source, `CREATE TABLE big (id int PRIMARY KEY, payload text NOT NULL);
		ALTER TABLE big ALTER payload SET STORAGE EXTERNAL;
		INSERT INTO big SELECT i, repeat(md5(i::text), 60) FROM generate_series(1, 30000) i`)
	writers, err := shop.StartWriters(t.Context(), p.source.URL, 2, shop.Options{Rate: 30, Rest: 4, Seed: 11})
	require.NoError(t, err)
	defer writers.Stop()

	slow := []string{"COPY_MAX_MB=6", "COPY_CHUNK_MB=1", "COPY_WORKERS=2"}
	first := p.web(t, slow...)
	worker := start(t, "worker", append([]string{"PATH=" + p.path, "HEROKU_URL=" + p.source.URL, "PLANETSCALE_URL=" + p.target.URL}, slow...)...)
	first.await(t, "waiting")
	first.post(t, "/start-migration")
	first.await(t, "ready_to_copy")
	first.post(t, "/start-copy")

	shares := func(st map[string]any, pid int) bool {
		workers, _ := st["workers"].([]any)
		for _, w := range workers {
			if strings.HasSuffix(w.(map[string]any)["process"].(string), fmt.Sprintf("process %d", pid)) {
				return true
			}
		}
		return false
	}
	require.Eventually(t, func() bool { return shares(first.status(t), worker.Process.Pid) }, time.Minute, 50*time.Millisecond, "the worker copies nothing")
	second := p.web(t, slow...) // both are there for a while
	require.Equal(t, "copying", second.await(t, "copying")["phase"])
	require.Contains(t, second.status(t)["leader"], fmt.Sprintf("process %d", first.Process.Pid))
	_, body := second.request(t, http.MethodPost, "/switch-traffic")
	require.Contains(t, body, `"code":"wrong_phase"`, "it is asked of the process that leads")

	before := copied(t, first)
	first.terminate(t)
	require.Eventually(t, func() bool {
		return strings.HasSuffix(second.status(t)["leader"].(string), fmt.Sprintf("process %d", second.Process.Pid))
	}, time.Minute, 50*time.Millisecond, "nobody takes over")
	require.GreaterOrEqual(t, copied(t, second), before, "what was copied counts")
	second.terminate(t) // now nobody leads
	third := p.web(t, "COPY_WORKERS=2")
	third.await(t, "replicating")
	third.post(t, "/verify")
	third.post(t, "/switch-traffic")
	third.await(t, "switched")
	writers.Redirect(p.target.URL)
	time.Sleep(time.Second) // the application writes there
	require.Positive(t, writers.Stop().Committed)
	require.NoError(t, writers.CheckLedger(t.Context(), p.target.Connect(t)), "every committed transaction is on the target")
	third.post(t, "/cleanup")
	third.await(t, "completed")
	p.requireNoTrace(t)
	require.Less(t, peakMiB(t, third.Process.Pid), int64(80), "MiB resident")
	worker.terminate(t)
	third.terminate(t)
	for _, one := range []*process{first, second, third, worker} {
		p.requireNoSecret(t, one.out.String())
	}
}

func copied(t *testing.T, p *process) float64 {
	t.Helper()
	return p.status(t)["progress_signals"].(map[string]any)["byte_weighted"].(map[string]any)["copied_bytes"].(float64)
}

// A worker without anything to do, or to connect to, waits and ends well.
func TestWorkerWaits(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	idle := start(t, "worker", "PATH="+p.path, "HEROKU_URL="+p.source.URL, "PLANETSCALE_URL="+p.target.URL)
	require.Eventually(t, func() bool { return strings.Contains(idle.out.String(), "no migration is under way") }, 30*time.Second, 20*time.Millisecond)
	lost := start(t, "worker", "HEROKU_URL=nonsense")
	require.Eventually(t, func() bool { return strings.Contains(lost.out.String(), "HEROKU_URL cannot be used") }, 30*time.Second, 20*time.Millisecond)
	idle.terminate(t)
	lost.terminate(t)
	p.requireNoSecret(t, idle.out.String())
}

func TestCommands(t *testing.T) {
	t.Parallel()
	p := start(t, "web", "DISABLE_AUTH=true")
	p.awaitUp(t)
	run := func(env string, args ...string) (string, int) {
		cmd := exec.Command(binary, args...)
		cmd.Env = []string{env}
		out, _ := cmd.CombinedOutput()
		return string(out), cmd.ProcessState.ExitCode()
	}
	out, code := run("PORT="+p.url[strings.LastIndex(p.url, ":")+1:], "health")
	require.Zero(t, code, out)
	out, code = run("PORT="+freePort(t), "health")
	require.Equal(t, 1, code, out)
	require.Contains(t, out, "nothing answers on port")
	for _, args := range [][]string{{"fly"}, {"web", "worker"}} {
		out, code = run("PORT=1", args...)
		require.Equal(t, 64, code)
		require.Contains(t, out, "heroku-app worker")
	}
	out, code = run("PORT="+p.url[strings.LastIndex(p.url, ":")+1:], "web")
	require.Equal(t, 1, code)
	require.Contains(t, out, "address already in use")
	_, code = run("A=b", "version")
	require.Zero(t, code)
}
