package main

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/heroku-migrator/migrator/dashboard"
)

// user is somebody who may log in.
type user struct {
	name     string
	role     dashboard.Role
	password [sha256.Size]byte
}

// readUsers parses a list of name:role:password.
func readUsers(list string) (map[string]user, error) {
	users := map[string]user{}
	for entry := range strings.FieldsSeq(list) {
		parts := strings.SplitN(entry, ":", 3)
		if len(parts) != 3 || parts[2] == "" {
			return nil, errors.New("ADMIN_USERS: an entry is not like name:role:password")
		}
		role := dashboard.Role(parts[1])
		if role != dashboard.RoleViewer && role != dashboard.RoleOperator {
			return nil, fmt.Errorf("ADMIN_USERS: %s has a role that is neither viewer nor operator", parts[0])
		}
		users[parts[0]] = user{name: parts[0], role: role, password: sha256.Sum256([]byte(parts[2]))}
	}
	if len(users) == 0 {
		return nil, errors.New("ADMIN_USERS is empty: set it to entries like ada:operator:her-password")
	}
	return users, nil
}

const (
	cookieName = "admin_session"
	sessionFor = 8 * time.Hour
)

// sessions are the logins that are valid. They are for concurrent use.
type sessions struct {
	users map[string]user

	mu   sync.Mutex
	open map[string]session
}

type session struct {
	user  user
	until time.Time
}

func newSessions(users map[string]user) *sessions {
	return &sessions{users: users, open: map[string]session{}}
}

// begin returns the token of a new session; "" if the password is wrong.
func (s *sessions) begin(name, password string) string {
	u, known := s.users[name]
	given := sha256.Sum256([]byte(password))
	if subtle.ConstantTimeCompare(given[:], u.password[:]) != 1 || !known {
		return ""
	}
	token := rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	for t, one := range s.open {
		if time.Now().After(one.until) {
			delete(s.open, t)
		}
	}
	s.open[token] = session{user: u, until: time.Now().Add(sessionFor)}
	return token
}

func (s *sessions) end(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, token)
}

var errNotLoggedIn = errors.New("not logged in")

// user returns who sent the request.
func (s *sessions) user(r *http.Request) (user, error) {
	cookie, err := r.Cookie(cookieName)
	if err != nil {
		return user{}, errNotLoggedIn
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	one, ok := s.open[cookie.Value]
	if !ok || time.Now().After(one.until) {
		return user{}, errNotLoggedIn
	}
	return one.user, nil
}

// role is what the dashboard asks for: this program's login is its login too.
func (s *sessions) role(r *http.Request) (dashboard.Role, error) {
	u, err := s.user(r)
	return u.role, err
}
