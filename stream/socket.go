package stream

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"libreceivewal/segment"
)

// DialFD makes a net.Conn of a connected stream socket that somebody else owns. The descriptor is duplicated;
// Close closes the duplicate only. The flags of the socket, which both descriptors share, stay as they are:
// whether it blocks or not is its owner's business. A write to a dead connection raises no signal. holder is told of the
// duplicate, and may be nil.
//
// Errors: ErrBadFD, ErrNotSocket, ErrNotConnected.
func DialFD(fd int, holder segment.Holder) (*Socket, error) {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil {
		return nil, fail(ErrBadFD, "descriptor %d is not open", fd)
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || kind != unix.SOCK_STREAM {
		return nil, fail(ErrNotSocket, "descriptor %d is not a stream socket", fd)
	}
	if _, err := unix.Getpeername(fd); err != nil {
		return nil, fail(ErrNotConnected, "socket %d is not connected", fd)
	}
	if holder == nil {
		holder = nobody{}
	}
	s := &Socket{holder: holder}
	if err := s.register(fd); err != nil {
		return nil, err
	}
	s.local, s.remote = s.conn.LocalAddr(), s.conn.RemoteAddr()
	s.tryRead, s.tryWrite = s.recv, s.send
	return s, nil
}

type nobody struct{}

func (nobody) Hold(int)    {}
func (nobody) Release(int) {}

// register duplicates a descriptor, for the runtime's poller to wait for it.
func (s *Socket) register(fd int) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return fail(ErrBadFD, "descriptor %d is not open", fd)
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fail(errors.ErrUnsupported, "could not duplicate descriptor %d: %w", fd, err)
	}
	f := os.NewFile(uintptr(dup), "connection")
	conn, err := fileConn(f)
	f.Close()
	if err != nil {
		return fail(ErrNotSocket, "descriptor %d cannot be used: %w", fd, plain(err))
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags); err != nil {
		conn.Close()
		return fail(ErrBadFD, "could not restore the flags of descriptor %d: %w", fd, err)
	}
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { s.held = int(fd) })
	}
	if err != nil {
		conn.Close()
		return fail(ErrNotSocket, "descriptor %d cannot be used: %w", fd, err)
	}
	s.holder.Hold(s.held)
	s.conn, s.raw = conn, raw
	return nil
}

// fileConn is net.FileConn, which duplicates once more and makes the socket non-blocking; but its descriptor is never one of the
// standard ones, which a host may have closed and go on printing to.
func fileConn(f *os.File) (net.Conn, error) {
	for {
		conn, err := net.FileConn(f)
		if err != nil {
			return nil, err
		}
		raw, err := conn.(syscall.Conn).SyscallConn()
		standard := false
		if err == nil {
			err = raw.Control(func(fd uintptr) { standard = fd <= 2 })
		}
		if err == nil && !standard {
			return conn, nil
		}
		defer conn.Close() // keeps the place taken until there is a better one
		if err != nil {
			return nil, err
		}
	}
}

// Socket is a net.Conn whose descriptor may be in blocking mode: each call says for itself that it must not block,
// and the runtime's poller waits; or, while the connection is hot, the kernel (hot.go). Read, Write, Heat, Cool and Linger are used by
// one goroutine at a time.
type Socket struct {
	local, remote net.Addr
	holder        segment.Holder

	mu              sync.Mutex // guards what follows against Close and the deadlines, which any goroutine may use
	conn            net.Conn   // nil while hot
	raw             syscall.RawConn
	held            int // the descriptor
	hot             bool
	using           bool // hot, and a system call may be in progress: Close leaves the descriptor to it
	closed          bool
	readBy, writeBy time.Time

	in, out           []byte
	get               func() []byte // of ReadLazily; nil in Read
	put               func()
	read, written     int
	readErr, writeErr error
	tryRead, tryWrite func(fd uintptr) bool // made once: a closure per call would be garbage

	poll     unix.PollFd
	pollTime unix.Timespec
}

