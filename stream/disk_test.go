package stream

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"golang.org/x/sys/unix"

	"libreceivewal/segment"
)

// ----------------------------------------------------------------------------------------------- a full disk

// With WaitOnDiskFull, a disk that has room again is used again: not a byte is lost, and the server hears from us meanwhile.
func TestWaitOnDiskFull(t *testing.T) {
	for _, op := range []string{"write", "create", "allocate"} {
		t.Run(op, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlay(t, oneTimeline(0x400080))
				var full atomic.Bool
				p.dir.hook = func(what, _ string) error {
					if what == op && full.Load() {
						return unix.ENOSPC
					}
					return nil
				}
				p.begin(Options{Slot: "s", StartLSN: 0x300000, EndLSN: 0x40007F, WaitOnDiskFull: true}, 0x300000)
				p.wal(0x300000, 1<<20)
				full.Store(true)
				p.wal(0x400000, 100)
				begin := time.Now()
				for i := range 40 {
					if m := p.expect("status 0/400000 0/400000"); m.at.Sub(begin) != time.Duration(i+1)*blindInterval {
						t.Errorf("a status update after %s", m.at.Sub(begin))
					}
				}
				if g := p.s.Progress(); g.State != StateDiskFull {
					t.Errorf("%+v", g)
				}
				full.Store(false)
				time.Sleep(diskRetry)
				p.wal(0x400064, 0x1C)
				for m := p.next(); m.text != "CopyDone"; m = p.next() {
				}
				p.copyDone()
				p.end()
				p.hasWAL(1, 0x300000, 0x400080)
				events := slices.DeleteFunc(p.events, func(e string) bool { return strings.HasPrefix(e, "opened") || strings.HasPrefix(e, "completed") })
				if len(events) != 2 || !strings.HasPrefix(events[0], "full: ") || !strings.HasPrefix(events[1], "room after 2") {
					t.Errorf("%q", events)
				}
				p.usable()
			})
		})
	}
}

// Whoever waits for a disk can be stopped at once.
func TestStopOnAFullDisk(t *testing.T) {
	enough := errors.New("enough")
	for name, byCallback := range map[string]bool{"by the context": false, "by the callback": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlay(t, oneTimeline(0x400080))
				p.dir.hook = func(op, _ string) error {
					if op == "write" {
						return unix.ENOSPC
					}
					return nil
				}
				p.on = func(event string) error {
					if byCallback && strings.HasPrefix(event, "full") {
						return enough
					}
					return nil
				}
				p.begin(Options{Slot: "s", StartLSN: 0x300000, WaitOnDiskFull: true}, 0x300000)
				begin := time.Now()
				p.wal(0x300000, 100)
				want := []error{ErrStopped, enough}
				if !byCallback {
					p.stop()
					want = want[:1]
				}
				p.expect("status 0/300000 0/300000")
				p.copyEnds()
				p.end(want...)
				if d := time.Since(begin); d != 0 {
					t.Errorf("after %s", d)
				}
				p.usable()
			})
		})
	}
}

// --------------------------------------------------------------------------------------------- flush interval

// Data is durable, and reported, at the latest a flush interval after it was written.
func TestFlushInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300800))
		p.begin(Options{Slot: "s", StartLSN: 0x300000, FlushInterval: 2 * time.Second}, 0x300000)
		p.wal(0x300000, 40)
		p.expect("status 0/300028 0/300028") // as its file got a name
		for i := range segment.LSN(5) {
			lsn := 0x300028 + i*100
			begin := time.Now()
			p.wal(lsn, 50)
			time.Sleep(time.Second)
			p.quiet()
			p.wal(lsn+50, 50)
			if m := p.expect("status " + (lsn + 100).String() + " " + (lsn + 100).String()); m.at.Sub(begin) != 2*time.Second {
				t.Errorf("reported after %s", m.at.Sub(begin))
			}
		}
		time.Sleep(time.Hour)
		p.quiet()
		p.finish(0x30021C, 0x30021C)
	})
}

