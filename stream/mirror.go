package stream

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"libreceivewal/segment"
)

const (
	// mirrorRetry is how long a mirror that has failed is left alone before it is tried again.
	mirrorRetry = 10 * time.Second
	// mirrorPatience is how long a mirror that is not required may do nothing about what it has to do.
	mirrorPatience = time.Minute
	// mirrorWindow is how far behind a mirror may be to be written in step again: it catches up with so much from the first
	// directory's files while new data waits for it.
	mirrorWindow = 4 << 20
	// mirrorLook is the time between two looks for what the first directory is about to have.
	mirrorLook = 100 * time.Millisecond
)

// Why a mirror's goroutine leaves what it is at; not failures.
var (
	errMirrorEnds = errors.New("the receive has ended")
	errMirrorDown = errors.New("the mirror was let go")
)

// mirror is one directory that is written in step with the first. Its goroutine does all that is done to the directory; in
// turns it
//
//   - opens and locks it,
//   - copies from the first directory what it lacks, the oldest first,
//   - joins the stream: from there on it is written in step,
//
// until something fails. Then it closes the directory, waits, and begins again. As in the first directory, a .partial gets its name
// only once everything before it is there.
type mirror struct {
	set  *mirrors
	path string
	gone chan struct{} // closed once the goroutine has ended

	// With set.mu:
	work            sync.Cond // signalled when there may be something to do
	queue           []*parcel
	off             int // how much of the first one is done
	queued          int // bytes of data that wait
	attached        bool
	from            segment.LSN // attached, but only for data from here on
	opened          bool        // the directory was opened and locked
	inStep          bool
	down            bool  // it has failed, and was not opened again
	failed          bool  // the caller was told, and not yet that it is back
	err             error // why it is down
	retry           time.Time
	ready, finished *mirrored   // the last streams that it was ready for, and has ended
	flushed         segment.LSN // what is durable of the stream
	since           time.Time   // since when it has done nothing of what it has to do; zero: there is nothing
	watch           *time.Timer
	watching        bool

	// Its goroutine's:
	dir   *segment.Directory
	owned bool                // whose WAL it has was looked at
	told  bool                // what is wrong with it was told
	lost  map[segment.ID]bool // of which that was told
	reach segment.LSN         // it has all WAL before this; 0: not known

	s     *mirrored // being written
	w     *segment.Writer
	whole bool                  // w fills a hole
	pos   segment.LSN           // what comes next
	kept  segment.LSN           // what is durable without w
	asked segment.LSN           // w was asked to flush so far
	have  map[segment.ID]string // segments that are complete already
}

// run is the mirror's goroutine.
func (m *mirror) run(fsys segment.FS) {
	defer close(m.gone)
	for {
		err := m.serve(fsys)
		if closeErr := m.shut(); closeErr != nil && (err == nil || errors.Is(err, errMirrorEnds)) {
			err = closeErr
		}
		if !m.rest(err) {
			return
		}
	}
}

// serve opens the directory and does what there is to do, until the end or a failure.
func (m *mirror) serve(fsys segment.FS) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fail(segment.ErrInternal, "%v\n%s", p, debug.Stack())
		}
	}()
	m.set.mu.Lock()
	m.working()
	m.set.mu.Unlock()
	if m.dir, err = segment.Open(fsys, m.path); err != nil {
		return err
	}
	m.set.mu.Lock()
	m.opened = true
	m.set.changed.Broadcast()
	m.set.mu.Unlock()
	for {
		p, s, err := m.next()
		switch {
		case err != nil:
			return err
		case p == nil:
			err = m.catchUp(s)
		default:
			err = m.handle(p)
		}
		if err != nil {
			return err
		}
	}
}

