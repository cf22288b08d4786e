package migrator

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// leadLock is the key of the advisory lock that the leader holds on the target database.
const leadLock = 0x6865726f6b752d6d // "heroku-m"

// Lead is the right to move a migration forward. One process at most has it. It ends with Release, with
// the process, or with the connection that holds it.
type Lead struct {
	Epoch   int64
	conn    *pgx.Conn
	lost    chan struct{}
	stop    context.CancelFunc
	stopped chan struct{}
	journal *Journal

	released atomic.Bool
}

// TryLead takes the lead if no process has it; it returns nil, nil if one has. create makes the journal if
// there is none; without it, [ErrNoMigration] is returned then.
//
// Two things make it safe. A session-level advisory lock says who leads; it is gone at once when the
// process dies. The epoch, which every taking of the lead increases, is checked by each transaction of
// the leader: one that has lost its lock without noticing cannot commit any more (I6).
func (j *Journal) TryLead(ctx context.Context, create bool) (*Lead, error) {
	if !j.held.CompareAndSwap(false, true) {
		return nil, nil //nolint:nilnil // somebody else leads: another part of this process
	}
	pool := j.pool.Config() // a copy
	var conn *pgx.Conn
	var err error
	if pool.BeforeConnect != nil {
		err = pool.BeforeConnect(ctx, pool.ConnConfig)
	}
	if err == nil {
		conn, err = pgx.ConnectConfig(ctx, pool.ConnConfig)
	}
	if err == nil && pool.AfterConnect != nil {
		if err = pool.AfterConnect(ctx, conn); err != nil {
			_ = conn.Close(context.WithoutCancel(ctx))
		}
	}
	if err != nil {
		j.held.Store(false)
		return nil, fmt.Errorf("take the lead: %w", err)
	}
	lead, err := j.tryLead(ctx, conn, create)
	if lead == nil {
		j.held.Store(false)
		_ = conn.Close(context.WithoutCancel(ctx))
	}
	if err != nil && !errors.Is(err, ErrNoMigration) {
		return nil, fmt.Errorf("take the lead: %w", err)
	}
	return lead, err
}

func (j *Journal) tryLead(ctx context.Context, conn *pgx.Conn, create bool) (*Lead, error) {
	// A leader cut off from the network loses its lock when its keepalives fail.
	if _, err := conn.Exec(ctx, `SET idle_in_transaction_session_timeout = '60s'`); err != nil {
		return nil, err
	}
	var got bool
	if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, int64(leadLock)).Scan(&got); err != nil || !got {
		return nil, err
	}
	exists, err := j.exists(ctx)
	if err != nil {
		return nil, err
	}
	if !exists && !create {
		return nil, ErrNoMigration
	}
	var epoch int64
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if !exists {
			if _, err := tx.Exec(ctx, journalSchema); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, `
				INSERT INTO heroku_migrator.canary SELECT true WHERE NOT EXISTS (SELECT 1 FROM
					heroku_migrator.migration);
				INSERT INTO heroku_migrator.migration DEFAULT VALUES ON CONFLICT DO NOTHING;
				INSERT INTO heroku_migrator.progress DEFAULT VALUES ON CONFLICT DO NOTHING;`); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(ctx, asideSchema); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `
			INSERT INTO heroku_migrator.leader AS l (epoch, holder) VALUES (1, $1)
			ON CONFLICT (only_row) DO UPDATE SET epoch = l.epoch + 1, holder = $1, since = clock_timestamp()
			RETURNING epoch`, thisProcess()).Scan(&epoch)
	})
	if err != nil {
		return nil, err
	}
	// Commands that a dead leader had begun: what they left is undone or finished before anything else.
	_, err = conn.Exec(ctx, `
		UPDATE heroku_migrator.commands SET state = 'failed', finished_at = clock_timestamp(),
			message = 'the process that carried it out was interrupted; see status for where the migration stands'
		WHERE state = 'running'`)
	// And hooks of attempts that will not go on; those that follow a switch or revert are looked at when they would
	// be called.
	if err == nil {
		_, err = conn.Exec(ctx, `
			WITH gone AS (UPDATE heroku_migrator.hooks SET state = 'unknown', error = $1, at = clock_timestamp()
				WHERE state = 'started' AND point IN ('before_fence', 'before_switch') RETURNING point)
			INSERT INTO heroku_migrator.events (kind, phase, message)
			SELECT 'failure', m.phase, 'hook ' || g.point || ': ' || $1 FROM gone g CROSS JOIN
				heroku_migrator.migration m`, errHookUnknown.Error())
	}
	if err != nil {
		return nil, err
	}
	watch, stop := context.WithCancel(context.WithoutCancel(ctx))
	lead := &Lead{Epoch: epoch, conn: conn, lost: make(chan struct{}), stop: stop, stopped: make(chan struct{}),
		journal: j}
	j.epoch.Store(epoch)
	go lead.watch(watch)
	return lead, nil
}

// thisProcess names the process for people.
func thisProcess() string {
	host, _ := os.Hostname() // without it, the number has to do
	return fmt.Sprintf("%s, process %d", host, os.Getpid())
}

// join takes the epoch of the process that leads, so that this one can share its copy. When another takes the
// lead, what this one has under way fails with ErrLostLead.
func (j *Journal) join(ctx context.Context) error {
	var epoch int64
	err := j.pool.QueryRow(ctx, `SELECT epoch FROM heroku_migrator.leader`).Scan(&epoch)
	if err != nil {
		return fmt.Errorf("join the migration: %w", err)
	}
	j.epoch.Store(epoch)
	return nil
}

// watch notices that the connection which holds the lock is gone.
func (l *Lead) watch(ctx context.Context) {
	defer close(l.stopped)
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			ping, cancel := context.WithTimeout(ctx, 20*time.Second)
			err := l.conn.Ping(ping)
			cancel()
			if err != nil && ctx.Err() == nil {
				close(l.lost)
				return
			}
		}
	}
}

// Lost is closed when the lead was lost.
func (l *Lead) Lost() <-chan struct{} { return l.lost }

// Release gives the lead up. It may be called more than once.
func (l *Lead) Release() {
	l.stop()
	<-l.stopped
	if !l.released.CompareAndSwap(false, true) {
		return
	}
	l.journal.epoch.CompareAndSwap(l.Epoch, 0)
	l.journal.held.Store(false)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = l.conn.Close(ctx) // the server frees the lock when the connection goes, whatever this says
}
