package stream

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"libreceivewal/segment"
)

// mirrorBytes bounds the WAL that waits in memory for a mirror. All mirrors share what waits: so much is held in total.
const mirrorBytes = 64 << 20

// mirrorGrace is how long the end of a receive waits for mirrors that are not required.
const mirrorGrace = 10 * time.Second

// MirrorState is what became of a mirror.
type MirrorState int

// The states that a MirrorChange tells of.
const (
	MirrorFailed   MirrorState = iota + 1 // it is not written any more; it is tried again
	MirrorRestored                        // it is written in step again
)

// MirrorChange tells that a mirror failed, or is back.
type MirrorChange struct {
	Directory string // as in Options.Mirrors
	State     MirrorState
	Err       error // why it failed
}

// mirrors are the directories that are written in step with the first, each by a goroutine of its own. What the first
// directory has got is copied once, for all of them, and waits until each has taken it: so none of them holds up the
// first. One that is too far behind is let go, and fetches from the first directory's files what it has missed; where mirrors are
// required the server waits for them instead.
//
// Receive's goroutine calls the methods, if nothing else is said. Those that copyStream calls do nothing on nil: no mirrors.
type mirrors struct {
	list     []*mirror
	required bool
	repair   RepairMode

	// Receive's goroutine has something to do here: to tell, or a flushed position that has moved.
	fresh atomic.Bool
	poke  chan struct{} // for the same, where it waits for nothing of a connection

	mu      sync.Mutex
	changed sync.Cond   // signalled with each news
	wake    func()      // wakes Receive's goroutine; nil once Receive has ended
	told    []any       // what it is to tell the caller: a logLine, a Hole or a MirrorChange
	stream  *mirrored   // what is received now, or was last; nil: nothing yet
	began   segment.LSN // where the first stream began
	open    *parcel     // the newest one, if data may be added to it
	free    [][]byte    // of parcels that nobody needs any more
	ended   bool        // nothing more comes

	source sync.RWMutex       // held for reading while a mirror looks into first
	first  *segment.Directory // nil once Receive has ended
}

// logLine is a line for the log.
type logLine struct {
	level slog.Level
	text  string
}

// mirrored is one stream: what is between START_REPLICATION and the end of COPY. With mirrors.mu, but for what never changes.
type mirrored struct {
	o     segment.WriterOptions // of the first directory's writer
	mode  fs.FileMode           // of new files
	plain bool                  // a segment of the first directory can be read while it grows

	w      *segment.Writer // the first directory's; nil: not yet
	next   segment.LSN     // the end of what has been received
	wanted segment.LSN     // a flush up to here was asked for
	over   bool
}

// complete is up to where the first directory's segments are complete.
func (s *mirrored) complete() segment.LSN {
	if s.w == nil {
		return s.o.Start
	}
	return s.o.Size.Floor(s.w.Flushed())
}

// parcel is a piece of what a mirror is to do.
type parcel struct {
	kind   parcelKind
	stream *mirrored
	lsn    segment.LSN
	data   []byte
	refs   int // mirrors that have it in their queue, or are writing it
}

type parcelKind int

const (
	parcelData parcelKind = iota
	parcelBegin
	parcelEnd
)

// parcelBytes is how much data one holds.
const parcelBytes = 256 << 10

// openMirrors begins to open the mirrors, and waits for that where they are required.
func (r *receiver) openMirrors(ctx context.Context) error {
	if len(r.o.Mirrors) == 0 {
		return nil
	}
	ms := &mirrors{required: r.o.MirrorRequired, repair: r.o.Repair, first: r.dir, poke: make(chan struct{}, 1)}
	ms.changed.L = &ms.mu
	ms.wake = r.s.wake
	r.mirrors = ms
	for _, path := range r.o.Mirrors {
		m := &mirror{set: ms, path: path, gone: make(chan struct{}), lost: map[segment.ID]bool{}}
		m.work.L = &ms.mu
		ms.list = append(ms.list, m)
	}
	r.showMirrors()
	for _, m := range ms.list {
		go m.run(r.s.fs)
	}
	return r.awaitMirrors(ctx, func(m *mirror) bool { return m.opened })
}

// awaitMirrors waits until each of the mirrors is so far, or one has failed, where they are required. What they have to tell
// is told meanwhile.
func (r *receiver) awaitMirrors(ctx context.Context, far func(*mirror) bool) error {
	ms := r.mirrors
	if ms == nil || !ms.required {
		return nil
	}
	defer context.AfterFunc(ctx, func() {
		ms.mu.Lock()
		defer ms.mu.Unlock()
		ms.changed.Broadcast()
	})()
	for {
		done, err := ms.wait(ctx, far)
		r.tellMirrors()
		if err == nil {
			err = r.stopped(ctx)
		}
		if done || err != nil {
			return err
		}
	}
}

