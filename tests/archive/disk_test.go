package archive

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"libreceivewal/segment"
	"libreceivewal/stream"
	"libreceivewal/tests/pg"
)

// A disk is a small file system of its own, most of which is taken.
type disk struct {
	t    testing.TB
	wal  string // the folder for WAL
	root string
}

// newDisk makes a disk of so many KiB. It is a tmpfs that is nowhere in the tree: we reach it by an open descriptor, and it is gone with
// us, however we end.
func newDisk(t testing.TB, size int) *disk {
	t.Helper()
	point := t.TempDir()
	if err := unix.Mount("tmpfs", point, "tmpfs", 0, fmt.Sprintf("size=%dk,mode=0755", size)); err != nil {
		t.Fatalf("a full disk needs a small file system, and this process may not mount one (%v): run the tests as root, with CAP_SYS_ADMIN", err)
	}
	f, openErr := os.Open(point)
	if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if openErr != nil {
		t.Fatal(openErr)
	}
	t.Cleanup(func() { f.Close() })
	root := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
	d := &disk{t, filepath.Join(root, "wal"), root}
	if err := os.Mkdir(d.wal, 0o755); err != nil {
		t.Fatal(err)
	}
	return d
}

// leave takes space until only so many KiB are left.
func (d *disk) leave(kib int) {
	d.t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(d.root, &st); err != nil {
		d.t.Fatal(err)
	}
	n := int64(st.Bavail)*st.Bsize - int64(kib)<<10
	if err := os.WriteFile(filepath.Join(d.root, "ballast"), make([]byte, n), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

// free gives all of that back.
func (d *disk) free() {
	d.t.Helper()
	if err := os.Remove(filepath.Join(d.root, "ballast")); err != nil {
		d.t.Fatal(err)
	}
}

// With on_disk_full fail, the receive ends with an error of its own, as often as it is tried, and leaves the connection usable and the
// directory so that it goes on once there is room: with us, and with pg_receivewal.
func TestDiskFullFails(t *testing.T) {
	for _, next := range []string{"ours", "theirs"} {
		t.Run(next, func(t *testing.T) {
			t.Parallel()
			c := pg.New(t, pg.Options{SegmentSizeMB: 1})
			d := newDisk(t, 24<<10)
			d.leave(3<<10 + 300)
			begin := c.Tick()
			fixStart(t, c, d.wal, begin)
			end := c.Generate(9)
			for range 3 {
				r := startReceive(t, c, "full", stream.Options{Directory: d.wal, Slot: ""})
				err := r.wait()
				if !errors.Is(err, segment.ErrDiskFull) || !strings.Contains(err.Error(), d.wal) {
					t.Errorf("got %v", err)
				}
				if !r.Usable() {
					t.Error("the connection is not usable")
				}
				checkNames(t, c, d.wal)
				if files := c.CompareWithServer(d.wal).Equal; len(files) != 3 {
					t.Errorf("%d segments on a disk for 3: %v", len(files), files)
				}
				checkSizes(t, c, d.wal)
			}
			d.free()
			r := ours(t)
			if next == "theirs" {
				r = theirs(t)
			}
			r.in(d.wal).receive(c, end)
			verify(t, c, d.wal, begin, end)
		})
	}
}

// checkSizes fails unless each segment, also a partial one, has its full size.
func checkSizes(t testing.TB, c *pg.Cluster, dir string) {
	t.Helper()
	files := pg.List(t, dir)
	for _, name := range append(files.Complete, files.Partial...) {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if uint64(info.Size()) != c.SegmentSize {
			t.Errorf("%s has %d bytes", name, info.Size())
		}
	}
}

// What pg_receivewal leaves on a full disk, it never gets over; we do.
func TestShortPartialIsRepaired(t *testing.T) {
	t.Parallel()
	c := pg.New(t, pg.Options{SegmentSizeMB: 16})
	d := newDisk(t, 80<<10)
	d.leave(20 << 10)
	begin := c.Tick()
	fixStart(t, c, d.wal, begin)
	end := c.Generate(24)
	r := theirs(t).in(d.wal)
	r.start(c, "--no-loop")
	if r.Wait() == 0 || !strings.Contains(r.Output(), "No space left on device") {
		t.Fatalf("pg_receivewal on a full disk: %s", r.Output())
	}
	d.free()
	r.start(c, "--no-loop")
	if r.Wait() == 0 || !strings.Contains(r.Output(), "should be 0 or 16777216") {
		t.Fatalf("pg_receivewal with its short file: %s", r.Output())
	}
	ours(t).in(d.wal).receive(c, end)
	checkSizes(t, c, d.wal)
	verify(t, c, d.wal, begin, end)
}

// With on_disk_full wait, the server keeps us although nothing is read for longer than its wal_sender_timeout, the host is told, and
// streaming goes on by itself once there is room. The status interval is the default, longer than that timeout.
func TestDiskFullWaits(t *testing.T) {
	for _, interval := range []time.Duration{0, -1} {
		t.Run(map[time.Duration]string{0: "DefaultStatusInterval", -1: "StatusOnlyWhenAsked"}[interval], func(t *testing.T) {
			t.Parallel()
			c := pg.New(t, pg.Options{SegmentSizeMB: 1, Conf: []string{"wal_sender_timeout = 6s"}})
			d := newDisk(t, 40<<10)
			d.leave(3<<10 + 300)
			begin := c.Tick()
			fixStart(t, c, d.wal, begin)
			var told told
			r := startReceive(t, c, "full", stream.Options{Directory: d.wal, WaitOnDiskFull: true, StatusInterval: interval,
				Synchronous: true, Events: stream.Events{DiskFull: told.note}})
			c.WaitStreaming("full")
			pid := sender(c, "full")
			end := c.Generate(12)
			pg.WaitFor(t, "the full disk", func() bool { return r.Progress().State == stream.StateDiskFull })
			pg.WaitFor(t, "what had room to be complete", func() bool { return len(pg.List(t, d.wal).Complete) >= 3 })
			if files := c.CompareWithServer(d.wal).Equal; len(files) != 3 {
				t.Errorf("%d segments on a disk for 3: %v", len(files), files)
			}
			for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
				r.running()
				if got := sender(c, "full"); got != pid {
					t.Fatalf("the server has dropped us: WAL sender %q instead of %s", got, pid)
				}
			}
			if events := told.all(); len(events) != 1 || !events[0].Full || !errors.Is(events[0].Err, segment.ErrDiskFull) {
				t.Errorf("told of %+v, want one full disk", events)
			}
			d.free()
			c.WaitReceived("full", end, true)
			if got := sender(c, "full"); got != pid {
				t.Errorf("the server has dropped us: WAL sender %q instead of %s", got, pid)
			}
			if events := told.all(); len(events) != 2 || events[1].Full || events[1].Waited < 5*time.Second {
				t.Errorf("told of %+v, want a full disk and room again", events)
			}
			r.stop()
			if err := r.wait(); !errors.Is(err, stream.ErrStopped) || !r.Usable() {
				t.Errorf("got %v; usable: %t", err, r.Usable())
			}
			verify(t, c, d.wal, begin, end)
		})
	}
}

// told notes what the host is told of the disk.
type told struct {
	mu     sync.Mutex
	events []stream.DiskFull
}

func (d *told) note(e stream.DiskFull) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.events = append(d.events, e)
	return nil
}

