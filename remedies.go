package migrator

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// What to do about an object that cannot be created. A test carries out each of these.

var (
	missingExtension = regexp.MustCompile(`^(?:extension ".*" is not|could not open ext|permission denied to cre)`)
	statistics       = regexp.MustCompile(`"pg_catalog"\."pg_|pg_(?:stat|statio|backend|replication)_`)
)

// byLeavingOut is how an object is left out.
func byLeavingOut(o SchemaObject) string {
	if !o.dispensable() {
		return ""
	}
	return "leave it out: --leave-out " + shellQuoted(o.String())
}

func shellQuoted(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// createRoles is how roles are made that only have to exist.
func createRoles(roles []string) string {
	sql := make([]string, len(roles))
	for i, role := range roles {
		sql[i] = "CREATE ROLE " + quoteName(role)
	}
	return strings.Join(sql, "; ")
}

// remedy is what to do about an object that the target does not take.
// roles are those that do not exist there.
func remedy(o SchemaObject, err *pgconn.PgError, roles []string) string {
	orLeave := ""
	if text := byLeavingOut(o); text != "" {
		orLeave = ", or " + text
	}
	kind := strings.ToLower(o.Type)
	if len(roles) > 0 {
		return "On the target: " + createRoles(roles) + orLeave + "."
	}
	switch {
	case o.Type == typeViewData:
		return "Change the function that it calls on the source: write the names in its body in full" + orLeave + "."
	case o.Type == "EXTENSION" || missingExtension.MatchString(err.Message):
		return fmt.Sprintf("Enable the extension in the PlanetScale dashboard (Clusters, Extensions), or drop it on "+
			"the source (DROP EXTENSION)%s.", orLeave)
	case err.Code == "42501" && strings.Contains(err.Message, "language"):
		return fmt.Sprintf("Only a superuser can create it, which nobody is on the target. Write the %s in a trusted "+
			"language on the source (SQL, PL/pgSQL)%s.", kind, orLeave)
	case err.Code == "42501":
		return fmt.Sprintf("The target's role may not create it. Drop it on the source%s.", orLeave)
	case err.Code == "42710" || err.Code == "42P07" || err.Code == "42723" || err.Code == "42P06":
		return fmt.Sprintf("It exists on the target already. Drop it there%s.", orLeave)
	case (err.Code == "42703" || err.Code == "42P01" || err.Code == "42883") && statistics.MatchString(o.SQL):
		return fmt.Sprintf("It reads the server's own statistics, which have other columns on the target. Change or "+
			"drop it on the source%s. "+
			"It can be created on the target after the switch.", orLeave)
	}
	return fmt.Sprintf("Change or drop it on the source, or create on the target what it needs%s.", orLeave)
}