// wait waits until each mirror is so far, or one has failed, or there is something to tell.
func (ms *mirrors) wait(ctx context.Context, far func(*mirror) bool) (done bool, err error) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for {
		done = true
		for _, m := range ms.list {
			if m.err != nil {
				return false, m.err
			}
			done = done && far(m)
		}
		if done || ctx.Err() != nil || len(ms.told) > 0 {
			return done, nil
		}
		ms.changed.Wait()
	}
}

// beginMirrors begins a stream. Required mirrors have all that comes before it once this returns.
func (r *receiver) beginMirrors(ctx context.Context) error {
	ms := r.mirrors
	if ms == nil {
		return nil
	}
	s := &mirrored{o: r.writerOptions(), mode: r.fileMode(), plain: r.o.Compression == segment.Plain}
	s.next = s.o.Start
	ms.begin(s)
	return r.awaitMirrors(ctx, func(m *mirror) bool { return m.ready == s })
}

func (ms *mirrors) begin(s *mirrored) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if ms.began == 0 {
		ms.began = s.o.Start
	}
	ms.stream = s
	for _, m := range ms.list {
		if ms.required {
			m.down, m.err = false, nil // whatever failed before, such as a full disk: this is another attempt
		}
		if m.down {
			continue // it comes back on its own, and then looks for the stream
		}
		if !m.inStep {
			m.detach() // from a stream that it was to join
		}
		m.attached, m.from = true, 0
	}
	ms.hand(&parcel{kind: parcelBegin, stream: s, lsn: s.o.Start})
}

