package dashboard

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/pgurl"
)

// Status is what /status answers: the migration's, and what the dashboard knows besides.
type Status struct {
	migrator.Status

	// Reasons are those of Error, if it is a refusal.
	Reasons     []string     `json:"reasons,omitempty"`
	Version     string       `json:"version"`
	ReadOnly    bool         `json:"read_only"`
	Databases   Databases    `json:"databases"`
	Running     *Running     `json:"running"`
	LastCommand *LastCommand `json:"last_command"`
	Unreachable *Unreachable `json:"unreachable,omitempty"`
}

// Databases are the two ends.
type Databases struct {
	Source Side `json:"source"`
	Target Side `json:"target"`
}

// Side is one of the two databases. What is not known yet is nil.
type Side struct {
	Host     *string `json:"host"`
	Port     *int    `json:"port"`
	Database *string `json:"database"`
	Version  *string `json:"version"`
	Role     *string `json:"role"`
	Bytes    *int64  `json:"bytes"`
}

// Permit tells whether a command makes sense now, and why not.
type Permit struct {
	Allowed bool   `json:"allowed"`
	Reason  string `json:"reason,omitempty"`
}

// Running is a command that is under way.
type Running struct {
	Command string    `json:"command"`
	Force   bool      `json:"force"`
	Since   time.Time `json:"since"`
}

// LastCommand is a command that ended. Message is its error if it was not a success.
type LastCommand struct {
	Running

	Ended   time.Time `json:"ended"`
	Success bool      `json:"success"`
	Message string    `json:"message"`
	Code    string    `json:"code,omitempty"`
	Reasons []string  `json:"reasons,omitempty"`
}

// Unreachable says since when the migration's state cannot be read, and why.
type Unreachable struct {
	Since  time.Time `json:"since"`
	Reason string    `json:"reason"`
}

// known is what the dashboard knows. Dashboard.mu guards it.
type known struct {
	status      *migrator.Status // as it was read last; nil: never
	readAt      time.Time
	recorded    *migrator.Status // the last in which a migration was recorded, since it was started
	final       *migrator.Status // how it ended
	finalAt     time.Time
	unreachable *Unreachable
	source      Side
	target      Side
	running     *call
	last        *LastCommand
	run         runState
	watched     time.Time // when somebody looked last
	longWait    time.Time // the wait that was notified of
}

// view is a status ready to be sent.
type view struct {
	seq      int64 // grows when the content changes
	at       time.Time
	status   Status
	commands map[string]Permit // for an operator
	heads    map[Role][]byte   // what differs by role, encoded, without braces
	body     []byte            // the rest
}

// bytes is the status for a role, as JSON in parts: the large one is shared.
func (v *view) bytes(role Role) [][]byte {
	head := fmt.Appendf(nil, `{"at":%q,`, v.at.UTC().Format(time.RFC3339Nano))
	return [][]byte{head, v.heads[role], []byte(","), v.body[1:]}
}

// compose makes the view anew. d.mu is held.
func (d *Dashboard) compose() {
	k := &d.known
	v := &view{at: k.readAt, status: Status{
		Version: d.cfg.Version, ReadOnly: d.cfg.ReadOnly, Databases: Databases{k.source, k.target}, LastCommand: k.last, Unreachable: k.unreachable,
	}}
	if v.at.IsZero() {
		v.at = time.Now()
	}
	if k.running != nil {
		v.status.Running = &Running{Command: k.running.name, Force: k.running.force, Since: k.running.since}
	}
	v.status.Status, v.status.Reasons = k.shown(d.cfg.HostRuns)
	v.commands = d.permits(&v.status)
	var err error
	if v.body, err = d.redact.encode(v.status); err != nil { // cannot be: every part has a form in JSON
		d.say.Error("the status could not be encoded", "error", err)
		return
	}
	v.heads = map[Role][]byte{}
	for _, role := range []Role{RoleViewer, RoleOperator} {
		commands := v.commands
		if role == RoleViewer {
			commands = forbidden(v.commands, "Your role is viewer: an operator may do this.")
		}
		head, err := d.redact.encode(map[string]any{"role": role, "commands": commands})
		if err != nil {
			d.say.Error("the status could not be encoded", "error", err)
			return
		}
		v.heads[role] = head[1 : len(head)-1]
	}
	v.seq = 1
	if old := d.view; old != nil {
		v.seq = old.seq
		if !bytes.Equal(old.body, v.body) || !bytes.Equal(old.heads[RoleOperator], v.heads[RoleOperator]) {
			v.seq++
		}
	}
	d.view = v
}

