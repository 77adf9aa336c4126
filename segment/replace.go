package segment

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
)

// old is a partial file of a segment, left by an earlier receive, that isn't continued where it is: it is compressed, or the segment
// is to be. What was reported flushed is in it, so it stays until the new file holds as much.
//
// How much that is shows by reading it beside what is received now: as far as both are the same. A plain file doesn't say where
// its data ends and its zeros begin, and pg_receivewal, which reopens a compressed file without truncating it, can leave the rest of an
// older one behind its own data. Neither can deceive this.
type old struct {
	name string
	f    File          // nil once it is closed
	in   *bufio.Reader // what it holds; nil once that is known
	from *fileReader
	same uint32 // bytes from the segment's beginning
}

// openOlds finds the partial files of a segment that are not continued.
func (w *Writer) openOlds(s *openSegment) error {
	files, err := w.d.files()
	if err != nil {
		return err
	}
	for _, f := range files {
		if f.base != s.id.Name(w.o.Size) || !f.partial || f.compression == Plain && w.o.Compression == Plain {
			continue
		}
		o, err := w.openOld(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		s.olds = append(s.olds, o)
	}
	s.holding = len(s.olds) > 0
	return nil
}

func (w *Writer) openOld(f file) (*old, error) {
	in, err := w.d.dir.Open(f.name, false)
	if err != nil {
		return nil, failure("open file", w.d.full(f.name), err)
	}
	length, err := in.Size()
	if err != nil {
		return nil, errors.Join(failure("stat file", w.d.full(f.name), err), in.Close())
	}
	if f.compression == Plain && length > int64(w.o.Size) {
		err := fmt.Errorf("%w: file \"%s\" has %d bytes, but segments of this server have %d", ErrForeign, w.d.full(f.name), length, w.o.Size)
		return nil, errors.Join(err, in.Close())
	}
	o := &old{name: f.name, f: in, from: &fileReader{ReaderAt: in}}
	o.in = bufio.NewReader(decoder(f.compression, io.NewSectionReader(o.from, 0, length)))
	return o, nil
}

// compare reads the old files of the segment up to where data ends, that was received for an offset. It may be repeated.
func (w *Writer) compare(s *openSegment, data []byte, offset uint32) error {
	for _, o := range s.olds {
		if o.in == nil || o.same >= offset+uint32(len(data)) {
			continue
		}
		if err := o.compare(data[o.same-offset:]); err != nil {
			return failure("read file", w.d.full(o.name), err)
		}
		if offset+uint32(len(data)) == uint32(w.o.Size) {
			o.in = nil
		}
	}
	return nil
}

// compare reads on beside data.
func (o *old) compare(data []byte) error {
	var piece [4096]byte
	for len(data) > 0 {
		n, err := io.ReadFull(o.in, piece[:min(len(piece), len(data))])
		equal := equalBytes(piece[:n], data)
		o.same += uint32(equal)
		if data = data[equal:]; equal < n || err != nil {
			return o.end()
		}
	}
	if _, err := o.in.Peek(1); err != nil { // it holds exactly as much
		return o.end()
	}
	return nil
}

// equalBytes is how many bytes are the same at the beginning of both.
func equalBytes(a, b []byte) int {
	n := min(len(a), len(b))
	if bytes.Equal(a[:n], b[:n]) {
		return n
	}
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// end notes that nothing more of the file matters. What the disk could not read is not taken for its end.
func (o *old) end() error {
	o.in = nil
	return o.from.err
}

// hold notes, with mu held, how much the old files hold of what was received so far, and whether one may hold more.
func (s *openSegment) hold(size Size) {
	s.held, s.holding = 0, false
	for _, o := range s.olds {
		s.held = max(s.held, s.id.LSN(size)+LSN(o.same))
		s.holding = s.holding || o.in != nil
	}
}

// closeOlds closes the old files. Nobody reads them any more: the segment is not holding, or the Writer is closed.
func (w *Writer) closeOlds(s *openSegment) error {
	var failed error
	for _, o := range s.olds {
		if o.f == nil {
			continue
		}
		if err := o.f.Close(); err != nil && failed == nil {
			failed = failure("close file", w.d.full(o.name), err)
		}
		o.f = nil
	}
	return failed
}
