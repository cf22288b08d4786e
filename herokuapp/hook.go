package herokuapp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/pgurl"
)

// Hook returns a hook that does the application's part.
//
// before_fence looks whether all of it will work, keeps the old URL under the other name and waits until the dynos have restarted
// because of that: an API key without the right, a release command that fails or a dyno that does not come up is noticed while
// nothing depends on it. before_switch does nothing, since every request to Heroku's API there is time without writes. after_switch
// turns maintenance mode on, sets the config var (what owned it is detached first), waits for the dynos and turns maintenance mode
// off. after_revert does the same the other way, until everything is as it was before, and removes what was kept.
//
// Maintenance mode begins no sooner than with after_switch: until the fence, every request can still be served, and behind it those
// that only read can; how long it takes to get the fence up depends on transactions of others. And after a switch that is given
// up no hook is called, so an application would stay in maintenance mode.
//
// An error says what has been done and which commands do the rest. Each step looks whether it is done already. The hook is for
// one call at a time.
func Hook(cfg Config) (migrator.Hook, error) {
	if cfg.URL == "" {
		return nil, errors.New("herokuapp: the application's new URL is missing: PlanetScale's, by PgBouncer (port 6432)")
	}
	a, err := open(cfg)
	if err != nil {
		return nil, err
	}
	h := &hook{app: a}
	return h.call, nil
}

// Inspect reads which add-on owns the config var, or owned it before the switch, so that [Commands] says what is right for this application.
// cfg.URL is not needed. It changes nothing.
func Inspect(ctx context.Context, cfg Config) (Setup, error) {
	a, err := open(cfg)
	if err != nil {
		return Setup{}, err
	}
	defer a.idle()
	r := &run{hook: &hook{app: a}, setup: Setup{App: a.cfg.App, Var: a.cfg.Var, NoMaintenance: a.cfg.NoMaintenance}}
	if err := r.refresh(ctx); err != nil {
		return Setup{}, &hookError{text: "herokuapp: " + r.redact(err.Error()), cause: context.Cause(ctx)}
	}
	r.setup.Kept = r.kept()
	return r.setup, nil
}

// hook is what one call leaves to the next one in the same process. What must not be lost is in the application.
type hook struct {
	*app

	mu    sync.Mutex
	owner *Owner // of the config var, if it is known
	ours  bool   // maintenance mode was turned on here
}

// run is one call.
type run struct {
	*hook

	state
	setup    Setup
	before   *state // when the call began
	did      []string
	released bool        // something was done that makes a release
	reached  func() bool // whether the application has what it should, when the dynos are up
}

func (h *hook) call(ctx context.Context, call migrator.HookCall) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	defer h.idle()
	r := &run{hook: h, setup: Setup{App: h.cfg.App, Var: h.cfg.Var, NoMaintenance: h.cfg.NoMaintenance}}
	var err error
	switch call.Point {
	case migrator.HookBeforeFence:
		err = r.beforeFence(ctx)
	case migrator.HookAfterSwitch:
		err = r.afterSwitch(ctx)
	case migrator.HookAfterRevert:
		err = r.afterRevert(ctx)
	case migrator.HookBeforeSwitch: // every moment here is one without writes
	}
	if err != nil {
		return &hookError{text: "herokuapp: " + r.redact(err.Error()), cause: context.Cause(ctx)}
	}
	return nil
}

// hookError has no secret in it.
type hookError struct {
	text  string
	cause error // why the context is done, if it is
}

func (e *hookError) Error() string { return e.text }
func (e *hookError) Unwrap() error { return e.cause }

// redact removes the API key and passwords, whoever wrote them into a message.
func (r *run) redact(text string) string {
	var urls []*pgurl.URL
	known := []string{r.cfg.URL, r.vars[r.cfg.Var], r.vars[r.setup.old()]}
	if r.before != nil {
		known = append(known, r.before.vars[r.cfg.Var], r.before.vars[r.setup.old()])
	}
	for _, raw := range known {
		if u, err := pgurl.Parse(raw); err == nil {
			urls = append(urls, u)
		} else if len(raw) > 3 {
			text = strings.ReplaceAll(text, raw, "***")
		}
	}
	return strings.ReplaceAll(pgurl.Redact(text, urls...), r.cfg.Token, "***")
}

