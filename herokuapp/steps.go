package herokuapp

import (
	"context"
	"fmt"
)

// needed reports whether what a step is for is not so already.
func (r *run) needed(s step) bool {
	_, owned := r.owning()
	_, kept := r.attached[r.setup.oldAttachment()]
	value, old := r.vars[r.cfg.Var], r.vars[r.setup.old()]
	switch s.action {
	case keep:
		if owned || kept {
			return !kept
		}
		return value != "" && value != old && value != r.cfg.URL && (old == "" || !r.atTarget()) // the last two: it is switched
	case maintenanceOn:
		return !r.maintenance
	case detach:
		return owned
	case set:
		return owned || value != r.cfg.URL
	case unset:
		return !owned && r.has(r.cfg.Var)
	case attach:
		return !owned
	case restore:
		return r.has(r.setup.old())
	case forget:
		return kept || (!r.setup.attached() && r.has(r.setup.old()))
	case maintenanceOff, wait:
	}
	return true
}

// do takes a step, if it is needed.
func (r *run) do(ctx context.Context, s step) error {
	if s.action == wait {
		return r.waitAndLook(ctx)
	}
	if s.action == keep {
		if err := r.mayKeep(); err != nil {
			return err
		}
	}
	if s.action == maintenanceOff && !r.ours {
		r.cfg.Logger.WarnContext(ctx, "maintenance mode was on before, and is left on", "app", r.cfg.App, "off", s.command)
		return nil
	}
	if !r.needed(s) {
		return nil
	}
	if err := r.take(ctx, s.action); err != nil {
		return err
	}
	if s.action != maintenanceOn && s.action != maintenanceOff {
		r.released = true
	}
	r.did = append(r.did, s.done)
	r.cfg.Logger.InfoContext(ctx, "heroku: "+s.done, "app", r.cfg.App)
	return nil
}

// take does what a step is for.
func (r *run) take(ctx context.Context, a action) error {
	name, old := r.cfg.Var, r.setup.old()
	switch a {
	case keep:
		if _, owned := r.owning(); owned {
			return r.addAttachment(ctx, r.setup.oldAttachment(), false)
		}
		value := r.vars[name]
		return r.changeVars(ctx, map[string]*string{old: &value})
	case maintenanceOn:
		r.ours = true // perhaps, if it fails
		return r.turn(ctx, true)
	case maintenanceOff:
		err := r.turn(ctx, false)
		r.ours = err != nil
		return err
	case detach:
		return r.removeAttachment(ctx, r.setup.attachment())
	case set: // with the copy, if there is none yet: while a release command runs, a second change might begin without the first one
		vars := map[string]*string{name: &r.cfg.URL}
		if value := r.vars[name]; !r.setup.attached() && r.needed(r.setup.step(keep)) {
			vars[old] = &value
		}
		return r.changeVars(ctx, vars)
	case unset:
		return r.changeVars(ctx, map[string]*string{name: nil})
	case attach: // a release command that fails without a URL takes back that it was unset
		return r.addAttachment(ctx, r.setup.attachment(), true)
	case restore: // in one release
		value := r.vars[old]
		return r.changeVars(ctx, map[string]*string{name: &value, old: nil})
	case forget:
		if r.setup.attached() {
			return r.removeAttachment(ctx, r.setup.oldAttachment())
		}
		return r.changeVars(ctx, map[string]*string{old: nil})
	case wait:
	}
	return nil
}

// waitAndLook waits for the dynos and makes sure that they got what they should: config vars are not seen to change before the release
// command has succeeded.
func (r *run) waitAndLook(ctx context.Context) error {
	if err := r.wait(ctx); err != nil || r.reached == nil {
		return err
	}
	if err := r.refresh(ctx); err != nil {
		return err
	}
	if !r.reached() {
		return fmt.Errorf("the dynos are up with v%d, but %s is not what it should be: somebody else may have changed it, or released another version", r.release, r.cfg.Var)
	}
	return nil
}

func (r *run) has(name string) bool {
	_, there := r.vars[name]
	return there
}

// change does something and looks what has become of it. An answer that is lost or an error does not matter if it has happened.
func (r *run) change(ctx context.Context, do func(context.Context) error, happened func() bool) error {
	err := do(ctx)
	if ctx.Err() != nil && err != nil {
		return fmt.Errorf("%w; it may have happened all the same", err)
	}
	if err != nil {
		if readErr := r.refresh(ctx); readErr != nil {
			return fmt.Errorf("%w; whether it has happened is not known: %w", r.explain(err), readErr)
		}
		if !happened() {
			return r.explain(err)
		}
	}
	return nil
}

// mayKeep reports what is in the way of keeping the old URL under its other name.
func (r *run) mayKeep() error {
	old, oldAttachment := r.setup.old(), r.setup.oldAttachment()
	at, kept := r.attached[oldAttachment]
	now, owned := r.owning()
	switch {
	case owned && kept && at.owner != now.owner:
		return fmt.Errorf("attachment %s exists, and is not one of %s, which owns %s: detach it (`heroku addons:detach %s%s`)", oldAttachment, now.owner.Addon, r.cfg.Var, oldAttachment, r.setup.app())
	case !owned && kept && r.vars[r.cfg.Var] != "" && !r.atTarget():
		return fmt.Errorf("attachment %s exists, but %s is an ordinary config var that leads elsewhere: detach it (`heroku addons:detach %s%s`)", oldAttachment, r.cfg.Var, oldAttachment, r.setup.app())
	case owned && !kept && r.has(old):
		return fmt.Errorf("config var %s exists, and is in the way of an attachment: remove it (`heroku config:unset %s%s`)", old, old, r.setup.app())
	}
	return nil
}

func (r *run) turn(ctx context.Context, on bool) error {
	err := r.change(ctx, func(ctx context.Context) error { return r.setMaintenance(ctx, on) }, func() bool { return r.maintenance == on })
	if err == nil {
		r.maintenance = on
	}
	return err
}

// changeVars sets config vars, and removes those whose value is nil, in one release.
func (r *run) changeVars(ctx context.Context, vars map[string]*string) error {
	same := func() bool {
		for name, want := range vars {
			if value, there := r.vars[name]; there != (want != nil) || (there && value != *want) {
				return false
			}
		}
		return true
	}
	err := r.change(ctx, func(ctx context.Context) error { return r.setVars(ctx, vars) }, same)
	if err != nil {
		return err
	}
	for name, value := range vars {
		if delete(r.vars, name); value != nil {
			r.vars[name] = *value
		}
	}
	return nil
}

func (r *run) addAttachment(ctx context.Context, name string, overwrite bool) error {
	at := attachment{owner: r.setup.Owner}
	err := r.change(ctx, func(ctx context.Context) (err error) {
		at.id, err = r.attach(ctx, at.owner, name, overwrite)
		return err
	}, func() bool {
		there, ok := r.attached[name]
		return ok && there.owner == at.owner
	})
	if err == nil && at.id != "" {
		r.attached[name] = at
		if r.vars[r.cfg.Var] == "" {
			r.vars[r.cfg.Var] = r.vars[r.setup.old()] // both are the add-on's
		}
	}
	return err
}

func (r *run) removeAttachment(ctx context.Context, name string) error {
	at := r.attached[name]
	err := r.change(ctx, func(ctx context.Context) error { return r.detach(ctx, at) }, func() bool {
		_, there := r.attached[name]
		return !there
	})
	if err == nil {
		delete(r.attached, name)
		delete(r.vars, name+"_URL")
	}
	return err
}
