package pgtest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"sync"
)

// DurableWrite is a message of a client that makes something last when the server has carried it out: a COMMIT, a statement outside
// of a transaction that writes, or one that sets a sequence, which no transaction takes back.
type DurableWrite struct {
	// Statement is what is written, on one line and shortened. For a COMMIT, it is the transaction's last statement that writes.
	Statement string

	conn *durableConn
	data []byte
	sent bool
}

// Forward passes the message on, and waits for the server's answer if wait is set. The client does not get the answer before
// the function given to [DurableProxy] has returned, and never if that returns false. It does nothing when called again.
func (w *DurableWrite) Forward(wait bool) {
	if w.sent {
		return
	}
	w.sent = true
	before := w.conn.hold()
	if _, err := w.conn.server.Write(w.data); err == nil && wait {
		w.conn.waitAnswer(before)
	}
}

// DurableProxy listens on the address that it returns, and passes connections on to the Postgres server at addr. Before each durable write it
// calls at, which several connections may do at once. If that returns true, the write and its answer are passed on as if nothing
// were between; if false, the connection is closed on both sides. The proxy ends with the context. Connections must not be encrypted.
func DurableProxy(ctx context.Context, addr string, at func(*DurableWrite) bool) (string, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	context.AfterFunc(ctx, func() { _ = listener.Close() })
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return // closed
			}
			go serveDurable(ctx, client, addr, at)
		}
	}()
	return listener.Addr().String(), nil
}

// durableConn is one connection.
type durableConn struct {
	client, server net.Conn

	mu      sync.Mutex
	change  *sync.Cond
	held    bool   // the client gets no answers
	pending []byte // answers that it did not get
	ready   int    // how often the server was ready for a query
	status  byte   // the transaction's status then
	closed  bool
}

func serveDurable(ctx context.Context, client net.Conn, addr string, at func(*DurableWrite) bool) {
	server, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		_ = client.Close()
		return
	}
	c := &durableConn{client: client, server: server, status: 'I'}
	c.change = sync.NewCond(&c.mu)
	stop := context.AfterFunc(ctx, c.end)
	defer stop()
	var answers sync.WaitGroup
	answers.Go(func() {
		defer c.end()
		c.passAnswers()
	})
	c.passRequests(at)
	c.end()
	answers.Wait()
}

func (c *durableConn) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.change.Broadcast()
	_ = c.client.Close()
	_ = c.server.Close()
}

func (c *durableConn) hold() (ready int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = true
	return c.ready
}

func (c *durableConn) release() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = false
	_, err := c.client.Write(c.pending)
	c.pending = nil
	return err
}

func (c *durableConn) waitAnswer(before int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.ready == before && !c.closed {
		c.change.Wait()
	}
}

func (c *durableConn) inTransaction() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status != 'I'
}

// passAnswers passes on what the server says, and remembers where it stands.
func (c *durableConn) passAnswers() {
	r := bufio.NewReaderSize(c.server, 64<<10)
	for {
		message, err := readMessage(r)
		if err != nil {
			return
		}
		c.mu.Lock()
		if message[0] == 'Z' { // ready for query
			c.ready, c.status = c.ready+1, message[len(message)-1]
			c.change.Broadcast()
		}
		c.pending = append(c.pending, message...)
		if !c.held && (r.Buffered() == 0 || len(c.pending) > 64<<10) {
			_, err = c.client.Write(c.pending)
			c.pending = c.pending[:0]
		}
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// passRequests passes on what the client says: a query or everything up to a Sync at once.
func (c *durableConn) passRequests(at func(*DurableWrite) bool) {
	r := bufio.NewReaderSize(c.client, 64<<10)
	if err := c.passStartup(r); err != nil {
		return
	}
	var unit []byte
	var statements []string
	wrote := "" // the open transaction's last statement that writes
	for {
		message, err := readMessage(r)
		if err != nil {
			return
		}
		unit = append(unit, message...)
		switch body := message[5:]; message[0] {
		case 'Q':
			statements = append(statements, strings.Split(quoted.ReplaceAllString(string(bytes.TrimRight(body, "\x00")), "$$$$"), ";")...)
		case 'P': // parse: name, statement
			parts := bytes.SplitN(body, []byte{0}, 3)
			statements = append(statements, string(parts[1]))
			continue
		case 'B', 'D', 'E', 'C':
			continue
		}
		inside := c.inTransaction()
		if !inside {
			wrote = ""
		}
		durable := false
		for _, s := range statements {
			switch {
			case begins.MatchString(s):
				inside = true
			case ends.MatchString(s):
				durable = durable || wrote != ""
				inside = false
			case sets.MatchString(s):
				wrote, durable = s, true
			case writes.MatchString(s):
				wrote = s
				durable = durable || !inside
			}
		}
		if durable {
			w := &DurableWrite{Statement: oneLine(wrote), conn: c, data: unit}
			if !at(w) {
				return
			}
			if w.sent {
				err = c.release()
			} else {
				_, err = c.server.Write(unit)
			}
		} else {
			_, err = c.server.Write(unit)
		}
		if err != nil {
			return
		}
		unit, statements = nil, nil
	}
}

const cancelRequest = 80877102

// passStartup passes on the first message, which has no type.
func (c *durableConn) passStartup(r *bufio.Reader) error {
	head := make([]byte, 4)
	if _, err := io.ReadFull(r, head); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(head)
	if size < 8 || size > 10_000 {
		return fmt.Errorf("a first message of %d bytes", size)
	}
	message := make([]byte, size)
	copy(message, head)
	if _, err := io.ReadFull(r, message[4:]); err != nil {
		return err
	}
	if _, err := c.server.Write(message); err != nil {
		return err
	}
	if binary.BigEndian.Uint32(message[4:]) == cancelRequest {
		_, err := io.Copy(io.Discard, r)
		return err
	}
	return nil
}

// readMessage reads a message with its type and length.
func readMessage(r *bufio.Reader) ([]byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[1:])
	if size < 4 || size > 1<<30 {
		return nil, fmt.Errorf("a message of %d bytes", size)
	}
	message := make([]byte, 1+size)
	copy(message, head[:])
	_, err := io.ReadFull(r, message[5:])
	return message, err
}

var (
	begins = regexp.MustCompile(`(?i)^\s*(begin|start\s+transaction)\b`)
	ends   = regexp.MustCompile(`(?i)^\s*(commit|end|prepare\s+transaction)\b`)
	sets   = regexp.MustCompile(`(?i)\bsetval\(`)
	writes = regexp.MustCompile(`(?i)^\s*(insert|update|delete|merge|truncate|create|alter|drop|comment|grant|revoke|copy\s.*\sfrom\b)|^\s*with\b.*\b(insert|update|delete)\b|\blo_(create|put|unlink|from_bytea)\(`)
	quoted = regexp.MustCompile(`(?s)\$(\w*)\$.*?\$(\w*)\$`) // the bodies of functions
	spaces = regexp.MustCompile(`\s+`)
)

func oneLine(s string) string {
	s = strings.TrimSpace(spaces.ReplaceAllString(s, " "))
	return s[:min(len(s), 90)]
}
