package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/heroku-migrator/migrator/internal/pgtest"
)

// read returns a file of the repository.
func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	require.NoError(t, err)
	return b
}

// documents parses YAML.
func documents(t *testing.T, name string) (list []map[string]any) {
	t.Helper()
	d := yaml.NewDecoder(bytes.NewReader(read(t, name)))
	for {
		var doc map[string]any
		err := d.Decode(&doc)
		if errors.Is(err, io.EOF) {
			require.NotEmpty(t, list)
			return list
		}
		require.NoError(t, err, name)
		list = append(list, doc)
	}
}

// at walks into what was parsed.
func at(t *testing.T, v any, path ...any) any {
	t.Helper()
	for _, step := range path {
		switch step := step.(type) {
		case string:
			m, ok := v.(map[string]any)
			require.True(t, ok, "%v: %s of %T", path, step, v)
			v, ok = m[step]
			require.True(t, ok, "%v: there is no %s", path, step)
		case int:
			l, ok := v.([]any)
			require.True(t, ok && step < len(l), "%v: %d of %T", path, step, v)
			v = l[step]
		}
	}
	return v
}

// variables are those that the program reads.
func variables() []string { return readConfig(func(string) string { return "" }).names }

// requireCommand looks whether the program has such a command.
func requireCommand(t *testing.T, command string) {
	t.Helper()
	require.Contains(t, []string{"heroku-app web", "heroku-app worker"}, command)
}

// The README lists exactly the variables that are read.
func TestDocumentedVariables(t *testing.T) {
	documented := []string{}
	for _, m := range regexp.MustCompile("(?m)^\\| (`[^|]*) \\|").FindAllStringSubmatch(string(read(t, "examples/heroku-app/README.md")), -1) {
		for _, name := range regexp.MustCompile("`([A-Z][A-Z_]+)`").FindAllStringSubmatch(m[1], -1) {
			documented = append(documented, name[1])
		}
	}
	require.ElementsMatch(t, variables(), documented)
}

func TestAppJSON(t *testing.T) {
	var app struct {
		Stack string `json:"stack"`
		Env   map[string]struct {
			Description string `json:"description"`
			Required    bool   `json:"required"`
		} `json:"env"`
		Formation map[string]struct {
			Quantity *int `json:"quantity"`
		} `json:"formation"`
	}
	require.NoError(t, json.Unmarshal(read(t, "app.json"), &app))
	require.Equal(t, "container", app.Stack)
	for name, v := range app.Env {
		require.Contains(t, variables(), name)
		require.NotEmpty(t, v.Description, name)
		require.Equal(t, slices.Contains([]string{"HEROKU_URL", "PLANETSCALE_URL", "PASSWORD"}, name), v.Required, name)
	}
	require.Len(t, app.Formation, 2)
	require.Equal(t, 1, *app.Formation["web"].Quantity)
	require.Equal(t, 0, *app.Formation["worker"].Quantity)
	require.Contains(t, string(read(t, "README.md")), "https://heroku.com/deploy?template=https://github.com/heroku-migrator/migrator")
}

func TestHerokuYAML(t *testing.T) {
	y := documents(t, "heroku.yml")[0]
	require.Equal(t, "Dockerfile", at(t, y, "build", "docker", "web"))
	requireCommand(t, at(t, y, "run", "web").(string))
	requireCommand(t, at(t, y, "run", "worker", "command", 0).(string))
	require.Equal(t, "web", at(t, y, "run", "worker", "image"))
}

