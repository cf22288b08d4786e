// Command embed is an admin program as companies have one, with a login and roles of its own, that has the migration as one of its parts: the
// dashboard under /admin/migration/, a check of its own in preflight, its own conditions for the next phase, and its part in the switch.
//
//	export HEROKU_URL=… PLANETSCALE_URL=…
//	export ADMIN_USERS='ada:operator:her-password bob:viewer:his-password'
//	go run ./examples/embed        # then open http://localhost:8080
//
// What concerns the migration is in migration.go; the rest is what such a program has anyway.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/heroku-migrator/migrator/dashboard"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "embed:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	users, err := readUsers(os.Getenv("ADMIN_USERS"))
	if err != nil {
		return err
	}
	log := dashboard.NewLog(slog.NewTextHandler(os.Stderr, nil), 1000)
	a := &admin{log: slog.New(log), sessions: newSessions(users)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /login", a.showLogin)
	mux.HandleFunc("POST /login", a.login)
	mux.HandleFunc("POST /logout", a.logout)
	mux.HandleFunc("GET /{$}", a.home)
	mux.HandleFunc("POST /freeze", a.setFreeze)

	var notBefore time.Time
	if text := os.Getenv("COPY_NOT_BEFORE"); text != "" {
		if notBefore, err = time.Parse(time.RFC3339, text); err != nil {
			return errors.New("COPY_NOT_BEFORE is not a time like 2027-01-31T22:00:00Z")
		}
	}
	part, err := newMigration(ctx, a, log, os.Getenv("HEROKU_URL"), os.Getenv("PLANETSCALE_URL"), notBefore)
	if err != nil {
		return err
	}
	defer part.close()
	a.application = part
	mux.HandleFunc("POST /begin", a.begin)
	mux.Handle("/admin/migration/", http.StripPrefix("/admin/migration", a.loginFirst(part.dashboard)))

	port := os.Getenv("PORT")
	if port == "" {
		port = "8080"
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		return err
	}
	server := &http.Server{Handler: a.sameOrigin(mux), ReadHeaderTimeout: 10 * time.Second, WriteTimeout: time.Minute}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	a.log.Info("listening", "port", port)
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	part.close() // before Shutdown, which waits for the dashboard's streams
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := server.Shutdown(closing); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}
