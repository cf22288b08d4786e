package migrator_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/pgtest"
)

// moment is when a process is killed, seen from a durable write that it asks for.
type moment string

const (
	before moment = "before"         // the server never hears of it
	after  moment = "after"          // it is carried out, and nobody knows
	late   moment = "on its way"     // the server hears of it when another process has taken over
	inHook moment = "inside of hook" // the hook kills who called it
)

// killer stands between a process and both databases.
type killer struct {
	at   int // which durable write it dies at; 0: none
	when moment
	prey chan *os.Process

	mu   sync.Mutex
	seen []string
	late sync.WaitGroup
}

func (k *killer) proxy(t *testing.T, to *pgtest.Database, side string) string {
	t.Helper()
	u, err := url.Parse(to.URL)
	require.NoError(t, err)
	u.Host, err = pgtest.DurableProxy(t.Context(), u.Host, func(w *pgtest.DurableWrite) bool { return k.look(side, w) })
	require.NoError(t, err)
	return u.String()
}

func (k *killer) look(side string, w *pgtest.DurableWrite) bool {
	k.mu.Lock()
	k.seen = append(k.seen, side+": "+w.Statement)
	hit := len(k.seen) == k.at
	k.mu.Unlock()
	if !hit {
		return true
	}
	if k.when == after {
		w.Forward(true)
	}
	if k.when == late {
		k.late.Add(1)
		defer k.late.Done()
	}
	_ = (<-k.prey).Kill()
	if k.when == late {
		time.Sleep(time.Duration(300+rand.IntN(900)) * time.Millisecond)
		w.Forward(true)
	}
	return false
}

// victim is a migration whose processes are killed, with an application that writes to whichever side takes its writes.
type victim struct {
	*pair
	calls     string // file: the calls of hooks
	app       *fickle
	untouched map[string]string
	roles     [2]*pgtest.Database // a second credential on either side
}

func newVictim(t *testing.T) *victim {
	t.Helper()
	v := &victim{pair: newPair(t), calls: filepath.Join(t.TempDir(), "calls")}
	v.sql(t, smallSchema...)
	v.sql(t, backSchema[:len(backSchema)-1]...)
	inSync(t, v.pair)
	v.roles = [2]*pgtest.Database{v.source.AddRole(t, "worker"), v.target.AddRole(t, "worker")}
	v.untouched = v.loud(t)
	v.app = writeToEither(v.pair)
	return v
}

func (v *victim) migrator(t *testing.T) *migrator.Migrator {
	t.Helper()
	return v.pair.migrator(t, func(c *migrator.Config) { c.Cutover.Hook = notingHook(v.calls) })
}

var nextCommand = map[migrator.Phase]migrator.CommandName{
	migrator.PhaseReplicating: migrator.CommandSwitch, migrator.PhaseSwitched: migrator.CommandRevert,
}

// attempt does what comes next in a process of its own, and returns the durable writes that it asked for.
func (v *victim) attempt(t *testing.T, k *killer, env ...string) []string {
	t.Helper()
	k.prey = make(chan *os.Process, 1)
	cmd := v.child(t, "")
	cmd.Env = append(cmd.Env, "CHILD_SOURCE="+k.proxy(t, v.source, "source"), "CHILD_TARGET="+k.proxy(t, v.target, "target"),
		"CHILD_DO="+string(nextCommand[phase(t, v.migrator(t))]), "CHILD_HOOK="+v.calls)
	cmd.Env = append(cmd.Env, env...)
	var output strings.Builder
	cmd.Stderr = &output
	require.NoError(t, cmd.Start())
	k.prey <- cmd.Process
	err := cmd.Wait()
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(env) == 0 && (k.at == 0 || len(k.seen) < k.at) {
		require.NoError(t, err, output.String())
	} else {
		require.Error(t, err, "it was to be killed")
		require.NotContains(t, output.String(), "level=ERROR", output.String())
	}
	return k.seen
}

// takeOver starts another process, as a person or a supervisor does.
func (v *victim) takeOver(t *testing.T, k *killer) {
	t.Helper()
	if m := v.migrator(t); rand.IntN(2) == 0 {
		do(t, m, migrator.CommandResume)
	} else {
		require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	}
	k.late.Wait()
}

