package segment

import (
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
)

// disk simulates a file system with one directory. It keeps what programs see (the page cache) apart from what a power
// cut would leave, can show all that it might leave before any operation, and can make any operation fail. Its rules
// are the harshest that a real file system may have:
//
//   - What was written is durable after File.Sync; until then each sector of it survives or not, as crash chooses.
//   - A name that was given, changed or removed is durable after Dir.Sync; until then each change survives or not.
//   - A File.Sync that fails has lost what it should have made durable, though it can still be read; the next one
//     succeeds without it (https://wiki.postgresql.org/wiki/Fsync_Errors).
//   - A file that got its first name needs a File.Sync under it: what was synced before need not be there.
type disk struct {
	mu      sync.Mutex
	cache   map[string]*inode
	durable map[string]*inode
	changes []change // of names, since the last Dir.Sync
	locked  bool
	handles int // open files and directories

	slow bool // what the syncer does takes a second each (in a synctest bubble)

	log    []operation     // what has been done; the next one's number is its length
	before func(operation) // looks at the disk, with mu held, before an operation
	fail   int             // this operation fails; -1: none
	err    error           // with this error
}

// operation is one entry of the log.
type operation struct {
	kind kind
	name string
}

func (o operation) String() string { return strings.TrimSpace(string(o.kind) + " " + o.name) }

type kind string

const (
	opOpenDir  kind = "open the directory"
	opLock     kind = "lock"
	opNames    kind = "list"
	opStat     kind = "stat"
	opOpen     kind = "open"
	opRead     kind = "read"
	opSize     kind = "size of"
	opCreate   kind = "create"
	opAllocate kind = "allocate"
	opWrite    kind = "write"
	opSync     kind = "fsync"
	opLink     kind = "link"
	opReplace  kind = "replace"
	opRename   kind = "rename"
	opRemove   kind = "remove"
	opSyncDir  kind = "fsync the directory"
	opClose    kind = "close"
	opCloseDir kind = "close the directory"
)

// changes tells whether an operation of this kind changes anything that a power cut would show.
func (k kind) changes() bool {
	switch k {
	case opCreate, opAllocate, opWrite, opSync, opLink, opReplace, opRename, opRemove, opSyncDir:
		return true
	}
	return false
}

// needsRoom tells whether an operation of this kind can fail for lack of space.
func (k kind) needsRoom() bool { return k.changes() && k != opRemove }

// inode is a file.
type inode struct {
	data    []byte // as programs see it
	safe    []byte // as it is on the disk
	dirty   []dirty
	settled bool // synced since it has a name
	changed time.Time
}

// dirty is a change of a file that may survive a power cut, or not: of a sector's bytes, or of the length.
type dirty struct {
	offset int
	data   []byte
	length int
}

func (d dirty) apply(to []byte) []byte {
	need := max(d.length, d.offset+len(d.data))
	if len(to) < need {
		to = append(slices.Clone(to), make([]byte, need-len(to))...)
	}
	to = slices.Clone(to)
	copy(to[d.offset:], d.data)
	return to
}

// change is a change of names: from goes, to becomes the file's.
type change struct {
	from, to string
	file     *inode
}

func (c change) apply(names map[string]*inode) {
	if c.from != "" {
		delete(names, c.from)
	}
	if c.to != "" {
		names[c.to] = c.file
	}
}

// sector is the unit in which data survives: small, so that the tests' segments have some.
const sector = 64

// newDisk makes a disk with these files, all durable.
func newDisk(files map[string][]byte) *disk {
	d := &disk{cache: map[string]*inode{}, fail: -1}
	for name, data := range files {
		d.cache[name] = &inode{data: slices.Clone(data), safe: slices.Clone(data), settled: true, changed: time.Now()}
	}
	d.durable = maps.Clone(d.cache)
	return d
}

// contents is what programs see.
func (d *disk) contents() map[string][]byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	files := map[string][]byte{}
	for name, f := range d.cache {
		files[name] = slices.Clone(f.data)
	}
	return files
}

