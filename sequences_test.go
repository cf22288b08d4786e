package migrator_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/pgtest"
)

// drawing draws numbers on a database until it is stopped, and returns them.
func drawing(t *testing.T, db *pgtest.Database, sequences ...string) (stop func() map[string]map[int64]bool) {
	t.Helper()
	c := db.Connect(t)
	drawn := map[string]map[int64]bool{}
	for _, s := range sequences {
		drawn[s] = map[int64]bool{}
	}
	var ended sync.WaitGroup
	done := make(chan struct{})
	ended.Go(func() {
		for {
			for _, s := range sequences {
				var n int64
				if err := c.QueryRow(t.Context(), `SELECT nextval($1::text::regclass)`, s).Scan(&n); err != nil {
					t.Errorf("draw from %s: %v", s, err)
					return
				}
				drawn[s][n] = true
			}
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	return func() map[string]map[int64]bool {
		close(done)
		ended.Wait()
		return drawn
	}
}

// nextval is no write to a table, so no fence stops a client that draws numbers on the side that was left, in a switch
// as in a revert: no number may be drawn twice. Hundreds of sequences are carried over, each with what is its own.
func TestSequencesDrawnThroughTheSwitch(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, `CREATE TABLE t (id int PRIMARY KEY)`, `INSERT INTO t VALUES (1)`,
		`CREATE SEQUENCE up`, `CREATE SEQUENCE down INCREMENT -3 START -1`, `CREATE SEQUENCE cached CACHE 50`,
		`CREATE SEQUENCE small AS smallint`, `SELECT setval('small', 32000)`, `CREATE SEQUENCE wheel MAXVALUE 12
			CYCLE`, `SELECT setval('wheel', 12)`,
		`CREATE SEQUENCE full_up MAXVALUE 10`, `SELECT setval('full_up', 10)`, `CREATE SEQUENCE huge START
			9223372036854775806`, `SELECT nextval('huge')`,
		`CREATE SEQUENCE unused START 42`, `CREATE SEQUENCE restarted`, `SELECT setval('restarted', 77, false)`,
		`DO $$ BEGIN FOR i IN 1..450 LOOP EXECUTE format('CREATE SEQUENCE many_%s START %s', i, i); PERFORM
			nextval('many_' || i); END LOOP; END $$`)
	m := p.migrator(t, func(c *migrator.Config) { c.Cutover.SequenceMargin = 0 })
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	drawn := []string{"up", "down", "cached"}
	for _, step := range []struct {
		command    migrator.CommandName
		left, next *pgtest.Database
	}{
		{migrator.CommandSwitch, p.source, p.target},
		{migrator.CommandRevert, p.target, p.source},
	} {
		stop := drawing(t, step.left, drawn...)
		do(t, m, step.command)
		more := drawing(t, step.next, drawn...)
		time.Sleep(300 * time.Millisecond) // on both sides
		old, now := stop(), more()
		for _, s := range drawn {
			require.NotEmpty(t, old[s])
			for n := range now[s] {
				require.False(t, old[s][n], "%s: %d was drawn twice", s, n)
			}
		}
		c := step.next.Connect(t)
		require.Less(t, count(t, c, `SELECT last_value FROM small`), int64(32767-500),
			"a sequence near its end stays usable")
		require.EqualValues(t, 42, count(t, c, `SELECT nextval('unused')`), "nobody has ever drawn from it")
		execute(t, c, `SELECT setval('unused', 42, false)`)
		require.EqualValues(t, 77, count(t, c, `SELECT last_value FROM restarted WHERE NOT is_called`))
		for q, want := range map[string]int64{"wheel": 12, "full_up": 10, "huge": 9223372036854775806} {
			require.Equal(t, want, count(t, c, `SELECT last_value FROM `+q), q)
		}
		require.EqualValues(t, 450, count(t, c, fmt.Sprintf(`
			SELECT count(*) FROM pg_sequences WHERE sequencename LIKE 'many\_%%' AND last_value = start_value +
			%d`, map[migrator.CommandName]int{
			migrator.CommandSwitch: 1000, migrator.CommandRevert: 2000}[step.command])))
	}
	s, err := m.Status(t.Context())
	require.NoError(t, err)
	require.GreaterOrEqual(t, s.RevertReport.SequenceMargin, int64(1000))
}
