package dashboard

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func newRecorder() *httptest.ResponseRecorder { return httptest.NewRecorder() }

func newRequest(t *testing.T, method, target string) *http.Request {
	t.Helper()
	return httptest.NewRequestWithContext(t.Context(), method, target, nil)
}

// readStream reads events until enough says so. It fails if that does not come.
func readStream(t *testing.T, s *site, after string, enough func(got string) bool) string {
	t.Helper()
	got, err := s.follow(t.Context(), after, enough)
	require.NoError(t, err, "got so far: %s", got)
	return got
}

func (s *site) follow(ctx context.Context, after string, enough func(got string) bool) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/events", nil)
	if err != nil {
		return "", err
	}
	r.SetBasicAuth("admin", password)
	if after != "" {
		r.Header.Set("Last-Event-ID", after)
	}
	response, err := s.client.Do(r)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	if kind := response.Header.Get("Content-Type"); response.StatusCode != http.StatusOK || kind != "text/event-stream; charset=utf-8" {
		return "", fmt.Errorf("%s, %s", response.Status, kind)
	}
	var got []byte
	part := make([]byte, 64<<10)
	for !enough(string(got)) {
		n, err := response.Body.Read(part)
		got = append(got, part[:n]...)
		if err != nil && !enough(string(got)) {
			return string(got), err
		}
	}
	return string(got), nil
}

// followLater does that in the background.
func (s *site) followLater(t *testing.T, enough func(got string) bool) <-chan string {
	t.Helper()
	out := make(chan string, 1)
	go func() {
		got, err := s.follow(t.Context(), "", enough)
		assert.NoError(t, err)
		out <- got
	}()
	return out
}

// receiver is a Notifier that remembers.
type receiver struct {
	mu   sync.Mutex
	got  []Notification
	errs []error // of the first calls
	hold chan struct{}
}

func (r *receiver) Notify(ctx context.Context, n Notification) error {
	if r.hold != nil {
		select {
		case <-r.hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.errs) > 0 {
		err := r.errs[0]
		r.errs = r.errs[1:]
		return err
	}
	r.got = append(r.got, n)
	return nil
}

func (r *receiver) milestones() []Milestone {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]Milestone, len(r.got))
	for i, n := range r.got {
		list[i] = n.Milestone
	}
	return list
}

// documentedMetrics reads the names from the package's documentation.
func documentedMetrics(t *testing.T) map[string]bool {
	t.Helper()
	b, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	list := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^//\t(heroku_migrator_\w+)`).FindAllStringSubmatch(string(b), -1) {
		list[m[1]] = true
	}
	require.NotEmpty(t, list)
	return list
}
