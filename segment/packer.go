package segment

import (
	"errors"
	"sync"
	"time"
)

// packers compress segments beside the caller: Append copies data into a segment's queue, and a worker, a goroutine of the Writer's,
// takes it from there through an encoder into the file.
//
//	Append ──copy──> queue ──> worker: encoder ──> pwrite ──> an open segment     (then the syncer, as without compression)
//
// A worker has one segment from its beginning to its end, so as many segments are compressed at a time as there are workers. For
// the others to have work, whole segments wait in the queue. What a worker has put into the file counts for the syncer only up
// to where a decoder can read it: see packing.stored.
type packers struct {
	limit   int       // chunks in all queues, at most; an Append more
	queued  int       // chunks in all queues
	full    bool      // there were too many: Ready is false until half of them are gone
	running int       // workers
	idle    int       // of them, those without a segment
	work    sync.Cond // they wait here, with Writer.mu

	free  []*chunk    // for the next data
	least int         // there have been so many of them ever since trimming
	trim  *time.Timer // gives back those that have not been needed; nil while there are none

	stalled int   // workers that wait for room on the disk
	noRoom  error // why
	retries int   // of them that were asked for
	err     error // sticky: a worker has failed
}

// packing is a segment's compression. All but its last fields are used with Writer.mu held.
type packing struct {
	queue   []*chunk
	end     LSN  // of the last byte that was put into the queue
	taken   bool // a worker has it, or has had it
	stored  LSN  // up to here it can be decoded from the file
	synced  LSN  // stored, when the file was last synced
	encoded LSN  // up to here the encoder has it
	goal    LSN  // it is to be flushed once it is encoded up to here; 0: no flush is wanted

	out    []byte // what the encoder has put out and is not in the file yet; the worker's
	offset int64  // where it belongs
}

// Write takes what the encoder puts out.
func (p *packing) Write(b []byte) (int, error) {
	p.out = append(p.out, b...)
	return len(b), nil
}

// chunk is a piece of data in a queue.
type chunk struct {
	n    int
	data [chunkSize]byte
}

const (
	chunkSize = 256 << 10

	// With one worker this much data waits for it, so that it does not rest while the caller reads; with more of them a segment
	// for each, so that all have something to do, but no more than the second.
	minQueue = 4 << 20
	maxQueue = 256 << 20

	// A chunk is kept for at least that long, and for no more than twice that when it is not needed.
	trimAfter = time.Second

	// A worker writes to the file when it has this much. An encoder puts out its data in pieces of up to a block.
	outSize = 256 << 10
)

func (w *Writer) newPackers() *packers {
	limit := minQueue
	if w.workers() > 1 {
		limit = min(max(w.workers()*int(w.o.Size), minQueue), maxQueue)
	}
	p := &packers{limit: limit / chunkSize}
	p.work.L = &w.mu
	return p
}

func (w *Writer) workers() int { return max(w.o.CompressionWorkers, 1) }

// beginPacking gives a new segment, with mu held, to a worker.
func (w *Writer) beginPacking() {
	if w.pack.idle == 0 && w.pack.running < w.workers() {
		w.pack.running++
		go w.worker()
	}
	w.pack.work.Broadcast()
}

// enqueue copies data to the end of a segment's queue.
func (w *Writer) enqueue(s *openSegment, data []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := s.pack
	p.end += LSN(len(data))
	for len(data) > 0 {
		if len(p.queue) == 0 || p.queue[len(p.queue)-1].n == chunkSize {
			p.queue = append(p.queue, w.pack.newChunk())
			w.pack.queued++
		}
		c := p.queue[len(p.queue)-1]
		n := copy(c.data[c.n:], data)
		c.n += n
		data = data[n:]
	}
	w.pack.full = w.pack.full || w.pack.queued >= w.pack.limit
	w.pack.work.Broadcast()
}

