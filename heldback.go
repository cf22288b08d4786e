package migrator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/heroku-migrator/migrator/internal/checks"
)

// CHECKs that may refuse rows which the source has, because they depend on more than the row or were never validated,
// are held back: they are not on the target until the switch, which adds them NOT VALID. What was validated on the
// source is validated afterwards (validate.go). The source's part, for rows that come back, is takechecks.go. See
// ARCHITECTURE.md, Constraints that refuse rows.

// Types of objects of CHECKs. The one of pg_dump is for those that are added by a statement of their own.
const (
	typeCheckConstraint = "CHECK CONSTRAINT"
	typeHeldBack        = "CHECK HELD BACK"  // takes away what the definition of a table brought along
	typeCheckValidation = "CHECK VALIDATION" // looks whether all rows satisfy it
	typeLateValidation  = "VALIDATION"       // of one that was not held back from the beginning
)

// leaveOutChecks removes what pg_dump says of constraints that have objects of their own. Constraints of domains are
// cut off their domain, so that both can be compared.
func leaveOutChecks(objects []SchemaObject, list []checks.Check) []SchemaObject {
	held := checks.Held(list)
	domains := map[string][]checks.Check{}
	own := map[uint32]bool{}
	for _, c := range list {
		if c.Domain && c.Validated {
			ident := c.Ident()
			domains[ident] = append(domains[ident], c)
		}
	}
	for _, c := range held {
		own[c.OID] = true
	}
	kept := make([]SchemaObject, 0, len(objects)+len(list))
	for _, o := range objects {
		switch {
		case (o.Type == typeCheckConstraint || o.Type == "CONSTRAINT") && own[o.OID],
			o.Type == "COMMENT" && slices.ContainsFunc(held, func(c checks.Check) bool { return c.IsComment(o.SQL) }):
			continue
		case o.Type != "DOMAIN":
			kept = append(kept, o)
			continue
		}
		of := domains[pgx.Identifier{o.Schema, o.Name}.Sanitize()]
		sql, ok := withoutChecks(o.SQL, of)
		o.SQL = sql
		kept = append(kept, o)
		if !ok {
			continue
		}
		for _, c := range of {
			if !c.HeldBack { // while the domain has no columns: arrays of it could not be validated later
				kept = append(kept, checkObject(c, StageTables, typeCheckConstraint, c.AddValidated()))
			}
		}
	}
	return kept
}

// withoutChecks cuts off what pg_dump writes at the end of a domain's definition: its validated constraints, in order.
// Their expressions may differ from ours in how they are written (by the time zone). It returns false where a literal
// looks like one of them.
func withoutChecks(sql string, of []checks.Check) (string, bool) {
	end := len(sql)
	for _, c := range slices.Backward(of) {
		head := "\n\tCONSTRAINT " + quoteName(c.Constraint) + " CHECK ("
		at := strings.Index(sql, head)
		if at < 0 || at >= end || strings.Count(sql, head) > 1 {
			return sql, false
		}
		end = at
	}
	if len(of) == 0 {
		return sql, true
	}
	return sql[:end] + ";", true
}

// heldBackObjects are what becomes of the constraints that are held back, in the order in which it is to be done.
func heldBackObjects(list []checks.Check) []SchemaObject {
	var objects []SchemaObject
	held := checks.Held(list)
	bottomUp := checks.BottomUp(held)
	for _, c := range slices.Backward(bottomUp) { // a parent's goes first, or it would keep its children's
		// Partitions have it in their definition, too, and until they are attached it is their own.
		if c.Validated && (c.Local || c.Partition) {
			objects = append(objects, checkObject(c, StageTables, typeHeldBack, c.Drop()))
		}
	}
	for _, c := range bottomUp {
		if c.Local {
			o := checkObject(c, StageSwitch, typeCheckConstraint, c.Add())
			o.Undo = c.Drop()
			objects = append(objects, o)
		}
	}
	for _, c := range checks.ToValidate(held) {
		objects = append(objects, checkObject(c, StageValidate, typeCheckValidation, c.Validate()))
	}
	return objects
}

func checkObject(c checks.Check, stage Stage, kind, sql string) SchemaObject {
	o := SchemaObject{
		Stage: stage, Type: kind, Schema: c.Schema, Name: c.Name + " " + c.Constraint, SQL: sql, State: ObjectPending,
	}
	if !c.Domain {
		o.Parent = Relation{ID: c.Owner, Schema: c.Schema, Name: c.Name}
	}
	if kind == typeCheckConstraint {
		o.Undo = c.Drop()
	}
	return o
}

