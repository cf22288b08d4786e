package migrator

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Indexes and constraints that the rows which are there do not satisfy: duplicates under a broken unique index of the
// source, or rows that refer to a table which is set aside. Rounds come first: they bring what is done about it on
// the source. Then they are tried again.

// waitsForRows tells whether an object may be created later, when rows have changed. A foreign key waits where a
// table that it concerns may.
func waitsForRows(state string, others bool) bool {
	switch state {
	case "23505", "23P01":
		return true
	case "23503", "42830": // a row that is referred to is missing; so is the unique key
		return others
	}
	return false
}

// objectErrors lists what an error says of objects.
func objectErrors(err error) []*ObjectError {
	var list []*ObjectError
	switch e := err.(type) { //nolint:errorlint // the tree is walked
	case nil:
	case *ObjectError:
		list = append(list, e)
	case interface{ Unwrap() []error }:
		for _, one := range e.Unwrap() {
			list = append(list, objectErrors(one)...)
		}
	case interface{ Unwrap() error }:
		list = objectErrors(e.Unwrap())
	}
	return list
}

// setWaiting sorts out objects that wait for rows, and notes in the journal what they wait for. It returns the rest
// of the error.
func (x *indexer) setWaiting(ctx context.Context, err error) error {
	list := objectErrors(err)
	if len(list) == 0 {
		return err
	}
	asides, asideErr := x.dst.Journal().asides(ctx)
	objects, objectsErr := x.dst.Journal().Objects(ctx)
	if err := errors.Join(asideErr, objectsErr); err != nil {
		return err
	}
	others := len(asides) > 0 || slices.ContainsFunc(objects, func(o SchemaObject) bool {
		return o.State == ObjectFailed && waitsForRows(o.sqlState(), false)
	})
	var rest []error
	for _, e := range list {
		if e.state() == "" || !waitsForRows(e.state(), others) {
			rest = append(rest, e)
			continue
		}
		reason := e.Err.Error()
		if e.state() == "23505" && !strings.Contains(reason, duplicatesRemedy) {
			reason, _, _ = strings.Cut(reason, duplicateDetail)
			reason += duplicates(ctx, x.dst, e)
		}
		message := fmt.Sprintf("%s waits until the source's rows allow it: %s", e.Object, reason)
		x.cfg.Logger.WarnContext(ctx, message)
		notify(x.cfg.OnEvent, Event{Kind: EventWarning, Phase: PhaseRebuildingIndexes, Message: message})
		if err := x.dst.Journal().MarkObject(ctx, e.Object.ID, ObjectFailed, reason); err != nil {
			return err
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.failed = nil
	return errors.Join(rest...)
}

var duplicatedKey = regexp.MustCompile(`(?s)^Key \((.*?)\)=\(.*\) is duplicated`)

const duplicatesRemedy = " Delete all but one of each on the source, then REINDEX its index there."

// duplicateDetail begins the part of an object's error that tells which key is there twice.
const duplicateDetail = ": Key ("

// withDuplicate is an object's error as the journal keeps it.
func withDuplicate(err error) string {
	if detail := pgDetail(err); sqlState(err) == "23505" && duplicatedKey.MatchString(detail) {
		return err.Error() + ": " + detail
	}
	return err.Error()
}

// duplicates names the keys that rows of the target share.
func duplicates(ctx context.Context, dst Target, e *ObjectError) string {
	const most = 10
	detail := pgDetail(e)
	if _, recorded, ok := strings.Cut(e.Err.Error(), duplicateDetail); ok {
		detail = strings.TrimPrefix(duplicateDetail, ": ") + recorded
	}
	m := duplicatedKey.FindStringSubmatch(detail)
	relation, _, found := strings.Cut(e.Object.Name, " ")
	_, on, ok := strings.Cut(e.Object.SQL, " ON ")
	if ok {
		on, _, ok = strings.Cut(strings.TrimPrefix(on, "ONLY "), " USING ")
	}
	table := pgx.Identifier{e.Object.Schema, relation}.Sanitize()
	if ok {
		table = on
	}
	side, isOurs := dst.(rowSide)
	if m == nil || !isOurs || (!ok && !found) {
		return ": " + detail + duplicatesRemedy
	}
	rows, err := side.rowSessions().Query(ctx, fmt.Sprintf(`SELECT ROW(%[1]s)::text FROM %[2]s GROUP BY %[1]s HAVING
		count(*) > 1 ORDER BY 1 LIMIT %[3]d`,
		m[1], table, most+1))
	if err != nil {
		return ": " + detail + duplicatesRemedy
	}
	keys, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(keys) == 0 {
		return ": " + detail + duplicatesRemedy
	}
	if len(keys) > most {
		keys = append(keys[:most], "and others")
	}
	return fmt.Sprintf(": several rows have the same (%s): %s.%s", m[1], strings.Join(keys, ", "), duplicatesRemedy)
}

// rebuilder tries objects again that wait for rows.
type rebuilder struct{ *Migrator }

// run tries them, with pauses that grow, until all are there.
func (r *rebuilder) run(ctx context.Context) error {
	const first, most = 2 * time.Second, 2 * time.Minute
	for attempt := 1; ; attempt++ {
		if err := sleep(ctx, backoff(attempt, first, most)); err != nil {
			return err
		}
		left, err := r.pass(ctx)
		if err != nil || left == 0 {
			return err
		}
	}
}

// waiting lists the objects that wait for rows.
func (r *rebuilder) waiting(ctx context.Context) ([]SchemaObject, error) {
	objects, err := r.journal.Objects(ctx)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(objects, func(o SchemaObject) bool { return !o.waits() }), nil
}

// waits tells whether an object waits for rows.
func (o SchemaObject) waits() bool {
	return o.State == ObjectFailed && (o.Stage == StageIndexes || o.Stage == StageForeign) &&
		waitsForRows(o.sqlState(), true)
}

// sqlState is what the object failed with, as the journal has it.
func (o SchemaObject) sqlState() string { return stateIn(o.Error) }

func stateIn(text string) string {
	_, state, _ := strings.Cut(text, "(SQLSTATE ")
	state, _, _ = strings.Cut(state, ")")
	return state
}

// state is the SQLSTATE of the failure, which may be that of an earlier attempt.
func (e *ObjectError) state() string {
	if state := sqlState(e); state != "" {
		return state
	}
	return stateIn(e.Err.Error())
}

// pass tries each once, in order: some need others.
func (r *rebuilder) pass(ctx context.Context) (left int, err error) {
	broken := false
	defer func() {
		if err == nil && broken {
			err = errJoins
		}
	}()
	objects, err := r.waiting(ctx)
	if err != nil {
		return 0, err
	}
	x, err := newIndexer(ctx, r.cfg.Target, r.indexConfig())
	if err != nil {
		return 0, err
	}
	for _, o := range objects {
		err := r.cfg.Target.Create(ctx, []SchemaObject{o})
		switch {
		case err == nil:
			message := o.String() + " built"
			r.publish(Event{Kind: EventObject, Phase: PhaseReplicating, Message: message})
			if err := r.journal.Record(ctx, Event{Kind: EventObject, Message: message}); err != nil {
				return left, err
			}
			if strings.Contains(o.Error, "SQLSTATE 23505") {
				if err := r.distrust(ctx, o); err != nil {
					return left, err
				}
				broken = true
			}
		case ctx.Err() != nil || Retryable(err) || sqlState(err) == "":
			return left, err
		default:
			left++
			told := strings.HasPrefix(o.Error, err.Error()) &&
				(sqlState(err) != "23505" || strings.Contains(o.Error, duplicatesRemedy))
			if !told {
				if err := x.setWaiting(ctx, &ObjectError{Object: o, Err: err}); err != nil {
					return left, err
				}
			}
		}
	}
	return left, nil
}

// distrust has a table copied from scratch: while the source's index was broken, rounds may have missed rows that
// they looked up by it. Chunks are read without an index.
func (r *rebuilder) distrust(ctx context.Context, o SchemaObject) error {
	tables, err := r.journal.Tables(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(tables, func(t TableStatus) bool { return t.Table.ID == o.Table && t.State == TableLive })
	if i < 0 {
		return nil
	}
	a := &aside{table: tables[i].Table, AsideTable: AsideTable{
		Direction: directionForward, Side: "source", Reading: true, SQLState: "XX002",
		Message: "its unique index was broken",
		Remedy:  "Nothing has to be done: the table is copied again.",
	}}
	if err := r.journal.setAside(ctx, a); err != nil {
		return err
	}
	return r.journal.exec(ctx, "have a table copied from scratch", `
		UPDATE heroku_migrator.aside SET found = true, attempts = 1 WHERE table_id = $1`, int64(a.table.ID))
}

// keyOperators are the operators of the table's key on this side.
func (s *herokuSnapshot) keyOperators(ctx context.Context, t *Table) ([]keyOperator, error) {
	return s.ops.get(ctx, s.conn, t)
}