// Without a slot it is durable as well, but not reported.
func TestFlushIntervalWithoutSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300800))
		p.begin(Options{StartLSN: 0x300000, FlushInterval: time.Second}, 0x300000)
		p.wal(0x300000, 40)
		p.wal(0x300028, 40)
		time.Sleep(time.Minute)
		p.quiet()
		if err := p.dir.holds(1, 0x300000, 0x300050, testSize, func(lsn segment.LSN, n int) []byte { return p.c.wal(1, lsn, n) }); err != nil {
			t.Error(err)
		}
		p.finish(0x300050, 0)
	})
}

// ------------------------------------------------------------------------------------------------------- holes

// withHole is a directory that has the segments 3 and 6 of a cluster, but not those in between.
func withHole(t testing.TB) *play {
	p := newPlay(t, oneTimeline(0x700080))
	p.dir.put("000000010000000000000003", p.c.wal(1, 0x300000, 1<<20), int64(testSize))
	p.dir.put("000000010000000000000006", p.c.wal(1, 0x600000, 1<<20), int64(testSize))
	return p
}

// Segments that are missing are fetched first, without the slot, which must not go back.
func TestHoleIsFilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := withHole(t)
		p.receive(Options{Slot: "s", EndLSN: 0x70007F, ReceiveTimeout: -1, StatusInterval: -1})
		p.is(p.serve())
		want := []string{"START_REPLICATION 0/400000 TIMELINE 1", "status 0/600000 0/0", "CopyDone",
			`START_REPLICATION SLOT "s" 0/700000 TIMELINE 1`, "status 0/700080 0/700080", "CopyDone"}
		if got := p.trace[3:]; !slices.Equal(got, want) {
			t.Errorf("the client sent %q, expected %q", got, want)
		}
		p.hasWAL(1, 0x300000, 0x700080)
		p.told("hole 0/400000-0/600000", "completed 000000010000000000000004 0/400000-0/500000",
			"completed 000000010000000000000005 0/500000-0/600000", "filled 0/400000-0/600000", "opened 000000010000000000000007.partial")
		p.usable()
	})
}

// Those that the server no longer has are told of, and are the end only for those who want that.
func TestHoleIsLost(t *testing.T) {
	for mode, want := range map[RepairMode]error{RepairGoOn: ErrStopped, RepairStop: segment.ErrGap, RepairOff: ErrStopped} {
		synctest.Test(t, func(t *testing.T) {
			p := withHole(t)
			p.receive(Options{Slot: "s", Repair: mode, ReceiveTimeout: -1, StatusInterval: -1})
			p.identify()
			told := []string{"hole 0/400000-0/600000"}
			if mode != RepairOff {
				p.command("START_REPLICATION 0/400000 TIMELINE 1", &pgproto3.CopyBothResponse{})
				p.send(refusal("ERROR", "58P01", "gone")...)
				told = append(told, "lost 0/400000-0/600000")
			}
			if want == ErrStopped {
				p.startReplication(0x700000)
				p.stop()
				p.expect("status 0/700000 0/700000")
				p.copyEnds()
			}
			p.end(want)
			p.told(told...)
			p.usable()
		})
	}
}

// A fetch that breaks off leaves no partial segment in the middle of the directory.
func TestHoleHalfFilled(t *testing.T) {
	for name, end := range map[string]func(p *play){
		"connection lost": func(p *play) { p.conn.Close() },
		"stopped":         func(p *play) { p.stop(); p.expect("status 0/500064 0/0"); p.copyEnds() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := withHole(t)
				p.receive(Options{Slot: "s", ReceiveTimeout: -1, StatusInterval: -1})
				p.identify()
				p.command("START_REPLICATION 0/400000 TIMELINE 1", &pgproto3.CopyBothResponse{})
				p.wal(0x400000, 1<<20+100)
				end(p)
				p.outcome()
				if list := p.dir.list(); strings.Contains(list, "partial") || !strings.Contains(list, "000000010000000000000004") {
					t.Errorf("the directory has\n%s", list)
				}
				if got := p.s.Progress().FlushedLSN; got != 0x500000 {
					t.Errorf("flushed up to %s, of which what is after 0/500000 has no name", got)
				}
			})
		})
	}
}

// ------------------------------------------------------------------------------------------ abandoned timelines

