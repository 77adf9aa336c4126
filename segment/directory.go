package segment

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"sort"
	"time"

	"golang.org/x/sys/unix"
)

// Directory is a directory of WAL segments, opened and locked by [Open] until Close.
type Directory struct {
	path     string
	dir      Dir
	mode     fs.FileMode
	suffixes []string
}

// Open opens a directory for one receiver. It must exist; a second Open of it, by whatever process, is ErrLocked.
func Open(fsys FS, path string) (*Directory, error) {
	d, err := openUnlocked(fsys, path)
	if err != nil {
		return nil, err
	}
	if err := d.dir.Lock(); err != nil {
		d.dir.Close()
		if errors.Is(err, ErrLocked) {
			return nil, fmt.Errorf("could not lock directory \"%s\": %w", path, ErrLocked)
		}
		return nil, failure("lock directory", path, err)
	}
	return d, nil
}

func openUnlocked(fsys FS, path string) (*Directory, error) {
	dir, err := fsys.OpenDir(path)
	if err != nil {
		for _, missing := range []error{unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.ENAMETOOLONG} {
			if errors.Is(err, missing) {
				return nil, failureOf(ErrNoDirectory, "open directory", path, err)
			}
		}
		return nil, failure("open directory", path, err)
	}
	return &Directory{path: path, dir: dir, mode: 0o600}, nil
}

// Close unlocks the directory.
func (d *Directory) Close() error {
	if err := d.dir.Close(); err != nil {
		return failure("close directory", d.path, err)
	}
	return nil
}

// SetMode sets the permission bits of the files to come: 0600 at first. The umask does not apply to them.
func (d *Directory) SetMode(mode fs.FileMode) { d.mode = mode }

// SetSuffixes says what other programs may have added to the name of a complete segment, such as ".enc", besides the suffixes that are
// known anyway. Each begins with a dot. Such a file counts as complete, whatever is in it.
func (d *Directory) SetSuffixes(suffixes []string) { d.suffixes = slices.Clone(suffixes) }

// FileMode is the mode of WAL files beside a data directory of the given mode: 0640 where the group may read it,
// else 0600 (SetDataDirectoryCreatePerm in common/file_perm.c).
func FileMode(dataDirectory fs.FileMode) fs.FileMode {
	const group = 0o750
	if dataDirectory&group == group {
		return 0o640
	}
	return 0o600
}

func (d *Directory) full(name string) string { return filepath.Join(d.path, name) }

// Start is where receiving into a directory goes on.
type Start struct {
	LSN      LSN // the first byte of a segment; 0: the directory has no WAL
	Timeline Timeline
	Size     Size
	File     string // the file that decided it
}

// FindStart looks through a directory as [Directory.Start] does, without locking it. Size 0 means: as the files
// say; it stays 0 if none does.
func FindStart(path string, size Size, warn func(string)) (Start, error) {
	d, err := openUnlocked(OS, path)
	if err != nil {
		return Start{}, err
	}
	defer d.dir.Close()
	if size == 0 {
		if size, err = d.guessSize(); err != nil || size == 0 {
			return Start{}, err
		}
	}
	return d.Start(size, warn)
}

// guessSize takes the segment size from the first pages of the newest segments. 0 means that there are none.
func (d *Directory) guessSize() (Size, error) {
	pages, err := d.firstPages()
	if err != nil {
		return 0, err
	}
	var size Size
	for _, p := range pages {
		found := p.header.segmentSize()
		if !found.Valid() {
			continue
		}
		if size != 0 && size != found {
			return 0, fmt.Errorf("%w: directory \"%s\" holds segments of %d and of %d bytes", ErrForeign, d.path, size, found)
		}
		size = found
	}
	return size, nil
}

// firstPage is the beginning of a segment in the directory.
type firstPage struct {
	name   string
	header pageHeader
}

// enoughPages is how many segments decide whose WAL a directory holds: enough that a stray file does not.
const enoughPages = 4

// firstPages reads the first pages of the newest segments, complete and partial, plain and compressed.
func (d *Directory) firstPages() ([]firstPage, error) {
	files, err := d.files()
	if err != nil {
		return nil, err
	}
	var pages []firstPage
	for i := len(files) - 1; i >= 0 && len(pages) < enoughPages; i-- {
		if files[i].compression == Unknown {
			continue
		}
		header, err := d.firstPage(files[i])
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if header.isHeader() { // else an empty partial, or one whose first page never got there
			pages = append(pages, firstPage{files[i].name, header})
		}
	}
	return pages, nil
}

