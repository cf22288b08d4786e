package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/heroku-migrator/migrator/internal/pgtest"
)

// jobs is how many tables, or indexes, the tools copy or build at once: one for each core of a small machine.
const jobs = 2

// contender is a way to copy a database.
type contender struct {
	name    string
	of      string // what ONLY calls it
	missing string // why it cannot be measured, and what to do
	run     func(context.Context, *job) error

	samples []*sample
	err     error
}

// job is one measurement of one copy.
type job struct {
	*meter

	from, to *pgtest.Database
	tables   []table
	env      []string
	dir      string // empty, removed afterwards
	began    time.Time
	sample   *sample
	cleanUp  func(context.Context, *job) error // what is not part of the measurement
}

// sample is what one measurement has found.
type sample struct {
	whole     time.Duration
	data      time.Duration // rows only; 0 if the tool does not tell
	indexes   time.Duration // indexes and constraints; 0 if the tool does not tell
	part      bool          // it was not meant to be a whole copy
	unchecked bool          // it copied nothing
	bytes     int64
	cpu       time.Duration
	peak      int64
	note      string
	load      string // of the machine, as it was before: what else it does shows in the figures
}

func (s *sample) String() string {
	text := fmt.Sprintf("%6.1f s", s.whole.Seconds())
	if s.data > 0 {
		text += fmt.Sprintf(" (data %.1f s)", s.data.Seconds())
	}
	text += fmt.Sprintf(", %.0f MB/s, CPU %.1f s, peak %.0f MiB", float64(s.bytes)/1e6/s.whole.Seconds(), s.cpu.Seconds(), float64(s.peak)/(1<<20))
	if s.load != "" {
		text += ", load before " + s.load
	}
	if s.note != "" {
		text += "; " + s.note
	}
	return text
}

func (b *bench) contenders() []*contender {
	pgcopydb, bucardo := "", bucardoMissing()
	if _, err := exec.LookPath("pgcopydb"); err != nil {
		pgcopydb = "it is not installed (apt-get install pgcopydb)"
	}
	return []*contender{
		{name: "floor", of: "floor", run: b.floor(false)},
		{name: "floor, largest table in 4", of: "floor", run: b.floor(true)},
		{name: "pg_dump, pg_restore", of: "dump", run: b.dumpAndRestore},
		{name: "pgcopydb", of: "pgcopydb", missing: pgcopydb, run: b.pgcopydb()},
		{name: "pgcopydb, split above 100 MB", of: "pgcopydb", missing: pgcopydb, run: b.pgcopydb("--split-tables-larger-than", "100MB")},
		{name: "Bucardo", of: "bucardo", missing: bucardo, run: b.bucardoCopy},
		{name: "ours, data only", of: "ours", run: b.oursDataOnly},
		{name: "ours", of: "ours", run: b.ours},
	}
}

// measure copies a database into a new one, and finds out whether everything is there.
func (b *bench) measure(ctx context.Context, from *pgtest.Database, run func(context.Context, *job) error) (_ *sample, err error) {
	to, err := b.target.CreateTarget(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, to.Drop(context.WithoutCancel(ctx))) }()
	if err := plainPassword(ctx, to); err != nil {
		return nil, err
	}
	j := &job{from: from, to: to, sample: &sample{load: load()}}
	if j.tables, err = sizes(ctx, from); err != nil {
		return nil, err
	}
	if j.dir, err = os.MkdirTemp(b.dir, "copy-"); err != nil {
		return nil, err
	}
	defer os.RemoveAll(j.dir)
	passwords, err := writePasswords(j.dir, from, to)
	if err != nil {
		return nil, err
	}
	// pgcopydb takes pg_dump and psql from the PATH.
	j.env = append(os.Environ(), "PGPASSFILE="+passwords, "PATH="+b.tools+":"+os.Getenv("PATH"))
	if err := b.settle(ctx); err != nil {
		return nil, err
	}
	j.meter = startMeter(ctx)
	j.began = time.Now()
	err = run(ctx, j)
	s := j.sample
	if s.whole == 0 {
		s.whole = time.Since(j.began)
	}
	s.bytes = total(j.tables)
	s.cpu, s.peak = j.finish()
	if j.cleanUp != nil {
		err = errors.Join(err, j.cleanUp(context.WithoutCancel(ctx), j))
	}
	if err != nil {
		return nil, err
	}
	if s.unchecked {
		return s, nil
	}
	return s, sameCounts(ctx, from, to, !s.part)
}

// restart forgets what was measured so far: it was preparation.
func (j *job) restart(ctx context.Context) {
	j.stop()
	<-j.stopped
	j.meter, j.began = startMeter(ctx), time.Now()
}

