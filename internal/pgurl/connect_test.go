package pgurl_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// hostileEnv sets everything in the environment that libpq and pgx would listen to.
func hostileEnv(t *testing.T) {
	t.Helper()
	home := t.TempDir()
	write := func(path, text string) string {
		path = filepath.Join(home, path)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	t.Setenv("HOME", home)
	t.Setenv("PGPASSFILE", write(".pgpass", "*:*:*:*:wrong\n"))
	t.Setenv("PGSERVICEFILE", write(".pg_service.conf", "[evil]\nhost=wrong\nsearch_path=wrong\nsslmode=disable\n"))
	for _, file := range []string{"root.crt", "postgresql.crt", "postgresql.key"} {
		write(".postgresql/"+file, "wrong")
	}
	for name, value := range map[string]string{
		"PGSERVICE": "evil", "PGHOST": "wrong", "PGPORT": "1", "PGDATABASE": "wrong", "PGUSER": "wrong", "PGPASSWORD": "wrong",
		"PGAPPNAME": "wrong", "PGCONNECT_TIMEOUT": "1", "PGSSLMODE": "disable", "PGSSLKEY": "wrong", "PGSSLCERT": "wrong",
		"PGSSLCERTMODE": "require", "PGSSLSNI": "0", "PGSSLROOTCERT": "wrong", "PGSSLPASSWORD": "wrong",
		"PGSSLNEGOTIATION": "direct", "PGTARGETSESSIONATTRS": "standby", "PGTZ": "wrong", "PGOPTIONS": "-c wrong=1",
		"PGMINPROTOCOLVERSION": "3.2", "PGMAXPROTOCOLVERSION": "3.2", "PGCHANNELBINDING": "require", "PGREQUIREAUTH": "none",
	} {
		t.Setenv(name, value)
	}
}

func TestConnConfigIgnoresTheEnvironment(t *testing.T) {
	for _, raw := range []string{
		"postgres://u:secret@h/d",
		"postgres://u@h:6000/d?sslmode=disable",
		`postgres://u:it's\a%20b@h1,h2:6000/d?sslmode=prefer&application_name=x&options=-c%20a%3Db&connect_timeout=7`,
		planetScaleURL,
	} {
		t.Run(parse(t, raw).Redacted(), func(t *testing.T) {
			type summary struct {
				Host, User, Database, Password, Negotiation, Binding, Auth, Min, Max string
				Port                                                                 uint16
				Timeout                                                              time.Duration
				Params                                                               map[string]string
				Fallbacks, Certificates                                              int
				TLS, Insecure, Validates                                             bool
				ServerName                                                           string
				NextProtos                                                           []string
			}
			summarise := func() summary {
				c, err := parse(t, raw).ConnConfig()
				require.NoError(t, err)
				s := summary{
					Host: c.Host, User: c.User, Database: c.Database, Password: c.Password, Port: c.Port,
					Negotiation: c.SSLNegotiation, Binding: c.ChannelBinding, Auth: c.RequireAuth,
					Min: c.MinProtocolVersion, Max: c.MaxProtocolVersion,
					Timeout: c.ConnectTimeout, Params: c.RuntimeParams, Fallbacks: len(c.Fallbacks),
					TLS: c.TLSConfig != nil, Validates: c.ValidateConnect != nil,
				}
				if c.TLSConfig != nil {
					s.Insecure, s.ServerName, s.NextProtos = c.TLSConfig.InsecureSkipVerify, c.TLSConfig.ServerName, c.TLSConfig.NextProtos
					s.Certificates = len(c.TLSConfig.Certificates)
				}
				return s
			}
			clean := summarise()
			hostileEnv(t)
			tmp := t.TempDir()
			t.Setenv("TMPDIR", tmp)
			assert.Equal(t, clean, summarise())

			left, err := os.ReadDir(tmp)
			require.NoError(t, err)
			assert.Empty(t, left)
		})
	}
}

func TestConnConfigTLS(t *testing.T) {
	server := httptest.NewTLSServer(nil)
	server.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}
	require.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&block), 0o600))

	tests := []struct {
		query               string
		tls, verifies, full bool
	}{
		{"", true, false, false},
		{"?sslmode=disable", false, false, false},
		{"?sslmode=require", true, false, false},
		{"?sslmode=require&sslrootcert=" + ca, true, true, false}, // as libpq has it
		{"?sslmode=verify-ca&sslrootcert=" + ca, true, true, false},
		{"?sslmode=verify-full&sslrootcert=" + ca, true, true, true},
		{"?sslmode=verify-full", true, true, true},
		{"?sslmode=verify-full&sslrootcert=system&sslnegotiation=direct", true, true, true},
	}
	for _, tt := range tests {
		t.Run(tt.query, func(t *testing.T) {
			c, err := parse(t, "postgres://u:secret@h,h2/d"+tt.query).ConnConfig()
			require.NoError(t, err)
			require.Len(t, c.Fallbacks, 1, "the second host, and no fall-back to plain text")
			assert.Equal(t, "h2", c.Fallbacks[0].Host)
			for host, cfg := range map[string]*tls.Config{c.Host: c.TLSConfig, c.Fallbacks[0].Host: c.Fallbacks[0].TLSConfig} {
				if !tt.tls {
					assert.Nil(t, cfg)
					continue
				}
				assert.Equal(t, host, cfg.ServerName)
				assert.Equal(t, tt.full, !cfg.InsecureSkipVerify)
				assert.Equal(t, tt.verifies, tt.full || cfg.VerifyPeerCertificate != nil)
				assert.Equal(t, strings.Contains(tt.query, "direct"), slices.Contains(cfg.NextProtos, "postgresql"))
			}
		})
	}
}