// What the Dockerfile takes from the repository is there, and not ignored.
func TestDockerfile(t *testing.T) {
	file := string(read(t, "Dockerfile"))
	ignored := strings.Fields(strings.Join(regexp.MustCompile(`(?m)^[^#\n].*$`).FindAllString(string(read(t, ".dockerignore")), -1), "\n"))
	require.Contains(t, ignored, "deploy/*")
	copied := regexp.MustCompile(`(?m)^COPY ([^-\s]\S*) `).FindAllStringSubmatch(file, -1)
	require.NotEmpty(t, copied)
	for _, m := range copied {
		_, err := os.Stat(filepath.Join(root, m[1]))
		require.NoError(t, err)
		require.NotContains(t, ignored, m[1])
	}
	require.Contains(t, ignored, "!deploy/rootfs.sh")
	require.Contains(t, file, "./examples/heroku-app\n")
	minor := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindSubmatch(read(t, "go.mod"))
	require.NotNil(t, minor)
	require.Contains(t, file, "golang:"+string(minor[1])+"-", "the image's Go is that of go.mod")
	require.Contains(t, file, "\nUSER 65532")
}

func TestCompose(t *testing.T) {
	y := documents(t, "compose.yaml")[0]
	services := at(t, y, "services").(map[string]any)
	require.ElementsMatch(t, []string{"app", "worker", "source", "target"}, slices.Collect(maps.Keys(services)))
	for name := range at(t, y, "services", "app", "environment").(map[string]any) {
		require.Contains(t, variables(), name)
	}
	require.Equal(t, true, at(t, y, "services", "app", "read_only"))
	require.Equal(t, "127.0.0.1:8080:8080", at(t, y, "services", "app", "ports", 0))
	for _, name := range []string{"source", "target"} {
		mount := at(t, services, name, "volumes", 0).(string)
		file, _, _ := strings.Cut(mount, ":")
		require.NotEmpty(t, read(t, file))
	}
}

// The roles and rows of compose.yaml's servers can be made, and moved.
func TestComposeDatabases(t *testing.T) {
	source, target := pgtest.Shared(t, pgtest.SourceVersion()), pgtest.Shared(t, pgtest.TargetVersion())
	if target.Version < 17 {
		t.Skip("the target's roles are those of Postgres 17")
	}
	environment := at(t, documents(t, "compose.yaml")[0], "services", "app", "environment").(map[string]any)
	p := &pair{source: source.NewSource(t), target: target.NewTarget(t)}
	for name, db := range map[string]*pgtest.Database{"source": p.source, "target": p.target} {
		c := db.ConnectAdmin(t)
		role := map[string]string{"source": "u4k2", "target": "planetscale_demo"}[name]
		t.Cleanup(func() {
			admin, err := pgx.Connect(context.Background(), db.AdminURL)
			if err != nil {
				return
			}
			defer admin.Close(context.Background())
			_, err = admin.Exec(context.Background(), "REASSIGN OWNED BY "+role+" TO postgres; DROP OWNED BY "+role)
			require.NoError(t, err)
			_, err = admin.Exec(context.Background(), "DROP ROLE "+role)
			require.NoError(t, err)
		})
		_, err := c.Exec(t.Context(), string(read(t, "deploy/compose/"+name+".sql")))
		require.NoError(t, err)
		url := environment[map[string]string{"source": "HEROKU_URL", "target": "PLANETSCALE_URL"}[name]].(string)
		cfg, err := pgx.ParseConfig(url)
		require.NoError(t, err)
		require.Equal(t, role, cfg.User)
		admin, err := pgx.ParseConfig(db.AdminURL)
		require.NoError(t, err)
		db.URL = strings.Replace(strings.Replace(url, "@"+cfg.Host+":5432/", fmt.Sprintf("@%s:%d/", admin.Host, admin.Port), 1), "/"+cfg.Database+"?", "/"+db.Name+"?", 1)
	}
	tools, err := source.PgTools(t.Context())
	require.NoError(t, err)
	p.path = tools + ":" + os.Getenv("PATH")
	s := p.web(t)
	s.await(t, "waiting")
	_, checks := s.request(t, "GET", "/preflight-checks")
	require.Contains(t, checks, `"ok":true`)
	require.NotContains(t, checks, `"severity":"warning"`, "it looks like the platforms' own")
	s.post(t, "/start-migration")
	s.await(t, "ready_to_copy")
	s.post(t, "/start-copy")
	s.await(t, "replicating")
	s.post(t, "/abort")
	require.Equal(t, int64(300000), count(t, p.target, `SELECT count(*) FROM orders`))
	s.terminate(t)
}

