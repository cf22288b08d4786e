package dashboard

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
)

func TestNewRefusesToLetEverybodyIn(t *testing.T) {
	t.Parallel()
	_, err := New(newFake(), Config{})
	require.ErrorContains(t, err, "Config.Password")
	_, err = New(newFake(), Config{Password: "x", SourceURL: "mysql://x"})
	require.ErrorContains(t, err, "SourceURL")
	_, err = New(newFake(), Config{Password: "x", TrustedOrigins: []string{"no origin"}})
	require.ErrorContains(t, err, "TrustedOrigins")
	d, err := New(newFake(), Config{Insecure: true})
	require.NoError(t, err)
	d.Close()
}

func TestMountedUnderAPrefix(t *testing.T) {
	t.Parallel()
	s := newSite(t, newFake())
	page := s.get(t, "/")
	require.Equal(t, http.StatusOK, page.status)
	require.Contains(t, page.header.Get("Content-Type"), "text/html")
	require.NotEmpty(t, page.header.Get("ETag"))
	cached := s.ask(t, http.MethodGet, "/static/index.html", "", func(r *http.Request) {
		r.Header.Set("If-None-Match",
			page.header.Get("ETag"))
	})
	require.Equal(t, http.StatusNotModified, cached.status)
	require.Equal(t, http.StatusNotFound, s.get(t, "/static/none.js").status)
	require.Equal(t, "not_found", s.get(t, "/nothing").json["code"])

	// Nothing in the page leads out of the mount point, or to another host.
	for name, a := range s.assets {
		require.NotRegexp(t, `(src|href|action)="/`, string(a.content), name)
		require.NotRegexp(t, `(src|href|action)="(https?:)?//`, string(a.content), name)
		require.NotContains(t, string(a.content), "<base", name)
	}
}

// Where the prefix is taken away without its slash, the page is redirected to where its relative addresses are right.
func TestRedirectsToTheSlash(t *testing.T) {
	t.Parallel()
	s := newSite(t, newFake())
	server := http.NewServeMux()
	server.Handle("/deep/tool", http.StripPrefix("/deep/tool", s.Dashboard))
	w := newRecorder()
	r := newRequest(t, http.MethodGet, "/deep/tool?x=1")
	server.ServeHTTP(w, r)
	require.Equal(t, http.StatusPermanentRedirect, w.Code)
	require.Equal(t, "./tool/?x=1", w.Header().Get("Location"))
	to, err := r.URL.Parse(w.Header().Get("Location"))
	require.NoError(t, err)
	require.Equal(t, "/deep/tool/", to.Path)

	// However the prefix is taken away, what is below it is found.
	for prefix, target := range map[string]string{"/": "/health", "/deep/": "/deep/health", "/deep": "/deep/health",
		"": "/health"} {
		w := newRecorder()
		http.StripPrefix(prefix, s.Dashboard).ServeHTTP(w, newRequest(t, http.MethodGet, target))
		require.Equal(t, http.StatusOK, w.Code, "%q", prefix)
	}
	for prefix, target := range map[string]string{"/": "/", "/deep/": "/deep/", "/deep": "/deep/", "": "/"} {
		w := newRecorder()
		r := newRequest(t, http.MethodGet, target)
		r.SetBasicAuth("admin", password)
		http.StripPrefix(prefix, s.Dashboard).ServeHTTP(w, r)
		require.Equal(t, http.StatusOK, w.Code, "%q", prefix)
		require.Contains(t, w.Body.String(), "<!doctype html>")
	}
}

func TestHeadersOfEveryAnswer(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.set(migrator.PhaseCopying)
	s := newSite(t, f)
	for path := range s.routes {
		if path == "/events" || !slices.Contains(s.routes[path].methods, http.MethodGet) {
			continue
		}
		a := s.get(t, path)
		assert.NotEqual(t, http.StatusInternalServerError, a.status, path)
		assert.Equal(t, "nosniff", a.header.Get("X-Content-Type-Options"), path)
		assert.Equal(t, "no-referrer", a.header.Get("Referrer-Policy"), path)
		csp := a.header.Get("Content-Security-Policy")
		assert.Contains(t, csp, "default-src 'none'", path)
		assert.Contains(t, csp, "frame-ancestors 'none'", path)
		assert.NotContains(t, csp, "unsafe", path)
		if path != "/" {
			assert.Equal(t, "no-store", a.header.Get("Cache-Control"), path)
		}
	}
}

