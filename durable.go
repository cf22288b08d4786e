package migrator

import (
	"context"
	"fmt"
	"time"
)

// durable makes sure that no crash can take back what the snapshot sees. With synchronous_commit = off, commits are seen before they are on disk;
// their numbers would be given to others after a crash, and what these write would be taken for known.
func (s *herokuSnapshot) durable(ctx context.Context) error {
	for attempt := 1; !s.flushed; attempt++ {
		err := s.conn.QueryRow(ctx, `SELECT pg_current_wal_flush_lsn() >= $1::text::pg_lsn`, s.written).Scan(&s.flushed)
		switch {
		case err != nil || s.flushed:
		case attempt < 20: // where commits are synchronous, one of others soon has it flushed
			err = sleep(ctx, 5*time.Millisecond)
		default: // a commit of ours has all of it flushed that was written before
			_, err = s.decoder.pool.Exec(ctx, `SET LOCAL synchronous_commit = local; SELECT pg_logical_emit_message(true, 'heroku_migrator', '')`)
			s.flushed = err == nil
		}
		if err != nil {
			return fmt.Errorf("have what the snapshot sees flushed: %w", err)
		}
	}
	return nil
}
