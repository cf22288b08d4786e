package migrator

import (
	"context"
	"fmt"
	"strings"

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

// closeSnapshot ends a snapshot whatever became of the context. A connection that is broken is thrown away
// with it, so there is nothing to do about an error.
func closeSnapshot(ctx context.Context, snap Snapshot) {
	_ = snap.Close(context.WithoutCancel(ctx))
}

// digest sums two independent 64-bit hashes of each row's text. The hash is the one that places rows into
// hash partitions, so it cannot change from one version of Postgres to the next.
func digest(ctx context.Context, q querier, t *Table) (Digest, error) {
	row := "''"
	if len(t.Columns) > 0 {
		cols := make([]string, len(t.Columns))
		for i, c := range t.Columns {
			cols[i] = digested(c)
		}
		row = "ROW(" + strings.Join(cols, ", ") + `)::text COLLATE "C"`
	}
	var d Digest
	err := q.QueryRow(ctx, fmt.Sprintf(`
		SELECT count(*), coalesce(sum(hashtextextended(r, 0)), 0) || ':' || coalesce(sum(hashtextextended(r, 1)), 0)
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
		return fmt.Sprintf("CASE WHEN octet_length(%[1]s) > %[2]d THEN sha256(%[1]s) ELSE %[1]s END", v, longValue)
	case "text", "character varying":
		return fmt.Sprintf("CASE WHEN octet_length(%[1]s) > %[2]d THEN encode(sha256(convert_to(%[1]s, 'UTF8')), 'hex') ELSE %[1]s END", v, longValue)
	default:
		return v
	}
}

const longValue = 16 << 20