func TestWrongMethods(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.do = func(context.Context, migrator.CommandName, bool) (*migrator.Result, error) {
		t.Error("a command was carried out")
		return nil, errDown
	}
	s := newSite(t, f)
	for path, rt := range s.routes {
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete,
			http.MethodPatch, http.MethodOptions} {
			if slices.Contains(rt.methods, method) {
				continue
			}
			a := s.ask(t, method, path, "")
			require.Equal(t, http.StatusMethodNotAllowed, a.status, "%s %s", method, path)
			require.Equal(t, strings.Join(rt.methods, ", "), a.header.Get("Allow"), "%s %s", method, path)
			require.Equal(t, "method_not_allowed", a.json["code"])
		}
	}
}

// Every path is in the description, with its method, and the other way round; every schema that is named is there.
func TestOpenAPIDescribesEveryPath(t *testing.T) {
	t.Parallel()
	s := newSite(t, newFake())
	var doc struct {
		Paths      map[string]map[string]any `json:"paths"`
		Components struct {
			Schemas map[string]any `json:"schemas"`
		} `json:"components"`
	}
	a := s.get(t, "/openapi.json")
	require.NoError(t, json.Unmarshal([]byte(a.body), &doc))
	for path, rt := range s.routes {
		methods := doc.Paths[path]
		require.NotNil(t, methods, path)
		require.Contains(t, methods, strings.ToLower(rt.methods[0]), path)
		require.Len(t, methods, 1, path)
	}
	require.Len(t, doc.Paths, len(s.routes)+1, "static is the other one")
	for _, name := range regexp.MustCompile(`#/components/schemas/(\w+)`).FindAllStringSubmatch(a.body, -1) {
		require.Contains(t, doc.Components.Schemas, name[1])
	}
	// Every code that is sent is described.
	_, codes, _ := strings.Cut(a.body, `"Error"`)
	for _, code := range []string{"busy", "cutover_blocked", "cutover_override_required", "revert_override_required",
		"rows_differ", "not_driven", "closing"} {
		require.Contains(t, codes, `"`+code+`"`)
	}
}

// What the status has is described, whatever the phase.
func TestOpenAPIDescribesTheStatus(t *testing.T) {
	t.Parallel()
	f := newFake()
	lag := 1.5
	f.set(migrator.PhaseSwitched, func(st *migrator.Status) {
		st.LagSeconds, st.Leader, st.Goal, st.FailedPhase = &lag, "x", migrator.PhaseCompleted, migrator.PhaseCopying
		st.Report, st.RevertReport = &migrator.SwitchReport{}, &migrator.SwitchReport{}
		st.Log, st.Waiting = &migrator.LogStatus{}, &migrator.WaitingStatus{}
		st.WayBack, st.Verification = &migrator.WayBackStatus{}, &migrator.Verification{}
		st.Hooks, st.Tables = []migrator.HookStatus{{}}, []migrator.TableSummary{{Schema: "public", ETASeconds: &lag}}
		st.Workers, st.Builds, st.Throttle = []migrator.WorkerStatus{{}}, []migrator.BuildStatus{{}},
			&migrator.ThrottleStatus{}
		st.Objects = map[migrator.Stage]migrator.ObjectCounts{"tables": {}}
		st.SourceLoad = &migrator.LoadStatus{}
		st.SetAside = []migrator.AsideTable{{Reading: true, Row: "x", Column: "x", Constraint: "x", RemedySQL: "x",
			RemedyOn: "x"}}
		st.Failed, st.Skipped = []migrator.FailedObject{{}}, []string{"x"}
	})
	s := newSite(t, f)
	st := s.waitPhase(t, migrator.PhaseSwitched)
	doc := s.get(t, "/openapi.json").json["components"].(map[string]any)["schemas"].(map[string]any)
	var check func(path string, value any, schema map[string]any)
	check = func(path string, value any, schema map[string]any) {
		if ref, ok := schema["$ref"].(string); ok {
			schema = doc[ref[strings.LastIndex(ref, "/")+1:]].(map[string]any)
		}
		switch value := value.(type) {
		case map[string]any:
			properties, ok := schema["properties"].(map[string]any)
			if !ok {
				return
			}
			for name, v := range value {
				require.Contains(t, properties, name, path)
				check(path+"."+name, v, properties[name].(map[string]any))
			}
		case []any:
			if items, ok := schema["items"].(map[string]any); ok && len(value) > 0 {
				check(path+"[]", value[0], items)
			}
		}
	}
	check("status", st, doc["Status"].(map[string]any))
	for _, name := range doc["Status"].(map[string]any)["required"].([]any) {
		require.Contains(t, st, name)
	}
}

