package migrator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/heroku-migrator/migrator/internal/rehearse"
)

// The rehearsal: before a row is copied, everything that will be created on the target later is created there and
// rolled back, and every read of the source is planned. So a database that cannot be moved is found out while nothing
// depends on it.

// Rehearsal is what a rehearsal found.
type Rehearsal struct {
	Failures []RehearsalFailure `json:"failures,omitempty"`
	// Left is how many objects were not rehearsed, since the target's lock table has no room for them.
	Left int `json:"left,omitempty"`
}

// RehearsalFailure is an object that could not be created, or a table that could not be read.
type RehearsalFailure struct {
	Object SchemaObject `json:"-"`
	// Name is the object's, as [Config].LeaveOut takes it; for a table that cannot be read, "reading …".
	Name    string `json:"name"`
	Code    string `json:"code"` // the SQLSTATE
	Message string `json:"message"`
	// Follows names the object that is not there either and that this one needs; empty: the failure is its own.
	Follows string `json:"follows,omitempty"`
	Remedy  string `json:"remedy,omitempty"`

	byChoice bool     // what it follows is left out by name
	roles    []string // that it needs and the target does not have
}

func (f RehearsalFailure) String() string {
	if f.Follows != "" {
		return fmt.Sprintf("%s follows from %s (SQLSTATE %s: %s).", f.Name, f.Follows, f.Code,
			strings.TrimSuffix(f.Message, "."))
	}
	return fmt.Sprintf("%s: %s (SQLSTATE %s). %s", f.Name, strings.TrimSuffix(f.Message, "."), f.Code, f.Remedy)
}

// rehearsed are the objects in the order in which they are created, as the rehearsal takes them.
func rehearsed(objects []SchemaObject) (list, absent []rehearse.Object) {
	order := []Stage{StageTables, StageIndexes, StageForeign, StageFinish, StageSwitch}
	sorted := slices.Clone(objects)
	slices.SortStableFunc(sorted, func(a, b SchemaObject) int {
		return cmp.Or(cmp.Compare(slices.Index(order, a.Stage), slices.Index(order, b.Stage)), cmp.Compare(a.ID, b.ID))
	})
	for _, o := range sorted {
		if o.Stage == StageValidate { // it is about rows
			continue
		}
		r := o.asRehearsed()
		switch o.State {
		case ObjectLeftOut, ObjectSkipped:
			absent = append(absent, r)
		case ObjectPending, ObjectFailed:
			if o.Type != typeValidation { // of no rows
				list = append(list, r)
			}
		case ObjectDone:
		}
	}
	return list, absent
}

func (o SchemaObject) asRehearsed() rehearse.Object {
	r := rehearse.Object{ID: o.ID, Type: o.Type, Schema: o.Schema, Name: o.Name, SQL: o.SQL,
		Probe: o.Type == typeViewData}
	if len(o.Functions) > 0 || o.Type == "FK CONSTRAINT" {
		r.Script = o.underPath(o.SQL)
	}
	return r
}

