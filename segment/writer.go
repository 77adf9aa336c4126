package segment

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// WriterOptions says what a [Writer] writes.
type WriterOptions struct {
	Timeline         Timeline
	Start            LSN // the first byte of a segment
	Size             Size
	SystemIdentifier uint64
	History          History // of Timeline; the first page of each segment is held against it
	Whole            bool    // fill a hole: no new file is visible before its segment is complete
	CheckPages       bool    // hold the header of each page against its address, not only the first's of a segment
	Synchronous      bool    // it will be flushed often: see Live
	NoSync           bool    // never wait for the disk: then "flushed" only means written
	Notify           func()  // called when Flushed, Events, Err or Stalled have something new; by any goroutine, also in Append; must not block

	// How the segments are stored. Level 0 is the method's default. As many segments as there are workers are compressed at a
	// time, 0: 1. One worker has up to 4 MiB of data waiting, more of them a segment each, but 256 MiB at most.
	Compression        Compression
	CompressionLevel   int
	CompressionWorkers int

	nameAfter time.Duration // 0: the constant of that name; negative: none. Tests in which operations are counted must not depend on the clock
}

// Writer writes one timeline's WAL into segments.
//
// Append, Close and the rest of its methods are called by one goroutine. The syncer, a goroutine of the
// Writer's own, makes durable what was appended, so that a slow disk does not hold up the caller; only Flushed, Err
// and Events carry its results back. With compression, others of its own compress (see packers), and Stalled, too, tells of them.
type Writer struct {
	d *Directory
	o WriterOptions

	current *openSegment // the one being filled; nil before the first byte of a segment
	written atomic.Uint64
	stored  atomic.Uint64
	pages   pageChecker
	live    bool   // see Live
	spare   *spare // nil unless Synchronous

	mu      sync.Mutex
	work    sync.Cond      // the syncer waits here, with mu
	pending []*openSegment // not complete and durable yet, in order; the last may be the current one
	wanted  LSN            // flush at least up to here
	flushed LSN
	events  []Event
	begun   time.Time     // when what is done now was taken up
	took    time.Duration // that the last flush took
	slowest time.Duration // of all flushes
	err     error         // sticky: nothing is durable after a failure
	busy    bool          // a segment is being taken forward
	closing bool
	pack    *packers      // nil without compression; what it points to, with mu
	ended   chan struct{} // the syncer is done
}

// Event tells that a segment's file has got a name: that of a partial one, or its final one, once it is complete and
// durable.
type Event struct {
	ID       ID
	Name     string
	Complete bool
}

// openSegment is a segment that is not complete and durable yet.
type openSegment struct {
	id      ID
	file    File
	visible bool       // as .partial; before that the file has no name, and is gone after a crash. With Writer.mu
	overdue bool       // it has been without a name for long enough. With Writer.mu
	header  pageHeader // its beginning, as received; it goes to the file once it is whole and checked

	pack *packing // nil without compression

	// Other partial files of the same segment, which this one replaces once it holds as much as they do. Until then they stay, and it
	// gets no name: what was once flushed must not disappear.
	olds    []*old
	held    LSN  // up to here they hold what was received; with Writer.mu
	holding bool // one of them may hold more; with Writer.mu
	retired bool // they are gone; the syncer's
}

// NewWriter begins to write at o.Start, which is the first byte of a segment. An existing .partial of that
// segment is filled again from its beginning, in place; its data stays until the same data is written over it. What
// lies before o.Start counts as flushed: see [Directory.Settle].
func (d *Directory) NewWriter(o WriterOptions) *Writer {
	w := &Writer{d: d, o: o, flushed: o.Start, ended: make(chan struct{})}
	w.work.L = &w.mu
	if o.Size.Offset(o.Start) != 0 {
		w.err = fmt.Errorf("%w: %s is not the first byte of a segment", ErrInternal, o.Start)
	}
	if o.Synchronous && !o.NoSync && o.Compression == Plain {
		w.spare = newSpare(d, o.Size)
	}
	if o.Compression != Plain {
		w.pack = w.newPackers()
		if err := o.Compression.CheckLevel(o.CompressionLevel); err != nil && w.err == nil {
			w.err = fmt.Errorf("%w: %w", ErrInternal, err)
		}
	}
	w.written.Store(uint64(o.Start))
	go w.syncer()
	return w
}

