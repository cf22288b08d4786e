package dashboard

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// Role is what somebody may do.
type Role string

// The roles.
const (
	RoleViewer   Role = "viewer"   // look
	RoleOperator Role = "operator" // look and act
)

// adminUser is the name that goes with the password.
const adminUser = "admin"

// authenticator says who may do what.
type authenticator struct {
	cfg      Config
	user     [sha256.Size]byte
	password [sha256.Size]byte
	guesses  guesses
}

func newAuthenticator(cfg Config) *authenticator {
	if cfg.ClientIP == nil {
		cfg.ClientIP = func(r *http.Request) string { return r.RemoteAddr }
	}
	return &authenticator{cfg: cfg, user: sha256.Sum256([]byte(adminUser)), password: sha256.Sum256([]byte(cfg.Password))}
}

// role returns the role of whoever sent the request, or why there is none.
func (a *authenticator) role(r *http.Request) (Role, *apiError) {
	switch {
	case a.cfg.Authorize != nil:
		role, err := a.cfg.Authorize(r)
		switch {
		case err != nil || role == "":
			return "", &apiError{status: http.StatusUnauthorized, Code: "unauthorized", Text: "You are not logged in, or may not see this."}
		case role != RoleOperator:
			return RoleViewer, nil
		}
		return role, nil
	case a.cfg.Password == "":
		return RoleOperator, nil // Insecure
	}
	user, password, ok := r.BasicAuth()
	if !ok { // as a browser's first request
		return "", loginNeeded()
	}
	client := clientKey(a.cfg.ClientIP(r))
	if wait := a.guesses.wait(client, time.Now()); wait > 0 {
		return "", &apiError{
			status: http.StatusTooManyRequests, Code: "too_many_failures", retryAfter: wait,
			Text: "Too many wrong passwords came from your address: wait " + wait.Round(time.Second).String() + ".",
		}
	}
	// Hashes have one length, and both are compared whatever the first comes to: how long it takes tells nothing.
	givenUser, givenPassword := sha256.Sum256([]byte(user)), sha256.Sum256([]byte(password))
	if subtle.ConstantTimeCompare(givenUser[:], a.user[:])&subtle.ConstantTimeCompare(givenPassword[:], a.password[:]) != 1 {
		a.guesses.failed(client, time.Now())
		return "", loginNeeded()
	}
	a.guesses.succeeded(client)
	return RoleOperator, nil
}

func loginNeeded() *apiError {
	return &apiError{
		status: http.StatusUnauthorized, Code: "unauthorized", challenge: true,
		Text: "Log in as user admin, with the password that the program was given (PASSWORD).",
	}
}

// ForwardedFor is the client as the proxy nearest to this process saw it: the last address in X-Forwarded-For. It is right only behind a
// proxy that appends to that header, such as Heroku's router; elsewhere anybody can write anything there.
func ForwardedFor(r *http.Request) string {
	all := r.Header.Values("X-Forwarded-For")
	if len(all) == 0 {
		return r.RemoteAddr
	}
	list := strings.Split(all[len(all)-1], ",")
	return strings.TrimSpace(list[len(list)-1])
}

// clientKey is the address without its port; of one of IPv6 its network, since whoever has one has all of it.
func clientKey(address string) string {
	host := address
	if h, _, err := net.SplitHostPort(address); err == nil {
		host = h
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		const most = 64
		return host[:min(len(host), most)]
	}
	ip = ip.Unmap().WithZone("")
	if ip.Is6() {
		if p, err := ip.Prefix(64); err == nil {
			return p.String()
		}
	}
	return ip.String()
}

// guesses slows down those who guess passwords.
type guesses struct {
	mu      sync.Mutex
	clients map[string]guess
}

type guess struct {
	failures int
	last     time.Time
	until    time.Time // not before
}

const (
	freeGuesses  = 5
	longestWait  = time.Minute
	forgetAfter  = 15 * time.Minute
	mostGuessers = 4096
)

func (g *guesses) wait(client string, now time.Time) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.clients[client].until.Sub(now)
}

func (g *guesses) failed(client string, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.clients == nil {
		g.clients = map[string]guess{}
	}
	c, ok := g.clients[client]
	if !ok && len(g.clients) >= mostGuessers {
		g.makeRoom()
	}
	if now.Sub(c.last) > forgetAfter {
		c = guess{}
	}
	c.failures++
	c.last = now
	if over := c.failures - freeGuesses; over >= 0 {
		c.until = now.Add(min(time.Second<<min(over, 10), longestWait))
	}
	g.clients[client] = c
}

// makeRoom forgets the one that gave up first, of some that come by chance: all of them would be too many to look at, time and again.
func (g *guesses) makeRoom() {
	const some = 16
	oldest, when, seen := "", time.Time{}, 0
	for client, c := range g.clients {
		if seen == 0 || c.last.Before(when) {
			oldest, when = client, c.last
		}
		if seen++; seen == some {
			break
		}
	}
	delete(g.clients, oldest)
}

func (g *guesses) succeeded(client string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.clients, client)
}

type roleKey struct{}

func withRole(r *http.Request, role Role) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), roleKey{}, role))
}

func roleOf(r *http.Request) Role {
	role, ok := r.Context().Value(roleKey{}).(Role)
	if !ok {
		return RoleViewer
	}
	return role
}
