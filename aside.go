package migrator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A table of which a row cannot be read, sent or written is set aside: it waits while all others go on, and joins
// again by itself when the reason is gone. See ARCHITECTURE.md, Tables set aside.

// The directions in which a table's rows travel.
const (
	directionForward = "forward" // from the source to the target
	directionReverse = "reverse" // from the target to the source, after the switch
)

// AsideTable says why a table is set aside, and what to do about it.
type AsideTable struct {
	Table     string    `json:"table"`
	Direction string    `json:"direction"` // forward: to the target; reverse: back to the source
	Since     time.Time `json:"since"`
	TriedAt   time.Time `json:"tried_at"`
	// Side is where the row was refused: source or target. Reading tells that it could not even be read there.
	Side    string `json:"side"`
	Reading bool   `json:"reading,omitempty"`
	// Row is a condition in SQL that leads to the row; empty while it is not known.
	Row        string `json:"row,omitempty"`
	Column     string `json:"column,omitempty"`
	Constraint string `json:"constraint,omitempty"`
	// Value is left out unless it is asked for: see [Migrator.AsideTables].
	Value    string `json:"value,omitempty"`
	SQLState string `json:"sqlstate"`
	Message  string `json:"message"`
	// Remedy says what to do. RemedySQL is a statement that does it on the side RemedyOn, if there is one; … in it
	// stands for a value that only the application's owner knows.
	Remedy    string `json:"remedy"`
	RemedySQL string `json:"remedy_sql,omitempty"`
	RemedyOn  string `json:"remedy_on,omitempty"`
}

func (a AsideTable) String() string {
	b := &strings.Builder{}
	fmt.Fprintf(b, "%s is set aside: ", a.Table)
	if a.Column != "" {
		fmt.Fprintf(b, "column %s of ", a.Column)
	}
	if a.Row != "" {
		fmt.Fprintf(b, "the row where %s", a.Row)
	} else {
		b.WriteString("a row")
	}
	if a.Value != "" {
		fmt.Fprintf(b, " (value %s)", a.Value)
	}
	verb := "written"
	if a.Reading {
		verb = "read"
	}
	fmt.Fprintf(b, " cannot be %s on the %s: %s (%s)", verb, a.Side, a.Message, a.SQLState)
	if a.Remedy != "" {
		fmt.Fprintf(b, ". %s", a.Remedy)
	}
	return b.String()
}

// AsideError says that everything is in sync but for tables that are set aside.
type AsideError struct{ Tables []AsideTable }

func (e *AsideError) Error() string {
	list := make([]string, len(e.Tables))
	for i, t := range e.Tables {
		list[i] = t.String()
	}
	return fmt.Sprintf("everything is in sync but for %s: %s", counted(int64(len(list)), "table"), strings.Join(list,
		"; "))
}

// ApplyError says that rows of a table could not be read on the side that has them, or written on the other.
// [Migrator.Run] sets the table aside.
type ApplyError struct {
	Table *Table
	// Constraint is the constraint's name, if one is violated.
	Constraint string
	// Reading tells that the side that has the rows could not read them.
	Reading bool
	// Key tells which row, as far as the server does: "Key (email)=(a@b.c) already exists.", or a line of COPY.
	Key string
	Err error

	chunk *Chunk // in the copy
}

func (e *ApplyError) Error() string {
	verb := "written"
	if e.Reading {
		verb = "read"
	}
	text := fmt.Sprintf("rows of %s could not be %s: %v", e.Table, verb, e.Err)
	if e.Key != "" {
		text += " (" + strings.TrimSuffix(e.Key, ".") + ")"
	}
	return text
}

func (e *ApplyError) Unwrap() error { return e.Err }

// readError is an error of the side that rows are read from.
type readError struct{ error }

func (e readError) Unwrap() error { return e.error }

// refusedRows makes an ApplyError of an error that is about the rows of one table.
func refusedRows(t *Table, chunk *Chunk, err error) error {
	pg := new(pgconn.PgError)
	if t == nil || !errors.As(err, &pg) || !isAboutRows(pg.Code) || errors.As(err, new(*ApplyError)) {
		return err
	}
	key := pg.Detail
	if key == "" {
		key, _, _ = strings.Cut(pg.Where, "\n")
	}
	return &ApplyError{
		Table: t, Constraint: pg.ConstraintName, Reading: errors.As(err, new(readError)), Key: key, Err: err,
		chunk: chunk,
	}
}

