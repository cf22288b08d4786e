package browsertest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	cdpbrowser "github.com/chromedp/cdproto/browser"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/shop"
)

// A whole migration by clicking, from the password to the report, while an application writes. In the copy the server is restarted; the page
// says that it has lost it, and recovers by itself.
func TestWholeMigration(t *testing.T) {
	t.Parallel()
	pair := newPair(t)
	c := pair.source.Connect(t)
	require.NoError(t, shop.Install(t.Context(), c))
	_, err := shop.Seed(t.Context(), c, 0.05)
	require.NoError(t, err)
	writers, err := shop.StartWriters(t.Context(), pair.source.URL, 3, shop.Options{Rate: 60, Rest: 4, Seed: 6})
	require.NoError(t, err)
	defer writers.Stop()

	s := pair.serve(t, nil, func(cfg *migrator.Config) { cfg.Copy.MaxBytesPerSecond = 50_000 }) // it does not end before the restart
	p := open(t, s, "whole")
	p.login("wrong", password)
	p.untilPrimary("start")
	require.Contains(t, p.title(), "Ready to start")
	require.Equal(t, "true", value[string](p, `document.getElementById('tab-checks').ariaSelected`), "the checks are what is of interest")
	p.inspect("01-checks")

	p.click(command("start"))
	p.untilPrimary("copy")
	p.inspect("02-ready-to-copy")
	p.click(command("copy"))
	p.within(work, `document.getElementById('now-progress').ariaValueNow > 0`)
	p.inspect("03-copying")
	for _, tab := range []string{"tables", "activity", "logs"} {
		p.click("#tab-" + tab)
		p.inspect("03-copying-" + tab)
	}
	p.tables()
	p.click("#tab-overview")
	p.click(command("pause"))
	p.untilPrimary("resume")
	p.inspect("04-paused")

	p.watch.expect(true)
	s.stop()
	p.until(`document.getElementById('lost').checkVisibility()`)
	require.Contains(t, p.text("#lost"), "The server does not answer.")
	require.Equal(t, "lost", value[string](p, `document.getElementById('connection').dataset.state`))
	value[any](p, `document.body.marked = 1`)
	p.inspect("05-lost")
	pair.serve(t, s)
	p.until(`document.getElementById('connection').dataset.state === 'live' && !document.getElementById('lost').checkVisibility()`)
	require.True(t, value[bool](p, `document.body.marked === 1`), "it was not loaded again")
	p.untilPrimary("resume")
	p.watch.expect(false)

	p.click(command("resume"))
	p.untilPrimary("verify")
	p.inspect("06-in-sync")
	p.click(command("verify"))
	p.untilPrimary("switch")
	require.Contains(t, p.text("#verification-result"), "are the same on both sides")
	p.inspect("07-verified")
	p.click("#tab-tables")
	p.inspect("07-verified-tables")
	p.click("#tab-overview")

	p.click(command("switch"))
	p.dialog()
	require.Contains(t, p.text("#dialog-databases"), pair.source.Name, "it says which database")
	require.Contains(t, p.text("#dialog-databases"), pair.target.Name)
	p.inspect("08-switch-dialog")
	p.click("#dialog-sql-box summary")
	p.inspect("08-switch-dialog-sql")
	p.agree("switch")
	p.untilTitle("Switched")
	p.until(`document.getElementById('primary').dataset.command === 'after-switch'`)
	writers.Redirect(pair.target.URL)
	p.inspect("09-switched")

	p.refuse("revert", "revert", "09-revert-dialog")
	p.confirm("revert", "revert")
	p.within(work, `document.getElementById('outside').dataset.at === 'reverted'`)
	writers.Redirect(pair.source.URL)
	p.within(work, `document.querySelector('#now-actions [data-command=switch]:not(:disabled)')`)
	p.inspect("10-reverted")

	p.confirm("switch", "switch")
	p.untilTitle("Switched")
	writers.Redirect(pair.target.URL)
	p.click("#primary") // show the commands
	p.until(`document.activeElement.id === 'after-switch'`)
	p.commands()
	p.click("#app-moved")
	p.untilPrimary("complete")
	p.inspect("11-moved")
	p.confirm("complete", "complete")
	p.untilTitle("The migration is complete")
	p.until(`!document.getElementById('running').checkVisibility()`)
	p.inspect("12-completed")

	report := p.download("#primary")
	require.Contains(t, report, "The migration is completed.")
	require.NotContains(t, report, pair.source.Role+":")
	require.NoError(t, chromedp.Do(p.ctx, chromedp.Navigate(s.url+"/export/report.html")))
	p.keep("13-report-desktop")

	require.Positive(t, writers.Stop().Committed)
	require.NoError(t, writers.CheckLedger(t.Context(), pair.target.Connect(t)), "everything that was committed anywhere is on the target")
}

// tables searches, filters and sorts in the grid.
func (p *page) tables() {
	p.t.Helper()
	p.click("#tab-tables")
	p.click("#tables-search")
	p.press("order")
	p.until(`/^\d+ of \d+ tables$/.test(document.getElementById('tables-count').textContent)`)
	p.until(`[...document.querySelectorAll('#tables-body .row')].filter((e) => e.checkVisibility()).every((e) => e.innerText.toLowerCase().includes('order'))`)
	p.press("nothing like it")
	p.until(`document.getElementById('tables-empty').checkVisibility()`)
	value[any](p, `(() => { const e = document.getElementById('tables-search'); e.value = ''; e.dispatchEvent(new Event('input')); })()`)
	p.click("#tables-head .c-name button")
	p.until(`document.querySelector('#tables-head .c-name').ariaSort === 'ascending'`)
}

// commands fills in names: a wrong one is told, and none gets into a command.
func (p *page) commands() {
	p.t.Helper()
	p.click("#app-name")
	p.press("my app; rm")
	p.until(`document.getElementById('app-name-error').checkVisibility()`)
	require.Contains(p.t, p.text("#cmd-find"), "YOUR-APP")
	value[any](p, `document.getElementById('app-name').select()`)
	p.press("my-shop")
	p.until(`!document.getElementById('app-name-error').checkVisibility()`)
	require.Equal(p.t, "heroku addons -a my-shop", p.text("#cmd-find"))
	p.click("#cmd-find-box button")
	p.until(`document.querySelector('#cmd-find-box button').innerText === 'Copied'`)
}

// download presses something, and returns what was saved by that.
func (p *page) download(selector string) string {
	p.t.Helper()
	dir := p.t.TempDir()
	events := true
	context := chromedp.FromContext(p.ctx).BrowserContextID
	_, err := chromedp.CallBrowser(p.ctx, cdpbrowser.SetDownloadBehavior, cdpbrowser.SetDownloadBehaviorParams{
		Behavior: cdpbrowser.SetDownloadBehaviorBehaviorAllow, BrowserContextID: context, DownloadPath: dir, EventsEnabled: &events,
	})
	require.NoError(p.t, err)
	done := chromedp.BrowserEvents(p.ctx, cdpbrowser.DownloadProgress)
	p.click(selector)
	for e, err := range done {
		require.NoError(p.t, err)
		if e.State == cdpbrowser.DownloadProgressStateCompleted {
			break
		}
		require.NotEqual(p.t, cdpbrowser.DownloadProgressStateCanceled, e.State)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(p.t, err)
	require.Len(p.t, files, 1, fmt.Sprint(files))
	b, err := os.ReadFile(files[0])
	require.NoError(p.t, err)
	return string(b)
}
