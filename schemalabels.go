package migrator

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// How the labels of an enum are compared. A label that has another name is told from one that is new by its OID, which DumpSchema notes
// beside the definition.

const labelOIDs = "\n-- labels "

var (
	enumLabel = regexp.MustCompile(`'((?:[^']|'')*)'`)
	labelOID  = regexp.MustCompile(`[0-9]+`)
)

// enumLabels are the quoted labels of an enum's definition, in order, and their OIDs; without, if these were not noted.
func enumLabels(sql string) (labels, oids []string) {
	sql, noted, _ := strings.Cut(sql, labelOIDs)
	_, list, ok := strings.Cut(sql, " AS ENUM (")
	if !ok {
		return nil, nil
	}
	labels, oids = enumLabel.FindAllString(list, -1), labelOID.FindAllString(noted, -1)
	if len(oids) != len(labels) {
		oids = nil
	}
	return labels, oids
}

// noteLabels adds the OIDs of its labels to the definition of each enum.
func noteLabels(ctx context.Context, q querier, objects []SchemaObject) error {
	rows, err := q.Query(ctx, `
		SELECT n.nspname, t.typname, string_agg(e.oid::text, ' ' ORDER BY e.enumsortorder)
		FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid JOIN pg_namespace n ON n.oid = t.typnamespace GROUP BY t.oid, n.oid`)
	if err != nil {
		return err
	}
	noted := map[[2]string]string{}
	var name [2]string
	var oids string
	if _, err := pgx.ForEachRow(rows, []any{&name[0], &name[1], &oids}, func() error {
		noted[name] = oids
		return nil
	}); err != nil {
		return err
	}
	for i, o := range objects {
		if oids, ok := noted[[2]string{o.Schema, o.Name}]; ok && o.Type == "TYPE" {
			objects[i].SQL += labelOIDs + oids
		}
	}
	return nil
}

// labels plans what gives an enum the labels that it has now. Both forms of statement may be repeated.
func (d *schemaDiff) labels(o, old SchemaObject) {
	name := pgx.Identifier{o.Schema, o.Name}.Sanitize()
	now, nowOIDs := enumLabels(o.SQL)
	before, beforeOIDs := enumLabels(old.SQL)
	renamed := map[string]bool{}
	for i, label := range now {
		if nowOIDs == nil || beforeOIDs == nil {
			break
		}
		was := slices.Index(beforeOIDs, nowOIDs[i])
		if was < 0 || before[was] == label {
			continue
		}
		if slices.Contains(before, label) {
			d.refusef("Label %s of type %s has the name now that another one had: that cannot be followed. Undo it, or abort and start again.", label, name)
			continue
		}
		renamed[label] = true
		d.Labels = append(d.Labels, fmt.Sprintf(`DO $do$ BEGIN
			IF EXISTS (SELECT FROM pg_enum WHERE enumtypid = '%[1]s'::regtype AND enumlabel = %[2]s) AND NOT EXISTS (SELECT FROM pg_enum WHERE enumtypid = '%[1]s'::regtype AND enumlabel = %[3]s) THEN
				ALTER TYPE %[4]s RENAME VALUE %[2]s TO %[3]s;
			END IF; END $do$`, quoteText(name), before[was], label, name))
		d.sayf("label %s of type %s is %s now", before[was], name, label)
	}
	for i, label := range now {
		if renamed[label] || (len(renamed) == 0 && slices.Contains(before, label)) {
			continue
		}
		place := ""
		if i > 0 {
			place = " AFTER " + now[i-1]
		} else if len(now) > 1 {
			place = " BEFORE " + now[1]
		}
		d.Labels = append(d.Labels, fmt.Sprintf(`ALTER TYPE %s ADD VALUE IF NOT EXISTS %s%s`, name, label, place))
		if !slices.Contains(before, label) {
			d.sayf("label %s of type %s is new", label, name)
		}
	}
}

// labelsGone lists labels that enums had here at the switch, and have no more: rows on the source have them still.
func (p *PlanetScale) labelsGone(ctx context.Context) ([]string, error) {
	objects, err := p.journal.Objects(ctx)
	if err != nil {
		return nil, err
	}
	var gone []string
	for _, o := range objects {
		labels, _ := enumLabels(o.SQL)
		if o.Type != "TYPE" || labels == nil {
			continue
		}
		name := pgx.Identifier{o.Schema, o.Name}.Sanitize()
		var now []string
		if err := p.pool.QueryRow(ctx, `SELECT array_agg('''' || replace(enumlabel, '''', '''''') || '''') FROM pg_enum WHERE enumtypid = to_regtype($1)`, name).Scan(&now); err != nil {
			return nil, err
		}
		for _, label := range labels {
			if len(now) > 0 && !slices.Contains(now, label) {
				gone = append(gone, fmt.Sprintf("label %s of type %s is gone or renamed", label, name))
			}
		}
	}
	return gone, nil
}
