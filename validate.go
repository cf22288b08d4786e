package migrator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Constraints that were added NOT VALID are validated while the application writes: on the target after the switch, on
// the source after a revert. Nobody waits for that: as soon as somebody does, the attempt ends, and is repeated later.

// ValidateConstraints has the rows of the target looked at for constraints that the switch added NOT VALID and that
// were validated on the source. It returns those that rows do not satisfy, with the reason; they stay NOT VALID. It
// fails with [ErrBusy] if others had to wait for one, having tried the rest; repeated, it does what is left.
func ValidateConstraints(ctx context.Context, dst Target) (left []string, err error) {
	objects, err := dst.Journal().Objects(ctx)
	if err != nil {
		return nil, err
	}
	var busy error
	absent := map[string]bool{} // left out by name
	for _, o := range objects {
		absent[o.owned()] = absent[o.owned()] || (o.Type == typeCheckConstraint && o.State != ObjectDone)
	}
	for _, o := range objects {
		if absent[o.owned()] || o.Stage != StageValidate || o.State == ObjectDone || o.State == ObjectSkipped {
			continue
		}
		err := dst.ValidateConstraint(ctx, o)
		switch {
		case err == nil:
		case errors.Is(err, ErrBusy):
			busy = err
		case ctx.Err() != nil || Retryable(err) || sqlState(err) == "":
			return left, err
		default:
			reason := fmt.Sprintf("constraint %s is NOT VALID on the target, though it was validated on the source: "+
				"%v", o.owned(), err)
			if err := dst.Journal().MarkObject(ctx, o.ID, ObjectSkipped, err.Error()); err != nil {
				return left, err
			}
			if err := dst.Journal().Record(ctx, Event{Kind: EventWarning, Message: reason}); err != nil {
				return left, err
			}
			left = append(left, reason)
		}
	}
	return left, busy
}

// owned is the name of a constraint with its table's, which stands first.
func (o SchemaObject) owned() string { return o.Schema + "." + o.Name }

// ValidateConstraint implements [Target].
func (p *PlanetScale) ValidateConstraint(ctx context.Context, o SchemaObject) error {
	err := validateGently(ctx, p.pool, p.journal.tx, o.SQL, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE heroku_migrator.objects SET state = 'done', error = '' WHERE id = $1`, o.ID)
		return err
	})
	if err != nil {
		return fmt.Errorf("validate %s: %w", o.owned(), err)
	}
	return nil
}

// validateGently runs a validation, and ends it with ErrBusy as soon as another session waits for it. The lock on a
// table keeps neither readers nor writers waiting, but an ALTER TABLE, and whoever comes after that; the one for a
// domain, writers too.
func validateGently(ctx context.Context, pool *pgxpool.Pool, change beginner, sql string, then func(context.Context,
	pgx.Tx) error) error {
	return change(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '1s'`); err != nil {
			return err
		}
		ended := make(chan struct{})
		watched := make(chan struct{})
		go func() {
			defer close(watched)
			yieldValidation(ctx, pool, tx.Conn().PgConn().PID(), ended)
		}()
		_, err := tx.Exec(ctx, inPath(sql)) // it runs the application's functions
		close(ended)
		<-watched
		if isBusy(ctx, err) {
			return fmt.Errorf("%w: another session has to come first", ErrBusy)
		}
		if err != nil {
			return err
		}
		if then == nil {
			return nil
		}
		return then(ctx, tx)
	})
}

// yieldValidation ends a validation when another session waits for it, or nobody waits for its end any more.
func yieldValidation(ctx context.Context, pool *pgxpool.Pool, pid uint32, ended <-chan struct{}) {
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for over := false; ; {
		select {
		case <-ctx.Done():
			over = true
		case <-ended:
			over = true
		case <-tick.C:
		}
		if over && ctx.Err() == nil {
			return
		}
		if over { // the server would go on with it
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			_, _ = pool.Exec(last, `SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND query LIKE
				'%VALIDATE CONSTRAINT%'`, int32(pid))
			cancel()
			return
		}
		_, _ = pool.Exec(ctx, `
			SELECT pg_cancel_backend(v.pid) FROM pg_stat_activity v WHERE v.pid = $1 AND v.query LIKE
				'%VALIDATE CONSTRAINT%' AND EXISTS (
				SELECT FROM pg_stat_activity a WHERE a.wait_event_type = 'Lock' AND a.pid <> v.pid AND v.pid = ANY
					(pg_blocking_pids(a.pid)))`, int32(pid))
	}
}

// validator is a side whose constraints are to be validated.
type validator func(context.Context) (left []string, err error)

// alongside runs main, and has constraints validated meanwhile.
func (m *Migrator) alongside(ctx context.Context, phase Phase, validate validator,
	main func(context.Context) error) error {
	inner, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.validateAll(inner, phase, validate)
	}()
	defer func() {
		stop()
		<-ended
	}()
	return main(ctx)
}

// validateAll tries until nothing is left to be tried.
func (m *Migrator) validateAll(ctx context.Context, phase Phase, validate validator) {
	for attempt := 1; ; attempt++ {
		left, err := validate(ctx)
		m.tellNotValid(ctx, phase, left)
		if err == nil || ctx.Err() != nil || errors.Is(err, ErrLostLead) {
			return
		}
		m.log.DebugContext(ctx, "constraints are still to be validated", "error", err)
		if sleep(ctx, backoff(attempt, time.Second, time.Minute)) != nil {
			return
		}
	}
}

func (m *Migrator) tellNotValid(ctx context.Context, phase Phase, left []string) {
	for _, reason := range left {
		m.log.WarnContext(ctx, reason)
		m.publish(Event{Kind: EventWarning, Phase: phase, Message: reason})
	}
}

// validateBeforeCleanup makes the last attempts, on both sides. What cannot be validated stays NOT VALID, and is told.
func validateBeforeCleanup(ctx context.Context, src Source, dst Target, cfg CleanupConfig) error {
	for _, validate := range []validator{src.ValidateConstraints, func(ctx context.Context) ([]string, error) {
		return ValidateConstraints(ctx, dst)
	}} {
		left, err := validateLast(ctx, validate)
		for _, reason := range left {
			logger(cfg.Logger).WarnContext(ctx, reason)
			notify(cfg.OnEvent, Event{Kind: EventWarning, Phase: PhaseCleaningUp, Message: reason})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// validateLast tries for some seconds.
func validateLast(ctx context.Context, validate validator) (left []string, err error) {
	const attempts = 8
	for attempt := 1; ; attempt++ {
		more, err := validate(ctx)
		left = append(left, more...)
		switch {
		case !errors.Is(err, ErrBusy):
			return left, err
		case attempt == attempts:
			return append(left, fmt.Sprintf("a constraint stays NOT VALID, as other sessions had to come first "+
				"again and again (%v): validate it at a quieter time", err)), nil
		}
		if err := sleep(ctx, backoff(attempt, 500*time.Millisecond, 5*time.Second)); err != nil {
			return left, err
		}
	}
}