func TestHealthAndReadiness(t *testing.T) {
	t.Parallel()
	f := newFake()
	s := newSite(t, f)
	stranger := func(r *http.Request) { r.Header.Del("Authorization") }
	require.JSONEq(t, `{"status":"ok"}`, s.ask(t, http.MethodGet, "/health", "", stranger).body)
	require.JSONEq(t, `{"ready":true,"reasons":[]}`, s.ask(t, http.MethodGet, "/readyz", "", stranger).body)
	f.fail(errDown)
	require.Eventually(t, func() bool {
		return s.ask(t, http.MethodGet, "/readyz", "", stranger).status == http.StatusServiceUnavailable
	}, 10*time.Second, 20*time.Millisecond)
	a := s.ask(t, http.MethodGet, "/readyz", "", stranger)
	require.NotContains(t, a.body, "example.com", "it is open to everybody")
	require.Equal(t, http.StatusOK, s.ask(t, http.MethodGet, "/health", "", stranger).status)
}

func TestStatusHasWhatTheDashboardAdds(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.set(migrator.PhaseReplicating)
	s := newSite(t, f)
	var st map[string]any
	require.Eventually(t, func() bool {
		st = s.get(t, "/status").json
		source := st["databases"].(map[string]any)["source"].(map[string]any)
		return source["version"] == "15.18"
	}, 10*time.Second, 20*time.Millisecond)
	for _, name := range []string{"phase", "state", "started_at", "switched_at", "completed_at", "error", "message",
		"cutover_readiness", "progress_signals", "tables", "at"} {
		require.Contains(t, st, name)
	}
	require.Equal(t, "v1.2.3", st["version"])
	require.Equal(t, "operator", st["role"])
	require.Equal(t, false, st["read_only"])
	require.Nil(t, st["running"])
	require.Equal(t, map[string]any{"host": "source.example.com", "port": 5432.0, "database": "shop",
		"version": "15.18", "role": "app", "bytes": 4096.0},
		st["databases"].(map[string]any)["source"])
	require.Equal(t, map[string]bool{
		"start": false, "copy": false, "pause": true, "resume": false, "switch": true, "revert": false,
		"complete": false, "abort": true,
		"retry": false, "reset": false, "verify": true,
	}, s.allowed(t))
	f.set(migrator.PhaseWaiting, func(st *migrator.Status) { st.StartedAt = nil })
}

