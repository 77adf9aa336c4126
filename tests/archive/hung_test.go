package archive

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"libreceivewal/stream"
	"libreceivewal/tests/pg"
)

// A disk that hangs: an ext4 in a file on another ext4, which can be frozen. Whoever waits for the inner one's device then waits until the
// outer one is thawed.
type hungDisk struct {
	t   testing.TB
	wal string
	out string // where the outer file system is mounted,
	in  string // and the inner one
}

func newHungDisk(t testing.TB) *hungDisk {
	t.Helper()
	top := t.TempDir()
	d := &hungDisk{t: t, out: filepath.Join(top, "outer"), in: filepath.Join(top, "inner")}
	d.wal = filepath.Join(d.in, "wal")

	// Should this process be killed, a shell that outlives us thaws and unmounts.
	guard := exec.Command("/bin/sh", "-c", `read -r word; /sbin/fsfreeze -u "$1/outer"; /sbin/fsfreeze -u "$1/inner"; umount -l "$1/inner" "$1/outer"
[ "$word" = done ] || rm -rf "$1"`, "guard", top)
	guard.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := guard.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := guard.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		io.WriteString(in, "done\n")
		guard.Wait()
	})
	for _, fs := range []struct{ image, point, size string }{
		{filepath.Join(top, "outer.img"), d.out, "300M"}, {filepath.Join(d.out, "inner.img"), d.in, "250M"},
	} {
		command(t, "fallocate", "-l", fs.size, fs.image)
		command(t, "/sbin/mkfs.ext4", "-q", fs.image)
		command(t, "mkdir", fs.point)
		command(t, "mount", "-o", "loop", fs.image, fs.point)
	}
	if err := os.Mkdir(d.wal, 0o755); err != nil {
		t.Fatal(err)
	}
	return d
}

func command(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("a disk that hangs needs root with CAP_SYS_ADMIN, loop devices and e2fsprogs: %s %v: %v\n%s", name, args, err, out)
	}
}

// freeze lets the device hang: an fsync does not return, a write may or may not.
func (d *hungDisk) freeze() { d.t.Helper(); command(d.t, "/sbin/fsfreeze", "-f", d.out) }
func (d *hungDisk) thaw()   { d.t.Helper(); command(d.t, "/sbin/fsfreeze", "-u", d.out) }

// freezeWrites lets every write hang.
func (d *hungDisk) freezeWrites() { d.t.Helper(); command(d.t, "/sbin/fsfreeze", "-f", d.in) }
func (d *hungDisk) thawWrites()   { d.t.Helper(); command(d.t, "/sbin/fsfreeze", "-u", d.in) }

// While an fsync, or a write, takes several times wal_sender_timeout, the server keeps us: with more WAL than we take ahead of the disk, after a stop
// that waits for the last flush, and whatever the status interval. What is not flushed is not reported flushed; in the end all is there.
func TestHungDisk(t *testing.T) {
	for _, synchronous := range []bool{false, true} {
		t.Run(fmt.Sprintf("Synchronous=%t", synchronous), func(t *testing.T) {
			t.Parallel()
			d := newHungDisk(t)
			c := pg.New(t, pg.Options{SegmentSizeMB: 1, Conf: []string{"wal_sender_timeout = 7s"}})
			c.SQL("select pg_create_physical_replication_slot('hung', true)")
			begin := c.Tick()
			fixStart(t, c, d.wal, begin)
			o := stream.Options{Directory: d.wal, Slot: "hung", Synchronous: synchronous, StatusInterval: -1}
			r := startReceive(t, c, "hung", o)
			c.WaitStreaming("hung")
			pid := sender(c, "hung")
			kept := func(d time.Duration) {
				t.Helper()
				for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
					r.running()
					if got := sender(c, "hung"); got != pid {
						t.Fatalf("the server has dropped us: WAL sender %q instead of %s", got, pid)
					}
				}
			}
			c.Generate(2)

			d.freeze()
			kept(8 * time.Second)
			flushed := r.Progress().FlushedLSN
			end := c.Generate(100)
			kept(15 * time.Second)
			if now := r.Progress().FlushedLSN; now > flushed+2<<20 { // what was on its way
				t.Errorf("flushed %s and then %s on a disk that hangs", flushed, now)
			}
			d.thaw()
			pg.WaitFor(t, "the end", func() bool { r.running(); return pg.LSN(r.Progress().WrittenLSN) >= end })

			d.freezeWrites()
			end = c.Generate(1)
			kept(15 * time.Second)
			d.thawWrites()
			pg.WaitFor(t, "the end", func() bool { r.running(); return pg.LSN(r.Progress().WrittenLSN) >= end })

			// A stop cannot be quicker than the disk, but the connection is not lost by it.
			d.freeze()
			end = c.Generate(1)
			kept(time.Second)
			r.stop()
			kept(15 * time.Second)
			d.thaw()
			if err := r.wait(); !errors.Is(err, stream.ErrStopped) || !r.Usable() {
				t.Errorf("got %v; usable: %t", err, r.Usable())
			}
			ours(t).in(d.wal).receive(c, end)
			verify(t, c, d.wal, begin, end)
		})
	}
}
