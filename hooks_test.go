package migrator_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
)

// tripwire forwards connections and counts what clients send. At a message chosen before, it kills the process: instead of forwarding it, or
// when the server has had the time to act on it.
type tripwire struct {
	sent  atomic.Int64
	at    int64
	after bool
	once  sync.Once
	prey  chan *os.Process
}

func (w *tripwire) proxy(t *testing.T, to string) string {
	t.Helper()
	u, err := url.Parse(to)
	require.NoError(t, err)
	server := u.Host
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go w.forward(client, server)
		}
	}()
	u.Host = listener.Addr().String()
	return u.String()
}

func (w *tripwire) forward(client net.Conn, to string) {
	defer client.Close()
	server, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", to)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		_, _ = io.Copy(client, server)
		_ = client.Close()
	}()
	buffer := make([]byte, 1<<16)
	for {
		n, err := client.Read(buffer)
		if err != nil {
			return
		}
		hit := w.sent.Add(1) == w.at
		if hit && !w.after {
			w.once.Do(func() { _ = (<-w.prey).Kill() })
			return
		}
		if _, err := server.Write(buffer[:n]); err != nil {
			return
		}
		if hit {
			time.Sleep(20 * time.Millisecond)
			w.once.Do(func() { _ = (<-w.prey).Kill() })
			return
		}
	}
}

// fickle is an application that writes to whichever database takes its writes, and remembers what was acknowledged.
type fickle struct {
	acknowledged, refused map[int]bool
	stop                  chan struct{}
	done                  chan error
	pause                 sync.Mutex // who holds it keeps it from writing
}

func writeToEither(p *pair) *fickle {
	f := &fickle{acknowledged: map[int]bool{}, refused: map[int]bool{}, stop: make(chan struct{}), done: make(chan error, 1)}
	go func() { f.done <- f.write(p.source.URL, p.target.URL) }()
	return f
}

func (f *fickle) write(urls ...string) error {
	ctx := context.Background()
	var conns []*pgx.Conn
	defer func() {
		for _, c := range conns {
			_ = c.Close(ctx)
		}
	}()
	for _, u := range urls {
		c, err := pgx.Connect(ctx, u)
		if err != nil {
			return err
		}
		conns = append(conns, c)
	}
	side := 0
	for n := 1; ; n++ {
		select {
		case <-f.stop:
			return nil
		case <-time.After(2 * time.Millisecond):
		}
		f.pause.Lock()
		_, err := conns[side].Exec(ctx, fmt.Sprintf(`INSERT INTO journal (id, what) VALUES (%d, 'fickle'); UPDATE children SET n = n + 1 WHERE id = %d`, 1000000+n, 1+n%100))
		f.pause.Unlock()
		switch {
		case err == nil:
			f.acknowledged[n] = true
		case state(err) == "42501":
			f.refused[n] = true
			side = 1 - side
		default:
			return err
		}
	}
}

func (f *fickle) check(t *testing.T, c *pgx.Conn) {
	t.Helper()
	rows, err := c.Query(t.Context(), `SELECT id - 1000000 FROM journal WHERE what = 'fickle'`)
	require.NoError(t, err)
	list, err := pgx.CollectRows(rows, pgx.RowTo[int])
	require.NoError(t, err)
	there := map[int]bool{}
	for _, n := range list {
		require.False(t, f.refused[n], "%d was refused, and is there", n)
		there[n] = true
	}
	for n := range f.acknowledged {
		require.True(t, there[n], "%d was acknowledged, and is gone", n)
	}
}

// SIGKILL at any message that a process sends to either database in a switch or a revert, before or after it is carried out: the next
// process finishes it or undoes it, one side takes writes, no acknowledged write is lost, and no hook is called twice.
func TestKilledInSwitchesAndReverts(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, smallSchema...)
	p.sql(t, `CREATE TABLE bag (a int)`)
	inSync(t, p)
	calls := filepath.Join(t.TempDir(), "calls")
	command := map[migrator.Phase]migrator.CommandName{migrator.PhaseReplicating: migrator.CommandSwitch, migrator.PhaseSwitched: migrator.CommandRevert}
	// attempt does what comes next in a process that dies at a message; 0: not.
	attempt := func(t *testing.T, at int64, after bool) int64 {
		t.Helper()
		w := &tripwire{at: at, after: after, prey: make(chan *os.Process, 1)}
		cmd := p.child(t, "")
		cmd.Env = append(cmd.Env, "CHILD_SOURCE="+w.proxy(t, p.source.URL), "CHILD_TARGET="+w.proxy(t, p.target.URL),
			"CHILD_DO="+string(command[phase(t, p.migrator(t))]), "CHILD_HOOK="+calls, "CHILD_CAPTURE="+string(p.capture))
		var output strings.Builder
		cmd.Stderr = &output
		require.NoError(t, cmd.Start())
		w.prey <- cmd.Process
		err := cmd.Wait()
		if at == 0 {
			require.NoError(t, err, output.String())
		}
		return w.sent.Load()
	}
	app := writeToEither(p)
	messages := map[migrator.Phase]int64{migrator.PhaseReplicating: attempt(t, 0, false), migrator.PhaseSwitched: attempt(t, 0, false)}
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d, messages %v", seed, messages)
	kills := 14
	if os.Getenv("MIGRATOR_LONG") != "" {
		kills = 400
	}
	became := map[string]int{}
	for n := range kills {
		ok := t.Run(strconv.Itoa(n), func(t *testing.T) { // which closes its connections
			m := p.migrator(t)
			before := phase(t, m)
			attempt(t, 1+random.Int64N(messages[before]), random.IntN(2) == 0)
			do(t, m, migrator.CommandResume) // any command: its process takes the lead
			now := phase(t, m)
			became[fmt.Sprintf("%s to %s", before, now)]++
			_, onSource := p.source.Connect(t).Exec(t.Context(), `UPDATE parents SET name = name WHERE id = 1`)
			_, onTarget := p.target.Connect(t).Exec(t.Context(), `UPDATE parents SET name = name WHERE id = 1`)
			if now == migrator.PhaseReplicating {
				require.NoError(t, onSource)
				require.ErrorContains(t, onTarget, "permission denied")
			} else {
				require.Equal(t, migrator.PhaseSwitched, now)
				require.NoError(t, onTarget)
				require.ErrorContains(t, onSource, "permission denied")
			}
		})
		if !ok {
			return
		}
	}
	t.Logf("%v", became)
	if phase(t, p.migrator(t)) == migrator.PhaseReplicating {
		attempt(t, 0, false)
	}
	close(app.stop)
	require.NoError(t, <-app.done)
	attempt(t, 0, false) // back
	app.check(t, p.source.Connect(t))
	attempt(t, 0, false)
	app.check(t, p.target.Connect(t))
	p.requireEqual(t)
	text, err := os.ReadFile(calls)
	require.NoError(t, err)
	seen := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		require.False(t, seen[line], "hook called twice: %s", line)
		seen[line] = true
	}
	require.True(t, seen["after_switch 1\n"], string(text))
	do(t, p.migrator(t), migrator.CommandComplete)
	p.requireNoTrace(t)
}

