package migrator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// CommandName names what can be asked of a migration.
type CommandName string

// The commands.
const (
	CommandCopy     CommandName = "copy"   // go on from ready_to_copy, where Run holds if it is told to
	CommandVerify   CommandName = "verify" // compare every row; forced, send tables that differ whole
	CommandPause    CommandName = "pause"
	CommandResume   CommandName = "resume"
	CommandSwitch   CommandName = "switch"
	CommandRevert   CommandName = "revert"
	CommandComplete CommandName = "complete"
	CommandAbort    CommandName = "abort"
)

// command is a row of the journal's command table.
type command struct {
	id       int64
	name     CommandName
	force    bool
	state    string // pending, running, done, failed, refused, cancelled
	reasons  []string
	canForce bool
	message  string
}

// commandPatience is how long a command stands when the one who posted it is not seen any more: nobody
// wants a switch that was asked for yesterday.
const commandPatience = 10 * time.Second

// post enters a command.
func (j *Journal) post(ctx context.Context, name CommandName, force bool) (int64, error) {
	exists, err := j.exists(ctx)
	if err != nil {
		return 0, err
	}
	if !exists {
		return 0, ErrNoMigration
	}
	var id int64
	err = j.pool.QueryRow(ctx, `INSERT INTO heroku_migrator.commands (name, force) VALUES ($1, $2) RETURNING id`, string(name), force).Scan(&id)
	return id, err
}

// poll reads a command and tells the leader that somebody still waits for it.
func (j *Journal) poll(ctx context.Context, id int64) (*command, error) {
	c := command{id: id}
	err := j.pool.QueryRow(ctx, `
		UPDATE heroku_migrator.commands SET alive_at = clock_timestamp() WHERE id = $1
		RETURNING name, force, state, reasons, can_force, message`, id).Scan(&c.name, &c.force, &c.state, &c.reasons, &c.canForce, &c.message)
	if errors.Is(err, pgx.ErrNoRows) || sqlState(err) == "42P01" || sqlState(err) == "3F000" {
		return nil, ErrNoMigration
	}
	return &c, err
}

// cancel withdraws a command that nobody has begun.
func (j *Journal) cancel(ctx context.Context, id int64) error {
	_, err := j.pool.Exec(ctx, `UPDATE heroku_migrator.commands SET state = 'cancelled', finished_at = clock_timestamp() WHERE id = $1 AND state = 'pending'`, id)
	return err
}

// take returns the oldest command that waits, and marks it running if mark is set; nil if there is none.
func (j *Journal) take(ctx context.Context, mark bool) (*command, error) {
	c, err := j.next(ctx)
	if err != nil || c == nil || !mark {
		return c, err
	}
	return j.claim(ctx, c)
}

func (j *Journal) next(ctx context.Context) (*command, error) {
	var c command
	err := j.pool.QueryRow(ctx, `
		SELECT id, name, force FROM heroku_migrator.commands
		WHERE state = 'pending' AND alive_at > clock_timestamp() - make_interval(secs => $1) ORDER BY id LIMIT 1`,
		commandPatience.Seconds()).Scan(&c.id, &c.name, &c.force)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil //nolint:nilnil // no command is no error
	}
	return &c, err
}

// claim marks a command running. It returns nil if the command was withdrawn meanwhile.
func (j *Journal) claim(ctx context.Context, c *command) (*command, error) {
	withdrawn := false
	err := j.tx(ctx, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `UPDATE heroku_migrator.commands SET state = 'running' WHERE id = $1 AND state = 'pending'`, c.id)
		withdrawn = err == nil && tag.RowsAffected() == 0
		return err
	})
	if err != nil || withdrawn {
		return nil, err
	}
	return c, nil
}

// finish records a command's result.
func (j *Journal) finish(ctx context.Context, c *command, message string, result error) error {
	state, reasons, canForce := "done", []string{}, false
	if refused := new(RefusedError); errors.As(result, &refused) {
		state, reasons, canForce = "refused", refused.Reasons, refused.CanForce
	} else if result != nil {
		state, message = "failed", result.Error()
	}
	return j.exec(ctx, "record a command's result", `
		UPDATE heroku_migrator.commands SET state = $2, reasons = $3, can_force = $4, message = $5, finished_at = clock_timestamp()
		WHERE id = $1`, c.id, state, reasons, canForce, message)
}

