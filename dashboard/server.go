package dashboard

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"math"
	"mime"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/heroku-migrator/migrator"
)

//go:embed static
var static embed.FS

//go:embed openapi.json
var openAPI []byte

const (
	jsonType = "application/json; charset=utf-8"
	policy   = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)

// route is what a path does.
type route struct {
	methods []string
	open    bool // without a login
	handle  http.HandlerFunc
}

// table lists every path. Whatever changes something is POST, and needs role operator.
func (d *Dashboard) table() map[string]route {
	get := func(h http.HandlerFunc) route {
		return route{methods: []string{http.MethodGet, http.MethodHead}, handle: h}
	}
	open := func(h http.HandlerFunc) route {
		r := get(h)
		r.open = true
		return r
	}
	post := func(h func(http.ResponseWriter, *http.Request, params)) route {
		return route{methods: []string{http.MethodPost}, handle: func(w http.ResponseWriter, r *http.Request) { d.change(w, r, h) }}
	}
	command := func(name migrator.CommandName) route {
		return post(func(w http.ResponseWriter, r *http.Request, p params) { d.do(w, r, name, p.Force) })
	}
	scrape := promhttp.HandlerFor(d.metrics.registry, promhttp.HandlerOpts{})
	return map[string]route{
		"/":                        get(d.servePage),
		"/health":                  open(d.serveHealth),
		"/readyz":                  open(d.serveReady),
		"/status":                  get(d.serveStatus),
		"/preflight-checks":        get(d.servePreflight),
		"/logs":                    get(d.serveLogs),
		"/activity":                get(d.serveActivity),
		"/events":                  get(d.serveEvents),
		"/verify-output":           get(d.serveVerifyOutput),
		"/metrics":                 get(scrape.ServeHTTP),
		"/openapi.json":            get(d.serveOpenAPI),
		"/export/diagnostics.json": get(d.serveDiagnostics),
		"/export/report.json":      get(d.serveReportJSON),
		"/export/report.html":      get(d.serveReportHTML),
		"/start-migration":         post(d.start),
		"/start-copy":              command(migrator.CommandCopy),
		"/pause-sync":              command(migrator.CommandPause),
		"/resume-sync":             command(migrator.CommandResume),
		"/switch-traffic":          command(migrator.CommandSwitch),
		"/revert-switch":           command(migrator.CommandRevert),
		"/cleanup":                 command(migrator.CommandComplete),
		"/abort":                   command(migrator.CommandAbort),
		"/verify":                  command(migrator.CommandVerify),
		"/retry":                   post(d.retry),
		"/reset":                   post(d.reset),
		"/retry-indexes":           post(d.retryIndexes),
		"/proceed-after-rebuild":   post(d.proceed),
		"/set-rebuild-workers":     post(d.setWorkers),
	}
}

// ServeHTTP implements [http.Handler]. The request's path is relative to the mount point: see [http.StripPrefix].
func (d *Dashboard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	if r.ContentLength != 0 { // the server waits for a body before it answers, unless it is to close: see readParams
		h.Set("Connection", "close")
	}
	name := r.URL.Path
	if mount, _, _ := strings.Cut(r.RequestURI, "?"); name == "" && !strings.HasSuffix(mount, "/") {
		d.redirect(w, r)
		return
	}
	if !strings.HasPrefix(name, "/") { // the slash was taken away with the prefix
		name = "/" + name
	}
	rt, found := d.routes[name]
	if part, ok := strings.CutPrefix(name, "/static/"); ok {
		rt, found = route{methods: []string{http.MethodGet, http.MethodHead}, handle: d.asset(part)}, true
	}
	role := RoleViewer
	if !rt.open {
		var refused *apiError
		if role, refused = d.auth.role(r); refused != nil {
			d.fail(w, refused)
			return
		}
	}
	switch {
	case !found:
		d.fail(w, &apiError{status: http.StatusNotFound, Code: "not_found", Text: "There is nothing at this path: see openapi.json."})
	case !slices.Contains(rt.methods, r.Method):
		h.Set("Allow", strings.Join(rt.methods, ", "))
		d.fail(w, &apiError{status: http.StatusMethodNotAllowed, Code: "method_not_allowed", Text: fmt.Sprintf("This path takes %s.", strings.Join(rt.methods, " and "))})
	default:
		rt.handle(w, withRole(r, role))
	}
}

// redirect adds the slash without which relative addresses lead elsewhere. Where the dashboard is mounted, only the client knows: so the
// redirect is relative, too.
func (d *Dashboard) redirect(w http.ResponseWriter, r *http.Request) {
	target, query, _ := strings.Cut(r.RequestURI, "?")
	target = "./" + path.Base(target) + "/"
	if query != "" {
		target += "?" + query
	}
	w.Header().Set("Location", target)
	w.WriteHeader(http.StatusPermanentRedirect)
}