// Live tells whether the next data is about as new as the server's: then a Synchronous writer fills files with zeros before WAL
// is written to them, so that flushes are quick. While catching up, that would only be twice the work.
func (w *Writer) Live(live bool) { w.live = live }

// Written is the end of what has been written to files, or waits to be compressed, but for a segment's first 40 bytes, which wait until
// they can be checked. Any goroutine.
func (w *Writer) Written() LSN { return LSN(w.written.Load()) }

// Stored is how many bytes have been written to files. Any goroutine.
func (w *Writer) Stored() uint64 { return w.stored.Load() }

// Flushed is the end of what is durable: it survives a power cut. Any goroutine.
func (w *Writer) Flushed() LSN {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.flushed
}

// FlushTime is how long the last flush took, and the slowest one: with its directory's fsync where it needs one. 0: there was
// none. Any goroutine.
func (w *Writer) FlushTime() (last, slowest time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.took, w.slowest
}

// Err is the error that has ended durability, if any: after it, Flushed stays where it is. Any goroutine.
func (w *Writer) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil && w.pack != nil {
		return w.pack.err
	}
	return w.err
}

// Events gives what has happened since it was asked last.
func (w *Writer) Events() []Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	events := w.events
	w.events = nil
	return events
}

// Busy tells whether the syncer has something to do. Any goroutine.
func (w *Writer) Busy() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err == nil && w.due()
}

// aheadBytes bounds the data in complete segments that wait for the disk.
const aheadBytes = 64 << 20

// Ready tells whether the disk, and the compression, keep up: while it is false the caller should not Append, but wait for Notify.
func (w *Writer) Ready() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pack == nil {
		return len(w.pending) <= max(2, aheadBytes/int(w.o.Size))
	}
	return !w.pack.full && w.pack.stalled == 0 && len(w.pending) <= max(2, aheadBytes/int(w.o.Size), w.workers()+1)
}

// Append writes data that begins at lsn, but nothing beyond the end of the segment that holds lsn. It returns how
// many bytes it took. Data that does not continue where the last ended is ErrGap. After an error nothing of data
// counts as written.
func (w *Writer) Append(lsn LSN, data []byte) (int, error) {
	if err := w.usable(); err != nil {
		return 0, err
	}
	if lsn != w.Written() {
		return 0, fmt.Errorf("%w: got WAL data at %s, expected %s", ErrGap, lsn, w.Written())
	}
	if len(data) == 0 {
		return 0, nil
	}
	if w.current == nil {
		s, err := w.open(At(w.o.Timeline, lsn, w.o.Size))
		if err != nil {
			return 0, err
		}
		w.begin(s)
	}
	s, offset := w.current, w.o.Size.Offset(lsn)
	data = data[:min(len(data), int(uint32(w.o.Size)-offset))]
	if err := w.compare(s, data, offset); err != nil {
		return 0, err
	}
	if err := w.write(s, data, offset); err != nil {
		return 0, err
	}
	w.advance(s, lsn+LSN(len(data)))
	return len(data), nil
}

// usable is why nothing can be appended any more, if so.
func (w *Writer) usable() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil && w.closing {
		return fmt.Errorf("%w: data was appended to a closed writer", ErrInternal)
	}
	switch {
	case w.err != nil || w.pack == nil:
		return w.err
	case w.pack.err != nil:
		return w.pack.err
	case w.pack.stalled > 0:
		return w.pack.noRoom
	}
	return nil
}

// write writes data into the segment. Its header is kept back until it is whole and has been checked: a stranger's
// must not overwrite that of an existing file.
func (w *Writer) write(s *openSegment, data []byte, offset uint32) error {
	if offset < pageHeaderSize {
		n := offset + uint32(copy(s.header[offset:], data))
		if n < pageHeaderSize {
			return nil
		}
		if err := w.checkFirstPage(s.id, &s.header); err != nil {
			return err
		}
		if err := w.writeAt(s, s.header[:offset], 0); err != nil {
			return err
		}
	}
	if w.o.CheckPages {
		if err := w.pages.check(&s.header, w.o.Size, s.id.LSN(w.o.Size)+LSN(offset), data); err != nil {
			return err
		}
	}
	return w.writeAt(s, data, offset)
}

