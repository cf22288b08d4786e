package browsertest

import (
	"testing"

	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/require"
)

// By keyboard alone, from the start over a pause to the switch and back: the page hears of no pointer.
func TestKeyboardOnly(t *testing.T) {
	t.Parallel()
	pair := newPair(t)
	execute(t, pair.source, notes)
	s := pair.serve(t, nil)
	p := open(t, s, "keyboard")
	p.login()
	value[any](p, `window.pointers = 0; for (const kind of ['pointerdown', 'mousedown', 'touchstart', 'mousemove']) addEventListener(kind, () => window.pointers++, true)`)
	p.untilPrimary("start")

	p.press(kb.Tab)
	require.Equal(t, "skip", value[string](p, `document.activeElement.className`), "the first stop leads past all that is at the top")
	p.press(kb.Enter)
	p.until(`document.activeElement.id === 'now-title'`)
	p.tabTo("#primary")
	p.press(kb.Enter)
	require.Equal(t, "#now-title", p.focused(), "the button is gone, and the place is kept")
	p.untilPrimary("copy")
	p.tabTo("#primary")
	p.press(" ")
	p.untilPrimary("verify")

	p.tabTo(command("pause"))
	p.press(kb.Enter)
	p.untilPrimary("resume")
	p.tabTo("#primary")
	p.press(kb.Enter)
	p.untilPrimary("verify")

	p.tabTo("#tab-overview")
	p.press(kb.ArrowRight, kb.ArrowRight)
	require.Equal(t, "#tab-tables", p.focused())
	require.Equal(t, "#tables", value[string](p, `location.hash`))
	p.until(`document.getElementById('panel-tables').checkVisibility()`)
	p.tabTo("#tables-search")
	p.press("notes")
	p.until(`document.querySelector('#tables-body .row')?.innerText.includes('notes')`)

	p.tabTo("#theme")
	p.press(kb.Enter) // dark
	p.press(kb.Enter)
	p.until(`document.documentElement.dataset.theme === 'light'`)
	p.press(kb.Enter)

	p.tabTo(command("switch"))
	p.press(kb.Enter)
	p.dialog()
	require.Equal(t, "#dialog-title", p.focused())
	p.tabTo("#dialog-word")
	p.press("switch", kb.Enter)
	p.untilTitle("Switched")
	require.False(t, value[bool](p, `document.getElementById('dialog').open`))
	require.Equal(t, "#now-title", p.focused())

	p.tabTo("#app-moved")
	p.press(" ")
	p.untilPrimary("complete")
	p.tabTo(command("revert"))
	p.press(kb.Enter)
	p.dialog()
	p.tabTo("#dialog-word")
	p.press("revert")
	p.tabTo("#dialog-confirm")
	p.press(kb.Enter)
	p.within(work, `document.getElementById('outside').dataset.at === 'reverted'`)
	p.untilCommand("abort")
	p.tabTo(command("abort"))
	p.press(kb.Enter)
	p.dialog()
	p.tabTo("#dialog-word")
	p.press("abort", kb.Enter)
	p.untilTitle("The migration was aborted")
	require.Zero(t, value[int](p, `window.pointers`), "no pointer was used")
	p.inspect("40-aborted")
}
