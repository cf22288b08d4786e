package pgurl_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator/internal/pgurl"
)

const (
	herokuURL      = "postgres://u4abc:p9d0f1e2@ec2-1-2-3-4.compute-1.amazonaws.com:5432/d7xyz"
	planetScaleURL = "postgresql://pscale_api_x.br4nch:pscale_pw_s3cret@eu-west-1.horizon.psdb.cloud:5432/postgres?sslmode=verify-full&sslrootcert=system&sslnegotiation=direct"
)

func parse(t *testing.T, raw string) *pgurl.URL {
	t.Helper()
	u, err := pgurl.Parse(raw)
	require.NoError(t, err)
	return u
}

func TestParse(t *testing.T) {
	tests := []struct {
		name, raw            string
		host                 string
		port                 int
		user, db, redacted   string
		password, rawInQuery string
	}{
		{
			name: "Heroku", raw: herokuURL,
			host: "ec2-1-2-3-4.compute-1.amazonaws.com", port: 5432, user: "u4abc", db: "d7xyz", password: "p9d0f1e2",
			redacted: "postgres://u4abc:***@ec2-1-2-3-4.compute-1.amazonaws.com:5432/d7xyz?sslmode=require",
		},
		{
			name: "PlanetScale", raw: planetScaleURL,
			host: "eu-west-1.horizon.psdb.cloud", port: 5432, user: "pscale_api_x.br4nch", db: "postgres", password: "pscale_pw_s3cret",
			redacted: "postgres://pscale_api_x.br4nch:***@eu-west-1.horizon.psdb.cloud:5432/postgres?sslmode=verify-full&sslnegotiation=direct&sslrootcert=system",
		},
		{
			name: "no port, no password, white space around", raw: " postgres://u@h/d\n",
			host: "h", port: 5432, user: "u", db: "d", redacted: "postgres://u@h:5432/d?sslmode=require",
		},
		{
			name: "percent-encoded", raw: "postgres://us%40er:p%40s%2Fs%25+%3f@h/d%20b",
			host: "h", port: 5432, user: "us@er", db: "d b", password: "p@s/s%+?",
			redacted: "postgres://us%40er:***@h:5432/d%20b?sslmode=require",
		},
		{
			name: "characters that need no encoding after all", raw: "postgres://u:a:b?c#d&e=f[@h/d",
			host: "h", port: 5432, user: "u", db: "d", password: "a:b?c#d&e=f[", redacted: "postgres://u:***@h:5432/d?sslmode=require",
		},
		{
			name: "sslmode=disable", raw: "postgres://u:pw@h/d?sslmode=disable",
			host: "h", port: 5432, user: "u", db: "d", password: "pw", redacted: "postgres://u:***@h:5432/d?sslmode=disable",
		},
		{
			name: "sslrootcert=system alone", raw: "postgres://u@h/d?sslrootcert=system",
			host: "h", port: 5432, user: "u", db: "d", redacted: "postgres://u@h:5432/d?sslmode=verify-full&sslrootcert=system",
		},
		{
			name: "ssl=true", raw: "postgres://u@h/d?ssl=true",
			host: "h", port: 5432, user: "u", db: "d", redacted: "postgres://u@h:5432/d?sslmode=require",
		},
		{
			name: "the last one counts", raw: "postgres://u@h/d?sslmode=disable&sslmode=verify-full",
			host: "h", port: 5432, user: "u", db: "d", redacted: "postgres://u@h:5432/d?sslmode=verify-full",
		},
		{
			name: "everything in the query", raw: "postgres:///?host=/run/pg&port=6000&user=u&password=qqqqq&dbname=d",
			host: "/run/pg", port: 6000, user: "u", db: "d", password: "qqqqq",
			redacted: "postgres://u:***@%2Frun%2Fpg:6000/d?sslmode=require",
		},
		{
			name: "IPv6", raw: "postgres://u@[fe80::1%25eth0]:6000/d",
			host: "fe80::1%eth0", port: 6000, user: "u", db: "d", redacted: "postgres://u@[fe80::1%25eth0]:6000/d?sslmode=require",
		},
		{
			name: "several hosts", raw: "postgres://u@h1,h2:6000,[::1]:6001/d?target_session_attrs=read-write",
			host: "h1", port: 5432, user: "u", db: "d",
			redacted: "postgres://u@h1:5432,h2:6000,[::1]:6001/d?sslmode=require&target_session_attrs=read-write",
		},
		{
			name: "one port for all hosts", raw: "postgres://u@h1,h2/d?port=6000",
			host: "h1", port: 6000, user: "u", db: "d", redacted: "postgres://u@h1:6000,h2:6000/d?sslmode=require",
		},
		{
			name: "parameters", raw: "postgres://u@h/d?channel_binding=require&options=-c%20a%3Db&application_name=x",
			host: "h", port: 5432, user: "u", db: "d",
			redacted: "postgres://u@h:5432/d?application_name=x&channel_binding=require&options=-c%20a%3Db&sslmode=require",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			u := parse(t, tt.raw)
			assert.Equal(t, tt.host, u.Host())
			assert.Equal(t, tt.port, u.Port())
			assert.Equal(t, tt.user, u.User())
			assert.Equal(t, tt.db, u.Database())
			assert.Equal(t, tt.redacted, u.Redacted())

			cfg, err := u.ConnConfig()
			require.NoError(t, err)
			assert.Equal(t, tt.password, cfg.Password)
			assert.Equal(t, tt.host, cfg.Host)
			assert.EqualValues(t, tt.port, cfg.Port)
			assert.Equal(t, tt.user, cfg.User)
			assert.Equal(t, tt.db, cfg.Database)

			if tt.password == "" { // the normal form means the same
				assert.True(t, u.Same(parse(t, u.Redacted())))
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	const encode = "percent-encoded"
	tests := []struct{ name, raw, want string }{
		{"empty", "", "it is empty"},
		{"blank", " \n", "it is empty"},
		{"quoted", `"postgres://u:hunter2@h/d"`, "without quotation marks"},
		{"key=value", "host=h user=u password=hunter2", "key=value pairs"},
		{"another scheme", "mysql://u:hunter2@h/d", "postgres:// or postgresql://"},
		{"no scheme", "u:hunter2@h/d", "postgres:// or postgresql://"},
		{"no host", "postgres://u:hunter2@/d", "the host is missing"},
		{"no second host", "postgres://u:hunter2@h,/d", "the host is missing"},
		{"no database", "postgres://u:hunter2@h", "the database name is missing"},
		{"no database, with a slash", "postgres://u:hunter2@h/?sslmode=require", "the database name is missing"},
		{"no user", "postgres://h/d", "the user name is missing"},
		{"redacted", "postgres://u:***@h/d", "copied from a message"},
		{"@ in the password", "postgres://u:hunter2@hunter2@h/d", encode},
		{"/ in the password", "postgres://u:hunter2/hunter2@h/d", encode},
		{"@ and / in the password", "postgres://u:hunter2@x/hunter2@h/d", encode},
		{"/ in a password that looks like a port", "postgres://u:5432/hunter2@h/d", encode},
		{"% in the password", "postgres://u:hunter2%@h/d", encode},
		{"%zz in the password", "postgres://u:hunter2%zz@h/d", encode},
		{"%00 in the password", "postgres://u:hunter2%00@h/d", encode},
		{"space in the password", "postgres://u:hunter2 hunter2@h/d", encode},
		{"line break in the password", "postgres://u:hunter2\nhunter2@h/d", encode},
		{"NUL in the password", "postgres://u:hunter2\x00hunter2@h/d", encode},
		{"line break in the host", "postgres://u:hunter2@h%0a/d", encode},
		{"/ in the database", "postgres://u:hunter2@h/d/hunter2", encode},
		{"no user, a password's piece as the port", "postgres://u:hunter2/d", "the port is not a number"},
		{"port 0", "postgres://u:hunter2@h:0/d", "the port is not a number"},
		{"port too large", "postgres://u:hunter2@h:65536/d", "the port is not a number"},
		{"port counts differ", "postgres://u:hunter2@h/d?host=a,b,c&port=1,2", "one port for all hosts, or one for each"},
		{"IPv6 unclosed", "postgres://u:hunter2@[::1/d", "in brackets"},
		{"IPv6 empty", "postgres://u:hunter2@[]/d", "in brackets"},
		{"IPv6 with a tail", "postgres://u:hunter2@[::1]x/d", "in brackets"},
		{"no =", "postgres://u:hunter2@h/d?sslmode", "name=value"},
		{"two =", "postgres://u:hunter2@h/d?options=-c a=b", encode},
		{"two = without space", "postgres://u:hunter2@h/d?options=-ca=b", "name=value"},
		{"unknown parameter", "postgres://u:hunter2@h/d?pool=5", `unknown parameter "pool"; remove it`},
		{"hostaddr", "postgres://u:hunter2@h/d?hostaddr=1.2.3.4", `unknown parameter "hostaddr"`},
		{"service", "postgres://u:hunter2@h/d?service=x", "service is not supported"},
		{"passfile", "postgres://u:hunter2@h/d?passfile=x", "passfile is not supported"},
		{"sslpassword", "postgres://u:hunter2@h/d?sslpassword=hunter2", "sslpassword is not supported"},
		{"sslmode unknown", "postgres://u:hunter2@h/d?sslmode=hunter2", "sslmode has to be one of disable, allow"},
		{"sslmode empty", "postgres://u:hunter2@h/d?sslmode=", "sslmode has to be one of"},
		{"ssl=false", "postgres://u:hunter2@h/d?ssl=false", "use sslmode"},
		{"gssencmode=require", "postgres://u:hunter2@h/d?gssencmode=require", "gssencmode has to be one of"},
		{"connect_timeout", "postgres://u:hunter2@h/d?connect_timeout=hunter2", "connect_timeout has to be a number"},
		{"system roots without verification", "postgres://u:hunter2@h/d?sslrootcert=system&sslmode=require", "needs sslmode=verify-full"},
		{"direct TLS without TLS", "postgres://u:hunter2@h/d?sslnegotiation=direct&sslmode=prefer", "sslnegotiation=direct needs"},
		{"sslcert without sslkey", "postgres://u:hunter2@h/d?sslcert=x", "together"},
		{"% in a parameter", "postgres://u:hunter2@h/d?sslmode=%", encode},
		{"% in a parameter's name", "postgres://u:hunter2@h/d?%=x", encode},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			u, err := pgurl.Parse(tt.raw)
			require.ErrorContains(t, err, tt.want)
			assert.Nil(t, u)
			assert.NotContains(t, err.Error(), "hunter2")
		})
	}
}

func TestPasswordIsNeverShown(t *testing.T) {
	u := parse(t, "postgres://u:hunter2%2F@h/d")
	const want = "postgres://u:***@h:5432/d?sslmode=require"

	assert.Equal(t, want, u.String())
	assert.Equal(t, want, fmt.Sprint(u))
	assert.Equal(t, want, fmt.Sprint(*u))
	assert.Equal(t, want, fmt.Sprintf("%+v", u))
	assert.Equal(t, `"`+want+`"`, fmt.Sprintf("%q", u))
	assert.Equal(t, `pgurl.URL("`+want+`")`, fmt.Sprintf("%#v", u))
	text, err := json.Marshal(map[string]any{"url": u, "value": *u})
	require.NoError(t, err)
	assert.JSONEq(t, `{"url":"`+want+`","value":"`+want+`"}`, string(text))

	// Where the methods cannot be called: in unexported fields, and by dumpers.
	type hidden struct {
		u *pgurl.URL
		v pgurl.URL
	}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%p", "%T"} {
		fmt.Fprintf(&out, verb+"\n", u)
		fmt.Fprintf(&out, verb+"\n", *u)
		fmt.Fprintf(&out, verb+"\n", hidden{u, *u})
		fmt.Fprintf(&out, verb+"\n", []*pgurl.URL{u})
	}
	mock := new(recorder)
	assert.Equal(mock, hidden{}, hidden{u, *u}) // prints a diff by walking the fields
	assert.NotEmpty(t, mock.String())
	out.WriteString(mock.String())
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("x", "u", u, "v", *u, "h", hidden{u, *u}, slog.Group("g", "u", u))
	}
	for _, secret := range []string{"hunter2", "68756e74657232", "68756E74657232"} {
		assert.NotContains(t, out.String(), secret)
	}
}

