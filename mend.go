package migrator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// How a table that was set aside on the way to the target joins again. See ARCHITECTURE.md, Tables set aside.

// mender tries tables that are set aside again while others go on.
type mender struct {
	*Migrator

	phase Phase
	now   bool // does not wait for anybody's turn
}

// run looks after the tables that are set aside, until one can join the rounds. It returns false when none is set
// aside.
func (m *mender) run(ctx context.Context) (joins bool, err error) {
	for {
		left, joins, err := m.pass(ctx)
		if err != nil || joins || left == 0 {
			return joins, err
		}
		if err := sleep(ctx, time.Second); err != nil {
			return false, err
		}
	}
}

// pass tries each table once whose turn it is.
func (m *mender) pass(ctx context.Context) (left int, joins bool, err error) {
	list, err := m.journal.asides(ctx)
	if err != nil {
		return 0, false, err
	}
	for _, a := range list {
		if a.Direction != directionForward {
			continue
		}
		left++
		if a.state == TableSetAside && !m.now && a.waited < a.mendPause() && a.looked > 0 {
			continue
		}
		ready, err := m.table(ctx, a)
		if e := new(ApplyError); errors.As(err, &e) && !Retryable(err) && !schemaIsOther(err) {
			if err := m.setAside(ctx, &State{Phase: m.phase}, err); err != nil {
				return left, joins, err
			}
			continue
		}
		if err != nil {
			return left, joins, err
		}
		joins = joins || ready
	}
	return left, joins, nil
}

// table finds out whether the reason is gone, and if so, has the table go on where it stopped. It tells whether the
// table is ready for the next round.
func (m *mender) table(ctx context.Context, a *aside) (ready bool, err error) {
	src, dst := m.cfg.Source, m.cfg.Target
	if a.state != TableSetAside { // an attempt that was interrupted
		return m.copyAgain(ctx, a)
	}
	fails, err := m.fails(ctx, a)
	if err != nil || fails {
		return false, err
	}
	again := a.was
	if a.attempts > 0 && a.was != TableCopying && a.was != TablePending {
		// The row is not to blame any more, but something in the log is: a key that cannot be sent, of a row that is
		// gone.
		again = TablePending
	}
	if again == TablePending && a.was != TablePending {
		if err := src.ClearLog(ctx, a.table); err != nil {
			return false, err
		}
		if err := dst.Empty(ctx, a.table); err != nil {
			return false, err
		}
	}
	if err := m.journal.tryAgain(ctx, a, again); err != nil {
		return false, err
	}
	return m.copyAgain(ctx, a)
}

// copyAgain copies what is left of the table, if the copy of the others is over, and builds its indexes.
func (m *mender) copyAgain(ctx context.Context, a *aside) (ready bool, err error) {
	if m.phase != PhaseReplicating {
		return false, nil // those who copy take it up
	}
	if a.state == TableIndexed {
		return true, nil
	}
	if a.state == TablePending || a.state == TableCopying {
		if err := Copy(ctx, m.cfg.Source, m.cfg.Target, m.cfg.Copy); err != nil {
			return false, err
		}
	}
	copied := make(chan struct{})
	close(copied)
	err = BuildIndexesMeanwhile(ctx, m.cfg.Target, copied, m.indexConfig())
	if errors.As(err, new(*ObjectError)) { // which is in the journal, and tried again later
		err = nil
	}
	return err == nil, err
}

// fails tells whether the reason is still there. The first time, the row is looked for.
func (m *mender) fails(ctx context.Context, a *aside) (fails bool, err error) {
	src, dst := m.cfg.Source, m.cfg.Target
	first := !a.found
	switch {
	case a.SQLState == "23505" || a.SQLState == "23P01":
		fails, err = a.constraintStands(ctx, dst)
	case !a.found:
		fails, err = a.find(ctx, src, dst)
	case a.Row != "":
		fails, err = a.stillFails(ctx, src, dst)
	}
	if err != nil && !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
		return true, errors.Join(err, ctx.Err())
	}
	if err == nil && first {
		r, err := a.remedy(ctx, src, dst)
		if err != nil {
			return true, err
		}
		a.Remedy, a.RemedySQL, a.RemedyOn = r.String(), r.sql, r.on
		a.found = a.found || fails
	}
	if err := m.journal.noteAside(ctx, a); err != nil {
		return true, err
	}
	if first && fails {
		told := *a
		told.Value = ""
		return true, m.tellAside(ctx, m.phase, told.String())
	}
	return fails, nil
}

