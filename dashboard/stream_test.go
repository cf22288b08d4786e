package dashboard

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
)

// message is a server-sent event.
type message struct{ id, name, data string }

func parseStream(got string) (list []message) {
	for block := range strings.SplitSeq(got, "\n\n") {
		var m message
		sc := bufio.NewScanner(strings.NewReader(block))
		sc.Buffer(nil, 4<<20)
		for sc.Scan() {
			name, value, _ := strings.Cut(sc.Text(), ": ")
			switch name {
			case "id":
				m.id = value
			case "event":
				m.name = value
			case "data":
				m.data = value
			}
		}
		if m.name != "" {
			list = append(list, m)
		}
	}
	return list
}

func messagesOf(got, name string) (list []message) {
	for _, m := range parseStream(got) {
		if m.name == name {
			list = append(list, m)
		}
	}
	return list
}

func warnf(f *fake, format string, args ...any) {
	f.publish(migrator.Event{Kind: migrator.EventWarning, Message: fmt.Sprintf(format, args...)})
}

func TestStreamTellsWhatChanges(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.set(migrator.PhaseCopying)
	s := newSite(t, f)
	s.waitPhase(t, migrator.PhaseCopying)
	warnf(f, "before")
	s.say.Info("line before")
	told := false
	got := readStream(t, s, "", func(got string) bool {
		if !told && strings.Contains(got, "line before") && strings.Contains(got, `"before"`) {
			told = true
			f.set(migrator.PhaseReplicating)
			warnf(f, "after")
			s.say.Warn("line after", "n", 1)
		}
		return strings.Contains(got, "line after") && strings.Contains(got, `"after"`) && strings.Contains(got, `"phase":"replicating"`)
	})
	require.True(t, strings.HasPrefix(got, "retry: 2000\n\n"))
	first := messagesOf(got, "status")[0]
	var st map[string]any
	require.NoError(t, json.Unmarshal([]byte(first.data), &st))
	require.Equal(t, "copying", st["phase"])
	require.Contains(t, st, "commands")
	for _, m := range append(messagesOf(got, "activity"), messagesOf(got, "log")...) {
		require.Regexp(t, `^\d+-\d+$`, m.id)
		require.True(t, strings.HasPrefix(m.data, "["))
	}
}

// A thousand updates a second on the server are a few for the page: what nobody could read in between is left out.
func TestStreamIsCoalesced(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.set(migrator.PhaseCopying)
	s := newSite(t, f, func(_ *Config, times *timing) { times.least, times.stream = 200*time.Millisecond, 200*time.Millisecond })
	s.waitPhase(t, migrator.PhaseCopying)
	ctx, cancel := context.WithCancel(t.Context())
	published := make(chan int)
	began := time.Now()
	go func() {
		n := 0
		for ; ctx.Err() == nil; n++ {
			f.set(migrator.PhaseCopying, func(st *migrator.Status) { st.ProgressSignals.ByteWeighted.CopiedBytes = int64(n) })
			warnf(f, "update %d", n)
			s.say.Info("update", "n", n)
			time.Sleep(time.Millisecond)
		}
		published <- n
	}()
	got := readStream(t, s, "", func(string) bool { return time.Since(began) > 3*time.Second })
	took := time.Since(began)
	cancel()
	n := <-published
	most := int(took/(200*time.Millisecond)) + 2
	require.Greater(t, n, 10*most, "the test has to be worth it")
	for _, name := range []string{"status", "activity", "log"} {
		list := messagesOf(got, name)
		require.NotEmpty(t, list, name)
		require.LessOrEqual(t, len(list), most, name)
	}
	reads, _ := f.count()
	require.LessOrEqual(t, reads, most+5)
}

