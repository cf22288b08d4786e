package rehearse_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator/internal/rehearse"
)

// Each portion has room, holds what its objects need, and all objects are in one.
func TestPlan(t *testing.T) {
	t.Parallel()
	var objects []rehearse.Object
	add := func(kind, name, sql string) {
		objects = append(objects, rehearse.Object{
			ID: len(objects) + 1, Type: kind, Schema: "public", Name: name, SQL: strings.ReplaceAll(sql, "P.",
				`"public".`),
		})
	}
	add("FUNCTION", "f(integer)", `CREATE FUNCTION P."f"("i" integer) RETURNS integer LANGUAGE sql AS 'SELECT 1'`)
	for i := range 40 {
		add("TABLE", fmt.Sprintf("t%d", i), fmt.Sprintf(`CREATE TABLE P."t%d" ("id" integer)`, i))
	}
	add("FUNCTION", "rows()", `CREATE FUNCTION P."rows"() RETURNS SETOF P."t7" LANGUAGE sql AS 'SELECT 1'`)
	add("VIEW", "v", `CREATE VIEW P."v" AS SELECT "id" FROM P."t3" GROUP BY "id"`)
	add("VIEW", "w", `CREATE VIEW P."w" AS SELECT "id" FROM P."v", P."rows"()`)
	for i := range 40 {
		add("CONSTRAINT", fmt.Sprintf("t%d t%[1]d_pkey", i),
			fmt.Sprintf("ALTER TABLE ONLY P.\"t%d\"\n    ADD CONSTRAINT \"t%[1]d_pkey\" PRIMARY KEY (\"id\")", i))
	}
	for i := range 39 {
		add("FK CONSTRAINT", fmt.Sprintf("t%d fk", i),
			fmt.Sprintf("ALTER TABLE ONLY P.\"t%d\"\n    ADD CONSTRAINT \"fk\" FOREIGN KEY (\"id\") REFERENCES "+
				"P.\"t%d\"(\"id\")", i, i+1))
	}
	whole, left := rehearse.Plan(objects, 10000)
	require.Equal(t, []rehearse.Portion{objects}, whole)
	require.Zero(t, left)

	const room = 40
	portions, left := rehearse.Plan(objects, room)
	require.Zero(t, left)
	require.Greater(t, len(portions), 5)
	seen := map[int]bool{}
	for _, portion := range portions {
		there, locks, last := map[string]bool{}, 0, 0
		for _, o := range portion {
			require.Greater(t, o.ID, last, "in order")
			last = o.ID
			seen[o.ID] = true
			locks += rehearse.Locks(o)
			there[o.Name] = true
			switch o.Type {
			case "CONSTRAINT":
				require.True(t, there[strings.Fields(o.Name)[0]], o.Name)
			case "FK CONSTRAINT":
				from := strings.Fields(o.Name)[0]
				to := o.SQL[strings.LastIndex(o.SQL, `."t`)+2 : strings.LastIndex(o.SQL, `"(`)]
				require.True(t, there[from] && there[to+" "+to+"_pkey"], o.SQL)
			case "VIEW":
				require.True(t, o.Name != "v" || there["t3"])
				require.True(t, o.Name != "w" || (there["v"] && there["rows()"] && there["t7"]))
			}
		}
		require.LessOrEqual(t, locks, room)
		require.True(t, there["f(integer)"], "what may be relied on without a mention is in all")
	}
	require.Len(t, seen, len(objects))

	_, left = rehearse.Plan(objects, 3)
	require.NotZero(t, left)
}