// refresh reads the application, and finds out what owns the config var, or owned it before the switch.
func (r *run) refresh(ctx context.Context) error {
	s, err := r.read(ctx)
	if err != nil {
		return fmt.Errorf("read app %s: %w", r.cfg.App, err)
	}
	r.state = *s
	if r.before == nil {
		r.before = s
	}
	if at, kept := r.attached[r.setup.oldAttachment()]; kept {
		r.setup.Owner = at.owner
	} else if at, ok := r.owning(); ok {
		r.setup.Owner = at.owner
	}
	owner := r.setup.Owner
	r.owner = &owner
	return nil
}

// owning returns the attachment that owns the config var now.
func (r *run) owning() (attachment, bool) {
	if r.setup.attachment() == r.setup.Var { // it does not end in _URL
		return attachment{}, false
	}
	at, ok := r.attached[r.setup.attachment()]
	return at, ok
}

func (r *run) beforeFence(ctx context.Context) error {
	if err := r.refresh(ctx); err != nil {
		return err
	}
	if _, ok := r.owning(); !ok && r.vars[r.setup.Var] == "" {
		return fmt.Errorf("app %s has no config var %s: which one holds its database's URL?", r.cfg.App, r.setup.Var)
	}
	if err := r.do(ctx, r.setup.step(keep)); err != nil {
		return fmt.Errorf("%s: %w", keep, err)
	}
	r.warnOfOthers(ctx)
	err := r.do(ctx, r.setup.step(wait))
	switch {
	case err == nil:
		return nil
	case r.released:
		return fmt.Errorf("%s was kept in %s, which restarts the dynos, but %w. Nothing has been switched", r.cfg.Var, r.setup.old(), err)
	default:
		return fmt.Errorf("before anything was done to app %s: %w", r.cfg.App, err)
	}
}

