package stream

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// holding counts the descriptors that it is told of.
type holding struct {
	mu   sync.Mutex
	open map[int]bool
}

func (h *holding) Hold(fd int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open[fd] = true
}

func (h *holding) Release(fd int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.open, fd)
}

// A hot connection reads, writes, waits, and is the poller's again when nothing comes; flags and descriptors are as before.
func TestHot(t *testing.T) {
	for _, blocking := range []bool{true, false} {
		fd, server := pair(t)
		if err := unix.SetNonblock(fd, !blocking); err != nil {
			t.Fatal(err)
		}
		before, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		h := &holding{open: map[int]bool{}}
		s, err := DialFD(fd, h)
		if err != nil {
			t.Fatal(err)
		}
		s.Heat()
		if !s.hot || hot.Load() != 1 || len(h.open) != 1 {
			t.Fatalf("hot %t, %d in all, %d descriptors", s.hot, hot.Load(), len(h.open))
		}
		go server.Write([]byte("ping"))
		s.Linger(testPatience)
		b := make([]byte, 10)
		if n, err := s.Read(b); string(b[:n]) != "ping" || err != nil || !s.hot {
			t.Errorf("read %q, %v", b[:n], err)
		}
		if _, err := s.Write([]byte("pong")); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadFull(server, b[:4]); string(b[:4]) != "pong" || err != nil {
			t.Errorf("wrote %q, %v", b[:4], err)
		}
		s.SetReadDeadline(time.Now().Add(20 * time.Millisecond)) // goes along to the poller
		if n, err := s.Read(b); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) || s.hot || hot.Load() != 0 {
			t.Errorf("read %d bytes, %v; hot %t", n, err, s.hot)
		}
		s.SetReadDeadline(time.Time{})
		go server.Write([]byte("again"))
		if n, err := s.Read(b); string(b[:n]) != "again" || err != nil {
			t.Errorf("read %q, %v", b[:n], err)
		}
		s.Heat()
		server.Close()
		if n, err := s.Read(b); n != 0 || err != io.EOF {
			t.Errorf("at the end: %d bytes, %v", n, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if after, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); after != before {
			t.Errorf("the flags are %x, and were %x", after, before)
		}
		if hot.Load() != 0 || len(h.open) != 0 {
			t.Errorf("%d are hot, %d descriptors are open", hot.Load(), len(h.open))
		}
	}
}

// Only so many are hot, and a Close while one waits leaves nothing open.
func TestHotOnesAreFew(t *testing.T) {
	before := len(descriptors(t))
	var sockets []*Socket
	for range maxHot + 2 {
		fd, _ := pair(t)
		s, err := DialFD(fd, nil)
		if err != nil {
			t.Fatal(err)
		}
		s.Heat()
		sockets = append(sockets, s)
	}
	if hot.Load() != maxHot {
		t.Errorf("%d are hot", hot.Load())
	}
	waited := make(chan struct{})
	go func() {
		defer close(waited)
		sockets[0].Linger(50 * time.Millisecond)
	}()
	time.Sleep(10 * time.Millisecond)
	for _, s := range sockets {
		s.Close()
	}
	<-waited
	if sockets[0].Cool() == nil || hot.Load() != 0 {
		t.Errorf("%d are hot", hot.Load())
	}
	if now := len(descriptors(t)) - before; now != 2*(maxHot+2) { // the pairs themselves
		t.Errorf("%d descriptors more", now)
	}
}

// dialed is a socket, which is closed when the test ends, and its peer.
func dialed(t *testing.T) (*Socket, net.Conn) {
	t.Helper()
	fd, server := pair(t)
	s, err := DialFD(fd, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, server
}

// A connection on which something comes all the time becomes hot, and is cool again once it is given back.
func TestBusyConnectionIsHot(t *testing.T) {
	s, server := dialed(t)
	c := newWire(s)
	for began := time.Now(); !s.hot && time.Since(began) < testPatience; { // the machine may be busy with something else for a moment
		if _, err := server.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if got, err := c.read(bufferSize, time.Now().Add(testPatience)); !got || err != nil {
			t.Fatalf("%t, %v", got, err)
		}
		c.used(1)
	}
	if !s.hot || !c.hot {
		t.Error("it is not hot")
	}
	c.release()
	if s.hot || c.hot || hot.Load() != 0 {
		t.Errorf("%d are still hot", hot.Load())
	}
}

// What trickles is read now and then; a burst, or what the server is far ahead with, is read as fast as it comes.
func TestNextPause(t *testing.T) {
	pause := time.Duration(0)
	for range 20 {
		pause = nextPause(pause, 300)
	}
	if pause != pauseMost {
		t.Errorf("it grows to %v", pause)
	}
	for _, step := range []struct {
		got  int
		want time.Duration
	}{{pauseAim / 3, pauseMost}, {pauseAim/2 + 1, pauseMost / 2}, {pauseAim, pauseMost / 4}, {3 * pauseAim, pauseMost / 16}, {3 * pauseAim, 0}, {3 * pauseAim, 0}, {300, pauseLeast}} {
		if pause = nextPause(pause, step.got); pause != step.want {
			t.Errorf("after %d bytes %v, want %v", step.got, pause, step.want)
		}
	}
}

// A pause is not silence: the connection stays hot. Data does not end it, but the deadline and the connection's end do.
func TestPause(t *testing.T) {
	s, server := dialed(t)
	c := newWire(s)
	hot := false
	for range 50 { // that the machine is busy with something else for a moment is silence, too
		server.Write([]byte("x"))
		s.Heat()
		c.hot, c.dense, c.lastRead, c.paused, c.got = true, 2*denseReads, time.Now(), pauseMost, 1
		began := time.Now()
		for range 3 {
			c.pause(time.Time{})
		}
		if took := time.Since(began); took < 2*pauseMost { // a signal may end one
			t.Errorf("3 pauses took %v", took)
		}
		if got, err := c.read(1, time.Time{}); !got || err != nil {
			t.Fatalf("%t, %v", got, err)
		}
		c.used(1)
		if hot = s.hot && c.hot; hot {
			break
		}
	}
	if !hot {
		t.Error("it is not hot any more")
	}
	s.Heat()
	ends := func(what string, pause func()) {
		t.Helper()
		began := time.Now()
		if pause(); time.Since(began) >= testPatience {
			t.Errorf("a pause %s", what)
		}
	}
	c.paused, c.got = testPatience, pauseAim/3
	ends("beyond the deadline", func() { c.pause(time.Now().Add(pauseLeast)) })
	server.Close()
	ends("of a closed connection", func() { s.Pause(testPatience) })
}
