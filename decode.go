package migrator

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Logical decoding: the second way to learn which keys changed, for servers and roles that allow it. No trigger is on
// the tables; the keys are read from the write-ahead log and entered in the same logs that triggers fill. See
// ARCHITECTURE.md, Logical decoding; what reads the stream is decodestream.go.

// CaptureMethod says how changes are captured.
type CaptureMethod string

// The methods.
const (
	// CaptureAuto is triggers on the source. On the target, after the switch, it is decoding where the role may
	// replicate, wal_level is logical, and max_slot_wal_keep_size bounds what a slot can retain: one that nobody reads
	// would otherwise fill the disk of the database that is in production then.
	CaptureAuto     CaptureMethod = ""
	CaptureTriggers CaptureMethod = "triggers"
	// CaptureDecoding is logical decoding, of tables whose key is their replica identity. The others have triggers.
	CaptureDecoding CaptureMethod = "decoding"
)

func (m CaptureMethod) check() error {
	switch m {
	case CaptureAuto, CaptureTriggers, CaptureDecoding:
		return nil
	}
	return fmt.Errorf("the method of capture is %q; it is triggers or decoding", string(m))
}

// ErrSlotLost is returned when the replication slot that changes are read from is gone or was invalidated: changes are
// missing, and every table has to be sent whole, as Run does by itself.
var ErrSlotLost = errors.New("the replication slot is gone, and changes with it: every table has to be sent whole, " +
	"as Run does by itself")

// decodeName is the name of the publication, and the prefix of slots and messages; ourSlots is a pattern for LIKE.
const (
	decodeName = SchemaName
	ourSlots   = `heroku\_migrator\_%`
)

// decoder is logical decoding on one of the two servers.
type decoder struct {
	method CaptureMethod
	side   string // "source" or "target"
	at     *address
	pool   *pgxpool.Pool
	change beginner
	leads  func() bool // whether this process may change anything there
	// enabled tells that there is a slot, as far as this process knows.
	enabled atomic.Bool
	// incomplete tells that changes in the slot do not tell the keys, so that another one is needed.
	incomplete atomic.Bool

	mu     sync.Mutex // of what follows: the stream
	stream *decodeStream
}

// close ends the stream. The slot stays.
func (d *decoder) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.disconnect()
}

// oldestDecoding is the first version whose pgoutput sends messages, by which the end of what is due is recognised.
const oldestDecoding = 140000

// possible tells what keeps the server or the role from decoding; empty: nothing.
func (d *decoder) possible(ctx context.Context) (reasons []string, bounded bool, err error) {
	var version, slots int
	var level string
	var may bool
	err = d.pool.QueryRow(ctx, `
		SELECT current_setting('server_version_num')::int, current_setting('wal_level'),
		       current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots),
		       (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user),
		       coalesce(current_setting('max_slot_wal_keep_size', true), '-1') <>
		'-1'`).Scan(&version, &level, &slots, &may, &bounded)
	if err != nil {
		return nil, false, fmt.Errorf("ask whether the %s can decode: %w", d.side, err)
	}
	if version < oldestDecoding {
		reasons = append(reasons, "Postgres 14 is the oldest that can")
	}
	if level != "logical" {
		reasons = append(reasons, "wal_level is "+level+", not logical")
	}
	if !may {
		reasons = append(reasons, "the role has no REPLICATION")
	}
	if slots <= 0 && !d.enabled.Load() {
		reasons = append(reasons, "no replication slot is free (max_replication_slots)")
	}
	return reasons, bounded, nil
}

// wanted decides whether tables are captured by decoding from now on.
func (d *decoder) wanted(ctx context.Context) (bool, error) {
	if d.method == CaptureTriggers || (d.method == CaptureAuto && d.side == "source") {
		return false, nil
	}
	reasons, bounded, err := d.possible(ctx)
	if err != nil {
		return false, err
	}
	if d.method == CaptureAuto {
		return len(reasons) == 0 && bounded, nil
	}
	if len(reasons) > 0 {
		return false, refuse("capture", "Changes on the %s cannot be captured by logical decoding: %s. Capture them "+
			"by triggers.", d.side, strings.Join(reasons, "; "))
	}
	return true, nil
}