// isAboutRows tells whether a failure comes from a table's rows, or from what the other side has defined for them, and
// so concerns this table alone. Connections, locks, disks and privileges are not among them.
func isAboutRows(state string) bool {
	const class = 2
	if len(state) < class {
		return false
	}
	switch state[:class] {
	case "22", "23", // data exceptions, violated constraints
		"21", "2F", "38", "39", "44", "54", "P0", // functions in constraints and generated columns, limits of a page
		"58", "XX": // files and pages that are damaged
		return true
	}
	switch state {
	case "42703", "42P01", "42704", "42883", "3F000", // an expression relies on something that is not there
		"42804", "42846", "428C9", "0A000":
		return true
	}
	return false
}

// asideSchema is the journal's part for tables that are set aside. It is made whoever takes the lead: a journal may be
// of an earlier version.
const asideSchema = `
CREATE TABLE IF NOT EXISTS heroku_migrator.aside (
	table_id bigint PRIMARY KEY REFERENCES heroku_migrator.tables ON DELETE CASCADE,
	direction text NOT NULL, was text NOT NULL, -- the table's state before
	position text NOT NULL DEFAULT '', -- on the way back: up to where the source has the table's changes
	since timestamptz NOT NULL DEFAULT clock_timestamp(),
	tried_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	looked int NOT NULL DEFAULT 0,   -- how often the reason was looked for since it failed last
	attempts int NOT NULL DEFAULT 0, -- how often it was tried to join it again
	found boolean NOT NULL DEFAULT false, -- the row was looked for
	reason jsonb NOT NULL);
ALTER TABLE heroku_migrator.captured ADD COLUMN IF NOT EXISTS trimmed_to text;`

// aside is an entry of the journal.
type aside struct {
	AsideTable

	table    *Table
	was      TableState
	state    TableState // now
	position Position
	looked   int
	attempts int
	found    bool
	waited   time.Duration // since it was tried last
	chunk    *Chunk        // the scope of the search for the row, if it was a chunk
}

// asideReason is what the journal stores of it as JSON.
type asideReason struct {
	AsideTable

	Chunk *Chunk `json:"chunk,omitempty"`
}

// quotedValue is how servers end the message about a value that they do not take.
var quotedValue = regexp.MustCompile(`(?s): "(.*)"$`)

// newAside describes a table's failure as far as the error tells.
func newAside(e *ApplyError, direction string) *aside {
	a := &aside{table: e.Table, chunk: e.chunk}
	a.Table, a.Direction, a.Reading, a.Constraint = e.Table.String(), direction, e.Reading, e.Constraint
	a.Side = "target"
	if e.Reading == (direction == directionForward) {
		a.Side = "source"
	}
	pg := new(pgconn.PgError)
	if errors.As(e.Err, &pg) {
		a.describe(pg)
	}
	return a
}

var copyColumn = regexp.MustCompile(`(?m)^COPY .*, line \d+, column (.+?)(?:: .*)?$`)

// describe takes over what the server says. A message may end in the value, which is not for everybody's eyes.
func (a *aside) describe(pg *pgconn.PgError) {
	a.SQLState, a.Message, a.Constraint = pg.Code, pg.Message, pg.ConstraintName
	if m := quotedValue.FindStringSubmatchIndex(a.Message); m != nil {
		a.Value, a.Message = a.Message[m[2]:m[3]], a.Message[:m[0]]
	}
	if a.Value == takenForInfinity {
		a.Value, a.Message = "", takenForInfinity
	}
	if strings.HasPrefix(pg.Detail, "Key (") || strings.HasPrefix(pg.Detail, "Partition key of the failing row") {
		a.Message += ": " + strings.TrimSuffix(pg.Detail, ".")
	}
	a.Column = pg.ColumnName
	if m := copyColumn.FindStringSubmatch(pg.Where); a.Column == "" && m != nil {
		a.Column = m[1]
	}
}

