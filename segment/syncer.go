package segment

import (
	"errors"
	"fmt"
	"io/fs"
	"runtime/debug"
	"time"
)

// syncer makes durable what Append has written: the only place where a file gets its name and where the flushed LSN
// moves. It always works on the oldest segment that is not complete and durable yet, and takes it forward in this order:
//
//	fdatasync the file
//	-> if it has no name: name it .partial, fdatasync it under that name, fsync the directory
//	-> if compressed files are replaced by it: remove them, fsync the directory
//	-> if it is complete: rename .partial away, fsync the directory, close
//	-> move the flushed LSN, tell the caller
//
// A power cut can come between any two of these, and may keep or lose every change of the directory that was not yet
// fsynced, in any combination: POSIX promises no order. So the next change waits for that fsync wherever it must
// not survive alone, and what is left is at every moment a directory from which a receive can go on.
func (w *Writer) syncer() {
	defer close(w.ended)
	for {
		s, end, more := w.nextWork()
		if !more {
			w.closeFiles()
			return
		}
		w.finish(s, end, w.forward(s, end))
		if w.o.Notify != nil {
			w.o.Notify()
		}
	}
}

// nextWork waits until there is something to do for the oldest segment, and tells up to where it has data. It
// is false once the Writer is closed and nothing is left to do, or nothing can be done after a failure.
func (w *Writer) nextWork() (*openSegment, LSN, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		switch {
		case w.busy: // by Sync
		case w.err == nil && w.due():
			w.begun = time.Now()
			s := w.pending[0]
			w.busy = true
			return s, min(w.Written(), s.id.End(w.o.Size)), true
		case w.closing:
			return nil, 0, false
		}
		w.work.Wait()
	}
}

// due tells, with mu held, whether there is anything to do: a segment is complete, or may become visible, or a flush was
// asked for. What fills a hole is not flushed before it is complete: until then it has no name, and does not last.
func (w *Writer) due() bool {
	if len(w.pending) == 0 {
		return false
	}
	s, written := w.pending[0], w.Written()
	return written >= s.id.End(w.o.Size) || s.overdue && w.mayShow(s, written) ||
		!w.o.Whole && w.wanted > w.flushed && w.checked(written) > w.flushed
}

// mayShow tells whether a segment may get its .partial name: once its first page has been checked, and it holds as
// much as what it replaces.
func (w *Writer) mayShow(s *openSegment, written LSN) bool {
	return !s.visible && written >= s.id.LSN(w.o.Size)+pageHeaderSize && written >= s.hold &&
		(!w.o.Whole || written >= s.id.End(w.o.Size))
}

// checked is how far a flush may go: not into a segment whose first page has not been checked.
func (w *Writer) checked(written LSN) LSN {
	if w.o.Size.Offset(written) < pageHeaderSize {
		return w.o.Size.Floor(written)
	}
	return written
}

// forward makes the segment's data durable up to end, under the name that is due to it.
func (w *Writer) forward(s *openSegment, end LSN) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v\n%s", ErrInternal, p, debug.Stack())
		}
	}()
	complete := end == s.id.End(w.o.Size)
	if err := w.sync(s); err != nil {
		return err
	}
	if w.mayShow(s, end) {
		if err := w.show(s, complete); err != nil {
			return err
		}
	}
	if len(s.replaces) > 0 && end >= s.hold {
		if err := w.retire(s); err != nil {
			return err
		}
	}
	if complete {
		return w.complete(s)
	}
	return nil
}

func (w *Writer) sync(s *openSegment) error {
	if w.o.NoSync {
		return nil
	}
	if err := s.file.Sync(); err != nil {
		return failure("fsync file", w.d.full(w.partialName(s.id)), err)
	}
	return nil
}

func (w *Writer) syncDirectory() error {
	if w.o.NoSync {
		return nil
	}
	if err := w.d.dir.Sync(); err != nil {
		return failure("fsync directory", w.d.path, err)
	}
	return nil
}

// show gives the file its .partial name.
func (w *Writer) show(s *openSegment, complete bool) error {
	partial := w.partialName(s.id)
	if err := w.d.dir.Link(s.file, partial); err != nil {
		return failure("link file", w.d.full(partial), err)
	}
	// An fsync without a name need not last: btrfs logs nothing for such a file (btrfs_log_inode_parent in tree-log.c).
	if err := w.sync(s); err != nil {
		return err
	}
	if !complete || len(s.replaces) > 0 {
		if err := w.syncDirectory(); err != nil {
			return err
		}
	} // else it gets its final name now, whether this one lasts or not
	w.mu.Lock()
	defer w.mu.Unlock()
	s.visible = true
	if !complete {
		w.events = append(w.events, Event{s.id, partial, false})
	}
	return nil
}

// retire removes what the segment replaces, now that its own name, and as much data, are durable.
func (w *Writer) retire(s *openSegment) error {
	for _, name := range s.replaces {
		if err := w.d.dir.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return failure("remove file", w.d.full(name), err)
		}
	}
	s.replaces = nil
	return w.syncDirectory()
}

// complete gives the segment its final name. A file that has it was passed over at the start, because it could not be a
// segment: it is replaced.
func (w *Writer) complete(s *openSegment) error {
	partial, final := w.partialName(s.id), s.id.Name(w.o.Size)
	if err := w.d.dir.Rename(partial, final); err != nil {
		return failure("rename file", w.d.full(partial), err)
	}
	if err := w.syncDirectory(); err != nil {
		return err
	}
	f := s.file
	s.file = nil
	if err := f.Close(); err != nil {
		return failure("close file", w.d.full(final), err)
	}
	return nil
}

// finish records what forward has achieved, and how long it took.
func (w *Writer) finish(s *openSegment, end LSN, err error) {
	took := time.Since(w.begun)
	w.mu.Lock()
	w.busy = false
	if err != nil {
		w.err = err
	} else {
		w.flushed = w.checked(end)
		if !w.o.NoSync {
			w.took, w.slowest = max(took, 1), max(took, w.slowest, 1)
		}
		if end == s.id.End(w.o.Size) {
			w.pending = w.pending[1:]
			w.events = append(w.events, Event{s.id, s.id.Name(w.o.Size), true})
		}
		if w.due() {
			w.work.Signal() // the syncer, if it had to leave this to Sync
		}
	}
	w.mu.Unlock()
}

// closeFiles closes what is still open: a segment that is not complete, or after a failure all that remain. A file without
// a name is gone with it.
func (w *Writer) closeFiles() {
	w.mu.Lock()
	left, err := w.pending, w.err
	w.pending = nil
	w.mu.Unlock()
	for _, s := range left {
		if s.file == nil {
			continue
		}
		if closeErr := s.file.Close(); closeErr != nil && err == nil {
			err = failure("close file", w.d.full(w.partialName(s.id)), closeErr)
		}
		s.file = nil
	}
	w.mu.Lock()
	w.err = err
	w.mu.Unlock()
}
