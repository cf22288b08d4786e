package migrator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// notRehearsed are checks that make a rehearsal meaningless where they stop the migration.
var notRehearsed = []string{
	"same_database", "target_empty", "target_primary", "target_create", "target_port", "target_connection", "target",
	"pg_dump", "source_locks", "target_locks", "source_pooler", "target_pooler",
	"source_version", "source_primary", "source_connection", "source", "readable", "versions", "encoding", "leftovers",
}

// checkRehearsal creates the source's whole schema on the target and rolls it back, and plans every read of the source.
func checkRehearsal(ctx context.Context, src Source, dst Target, cfg PreflightConfig, so *Report) []Finding {
	if slices.ContainsFunc(so.Blockers(), func(f Finding) bool { return slices.Contains(notRehearsed, f.Check) }) {
		return nil
	}
	if deadline, ok := ctx.Deadline(); ok { // the checks that follow have a tenth of the time
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-time.Until(deadline)/10))
		defer cancel()
	}
	dump := &dumpedSchema{at: time.Now()}
	err := untilPassed(ctx, func() (err error) {
		dump.objects, dump.fingerprint, err = src.DumpSchema(ctx)
		return err
	})
	if err != nil {
		return []Finding{notHeld(ctx, err)}
	}
	objects := slices.Clone(dump.objects)
	unknown, refused := leaveOut(objects, cfg.LeaveOut)
	var f []Finding
	if len(unknown) > 0 {
		f = append(f, Finding{
			Check: "leave_out", Severity: SeverityBlocker, Message: fmt.Sprintf("There is no object to be left out "+
				"of this name: %s.", strings.Join(unknown, ", ")),
			Remedy: "Give the names as the check `rehearsal` prints them.",
		})
	}
	if len(refused) > 0 {
		reason := refuseLeaveOut(refused)
		f = append(f, Finding{Check: "leave_out", Severity: SeverityBlocker, Message: reason.Reasons[0]})
	}
	var found *Rehearsal
	var reads []RehearsalFailure
	err = untilPassed(ctx, func() (err error) {
		found, err = dst.Rehearse(ctx, objects)
		return err
	})
	if err == nil {
		err = untilPassed(ctx, func() error {
			cat, err := src.Catalog(ctx)
			if err == nil {
				reads, err = src.PlanReads(ctx, cat.Tables)
			}
			return err
		})
	}
	if err != nil {
		return append(f, notHeld(ctx, err))
	}
	if cfg.dumped != nil {
		cfg.dumped.Store(dump)
	}
	return append(f, rehearsalFindings(objects, found, reads, so)...)
}

// notHeld says why there was no rehearsal.
func notHeld(ctx context.Context, err error) Finding {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return Finding{
			Check: "rehearsal", Severity: SeverityWarning,
			Message: "The schema is too large to be rehearsed in the time of preflight.",
			Remedy:  "It is rehearsed before the copy: a run waits if something fails then.",
		}
	}
	return Finding{
		Check: "rehearsal", Severity: SeverityBlocker,
		Message: fmt.Sprintf("The schema could not be rehearsed: %v.", err), Remedy: "Try again.",
	}
}

// rehearsalFindings tells all that failed, each with its object.
func rehearsalFindings(objects []SchemaObject, found *Rehearsal, reads []RehearsalFailure, so *Report) (f []Finding) {
	left := leftOut(objects)
	needing := map[string][]string{} // what needs which roles
	for _, failure := range found.Failures {
		told := failure.Object.Type == "EXTENSION" && slices.ContainsFunc(so.Findings, func(f Finding) bool {
			return f.Check == "extensions" && strings.Contains(f.Message, "Extension "+failure.Object.Name+" ") &&
				f.Severity == SeverityBlocker
		})
		switch {
		case failure.byChoice && failure.Object.dispensable():
			left = append(left, failure.Name)
		case told, failure.Object.Type == "COMMENT", failure.Object.Type == typeViewData && failure.Follows != "":
		case failure.Object.Type == typeViewData:
			f = append(f, Finding{
				Check: "rehearsal", Severity: SeverityBlocker,
				Message: fmt.Sprintf("%s cannot be filled on the target: %s (SQLSTATE %s).",
					strings.Replace(failure.Name, " data ", " ", 1), failure.Message, failure.Code),
				Remedy: "Change the function that it calls on the source: write the names in its body in full. Or go " +
					"without its data: --leave-out " + shellQuoted(failure.Name) + ".",
			})
		case failure.Object.optional():
			f = append(f, Finding{
				Check: "rehearsal", Severity: SeverityWarning,
				Message: fmt.Sprintf("%s cannot be created on the target, and will be left out: %s (SQLSTATE %s).",
					failure.Name, failure.Message, failure.Code),
				Remedy: "Nothing has to be done, if the application can do without it.",
			})
		case len(failure.roles) > 0:
			roles := createRoles(failure.roles)
			needing[roles] = append(needing[roles], failure.Name)
		case failure.Follows != "":
			f = append(f, Finding{
				Check: "rehearsal", Severity: SeverityBlocker,
				Message: fmt.Sprintf("%s cannot be created on the target, since it needs %s (SQLSTATE %s: %s).",
					failure.Name, failure.Follows, failure.Code, failure.Message),
				Remedy: "Mend that one; if it is left out, this one is left out, too.",
			})
		default:
			f = append(f, Finding{
				Check: "rehearsal", Severity: SeverityBlocker,
				Message: fmt.Sprintf("%s cannot be created on the target: %s (SQLSTATE %s).", failure.Name,
					failure.Message, failure.Code),
				Remedy: failure.Remedy,
			})
		}
	}
	for _, roles := range slices.Sorted(maps.Keys(needing)) {
		f = append(f, Finding{
			Check: "rehearsal", Severity: SeverityBlocker,
			Message: fmt.Sprintf("These objects are for roles that do not exist on the target: %s.",
				abbreviate(needing[roles])),
			Remedy: "On the target: " + roles + "; or leave each of them out by its name: --leave-out " +
				shellQuoted(needing[roles][0]) + ".",
		})
	}
	for _, failure := range reads {
		f = append(f, Finding{
			Check: "rehearsal", Severity: SeverityBlocker,
			Message: fmt.Sprintf("%s fails: %s (SQLSTATE %s).", failure.Name, failure.Message, failure.Code),
			Remedy:  failure.Remedy,
		})
	}
	if len(left) > 0 {
		f = append(f, Finding{Check: "leave_out", Severity: SeverityInfo, Message: fmt.Sprintf("These are left out, "+
			"by name or since they need such an object: %s.", strings.Join(left, ", "))})
	}
	if found.Left > 0 {
		f = append(f, Finding{
			Check: "rehearsal", Severity: SeverityWarning,
			Message: fmt.Sprintf("%d objects could not be rehearsed, since the target's lock table has no room for "+
				"them.", found.Left),
			Remedy: "They are created after the copy, one by one: what fails then is told then.",
		})
	}
	if len(f) == 0 {
		f = append(f, Finding{
			Check: "rehearsal", Severity: SeverityOK,
			Message: fmt.Sprintf("All %d objects of the schema can be created on the target, and every table can be "+
				"read.", len(objects)),
		})
	}
	return f
}
