package herokuapp

import (
	"regexp"
	"slices"
	"strings"
)

// Placeholder stands for the application's new URL in commands: a variable of the shell, so that no password is printed.
const Placeholder = `$APP_DATABASE_URL`

const (
	defaultVar = "DATABASE_URL"
	oldPrefix  = "MIGRATOR_OLD_" // names that begin with HEROKU_ are Heroku's own
)

// Owner is the add-on whose attachment owns a config var. The zero value is nobody: the config var is an ordinary one.
type Owner struct {
	Addon string // its name, such as postgresql-cubic-12345
	// Namespace is the attachment's, such as credential:analyst; empty for the default credential.
	Namespace string
}

// Setup is what [Commands] has to know.
type Setup struct {
	App           string // default: your-app
	Var           string // default: DATABASE_URL
	Owner         Owner  // of Var, before the switch
	URL           string // printed if it is given. Default: [Placeholder]
	NoMaintenance bool
	Kept          bool // the old URL is kept already
}

// Lists are commands for a shell, in their order.
type Lists struct {
	Before   []string // at any time before the switch: keeps the old URL. The dynos restart
	Switch   []string // after the switch
	Revert   []string // after a revert
	Complete []string // when there is no way back any more: removes the copy of an ordinary value. An add-on stays attached until it is destroyed
}

// Commands returns the commands of Heroku's command line that do what [Hook] does. It asks nobody and does nothing.
func Commands(s Setup) Lists {
	s = s.withDefaults()
	toTarget := slices.DeleteFunc(s.toTarget(), func(s step) bool { return s.action == keep })
	l := Lists{
		Before: commands(s.steps(keep)), Switch: commands(toTarget), Revert: commands(s.back()), Complete: commands(s.steps(forget)),
	}
	if s.Kept {
		l.Before = nil
	}
	if s.attached() {
		l.Complete = nil
	}
	return l
}

// action is one thing that is done to an application.
type action string

const (
	keep           action = "keep the old URL"
	maintenanceOn  action = "turn maintenance mode on"
	detach         action = "detach the attachment"
	set            action = "set the config var"
	wait           action = "wait for the dynos"
	maintenanceOff action = "turn maintenance mode off"
	unset          action = "unset the config var"
	attach         action = "attach the add-on"
	restore        action = "restore the config var"
	forget         action = "remove what was kept"
)

// step is an action with the command that does it and what has happened then.
type step struct {
	action  action
	command string
	done    string
}

func (s Setup) withDefaults() Setup {
	if s.App == "" {
		s.App = "your-app"
	}
	if s.Var == "" {
		s.Var = defaultVar
	}
	return s
}

func (s Setup) attached() bool { return s.Owner != Owner{} }

// attachment is the name of the attachment that owns the config var. Those of Heroku Postgres own NAME_URL.
func (s Setup) attachment() string { return strings.TrimSuffix(s.Var, "_URL") }

// old is the config var that keeps the old URL, and oldAttachment the attachment that owns it.
func (s Setup) old() string           { return oldPrefix + s.Var }
func (s Setup) oldAttachment() string { return oldPrefix + s.attachment() }

// toTarget leads to the new URL. The old one has been kept before the fence, unless it has changed since.
func (s Setup) toTarget() []step {
	if s.attached() {
		return s.steps(maintenanceOn, keep, detach, set, wait, maintenanceOff)
	}
	return s.steps(maintenanceOn, keep, set, wait, maintenanceOff)
}

// back leads to the old URL. The old attachment goes when the add-on has the other one again.
func (s Setup) back() []step {
	if s.attached() {
		return s.steps(maintenanceOn, unset, attach, forget, wait, maintenanceOff)
	}
	return s.steps(maintenanceOn, restore, forget, wait, maintenanceOff)
}

func (s Setup) steps(actions ...action) []step {
	var list []step
	for _, a := range actions {
		if !s.NoMaintenance || (a != maintenanceOn && a != maintenanceOff) {
			list = append(list, s.step(a))
		}
	}
	return list
}

func (s Setup) step(a action) step {
	switch a {
	case keep:
		if s.attached() {
			return step{a, s.attachCommand(s.oldAttachment()), "add-on " + s.Owner.Addon + " is attached as " + s.oldAttachment() + " too"}
		}
		return step{a, s.copyCommand(s.Var, s.old()), "the old " + s.Var + " is kept in " + s.old()}
	case maintenanceOn:
		return step{a, "heroku maintenance:on" + s.app(), "maintenance mode is on"}
	case detach:
		return step{a, "heroku addons:detach " + s.attachment() + s.app(), s.attachment() + " is detached"}
	case set:
		value := `"` + Placeholder + `"`
		if s.URL != "" {
			value = quote(s.URL)
		}
		return step{a, "heroku config:set " + s.Var + "=" + value + s.app(), s.Var + " is PlanetScale's URL"}
	case wait:
		return step{a, "heroku ps:wait" + s.app(), "the dynos are up"}
	case maintenanceOff:
		return step{a, "heroku maintenance:off" + s.app(), "maintenance mode is off"}
	case unset:
		return step{a, "heroku config:unset " + s.Var + s.app(), s.Var + " is unset"}
	case attach:
		return step{a, s.attachCommand(s.attachment()), "add-on " + s.Owner.Addon + " is attached as " + s.attachment()}
	case restore:
		return step{a, s.copyCommand(s.old(), s.Var), s.Var + " is as before"}
	default:
		if s.attached() {
			return step{a, "heroku addons:detach " + s.oldAttachment() + s.app(), s.oldAttachment() + " is detached"}
		}
		return step{a, "heroku config:unset " + s.old() + s.app(), s.old() + " is unset"}
	}
}

func (s Setup) app() string { return " -a " + quote(s.App) }

func (s Setup) copyCommand(from, to string) string {
	return "heroku config:set " + to + `="$(heroku config:get ` + from + s.app() + `)"` + s.app()
}

func (s Setup) attachCommand(name string) string {
	command, option := "addons:attach", ""
	kind, credential, _ := strings.Cut(s.Owner.Namespace, ":")
	if kind == "connection-pooling" {
		command = "pg:connection-pooling:attach"
	}
	if credential != "" && credential != "default" {
		option = " --credential " + quote(credential)
	}
	return "heroku " + command + " " + quote(s.Owner.Addon) + " --as " + name + option + s.app()
}

func commands(steps []step) []string {
	list := make([]string, len(steps))
	for i, s := range steps {
		list[i] = s.command
	}
	return list
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_.:/@%+=-]+$`)

// quote writes a word for a shell.
func quote(word string) string {
	if plainWord.MatchString(word) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