// inspectWayBack says how changes on the target will be captured after the switch, and what that costs.
func (d *decoder) inspectWayBack(ctx context.Context) (Finding, error) {
	f := Finding{Check: "way_back", Severity: SeverityInfo}
	reasons, bounded, err := d.possible(ctx)
	if err != nil {
		return f, err
	}
	if !bounded && d.method == CaptureAuto {
		reasons = append(reasons, "max_slot_wal_keep_size is -1, so that a slot which nobody reads would fill the disk")
	}
	switch {
	case d.method == CaptureTriggers:
		f.Message = "After the switch, changes on the target are captured by triggers, for the way back. They cost " +
			"its writes what capture costs those of the source now."
	case len(reasons) == 0:
		f.Message = "After the switch, changes on the target are read from its write-ahead log by a replication " +
			"slot, for the way back. That adds nothing to the application's writes; tables whose key is not their " +
			"replica identity have triggers."
		f.Remedy = "Keep a process of the migration running until it is completed: what the slot retains grows until " +
			"it is read."
	case d.method == CaptureDecoding:
		f.Severity = SeverityBlocker
		f.Message = "Changes on the target cannot be captured by logical decoding after the switch: " +
			strings.Join(reasons, "; ") + "."
		f.Remedy = "Have them captured by triggers."
	default:
		f.Message = "After the switch, changes on the target are captured by triggers, for the way back. They cost " +
			"its writes what capture costs those of the source now. Logical decoding would cost them nothing, but: " +
			strings.Join(reasons, "; ") + "."
	}
	return f, nil
}

// inspectCapture says whether the source can be captured as was asked for.
func (d *decoder) inspectCapture(ctx context.Context) ([]Finding, error) {
	if d.method != CaptureDecoding {
		return nil, nil
	}
	reasons, _, err := d.possible(ctx)
	if err != nil || len(reasons) == 0 {
		return nil, err
	}
	return []Finding{{
		Check: "capture", Severity: SeverityBlocker, Message: "Changes on the source cannot be captured by logical " +
			"decoding: " + strings.Join(reasons, "; ") + ".",
		Remedy: "Have them captured by triggers, as on Heroku.",
	}}, nil
}

// prepare makes the publication and the slot, if they are not there. The publication comes first, since what is decoded
// needs it to have been there; and the slot before any table is captured.
func (d *decoder) prepare(ctx context.Context) error {
	err := d.change(ctx, func(tx pgx.Tx) error {
		var exists bool
		if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM pg_publication WHERE pubname = $1)`,
			decodeName).Scan(&exists); err != nil || exists {
			return err
		}
		_, err := tx.Exec(ctx, `CREATE PUBLICATION `+decodeName+` WITH (publish = 'insert, update, delete, truncate')`)
		return err
	})
	var slot string
	if err == nil {
		slot, err = d.slot(ctx)
	}
	if err == nil && slot == "" {
		if slot, err = d.createSlot(ctx, ""); err == nil {
			err = d.change(ctx, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, `UPDATE heroku_migrator.migration SET slot = $1`, slot)
				return err
			})
		}
	}
	if err != nil {
		return fmt.Errorf("prepare logical decoding on the %s: %w", d.side, err)
	}
	d.enabled.Store(true)
	return nil
}

// slot is the name of the slot in use; "" if there is none.
func (d *decoder) slot(ctx context.Context) (slot string, err error) {
	err = d.pool.QueryRow(ctx, `SELECT slot FROM heroku_migrator.migration`).Scan(&slot)
	return slot, err
}

// look tells whether there is a slot, which another process may have made.
func (d *decoder) look(ctx context.Context) (bool, error) {
	if d.enabled.Load() {
		return true, nil
	}
	slot, err := d.slot(ctx)
	if code := sqlState(err); code == "42P01" || code == "3F000" { // nothing of ours is there
		err = nil
	}
	if err == nil && slot != "" {
		d.enabled.Store(true)
	}
	return slot != "", err
}

// createSlot makes a new slot. Its name is that of the migration, of the side, and a number: which of them is complete
// is what the journal says, so that one which was made and not yet used is told from one that is.
func (d *decoder) createSlot(ctx context.Context, before string) (string, error) {
	var id string
	var version int
	if err := d.pool.QueryRow(ctx, `SELECT id::text, current_setting('server_version_num')::int FROM
		heroku_migrator.migration`).Scan(&id, &version); err != nil {
		return "", err
	}
	prefix := decodeName + "_" + strings.ReplaceAll(id, "-", "") + "_" + d.side[:1]
	number, _ := strconv.Atoi(strings.TrimPrefix(before, prefix))
	name := prefix + strconv.Itoa(number+1)
	if err := d.dropSlots(ctx, name); err != nil {
		return "", err
	}
	conn, err := d.connectReplication(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	// It waits for the transactions that are under way, without a snapshot of its own.
	options := "NOEXPORT_SNAPSHOT"
	switch {
	case version >= 170000:
		options = "(SNAPSHOT 'nothing', FAILOVER)"
	case version >= 150000:
		options = "(SNAPSHOT 'nothing')"
	}
	_, err = pglogrepl.ParseCreateReplicationSlot(conn.Exec(ctx, "CREATE_REPLICATION_SLOT "+name+" LOGICAL pgoutput "+
		""+options))
	if err != nil {
		return "", fmt.Errorf("create a replication slot: %w", err)
	}
	return name, nil
}

// dropSlots drops our slots of this database whose names are like the pattern, whoever reads them.
func (d *decoder) dropSlots(ctx context.Context, pattern string) error {
	for attempt := 1; ; attempt++ {
		_, err := d.pool.Exec(ctx, `
			SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = current_database() AND
			slot_name LIKE $1 AND active_pid IS NOT NULL`, pattern)
		if err == nil {
			_, err = d.pool.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE
				database = current_database() AND slot_name LIKE $1`, pattern)
		}
		// its session is about to end; it was dropped by another
		if state := sqlState(err); (state != "55006" && state != "42704") || attempt == 50 {
			return err
		}
		if err := sleep(ctx, backoff(attempt, 20e6, 200e6)); err != nil {
			return err
		}
	}
}

