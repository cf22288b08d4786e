// Package herokutest is a stand-in for Heroku's Platform API, for one application: it keeps what a test has to see change (config
// vars, attachments, releases, dynos, maintenance mode) and answers as Heroku does, refusals included.
package herokutest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// App is the application. Set it up before the first request.
type App struct {
	Name      string
	Token     string
	ReadOnly  bool                         // the token lacks the right to write
	Formation map[string]int               // how many dynos of each type
	Boot      time.Duration                // until a new dyno is up
	Preboot   time.Duration                // how long old dynos go on beside new ones
	Release   func(map[string]string) bool // the release command, if there is one: whether it succeeds with these config vars
	Releasing time.Duration                // how long it runs
	Crash     func(kind string, vars map[string]string) bool
}

// Attachment is an add-on's.
type Attachment struct {
	ID, Name, Addon, Namespace string
}

// Release is a version of the application.
type Release struct {
	Version     int
	Description string
	created     time.Time
	plain       map[string]string // ordinary config vars
	vars        map[string]string // with those of attachments, as its dynos have them
}

// Fault is an answer in the place of the proper one.
type Fault struct {
	Status     int // 0: the connection is cut
	ID         string
	Message    string
	RetryAfter string
	Applied    bool // what was asked for is done all the same
}

// Server answers for one application.
type Server struct {
	URL string

	mu          sync.Mutex
	app         App
	maintenance bool
	attachments []Attachment
	addons      map[string]string   // name: URL
	shared      map[string][]string // name: other applications
	releases    []*Release
	oneOff      []string
	calls       []string
	fault       func(method, path string, n int) *Fault
	requests    map[string]int
	ids         int
}

// New starts a server, which ends with the test.
func New(t *testing.T, app App) *Server {
	t.Helper()
	s := &Server{app: app, addons: map[string]string{}, shared: map[string][]string{}, requests: map[string]int{}}
	s.releases = []*Release{{Version: 1, Description: "Initial release", plain: map[string]string{}, created: time.Now().Add(-time.Hour)}}
	server := httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(server.Close)
	s.URL = server.URL
	return s
}

// Addon makes an add-on and attaches it.
func (s *Server) Addon(name, url string, attachments ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addons[name] = url
	for _, a := range attachments {
		as, namespace, _ := strings.Cut(a, "@")
		s.ids++
		s.attachments = append(s.attachments, Attachment{fmt.Sprint("id-", s.ids), as, name, namespace})
	}
	s.restart()
}

// Share attaches an add-on to another application.
func (s *Server) Share(addon, app string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shared[addon] = append(s.shared[addon], app)
}

// Set sets ordinary config vars; nothing checks them, and no release comes of it.
func (s *Server) Set(vars map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.Copy(s.releases[len(s.releases)-1].plain, vars)
	s.restart()
}

// restart makes what was set up look as if it had been long ago.
func (s *Server) restart() {
	latest := s.releases[len(s.releases)-1]
	latest.vars = s.with(latest.plain)
}

// OneOff starts a one-off dyno.
func (s *Server) OneOff(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.oneOff = append(s.oneOff, name)
}

// Change changes the application's behaviour.
func (s *Server) Change(change func(*App)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.app)
}

// Fail sets what is answered with a fault: n counts the requests with the same method and path, from 1. nil answers properly.
func (s *Server) Fail(fault func(method, path string, n int) *Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault, s.requests = fault, map[string]int{}
}

// Calls returns what was changed, in its order, and forgets it.
func (s *Server) Calls() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := s.calls
	s.calls = nil
	return calls
}

// State is what a test compares.
type State struct {
	Maintenance bool
	Config      map[string]string // with those of attachments
	Attachments []string          // NAME of ADDON@NAMESPACE, sorted
}

// State returns the application's state.
func (s *Server) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := State{Maintenance: s.maintenance, Config: s.config()}
	for _, a := range s.attachments {
		st.Attachments = append(st.Attachments, a.Name+" of "+a.Addon+"@"+a.Namespace)
	}
	slices.Sort(st.Attachments)
	return st
}

// Running returns what the dynos that are up have in a config var, by their names.
func (s *Server) Running(name string) map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	running := map[string]string{}
	for _, d := range s.dynos() {
		if d.state == "up" {
			running[d.name] = d.release.vars[name]
		}
	}
	return running
}