func TestConnConfigErrors(t *testing.T) {
	_, err := parse(t, "postgres://u:hun'ter2@h/d?sslmode=verify-full&sslrootcert=/none/hun%27ter2").ConnConfig()
	require.ErrorContains(t, err, "connection URL: failed to configure TLS")
	require.ErrorContains(t, err, "/none/***")
	for err != nil {
		assert.NotContains(t, fmt.Sprintf("%v %+v %#v", err, err, err), "ter2")
		err = unwrap(err)
	}

	_, err = parse(t, "postgres://u:hunter2@h/d?require_auth=nonsense").ConnConfig()
	require.ErrorContains(t, err, "require_auth")
	assert.NotContains(t, err.Error(), "hunter2")
}

func unwrap(err error) error {
	if w, ok := err.(interface{ Unwrap() error }); ok {
		return w.Unwrap()
	}
	return nil
}

// What a connection really opens with, for each way of asking for TLS.
func TestFirstBytes(t *testing.T) {
	hostileEnv(t)

	tests := []struct{ query, want string }{
		{"", "request for TLS"},
		{"?sslmode=disable", "startup"},
		{"?sslmode=verify-full", "request for TLS"},
		{"?sslnegotiation=direct", "TLS handshake"},
		{"?sslmode=verify-full&sslrootcert=system&sslnegotiation=direct", "TLS handshake"},
	}
	for _, tt := range tests {
		t.Run(tt.query, func(t *testing.T) {
			listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
			require.NoError(t, err)
			defer func() { _ = listener.Close() }()
			cfg, err := parse(t, "postgres://u:secret@"+listener.Addr().String()+"/d"+tt.query).ConnConfig()
			require.NoError(t, err)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			done := make(chan error, 1)
			go func() {
				_, err := pgx.ConnectConfig(ctx, cfg)
				done <- err
			}()

			conn, err := listener.Accept()
			require.NoError(t, err)
			require.NoError(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
			first := make([]byte, 8)
			_, err = io.ReadFull(conn, first)
			require.NoError(t, err)
			require.NoError(t, listener.Close()) // pgx may try again
			require.NoError(t, conn.Close())
			require.Error(t, <-done)

			got := "startup"
			switch {
			case first[0] == 0x16:
				got = "TLS handshake"
			case binary.BigEndian.Uint32(first[4:]) == 80877103:
				got = "request for TLS"
			}
			assert.Equal(t, tt.want, got)
		})
	}
}

func TestLibpqEnv(t *testing.T) {
	bundle := filepath.Join(t.TempDir(), "bundle.pem")
	require.NoError(t, os.WriteFile(bundle, nil, 0o600))
	t.Setenv("SSL_CERT_FILE", bundle)
	t.Setenv("PGOPTIONS", "wrong")

	const nowhere = "/dev/null/none"
	_, err := os.Stat(nowhere)
	require.Error(t, err)

	tests := []struct {
		name, raw string
		want      []string
	}{
		{"Heroku", herokuURL, []string{
			"PGDATABASE=d7xyz", "PGGSSENCMODE=disable", "PGHOST=ec2-1-2-3-4.compute-1.amazonaws.com",
			"PGPASSFILE=" + nowhere, "PGPASSWORD=p9d0f1e2", "PGPORT=5432",
			"PGSSLCERT=" + nowhere, "PGSSLKEY=" + nowhere, "PGSSLMODE=require", "PGSSLROOTCERT=" + nowhere, "PGUSER=u4abc",
		}},
		{"PlanetScale", planetScaleURL, []string{
			"PGDATABASE=postgres", "PGGSSENCMODE=disable", "PGHOST=eu-west-1.horizon.psdb.cloud",
			"PGPASSFILE=" + nowhere, "PGPASSWORD=pscale_pw_s3cret", "PGPORT=5432",
			"PGSSLCERT=" + nowhere, "PGSSLKEY=" + nowhere, "PGSSLMODE=verify-full", "PGSSLNEGOTIATION=direct",
			"PGSSLROOTCERT=" + bundle, "PGUSER=pscale_api_x.br4nch",
		}},
		{"everything", "postgres://u@h1,h2:6000/d%3Db?sslmode=verify-ca&sslrootcert=r&sslcert=c&sslkey=k&options=-c%20a%3Db" +
			"&application_name=x&connect_timeout=7&channel_binding=disable&target_session_attrs=primary&sslsni=0" +
			"&sslcertmode=allow&require_auth=scram-sha-256&min_protocol_version=3.0&max_protocol_version=3.2&gssencmode=prefer" +
			"&default_query_exec_mode=exec&statement_cache_capacity=0", []string{
			"PGAPPNAME=x", "PGCHANNELBINDING=disable", "PGCONNECT_TIMEOUT=7", "PGDATABASE=d=b", "PGGSSENCMODE=prefer", "PGHOST=h1,h2",
			"PGMAXPROTOCOLVERSION=3.2", "PGMINPROTOCOLVERSION=3.0", "PGOPTIONS=-c a=b", "PGPASSFILE=" + nowhere, "PGPORT=5432,6000",
			"PGREQUIREAUTH=scram-sha-256", "PGSSLCERT=c", "PGSSLCERTMODE=allow", "PGSSLKEY=k", "PGSSLMODE=verify-ca",
			"PGSSLROOTCERT=r", "PGSSLSNI=0", "PGTARGETSESSIONATTRS=primary", "PGUSER=u",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			assert.Equal(t, tt.want, parse(t, tt.raw).LibpqEnv())
		})
	}

	// verify-full alone trusts what pgx would trust.
	assert.Contains(t, parse(t, "postgres://u@h/d?sslmode=verify-full").LibpqEnv(), "PGSSLROOTCERT="+bundle)
}