// next waits for the next thing to do: a parcel, or a stream to catch up with.
func (m *mirror) next() (*parcel, *mirrored, error) {
	ms := m.set
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for {
		m.look()
		for len(m.queue) > 0 && m.queue[0].kind == parcelData && m.off == len(m.queue[0].data) && m.queue[0] != ms.open {
			m.pop()
		}
		s := ms.stream
		switch {
		case m.down:
			return nil, nil, errMirrorDown
		case m.w != nil && m.w.Err() != nil:
			return nil, nil, m.w.Err()
		case len(m.queue) > 0 && (m.queue[0].kind != parcelData || m.off < len(m.queue[0].data)):
			m.queue[0].refs++
			return m.queue[0], nil, nil
		case ms.ended:
			return nil, nil, errMirrorEnds
		case !m.attached && s != nil && !s.over:
			return nil, s, nil
		}
		if !m.outstanding() {
			m.since = time.Time{}
		}
		m.work.Wait()
	}
}

// look looks, with set.mu held, at how far the writer is, and asks it for a flush that is due.
func (m *mirror) look() {
	flushed := m.kept
	if m.w != nil {
		if m.s.wanted > m.asked && m.pos >= m.s.wanted {
			m.asked = m.pos
			m.w.Flush()
		}
		m.w.Events() // are the first directory's to tell
		flushed = m.w.Flushed()
	}
	m.progress()
	if flushed != m.flushed {
		m.flushed = flushed
		if m.set.required {
			m.set.news()
		}
	}
}

// outstanding tells, with set.mu held, whether the disk has something to do.
func (m *mirror) outstanding() bool { return m.w != nil && m.w.Busy() }

// pop forgets the first parcel of the queue, with set.mu held.
func (m *mirror) pop() {
	m.set.unref(m.queue[0])
	m.queue[0] = nil
	m.queue, m.off = m.queue[1:], 0
}

// takes tells, with set.mu held, whether the mirror is to have what begins at a position.
func (m *mirror) takes(lsn segment.LSN) bool { return m.attached && lsn >= m.from }

// detach ends the mirror's part in the stream, with set.mu held.
func (m *mirror) detach() {
	for len(m.queue) > 0 {
		m.pop()
	}
	m.queue, m.queued, m.attached = nil, 0, false
}

// overrun lets a mirror go for which too much waits, with set.mu held. One that was still catching up goes on doing so.
func (m *mirror) overrun() {
	if !m.inStep {
		m.detach()
		return
	}
	m.drop(fail(segment.ErrIO, "it does not keep up: more than %d MiB wait for it", mirrorBytes>>20))
}

// drop lets a mirror go that has failed, with set.mu held.
func (m *mirror) drop(err error) {
	ms := m.set
	m.detach()
	m.down, m.inStep, m.err = true, false, fmt.Errorf("mirror \"%s\": %w", m.path, err)
	m.retry = time.Now().Add(mirrorRetry)
	if !m.failed {
		m.failed = true
		if !ms.required { // else it is what the receive ends with
			ms.log(slog.LevelWarn, "going on without mirror \"%s\": %v", m.path, err)
		}
		ms.told = append(ms.told, MirrorChange{m.path, MirrorFailed, err})
	}
	m.work.Broadcast()
	ms.news()
}

// joined makes the mirror one that is written in step, with set.mu held.
func (m *mirror) joined() {
	m.inStep, m.err = true, nil
	if m.failed {
		m.failed = false
		m.set.log(slog.LevelInfo, "mirror \"%s\" is written in step again", m.path)
		m.set.told = append(m.set.told, MirrorChange{m.path, MirrorRestored, nil})
	}
	m.set.news()
}

// ------------------------------------------------------------------------------------------------ hanging disks

// working notes, with set.mu held, that there is something to do, and sees to it that somebody looks whether it is done.
func (m *mirror) working() {
	if m.since.IsZero() {
		m.since = time.Now()
	}
	m.work.Signal()
	switch {
	case m.watching || m.set.required || m.set.ended:
	case m.watch == nil:
		m.watching, m.watch = true, time.AfterFunc(mirrorPatience, m.inspect)
	default:
		m.watching = true
		m.watch.Reset(mirrorPatience)
	}
}

// progress notes, with set.mu held, that the disk answers.
func (m *mirror) progress() {
	if !m.since.IsZero() {
		m.since = time.Now()
	}
}