// Where the server has left the directory's timeline before the directory's end, it is followed from there.
func TestAbandonedTimeline(t *testing.T) {
	for _, end := range []segment.LSN{0x300070, 0x600000} { // before where the directory goes on, where nothing is streamed; and beyond
		synctest.Test(t, func(t *testing.T) {
			p := newPlay(t, &cluster{testSystem, segment.History{{Timeline: 1, End: 0x300046}, {Timeline: 2}}, 0x600080})
			p.dir.put("000000010000000000000004", oneTimeline(0).wal(1, 0x400000, 1<<20), int64(testSize))
			p.receive(Options{EndLSN: end, ReceiveTimeout: -1, StatusInterval: -1})
			p.identify()
			if end > 0x500000 {
				p.command("START_REPLICATION 0/500000 TIMELINE 1",
					refusal("ERROR", "XX000", "requested starting point 0/500000 on timeline 1 is not in this server's history")...)
			}
			p.is(p.serve())
			if p.dir.file("000000020000000000000003") == nil && p.dir.file("000000020000000000000003.partial") == nil {
				t.Errorf("the directory has\n%s", p.dir.list())
			}
			p.hasWAL(1, 0x400000, 0x500000) // stays
			p.usable()
		})
	}
}

// A later receive goes on after what it has of the new timeline, although the abandoned one still has the newest segment: the server
// need not have the beginning any more.
func TestAbandonedTimelineAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, &cluster{testSystem, segment.History{{Timeline: 1, End: 0x300046}, {Timeline: 2}}, 0x600080})
		p.dir.put("000000010000000000000005", oneTimeline(0).wal(1, 0x500000, 1<<20), int64(testSize))
		p.dir.put("000000020000000000000003", p.c.wal(2, 0x300000, 1<<20), int64(testSize))
		p.dir.put("00000002.history", []byte(p.c.historyFile(2)), int64(len(p.c.historyFile(2))))
		p.receive(Options{EndLSN: 0x600000, Repair: RepairOff, ReceiveTimeout: -1, StatusInterval: -1})
		p.identify()
		p.command("START_REPLICATION 0/600000 TIMELINE 1",
			refusal("ERROR", "XX000", "requested starting point 0/600000 on timeline 1 is not in this server's history")...)
		p.is(p.serve())
		if !slices.Contains(p.trace, "START_REPLICATION 0/400000 TIMELINE 2") {
			t.Errorf("the client sent %q", p.trace)
		}
		p.hasWAL(2, 0x300000, 0x600080)
		p.usable()
	})
}

// What is missing of the timeline that is followed is fetched, too, although the abandoned one still has the newest segment.
func TestHoleBehindAnAbandonedTimeline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, &cluster{testSystem, segment.History{{Timeline: 1, End: 0x300046}, {Timeline: 2}}, 0x700080})
		p.dir.put("000000010000000000000006", oneTimeline(0).wal(1, 0x600000, 1<<20), int64(testSize))
		p.dir.put("000000020000000000000003", p.c.wal(2, 0x300000, 1<<20), int64(testSize))
		p.dir.put("000000020000000000000005", p.c.wal(2, 0x500000, 1<<20), int64(testSize))
		p.dir.put("00000002.history", []byte(p.c.historyFile(2)), int64(len(p.c.historyFile(2))))
		p.receive(Options{EndLSN: 0x700000, ReceiveTimeout: -1, StatusInterval: -1})
		p.identify()
		p.timeline = 2
		p.command("START_REPLICATION 0/400000 TIMELINE 2", &pgproto3.CopyBothResponse{})
		p.wal(0x400000, 1<<20)
		p.expect("status 0/500000 0/0")
		p.copyEnds()
		p.command("START_REPLICATION 0/700000 TIMELINE 1",
			refusal("ERROR", "XX000", "requested starting point 0/700000 on timeline 1 is not in this server's history")...)
		p.is(p.serve())
		if !slices.Contains(p.trace, "START_REPLICATION 0/600000 TIMELINE 2") {
			t.Errorf("the client sent %q", p.trace)
		}
		p.hasWAL(2, 0x300000, 0x700080)
		p.usable()
	})
}

