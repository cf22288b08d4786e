package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator/internal/pgtest"
)

var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "embed")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "embed")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		panic(string(out))
	}
	status := pgtest.Main(m)
	_ = os.RemoveAll(dir)
	os.Exit(status)
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

// browser is one that keeps cookies and does not follow redirects.
type browser struct {
	http.Client

	url string
}

func newBrowser(t *testing.T, address string) *browser {
	t.Helper()
	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	return &browser{Client: http.Client{Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, url: address}
}

type answer struct {
	code     int
	location string
	body     string
	json     map[string]any
}

func (b *browser) do(t *testing.T, method, path string, form url.Values, header ...string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, b.url+path, strings.NewReader(form.Encode()))
	require.NoError(t, err)
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	response, err := b.Do(r)
	require.NoError(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	a := answer{code: response.StatusCode, location: response.Header.Get("Location"), body: string(body)}
	_ = json.Unmarshal(body, &a.json)
	return a
}

func (b *browser) login(t *testing.T, name, password string) {
	t.Helper()
	a := b.do(t, http.MethodPost, "/login", url.Values{"name": {name}, "password": {password}})
	require.Equal(t, http.StatusSeeOther, a.code, a.body)
}

func (b *browser) await(t *testing.T, phase string) map[string]any {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		st := b.do(t, http.MethodGet, "/admin/migration/status", nil).json
		if st["phase"] == phase {
			return st
		}
		if st["phase"] == "error" || time.Now().After(deadline) {
			t.Fatalf("phase %v instead of %s: %v", st["phase"], phase, st["error"])
		}
	}
}