// warnOfOthers tells of other names by which the application may reach the old database.
func (r *run) warnOfOthers(ctx context.Context) {
	var names []string
	for name, at := range r.attached {
		if r.setup.attached() && at.owner.Addon == r.setup.Owner.Addon && name != r.setup.attachment() && name != r.setup.oldAttachment() {
			names = append(names, name+"_URL")
		}
	}
	value := r.vars[r.setup.Var]
	for name, other := range r.vars {
		if value != "" && other == value && name != r.setup.Var && name != r.setup.old() && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	for _, name := range r.otherApps(ctx) {
		r.cfg.Logger.WarnContext(ctx, "another application has the old database too: it needs its own switch at the same time", "app", name, "addon", r.setup.Owner.Addon)
	}
	if len(names) > 0 {
		slices.Sort(names)
		r.cfg.Logger.WarnContext(ctx, "other config vars lead to the old database too, and are left as they are: after the switch, what uses them is refused when it writes, and reads what is old", "app", r.cfg.App, "config_vars", names)
	}
}

// otherApps lists applications to which the add-on is attached too, as far as the API key may know.
func (r *run) otherApps(ctx context.Context) []string {
	if !r.setup.attached() {
		return nil
	}
	list, err := r.api.AddOnAttachmentListByAddOn(ctx, r.setup.Owner.Addon, all())
	if err != nil {
		r.cfg.Logger.WarnContext(ctx, "whether other applications have the old database too is not known", "addon", r.setup.Owner.Addon, "error", r.redact(r.explain(err).Error()))
	}
	var names []string
	for _, at := range list {
		if at.App.Name != r.cfg.App && !slices.Contains(names, at.App.Name) {
			names = append(names, at.App.Name)
		}
	}
	return names
}

func (r *run) afterSwitch(ctx context.Context) error {
	if err := r.refresh(ctx); err != nil {
		return r.nothingDone(err, Setup.toTarget)
	}
	r.reached = func() bool { return r.vars[r.cfg.Var] == r.cfg.URL }
	return r.perform(ctx, r.setup.toTarget())
}

func (r *run) afterRevert(ctx context.Context) error {
	if err := r.refresh(ctx); err != nil {
		return r.nothingDone(err, Setup.back)
	}
	if r.kept() {
		attached, value := r.setup.attached(), r.vars[r.setup.old()]
		r.reached = func() bool {
			_, owned := r.owning()
			return owned == attached && (attached || r.vars[r.cfg.Var] == value) && r.vars[r.cfg.Var] != r.cfg.URL
		}
		return r.perform(ctx, r.setup.back())
	}
	if _, ok := r.owning(); !ok && r.atTarget() {
		steps := Setup{App: r.cfg.App, Var: r.cfg.Var, Owner: Owner{Addon: "THE-OLD-DATABASE"}, NoMaintenance: r.cfg.NoMaintenance}
		return fmt.Errorf("%s of app %s leads to PlanetScale, and what it was before is not kept: there is neither an attachment %s nor a config var %s. `heroku addons` lists the add-ons; then:%s",
			r.cfg.Var, r.cfg.App, r.setup.oldAttachment(), r.setup.old(), list(steps.steps(maintenanceOn, unset, attach, wait, maintenanceOff)))
	}
	r.cfg.Logger.InfoContext(ctx, "the application's config var does not lead to PlanetScale: there is nothing to take back", "app", r.cfg.App, "config_var", r.cfg.Var)
	return nil
}

// kept reports whether the old URL is kept, as a copy or by an attachment.
func (r *run) kept() bool {
	_, attached := r.attached[r.setup.oldAttachment()]
	return attached || r.has(r.setup.old())
}

// atTarget reports whether the config var leads to the new database, by whatever role.
func (r *run) atTarget() bool {
	now, err := pgurl.Parse(r.vars[r.cfg.Var])
	target, targetErr := pgurl.Parse(r.cfg.URL)
	return err == nil && targetErr == nil && strings.EqualFold(now.Host(), target.Host()) && now.Database() == target.Database()
}

// perform takes the steps in their order. If one fails, the error says which are taken and lists the commands for the others.
func (r *run) perform(ctx context.Context, steps []step) error {
	without, cancel := lingering(ctx, 10*time.Second)
	defer cancel()
	for i, s := range steps {
		doing := ctx
		if r.vars[r.cfg.Var] == "" || (ctx.Err() == nil && (s.action == detach || s.action == unset)) {
			doing = without
		}
		var err error
		if s.action == keep && !r.setup.attached() { // comes with what follows
			err = r.mayKeep()
		} else {
			err = r.do(doing, s)
		}
		if err == nil {
			continue
		}
		var rest []step
		for j, next := range steps {
			if j == i || (j > i && r.needed(next)) || (j < i && next.action == keep && r.needed(next)) {
				rest = append(rest, next)
			}
		}
		if down := new(notUpError); errors.As(err, &down) && down.webUp && i+1 < len(steps) && r.do(ctx, steps[i+1]) == nil {
			rest = steps[i : i+1] // requests can be served
		}
		did := "Nothing was done before."
		if len(r.did) > 0 {
			did = "Done: " + strings.Join(r.did, "; ") + "."
		}
		return fmt.Errorf("%s: %w. %s To be done by hand, when the reason is gone:%s", s.action, err, did, list(rest))
	}
	return nil
}

// lingering returns a context that ends some time after another one does: an application is not left without any URL because of a
// signal or a time-out.
func lingering(ctx context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	late, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-late.Done():
		case <-timer.C:
			cancel(context.Cause(ctx))
		}
	})
	return late, func() {
		stop()
		cancel(nil)
	}
}

// nothingDone says what to do when the application could not even be read: for the owner that was found earlier, or for both cases.
func (r *run) nothingDone(err error, steps func(Setup) []step) error {
	plain, attached := r.setup, r.setup
	if r.owner != nil {
		plain.Owner = *r.owner
		return fmt.Errorf("%w. Nothing was done. To be done by hand:%s", err, list(steps(plain)))
	}
	attached.Owner.Addon = "YOUR-DATABASE"
	return fmt.Errorf("%w. Nothing was done. To be done by hand, if %s is an attachment of an add-on (`heroku addons` tells its name):%s\nIf it is an ordinary config var:%s",
		err, r.setup.Var, list(steps(attached)), list(steps(plain)))
}

// list writes commands one by line.
func list(steps []step) string {
	text := ""
	for _, s := range steps {
		text += "\n  " + s.command
	}
	if strings.Contains(text, Placeholder) {
		text += "\n(" + Placeholder + " stands for the application's URL of PlanetScale)"
	}
	return text
}