// permit tells whether a command makes sense where the migration stands. done is not empty when there is
// nothing to do because it has been done.
func (c *command) permit(s *State) (done string, refused *RefusedError) {
	phase := s.Phase
	if phase == PhaseError {
		phase = s.Resume
	}
	no := func(format string, args ...any) (string, *RefusedError) {
		return "", refuse(string(c.name), format, args...)
	}
	switch c.name {
	case CommandCopy:
		switch {
		case phase == PhaseCopying || phase == PhaseRebuildingIndexes || phase == PhaseReplicating:
			return "it is copied already, or being copied", nil
		case phase != PhaseReadyToCopy:
			return no("The migration is in phase %s: the copy begins in phase ready_to_copy.", s.Phase)
		}
	case CommandVerify:
		switch {
		case s.Phase != PhaseReplicating:
			return no("The migration is in phase %s: rows can be compared in phase replicating.", s.Phase)
		case s.Run == StatePaused:
			return no("The migration is paused: resume it first.")
		}
	case CommandPause:
		switch {
		case s.Run == StatePaused:
			return "it is paused already", nil
		case phase == PhaseSwitched || phase == PhaseCleaningUp:
			return no("In phase %s there is nothing to pause.", phase)
		}
	case CommandResume:
		if s.Run != StatePaused {
			return "it is not paused", nil
		}
	case CommandSwitch:
		switch {
		case phase == PhaseSwitched:
			return "it is switched already", nil
		case s.Run == StatePaused:
			return no("The migration is paused: resume it first.")
		case phase != PhaseReplicating:
			return no("The migration is in phase %s: the switch comes after the copy, in phase replicating.", s.Phase)
		}
	case CommandRevert:
		if phase != PhaseSwitched {
			return no("The migration is in phase %s: there is no switch to revert.", s.Phase)
		}
	case CommandComplete:
		switch {
		case phase == PhaseCleaningUp && s.Goal == PhaseCompleted:
		case phase != PhaseSwitched:
			return no("The migration is in phase %s: it can be completed after the switch.", s.Phase)
		}
	case CommandAbort:
		switch {
		case phase == PhaseSwitched:
			return no("The switch has been made: revert it first, or complete the migration.")
		case phase == PhaseCleaningUp && s.Goal == PhaseCompleted:
			return no("The migration is being completed.")
		}
	default:
		return no("There is no such command.")
	}
	return "", nil
}

// execute carries a command out. The process leads, and no step is under way.
func (m *Migrator) execute(ctx context.Context, c *command) (string, error) {
	s, err := m.journal.State(ctx)
	if err != nil {
		return "", err
	}
	if done, refused := c.permit(s); refused != nil || done != "" {
		if refused != nil {
			return "", refused
		}
		return done, nil
	}
	cutover := m.cfg.Cutover
	cutover.Force = c.force
	switch c.name {
	case CommandCopy:
		return "copying", m.journal.Advance(ctx, PhaseReadyToCopy, PhaseCopying, "copying")
	case CommandVerify:
		return m.verify(ctx, c.force)
	case CommandPause:
		return "paused; changes on the source go on being captured", m.journal.SetRun(ctx, StatePaused)
	case CommandResume:
		return "resumed", m.journal.SetRun(ctx, StateRunning)
	case CommandSwitch:
		if err := m.followBeforeSwitch(ctx, s); err != nil {
			return "", err
		}
		report, err := Cutover(ctx, m.cfg.Source, m.cfg.Target, cutover)
		if wentBack(err) { // nothing has happened; what a failover has lost is sent again
			if err = m.rebase(ctx, s, err); err == nil {
				report, err = Cutover(ctx, m.cfg.Source, m.cfg.Target, cutover)
			}
		}
		if err != nil {
			return "", err
		}
		m.publish(Event{Kind: EventSwitched, Phase: PhaseSwitched, Report: report})
		if s, err = m.journal.State(ctx); err == nil {
			err = m.callLateHook(ctx, s)
		}
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("switched; %d ms without writes", report.WithoutWrites.Milliseconds()), nil
	case CommandRevert:
		report, err := Revert(ctx, m.cfg.Source, m.cfg.Target, cutover)
		if err != nil {
			return "", err
		}
		if s, err = m.journal.State(ctx); err == nil {
			err = m.callLateHook(ctx, s)
		}
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("reverted; the source takes writes again, and the target follows it; %d ms without writes", report.WithoutWrites.Milliseconds()), nil
	case CommandComplete, CommandAbort:
		goal := PhaseCompleted
		if c.name == CommandAbort {
			goal = PhaseAborted
		}
		if s.Phase != PhaseCleaningUp {
			if err := m.journal.SetGoal(ctx, s.Phase, goal, "removing everything of the migration from both databases"); err != nil {
				return "", err
			}
		}
		// The cleaning itself is the next step; it ends with the journal, and so with this command's row.
		return "", m.cleanUp(ctx, goal)
	}
	return "", fmt.Errorf("command %q: %w", c.name, errors.ErrUnsupported)
}

