// Package copyout streams the result of a COPY … TO STDOUT.
//
// pgconn hands over each row as a whole, so a value of 1 GB takes 1 GB of memory, and each row a pass
// through its message decoder. Here rows are passed on as they arrive, in blocks: the memory is that of
// one block, whatever the rows are.
package copyout

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// blockSize is how much is read at once.
const blockSize = 128 << 10

// Run sends the statement and writes what it copies to w, in blocks that respect no row's bounds. It returns the
// number of rows. Statements that return no stream may stand before and after it; their results are dropped. When the context is done, or w fails, the connection is closed: there is no other way to end
// the stream. After an error of the server it can be used further.
func Run(ctx context.Context, conn *pgconn.PgConn, sql string, w io.Writer) (int64, error) {
	if err := conn.SyncConn(ctx); err != nil {
		return 0, err
	}
	raw := conn.Conn()
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	rows, err := run(raw, sql, w)
	if !stop() || (err != nil && !errors.As(err, new(*pgconn.PgError))) {
		_ = raw.Close()                            // it stands in the middle of a stream
		_ = conn.Close(context.WithoutCancel(ctx)) // and has to know that, or a pool would hand it out again
		if ctx.Err() != nil {
			return rows, ctx.Err()
		}
	}
	return rows, err
}

func run(raw net.Conn, sql string, w io.Writer) (int64, error) {
	query, err := (&pgproto3.Query{String: sql}).Encode(nil)
	if err != nil {
		return 0, err
	}
	if _, err := raw.Write(query); err != nil {
		return 0, err
	}
	s := stream{}
	block := make([]byte, blockSize)
	for !s.ready {
		n, err := raw.Read(block)
		if n > 0 {
			data, parseErr := s.parse(block[:n])
			if parseErr != nil {
				return s.rows, parseErr
			}
			if len(data) > 0 {
				if _, err := w.Write(data); err != nil {
					return s.rows, err
				}
			}
		}
		if err != nil && !s.ready {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return s.rows, err
		}
	}
	return s.rows, s.err
}

// stream is a position in the server's messages, which may end anywhere in a block.
type stream struct {
	header [5]byte // type and length
	have   int     // bytes of the header
	left   int     // bytes of the message's body still to come
	body   []byte  // of a message that is not CopyData
	rows   int64
	err    error
	ready  bool
}

// longestBody bounds messages other than CopyData: errors, notices, the statement's end.
const longestBody = 1 << 20

// parse consumes a block and returns the rows in it, moved together at the block's begin.
func (s *stream) parse(block []byte) ([]byte, error) {
	out := 0
	for pos := 0; pos < len(block); {
		if s.have < len(s.header) {
			n := copy(s.header[s.have:], block[pos:])
			s.have += n
			pos += n
			if s.have < len(s.header) {
				break
			}
			length := int(binary.BigEndian.Uint32(s.header[1:]))
			if length < 4 || (s.header[0] != 'd' && length > longestBody) {
				return nil, fmt.Errorf("message %q of %d bytes from the server", s.header[0], length)
			}
			s.left = length - 4
			s.body = s.body[:0]
		}
		n := min(s.left, len(block)-pos)
		if s.header[0] == 'd' {
			copy(block[out:], block[pos:pos+n])
			out += n
		} else {
			s.body = append(s.body, block[pos:pos+n]...)
		}
		s.left -= n
		pos += n
		if s.left == 0 {
			s.have = 0
			if err := s.end(); err != nil {
				return nil, err
			}
		}
	}
	return block[:out], nil
}

// end acts on a message that is complete.
func (s *stream) end() error {
	switch s.header[0] {
	case 'E':
		var msg pgproto3.ErrorResponse
		if err := msg.Decode(s.body); err != nil {
			return err
		}
		s.err = pgconn.ErrorResponseToPgError(&msg)
	case 'C': // COPY 123
		tag := bytes.TrimRight(s.body, "\x00")
		command, count, _ := bytes.Cut(tag, []byte(" "))
		if string(command) != "COPY" {
			return nil
		}
		rows, err := strconv.ParseInt(string(count), 10, 64)
		if err != nil {
			return fmt.Errorf("the server ended COPY with %q", tag)
		}
		s.rows = rows
	case 'Z':
		s.ready = true
	case 'd', 'c', 'H', 'N', 'S', 'A', 'T', 'D':
	default:
		return fmt.Errorf("unexpected message %q during COPY", s.header[0])
	}
	return nil
}
