package migrator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"
)

// Severity tells what a finding means for the migration.
type Severity string

// The severities.
const (
	SeverityOK      Severity = "ok"      // as it should be
	SeverityInfo    Severity = "info"    // worth knowing
	SeverityWarning Severity = "warning" // goes on, but somebody should look at it
	SeverityBlocker Severity = "blocker" // the migration does not start
)

// Finding is one result of preflight: the database is fit, or why it is not and what to do.
type Finding struct {
	Check    string   `json:"check"`
	Severity Severity `json:"severity"`
	Message  string   `json:"message"`
	Remedy   string   `json:"remedy,omitempty"`
}

// Report is the result of [Preflight].
type Report struct {
	Findings []Finding `json:"findings"`
}

// Blockers are the findings that stop a migration.
func (r *Report) Blockers() []Finding {
	var list []Finding
	for _, f := range r.Findings {
		if f.Severity == SeverityBlocker {
			list = append(list, f)
		}
	}
	return list
}

// Err returns a [*RefusedError] if there are blockers, and nil if not.
func (r *Report) Err() error {
	blockers := r.Blockers()
	if len(blockers) == 0 {
		return nil
	}
	e := &RefusedError{Action: "run"}
	for _, f := range blockers {
		e.Reasons = append(e.Reasons, strings.TrimSpace(f.Message+" "+f.Remedy))
	}
	return e
}

// PreflightConfig configures [Preflight]. The zero value is good.
type PreflightConfig struct {
	// Extra checks run after ours.
	Extra []func(ctx context.Context, src Source, dst Target) ([]Finding, error)
	// LeaveOut names objects that will not be created on the target, see [Config].
	LeaveOut []string
	// Timeout bounds all of it. Default: 2 minutes.
	Timeout time.Duration

	dumped *atomic.Pointer[dumpedSchema] // where the schema that was read is put; nil: nowhere
}

