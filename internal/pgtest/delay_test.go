package pgtest_test

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator/internal/pgtest"
)

const testDelay = 40 * time.Millisecond

// echo is a server that sends back what it gets.
func echo(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
				_ = conn.(*net.TCPConn).CloseWrite()
			}()
		}
	}()
	return listener.Addr().String()
}

func dialThroughProxy(t *testing.T, delay time.Duration) *net.TCPConn {
	t.Helper()
	addr, err := pgtest.DelayProxy(t.Context(), echo(t), delay)
	require.NoError(t, err)
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn.(*net.TCPConn)
}

func TestDelayProxyDelaysEachWay(t *testing.T) {
	t.Parallel()
	conn := dialThroughProxy(t, testDelay)
	message := []byte("hello")
	for trip := range 4 {
		begin := time.Now()
		_, err := conn.Write(message)
		require.NoError(t, err)
		answer := make([]byte, len(message))
		_, err = io.ReadFull(conn, answer)
		require.NoError(t, err)
		took, least := time.Since(begin), 2*testDelay
		if trip == 0 { // the connection's own round trip
			least = 4 * testDelay
		}
		assert.Equal(t, message, answer)
		assert.GreaterOrEqual(t, took, least)
	}
}

func TestDelayProxyPassesEverythingOn(t *testing.T) {
	t.Parallel()
	const size = 512 << 20
	took := func(delay time.Duration) time.Duration {
		conn := dialThroughProxy(t, delay)
		begin := time.Now()
		go func() {
			block := make([]byte, 256<<10)
			for sent := 0; sent < size; sent += len(block) {
				if _, err := conn.Write(block); err != nil {
					return
				}
			}
			_ = conn.CloseWrite() // passed on to the end and back: Copy ends with it
		}()
		n, err := io.Copy(io.Discard, conn)
		require.NoError(t, err)
		require.EqualValues(t, size, n)
		return time.Since(begin)
	}
	without, with := took(0), took(testDelay)
	t.Logf("%.0f MB/s without delay, %.0f MB/s with %v each way", size/1e6/without.Seconds(), size/1e6/with.Seconds(), testDelay)
}

func TestDelayProxyEndsWithItsServer(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr, err := pgtest.DelayProxy(t.Context(), listener.Addr().String(), time.Millisecond)
	require.NoError(t, err)
	require.NoError(t, listener.Close())
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	_, err = conn.Read(make([]byte, 1))
	assert.ErrorIs(t, err, io.EOF)
}
