package stream

import (
	"sync"
	"sync/atomic"
	"time"
)

// guard sends status updates in place of a copyStream's goroutine while that hangs in a call of the file system: a disk that
// takes minutes must not cost the connection.
//
// Entering and leaving is done for every piece of data, so both only count. While there are calls, a timer looks whether the
// goroutine is still in the one that it was in before.
type guard struct {
	send func() error

	calls atomic.Int64 // how often enter and leave were called: odd while the goroutine is in a call
	armed atomic.Bool  // the timer is set

	mu    sync.Mutex // held while an update is sent: leave waits for it
	timer *time.Timer
	last  int64 // calls, when the timer looked last
}

// lookInterval is such that a call that hangs has been seen twice after blindInterval.
const lookInterval = blindInterval / 2

// newGuard calls send every blindInterval that a call takes longer than that, until it fails.
func newGuard(send func() error) *guard {
	g := &guard{send: send}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.timer = time.AfterFunc(time.Hour, g.look)
	g.timer.Stop()
	return g
}

// enter: from here on the goroutine may hang.
func (g *guard) enter() {
	g.calls.Add(1)
	if g.armed.CompareAndSwap(false, true) {
		g.timer.Reset(lookInterval)
	}
}

// leave: it does not hang any more, and send does not run.
func (g *guard) leave() {
	// While the timer looks, it holds the mutex from before it reads the count: it has either seen this, or is waited for.
	g.calls.Add(1)
	if g.armed.Load() {
		g.mu.Lock()
		defer g.mu.Unlock()
	}
}

// look is what the timer does.
func (g *guard) look() {
	g.mu.Lock()
	defer g.mu.Unlock()
	calls := g.calls.Load()
	hangs, rests := calls == g.last && calls%2 != 0, calls == g.last && calls%2 == 0
	g.last = calls
	switch {
	case hangs:
		if g.send() == nil {
			g.timer.Reset(blindInterval)
		}
	case !rests:
		g.timer.Reset(lookInterval)
	default:
		g.armed.Store(false)
		if g.calls.Load() != calls && g.armed.CompareAndSwap(false, true) { // an enter has found the timer set just before
			g.timer.Reset(lookInterval)
		}
	}
}