// Preflight looks whether the migration can succeed, and changes nothing on either side. All checks run,
// whatever the others find. A check that could not be made is a blocker that says why. The error is not
// nil only if the context is done.
func Preflight(ctx context.Context, src Source, dst Target, cfg PreflightConfig) (*Report, error) {
	if cfg.Timeout <= 0 {
		cfg.Timeout = 2 * time.Minute
	}
	limited, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	var source, target []Finding
	var srcID, dstID Identity
	var g errgroup.Group
	g.Go(func() error {
		srcID, source = inspect(limited, "source", src)
		return nil
	})
	g.Go(func() error {
		dstID, target = inspect(limited, "target", dst)
		return nil
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	r := &Report{Findings: append(source, target...)}
	if srcID.Version != 0 && dstID.Version != 0 {
		r.Findings = append(r.Findings, compare(srcID, dstID)...)
		r.Findings = append(r.Findings, checkExtensions(limited, src, dst)...)
		r.Findings = append(r.Findings, checkLocks(limited, src, dst)...)
		r.Findings = append(r.Findings, checkIntervals(limited, src, srcID, dstID)...)
		r.Findings = append(r.Findings, checkRehearsal(limited, src, dst, cfg, r)...)
	}
	for _, extra := range cfg.Extra {
		found, err := extra(limited, src, dst)
		if err != nil {
			found = append(found, Finding{Check: "extra", Severity: SeverityBlocker, Message: "A check of the " +
				"caller's failed: " + err.Error()})
		}
		r.Findings = append(r.Findings, found...)
	}
	return r, ctx.Err()
}

func inspect(ctx context.Context, side string, db Database) (Identity, []Finding) {
	var id Identity
	err := untilPassed(ctx, func() (err error) {
		id, err = db.Identify(ctx)
		return err
	})
	if errors.Is(err, ErrPooler) {
		f := Finding{
			Check: side + "_pooler", Severity: SeverityBlocker,
			Message: fmt.Sprintf("The %s cannot be migrated through its URL: %v.", side, err),
			Remedy:  "On Heroku, that is DATABASE_URL, not DATABASE_CONNECTION_POOL_URL; on PlanetScale, port 5432, not 6432.",
		}
		if known, ok := db.(interface{ directURL() (string, bool) }); ok {
			if direct, ok := known.directURL(); ok {
				f.Remedy = "Use the direct port: " + direct
			}
		}
		return Identity{}, []Finding{f}
	}
	if err != nil {
		return Identity{}, []Finding{{
			Check: side + "_connection", Severity: SeverityBlocker,
			Message: fmt.Sprintf("The %s cannot be reached: %v.", side, err),
			Remedy: "Check host, port, user, password and sslmode of its URL, and that it accepts connections from " +
				"here.",
		}}
	}
	findings := []Finding{{
		Check: side + "_connection", Severity: SeverityOK,
		Message: fmt.Sprintf("The %s is Postgres %s, database %q on %s, role %q, %s.", side, id.VersionStr, id.Database,
			id.Host, id.Role, bytesText(id.Size)),
	}}
	var found []Finding
	err = untilPassed(ctx, func() (err error) {
		found, err = db.Inspect(ctx)
		return err
	})
	if err != nil {
		found = append(found, Finding{Check: side, Severity: SeverityBlocker, Message: fmt.Sprintf("The %s could not "+
			"be inspected: %v.", side, err), Remedy: "Try again."})
	}
	return id, append(findings, found...)
}

// untilPassed repeats what failed for a reason that passes: somebody holds an exclusive lock, or the connection was
// cut. That there is none at all is told at once.
func untilPassed(ctx context.Context, fn func() error) error {
	err := fn()
	for attempt := 1; attempt < 5 && Retryable(err) && !errors.As(err, new(*pgconn.ConnectError)) && sleep(ctx,
		time.Second) == nil; attempt++ {
		err = fn()
	}
	return err
}

func compare(src, dst Identity) []Finding {
	var f []Finding
	if src.System == dst.System && src.Database == dst.Database {
		f = append(f, Finding{
			Check: "same_database", Severity: SeverityBlocker, Message: "Source and target are the same database.",
			Remedy: "Set the two URLs to different databases.",
		})
	}
	if dst.Major() < src.Major() {
		f = append(f, Finding{
			Check: "versions", Severity: SeverityBlocker,
			Message: fmt.Sprintf("The target is Postgres %d, older than the source's %d.", dst.Major(), src.Major()),
			Remedy:  fmt.Sprintf("Create the target with Postgres %d or newer.", src.Major()),
		})
	}
	if src.Encoding != dst.Encoding {
		f = append(f, Finding{
			Check: "encoding", Severity: SeverityWarning,
			Message: fmt.Sprintf("The source's encoding is %s, the target's %s.", src.Encoding, dst.Encoding),
			Remedy: "Text is converted. A table with a value that cannot be is set aside, with the row and what to " +
				"do.",
		})
	}
	if !sameLocale(src.CType, dst.CType) || !sameLocale(src.Collate, dst.Collate) {
		f = append(f, Finding{
			Check: "locale", Severity: SeverityWarning,
			Message: fmt.Sprintf("The source's locale is %s (LC_COLLATE) and %s (LC_CTYPE), the target's %s and %s: "+
				"text may be sorted in another order, and upper(), lower(), citext and regular expressions may take "+
				"other letters for the same.",
				src.Collate, src.CType, dst.Collate, dst.CType),
			Remedy: "If that matters to the application, migrate to a database that has the source's locale (CREATE " +
				"DATABASE … LOCALE … TEMPLATE template0).",
		})
	}
	return append(f, Finding{
		Check: "size", Severity: SeverityInfo,
		Message: fmt.Sprintf("The source takes %s on disk; the target needs about as much, and room for index builds.",
			bytesText(src.Size)),
		Remedy: fmt.Sprintf("Give the target storage for %s.", bytesText(2*src.Size)),
	})
}

// sameLocale compares names of locales, of which some are written in two ways: en_US.UTF-8, en_US.utf8.
func sameLocale(a, b string) bool {
	plain := func(name string) string { return strings.ToLower(strings.ReplaceAll(name, "-", "")) }
	return plain(a) == plain(b)
}

// extensionLister is implemented by both of our databases; others have no extensions to compare.
type extensionLister interface {
	extensions(ctx context.Context) (extensionSet, error)
}

func checkExtensions(ctx context.Context, src Source, dst Target) []Finding {
	from, ok := src.(extensionLister)
	to, ok2 := dst.(extensionLister)
	if !ok || !ok2 {
		return nil
	}
	source, err := from.extensions(ctx)
	target, err2 := to.extensions(ctx)
	if err := errors.Join(err, err2); err != nil {
		return []Finding{{Check: "extensions", Severity: SeverityBlocker, Message: fmt.Sprintf("Extensions could not "+
			"be compared: %v.", err), Remedy: "Try again."}}
	}
	var f []Finding
	installed := source.installed
	for _, name := range sortedKeys(installed) {
		if schema, ok := target.installed[name]; ok {
			if schema != installed[name] && name != "plpgsql" && !optionalExtensions[name] {
				f = append(f, Finding{
					Check: "extensions", Severity: SeverityBlocker,
					Message: fmt.Sprintf("Extension %s is in schema %s on the source and in %s on the target, so "+
						"that its types and functions have other names there.", name, installed[name], schema),
					Remedy: fmt.Sprintf("On the target: ALTER EXTENSION %s SET SCHEMA %s (create the schema first), "+
						"or drop it there and let it be created.", quoteName(name), quoteName(installed[name])),
				})
			}
			continue
		}
		may, ok := target.available[name]
		switch {
		case ok && !may && optionalExtensions[name]:
			f = append(f, Finding{
				Check: "extensions", Severity: SeverityInfo,
				Message: fmt.Sprintf("Extension %s is left out if the role may not create it on the target; no data "+
					"depends on it.", name),
			})
			continue
		case ok && !may:
			f = append(f, Finding{
				Check: "extensions", Severity: SeverityWarning,
				Message: fmt.Sprintf("Extension %s is available on the target, but neither installed nor trusted "+
					"there: unless the platform lets its role create it, the schema cannot be cloned.", name),
				Remedy: "Enable it in the PlanetScale dashboard (Clusters, Extensions) first.",
			})
			continue
		case ok:
			f = append(f, Finding{Check: "extensions", Severity: SeverityInfo, Message: fmt.Sprintf("Extension %s "+
				"will be created on the target.", name)})
			continue
		}
		if optionalExtensions[name] {
			f = append(f, Finding{
				Check: "extensions", Severity: SeverityWarning,
				Message: fmt.Sprintf("Extension %s is not available on the target and is left out; no data depends "+
					"on it.", name),
			})
			continue
		}
		f = append(f, Finding{
			Check: "extensions", Severity: SeverityBlocker,
			Message: fmt.Sprintf("Extension %s is installed on the source and not available on the target.", name),
			Remedy: "Enable it in the PlanetScale dashboard (Clusters, Extensions), or drop it on the source if " +
				"nothing uses it.",
		})
	}
	if len(f) == 0 {
		f = append(f, Finding{Check: "extensions", Severity: SeverityOK, Message: "Every extension of the source is " +
			"on the target."})
	}
	return append(f, compareExtensionTables(source.tables, target.tables)...)
}

func bytesText(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	v, exp := float64(n)/unit, 0
	for v >= unit && exp < 4 {
		v /= unit
		exp++
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTP"[exp])
}
