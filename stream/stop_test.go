package stream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"libreceivewal/segment"
)

// again receives a second time on the same connection, up to the cluster's end.
func (p *play) again(o Options) {
	p.t.Helper()
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.on = nil
	o.EndLSN = p.c.tip - 1
	p.receive(o)
	p.is(p.serve())
	p.usable()
}

// Whoever stops a receive that is waiting for WAL gets the connection back at once, and can use it for another one.
func TestStop(t *testing.T) {
	for name, received := range map[string]int{"before any WAL": 0, "in a segment": 100, "at a segment's end": 1 << 20} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlay(t, oneTimeline(0x500080))
				p.begin(Options{StartLSN: 0x300000}, 0x300000)
				if received > 0 {
					p.wal(0x300000, received)
				}
				begin := time.Now()
				p.stop()
				p.expect(fmt.Sprintf("status %s 0/0", 0x300000+segment.LSN(received)))
				p.copyEnds()
				p.end(ErrStopped)
				if d := time.Since(begin); d != 0 {
					t.Errorf("after %s", d)
				}
				p.usable()
				p.hasWAL(1, 0x300000, 0x300000+segment.LSN(received))
				p.again(Options{StartLSN: 0x300000})
				p.hasWAL(1, 0x300000, 0x500080)
			})
		})
	}
}

// In the middle of a message as well: the rest of it, and what follows it, is thrown away.
func TestStopInTheMiddleOfAMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x500080))
		p.begin(Options{StartLSN: 0x300000}, 0x300000)
		m := encode(p.walMessage(0x300000, 1<<19))
		p.write(m[:300_000])
		p.stop()
		received := p.next().text
		p.expect("CopyDone")
		p.write(m[300_000:])
		p.send(p.walMessage(0x380000, 1<<19), keepalive(0x400000, 1))
		p.copyDone()
		p.end(ErrStopped)
		p.usable()
		if want := segment.LSN(0x300000 + 300_000 - headerSize - walHeaderSize); received != "status "+want.String()+" 0/0" {
			t.Errorf("%q, expected a position of %s", received, want)
		}
		p.again(Options{StartLSN: 0x300000})
		p.hasWAL(1, 0x300000, 0x500080)
	})
}

func TestStopBeforeTheBeginning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300080))
		p.stop()
		p.receive(Options{})
		p.end(ErrStopped)
		p.quiet()
		p.usable()
	})
}

// A server that goes on after a CopyDone, or says nothing, holds nobody up for longer than drainTime.
func TestStopWithAServerThatDoesNotEnd(t *testing.T) {
	for name, server := range map[string]func(p *play) error{
		"silence":         func(p *play) error { time.Sleep(time.Second); return p.ctx.Err() },
		"WAL":             func(p *play) error { _, err := p.conn.Write(encode(p.walMessage(0x300064, 1000))); return err },
		"keepalives":      func(p *play) error { _, err := p.conn.Write(encode(keepalive(0, 1))); return err },
		"notices":         func(p *play) error { _, err := p.conn.Write(encode(anytime...)); return err },
		"a message, long": func(p *play) error { _, err := p.conn.Write([]byte("d")); return err },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlay(t, oneTimeline(0x300080))
				p.begin(Options{Slot: "s", StartLSN: 0x300000}, 0x300000)
				p.wal(0x300000, 100)
				if name == "a message, long" {
					p.write([]byte("d\x7f\xff\xff\xffw"))
				}
				p.stop()
				p.conn.SetWriteDeadline(time.Time{})
				begin := time.Now()
				p.running.Go(func() {
					for server(p) == nil {
						time.Sleep(100 * time.Millisecond)
					}
				})
				for m := p.next(); m.text != "CopyDone"; m = p.next() { // what comes in the same moment may still be taken
					if !strings.HasPrefix(m.text, "status 0/300") {
						t.Errorf("the client sent %q", m.text)
					}
				}
				p.end(ErrStopped)
				if d := time.Since(begin); d > drainTime {
					t.Errorf("after %s", d)
				}
				p.quiet()
				p.unusable()
				if name != "WAL" {
					p.hasWAL(1, 0x300000, 0x300064)
				}
			})
		})
	}
}

// ------------------------------------------------------------------------------------------------- callbacks

