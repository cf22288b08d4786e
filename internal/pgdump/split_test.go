package pgdump

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// What pg_restore sets for the next object is not part of the one before: else it seems to change when something is put between.
func TestSettingsBelongToNoObject(t *testing.T) {
	t.Parallel()
	entries := split(PreData, `--
-- Name: f(integer); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION "public"."f"(integer) RETURNS integer LANGUAGE "sql" AS $$
SET default_tablespace = '';
SELECT 1 $$;


SET default_tablespace = '';

SET default_table_access_method = "heap";

--
-- Name: t; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE "public"."t" ();


--
-- PostgreSQL database dump complete
--
`)
	require.Len(t, entries, 2)
	require.Equal(t, "CREATE FUNCTION \"public\".\"f\"(integer) RETURNS integer LANGUAGE \"sql\" AS $$\nSET default_tablespace = '';\nSELECT 1 $$;", entries[0].SQL)
	require.Equal(t, `CREATE TABLE "public"."t" ();`, entries[1].SQL)
}
