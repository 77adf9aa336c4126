package stream

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"libreceivewal/segment"
)

// --------------------------------------------------------------------------------------------- Events.Data

// dataLog checks that data continues, and that it is the server's.
type dataLog struct {
	t     *testing.T
	c     *cluster
	next  segment.LSN // 0: anywhere
	bytes int
}

func (l *dataLog) add(d Data) error {
	if l.next != 0 && d.LSN != l.next {
		l.t.Errorf("data at %s, expected %s", d.LSN, l.next)
	}
	if want := l.c.wal(d.Timeline, d.LSN, len(d.Bytes)); string(want) != string(d.Bytes) {
		l.t.Errorf("data at %s is not the server's", d.LSN)
	}
	if d.SegmentSize.Floor(d.LSN) != d.SegmentSize.Floor(d.LSN+segment.LSN(len(d.Bytes))-1) {
		l.t.Errorf("data at %s with %d bytes goes beyond a segment", d.LSN, len(d.Bytes))
	}
	l.next, l.bytes = d.LSN+segment.LSN(len(d.Bytes)), l.bytes+len(d.Bytes)
	return nil
}

// Each byte comes once and in order, and is not reported as flushed before: a status that reaches beyond would fail in the
// play if it were not durable, and here if it were not told.
func TestData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x30ABCD))
		log := &dataLog{t: t, c: p.c}
		p.chunk, p.ask = 100_000, true
		p.receiveWith(Options{Slot: "s", Synchronous: true, StartLSN: 0x100000, EndLSN: 0x2FFFFF, ReceiveTimeout: -1}, log.add)
		if err := p.serve(); err != nil {
			t.Fatal(err)
		}
		if log.next < 0x300000 || log.bytes != int(log.next-0x100000) {
			t.Errorf("%d bytes up to %s", log.bytes, log.next)
		}
		p.usable()
	})
}

// receiveWith is receive with a Data callback.
func (p *play) receiveWith(o Options, data func(Data) error) {
	p.data = data
	p.receive(o)
}

// An answer that is an error stops cleanly; nothing comes after it, and nothing of it or behind it is reported flushed.
func TestDataRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x30ABCD))
		no, calls := errors.New("no"), 0
		p.data = func(d Data) error {
			calls++
			if d.LSN >= 0x100100 {
				return no
			}
			return nil
		}
		p.begin(Options{Slot: "s", Synchronous: true, StartLSN: 0x100000}, 0x100000)
		p.wal(0x100000, 0x100)
		p.expect("status 0/100100 0/100100")
		p.send(p.walMessage(0x100100, 0x100), p.walMessage(0x100200, 0x100))
		p.expect("status 0/100300 0/100100")
		p.copyEnds()
		p.end(ErrStopped, no)
		if calls != 2 {
			t.Errorf("called %d times", calls)
		}
		if r := p.s.Progress().ReportedLSN; r != 0x100100 {
			t.Errorf("reported %s", r)
		}
		p.usable()
	})
}

// With DataAhead, what was not taken is not reported, and beyond so much of it no more is read; the server hears from us
// all the same, and gets the reply that it wants once all is taken.
func TestDataAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x30ABCD))
		p.data = (&dataLog{t: t, c: p.c}).add
		p.begin(Options{Slot: "s", Synchronous: true, StartLSN: 0x100000, DataAhead: 0x200}, 0x100000)
		p.wal(0x100000, 0x100)
		p.expect("status 0/100100 0/100000")
		p.send(keepalive(0x100100, 1))
		p.expect("status 0/100100 0/100000") // after the patience for a flush
		time.Sleep(time.Minute)
		p.quiet() // nothing new
		p.s.DataTaken(0x80)
		p.expect("status 0/100100 0/100080")
		p.s.DataTaken(0x80)
		p.expect("status 0/100100 0/100100")
		p.send(p.walMessage(0x100100, 0x180), p.walMessage(0x100280, 0x80), p.walMessage(0x100300, 0x80))
		p.wait()
		if written := p.s.Progress().WrittenLSN; written != 0x100300 {
			t.Errorf("written %s, with 0x200 bytes waiting at 0/100300", written)
		}
		before := time.Now()
		for range 4 {
			p.expect("status 0/100300 0/100100")
		}
		if time.Since(before) > 5*time.Second {
			t.Errorf("4 status updates in %s", time.Since(before))
		}
		p.s.DataTaken(0x200)
		for m := p.next(); m.text != "status 0/100300 0/100300"; m = p.next() {
		}
		p.wait()
		p.stop() // what was not taken does not hold up a stop
		p.expect("status 0/100380 0/100300")
		p.copyEnds()
		p.end(ErrStopped)
		p.usable()
	})
}

