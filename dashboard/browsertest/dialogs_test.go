package browsertest

import (
	"fmt"
	"testing"

	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
)

// refuse opens a dialog, tries it with a wrong word, closes it by Escape, and looks whether the focus comes back and nothing has happened.
func (p *page) refuse(name, word, shot string) {
	p.t.Helper()
	title, refusals := p.title(), p.watch.refusals()
	p.click(command(name))
	p.dialog()
	require.Equal(p.t, "#dialog-title", p.focused(), "what will happen is read first")
	require.NotEmpty(p.t, p.text("#dialog-happens"))
	if word != "" {
		require.Equal(p.t, word, p.text("#dialog-say"))
		p.inspect(shot)
		p.click("#dialog-word")
		for _, wrong := range []string{"yes", word + "x"} {
			value[any](p, `document.getElementById('dialog-word').select()`)
			p.press(wrong)
			require.True(p.t, value[bool](p, `document.getElementById('dialog-confirm').disabled`), wrong)
			p.press(kb.Enter)
			require.True(p.t, value[bool](p, `document.getElementById('dialog').open`), wrong)
		}
	} else {
		p.inspect(shot)
	}
	p.press(kb.Escape)
	p.until(`!document.getElementById('dialog').open`)
	require.Equal(p.t, name, value[string](p, `document.activeElement.dataset.command ?? ''`), "the focus comes back")
	require.Equal(p.t, title, p.title())
	require.Equal(p.t, refusals, p.watch.refusals(), "nothing was asked of the server")
}

func (p *page) untilCommand(name string) {
	p.t.Helper()
	p.within(work, fmt.Sprintf(`(() => { const b = document.querySelector(%q); return b && b.checkVisibility() && !b.disabled; })()`, command(name)))
}

// Every dialog is opened, refused with a wrong word, closed by Escape, and only then agreed to.
func TestDialogs(t *testing.T) {
	t.Parallel()
	pair := newPair(t)
	execute(t, pair.source, notes+`;
		CREATE FUNCTION only_here(i int) RETURNS int IMMUTABLE LANGUAGE sql AS $$ SELECT i / (current_database() LIKE 'source%')::int $$;
		CREATE INDEX only_here ON notes (only_here(id));
		CREATE FUNCTION helper() RETURNS int LANGUAGE sql AS 'SELECT 1'`)
	s := pair.serve(t, nil, func(cfg *migrator.Config) { cfg.WayBack.Disabled = true })
	p := open(t, s, "dialogs")
	p.login()
	p.untilPrimary("start")

	// Refused after all: what the checks saw has changed meanwhile.
	execute(t, pair.target, `CREATE TABLE stranger (id int)`)
	p.click(command("start"))
	p.untilTitle("The migration did not start")
	p.untilCommand("retry")
	require.Contains(t, p.text("#now-reasons"), "stranger")
	p.inspect("30-did-not-start")
	p.refuse("reset", "reset", "31-reset-dialog")
	execute(t, pair.target, `DROP TABLE stranger`)
	p.click(command("retry"))
	p.untilPrimary("copy")
	p.refuse("abort", "abort", "32-abort-dialog")

	// An index that cannot be built, until its cause is removed.
	p.click(command("copy"))
	p.untilTitle("1 object could not be built")
	p.untilPrimary("retry-indexes")
	require.Contains(t, p.text("#failed-list"), "division by zero")
	p.inspect("33-failed-object")
	execute(t, pair.target, `CREATE OR REPLACE FUNCTION only_here(i int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT i'`)
	p.click(command("retry-indexes"))
	p.untilPrimary("verify")
	p.refuse("switch", "switch", "34-switch-dialog")

	// A row that differs: the table is sent again.
	admin := pair.target.ConnectAdmin(t)
	_, err := admin.Exec(t.Context(), `SET session_replication_role = replica; UPDATE notes SET text = 'meddled with' WHERE id = 7`)
	require.NoError(t, err)
	p.click(command("verify"))
	p.untilTitle("The switch has to wait")
	p.untilPrimary("verify")
	require.Contains(t, p.text("#readiness-hard"), "public.notes")
	p.inspect("35-differs")
	p.refuse("verify", "", "36-send-again-dialog")
	p.click(command("verify"))
	p.dialog()
	p.click("#dialog-confirm")
	p.within(work, `document.getElementById('verification-result').innerText.includes('sent whole') && !document.getElementById('primary').disabled`)
	p.inspect("37-sent-again")
	p.click(command("verify"))
	p.untilTitle("In sync, and verified")

	// Something is missing on the target: the switch has to be forced.
	_, err = admin.Exec(t.Context(), `DROP FUNCTION helper()`)
	require.NoError(t, err)
	execute(t, pair.source, `CREATE VIEW helped AS SELECT helper()`)
	p.click(command("switch"))
	p.dialog()
	p.click("#dialog-word")
	p.press("switch", kb.Enter) // the source is looked at once more before a switch
	p.within(work, `document.getElementById('dialog-error').checkVisibility() || document.getElementById('result').checkVisibility() && document.getElementById('result').innerText.includes('helped')`)
	p.keep("38-refused-after-all")
	if value[bool](p, `document.getElementById('dialog').open`) {
		p.press(kb.Escape)
	}
	p.untilTitle("In sync, with something to settle")
	p.untilPrimary("switch")
	p.inspect("38-something-missing")
	p.refuse("switch", "force switch", "39-force-switch-dialog")
	p.confirm("switch", "force switch")
	p.untilTitle("Switched")

	// Without a way back, a revert loses rows.
	p.untilCommand("revert")
	p.refuse("revert", "lose rows", "50-lose-rows-dialog")
	execute(t, pair.target, `INSERT INTO notes VALUES (1000, 'lost')`)
	p.confirm("revert", "lose rows")
	p.within(work, `document.getElementById('outside').dataset.at === 'reverted'`)
	require.Zero(t, count(t, pair.source, `SELECT count(*) FROM notes WHERE id = 1000`))
	execute(t, pair.source, `DROP VIEW helped`)
	p.untilCommand("switch")
	p.untilTitle("In sync, and verified") // that a view is gone is followed within half a minute; until then, a switch has to be forced
	p.confirm("switch", "switch")
	p.untilTitle("Switched")
	p.click("#app-moved")
	p.untilPrimary("complete")
	p.refuse("complete", "complete", "51-complete-dialog")
	p.confirm("complete", "complete")
	p.untilTitle("The migration is complete")
	p.untilCommand("reset")
	p.refuse("reset", "reset", "52-reset-dialog")
}
