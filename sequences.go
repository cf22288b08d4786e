package migrator

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// locksAtOnce is how many relations one transaction of ours locks at most where it is free to choose. Each lock takes
// an entry of a table that all sessions of the server share, and that holds 1,600 on a small server (64 × 25
// connections): when it is full, the application's statements fail.
const locksAtOnce = 200

// listSequences lists the sequences of users with their definitions. It locks none of them.
func listSequences(ctx context.Context, q querier) ([]Sequence, error) {
	rows, err := q.Query(ctx, `
		SELECT c.oid, n.nspname, c.relname, s.seqincrement, s.seqmin, s.seqmax, s.seqcache
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_sequence s ON s.seqrelid = c.oid
		WHERE c.relkind = 'S' AND c.relpersistence <> 't' AND`+userRelations+` ORDER BY c.oid`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (s Sequence, err error) {
		err = row.Scan(&s.ID, &s.Schema, &s.Name, &s.Increment, &s.Min, &s.Max, &s.Cache)
		return s, err
	})
}

// Sequences implements [Snapshot]. Sequences are outside of transactions: the result is their state now. They are read
// over a connection of their own, in transactions that lock few of them each and in one round trip, however many there
// are.
func (s *herokuSnapshot) Sequences(ctx context.Context) ([]Sequence, error) {
	list, err := listSequences(ctx, s.conn)
	if err != nil {
		return nil, fmt.Errorf("list sequences: %w", err)
	}
	if len(list) == 0 {
		return nil, nil
	}
	var script strings.Builder
	for i, q := range list {
		if i%locksAtOnce == 0 {
			script.WriteString("BEGIN READ ONLY; ")
		} else {
			script.WriteString(" UNION ALL ")
		}
		fmt.Fprintf(&script, "SELECT %d, last_value, is_called FROM %s", i, q.Ident())
		if i%locksAtOnce == locksAtOnce-1 || i == len(list)-1 {
			script.WriteString("; COMMIT;\n")
		}
	}
	err = runScript(ctx, s.decoder.pool, script.String(), func(row [][]byte) error {
		at, err := strconv.Atoi(string(row[0]))
		if err != nil {
			return err
		}
		list[at].LastValue, err = strconv.ParseInt(string(row[1]), 10, 64)
		list[at].IsCalled = string(row[2]) == "t"
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read sequences: %w", err)
	}
	return list, nil
}

// setSequences sets sequences of one side to their values and margins, in transactions that lock few of them each and
// in one round trip. guard is the statement that fails unless this process may: it comes first in each transaction,
// since what setval does is not rolled back.
func setSequences(ctx context.Context, pool *pgxpool.Pool, guard string, sequences []Sequence) error {
	if len(sequences) == 0 {
		return nil
	}
	var script strings.Builder
	for rest := sequences; len(rest) > 0; {
		n := min(len(rest), locksAtOnce)
		fmt.Fprintf(&script, "BEGIN; %s; ", guard)
		script.WriteString(`
			SELECT count(setval(q.seqrelid::regclass, CASE
				WHEN s.margin = 0 THEN s.value
				WHEN q.seqincrement > 0 THEN least(s.value::numeric + s.margin::numeric * q.seqincrement, q.seqmax)
				ELSE greatest(s.value::numeric + s.margin::numeric * q.seqincrement, q.seqmin) END::int8, s.called OR
				s.margin > 0))
			FROM (VALUES `)
		for i, s := range rest[:n] {
			if i > 0 {
				script.WriteString(", ")
			}
			fmt.Fprintf(&script, "(%s, int8 '%d', %t, int8 '%d')", quoteLiteral(s.Ident()), s.LastValue, s.IsCalled,
				s.Margin)
		}
		script.WriteString(") AS s(name, value, called, margin) JOIN pg_sequence q ON q.seqrelid = " +
			"to_regclass(s.name); COMMIT;\n")
		rest = rest[n:]
	}
	set, guards := 0, 0
	err := runScript(ctx, pool, script.String(), func(row [][]byte) error {
		if guards++; guards%2 == 1 { // the guard's own row
			return nil
		}
		n, err := strconv.Atoi(string(row[0]))
		set += n
		return err
	})
	if err == nil && set != len(sequences) {
		err = fmt.Errorf("%d of %d are missing here", len(sequences)-set, len(sequences))
	}
	if err != nil {
		return fmt.Errorf("set sequences: %w", err)
	}
	return nil
}

// runScript sends several transactions as one message and hands over each row. After a failure the connection is
// closed, with the transaction that it is in.
func runScript(ctx context.Context, pool *pgxpool.Pool, script string, row func([][]byte) error) error {
	return pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		results, err := readAll(conn.Conn().PgConn().Exec(ctx, script))
		if err != nil {
			_ = conn.Conn().Close(context.WithoutCancel(ctx))
			return err
		}
		for _, result := range results {
			for _, r := range result.Rows {
				if err := row(r); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// SetSequences implements [Source].
func (h *Heroku) SetSequences(ctx context.Context, sequences []Sequence) error {
	h.mu.Lock()
	claim := h.claim
	h.mu.Unlock()
	if claim.Migration == "" {
		return ErrNotLeader
	}
	err := setSequences(ctx, h.pool, fmt.Sprintf(
		`SELECT 1 / count(*) FROM (SELECT FROM heroku_migrator.migration WHERE id = %s AND epoch = %d FOR SHARE) AS
			mine`,
		quoteLiteral(claim.Migration), claim.Epoch), sequences)
	if sqlState(err) == divisionByZero {
		return ErrLostLead
	}
	return err
}

// setSequences is the target's part. Until the switch is committed nobody draws from them, so they may be set before.
func (p *PlanetScale) setSequences(ctx context.Context, sequences []Sequence) error {
	err := setSequences(ctx, p.pool, fmt.Sprintf(
		`SELECT 1 / count(*) FROM (SELECT FROM heroku_migrator.leader WHERE epoch = %d FOR SHARE) AS
			mine`, p.journal.epoch.Load()), sequences)
	if sqlState(err) == divisionByZero {
		return ErrLostLead
	}
	return err
}