// survivors calls yield with what a power cut can leave: for up to four changes of names every combination, for
// more of them, and for sectors, none, all, each single one, all but each single one, and some at random.
func (d *disk) survivors(seed uint64, yield func(files map[string][]byte)) {
	random := rand.New(rand.NewPCG(seed, 1))
	var written []*inode
	sectors := 0
	for _, f := range d.mayBeNamed() {
		written = append(written, f)
		sectors += len(f.dirty)
	}
	for _, names := range choices(len(d.changes), 4, random) {
		for _, data := range choices(sectors, 0, random) {
			left := maps.Clone(d.durable)
			for i, c := range d.changes {
				if names[i] {
					c.apply(left)
				}
			}
			content, i := map[*inode][]byte{}, 0
			for _, f := range written {
				content[f] = f.safe
				for _, w := range f.dirty {
					if data[i] {
						content[f] = w.apply(content[f])
					}
					i++
				}
			}
			files := map[string][]byte{}
			for name, f := range left {
				files[name] = content[f]
			}
			yield(files)
		}
	}
}

// mayBeNamed lists the files that can be in the directory after a power cut, in a fixed order.
func (d *disk) mayBeNamed() []*inode {
	var list []*inode
	add := func(f *inode) {
		if f != nil && !slices.Contains(list, f) {
			list = append(list, f)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.durable)) {
		add(d.durable[name])
	}
	for _, c := range d.changes {
		add(c.file)
	}
	return list
}

// choices lists subsets of n things: every one if n is small.
func choices(n, small int, random *rand.Rand) [][]bool {
	var list [][]bool
	add := func(in func(i int) bool) {
		choice := make([]bool, n)
		for i := range choice {
			choice[i] = in(i)
		}
		list = append(list, choice)
	}
	if n <= small {
		for bits := range 1 << n {
			add(func(i int) bool { return bits>>i&1 == 1 })
		}
		return list
	}
	add(func(int) bool { return false })
	add(func(int) bool { return true })
	for k := range n {
		add(func(i int) bool { return i == k })
		add(func(i int) bool { return i != k })
	}
	for range 4 {
		add(func(int) bool { return random.IntN(2) == 0 })
	}
	return list
}

// do begins an operation, with mu held: it notes it, and tells why it fails, if it does.
func (d *disk) do(k kind, name string) error {
	if d.before != nil {
		d.before(operation{k, name})
	}
	n := len(d.log)
	d.log = append(d.log, operation{k, name})
	if n == d.fail {
		return d.err
	}
	return nil
}

// start locks the disk for an operation, and does it up to the point where it could fail.
func (d *disk) start(k kind, name string) error {
	switch k {
	case opSync, opLink, opReplace, opRename, opRemove, opSyncDir, opClose:
		if d.slow {
			time.Sleep(time.Second)
		}
	}
	d.mu.Lock()
	return d.do(k, name)
}

// OpenDir, with any path, opens the directory.
func (d *disk) OpenDir(string) (Dir, error) {
	err := d.start(opOpenDir, "")
	defer d.mu.Unlock()
	if err != nil {
		return nil, err
	}
	d.handles++
	return &diskDir{d: d}, nil
}

type diskDir struct {
	d      *disk
	locked bool
	closed bool
}

func (dir *diskDir) Lock() error {
	d := dir.d
	err := d.start(opLock, "")
	defer d.mu.Unlock()
	switch {
	case err != nil:
		return err
	case d.locked:
		return ErrLocked
	}
	d.locked, dir.locked = true, true
	return nil
}

func (dir *diskDir) Close() error {
	d := dir.d
	err := d.start(opCloseDir, "")
	defer d.mu.Unlock()
	if dir.closed {
		panic("the directory is closed twice")
	}
	dir.closed = true
	if dir.locked {
		d.locked = false
	}
	d.handles--
	return err
}

func (dir *diskDir) Names() ([]string, error) {
	d := dir.d
	err := d.start(opNames, "")
	defer d.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Keys(d.cache)), nil
}

func (dir *diskDir) Stat(name string) (int64, time.Time, error) {
	d := dir.d
	err := d.start(opStat, name)
	defer d.mu.Unlock()
	if err != nil {
		return 0, time.Time{}, err
	}
	f := d.cache[name]
	if f == nil {
		return 0, time.Time{}, fs.ErrNotExist
	}
	return int64(len(f.data)), f.changed, nil
}

func (dir *diskDir) Open(name string, write bool) (File, error) {
	d := dir.d
	err := d.start(opOpen, name)
	defer d.mu.Unlock()
	if err != nil {
		return nil, err
	}
	f := d.cache[name]
	if f == nil {
		return nil, fs.ErrNotExist
	}
	d.handles++
	return &diskFile{d: d, f: f, name: name, readOnly: !write}, nil
}

func (dir *diskDir) Create(fs.FileMode) (File, error) {
	d := dir.d
	err := d.start(opCreate, "")
	defer d.mu.Unlock()
	if err != nil {
		return nil, err
	}
	d.handles++
	return &diskFile{d: d, f: &inode{changed: time.Now()}, name: "(no name)"}, nil
}