func TestKubernetes(t *testing.T) {
	kinds := []string{}
	for _, doc := range documents(t, "deploy/kubernetes.yaml") {
		kinds = append(kinds, at(t, doc, "kind").(string))
		if doc["kind"] != "Deployment" {
			continue
		}
		spec := at(t, doc, "spec", "template", "spec")
		require.Equal(t, at(t, doc, "spec", "selector", "matchLabels", "app"), at(t, doc, "spec", "template", "metadata", "labels", "app"))
		require.GreaterOrEqual(t, at(t, spec, "terminationGracePeriodSeconds"), 20)
		require.Equal(t, true, at(t, spec, "containers", 0, "securityContext", "readOnlyRootFilesystem"))
		args := at(t, spec, "containers", 0, "args").([]any)
		requireCommand(t, args[0].(string)+" "+args[1].(string))
		require.Equal(t, "heroku-migrator", at(t, spec, "containers", 0, "envFrom", 0, "secretRef", "name"))
	}
	require.Equal(t, []string{"Deployment", "Deployment", "Service"}, kinds)
	requireVariablesOfComments(t, "deploy/kubernetes.yaml", `literal=([A-Z_]+)=`)
}

func TestFly(t *testing.T) {
	var fly struct {
		Build struct {
			Dockerfile string `toml:"dockerfile"`
		} `toml:"build"`
		Processes map[string]string `toml:"processes"`
		KillTime  int               `toml:"kill_timeout"`
		HTTP      struct {
			Port   int      `toml:"internal_port"`
			For    []string `toml:"processes"`
			Checks []struct {
				Path string `toml:"path"`
			} `toml:"checks"`
		} `toml:"http_service"`
	}
	require.NoError(t, toml.Unmarshal(read(t, "deploy/fly.toml"), &fly))
	require.NotEmpty(t, read(t, filepath.Join("deploy", fly.Build.Dockerfile)))
	require.Len(t, fly.Processes, 2)
	for _, command := range fly.Processes {
		requireCommand(t, command)
	}
	require.Greater(t, fly.KillTime, 20)
	require.Equal(t, 8080, fly.HTTP.Port)
	require.Equal(t, []string{"web"}, fly.HTTP.For)
	require.Equal(t, "/health", fly.HTTP.Checks[0].Path)
	requireVariablesOfComments(t, "deploy/fly.toml", `([A-Z_]+)=…`)
}

func TestCloudFormation(t *testing.T) {
	y := documents(t, "deploy/cloudformation.yaml")[0]
	resources := at(t, y, "Resources").(map[string]any)
	text := string(read(t, "deploy/cloudformation.yaml"))
	known := maps.Clone(resources)
	maps.Copy(known, at(t, y, "Parameters").(map[string]any))
	for _, m := range regexp.MustCompile(`!Ref (\w+)|\$\{(\w+)\}`).FindAllStringSubmatch(text, -1) {
		require.Contains(t, known, m[1]+m[2])
	}
	for _, name := range []string{"HerokuUrl", "PlanetScaleUrl", "Password"} {
		require.Equal(t, true, at(t, y, "Parameters", name, "NoEcho"), name)
	}
	require.NotContains(t, text, "SecurityGroupIngress", "no port is open")
	requireVariablesOfComments(t, "deploy/cloudformation.yaml", `(?m)^ +([A-Z_]+)=\$`)
}

// requireVariablesOfComments looks whether the variables that a file tells to set are those without which nothing goes.
func requireVariablesOfComments(t *testing.T, file, pattern string) {
	t.Helper()
	var names []string
	for _, m := range regexp.MustCompile(pattern).FindAllSubmatch(read(t, file), -1) {
		names = append(names, string(m[1]))
	}
	require.ElementsMatch(t, []string{"HEROKU_URL", "PLANETSCALE_URL", "PASSWORD"}, names)
}
