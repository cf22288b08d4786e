package migrator

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// VerifyConfig configures [Verify]. The zero value is good.
type VerifyConfig struct {
	// Workers is how many tables are compared at once. Default: 2.
	Workers int
}

// Difference is a table whose rows are not the same on both sides.
type Difference struct {
	Table          *Table
	Source, Target Digest
}

func (d Difference) String() string {
	if d.Source.Rows != d.Target.Rows {
		return fmt.Sprintf("%s has %d rows on the source and %d on the target", d.Table, d.Source.Rows, d.Target.Rows)
	}
	return fmt.Sprintf("%s has %d rows on both sides, but their content differs", d.Table, d.Source.Rows)
}

// VerifyReport is what [Verify] found.
type VerifyReport struct {
	Tables      int
	Rows        int64
	Differences []Difference
}

// Verify compares every row of the tables, by content. It reads each side once and sends no rows over the
// network. Its result is about one instant only while nothing is written on either side: use it behind the
// fence, or on databases at rest.
func Verify(ctx context.Context, src Source, dst Target, tables []*Table, cfg VerifyConfig) (*VerifyReport, error) {
	if cfg.Workers <= 0 {
		cfg.Workers = 2
	}
	digests := make([][2]Digest, len(tables))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(cfg.Workers)
	for i, t := range tables {
		g.Go(func() error {
			snap, err := src.Snapshot(gctx)
			if err != nil {
				return err
			}
			digests[i][0], err = snap.Digest(gctx, t)
			closeSnapshot(gctx, snap)
			if err != nil {
				return err
			}
			digests[i][1], err = dst.Digest(gctx, t)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	r := &VerifyReport{Tables: len(tables)}
	for i, t := range tables {
		r.Rows += digests[i][0].Rows
		if digests[i][0] != digests[i][1] {
			r.Differences = append(r.Differences, Difference{Table: t, Source: digests[i][0], Target: digests[i][1]})
		}
	}
	return r, nil
}

// Verification is what a comparison on line found.
type Verification struct {
	At      time.Time `json:"at"` // its end
	Tables  int       `json:"tables"`
	Rows    int64     `json:"rows"`
	Seconds float64   `json:"seconds"`
	// Differences are the tables whose rows are not the same on both sides, in words.
	Differences []string `json:"differences"`
	// Resent tells that these are sent whole by the next round.
	Resent bool `json:"resent,omitempty"`
}

// VerifyOnline compares every row of every table, by content, while the application writes: table by table, a round
// brings the target to a snapshot of the source, and both are summed up as they are there. Changes of other tables wait
// meanwhile, and the snapshot is held for as long as the table takes to be read. With resend, tables that differ are
// sent whole by the next round. The phase must be replicating, and no other rounds may be under way.
func VerifyOnline(ctx context.Context, src Source, dst Target, resend bool, onTable func(table *Table, rows int64,
	differs bool)) (*Verification, error) {
	r, err := newReplicator(ctx, src, dst, ReplicateConfig{})
	if err != nil {
		return nil, err
	}
	if err := r.catchUp(ctx, time.Second); err != nil { // those that join, too
		return nil, err
	}
	v, began := &Verification{Tables: len(r.live), Differences: []string{}}, time.Now()
	for _, t := range slices.Clone(r.live) {
		var d Difference
		r.at = func(ctx context.Context, snap Snapshot) error {
			d = Difference{Table: t}
			g, gctx := errgroup.WithContext(ctx)
			g.Go(func() (err error) {
				d.Source, err = snap.Digest(gctx, t)
				return err
			})
			g.Go(func() (err error) {
				d.Target, err = dst.Digest(gctx, t)
				return err
			})
			return g.Wait()
		}
		if _, err := r.round(ctx); err != nil {
			return nil, fmt.Errorf("verify: %w", err)
		}
		v.Rows += d.Source.Rows
		if d.Source != d.Target {
			v.Differences = append(v.Differences, d.String())
			if resend {
				v.Resent = true
				if err := src.Touch(ctx, t, strings.NewReader(""), true); err != nil {
					return nil, err
				}
			}
		}
		if onTable != nil {
			onTable(t, d.Source.Rows, d.Source != d.Target)
		}
	}
	v.At, v.Seconds = time.Now(), time.Since(began).Seconds()
	return v, dst.Journal().setVerification(ctx, v)
}

func (j *Journal) setVerification(ctx context.Context, v *Verification) error {
	text, err := jsonText(v)
	if err != nil {
		return err
	}
	return j.exec(ctx, "note what was verified", `UPDATE heroku_migrator.migration SET verification = $1`, text)
}

func (m *Migrator) verify(ctx context.Context, resend bool) (string, error) {
	v, err := VerifyOnline(ctx, m.cfg.Source, m.cfg.Target, resend, func(t *Table, rows int64, differs bool) {
		message := fmt.Sprintf("%s: %d rows are the same on both sides", t, rows)
		if differs {
			message = fmt.Sprintf("%s: rows are not the same on both sides", t)
		}
		m.publish(Event{Kind: EventVerify, Phase: PhaseReplicating, Table: t, Rows: rows, Message: message})
	})
	if err != nil {
		return "", err
	}
	if len(v.Differences) == 0 {
		return fmt.Sprintf("%s in %s are the same on both sides", counted(v.Rows, "row"), counted(int64(v.Tables),
			"table")), nil
	}
	if v.Resent {
		return fmt.Sprintf("%d of %s differed, and are sent whole now: %s. Verify again", len(v.Differences),
			counted(int64(v.Tables), "table"), strings.Join(v.Differences, "; ")), nil
	}
	return "", fmt.Errorf("%d of %s differ: %s. Verify with force to have them sent whole", len(v.Differences),
		counted(int64(v.Tables), "table"), strings.Join(v.Differences, "; "))
}

// closeSnapshot ends a snapshot whatever became of the context. A connection that is broken is thrown away
// with it, so there is nothing to do about an error.
func closeSnapshot(ctx context.Context, snap Snapshot) {
	_ = snap.Close(context.WithoutCancel(ctx))
}

// digest sums two independent 64-bit hashes of each row's text. The hash is the one that places rows into
// hash partitions, so it cannot change from one version of Postgres to the next.
func digest(ctx context.Context, q querier, t *Table) (Digest, error) {
	cols := make([]string, len(t.Columns))
	for i, c := range t.Columns {
		cols[i] = digested(c)
	}
	row := "ROW(" + strings.Join(cols, ", ") + `)::pg_catalog.text COLLATE pg_catalog."C"`
	var d Digest
	err := q.QueryRow(ctx, fmt.Sprintf(`
		SELECT pg_catalog.count(*), pg_catalog.concat(coalesce(pg_catalog.sum(pg_catalog.hashtextextended(r, 0)), 0), ':', coalesce(pg_catalog.sum(pg_catalog.hashtextextended(r, 1)), 0))
		FROM (SELECT %s AS r FROM %s AS t OFFSET 0) AS rows`, row, t.Only())).Scan(&d.Rows, &d.Sum)
	if err != nil {
		return d, fmt.Errorf("digest of %s: %w", t, err)
	}
	return d, nil
}

// digested is a column as it goes into the row's text, which cannot be longer than 1 GB: long values go as their hash.
func digested(c Column) string {
	v := "t." + quoteName(c.Name)
	switch c.Type {
	case "bytea":
		return fmt.Sprintf("CASE WHEN pg_catalog.octet_length(%[1]s) OPERATOR(pg_catalog.>) %[2]d THEN pg_catalog.sha256(%[1]s) ELSE %[1]s END", v, longValue)
	case "text", "character varying":
		return fmt.Sprintf("CASE WHEN pg_catalog.octet_length(%[1]s) OPERATOR(pg_catalog.>) %[2]d THEN "+
			"pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(%[1]s, 'UTF8')), 'hex') ELSE %[1]s END", v, longValue)
	default:
		return v
	}
}

const longValue = 16 << 20

func counted(n int64, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}
