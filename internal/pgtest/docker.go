package pgtest

import (
	"archive/tar"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	tclog "github.com/testcontainers/testcontainers-go/log"
)

//go:embed image/postgres-image.sh
var imageScript string

const (
	label        = "heroku-migrator.pgtest"
	dataMount    = "/pgtest"
	serverPort   = "5432/tcp"
	pullPatience = 20 * time.Second // for the registry to answer at all
	pullLimit    = 5 * time.Minute  // for the whole download
	buildLimit   = 10 * time.Minute
)

// docker is the connection to the daemon, made once per process.
var docker struct {
	once   sync.Once
	client *testcontainers.DockerClient
	err    error
}

// dockerAvailable connects to the Docker daemon on its first call and says
// whether that worked.
func dockerAvailable(ctx context.Context) error {
	docker.once.Do(func() {
		// The reaper needs an image of its own; see the package comment for what
		// does its work.
		_ = os.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
		tclog.SetDefault(tclog.NewNoopLogger())
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		docker.client, docker.err = testcontainers.NewDockerClientWithOpts(ctx)
		if docker.err == nil {
			_, docker.err = docker.client.Ping(ctx, client.PingOptions{})
		}
		if docker.err != nil {
			docker.err = fmt.Errorf("no Docker daemon answers: %w", docker.err)
			return
		}
		sweep(ctx)
	})
	return docker.err
}

// sweep removes containers of ours that a process left behind when it died
// between making and starting them. Running ones need no sweeping: they end by
// themselves.
func sweep(ctx context.Context) {
	list, err := docker.client.ContainerList(ctx, client.ContainerListOptions{
		All:     true,
		Filters: make(client.Filters).Add("label", label).Add("status", "created", "exited", "dead"),
	})
	if err != nil {
		return // tidying up is no reason to fail
	}
	for _, item := range list.Items {
		if time.Since(time.Unix(item.Created, 0)) > 2*time.Minute {
			_ = removeContainer(ctx, item.ID)
		}
	}
}

func removeContainer(ctx context.Context, id string) error {
	_, err := docker.client.ContainerRemove(ctx, id, client.ContainerRemoveOptions{RemoveVolumes: true, Force: true})
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// images remembers per version which image to use, or why there is none.
var images struct {
	mu    sync.Mutex
	found map[int]string
	err   map[int]error
}

// image returns the image found by ensureImage.
func image(version int) string {
	images.mu.Lock()
	defer images.mu.Unlock()
	return images.found[version]
}

// ensureImage sees to it that there is an image of the version.
func ensureImage(ctx context.Context, version int) error {
	images.mu.Lock()
	defer images.mu.Unlock()
	if images.found == nil {
		images.found, images.err = map[int]string{}, map[int]error{}
	}
	if images.found[version] != "" || images.err[version] != nil {
		return images.err[version]
	}
	official := fmt.Sprintf("postgres:%d", version)
	ours := fmt.Sprintf("heroku-migrator-postgres:%d", version)
	for _, name := range []string{official, ours} {
		_, err := docker.client.ImageInspect(ctx, name)
		if err == nil {
			images.found[version] = name
			return nil
		}
		if !errdefs.IsNotFound(err) {
			return err // the daemon's trouble, not the image's: do not remember
		}
	}
	pullErr := pull(ctx, official)
	if pullErr == nil {
		images.found[version] = official
		return nil
	}
	buildErr := build(ctx, version)
	if buildErr == nil {
		images.found[version] = ours
		return nil
	}
	err := fmt.Errorf("no image: %w; %w", pullErr, buildErr)
	if ctx.Err() == nil {
		images.err[version] = err
	}
	return err
}

// pull downloads an image. It gives up early only while the registry is silent.
func pull(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, pullLimit)
	defer cancel()
	silence := time.AfterFunc(pullPatience, cancel)
	defer silence.Stop()
	response, err := docker.client.ImagePull(ctx, name, client.ImagePullOptions{})
	if err == nil {
		silence.Stop()
		err = response.Wait(ctx)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = errors.New("the registry does not answer in time")
		}
		return fmt.Errorf("pulling %s: %w", name, err)
	}
	return nil
}