// LocalAddr is the address of our end.
func (s *Socket) LocalAddr() net.Addr { return s.local }

// RemoteAddr is the address of the peer's end.
func (s *Socket) RemoteAddr() net.Addr { return s.remote }

// Close may be called by any goroutine. It closes the duplicate, not the socket.
func (s *Socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	s.closed = true
	if s.using {
		return nil // leave does it
	}
	return s.shut()
}

// shut closes the descriptor, with mu held.
func (s *Socket) shut() error {
	s.holder.Release(s.held)
	if !s.hot {
		return s.conn.Close()
	}
	hot.Add(-1)
	return unix.Close(s.held)
}

// SetDeadline may be called by any goroutine, as may the two following.
func (s *Socket) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

// SetReadDeadline ends a Read in progress, but not a Linger.
func (s *Socket) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readBy = t
	if s.hot {
		return nil
	}
	return s.conn.SetReadDeadline(t)
}

// SetWriteDeadline is for Write.
func (s *Socket) SetWriteDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writeBy = t
	if s.hot {
		return nil
	}
	return s.conn.SetWriteDeadline(t)
}

// ReadLazily is Read into a buffer that get gives once there is something to read. put takes it back if there was nothing
// after all. get and put are called before ReadLazily returns, by any goroutine but never two at a time.
func (s *Socket) ReadLazily(get func() []byte, put func()) (int, error) {
	s.get, s.put = get, put
	n, err := s.Read(nil)
	s.get, s.put = nil, nil
	return n, err
}

// Read may be used by one goroutine at a time.
func (s *Socket) Read(b []byte) (int, error) {
	s.in = b
	if fd := s.enter(); fd >= 0 {
		done := s.recv(uintptr(fd))
		s.leave()
		if done {
			return s.received(b)
		}
		if s.Cool() != nil { // for want of a descriptor
			s.Linger(lingerTime)
			return 0, os.ErrDeadlineExceeded
		}
		s.in = b
	}
	if err := s.raw.Read(s.tryRead); err != nil {
		s.in = nil
		return 0, err
	}
	return s.received(b)
}

// received is what recv has got.
func (s *Socket) received(b []byte) (int, error) {
	s.in = nil
	if s.readErr != nil {
		return 0, s.readErr
	}
	if s.read == 0 && (len(b) > 0 || s.get != nil) {
		return 0, io.EOF
	}
	return s.read, nil
}

// recv is recv(2); package unix has only forms of it that allocate an address each time. It doesn't wait, so the
// scheduler need not know of it.
func (s *Socket) recv(fd uintptr) bool {
	if s.get != nil {
		s.in = s.get()
	}
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(unsafe.SliceData(s.in))), uintptr(len(s.in)),
			unix.MSG_DONTWAIT, 0, 0)
		s.read, s.readErr = int(n), nil
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			if s.get != nil {
				s.in = nil
				s.put()
			}
			return false
		case 0:
		default:
			s.read, s.readErr = 0, errno
		}
		return true
	}
}

// Write may be used by one goroutine at a time.
func (s *Socket) Write(b []byte) (int, error) {
	total := 0
	for total < len(b) {
		s.out = b[total:]
		err := s.push()
		s.out = nil
		if err == nil {
			err = s.writeErr
		}
		if err != nil {
			return total, err
		}
		total += s.written
	}
	return total, nil
}

// push sends some of out.
func (s *Socket) push() error {
	for {
		fd := s.enter()
		if fd < 0 {
			return s.raw.Write(s.tryWrite)
		}
		done := s.send(uintptr(fd))
		s.leave()
		if done {
			return nil
		}
		if s.Cool() != nil && !s.waitFor(unix.POLLOUT, lingerTime) && s.late() {
			return os.ErrDeadlineExceeded
		}
	}
}

func (s *Socket) send(fd uintptr) bool {
	for {
		s.written, s.writeErr = unix.SendmsgN(int(fd), s.out, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch s.writeErr {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		}
		return true
	}
}
