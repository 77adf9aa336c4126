package stream

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"libreceivewal/segment"
)

// memory is a directory in memory that knows what is durable: what was synced of the files, under the names that were
// synced of the directory.
type memory struct {
	mu      sync.Mutex
	names   map[string]*inode
	durable map[string]*inode
	locked  bool
	handles int // files and directories that are open

	forgetful bool // keep no data

	// hook is called before each operation, without mu: it can make it slow, or fail. The name is the file's last; "." is
	// the directory.
	hook func(op, name string) error
}

type inode struct {
	name       string // the last one that it was given
	data       []byte // what was written; zeros up to size follow
	size       int64
	synced     []byte
	syncedSize int64
	mode       fs.FileMode
}

func newMemory() *memory {
	return &memory{names: map[string]*inode{}, durable: map[string]*inode{}}
}

// crash is what is left of the directory after a power cut.
func (m *memory) crash() *memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	left := newMemory()
	for name, f := range m.durable {
		g := &inode{name: name, data: bytes.Clone(f.synced), size: f.syncedSize, mode: f.mode}
		g.synced, g.syncedSize = f.synced, f.syncedSize
		left.names[name], left.durable[name] = g, g
	}
	return left
}

// put makes a file, as durable as can be.
func (m *memory) put(name string, content []byte, size int64) {
	f := &inode{name: name, data: content, size: size, synced: bytes.Clone(content), syncedSize: size, mode: 0o600}
	m.names[name], m.durable[name] = f, f
}

// file is what was written to a file; nil if there is none. Up to the file's size, zeros follow.
func (m *memory) file(name string) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f := m.names[name]; f != nil {
		return f.data
	}
	return nil
}

// list is the names of all files, sorted, with their sizes.
func (m *memory) list() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var b bytes.Buffer
	for _, name := range sortedKeys(m.names) {
		fmt.Fprintf(&b, "%s %d\n", name, m.names[name].size)
	}
	return b.String()
}

// ours is every name that may ever be in the directory.
var ours = regexp.MustCompile(`^([0-9A-F]{24}(\.gz)?(\.partial)?|[0-9A-F]{8}\.history(\.tmp)?)$`)

// check looks for what must not be after a receive: open files, a lock, files that are no WAL.
func (m *memory) check(t testing.TB) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.handles != 0 || m.locked {
		t.Errorf("%d files and directories are still open, locked: %t", m.handles, m.locked)
	}
	for name, f := range m.names {
		if strings.HasSuffix(name, ".aes") {
			continue // another program's
		}
		if !ours.MatchString(name) {
			t.Errorf("there is a file %q", name)
		}
		if len(name) > 20 && !strings.Contains(name, ".gz") && f.size != int64(testSize) || int64(len(f.data)) > f.size {
			t.Errorf("%s has %d bytes", name, f.size)
		}
	}
}

// holds tells whether WAL is durable: from the first byte of a segment to the byte before end. What it must be is given by
// want; without that, it is what was written.
func (m *memory) holds(timeline segment.Timeline, begin, end segment.LSN, size segment.Size, want func(lsn segment.LSN, n int) []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for lsn := begin; lsn < end; lsn += segment.LSN(size) {
		name := segment.At(timeline, lsn, size).Name(size)
		f := m.durable[name]
		if f == nil {
			f = m.durable[name+".partial"]
		}
		n := int(min(end-lsn, segment.LSN(size)))
		if f == nil {
			if err := m.holdsCompressed(name, want(lsn, n)); err != nil {
				return err
			}
			continue
		}
		if f == nil || len(f.synced) < n {
			return fmt.Errorf("of segment %s, not all of %d bytes are durable", name, n)
		}
		expected := f.data[:n]
		if want != nil {
			expected = want(lsn, n)
		}
		if !bytes.Equal(f.synced[:n], expected) {
			return fmt.Errorf("segment %s differs in its first %d bytes", name, n)
		}
	}
	return nil
}

// holdsCompressed is holds where gzip's file is all there is of a segment.
func (m *memory) holdsCompressed(name string, want []byte) error {
	f := m.durable[name+".gz"]
	if f == nil {
		f = m.durable[name+".gz.partial"]
	}
	if f == nil {
		return fmt.Errorf("there is no segment %s", name)
	}
	z, err := gzip.NewReader(bytes.NewReader(f.synced))
	if err != nil {
		return err
	}
	if have, err := io.ReadAll(z); !bytes.HasPrefix(have, want) {
		return fmt.Errorf("of segment %s, %d bytes can be decompressed: not all of %d (%v)", name, len(have), len(want), err)
	}
	return nil
}

