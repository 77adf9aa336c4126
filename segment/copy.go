package segment

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
)

// A mirror is a directory that is to have what another one has. What it has missed is copied here, segment by segment.

// ErrSource means that it is where a segment was to be copied from that is to blame.
var ErrSource = errors.New("the segment to copy cannot be read")

// copyPiece is how much of a segment is copied at a time.
const copyPiece = 1 << 20

// Complete gives the names of the files of complete segments, as far as they are wanted.
func (d *Directory) Complete(size Size, wanted func(ID) bool) (map[ID]string, error) {
	files, err := d.files()
	if err != nil {
		return nil, err
	}
	complete := map[ID]string{}
	for _, f := range files { // sorted: the plain file of a segment comes first
		id, err := ParseName(f.base, size)
		if err != nil || f.partial || complete[id] != "" || !wanted(id) {
			continue
		}
		whole, err := d.isWhole(f, size, func(string) {})
		if errors.Is(err, fs.ErrNotExist) {
			continue // somebody has just removed it
		}
		if err != nil {
			return nil, err
		}
		if whole {
			complete[id] = f.name
		}
	}
	return complete, nil
}

// Files gives the names of all files of a segment, complete and partial.
func (d *Directory) Files(id ID, size Size) ([]string, error) {
	files, err := d.files()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, f := range files {
		if f.base == id.Name(size) {
			names = append(names, f.name)
		}
	}
	return names, nil
}

// Source is a segment's file that is copied to another directory.
type Source struct {
	file
	path string
	in   File
}

// Source opens the file of a segment, whatever its form. Its errors, and those of reading it, are ErrSource.
func (d *Directory) Source(name string) (*Source, error) {
	f, ok := parseFile(name)
	if !ok {
		return nil, fmt.Errorf("%w: %q is not a segment", ErrInternal, name)
	}
	in, err := d.dir.Open(name, false)
	if err != nil {
		return nil, sourceFailure(failure("open file", d.full(name), err))
	}
	return &Source{f, d.full(name), in}, nil
}

// Growing opens the plain file of a segment that is being written, or that has just been completed. fs.ErrNotExist: there is none
// under a name.
func (d *Directory) Growing(id ID, size Size) (*Source, error) {
	name := id.Name(size)
	s, err := d.Source(name + partialSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		s, err = d.Source(name)
	}
	return s, err
}

// sourceFailure makes an error an ErrSource as well.
func sourceFailure(err error) error { return fmt.Errorf("%w: %w", ErrSource, err) }

// Read reads from the file: all of b, or an error.
func (s *Source) Read(b []byte, offset int64) error {
	n, err := s.in.ReadAt(b, offset)
	if n == len(b) {
		return nil
	}
	if err == io.EOF {
		return sourceFailure(fmt.Errorf("%w: file \"%s\" ends at %d bytes", ErrIO, s.path, offset+int64(n)))
	}
	return sourceFailure(failure("read file", s.path, err))
}

// Close closes the file, which was only read.
func (s *Source) Close() error { return s.in.Close() }

// CopySegment copies a segment's file that does not change any more into this directory, byte for byte and under the same name: it
// appears whole and durable, or not at all. A plain complete one is written as a Writer writes, and so replaces its .partial, and is
// checked; o says how. goOn is asked now and then, and ends the copying with its error.
func (d *Directory) CopySegment(from *Source, id ID, o WriterOptions, goOn func() error) error {
	if from.compression == Plain && !from.partial {
		return d.copyPlain(from, id, o, goOn)
	}
	return d.copyRaw(from, o, goOn)
}

func (d *Directory) copyPlain(from *Source, id ID, o WriterOptions, goOn func() error) (err error) {
	o.Timeline, o.Start, o.Whole, o.Notify, o.History = id.Timeline, id.LSN(o.Size), true, nil, o.History.Ancestry(id.Timeline)
	o.Compression, o.Synchronous = Plain, false // byte for byte, and nobody waits for a flush
	w := d.NewWriter(o)
	defer func() {
		if closeErr := w.Close(); err == nil {
			err = closeErr
		}
	}()
	b := make([]byte, min(copyPiece, int(o.Size)))
	for lsn := o.Start; lsn < id.End(o.Size); {
		if err := goOn(); err != nil {
			return err
		}
		if err := from.Read(b, int64(lsn-o.Start)); err != nil {
			return err
		}
		n, err := w.Append(lsn, b)
		if errors.Is(err, ErrForeign) || errors.Is(err, ErrGap) {
			return sourceFailure(err) // a file that is not what its name says
		}
		if err != nil {
			return err
		}
		lsn += LSN(n)
	}
	return nil
}

// copyRaw copies a file as it is, by a temporary name that no receiver takes for a segment.
func (d *Directory) copyRaw(from *Source, o WriterOptions, goOn func() error) (err error) {
	temporary := from.name + ".tmp"
	wrap := func(doing string, err error) error {
		if err == nil {
			return nil
		}
		return failure(doing, d.full(from.name), err)
	}
	size, err := from.in.Size()
	if err != nil {
		return sourceFailure(failure("stat file", from.path, err))
	}
	if err := d.dir.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return wrap("remove file", err)
	}
	f, err := d.dir.Create(d.mode)
	if err != nil {
		return wrap("create file", err)
	}
	defer func() {
		if closeErr := f.Close(); err == nil {
			err = wrap("close file", closeErr)
		}
	}()
	sync := func() error {
		if o.NoSync {
			return nil
		}
		return f.Sync()
	}
	b := make([]byte, copyPiece)
	for at := int64(0); at < size; at += int64(len(b)) {
		if err := goOn(); err != nil {
			return err
		}
		b = b[:min(int64(len(b)), size-at)]
		if err := from.Read(b, at); err != nil {
			return err
		}
		if err := writeAt(f, b, at); err != nil {
			return wrap("write to file", err)
		}
	}
	if err := sync(); err != nil {
		return wrap("fsync file", err)
	}
	if err := d.dir.Link(f, temporary); err != nil {
		return wrap("link file", err)
	}
	if err := sync(); err != nil { // under a name: see Writer.show
		return wrap("fsync file", err)
	}
	if err := d.dir.Rename(temporary, from.name); err != nil {
		return wrap("rename file", err)
	}
	return d.retirePartials(from, o)
}

// retirePartials makes the name of a copy durable; if it is of a complete segment it then removes what there is of that as a partial
// one.
func (d *Directory) retirePartials(from *Source, o WriterOptions) error {
	sync := func() error {
		if o.NoSync {
			return nil
		}
		if err := d.dir.Sync(); err != nil {
			return failure("fsync directory", d.path, err)
		}
		return nil
	}
	if err := sync(); err != nil || from.partial {
		return err
	}
	files, err := d.files()
	if err != nil {
		return err
	}
	files = slices.DeleteFunc(files, func(f file) bool { return f.base != from.base || !f.partial })
	for _, f := range files {
		if err := d.dir.Remove(f.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return failure("remove file", d.full(f.name), err)
		}
	}
	if len(files) == 0 {
		return nil
	}
	return sync()
}

// HistoryContent is a timeline's history file as it is; nil if there is none.
func (d *Directory) HistoryContent(timeline Timeline) ([]byte, error) {
	content, err := d.readHistory(timeline)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return content, err
}
