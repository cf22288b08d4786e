package migrator

import (
	"io"
	"sync"
)

// blockPipe hands bytes from a writer to a reader in another goroutine, in blocks, of which a bounded number may be on
// their way: a source is read while the target takes its time, and a hand-over happens for many rows, not for each.
type blockPipe struct {
	full chan []byte
	room chan struct{} // one for each block that is on its way

	gone     chan struct{} // closed by the reader
	goneErr  error
	endErr   error // why there is no more; read after full is closed
	writing  []byte
	reading  []byte // the block
	unread   []byte // the rest of it
	leaveOne sync.Once
}

const pipeBlock = 128 << 10

var pipeBlocks = sync.Pool{New: func() any { return new([pipeBlock]byte) }}

func newBlockPipe(size int) *blockPipe {
	n := max(2, size/pipeBlock)
	return &blockPipe{full: make(chan []byte, n), room: make(chan struct{}, n), gone: make(chan struct{})}
}

// Write takes bytes as long as there is room. It fails when the reader has gone.
func (p *blockPipe) Write(b []byte) (int, error) {
	for left := b; len(left) > 0; {
		if p.writing == nil {
			select {
			case <-p.gone:
				return 0, p.goneErr
			case p.room <- struct{}{}:
			}
			block, _ := pipeBlocks.Get().(*[pipeBlock]byte)
			p.writing = block[:0]
		}
		n := min(cap(p.writing)-len(p.writing), len(left))
		p.writing = append(p.writing, left[:n]...)
		left = left[n:]
		if len(p.writing) == cap(p.writing) {
			p.pass()
		}
	}
	return len(b), nil
}

// pass hands the block over. There is room for it in the channel.
func (p *blockPipe) pass() {
	p.full <- p.writing
	p.writing = nil
}

// end is called by the writer, after its last Write: the reader gets the rest, and then the error, or [io.EOF] if it is nil.
func (p *blockPipe) end(err error) {
	if len(p.writing) > 0 {
		p.pass()
	}
	p.endErr = err
	if err == nil {
		p.endErr = io.EOF
	}
	close(p.full)
}

func (p *blockPipe) Read(b []byte) (int, error) {
	if len(p.unread) == 0 {
		p.recycle()
		block, more := <-p.full
		if !more {
			return 0, p.endErr
		}
		p.reading, p.unread = block, block
	}
	n := copy(b, p.unread)
	p.unread = p.unread[n:]
	return n, nil
}

func (p *blockPipe) recycle() {
	if p.reading != nil {
		pipeBlocks.Put((*[pipeBlock]byte)(p.reading[:pipeBlock]))
		p.reading = nil
		<-p.room
	}
}

// leave is called by the reader when it reads no more: the writer's next Write fails with the error.
func (p *blockPipe) leave(err error) {
	p.leaveOne.Do(func() {
		if err == nil {
			err = io.ErrClosedPipe
		}
		p.goneErr = err
		close(p.gone)
	})
}