func (w *Writer) writeAt(s *openSegment, data []byte, offset uint32) error {
	if len(data) == 0 {
		return nil
	}
	if s.pack != nil {
		w.enqueue(s, data)
		return nil
	}
	if err := writeAt(s.file, data, int64(offset)); err != nil {
		return failure("write to file", w.d.full(w.partialName(s.id)), err)
	}
	w.stored.Add(uint64(len(data)))
	return nil
}

// writeAt is File.WriteAt, but a short write without a reason is a full disk (PostgreSQL: "if write didn't set errno,
// assume no disk space").
func writeAt(f File, data []byte, offset int64) error {
	_, err := f.WriteAt(data, offset)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return unix.ENOSPC
	}
	return err
}

// begin makes s the segment that is being filled.
func (w *Writer) begin(s *openSegment) {
	w.mu.Lock()
	w.current = s
	w.pending = append(w.pending, s)
	if s.pack != nil {
		w.beginPacking()
	}
	if s.visible {
		w.events = append(w.events, Event{s.id, w.partialName(s.id), false})
	} else {
		w.nameInTime(s)
	}
	w.mu.Unlock()
	if s.visible && w.o.Notify != nil {
		w.o.Notify()
	}
}

// nameAfter is how long a segment may do without a name: while catching up, most are complete before, and get their final one
// with half the waiting for the disk. The first of a Writer gets its name at once: it tells where the receive began.
const nameAfter = 100 * time.Millisecond

// nameInTime sees to it, with mu held, that a segment without a name gets one in time.
func (w *Writer) nameInTime(s *openSegment) {
	if s.id.LSN(w.o.Size) == w.o.Start || w.o.nameAfter < 0 {
		s.overdue = true
		return
	}
	time.AfterFunc(cmp.Or(w.o.nameAfter, nameAfter), func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		s.overdue = true
		w.work.Signal()
	})
}

// advance tells the syncer that the segment has been written up to end, if that gives it something to do.
func (w *Writer) advance(s *openSegment, end LSN) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.written.Store(uint64(end))
	s.hold(w.o.Size)
	if end == s.id.End(w.o.Size) {
		w.current = nil
	} else if w.live && w.spare != nil {
		w.spare.keepAhead(int64(w.o.Size.Offset(end)))
	}
	if w.pack != nil {
		w.pack.work.Broadcast()
	}
	if w.due() {
		w.work.Signal()
	}
}

// open opens the segment's existing .partial, or makes a new file for it, which has no name yet. Either way it then has
// a segment's full size, unless it is compressed: such a file is always a new one. The very last segment that a name could be made
// for is refused: the LSN behind it would be 0, which is none.
func (w *Writer) open(id ID) (s *openSegment, err error) {
	name := w.partialName(id)
	s = &openSegment{id: id}
	if id.End(w.o.Size) == 0 {
		return nil, fmt.Errorf("%w: there is no LSN for the end of segment %s", ErrGap, w.name(id))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.closeSegment(s))
			s = nil
		}
	}()
	err = fs.ErrNotExist
	if w.pack == nil {
		s.file, err = w.d.dir.Open(name, true)
	}
	switch {
	case err == nil:
		s.visible = true
	case errors.Is(err, fs.ErrNotExist):
		if s.file, err = w.create(name); err != nil {
			return s, err
		}
	default:
		return s, failure("open file", w.d.full(name), err)
	}
	if w.pack == nil {
		if err := w.fit(s, name); err != nil {
			return s, err
		}
	} else {
		begin := id.LSN(w.o.Size)
		s.pack = &packing{end: begin, stored: begin, synced: begin, encoded: begin}
	}
	if w.o.Whole || w.isFirst(id) {
		return s, w.openOlds(s)
	}
	return s, nil
}

