package browsertest

import (
	"testing"
	"time"

	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/require"
)

// Two people with a browser each, one of them with a phone: both see the same, what one does shows at the other's, and who is too late does no
// harm.
func TestTwoBrowsers(t *testing.T) {
	t.Parallel()
	pair := newPair(t)
	execute(t, pair.source, notes)
	s := pair.serve(t, nil)
	desk, hand := open(t, s, "desk"), open(t, s, "hand")
	hand.look(phone)
	desk.login()
	hand.login("") // no password
	require.Contains(t, value[string](hand, `document.body.innerText`), "Log in as user admin")
	hand.login()
	same := func() { // within moments: what one asks for shows at the other as under way before it is done
		t.Helper()
		for _, id := range []string{"#now-title", "#primary", "[aria-current=step] .step-name"} {
			require.Eventually(t, func() bool { return desk.text(id) == hand.text(id) }, patience, 60*time.Millisecond, id)
		}
	}
	desk.untilPrimary("start")
	hand.untilPrimary("start")

	desk.click(command("start"))
	desk.untilPrimary("copy")
	hand.untilPrimary("copy")
	same()
	// Both press, as near to each other as can be.
	x, y := hand.at(command("copy"))
	desk.click(command("copy"))
	hand.tapAt(x, y)
	desk.untilPrimary("verify")
	hand.untilPrimary("verify")
	require.Equal(t, int64(500), count(t, pair.target, `SELECT count(*) FROM notes`))
	same()

	hand.tap(command("pause"))
	desk.untilTitle("Paused")
	desk.click(command("resume"))
	hand.untilPrimary("verify")

	// The dialog of one is open when the other switches.
	desk.click(command("switch"))
	desk.dialog()
	hand.tap(command("switch"))
	hand.dialog()
	hand.tap("#dialog-word")
	hand.press("switch")
	hand.tap("#dialog-confirm")
	hand.untilTitle("Switched")
	desk.until(`document.getElementById('now-title').textContent.startsWith('Switched')`)
	require.True(t, value[bool](desk, `document.getElementById('dialog').open`))
	desk.click("#dialog-word")
	desk.press("switch", kb.Enter)
	desk.until(`!document.getElementById('dialog').open`) // it is as was asked for
	desk.until(`!document.getElementById('running').checkVisibility()`)
	require.Contains(t, desk.title(), "Switched")
	same()

	desk.confirm("complete", "complete")
	hand.untilTitle("The migration is complete")
	desk.untilTitle("The migration is complete")
	hand.tap(command("reset"))
	hand.dialog()
	hand.tap("#dialog-word")
	hand.press("reset")
	hand.tap("#dialog-confirm")

	// The target has tables now: that is said, and what to do.
	for _, p := range []*page{hand, desk} {
		p.within(work, `document.getElementById('primary').dataset.command === 'recheck' && !document.getElementById('primary').disabled`)
		require.Contains(t, p.title(), "to resolve first")
	}
	same()
	desk.inspect("21-blockers")
}