type recorder struct{ bytes.Buffer }

func (r *recorder) Errorf(format string, args ...any) { fmt.Fprintf(r, format, args...) }

func TestZeroURL(t *testing.T) {
	var u pgurl.URL
	assert.Empty(t, u.String())
	assert.Empty(t, u.Host())
	assert.Zero(t, u.Port())
	assert.Equal(t, "text", pgurl.Redact("text", &u, nil))
	_, ok := u.IsPlanetScalePooler()
	assert.False(t, ok)
}

func TestSame(t *testing.T) {
	base := parse(t, "postgres://u:secret@h.example.com/d")
	tests := []struct {
		raw  string
		want bool
	}{
		{"postgres://u:secret@h.example.com/d", true},
		{"postgresql://other:password@H.Example.com.:5432/d?sslmode=disable", true},
		{"postgres://u:secret@h.example.com:5433/d", false},
		{"postgres://u:secret@h.example.com/D", false},
		{"postgres://u:secret@h2.example.com/d", false},
		{"postgres://u:secret@h.example.com,h2/d", false},
	}
	for _, tt := range tests {
		assert.Equal(t, tt.want, base.Same(parse(t, tt.raw)), tt.raw)
		assert.Equal(t, tt.want, parse(t, tt.raw).Same(base), tt.raw)
	}
	assert.False(t, base.Same(nil))
	assert.False(t, parse(t, "postgres://u@/d?host=/Run").Same(parse(t, "postgres://u@/d?host=/run")))
}

func TestIsPlanetScalePooler(t *testing.T) {
	u := parse(t, "postgres://u.b:secret@x.horizon.psdb.cloud:6432/postgres?sslmode=verify-full")
	direct, ok := u.IsPlanetScalePooler()
	assert.True(t, ok)
	assert.Equal(t, "postgres://u.b:***@x.horizon.psdb.cloud:5432/postgres?sslmode=verify-full", direct)
	assert.Equal(t, 6432, u.Port(), "the URL itself stays as it is")

	_, ok = parse(t, planetScaleURL).IsPlanetScalePooler()
	assert.False(t, ok)
}
