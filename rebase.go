package migrator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// A server that goes back in time takes the meaning from positions. See ARCHITECTURE.md, Servers that go back in time.

// rebase makes a migration go on whose positions mean nothing any more: on a source that failed over to another server
// (ErrFailedOver), or with a target that went back to before what was trimmed (ErrTrimmed). The tables concerned
// are sent whole by the next round. Interrupted and repeated, it does what is left.
func rebase(ctx context.Context, src Source, dst Target, s *State, all bool) error {
	journal := dst.Journal()
	snap, err := src.Snapshot(ctx)
	if err != nil {
		return err
	}
	now := snap.Position()
	closeSnapshot(ctx, snap)
	tables, err := journal.Tables(ctx)
	if err != nil {
		return err
	}
	failedOver := !s.Captured.IsZero() && !s.Captured.SameServer(now)
	if failedOver { // our schema, or the capture of some tables, may be among what the new server never had
		if err := src.Claim(ctx, Claim{Migration: s.ID, Epoch: s.Epoch}, true); err != nil {
			return err
		}
	}
	there, err := current(ctx, src) // under the names that they have by now; what is gone is followed later
	if err != nil {
		return err
	}
	var captured []*Table
	for _, s := range tables {
		t, ok := there[s.Table.ID]
		if !s.Captured || !ok {
			continue
		}
		t.Key = keyNow(s.Table, t)
		if failedOver {
			if err := src.Capture(ctx, t); err != nil {
				return err
			}
		}
		captured = append(captured, t)
	}
	if err := src.Resend(ctx, captured, all || failedOver); err != nil {
		return err
	}
	if failedOver {
		return journal.rebase(ctx, now)
	}
	return nil
}

// keyNow is the key that a table is captured by, under the names that its columns have now.
func keyNow(known, now *Table) []string {
	key := slices.Clone(known.Key)
	for i, name := range key {
		was := slices.IndexFunc(known.Columns, func(c Column) bool { return c.Name == name })
		is := slices.IndexFunc(now.Columns, func(c Column) bool { return was >= 0 && c.Num == known.Columns[was].Num })
		if is >= 0 {
			key[i] = now.Columns[is].Name
		}
	}
	return key
}

// rebase has every live table join anew, from the beginning of its log, on the server of the position given.
func (j *Journal) rebase(ctx context.Context, captured Position) error {
	err := j.tx(ctx, func(tx pgx.Tx) error {
		var batch pgx.Batch
		batch.Queue(`UPDATE heroku_migrator.migration SET captured = $1, position = ''`, captured.String())
		batch.Queue(`UPDATE heroku_migrator.tables SET copied_at = ''`)
		batch.Queue(`UPDATE heroku_migrator.tables SET state = 'indexed' WHERE state = 'live'`)
		return tx.SendBatch(ctx, &batch).Close()
	})
	if err != nil {
		return fmt.Errorf("journal: begin anew on another server: %w", err)
	}
	return nil
}

// Resend implements [Source].
func (h *Heroku) Resend(ctx context.Context, tables []*Table, all bool) error {
	return h.decoder.renew(ctx, func() error { return resend(ctx, h.pool, h.change, tables, all) })
}

// Resend implements [Target].
func (p *PlanetScale) Resend(ctx context.Context, tables []*Table, all bool) error {
	return p.decoder.renew(ctx, func() error { return resend(ctx, p.pool, p.journal.tx, tables, all) })
}

func resend(ctx context.Context, q querier, change beginner, tables []*Table, all bool) error {
	for _, t := range tables {
		var trimmed bool
		err := q.QueryRow(ctx, `SELECT coalesce((SELECT trimmed FROM heroku_migrator.captured WHERE relid = $1), false)`, t.ID).Scan(&trimmed)
		if err == nil && (all || trimmed) {
			err = touch(ctx, change, t, strings.NewReader(""), true, `UPDATE heroku_migrator.captured SET trimmed = false WHERE relid = $1`)
		}
		if err != nil {
			return fmt.Errorf("send %s whole: %w", t, err)
		}
	}
	if !all {
		return nil
	}
	return change(ctx, func(tx pgx.Tx) error { // the mark is a position of another server
		_, err := tx.Exec(ctx, `UPDATE heroku_migrator.migration SET trimmed = NULL`)
		return err
	})
}

// wentBack tells whether an error says that a server went back in time, or that rows are not what they should be: tables have to be sent whole.
func wentBack(err error) bool {
	return errors.Is(err, ErrFailedOver) || errors.Is(err, ErrTrimmed) || errors.Is(err, ErrSlotLost) || errors.Is(err, ErrEmptied) || errors.As(err, new(*ImagesError))
}

// rebase says loudly what happened, and makes the migration go on.
func (m *Migrator) rebase(ctx context.Context, s *State, cause error) error {
	message := "the source failed over to another server: every table is sent whole, so that what was lost there is gone from the target too"
	if errors.Is(cause, ErrEmptied) {
		message = "a crash or a failover of the target has emptied its unlogged tables: they are sent whole"
	}
	images := new(ImagesError)
	if errors.As(cause, &images) {
		message = fmt.Sprintf("%v: it is sent whole", images)
	}
	if errors.Is(cause, ErrSlotLost) {
		message = "the replication slot on the source is gone, and changes with it: every table is sent whole"
	}
	if errors.Is(cause, ErrTrimmed) {
		message = "the target went back to an earlier state than it had acknowledged: the tables concerned are sent whole"
	}
	m.log.WarnContext(ctx, message, "phase", string(s.Phase), "cause", cause)
	m.publish(Event{Kind: EventWarning, Phase: s.Phase, Message: message})
	if err := m.journal.Record(ctx, Event{Kind: EventWarning, Message: message}); err != nil {
		return err
	}
	if images.Table != nil {
		return m.cfg.Source.Touch(ctx, images.Table, strings.NewReader(""), true)
	}
	if errors.Is(cause, ErrEmptied) {
		return resendEmptied(ctx, m.cfg.Source, m.cfg.Target)
	}
	return rebase(ctx, m.cfg.Source, m.cfg.Target, s, errors.Is(cause, ErrSlotLost))
}
