package checks

import (
	"context"
	"regexp"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5"
)

// What comes with Postgres has a lower OID than what users and extensions make (FirstNormalObjectId).
const firstOfUsers = 16384

// The nodes of an expression that compute nothing but what their functions and operators do. All others have rules of
// their own: SQLVALUEFUNCTION is CURRENT_USER or CURRENT_DATE, COERCETODOMAIN asks another constraint, COERCEVIAIO
// goes through the text forms of types, ROWCOMPAREEXPR and XMLEXPR name no function. The names differ between versions.
var plainNodes = map[string]bool{
	"VAR": true, "CONST": true, "BOOLEXPR": true, "NULLTEST": true, "BOOLEANTEST": true, "RELABELTYPE": true,
	"COLLATEEXPR": true,
	"ARRAYEXPR":   true, "CASEEXPR": true, "CASEWHEN": true, "CASE": true, "WHEN": true, "CASETESTEXPR": true,
	"COALESCEEXPR": true, "COALESCE": true,
	"COERCETODOMAINVALUE": true, "OPEXPR": true, "DISTINCTEXPR": true, "NULLIFEXPR": true,
	"SCALARARRAYOPEXPR": true, "FUNCEXPR": true,
	"SUBSCRIPTINGREF": true, "ARRAYCOERCEEXPR": true, "ARRAY": true, "MINMAXEXPR": true, "MINMAX": true,
}

var (
	nodeName = regexp.MustCompile(`(?:^|[^\\])\{([A-Z_]*)`)
	nodeOID  = regexp.MustCompile(`:(funcid|opfuncid|hashfuncid|negfuncid|opno|varattno|` +
		`[a-z_]*type|[a-z]*typeid|typeId) (-?[0-9]+)`)
)

// parts are what an expression is made of.
type parts struct {
	functions, operators, types []uint32
}

// takeApart reads an expression as the catalog stores it. ok is false if more is in it than parts can hold.
func takeApart(tree string) (p parts, ok bool) {
	nodes := nodeName.FindAllStringSubmatch(tree, -1)
	if len(nodes) == 0 {
		return p, false
	}
	for _, n := range nodes {
		if !plainNodes[n[1]] {
			return p, false
		}
	}
	for _, m := range nodeOID.FindAllStringSubmatch(tree, -1) {
		n, err := strconv.ParseInt(m[2], 10, 64)
		if err != nil {
			return p, false
		}
		oid := uint32(n)
		switch m[1] {
		case "varattno":
			if n <= 0 { // the whole row, or tableoid
				return p, false
			}
		case "funcid", "opfuncid", "hashfuncid", "negfuncid":
			if oid != 0 {
				p.functions = append(p.functions, oid)
			}
		case "opno":
			p.operators = append(p.operators, oid)
		default:
			if oid >= firstOfUsers {
				p.types = append(p.types, oid)
			}
		}
	}
	users := func(oid uint32) bool { return oid >= firstOfUsers }
	return p, !slices.ContainsFunc(p.functions, users) && !slices.ContainsFunc(p.operators, users)
}

// immutable tells which of these constraints are made of immutable built-in parts. Enums and domains are types of users
// that compute nothing when they are read: an enum's order is that of its labels.
func immutable(ctx context.Context, tx pgx.Tx, oids []uint32) (map[uint32]bool, error) {
	harmless := map[uint32]bool{}
	if len(oids) == 0 {
		return harmless, nil
	}
	rows, err := tx.Query(ctx, `SELECT oid, coalesce(conbin::text, '') FROM pg_constraint WHERE oid = ANY
		($1::oid[])`, oids)
	if err != nil {
		return nil, err
	}
	made := map[uint32]parts{}
	var all parts
	var oid uint32
	var tree string
	if _, err := pgx.ForEachRow(rows, []any{&oid, &tree}, func() error {
		if p, ok := takeApart(tree); ok {
			made[oid] = p
			all.functions = append(all.functions, p.functions...)
			all.operators = append(all.operators, p.operators...)
			all.types = append(all.types, p.types...)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	rows, err = tx.Query(ctx, `
		SELECT 'f', oid FROM pg_proc WHERE oid = ANY ($1::oid[]) AND provolatile = 'i'
		UNION ALL
		SELECT 'o', o.oid FROM pg_operator o JOIN pg_proc p ON p.oid = o.oprcode WHERE o.oid = ANY ($2::oid[]) AND
			p.oid < 16384 AND p.provolatile = 'i'
		UNION ALL
		SELECT 't', y.oid FROM pg_type y LEFT JOIN pg_type e ON e.oid = y.typelem AND y.typcategory = 'A'
		WHERE y.oid = ANY ($3::oid[]) AND (y.typtype IN ('e', 'd') OR e.typtype IN ('e', 'd'))`,
		all.functions, all.operators, all.types)
	if err != nil {
		return nil, err
	}
	type part struct {
		kind string
		oid  uint32
	}
	fine := map[part]bool{}
	var p part
	if _, err := pgx.ForEachRow(rows, []any{&p.kind, &p.oid}, func() error {
		fine[p] = true
		return nil
	}); err != nil {
		return nil, err
	}
	for id, m := range made {
		bad := func(kind string) func(uint32) bool {
			return func(oid uint32) bool { return !fine[part{kind, oid}] }
		}
		harmless[id] = !slices.ContainsFunc(m.functions, bad("f")) && !slices.ContainsFunc(m.operators, bad("o")) &&
			!slices.ContainsFunc(m.types, bad("t"))
	}
	return harmless, nil
}
