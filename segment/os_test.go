package segment

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var big = newCluster(MinSize, 9*LSN(MinSize))

const bigStart = 5 * LSN(MinSize)

// receiveBig receives from where the directory says up to an LSN, with segments of 1 MiB.
func receiveBig(d *Directory, to LSN) error {
	if err := d.Settle(time.Now()); err != nil {
		return err
	}
	s, err := d.Start(MinSize, nil)
	if err != nil {
		return err
	}
	at := max(s.LSN, bigStart)
	w := d.NewWriter(WriterOptions{Timeline: 1, Start: at, Size: MinSize, SystemIdentifier: testSystem, History: big.history(1)})
	for at < to {
		n, err := w.Append(at, big.wal(1, at, min(to, at+100_000)))
		if err != nil {
			w.Close()
			return err
		}
		at += LSN(n)
	}
	return w.Close()
}

func wantBig(to LSN) map[string][]byte {
	files := map[string][]byte{}
	id := At(1, bigStart, MinSize)
	for ; id.End(MinSize) <= to; id.Number++ {
		files[id.Name(MinSize)] = big.segment(id)
	}
	if from := id.LSN(MinSize); from < to {
		files[id.Name(MinSize)+".partial"] = padded(big.wal(1, from, to), MinSize)
	}
	return files
}

