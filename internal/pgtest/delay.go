package pgtest

import (
	"context"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// Bounds of what is on its way in one direction of one connection. A link of 40 ms holds 64 MiB at 1.6 GB/s, so
// they do not limit throughput; they keep a receiver that does not read from filling the memory.
const (
	inFlightBytes  = 64 << 20
	inFlightBlocks = 16 << 10
	delayBlock     = 256 << 10
	// delayTick is how coarse the delay is: what comes and goes within it is moved at once, so that the proxy takes
	// little of the processor that the servers need.
	delayTick = time.Millisecond
)

// DelayProxy stands in for a distant network: it listens on an address of this machine, which it returns, and
// passes everything on to addr and back, each byte the given time after it came. A connection takes a round
// trip to be made. Throughput is not limited. It ends with the context.
func DelayProxy(ctx context.Context, addr string, delay time.Duration) (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
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
			go relay(ctx, client, addr, delay)
		}
	}()
	return listener.Addr().String(), nil
}

// relay serves one connection.
func relay(ctx context.Context, client net.Conn, addr string, delay time.Duration) {
	defer client.Close()
	server, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer server.Close()
	stop := context.AfterFunc(ctx, func() {
		_ = client.Close()
		_ = server.Close()
	})
	defer stop()
	time.Sleep(2 * delay) // the handshake: the client's first bytes cannot leave before
	var both sync.WaitGroup
	both.Go(func() { delayed(server, client, delay) })
	both.Go(func() { delayed(client, server, delay) })
	both.Wait()
}

// block is what was read at once.
type block struct {
	data []byte
	due  time.Time
}

// delayed passes on one direction until its end, and the end too.
func delayed(to, from net.Conn, delay time.Duration) {
	queue := make(chan block, inFlightBlocks)
	room := semaphore.NewWeighted(inFlightBytes)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		defer close(queue)
		buf := make([]byte, delayBlock)
		for {
			n, err := from.Read(buf)
			if n > 0 {
				if room.Acquire(ctx, int64(n)) != nil {
					return // nobody writes any more
				}
				select {
				case queue <- block{slices.Clone(buf[:n]), time.Now().Add(delay)}:
				case <-ctx.Done():
					return
				}
			}
			if err != nil {
				return
			}
			if delay > delayTick {
				time.Sleep(delayTick)
			}
		}
	}()
	var next *block // read already, and not due yet
	for open := true; open; {
		if next == nil {
			b, more := <-queue
			if !more {
				break
			}
			next = &b
		}
		time.Sleep(time.Until(next.due))
		due, size := net.Buffers{next.data}, int64(len(next.data))
		next = nil
		for waiting := true; waiting && next == nil && len(due) < 16; {
			select {
			case b, more := <-queue:
				switch {
				case !more:
					open, waiting = false, false
				case time.Until(b.due) > delayTick:
					next = &b
				default:
					due, size = append(due, b.data), size+int64(len(b.data))
				}
			default:
				waiting = false
			}
		}
		if _, err := due.WriteTo(to); err != nil {
			_ = from.Close() // so that its reader ends
			return
		}
		room.Release(size)
	}
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
}
