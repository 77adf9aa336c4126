package segment

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
)

// Restore writes a file of the WAL directory at path to target, as PostgreSQL's restore_command asks for it: a segment by its 24 digits,
// whole and decompressed, or a history file. A segment that isn't complete is made of its .partial file, of which the end that was never
// received is zeros; recovery goes as far as there is WAL in it. It changes nothing in the directory, and takes no lock.
//
// What is at target already is replaced, and it is never half written. [ErrNoFile]: the directory has no such file. A damaged
// one is another error: then recovery should not end as if this were the end of all WAL.
func Restore(fsys FS, path, name, target string) error {
	d, err := openUnlocked(fsys, path)
	if err != nil {
		return err
	}
	defer d.dir.Close()
	for tries := 10; ; tries-- {
		err := d.restore(fsys, name, target)
		if tries > 0 && errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrNoFile) && !errors.Is(err, ErrNoDirectory) {
			continue // it has another name since the directory was listed
		}
		return err
	}
}

func (d *Directory) restore(fsys FS, name, target string) error {
	if name != filepath.Base(name) || name == "." || name == ".." || name == "" {
		return fmt.Errorf("%w: \"%s\" is not the name of a file of the WAL", ErrNoFile, name)
	}
	if f, ok := parseFile(name); !ok || f.name != f.base {
		return d.copyTo(fsys, file{name: name}, -1, target) // a history file, or what else PostgreSQL may ask for
	}
	files, err := d.files()
	if err != nil {
		return err
	}
	var complete, partial, unknown []file
	for _, f := range files {
		switch {
		case f.base != name:
		case f.compression == Unknown:
			unknown = append(unknown, f)
		case f.partial:
			partial = append(partial, f)
		default:
			complete = append(complete, f)
		}
	}
	var damaged error
	for _, f := range complete {
		size, err := d.isSegment(f)
		if err == nil {
			return d.copyTo(fsys, f, size, target)
		}
		damaged = errors.Join(damaged, err)
	}
	switch {
	case damaged != nil:
		return damaged
	case len(unknown) > 0:
		return failureOf(ErrIO, "restore file", d.full(unknown[0].name), errors.New("its suffix is of another program"))
	}
	f, size, err := d.fullest(partial)
	if err != nil {
		return err
	}
	if size == 0 {
		return fmt.Errorf("%w: directory \"%s\" has nothing of segment %s", ErrNoFile, d.path, name)
	}
	return d.copyTo(fsys, f, size, target)
}

// isSegment checks that a file without .partial holds exactly one segment, and tells how large that is.
func (d *Directory) isSegment(f file) (int64, error) {
	h, err := d.firstPage(f)
	if err != nil {
		return 0, err
	}
	size := int64(h.segmentSize())
	n, damage, err := d.decode(f, max(size, 0))
	switch {
	case err != nil:
		return 0, err
	case damage == nil && h.isHeader() && h.segmentSize().Valid() && n == size:
		return size, nil
	case damage == nil:
		damage = fmt.Errorf("it holds %d bytes, which are no segment", n)
	}
	return 0, failureOf(ErrIO, "restore file", d.full(f.name), damage)
}

// fullest is that of some partial files of one segment that has the most in it, and the segment's size; 0: there is nothing in any.
func (d *Directory) fullest(partial []file) (best file, size int64, err error) {
	most := int64(-1)
	for _, f := range partial {
		h, err := d.firstPage(f)
		if err != nil {
			return best, 0, err
		}
		if !h.isHeader() || !h.segmentSize().Valid() {
			continue // an empty one, to set the start
		}
		end, err := d.dataEnd(f, int64(h.segmentSize()))
		if err != nil {
			return best, 0, err
		}
		if end > most {
			best, size, most = f, int64(h.segmentSize()), end
		}
	}
	return best, size, nil
}

// dataEnd is the end of the last byte of a file's data that isn't zero.
func (d *Directory) dataEnd(f file, limit int64) (end int64, err error) {
	in, err := d.dir.Open(f.name, false)
	if err != nil {
		return 0, failure("open file", d.full(f.name), err)
	}
	defer in.Close()
	from := &fileReader{ReaderAt: in}
	data := io.LimitReader(decoder(f.compression, io.NewSectionReader(from, 0, 1<<62)), limit)
	var piece [64 << 10]byte
	for at := int64(0); ; {
		n, err := io.ReadFull(data, piece[:])
		if text := strings.TrimRight(string(piece[:n]), "\x00"); text != "" {
			end = at + int64(len(text))
		}
		at += int64(n)
		if err == nil {
			continue
		}
		if from.err != nil {
			return 0, failure("read file", d.full(f.name), from.err)
		}
		return end, nil // where it ends, or cannot be decompressed any further
	}
}

// copyTo writes what a file holds to target, and zeros behind it up to size; -1: none.
func (d *Directory) copyTo(fsys FS, f file, size int64, target string) (err error) {
	in, err := d.dir.Open(f.name, false)
	if err != nil {
		err = failure("open file", d.full(f.name), err)
		if f.base == "" && errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: %w", ErrNoFile, err)
		}
		return err
	}
	defer in.Close()
	from := &fileReader{ReaderAt: in}
	data := decoder(f.compression, io.NewSectionReader(from, 0, 1<<62))
	if size >= 0 {
		data = io.LimitReader(data, size)
	}

	to, err := openUnlocked(fsys, filepath.Dir(target))
	if err != nil {
		return err
	}
	defer to.dir.Close()
	out, err := to.dir.Create(to.mode)
	if err != nil {
		return failure("create file", target, err)
	}
	defer func() {
		if closeErr := out.Close(); err == nil && closeErr != nil {
			err = failure("close file", target, closeErr)
		}
	}()
	piece := make([]byte, 256<<10)
	at := int64(0)
	for more := true; more; {
		n, err := io.ReadFull(data, piece)
		if from.err != nil {
			return failure("read file", d.full(f.name), from.err)
		}
		if more = err == nil; !more && err != io.EOF && err != io.ErrUnexpectedEOF && !f.partial {
			return failure("read file", d.full(f.name), err)
		}
		if n > 0 {
			if err := writeAt(out, piece[:n], at); err != nil {
				return failure("write to file", target, err)
			}
		}
		at += int64(n)
	}
	if at < size {
		if !f.partial {
			return failureOf(ErrIO, "restore file", d.full(f.name), fmt.Errorf("it changed while it was read"))
		}
		if err := out.Allocate(size); err != nil {
			return failure("allocate file", target, err)
		}
	}
	return to.putInPlace(out, filepath.Base(target))
}

// putInPlace makes an unnamed file durable, and gives it a name that another may have.
func (d *Directory) putInPlace(f File, name string) error {
	if err := f.Sync(); err != nil {
		return failure("fsync file", d.full(name), err)
	}
	temporary := name + ".tmp"
	if err := d.dir.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return failure("remove file", d.full(temporary), err)
	}
	if err := d.dir.Link(f, temporary); err != nil {
		return failure("link file", d.full(temporary), err)
	}
	if err := d.dir.Rename(temporary, name); err != nil {
		return failure("rename file", d.full(temporary), err)
	}
	return nil
}