func open(t *testing.T, path string) *Directory {
	t.Helper()
	d, err := Open(OS, path)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// same fails if the directory isn't as it should be, without printing megabytes.
func same(t *testing.T, path string, want map[string][]byte) {
	t.Helper()
	got := readAll(t, path)
	if !slices.Equal(slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want))) {
		t.Errorf("the directory has %q, want %q", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
	for name := range want {
		if !bytes.Equal(got[name], want[name]) {
			t.Errorf("%s differs", name)
		}
	}
}

// Two receivers never write to one directory, whoever they are.
func TestLock(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	if _, err := Open(OS, path); !errors.Is(err, ErrLocked) {
		t.Errorf("second receiver: %v, want ErrLocked", err)
	}
	if _, err := FindStart(path, MinSize, nil); err != nil {
		t.Errorf("who only looks needs no lock: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, path).Close()
}

// The lock is free after Close, even while a child that was forked before still has the descriptor.
func TestLockAndChild(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	child := exec.Command("sleep", "60")
	child.ExtraFiles = []*os.File{d.dir.(*osDir).f}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	defer child.Process.Kill()
	if _, err := Open(OS, path); !errors.Is(err, ErrLocked) {
		t.Errorf("%v, want ErrLocked", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, path).Close()
}

// The lock of a receiver that was killed is gone.
func TestLockOfDeadReceiver(t *testing.T) {
	if path := os.Getenv("SEGMENT_TEST_LOCK"); path != "" {
		defer open(t, path).Close()
		os.Stdout.WriteString("locked\n")
		time.Sleep(time.Minute)
		return
	}
	path := t.TempDir()
	other := exec.Command(os.Args[0], "-test.run=^TestLockOfDeadReceiver$")
	other.Env = append(os.Environ(), "SEGMENT_TEST_LOCK="+path)
	out, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(OS, path); !errors.Is(err, ErrLocked) {
		t.Errorf("%v, want ErrLocked", err)
	}
	other.Process.Kill()
	other.Wait()
	open(t, path).Close()
}

// What happens to the working directory, or to the directory's own path, after Open makes no difference.
func TestWorkingDirectory(t *testing.T) {
	parent := t.TempDir()
	t.Chdir(parent)
	if err := os.Mkdir("wal", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, fallback := range []bool{false, true} {
		d := open(t, "wal")
		d.dir.(*osDir).noTmpfile = fallback
		t.Chdir("/")
		moved := filepath.Join(parent, "moved")
		if err := os.Rename(filepath.Join(parent, "wal"), moved); err != nil {
			t.Fatal(err)
		}
		if err := receiveBig(d, bigStart+LSN(MinSize)+5000); err != nil {
			t.Fatal(err)
		}
		if err := d.WriteHistory(2, []byte("1\t0/3000000\tx\n")); err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		want := wantBig(bigStart + LSN(MinSize) + 5000)
		want["00000002.history"] = []byte("1\t0/3000000\tx\n")
		same(t, moved, want)
		if err := os.Rename(moved, filepath.Join(parent, "wal")); err != nil {
			t.Fatal(err)
		}
		t.Chdir(parent)
	}
}

// Modes are as they are asked for, whatever the umask is; it is left alone.
func TestModes(t *testing.T) {
	old := unix.Umask(0o777)
	defer unix.Umask(old)
	for _, fallback := range []bool{false, true} {
		for _, mode := range []fs.FileMode{0, 0o600, 0o640, 0o666} {
			unix.Umask(old)
			path := t.TempDir()
			unix.Umask(0o777)
			d := open(t, path)
			d.dir.(*osDir).noTmpfile = fallback
			if mode != 0 {
				d.SetMode(mode)
			} else {
				mode = 0o600
			}
			if err := receiveBig(d, bigStart+LSN(MinSize)+5000); err != nil {
				t.Fatal(err)
			}
			if err := d.WriteHistory(2, []byte("1\t0/3000000\tx\n")); err != nil {
				t.Fatal(err)
			}
			d.Close()
			for name := range readAll(t, path) {
				if info, err := os.Stat(filepath.Join(path, name)); err != nil || info.Mode() != mode {
					t.Errorf("%s has mode %o, want %o (%v)", name, info.Mode(), mode, err)
				}
			}
		}
	}
	if got := unix.Umask(0o777); got != 0o777 {
		t.Errorf("umask is %o", got)
	}
}

// Without O_TMPFILE, what has no name yet is in a hidden folder: nothing else is to be seen of it, and it is gone
// after the end, and after the next start if there was no proper end.
func TestWithoutTmpfile(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	d.dir.(*osDir).noTmpfile = true
	to := bigStart + 2*LSN(MinSize) + 5000
	if err := receiveBig(d, to); err != nil {
		t.Fatal(err)
	}
	f, err := d.dir.Create(0o600)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"000000010000000000000005", "000000010000000000000007.partial"} {
		if err := d.dir.Link(f, name); !errors.Is(err, fs.ErrExist) {
			t.Errorf("link to %s: %v, want ErrExist", name, err)
		}
		if err := d.dir.(*osDir).renameToFree(hiddenFolder+"/1", name); !errors.Is(err, fs.ErrExist) {
			t.Errorf("rename to %s: %v, want ErrExist", name, err)
		}
	}
	want := wantBig(to)
	want[hiddenFolder+"/"] = nil
	same(t, path, want)
	if s, err := FindStart(path, MinSize, nil); err != nil || s.LSN != bigStart+2*LSN(MinSize) {
		t.Errorf("%+v, %v", s, err)
	}
	// The receiver is killed: the kernel closes its descriptors.
	f.(*osFile).File.Close()
	d.dir.(*osDir).f.Close()
	d = open(t, path)
	same(t, path, wantBig(to))
	if err := d.Close(); err != nil {
		t.Error(err)
	}

	d = open(t, path)
	d.dir.(*osDir).noTmpfile = true
	if f, err = d.dir.Create(0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	notOurs := filepath.Join(path, hiddenFolder, "folder")
	if err := os.Mkdir(notOurs, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	d = open(t, path)
	d.dir.(*osDir).noTmpfile = true
	if err := os.Remove(notOurs); err != nil {
		t.Error(err)
	}
	if f, err = d.dir.Create(0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.dir.(*osDir).renameToFree(f.(*osFile).hidden, "renamed"); err != nil {
		t.Error(err)
	}
	f.(*osFile).hidden = ""
	if err := errors.Join(f.Close(), d.dir.Remove("renamed"), d.Close()); err != nil {
		t.Error(err)
	}
	same(t, path, wantBig(to))
}

// With O_TMPFILE nothing at all is to be seen before its time.
func TestTmpfile(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	defer d.Close()
	f, err := d.dir.Create(0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if d.dir.(*osDir).noTmpfile {
		t.Skip("this file system has no O_TMPFILE")
	}
	same(t, path, map[string][]byte{})
	if err := d.dir.Link(f, "name"); err != nil {
		t.Fatal(err)
	}
	if err := d.dir.Link(f, "name"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("%v, want ErrExist", err)
	}
}

// Only regular files are listed. A file is recent by what cannot be set back, unlike the time of its data.
func TestNamesAndStat(t *testing.T) {
	path := t.TempDir()
	makeFiles(t, path, map[string]made{"file": sized(7), "folder": {folder: true}, "link": {link: "file"}, "broken": {link: "nowhere"},
		"tofolder": {link: "folder"}, "\xff\n": sized(1)})
	if err := unix.Mkfifo(filepath.Join(path, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := open(t, path)
	defer d.Close()
	for range 2 { // each time from the beginning
		names, err := d.dir.Names()
		slices.Sort(names)
		if want := []string{"file", "link", "\xff\n"}; err != nil || !slices.Equal(names, want) {
			t.Errorf("%q, %v, want %q", names, err, want)
		}
	}
	if err := os.Chtimes(filepath.Join(path, "file"), time.Time{}, time.Now().Add(-time.Hour*24)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"file", "link"} {
		if size, changed, err := d.dir.Stat(name); size != 7 || time.Since(changed).Abs() > time.Minute || err != nil {
			t.Errorf("%s: %d bytes, changed %s, %v", name, size, changed, err)
		}
	}
	if _, _, err := d.dir.Stat("broken"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("broken link: %v", err)
	}
}

// Where the file system knows no fsync of directories, there is nothing to be had, and PostgreSQL goes on, too.
func TestNoSyncOfDirectories(t *testing.T) {
	dir, err := OS.OpenDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := unix.Fsync(dir.(*osDir).fd()); !errors.Is(err, unix.EINVAL) {
		t.Fatalf("fsync of /proc: %v, want EINVAL", err)
	}
	if err := dir.Sync(); err != nil {
		t.Error(err)
	}
}

// A file system without O_TMPFILE is recognised as such.
func TestNoTmpfile(t *testing.T) {
	dir, err := OS.OpenDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if _, err := dir.Create(0o600); err == nil || !dir.(*osDir).noTmpfile {
		t.Errorf("%v, and O_TMPFILE is thought to work", err)
	}
}

// Where space cannot be reserved, segments still have their full size from the beginning.
func TestNoFallocate(t *testing.T) {
	path := t.TempDir()
	if err := unix.Mount("ramfs", path, "ramfs", 0, ""); err != nil {
		t.Skipf("cannot mount a file system without fallocate: %v", err)
	}
	defer unix.Unmount(path, unix.MNT_DETACH)
	makeFiles(t, path, map[string]made{"000000010000000000000005.partial": bytesOf(big.wal(1, bigStart, bigStart+5000))})
	d := open(t, path)
	for _, to := range []LSN{bigStart + 7000, bigStart + LSN(MinSize) + 5000} {
		if err := receiveBig(d, to); err != nil {
			t.Fatal(err)
		}
		same(t, path, wantBig(to))
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// A partial stays as it is when it is allocated: its length grows, its bytes stay.
func TestAllocate(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	defer d.Close()
	for _, have := range []int{0, 5, 5000, mib} {
		content := bytes.Repeat([]byte{7}, have)
		if err := os.WriteFile(filepath.Join(path, "f"), content, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := d.dir.Open("f", true)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Allocate(mib); err != nil {
			t.Fatal(err)
		}
		if err := f.(*osFile).extend(mib); err != nil { // as where space cannot be reserved
			t.Fatal(err)
		}
		if err := f.(*osFile).extend(int64(have)); err != nil {
			t.Fatal(err)
		}
		if size, err := f.Size(); err != nil || size != mib {
			t.Errorf("%d bytes, %v", size, err)
		}
		f.Close()
		if got := readAll(t, path)["f"]; !bytes.Equal(got, append(content, make([]byte, mib-have)...)) {
			t.Errorf("of %d bytes not all are left", have)
		}
	}
}

// A full disk is ErrDiskFull; what is there goes on once there is room.
func TestFullDisk(t *testing.T) {
	for _, fallback := range []bool{false, true} {
		path := t.TempDir()
		if err := unix.Mount("tmpfs", path, "tmpfs", 0, "size=2500k"); err != nil {
			t.Skipf("cannot mount a small file system: %v", err)
		}
		defer unix.Unmount(path, unix.MNT_DETACH)
		to := bigStart + 3*LSN(MinSize) + 5000
		for attempt := range 2 {
			d := open(t, path)
			d.dir.(*osDir).noTmpfile = fallback
			err := receiveBig(d, to)
			if !errors.Is(err, ErrDiskFull) || !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), path) {
				t.Errorf("attempt %d: %v, want ErrDiskFull", attempt, err)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			same(t, path, wantBig(bigStart+2*LSN(MinSize)))
		}
		if err := unix.Mount("", path, "", unix.MS_REMOUNT, "size=20m"); err != nil {
			t.Fatal(err)
		}
		d := open(t, path)
		if err := errors.Join(receiveBig(d, to), d.Close()); err != nil {
			t.Fatal(err)
		}
		same(t, path, wantBig(to))
	}
}

// A partial that a full disk has left short, by another receiver, is completed once there is room.
func TestFullDiskShortPartial(t *testing.T) {
	path := t.TempDir()
	if err := unix.Mount("tmpfs", path, "tmpfs", 0, "size=600k"); err != nil {
		t.Skipf("cannot mount a small file system: %v", err)
	}
	defer unix.Unmount(path, unix.MNT_DETACH)
	makeFiles(t, path, map[string]made{"000000010000000000000005.partial": bytesOf(big.wal(1, bigStart, bigStart+500_000))})
	d := open(t, path)
	if err := receiveBig(d, bigStart+900_000); !errors.Is(err, ErrDiskFull) {
		t.Errorf("%v, want ErrDiskFull", err)
	}
	if got := readAll(t, path)["000000010000000000000005.partial"]; !bytes.HasPrefix(got, big.wal(1, bigStart, bigStart+500_000)) {
		t.Errorf("what was there is gone: %d bytes", len(got))
	}
	if err := unix.Mount("", path, "", unix.MS_REMOUNT, "size=20m"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(receiveBig(d, bigStart+900_000), d.Close()); err != nil {
		t.Fatal(err)
	}
	same(t, path, wantBig(bigStart+900_000))
}

// A limit on the size of files (ulimit -f) is a full disk, too. The host has to ignore SIGXFSZ, as PostgreSQL does.
func TestFileSizeLimit(t *testing.T) {
	signal.Ignore(syscall.SIGXFSZ)
	defer signal.Reset(syscall.SIGXFSZ)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	limit := func(bytes uint64) {
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: bytes, Max: old.Max}); err != nil {
			t.Fatal(err)
		}
	}
	defer limit(old.Cur)
	path := t.TempDir()
	d := open(t, path)
	if err := receiveBig(d, bigStart+200_000); err != nil {
		t.Fatal(err)
	}
	limit(700_000)
	err := receiveBig(d, bigStart+LSN(MinSize)) // the partial is there, writes fail
	if !errors.Is(err, ErrDiskFull) || !errors.Is(err, unix.EFBIG) {
		t.Errorf("%v, want ErrDiskFull", err)
	}
	limit(old.Cur)
	if err := receiveBig(d, bigStart+LSN(MinSize)); err != nil {
		t.Fatal(err)
	}
	limit(700_000)
	err = receiveBig(d, bigStart+2*LSN(MinSize)) // a new file cannot be allocated
	if !errors.Is(err, ErrDiskFull) || !errors.Is(err, unix.EFBIG) {
		t.Errorf("%v, want ErrDiskFull", err)
	}
	limit(old.Cur)
	if err := errors.Join(receiveBig(d, bigStart+2*LSN(MinSize)+5000), d.Close()); err != nil {
		t.Fatal(err)
	}
	same(t, path, wantBig(bigStart+2*LSN(MinSize)+5000))
}

// No descriptor is left after Close, whatever has happened.
func TestNoDescriptorLeft(t *testing.T) {
	count := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	path := t.TempDir()
	before := count()
	for range 3 {
		for _, fallback := range []bool{false, true} {
			d := open(t, path)
			d.dir.(*osDir).noTmpfile = fallback
			if err := receiveBig(d, bigStart+LSN(MinSize)+5000); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(OS, path); !errors.Is(err, ErrLocked) {
				t.Fatal(err)
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			FindStart(path, 0, nil)
			FindStart(path+"/missing", 0, nil)
		}
	}
	if after := count(); after != before {
		t.Errorf("%d descriptors, and %d before", after, before)
	}
}
