package migrator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// How a table is set aside on the way back to the source, and joins again. See ARCHITECTURE.md, Tables set aside.

// The states of a table that is set aside on the way back.
const (
	reverseWaits  TableState = "waits"
	reverseResync TableState = "resync" // its log does not say all any more: it has to be sent whole
)

// reverseAside are the tables that do not take part in the rounds of the way back.
type reverseAside struct {
	list   []*aside
	looked time.Time
	joined bool // one has lately: others may have waited for it
}

// readAside reads which tables wait. It is called before anything is trimmed.
func (w *wayBack) readAside(ctx context.Context) error {
	list, err := w.dst.Journal().asides(ctx)
	if err != nil {
		return err
	}
	w.aside.list = slices.DeleteFunc(list, func(a *aside) bool { return a.Direction != directionReverse })
	return nil
}

// active are the tables that take part in rounds.
func (w *wayBack) active() []*Table {
	if len(w.aside.list) == 0 {
		return w.tables
	}
	return slices.DeleteFunc(slices.Clone(w.tables), func(t *Table) bool {
		return slices.ContainsFunc(w.aside.list, func(a *aside) bool { return a.table.ID == t.ID })
	})
}

// setAside takes the table out that a round failed at: the source has it as it is at the position, and its log stays.
func (w *wayBack) setAside(ctx context.Context, e *ApplyError) error {
	a := newAside(e, directionReverse)
	a.position, a.was = w.position, reverseWaits
	// It was about to join.
	if i := slices.IndexFunc(w.aside.list, func(o *aside) bool { return o.table.ID == a.table.ID }); i >= 0 {
		a.position, a.was = w.aside.list[i].position, w.aside.list[i].was
	}
	if err := w.dst.Journal().setAsideReverse(ctx, a); err != nil {
		return err
	}
	a.Value = ""
	w.warn(ctx, a.String()+". All other tables go on")
	return w.readAside(ctx)
}

// joining looks whether the reasons are gone, from time to time, and returns the tables that join with this round.
func (w *wayBack) joining(ctx context.Context, now bool) ([]*aside, error) {
	if len(w.aside.list) == 0 || (!now && !w.aside.joined && time.Since(w.aside.looked) < time.Second) {
		return nil, nil
	}
	if err := w.readAside(ctx); err != nil {
		return nil, err
	}
	w.aside.looked = time.Now()
	var ready []*aside
	for _, a := range w.aside.list {
		if !now && !w.aside.joined && a.looked > 0 && a.waited < a.mendPause() {
			continue
		}
		fails, err := w.fails(ctx, a)
		if err != nil {
			return nil, err
		}
		if fails {
			continue
		}
		// The row is not to blame any more. If it failed all the same, something in the log is: a key that cannot be
		// sent, of a row that is gone. Images of a table without a key may not be applied twice.
		if a.was != reverseResync && (a.table.Keyless() || (a.attempts > 0 && a.SQLState != "23503")) {
			if err := w.resync(ctx, a); err != nil {
				return nil, err
			}
		}
		if err := w.dst.Journal().noteAttempt(ctx, a); err != nil {
			return nil, err
		}
		ready = append(ready, a)
	}
	w.aside.joined = false
	return ready, nil
}

// fails tells whether the reason is still there. The first time, the row is looked for.
func (w *wayBack) fails(ctx context.Context, a *aside) (fails bool, err error) {
	first := !a.found
	switch {
	case a.SQLState == "23503": // it may wait for another table that is set aside
	case a.SQLState == "23505" || a.SQLState == "23P01":
		fails, err = a.constraintStands(ctx, w.src)
	case !a.found:
		fails, err = a.find(ctx, w.dst, w.src)
	case a.Row != "":
		fails, err = a.stillFails(ctx, w.dst, w.src)
	}
	if err != nil && !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
		return true, errors.Join(err, ctx.Err())
	}
	if first && err == nil {
		r, err := a.remedy(ctx, w.dst, w.src)
		if err != nil {
			return true, err
		}
		a.Remedy, a.RemedySQL, a.RemedyOn = r.String(), r.sql, r.on
		a.found = true
	}
	if err := w.dst.Journal().noteAside(ctx, a); err != nil {
		return true, err
	}
	if first && fails {
		told := *a
		told.Value = ""
		w.warn(ctx, told.String())
	}
	return fails, nil
}

// resync has the table sent whole when it joins.
func (w *wayBack) resync(ctx context.Context, a *aside) error {
	if err := w.dst.Resync(ctx, a.table); err != nil {
		return err
	}
	a.was, a.position = reverseResync, Position{}
	return nil
}

// Resync implements [Target]. What the log held is forgotten in the transaction that enters every key, and the journal
// knows with it that the table's position counts no more: interrupted at any point, nothing is missing.
func (p *PlanetScale) Resync(ctx context.Context, t *Table) error {
	names := make([]string, 0, len(t.Leaves)+1)
	for _, name := range t.relationNames() {
		names = append(names, quoteLiteral(name))
	}
	err := touch(ctx, p.journal.tx, t, strings.NewReader(""), true, fmt.Sprintf(`
		WITH keys AS (DELETE FROM %s),
		notes AS (DELETE FROM heroku_migrator.truncated WHERE relid IN (
			SELECT to_regclass(n)::oid FROM unnest(ARRAY[%s]) AS n)),
		waiting AS (UPDATE heroku_migrator.aside SET was = '%s', position = '' WHERE table_id = $1::oid::int8)
		UPDATE heroku_migrator.captured SET trimmed = false, trimmed_to = NULL WHERE relid = $1::oid`,
		logName(t.ID), strings.Join(names, ", "), reverseResync))
	if err != nil {
		return fmt.Errorf("send %s whole: %w", t, err)
	}
	return nil
}

