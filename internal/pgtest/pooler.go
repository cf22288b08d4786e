package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Pooler starts a PgBouncer in front of the database for as long as the test lasts, in the given mode ("transaction",
// "session", "statement"), and returns the database's URL through it. It skips the test where PgBouncer is not installed.
func (d *Database) Pooler(t testing.TB, mode string) string {
	t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		program = "/usr/sbin/pgbouncer" // not in everybody's PATH
	}
	if !isFile(program) {
		t.Skip("PgBouncer is not installed: scripts/setup.sh does it")
	}
	server, err := url.Parse(d.URL)
	if err != nil {
		t.Fatal(err)
	}
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	password, _ := server.User.Password()
	config := fmt.Sprintf(`[databases]
* = host=%s port=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = trust
auth_file = %s
pool_mode = %s
default_pool_size = 4
ignore_startup_parameters = extra_float_digits, options
logfile = %s
`, server.Hostname(), server.Port(), port, filepath.Join(dir, "users"), mode, filepath.Join(dir, "log"))
	for name, content := range map[string]string{"users": poolerWord(d.Role) + " " + poolerWord(password) + "\n", "ini": config} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{filepath.Join(dir, "ini")}
	if os.Getuid() == 0 { // it refuses to be root
		for at := dir; at != "/" && at != os.TempDir(); at = filepath.Dir(at) {
			if err := os.Chmod(at, 0o777); err != nil {
				t.Fatal(err)
			}
		}
		args = append([]string{"-u", "nobody"}, args...)
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), program, args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGQUIT)
		_ = cmd.Wait()
	})
	server.Host = "127.0.0.1:" + strconv.Itoa(port)
	through := server.String()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		conn, err := pgx.Connect(t.Context(), through)
		if err == nil {
			_ = conn.Close(t.Context())
			return through
		}
		if errors.Is(err, context.Canceled) || time.Now().After(deadline) {
			log, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Fatalf("PgBouncer does not answer: %v\n%s", err, strings.TrimSpace(string(log)))
		}
	}
}

// poolerWord writes a word of PgBouncer's list of users.
func poolerWord(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