// setAside records that a table waits. Its rows stay where they are on both sides: for one that was live, that is the
// state of the position that the journal has now, from which on its log counts when it joins again.
func (j *Journal) setAside(ctx context.Context, a *aside) error {
	reason, err := jsonText(asideReason{AsideTable: a.AsideTable, Chunk: a.chunk})
	if err != nil {
		return err
	}
	err = j.tx(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			INSERT INTO heroku_migrator.aside AS a (table_id, direction, was, position, reason)
			SELECT id, $2, state, $3, $4 FROM heroku_migrator.tables WHERE id = $1
			ON CONFLICT (table_id) DO UPDATE SET direction = $2, reason = $4, found = false, looked = 0, tried_at =
				clock_timestamp(),
				was = CASE WHEN excluded.was = 'set_aside' THEN a.was ELSE excluded.was END,
				position = CASE WHEN excluded.was = 'set_aside' THEN a.position ELSE excluded.position END`,
			int64(a.table.ID), a.Direction, a.position.String(), reason)
		if err != nil || a.Direction == directionReverse {
			return err
		}
		_, err = tx.Exec(ctx, `
			UPDATE heroku_migrator.tables SET state = 'set_aside', copied_at = CASE WHEN state = 'live'
				THEN (SELECT position FROM heroku_migrator.migration) ELSE copied_at END WHERE id = $1`,
			int64(a.table.ID))
		return err
	})
	if err != nil {
		return fmt.Errorf("journal: set %s aside: %w", a.table, err)
	}
	return nil
}

// noteAside records what is known of the reason by now.
func (j *Journal) noteAside(ctx context.Context, a *aside) error {
	reason, err := jsonText(asideReason{AsideTable: a.AsideTable, Chunk: a.chunk})
	if err != nil {
		return err
	}
	return j.exec(ctx, "note why a table is set aside", `
		UPDATE heroku_migrator.aside SET reason = $2, found = $3, looked = looked + 1, tried_at = clock_timestamp()
		WHERE table_id = $1`, int64(a.table.ID), reason, a.found)
}

// asides reads the tables that are set aside, or are about to join again. A journal of an earlier version has none.
func (j *Journal) asides(ctx context.Context) ([]*aside, error) {
	rows, err := j.pool.Query(ctx, `
		SELECT t.spec, t.state, a.direction, a.was, a.position, a.since, a.tried_at, a.looked, a.attempts, a.found,
		       extract(epoch FROM clock_timestamp() - a.tried_at)::float8, a.reason
		FROM heroku_migrator.aside a JOIN heroku_migrator.tables t ON t.id = a.table_id
		WHERE a.direction = 'reverse' OR t.state <> 'live' ORDER BY t.id`)
	if err == nil {
		var list []*aside
		list, err = pgx.CollectRows(rows, scanAside)
		if err == nil {
			return list, nil
		}
	}
	if code := sqlState(err); code == "42P01" || code == "3F000" {
		return nil, nil
	}
	return nil, fmt.Errorf("journal: read which tables are set aside: %w", err)
}

func scanAside(row pgx.CollectableRow) (*aside, error) {
	a := &aside{table: new(Table)}
	var spec, reason []byte
	var direction, position string
	var since, tried time.Time
	var waited float64
	err := row.Scan(&spec, &a.state, &direction, &a.was, &position, &since, &tried, &a.looked, &a.attempts, &a.found,
		&waited, &reason)
	if err != nil {
		return nil, err
	}
	var r asideReason
	if err := errors.Join(json.Unmarshal(spec, a.table), json.Unmarshal(reason, &r)); err != nil {
		return nil, err
	}
	a.AsideTable, a.chunk = r.AsideTable, r.Chunk
	a.Table, a.Direction, a.Since, a.TriedAt = a.table.String(), direction, since, tried
	a.waited = time.Duration(waited * float64(time.Second))
	a.position, err = ParsePosition(position)
	return a, err
}

// AsideTables lists the tables that are set aside. The values of the rows that are to blame come only if they are
// asked for: they are the application's data.
func (m *Migrator) AsideTables(ctx context.Context, values bool) ([]AsideTable, error) {
	list, err := m.journal.asides(ctx)
	if err != nil {
		return nil, err
	}
	tables := make([]AsideTable, 0, len(list))
	for _, a := range list {
		if !values {
			a.Value = ""
		}
		tables = append(tables, a.AsideTable)
	}
	return tables, nil
}
