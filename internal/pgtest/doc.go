// Package pgtest runs real Postgres servers for integration tests and for the
// demo.
//
// A server is a Docker container where a Docker daemon answers, and otherwise a
// child process made from the binaries under /usr/lib/postgresql. Both live
// exactly as long as the process that started them: the server's entry process
// reads from a connection (or pipe) that the kernel closes when its owner exits,
// even by SIGKILL. So nothing is left running, and no reaper container is needed.
//
// A test package uses it like this:
//
//	func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }
//
//	func TestSomething(t *testing.T) {
//		source := pgtest.Shared(t, pgtest.SourceVersion()).NewSource(t)
//		target := pgtest.Shared(t, pgtest.TargetVersion()).NewTarget(t)
//		conn := source.Connect(t)
//		...
//	}
//
// Environment variables: PGTEST_SOURCE and PGTEST_TARGET choose the versions
// (default 15 and 17); PGTEST_BACKEND=docker or =binaries forbids the other way
// of running a server.
package pgtest
