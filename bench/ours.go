package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/pgtest"
)

// event is a line of `heroku-migrate run --json`, as far as it is of interest.
type event struct {
	Type    string    `json:"type"`
	At      time.Time `json:"at"`
	Phase   string    `json:"phase"`
	Table   string    `json:"table"`
	Seconds float64   `json:"seconds"`
	Error   string    `json:"error"`
}

// follow is one `heroku-migrate run --until in-sync`, and what it told.
type follow struct {
	cmd    *exec.Cmd
	events []event
	said   strings.Builder
	told   chan struct{}
}

// startOurs starts the program with the URLs given, which may lead through a proxy.
func (b *bench) startOurs(ctx context.Context, j *job, source, target string) (*follow, error) {
	f := &follow{told: make(chan struct{})}
	j.cleanUp = b.abort
	f.cmd = j.command(ctx, b.migrate, "run", "--until", "in-sync", "--json", "--workers", strconv.Itoa(jobs), "--pg-dump", filepath.Join(b.tools, "pg_dump"))
	f.cmd.Env = append(slices.Clone(j.env), "HEROKU_URL="+source, "PLANETSCALE_URL="+target)
	f.cmd.Stderr = &f.said
	r, w, err := os.Pipe() // not StdoutPipe, whose end Wait closes
	if err != nil {
		return nil, err
	}
	f.cmd.Stdout = w
	err = j.start(f.cmd)
	_ = w.Close()
	if err != nil {
		_ = r.Close()
		return nil, err
	}
	go func() {
		defer close(f.told)
		defer r.Close()
		for lines := bufio.NewScanner(r); lines.Scan(); {
			var e event
			if json.Unmarshal(lines.Bytes(), &e) == nil {
				f.events = append(f.events, e)
			}
		}
	}()
	return f, nil
}

// wait returns when it has ended. Then events may be read.
func (f *follow) wait(j *job) error {
	err := j.wait(f.cmd)
	<-f.told
	if err == nil {
		return nil
	}
	for _, e := range f.events {
		if e.Error != "" {
			return fmt.Errorf("heroku-migrate: %w: %s", err, e.Error)
		}
	}
	return fmt.Errorf("heroku-migrate: %w: %s", err, lastLines(f.said.String()))
}

// entered is when a phase began.
func (f *follow) entered(phase string) time.Time {
	for _, e := range f.events {
		if e.Type == "phase" && e.Phase == phase {
			return e.At
		}
	}
	return time.Time{}
}

// copied is the time from the begin of the copying phase to the last chunk of the tables.
func (f *follow) copied(of func(table string) bool) time.Duration {
	var last time.Time
	for _, e := range f.events {
		if e.Type == "chunk" && of(e.Table) && e.At.After(last) {
			last = e.At
		}
	}
	return last.Sub(f.entered("copying"))
}

// longest is how long a chunk took at most.
func (f *follow) longest() time.Duration {
	var most float64
	for _, e := range f.events {
		if e.Type == "chunk" {
			most = max(most, e.Seconds)
		}
	}
	return time.Duration(most * float64(time.Second))
}

func everyTable(string) bool { return true }

// ours is the program from its start to its end: preflight, capture, copy, indexes, rounds until it is in sync.
func (b *bench) ours(ctx context.Context, j *job) error {
	_, err := b.oursThrough(ctx, j, j.from.URL, j.to.URL)
	return err
}

func (b *bench) oursThrough(ctx context.Context, j *job, source, target string) (*follow, error) {
	f, err := b.startOurs(ctx, j, source, target)
	if err != nil {
		return nil, err
	}
	err = f.wait(j)
	j.sample.whole = time.Since(j.began)
	j.sample.note = f.phases(j)
	return f, err
}

// phases tells how long each phase took.
func (f *follow) phases(j *job) string {
	var parts []string
	last, name := j.began, "starting"
	for _, e := range f.events {
		if e.Type == "phase" {
			parts = append(parts, fmt.Sprintf("%s %.1f", name, e.At.Sub(last).Seconds()))
			last, name = e.At, e.Phase
		}
	}
	parts = append(parts, fmt.Sprintf("%s %.1f", name, j.began.Add(j.sample.whole).Sub(last).Seconds()))
	return strings.Join(parts, ", ") + fmt.Sprintf("; last chunk after %.1f s of copying", f.copied(everyTable).Seconds())
}

