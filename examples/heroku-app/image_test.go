package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator/internal/pgtest"
)

const root = "../.."

// docker runs Docker's command line.
func docker(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "docker", args...).CombinedOutput()
	require.NoError(t, err, "docker %s: %s", strings.Join(args, " "), out)
	return strings.TrimSpace(string(out))
}

// postgresImage is an image with pg_dump in it, as the Dockerfile's second stage wants it.
func postgresImage(t *testing.T) string {
	t.Helper()
	if exec.Command("docker", "version").Run() != nil {
		t.Skip("there is no Docker here")
	}
	pgtest.Shared(t, pgtest.TargetVersion()) // makes it, if that is possible
	version := strconv.Itoa(pgtest.TargetVersion())
	for _, name := range []string{"postgres:" + version, "heroku-migrator-postgres:" + version} {
		if exec.Command("docker", "image", "inspect", name).Run() == nil {
			return name
		}
	}
	t.Skip("there is no image of Postgres here")
	return ""
}

// buildImage builds the Dockerfile's final image. Its first stage, which needs Go's own image and the network, is replaced by the binary,
// built here by the same command; all that follows is done as it stands there.
func buildImage(t *testing.T) string {
	t.Helper()
	base := postgresImage(t)
	dir := t.TempDir()
	file, err := os.ReadFile(filepath.Join(root, "Dockerfile"))
	require.NoError(t, err)
	text := string(file)
	_, flags, found := strings.Cut(text, "go build ")
	require.True(t, found)
	flags, _, _ = strings.Cut(flags, "\n")
	build := exec.CommandContext(t.Context(), "sh", "-c", "go build "+strings.ReplaceAll(flags, "/out/", dir+"/"))
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	_, rest, found := strings.Cut(text, "FROM ${POSTGRES_IMAGE} AS client")
	require.True(t, found)
	script, err := os.ReadFile(filepath.Join(root, "deploy/rootfs.sh"))
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "deploy"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "deploy/rootfs.sh"), script, 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "ca-certificates.crt"), []byte("# none are needed here\n"), 0o644))
	// Stages are images without a name; by the label they can be found again.
	label := fmt.Sprintf("heroku-migrator.image-test=%d", os.Getpid())
	replaced := "FROM " + base + " AS build\nLABEL " + label + "\nCOPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt\nCOPY heroku-app /out/heroku-app\n" +
		"FROM " + base + " AS client\nLABEL " + label + rest
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(replaced), 0o644))
	image := fmt.Sprintf("heroku-migrator:test-%d", os.Getpid())
	t.Cleanup(func() {
		_ = exec.Command("docker", "image", "rm", image).Run()
		_ = exec.Command("docker", "image", "prune", "-f", "--filter", "label="+label).Run()
	})
	docker(t, "build", "-t", image, dir)
	return image
}

// The image is small, and moves a database as a user that nobody knows, on a file system to which nothing can be written.
func TestImage(t *testing.T) {
	image := buildImage(t)
	size, err := strconv.ParseInt(docker(t, "image", "inspect", "-f", "{{.Size}}", image), 10, 64)
	require.NoError(t, err)
	t.Logf("the image has %d MB", size/1_000_000)
	require.Less(t, size, int64(80_000_000), "bytes")

	p := newPair(t)
	execute(t, p.source, `CREATE TABLE notes (id int PRIMARY KEY, text text); INSERT INTO notes SELECT i, repeat('x', 500) FROM generate_series(1, 20000) i`)
	port := freePort(t)
	// The test's servers are on the host's loopback.
	id := docker(t, "run", "-d", "--network", "host", "--read-only", "--user", "12345", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--memory", "512m",
		"-e", "PORT="+port, "-e", "PASSWORD="+password, "-e", "HEROKU_URL="+p.source.URL, "-e", "PLANETSCALE_URL="+p.target.URL, image)
	t.Cleanup(func() { _ = exec.Command("docker", "rm", "-f", id).Run() })
	s := &process{url: "http://127.0.0.1:" + port}
	s.awaitUp(t)
	docker(t, "exec", id, "heroku-app", "health")
	require.Contains(t, docker(t, "exec", id, "/bin/sh", "-c", "(echo a shell >/tmp/x) 2>&1 || echo may not write"), "may not write")
	if _, err := exec.LookPath("curl"); err == nil {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "bash", "testdata/runbook.sh")
		cmd.Env = append(os.Environ(), "MIGRATOR_APP="+s.url, "MIGRATOR_PASSWORD="+password)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s\n%s", out, docker(t, "logs", id))
		require.Equal(t, int64(20000), count(t, p.target, `SELECT count(*) FROM notes`))
		p.requireNoTrace(t)
	}
	pid, err := strconv.Atoi(docker(t, "inspect", "-f", "{{.State.Pid}}", id))
	require.NoError(t, err)
	require.Less(t, peakMiB(t, pid), int64(80), "MiB resident")
	docker(t, "stop", "-t", "25", id)
	require.Equal(t, "0", docker(t, "inspect", "-f", "{{.State.ExitCode}}", id))
	p.requireNoSecret(t, docker(t, "logs", id))
}
