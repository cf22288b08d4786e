package dashboard

import (
	"sync"
	"time"
)

// ring keeps the latest items, numbered without gaps. The numbers begin at the time of its making in milliseconds: they grow over restarts of
// the process too, as long as there are fewer than a thousand items a second.
type ring[T any] struct {
	mu    sync.Mutex
	items []T // items[i%size] has number i, counted from first
	size  int
	first int64
	next  int64
}

func newRing[T any](size int) *ring[T] {
	now := time.Now().UnixMilli()
	return &ring[T]{size: max(size, 1), first: now, next: now}
}

// add appends what item makes of its number.
func (r *ring[T]) add(item func(id int64) T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := item(r.next)
	if len(r.items) < r.size {
		r.items = append(r.items, v)
	} else {
		r.items[(r.next-r.first)%int64(r.size)] = v
	}
	r.next++
}

// last is the newest number; one less than the first if there is none.
func (r *ring[T]) last() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.next - 1
}

// after returns the newest items, at most so many, that have larger numbers, the oldest first. A number that was not given out yet is one of another
// process: everything is new then.
func (r *ring[T]) after(id int64, most int) (items []T, last int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	from := max(id+1, r.next-int64(len(r.items)))
	if id >= r.next {
		from = r.next - int64(len(r.items))
	}
	from = max(from, r.next-int64(most))
	items = make([]T, 0, r.next-from)
	for i := from; i < r.next; i++ {
		items = append(items, r.items[(i-r.first)%int64(r.size)])
	}
	return items, r.next - 1
}
