package migrator_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/shop"
)

// tortured are tables beside the shop's, that are changed in every way while they are written to.
var tortured = []string{
	`CREATE TABLE t_keyed (id bigserial PRIMARY KEY, n int, v text)`, `CREATE TABLE t_bag (a int, b text)`,
	`CREATE TABLE t_part (id bigint, at int, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at)`,
	`CREATE TABLE t_part_0 PARTITION OF t_part FOR VALUES FROM (0) TO (10)`, `CREATE TABLE t_part_rest PARTITION OF t_part FOR VALUES FROM (10000) TO (20000)`,
	`INSERT INTO t_keyed (n, v) SELECT i, 'v' || i FROM generate_series(1, 5000) i`, `INSERT INTO t_bag SELECT i % 50, 'b' || i % 3 FROM generate_series(1, 3000) i`,
	`INSERT INTO t_part SELECT i, i % 10, 'p' FROM generate_series(1, 3000) i`,
}

// tortureWrites are what the writers of these tables do. They name no column that comes and goes. $N is a number.
var tortureWrites = []string{
	`INSERT INTO t_keyed (n, v) SELECT $N, 'new' FROM generate_series(1, 5)`, `UPDATE t_keyed SET n = n + 1 WHERE id % 97 = $N % 97`, `DELETE FROM t_keyed WHERE id % 501 = $N % 501`,
	`UPDATE t_keyed SET id = -id WHERE id = $N + 1`, `INSERT INTO t_keyed (id, n) VALUES ($N, 1) ON CONFLICT (id) DO UPDATE SET v = 'upserted'`,
	`INSERT INTO t_bag (a, b) SELECT $N % 50, 'b' FROM generate_series(1, 3)`, `UPDATE t_bag SET b = b || 'x' WHERE a = $N % 50 AND length(b) < 6`, `DELETE FROM t_bag WHERE a = $N % 50 AND b = 'b'`,
	`INSERT INTO t_part (id, at, v) SELECT max(id) + 1, $N % 10, 'w' FROM t_part ON CONFLICT DO NOTHING`, `UPDATE t_part SET at = 10000 + at WHERE at < 10 AND id % 203 = $N % 203`, `DELETE FROM t_part WHERE id % 403 = $N % 403`,
	`BEGIN; UPDATE t_keyed SET v = 'rolled back' WHERE id % 50 = 1; SAVEPOINT s; DELETE FROM t_bag WHERE a = 1; ROLLBACK TO s; UPDATE t_bag SET b = NULL WHERE a = $N % 50; COMMIT`,
	`WITH gone AS (DELETE FROM t_keyed WHERE id % 701 = $N % 701 RETURNING n, v) INSERT INTO t_bag (a, b) SELECT n % 50, v FROM gone`,
}

