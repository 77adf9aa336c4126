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
//	-> if old files are replaced by it: remove them, fsync the directory
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
			return s, w.readable(s), true
		case w.closing && (w.pack == nil || w.pack.running == 0):
			return nil, 0, false
		}
		w.work.Wait()
	}
}

// readable is, with mu held, the end of what can be read from a segment's file. What a worker has stored while Append has not returned yet
// is not: it is not known yet how much of it the old files hold.
func (w *Writer) readable(s *openSegment) LSN {
	if s.pack != nil {
		return min(s.pack.stored, w.Written())
	}
	return min(w.Written(), s.id.End(w.o.Size))
}

// due tells, with mu held, whether there is anything to do: a segment is complete, or may become visible, or a flush was
// asked for. What fills a hole is not flushed before it is complete: until then it has no name, and does not last.
func (w *Writer) due() bool {
	if len(w.pending) == 0 {
		return false
	}
	s := w.pending[0]
	have := w.readable(s)
	return have >= s.id.End(w.o.Size) || s.overdue && w.mayShow(s, have) ||
		!w.o.Whole && w.wanted > w.flushed && w.durable(s, have) > w.flushed
}

// mayShow tells, with mu held, whether a segment may get its .partial name: once its first page has been checked, and it holds as
// much as what it replaces.
func (w *Writer) mayShow(s *openSegment, have LSN) bool {
	return !s.visible && have >= s.id.LSN(w.o.Size)+pageHeaderSize && !s.holding && have >= s.held &&
		(!w.o.Whole || have >= s.id.End(w.o.Size))
}

// durable is, with mu held, how far a flush goes once the segment's file is synced up to end: not into a header that has not been
// checked, and where the file has no name, only as far as those hold the same that it will replace.
func (w *Writer) durable(s *openSegment, end LSN) LSN {
	if !s.visible && !w.mayShow(s, end) {
		end = min(end, max(s.held, s.id.LSN(w.o.Size)))
	}
	return w.checked(end)
}

// checked is how far a flush may go: not into a segment whose first page has not been checked.
func (w *Writer) checked(written LSN) LSN {
	if w.o.Size.Offset(written) < pageHeaderSize {
		return w.o.Size.Floor(written)
	}
	return written
}

// recovered makes an error of a panic, which must not end the host's process. It must be deferred directly.
func recovered(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("%w: %v\n%s", ErrInternal, p, debug.Stack())
	}
}

// forward makes the segment's data durable up to end, under the name that is due to it.
func (w *Writer) forward(s *openSegment, end LSN) (err error) {
	defer recovered(&err)
	complete := end == s.id.End(w.o.Size)
	if err := w.sync(s); err != nil {
		return err
	}
	w.mu.Lock()
	show, replaces := w.mayShow(s, end), s.visible && !s.holding && end >= s.held
	w.mu.Unlock()
	if show {
		if err := w.show(s, complete); err != nil {
			return err
		}
	}
	if (show || replaces) && !s.retired {
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
	if err := w.link(s, partial); err != nil {
		return failure("link file", w.d.full(partial), err)
	}
	// An fsync without a name need not last: btrfs logs nothing for such a file (btrfs_log_inode_parent in tree-log.c).
	if err := w.sync(s); err != nil {
		return err
	}
	if !complete || len(s.olds) > 0 {
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

// link gives the file a name, which one of those may have that it replaces.
func (w *Writer) link(s *openSegment, name string) error {
	for _, o := range s.olds {
		if o.name == name {
			return w.d.dir.Replace(s.file, name)
		}
	}
	return w.d.dir.Link(s.file, name)
}

// retire removes what the segment replaces, now that its own name, and as much data, are durable.
func (w *Writer) retire(s *openSegment) error {
	s.retired = true
	if err := w.closeOlds(s); err != nil {
		return err
	}
	removed := false
	for _, o := range s.olds {
		if o.name == w.partialName(s.id) {
			continue // it is this one's name
		}
		removed = true
		if err := w.d.dir.Remove(o.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return failure("remove file", w.d.full(o.name), err)
		}
	}
	if !removed {
		return nil
	}
	return w.syncDirectory()
}

// complete gives the segment its final name. A file that has it was passed over at the start, because it could not be a
// segment: it is replaced.
func (w *Writer) complete(s *openSegment) error {
	partial, final := w.partialName(s.id), w.name(s.id)
	if !s.visible {
		return fmt.Errorf("%w: segment %s is complete, but has no name", ErrInternal, final)
	}
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
		w.flushed = max(w.flushed, w.durable(s, end))
		if s.pack != nil {
			s.pack.synced = end
		}
		if !w.o.NoSync {
			w.took, w.slowest = max(took, 1), max(took, w.slowest, 1)
		}
		if end == s.id.End(w.o.Size) {
			w.pending = w.pending[1:]
			w.events = append(w.events, Event{s.id, w.name(s.id), true})
		}
		if w.due() {
			w.work.Signal() // the syncer, if it had to leave this to Sync
		}
	}
	if w.pack != nil {
		w.pack.work.Broadcast()
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
		if closeErr := w.closeSegment(s); closeErr != nil && err == nil {
			err = closeErr
		}
	}
	w.mu.Lock()
	w.err = err
	w.mu.Unlock()
}
