package stream

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"libreceivewal/segment"
)

// pair makes a connected pair of Unix sockets: a descriptor for the client, a connection for the server.
func pair(t testing.TB) (int, net.Conn) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[1]), "server")
	defer f.Close()
	server, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]); server.Close() })
	return fds[0], server
}

// onSocket makes a play on a real socket, whose client has the descriptor of somebody else.
func onSocket(t testing.TB, c *cluster) (*play, int) {
	fd, server := pair(t)
	client, err := DialFD(fd, nil)
	if err != nil {
		t.Fatal(err)
	}
	return playOn(t, c, client, server, false), fd
}

// descriptors is what this process has open.
func descriptors(t testing.TB) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var open []string
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name()))
		if err == nil && target != "anon_inode:[eventpoll]" && target != "anon_inode:[eventfd]" { // the runtime's own, for ever
			open = append(open, target)
		}
	}
	return open
}

// settle waits until there are no more goroutines than before.
func settle(t testing.TB, before int) {
	t.Helper()
	for end := time.Now().Add(testPatience); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			b := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, before there were %d:\n%s", runtime.NumGoroutine(), before, b[:runtime.Stack(b, true)])
		}
	}
}

// On a real socket, into a real directory: the connection is as it was, and nothing is left behind, however it ends.
func TestNothingIsLeftBehind(t *testing.T) {
	for name, test := range map[string]struct {
		play func(p *play, o Options) error
		want error
	}{
		"to the end": {func(p *play, o Options) error {
			o.EndLSN = 0x50007F
			p.receive(o)
			return p.stream()
		}, nil},
		"stopped": {func(p *play, o Options) error {
			p.receive(o)
			time.AfterFunc(100*time.Millisecond, p.stop)
			return p.stream()
		}, ErrStopped},
		"broken": {func(p *play, o Options) error {
			p.eof = 1_000_000
			p.receive(o)
			return p.stream()
		}, ErrConnectionLost},
		"foreign": {func(p *play, o Options) error {
			p.receive(o)
			p.command("IDENTIFY_SYSTEM", answerOf(testSystem+1, 1, "0/500080", nil)...)
			p.command("SHOW wal_segment_size", answerOf("1MB")...)
			p.command("SHOW data_directory_mode", answerOf("0700")...)
			p.command("SHOW wal_sender_timeout", answerOf("1min")...)
			p.startReplication(0x300000)
			p.wal(0x300000, 1<<20)
			for p.next().text != "CopyDone" {
			}
			p.copyDone()
			return <-p.result
		}, segment.ErrForeign},
	} {
		t.Run(name, func(t *testing.T) {
			goroutines, open := runtime.NumGoroutine(), descriptors(t)
			p, fd := onSocket(t, oneTimeline(0x500080))
			p.s.fs, p.onDisk = segment.OS, true
			dir := t.TempDir()
			flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
			err := test.play(p, Options{Directory: dir, Slot: "s", StartLSN: 0x300000})
			if !errors.Is(err, test.want) {
				t.Errorf("%v, expected %v", err, test.want)
			}
			if test.want != ErrConnectionLost {
				p.usable()
			}
			if now, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); now != flags {
				t.Errorf("the socket's flags are %#x, were %#x", now, flags)
			}
			if test.want == nil {
				for lsn := segment.LSN(0x300000); lsn < 0x500080; lsn += mib {
					name, n := segment.At(1, lsn, testSize).Name(testSize), int(testSize)
					if lsn == 0x500000 {
						name, n = name+".partial", 0x80
					}
					got, err := os.ReadFile(filepath.Join(dir, name))
					if err != nil || len(got) != int(testSize) || !bytes.Equal(got[:n], p.c.wal(1, lsn, n)) {
						t.Errorf("%s: %d bytes, %v", name, len(got), err)
					}
				}
			}
			p.close()
			unix.Close(fd)
			settle(t, goroutines)
			if now := descriptors(t); len(now) != len(open) {
				t.Errorf("open: %q, before: %q", now, open)
			}
		})
	}
}