// Databases that cannot be reached keep neither the page nor the status from being served.
func TestDatabasesThatCannotBeReached(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.fail(errDown)
	s := newSite(t, f)
	require.Equal(t, http.StatusOK, s.get(t, "/").status)
	st := s.get(t, "/status").json
	require.Equal(t, "waiting", st["phase"])
	require.Contains(t, st["error"], "connection refused")
	require.NotContains(t, st["error"], "t4rget-secret")
	require.NotNil(t, st["unreachable"])
	require.NotContains(t, s.allowed(t), true)
	a := s.post(t, "/start-migration")
	require.Equal(t, http.StatusServiceUnavailable, a.status)
	require.Equal(t, "unreachable", a.json["code"])
	require.NotEmpty(t, a.header.Get("Retry-After"))

	f.fail(nil)
	require.Eventually(t, func() bool { return s.get(t, "/status").json["unreachable"] == nil }, 10*time.Second,
		20*time.Millisecond)
	require.True(t, s.allowed(t)["start"])

	// Afterwards, what was known is still shown.
	f.set(migrator.PhaseCopying)
	s.waitPhase(t, migrator.PhaseCopying)
	f.fail(errDown)
	require.Eventually(t, func() bool { return s.get(t, "/status").json["unreachable"] != nil }, 10*time.Second,
		20*time.Millisecond)
	require.Equal(t, "copying", s.get(t, "/status").json["phase"])
}

// However many look, the databases are asked a few times.
func TestStatusIsServedFromMemory(t *testing.T) {
	t.Parallel()
	f := newFake()
	s := newSite(t, f, func(_ *Config, times *timing) { times.least = time.Hour; times.most = time.Hour })
	s.get(t, "/status")
	for range 200 {
		require.Equal(t, http.StatusOK, s.get(t, "/status").status)
		f.publish(migrator.Event{Kind: migrator.EventPhase})
	}
	reads, _ := f.count()
	require.Less(t, reads, 30)
}

