package segment

import (
	"errors"
	"sync"
)

// spare is the file of the next segment, filled with zeros and made durable while the one before is being written.
//
// A flush of bytes that were never written, be there space for them or not, has to change the file's metadata as well, and waits for
// the file system's journal. In a file of zeros it is one write of the data and no more: that is what each commit of a
// synchronous stream waits for. The zeros are written at twice the pace of the WAL, in pieces, so that they are no burst that the
// flushes wait behind, and that an idle stream writes none.
//
// The file has no name, and is gone after a crash. An error here is none of the receive: the segment's file is then made when
// its turn comes, and if the reason lasts, that fails.
type spare struct {
	d    *Directory
	size int64

	mu      sync.Mutex
	idle    sync.Cond // with mu: work has ended
	file    File      // nil: there is none yet
	zeroed  int64     // as much of it is zeros, and durable
	wanted  int64
	working bool
	failed  bool // until the next segment
	closed  bool
}

// spareChunk is how much is written at a time.
const spareChunk = 256 << 10

var zeros [spareChunk]byte

func newSpare(d *Directory, size Size) *spare {
	s := &spare{d: d, size: int64(size)}
	s.idle.L = &s.mu
	return s
}

// keepAhead tells how far the segment before has been written.
func (s *spare) keepAhead(offset int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wanted = max(s.wanted, min(s.size, 2*offset+spareChunk))
	if s.zeroed < s.wanted && !s.working && !s.failed && !s.closed {
		s.working = true
		go s.work()
	}
}

// work writes zeros until there are as many as wanted.
func (s *spare) work() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.zeroed < s.wanted && !s.closed && !s.failed {
		f, from := s.file, s.zeroed
		s.mu.Unlock()
		f, err := s.more(f, from)
		s.mu.Lock()
		s.file = f
		if err != nil {
			s.failed = true
		} else {
			s.zeroed = min(s.size, from+spareChunk)
		}
	}
	s.working = false
	s.idle.Broadcast()
}

// more writes the next zeros, to a new file if there is none.
func (s *spare) more(f File, from int64) (_ File, err error) {
	defer recovered(&err)
	if f == nil {
		if f, err = s.d.dir.Create(s.d.mode); err != nil {
			return nil, err
		}
		if err := f.Allocate(s.size); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	if err := zero(f, from, min(s.size, from+spareChunk)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// zero fills a part of the file with zeros, and makes them durable.
func zero(f File, from, to int64) error {
	for ; from < to; from += spareChunk {
		if err := writeAt(f, zeros[:min(spareChunk, to-from)], from); err != nil {
			return err
		}
	}
	return f.Sync()
}

// take gives the file away, if there is one: also where not all of it is zeros yet, since it has its space, and there may be no more. It
// waits for the piece that is being written.
func (s *spare) take() File {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wanted = 0
	for s.working {
		s.idle.Wait()
	}
	f := s.file
	s.file, s.zeroed, s.failed = nil, 0, false
	return f
}

// close ends it; a call of the file system that is in progress is waited for.
func (s *spare) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for s.working {
		s.idle.Wait()
	}
	if s.file == nil {
		return nil
	}
	f := s.file
	s.file = nil
	if err := f.Close(); err != nil {
		return failure("close the next segment's file in", s.d.path, err)
	}
	return nil
}