func (d *told) all() []stream.DiskFull {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]stream.DiskFull(nil), d.events...)
}

// A receive that waits for room obeys a stop, and the connection comes back; the next one goes on.
func TestStopWhileTheDiskIsFull(t *testing.T) {
	t.Parallel()
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	d := newDisk(t, 24<<10)
	d.leave(2<<10 + 300)
	begin := c.Tick()
	fixStart(t, c, d.wal, begin)
	end := c.Generate(8)
	r := startReceive(t, c, "full", stream.Options{Directory: d.wal, WaitOnDiskFull: true})
	pg.WaitFor(t, "the full disk", func() bool { return r.Progress().State == stream.StateDiskFull })
	before := time.Now()
	r.stop()
	if err := r.wait(); !errors.Is(err, stream.ErrStopped) || !r.Usable() {
		t.Errorf("got %v; usable: %t", err, r.Usable())
	}
	if took := time.Since(before); took > 30*time.Second {
		t.Errorf("the stop took %s", took)
	}
	checkNames(t, c, d.wal)
	d.free()
	ours(t).in(d.wal).receive(c, end)
	verify(t, c, d.wal, begin, end)
}

// A disk without room for a history file stops nobody at the switch for good, and no timeline is followed without its file.
func TestDiskFullAtATimelineSwitch(t *testing.T) {
	t.Parallel()
	a := pg.New(t, pg.Options{SegmentSizeMB: 1})
	begin := a.Tick()
	b := a.Standby("b")
	b.CopyWAL(a)
	d := newDisk(t, 24<<10)
	fixStart(t, a, d.wal, begin)
	r := startReceive(t, b, "full", stream.Options{Directory: d.wal, WaitOnDiskFull: true})
	switched := a.Tick()
	b.WaitReplayed(switched)
	pg.WaitFor(t, "the last of timeline 1", func() bool { return pg.LSN(r.Progress().WrittenLSN) >= switched })
	d.leave(0)
	a.Stop(pg.Immediate)
	b.Promote()
	pg.WaitFor(t, "the full disk", func() bool { return r.Progress().State == stream.StateDiskFull })
	time.Sleep(4 * time.Second) // it has tried again
	r.running()
	checkNames(t, b, d.wal)
	if files := pg.List(t, d.wal); len(files.History) > 0 || strings.HasPrefix(files.Partial[len(files.Partial)-1], "00000002") {
		t.Errorf("files of a timeline whose history file has no room: %+v", files)
	}
	d.free()
	end := b.Generate(2)
	pg.WaitFor(t, "the end of timeline 2", func() bool { return pg.LSN(r.Progress().WrittenLSN) >= end })
	r.stop()
	if err := r.wait(); !errors.Is(err, stream.ErrStopped) || !r.Usable() {
		t.Errorf("got %v; usable: %t", err, r.Usable())
	}
	verify(t, b, d.wal, begin, end)
}

// The limit on a file's size (RLIMIT_FSIZE) is a full disk too: the program says so and ends with an error, and isn't killed by the signal
// that comes with it.
func TestFileSizeLimit(t *testing.T) {
	t.Parallel()
	c := pg.New(t, pg.Options{SegmentSizeMB: 16})
	begin := c.Tick()
	r := ours(t)
	fixStart(t, c, r.dir, begin)
	r.Program = pg.Run(t, "/bin/sh", "-c", `ulimit -f 2048; exec "$@"`, "sh",
		r.path, "-D", r.dir, "--no-loop", "-d", c.ConnString())
	if code := r.Wait(); code != 1 || !strings.Contains(r.Output(), syscall.EFBIG.Error()) {
		t.Errorf("exit code %d: %s", code, r.Output())
	}
	end := c.Generate(20)
	r.receive(c, end)
	verify(t, c, r.dir, begin, end)
}
