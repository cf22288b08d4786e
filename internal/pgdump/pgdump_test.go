package pgdump_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/heroku-migrator/migrator/internal/pgdump"
)

func TestWhatPasses(t *testing.T) {
	t.Parallel()
	for text, passing := range map[string]bool{
		"pg_dump: error: query failed: FATAL:  terminating connection due to administrator command\nserver closed the connection unexpectedly": true,
		"pg_dump: error: connection to server at \"h\", port 1 failed: Connection refused":                                                     true,
		"pg_dump: error: query failed: ERROR:  could not open relation with OID 12345":                                                         true,
		"pg_dump: error: connection to server at \"h\", port 1 failed: FATAL:  password authentication failed for user \"u\"":                  false,
		"pg_dump: error: connection to server at \"h\", port 1 failed: FATAL:  database \"d\" does not exist":                                  false,
		"pg_dump: error: query failed: ERROR:  permission denied for table t":                                                                  false,
	} {
		assert.Equal(t, passing, (&pgdump.Error{Stderr: text}).Passing(), text)
	}
}