// leaveOutHeldBack takes constraints that are held back out of the tables' own, which are on the target at all times.
func (h *Heroku) leaveOutHeldBack(ctx context.Context, tx pgx.Tx, tables []*Table) error {
	list, err := h.checks.Read(ctx, tx, nil)
	if err != nil {
		return err
	}
	byID := map[uint32]*Table{}
	for _, t := range tables {
		byID[t.ID] = t
	}
	for _, c := range checks.Held(list) {
		if t := byID[c.Owner]; t != nil && !c.Domain {
			delete(t.Checks, c.Constraint)
		}
	}
	return nil
}

// inspectConstraints is what preflight says about constraints that are held back.
func (h *Heroku) inspectConstraints(ctx context.Context) ([]Finding, error) {
	var list []checks.Check
	var contained []uint32
	err := pgx.BeginTxFunc(ctx, h.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly},
		func(tx pgx.Tx) (err error) {
			if list, err = h.checks.Read(ctx, tx, nil); err == nil {
				contained, err = checks.ContainedDomains(ctx, tx)
			}
			return err
		})
	if err != nil {
		return nil, fmt.Errorf("constraints: %w", err)
	}
	var held, never []string
	for _, c := range checks.Held(list) {
		if c.Local {
			held = append(held, c.String())
		}
		if c.Domain && c.Validated && slices.Contains(contained, c.Owner) {
			never = append(never, c.String())
		}
	}
	return slices.Concat(check{
		"constraints_held_back", SeverityInfo, "",
		"These constraints may refuse rows that the source has, because they are NOT VALID or depend on more than " +
			"the row (the moment, the role, a function): %s.",
		"Nothing has to be done. They are not on the target until the switch, which adds them NOT VALID; what was " +
			"validated is validated after it. " +
			"A revert does the same on the source with those that refuse rows which come back. One that rows do not " +
			"satisfy by then " +
			"stays NOT VALID, and is named; it applies to everything that is written.",
	}.findings(held), check{
		"constraints_not_validated", SeverityWarning, "",
		"Postgres validates no constraint of a domain that columns hold arrays or composites of, so these will be " +
			"NOT VALID on the target: %s.",
		"Nothing has to be done: they apply to everything that is written. After a revert they are NOT VALID on the " +
			"source too, if they refused rows that came back.",
	}.findings(never)), nil
}

// HoldBack implements [Target]. What is created at the switch is as the constraint is here.
func (p *PlanetScale) HoldBack(ctx context.Context, cause error) (name string, err error) {
	pg := new(pgconn.PgError)
	if !errors.As(cause, &pg) || pg.Code != "23514" || pg.ConstraintName == "" {
		return "", nil
	}
	known, err := p.journal.Tables(ctx)
	if err != nil {
		return "", err
	}
	err = p.journal.tx(ctx, func(tx pgx.Tx) error {
		list, err := p.checks.Read(ctx, tx, &pg.ConstraintName)
		if err != nil {
			return err
		}
		if list = sameConstraint(list, pg); len(list) == 0 {
			return nil
		}
		name = list[0].String()
		var last int
		if err := tx.QueryRow(ctx, `SELECT coalesce(max(id), 0) FROM heroku_migrator.objects`).Scan(&last); err != nil {
			return err
		}
		var objects []SchemaObject
		for i := range list {
			list[i].HeldBack = true
		}
		for _, c := range slices.Backward(checks.BottomUp(list)) { // parents first
			if !c.Local {
				continue
			}
			if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '10s';`+c.Drop()); err != nil {
				return err
			}
		}
		for _, o := range heldBackObjects(list) {
			switch o.Type {
			case typeHeldBack:
				continue
			case typeCheckConstraint:
				o.Type = typeCheck
			case typeCheckValidation:
				o.Type = typeLateValidation
			}
			o.Table = rootNamed(known, list, o)
			last++
			o.ID = last
			objects = append(objects, o)
		}
		return insertObjects(ctx, tx, objects)
	})
	if err != nil {
		return "", fmt.Errorf("hold back constraint %s: %w", pg.ConstraintName, err)
	}
	return name, nil
}

// rootNamed is the table that an object's relation is, or is a partition of; 0 if that is not known.
func rootNamed(known []TableStatus, list []checks.Check, o SchemaObject) uint32 {
	for _, c := range list {
		if c.Schema != o.Schema || c.Name+" "+c.Constraint != o.Name {
			continue
		}
		for _, s := range known {
			if slices.ContainsFunc(s.Table.relations(), func(r Relation) bool {
				return r.Schema == c.Schema &&
					r.Name == c.Name
			}) {
				return s.Table.ID
			}
		}
	}
	return 0
}