// ------------------------------------------------------------------------------------------------- confirm

// Nothing is reported as flushed that was not confirmed; a confirmation is reported at once in synchronous mode.
func TestConfirm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x30ABCD))
		if err := p.s.Confirm(0); !errors.Is(err, ErrInvalid) {
			t.Errorf("without a receive: %v", err)
		}
		p.begin(Options{Slot: "s", Synchronous: true, Confirm: true, StartLSN: 0x100000}, 0x100000)
		p.wal(0x100000, 0x200)
		time.Sleep(time.Minute)
		p.quiet()
		for _, lsn := range []segment.LSN{0x100100, 0x80, 0x100180, 0x100200} {
			if err := p.s.Confirm(lsn); err != nil {
				t.Errorf("confirm %s: %v", lsn, err)
			}
			if lsn == 0x80 {
				p.quiet() // lower than before
				continue
			}
			p.expect(fmt.Sprintf("status 0/100200 %s", lsn))
			p.wait()
			if got := p.s.Progress(); got.ConfirmedLSN != lsn || got.ReportedLSN != lsn {
				t.Errorf("confirmed %s, reported %s", got.ConfirmedLSN, got.ReportedLSN)
			}
		}
		if err := p.s.Confirm(0x100201); !errors.Is(err, ErrInvalid) {
			t.Errorf("beyond what was received: %v", err)
		}
		p.wal(0x100200, 0x10)
		p.wait()
		p.finish(0x100210, 0x100200) // unconfirmed data does not hold up a stop
		if err := p.s.Confirm(0x100200); !errors.Is(err, ErrInvalid) {
			t.Errorf("after the receive: %v", err)
		}
	})
}

// What is confirmed but not durable is not reported.
func TestConfirmAheadOfTheDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x30ABCD)).with(slowly(time.Minute))
		p.begin(Options{Slot: "s", Synchronous: true, Confirm: true, StartLSN: 0x100000}, 0x100000)
		p.wal(0x100000, 0x200)
		p.wait()
		if err := p.s.Confirm(0x100200); err != nil {
			t.Fatal(err)
		}
		p.expect("status 0/100200 0/100000")
		before := time.Now()
		if m := p.expect("status 0/100200 0/100200"); m.at.Sub(before) < time.Minute {
			t.Errorf("reported after %s", m.at.Sub(before))
		}
		p.finish(0x100200, 0x100200)
	})
}

// A server that shuts down waits for all to be confirmed: it asks, gets an answer that does not satisfy it (a written position
// without a flushed one would), and once all is confirmed gets one that does.
func TestConfirmShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x30ABCD))
		p.begin(Options{Slot: "s", Confirm: true, StartLSN: 0x100000}, 0x100000)
		p.wal(0x100000, 0x200)
		p.send(keepalive(0x100200, 1))
		p.expect("status 0/1001FF 0/0")
		time.Sleep(time.Hour)
		p.quiet()
		p.send(keepalive(0x100200, 1))
		p.expect("status 0/1001FF 0/0")
		if err := p.s.Confirm(0x100200); err != nil {
			t.Fatal(err)
		}
		p.expect("status 0/100200 0/100200")
		p.send(keepalive(0x100200, 1))
		p.expect("status 0/100200 0/100200")
		p.finish(0x100200, 0x100200)
	})
}

// What was confirmed of a timeline beyond its end says nothing of the next one.
func TestConfirmAcrossTimelines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hold{}
		h.begin(true)
		h.reach(0x500)
		if err := h.confirm(0x500); err != nil {
			t.Fatal(err)
		}
		h.leave(0x300)
		if limit := h.limit(0x200, 0x400); limit != 0x300 {
			t.Errorf("the limit is %s", limit)
		}
		if err := h.confirm(0x400); !errors.Is(err, ErrInvalid) {
			t.Errorf("confirming what was not received anew: %v", err)
		}
	})
}