// An error of any callback stops the receive cleanly, and comes back.
func TestCallbackStops(t *testing.T) {
	enough := errors.New("enough")
	for name, event := range map[string]string{
		"opened":            "opened 000000010000000000000003.partial",
		"opened later":      "opened 000000010000000000000004.partial",
		"completed":         "completed 000000010000000000000003 0/300000-0/400000",
		"switched":          "switched 1-2 at 0/400064, going on at 0/400000",
		"opened after that": "opened 000000020000000000000004.partial",
		"progress":          "progress",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlay(t, &cluster{testSystem, segment.History{{Timeline: 1, End: 0x400064}, {Timeline: 2}}, 0x4000C8})
				stopped := 0
				p.on = func(got string) error {
					if got != event {
						return nil
					}
					stopped++
					return enough
				}
				p.receive(Options{Slot: "s", StartLSN: 0x300000, StartTimeline: 1, StatusInterval: -1, ReceiveTimeout: -1})
				p.is(p.serve(), ErrStopped, enough)
				if stopped != 1 {
					t.Errorf("%d calls", stopped)
				}
				p.usable()
				p.again(Options{Slot: "s"})
				p.hasWAL(2, 0x400000, 0x4000C8)
			})
		})
	}
}

// The progress callback stops at once, not when the server next sends something.
func TestProgressStopsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300080))
		p.on = func(event string) error {
			if event == "progress" {
				return errors.New("enough")
			}
			return nil
		}
		p.begin(Options{StartLSN: 0x300000}, 0x300000)
		begin := time.Now()
		p.wal(0x300000, 100)
		if m := p.expect("status 0/300064 0/0"); m.at != begin {
			t.Errorf("after %s", m.at.Sub(begin))
		}
		p.copyEnds()
		p.end(ErrStopped)
	})
}

// A callback's error is not lost either where the receive ends at that moment anyway.
func TestCallbackStopsAtTheEnd(t *testing.T) {
	enough := errors.New("enough")
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x400000)).with(slowly(100 * time.Millisecond))
		p.on = func(event string) error {
			if strings.HasPrefix(event, "completed") {
				return enough
			}
			return nil
		}
		p.begin(Options{StartLSN: 0x300000, EndLSN: 0x3FFFFF}, 0x300000)
		p.wal(0x300000, 1<<20)
		p.expect("status 0/400000 0/0")
		p.copyEnds()
		p.end(ErrStopped, enough)
		p.usable()
	})
}

// The first reason to stop is the one that is told.
func TestFirstCallbackWins(t *testing.T) {
	first, second := errors.New("first"), errors.New("second")
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x500080))
		p.on = func(event string) error {
			switch {
			case strings.HasPrefix(event, "opened"):
				return first
			case strings.HasPrefix(event, "completed"):
				return second
			}
			return nil
		}
		p.receive(Options{StartLSN: 0x300000, ReceiveTimeout: -1})
		err := p.serve()
		p.is(err, ErrStopped, first)
		if errors.Is(err, second) {
			t.Error(err)
		}
	})
}

// Progress events are rate-limited, tell of the last state sooner or later, and don't come when nothing has changed.
func TestProgressEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300800))
		var times []time.Duration
		var last Progress
		begin := time.Now()
		p.on = func(event string) error {
			if event == "progress" {
				times = append(times, time.Since(begin))
				last = p.s.Progress()
				if p.s.Usable() {
					t.Error("usable in the middle of a receive")
				}
			}
			return nil
		}
		p.begin(Options{StartLSN: 0x300000, ProgressInterval: 2 * time.Second}, 0x300000)
		for i := range segment.LSN(20) {
			p.wal(0x300000+i*50, 50)
			time.Sleep(500 * time.Millisecond)
		}
		time.Sleep(time.Hour)
		p.quiet()
		for i := range times {
			if want := time.Duration(i) * 2 * time.Second; times[i] != want {
				t.Errorf("event %d after %s, expected %s", i, times[i], want)
			}
		}
		if len(times) != 6 || last.WrittenLSN != 0x3003E8 || last.State != StateStreaming || last.Bytes != 1000 {
			t.Errorf("%d events, the last %+v", len(times), last)
		}
		p.finish(0x3003E8, 0)
	})
}

// A callback that panics leaves no goroutine, no file and no lock behind.
func TestPanicInACallback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300080))
		panicked := make(chan any, 1)
		p.call(func(ctx context.Context) (err error) {
			defer func() { panicked <- recover() }()
			return p.s.Receive(ctx, Options{Directory: "wal", StartLSN: 0x300000, ReceiveTimeout: -1, StatusInterval: -1,
				Events: Events{SegmentOpened: func(Segment) error { panic("on purpose") }}})
		})
		p.o.ReceiveTimeout = -1
		p.identify()
		p.startReplication(0x300000)
		p.wal(0x300000, 100)
		if got := <-panicked; got != "on purpose" {
			t.Errorf("%v", got)
		}
		p.tidy()
		p.unusable()
	})
}