func TestPreflightIsShared(t *testing.T) {
	t.Parallel()
	f := newFake()
	runs := make(chan struct{}, 100)
	release := make(chan struct{})
	f.preflight = func(ctx context.Context) (*migrator.Report, error) {
		runs <- struct{}{}
		select {
		case <-release:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		return &migrator.Report{Findings: []migrator.Finding{
			{Check: "versions", Severity: migrator.SeverityOK, Message: "fine"},
			{Check: "extensions", Severity: migrator.SeverityBlocker, Message: "no postgis; see " + targetURL,
				Remedy: "enable it"},
		}}, nil
	}
	s := newSite(t, f, func(_ *Config, times *timing) { times.command = 200 * time.Millisecond })
	late := s.get(t, "/preflight-checks")
	require.Equal(t, http.StatusServiceUnavailable, late.status)
	require.Equal(t, "preflight_running", late.json["code"])
	var answers []<-chan answer
	for range 8 {
		answers = append(answers, s.later(t, http.MethodGet, "/preflight-checks"))
	}
	close(release)
	for _, later := range answers {
		a := <-later
		require.Equal(t, http.StatusOK, a.status, a.body)
		require.Equal(t, false, a.json["ok"])
		require.NotContains(t, a.body, "t4rget-secret")
		require.Len(t, a.json["findings"], 2)
	}
	require.Len(t, runs, 1)
}

func TestNoSecretLeaves(t *testing.T) {
	t.Parallel()
	f := newFake()
	told := fmt.Sprintf("it failed at %s and s3cr3t/source and %s, otherwise postgres://u:anothers@h/x", targetURL,
		sourceURL)
	f.set(migrator.PhaseError, func(st *migrator.Status) {
		st.FailedPhase, st.Error, st.Message = migrator.PhaseCopying, &told, told
		st.Failed = []migrator.FailedObject{{Object: "x", Error: told}}
		st.Tables = []migrator.TableSummary{{Schema: "public", Name: "t4rget-secret", State: migrator.TableCopying}}
	})
	f.preflight = func(context.Context) (*migrator.Report, error) {
		return &migrator.Report{Findings: []migrator.Finding{{Check: "x", Severity: migrator.SeverityBlocker,
			Message: told}}}, nil
	}
	f.do = func(context.Context, migrator.CommandName, bool) (*migrator.Result, error) {
		return nil, &migrator.RefusedError{Action: "abort", Reasons: []string{told}}
	}
	s := newSite(t, f, func(cfg *Config, _ *timing) {
		cfg.Secrets = []string{`hooks"secret`}
		cfg.Settings = map[string]string{"NOTIFICATION_URL": `https://x/hooks"secret`}
	})
	s.say.Error("log: "+told, "url", sourceURL, "password", password, "hook", `hooks"secret`)
	f.publish(migrator.Event{Kind: migrator.EventFailure, Message: told})
	s.waitPhase(t, migrator.PhaseError)
	require.Eventually(t, func() bool { return len(s.get(t, "/activity").json["events"].([]any)) > 0 },
		10*time.Second, 20*time.Millisecond)
	bodies := map[string]string{"abort": s.post(t, "/abort").body, "retry": s.post(t, "/retry").body}
	for path, rt := range s.routes {
		if slices.Contains(rt.methods, http.MethodGet) && path != "/events" {
			bodies[path] = s.get(t, path).body
		}
	}
	bodies["/events"] = readStream(t, s, "", func(got string) bool { return strings.Contains(got, "event: log") })
	for path, body := range bodies {
		for _, secret := range []string{"s3cr3t", "t4rget-secret", "anothers", password, `hooks\"secret`,
			`hooks"secret`} {
			require.NotContains(t, body, secret, path)
		}
	}
	require.Contains(t, bodies["/logs"], "***")
	require.Contains(t, bodies["/status"], `"phase":"copying"`, "what failed is tried again")
	require.Contains(t, bodies["/status"], "***")
}

// A password that is a word of the interface does not break it.
func TestPasswordThatIsAWord(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.set(migrator.PhaseCopying, func(st *migrator.Status) { st.Message = "the word is copying" })
	s := newSite(t, f, func(cfg *Config, _ *timing) { cfg.TargetURL = "postgres://ps:copying@h/d" })
	st := s.waitPhase(t, migrator.PhaseCopying)
	require.Equal(t, "the word is ***", st["message"])
	require.Contains(t, st, "cutover_readiness")
}

func TestReport(t *testing.T) {
	t.Parallel()
	f := newFake()
	reports := make(chan *Report, 4)
	s := newSite(t, f, func(cfg *Config, _ *timing) {
		cfg.OnReport = func(_ context.Context,
			r *Report) {
			reports <- r
		}
	})
	require.Equal(t, http.StatusNotFound, s.get(t, "/export/report.json").status)
	require.Equal(t, http.StatusNotFound, s.get(t, "/export/report.html").status)
	f.run = func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}
	f.set(migrator.PhaseSwitched, func(st *migrator.Status) {
		at := time.Now().UTC().Format(time.RFC3339Nano)
		st.SwitchedAt = &at
		st.Report = &migrator.SwitchReport{At: time.Now(), WithoutWrites: 412 * time.Millisecond, FenceAttempts: 1,
			RowsDrained: 12, Sequences: 4}
		st.Verification = &migrator.Verification{At: time.Now(), Tables: 2, Rows: 30, Differences: []string{}}
		st.Tables = []migrator.TableSummary{
			{Schema: "public", Name: "<script>alert(1)</script>", State: migrator.TableLive, RowsCopied: 10,
				BytesCopied: 8192},
			{Schema: "public", Name: "b", State: migrator.TableLive, RowsCopied: 20, BytesCopied: 8192},
		}
		st.Hooks = []migrator.HookStatus{{Point: migrator.HookAfterSwitch, Number: 1, State: "done", At: time.Now()}}
	})
	s.waitPhase(t, migrator.PhaseSwitched)
	f.do = func(_ context.Context, name migrator.CommandName, _ bool) (*migrator.Result, error) {
		f.mu.Lock()
		f.status = emptyStatus()
		f.mu.Unlock()
		return &migrator.Result{Command: name, Message: completedMessage}, nil
	}
	a := s.post(t, "/cleanup")
	require.Equal(t, http.StatusOK, a.status, a.body)
	require.Equal(t, "completed", a.json["phase"])
	r := <-reports
	require.Equal(t, migrator.PhaseCompleted, r.Outcome)
	require.Equal(t, int64(30), r.RowsCopied)

	j := s.get(t, "/export/report.json")
	require.Equal(t, "completed", j.json["outcome"])
	require.InDelta(t, 412, j.json["switch"].(map[string]any)["without_writes_ms"], 0.001)
	require.Equal(t, 2.0, j.json["tables"]) //nolint:testifylint // a whole number
	require.NotNil(t, j.json["completed_at"])
	require.Contains(t, j.header.Get("Content-Disposition"), "attachment")

	h := s.get(t, "/export/report.html")
	require.Equal(t, http.StatusOK, h.status)
	require.NotContains(t, h.body, "<script")
	require.Contains(t, h.body, "412 ms")
	style := regexp.MustCompile(`(?s)<style>(.*)</style>`).FindStringSubmatch(h.body)
	require.NotNil(t, style)
	sum := sha256.Sum256([]byte(style[1]))
	require.Contains(t, h.header.Get("Content-Security-Policy"), "'sha256-"+base64.StdEncoding.EncodeToString(
		sum[:])+"'", "or the browser does not apply it")
	require.NotContains(t, h.body, " style=")

	// It stays until reset.
	require.Equal(t, "completed", s.waitPhase(t, migrator.PhaseCompleted)["phase"])
	require.Equal(t, http.StatusOK, s.post(t, "/reset").status)
	s.waitPhase(t, migrator.PhaseWaiting)
	require.Equal(t, http.StatusNotFound, s.get(t, "/export/report.json").status)
	require.Empty(t, reports, "once")
}