// answer sends v as JSON, without secrets.
func (d *Dashboard) answer(w http.ResponseWriter, status int, v any) {
	b, err := d.redact.encode(v)
	if err != nil {
		d.say.Error("an answer could not be encoded", "error", err)
		status, b = http.StatusInternalServerError, []byte(`{"success":false,"code":"command_failed","error":"The answer could not be encoded: see the log."}`)
	}
	w.Header().Set("Content-Type", jsonType)
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) //nolint:gosec // JSON, and nosniff. If it fails, whoever asked is gone
}

// apiError is a refusal, as it is sent.
type apiError struct {
	Success          bool                      `json:"success"` // false
	Code             string                    `json:"code"`
	Text             string                    `json:"error"`
	Reasons          []string                  `json:"reasons,omitempty"`
	CutoverReadiness *migrator.ReadinessStatus `json:"cutover_readiness,omitempty"`
	Verification     *migrator.Verification    `json:"verification,omitempty"`
	Running          *Running                  `json:"running,omitempty"`
	Command          string                    `json:"command,omitempty"`
	Phase            migrator.Phase            `json:"phase,omitempty"`
	State            migrator.RunState         `json:"state,omitempty"`

	status     int
	retryAfter time.Duration
	challenge  bool // asks the browser for a password
}

func (e *apiError) Error() string { return e.Text }

func badRequest(format string, args ...any) *apiError {
	return &apiError{status: http.StatusBadRequest, Code: "bad_request", Text: fmt.Sprintf(format, args...)}
}

func (d *Dashboard) fail(w http.ResponseWriter, e *apiError) {
	if e.retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(e.retryAfter.Seconds()))))
	}
	if e.challenge {
		w.Header().Set("WWW-Authenticate", `Basic realm="heroku-migrator", charset="UTF-8"`)
	}
	d.answer(w, e.status, e)
}

// number reads a number from a query.
func number(text string, standard, least, most int64) (int64, error) {
	if text == "" {
		return standard, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < least || n > most {
		return 0, fmt.Errorf("%q is not a number from %d to %d", text, least, most)
	}
	return n, nil
}

func (d *Dashboard) serveHealth(w http.ResponseWriter, _ *http.Request) {
	d.answer(w, http.StatusOK, map[string]string{"status": "ok"})
}

func (d *Dashboard) serveReady(w http.ResponseWriter, r *http.Request) {
	v := d.current(r.Context())
	reasons := []string{} // open to everybody: no details
	if v.status.Unreachable != nil {
		reasons = append(reasons, "the migration's state cannot be read: see /status")
	} else if v.status.Message == "the databases were not read yet" {
		reasons = append(reasons, "the migration's state was not read yet")
	}
	if d.ctx.Err() != nil {
		reasons = append(reasons, "this process is ending")
	}
	status := http.StatusOK
	if len(reasons) > 0 {
		status = http.StatusServiceUnavailable
	}
	d.answer(w, status, map[string]any{"ready": len(reasons) == 0, "reasons": reasons})
}

func (d *Dashboard) serveOpenAPI(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", jsonType)
	_, _ = w.Write(openAPI) // if it fails, whoever asked is gone
}

// assets are the page's parts, by name.
type assets map[string]asset

type asset struct {
	content []byte
	mime    string
	etag    string
}

func readAssets() (assets, error) {
	list := assets{}
	err := fs.WalkDir(static, "static", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		b, err := static.ReadFile(name)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(b)
		list[strings.TrimPrefix(name, "static/")] = asset{content: b, mime: mimeType(name), etag: `"` + hex.EncodeToString(sum[:12]) + `"`}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("the page's parts: %w", err)
	}
	return list, nil
}

// mimeType knows the types that the page is made of: what the machine says of them may differ.
func mimeType(name string) string {
	known := map[string]string{
		".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".json": jsonType,
		".svg": "image/svg+xml", ".png": "image/png", ".ico": "image/x-icon", ".woff2": "font/woff2", ".txt": "text/plain; charset=utf-8",
		".webmanifest": "application/manifest+json",
	}
	if t, ok := known[path.Ext(name)]; ok {
		return t
	}
	if t := mime.TypeByExtension(path.Ext(name)); t != "" {
		return t
	}
	return "application/octet-stream"
}

func (d *Dashboard) servePage(w http.ResponseWriter, r *http.Request) { d.asset("index.html")(w, r) }

func (d *Dashboard) asset(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		a, ok := d.assets[name]
		if !ok {
			d.fail(w, &apiError{status: http.StatusNotFound, Code: "not_found", Text: "The page has no such part."})
			return
		}
		w.Header().Set("Content-Type", a.mime)
		w.Header().Set("ETag", a.etag)
		w.Header().Set("Cache-Control", "private, no-cache") // asked for again each time: the answer is 304, or what another version has
		http.ServeContent(w, r, name, time.Time{}, strings.NewReader(string(a.content)))
	}
}
