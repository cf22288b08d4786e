package browsertest

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/fetch"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/require"
)

// login opens the dashboard and answers the browser's question for a password, with wrong ones first if any are given. An empty one is Cancel.
func (p *page) login(passwords ...string) {
	p.t.Helper()
	if len(passwords) == 0 {
		passwords = []string{password}
	}
	var asked atomic.Int64
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	// Only the first request is asked for a password: the browser remembers.
	require.NoError(p.t, chromedp.Listen(ctx, func(event any) {
		switch e := event.(type) { // answered elsewhere: a listener must not wait for the browser
		case *fetch.EventRequestPaused:
			go func() {
				_, _ = chromedp.Call(ctx, fetch.ContinueRequest, fetch.ContinueRequestParams{RequestID: e.RequestID}) // or the page does not load
			}()
		case *fetch.EventAuthRequired:
			answer := &fetch.AuthChallengeResponse{Response: fetch.AuthChallengeResponseResponseCancelAuth}
			if n := int(asked.Add(1)); n <= len(passwords) && passwords[n-1] != "" {
				answer = &fetch.AuthChallengeResponse{Response: fetch.AuthChallengeResponseResponseProvideCredentials, Username: "admin", Password: passwords[n-1]}
			}
			go func() {
				_, _ = chromedp.Call(ctx, fetch.ContinueWithAuth, fetch.ContinueWithAuthParams{RequestID: e.RequestID, AuthChallengeResponse: answer}) // as above
			}()
		}
	}))
	handle := true
	p.watch.lock(true)
	call(p, fetch.Enable, fetch.EnableParams{HandleAuthRequests: &handle, Patterns: []*fetch.RequestPattern{{URLPattern: p.site.url + "/"}}})
	require.NoError(p.t, chromedp.Do(ctx, chromedp.Navigate(p.site.url+"/")))
	call(p, fetch.Disable, cdp.Empty{})
	p.watch.lock(false)
	require.Equal(p.t, len(passwords), int(asked.Load()), "it asked for a password so often")
	if passwords[len(passwords)-1] == password {
		p.until(`document.body?.dataset.ready`)
	}
}

// at is where the middle of an element is, once it is in sight, stays where it is and can be pressed.
func (p *page) at(selector string) (x, y float64) {
	p.t.Helper()
	script := fmt.Sprintf(`(async () => {
		const e = document.querySelector(%q);
		if (!e) return 'there is none';
		if (!e.checkVisibility()) return 'it is hidden';
		if (e.disabled) return 'it is disabled';
		e.scrollIntoView({block: 'nearest', inline: 'nearest', behavior: 'instant'});
		const where = () => { const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; };
		const before = where();
		await new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)));
		const now = where();
		if (before[0] !== now[0] || before[1] !== now[1]) return 'it moves';
		const top = document.elementFromPoint(...now);
		if (!top || !(e === top || e.contains(top) || top.contains(e) && top.tagName === 'LABEL')) { e.scrollIntoView({block: 'center'}); return 'it is covered by ' + (top?.outerHTML ?? 'nothing').slice(0, 120); }
		return now;
	})()`, selector)
	deadline := time.Now().Add(patience)
	for {
		found, err := evaluate[any](p, script)
		if point, ok := found.([]any); ok && err == nil {
			return point[0].(float64), point[1].(float64)
		}
		if time.Now().After(deadline) {
			p.keep("failed-" + p.t.Name())
			p.t.Fatalf("%s: %s cannot be pressed: %v %v; the page says: %s", p.name, selector, found, err, p.title())
		}
		time.Sleep(60 * time.Millisecond)
	}
}

// click presses an element with the mouse.
func (p *page) click(selector string) {
	p.t.Helper()
	x, y := p.at(selector)
	event := input.DispatchMouseEventParams{Type: input.DispatchMouseEventTypeMouseMoved, X: x, Y: y}
	call(p, input.DispatchMouseEvent, event)
	event.Button, event.ClickCount, event.Type = input.MouseButtonLeft, 1, input.DispatchMouseEventTypeMousePressed
	call(p, input.DispatchMouseEvent, event)
	event.Type = input.DispatchMouseEventTypeMouseReleased
	call(p, input.DispatchMouseEvent, event)
}

// tap presses an element with a finger.
func (p *page) tap(selector string) {
	p.t.Helper()
	p.tapAt(p.at(selector))
}

// press presses keys, one after the other, wherever the focus is.
func (p *page) press(keys ...string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	for _, k := range keys {
		require.NoError(p.t, chromedp.Do(ctx, chromedp.KeyEvent(k)))
	}
}

// command presses the button of a command, the main one or another.
func command(name string) string {
	return fmt.Sprintf(`#now-actions [data-command=%q]`, name)
}

// dialog waits until the dialog is open.
func (p *page) dialog() { p.t.Helper(); p.until(`document.getElementById('dialog').open`) }

// confirm opens a dialog by its command, types the word and agrees.
func (p *page) confirm(name, word string) {
	p.t.Helper()
	p.click(command(name))
	p.dialog()
	p.agree(word)
}

func (p *page) agree(word string) {
	p.t.Helper()
	p.click("#dialog-word")
	p.press(word)
	p.click("#dialog-confirm")
	p.until(`!document.getElementById('dialog').open`)
}

// focused describes what has the focus.
func (p *page) focused() string {
	p.t.Helper()
	return value[string](p, `(() => { const e = document.activeElement; return e.id ? '#' + e.id : e.dataset?.command ? e.dataset.command : e.tagName; })()`)
}

// tabTo walks with the Tab key until an element has the focus, and fails if it is not to be had that way.
func (p *page) tabTo(selector string) {
	p.t.Helper()
	for range 60 {
		p.press(kb.Tab)
		if value[bool](p, fmt.Sprintf(`document.activeElement?.matches(%q) ?? false`, selector)) {
			return
		}
	}
	p.t.Fatalf("%s: the Tab key does not lead to %s; the focus is on %s", p.name, selector, p.focused())
}

// tapAt is tap where something was seen before.
func (p *page) tapAt(x, y float64) {
	p.t.Helper()
	call(p, input.DispatchTouchEvent, input.DispatchTouchEventParams{Type: input.DispatchTouchEventTypeTouchStart, TouchPoints: []*input.TouchPoint{{X: x, Y: y}}})
	call(p, input.DispatchTouchEvent, input.DispatchTouchEventParams{Type: input.DispatchTouchEventTypeTouchEnd, TouchPoints: []*input.TouchPoint{}})
}