// Result is what a command did.
type Result struct {
	Command CommandName `json:"command"`
	Message string      `json:"message"`
}

// Do has a command carried out, and waits until that is done: by the process that leads, if one does, else
// by this one. It returns a [*RefusedError] when a precondition does not hold, and nothing was done then.
//
// When the context is done while the command waits, it is withdrawn; when it is under way in another
// process, it goes on there.
func (m *Migrator) Do(ctx context.Context, name CommandName, force bool) (*Result, error) {
	id, err := m.journal.post(ctx, name, force)
	if errors.Is(err, ErrNoMigration) {
		return nil, refuse(string(name), "No migration is recorded in the target database.")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	defer func() {
		withdraw, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = m.journal.cancel(withdraw, id) // it expires by itself, too
	}()
	for {
		c, err := m.journal.poll(ctx, id)
		switch {
		case errors.Is(err, ErrNoMigration) && name == CommandComplete:
			return &Result{Command: name, Message: completedMessage}, nil
		case errors.Is(err, ErrNoMigration) && name == CommandAbort:
			return &Result{Command: name, Message: abortedMessage}, nil
		case err != nil && !Retryable(err):
			return nil, fmt.Errorf("%s: %w", name, err)
		case err != nil:
		case c.state == "done":
			return &Result{Command: name, Message: c.message}, nil
		case c.state == "refused":
			return nil, &RefusedError{Action: string(name), Reasons: c.reasons, CanForce: c.canForce}
		case c.state != "pending" && c.state != "running":
			return nil, fmt.Errorf("%s: %s: %s", name, c.state, c.message)
		}
		if err := m.serveOnce(ctx); err != nil && !errors.Is(err, ErrNoMigration) {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

const (
	completedMessage = "completed; nothing of the migration is left on either database. The old database takes writes again: make sure that nothing uses it any more"
	abortedMessage   = "aborted; nothing of the migration is left on the source. What was copied is still on the target: use a fresh one for another try"
)

// serveOnce carries out what waits if no process leads.
func (m *Migrator) serveOnce(ctx context.Context) error {
	if m.leading.Load() {
		return nil // Run, in this process
	}
	lead, err := m.journal.TryLead(ctx, false)
	if err != nil || lead == nil {
		return err
	}
	defer lead.Release() //nolint:contextcheck // it has to happen whatever became of the context
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go func() { // ends with this call
		select {
		case <-lead.Lost():
			stop(ErrLostLead)
		case <-ctx.Done():
		}
	}()
	if err := m.begin(ctx, lead); err != nil {
		return err
	}
	for {
		c, err := m.journal.take(ctx, true)
		if err != nil || c == nil {
			return err
		}
		if err := m.carryOut(ctx, c); err != nil {
			return err
		}
	}
}

// carryOut executes a command and records what came of it.
func (m *Migrator) carryOut(ctx context.Context, c *command) error {
	m.log.InfoContext(ctx, "command", "name", string(c.name), "force", c.force)
	message, err := m.execute(ctx, c)
	if err == nil && (c.name == CommandComplete || c.name == CommandAbort) {
		return ErrNoMigration // the journal is gone, and the command with it
	}
	switch refused := new(RefusedError); {
	case errors.As(err, &refused):
		m.log.InfoContext(ctx, "command refused", "name", string(c.name), "reasons", refused.Reasons)
	case err != nil:
		m.log.ErrorContext(ctx, "command failed", "name", string(c.name), "error", err)
	}
	told := message
	if err != nil {
		told = err.Error()
	}
	m.publish(Event{Kind: EventCommand, Message: string(c.name) + ": " + told})
	return m.journal.finish(context.WithoutCancel(ctx), c, message, err)
}