// newChunk gives an empty chunk, with Writer.mu held.
func (p *packers) newChunk() *chunk {
	last := len(p.free) - 1
	if last < 0 {
		return new(chunk)
	}
	c := p.free[last]
	p.free[last], p.free = nil, p.free[:last]
	p.least = min(p.least, last)
	c.n = 0
	return c
}

// freeChunk takes back a chunk, with Writer.mu held.
func (w *Writer) freeChunk(c *chunk) {
	p := w.pack
	p.free = append(p.free, c)
	if p.trim == nil {
		p.least = 0
		p.trim = time.AfterFunc(trimAfter, w.trimChunks)
	}
}

// trimChunks gives back what was not needed since the last time.
func (w *Writer) trimChunks() {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.pack
	keep := len(p.free) - p.least
	clear(p.free[keep:])
	p.free = p.free[:keep]
	p.least = keep
	if keep == 0 {
		p.free, p.trim = nil, nil
	} else {
		p.trim.Reset(trimAfter)
	}
}

// worker packs one segment after the other.
func (w *Writer) worker() {
	var e Encoder
	var err error
	var out []byte
	defer func() {
		if e, ok := e.(interface{ Free() }); ok {
			e.Free()
		}
	}()
	for s := w.nextToPack(); s != nil && err == nil; s = w.nextToPack() {
		s.pack.out = out[:0]
		if e, err = w.packSegment(s, e); err != nil {
			w.packingFailed(err)
		}
		out, s.pack.out = s.pack.out, nil
	}
	w.mu.Lock()
	w.pack.running--
	w.work.Signal()
	w.mu.Unlock()
}

// packingFailed ends all packing. What was packed before still becomes durable.
func (w *Writer) packingFailed(err error) {
	w.mu.Lock()
	if w.pack.err == nil {
		w.pack.err = err
	}
	w.pack.work.Broadcast()
	w.mu.Unlock()
	if w.o.Notify != nil {
		w.o.Notify()
	}
}

// nextToPack waits for the oldest segment that no worker has; nil: there will be none any more.
func (w *Writer) nextToPack() *openSegment {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pack.idle++
	defer func() { w.pack.idle-- }()
	for w.err == nil && w.pack.err == nil {
		for _, s := range w.pending {
			if !s.pack.taken {
				s.pack.taken = true
				return s
			}
		}
		if w.closing {
			return nil
		}
		w.pack.work.Wait()
	}
	return nil
}

// step is what a worker does next.
type step int

const (
	stepStop   step = iota // nothing any more: the Writer is closed, or has failed
	stepEncode             // a chunk
	stepFlush              // up to where it is encoded
	stepEnd                // the segment
)

// packSegment packs a segment to its end. It returns the encoder, which it makes if e is nil, for the next one.
func (w *Writer) packSegment(s *openSegment, e Encoder) (_ Encoder, err error) {
	defer recovered(&err)
	if e == nil {
		if e, err = newEncoder(w.o.Compression, w.o.CompressionLevel, w.o.Size); err != nil {
			return nil, err
		}
	}
	p := s.pack
	e.Reset(p)
	for {
		next, c := w.nextStep(s)
		switch next {
		case stepEncode:
			if _, err = e.Write(c.data[:c.n]); err == nil {
				err = w.writeOut(s, outSize)
			}
			w.encoded(s, c)
		case stepFlush:
			if err = e.Flush(); err == nil {
				err = w.store(s)
			}
		case stepEnd:
			if err = e.Close(); err == nil {
				err = w.store(s)
			}
			return e, err
		case stepStop:
			return e, nil
		}
		if err != nil {
			return e, err
		}
	}
}

// nextStep waits for something to do for a segment.
func (w *Writer) nextStep(s *openSegment) (step, *chunk) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := s.pack
	for w.err == nil && w.pack.err == nil {
		if w.flushDue(s) {
			return stepFlush, nil
		}
		if len(p.queue) > 0 {
			c := p.queue[0]
			p.queue = p.queue[1:]
			return stepEncode, c
		}
		if p.encoded == s.id.End(w.o.Size) {
			return stepEnd, nil
		}
		if w.closing {
			return stepStop, nil
		}
		w.pack.work.Wait()
	}
	return stepStop, nil
}