// check looks at everything that has to be so whenever no switch or revert is under way.
func (v *victim) check(t *testing.T) migrator.Phase {
	t.Helper()
	_, dst := v.open(t)
	s, err := dst.Journal().State(t.Context())
	require.NoError(t, err)
	require.Contains(t, nextCommand, s.Phase)
	require.Empty(t, s.Pending)
	v.checkWrites(t, s.Phase, s.Switches > 0)
	v.checkHooks(t, dst)
	v.app.pause.Lock()
	defer v.app.pause.Unlock()
	m := v.migrator(t)
	if s.Phase == migrator.PhaseReplicating {
		require.Equal(t, v.untouched, v.loud(t))
		require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	} else {
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- m.Run(ctx, "") }()
		require.Eventually(t, func() bool { return v.differences(t) == "" }, 30*time.Second, 50*time.Millisecond, "the way back does not bring all")
		stop()
		require.ErrorIs(t, <-ended, context.Canceled)
	}
	require.Empty(t, v.differences(t))
	for name, acl := range v.acl(t) {
		require.Equal(t, v.untouched[name], acl, name)
	}
	return s.Phase
}

func (v *victim) differences(t *testing.T) string {
	t.Helper()
	src, dst := v.open(t)
	defer src.Close()
	defer dst.Close()
	statuses, err := dst.Journal().Tables(t.Context())
	require.NoError(t, err)
	tables := make([]*migrator.Table, len(statuses))
	for i, s := range statuses {
		tables[i] = s.Table
	}
	r, err := migrator.Verify(t.Context(), src, dst, tables, migrator.VerifyConfig{})
	require.NoError(t, err)
	return fmt.Sprint(r.Differences)[len("["):][:len(fmt.Sprint(r.Differences))-len("[]")]
}

// checkWrites tries each kind of write, as each kind of role, on both sides: one side takes all, the other none. The
// target's fence comes with the first switch.
func (v *victim) checkWrites(t *testing.T, phase migrator.Phase, switched bool) {
	t.Helper()
	for side, urls := range map[migrator.Phase][]string{
		migrator.PhaseReplicating: {v.source.URL, v.roles[0].URL, v.source.AdminURL},
		migrator.PhaseSwitched:    {v.target.URL, v.roles[1].URL, v.target.AdminURL},
	} {
		if side == migrator.PhaseSwitched && !switched {
			continue
		}
		for i, u := range urls {
			c, err := pgx.Connect(t.Context(), u)
			require.NoError(t, err)
			statements := []string{
				`UPDATE parents SET name = name WHERE id = 1`, `INSERT INTO bag VALUES (1, 'check')`, `DELETE FROM bag WHERE b = 'check'`,
				`UPDATE parted_a SET v = v WHERE id = 1`, `BEGIN; TRUNCATE guards; ROLLBACK`,
			}
			if i == 1 { // it may not do the last
				statements = statements[:len(statements)-1]
			}
			for _, sql := range statements {
				_, err := c.Exec(t.Context(), sql)
				if side == phase {
					require.NoError(t, err, "%s on the side that takes writes (%s), role %d", sql, phase, i)
				} else {
					require.Equal(t, "42501", state(err), "%s on the side that takes no writes (%s is the phase), role %d: %v", sql, phase, i, err)
					_, _ = c.Exec(t.Context(), `ROLLBACK`)
				}
			}
			require.NoError(t, c.Close(t.Context()))
		}
	}
}

// checkHooks: no call is made twice, none that the journal did not know of before, and what the journal says of each is true.
func (v *victim) checkHooks(t *testing.T, dst *migrator.PlanetScale) {
	t.Helper()
	text, err := os.ReadFile(v.calls)
	if !os.IsNotExist(err) {
		require.NoError(t, err)
	}
	called := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		require.False(t, called[strings.TrimSpace(line)], "hook called twice: %s", line)
		called[strings.TrimSpace(line)] = true
	}
	hooks, err := dst.Journal().Hooks(t.Context())
	require.NoError(t, err)
	for _, h := range hooks {
		name := fmt.Sprintf("%s %d", h.Point, h.Number)
		switch h.State {
		case "done":
			require.True(t, called[name], "%s was not called, and the journal says it was", name)
		case "unknown":
		default:
			require.Fail(t, "no process is in it", "%s: %s", name, h.State)
		}
		delete(called, name)
	}
	require.Empty(t, called, "the journal does not know of these")
}

// kill is one case: a process dies in what comes next, another takes over, and everything is as it should.
func (v *victim) kill(t *testing.T, k *killer, env ...string) {
	t.Helper()
	was := phase(t, v.migrator(t))
	seen := v.attempt(t, k, env...)
	v.takeOver(t, k)
	now := v.check(t)
	at := "not"
	if k.when == inHook {
		at = strings.Join(env, "")
	} else if k.at <= len(seen) {
		at = seen[k.at-1]
	}
	t.Logf("%s → %s, killed %s: %s", was, now, k.when, at)
}