// files lists the files that have a segment's name.
func (d *Directory) files() ([]file, error) {
	names, err := d.dir.Names()
	if err != nil {
		return nil, failure("read directory", d.path, err)
	}
	var files []file
	for _, name := range names {
		if f, ok := parseFile(name, d.suffixes...); ok {
			files = append(files, f)
		}
	}
	sort.Slice(files, func(i, j int) bool { return files[i].name < files[j].name })
	return files, nil
}

// candidate is a file that could decide the start.
type candidate struct {
	file
	id ID
}

// newer is pg_receivewal's order (FindStreamingStart in pg_receivewal.c): the newest segment wins, then the higher
// timeline, then complete over partial.
func (c candidate) newer(o candidate) bool {
	if c.id.Number != o.id.Number {
		return c.id.Number > o.id.Number
	}
	if c.id.Timeline != o.id.Timeline {
		return c.id.Timeline > o.id.Timeline
	}
	return !c.partial && o.partial
}

// Start tells where streaming goes on: at the segment after the newest complete one, or again at the first byte of
// the newest partial one. A file of the wrong size is warned of and passed over, as pg_receivewal does. A partial may
// have any size up to a segment's: administrators make an empty one to set the start.
func (d *Directory) Start(size Size, warn func(string)) (Start, error) {
	return d.start(size, warn, func(ID) bool { return true })
}

// StartAfter is Start among the files of the timelines in history that come after one.
func (d *Directory) StartAfter(timeline Timeline, history History, size Size) (Start, error) {
	return d.start(size, nil, func(id ID) bool {
		return id.Timeline > timeline && slices.ContainsFunc(history, func(e HistoryEntry) bool { return e.Timeline == id.Timeline })
	})
}

func (d *Directory) start(size Size, warn func(string), consider func(ID) bool) (Start, error) {
	if warn == nil {
		warn = func(string) {}
	}
	files, err := d.files()
	if err != nil {
		return Start{}, err
	}
	var candidates []candidate
	for _, f := range files {
		id, err := ParseName(f.base, size)
		if errors.Is(err, errSegmentPart) {
			return Start{}, fmt.Errorf("%w: directory \"%s\" holds \"%s\", but the server's segments have %d bytes",
				ErrForeign, d.path, f.name, size)
		}
		if err != nil {
			warn(fmt.Sprintf("segment file \"%s\" has an impossible name, skipping", f.name))
			continue
		}
		if consider(id) {
			candidates = append(candidates, candidate{f, id})
		}
	}
	return d.startAmong(candidates, size, warn)
}

// startAmong is Start among some files. It sorts them.
func (d *Directory) startAmong(candidates []candidate, size Size, warn func(string)) (Start, error) {
	if warn == nil {
		warn = func(string) {}
	}
	sort.SliceStable(candidates, func(i, j int) bool { return candidates[i].newer(candidates[j]) })
	for _, c := range candidates {
		if !c.partial {
			whole, err := d.isWhole(c.file, size, warn)
			if errors.Is(err, fs.ErrNotExist) {
				continue // somebody has just removed it
			}
			if err != nil {
				return Start{}, err
			}
			if !whole {
				continue
			}
			return Start{c.id.End(size), c.id.Timeline, size, c.name}, nil
		}
		return Start{c.id.LSN(size), c.id.Timeline, size, c.name}, nil
	}
	return Start{Size: size}, nil
}

// isWhole checks that a file without .partial holds exactly one segment.
func (d *Directory) isWhole(f file, size Size, warn func(string)) (bool, error) {
	if f.compression == Unknown {
		return true, nil // another program has made it of a complete segment, and only that can tell what is in it
	}
	if f.compression == Plain {
		length, _, err := d.dir.Stat(f.name)
		if err != nil {
			return false, failure("stat file", d.full(f.name), err)
		}
		if length != int64(size) {
			warn(fmt.Sprintf("segment file \"%s\" has incorrect size %d, skipping", f.name, length))
		}
		return length == int64(size), nil
	}
	length, err := d.uncompressedSize(f, int64(size))
	if err != nil {
		return false, err
	}
	if length != int64(size) {
		warn(fmt.Sprintf("compressed segment file \"%s\" has incorrect uncompressed size %d, skipping", f.name, length))
	}
	return length == int64(size), nil
}

