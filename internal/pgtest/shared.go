package pgtest

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"
)

// shared holds the clusters of this test process, by version and purpose.
var shared struct {
	mu       sync.Mutex
	clusters map[sharedKey]*sharedCluster
}

type sharedKey struct {
	version int
	purpose string
}

type sharedCluster struct {
	once    sync.Once
	cluster *Cluster
	err     error
}

// Shared returns this test process's cluster of the version, which it starts on
// first use. Tests share it, each with databases of its own. In short mode the
// test is skipped, since it needs a server.
func Shared(t testing.TB, version int) *Cluster {
	t.Helper()
	return SharedFor(t, version, "")
}

// SharedFor is Shared for tests that cannot share a cluster with others, since what these do concerns a whole cluster:
// transactions that they hold open, for example.
func SharedFor(t testing.TB, version int, purpose string) *Cluster {
	t.Helper()
	key := sharedKey{version, purpose}
	if testing.Short() {
		t.Skip("needs a Postgres server; skipped in short mode")
	}
	shared.mu.Lock()
	if shared.clusters == nil {
		shared.clusters = map[sharedKey]*sharedCluster{}
	}
	s := shared.clusters[key]
	if s == nil {
		s = &sharedCluster{}
		shared.clusters[key] = s
	}
	shared.mu.Unlock()
	s.once.Do(func() {
		// Not bound to the test that happens to be the first.
		s.cluster, s.err = Start(context.Background(), version)
	})
	if s.err != nil {
		t.Fatal(s.err)
	}
	return s.cluster
}

// Main runs a package's tests and then closes the shared clusters:
//
//	func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }
//
// Without it the clusters end with the process all the same; Main also waits
// until they have.
func Main(m *testing.M) int {
	code := m.Run()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	var wait sync.WaitGroup
	for _, s := range shared.clusters {
		if s.cluster == nil {
			continue
		}
		wait.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := s.cluster.Close(ctx); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		})
	}
	wait.Wait()
	return code
}

// SourceVersion is the version of source servers in tests: PGTEST_SOURCE, or 15.
func SourceVersion() int { return versionFrom("PGTEST_SOURCE", 15) }

// TargetVersion is the version of target servers in tests: PGTEST_TARGET, or 17.
func TargetVersion() int { return versionFrom("PGTEST_TARGET", 17) }

func versionFrom(variable string, fallback int) int {
	value := os.Getenv(variable)
	if value == "" {
		return fallback
	}
	version, err := strconv.Atoi(value)
	if err != nil {
		panic(fmt.Sprintf("pgtest: %s is %q, which is no major version of Postgres", variable, value))
	}
	return version
}
