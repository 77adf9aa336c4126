package segment

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A stuckFS has directories whose calls don't return before release is closed. A directory's device is in its path.
type stuckFS struct {
	release     chan struct{}
	calls, sync atomic.Int32 // in flight
}

type stuckDir struct {
	Dir
	*stuckFS
	device uint64
}

type stuckFile struct {
	File
	*stuckFS
}

func (s *stuckFS) OpenDir(path string) (Dir, error) {
	if path == "stuck" {
		return nil, s.wait(&s.calls)
	}
	d := &stuckDir{stuckFS: s}
	_, err := fmt.Sscanf(path, "%d", &d.device)
	return d, err
}

func (d *stuckDir) Device() uint64                          { return d.device }
func (d *stuckDir) Create(fs.FileMode) (File, error)        { return &stuckFile{stuckFS: d.stuckFS}, nil }
func (d *stuckDir) Rename(string, string) error             { return d.wait(&d.calls) }
func (d *stuckDir) Sync() error                             { return d.wait(&d.sync) }
func (f *stuckFile) WriteAt(b []byte, _ int64) (int, error) { return len(b), f.wait(&f.calls) }
func (f *stuckFile) Sync() error                            { return f.wait(&f.sync) }

func (s *stuckFS) wait(inFlight *atomic.Int32) error {
	inFlight.Add(1)
	defer inFlight.Add(-1)
	<-s.release
	return nil
}

// However many directories there are, only so many calls wait for a disk. Syncs hold up no other call, and no disk another.
func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck := &stuckFS{release: make(chan struct{})}
		limited := Limit(stuck, 3)
		is := func(calls, syncs int32) {
			t.Helper()
			synctest.Wait()
			if c, s := stuck.calls.Load(), stuck.sync.Load(); c != calls || s != syncs {
				t.Errorf("%d calls and %d syncs are in flight, instead of %d and %d", c, s, calls, syncs)
			}
		}
		begin := func(device, n int, call func(Dir, File)) {
			calls := make([]func(), n) // all are opened before one of them takes a turn
			for i := range calls {
				d, err := limited.OpenDir(fmt.Sprint(device))
				if err != nil {
					t.Fatal(err)
				}
				f, err := d.Create(0o600)
				if err != nil {
					t.Fatal(err)
				}
				calls[i] = func() { call(d, f) }
			}
			for _, c := range calls {
				go c()
			}
		}
		begin(1, 5, func(d Dir, f File) { f.Sync() })
		begin(1, 5, func(d Dir, f File) { d.Sync() })
		is(0, 3)
		begin(1, 2, func(d Dir, f File) { f.WriteAt(nil, 0) })
		is(2, 3)
		begin(1, 5, func(d Dir, f File) { d.Rename("", "") })
		is(3, 3)
		begin(2, 1, func(d Dir, f File) { f.WriteAt(nil, 0) })
		is(4, 3)
		close(stuck.release)
		is(0, 0)
	})
}

// Directories that cannot be opened, since their disk does not answer, don't keep others from being opened for long.
func TestLimitOfOpens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck := &stuckFS{release: make(chan struct{})}
		limited := Limit(stuck, 3)
		for range 5 {
			go limited.OpenDir("stuck")
		}
		synctest.Wait()
		if n := stuck.calls.Load(); n != 3 {
			t.Errorf("%d are being opened", n)
		}
		for range 2 {
			begin := time.Now()
			if _, err := limited.OpenDir("1"); err != nil || time.Since(begin) != openPatience {
				t.Errorf("opened after %s, %v", time.Since(begin), err)
			}
		}
		close(stuck.release)
		synctest.Wait()
		begin := time.Now()
		if _, err := limited.OpenDir("1"); err != nil || time.Since(begin) != 0 {
			t.Errorf("opened after %s, %v", time.Since(begin), err)
		}
	})
}

// Everything goes through it to the file system below.
func TestLimitedFiles(t *testing.T) {
	dir := t.TempDir()
	d, err := Limit(OS, 1).OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(d.Lock())
	f, err := d.Create(0o600)
	must(err)
	must(f.Allocate(100))
	_, err = f.WriteAt([]byte("hello"), 10)
	must(err)
	must(f.Sync())
	must(d.Link(f, "a"))
	must(d.Rename("a", "b"))
	must(d.Sync())
	must(f.Close())
	f, err = d.Open("b", false)
	must(err)
	size, err := f.Size()
	must(err)
	b := make([]byte, 5)
	_, err = f.ReadAt(b, 10)
	must(err)
	must(f.Close())
	names, err := d.Names()
	must(err)
	length, _, err := d.Stat("b")
	must(err)
	if size != 100 || length != 100 || string(b) != "hello" || fmt.Sprint(names) != "[b]" {
		t.Errorf("size %d, length %d, %q, names %q", size, length, b, names)
	}
	must(d.Remove("b"))
	must(d.Close())
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
		t.Errorf("%q is left", left)
	}
}