// Everything at once: writers of all kinds, a process that is killed again and again, connections that are cut on both sides, rewrites,
// TRUNCATE and schema changes, from the start to the switch. After it every row is equal, and every
// commit that a client was told of is on the target. TORTURE is how long it lasts (make torture), or how many transactions (a plain number);
// TORTURE_SEED repeats a choice.
func TestTorture(t *testing.T) {
	t.Parallel()
	lasts, seed := 12*time.Second, uint64(time.Now().UnixNano())
	var least int64 // transactions
	if text := os.Getenv("TORTURE"); text != "" {
		var err error
		if least, err = strconv.ParseInt(text, 10, 64); err != nil {
			lasts, err = time.ParseDuration(text)
		}
		require.NoError(t, err)
	}
	if text := os.Getenv("TORTURE_SEED"); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	p := newPair(t)
	p.shop(t, 0.1)
	p.sql(t, tortured...)
	rate, rest, each := 100.0, 4.0, 2
	if least > 0 { // as many as two cores write beside the migrator
		rate, rest, each = 400, 0, 4
	}
	writers, err := shop.StartWriters(t.Context(), p.source.URL, each, shop.Options{Rate: rate, Rest: rest, KeyChanges: true, Truncate: true, MaxHold: 300 * time.Millisecond, Seed: seed})
	require.NoError(t, err)
	defer writers.Stop()
	writing, stop := context.WithCancel(t.Context())
	var more errgroup.Group
	defer func() {
		stop()
		_ = more.Wait() // before their connections are closed
	}()
	var committed atomic.Int64 // by these, beside the shop's writers
	for i := range each {
		conn, choice := p.source.Connect(t), rand.New(rand.NewPCG(seed, uint64(1+i)))
		more.Go(func() error {
			for writing.Err() == nil {
				sql, began := tortureWrites[choice.IntN(len(tortureWrites))], time.Now()
				_, err := conn.Exec(t.Context(), string(bytes.ReplaceAll([]byte(sql), []byte("$N"), strconv.AppendInt(nil, choice.Int64N(6000), 10))))
				switch state(err) {
				case "":
					committed.Add(1)
				case "40P01", "40001", "23505", "23514", "55P03": // in each other's way, or no partition for it
					_, err = conn.Exec(t.Context(), `ROLLBACK`)
				}
				if err != nil {
					return fmt.Errorf("%s: %w", sql, err)
				}
				time.Sleep(max(5*time.Millisecond, time.Duration(rest*float64(time.Since(began)))))
			}
			return nil
		})
	}

	source, target := p.source.ConnectAdmin(t), p.target.ConnectAdmin(t)
	owner := p.source.Connect(t)
	var cmd *exec.Cmd
	var output *bytes.Buffer
	ended := make(chan error, 1)
	start := func() {
		cmd, output = p.child(t, ""), &bytes.Buffer{}
		cmd.Stderr = output
		require.NoError(t, cmd.Start())
		go func(c *exec.Cmd) { ended <- c.Wait() }(cmd)
	}
	kill := func() {
		require.NoError(t, cmd.Process.Kill())
		<-ended
	}
	start()
	next, done := 1, map[string]int{}
	var indexes, parts, tables []int // of those made, the ones that are there
	oldest := func(list *[]int, most int, drop, of string) string {
		if len(*list) <= most {
			return ""
		}
		n := (*list)[0]
		*list = (*list)[1:]
		return fmt.Sprintf("%s %s_%d", drop, of, n)
	}
	const cut = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'heroku\_migrator%' AND datname = current_database() AND random() < 0.5`
	transactions := func() int64 { return writers.Stats().Committed + committed.Load() }
	_, dst := p.open(t)
	position := func() migrator.Position {
		state, err := dst.Journal().State(t.Context())
		if errors.Is(err, migrator.ErrNoMigration) {
			return migrator.Position{}
		}
		require.NoError(t, err)
		return state.Position
	}
	const storm, patience = 20 * time.Second, 3 * time.Minute
	calm := time.Now().Add(storm)
	said := time.Now()
	for end := time.Now().Add(lasts); time.Now().Before(end) || transactions() < least; {
		if time.Since(said) > time.Minute {
			said = time.Now()
			t.Logf("%d transactions; done: %v", transactions(), done)
		}
		if time.Now().After(calm) { // what is killed every few seconds cannot work off ever more, but it has to go on as soon as it can
			for before, until := position(), time.Now().Add(patience); position() == before; time.Sleep(100 * time.Millisecond) {
				select {
				case err := <-ended:
					t.Fatalf("the process ended: %v: %s", err, output.String())
				default:
				}
				require.True(t, time.Now().Before(until), "no round succeeds")
			}
			requireNoneFailed(t, target)
			calm = time.Now().Add(storm)
			done["calm"]++
		}
		select {
		case err := <-ended:
			require.NoError(t, err, "the process ended: %s", output.String())
			t.Fatalf("the process ended: %s", output.String())
		case <-time.After(time.Duration(100+random.IntN(900)) * time.Millisecond):
		}
		var sql string
		var made *[]int
		action := random.IntN(14)
		if action >= 6 && action <= 8 && done["ALTER "] > 30 && random.IntN(2) == 0 { // no table grows ever wider
			action = 13
		}
		switch action {
		case 0, 1:
			kill()
			start()
			done["kill"]++
			continue
		case 2, 3:
			execute(t, []*pgx.Conn{source, target}[action-2], cut)
			done["cut"]++
			continue
		case 4:
			sql = `VACUUM FULL t_keyed`
		case 5:
			sql = `TRUNCATE t_bag`
		case 6:
			sql = fmt.Sprintf(`ALTER TABLE t_keyed ADD COLUMN c_%d int DEFAULT %[1]d`, next)
		case 7:
			sql = fmt.Sprintf(`ALTER TABLE t_part ADD COLUMN c_%d text`, next)
		case 8:
			sql = fmt.Sprintf(`ALTER TABLE t_bag ADD COLUMN c_%d uuid DEFAULT gen_random_uuid()`, next)
		case 9:
			if sql = oldest(&indexes, 5, "DROP INDEX CONCURRENTLY", "i"); sql == "" {
				sql, made = fmt.Sprintf(`CREATE INDEX CONCURRENTLY i_%d ON t_keyed (n, id)`, next), &indexes
			}
		case 10:
			if sql = oldest(&parts, 20, "DROP TABLE", "t_part"); sql == "" {
				from := 10 + next%999*10 // of 1000 actions, no more than 20 are there
				sql, made = fmt.Sprintf(`CREATE TABLE t_part_%d PARTITION OF t_part FOR VALUES FROM (%d) TO (%d)`, next, from, from+10), &parts
			}
		case 11:
			if sql = oldest(&tables, 20, "DROP TABLE", "t_new"); sql == "" {
				sql, made = fmt.Sprintf(`CREATE TABLE t_new_%d (id serial PRIMARY KEY, v text); INSERT INTO t_new_%[1]d (v) SELECT 'n' FROM generate_series(1, 100)`, next), &tables
			}
		case 12:
			sql = `CLUSTER t_keyed USING t_keyed_pkey`
		case 13:
			var column *string
			require.NoError(t, owner.QueryRow(t.Context(), `
				SELECT (array_agg(format('ALTER TABLE %s DROP COLUMN %I', attrelid::regclass, attname) ORDER BY random()))[1] FROM pg_attribute
				WHERE attrelid = ANY ('{t_keyed,t_part,t_bag}'::regclass[]) AND attname LIKE 'c\_%' AND NOT attisdropped`).Scan(&column))
			if column == nil {
				continue
			}
			sql = *column
		}
		n := next
		next++
		if _, err := owner.Exec(t.Context(), sql); err != nil {
			require.Contains(t, []string{"40P01", "55P03"}, state(err), "%s: %v", sql, err)
			continue
		}
		if made != nil {
			*made = append(*made, n)
		}
		done[sql[:6]]++
	}
	t.Logf("done: %v; %d transactions", done, transactions())
	kill()
	execute(t, owner, `ALTER TABLE t_keyed ADD COLUMN at_last int`) // CLUSTER alone is not followed: the switch would name what it marked
	stop()
	require.NoError(t, more.Wait())
	writers.SetRate(100) // to be in sync takes a round of less than a second, which a machine that is saturated by writers has not
	finish := p.child(t, migrator.UntilInSync)
	text, err := finish.CombinedOutput()
	require.NoError(t, err, string(text))
	m := p.migrator(t)
	for attempt := 1; ; attempt++ {
		if _, err := m.Do(withTimeout(t, time.Minute), migrator.CommandSwitch, false); err == nil {
			break
		} else if attempt == 5 {
			requireNoneFailed(t, target)
			require.NoError(t, err)
		}
	}
	p.requireEqual(t)
	stats := writers.Stop()
	assert.Zero(t, stats.Other, stats.OtherSample)
	require.NoError(t, writers.CheckLedger(t.Context(), p.target.Connect(t)))
	do(t, m, migrator.CommandComplete) // constraints that were held back are validated by then
	requireSameSchema(t, p)
	p.requireNoTrace(t)
}

// requireNoneFailed requires that whatever the target was to have could be made there.
func requireNoneFailed(t *testing.T, target *pgx.Conn) {
	t.Helper()
	var failed []string
	require.NoError(t, target.QueryRow(t.Context(), `SELECT array_agg(format('%s %s: %s', type, name, error)) FROM heroku_migrator.objects WHERE state = 'failed'`).Scan(&failed))
	require.Empty(t, failed)
}