func TestDiagnostics(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.set(migrator.PhaseCopying)
	s := newSite(t, f)
	s.get(t, "/preflight-checks")
	s.waitPhase(t, migrator.PhaseCopying)
	a := s.get(t, "/export/diagnostics.json")
	for _, name := range []string{"versions", "process", "status", "commands", "preflight", "report", "activity",
		"log", "dashboard"} {
		require.NotNil(t, a.json[name], name)
	}
	require.Contains(t, a.header.Get("Content-Disposition"), "migration-diagnostics.json")
}

// The names are a promise: see the package's documentation.
func TestMetricsAreDocumented(t *testing.T) {
	t.Parallel()
	f := newFake()
	lag := 2.5
	f.set(migrator.PhaseSwitched, func(st *migrator.Status) {
		st.LagSeconds, st.ProgressSignals.ThroughputETA.ETASeconds = &lag, &lag
		st.ProgressSignals.TablePhase = map[migrator.TableState]int{migrator.TableLive: 3}
		st.Report, st.RevertReport = &migrator.SwitchReport{WithoutWrites: time.Second}, &migrator.SwitchReport{}
		st.Log, st.WayBack, st.Verification = &migrator.LogStatus{}, &migrator.WayBackStatus{LagSeconds: &lag},
			&migrator.Verification{At: time.Now()}
		st.Objects, st.SourceLoad = map[migrator.Stage]migrator.ObjectCounts{"tables": {Done: 1, Total: 1}},
			&migrator.LoadStatus{}
	})
	to := &receiver{}
	s := newSite(t, f, func(cfg *Config, _ *timing) { cfg.Notifier = to })
	s.waitPhase(t, migrator.PhaseSwitched)
	s.get(t, "/preflight-checks")
	s.post(t, "/pause-sync")
	f.publish(migrator.Event{Kind: migrator.EventPhase, Phase: migrator.PhaseReplicating})
	var body string
	require.Eventually(t, func() bool {
		body = s.get(t, "/metrics").body
		return strings.Contains(body, "heroku_migrator_events_total") && strings.Contains(body,
			"heroku_migrator_notifications_total")
	}, 10*time.Second, 20*time.Millisecond)
	require.Contains(t, body, `heroku_migrator_phase{phase="switched"} 1`)
	require.Contains(t, body, `heroku_migrator_without_writes_seconds{command="switch"} 1`)
	documented := documentedMetrics(t)
	shown := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (heroku_migrator_\w+)`).FindAllStringSubmatch(body, -1) {
		shown[m[1]] = true
		require.Contains(t, documented, m[1], "add it to doc.go")
	}
	for name := range documented {
		require.Contains(t, shown, name)
	}
}