// CheckOwner makes sure that the directory's WAL is of the cluster that will be received from: the first pages of its
// newest segments must carry the server's system identifier and segment size.
func (d *Directory) CheckOwner(systemIdentifier uint64, size Size) error {
	pages, err := d.firstPages()
	if err != nil {
		return err
	}
	for _, p := range pages {
		if got := p.header.systemIdentifier(); got != systemIdentifier {
			return fmt.Errorf("%w: \"%s\" is of the system %d, but the server is %d",
				ErrForeign, d.full(p.name), got, systemIdentifier)
		}
		if got := p.header.segmentSize(); got != size {
			return fmt.Errorf("%w: \"%s\" is of a cluster with segments of %d bytes, but the server's have %d",
				ErrForeign, d.full(p.name), got, size)
		}
	}
	return nil
}

// Settle makes durable what an earlier receiver may have left in the page cache: an LSN in this directory can be
// reported flushed only after it. The kernel has long written back what was changed before settleAge.
func (d *Directory) Settle(now time.Time) error {
	names, err := d.dir.Names()
	if err != nil {
		return failure("read directory", d.path, err)
	}
	for _, name := range names {
		_, isSegment := parseFile(name, d.suffixes...)
		_, isHistory := parseHistoryName(name)
		if !isSegment && !isHistory {
			continue
		}
		_, changed, err := d.dir.Stat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // somebody has just removed it
		}
		if err != nil {
			return failure("stat file", d.full(name), err)
		}
		if now.Sub(changed) > settleAge {
			continue
		}
		if err := d.syncFile(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := d.dir.Sync(); err != nil {
		return failure("fsync directory", d.path, err)
	}
	return nil
}

// settleAge is far beyond the 30 s after which Linux writes dirty pages back (vm.dirty_expire_centisecs).
const settleAge = time.Hour

func (d *Directory) syncFile(name string) error {
	f, err := d.dir.Open(name, false)
	if err != nil {
		return failure("open file", d.full(name), err)
	}
	err = f.Sync()
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return failure("fsync file", d.full(name), err)
	}
	return nil
}

// HasHistory tells whether a timeline's history file is there and says something. One that a crash or another program
// left empty or damaged does not; WriteHistory replaces it.
func (d *Directory) HasHistory(timeline Timeline) (bool, error) {
	content, err := d.readHistory(timeline)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	h, err := ParseHistory(timeline, content)
	return err == nil && len(h) > 1, nil
}

// History reads the ancestry of a timeline from its history file, which must be there unless the timeline is 1.
func (d *Directory) History(timeline Timeline) (History, error) {
	if timeline == 1 {
		return ParseHistory(1, nil)
	}
	content, err := d.readHistory(timeline)
	if err != nil {
		return nil, err
	}
	h, err := ParseHistory(timeline, content)
	if err != nil {
		return nil, failure("read file", d.full(HistoryName(timeline)), err)
	}
	return h, nil
}

func (d *Directory) readHistory(timeline Timeline) ([]byte, error) {
	name := HistoryName(timeline)
	f, err := d.dir.Open(name, false)
	if err != nil {
		return nil, failure("open file", d.full(name), err)
	}
	defer f.Close()
	content, err := io.ReadAll(io.NewSectionReader(f, 0, maxHistory))
	if err != nil {
		return nil, failure("read file", d.full(name), err)
	}
	return content, nil
}

// maxHistory is the largest history file that is read, in bytes: some hundred thousand timelines.
const maxHistory = 16 << 20

// WriteHistory stores a history file with exactly these bytes. It appears whole and durable, or not at all. One that is
// there already is replaced unless it is the same.
func (d *Directory) WriteHistory(timeline Timeline, content []byte) error {
	name := HistoryName(timeline)
	err := d.writeHistory(name, content)
	if err == nil {
		err = d.dir.Sync()
	}
	if err != nil {
		return failure("write file", d.full(name), err)
	}
	return nil
}

func (d *Directory) writeHistory(name string, content []byte) (err error) {
	if d.holds(name, content) {
		return d.syncFile(name)
	}
	f, err := d.dir.Create(d.mode)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
	}()
	if err := writeAt(f, content, 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	// As in pg_receivewal, it comes by a temporary name, and replaces what has its own.
	temporary := name + ".tmp"
	if err := d.dir.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := d.dir.Link(f, temporary); err != nil {
		return err
	}
	if err := f.Sync(); err != nil { // under a name: see Writer.show
		return err
	}
	return d.dir.Rename(temporary, name)
}

// holds tells whether a file is there and has this content.
func (d *Directory) holds(name string, content []byte) bool {
	f, err := d.dir.Open(name, false)
	if err != nil {
		return false
	}
	defer f.Close()
	have, err := io.ReadAll(io.NewSectionReader(f, 0, int64(len(content))+1))
	return err == nil && bytes.Equal(have, content)
}