// abort cleans the source, which is migrated again. It is not part of what is measured.
func (b *bench) abort(ctx context.Context, j *job) error {
	ctx = context.WithoutCancel(ctx)
	cmd := exec.CommandContext(ctx, b.migrate, "abort", "--force")
	cmd.Env = append(os.Environ(), "HEROKU_URL="+j.from.URL, "PLANETSCALE_URL="+j.to.URL)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("heroku-migrate abort: %w: %s", err, lastLines(string(out)))
	}
	return nil
}

// The environment of the child process that measures the data phase alone.
const (
	childSource = "BENCH_CHILD_SOURCE"
	childTarget = "BENCH_CHILD_TARGET"
	childPgDump = "BENCH_CHILD_PG_DUMP"
)

// oursDataOnly copies rows without building indexes meanwhile, as the floor does. The program has no option for
// that, so a child process calls the library's functions.
func (b *bench) oursDataOnly(ctx context.Context, j *job) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := j.command(ctx, self)
	cmd.Env = append(slices.Clone(j.env), childSource+"="+j.from.URL, childTarget+"="+j.to.URL, childPgDump+"="+filepath.Join(b.tools, "pg_dump"))
	out := &strings.Builder{}
	cmd.Stdout = out
	j.sample.part, j.cleanUp = true, b.abort
	err = j.run(cmd)
	if err == nil {
		j.sample.data, err = time.ParseDuration(strings.TrimSpace(out.String()))
	}
	return err
}

// dataPhase is what the child does: it prints how long Copy took.
func dataPhase(ctx context.Context) (err error) {
	src, err := migrator.OpenHeroku(ctx, os.Getenv(childSource), migrator.HerokuConfig{PgDump: os.Getenv(childPgDump)})
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := migrator.OpenPlanetScale(ctx, os.Getenv(childTarget), migrator.PlanetScaleConfig{})
	if err != nil {
		return err
	}
	defer dst.Close()
	lead, err := dst.Journal().TryLead(ctx, true)
	if err != nil {
		return err
	}
	defer lead.Release() //nolint:contextcheck // it has to happen whatever became of the context
	state, err := dst.Journal().State(ctx)
	if err != nil {
		return err
	}
	if err := migrator.CloneSchema(ctx, src, dst, migrator.CloneSchemaConfig{}); err != nil {
		return err
	}
	if err := src.Claim(ctx, migrator.Claim{Migration: state.ID, Epoch: lead.Epoch}, true); err != nil {
		return err
	}
	if err := migrator.Capture(ctx, src, dst, migrator.CaptureConfig{}); err != nil {
		return err
	}
	begin := time.Now()
	if err := migrator.Copy(ctx, src, dst, migrator.CopyConfig{Workers: jobs}); err != nil {
		return err
	}
	fmt.Println(time.Since(begin))
	return nil
}

// status reads how much of the copy is done, like `heroku-migrate status`, but without starting a program each time.
func status(ctx context.Context, j *job) (func() (percent float64, err error), func(), error) {
	src, err := migrator.OpenHeroku(ctx, j.from.URL, migrator.HerokuConfig{})
	if err != nil {
		return nil, nil, err
	}
	dst, err := migrator.OpenPlanetScale(ctx, j.to.URL, migrator.PlanetScaleConfig{})
	if err != nil {
		src.Close()
		return nil, nil, err
	}
	done := func() { src.Close(); dst.Close() }
	m, err := migrator.New(migrator.Config{Source: src, Target: dst})
	if err != nil {
		done()
		return nil, nil, err
	}
	return func() (float64, error) {
		s, err := m.Status(ctx)
		if err != nil {
			return 0, err
		}
		return s.ProgressSignals.ByteWeighted.Percent, nil
	}, done, nil
}

// serverAddr is where a database's server listens.
func serverAddr(db *pgtest.Database) string { return fmt.Sprintf("127.0.0.1:%d", db.Cluster.Port()) }