// A status that has not changed is not sent again; a sign of life is.
func TestStreamWhereNothingHappens(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.set(migrator.PhaseReplicating)
	s := newSite(t, f, func(_ *Config, times *timing) { times.heartbeat = 100 * time.Millisecond })
	s.waitPhase(t, migrator.PhaseReplicating)
	require.Eventually(t, func() bool { // all that comes with the beginning has come
		return runs(f) == 1 && strings.Contains(s.get(t, "/status").body, "15.18")
	}, 10*time.Second, 20*time.Millisecond)
	got := readStream(t, s, "", func(got string) bool { return strings.Count(got, ": still here") >= 5 })
	require.Len(t, messagesOf(got, "status"), 1)
	reads, _ := f.count()
	require.Greater(t, reads, 5, "it was read all the while")
}

func TestStreamResumes(t *testing.T) {
	t.Parallel()
	f := newFake()
	s := newSite(t, f)
	s.waitPhase(t, migrator.PhaseWaiting)
	for i := range 5 {
		warnf(f, "first %d.", i)
		s.say.Info(fmt.Sprintf("line %d.", i))
	}
	got := readStream(t, s, "", func(got string) bool { return strings.Contains(got, "first 4.") && strings.Contains(got, "line 4.") })
	list := parseStream(got)
	cursor := list[len(list)-1].id
	for i := 5; i < 300; i++ { // while it is away
		warnf(f, "first %d.", i)
		s.say.Info(fmt.Sprintf("line %d.", i))
	}
	got = readStream(t, s, cursor, func(got string) bool {
		return strings.Contains(got, "first 299.") && strings.Contains(got, "line 299.")
	})
	for _, name := range []string{"first", "line"} {
		var numbers []string
		for _, m := range regexp.MustCompile(name+` (\d+)\.`).FindAllStringSubmatch(got, -1) {
			numbers = append(numbers, m[1])
		}
		require.Len(t, numbers, 295, "each once: %s", name)
		require.Equal(t, "5", numbers[0])
	}
	require.NotEmpty(t, messagesOf(got, "status"), "the status comes first, whatever was missed")

	// A cursor of another process, or nonsense, is no mistake.
	for _, cursor := range []string{"99999999999999-99999999999999", "1-1", "nonsense", "-", "1-"} {
		got = readStream(t, s, cursor, func(got string) bool {
			return strings.Contains(got, "first 299.") && strings.Contains(got, "line 299.")
		})
		require.NotEmpty(t, messagesOf(got, "status"))
	}
}

// Packed or not, an event arrives when it is sent.
func TestStreamPacked(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.set(migrator.PhaseCopying, manyTables(1000))
	s := newSite(t, f)
	s.waitPhase(t, migrator.PhaseCopying)
	sizes := map[string]int{}
	for _, encoding := range []string{"gzip", "identity"} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/events", nil)
		require.NoError(t, err)
		r.SetBasicAuth("admin", password)
		r.Header.Set("Accept-Encoding", encoding) // the client does not unpack then
		response, err := s.client.Do(r)
		require.NoError(t, err)
		counted := &counter{r: response.Body}
		var in io.Reader = counted
		if encoding == "gzip" {
			require.Equal(t, "gzip", response.Header.Get("Content-Encoding"))
			in, err = gzip.NewReader(counted)
			require.NoError(t, err)
		}
		sc := bufio.NewScanner(in)
		sc.Buffer(nil, 4<<20)
		for sc.Scan() && !strings.HasPrefix(sc.Text(), "data: {") {
			require.Less(t, len(sc.Text()), 100)
		}
		require.Contains(t, sc.Text(), "table_with_an_ordinary_name_0999")
		sizes[encoding] = counted.n
		response.Body.Close()
	}
	require.Less(t, sizes["gzip"]*5, sizes["identity"])
}

type counter struct {
	r io.Reader
	n int
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += n
	return n, err
}

