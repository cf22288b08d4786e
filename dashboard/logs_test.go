package dashboard

import (
	"bytes"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/slogtest"

	"github.com/stretchr/testify/require"
)

// It is a slog.Handler as the standard library's test wants one: what is kept is what was logged.
func TestLogIsAHandler(t *testing.T) {
	t.Parallel()
	var l *Log
	slogtest.Run(t, func(*testing.T) slog.Handler {
		l = NewLog(nil, 10)
		return l
	}, func(t *testing.T) map[string]any {
		t.Helper()
		items, _ := l.ring.after(0, 10)
		require.Len(t, items, 1)
		out := map[string]any{slog.LevelKey: items[0].Level, slog.MessageKey: items[0].Message}
		if !items[0].At.IsZero() && items[0].At.Year() > 1 {
			out[slog.TimeKey] = items[0].At
		}
		for key, value := range items[0].Attrs {
			put(out, key, value)
		}
		return out
	})
}

// put makes "a.b" a map in a map.
func put(to map[string]any, key, value string) {
	for i := range len(key) {
		if key[i] == '.' {
			inner, ok := to[key[:i]].(map[string]any)
			if !ok {
				inner = map[string]any{}
				to[key[:i]] = inner
			}
			put(inner, key[i+1:], value)
			return
		}
	}
	to[key] = value
}

func TestLogHandsOn(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	l := NewLog(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelWarn}), 3)
	log := slog.New(l)
	log.Debug("nobody takes it")
	log.Info("kept")
	log.With("a", 1).WithGroup("g").Warn("both", "b", "two words", slog.Group("h", "c", 3))
	require.NotContains(t, out.String(), "kept")
	require.Contains(t, out.String(), `msg=both a=1 g.b="two words" g.h.c=3`)
	got := l.selectLogs(0, 10, slog.LevelDebug, "")
	require.Len(t, got.Logs, 2)
	require.Contains(t, got.Logs[1], `WARN both a=1 g.b="two words" g.h.c=3`)
	require.Equal(t, map[string]string{"a": "1", "g.b": "two words", "g.h.c": "3"}, got.Entries[1].Attrs)
}

func TestLogsOverHTTP(t *testing.T) {
	t.Parallel()
	s := newSite(t, newFake(), func(cfg *Config, _ *timing) {
		cfg.Log = NewLog(nil, 50)
		cfg.Logger = quiet()
	})
	log := slog.New(s.log)
	for i := range 100 {
		level := slog.LevelInfo
		if i%10 == 0 {
			level = slog.LevelWarn
		}
		log.Log(t.Context(), level, fmt.Sprintf("line %d.", i), "n", i)
	}
	a := s.get(t, "/logs?lines=3").json
	require.Len(t, a["logs"], 3)
	require.Contains(t, a["logs"].([]any)[2], "INFO line 99. n=99")
	require.Len(t, s.get(t, "/logs").json["logs"], 50, "it is bounded")
	require.Len(t, s.get(t, "/logs?level=warn").json["logs"], 5)
	found := s.get(t, "/logs?q=LINE+7").json["entries"].([]any)
	require.Len(t, found, 10)
	require.Equal(t, "line 70.", found[0].(map[string]any)["message"])
	require.Empty(t, s.get(t, fmt.Sprintf("/logs?after=%.0f", a["last"])).json["entries"])
	log.Info("new")
	require.Len(t, s.get(t, fmt.Sprintf("/logs?after=%.0f", a["last"])).json["entries"], 1)
}

func TestLogFromManySides(t *testing.T) {
	t.Parallel()
	l := NewLog(nil, 100)
	var wg sync.WaitGroup
	for i := range 8 {
		log := slog.New(l).With("side", i)
		wg.Go(func() {
			for range 200 {
				log.Info("x")
				l.selectLogs(0, 10, slog.LevelInfo, "x")
			}
		})
	}
	wg.Wait()
	items, last := l.ring.after(0, 100)
	require.Len(t, items, 100)
	require.Equal(t, last, items[99].ID)
	require.Equal(t, last-99, items[0].ID)
}