// bring goes where the next case begins.
func (v *victim) bring(t *testing.T, to migrator.Phase) {
	t.Helper()
	if now := phase(t, v.migrator(t)); now != to {
		v.attempt(t, &killer{})
		require.Equal(t, to, phase(t, v.migrator(t)))
	}
}

// finish: the migration can go on, to the end, and leaves nothing.
func (v *victim) finish(t *testing.T) {
	t.Helper()
	v.bring(t, migrator.PhaseSwitched)
	v.bring(t, migrator.PhaseReplicating)
	close(v.app.stop)
	require.NoError(t, <-v.app.done)
	v.check(t)
	v.app.check(t, v.source.Connect(t))
	v.bring(t, migrator.PhaseSwitched)
	v.check(t)
	v.app.check(t, v.target.Connect(t))
	do(t, v.migrator(t), migrator.CommandComplete)
	v.requireNoTrace(t)
	for name, acl := range v.acl(t) {
		require.Equal(t, v.untouched[name], acl, name)
	}
}

func long() bool { return os.Getenv("MIGRATOR_LONG") != "" }

// SIGKILL at each durable write of a switch and of a revert, before it, after it, and while it is on its way: the process that takes over
// finishes it or undoes it; one side takes writes; rows, privileges and triggers are what they should be; no hook is called twice. In the
// short form a sample is taken. MIGRATOR_LONG=1 takes all.
func TestKilledAtDurableWrites(t *testing.T) {
	t.Parallel()
	v := newVictim(t)
	writes := map[migrator.Phase][]string{}
	for _, p := range []migrator.Phase{migrator.PhaseReplicating, migrator.PhaseSwitched, migrator.PhaseReplicating, migrator.PhaseSwitched} {
		writes[p] = v.attempt(t, &killer{}) // the second time around, everything is prepared
	}
	for p, list := range writes {
		t.Logf("%d durable writes in a %s:\n\t%s", len(list), nextCommand[p], strings.Join(list, "\n\t"))
	}
	type point struct {
		in   migrator.Phase
		at   int
		when moment
		env  []string
	}
	var points []point
	for _, in := range slices.Sorted(maps.Keys(writes)) {
		for at := range len(writes[in]) + 2 { // rounds come and go
			for _, when := range []moment{before, after, late} {
				points = append(points, point{in, at + 1, when, nil})
			}
		}
	}
	for in, hooks := range map[migrator.Phase][]migrator.HookPoint{
		migrator.PhaseReplicating: {migrator.HookBeforeFence, migrator.HookBeforeSwitch, migrator.HookAfterSwitch}, migrator.PhaseSwitched: {migrator.HookAfterRevert},
	} {
		for _, h := range hooks {
			points = append(points, point{in, 0, inHook, []string{"CHILD_DIES_IN=" + string(h)}})
		}
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	if !long() {
		rand.New(rand.NewPCG(seed, 0)).Shuffle(len(points), func(i, j int) { points[i], points[j] = points[j], points[i] })
		points = points[:6]
	}
	for _, p := range points {
		ok := t.Run(fmt.Sprintf("%s %d %s %s", nextCommand[p.in], p.at, p.when, strings.Join(p.env, "")), func(t *testing.T) {
			v.bring(t, p.in)
			v.kill(t, &killer{at: p.at, when: p.when}, p.env...)
		})
		if !ok {
			return // what follows would be about a migration that is broken already
		}
	}
	v.finish(t)
}

// The same in the first switch of a migration, which makes more ready than later ones.
func TestKilledInTheFirstSwitch(t *testing.T) {
	t.Parallel()
	probe := newVictim(t)
	all := probe.attempt(t, &killer{})
	t.Logf("%d durable writes in the first switch:\n\t%s", len(all), strings.Join(all, "\n\t"))
	probe.finish(t)
	points := rand.Perm(len(all))
	if !long() {
		points = points[:2]
	}
	for _, at := range points {
		when := []moment{before, after, late}[rand.IntN(3)]
		t.Run(fmt.Sprintf("%d %s", at+1, when), func(t *testing.T) {
			v := newVictim(t)
			v.kill(t, &killer{at: at + 1, when: when})
			v.finish(t)
		})
	}
}