// The hook's part: an error before the switch undoes it; one after is told. What a dead process left unknown is not repeated.
func TestHooks(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, smallSchema...)
	var calls []string
	fail := map[migrator.HookPoint]error{}
	var mu sync.Mutex
	m := p.migrator(t, func(c *migrator.Config) {
		c.Cutover.Hook = func(ctx context.Context, call migrator.HookCall) error {
			mu.Lock()
			defer mu.Unlock()
			if err := ctx.Err(); err != nil {
				return err
			}
			calls = append(calls, fmt.Sprintf("%s %d", call.Point, call.Number))
			return fail[call.Point]
		}
	})
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	for i, point := range []migrator.HookPoint{migrator.HookBeforeFence, migrator.HookBeforeSwitch} {
		fail[point] = errors.New("not now")
		_, err := m.Do(t.Context(), migrator.CommandSwitch, false)
		require.ErrorContains(t, err, "not now")
		require.Equal(t, migrator.PhaseReplicating, phase(t, m))
		p.sql(t, `UPDATE children SET n = n + 1 WHERE id = 1`)
		delete(fail, point)
		require.Len(t, calls, 1+2*i)
	}
	fail[migrator.HookAfterSwitch] = errors.New("no dyno came up")
	do(t, m, migrator.CommandSwitch)
	do(t, m, migrator.CommandRevert)
	require.Equal(t, []string{
		"before_fence 1", "before_fence 2", "before_switch 2", "before_fence 3", "before_switch 3", "after_switch 1", "after_revert 1",
	}, calls)
	s, err := m.Status(t.Context())
	require.NoError(t, err)
	require.Len(t, s.Hooks, 7)
	require.Equal(t, "failed", s.Hooks[5].State)
	require.Contains(t, s.Hooks[5].Error, "no dyno")

	// A process died in the middle of the hook: its outcome is unknown.
	delete(fail, migrator.HookAfterSwitch)
	execute(t, p.target.Connect(t), `SET heroku_migrator.pass = 'on'`, `INSERT INTO heroku_migrator.hooks (number, point, state) VALUES (2, 'after_switch', 'started')`)
	do(t, m, migrator.CommandSwitch)
	require.NotContains(t, calls, "after_switch 2")
	s, err = m.Status(t.Context())
	require.NoError(t, err)
	state := ""
	for _, h := range s.Hooks {
		if h.Point == migrator.HookAfterSwitch && h.Number == 2 {
			state = h.State
		}
	}
	require.Equal(t, "unknown", state)

	hook := migrator.CommandHook("sh", "-c", "echo $MIGRATOR_HOOK; exit 3")
	require.ErrorContains(t, hook(t.Context(), migrator.HookCall{Point: migrator.HookAfterRevert}), "exit status 3: after_revert")
}

// A process that died while it called a hook before the fence: another one says so, and calls it for another attempt alone.
func TestHookOfAProcessThatIsGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, itemsTable)
	execute(t, w.adminTarget, `INSERT INTO heroku_migrator.hooks (number, point, state) VALUES (1, 'before_fence', 'started'), (1, 'after_switch', 'started'), (2, 'before_switch', 'done')`)
	w.lead.Release()
	w.takeLead(t)
	hooks, err := w.dst.Journal().Hooks(t.Context())
	require.NoError(t, err)
	states := map[migrator.HookPoint]string{}
	for _, h := range hooks {
		states[h.Point] = h.State
	}
	require.Equal(t, map[migrator.HookPoint]string{migrator.HookBeforeFence: "unknown", migrator.HookBeforeSwitch: "done", migrator.HookAfterSwitch: "started"}, states,
		"what follows a switch is told when it would be called")
	require.Contains(t, timeline(t, w.pair), "hook before_fence")
}

func TestCommandHookTellsNoPassword(t *testing.T) {
	t.Parallel()
	hook := migrator.CommandHook("sh", "-c", `echo "set DATABASE_URL=postgres://u:se/cret@host:5432/db failed; redis://:se/cret@r"; exit 3`)
	err := hook(t.Context(), migrator.HookCall{Point: migrator.HookAfterSwitch})
	require.ErrorContains(t, err, "postgres://u:***@host:5432/db failed")
	require.NotContains(t, err.Error(), "cret")
}
