package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"libreceivewal/segment"
	"libreceivewal/stream"
)

// alive counts sessions and goroutines of this package.
var alive atomic.Int64

// errPanic marks what a recovered panic became.
var errPanic = errors.New("internal error: panic")

func panicError(recovered any) error {
	return fmt.Errorf("%w: %v", errPanic, recovered)
}

// An operation is what a request asks for. It runs on a goroutine of its own.
type operation func(ctx context.Context, s *session) (result any, err error)

// session is what stands behind a handle of the loader: a connection, at most one operation, and the events that it has
// brought forth. The methods without a comment about it are called by the loader's service thread, one at a time.
type session struct {
	conn   net.Conn        // nil for a session that only looks through a directory
	relay  *relayed        // conn, where a relay of the loader is its other end
	stream *stream.Session // nil with conn
	queue  queue

	stopFile *os.File // our duplicate of the eventfd that receivewal_stop writes to; nil if there is none
	stopFD   int      // its descriptor: os.File.Fd would make it blocking

	running atomic.Bool // an operation has begun and its DONE is not queued yet
	cancel  context.CancelFunc
	work    sync.WaitGroup

	mu      sync.Mutex
	answers chan<- answer // where the operation waits for the host's answer to a reconnectEvent; nil: it doesn't
}

func openSession(l *lent, eventFD, stopFD int) (*session, error) {
	// The runtime opens its poller's descriptors with the first timer or file: here, where the loader has seen to it that they
	// don't get the numbers of standard descriptors.
	time.AfterFunc(0, func() {})
	s := &session{queue: queue{fd: eventFD}, stopFD: -1, cancel: func() {}}
	if err := s.openFiles(l, stopFD); err != nil {
		s.closeFiles()
		return nil, err
	}
	if l != nil {
		l.options.FS = files
		s.stream = stream.NewSession(s.conn, l.options)
	}
	alive.Add(1)
	return s, nil
}

// openFiles duplicates the descriptors that there are.
func (s *session) openFiles(l *lent, stopFD int) (err error) {
	if stopFD >= 0 {
		// Non-blocking already, so the file is read through the runtime's poller and costs no thread.
		if s.stopFD, err = unix.FcntlInt(uintptr(stopFD), unix.F_DUPFD_CLOEXEC, 3); err != nil {
			return fmt.Errorf("could not duplicate descriptor %d: %w", stopFD, err)
		}
		held{}.Hold(s.stopFD)
		s.stopFile = os.NewFile(uintptr(s.stopFD), "stop")
	}
	if l != nil {
		s.conn, s.relay, err = l.dial()
	}
	return err
}

func (s *session) closeFiles() {
	if s.conn != nil {
		s.conn.Close()
	}
	if s.stopFile != nil {
		held{}.Release(s.stopFD)
		s.stopFile.Close()
	}
}

// close ends what may still run and waits for it.
func (s *session) close() {
	s.cancel()
	s.work.Wait()
	s.closeFiles()
	s.queue.drop()
	alive.Add(-1)
}

// begin starts an operation. Its end is a doneEvent in the queue, whatever happens.
func (s *session) begin(op operation) {
	s.work.Wait() // the last one has queued its end, and needs an instant to be gone
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.running.Store(true)
	s.work.Add(1)
	alive.Add(1)
	go func() {
		defer s.work.Done()
		defer alive.Add(-1)
		defer cancel()
		done := s.run(ctx, cancel, op)
		s.running.Store(false)
		s.queue.add(done)
	}()
}

// run is the operation from its start to its end, on its own goroutine.
func (s *session) run(ctx context.Context, cancel context.CancelFunc, op operation) (done doneEvent) {
	defer func() {
		if r := recover(); r != nil {
			done = doneEvent{err: panicError(r)}
		}
	}()
	if s.stopFile != nil {
		// A stop that came while nothing ran ends this operation before it does anything, not a moment later by chance.
		if s.stopPending() {
			return doneEvent{err: fmt.Errorf("%w before anything was sent", stream.ErrStopped)}
		}
		defer s.watchStop(cancel)()
	}
	result, err := op(ctx, s)
	return doneEvent{result: result, err: err}
}

// stopPending reads the eventfd, which forgets.
func (s *session) stopPending() bool {
	var count [8]byte
	n, err := unix.Read(s.stopFD, count[:])
	return err == nil && n == len(count)
}

// watchStop cancels once receivewal_stop is called. The function that it returns ends the watch and waits for its goroutine.
func (s *session) watchStop(cancel context.CancelFunc) func() {
	gone := make(chan struct{})
	alive.Add(1)
	go func() {
		defer close(gone)
		defer alive.Add(-1)
		var count [8]byte
		if _, err := s.stopFile.Read(count[:]); err == nil {
			cancel()
		}
	}()
	return func() {
		s.stopFile.SetReadDeadline(time.Unix(1, 0))
		<-gone
		s.stopFile.SetReadDeadline(time.Time{})
	}
}

func (s *session) stop() { s.cancel() }

// confirm is receivewal_confirm.
func (s *session) confirm(lsn segment.LSN) error {
	if s.stream == nil {
		return stream.ErrInvalid
	}
	return s.stream.Confirm(lsn)
}

// taken tells that the host has taken the next n bytes of data.
func (s *session) taken(n uint64) {
	if s.stream != nil {
		s.stream.DataTaken(int(n))
	}
}

func (s *session) take() []event { return s.queue.take() }

func (s *session) usable() bool {
	return s.stream != nil && !s.running.Load() && s.stream.Usable()
}

func (s *session) progress() stream.Progress {
	if s.stream == nil {
		return stream.Progress{}
	}
	p := s.stream.Progress()
	if p.State == stream.StateIdle && s.running.Load() {
		p.State = stream.StateStarting // a command, or a receive that has not got to its state yet
	}
	return p
}
