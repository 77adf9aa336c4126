package segment

import (
	"errors"
	"fmt"
	"io/fs"
	"runtime/debug"
)

// syncer makes durable what Append has written: the only place where a file gets its name and where the flushed LSN
// moves. It works in rounds, each in this order:
//
//	fdatasync each segment of the round
//	-> name them: .partial for the last, if it isn't complete; the final name for those before, oldest first
//	-> fsync the directory
//	-> move the flushed LSN, tell the caller
//
// so that at every moment in between, the directory is one that a receive can continue from.
func (w *Writer) syncer() {
	defer close(w.ended)
	for {
		r, more := w.nextRound()
		if !more {
			return
		}
		w.finish(r, w.run(&r))
	}
}

// round is what the syncer makes durable in one go.
type round struct {
	segments []*openSegment
	written  LSN  // where data ended when the round began
	flush    bool // somebody asked for what is in the incomplete segment, too
	names    int  // how many names were given
	flushed  LSN  // what is durable afterwards; 0: nothing new
	events   []Event
}

// nextRound waits for work; false when the Writer is closed and nothing is left to do.
func (w *Writer) nextRound() (round, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.err == nil && !w.due() && !w.closing {
		w.work.Wait()
	}
	if w.err != nil || !w.due() {
		// Only Close gets here, or a failure: then wait for Close, which waits for us.
		for !w.closing {
			w.work.Wait()
		}
		w.err = errors.Join(w.err, w.closeFiles())
		return round{}, false
	}
	r := round{written: w.Written(), flush: w.wanted > w.flushed}
	r.segments = append(r.segments, w.pending...)
	return r, true
}

// due tells whether there is anything to do: a complete segment, one that may become visible, or a flush.
func (w *Writer) due() bool {
	if len(w.pending) == 0 {
		return false
	}
	head := w.pending[0]
	written := w.Written()
	return head.id.End(w.o.Size) <= written || w.mayShow(head, written) ||
		w.wanted > w.flushed && w.checked(written) > w.flushed
}

// mayShow tells whether a segment may get its .partial name: once its first page has been checked, and it holds as
// much as what it replaces.
func (w *Writer) mayShow(s *openSegment, written LSN) bool {
	return !w.o.Whole && !s.visible.Load() && written >= s.id.LSN(w.o.Size)+pageHeaderSize && written >= s.hold
}

// checked is how far a flush may go: not into a segment whose first page has not been checked.
func (w *Writer) checked(written LSN) LSN {
	if w.o.Size.Offset(written) < pageHeaderSize {
		return w.o.Size.Floor(written)
	}
	return written
}

// run does a round's work on the disk.
func (w *Writer) run(r *round) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v\n%s", ErrInternal, p, debug.Stack())
		}
	}()
	for _, s := range r.segments {
		if w.complete(s, r) || r.flush || w.mayShow(s, r.written) {
			if err := w.sync(s); err != nil {
				return err
			}
		}
	}
	for _, s := range r.segments {
		if err := w.giveName(s, r); err != nil {
			return err
		}
	}
	if r.names > 0 && !w.o.NoSync {
		if err := w.d.dir.Sync(); err != nil {
			return failure("fsync directory", w.d.path, err)
		}
	}
	for _, s := range r.segments {
		if err := w.retire(s, r); err != nil {
			return err
		}
		if w.complete(s, r) {
			r.flushed = s.id.End(w.o.Size)
		} else if r.flush {
			r.flushed = w.checked(r.written)
		}
	}
	return nil
}

func (w *Writer) complete(s *openSegment, r *round) bool { return s.id.End(w.o.Size) <= r.written }

func (w *Writer) sync(s *openSegment) error {
	if w.o.NoSync {
		return nil
	}
	if err := s.file.Sync(); err != nil {
		return failure("fsync file", w.d.full(w.partialName(s.id)), err)
	}
	return nil
}

// giveName gives the segment the name that is due to it: its final one if it is complete, else .partial.
func (w *Writer) giveName(s *openSegment, r *round) error {
	partial, final := w.partialName(s.id), s.id.Name(w.o.Size)
	if w.complete(s, r) {
		if !s.visible.Load() {
			err := w.d.dir.Link(s.file, final)
			if err == nil {
				r.named(Event{s.id, final, true})
				return nil
			}
			if !errors.Is(err, fs.ErrExist) {
				return failure("link file", w.d.full(final), err)
			}
			// A file of that name was passed over at the start, because it could not be a segment: replace it.
			if err := w.d.dir.Link(s.file, partial); err != nil {
				return failure("link file", w.d.full(partial), err)
			}
		}
		if err := w.d.dir.Rename(partial, final); err != nil {
			return failure("rename file", w.d.full(partial), err)
		}
		r.named(Event{s.id, final, true})
		return nil
	}
	if w.mayShow(s, r.written) {
		if err := w.d.dir.Link(s.file, partial); err != nil {
			return failure("link file", w.d.full(partial), err)
		}
		s.visible.Store(true)
		r.named(Event{s.id, partial, false})
	}
	return nil
}

func (r *round) named(e Event) {
	r.names++
	r.events = append(r.events, e)
}

// retire removes what the segment replaces, now that its own name is durable, and closes it if it is complete.
func (w *Writer) retire(s *openSegment, r *round) error {
	if !w.complete(s, r) && !s.visible.Load() {
		return nil
	}
	for _, name := range s.replaces {
		if err := w.d.dir.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return failure("remove file", w.d.full(name), err)
		}
	}
	s.replaces = nil
	if !w.complete(s, r) {
		return nil
	}
	f := s.file
	s.file = nil
	if err := f.Close(); err != nil {
		return failure("close file", w.d.full(s.id.Name(w.o.Size)), err)
	}
	return nil
}

// finish records a round's result.
func (w *Writer) finish(r round, err error) {
	w.mu.Lock()
	if err != nil {
		w.err = err
	} else {
		w.flushed = max(w.flushed, r.flushed)
		w.events = append(w.events, r.events...)
		for len(w.pending) > 0 && w.complete(w.pending[0], &r) {
			w.pending = w.pending[1:]
		}
	}
	w.mu.Unlock()
	if w.o.Notify != nil {
		w.o.Notify()
	}
}

// closeFiles closes what is still open, with mu held. A file that a failure left without a name is gone with it.
func (w *Writer) closeFiles() error {
	var failed error
	for _, s := range w.pending {
		if s.file == nil {
			continue
		}
		if err := s.file.Close(); err != nil {
			failed = errors.Join(failed, failure("close file", w.d.full(w.partialName(s.id)), err))
		}
		s.file = nil
	}
	w.pending = nil
	return failed
}