// SetMaintenance turns maintenance mode on or off, as somebody else would.
func (s *Server) SetMaintenance(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.maintenance = on
}

// config is every config var. A change is not seen before its release command has succeeded, and never if that fails.
func (s *Server) config() map[string]string {
	for _, r := range slices.Backward(s.releases) {
		if s.status(r) == "succeeded" {
			return maps.Clone(r.vars)
		}
	}
	return map[string]string{}
}

// base is what the next release changes.
func (s *Server) base() map[string]string {
	for _, r := range slices.Backward(s.releases) {
		if s.status(r) != "failed" {
			return r.plain
		}
	}
	return map[string]string{}
}

// with adds the config vars of attachments.
func (s *Server) with(plain map[string]string) map[string]string {
	all := maps.Clone(plain)
	for _, a := range s.attachments {
		url := s.addons[a.Addon]
		if a.Namespace != "" {
			url += "?as=" + a.Namespace
		}
		all[a.Name+"_URL"] = url
	}
	return all
}

func (s *Server) release(description string, plain map[string]string) {
	s.releases = append(s.releases, &Release{
		Version: len(s.releases) + 1, Description: description, created: time.Now(), plain: plain, vars: s.with(plain),
	})
}

// status of a release follows from the time: its command runs first.
func (s *Server) status(r *Release) string {
	switch {
	case s.app.Release == nil || r.Version == 1:
		return "succeeded"
	case time.Since(r.created) < s.app.Releasing:
		return "pending"
	case s.app.Release(r.vars):
		return "succeeded"
	}
	return "failed"
}

type dyno struct {
	name, kind, state string
	release           *Release
}

// dynos are those of the latest release that has succeeded, and for a time those of the one before.
func (s *Server) dynos() []dyno {
	var list []dyno
	add := func(r *Release, since time.Duration) {
		for kind, n := range s.app.Formation {
			for i := range n {
				state := "up"
				switch {
				case since < s.app.Boot:
					state = "starting"
				case s.app.Crash != nil && s.app.Crash(kind, r.vars):
					state = "crashed"
				}
				list = append(list, dyno{fmt.Sprintf("%s.%d", kind, i+1), kind, state, r})
			}
		}
	}
	newer := time.Duration(-1)
	for _, r := range slices.Backward(s.releases) {
		if s.status(r) != "succeeded" {
			continue
		}
		since := time.Since(r.created)
		if s.app.Release != nil && r.Version > 1 {
			since -= s.app.Releasing
		}
		if newer >= 0 {
			if newer < s.app.Preboot {
				add(r, since)
			}
			break
		}
		add(r, since)
		newer = since
	}
	for _, name := range s.oneOff {
		kind, _, _ := strings.Cut(name, ".")
		list = append(list, dyno{name, kind, "up", s.releases[0]})
	}
	return list
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Header.Get("Authorization") != "Bearer "+s.app.Token {
		refuse(w, http.StatusUnauthorized, "unauthorized", "Invalid credentials provided.")
		return
	}
	if r.Header.Get("Accept") != "application/vnd.heroku+json; version=3" {
		refuse(w, http.StatusNotAcceptable, "not_acceptable", "The request did not specify or specified an invalid version.")
		return
	}
	var fault *Fault
	if s.fault != nil {
		s.requests[r.Method+r.URL.Path]++
		fault = s.fault(r.Method, r.URL.Path, s.requests[r.Method+r.URL.Path])
	}
	if fault == nil {
		s.answer(w, r)
		return
	}
	if fault.Applied {
		s.answer(httptest.NewRecorder(), r)
	}
	if fault.Status == 0 {
		panic(http.ErrAbortHandler)
	}
	if fault.RetryAfter != "" {
		w.Header().Set("Retry-After", fault.RetryAfter)
	}
	refuse(w, fault.Status, fault.ID, fault.Message)
}

func refuse(w http.ResponseWriter, status int, id, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(map[string]string{"id": id, "message": message}); err != nil {
		panic(http.ErrAbortHandler) // who asked is gone
	}
}

// AttachmentID returns the ID of an attachment by its name; empty if there is none.
func (s *Server) AttachmentID(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.attachments {
		if a.Name == name {
			return a.ID
		}
	}
	return ""
}