// inspect lets a mirror go whose disk does not answer.
func (m *mirror) inspect() {
	m.set.mu.Lock()
	defer m.set.mu.Unlock()
	m.watching = false
	if m.down || m.since.IsZero() || m.set.ended {
		return
	}
	left := mirrorPatience - time.Since(m.since)
	if left > 0 {
		m.watching = true
		m.watch.Reset(left)
		return
	}
	m.drop(fail(segment.ErrIO, "it has not answered for %s", mirrorPatience))
}

// rest waits after a failure until the mirror is to be tried again. false: it is not, the receive has ended.
func (m *mirror) rest(err error) bool {
	ms := m.set
	ms.mu.Lock()
	defer ms.mu.Unlock()
	m.since = time.Time{}
	if !m.down && !errors.Is(err, errMirrorEnds) && !errors.Is(err, errMirrorDown) {
		m.drop(err)
	}
	for m.down && !ms.ended {
		left := time.Until(m.retry)
		if left <= 0 && !ms.required { // a required one comes back with the next stream
			m.down = false
			break
		}
		if ms.required {
			m.work.Wait()
			continue
		}
		m.pause(left)
	}
	return !ms.ended
}

// pause waits, with set.mu held, for something to happen, but not longer than d.
func (m *mirror) pause(d time.Duration) {
	timer := time.AfterFunc(d, func() {
		m.set.mu.Lock()
		defer m.set.mu.Unlock()
		m.work.Broadcast()
	})
	defer timer.Stop()
	m.work.Wait()
}

// shut closes the writer and the directory.
func (m *mirror) shut() error {
	err := m.closeWriter()
	if m.dir != nil {
		if closeErr := m.dir.Close(); err == nil {
			err = closeErr
		}
	}
	m.dir, m.owned, m.reach = nil, false, 0
	return err
}

// ----------------------------------------------------------------------------------------------------- writing

