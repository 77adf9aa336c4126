package stream

import (
	"net"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The runtime's poller lets thousands of connections wait for next to nothing, but each message that arrives on one wakes up a
// thread of it, and each byte that the peer takes away another time, whether anybody waits or not (it watches edges,
// netpoll_epoll.go). For a connection on which something happens all the time, that is most of what receiving costs.
//
// Such a connection is hot: the poller does not know it any more, and its goroutine waits in the kernel, as a program in C
// would. That occupies a thread, so only few may be hot at a time, and only until nothing has come for lingerTime. The others, and
// what is idle, are the poller's.
const (
	maxHot     = 4
	lingerTime = 10 * time.Millisecond

	// denseReads is after how many reads, none of which has waited for longer than lingerTime, a connection becomes hot.
	denseReads = 32
)

// hot is how many connections are.
var hot atomic.Int32

// A heatable connection can be hot.
type heatable interface {
	// Heat takes the connection from the runtime's poller, unless too many are hot. Read, or Cool, gives it back.
	Heat()
	Cool() error
	// Linger waits until there is something to read, or for so long, if the connection is hot. Nothing ends it earlier.
	Linger(time.Duration)
	// Pause waits for so long, whatever there is to read, if the connection is hot. Only the connection's end ends it earlier.
	Pause(time.Duration)
}

// enter is the descriptor, if it is hot; else -1. leave follows.
func (s *Socket) enter() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.hot || s.closed {
		return -1
	}
	s.using = true
	return s.held
}

func (s *Socket) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.using = false
	if s.closed {
		s.shut()
	}
}

// Heat takes the connection from the runtime's poller, unless too many are hot already.
func (s *Socket) Heat() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hot || s.closed {
		return
	}
	if hot.Add(1) > maxHot {
		hot.Add(-1)
		return
	}
	fd, err := unix.FcntlInt(uintptr(s.held), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		hot.Add(-1)
		return
	}
	s.holder.Hold(fd)
	s.holder.Release(s.held)
	s.conn.Close()
	s.conn, s.raw, s.held, s.hot = nil, nil, fd, true
}

// Cool gives a hot connection back to the runtime's poller.
func (s *Socket) Cool() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	if !s.hot {
		return nil
	}
	fd := s.held
	if err := s.register(fd); err != nil {
		return err
	}
	s.holder.Release(fd)
	unix.Close(fd)
	hot.Add(-1)
	s.hot = false
	s.conn.SetReadDeadline(s.readBy)
	s.conn.SetWriteDeadline(s.writeBy)
	return nil
}

// Linger waits until there is something to read, or for so long, if the connection is hot.
func (s *Socket) Linger(limit time.Duration) { s.waitFor(unix.POLLIN, limit) }

// Pause waits for so long, if the connection is hot.
func (s *Socket) Pause(limit time.Duration) { s.waitFor(0, limit) }

func (s *Socket) waitFor(events int16, limit time.Duration) bool {
	fd := s.enter()
	if fd < 0 {
		return false
	}
	defer s.leave()
	s.poll = unix.PollFd{Fd: int32(fd), Events: events}
	s.pollTime = unix.NsecToTimespec(int64(limit))
	n, _, _ := unix.Syscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&s.poll)), 1, uintptr(unsafe.Pointer(&s.pollTime)), 0, 0, 0)
	return int(n) == 1
}

// late tells whether the time to write is over.
func (s *Socket) late() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed || !s.writeBy.IsZero() && !time.Now().Before(s.writeBy)
}

// A stream that nobody waits for need not be read at each of the server's messages: what they cost is mostly the wake-up. While the
// server is at work, but does not send much, it is read every pauseMost. The data that so waits in the socket would otherwise be in the
// page cache; neither survives a power cut, and when it is flushed is up to the end of the segment or to the flush interval anyway.
const (
	pauseMost  = 20 * time.Millisecond
	pauseLeast = time.Millisecond / 2
	pauseAim   = 64 << 10 // bytes that a read should get: less than a socket holds, or the server would have to wait
)

// nextPause is how long to pause before the next read, after the last pause was followed by one of so many bytes.
func nextPause(last time.Duration, got int) time.Duration {
	switch {
	case got > pauseAim:
		last /= 4
	case got > pauseAim/2:
		last /= 2
	case got < pauseAim/4:
		last = min(2*last+pauseLeast, pauseMost)
	}
	if last < pauseLeast {
		return 0
	}
	return last
}

// A server that catches us up sends as fast as it can, and we are faster: each of its pieces would be waited for, read and
// written by itself. A moment later more is read at once.
const (
	gatherTime = 50_000 // nanoseconds

	// gatherLag is how far ahead the server must be for it to be certain that more is on its way: a few of its messages, and all that
	// socket buffers hold.
	gatherLag = 1 << 20
)

// gather lets the server send some more.
func gather() {
	moment := unix.Timespec{Nsec: gatherTime}
	unix.Syscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&moment)), 0, 0) // an early end does no harm
}
