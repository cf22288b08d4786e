package migrator

import "io"

// readAhead passes rows on in another goroutine, so that the source is read while the target takes its time, up to a
// bound. Close passes on the rest and returns the first error of the writer below.
type readAhead struct {
	full  chan []byte
	free  chan []byte
	ended chan struct{}
	err   error // of w; read after ended is closed
	block []byte
}

// readAheadBlock is how much is passed on at once.
const readAheadBlock = 128 << 10

func newReadAhead(w io.Writer, size int) *readAhead {
	n := max(2, size/readAheadBlock)
	r := &readAhead{full: make(chan []byte, n), free: make(chan []byte, n), ended: make(chan struct{})}
	for range n {
		r.free <- nil
	}
	go func() {
		defer close(r.ended)
		for block := range r.full {
			if _, r.err = w.Write(block); r.err != nil {
				return
			}
			r.free <- block[:0]
		}
	}()
	return r
}

func (r *readAhead) Write(b []byte) (int, error) {
	for left := b; len(left) > 0; {
		if r.block == nil {
			select {
			case <-r.ended:
				return 0, r.err
			case r.block = <-r.free:
			}
			if r.block == nil { // the first time round
				r.block = make([]byte, 0, readAheadBlock)
			}
		}
		n := min(cap(r.block)-len(r.block), len(left))
		r.block = append(r.block, left[:n]...)
		left = left[n:]
		if len(r.block) == cap(r.block) {
			if err := r.pass(); err != nil {
				return 0, err
			}
		}
	}
	return len(b), nil
}

func (r *readAhead) pass() error {
	select {
	case <-r.ended:
		return r.err
	case r.full <- r.block:
		r.block = nil
		return nil
	}
}

func (r *readAhead) Close() error {
	if len(r.block) > 0 {
		_ = r.pass() // the error comes again below
	}
	close(r.full)
	<-r.ended
	return r.err
}