// build makes our own image by the script. The script lets only one process
// build at a time.
func build(ctx context.Context, version int) error {
	ctx, cancel := context.WithTimeout(ctx, buildLimit)
	defer cancel()
	fmt.Fprintf(os.Stderr, "pgtest: building a Docker image of Postgres %d, once; this takes about a minute\n", version)
	cmd := exec.CommandContext(ctx, "bash", "-s", "--", strconv.Itoa(version))
	cmd.Stdin = strings.NewReader(imageScript)
	// The whole group gets the signal; the script then removes what it made.
	detach(cmd)
	cmd.Cancel = func() error { return terminateGroup(cmd) }
	cmd.WaitDelay = 10 * time.Second
	output := &tailBuffer{}
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Run(); err != nil {
		lines := strings.Split(strings.TrimSpace(output.String()), "\n")
		return fmt.Errorf("building it: %w: %s", err, strings.Join(lines[max(0, len(lines)-12):], "\n"))
	}
	return nil
}

// containerServer is a server that runs in a container.
type containerServer struct {
	bin       string // where the programs are in the container
	container *testcontainers.DockerContainer
	keeper    client.HijackedResponse // the container's standard input, held open by this process only
	ended     chan struct{}
	once      sync.Once
}

// startContainer starts the server in a container.
func startContainer(ctx context.Context, c *Cluster, args []string) error {
	s := &containerServer{bin: binDir(c.Version), ended: make(chan struct{})}
	cmd := append([]string{"bash", "-c", keeperScript, "keeper", s.bin, dataMount,
		"-c", "listen_addresses=*"}, args...)

	// The connection to the container's standard input is there before the
	// container runs, so there is no moment at which it could be left alone.
	attach := func(ctx context.Context, ctr testcontainers.Container) error {
		// Not bound to the context of the start.
		conn, err := docker.client.ContainerAttach(context.Background(), ctr.GetContainerID(),
			client.ContainerAttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true})
		if err != nil {
			return fmt.Errorf("attach: %w", err)
		}
		s.keeper = conn.HijackedResponse
		go func() {
			_, _ = stdcopy.StdCopy(c.log, c.log, conn.Reader) // until the container ends
			close(s.ended)
		}()
		_, err = io.WriteString(conn.Conn, c.password+"\n"+c.primary+"\n")
		return err
	}

	port := network.MustParsePort(serverPort)
	ctr, err := testcontainers.Run(ctx, image(c.Version),
		testcontainers.WithLogger(tclog.NewNoopLogger()),
		testcontainers.WithLabels(map[string]string{
			label:          strconv.Itoa(c.Version),
			label + ".pid": strconv.Itoa(os.Getpid()),
		}),
		testcontainers.WithEntrypoint(cmd...),
		testcontainers.WithExposedPorts(serverPort),
		testcontainers.WithConfigModifier(func(config *container.Config) {
			config.User = "root" // the script drops to postgres
			config.OpenStdin, config.StdinOnce, config.AttachStdin = true, true, true
			config.AttachStdout, config.AttachStderr = true, true
		}),
		testcontainers.WithHostConfigModifier(func(host *container.HostConfig) {
			host.AutoRemove = true
			host.ShmSize = 1 << 30 // a limit, for parallel queries
			host.PortBindings = network.PortMap{port: {{HostIP: netip.MustParseAddr("127.0.0.1")}}}
			// A volume of its own, removed with the container: much quicker than
			// the container's layered file system.
			host.Mounts = append(host.Mounts, mount.Mount{Type: mount.TypeVolume, Target: dataMount})
			if c.smallDisk > 0 {
				host.Mounts = append(host.Mounts, mount.Mount{Type: mount.TypeTmpfs, Target: SmallDisk, TmpfsOptions: &mount.TmpfsOptions{SizeBytes: c.smallDisk}})
			}
		}),
		testcontainers.WithAdditionalLifecycleHooks(testcontainers.ContainerLifecycleHooks{
			PreStarts: []testcontainers.ContainerHook{attach},
		}),
	)
	s.container = ctr
	if err == nil {
		var mapped network.Port
		mapped, err = ctr.MappedPort(ctx, serverPort)
		c.port = int(mapped.Num())
	}
	if err != nil {
		if s.keeper.Conn != nil {
			s.keeper.Close()
		}
		if ctr != nil {
			err = errors.Join(err, removeContainer(context.WithoutCancel(ctx), ctr.GetContainerID()))
		}
		if log := c.Log(); log != "" {
			err = fmt.Errorf("%w\nits log ends with:\n%s", err, log)
		}
		return err
	}
	c.server = s
	return nil
}

func (s *containerServer) exited() <-chan struct{} { return s.ended }

func (s *containerServer) close(ctx context.Context) error {
	s.once.Do(s.keeper.Close)
	id := s.container.GetContainerID()
	for range 200 {
		_, err := docker.client.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
		if errdefs.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		time.Sleep(25 * time.Millisecond)
	}
	return removeContainer(ctx, id)
}

