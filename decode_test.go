package migrator_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/pgtest"
)

// The tests of capture, replication and the way back, over logical decoding on both sides. They have servers of their
// own: a slot is made once every transaction of the whole server has ended that was open then, and other tests hold
// some.
func TestDecoding(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]func(*testing.T){
		"OddKeys":                        TestOddKeys,
		"EveryKindOfWriteIsCaptured":     TestEveryKindOfWriteIsCaptured,
		"RevertBringsEverythingBack":     TestRevertBringsEverythingBack,
		"ThereAndBackUnderLoad":          TestThereAndBackUnderLoad,
		"RowsMoveBetweenChunks":          TestRowsMoveBetweenChunks,
		"WholePath":                      TestWholePath,
		"TransactionThatCommitsLate":     TestTransactionThatTookItsNumbersEarlyAndCommitsLate,
		"UniqueValuesMoveBetweenRows":    TestUniqueValuesMoveBetweenRows,
		"TableRewrittenWithinARound":     TestTableRewrittenWithinARound,
		"TableTruncatedWithinEveryRound": TestTableTruncatedWithinEveryRound,
		"TablesWithoutAKey":              TestTablesWithoutAKey,
		"SchemaChangesAreFollowed":       TestSchemaChangesAreFollowed,
		"DeployInTheMiddleOfTheCopy":     TestDeployInTheMiddleOfTheCopy,
		"KilledAtRandomMoments":          TestKilledAtRandomMoments,
		"TargetThatLostCommits":          TestTargetThatLostCommitsIsBroughtBack,
		"FailedApplyLosesNothing":        TestFailedApplyLosesNothing,
		"LeafMadeAfterCapture":           TestLeafMadeAfterCapture,
		"SwitchWithoutReplicationRole":   TestSwitchWithoutReplicationRole,
		"SwitchInterrupted":              TestSwitchInterrupted,
		"Abort":                          TestAbort,
		"SourceFailsOver":                TestSourceFailsOverToAStandbyThatLags,
		"SourceFailsOverAfterTheSwitch":  TestSourceFailsOverAfterTheSwitch,
		"AdditionsOnTheTargetComeBack":   TestAdditionsOnTheTargetComeBack,
	} {
		t.Run(name, test)
	}
}

// decodingPair is a pair whose source is on a server of its own, captured by decoding.
func decodingPair(t *testing.T) (*pair, *pgtest.Cluster) {
	t.Helper()
	server := ownServer(t, pgtest.SourceVersion())
	p := newPair(t)
	p.capture = migrator.CaptureDecoding
	p.source = p.newSource(t, server)
	return p, server
}

// A transaction whose commit is written, and so decoded, before anybody sees it: it waits for a synchronous standby.
// Its key is entered, the rounds meanwhile do not take it for applied, and its row comes when it is seen.
func TestDecodedBeforeItIsVisible(t *testing.T) {
	t.Parallel()
	p, server := decodingPair(t)
	p.sql(t, `CREATE TABLE items (id int PRIMARY KEY, v text)`, `INSERT INTO items VALUES (1, 'before')`)
	m := p.migrator(t)
	stop := run(t, m)
	defer stop()
	waitFor(t, "in sync", func() bool { return phase(t, m) == migrator.PhaseReplicating })
	admin, err := pgx.Connect(t.Context(), server.AdminURL(p.source.Name))
	require.NoError(t, err)
	defer admin.Close(context.Background())
	table := count(t, admin, `SELECT 'items'::regclass::oid::int8`)
	execute(t, admin, `ALTER SYSTEM SET synchronous_standby_names = 'nobody'`, `SELECT pg_reload_conf()`)
	writer := p.source.Connect(t)
	waitFor(t, "the setting is known", func() bool {
		var names string
		require.NoError(t, writer.QueryRow(t.Context(), `SHOW synchronous_standby_names`).Scan(&names))
		return names == "nobody"
	})
	committed := make(chan error, 1)
	go func() {
		_, err := writer.Exec(t.Context(), `INSERT INTO items VALUES (2, 'late'); UPDATE items SET v = 'after' WHERE
			id = 1`)
		committed <- err
	}()
	waitFor(t, "its key is entered", func() bool {
		return count(t, admin, fmt.Sprintf(`SELECT count(DISTINCT key_1) FROM heroku_migrator.changes_%d`, table)) == 2
	})
	require.EqualValues(t, 1, count(t, admin, `SELECT count(*) FROM items`), "nobody sees it")
	time.Sleep(time.Second) // rounds go on
	require.EqualValues(t, 1, countOn(t, p.target, `SELECT count(*) FROM items WHERE v = 'before'`))
	execute(t, admin, `ALTER SYSTEM RESET synchronous_standby_names`, `SELECT pg_reload_conf()`)
	require.NoError(t, <-committed)
	waitFor(t, "it is on the target", func() bool {
		return countOn(t, p.target, `SELECT count(*) FROM items WHERE v IN ('late', 'after')`) == 2
	})
	do(t, m, migrator.CommandSwitch)
	p.requireEqual(t)
}