// WAL that was removed is explained: what is needed, and what the slot still has.
func TestRemovedWALIsExplained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x400080))
		p.begin(Options{Slot: "s", StartLSN: 0x300000}, 0x300000)
		p.send(refusal("ERROR", "58P01", "requested WAL segment 000000010000000000000003 has already been removed")...)
		p.command(`READ_REPLICATION_SLOT "s"`, answerOf("physical", "0/400010", 1)...)
		err := p.end(ErrWALRemoved)
		for _, part := range []string{"0/300000", "000000010000000000000003", "0/400010", "already been removed"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q is not in %q", part, err)
			}
		}
		p.usable()
	})
}

// ------------------------------------------------------------------------------------------------ other options

// Files have the mode that the server's data directory says, or the one that was asked for.
func TestFileMode(t *testing.T) {
	for _, test := range []struct {
		server string
		o      fs.FileMode
		want   fs.FileMode
	}{{"0700", 0, 0o600}, {"0750", 0, 0o640}, {"0750", 0o600, 0o600}, {"0700", 0o644, 0o644}} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlay(t, &cluster{testSystem, segment.History{{Timeline: 2}}, 0x300080})
			p.receive(Options{StartLSN: 0x300000, FileMode: test.o, ReceiveTimeout: -1, StatusInterval: -1})
			p.command("IDENTIFY_SYSTEM", answerOf(testSystem, 2, "0/300080")...)
			p.command("SHOW wal_segment_size", answerOf("1MB")...)
			p.command("SHOW data_directory_mode", answerOf(test.server)...)
			p.command("TIMELINE_HISTORY 2", answerOf("00000002.history", "1\t0/100000\n")...)
			p.startReplication(0x300000)
			p.wal(0x300000, 100)
			p.finish(0x300064, 0)
			for _, name := range []string{"00000002.history", "000000020000000000000003.partial"} {
				if f := p.dir.names[name]; f == nil || f.mode != test.want {
					t.Errorf("%+v: %s is %+v", test, name, f)
				}
			}
		})
	}
}

// With NoSync nobody waits for the disk.
func TestNoSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x500080))
		p.dir.hook = func(op, name string) error {
			if op == "sync" {
				t.Errorf("fsync of %q", name)
			}
			return nil
		}
		p.receive(Options{StartLSN: 0x300000, EndLSN: 0x50007F, NoSync: true})
		p.is(p.serve())
		p.hasWAL(1, 0x300000, 0x500080)
		p.usable()
	})
}

// What the directory holds counts as flushed, so what may be in the page cache only is made durable before the stream begins.
func TestSettleAtTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x400080))
		const name = "000000010000000000000003"
		p.dir.put(name, p.c.wal(1, 0x300000, 1<<20), int64(testSize))
		var synced []string
		p.dir.hook = func(op, name string) error {
			if op == "sync" {
				synced = append(synced, op+" "+name)
			}
			return nil
		}
		p.receive(Options{Slot: "s", ReceiveTimeout: -1, StatusInterval: -1})
		p.identify()
		p.expect(`START_REPLICATION SLOT "s" 0/400000 TIMELINE 1`)
		if !slices.Equal(synced, []string{"sync " + name, "sync ."}) {
			t.Errorf("synced %q", synced)
		}
		p.conn.Close()
		p.end(ErrConnectionLost)
	})
}

// What something between us and the server has read ahead is read, too, as long as there is any.
func TestSettle(t *testing.T) {
	for name, test := range map[string]struct {
		bytes []byte
		want  error
	}{
		"nothing":        {nil, nil},
		"notices":        {encode(anytime...), nil},
		"half a notice":  {encode(anytime[0])[:10], ErrConnectionLost},
		"an error":       {encode(errorOf("FATAL", "57P01", "bye")), ErrConnectionLost},
		"another answer": {encode(ready), ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlay(t, oneTimeline(0x300080))
				left := len(test.bytes)
				p.client.onRead = func(n int) { left -= n }
				p.call(func(ctx context.Context) error { return p.s.Settle(ctx, func() bool { return left > 0 }) })
				if left > 0 {
					p.write(test.bytes)
				}
				err := <-p.result
				if !errors.Is(err, test.want) {
					t.Errorf("%v, expected %v", err, test.want)
				}
				if test.want == nil {
					p.usable()
				} else {
					p.unusable()
				}
			})
		})
	}
}
