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
	title := p.title()
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
	require.Equal(p.t, name, p.focused(), "the focus comes back")
	require.Equal(p.t, title, p.title())
	require.Empty(p.t, p.watch.refusals(), "nothing was asked of the server")
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
		CREATE INDEX only_here ON notes (only_here(id))`)
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

	// An index that cannot be built.
	p.click(command("copy"))
	p.untilTitle("1 object could not be built")
	p.untilPrimary("retry-indexes")
	require.Contains(t, p.text("#failed-list"), "division by zero")
	p.inspect("33-failed-object")
}
