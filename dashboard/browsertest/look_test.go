package browsertest

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/emulation"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// view is what somebody looks with.
type view struct {
	name          string
	width, height int
	theme         string
	phone         bool
}

var (
	desktop = view{name: "desktop-dark", width: 1280, height: 900, theme: "dark"}
	light   = view{name: "desktop-light", width: 1280, height: 900, theme: "light"}
	phone   = view{name: "phone", width: 360, height: 740, theme: "light", phone: true}
)

// look makes the window that of a view.
func (p *page) look(v view) {
	p.t.Helper()
	call(p, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: int64(v.width), Height: int64(v.height), DeviceScaleFactor: 1, Mobile: v.phone})
	call(p, emulation.SetTouchEmulationEnabled, emulation.SetTouchEmulationEnabledParams{Enabled: v.phone})
	call(p, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: v.theme}}})
}

//go:embed look.js
var lookScript string

// settled waits until the page has drawn what it knows.
const settled = `new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(() => go(true))))`

// inspect looks at the page in every view, keeps a picture of each, and fails if something is wrong with it.
func (p *page) inspect(name string) {
	p.t.Helper()
	for _, v := range []view{desktop, light, phone} {
		p.look(v)
		p.until(settled)
		wrong := value[[]string](p, lookScript)
		wrong = append(wrong, p.unnamed()...)
		assert.Empty(p.t, wrong, "%s, %s, on %s", p.name, name, v.name)
		if v.phone {
			p.reachable(name)
		}
		p.keep(name + "-" + v.name)
	}
	p.look(desktop)
	p.until(settled)
}

// reachable fails if the main action, or the first one where there is no main one, cannot be pressed.
func (p *page) reachable(name string) {
	p.t.Helper()
	for _, selector := range []string{"dialog[open] #dialog-cancel", "#primary:not(:disabled)", "#secondary button:not(:disabled)"} {
		if value[bool](p, fmt.Sprintf(`document.querySelector(%q)?.checkVisibility() ?? false`, selector)) {
			x, _ := p.at(selector)
			assert.Less(p.t, x, float64(phone.width), "%s: %s", name, selector)
			value[any](p, `scrollTo(0, 0)`)
			return
		}
	}
}

// controls are what has to have a name for those who cannot see it.
var controls = []string{
	"button", "link", "textbox", "searchbox", "combobox", "checkbox", "tab", "tabpanel", "table", "progressbar", "progress indicator", "dialog", "navigation", "columnheader", "image", "img", "list box",
}

// unnamed are the controls that the browser's accessibility tree has without a name, and the landmarks that it has not.
func (p *page) unnamed() []string {
	p.t.Helper()
	var wrong []string
	roles := map[string]int{}
	for _, node := range call(p, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{}).Nodes {
		role := textOf(node.Role)
		if node.Ignored {
			continue
		}
		roles[role]++
		if slices.Contains(controls, role) && strings.TrimSpace(textOf(node.Name)) == "" {
			wrong = append(wrong, fmt.Sprintf("a %s has no name (node %d)", role, node.BackendDOMNodeID))
		}
	}
	if roles["dialog"] > 0 { // all else is out of reach
		return wrong
	}
	for _, landmark := range []string{"banner", "main", "contentinfo", "navigation"} {
		if roles[landmark] != 1 {
			wrong = append(wrong, fmt.Sprintf("there are %d landmarks of role %s", roles[landmark], landmark))
		}
	}
	return wrong
}

func textOf(v *accessibility.Value) string {
	if v == nil {
		return ""
	}
	var text string
	if json.Unmarshal(v.Value, &text) != nil {
		return string(v.Value)
	}
	return text
}

// keep makes a picture of the whole page, if pictures are wanted.
func (p *page) keep(name string) {
	p.t.Helper()
	dir := os.Getenv("DASHBOARD_SCREENSHOTS")
	if dir == "" {
		return
	}
	require.NoError(p.t, os.MkdirAll(dir, 0o755))
	beyond := value[bool](p, `!document.querySelector('dialog[open]')`) // a dialog stands in the window
	shot := call(p, cdppage.CaptureScreenshot, cdppage.CaptureScreenshotParams{CaptureBeyondViewport: &beyond})
	require.NoError(p.t, os.WriteFile(filepath.Join(dir, name+".png"), shot.Data, 0o644))
}