// The slot lets the server recycle its log as it is read, while nothing is applied too: in a pause.
func TestSlotRetainsLittle(t *testing.T) {
	t.Parallel()
	p, server := decodingPair(t)
	p.sql(t, `CREATE TABLE items (id int PRIMARY KEY, v text)`)
	m := p.migrator(t)
	stop := run(t, m)
	waitFor(t, "in sync", func() bool { return phase(t, m) == migrator.PhaseReplicating })
	do(t, m, migrator.CommandPause)
	p.sql(t, `INSERT INTO items SELECT i, repeat('x', 500) FROM generate_series(1, 100000) i`)
	admin, err := pgx.Connect(t.Context(), server.AdminURL(p.source.Name))
	require.NoError(t, err)
	defer admin.Close(context.Background())
	execute(t, admin, `CHECKPOINT`)
	end := count(t, admin, `SELECT (pg_current_wal_lsn() - '0/0')::int8`)
	waitFor(t, "the slot has gone on", func() bool {
		return count(t, admin, `SELECT (confirmed_flush_lsn - '0/0')::int8 FROM pg_replication_slots WHERE database =
			current_database()`) > end-1<<20
	})
	require.Zero(t, countOn(t, p.target, `SELECT count(*) FROM items`))
	do(t, m, migrator.CommandResume)
	do(t, m, migrator.CommandSwitch)
	p.requireEqual(t)
	stop()
	do(t, m, migrator.CommandComplete)
	p.requireNoTrace(t)
}

// A slot that is gone, or invalidated since it retained too much, loses changes. Every table is sent whole then, on the
// way there and back.
func TestSlotIsLost(t *testing.T) {
	t.Parallel()
	p, server := decodingPair(t)
	target := ownServer(t, pgtest.TargetVersion())
	p.target = target.NewTarget(t)
	p.sql(t, smallSchema...)
	m := p.migrator(t)
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	lose := func(server *pgtest.Cluster, d *pgtest.Database) {
		admin, err := pgx.Connect(t.Context(), server.AdminURL(d.Name))
		require.NoError(t, err)
		defer admin.Close(context.Background())
		waitFor(t, "the slot is dropped", func() bool {
			_, err := admin.Exec(t.Context(), `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
				WHERE active`)
			require.NoError(t, err)
			_, err = admin.Exec(t.Context(), `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
				WHERE database = current_database()`)
			return err == nil
		})
	}
	p.sql(t, `UPDATE children SET n = n + 1`, `DELETE FROM parents WHERE id = 5`, `INSERT INTO children (parent, n)
		VALUES (7, 7777)`)
	lose(server, p.source)
	p.sql(t, `UPDATE children SET n = n + 1 WHERE id < 100`)
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	p.requireEqual(t)
	do(t, m, migrator.CommandSwitch)
	execute(t, p.target.Connect(t), `UPDATE children SET n = n + 1`, `DELETE FROM parents WHERE id = 6`)
	lose(target, p.target)
	execute(t, p.target.Connect(t), `INSERT INTO children (parent, n) VALUES (8, 8888)`)
	do(t, m, migrator.CommandRevert)
	p.requireEqual(t)
	do(t, m, migrator.CommandAbort)
	p.requireNoTrace(t)
}