// remove takes away the publication and our slots.
func (d *decoder) remove(ctx context.Context, change beginner) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.disconnect()
	d.enabled.Store(false)
	err := d.dropSlots(ctx, ourSlots)
	if err == nil {
		err = change(ctx, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `DROP PUBLICATION IF EXISTS `+decodeName)
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("end logical decoding on the %s: %w", d.side, err)
	}
	return nil
}

// decodable tells whether the changes of a table can be decoded: each relation that holds its rows has a replica
// identity that tells its key. Where one has none, to publish it would make the application's updates fail. Generated
// columns are not sent. Partitions made later get theirs from the root's primary key, and from nothing else.
func decodable(ctx context.Context, q querier, t *Table) (can bool, err error) {
	if t.Keyless() {
		return false, nil
	}
	err = q.QueryRow(ctx, `
		SELECT coalesce(bool_and(c.relpersistence = 'p' AND c.relkind = 'r' AND (c.relreplident = 'f' OR coalesce(
			(SELECT array_agg(a.attname::text ORDER BY a.attname::text) FROM pg_index x CROSS JOIN
			unnest(x.indkey[0:x.indnkeyatts - 1]) AS k(att)
			 JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.att WHERE x.indexrelid =
			pg_get_replica_identity_index(c.oid))
			= (SELECT array_agg(k ORDER BY k) FROM unnest($2::text[]) AS k), false))
			AND NOT EXISTS (SELECT 1 FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = ANY ($2::text[]) AND
			a.attgenerated <> '')), false)
			AND NOT EXISTS (SELECT 1 FROM pg_class r WHERE r.oid = to_regclass($1) AND r.relkind = 'p'
				AND NOT EXISTS (SELECT 1 FROM pg_index x WHERE x.indrelid = r.oid AND x.indisprimary))
		FROM pg_class c WHERE c.oid = to_regclass($1) AND c.relkind = 'r'
		   OR c.oid IN (SELECT p.relid FROM `+treeOf(`to_regclass($1)`)+` AS p WHERE
			p.isleaf)`, t.Ident(), t.Key).Scan(&can)
	return can, err
}