// shown is the migration's status as it is shown: with what this process knows of its run.
func (k *known) shown(hostRuns bool) (st migrator.Status, reasons []string) {
	runError := func(failed migrator.Phase) {
		text := k.run.err.Error()
		st.Phase, st.FailedPhase, st.Error = migrator.PhaseError, failed, &text
		st.Message = "the migration needs a person: see error; then retry"
		if refused := new(migrator.RefusedError); errors.As(k.run.err, &refused) {
			reasons = refused.Reasons
		}
	}
	recorded := k.status != nil && k.status.Phase != migrator.PhaseWaiting
	st = emptyStatus()
	switch {
	case recorded:
		st = *k.status
		if k.run.err != nil && !k.run.active && !hostRuns && st.Phase != migrator.PhaseError {
			runError(st.Phase)
		}
		if st.Phase == migrator.PhaseError && st.FailedPhase != "" && k.run.active { // the run begins with that
			st.Phase, st.FailedPhase, st.Error, st.Message = st.FailedPhase, "", nil, "trying again"
		}
		if st.Waiting == nil {
			st.Waiting = k.run.waiting
		}
	case k.final != nil:
		st = *k.final
	case k.run.active && k.recorded != nil:
		st = *k.recorded // its end is being told
	case k.run.active:
		st.Phase, st.Message = migrator.PhaseStarting, "starting"
		st.Waiting = k.run.waiting
	case k.run.err != nil:
		runError("")
	case k.status != nil:
		st = *k.status
	default:
		st.Message = "the databases were not read yet"
	}
	if k.unreachable != nil && k.status == nil && st.Error == nil {
		st.Error = &k.unreachable.Reason
		st.Message = "the databases cannot be reached: see preflight for what to do"
	}
	return st, reasons
}

func emptyStatus() migrator.Status {
	return migrator.Status{
		Phase: migrator.PhaseWaiting, State: migrator.StateRunning, Tables: []migrator.TableSummary{},
		CutoverReadiness: migrator.ReadinessStatus{Level: "not_ready", HardBlockers: []string{}, SoftBlockers: []string{}, Notes: []string{}},
		ProgressSignals:  migrator.ProgressSignals{TablePhase: map[migrator.TableState]int{}, EventChecklist: map[string]bool{}},
	}
}

// The names of the dashboard's own commands, besides the migrator's.
const (
	commandStart = "start"
	commandRetry = "retry"
	commandReset = "reset"
)

// permits tells which commands make sense, whoever asks.
func (d *Dashboard) permits(st *Status) map[string]Permit {
	permit := func(ok bool, reason string) Permit {
		if ok {
			reason = ""
		}
		return Permit{Allowed: ok, Reason: reason}
	}
	const driven = "The program that this dashboard is part of runs the migration itself."
	list := map[string]Permit{}
	for _, name := range []migrator.CommandName{
		migrator.CommandCopy, migrator.CommandPause, migrator.CommandResume, migrator.CommandSwitch, migrator.CommandRevert,
		migrator.CommandComplete, migrator.CommandAbort, migrator.CommandVerify,
	} {
		list[string(name)] = permit(st.Allowed(name))
	}
	under := fmt.Sprintf("A migration is under way, in phase %s.", st.Phase)
	ended := st.Phase == migrator.PhaseCompleted || st.Phase == migrator.PhaseAborted
	switch {
	case d.cfg.HostRuns:
		list[commandStart] = permit(false, driven)
	case ended:
		list[commandStart] = permit(false, fmt.Sprintf("The migration is %s: reset first, which forgets it.", st.Phase))
	default:
		list[commandStart] = permit(st.Phase == migrator.PhaseWaiting || (st.Phase == migrator.PhaseError && st.FailedPhase == ""), under)
	}
	list[commandRetry] = permit(st.Phase == migrator.PhaseError && !d.known.run.active, "Nothing has failed in a way that has to be tried again.")
	nothing := st.Phase == migrator.PhaseWaiting
	switch {
	case ended, st.Phase == migrator.PhaseError && st.FailedPhase == "":
		list[commandReset] = permit(true, "")
	case nothing:
		list[commandReset] = permit(false, "There is nothing to forget.")
	default:
		list[commandReset] = permit(false, under+" Abort or complete it first.")
	}
	switch {
	case d.cfg.ReadOnly:
		return forbidden(list, "This dashboard is read-only.")
	case st.Running != nil:
		return forbidden(list, fmt.Sprintf("A command is under way: %s.", st.Running.Command))
	case st.Unreachable != nil:
		return forbidden(list, "The databases cannot be reached.")
	case d.cfg.HostRuns:
		list[commandRetry], list[commandReset] = permit(false, driven), permit(false, driven)
	}
	return list
}

// forbidden refuses every command that would be allowed.
func forbidden(list map[string]Permit, reason string) map[string]Permit {
	none := make(map[string]Permit, len(list))
	for name, p := range list {
		if p.Allowed {
			p = Permit{Reason: reason}
		}
		none[name] = p
	}
	return none
}

// sideOf is what a URL says of a database.
func (d *Dashboard) sideOf(raw string) Side {
	u, err := pgurl.Parse(raw)
	if err != nil {
		return Side{}
	}
	host, port, database, role := u.Host(), u.Port(), u.Database(), u.User()
	return Side{Host: &host, Port: &port, Database: &database, Role: &role}
}

// seen completes what is known of a database by what it says itself.
func (s *Side) seen(id migrator.Identity) {
	if id.Version == 0 {
		return
	}
	s.Version, s.Bytes, s.Database, s.Role = &id.VersionStr, &id.Size, &id.Database, &id.Role
	if s.Host == nil && id.Host != "" {
		s.Host, s.Port = &id.Host, &id.Port
	}
}

func (d *Dashboard) serveStatus(w http.ResponseWriter, r *http.Request) {
	v := d.current(r.Context())
	w.Header().Set("Content-Type", jsonType)
	w.WriteHeader(http.StatusOK)
	for _, part := range v.bytes(roleOf(r)) {
		if _, err := w.Write(part); err != nil {
			return // whoever asked is gone
		}
	}
}
