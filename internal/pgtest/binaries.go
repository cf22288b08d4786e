package pgtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
)

// binDir is where Debian and Ubuntu keep the programs of one major version.
func binDir(version int) string {
	return filepath.Join("/usr/lib/postgresql", strconv.Itoa(version), "bin")
}

func haveBinaries(version int) bool {
	return isFile(filepath.Join(binDir(version), "postgres")) && isFile(filepath.Join(binDir(version), "initdb"))
}

func haveTools(dir string) bool {
	for _, tool := range tools {
		if !isFile(filepath.Join(dir, tool)) {
			return false
		}
	}
	return true
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// childServer is a server that runs as a child process.
type childServer struct {
	dataDir string
	port    int
	ended   chan struct{}
	stdin   io.Closer // held open by this process only
	once    sync.Once
}

// startBinaries starts the server from the binaries installed on this machine.
func startBinaries(_ context.Context, c *Cluster, args []string) error {
	if !haveBinaries(c.Version) {
		return fmt.Errorf("found neither a Docker daemon that can be used nor %s/postgres; "+
			"start Docker, or install the package postgresql-%d (Debian and Ubuntu)",
			binDir(c.Version), c.Version)
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	dataDir, err := os.MkdirTemp("", "pgtest-")
	if err != nil {
		return err
	}
	argv := append([]string{"-c", keeperScript, "keeper", binDir(c.Version), dataDir,
		"-c", "listen_addresses=127.0.0.1", "-c", "port=" + strconv.Itoa(port)}, args...)
	// Not bound to the context: Close ends it.
	cmd := exec.Command("bash", argv...)
	cmd.Stdout = c.log
	cmd.Stderr = c.log
	detach(cmd)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		_ = os.RemoveAll(dataDir)
		return err
	}
	s := &childServer{dataDir: dataDir, port: port, ended: make(chan struct{}), stdin: stdin}
	go func() {
		_ = cmd.Wait() // killed on purpose, as a rule
		close(s.ended)
	}()
	c.port, c.server = port, s
	_, err = io.WriteString(stdin, c.password+"\n"+c.primary+"\n")
	if err != nil {
		return errors.Join(err, c.Close(context.Background()))
	}
	return nil
}

func (s *childServer) exited() <-chan struct{} { return s.ended }

func (s *childServer) close(ctx context.Context) error {
	s.once.Do(func() { _ = s.stdin.Close() })
	select {
	case <-s.ended:
		return os.RemoveAll(s.dataDir)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *childServer) address(context.Context) (string, error) {
	return fmt.Sprintf("127.0.0.1 %d", s.port), nil
}

func (s *childServer) toolsDir(context.Context) (string, error) {
	return "", errors.New("the postgresql-client package of that version is not installed")
}

func (s *childServer) write(_ context.Context, path string, content []byte) error {
	if err := os.WriteFile(path+".new", content, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// freePort asks the kernel for a port nobody uses at the moment.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
