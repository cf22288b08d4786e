package migrator

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// decodeStream is a connection that receives a slot's changes, and the keys that were received and are not entered yet.
type decodeStream struct {
	conn      *pgconn.PgConn
	slot      string
	relations map[uint32]*decodedRelation
	xid       uint64 // of the transaction that is being received
	ours      bool   // it brings what came from the other side
	next      uint64 // a transaction ID, in full, near those that are received
	received  pglogrepl.LSN
	confirmed pglogrepl.LSN

	before, after []field // of the row that is being read

	keys      map[uint32]*bytes.Buffer // lines of COPY for each table's log
	truncated []truncation
	size      int
}

type truncation struct {
	relation uint32
	xid      uint64
}

// decodedRelation is a table or partition whose rows are received.
type decodedRelation struct {
	table uint32 // the log's number; 0 if nothing of it is captured
	key   []int  // the places of the key's columns in a row that is received, in the log's order
}

// Contents of messages.
const (
	markOurs = "applied"
	markEnd  = "until here "
)

// drain enters the keys of all changes in the logs that were committed before it was called: a message is committed, and what the server
// sends before it is what is due, since it sends transactions in the order of their commits. One process can read a slot: another one would
// end its connection.
func (d *decoder) drain(ctx context.Context) error {
	if !d.leads() {
		return refuse("read changes", "Changes on the %s are read from a replication slot, which only the process that leads can do: let it copy alone.", d.side)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for attempt := 1; ; attempt++ {
		err := d.drainOnce(ctx)
		if err == nil {
			return nil
		}
		d.disconnect()
		// While nothing is read, the server may have ended the connection.
		again := pgconn.Timeout(err) || sqlState(err) == "" || Retryable(err)
		if attempt > 1 || !again || ctx.Err() != nil || errors.Is(err, ErrSlotLost) || errors.Is(err, ErrLostLead) {
			return fmt.Errorf("decode changes on the %s: %w", d.side, err)
		}
	}
}

// disconnect ends the stream. The server notices by itself, so there is nothing to wait for.
func (d *decoder) disconnect() {
	if d.stream == nil {
		return
	}
	_ = d.stream.conn.Conn().Close()
	d.stream = nil
}

func (d *decoder) drainOnce(ctx context.Context) error {
	slot, err := d.slot(ctx)
	if err != nil {
		return err
	}
	if slot == "" {
		return nil
	}
	if d.stream != nil && d.stream.slot != slot {
		d.disconnect()
	}
	if d.stream == nil {
		if err := d.connect(ctx, slot); err != nil {
			return err
		}
	}
	s := d.stream
	end := markEnd + strconv.FormatInt(time.Now().UnixNano(), 36) + thisProcess()
	if err := d.emit(ctx, end, &s.next); err != nil {
		return err
	}
	for seen := false; !seen; {
		message, err := d.receive(ctx)
		if err != nil {
			return err
		}
		if seen, err = d.take(ctx, message, end); err != nil {
			return err
		}
		const much = 1 << 20
		if s.size > much {
			if err := d.enter(ctx); err != nil {
				return err
			}
		}
	}
	if err := d.enter(ctx); err != nil {
		return err
	}
	s.confirmed = s.received
	return s.confirm(ctx)
}

// emit commits a message, flushed so that it is sent at once. It also asks which transaction IDs are in use.
func (d *decoder) emit(ctx context.Context, content string, next *uint64) error {
	var batch pgx.Batch
	batch.Queue("BEGIN")
	batch.Queue("SET LOCAL synchronous_commit = local")
	batch.Queue(`SELECT pg_logical_emit_message(true, $1, $2)`, decodeName, content)
	batch.Queue(`SELECT pg_snapshot_xmax(pg_current_snapshot())::text`).QueryRow(func(row pgx.Row) error {
		var text string
		if err := row.Scan(&text); err != nil {
			return err
		}
		var err error
		*next, err = strconv.ParseUint(text, 10, 64)
		return err
	})
	batch.Queue("COMMIT")
	return d.pool.SendBatch(ctx, &batch).Close()
}

// connect begins to receive from the slot. A process that is gone may still hold it.
func (d *decoder) connect(ctx context.Context, slot string) error {
	for attempt := 1; ; attempt++ {
		conn, err := d.connectReplication(ctx)
		if err != nil {
			return err
		}
		err = pglogrepl.StartReplication(ctx, conn, slot, 0, pglogrepl.StartReplicationOptions{
			Mode: pglogrepl.LogicalReplication, PluginArgs: []string{"proto_version '1'", "publication_names '" + decodeName + "'", "messages 'true'"},
		})
		if err == nil {
			d.stream = &decodeStream{conn: conn, slot: slot, relations: map[uint32]*decodedRelation{}, keys: map[uint32]*bytes.Buffer{}}
			return nil
		}
		_ = conn.Close(context.WithoutCancel(ctx))
		switch sqlState(err) {
		case "42704", "55000":
			return fmt.Errorf("%w (%v)", ErrSlotLost, err) //nolint:errorlint // its code would say that the schema is another one
		case "55006": // in use
			if attempt == 20 {
				return fmt.Errorf("%w: %w", errPassing, err)
			}
			// Whoever has it does not lead any more, or it is a connection of ours that broke: what it reads is not lost.
			if _, err := d.pool.Exec(ctx, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active_pid IS NOT NULL`, slot); err != nil {
				return err
			}
			if err := sleep(ctx, 100*time.Millisecond); err != nil {
				return err
			}
		default:
			return err
		}
	}
}

// receive returns the next message of the stream. The server behind the address may have changed, while the old one still sends: from time to
// time it is asked who reads the slot.
func (d *decoder) receive(ctx context.Context) ([]byte, error) {
	for {
		limited, cancel := context.WithTimeout(ctx, 10*time.Second)
		message, err := d.stream.conn.ReceiveMessage(limited)
		cancel()
		if err != nil && ctx.Err() == nil && pgconn.Timeout(err) && !d.stream.conn.IsClosed() {
			if err := d.stillReads(ctx); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		switch m := message.(type) {
		case *pgproto3.ErrorResponse:
			return nil, pgconn.ErrorResponseToPgError(m)
		case *pgproto3.CopyData:
			switch m.Data[0] {
			case pglogrepl.PrimaryKeepaliveMessageByteID:
				alive, err := pglogrepl.ParsePrimaryKeepaliveMessage(m.Data[1:])
				if err != nil {
					return nil, err
				}
				if alive.ReplyRequested {
					if err := d.stream.confirm(ctx); err != nil {
						return nil, err
					}
				}
			case pglogrepl.XLogDataByteID:
				data, err := pglogrepl.ParseXLogData(m.Data[1:])
				return data.WALData, err
			}
		case *pgproto3.CopyDone, *pgproto3.CommandComplete, *pgproto3.ReadyForQuery:
			return nil, fmt.Errorf("the server ended the stream of changes: %w", errPassing)
		}
	}
}

// stillReads makes sure that the slot is read by this stream.
func (d *decoder) stillReads(ctx context.Context) error {
	var pid *int64
	err := d.pool.QueryRow(ctx, `SELECT max(active_pid)::int8 FROM pg_replication_slots WHERE slot_name = $1`, d.stream.slot).Scan(&pid)
	if err == nil && (pid == nil || *pid != int64(d.stream.conn.PID())) {
		err = fmt.Errorf("another server has taken the place of the one that sends changes: %w", errPassing)
	}
	return err
}

// confirm tells the server up to where it need not send changes again.
func (s *decodeStream) confirm(ctx context.Context) error {
	if s.confirmed == 0 {
		return nil
	}
	return pglogrepl.SendStandbyStatusUpdate(ctx, s.conn, pglogrepl.StandbyStatusUpdate{WALWritePosition: s.confirmed})
}

// take notes the keys of one message. It tells whether the transaction that has the message end was received.
func (d *decoder) take(ctx context.Context, data []byte, end string) (bool, error) {
	s := d.stream
	switch pglogrepl.MessageType(data[0]) {
	case pglogrepl.MessageTypeInsert, pglogrepl.MessageTypeUpdate, pglogrepl.MessageTypeDelete: // nearly all; of these, only the key is looked at
		return false, s.row(data)
	default:
	}
	message, err := pglogrepl.Parse(data)
	if err != nil {
		return false, fmt.Errorf("read the stream of changes: %w", err)
	}
	switch m := message.(type) {
	case *pglogrepl.BeginMessage:
		s.xid, s.ours = inFull(m.Xid, s.next), false
	case *pglogrepl.CommitMessage:
		s.received = m.TransactionEndLSN
	case *pglogrepl.LogicalDecodingMessage:
		if m.Prefix != decodeName {
			return false, nil
		}
		s.ours = s.ours || string(m.Content) == markOurs
		// Its commit follows, and is confirmed with the next drain.
		return string(m.Content) == end, nil
	case *pglogrepl.RelationMessage:
		s.relations[m.RelationID], err = d.resolve(ctx, m)
		return false, err
	case *pglogrepl.TruncateMessage:
		for _, id := range m.RelationIDs {
			if r := s.relations[id]; !s.ours && r != nil && r.table != 0 {
				s.truncated = append(s.truncated, truncation{id, s.xid})
			}
		}
	}
	return false, nil
}

// inFull is a transaction's ID with its epoch, given one that is not far from it.
func inFull(xid uint32, near uint64) uint64 {
	const epoch = 1 << 32
	full := near&^(epoch-1) | uint64(xid)
	switch {
	case full > near+epoch/2 && full >= epoch:
		full -= epoch
	case full+epoch/2 < near:
		full += epoch
	}
	return full
}

// resolve finds the log of a relation, and the places of its key. A relation that is gone by now has no rows that could be missing.
func (d *decoder) resolve(ctx context.Context, m *pglogrepl.RelationMessage) (*decodedRelation, error) {
	t := &Table{}
	err := d.pool.QueryRow(ctx, `
		SELECT c.relid, c.key, n.nspname, r.relname FROM heroku_migrator.captured c JOIN pg_class r ON r.oid = c.here JOIN pg_namespace n ON n.oid = r.relnamespace
		WHERE c.decoded AND c.here = coalesce(
			(SELECT r.relid::oid FROM pg_partition_ancestors($1::oid) WITH ORDINALITY AS r(relid, n) ORDER BY n DESC LIMIT 1), $1::oid)`, m.RelationID).
		Scan(&t.ID, &t.Key, &t.Schema, &t.Name)
	if errors.Is(err, pgx.ErrNoRows) {
		return &decodedRelation{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find the log of %s.%s: %w", m.Namespace, m.RelationName, err)
	}
	r := &decodedRelation{table: t.ID}
	// Only columns of the replica identity: of others, a row that is deleted, or whose key was changed, does not tell the value.
	var renamed []int // those that the key does not know
	for i, c := range m.Columns {
		if c.Flags == 1 && m.ReplicaIdentity != 'f' && !slices.Contains(t.Key, c.Name) {
			renamed = append(renamed, i)
		}
	}
	for _, name := range t.Key {
		place := slices.IndexFunc(m.Columns, func(c *pglogrepl.RelationMessageColumn) bool { return c.Name == name && c.Flags == 1 })
		there := slices.ContainsFunc(m.Columns, func(c *pglogrepl.RelationMessageColumn) bool { return c.Name == name })
		if place < 0 && len(renamed) == 1 && (!there || m.ReplicaIdentity == 'd') { // else the identity may be another index
			place, renamed = renamed[0], nil
		}
		if place < 0 {
			return nil, d.withoutKey(ctx, t, name)
		}
		r.key = append(r.key, place)
	}
	return r, nil
}

// withoutKey says that changes do not tell the key of a table. If they would by now, only what was changed meanwhile is missing.
func (d *decoder) withoutKey(ctx context.Context, t *Table, column string) error {
	can, err := decodable(ctx, d.pool, t)
	switch {
	case err != nil:
		return err
	case can:
		d.incomplete.Store(true)
		return fmt.Errorf("the replica identity of %s was another one for a while: %w", t, ErrSlotLost)
	}
	return refuse("decode", "Column %s of the key of %s on the %s is not in its changes any more: it was renamed together with another, or its replica identity changed. Undo that and run again, or abort and capture by triggers.",
		column, t, d.side)
}

// field is a column of a row that was received.
type field struct {
	kind byte // as pglogrepl names them: TupleDataTypeText and so on
	data []byte
}

var errMalformed = errors.New("a row in the stream of changes is malformed")

// row notes the keys of a changed row: the new one, and the old one if it is there.
func (s *decodeStream) row(message []byte) error {
	if len(message) < 6 {
		return errMalformed
	}
	r, rest := s.relations[binary.BigEndian.Uint32(message[1:])], message[5:]
	if s.ours || r == nil || r.table == 0 {
		return nil
	}
	var err error
	s.before, s.after = s.before[:0], s.after[:0]
	if rest[0] == 'K' || rest[0] == 'O' {
		if s.before, rest, err = fields(s.before, rest[1:]); err != nil {
			return err
		}
	}
	if len(rest) > 0 && rest[0] == 'N' {
		if s.after, _, err = fields(s.after, rest[1:]); err != nil {
			return err
		}
	}
	for _, row := range [][]field{s.before, s.after} {
		if len(row) == 0 {
			continue
		}
		if err := s.key(r, row, s.before); err != nil {
			return err
		}
	}
	return nil
}

// fields reads the columns of one row, and returns what follows it.
func fields(list []field, data []byte) (_ []field, rest []byte, err error) {
	if len(data) < 2 {
		return nil, nil, errMalformed
	}
	n, data := binary.BigEndian.Uint16(data), data[2:]
	for range n {
		if len(data) < 1 {
			return nil, nil, errMalformed
		}
		f := field{kind: data[0]}
		data = data[1:]
		if f.kind == pglogrepl.TupleDataTypeText || f.kind == pglogrepl.TupleDataTypeBinary {
			if len(data) < 4 {
				return nil, nil, errMalformed
			}
			size := int(binary.BigEndian.Uint32(data))
			data = data[4:]
			if len(data) < size {
				return nil, nil, errMalformed
			}
			f.data, data = data[:size], data[size:]
		}
		list = append(list, f)
	}
	return list, data, nil
}

// key notes the key of a row. A value that did not change and is stored apart is in the old row.
func (s *decodeStream) key(r *decodedRelation, row, before []field) error {
	b := s.keys[r.table]
	if b == nil {
		b = new(bytes.Buffer)
		s.keys[r.table] = b
	}
	start := b.Len()
	for _, place := range r.key {
		if place >= len(row) {
			return errMalformed
		}
		f := row[place]
		if f.kind == pglogrepl.TupleDataTypeToast && place < len(before) {
			f = before[place]
		}
		if f.kind != pglogrepl.TupleDataTypeText {
			return errors.New("a row was received without its key")
		}
		copyEscape(b, f.data)
		b.WriteByte('\t')
	}
	b.WriteString(strconv.FormatUint(s.xid, 10))
	b.WriteByte('\n')
	s.size += b.Len() - start
	return nil
}

// copyEscape writes a value in COPY text format.
func copyEscape(b *bytes.Buffer, value []byte) {
	for _, c := range value {
		switch c {
		case '\\':
			b.WriteString(`\\`)
		case '\t':
			b.WriteString(`\t`)
		case '\n':
			b.WriteString(`\n`)
		case '\r':
			b.WriteString(`\r`)
		default:
			b.WriteByte(c)
		}
	}
}

// enter commits what was noted to the logs. Part of a transaction may be entered before the rest; who reads the logs waits for the
// end of a drain. What is received again after a failure is entered again, which does no harm: keys are a set.
func (d *decoder) enter(ctx context.Context) error {
	s := d.stream
	if s.size == 0 && len(s.truncated) == 0 {
		return nil
	}
	err := d.change(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL synchronous_commit = local`); err != nil { // it is confirmed then
			return err
		}
		for table, b := range s.keys {
			if b.Len() == 0 {
				continue
			}
			var columns strings.Builder
			for i := range bytes.Count(b.Bytes()[:bytes.IndexByte(b.Bytes(), '\n')], []byte{'\t'}) {
				fmt.Fprintf(&columns, "key_%d, ", i+1)
			}
			if _, err := copyFrom(ctx, tx.Conn(), fmt.Sprintf(enterPath+`; COPY %s (%sheroku_migrator_xid) FROM STDIN`, logName(table), columns.String()), bytes.NewReader(b.Bytes())); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(ctx, leavePath); err != nil {
			return err
		}
		for _, t := range s.truncated {
			if _, err := tx.Exec(ctx, `INSERT INTO heroku_migrator.truncated (relid, xid) VALUES ($1, $2::text::xid8)`, t.relation, strconv.FormatUint(t.xid, 10)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("enter keys in the logs: %w", err)
	}
	for _, b := range s.keys {
		b.Reset()
	}
	s.truncated, s.size = nil, 0
	return nil
}