func TestDialFDRefuses(t *testing.T) {
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	socket := func(kind int) int {
		fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	closed := socket(unix.SOCK_STREAM)
	unix.Close(closed)
	for name, test := range map[string]struct {
		fd   int
		want error
	}{
		"-1":                {-1, ErrBadFD},
		"a closed one":      {1 << 20, ErrBadFD},
		"a file":            {int(file.Fd()), ErrNotSocket},
		"a datagram socket": {socket(unix.SOCK_DGRAM), ErrNotSocket},
		"not connected":     {socket(unix.SOCK_STREAM), ErrNotConnected},
	} {
		before := len(descriptors(t))
		if conn, err := DialFD(test.fd, nil); !errors.Is(err, test.want) || conn != nil {
			t.Errorf("%s: %v, expected %v", name, err, test.want)
		}
		if now := len(descriptors(t)); now != before {
			t.Errorf("%s: %d descriptors, before %d", name, now, before)
		}
	}
}

// Whether the socket blocks or not is its owner's business, also while it is in use.
func TestDialFDKeepsTheFlags(t *testing.T) {
	for _, nonblocking := range []bool{false, true} {
		fd, server := pair(t)
		if err := unix.SetNonblock(fd, nonblocking); err != nil {
			t.Fatal(err)
		}
		before, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		conn, err := DialFD(fd, nil)
		if err != nil {
			t.Fatal(err)
		}
		same := func() {
			t.Helper()
			if now, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); now != before {
				t.Errorf("flags %#x, before %#x", now, before)
			}
		}
		same()
		b := make([]byte, 10)
		conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond)) // nothing to read: the deadline must work in both modes
		if _, err := conn.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("non-blocking %t: %v", nonblocking, err)
		}
		conn.SetReadDeadline(time.Time{})
		go server.Write([]byte("hello"))
		if n, err := conn.Read(b); string(b[:n]) != "hello" || err != nil {
			t.Errorf("%q, %v", b[:n], err)
		}
		// More than the socket takes at once.
		large := bytes.Repeat([]byte("0123456789"), 1<<17)
		go func() {
			conn.Write(large)
			unix.Shutdown(fd, unix.SHUT_WR)
		}()
		var got bytes.Buffer
		if _, err := got.ReadFrom(server); err != nil || !bytes.Equal(got.Bytes(), large) {
			t.Errorf("%d bytes, %v", got.Len(), err)
		}
		same()
		conn.Close()
		same()
		if _, err := unix.Getpeername(fd); err != nil {
			t.Errorf("the owner's socket is gone: %v", err)
		}
	}
}

// A write to a connection that is dead is an error, not a signal; a reset is a lost connection.
func TestDeadSocket(t *testing.T) {
	for _, way := range []string{"closed", "reset"} {
		t.Run(way, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			out, err := net.Dial("tcp", listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			server, err := listener.Accept()
			if err != nil {
				t.Fatal(err)
			}
			var client net.Conn
			raw, _ := out.(syscall.Conn).SyscallConn()
			raw.Control(func(fd uintptr) { client, err = DialFD(int(fd), nil) })
			if err != nil {
				t.Fatal(err)
			}
			p := playOn(t, oneTimeline(0x300080), client, server, false)
			p.begin(Options{Slot: "s", StartLSN: 0x300000}, 0x300000)
			p.wal(0x300000, 100)
			p.send(keepalive(0x300080, 1))
			p.expect("status 0/300064 0/300064")
			signals := make(chan os.Signal, 1)
			signal.Notify(signals, unix.SIGPIPE)
			defer signal.Stop(signals)
			if way == "reset" {
				server.(*net.TCPConn).SetLinger(0)
			}
			server.Close()
			if err := p.end(ErrConnectionLost); way == "closed" && !strings.Contains(err.Error(), "closed the connection unexpectedly") {
				t.Error(err)
			}
			p.unusable()
			p.hasWAL(1, 0x300000, 0x300064)
			for range 3 { // EPIPE at the latest
				if _, err = client.Write([]byte("x")); err != nil {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			if err == nil {
				t.Error("a write to a dead connection works")
			}
			select {
			case <-signals:
				t.Error("a write to a dead connection raises SIGPIPE")
			case <-time.After(10 * time.Millisecond):
			}
		})
	}
}

// A stop wakes a read on a real socket, at any moment, and the socket is good afterwards.
func TestStopOnASocket(t *testing.T) {
	p, _ := onSocket(t, oneTimeline(0x10000000))
	p.dir.forgetful = true
	for i := range 20 {
		p.ctx, p.stop = context.WithCancel(context.Background())
		p.receive(Options{StartLSN: 0x300000, StatusInterval: -1})
		time.AfterFunc(time.Duration(i*i)*100*time.Microsecond, p.stop)
		p.is(p.stream(), ErrStopped)
		p.usable()
		p.stop()
	}
}