func (s *containerServer) address(ctx context.Context) (string, error) {
	ip, err := s.container.ContainerIP(ctx)
	return ip + " 5432", err
}

// tools are the programs PgTools provides.
var tools = []string{"pg_dump", "pg_restore", "psql"}

// toolsDir copies the programs and the libraries they need out of the container
// into a cache directory, with a starter for each. So they run on the host as
// ordinary processes, which pipes and signals reach directly.
func (s *containerServer) toolsDir(ctx context.Context) (string, error) {
	if runtime.GOOS != "linux" {
		return "", errors.New("install the PostgreSQL client programs; they can be taken from the container on Linux only")
	}
	inspect, err := s.container.Inspect(ctx)
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	cache = filepath.Join(cache, "heroku-migrator-pgtest")
	_, digest, _ := strings.Cut(inspect.Image, ":")
	dir := filepath.Join(cache, "tools-"+digest[:min(12, len(digest))])
	if haveTools(dir) {
		return dir, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	fresh, err := os.MkdirTemp(cache, "new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(fresh)
	if err := s.extractTools(ctx, fresh, dir); err != nil {
		return "", err
	}
	// Another process may have been quicker; then its directory stays.
	if err := os.Rename(fresh, dir); err != nil && !haveTools(dir) {
		return "", err
	}
	return dir, nil
}

// extractTools fills the directory fresh, which is about to be renamed to dir.
func (s *containerServer) extractTools(ctx context.Context, fresh, dir string) error {
	// ldd prints "libpq.so.5 => /usr/lib/.../libpq.so.5 (0x...)" and, for the
	// dynamic loader, "/lib64/ld-linux-x86-64.so.2 (0x...)".
	script := `cd "$1" && shift && tar -chf - -P "$@" $(ldd "$@" | grep -o '/[^ ]*\.so[^ ]*' | sort -u)`
	process, err := docker.client.ExecCreate(ctx, s.container.GetContainerID(), client.ExecCreateOptions{
		Cmd:          append([]string{"bash", "-c", script, "tools", s.bin}, tools...),
		AttachStdout: true, AttachStderr: true,
	})
	if err != nil {
		return err
	}
	attached, err := docker.client.ExecAttach(ctx, process.ID, client.ExecAttachOptions{})
	if err != nil {
		return err
	}
	defer attached.Close()
	reader, writer := io.Pipe()
	defer reader.Close()
	problems := &tailBuffer{}
	go func() {
		_, err := stdcopy.StdCopy(writer, problems, attached.Reader)
		writer.CloseWithError(err)
	}()

	for _, sub := range []string{"bin", "lib"} {
		if err := os.Mkdir(filepath.Join(fresh, sub), 0o755); err != nil {
			return err
		}
	}
	loader := ""
	archive := tar.NewReader(reader)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("%w: %s", err, problems)
		}
		name, sub := filepath.Base(header.Name), "bin"
		if filepath.IsAbs(header.Name) {
			sub = "lib"
			if strings.HasPrefix(name, "ld-") || strings.HasPrefix(name, "ld.") {
				loader = name
			}
		}
		if header.Typeflag != tar.TypeReg {
			// tar writes a file named twice as a link to its first name.
			continue
		}
		file, err := os.OpenFile(filepath.Join(fresh, sub, name), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
		if err != nil {
			return err
		}
		_, err = io.Copy(file, archive)
		if err := errors.Join(err, file.Close()); err != nil {
			return err
		}
	}
	if loader == "" {
		return fmt.Errorf("found no dynamic loader in the container: %s", problems)
	}
	for _, tool := range tools {
		if !isFile(filepath.Join(fresh, "bin", tool)) {
			return fmt.Errorf("the container has no %s: %s", tool, problems)
		}
		starter := fmt.Sprintf("#!/bin/sh\nexec '%[1]s/lib/%[2]s' --library-path '%[1]s/lib' '%[1]s/bin/%[3]s' \"$@\"\n",
			dir, loader, tool)
		if err := os.WriteFile(filepath.Join(fresh, tool), []byte(starter), 0o755); err != nil {
			return err
		}
	}
	return nil
}

func (s *containerServer) write(ctx context.Context, path string, content []byte) error {
	if err := s.container.CopyToContainer(ctx, content, path+".new", 0o644); err != nil {
		return err
	}
	code, _, err := s.container.Exec(ctx, []string{"mv", path + ".new", path})
	if err == nil && code != 0 {
		err = fmt.Errorf("mv: exit status %d", code)
	}
	return err
}
