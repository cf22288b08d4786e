package dashboard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"github.com/heroku-migrator/migrator"
)

// Migration is what the dashboard needs of a migration; [*migrator.Migrator] has it.
type Migration interface {
	Status(ctx context.Context) (*migrator.Status, error)
	Subscribe(buffer int) (events <-chan migrator.Event, unsubscribe func())
	Do(ctx context.Context, name migrator.CommandName, force bool) (*migrator.Result, error)
	Preflight(ctx context.Context) (*migrator.Report, error)
	Run(ctx context.Context, until migrator.Until) error
	Identify(ctx context.Context) (source, target migrator.Identity, err error)
	SetIndexWorkers(n int)
}

var _ Migration = (*migrator.Migrator)(nil)

// Config configures [New]. One of Password, Authorize and Insecure is required.
type Config struct {
	// Password is that of user admin, by Basic auth.
	Password string
	// Authorize is the host's own login instead: it says what whoever sent the request may do. An error, or no role, refuses it. The password
	// takes no part then.
	Authorize func(*http.Request) (Role, error)
	// Insecure lets everybody in who can reach the port.
	Insecure bool
	// ReadOnly refuses every change through HTTP, whoever asks.
	ReadOnly bool
	// TrustedOrigins are origins ("https://admin.example.com") from which browsers may ask for changes, besides the dashboard's own.
	TrustedOrigins []string
	// ClientIP says who a request comes from, to slow down those who guess passwords. Default: the connection's other end. Behind a proxy
	// that appends to X-Forwarded-For, such as Heroku's router, [ForwardedFor] is right.
	ClientIP func(*http.Request) string

	// SourceURL and TargetURL are the databases' URLs: their passwords are taken out of everything that the dashboard sends, and before the
	// databases were reached it shows their hosts and names.
	SourceURL, TargetURL string
	// Secrets are other texts to be taken out, of 6 bytes and more.
	Secrets []string

	// Log keeps the log lines for the page. Without one there are none.
	Log *Log
	// Logger is for what the dashboard has to say itself. Default: through Log.
	Logger *slog.Logger
	// Version is the program's. Default: as the Go toolchain noted it.
	Version string
	// Settings are shown in diagnostics. Their values must not be secret.
	Settings map[string]string

	// HostRuns says that the program calls Run itself. The dashboard starts nothing then, and refuses start, retry and reset.
	HostRuns bool
	// Notifier is told of milestones and failures. nil: nobody is.
	Notifier Notifier
	// OnReport is given the final report when the migration is completed or aborted, in a goroutine of its own. The context ends with
	// [Dashboard.Close], which waits for it.
	OnReport func(ctx context.Context, report *Report)
	// MaxStreams is how many event streams may be open at a time. Default: 64.
	MaxStreams int
}

// Dashboard is the handler. It is safe for concurrent use.
type Dashboard struct {
	m       Migration
	cfg     Config
	log     *Log
	say     *slog.Logger
	redact  *redactor
	auth    *authenticator
	origins *http.CrossOriginProtection
	assets  assets
	routes  map[string]route
	feed    *ring[Activity]
	verify  transcript
	metrics *metrics
	checks  preflights
	notices *notices
	timing  timing

	ctx         context.Context //nolint:containedctx // of what the dashboard does in the background, until Close
	cancel      context.CancelFunc
	unsubscribe func()
	background  sync.WaitGroup
	streams     chan struct{}      // one for each that is open
	kick        chan struct{}      // something changed: read the state soon
	asked       chan chan struct{} // somebody waits until the state was read

	mu     sync.Mutex
	closed bool
	known  known
	view   *view
}

// timing has the intervals, which tests shorten.
type timing struct {
	least, most time.Duration // between two readings of the state while somebody watches, and while nobody does
	stream      time.Duration // between two looks of a stream
	heartbeat   time.Duration
	body        time.Duration // to send a request's body
	command     time.Duration // until a command is answered with 202
	rerun       time.Duration // between two runs when connections fail
	long        time.Duration // waiting for so long is worth a notification
	lifetime    time.Duration // of a stream; the browser comes back, and is asked who it is
}

func defaultTiming() timing {
	return timing{
		least: 500 * time.Millisecond, most: 10 * time.Second, stream: 500 * time.Millisecond, heartbeat: 15 * time.Second,
		body: 15 * time.Second, command: 25 * time.Second, rerun: 15 * time.Second, long: 5 * time.Minute, lifetime: time.Hour,
	}
}

// New returns a dashboard of the migration, and begins to watch it. It does not wait for the databases. [Dashboard.Close] ends it.
func New(m Migration, cfg Config) (*Dashboard, error) { return newDashboard(m, cfg, defaultTiming()) }

func newDashboard(m Migration, cfg Config, t timing) (*Dashboard, error) {
	if m == nil {
		return nil, errors.New("dashboard: the migration is missing")
	}
	if cfg.Password == "" && cfg.Authorize == nil && !cfg.Insecure {
		return nil, errors.New("dashboard: anybody could switch the databases: set Config.Password or Config.Authorize, or Config.Insecure if that is meant")
	}
	if cfg.MaxStreams <= 0 {
		cfg.MaxStreams = 64
	}
	if cfg.Log == nil {
		cfg.Log = NewLog(nil, 1)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(cfg.Log)
	}
	if cfg.Version == "" {
		cfg.Version = "unknown"
		if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
			cfg.Version = info.Main.Version
		}
	}
	redact, err := newRedactor([]string{cfg.SourceURL, cfg.TargetURL}, append([]string{cfg.Password}, cfg.Secrets...))
	if err != nil {
		return nil, fmt.Errorf("dashboard: Config.SourceURL or TargetURL: %w", err)
	}
	d := &Dashboard{
		m: m, cfg: cfg, log: cfg.Log, say: cfg.Logger, redact: redact, auth: newAuthenticator(cfg), origins: http.NewCrossOriginProtection(),
		feed: newRing[Activity](activities), timing: t, streams: make(chan struct{}, cfg.MaxStreams),
		kick: make(chan struct{}, 1), asked: make(chan chan struct{}),
	}
	for _, origin := range cfg.TrustedOrigins {
		if err := d.origins.AddTrustedOrigin(origin); err != nil {
			return nil, fmt.Errorf("dashboard: Config.TrustedOrigins: %w", err)
		}
	}
	if d.assets, err = readAssets(); err != nil {
		return nil, fmt.Errorf("dashboard: %w", err)
	}
	d.known.source, d.known.target = d.sideOf(cfg.SourceURL), d.sideOf(cfg.TargetURL)
	d.metrics = newMetrics(d)
	d.routes = d.table()
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.notices = newNotices(cfg.Notifier, d.say, d.metrics)
	var events <-chan migrator.Event
	events, d.unsubscribe = m.Subscribe(4096)
	d.background.Go(func() { d.listen(events) })
	d.background.Go(d.watch)
	d.background.Go(d.identify)
	d.background.Go(func() { d.notices.deliver(d.ctx) })
	return d, nil
}

// Close ends everything that the dashboard does in the background, the migration's run and open streams among it, and waits for that: some
// seconds. The migration is not harmed; another process, or this one started again, goes on with it. Call it before
// [http.Server.Shutdown], which waits for streams.
func (d *Dashboard) Close() {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.cancel()
	d.unsubscribe()
	d.background.Wait()
}

// goOn runs a function in the background, unless the dashboard is being closed. d.mu is held.
func (d *Dashboard) goOn(fn func()) bool {
	if d.closed {
		return false
	}
	d.background.Go(fn)
	return true
}