// constraintStands tells whether the constraint that was violated, which compares rows with each other, is still
// there. From time to time, it says no all the same: rows may have changed.
func (a *aside) constraintStands(ctx context.Context, to any) (stands bool, err error) {
	const now = 5 * time.Minute
	side, ok := to.(rowSide)
	if !ok || a.waited >= now {
		return false, nil
	}
	var drop string
	err = side.rowSessions().QueryRow(ctx, constraintSQL, a.table.Ident(), a.Constraint).Scan(&drop)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// tryAgain has a table go on from a state.
func (j *Journal) tryAgain(ctx context.Context, a *aside, again TableState) error {
	err := j.tx(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			UPDATE heroku_migrator.aside SET attempts = attempts + 1, tried_at = clock_timestamp() WHERE table_id =
				$1`, int64(a.table.ID))
		if err != nil {
			return err
		}
		if again == TableLive {
			again = TableIndexed // from the position at which it was set aside
		}
		_, err = tx.Exec(ctx, `UPDATE heroku_migrator.tables SET state = $2 WHERE id = $1 AND state = 'set_aside'`,
			int64(a.table.ID), string(again))
		return err
	})
	if err != nil {
		return fmt.Errorf("journal: try %s again: %w", a.table, err)
	}
	a.state = again
	return nil
}

// Empty implements [Target]. Whoever copies a chunk of the table ends before.
func (p *PlanetScale) Empty(ctx context.Context, t *Table) error {
	err := p.journal.tx(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT 1 FROM heroku_migrator.chunks WHERE table_id = $1 FOR UPDATE`,
			int64(t.ID)); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM heroku_migrator.chunks WHERE table_id = $1`, int64(t.ID)); err != nil {
			return err
		}
		if _, err := p.silence(ctx, tx); err != nil {
			return err
		}
		all := RoundChange{Change: Change{Table: t, Truncated: []Relation{t.Relation}}}
		if err := truncateAll(ctx, tx, Round{Changes: []RoundChange{all}}); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `UPDATE heroku_migrator.tables SET plan = 0, copied_at = '' WHERE id = $1`, int64(t.ID))
		return err
	})
	if err != nil {
		return fmt.Errorf("empty %s: %w", t, err)
	}
	return nil
}

// clearLog forgets what a table's log holds, so that the table can be copied again: what commits after this is in the
// log again, and what came before, the copy sees.
func clearLog(ctx context.Context, change beginner, t *Table) error {
	err := change(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			WITH keys AS (DELETE FROM `+logName(t.ID)+`)
			DELETE FROM heroku_migrator.truncated WHERE relid IN (SELECT to_regclass(n)::oid FROM unnest($1::text[])
				AS n)`, t.relationNames())
		if err == nil {
			_, err = tx.Exec(ctx, `UPDATE heroku_migrator.captured SET trimmed = false, trimmed_to = NULL WHERE relid
				= $1`, t.ID)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("clear the log of %s: %w", t, err)
	}
	return nil
}

// replicate does rounds, and looks after tables that are set aside meanwhile. It returns nil when one of them is
// ready to join.
func (m *Migrator) replicate(ctx context.Context) error {
	if err := m.finishJoining(ctx); err != nil {
		return err
	}
	list, err := m.journal.asides(ctx)
	if err != nil {
		return err
	}
	again := &rebuilder{m}
	waiting, err := again.waiting(ctx)
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return Replicate(gctx, m.cfg.Source, m.cfg.Target, m.cfg.Replicate) })
	if len(waiting) > 0 {
		g.Go(func() error { return again.run(gctx) })
	}
	g.Go(func() error {
		if len(list) == 0 {
			return nil
		}
		joins, err := (&mender{Migrator: m, phase: PhaseReplicating}).run(gctx)
		if err == nil && joins {
			err = errJoins
		}
		return err
	})
	if err := g.Wait(); !errors.Is(err, errJoins) {
		return err
	}
	return ctx.Err()
}

// errJoins ends rounds that go on with one table more.
var errJoins = errors.New("a table joins again")

// finishJoining brings tables that are ready to one snapshot with all others, and makes what had to wait for them:
// foreign keys.
func (m *Migrator) finishJoining(ctx context.Context) error {
	list, err := m.journal.asides(ctx)
	if err != nil {
		return err
	}
	var ready []*aside
	for _, a := range list {
		if a.Direction == directionForward && a.state == TableIndexed {
			ready = append(ready, a)
		}
	}
	if len(ready) == 0 {
		return nil
	}
	if err := BuildIndexes(ctx, m.cfg.Source, m.cfg.Target, m.indexConfig()); err != nil && !errors.As(err,
		new(*ObjectError)) {
		return err
	}
	if _, err := (&rebuilder{m}).pass(ctx); err != nil && !errors.Is(err, errJoins) {
		return err
	}
	for _, a := range ready {
		message := fmt.Sprintf("%s has joined again", a.table)
		m.log.InfoContext(ctx, message)
		m.publish(Event{Kind: EventTable, Phase: PhaseReplicating, Table: a.table, Message: message})
		if err := m.journal.Record(ctx, Event{Kind: EventTable, Message: message}); err != nil {
			return err
		}
	}
	return m.journal.exec(ctx, "note which tables have joined again", `
		DELETE FROM heroku_migrator.aside a USING heroku_migrator.tables t
		WHERE t.id = a.table_id AND t.state = 'live' AND a.direction = 'forward'`)
}

// untilInSync catches up once. Tables that are set aside are tried now.
func (m *Migrator) untilInSync(ctx context.Context) error {
	const enough = 3
	for range enough {
		if err := m.finishJoining(ctx); err != nil {
			return err
		}
		r, err := newReplicator(ctx, m.cfg.Source, m.cfg.Target, m.cfg.Replicate)
		if err != nil {
			return err
		}
		if err := r.catchUp(ctx, time.Second); err != nil {
			return err
		}
		if _, err := (&rebuilder{m}).pass(ctx); err != nil && !errors.Is(err, errJoins) {
			return err
		}
		left, joins, err := (&mender{Migrator: m, phase: PhaseReplicating, now: true}).pass(ctx)
		switch {
		case err != nil:
			return err
		case left == 0:
			return errInSync
		case !joins:
			tables, err := m.AsideTables(ctx, false)
			if err != nil {
				return err
			}
			return &AsideError{Tables: tables}
		}
	}
	return nil
}