// handle does what a parcel says.
func (m *mirror) handle(p *parcel) (err error) {
	ms := m.set
	ms.mu.Lock()
	off, data := m.off, p.data[m.off:]
	ms.mu.Unlock()
	switch p.kind {
	case parcelBegin:
		err = m.start(p.stream)
	case parcelData:
		err = m.write(p.lsn+segment.LSN(off), data)
	case parcelEnd:
		err = m.closeWriter()
		m.reach = m.pos
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if err == nil && p.kind == parcelEnd {
		m.look()
		m.finished = p.stream
		ms.changed.Broadcast()
	}
	if len(m.queue) > 0 && m.queue[0] == p { // else it was detached meanwhile
		m.off += len(data)
		wasFull := m.queued >= mirrorBytes
		m.queued -= len(data)
		if wasFull && m.queued < mirrorBytes {
			ms.news()
		}
		if p.kind != parcelData {
			m.pop()
		}
	}
	ms.unref(p)
	return err
}

// start makes the mirror ready for a stream from its beginning.
func (m *mirror) start(s *mirrored) error {
	err := m.prepare(s)
	if err == nil && (m.reach == 0 || s.o.Start > m.reach) {
		err = m.fill(s, s.o.Start)
	}
	if err == nil {
		err = m.startAt(s, s.o.Start)
	}
	if errors.Is(err, errMirrorEnds) {
		m.reach, m.pos = 0, 0
		if !m.set.required { // else no data follows: it waits for this
			m.set.mu.Lock()
			defer m.set.mu.Unlock()
			m.detach()
		}
		return nil
	}
	if err != nil {
		return err
	}
	ms := m.set
	ms.mu.Lock()
	defer ms.mu.Unlock()
	m.look()
	m.ready = s
	if m.attached && ms.stream == s {
		m.joined()
	}
	return nil
}

// goOn is asked while something takes long: it ends what is not wanted any more.
func (m *mirror) goOn(s *mirrored) error {
	m.set.mu.Lock()
	defer m.set.mu.Unlock()
	m.progress()
	switch {
	case m.set.ended, m.set.required && s.over:
		return errMirrorEnds
	case m.down:
		return errMirrorDown
	}
	return nil
}

// prepare makes sure that the directory's WAL is of the stream's cluster, and durable, and that it has the history files.
func (m *mirror) prepare(s *mirrored) error {
	m.dir.SetMode(s.mode)
	if !m.owned {
		if err := m.dir.CheckOwner(s.o.SystemIdentifier, s.o.Size); err != nil {
			return err
		}
		if !s.o.NoSync {
			if err := m.dir.Settle(time.Now()); err != nil {
				return err
			}
		}
		m.owned = true
	}
	for _, e := range s.o.History {
		if err := m.copyHistory(e.Timeline); err != nil {
			return err
		}
	}
	return nil
}

// copyHistory copies a timeline's history file from the first directory, unless it is there.
func (m *mirror) copyHistory(timeline segment.Timeline) error {
	if timeline == 1 {
		return nil
	}
	have, err := m.dir.HasHistory(timeline)
	if err != nil || have {
		return err
	}
	var content []byte
	err = m.set.look(func(first *segment.Directory) (err error) {
		content, err = first.HistoryContent(timeline)
		return err
	})
	if err != nil || content == nil {
		return err
	}
	return m.dir.WriteHistory(timeline, content)
}

// startAt begins to write at a position, before which everything is there: the first byte of a segment.
func (m *mirror) startAt(s *mirrored, lsn segment.LSN) (err error) {
	if err := m.closeWriter(); err != nil {
		return err
	}
	m.s, m.pos, m.kept, m.asked, m.reach = s, lsn, lsn, lsn, lsn
	m.have, err = m.dir.Complete(s.o.Size, func(id segment.ID) bool {
		return id.Timeline == s.o.Timeline && id.LSN(s.o.Size) >= lsn
	})
	return err
}

// write writes data that continues at lsn. Segments that are complete already stay as they are, and what is missing
// between them gets a name once it is complete.
func (m *mirror) write(lsn segment.LSN, data []byte) error {
	if m.s == nil || lsn != m.pos {
		return fail(segment.ErrInternal, "got data at %s, expected %s", lsn, m.pos)
	}
	size := m.s.o.Size
	for len(data) > 0 {
		id := segment.At(m.s.o.Timeline, m.pos, size)
		n := min(len(data), int(id.End(size)-m.pos))
		if m.have[id] != "" {
			if err := m.closeWriter(); err != nil {
				return err
			}
		} else {
			if m.w == nil {
				m.newWriter(id)
			}
			var err error
			if err = m.awaitWriter(); err == nil {
				n, err = m.w.Append(m.pos, data)
			}
			if err != nil {
				return err
			}
		}
		data, m.pos = data[n:], m.pos+segment.LSN(n)
		if m.w == nil {
			m.kept = m.pos
		}
		if m.whole && m.pos == id.End(size) {
			if err := m.closeWriter(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *mirror) newWriter(id segment.ID) {
	o := m.s.o
	o.Start = m.pos
	for other := range m.have {
		o.Whole = o.Whole || other.Number > id.Number
	}
	o.Notify = func() {
		m.set.mu.Lock()
		defer m.set.mu.Unlock()
		m.progress()
		m.work.Broadcast()
	}
	m.w, m.whole = m.dir.NewWriter(o), o.Whole
}

// awaitWriter waits until the writer has room.
func (m *mirror) awaitWriter() error {
	m.set.mu.Lock()
	defer m.set.mu.Unlock()
	for !m.w.Ready() && m.w.Err() == nil {
		if m.down {
			return errMirrorDown
		}
		m.look()
		m.work.Wait()
	}
	return m.w.Err()
}

// closeWriter makes durable what was written.
func (m *mirror) closeWriter() error {
	if m.w == nil {
		return nil
	}
	err := m.w.Close()
	m.set.mu.Lock()
	defer m.set.mu.Unlock()
	m.kept, m.w, m.whole = m.w.Flushed(), nil, false
	m.progress()
	return err
}

// ------------------------------------------------------------------------------------------------- catching up

// catchUp brings a mirror up to where a stream is that it is not attached to, and attaches it. It returns as well once the stream
// is not the one to catch up with any more.
func (m *mirror) catchUp(s *mirrored) error {
	if err := m.prepare(s); err != nil {
		return err
	}
	for {
		m.set.mu.Lock()
		current, to := m.current(s) && !m.inStep && !s.over, s.complete()
		m.set.mu.Unlock()
		if !current {
			return m.goOn(s)
		}
		if err := m.fill(s, to); err != nil {
			return err
		}
		if err := m.startAt(s, to); err != nil {
			return err
		}
		if done, err := m.join(s); done || err != nil {
			return err
		}
	}
}

// current tells, with set.mu held, whether a stream is the one to catch up with.
func (m *mirror) current(s *mirrored) bool { return m.set.stream == s && !m.set.ended && !m.down }

// join follows the stream in the first directory's growing file, until the mirror is near enough to be attached, and then up to there.
// done is false if it is to be brought up to date in another way first.
func (m *mirror) join(s *mirrored) (done bool, err error) {
	var from *segment.Source
	var open segment.ID
	defer func() {
		if from != nil {
			err = errors.Join(err, from.Close())
		}
	}()
	b := make([]byte, 1<<20)
	for {
		end, attached, current := m.attach(s)
		if !current {
			return true, m.goOn(s)
		}
		if attached && m.pos == end && m.inStepAt(s) {
			return true, nil
		}
		id := segment.At(s.o.Timeline, m.pos, s.o.Size)
		end = min(end, id.End(s.o.Size), m.pos+segment.LSN(len(b)))
		if m.have[id] == "" {
			if from == nil || open != id {
				if from != nil {
					if err := from.Close(); err != nil {
						return false, err
					}
				}
				err = m.set.look(func(first *segment.Directory) (err error) {
					from, err = first.Growing(id, s.o.Size)
					return err
				})
				open = id
			}
			if err == nil {
				err = from.Read(b[:end-m.pos], int64(s.o.Size.Offset(m.pos)))
			}
			if err != nil {
				again, err := m.unreadable(s, id, err)
				if again && err == nil {
					continue
				}
				return false, err
			}
		}
		if err := m.goOn(s); err != nil {
			return true, err
		}
		if err := m.write(m.pos, b[:end-m.pos]); err != nil {
			return true, err
		}
	}
}

// attach attaches the mirror to a stream if it is near enough, and tells where the stream, or the part that the mirror is still to
// get from the first directory, ends.
func (m *mirror) attach(s *mirrored) (end segment.LSN, attached, current bool) {
	ms := m.set
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if !m.current(s) || s.over && !m.attached {
		return 0, false, false
	}
	if m.attached {
		return m.from, true, true
	}
	if s.next-m.pos > mirrorWindow {
		return s.next, false, true
	}
	m.attachAt(s.next)
	return m.from, true, true
}

// attachAt attaches the mirror for what comes from a position on, with set.mu held.
func (m *mirror) attachAt(lsn segment.LSN) {
	m.detach()
	m.attached, m.from = true, lsn
	m.set.open = nil
}

// unreadable deals with a growing file that cannot be read. again: its name is about to appear. Otherwise the mirror
// joins the stream where its next segment begins, once the first directory has everything before that.
func (m *mirror) unreadable(s *mirrored, id segment.ID, err error) (again bool, _ error) {
	if !errors.Is(err, segment.ErrSource) {
		return false, err
	}
	if s.plain && errors.Is(err, fs.ErrNotExist) {
		m.set.mu.Lock()
		defer m.set.mu.Unlock()
		if s.complete() > id.LSN(s.o.Size) {
			return false, nil // it is complete, and gone already, or has another form
		}
		m.progress()
		m.pause(mirrorLook)
		return true, nil
	}
	at := m.awaitBoundary(s)
	if at == 0 {
		return false, nil
	}
	if err := m.fill(s, at); err != nil {
		return false, err
	}
	if err := m.startAt(s, at); err != nil {
		return false, err
	}
	m.inStepAt(s)
	return false, nil
}

// awaitBoundary attaches the mirror where the next segment of a stream begins, and waits until the first directory is complete up to
// there. 0: that does not come.
func (m *mirror) awaitBoundary(s *mirrored) segment.LSN {
	m.set.mu.Lock()
	defer m.set.mu.Unlock()
	if !m.current(s) || s.over {
		return 0
	}
	at := s.o.Size.Floor(s.next + segment.LSN(s.o.Size) - 1)
	m.attachAt(at)
	for m.current(s) && m.attached && !s.over && s.next < at {
		m.since = time.Time{}
		m.work.Wait()
	}
	for m.current(s) && m.attached && !s.over && s.complete() < at {
		m.pause(mirrorLook)
	}
	if m.current(s) && m.attached && s.complete() >= at {
		return at
	}
	if m.current(s) {
		m.detach()
	}
	return 0
}

// inStepAt makes the mirror one that is written in step, if it has all of a stream that comes before what it is attached for.
func (m *mirror) inStepAt(s *mirrored) bool {
	m.set.mu.Lock()
	defer m.set.mu.Unlock()
	if !m.current(s) || !m.attached || m.pos != m.from {
		return false
	}
	m.ready = s
	m.joined()
	return true
}

// -------------------------------------------------------------------------------------------- what is missing

// fill copies from the first directory what the mirror lacks before a position of a stream, and tells of what cannot be had.
func (m *mirror) fill(s *mirrored, to segment.LSN) error {
	if to == m.reach {
		return nil
	}
	report, err := m.dir.Check(segment.CheckOptions{Size: s.o.Size, Until: to, History: s.o.History})
	if err != nil {
		return err
	}
	first := !m.told
	if first {
		m.told = true
		for _, p := range report.Problems {
			m.tell(p, HoleFound)
		}
	}
	missing := slices.DeleteFunc(report.Problems, func(p segment.Problem) bool {
		return p.Kind != segment.Missing || m.set.repair == RepairOff && p.EndLSN != to
	})
	if report.Begin == 0 {
		if missing, err = m.everything(s, to); err != nil {
			return err
		}
	}
	if len(missing) == 0 {
		return m.fillEnds(s, report.Begin)
	}
	wanted := map[segment.ID]bool{}
	for _, p := range missing {
		for lsn := p.LSN; lsn < p.EndLSN; lsn += segment.LSN(s.o.Size) {
			wanted[segment.At(p.Timeline, lsn, s.o.Size)] = true
		}
	}
	for _, p := range missing {
		m.note(slog.LevelDebug, "copying to mirror \"%s\" what is missing from %s to %s (timeline %d)", m.path, p.LSN, p.EndLSN, p.Timeline)
	}
	sources, err := m.sources(s, wanted)
	if err != nil {
		return err
	}
	for _, p := range missing {
		if err := m.fillHole(s, p, sources, first); err != nil {
			return err
		}
	}
	return m.fillEnds(s, missing[0].LSN)
}

// fillEnds copies the partial segments in which earlier timelines ended, from a position on. A recovery does not need them: the next
// timeline's segment begins with the same WAL.
func (m *mirror) fillEnds(s *mirrored, begin segment.LSN) error {
	for _, e := range s.o.History {
		if begin == 0 || e.End <= begin || s.o.Size.Offset(e.End) == 0 {
			continue
		}
		id := segment.At(e.Timeline, e.End, s.o.Size)
		have, err := m.dir.Files(id, s.o.Size)
		if err != nil {
			return err
		}
		if len(have) > 0 {
			continue
		}
		var names []string
		err = m.set.look(func(first *segment.Directory) (err error) {
			names, err = first.Files(id, s.o.Size)
			return err
		})
		if err != nil {
			return err
		}
		for _, name := range names {
			err := m.copySegment(s, id, map[segment.ID]string{id: name})
			if err != nil && !errors.Is(err, segment.ErrSource) {
				return err
			}
		}
	}
	return nil
}

// everything is what a mirror without WAL lacks: it begins where the receive began, or with the first directory's oldest segment after
// that.
func (m *mirror) everything(s *mirrored, to segment.LSN) ([]segment.Problem, error) {
	m.set.mu.Lock()
	began := m.set.began
	m.set.mu.Unlock()
	begin := segment.LSN(0)
	sources, err := m.sources(s, nil)
	for id := range sources {
		if lsn := id.LSN(s.o.Size); lsn >= began && lsn < to && s.o.History.TimelineOf(id.End(s.o.Size)-1) == id.Timeline &&
			(begin == 0 || lsn < begin) {
			begin = lsn
		}
	}
	if err != nil || begin == 0 {
		return nil, err
	}
	return segment.MissingAlong(s.o.History, begin, to, s.o.Size), nil
}

// sources are the first directory's complete segments, as far as they are wanted; nil: all.
func (m *mirror) sources(s *mirrored, wanted map[segment.ID]bool) (names map[segment.ID]string, err error) {
	err = m.set.look(func(first *segment.Directory) (err error) {
		names, err = first.Complete(s.o.Size, func(id segment.ID) bool { return wanted == nil || wanted[id] })
		return err
	})
	return names, err
}

// fillHole copies the segments of a hole, as far as they are there, and tells what has become of it.
func (m *mirror) fillHole(s *mirrored, hole segment.Problem, sources map[segment.ID]string, first bool) error {
	var lost []segment.ID
	begin, gone := hole.LSN, false // of a run of segments with the same fate
	told := func(end segment.LSN) {
		p := segment.MissingFrom(hole.Timeline, begin, end, s.o.Size)
		switch {
		case begin == end:
		case gone:
			if !first {
				m.tell(p, HoleFound)
			}
			m.tell(p, HoleLost)
		case first:
			m.tell(p, HoleRepaired)
		}
		begin = end
	}
	for lsn := hole.LSN; lsn < hole.EndLSN; lsn += segment.LSN(s.o.Size) {
		id := segment.At(hole.Timeline, lsn, s.o.Size)
		err := m.copySegment(s, id, sources)
		if err != nil && !errors.Is(err, segment.ErrSource) {
			return err
		}
		missed := err != nil
		if missed {
			lost = append(lost, id)
			m.note(slog.LevelDebug, "mirror \"%s\": %v", m.path, err)
			missed = !m.lost[id] // else it was told before
		}
		if missed != gone {
			told(lsn)
			gone = missed
		}
	}
	told(hole.EndLSN)
	for _, id := range lost {
		m.lost[id] = true
	}
	if len(lost) > 0 && m.set.repair == RepairStop {
		return fail(segment.ErrGap, "%s, and the first directory does not have it", hole.Text)
	}
	return nil
}

// copySegment copies one segment from the first directory; ErrSource: it cannot be had there.
func (m *mirror) copySegment(s *mirrored, id segment.ID, sources map[segment.ID]string) error {
	if err := m.goOn(s); err != nil {
		return err
	}
	from, err := m.open(sources[id])
	if errors.Is(err, fs.ErrNotExist) { // since then somebody has compressed it, or taken it away
		renamed, lookErr := m.sources(s, map[segment.ID]bool{id: true})
		if lookErr != nil {
			return lookErr
		}
		if renamed[id] != "" {
			from, err = m.open(renamed[id])
		}
	}
	if err != nil {
		return err
	}
	err = m.dir.CopySegment(from, id, s.o, func() error { return m.goOn(s) })
	return errors.Join(err, from.Close())
}

func (m *mirror) open(name string) (from *segment.Source, err error) {
	if name == "" {
		return nil, fmt.Errorf("%w: %w", segment.ErrSource, fs.ErrNotExist)
	}
	err = m.set.look(func(first *segment.Directory) (err error) {
		from, err = first.Source(name)
		return err
	})
	return from, err
}

// tell has the caller told of a problem of the mirror.
func (m *mirror) tell(p segment.Problem, state HoleState) {
	m.set.mu.Lock()
	defer m.set.mu.Unlock()
	m.set.told = append(m.set.told, Hole{p, m.path, state})
	m.set.news()
}

func (m *mirror) note(level slog.Level, format string, args ...any) {
	m.set.mu.Lock()
	defer m.set.mu.Unlock()
	m.set.log(level, format, args...)
	m.set.news()
}