// capture writes the statements that capture a table by decoding, as buildCapture does by triggers.
func (d *decoder) capture(t *Table) captureSQL {
	return captureSQL{
		log: t.createLog() + fmt.Sprintf(`
			ALTER TABLE %s ADD COLUMN heroku_migrator_entered xid8 NOT NULL DEFAULT
			pg_catalog.pg_current_xact_id();`, logName(t.ID)),
		attach: fmt.Sprintf(`ALTER PUBLICATION %s ADD TABLE %s;`, decodeName, t.Only()),
	}
}

// renew makes sure that there is a slot from which nothing is missing after what resend does, and notes it then.
func (d *decoder) renew(ctx context.Context, resend func() error) error {
	slot, err := d.slot(ctx)
	if err != nil || slot == "" {
		return errors.Join(err, resend())
	}
	var works bool
	err = d.pool.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM pg_replication_slots WHERE slot_name = $1 AND database =
		current_database() AND coalesce(wal_status, '') <> 'lost')`, slot).Scan(&works)
	if err != nil || (works && !d.incomplete.Load()) {
		return errors.Join(err, resend())
	}
	d.mu.Lock()
	d.disconnect()
	d.mu.Unlock()
	if err := d.dropSlots(ctx, slot); err != nil {
		return err
	}
	if slot, err = d.createSlot(ctx, slot); err != nil {
		return err
	}
	if err := resend(); err != nil { // reads the tables after the slot was made
		return err
	}
	err = d.change(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE heroku_migrator.migration SET slot = $1`, slot)
		return err
	})
	if err == nil {
		d.incomplete.Store(false)
	}
	return err
}

// retained is how many bytes of the write-ahead log the slot keeps from being recycled.
func (d *decoder) retained(ctx context.Context) (bytes int64, err error) {
	if !d.enabled.Load() {
		return 0, nil
	}
	err = d.pool.QueryRow(ctx, `
		SELECT coalesce(sum(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)), 0)::int8 FROM pg_replication_slots
		WHERE slot_name = (SELECT slot FROM heroku_migrator.migration)`).Scan(&bytes)
	if err != nil {
		return 0, fmt.Errorf("measure what the slot retains: %w", err)
	}
	return bytes, nil
}

// logSize lets the slot go on, and measures what it retains and the logs.
func (d *decoder) logSize(ctx context.Context) (int64, error) {
	there, err := d.look(ctx)
	if err == nil && there {
		err = d.drain(ctx)
	}
	if err != nil {
		return 0, err
	}
	bytes, err := logSize(ctx, d.pool)
	if err != nil {
		return 0, err
	}
	retained, err := d.retained(ctx)
	return bytes + retained, err
}

// ours marks a transaction whose changes are not to be carried anywhere: they came from the other side.
func (d *decoder) ours(ctx context.Context, tx pgx.Tx) error {
	if !d.enabled.Load() {
		return nil
	}
	_, err := tx.Exec(ctx, `SELECT pg_logical_emit_message(true, $1, $2)`, decodeName, markOurs)
	return err
}

// connectReplication opens a connection in replication mode, whose text is what our other sessions read.
func (d *decoder) connectReplication(ctx context.Context) (*pgconn.PgConn, error) {
	url, err := d.at.current(ctx)
	if err != nil {
		return nil, err
	}
	cfg, err := url.ConnConfig()
	if err != nil {
		return nil, err
	}
	cfg.RuntimeParams["replication"] = "database"
	cfg.RuntimeParams["application_name"] = SchemaName + " " + thisProcess()
	conn, err := pgconn.ConnectConfig(ctx, &cfg.Config)
	if err != nil {
		return nil, err
	}
	var set strings.Builder
	for _, name := range []string{"client_encoding", "DateStyle", "IntervalStyle", "TimeZone", "extra_float_digits",
		"bytea_output", "array_nulls", "xmloption", "xmlbinary", "lc_monetary", "quote_all_identifiers",
		"statement_timeout"} {
		fmt.Fprintf(&set, "SET %s = '%s'; ", name, commonSettings[name])
	}
	// Between two rounds nobody answers the server.
	if err := conn.Exec(ctx, set.String()+`SET search_path = ''; SET wal_sender_timeout = '5min'`).Close(); err != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
		return nil, err
	}
	return conn, nil
}