// feeds tells which writer of the first directory's the stream goes to.
func (ms *mirrors) feeds(w *segment.Writer) {
	if ms == nil {
		return
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	ms.stream.w = w
}

// hand gives the parcel to all mirrors that are attached, with mu held.
func (ms *mirrors) hand(p *parcel) {
	ms.open = nil
	for _, m := range ms.list {
		if m.takes(p.lsn) {
			p.refs++
			m.queue = append(m.queue, p)
			m.working()
		}
	}
}

// append passes on data that the first directory has got.
func (ms *mirrors) append(lsn segment.LSN, data []byte) {
	if ms == nil {
		return
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	ms.stream.next = lsn + segment.LSN(len(data))
	wanted := false
	for _, m := range ms.list {
		if m.takes(lsn) {
			wanted = true
			m.queued += len(data)
			if m.from == lsn {
				ms.open = nil // it begins here
			}
		}
	}
	for wanted && len(data) > 0 {
		p := ms.open
		if p == nil || len(p.data) == cap(p.data) {
			p = &parcel{stream: ms.stream, lsn: lsn, data: ms.buffer()}
			ms.hand(p)
			ms.open = p
		}
		n := min(len(data), cap(p.data)-len(p.data))
		p.data = append(p.data, data[:n]...)
		data, lsn = data[n:], lsn+segment.LSN(n)
	}
	for _, m := range ms.list {
		if m.queued > 0 {
			m.working()
		}
		if m.queued > mirrorBytes && !ms.required {
			m.overrun()
		}
	}
}

func (ms *mirrors) buffer() []byte {
	if n := len(ms.free); n > 0 {
		b := ms.free[n-1]
		ms.free = ms.free[:n-1]
		return b
	}
	return make([]byte, 0, parcelBytes)
}

// unref forgets a parcel once nobody needs it, with mu held. A few buffers are kept.
func (ms *mirrors) unref(p *parcel) {
	if p.refs--; p.refs > 0 {
		return
	}
	if ms.open == p {
		ms.open = nil
	}
	if p.data != nil && len(ms.free) < 4 {
		ms.free = append(ms.free, p.data[:0])
	}
	p.data = nil
}

// ready tells whether there is room for more data.
func (ms *mirrors) ready() bool {
	if ms == nil || !ms.required {
		return true
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for _, m := range ms.list {
		if m.queued >= mirrorBytes {
			return false
		}
	}
	return true
}

// flush asks for a flush of everything that was passed on.
func (ms *mirrors) flush() {
	if ms == nil {
		return
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if s := ms.stream; s.wanted < s.next {
		s.wanted = s.next
		for _, m := range ms.list {
			if m.attached {
				m.working()
			}
		}
	}
}

// flushed is what is durable wherever it has to be, given what is in the first directory.
func (ms *mirrors) flushed(first segment.LSN) segment.LSN {
	if ms == nil || !ms.required {
		return first
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for _, m := range ms.list {
		first = min(first, m.flushed)
	}
	return first
}

// end ends the stream. Once it has returned, what was passed on is durable in all mirrors that are required, or the error tells of
// one where it is not. Any goroutine.
func (ms *mirrors) end() error {
	if ms == nil {
		return nil
	}
	ms.mu.Lock()
	s := ms.stream
	if s != nil && !s.over {
		s.over = true
		ms.hand(&parcel{kind: parcelEnd, stream: s, lsn: s.next})
		for _, m := range ms.list {
			m.work.Broadcast() // also those that wait to join it
		}
	}
	ms.mu.Unlock()
	if s == nil || !ms.required {
		return nil
	}
	ms.mu.Lock()
	for !ms.hasEnded(s) {
		ms.changed.Wait()
	}
	ms.mu.Unlock()
	return ms.failure()
}

// hasEnded tells, with mu held, whether each mirror has ended a stream, or failed.
func (ms *mirrors) hasEnded(s *mirrored) bool {
	for _, m := range ms.list {
		if m.finished != s && m.err == nil {
			return false
		}
	}
	return true
}

// failure is why the receive cannot go on; nil: it can.
func (ms *mirrors) failure() error {
	if ms == nil || !ms.required {
		return nil
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for _, m := range ms.list {
		if m.err != nil {
			return m.err
		}
	}
	return nil
}

// news tells Receive's goroutine that there is some, with mu held.
func (ms *mirrors) news() {
	ms.changed.Broadcast()
	if ms.wake == nil {
		return
	}
	ms.fresh.Store(true)
	ms.wake()
	select {
	case ms.poke <- struct{}{}:
	default:
	}
}

// pokes is readable after news.
func (ms *mirrors) pokes() <-chan struct{} {
	if ms == nil {
		return nil
	}
	return ms.poke
}

// isFresh tells whether there was news since it was asked last.
func (ms *mirrors) isFresh() bool { return ms != nil && ms.fresh.Swap(false) }

// tellMirrors tells the caller what has become of the mirrors.
func (r *receiver) tellMirrors() {
	ms := r.mirrors
	if ms == nil {
		return
	}
	ms.mu.Lock()
	told := ms.told
	ms.told = nil
	ms.mu.Unlock()
	r.showMirrors()
	for _, what := range told {
		switch what := what.(type) {
		case logLine:
			r.o.Events.log(what.level, what.text)
		case Hole:
			r.tellHole(what)
		case MirrorChange:
			if e := r.o.Events.Mirror; e != nil {
				r.stopOn(e(what))
			}
		}
	}
}

// showMirrors makes the progress say how many mirrors are written in step.
func (r *receiver) showMirrors() {
	ms := r.mirrors
	inStep := 0
	ms.mu.Lock()
	for _, m := range ms.list {
		if m.inStep {
			inStep++
		}
	}
	ms.mu.Unlock()
	r.s.setProgress(func(p *Progress) { p.Mirrors, p.MirrorsFailed = inStep, len(ms.list)-inStep })
}

// closeMirrors ends the mirrors: what was passed on to those that are written in step gets durable. One that is not required and
// hangs is left alone after mirrorGrace: its goroutine ends, and closes its files, when the disk lets it.
func (r *receiver) closeMirrors() error {
	ms := r.mirrors
	if ms == nil {
		return nil
	}
	ms.end()
	ms.mu.Lock()
	ms.ended = true
	for _, m := range ms.list {
		m.work.Broadcast()
	}
	ms.mu.Unlock()
	hangs := make(chan struct{}) // never, where they are required: as with the first directory
	if !ms.required {
		defer time.AfterFunc(mirrorGrace, func() { close(hangs) }).Stop()
	}
	for _, m := range ms.list {
		select {
		case <-m.gone:
			continue
		case <-hangs:
		}
		select {
		case <-m.gone:
			continue
		default:
		}
		ms.mu.Lock()
		m.drop(fail(segment.ErrIO, "it did not answer for %s, and may lack what was received last", mirrorGrace))
		ms.mu.Unlock()
	}
	ms.mu.Lock()
	ms.wake = nil
	for _, m := range ms.list {
		if m.watch != nil {
			m.watch.Stop()
		}
	}
	ms.mu.Unlock()
	ms.source.Lock()
	ms.first = nil
	ms.source.Unlock()
	r.tellMirrors()
	return ms.failure()
}

// look looks into the first directory. Any goroutine.
func (ms *mirrors) look(into func(*segment.Directory) error) error {
	ms.source.RLock()
	defer ms.source.RUnlock()
	if ms.first == nil {
		return errMirrorEnds
	}
	return into(ms.first)
}

func (ms *mirrors) log(level slog.Level, format string, args ...any) {
	ms.told = append(ms.told, logLine{level, fmt.Sprintf(format, args...)})
}
