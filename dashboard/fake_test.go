package dashboard

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
)

// fake is a migration in memory: what it answers is set by the test.
type fake struct {
	mu      sync.Mutex
	status  migrator.Status
	err     error // of Status
	reads   int
	runs    int
	workers int
	late    chan struct{} // what is read is told only when this is closed
	subs    map[chan migrator.Event]struct{}

	do        func(ctx context.Context, name migrator.CommandName, force bool) (*migrator.Result, error)
	run       func(ctx context.Context) error
	preflight func(ctx context.Context) (*migrator.Report, error)
}

func newFake() *fake {
	return &fake{status: emptyStatus(), subs: map[chan migrator.Event]struct{}{}}
}

// set puts the migration into a phase.
func (f *fake) set(phase migrator.Phase, change ...func(*migrator.Status)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	st := f.status
	st.Phase, st.Message = phase, "in phase "+string(phase)
	if phase != migrator.PhaseWaiting && st.StartedAt == nil {
		at := time.Now().UTC().Format(time.RFC3339Nano)
		st.StartedAt, st.ID = &at, "11111111-2222-3333-4444-555555555555"
	}
	for _, c := range change {
		c(&st)
	}
	f.status = st
}

func (f *fake) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *fake) count() (reads, runs int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reads, f.runs
}

func (f *fake) Status(context.Context) (*migrator.Status, error) {
	f.mu.Lock()
	f.reads++
	st, err, late := f.status, f.err, f.late
	f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if late != nil {
		<-late
	}
	return &st, nil
}

func (f *fake) Subscribe(buffer int) (<-chan migrator.Event, func()) {
	ch := make(chan migrator.Event, buffer)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.subs[ch] = struct{}{}
	return ch, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if _, ok := f.subs[ch]; ok {
			delete(f.subs, ch)
			close(ch)
		}
	}
}

func (f *fake) publish(e migrator.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for ch := range f.subs {
		select {
		case ch <- e:
		default:
		}
	}
}

func (f *fake) Do(ctx context.Context, name migrator.CommandName, force bool) (*migrator.Result, error) {
	if f.do == nil {
		return &migrator.Result{Command: name, Message: string(name) + " is done"}, nil
	}
	return f.do(ctx, name, force)
}

func (f *fake) Preflight(ctx context.Context) (*migrator.Report, error) {
	if f.preflight == nil {
		return &migrator.Report{}, nil
	}
	return f.preflight(ctx)
}

func (f *fake) Run(ctx context.Context, _ migrator.Until) error {
	f.mu.Lock()
	f.runs++
	run := f.run
	f.mu.Unlock()
	if run != nil {
		return run(ctx)
	}
	<-ctx.Done()
	return ctx.Err()
}

func (f *fake) Identify(context.Context) (source, target migrator.Identity, err error) {
	return migrator.Identity{Version: 150018, VersionStr: "15.18", Database: "shop", Role: "app", Host: "10.0.0.1", Port: 5432, Size: 4096},
		migrator.Identity{Version: 170005, VersionStr: "17.5", Database: "postgres", Role: "ps"}, nil
}

func (f *fake) SetIndexWorkers(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.workers = n
}

const (
	password  = "correct-horse"
	sourceURL = "postgres://app:s3cr3t%2Fsource@source.example.com:5432/shop"
	targetURL = "postgres://ps:t4rget-secret@target.example.com:5432/postgres"
)

// fast has the intervals short, so that tests need not wait.
func fast() timing {
	t := defaultTiming()
	t.least, t.stream, t.rerun = 20*time.Millisecond, 20*time.Millisecond, 100*time.Millisecond
	return t
}

// site is a dashboard behind a real server.
type site struct {
	*Dashboard

	url    string
	client *http.Client
}

func newSite(t *testing.T, f *fake, change ...func(*Config, *timing)) *site {
	t.Helper()
	cfg := Config{Password: password, SourceURL: sourceURL, TargetURL: targetURL, Log: NewLog(nil, 1000), Version: "v1.2.3"}
	times := fast()
	for _, c := range change {
		c(&cfg, &times)
	}
	d, err := newDashboard(f, cfg, times)
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.Handle("/admin/migration/", http.StripPrefix("/admin/migration", d))
	server := httptest.NewServer(mux)
	t.Cleanup(func() {
		d.Close()
		server.Close()
	})
	client := server.Client()
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &site{Dashboard: d, url: server.URL + "/admin/migration", client: client}
}

type answer struct {
	status int
	header http.Header
	body   string
	json   map[string]any
}

func (s *site) ask(t *testing.T, method, path, body string, change ...func(*http.Request)) answer {
	t.Helper()
	a, err := s.try(t.Context(), method, path, body, change...)
	require.NoError(t, err)
	return a
}

func (s *site) try(ctx context.Context, method, path, body string, change ...func(*http.Request)) (answer, error) {
	r, err := http.NewRequestWithContext(ctx, method, s.url+path, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	r.SetBasicAuth("admin", password)
	for _, c := range change {
		c(r)
	}
	response, err := s.client.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	a := answer{status: response.StatusCode, header: response.Header, body: string(b)}
	if err == nil && strings.HasPrefix(response.Header.Get("Content-Type"), "application/json") && len(b) > 0 {
		err = json.Unmarshal(b, &a.json)
	}
	return a, err
}

// later asks in the background. An answer that does not come is an empty one.
func (s *site) later(t *testing.T, method, path string) <-chan answer {
	t.Helper()
	out := make(chan answer, 1)
	go func() {
		a, err := s.try(t.Context(), method, path, "")
		assert.NoError(t, err)
		out <- a
	}()
	return out
}

func (s *site) get(t *testing.T, path string) answer {
	t.Helper()
	return s.ask(t, http.MethodGet, path, "")
}

func (s *site) post(t *testing.T, path string) answer {
	t.Helper()
	return s.ask(t, http.MethodPost, path, "")
}

// waitPhase waits until the status shows a phase.
func (s *site) waitPhase(t *testing.T, phase migrator.Phase) map[string]any {
	t.Helper()
	var last map[string]any
	require.Eventually(t, func() bool {
		last = s.get(t, "/status").json
		return last["phase"] == string(phase)
	}, 30*time.Second, 20*time.Millisecond, "phase %s", phase)
	return last
}

func (s *site) allowed(t *testing.T) map[string]bool {
	t.Helper()
	list := map[string]bool{}
	for name, p := range s.get(t, "/status").json["commands"].(map[string]any) {
		list[name] = p.(map[string]any)["allowed"].(bool)
	}
	return list
}

var errDown = errors.New(`failed to connect to "postgres://ps:t4rget-secret@target.example.com:5432/postgres": connection refused`)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }
