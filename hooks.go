package migrator

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// HookPoint is a moment of a switch or a revert at which the caller has its part.
type HookPoint string

// The points. An error at one of the first two ends the switch before it has happened, and everything is undone. After the other
// two there is no way to undo: an error is told, and what the hook was for is left to a person.
const (
	HookBeforeFence  HookPoint = "before_fence"  // the application still writes to the source
	HookBeforeSwitch HookPoint = "before_switch" // behind the fence: nobody can write; the target has every row
	HookAfterSwitch  HookPoint = "after_switch"  // the target takes writes: point the application to it
	HookAfterRevert  HookPoint = "after_revert"  // the source takes writes again: point the application back
)

// HookCall is what a hook is told.
type HookCall struct {
	Point     HookPoint
	Migration string // its ID
	Number    int64  // which attempt, or which switch, this is about
	Report    *SwitchReport
}

// Hook is the caller's part in a switch and a revert. For each switch or revert it is called at most once at each point, across crashes and
// restarts: that it begins is committed to the journal before. If the process dies meanwhile, its outcome is unknown; that is told, and it
// is not called again. It has to return when its context is done, which is so after [CutoverConfig].HookTimeout.
type Hook func(ctx context.Context, call HookCall) error

// HookStatus is what became of a call.
type HookStatus struct {
	Point  HookPoint `json:"point"`
	Number int64     `json:"number"`
	State  string    `json:"state"` // started, done, failed, unknown
	Error  string    `json:"error,omitempty"`
	At     time.Time `json:"at"`
}

// errHookUnknown says that a process died while a hook was called.
var errHookUnknown = errors.New("the process that called the hook died meanwhile, so what it did is unknown; it is not called again: look at what it was to do, and do the rest by hand")

// callHook calls the hook, unless it was called before.
func callHook(ctx context.Context, j *Journal, cfg CutoverConfig, call HookCall) error {
	if cfg.Hook == nil {
		return nil
	}
	cfg = cfg.withDefaults()
	state, err := j.beginHook(ctx, call)
	switch {
	case err != nil:
		return err
	case state != "": // by this process or one before it: it is not called again, whatever became of it
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, cfg.HookTimeout)
	defer cancel()
	cfg.Logger.InfoContext(ctx, "hook", "point", string(call.Point))
	err = cfg.Hook(limited, call)
	became, text := "done", ""
	if err != nil {
		became, text = "failed", err.Error()
		err = fmt.Errorf("hook %s: %s", call.Point, text)
	}
	finish, stop := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer stop()
	return errors.Join(err, j.endHook(finish, call, became, text))
}

// beginHook notes that a call begins. It returns the state of one that was noted before.
func (j *Journal) beginHook(ctx context.Context, call HookCall) (state string, err error) {
	err = j.tx(ctx, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `INSERT INTO heroku_migrator.hooks (number, point, state) VALUES ($1, $2, 'started') ON CONFLICT DO NOTHING`, call.Number, string(call.Point))
		if err != nil || tag.RowsAffected() == 1 {
			return err
		}
		return tx.QueryRow(ctx, `SELECT state FROM heroku_migrator.hooks WHERE number = $1 AND point = $2`, call.Number, string(call.Point)).Scan(&state)
	})
	if err != nil {
		err = fmt.Errorf("journal: note that hook %s is called: %w", call.Point, err)
	}
	return state, err
}

func (j *Journal) endHook(ctx context.Context, call HookCall, state, message string) error {
	return j.exec(ctx, "note what became of a hook", `UPDATE heroku_migrator.hooks SET state = $3, error = $4, at = clock_timestamp() WHERE number = $1 AND point = $2`,
		call.Number, string(call.Point), state, message)
}

// abandonHooks notes of calls that were begun by a process which is gone that their outcome is unknown, and returns them.
func (j *Journal) abandonHooks(ctx context.Context) (list []HookStatus, err error) {
	err = j.tx(ctx, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `UPDATE heroku_migrator.hooks SET state = 'unknown', error = $1 WHERE state = 'started' RETURNING point, number, state, error, at`, errHookUnknown.Error())
		if err != nil {
			return err
		}
		list, err = pgx.CollectRows(rows, scanHook)
		return err
	})
	if err != nil {
		err = fmt.Errorf("journal: look for hooks that were interrupted: %w", err)
	}
	return list, err
}

func scanHook(row pgx.CollectableRow) (h HookStatus, err error) {
	err = row.Scan(&h.Point, &h.Number, &h.State, &h.Error, &h.At)
	return h, err
}

// Hooks lists the calls of hooks, the latest last.
func (j *Journal) Hooks(ctx context.Context) ([]HookStatus, error) {
	rows, err := j.pool.Query(ctx, `SELECT point, number, state, error, at FROM heroku_migrator.hooks ORDER BY at`)
	if err != nil {
		return nil, fmt.Errorf("journal: read hooks: %w", err)
	}
	return pgx.CollectRows(rows, scanHook)
}

// tellAbandonedHooks tells of calls whose outcome nobody knows. The process has just taken the lead.
func (m *Migrator) tellAbandonedHooks(ctx context.Context) error {
	list, err := m.journal.abandonHooks(ctx)
	if err != nil {
		return err
	}
	for _, h := range list {
		message := fmt.Sprintf("hook %s (number %d): %s", h.Point, h.Number, h.Error)
		m.log.ErrorContext(ctx, "a hook was interrupted", "error", message)
		m.publish(Event{Kind: EventFailure, Message: message})
		if err := m.journal.Record(ctx, Event{Kind: EventFailure, Message: message}); err != nil {
			return err
		}
	}
	return nil
}

// callLateHook calls the hook that follows the last switch or revert, if no process has. Its failure does not change where the migration
// stands: it is told.
func (m *Migrator) callLateHook(ctx context.Context, s *State) error {
	call := HookCall{Point: HookAfterSwitch, Migration: s.ID, Number: s.Switches, Report: s.Report}
	if s.Phase == PhaseReplicating {
		call.Point, call.Report = HookAfterRevert, s.RevertReport
	}
	if s.Switches == 0 || m.cfg.Cutover.Hook == nil {
		return nil
	}
	err := callHook(ctx, m.journal, m.cfg.Cutover, call)
	if err != nil && !errors.Is(err, ErrLostLead) && ctx.Err() == nil {
		m.log.ErrorContext(ctx, "a hook failed", "error", err)
		m.publish(Event{Kind: EventFailure, Phase: s.Phase, Message: err.Error()})
		return m.journal.Record(ctx, Event{Kind: EventFailure, Message: err.Error()})
	}
	return err
}

// passwords are those in URLs. What a program prints gets into the journal and the log.
var passwords = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://[^\s:/@]*:)\S+@`)

// CommandHook returns a hook that runs a program, without a shell. It learns the point, the migration's ID and the number from the environment:
// MIGRATOR_HOOK, MIGRATOR_ID, MIGRATOR_NUMBER, and after a switch or revert MIGRATOR_MS_WITHOUT_WRITES. What it prints is part of the
// error when it fails. It is killed when the context is done.
func CommandHook(name string, args ...string) Hook {
	return func(ctx context.Context, call HookCall) error {
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Env = append(os.Environ(), "MIGRATOR_HOOK="+string(call.Point), "MIGRATOR_ID="+call.Migration, "MIGRATOR_NUMBER="+strconv.FormatInt(call.Number, 10))
		if call.Report != nil {
			cmd.Env = append(cmd.Env, fmt.Sprintf("MIGRATOR_MS_WITHOUT_WRITES=%d", call.Report.WithoutWrites.Milliseconds()))
		}
		cmd.WaitDelay = 2 * time.Second
		out, err := cmd.CombinedOutput()
		if err != nil {
			const most = 2000
			text := passwords.ReplaceAllString(strings.TrimSpace(string(out)), "${1}***@")
			return fmt.Errorf("%s: %w: %s", name, err, text[max(0, len(text)-most):])
		}
		return nil
	}
}
