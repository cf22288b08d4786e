package migrator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// Errors that callers can test for with errors.Is. Each text says what to do next.
var (
	// ErrNoMigration is returned when the target database holds no journal.
	ErrNoMigration = errors.New("no migration is recorded in the target database; start one with Run")

	// ErrNotLeader is returned by calls that move the migration when [Target.Lead] was not called before.
	ErrNotLeader = errors.New("this process does not lead the migration; call Lead first")

	// ErrLostLead is returned when another process has taken the lead. Nothing that this
	// process had under way was committed.
	ErrLostLead = errors.New("another process has taken the lead of this migration; nothing of the interrupted step " +
		"was committed")

	// ErrRewritten is returned by [Snapshot.CopyChunk] when the relation was rewritten (VACUUM FULL,
	// CLUSTER, TRUNCATE, some forms of ALTER TABLE) since the chunk was planned, so that its row
	// addresses mean nothing any more. The table's copy has to be planned again.
	ErrRewritten = errors.New("the table was rewritten since its copy was planned")

	// ErrBusy is returned when locks could not be had in the time allowed. Nothing was changed.
	ErrBusy = errors.New("locks could not be had in the time allowed")

	// ErrTrimmed is returned when the target stands before the point up to which the source's change
	// log was trimmed: the target lost commits that it had acknowledged.
	ErrTrimmed = errors.New("the target went back to an earlier state than it had acknowledged, and the changes " +
		"since are gone from the source's log: the tables concerned have to be sent whole, as Run does by itself")

	// ErrFailedOver is returned when the source's timeline or system identifier is not the one that
	// the journal's position was taken on: positions mean nothing there.
	ErrFailedOver = errors.New("the source failed over to another server since the last round, and transactions may " +
		"be missing on it: every table has to be sent whole, as Run does by itself")
)

// ErrDetach is returned by [Returner.ApplyBack] when foreign keys that act on other rows are in the way of a round. It
// works with detach.
var ErrDetach = errors.New("foreign keys that act on other rows are in the way")

// errPassing is a failure of a program that may have passed when it is run again.
var errPassing = errors.New("it may pass")

// RefusedError says that a precondition does not hold. Nothing was done.
type RefusedError struct {
	// Action is what was refused: "run", "switch", "revert", …
	Action string
	// Reasons are complete sentences, each with what to do about it.
	Reasons []string
	// CanForce tells whether the action can be forced in spite of the reasons.
	CanForce bool
}

func (e *RefusedError) Error() string {
	return e.Action + " refused: " + strings.Join(e.Reasons, " ")
}

func refuse(action string, format string, args ...any) *RefusedError {
	return &RefusedError{Action: action, Reasons: []string{fmt.Sprintf(format, args...)}}
}

// ObjectError says that one object of the schema could not be created on the target.
type ObjectError struct {
	Object SchemaObject
	Err    error
}

func (e *ObjectError) Error() string {
	return fmt.Sprintf("%s could not be created on the target: %v", e.Object, e.Err)
}

func (e *ObjectError) Unwrap() error { return e.Err }

// Retryable tells whether an error may go away by itself: lost connections, servers that restart,
// deadlocks, lock time-outs. Errors that are not retryable need a person.
func Retryable(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, ErrFailedOver) || errors.Is(err,
		ErrSlotLost) || errors.Is(err, ErrEmptied) {
		return false
	}
	if errors.Is(err, errPassing) || errors.Is(err, ErrLostLead) || errors.Is(err, ErrBusy) || errors.Is(err,
		ErrRewritten) || errors.Is(err, ErrDetach) {
		return true
	}
	if pg := new(pgconn.PgError); errors.As(err, &pg) {
		switch pg.Code {
		case "40001", "40P01", "55P03", // serialization failure, deadlock, lock not available
			"57P01", "57P02", "57P03", "57P04", // shutdowns, starting up, database dropped
			"28P01", "28000", // the password, or who may connect from where, is being changed
			"57014",          // statement cancelled
			"25006",          // read-only: a primary that was demoted
			"25P03", "25P04", // idle in transaction, transaction time-outs
			"53300", "53100", "53200": // too many connections, disk full, out of memory
			return true
		}
		return strings.HasPrefix(pg.Code, "08")
	}
	var netErr net.Error
	return errors.As(err, &netErr) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, io.ErrClosedPipe) || errors.Is(err, net.ErrClosed) ||
		pgconn.SafeToRetry(err) || errors.As(err, new(*pgconn.ConnectError)) ||
		strings.Contains(err.Error(), "conn closed")
}

// pgDetail returns the detail of a server's error, or "".
func pgDetail(err error) string {
	if pg := new(pgconn.PgError); errors.As(err, &pg) {
		return pg.Detail
	}
	return ""
}

// sqlState returns the SQLSTATE of a server's error, or "".
func sqlState(err error) string {
	if pg := new(pgconn.PgError); errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}