// changesOf reads what has changed in the tables that join, each since its own position.
func (w *wayBack) changesOf(ctx context.Context, snap Snapshot, ready []*aside, round *Round) error {
	for _, a := range ready {
		since := a.position
		if !since.SameServer(snap.Position()) {
			since = Position{}
		}
		changes, err := snap.Changes(ctx, []*Table{a.table}, since)
		if err != nil {
			return err
		}
		for _, c := range changes {
			round.Changes = append(round.Changes, RoundChange{Change: c, Since: since})
		}
	}
	return nil
}

// joinedNow notes that a round has brought these tables to its position.
func (w *wayBack) joinedNow(ctx context.Context, ready []*aside) error {
	for _, a := range ready {
		if err := w.dst.Journal().joinReverse(ctx, a); err != nil {
			return err
		}
		message := fmt.Sprintf("%s has joined the way back again", a.table)
		w.cfg.Logger.InfoContext(ctx, message)
		notify(w.cfg.OnEvent, Event{Kind: EventTable, Phase: PhaseSwitched, Table: a.table, Message: message})
		w.aside.joined = true
	}
	if len(ready) == 0 {
		return nil
	}
	return w.readAside(ctx)
}

// asideRefusal is why a revert is refused while tables are set aside; nil, if none is.
func (w *wayBack) asideRefusal() error {
	if len(w.aside.list) == 0 {
		return nil
	}
	e := &RefusedError{Action: "revert", CanForce: true}
	for _, a := range w.aside.list {
		told := a.AsideTable
		told.Value = ""
		e.Reasons = append(e.Reasons, fmt.Sprintf("What was written to table %s. Force the revert to go back "+
			"without that.", told))
	}
	return e
}

// setAsideReverse records that a table waits on the way back.
func (j *Journal) setAsideReverse(ctx context.Context, a *aside) error {
	reason, err := jsonText(asideReason{AsideTable: a.AsideTable})
	if err != nil {
		return err
	}
	return j.exec(ctx, "set a table aside", `
		INSERT INTO heroku_migrator.aside AS a (table_id, direction, was, position, reason) VALUES ($1, 'reverse', $2,
			$3, $4)
		ON CONFLICT (table_id) DO UPDATE SET direction = 'reverse', was = $2, position = $3, reason = $4, found = false,
			looked = 0, tried_at = clock_timestamp()`, int64(a.table.ID), string(a.was), a.position.String(), reason)
}

func (j *Journal) noteAttempt(ctx context.Context, a *aside) error {
	return j.exec(ctx, "try a table again", `
		UPDATE heroku_migrator.aside SET attempts = attempts + 1, tried_at = clock_timestamp() WHERE table_id = $1`,
		int64(a.table.ID))
}

func (j *Journal) joinReverse(ctx context.Context, a *aside) error {
	return j.exec(ctx, "note that a table has joined again", `
		DELETE FROM heroku_migrator.aside WHERE table_id = $1 AND direction = 'reverse'`, int64(a.table.ID))
}

// forgetReverse forgets what was set aside on the way back, which has ended.
func (j *Journal) forgetReverse(ctx context.Context) error {
	return j.exec(ctx, "forget the tables that were set aside", `DELETE FROM heroku_migrator.aside WHERE direction =
		'reverse'`)
}

// blamed finds the table of a round that an error is about which came with the commit: checks of foreign keys that
// were put off.
func blamed(ctx context.Context, q querier, round Round, err error) error {
	pg := new(pgconn.PgError)
	if !errors.As(err, &pg) || !isAboutRows(pg.Code) || pg.TableName == "" || errors.As(err, new(*ApplyError)) {
		return err
	}
	find := func(schema, name string) *Table {
		for _, c := range round.Changes {
			if slices.ContainsFunc(c.Table.relations(), func(r Relation) bool {
				return r.Schema == schema &&
					r.Name == name
			}) {
				return c.Table
			}
		}
		return nil
	}
	t := find(pg.SchemaName, pg.TableName)
	if t == nil && pg.Code == "23503" { // rows of a table that waits itself refer to one that is gone
		var schema, name string
		lookErr := q.QueryRow(ctx, `
			SELECT n.nspname, c.relname FROM pg_constraint k JOIN pg_class c ON c.oid = k.confrelid JOIN pg_namespace
				n ON n.oid = c.relnamespace
			WHERE k.conname = $1 AND k.conrelid = to_regclass($2)`, pg.ConstraintName, pgx.Identifier{pg.SchemaName,
			pg.TableName}.Sanitize()).
			Scan(&schema, &name)
		if lookErr == nil {
			t = find(schema, name)
		}
	}
	return refusedRows(t, nil, err)
}
