package stream

import (
	"sync"
	"time"
)

// guard sends status updates in place of a copyStream's goroutine while that hangs in a call of the file system: a disk that
// takes minutes must not cost the connection.
type guard struct {
	mu    sync.Mutex // held while an update is sent: leave waits for it
	timer *time.Timer
	on    bool
}

// newGuard calls send every blindInterval that passes between enter and leave, until it fails.
func newGuard(send func() error) *guard {
	g := &guard{}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.timer = time.AfterFunc(time.Hour, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.on && send() == nil {
			g.timer.Reset(blindInterval)
		}
	})
	g.timer.Stop()
	return g
}

// enter: from here on the goroutine may hang.
func (g *guard) enter() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.on = true
	g.timer.Reset(blindInterval)
}

// leave: it does not hang any more, and send does not run.
func (g *guard) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.on = false
	g.timer.Stop()
}
