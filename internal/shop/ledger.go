package shop

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
)

// outcome is what a writer knows about one of its transactions.
type outcome uint8

const (
	unknown outcome = iota // begun, or the connection was lost at the commit
	present                // the server acknowledged the commit
	absent                 // refused or rolled back: nothing may remain of it
)

// ledger is a writer's memory of its transactions. The transaction with
// sequence number n is outcomes[n-1].
type ledger struct {
	mu       sync.Mutex
	outcomes []outcome
}

// begin returns the next sequence number.
func (l *ledger) begin() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.outcomes = append(l.outcomes, unknown)
	return int64(len(l.outcomes))
}

func (l *ledger) settle(seq int64, o outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.outcomes[seq-1] = o
}

func (l *ledger) snapshot() []outcome {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]outcome(nil), l.outcomes...)
}

// CheckLedger compares shop.ledger in the database of conn with what the
// writers remember: each acknowledged transaction is there once, none that was
// refused or rolled back is there. A transaction whose connection was lost
// while it committed may be either. The error names the first few differences.
//
// On a database that still receives changes from another one, call it when the
// last change arrived.
func (w *Writers) CheckLedger(ctx context.Context, conn *pgx.Conn) error {
	// Remember first and read second: what was settled before the read started
	// must show in it, what settles later does not matter.
	memory := make([][]outcome, len(w.writers))
	for i, wr := range w.writers {
		memory[i] = wr.ledger.snapshot()
	}
	found := make([][]uint16, len(memory))
	for i := range found {
		found[i] = make([]uint16, len(memory[i]))
	}

	var faults faultList
	rows, err := conn.Query(ctx, `SELECT writer, seq FROM shop.ledger WHERE run = $1`, w.run)
	if err != nil {
		return fmt.Errorf("shop: read ledger: %w", err)
	}
	var writer, seq int64
	_, err = pgx.ForEachRow(rows, []any{&writer, &seq}, func() error {
		if writer < 0 || writer >= int64(len(memory)) || seq < 1 {
			faults.addf("writer %d seq %d was never written", writer, seq)
			return nil
		}
		if seq > int64(len(memory[writer])) {
			if w.stopped() {
				faults.addf("writer %d seq %d was never begun", writer, seq)
			}
			return nil
		}
		found[writer][seq-1]++
		return nil
	})
	if err != nil {
		return fmt.Errorf("shop: read ledger: %w", err)
	}
	for i := range memory {
		for j, o := range memory[i] {
			switch n := found[i][j]; {
			case o == present && n == 0:
				faults.addf("writer %d seq %d was acknowledged and is missing", i, j+1)
			case o == absent && n > 0:
				faults.addf("writer %d seq %d was refused or rolled back and is present", i, j+1)
			case n > 1:
				faults.addf("writer %d seq %d is present %d times", i, j+1, n)
			}
		}
	}
	return faults.err()
}

// faultList keeps the first faults and counts the rest.
type faultList struct {
	first []string
	total int
}

func (f *faultList) addf(format string, args ...any) {
	f.total++
	if len(f.first) < 10 {
		f.first = append(f.first, fmt.Sprintf(format, args...))
	}
}

func (f *faultList) err() error {
	if f.total == 0 {
		return nil
	}
	text := fmt.Sprintf("shop: the ledger differs in %d transactions: %s", f.total, strings.Join(f.first, "; "))
	if f.total > len(f.first) {
		text += "; ..."
	}
	return errors.New(text)
}