// flushDue tells, with mu held, whether the encoder is to be flushed now: when somebody waits for what it has, or for the file's name;
// that of the first segment is not left to chance, since it may decide where the next receive begins.
// A flush that comes while the syncer is busy with the last one waits for it, and takes along what came meanwhile. The
// segment's end needs none.
func (w *Writer) flushDue(s *openSegment) bool {
	p := s.pack
	if p.encoded <= p.stored || p.encoded == s.id.End(w.o.Size) {
		return false
	}
	if w.mayShow(s, p.encoded) && !w.mayShow(s, p.stored) && (len(p.queue) == 0 || w.isFirst(s.id)) {
		return true
	}
	if p.goal == 0 && w.wanted > p.stored && (p.stored == p.synced || !s.visible) {
		p.goal = min(w.wanted, p.end)
	}
	return p.goal != 0 && p.encoded >= p.goal
}

// encoded gives back a chunk whose data the encoder has.
func (w *Writer) encoded(s *openSegment, c *chunk) {
	w.mu.Lock()
	s.pack.encoded += LSN(c.n)
	w.pack.queued--
	ready := w.pack.full && w.pack.queued <= w.pack.limit/2
	if ready {
		w.pack.full = false
	}
	w.freeChunk(c)
	w.mu.Unlock()
	if ready && w.o.Notify != nil {
		w.o.Notify()
	}
}

// store writes the rest of what the encoder has put out, and tells the syncer that it can be decoded.
func (w *Writer) store(s *openSegment) error {
	if err := w.writeOut(s, 1); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	s.pack.stored, s.pack.goal = s.pack.encoded, 0
	if w.due() {
		w.work.Signal()
	}
	return nil
}

// writeOut writes what the encoder has put out, if that is least bytes or more. On a full disk it waits, and tries again with the same
// bytes at the same place: an encoder cannot go back.
func (w *Writer) writeOut(s *openSegment, least int) error {
	p := s.pack
	if len(p.out) < least {
		return nil
	}
	for waited := false; ; waited = true {
		err := writeAt(s.file, p.out, p.offset)
		if err == nil {
			if waited {
				w.hasRoom()
			}
			break
		}
		err = failure("write to file", w.d.full(w.partialName(s.id)), err)
		if !errors.Is(err, ErrDiskFull) || !w.awaitRoom(err, !waited) {
			return err
		}
	}
	w.stored.Add(uint64(len(p.out)))
	p.offset += int64(len(p.out))
	p.out = p.out[:0]
	return nil
}

// awaitRoom waits until a write that failed is to be tried again. False: never; while the Writer is closed it is tried once more.
func (w *Writer) awaitRoom(err error, first bool) bool {
	w.mu.Lock()
	if first {
		w.pack.stalled++
	}
	w.pack.noRoom = err
	tried, closed := w.pack.retries, w.closing
	w.mu.Unlock()
	if w.o.Notify != nil {
		w.o.Notify()
	}
	if closed {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.pack.retries == tried && !w.closing && w.err == nil && w.pack.err == nil {
		w.pack.work.Wait()
	}
	return w.err == nil && w.pack.err == nil
}

func (w *Writer) hasRoom() {
	w.mu.Lock()
	w.pack.stalled--
	w.mu.Unlock()
	if w.o.Notify != nil {
		w.o.Notify()
	}
}

// Stalled is why compressed data cannot be written, while there is no room on the disk for it: an ErrDiskFull. The data that was
// appended is kept, and Ready is false. Retry tries again; nobody else does. Any goroutine.
func (w *Writer) Stalled() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pack == nil || w.pack.stalled == 0 {
		return nil
	}
	return w.pack.noRoom
}

// Retry tries to write what is Stalled, and returns at once. Notify tells the outcome.
func (w *Writer) Retry() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pack != nil {
		w.pack.retries++
		w.pack.work.Broadcast()
	}
}
