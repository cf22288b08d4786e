package migrator

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/heroku-migrator/migrator/internal/rehearse"
)

// Objects that are left out by name: a person has said that the target can do without them. That is recorded in the
// journal.

// reasonByName is recorded for an object that a person has named.
const reasonByName = "left out by name"

// isNamed tells whether a name means this object: "view ops.slow", "ops.slow", or without a schema where it is in none.
func (o SchemaObject) isNamed(name string) bool {
	full := o.Name
	if o.Schema != "" {
		full = o.Schema + "." + o.Name
	}
	name = strings.TrimSpace(name)
	return name == full || strings.EqualFold(name, o.String()) && strings.HasSuffix(name, full)
}

// dispensable tells whether an object can be left out: no rows are in it, and none are told apart by it.
func (o SchemaObject) dispensable() bool {
	switch o.Type {
	case "TABLE", "TABLE ATTACH", "SEQUENCE", "SEQUENCE OWNED BY", "SCHEMA":
		return false
	case "CONSTRAINT":
		return !strings.Contains(o.SQL, " PRIMARY KEY (") && !strings.Contains(o.SQL, " PRIMARY KEY USING ")
	}
	return true
}

// leaveOut marks the objects that are named. It returns the names that mean none, and those of objects that hold rows.
func leaveOut(objects []SchemaObject, names []string) (unknown, refused []string) {
	for _, name := range names {
		matched := false
		for i := range objects {
			o := &objects[i]
			if !o.isNamed(name) {
				continue
			}
			matched = true
			switch {
			case !o.dispensable():
				refused = append(refused, o.String())
			case o.State != ObjectDone:
				o.State, o.Error = ObjectLeftOut, reasonByName
			}
		}
		if !matched {
			unknown = append(unknown, name)
		}
	}
	for i := range objects { // what is nothing without them
		o := &objects[i]
		if o.Type != typeValidation && o.Type != typeViewData && o.Type != "COMMENT" || o.State == ObjectDone ||
			o.State == ObjectLeftOut {
			continue
		}
		for _, other := range objects {
			if other.State == ObjectLeftOut && rehearse.Mentions(o.asRehearsed(), other.asRehearsed()) {
				o.State, o.Error = ObjectLeftOut, "follows from "+other.String()+", which is left out"
				break
			}
		}
	}
	return unknown, refused
}

// followsLeftOut names the object that is left out and without which o could not be created.
func followsLeftOut(o SchemaObject, err error, objects []SchemaObject) (reason string, ok bool) {
	if !o.dispensable() {
		return "", false
	}
	var absent []rehearse.Object
	names := map[int]string{}
	for _, other := range objects {
		if other.State == ObjectLeftOut {
			absent = append(absent, other.asRehearsed())
			names[other.ID] = other.String()
		}
	}
	cause, ok := rehearse.Follows(o.asRehearsed(), sqlState(err), absent)
	return "follows from " + names[cause.ID] + ", which is left out", ok
}

func refuseLeaveOut(refused []string) *RefusedError {
	return refuse("run", "These cannot be left out, since rows are in them or told apart by them: %s. Mend them on "+
		"the source or on the target instead.",
		strings.Join(refused, ", "))
}

// leaveOut records that an object is left out, and tells.
func (j *Journal) leaveOut(ctx context.Context, o SchemaObject, reason string) error {
	if err := j.MarkObject(ctx, o.ID, ObjectLeftOut, reason); err != nil {
		return err
	}
	return j.Record(ctx, Event{Kind: EventWarning, Message: fmt.Sprintf("%s is not created on the target: %s", o,
		reason)})
}

// leaveOut records what is named now and was not when the schema was recorded.
func (m *Migrator) leaveOut(ctx context.Context) error {
	if len(m.cfg.LeaveOut) == 0 {
		return nil
	}
	objects, err := m.journal.Objects(ctx)
	if err != nil || len(objects) == 0 {
		return err
	}
	before := slices.Clone(objects)
	unknown, refused := leaveOut(objects, m.cfg.LeaveOut)
	if len(refused) > 0 {
		return refuseLeaveOut(refused)
	}
	if len(unknown) > 0 {
		m.log.WarnContext(ctx, "there is no such object to be left out", "names", unknown)
	}
	for i, o := range objects {
		if o.State == ObjectLeftOut && before[i].State != ObjectLeftOut {
			if err := m.journal.leaveOut(ctx, o, o.Error); err != nil {
				return err
			}
		}
	}
	return nil
}

// belongs tells whether an object is left out only together with what it belongs to, which is named.
func (o SchemaObject) belongs() bool {
	switch o.Type {
	case typeValidation, typeViewData, "COMMENT":
		return o.Error != reasonByName
	}
	return false
}

// leftOut names the objects that are left out.
func leftOut(objects []SchemaObject) (list []string) {
	for _, o := range objects {
		if o.State == ObjectLeftOut && !o.belongs() {
			list = append(list, o.String())
		}
	}
	return list
}