// nameOf is the last name of an open file.
func (f *memoryFile) nameOf() string {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	return f.name
}

func (m *memory) do(op, name string) error {
	if m.hook != nil {
		return m.hook(op, name)
	}
	return nil
}

func (m *memory) OpenDir(string) (segment.Dir, error) {
	if err := m.do("open", "."); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.handles++
	return &memoryDir{memory: m}, nil
}

type memoryDir struct {
	*memory
	lock bool
}

func (d *memoryDir) Names() ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return sortedKeys(d.names), nil
}

func (d *memoryDir) Stat(name string) (int64, time.Time, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.names[name]
	if f == nil {
		return 0, time.Time{}, fs.ErrNotExist
	}
	return f.size, time.Now(), nil
}

func (d *memoryDir) Open(name string, _ bool) (segment.File, error) {
	if err := d.do("open", name); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.names[name]
	if f == nil {
		return nil, fs.ErrNotExist
	}
	d.handles++
	return &memoryFile{inode: f, m: d.memory}, nil
}

func (d *memoryDir) Create(mode fs.FileMode) (segment.File, error) {
	if err := d.do("create", ""); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.handles++
	return &memoryFile{inode: &inode{mode: mode}, m: d.memory}, nil
}

func (d *memoryDir) Link(file segment.File, name string) error {
	if err := d.do("link", name); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.names[name] != nil {
		return fs.ErrExist
	}
	f := file.(*memoryFile).inode
	f.name, d.names[name] = name, f
	return nil
}

func (d *memoryDir) Replace(file segment.File, name string) error {
	if err := d.do("replace", name); err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	f := file.(*memoryFile).inode
	f.name, d.names[name] = name, f
	return nil
}

func (d *memoryDir) Rename(from, to string) error {
	if err := d.do("rename", from); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.names[from]
	if f == nil {
		return fs.ErrNotExist
	}
	delete(d.names, from)
	f.name, d.names[to] = to, f
	return nil
}

func (d *memoryDir) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.names[name] == nil {
		return fs.ErrNotExist
	}
	delete(d.names, name)
	return nil
}

func (d *memoryDir) Sync() error {
	if err := d.do("sync", "."); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.durable)
	for name, f := range d.names {
		d.durable[name] = f
	}
	return nil
}

func (d *memoryDir) Lock() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.locked {
		return segment.ErrLocked
	}
	d.locked, d.lock = true, true
	return nil
}

func (d *memoryDir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.handles--
	if d.lock {
		d.locked = false
	}
	return nil
}

type memoryFile struct {
	*inode
	m      *memory
	closed bool
}

func (f *memoryFile) ReadAt(b []byte, off int64) (int, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	n := int(max(0, min(int64(len(b)), f.size-off)))
	clear(b[:n])
	if off < int64(len(f.data)) {
		copy(b[:n], f.data[off:])
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memoryFile) WriteAt(b []byte, off int64) (int, error) {
	if err := f.m.do("write", f.nameOf()); err != nil {
		return 0, err
	}
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.m.forgetful {
		f.size = max(f.size, off+int64(len(b)))
		return len(b), nil
	}
	if gap := off - int64(len(f.data)); gap > 0 {
		f.data = append(f.data, make([]byte, gap)...)
	}
	n := copy(f.data[off:], b)
	f.data = append(f.data, b[n:]...)
	f.size = max(f.size, int64(len(f.data)))
	return len(b), nil
}

func (f *memoryFile) Allocate(size int64) error {
	if err := f.m.do("allocate", f.nameOf()); err != nil {
		return err
	}
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	f.size = max(f.size, size)
	return nil
}

func (f *memoryFile) Size() (int64, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	return f.size, nil
}

func (f *memoryFile) Sync() error {
	if err := f.m.do("sync", f.nameOf()); err != nil {
		return err
	}
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	f.synced, f.syncedSize = append(f.synced[:0:0], f.data...), f.size
	return nil
}

func (f *memoryFile) Close() error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.closed {
		return errors.New("closed twice")
	}
	f.closed = true
	f.m.handles--
	return nil
}
