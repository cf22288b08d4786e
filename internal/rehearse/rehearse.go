// Package rehearse creates objects on a server and takes all of it back, to find out which of them cannot be created
// there.
//
// Objects are created in their order, within transactions that are rolled back. Where all of them would need more locks
// than the server has room for, they are created in portions, each with the objects that its own ones need (see
// [Plan]).
package rehearse

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Object is the definition of an object, with all names written in full and quoted, as pg_dump --quote-all-identifiers
// does.
type Object struct {
	ID     int
	Type   string // as pg_restore names it
	Schema string
	Name   string // as pg_restore names it
	SQL    string
	// Script is what creates it, if it takes more than its definition.
	Script string
	// Probe marks a statement that runs code of users, as REFRESH MATERIALIZED VIEW does. Without rows it may fail for
	// a reason that rows remove. It fails the rehearsal only if a name in it leads nowhere, and it has two seconds.
	Probe bool
}

func (o Object) script() string {
	if o.Script != "" {
		return o.Script
	}
	return o.SQL
}

// Failure says that an object could not be created.
type Failure struct {
	ID  int
	Err *pgconn.PgError
	// Cause is the ID of an object that this one needs and that failed or is absent; 0: none, the failure is its own.
	Cause int
	// Roles are those that the object needs and that do not exist.
	Roles []string
}

var missingRole = regexp.MustCompile(`^role "(.*)" does not exist$`)

// ErrRoom says that the server's lock table is full: nothing is known of the objects.
var ErrRoom = errors.New("the server's lock table has no room for the rehearsal")

// batch is how many objects are created by one round trip.
const batch = 64

// probePatience is how long a probe may take.
const probePatience = 2 * time.Second

// Run creates the objects in a transaction of its own, in order, and rolls it back. setup is executed first. absent are
// objects that are not there, on purpose: what fails for the lack of them has them as its cause. The error is not nil
// if the rehearsal itself could not be held: the connection broke, the context is done, the server's lock table is full
// ([ErrRoom]).
func Run(ctx context.Context, conn *pgx.Conn, setup string, objects, absent []Object) (failures []Failure, err error) {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if rollbackErr := tx.Rollback(end); rollbackErr != nil && err == nil && !errors.Is(rollbackErr,
			pgx.ErrTxClosed) {
			err = rollbackErr
		}
	}()
	if _, err := tx.Exec(ctx, setup); err != nil {
		return nil, err
	}
	r := run{tx: tx}
	var probes []Object
	todo := slices.Clone(objects)
	todo = slices.DeleteFunc(todo, func(o Object) bool {
		if o.Probe {
			probes = append(probes, o)
		}
		return o.Probe
	})
	for some := range slices.Chunk(todo, batch) {
		if err := r.create(ctx, some); err != nil {
			return nil, err
		}
	}
	if _, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL statement_timeout = %d`,
		probePatience.Milliseconds())); err != nil {
		return nil, err
	}
	for _, o := range probes {
		if err := r.create(ctx, []Object{o}); err != nil {
			return nil, err
		}
	}
	findCauses(r.failures, objects, absent)
	return r.failures, nil
}

type run struct {
	tx       pgx.Tx
	failures []Failure
}

// create tries all at once. Where that fails, it halves them until it has the culprits: each is tried with all before
// it in place.
func (r *run) create(ctx context.Context, some []Object) error {
	script := make([]string, 0, len(some)+2)
	script = append(script, "SAVEPOINT rehearsal")
	for _, o := range some {
		script = append(script, o.script())
	}
	script = append(script, "RELEASE SAVEPOINT rehearsal")
	_, err := r.tx.Exec(ctx, strings.Join(script, "\n;\n"))
	if err == nil {
		return nil
	}
	failed := new(pgconn.PgError)
	switch {
	case !errors.As(err, &failed) || ctx.Err() != nil:
		return errors.Join(ctx.Err(), err)
	case failed.Code == "53200":
		return fmt.Errorf("%w: %w", ErrRoom, err)
	case isPassing(failed.Code) && !some[0].Probe:
		return err
	}
	if _, err := r.tx.Exec(ctx, "ROLLBACK TO SAVEPOINT rehearsal; RELEASE SAVEPOINT rehearsal"); err != nil {
		return err
	}
	if len(some) > 1 {
		half := len(some) / 2
		if err := r.create(ctx, some[:half]); err != nil {
			return err
		}
		return r.create(ctx, some[half:])
	}
	if some[0].Probe && !strings.HasPrefix(failed.Code, "42") {
		return nil
	}
	roles, err := r.missingRoles(ctx, some[0], failed)
	if err != nil {
		return err
	}
	r.failures = append(r.failures, Failure{ID: some[0].ID, Err: failed, Roles: roles})
	return nil
}

// missingRoles finds all roles that an object needs and that do not exist: a server names the first one alone, so they
// are made, for a moment.
func (r *run) missingRoles(ctx context.Context, o Object, failed *pgconn.PgError) (roles []string, err error) {
	create := []string{"SAVEPOINT rehearsal"}
	for {
		m := missingRole.FindStringSubmatch(failed.Message)
		if m == nil || failed.Code != "42704" || slices.Contains(roles, m[1]) {
			return roles, nil
		}
		roles = append(roles, m[1])
		create = append(create, "CREATE ROLE "+quote(m[1]))
		_, err := r.tx.Exec(ctx, strings.Join(append(create, o.script()), ";\n"))
		next := new(pgconn.PgError)
		if err != nil && (!errors.As(err, &next) || isPassing(next.Code)) {
			return nil, err
		}
		if _, err := r.tx.Exec(ctx, "ROLLBACK TO SAVEPOINT rehearsal; RELEASE SAVEPOINT rehearsal"); err != nil {
			return nil, err
		}
		failed = next
	}
}

// isPassing tells whether an error says something of the moment rather than of the object.
func isPassing(code string) bool {
	for _, class := range []string{"08", "40", "53", "57", "55P03", "25"} {
		if strings.HasPrefix(code, class) {
			return true
		}
	}
	return false
}