// command is a program of the tool, which finds the passwords of both databases.
func (j *job) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...) //nolint:gosec // the harness says which program
	cmd.Env = j.env
	cmd.Dir = j.dir
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// preData makes bare tables: no keys, no indexes.
func (b *bench) preData(ctx context.Context, j *job) error {
	file := filepath.Join(j.dir, "schema.dump")
	if err := j.run(j.command(ctx, filepath.Join(b.tools, "pg_dump"), "-Fc", "--schema-only", "--no-owner", "--no-acl", "-f", file, "-d", passless(j.from))); err != nil {
		return err
	}
	return j.run(j.command(ctx, filepath.Join(b.tools, "pg_restore"), "--section=pre-data", "--no-owner", "--no-acl", "--exit-on-error", "-d", passless(j.to), file))
}

// postData makes the indexes and constraints.
func (b *bench) postData(ctx context.Context, j *job) error {
	begin := time.Now()
	err := j.run(j.command(ctx, filepath.Join(b.tools, "pg_restore"), "--section=post-data", "--no-owner", "--no-acl", "--exit-on-error",
		fmt.Sprintf("-j%d", jobs), "-d", passless(j.to), filepath.Join(j.dir, "schema.dump")))
	j.sample.indexes = time.Since(begin)
	return err
}

// floor is the least that a copy can cost: the servers' own COPY, joined by a pipe, into bare tables.
func (b *bench) floor(split bool) func(context.Context, *job) error {
	return func(ctx context.Context, j *job) error {
		if err := b.preData(ctx, j); err != nil {
			return err
		}
		begin := time.Now()
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(jobs)
		for i, t := range j.tables {
			for _, query := range ranges(t, split && i == 0) {
				g.Go(func() error { return b.pipe(gctx, j, query, t.name) })
			}
		}
		if err := g.Wait(); err != nil {
			return err
		}
		j.sample.data = time.Since(begin)
		return b.postData(ctx, j)
	}
}

// ranges are the queries that read a table, of which a large one is cut into four.
func ranges(t table, split bool) []string {
	if !split {
		return []string{t.name}
	}
	const parts = 4
	var queries []string
	for i := range int64(parts) {
		where := fmt.Sprintf("ctid >= '(%d,0)'", t.pages*i/parts)
		if i < parts-1 {
			where += fmt.Sprintf(" AND ctid < '(%d,0)'", t.pages*(i+1)/parts)
		}
		queries = append(queries, fmt.Sprintf("(SELECT * FROM %s WHERE %s)", t.name, where))
	}
	return queries
}

// pipe is psql COPY TO | psql COPY FROM.
func (b *bench) pipe(ctx context.Context, j *job, what, into string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	psql := func(db *pgtest.Database, sql string) *exec.Cmd {
		return j.command(ctx, filepath.Join(b.tools, "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", passless(db), "-c", sql)
	}
	from := psql(j.from, fmt.Sprintf("COPY %s TO STDOUT (FORMAT binary)", what))
	to := psql(j.to, fmt.Sprintf("COPY %s FROM STDIN (FORMAT binary)", into))
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	from.Stdout, to.Stdin = w, r
	var g errgroup.Group
	for cmd, end := range map[*exec.Cmd]*os.File{from: w, to: r} {
		g.Go(func() error {
			said := &strings.Builder{}
			cmd.Stderr = said
			err := j.start(cmd)
			_ = end.Close() // ours; the program has its own, and the other one has to see its end
			if err == nil {
				err = j.wait(cmd)
			}
			if err != nil {
				cancel()
				return fmt.Errorf("psql: %w: %s", err, lastLines(said.String()))
			}
			return nil
		})
	}
	return g.Wait()
}

func (b *bench) dumpAndRestore(ctx context.Context, j *job) error {
	begin := time.Now()
	dir := filepath.Join(j.dir, "dump")
	if err := j.run(j.command(ctx, filepath.Join(b.tools, "pg_dump"), "-Fd", fmt.Sprintf("-j%d", jobs), "--no-owner", "--no-acl", "-f", dir, "-d", passless(j.from))); err != nil {
		return err
	}
	dumped := time.Since(begin)
	err := j.run(j.command(ctx, filepath.Join(b.tools, "pg_restore"), fmt.Sprintf("-j%d", jobs), "--no-owner", "--no-acl", "--exit-on-error", "-d", passless(j.to), dir))
	j.sample.note = fmt.Sprintf("pg_dump %.1f s, pg_restore %.1f s", dumped.Seconds(), (time.Since(begin) - dumped).Seconds())
	return err
}

func (b *bench) pgcopydb(options ...string) func(context.Context, *job) error {
	return func(ctx context.Context, j *job) error {
		args := slices.Concat([]string{"clone", "--source", passless(j.from), "--target", passless(j.to), "--dir", filepath.Join(j.dir, "pgcopydb"),
			"--table-jobs", fmt.Sprint(jobs), "--index-jobs", fmt.Sprint(jobs), "--no-owner", "--no-acl"}, options)
		return j.run(j.command(ctx, "pgcopydb", args...))
	}
}