// The program's login and roles are the dashboard's, its check stops the migration, its conditions begin the phases, and its hook is called.
func TestEmbed(t *testing.T) {
	source, target := pgtest.Shared(t, pgtest.SourceVersion()), pgtest.Shared(t, pgtest.TargetVersion())
	tools, err := source.PgTools(t.Context())
	require.NoError(t, err)
	from, to := source.NewSource(t), target.NewTarget(t)
	_, err = from.Connect(t).Exec(t.Context(), `CREATE TABLE notes (id int PRIMARY KEY, text text); INSERT INTO notes SELECT i, 'note' FROM generate_series(1, 1000) i`)
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	require.NoError(t, l.Close())
	out := &output{}
	start := func() (stop func()) {
		cmd := exec.Command(binary)
		cmd.Env = []string{
			"PATH=" + tools + ":" + os.Getenv("PATH"), "PORT=" + port, "HEROKU_URL=" + from.URL, "PLANETSCALE_URL=" + to.URL,
			"ADMIN_USERS=ada:operator:ada-knows-it bob:viewer:bob-knows-it",
		}
		cmd.Stdout, cmd.Stderr = out, out
		require.NoError(t, cmd.Start())
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			if t.Failed() {
				t.Log(out)
			}
		})
		require.Eventually(t, func() bool {
			r, err := http.Get("http://127.0.0.1:" + port + "/login")
			if err == nil {
				r.Body.Close()
			}
			return err == nil
		}, 30*time.Second, 10*time.Millisecond)
		return func() {
			require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
			require.NoError(t, cmd.Wait())
		}
	}
	stop := start()
	address := "http://127.0.0.1:" + port

	nobody := newBrowser(t, address)
	require.Equal(t, http.StatusUnauthorized, nobody.do(t, http.MethodPost, "/login", url.Values{"name": {"ada"}, "password": {"wrong"}}).code)
	require.Equal(t, http.StatusUnauthorized, nobody.do(t, http.MethodPost, "/login", url.Values{"name": {"eve"}, "password": {""}}).code)
	a := nobody.do(t, http.MethodGet, "/admin/migration/status", nil)
	require.Equal(t, http.StatusUnauthorized, a.code)
	require.Equal(t, "unauthorized", a.json["code"])
	a = nobody.do(t, http.MethodGet, "/admin/migration/", nil, "Accept", "text/html")
	require.Equal(t, "/login", a.location)
	require.Equal(t, http.StatusUnauthorized, nobody.do(t, http.MethodPost, "/admin/migration/abort", nil).code)
	require.Equal(t, http.StatusUnauthorized, nobody.do(t, http.MethodGet, "/admin/migration/status", nil, "Cookie", cookieName+"=guessed").code)
	require.Equal(t, http.StatusForbidden, nobody.do(t, http.MethodPost, "/freeze", url.Values{"frozen": {"yes"}}).code)

	bob, ada := newBrowser(t, address), newBrowser(t, address)
	bob.login(t, "bob", "bob-knows-it")
	ada.login(t, "ada", "ada-knows-it")
	require.Equal(t, http.StatusOK, bob.do(t, http.MethodGet, "/admin/migration/", nil, "Accept", "text/html").code)
	require.Contains(t, bob.do(t, http.MethodGet, "/admin/migration", nil).location, "migration/")
	require.Equal(t, "viewer", bob.do(t, http.MethodGet, "/admin/migration/status", nil).json["role"])
	require.Equal(t, "operator", ada.do(t, http.MethodGet, "/admin/migration/status", nil).json["role"])
	require.Equal(t, http.StatusForbidden, bob.do(t, http.MethodPost, "/begin", nil).code)
	require.NotContains(t, bob.do(t, http.MethodGet, "/", nil).body, "/begin")
	a = ada.do(t, http.MethodPost, "/begin", nil, "Sec-Fetch-Site", "cross-site")
	require.Equal(t, http.StatusForbidden, a.code, "another site's page")
	require.Equal(t, "not_driven", ada.do(t, http.MethodPost, "/admin/migration/start-migration", nil).json["code"])

	a = ada.do(t, http.MethodGet, "/admin/migration/preflight-checks", nil)
	require.Equal(t, false, a.json["ok"])
	require.Contains(t, a.body, "Deploys are not frozen")
	require.Equal(t, http.StatusSeeOther, ada.do(t, http.MethodPost, "/begin", nil).code)
	require.Eventually(t, func() bool { return strings.Contains(out.String(), "run ended") }, time.Minute, 50*time.Millisecond)
	require.Contains(t, out.String(), "Deploys are not frozen", "preflight refused")

	ada.do(t, http.MethodPost, "/freeze", url.Values{"frozen": {"yes"}})
	ada.do(t, http.MethodPost, "/begin", nil)
	ada.await(t, "replicating") // the copy has begun by itself
	require.Eventually(t, func() bool { return ada.await(t, "replicating")["verification"] != nil }, time.Minute, 100*time.Millisecond, "rows are compared")

	require.Equal(t, "forbidden", bob.do(t, http.MethodPost, "/admin/migration/switch-traffic", nil).json["code"])
	ada.do(t, http.MethodPost, "/freeze", url.Values{"frozen": {"no"}})
	a = ada.do(t, http.MethodPost, "/admin/migration/switch-traffic", nil)
	require.GreaterOrEqual(t, a.code, 400, a.body)
	require.Contains(t, a.body, "deploys are not frozen")
	ada.await(t, "replicating")

	stop() // it is deployed anew
	stop = start()
	require.Equal(t, http.StatusUnauthorized, ada.do(t, http.MethodGet, "/admin/migration/status", nil).code, "its sessions are in memory")
	ada.login(t, "ada", "ada-knows-it")
	ada.await(t, "replicating")
	ada.do(t, http.MethodPost, "/freeze", url.Values{"frozen": {"yes"}})
	for _, step := range []struct{ path, phase, database string }{
		{"/switch-traffic", "switched", "PlanetScale"}, {"/revert-switch", "replicating", "Heroku"}, {"/switch-traffic", "switched", "PlanetScale"},
	} {
		a = ada.do(t, http.MethodPost, "/admin/migration"+step.path, nil)
		require.Contains(t, []int{http.StatusOK, http.StatusAccepted}, a.code, a.body)
		ada.await(t, step.phase)
		require.Eventually(t, func() bool {
			return strings.Contains(ada.do(t, http.MethodGet, "/", nil).body, "uses the database on "+step.database)
		}, time.Minute, 50*time.Millisecond)
	}
	a = ada.do(t, http.MethodPost, "/admin/migration/cleanup", nil)
	require.Contains(t, []int{http.StatusOK, http.StatusAccepted}, a.code, a.body)
	ada.await(t, "completed")
	ada.do(t, http.MethodPost, "/logout", nil)
	require.Equal(t, http.StatusUnauthorized, ada.do(t, http.MethodGet, "/admin/migration/status", nil).code)
	stop()

	for _, db := range []*pgtest.Database{from, to} {
		var left int
		require.NoError(t, db.Connect(t).QueryRow(t.Context(), `SELECT (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'heroku\_migrator%') + (SELECT count(*) FROM pg_namespace WHERE nspname = 'heroku_migrator')`).Scan(&left))
		require.Zero(t, left)
		cfg, err := pgx.ParseConfig(db.URL)
		require.NoError(t, err)
		require.NotContains(t, out.String(), cfg.Password)
	}
	require.NotContains(t, out.String(), "knows-it")
}

// What is missing is said at once.
func TestEnvironment(t *testing.T) {
	for want, env := range map[string][]string{
		"ADMIN_USERS is empty":                        nil,
		"neither viewer nor operator":                 {"ADMIN_USERS=ada:queen:secret"},
		"not like name:role:password":                 {"ADMIN_USERS=ada:operator"},
		"HEROKU_URL: source: connection URL":          {"ADMIN_USERS=ada:operator:x"},
		"COPY_NOT_BEFORE is not a time":               {"ADMIN_USERS=ada:operator:x", "COPY_NOT_BEFORE=tonight"},
		"PLANETSCALE_URL: target: connection URL: it": {"ADMIN_USERS=ada:operator:x", "HEROKU_URL=postgres://u@127.0.0.1:1/d"},
	} {
		cmd := exec.Command(binary)
		cmd.Env = append([]string{"PORT=0"}, env...)
		out, err := cmd.CombinedOutput()
		require.Error(t, err)
		require.Contains(t, string(out), want)
	}
}