func TestStreamsAreBounded(t *testing.T) {
	t.Parallel()
	f := newFake()
	s := newSite(t, f, func(cfg *Config, _ *timing) { cfg.MaxStreams = 2 })
	release := make(chan struct{})
	opened := make(chan struct{}, 2)
	var ended []<-chan string
	for range 2 {
		first := true
		ended = append(ended, s.followLater(t, func(got string) bool {
			if first && strings.Contains(got, "event: status") {
				first = false
				opened <- struct{}{}
			}
			select {
			case <-release:
				return true
			default:
				warnf(f, "on and on %d", time.Now().UnixNano())
				return false
			}
		}))
	}
	<-opened
	<-opened
	a := s.get(t, "/events")
	require.Equal(t, http.StatusServiceUnavailable, a.status)
	require.Equal(t, "too_many_streams", a.json["code"])
	require.Equal(t, http.StatusOK, s.get(t, "/activity").status, "polling still works")
	close(release)
	<-ended[0]
	<-ended[1]
	require.Eventually(t, func() bool { return len(s.streams) == 0 }, 10*time.Second, 20*time.Millisecond, "a stream ends with its request")
}

// A server's limit for a whole response does not end a stream, and a stream ends by itself so that logins are looked at again.
func TestStreamsAndLimitsOfTime(t *testing.T) {
	t.Parallel()
	f := newFake()
	times := fast()
	times.lifetime, times.heartbeat = 1500*time.Millisecond, 50*time.Millisecond
	d, err := newDashboard(f, Config{Insecure: true}, times)
	require.NoError(t, err)
	server := httptest.NewUnstartedServer(d)
	server.Config.WriteTimeout = 500 * time.Millisecond
	server.Start()
	defer server.Close()
	defer d.Close()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/events", nil)
	require.NoError(t, err)
	began := time.Now()
	response, err := server.Client().Do(r)
	require.NoError(t, err)
	defer response.Body.Close()
	sc := bufio.NewScanner(response.Body)
	lines := 0
	for sc.Scan() {
		lines++
	}
	require.NoError(t, sc.Err())
	require.Greater(t, lines, 5)
	require.GreaterOrEqual(t, time.Since(began), times.lifetime)
}

func TestActivityForPolling(t *testing.T) {
	t.Parallel()
	f := newFake()
	s := newSite(t, f)
	first := s.get(t, "/activity").json
	f.publish(migrator.Event{Kind: migrator.EventChunk, Message: "of no note"})
	f.publish(migrator.Event{Kind: migrator.EventTable, Phase: migrator.PhaseCopying, Table: &migrator.Table{Relation: migrator.Relation{Schema: "public", Name: "a"}}, Message: "copied"})
	for range 5 { // tried again and again
		f.publish(migrator.Event{Kind: migrator.EventWaiting, Message: "connection refused"})
	}
	f.publish(migrator.Event{Kind: migrator.EventPhase, Phase: migrator.PhaseReplicating})
	f.publish(migrator.Event{Kind: migrator.EventWaiting, Message: "connection refused"})
	var next map[string]any
	require.Eventually(t, func() bool {
		next = s.get(t, fmt.Sprintf("/activity?after=%.0f", first["last"])).json
		return len(next["events"].([]any)) == 4
	}, 10*time.Second, 20*time.Millisecond)
	events := next["events"].([]any)
	require.Equal(t, "public.a", events[0].(map[string]any)["table"])
	require.Equal(t, "warning", events[1].(map[string]any)["level"])
	require.Equal(t, "replicating", events[2].(map[string]any)["message"])
	require.InDelta(t, next["last"], events[3].(map[string]any)["id"], 0)
	require.Empty(t, s.get(t, fmt.Sprintf("/activity?after=%.0f", next["last"])).json["events"])
}

func TestRing(t *testing.T) {
	t.Parallel()
	r := newRing[int64](3)
	items, last := r.after(0, 10)
	require.Empty(t, items)
	require.Equal(t, r.last(), last)
	for range 5 {
		r.add(func(id int64) int64 { return id })
	}
	items, last = r.after(0, 10)
	require.Equal(t, []int64{last - 2, last - 1, last}, items)
	items, _ = r.after(last-1, 10)
	require.Equal(t, []int64{last}, items)
	items, _ = r.after(last, 10)
	require.Empty(t, items)
	items, _ = r.after(0, 2)
	require.Equal(t, []int64{last - 1, last}, items)
	items, _ = r.after(last+1000, 10)
	require.Len(t, items, 3, "of another process")
}
