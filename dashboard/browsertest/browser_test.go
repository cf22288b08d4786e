package browsertest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/audits"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator/internal/pgtest"
)

func TestMain(m *testing.M) {
	code := pgtest.Main(m)
	if browser.close != nil {
		browser.close()
	}
	os.Exit(code)
}

// browser is the one of this test process. Its tests have profiles of their own in it.
var browser shared

type shared struct {
	once  sync.Once
	ctx   context.Context
	close func()
	err   error
	none  string // why there is none
}

func (b *shared) start() {
	program := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"} {
		if found, err := exec.LookPath(name); err == nil {
			program = found
			break
		}
	}
	if program == "" {
		b.none = "there is no Chromium here: `make setup` installs it on Debian, as root"
		return
	}
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(program), chromedp.WindowSize(desktop.width, desktop.height), chromedp.Flag("disable-gpu", true), chromedp.Flag("lang", "en"),
		chromedp.Env("LANG=en_US.UTF-8", "LANGUAGE=en"))
	if os.Getuid() == 0 {
		options = append(options, chromedp.NoSandbox) // it cannot be had as root
	}
	allocator, endAllocator := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, end := chromedp.NewContext(allocator)
	b.close = func() {
		patience, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		_ = chromedp.Cancel(patience) // then it is killed
		end()
		endAllocator()
	}
	b.ctx, b.err = ctx, chromedp.Do(ctx)
}

// page is a tab in a browser that has nothing from before: no login, no storage.
type page struct {
	t     *testing.T
	name  string
	ctx   context.Context
	site  *site
	watch *watch
}

// patience is how long a page may take for anything but a migration's own work. The machine may be busy.
const patience = time.Minute

func open(t *testing.T, s *site, name string) *page {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a browser; skipped in short mode")
	}
	browser.once.Do(browser.start)
	if browser.none != "" {
		t.Skip(browser.none)
	}
	require.NoError(t, browser.err, "the browser did not start")
	p := &page{t: t, name: name, site: s, watch: &watch{host: s.host}}
	ctx, cancel := chromedp.NewContext(browser.ctx, chromedp.WithNewBrowserContext(), chromedp.WithListener(p.watch.listen))
	t.Cleanup(cancel)
	p.ctx = ctx
	require.NoError(t, chromedp.Do(ctx))
	t.Cleanup(func() { require.Empty(t, p.watch.found(), "%s: the browser had something to complain about", name) })
	call(p, network.Enable, network.EnableParams{})
	call(p, log.Enable, cdp.Empty{})
	call(p, audits.Enable, cdp.Empty{})
	p.look(desktop)
	return p
}

// call sends a command to the browser's tab.
func call[P, R any](p *page, command cdp.Command[P, R], params P) R {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	r, err := chromedp.Call(ctx, command, params)
	require.NoError(p.t, err, "%s: %s", p.name, command.Method)
	return r
}

// evaluate has the page compute something; promises are waited for.
func evaluate[T any](p *page, script string) (T, error) {
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	return chromedp.Run(ctx, chromedp.Evaluate[T](script, chromedp.EvalAwaitPromise))
}

func value[T any](p *page, script string) T {
	p.t.Helper()
	v, err := evaluate[T](p, script)
	require.NoError(p.t, err, "%s: %s", p.name, script)
	return v
}

// until waits for a condition in the page. A page that is being loaded has none.
func (p *page) until(condition string) {
	p.t.Helper()
	p.within(patience, condition)
}

// work is how long a migration may take for a step.
const work = 4 * time.Minute

func (p *page) within(limit time.Duration, condition string) {
	p.t.Helper()
	deadline := time.Now().Add(limit)
	for {
		ok, err := evaluate[bool](p, "Boolean("+condition+")")
		if ok && err == nil {
			return
		}
		if time.Now().After(deadline) || p.t.Context().Err() != nil {
			p.keep("failed-" + strings.ReplaceAll(p.t.Name(), "/", "-"))
			said, _ := evaluate[string](p, `document.querySelector('main')?.innerText.slice(0, 2500) ?? document.body.innerText.slice(0, 500)`)
			p.t.Fatalf("%s: after %s not yet: %s (%v)\nthe page says:\n%s\n%s", p.name, limit, condition, err, said, strings.Join(p.watch.found(), "\n"))
		}
		time.Sleep(60 * time.Millisecond)
	}
}

// text is what an element shows; nothing if it is hidden.
func (p *page) text(selector string) string {
	p.t.Helper()
	return value[string](p, fmt.Sprintf(`(() => { const e = document.querySelector(%q); return e && e.checkVisibility() ? e.innerText.trim() : ''; })()`, selector))
}

func (p *page) title() string { p.t.Helper(); return p.text("#now-title") }

// untilTitle waits for what the page says at the top.
func (p *page) untilTitle(prefix string) {
	p.t.Helper()
	p.within(work, fmt.Sprintf(`document.getElementById('now-title')?.innerText.startsWith(%q)`, prefix))
}

// untilPrimary waits for the main action to be a command that can be given.
func (p *page) untilPrimary(command string) {
	p.t.Helper()
	p.within(work, fmt.Sprintf(`(() => { const b = document.getElementById('primary'); return b && !b.hidden && !b.disabled && b.dataset.command === %q; })()`, command))
}