// Rehearse implements [Target].
func (p *PlanetScale) Rehearse(ctx context.Context, objects []SchemaObject) (*Rehearsal, error) {
	found := &Rehearsal{}
	err := p.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		var room int
		if err := conn.QueryRow(ctx, lockRoomSQL).Scan(&room); err != nil {
			return err
		}
		list, absent := rehearsed(objects)
		portions, left := rehearse.Plan(list, room)
		found.Left = left
		byID := map[int]SchemaObject{}
		for _, o := range objects {
			byID[o.ID] = o
		}
		setup, err := rehearsalSetup(ctx, conn.Conn(), objects)
		if err != nil {
			return err
		}
		seen := map[int]bool{}
		for _, portion := range portions {
			failures, err := rehearse.Run(ctx, conn.Conn(), setup, portion, absent)
			if errors.Is(err, rehearse.ErrRoom) { // others have taken it
				found.Left += len(portion)
				continue
			}
			if err != nil {
				return err
			}
			for _, f := range failures {
				if seen[f.ID] {
					continue
				}
				seen[f.ID] = true
				failure := rehearsalFailure(byID, f)
				for _, cause := range found.Failures { // which is left out itself
					if cause.Object.ID == f.Cause && cause.byChoice && cause.Object.dispensable() {
						failure.byChoice = true
						failure.Follows += ", which is left out"
					}
				}
				found.Failures = append(found.Failures, failure)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("rehearse the schema: %w", err)
	}
	return found, nil
}

// rehearsalSetup is what [create] sets. A lock that another session holds is waited for shortly. Before there is a
// journal, the application's path comes with the objects.
func rehearsalSetup(ctx context.Context, conn *pgx.Conn, objects []SchemaObject) (string, error) {
	path := ""
	if len(objects) > 0 {
		path = objects[0].path
	}
	if path == "" {
		var recorded bool
		err := conn.QueryRow(ctx, `SELECT to_regclass('heroku_migrator.migration') IS NOT NULL`).Scan(&recorded)
		if err == nil && recorded {
			err = conn.QueryRow(ctx, `SELECT search_path FROM heroku_migrator.migration`).Scan(&path)
		}
		if err != nil {
			return "", fmt.Errorf("search path: %w", err)
		}
	}
	return `SELECT set_config('search_path', '', true), set_config('lock_timeout', '5s', true),
		set_config('heroku_migrator.search_path', ` + quoteLiteral(path) + `, true)`, nil
}

// lockRoomSQL is half of what is free in the server's lock table.
const lockRoomSQL = `
	SELECT greatest(0, (current_setting('max_locks_per_transaction')::int
		* (current_setting('max_connections')::int + current_setting('max_prepared_transactions')::int) - (SELECT
			count(*) FROM pg_locks)) / 2)::int`

func rehearsalFailure(byID map[int]SchemaObject, f rehearse.Failure) RehearsalFailure {
	o := byID[f.ID]
	failure := RehearsalFailure{Object: o, Name: o.String(), Code: f.Err.Code, Message: f.Err.Message}
	if f.Err.Detail != "" {
		failure.Message += ": " + f.Err.Detail
	}
	if cause, ok := byID[f.Cause]; ok {
		failure.Follows, failure.byChoice = cause.String(), cause.State == ObjectLeftOut
		if failure.byChoice {
			failure.Follows += ", which is left out"
		}
	}
	failure.Remedy, failure.roles = remedy(o, f.Err, f.Roles), f.Roles
	return failure
}

// RehearseConfig configures [Rehearse]. The zero value is good.
type RehearseConfig struct {
	Logger *slog.Logger
}

// Rehearse creates on the target everything that is still to be created, rolls it back, and has the source plan every
// read. It comes after
// [CloneSchema] and before [Copy]. What it returns keeps the migration from succeeding: mend it on the source, mend it
// on the target, or leave it out by name. What needs an object that is left out already is left out, too, and recorded.
// The error is not nil if the rehearsal could not be held, or the context is done.
func Rehearse(ctx context.Context, src Source, dst Target, cfg RehearseConfig) ([]RehearsalFailure, error) {
	log := logger(cfg.Logger)
	objects, err := dst.Journal().Objects(ctx)
	if err != nil {
		return nil, err
	}
	found, err := dst.Rehearse(ctx, objects)
	if err != nil {
		return nil, err
	}
	if found.Left > 0 {
		log.WarnContext(ctx, "objects could not be rehearsed: the target's lock table (max_locks_per_transaction) "+
			"has no room for them", "objects", found.Left)
	}
	tables, err := dst.Journal().Tables(ctx)
	if err != nil {
		return nil, err
	}
	known := make([]*Table, len(tables))
	for i, t := range tables {
		known[i] = t.Table
	}
	reads, err := src.PlanReads(ctx, known)
	if err != nil {
		return nil, err
	}
	var failures []RehearsalFailure
	for _, f := range found.Failures {
		switch {
		case f.Object.optional() && (f.Object.Type != typeViewData || f.Follows != ""):
		case f.byChoice && f.Object.dispensable():
			reason := "follows from " + f.Follows
			if err := dst.Journal().leaveOut(ctx, f.Object, reason); err != nil {
				return nil, err
			}
			log.WarnContext(ctx, "an object is left out, since it needs one that is", "object", f.Name, "follows",
				f.Follows)
		default:
			failures = append(failures, f)
		}
	}
	return append(failures, reads...), nil
}

// rehearse holds the rehearsal until nothing fails. What fails needs a person, who may mend it on either side, or run
// again and leave it out.
func (m *Migrator) rehearse(ctx context.Context, s *State) error {
	told := ""
	for attempt := 1; ; attempt++ {
		failures, err := Rehearse(ctx, m.cfg.Source, m.cfg.Target, RehearseConfig{Logger: m.log})
		if err != nil {
			return err
		}
		if len(failures) == 0 {
			if told == "" {
				return nil
			}
			m.log.InfoContext(ctx, "the rehearsal passes")
			return m.goesOn(ctx)
		}
		text := describeFailures(failures)
		if text != told {
			told, attempt = text, 1
			m.log.WarnContext(ctx, "the rehearsal failed; it is repeated until it passes", "failures", text)
			m.publish(Event{Kind: EventWaiting, Phase: s.Phase, Message: text})
			if err := m.journal.Record(ctx, Event{Kind: EventWarning, Message: text}); err != nil {
				return err
			}
		}
		m.waits(ctx, errors.New(text))
		if err := sleep(ctx, backoff(attempt, 2*time.Second, 30*time.Second)); err != nil {
			return err
		}
		if err := m.followAgain(ctx, s); err != nil {
			return err
		}
	}
}

// describeFailures says all of it at once: the causes first, then what follows from them.
func describeFailures(failures []RehearsalFailure) string {
	b := &strings.Builder{}
	fmt.Fprintf(b, "The rehearsal failed, before a row was copied. It is repeated until it passes: mend what follows "+
		"on the source or on the target, "+
		"or run again and leave it out by name.")
	for _, own := range []bool{true, false} {
		for _, f := range failures {
			if (f.Follows == "") == own {
				b.WriteString(" • " + f.String())
			}
		}
	}
	return b.String()
}

// followAgain takes over what was mended on the source, also where the schema's fingerprint does not tell (an operator,
// say).
func (m *Migrator) followAgain(ctx context.Context, s *State) error {
	if err := m.follow(ctx, s); !errors.Is(err, errSameSchema) {
		return err
	}
	plan, err := planAnySchema(ctx, m.cfg.Source, m.cfg.Target)
	if err != nil || len(plan.impossible) > 0 {
		return err
	}
	return plan.carry(ctx, m.cfg.Source, m.cfg.Target)
}