// create makes a new file for a segment. One that will be flushed often is full of zeros.
func (w *Writer) create(name string) (File, error) {
	if w.spare != nil {
		if f := w.spare.take(); f != nil {
			return f, nil
		}
	}
	f, err := w.d.dir.Create(w.d.mode)
	if err != nil {
		return nil, failure("create file", w.d.full(name), err)
	}
	if w.spare != nil && w.live && w.o.Size <= maxZeroed {
		if err := errors.Join(f.Allocate(int64(w.o.Size)), zero(f, 0, int64(w.o.Size))); err != nil {
			return nil, errors.Join(failure("fill file", w.d.full(name), err), f.Close())
		}
	}
	return f, nil
}

// maxZeroed is the largest segment that is filled with zeros while the stream waits for it, as the first one is.
const maxZeroed = 64 << 20

// isFirst tells whether a segment is the first one of the Writer. Only for that there can be partial files.
func (w *Writer) isFirst(id ID) bool { return id == At(w.o.Timeline, w.o.Start, w.o.Size) }

// closeSegment closes what is open of a segment.
func (w *Writer) closeSegment(s *openSegment) error {
	err := w.closeOlds(s)
	if s.file != nil {
		if closeErr := s.file.Close(); closeErr != nil && err == nil {
			err = failure("close file", w.d.full(w.partialName(s.id)), closeErr)
		}
		s.file = nil
	}
	return err
}

// fit gives the file the size of a segment. One that is too short, because somebody else's disk was full or to set the
// start, is made longer; one that is too long is not ours to cut.
func (w *Writer) fit(s *openSegment, name string) error {
	have, err := s.file.Size()
	if err != nil {
		return failure("stat file", w.d.full(name), err)
	}
	if have > int64(w.o.Size) {
		return fmt.Errorf("%w: file \"%s\" has %d bytes, but segments of this server have %d",
			ErrForeign, w.d.full(name), have, w.o.Size)
	}
	if have < int64(w.o.Size) {
		if err := s.file.Allocate(int64(w.o.Size)); err != nil {
			return failure("allocate file", w.d.full(name), err)
		}
	}
	return nil
}

func (w *Writer) name(id ID) string { return id.Name(w.o.Size) + w.o.Compression.Suffix() }

func (w *Writer) partialName(id ID) string { return w.name(id) + partialSuffix }

// Flush asks the syncer to make everything written so far durable, and returns at once.
func (w *Writer) Flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.Written() > w.wanted {
		w.wanted = w.Written()
		w.work.Signal()
		if w.pack != nil {
			w.pack.work.Broadcast()
		}
	}
}

// Partial is the name of the file of the segment that is not complete, or "" if there is none, or none that is visible.
func (w *Writer) Partial() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.current == nil || !w.current.visible {
		return ""
	}
	return w.partialName(w.current.id)
}

// Close makes everything written durable, waits for that, and ends the syncer. A segment that is not complete stays
// .partial. It returns the error that ended durability, if any.
func (w *Writer) Close() error {
	w.mu.Lock()
	w.wanted = w.Written()
	w.closing = true
	w.work.Signal()
	if w.pack != nil {
		w.pack.work.Broadcast()
	}
	w.mu.Unlock()
	<-w.ended
	err := w.Err()
	if w.spare != nil {
		err = errors.Join(err, w.spare.close())
	}
	return err
}

// Sync makes everything written so far durable, on the caller's goroutine, if that is all that there is to do; true then.
// Else it is Flush. The caller waits for the disk, but nobody has to be woken up before and after.
func (w *Writer) Sync() bool {
	s, end := w.claim()
	if s == nil {
		w.Flush()
		return false
	}
	w.finish(s, end, w.forward(s, end))
	return true
}

// claim takes the current segment from the syncer, if its data is all that is to be flushed.
func (w *Writer) claim() (*openSegment, LSN) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.busy || w.err != nil || w.closing || len(w.pending) != 1 || !w.pending[0].visible || w.pack != nil ||
		len(w.pending[0].olds) > 0 && !w.pending[0].retired {
		return nil, 0
	}
	s, end := w.pending[0], w.Written()
	if w.checked(end) <= w.flushed || end == s.id.End(w.o.Size) {
		return nil, 0
	}
	w.busy, w.begun = true, time.Now()
	return s, end
}
