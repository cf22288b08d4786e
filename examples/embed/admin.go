package main

import (
	"html/template"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/heroku-migrator/migrator/dashboard"
)

// admin is the program that was there before: pages behind a login, and a switch that stops deploys.
type admin struct {
	log         *slog.Logger
	sessions    *sessions
	frozen      atomic.Bool // no deploys
	application *migration  // the part that is about the databases
}

var pages = template.Must(template.New("").Parse(`
{{define "head"}}<!doctype html><html lang="en"><meta charset="utf-8"><title>Admin</title><h1>Admin</h1>{{end}}
{{define "login"}}{{template "head"}}<form method="post" action="/login">
<p><label>Name <input name="name" autocomplete="username"></label>
<p><label>Password <input name="password" type="password" autocomplete="current-password"></label>
<p><button>Log in</button></form>{{end}}
{{define "home"}}{{template "head"}}<p>Logged in as {{.Name}} ({{.Role}}).
<p>The application uses the database on {{.Database}}.
<p>Deploys are {{if .Frozen}}frozen{{else}}allowed{{end}}.
{{if .Operator}}<form method="post" action="/freeze"><button name="frozen" value="{{if .Frozen}}no{{else}}yes{{end}}">{{if .Frozen}}Allow{{else}}Freeze{{end}} deploys</button></form>
<form method="post" action="/begin"><button>Begin the migration, or go on after an error</button></form>{{end}}
<p><a href="/admin/migration/">Migration</a>
<form method="post" action="/logout"><button>Log out</button></form>{{end}}`))

func (a *admin) show(w http.ResponseWriter, page string, data any) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if err := pages.ExecuteTemplate(w, page, data); err != nil {
		a.log.Warn("a page could not be sent", "error", err)
	}
}

// sameOrigin refuses changes that other sites' pages ask for.
func (a *admin) sameOrigin(next http.Handler) http.Handler {
	return http.NewCrossOriginProtection().Handler(next)
}

func (a *admin) showLogin(w http.ResponseWriter, _ *http.Request) { a.show(w, "login", nil) }

func (a *admin) login(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 4<<10)
	token := a.sessions.begin(r.PostFormValue("name"), r.PostFormValue("password"))
	if token == "" {
		w.WriteHeader(http.StatusUnauthorized)
		a.show(w, "login", nil)
		return
	}
	//nolint:gosec // on localhost there is no TLS; behind a proxy that has it, Secure belongs here
	http.SetCookie(w, &http.Cookie{Name: cookieName, Value: token, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: int(sessionFor.Seconds())})
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (a *admin) logout(w http.ResponseWriter, r *http.Request) {
	if cookie, err := r.Cookie(cookieName); err == nil {
		a.sessions.end(cookie.Value)
	}
	http.Redirect(w, r, "/login", http.StatusSeeOther)
}

// loginFirst leads people to the login; programs get the dashboard's own refusal.
func (a *admin) loginFirst(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := a.sessions.user(r); err != nil && r.Method == http.MethodGet && strings.Contains(r.Header.Get("Accept"), "text/html") {
			http.Redirect(w, r, "/login", http.StatusSeeOther)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (a *admin) home(w http.ResponseWriter, r *http.Request) {
	u, err := a.sessions.user(r)
	if err != nil {
		http.Redirect(w, r, "/login", http.StatusSeeOther)
		return
	}
	a.show(w, "home", map[string]any{
		"Name": u.name, "Role": u.role, "Operator": u.role == dashboard.RoleOperator, "Frozen": a.frozen.Load(), "Database": a.application.database(),
	})
}

// operator tells whether the request comes from one, and refuses it if not.
func (a *admin) operator(w http.ResponseWriter, r *http.Request) bool {
	u, err := a.sessions.user(r)
	if err != nil || u.role != dashboard.RoleOperator {
		http.Error(w, "An operator may do this.", http.StatusForbidden)
		return false
	}
	return true
}

func (a *admin) setFreeze(w http.ResponseWriter, r *http.Request) {
	if a.operator(w, r) {
		a.frozen.Store(r.PostFormValue("frozen") == "yes")
		http.Redirect(w, r, "/", http.StatusSeeOther)
	}
}

func (a *admin) begin(w http.ResponseWriter, r *http.Request) {
	if a.operator(w, r) {
		a.application.begin()
		http.Redirect(w, r, "/admin/migration/", http.StatusSeeOther)
	}
}
