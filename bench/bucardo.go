package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/heroku-migrator/migrator/internal/pgtest"
)

// bucardoPatience is how long its copy may take, since it does not say when it has failed.
const bucardoPatience = 20 * time.Minute

// bucardoMissing says what Bucardo needs and is not there, or nothing.
func bucardoMissing() string {
	switch {
	case plperlVersion() == 0:
		return "its own database needs a server with PL/Perl on this machine (apt-get install bucardo postgresql-plperl-15)"
	case os.Getuid() != 0:
		return "it is measured as root only, who may start that server"
	}
	if _, err := exec.LookPath("bucardo"); err != nil {
		return "it is not installed (apt-get install bucardo postgresql-plperl-15)"
	}
	return ""
}

// plperlVersion is the newest Postgres on this machine with PL/Perl, or 0.
func plperlVersion() (newest int) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/lib/plperl.so") // the pattern is good
	for _, name := range found {
		version, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(name))))
		if err == nil {
			newest = max(newest, version)
		}
	}
	return newest
}

// bucardoCopy has Bucardo make its one-time copy into bare tables, and builds the indexes afterwards, as
// PlanetScale's migrator does.
func (b *bench) bucardoCopy(ctx context.Context, j *job) (err error) {
	// Its own database is made before the clock starts: it is there once for all migrations.
	control, err := pgtest.StartWith(ctx, plperlVersion(), pgtest.Options{Backend: "binaries"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, control.Close(context.WithoutCancel(ctx))) }()
	admin := control.AdminURL("postgres")
	bucardo, err := b.bucardoProgram(ctx, j, control)
	if err != nil {
		return err
	}
	j.cleanUp = func(ctx context.Context, j *job) error {
		return execute(ctx, j.from.AdminURL, "DROP SCHEMA IF EXISTS bucardo CASCADE")
	}
	j.restart(ctx)

	if err := b.preData(ctx, j); err != nil {
		return err
	}
	for _, args := range [][]string{
		bucardoDatabase("source", j.from),
		bucardoDatabase("target", j.to),
		{"add", "all", "tables", "db=source", "relgroup=bench"},
		{"add", "sync", "bench", "relgroup=bench", "dbs=source:source,target:target", "onetimecopy=2"},
	} {
		if err := j.run(bucardo(args...)); err != nil {
			return err
		}
	}
	begin := time.Now()
	if err := j.run(bucardo("start")); err != nil {
		return err
	}
	err = b.bucardoWait(ctx, admin)
	j.sample.data = time.Since(begin)
	err = errors.Join(err, j.run(bucardo("stop")))
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(j.dir, "log.bucardo")) // the better for what it says
		return fmt.Errorf("%w\n%s", err, lastLines(string(log)))
	}
	return b.postData(ctx, j)
}

// bucardoProgram installs Bucardo's own database, and returns its program, ready to use that.
func (b *bench) bucardoProgram(ctx context.Context, j *job, control *pgtest.Cluster) (func(args ...string) *exec.Cmd, error) {
	const password = "bucardo" // of a server that nobody else can reach for long
	admin := control.AdminURL("postgres")
	if err := execute(ctx, admin, "CREATE ROLE bucardo SUPERUSER LOGIN PASSWORD '"+password+"'"); err != nil {
		return nil, err
	}
	u, err := url.Parse(admin)
	if err != nil {
		return nil, err
	}
	superuser, _ := u.User.Password()
	passwords, err := writePasswords(j.dir, j.from, j.to,
		&pgtest.Database{URL: (&url.URL{User: url.UserPassword("", superuser)}).String(), Cluster: control, Name: "*", Role: "postgres"},
		&pgtest.Database{URL: (&url.URL{User: url.UserPassword("", password)}).String(), Cluster: control, Name: "*", Role: "bucardo"})
	if err != nil {
		return nil, err
	}
	j.env = append(j.env, "PGPASSFILE="+passwords, "HOME="+j.dir)
	program := func(user, database string, args ...string) *exec.Cmd {
		connect := []string{"--no-bucardorc", "--batch", "--dbhost", "127.0.0.1", "--dbport", strconv.Itoa(control.Port()), "--dbuser", user, "--dbname", database,
			"--dbpass", password, "--pid-dir", j.dir, "--log-destination", j.dir}
		return j.command(ctx, "bucardo", append(connect, args...)...)
	}
	if out, err := program("postgres", "postgres", "install").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("bucardo install: %w: %s", err, lastLines(string(out)))
	}
	bucardo := func(args ...string) *exec.Cmd { return program("bucardo", "bucardo", args...) }
	for _, set := range []string{"piddir=" + j.dir, "reason_file=" + filepath.Join(j.dir, "reason"), "warning_file=" + filepath.Join(j.dir, "warning")} {
		if out, err := bucardo("set", set).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("bucardo set: %w: %s", err, lastLines(string(out)))
		}
	}
	return bucardo, nil
}

func bucardoDatabase(name string, db *pgtest.Database) []string {
	u, err := url.Parse(db.URL)
	if err != nil { // pgtest made it
		panic(err)
	}
	password, _ := u.User.Password()
	return []string{"add", "database", name, "dbhost=127.0.0.1", "dbport=" + u.Port(), "dbname=" + db.Name, "dbuser=" + db.Role, "dbpass=" + password}
}

// bucardoWait returns once the one-time copy is done: then Bucardo takes that off the sync.
func (b *bench) bucardoWait(ctx context.Context, admin string) error {
	u, err := url.Parse(admin)
	if err != nil {
		return err
	}
	u.Path = "/bucardo"
	conn, err := pgx.Connect(ctx, u.String())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for deadline := time.Now().Add(bucardoPatience); ; {
		var left int
		if err := conn.QueryRow(ctx, "SELECT onetimecopy FROM bucardo.sync").Scan(&left); err != nil {
			return err
		}
		if left == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("its copy is not done after %v", bucardoPatience)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}
