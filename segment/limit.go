package segment

import (
	"io/fs"
	"sync"
	"time"
)

// Limit is a file system of which at most calls are in flight at once on each device, and as many syncs: the others wait for
// their turn. Each call occupies a thread while the disk takes its time, and threads must not grow with the number of
// directories. Syncs have a turn of their own, since what else there is must not wait for them: a stream goes on writing, and
// answers the server, while the disk is at work. A device that does not answer holds up no other.
func Limit(fsys FS, calls int) FS {
	return &limitedFS{fsys: fsys, count: calls, opens: newTurns(calls), devices: map[uint64]turns{}}
}

type turns struct{ calls, syncs chan struct{} }

func newTurns(n int) turns { return turns{make(chan struct{}, n), make(chan struct{}, n)} }

// A turn ends with a receive from what take and sync return.
func (t turns) take() turn { t.calls <- struct{}{}; return t.calls }
func (t turns) sync() turn { t.syncs <- struct{}{}; return t.syncs }

type turn <-chan struct{}

func (t turn) end() { <-t }

type limitedFS struct {
	fsys  FS
	count int
	opens turns // of directories, whose device is not known yet

	mu      sync.Mutex
	devices map[uint64]turns
}

// openPatience is how long a directory waits to be opened while others are: on a device that does not answer they may be opened for
// ever, and nobody knows yet which device that is.
const openPatience = time.Second

func (l *limitedFS) OpenDir(path string) (Dir, error) {
	select {
	case l.opens.calls <- struct{}{}:
		defer func() { <-l.opens.calls }()
	case <-time.After(openPatience):
	}
	d, err := l.fsys.OpenDir(path)
	if err != nil {
		return nil, err
	}
	var device uint64
	if on, ok := d.(interface{ Device() uint64 }); ok {
		device = on.Device()
	}
	return &limitedDir{d, l.on(device)}, nil
}

func (l *limitedFS) on(device uint64) turns {
	l.mu.Lock()
	defer l.mu.Unlock()
	t, ok := l.devices[device]
	if !ok {
		t = newTurns(l.count)
		l.devices[device] = t
	}
	return t
}

type limitedDir struct {
	dir Dir
	turns
}

func (l *limitedDir) Names() ([]string, error) {
	defer l.take().end()
	return l.dir.Names()
}

func (l *limitedDir) Stat(name string) (int64, time.Time, error) {
	defer l.take().end()
	return l.dir.Stat(name)
}

func (l *limitedDir) Open(name string, write bool) (File, error) {
	defer l.take().end()
	return l.file(l.dir.Open(name, write))
}

func (l *limitedDir) Create(mode fs.FileMode) (File, error) {
	defer l.take().end()
	return l.file(l.dir.Create(mode))
}

func (l *limitedDir) file(f File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return &limitedFile{f, l.turns}, nil
}

func (l *limitedDir) Link(f File, name string) error {
	defer l.take().end()
	return l.dir.Link(f.(*limitedFile).file, name)
}

func (l *limitedDir) Replace(f File, name string) error {
	defer l.sync().end()
	return l.dir.Replace(f.(*limitedFile).file, name)
}

func (l *limitedDir) Rename(from, to string) error {
	defer l.take().end()
	return l.dir.Rename(from, to)
}

func (l *limitedDir) Remove(name string) error {
	defer l.take().end()
	return l.dir.Remove(name)
}

func (l *limitedDir) Sync() error {
	defer l.sync().end()
	return l.dir.Sync()
}

func (l *limitedDir) Lock() error {
	defer l.take().end()
	return l.dir.Lock()
}

func (l *limitedDir) Close() error {
	defer l.take().end()
	return l.dir.Close()
}

type limitedFile struct {
	file File
	turns
}

func (l *limitedFile) ReadAt(b []byte, offset int64) (int, error) {
	defer l.take().end()
	return l.file.ReadAt(b, offset)
}

func (l *limitedFile) WriteAt(b []byte, offset int64) (int, error) {
	defer l.take().end()
	return l.file.WriteAt(b, offset)
}

func (l *limitedFile) Allocate(size int64) error {
	defer l.take().end()
	return l.file.Allocate(size)
}

func (l *limitedFile) Size() (int64, error) {
	defer l.take().end()
	return l.file.Size()
}

func (l *limitedFile) Sync() error {
	defer l.sync().end()
	return l.file.Sync()
}

func (l *limitedFile) Close() error {
	defer l.take().end()
	return l.file.Close()
}