// Decoding that was asked for and is not possible is refused, and says why; tables that it cannot do have triggers.
func TestDecodingIsNotPossible(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, smallSchema...)
	p.capture = migrator.CaptureDecoding // the role may not
	err := p.migrator(t).Run(withTimeout(t, time.Minute), migrator.UntilInSync)
	require.ErrorContains(t, err, "the role has no REPLICATION")
	require.ErrorAs(t, err, new(*migrator.RefusedError))
}

// A change of the replica identity to columns that are not the key: changes do not tell the key any more. It is
// refused, and no row is passed over.
func TestReplicaIdentityIsChanged(t *testing.T) {
	t.Parallel()
	p, _ := decodingPair(t)
	p.sql(t, `CREATE TABLE items (id int PRIMARY KEY, email text NOT NULL UNIQUE)`, `INSERT INTO items SELECT i, 'e'
		|| i FROM generate_series(1, 20) i`)
	m := p.migrator(t)
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	p.sql(t, `ALTER TABLE items REPLICA IDENTITY FULL`, `UPDATE items SET id = 100 WHERE id = 1`, `DELETE FROM items
		WHERE id = 2`)
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	p.requireEqual(t)
	p.sql(t, `ALTER TABLE items REPLICA IDENTITY USING INDEX items_email_key`, `UPDATE items SET id = 101 WHERE id = 3`)
	require.ErrorContains(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync), "replica identity")
	p.sql(t, `DELETE FROM items WHERE id = 4`)
	require.ErrorContains(t, p.migrator(t).Run(withTimeout(t, time.Minute), migrator.UntilInSync), "replica identity")
	p.sql(t, `ALTER TABLE items REPLICA IDENTITY DEFAULT`, `DELETE FROM items WHERE id = 5`)
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	p.requireEqual(t)
	p.sql(t, `UPDATE items SET id = 102 WHERE id = 6`)
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	p.requireEqual(t)
}

// Partitions whose identities are their own, of a root that gives later ones none: published, those would refuse the
// application's updates.
func TestIdentitiesThatPartitionsDoNotInherit(t *testing.T) {
	t.Parallel()
	p, _ := decodingPair(t)
	p.sql(t, `CREATE TABLE part (id int NOT NULL, v text) PARTITION BY RANGE (id)`, `CREATE UNIQUE INDEX part_id ON
		part (id)`,
		`CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (100)`, `ALTER TABLE part_1 REPLICA IDENTITY
			USING INDEX part_1_id_idx`, `INSERT INTO part SELECT i, 'v' FROM generate_series(0, 99) i`)
	m := p.migrator(t)
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	p.sql(t, `CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (100) TO (200)`, `INSERT INTO part SELECT i, 'v'
		FROM generate_series(100, 199) i`, `UPDATE part SET v = 'changed' WHERE id > 50`, `DELETE FROM part WHERE id
			= 150`)
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	p.requireEqual(t)
}

// The key's column is renamed, and another one takes its name.
func TestKeyColumnIsRenamedAndItsNameTaken(t *testing.T) {
	t.Parallel()
	p, _ := decodingPair(t)
	p.sql(t, `CREATE TABLE items (id int PRIMARY KEY, v text)`, `INSERT INTO items SELECT i, 'e' || i FROM
		generate_series(1, 20) i`)
	m := p.migrator(t)
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	p.sql(t, `BEGIN; ALTER TABLE items RENAME id TO old_id; ALTER TABLE items ADD id bigint; UPDATE items SET id =
		1000 + old_id WHERE old_id > 10; COMMIT`, `DELETE FROM items WHERE old_id = 1`)
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	p.sql(t, `UPDATE items SET id = 2000 + old_id WHERE old_id < 5`, `DELETE FROM items WHERE old_id = 2`, `UPDATE
		items SET old_id = 50 WHERE old_id = 3`)
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	p.requireEqual(t)
}