func (dir *diskDir) Link(file File, name string) error {
	d, f := dir.d, file.(*diskFile)
	err := d.start(opLink, name)
	defer d.mu.Unlock()
	switch {
	case err != nil:
		return err
	case d.cache[name] != nil:
		return fs.ErrExist
	}
	f.name = name
	d.change(change{to: name, file: f.f})
	return nil
}

// Replace is a link, an fsync and a rename.
func (dir *diskDir) Replace(file File, name string) error {
	d, f := dir.d, file.(*diskFile)
	err := d.start(opReplace, name)
	defer d.mu.Unlock()
	if err != nil {
		return err
	}
	f.name = name
	f.f.store()
	f.f.settled = true
	d.change(change{to: name, file: f.f})
	return nil
}

func (dir *diskDir) Rename(from, to string) error {
	d := dir.d
	err := d.start(opRename, from)
	defer d.mu.Unlock()
	if err != nil {
		return err
	}
	f := d.cache[from]
	if f == nil {
		return fs.ErrNotExist
	}
	d.change(change{from: from, to: to, file: f})
	return nil
}

func (dir *diskDir) Remove(name string) error {
	d := dir.d
	err := d.start(opRemove, name)
	defer d.mu.Unlock()
	switch {
	case err != nil:
		return err
	case d.cache[name] == nil:
		return fs.ErrNotExist
	}
	d.change(change{from: name})
	return nil
}

func (d *disk) change(c change) {
	c.apply(d.cache)
	d.changes = append(d.changes, c)
}

func (dir *diskDir) Sync() error {
	d := dir.d
	err := d.start(opSyncDir, "")
	defer d.mu.Unlock()
	if err != nil {
		return err
	}
	for _, c := range d.changes {
		c.apply(d.durable)
		if c.file != nil && !c.file.settled {
			c.file.safe = nil // its name, and nothing else, was in the file system's log
		}
	}
	d.changes = nil
	return nil
}

// diskFile is an open file.
type diskFile struct {
	d        *disk
	f        *inode
	name     string
	readOnly bool
	closed   bool
}

func (f *diskFile) start(k kind) error {
	f.d.mu.Lock()
	name := f.name
	f.d.mu.Unlock()
	err := f.d.start(k, name)
	if f.closed {
		panic(fmt.Sprintf("%s %s after it was closed", k, f.name))
	}
	return err
}

func (f *diskFile) ReadAt(p []byte, offset int64) (int, error) {
	err := f.start(opRead)
	defer f.d.mu.Unlock()
	if err != nil {
		return 0, err
	}
	if offset >= int64(len(f.f.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.f.data[offset:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt that fails has written half.
func (f *diskFile) WriteAt(p []byte, offset int64) (int, error) {
	err := f.start(opWrite)
	defer f.d.mu.Unlock()
	if f.readOnly {
		panic("write to " + f.name + ", which is open for reading")
	}
	n := len(p)
	if err != nil {
		n /= 2
	}
	for i := 0; i < n; {
		end := min(n, i+sector-(int(offset)+i)%sector)
		f.write(dirty{offset: int(offset) + i, data: slices.Clone(p[i:end])})
		i = end
	}
	return n, err
}

func (f *diskFile) write(w dirty) {
	f.f.data = w.apply(f.f.data)
	f.f.dirty = append(f.f.dirty, w)
	f.f.changed = time.Now()
}

// Allocate that fails has allocated half.
func (f *diskFile) Allocate(size int64) error {
	err := f.start(opAllocate)
	defer f.d.mu.Unlock()
	if err != nil {
		size /= 2
	}
	f.write(dirty{length: int(size)})
	return err
}

func (f *diskFile) Size() (int64, error) {
	err := f.start(opSize)
	defer f.d.mu.Unlock()
	return int64(len(f.f.data)), err
}

func (f *diskFile) Sync() error {
	err := f.start(opSync)
	defer f.d.mu.Unlock()
	if err == nil {
		f.f.store()
		for _, named := range f.d.cache {
			f.f.settled = f.f.settled || named == f.f
		}
	}
	f.f.dirty = nil
	return err
}

// store makes durable what was written.
func (f *inode) store() {
	for _, w := range f.dirty {
		f.safe = w.apply(f.safe)
	}
	f.dirty = nil
}

func (f *diskFile) Close() error {
	err := f.start(opClose)
	defer f.d.mu.Unlock()
	f.closed = true
	f.d.handles--
	return err
}
