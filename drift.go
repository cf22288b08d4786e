package migrator

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// Triggers see no schema change, so the source's schema is compared with what is being migrated before a switch.

// schemaDrift dumps the source's schema again and compares it with the journal. Objects that the target lacks or
// has in another form cost no row, so they can be overridden; a sequence cannot, since its value has to be set.
func schemaDrift(ctx context.Context, src Source, dst Target) (hard, soft []string, err error) {
	before, err := dst.Journal().Objects(ctx)
	if err != nil {
		return nil, nil, err
	}
	now, _, err := src.DumpSchema(ctx)
	if err != nil {
		return nil, nil, err
	}
	known := map[string]SchemaObject{}
	for _, o := range before {
		if o.Type == typeNotNull || o.Type == typeCheck || o.Type == typeLateValidation {
			continue // ours
		}
		known[o.key()] = o
	}
	var created, changed []string
	for _, o := range now {
		old, ok := known[o.key()]
		delete(known, o.key())
		switch {
		case o.Type == typeViewData || old.SQL == o.SQL || old.State == ObjectLeftOut:
		case !ok && o.Type == "SEQUENCE":
			hard = append(hard, fmt.Sprintf("The %s was created on the source after the migration began: create it "+
				"on the target too, or drop it.", o))
		case !ok:
			created = append(created, o.String())
		default:
			changed = append(changed, o.String())
		}
	}
	var dropped []string
	for _, o := range known {
		if o.State != ObjectLeftOut {
			dropped = append(dropped, o.String())
		}
	}
	slices.Sort(dropped)
	for _, d := range []struct {
		what string
		list []string
	}{{"created", created}, {"changed", changed}, {"dropped", dropped}} {
		if len(d.list) > 0 {
			soft = append(soft, fmt.Sprintf("On the source, these were %s after the migration began: %s. Do the same "+
				"on the target, and force the switch.", d.what, abbreviate(d.list)))
		}
	}
	return hard, soft, nil
}

// settleDrift returns a RefusedError if the source's tables are not the ones that are migrated, and has those carried
// over as a whole that were rewritten.
func settleDrift(ctx context.Context, src Source, dst Target) error {
	tables, err := dst.Journal().Tables(ctx)
	if err != nil {
		return err
	}
	cat, err := src.Catalog(ctx)
	if err != nil {
		return err
	}
	if drift := findDrift(cat, tables); len(drift) > 0 {
		return &RefusedError{Action: "switch", Reasons: drift}
	}
	return resendRewritten(ctx, src, dst, cat, tables)
}

// findDrift compares the source's catalog with what is being migrated.
func findDrift(cat *Catalog, tables []TableStatus) []string {
	known := map[uint32]*Table{}
	for _, t := range tables {
		known[t.Table.ID] = t.Table
	}
	var drift []string
	for _, t := range cat.Tables {
		k, ok := known[t.ID]
		delete(known, t.ID)
		switch {
		case !ok:
			drift = append(drift, fmt.Sprintf("Table %s was created on the source after the migration began, and is "+
				"not on the target: drop it, or abort and start again.", t))
		case t.Silenced:
			drift = append(drift, fmt.Sprintf("The triggers that capture changes of table %s were disabled or "+
				"dropped (ALTER TABLE … DISABLE TRIGGER, or ENABLE TRIGGER after it; DROP TRIGGER): changes may be "+
				"missing. Abort and start again.", t))
		case !t.sameShape(k):
			drift = append(drift, fmt.Sprintf("Table %s was changed on the source after the migration began "+
				"(columns, key or partitions): undo the change, or abort and start again.", k))
		}
	}
	for _, t := range known {
		drift = append(drift, fmt.Sprintf("Table %s was dropped on the source after the migration began: abort and "+
			"start again.", t))
	}
	return drift
}

// resendRewritten has tables carried over as a whole that were rewritten since they were copied. A rewrite fires no
// trigger, and may change values (ALTER TABLE … TYPE … USING); whether it did cannot be seen.
func resendRewritten(ctx context.Context, src Source, dst Target, cat *Catalog, tables []TableStatus) error {
	now := map[uint32]uint32{}
	for _, t := range cat.Tables {
		for _, l := range t.Leaves {
			now[l.ID] = l.Filenode
		}
	}
	for _, s := range tables {
		rewritten := slices.ContainsFunc(s.Table.Leaves, func(l Leaf) bool { return now[l.ID] != l.Filenode })
		if !rewritten {
			continue
		}
		if err := src.Touch(ctx, s.Table, strings.NewReader(""), true); err != nil {
			return err
		}
		if err := dst.Journal().setFilenodes(ctx, s.Table, now); err != nil {
			return err
		}
	}
	return nil
}