// One process reads the slot. Another one that would share the copy is told so, and does not disturb the one that
// leads.
func TestAnotherProcessDoesNotReadTheSlot(t *testing.T) {
	t.Parallel()
	p, _ := decodingPair(t)
	p.sql(t, `CREATE TABLE items (id int PRIMARY KEY, v text)`, `INSERT INTO items SELECT i, repeat('x', 500) FROM
		generate_series(1, 20000) i`)
	m := p.migrator(t, func(c *migrator.Config) { c.HoldBeforeCopy, c.Copy.MaxBytesPerSecond = true, 4<<20 })
	ctx := withTimeout(t, time.Minute)
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx, migrator.UntilInSync) }()
	waitFor(t, "it may copy", func() bool { return phase(t, m) == migrator.PhaseReadyToCopy })
	src, dst := p.open(t)
	shared := make(chan error, 1)
	go func() {
		shared <- migrator.CopyWorker(ctx, src, dst, migrator.CopyConfig{Workers: 1, Logger: testLogger(t)})
	}()
	do(t, m, migrator.CommandCopy)
	require.ErrorContains(t, <-shared, "only the process that leads can do")
	require.NoError(t, <-ended)
	require.NotContains(t, timeline(t, p), "trying again")
	p.requireEqual(t)
}

