package stream

import (
	"sync"

	"libreceivewal/segment"
)

// hold is what keeps the flushed position that is reported behind the one that is durable: data that the caller has not
// taken yet (Events.Data), and WAL that it has not confirmed (Options.Confirm). Any goroutine.
type hold struct {
	mu        sync.Mutex
	waits     bool        // a receive with Options.Confirm runs
	received  segment.LSN // how far it has come, over all its connections
	confirmed segment.LSN
	given     uint64 // bytes that Events.Data was called with
	taken     uint64 // and those of them that it counts as having taken
	news      bool   // confirmed or taken has changed
}

// begin forgets the last receive.
func (h *hold) begin(waits bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.waits, h.received, h.confirmed, h.given, h.taken, h.news = waits, 0, 0, 0, 0, false
}

// end: nothing can be confirmed any more.
func (h *hold) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.waits = false
}

// reach notes that WAL up to lsn was written, or lies before the beginning.
func (h *hold) reach(lsn segment.LSN) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.received = max(h.received, lsn)
}

// leave notes that a timeline was left at lsn: what was received beyond it is not what will come from there on.
func (h *hold) leave(lsn segment.LSN) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.received, h.confirmed = min(h.received, lsn), min(h.confirmed, lsn)
}

func (h *hold) confirm(lsn segment.LSN) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case !h.waits:
		return fail(ErrInvalid, "no receive that waits for confirmations is running")
	case lsn > h.received:
		return fail(ErrInvalid, "cannot confirm WAL up to %s: only that up to %s was received", lsn, h.received)
	case lsn > h.confirmed:
		h.confirmed, h.news = lsn, true
	}
	return nil
}

func (h *hold) give(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.given += uint64(n)
}

func (h *hold) take(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.taken, h.news = h.taken+uint64(n), true
}

// waiting is how much data was given but not taken.
func (h *hold) waiting() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.given - h.taken
}

// changed tells whether something was confirmed or taken since it was asked last.
func (h *hold) changed() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	news := h.news
	h.news = false
	return news
}

// limit is the flushed position that may be reported at most, in a stream from start that has given its data up to next. 0 while
// data of an earlier stream was not taken.
func (h *hold) limit(start, next segment.LSN) segment.LSN {
	h.mu.Lock()
	defer h.mu.Unlock()
	waiting := segment.LSN(h.given - h.taken)
	if waiting > next-start {
		return 0
	}
	limit := next - waiting
	if h.waits {
		limit = min(limit, h.confirmed)
	}
	return limit
}

// Confirm tells that the caller has made all WAL before lsn safe elsewhere (Options.Confirm). A lower lsn than before changes
// nothing. ErrInvalid if lsn is beyond what was received, or no receive with Options.Confirm runs. Any goroutine.
func (s *Session) Confirm(lsn segment.LSN) error {
	if err := s.hold.confirm(lsn); err != nil {
		return err
	}
	s.setProgress(func(p *Progress) { p.ConfirmedLSN = max(p.ConfirmedLSN, lsn) })
	s.wake()
	return nil
}

// DataTaken tells, with Options.DataAhead, that the next n bytes given to Events.Data have been taken. Any goroutine.
func (s *Session) DataTaken(n int) {
	s.hold.take(n)
	s.wake()
}
