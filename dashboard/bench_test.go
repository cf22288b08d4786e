package dashboard

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/heroku-migrator/migrator"
)

// manyTables is a status in the middle of copying so many tables.
func manyTables(n int) func(*migrator.Status) {
	return func(st *migrator.Status) {
		left := 12.5
		for i := range n {
			st.Tables = append(st.Tables, migrator.TableSummary{
				Schema: "public", Name: fmt.Sprintf("table_with_an_ordinary_name_%04d", i), State: migrator.TableCopying, RowsCopied: int64(i) * 1000,
				BytesCopied: int64(i) << 20, BytesTotal: int64(i) << 21, Format: "binary", RowsInFlight: 10, BytesInFlight: 1 << 16,
				BytesPerSecond: 1e6, AverageBytesPerSecond: 1e6, ETASeconds: &left,
			})
		}
	}
}

// BenchmarkStatus is one request for /status, with 1,000 tables, through the whole handler.
func BenchmarkStatus(b *testing.B) {
	f := newFake()
	f.set(migrator.PhaseCopying, manyTables(1000))
	d, err := newDashboard(f, Config{Password: password, SourceURL: sourceURL, TargetURL: targetURL}, defaultTiming())
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	w := newRecorder()
	r := requestFor(b)
	for w.Body.Len() < 100<<10 { // until it was read
		w.Body.Reset()
		d.ServeHTTP(w, r)
		time.Sleep(10 * time.Millisecond)
	}
	b.SetBytes(int64(w.Body.Len()))
	b.ReportAllocs()
	for b.Loop() {
		w.Body.Reset()
		d.ServeHTTP(w, r)
	}
}

// BenchmarkCompose is what each reading of the state costs besides, with 1,000 tables.
func BenchmarkCompose(b *testing.B) {
	f := newFake()
	f.set(migrator.PhaseCopying, manyTables(1000))
	d, err := newDashboard(f, Config{Password: password, SourceURL: sourceURL, TargetURL: targetURL}, defaultTiming())
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	d.refresh(b.Context())
	b.ReportAllocs()
	for b.Loop() {
		d.mu.Lock()
		d.compose()
		d.mu.Unlock()
	}
}

func requestFor(b *testing.B) *http.Request {
	b.Helper()
	r, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "/status", nil)
	if err != nil {
		b.Fatal(err)
	}
	r.SetBasicAuth("admin", password)
	r.RemoteAddr = "127.0.0.1:1"
	return r
}