// Another process than the one that switched knows of the slot on the target: it reads it while the way back is off,
// and a revert names what would stay behind.
func TestSlotOfAnotherProcessWhileTheWayBackIsOff(t *testing.T) {
	t.Parallel()
	p, server := decodingPair(t)
	target := ownServer(t, pgtest.TargetVersion())
	p.target = target.NewTarget(t)
	p.sql(t, smallSchema...)
	off := func(c *migrator.Config) { c.WayBack.Disabled = true }
	m := p.migrator(t, off)
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	do(t, m, migrator.CommandSwitch)
	execute(t, p.target.Connect(t), `INSERT INTO children (parent, n) VALUES (7, 7777)`, `DELETE FROM parents WHERE
		id = 5`)
	other := p.migrator(t, off)
	_, err := other.Do(withTimeout(t, time.Minute), migrator.CommandRevert, false)
	require.ErrorAs(t, err, new(*migrator.RefusedError))
	require.ErrorContains(t, err, "children")
	execute(t, p.target.Connect(t), `INSERT INTO journal (what) SELECT repeat('x', 500) FROM generate_series(1, 20000)`)
	old, err := pgx.Connect(t.Context(), server.AdminURL(p.source.Name))
	require.NoError(t, err)
	defer old.Close(context.Background())
	execute(t, old, `SELECT pg_logical_emit_message(false, 'other', repeat('x', 1000000)) FROM generate_series(1, 5)`)
	oldEnd := count(t, old, `SELECT (pg_current_wal_lsn() - '0/0')::int8`)
	stop := run(t, p.migrator(t, off))
	admin, err := pgx.Connect(t.Context(), target.AdminURL(p.target.Name))
	require.NoError(t, err)
	defer admin.Close(context.Background())
	end := count(t, admin, `SELECT (pg_current_wal_lsn() - '0/0')::int8`)
	waitFor(t, "the slot has gone on", func() bool {
		return count(t, admin, `SELECT (confirmed_flush_lsn - '0/0')::int8 FROM pg_replication_slots WHERE database =
			current_database()`) > end-1<<20
	})
	waitFor(t, "that on the source, too", func() bool {
		return count(t, old, `SELECT (confirmed_flush_lsn - '0/0')::int8 FROM pg_replication_slots WHERE database =
			current_database()`) > oldEnd-1<<20
	})
	stop()
	_, err = p.migrator(t, off).Do(withTimeout(t, time.Minute), migrator.CommandRevert, true)
	require.NoError(t, err)
	require.NoError(t, p.migrator(t).Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	p.requireEqual(t)
}

// The way back is stopped by a change of the target's schema. Its slot is read nevertheless; and when that is lost, a
// revert can be forced.
func TestSlotWhileTheWayBackIsStopped(t *testing.T) {
	t.Parallel()
	p, _ := decodingPair(t)
	server := ownServer(t, pgtest.TargetVersion())
	p.target = server.NewTarget(t)
	p.sql(t, smallSchema...)
	m := p.migrator(t)
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	do(t, m, migrator.CommandSwitch)
	execute(t, p.target.Connect(t), `ALTER TABLE children ADD other int`, `ALTER TABLE children DROP n`,
		`INSERT INTO journal (what) SELECT repeat('x', 500) FROM generate_series(1, 20000)`)
	admin, err := pgx.Connect(t.Context(), server.AdminURL(p.target.Name))
	require.NoError(t, err)
	defer admin.Close(context.Background())
	end := count(t, admin, `SELECT (pg_current_wal_lsn() - '0/0')::int8`)
	stop := run(t, m)
	waitFor(t, "the slot has gone on", func() bool {
		return count(t, admin, `SELECT (confirmed_flush_lsn - '0/0')::int8 FROM pg_replication_slots WHERE database =
			current_database()`) > end-1<<20
	})
	stop()
	execute(t, p.target.Connect(t), `ALTER TABLE children ADD n int`, `DELETE FROM parents WHERE id = 5`)
	waitFor(t, "the slot is dropped", func() bool {
		execute(t, admin, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active`)
		_, err := admin.Exec(t.Context(), `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE
			database = current_database()`)
		return err == nil
	})
	off := p.migrator(t, func(c *migrator.Config) { c.WayBack.Disabled = true })
	_, err = off.Do(withTimeout(t, time.Minute), migrator.CommandRevert, false)
	require.ErrorAs(t, err, new(*migrator.RefusedError))
	_, err = off.Do(withTimeout(t, time.Minute), migrator.CommandRevert, true)
	require.NoError(t, err)
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	p.requireEqual(t)
	require.EqualValues(t, 200, countOn(t, p.target, `SELECT count(*) FROM parents`))
	require.Zero(t, countOn(t, p.target, `SELECT count(*) FROM journal WHERE what LIKE 'x%'`))
}

// A slot is made once every transaction of the server has ended that writes. One that does not end keeps a switch from
// nothing: there are triggers then, or it is refused where decoding was asked for.
func TestSlotThatCannotBeMade(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	server := ownServer(t, pgtest.TargetVersion())
	p.target = server.NewTarget(t)
	admin, err := pgx.Connect(t.Context(), server.AdminURL("postgres"))
	require.NoError(t, err)
	defer admin.Close(context.Background())
	execute(t, admin, `ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'`, `SELECT pg_reload_conf()`)
	p.sql(t, smallSchema...)
	m := inSync(t, p)
	execute(t, admin, `BEGIN`, `SELECT pg_current_xact_id()`)
	p.capture, p.slotTimeout = migrator.CaptureDecoding, 3*time.Second // on the target: the source is captured already
	_, err = p.migrator(t).Do(withTimeout(t, time.Minute), migrator.CommandSwitch, false)
	require.ErrorAs(t, err, new(*migrator.RefusedError))
	require.ErrorContains(t, err, "No replication slot could be made")
	do(t, m, migrator.CommandSwitch)
	execute(t, p.target.Connect(t), `INSERT INTO children (parent, n) VALUES (7, 7777)`, `DELETE FROM parents WHERE
		id = 5`)
	do(t, m, migrator.CommandRevert)
	p.requireEqual(t)
	require.Zero(t, count(t, admin, `SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM
		pg_publication)`))
	execute(t, admin, `ROLLBACK`)
	do(t, m, migrator.CommandSwitch)
	require.EqualValues(t, 1, count(t, admin, `SELECT count(*) FROM pg_replication_slots`))
	execute(t, p.target.Connect(t), `UPDATE children SET n = n + 1`)
	do(t, m, migrator.CommandRevert)
	p.requireEqual(t)
	do(t, m, migrator.CommandAbort)
	p.requireNoTrace(t)
}
