package stream

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"libreceivewal/segment"
)

// slowly makes a directory whose files take a while to become durable.
func slowly(d time.Duration) *memory {
	m := newMemory()
	m.hook = func(op, name string) error {
		if op == "sync" && name != "." {
			time.Sleep(d)
		}
		return nil
	}
	return m
}

// --------------------------------------------------------------------------------------------------- the start

// The commands, in pg_receivewal's order, word for word.
func TestCommandsBeforeTheStream(t *testing.T) {
	read := `READ_REPLICATION_SLOT "s"`
	for name, test := range map[string]struct {
		o        Options
		files    []string
		version  int
		slot     []pgproto3.BackendMessage // the answer to READ_REPLICATION_SLOT
		commands []string                  // after those of IdentifySystem
	}{
		"from the server's position": {commands: []string{
			"TIMELINE_HISTORY 3", "START_REPLICATION 0/300000 TIMELINE 3"}},
		"from the slot's position": {o: Options{Slot: "s"}, slot: answerOf("physical", "0/2ABCDE", 1), commands: []string{
			read, `START_REPLICATION SLOT "s" 0/200000 TIMELINE 1`}},
		"from the position of a slot without timeline": {o: Options{Slot: "s"}, slot: answerOf("physical", "0/2ABCDE", nil), commands: []string{
			read, "TIMELINE_HISTORY 3", `START_REPLICATION SLOT "s" 0/200000 TIMELINE 3`}},
		"with a slot never used": {o: Options{Slot: "s"}, slot: answerOf("physical", nil, nil), commands: []string{
			read, "TIMELINE_HISTORY 3", `START_REPLICATION SLOT "s" 0/300000 TIMELINE 3`}},
		"with a slot, from a server known to be old": {o: Options{Slot: "s"}, version: 140011, commands: []string{
			"TIMELINE_HISTORY 3", `START_REPLICATION SLOT "s" 0/300000 TIMELINE 3`}},
		"with a slot, from a server that turns out old": {o: Options{Slot: "s"}, slot: refusal("ERROR", "42601", "syntax error"), commands: []string{
			read, "TIMELINE_HISTORY 3", `START_REPLICATION SLOT "s" 0/300000 TIMELINE 3`}},
		"where the caller says": {o: Options{Slot: "s", StartLSN: 0x5FFFFF}, commands: []string{
			"TIMELINE_HISTORY 3", `START_REPLICATION SLOT "s" 0/500000 TIMELINE 3`}},
		"on the caller's timeline": {o: Options{StartLSN: 0x1_00200001, StartTimeline: 2}, commands: []string{
			"TIMELINE_HISTORY 2", "START_REPLICATION 1/200000 TIMELINE 2"}},
		"after a complete segment, whatever the caller says": {o: Options{Slot: "s", StartLSN: 0x900000}, files: []string{"000000010000000000000007"}, commands: []string{
			`START_REPLICATION SLOT "s" 0/800000 TIMELINE 1`}},
		"at a partial segment": {files: []string{"000000020000000000000007.partial"}, commands: []string{
			"TIMELINE_HISTORY 2", "START_REPLICATION 0/700000 TIMELINE 2"}},
		"after the last segment of 4 GiB": {files: []string{"000000010000000000000FFF"}, commands: []string{
			"START_REPLICATION 1/0 TIMELINE 1"}},
		"with a history file in the directory": {files: []string{"000000020000000000000007", "00000002.history"}, commands: []string{
			"START_REPLICATION 0/800000 TIMELINE 2"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlay(t, &cluster{testSystem, segment.History{{Timeline: 1, End: 0x300000}, {Timeline: 2, End: 0x300010}, {Timeline: 3}}, 0x30ABCD})
				for _, f := range test.files {
					p.dir.put(f, nil, int64(testSize))
				}
				if len(test.files) > 1 {
					p.dir.put("00000002.history", []byte(p.c.historyFile(2)), int64(len(p.c.historyFile(2))))
				}
				p.s.serverVersion = test.version
				test.o.ReceiveTimeout = -1
				p.receive(test.o)
				p.identify()
				for _, sql := range test.commands {
					switch {
					case sql == read:
						p.command(sql, test.slot...)
					case sql == "TIMELINE_HISTORY 2":
						p.command(sql, answerOf("00000002.history", p.c.historyFile(2))...)
					case sql == "TIMELINE_HISTORY 3":
						p.command(sql, answerOf("00000003.history", p.c.historyFile(3))...)
					default:
						p.command(sql, refusal("ERROR", "12345", "enough")...)
					}
				}
				var e *ServerError
				if err := p.outcome(); !errors.As(err, &e) || e.SQLSTATE != "12345" {
					t.Error(err)
				}
				p.usable()
			})
		})
	}
}

// What START_REPLICATION is refused with tells the caller what to do.
func TestRefusedStream(t *testing.T) {
	for _, test := range []struct {
		state    string
		timeline segment.Timeline
		want     error
	}{
		{"42704", 1, ErrNoSlot},
		{"55006", 1, ErrSlotBusy},
		{"XX000", 1, ErrTimeline},             // "requested starting point … on timeline 1 is not in this server's history"
		{"XX000", 2, (*ServerError)(nil)},     // "requested starting point … is ahead of the WAL flush position"
		{"55000", 1, (*ServerError)(nil)},     // whatever it is, the slot is in order
		{"55000 logical", 1, ErrNoSlot},       // "cannot use a logical replication slot for physical replication"
		{"55000 lost", 1, ErrWALRemoved},      // "can no longer access replication slot"
		{"58P01", 1, (*ServerError)(nil)},     // not of WAL: WAL that is gone shows in the stream
		{"57P01 FATAL", 1, ErrConnectionLost}, // the server is shut down
		{"57P01 PANIC", 1, ErrConnectionLost}, // or worse
		{"53300 FATAL", 2, ErrConnectionLost}, // whatever the reason
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlay(t, &cluster{testSystem, segment.History{{Timeline: 1, End: 0x300000}, {Timeline: 2}}, 0x30ABCD})
			p.dir.put("00000002.history", []byte("1\t0/300000\n"), 11)
			p.receive(Options{Slot: "s", StartLSN: 0x300000, StartTimeline: test.timeline, ReceiveTimeout: -1})
			p.identify()
			state, severity, fatal := strings.Cut(test.state, " ")
			lost, logical := severity == "lost", severity == "logical"
			if !fatal || lost || logical {
				severity, fatal = "ERROR", false
			}
			answer := refusal(severity, state, "no")
			if fatal {
				answer = answer[:1]
			}
			p.command(fmt.Sprintf(`START_REPLICATION SLOT "s" 0/300000 TIMELINE %d`, test.timeline), answer...)
			if test.want == ErrTimeline { // it may be one that the server has left
				p.command("TIMELINE_HISTORY 2", answerOf("00000002.history", "1\t0/300000\n")...)
			}
			switch {
			case lost: // asked for twice: whether it is lost, and what to say of it
				for range 2 {
					p.command(`READ_REPLICATION_SLOT "s"`, answerOf("physical", nil, nil)...)
				}
			case logical:
				p.command(`READ_REPLICATION_SLOT "s"`, refusal("ERROR", "0A000", "cannot use READ_REPLICATION_SLOT with a logical replication slot")...)
			case state == "55000":
				p.command(`READ_REPLICATION_SLOT "s"`, answerOf("physical", "0/300000", 1)...)
			}
			err := p.outcome()
			var e *ServerError
			if !errors.As(err, &e) || e.SQLSTATE != state {
				t.Errorf("%v: %v", test, err)
			}
			for _, kind := range []error{ErrNoSlot, ErrSlotBusy, ErrTimeline, ErrConnectionLost, ErrWALRemoved, ErrProtocol, ErrStopped} {
				if errors.Is(err, kind) != (kind == test.want) {
					t.Errorf("%v: %v is %v: %t", test, err, kind, kind != test.want)
				}
			}
			if fatal {
				p.unusable()
			} else {
				p.usable()
			}
		})
	}
}

// An error is the end of the command: no stream can begin after it.
func TestStreamAfterAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300080))
		p.receive(Options{StartLSN: 0x300000, ReceiveTimeout: -1})
		p.identify()
		p.command("START_REPLICATION 0/300000 TIMELINE 1", errorOf("ERROR", "XX000", "no"), &pgproto3.CopyBothResponse{})
		p.end(ErrProtocol)
		p.quiet()
		p.unusable()
	})
}

// A timeline that the server has not reached yet is not asked for.
func TestTimelineOfTheFuture(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300080))
		p.dir.put("000000020000000000000007", nil, int64(testSize))
		p.receive(Options{ReceiveTimeout: -1})
		p.identify()
		p.end(ErrTimeline)
		p.quiet()
		p.usable()
	})
}

func TestOptions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300080))
		for _, o := range []Options{
			{},
			{Directory: "wal", Synchronous: true, NoSync: true},
			{Directory: "wal", StartTimeline: 1},
			{Directory: "wal", Slot: "A"},
		} {
			if err := p.s.Receive(p.ctx, o); !errors.Is(err, ErrInvalid) {
				t.Errorf("%+v: %v", o, err)
			}
		}
		p.quiet()
		p.usable()
	})
}

// Between the start and the end, no more than pg_receivewal's messages.
func TestReceive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x500080))
		p.receive(Options{StartLSN: 0x300000, EndLSN: 0x500040})
		p.is(p.serve())
		p.hasWAL(1, 0x300000, 0x500080)
		want := []string{"IDENTIFY_SYSTEM", "SHOW wal_segment_size", "SHOW data_directory_mode", "SHOW wal_sender_timeout",
			"START_REPLICATION 0/300000 TIMELINE 1", "status 0/500080 0/0", "CopyDone"}
		if !slices.Equal(p.trace, want) {
			t.Errorf("the client sent %q, expected %q", p.trace, want)
		}
		p.told("opened 000000010000000000000003.partial", "completed 000000010000000000000003 0/300000-0/400000",
			"completed 000000010000000000000004 0/400000-0/500000", // so quickly that it had no other name before
			"opened 000000010000000000000005.partial")
		if g := p.s.Progress(); g.StartLSN != 0x300000 || g.WrittenLSN != 0x500080 || g.FlushedLSN != 0x500080 || g.ServerLSN != 0x500080 ||
			g.Bytes != 0x200080 || g.Segments != 2 || g.Timeline != 1 || g.Segment != "000000010000000000000005" ||
			!g.ServerTime.Equal(time.Now()) || !g.ReceivedTime.Equal(time.Now()) || g.Reconnects != 0 {
			t.Errorf("%+v", g)
		}
		p.usable()
	})
}

// ---------------------------------------------------------------------------------------------- status updates

func TestStatusInterval(t *testing.T) {
	for interval, want := range map[time.Duration]time.Duration{0: 10 * time.Second, time.Second: time.Second, 3 * time.Minute: 3 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlay(t, oneTimeline(0x300080))
			p.receive(Options{StatusInterval: interval, ReceiveTimeout: -1, StartLSN: 0x300000})
			p.identify()
			p.startReplication(0x300000)
			last := time.Now()
			for i := range 3 {
				p.wal(0x300000+segment.LSN(i)*40, 40)
				m := p.expect(fmt.Sprintf("status %s 0/0", segment.LSN(0x300028+i*40)))
				if got := m.at.Sub(last); got != want {
					t.Errorf("a status update after %s, expected %s", got, want)
				}
				last = m.at
			}
			p.finish(0x300078, 0)
		})
	}
}

// A message that comes more often than the interval doesn't put the status updates off.
func TestStatusIntervalUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x310000))
		p.receive(Options{StatusInterval: time.Second, ReceiveTimeout: -1, StartLSN: 0x300000})
		p.identify()
		p.startReplication(0x300000)
		for i := range 55 {
			p.wal(0x300000+segment.LSN(i)*40, 40)
			time.Sleep(100*time.Millisecond - time.Microsecond)
		}
		p.wait()
		if n := len(p.in); n != 5 {
			t.Errorf("%d status updates in 5.5 s", n)
		}
	})
}

func TestStatusOnlyOnRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300080))
		p.begin(Options{}, 0x300000)
		for i := range 3 {
			p.wal(0x300000+segment.LSN(i)*40, 40)
			p.send(keepalive(0x300080, 0))
			time.Sleep(time.Hour)
		}
		p.quiet()
		p.send(keepalive(0x300080, 1))
		p.expect("status 0/300078 0/0")
		p.finish(0x300078, 0)
	})
}

// Without a slot nothing is reported flushed, so there is nothing that the reply has to wait for.
func TestReplyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300080)).with(slowly(time.Minute))
		p.begin(Options{}, 0x300000)
		p.wal(0x300000, 80)
		asked := time.Now()
		p.send(keepalive(0x300080, 1))
		if m := p.expect("status 0/300050 0/0"); m.at != asked {
			t.Errorf("the reply came after %s", m.at.Sub(asked))
		}
		p.quiet()
	})
}

// With a slot, the reply is sent after the flush, and tells of it: a server that shuts down waits for that.
func TestReplyAfterTheFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300080)).with(slowly(300 * time.Millisecond))
		p.begin(Options{Slot: "s", StartLSN: 0x300000}, 0x300000)
		p.wal(0x300000, 80)
		time.Sleep(time.Second) // the segment has become visible
		p.wal(0x300050, 20)
		asked := time.Now()
		p.send(keepalive(0x300080, 1))
		if m := p.expect("status 0/300064 0/300064"); m.at.Sub(asked) != 300*time.Millisecond {
			t.Errorf("the reply came after %s", m.at.Sub(asked))
		}
		time.Sleep(time.Minute)
		p.quiet()
		p.send(keepalive(0x300080, 1)) // nothing left to flush
		asked = time.Now()
		if m := p.expect("status 0/300064 0/300064"); m.at != asked {
			t.Errorf("the reply came after %s", m.at.Sub(asked))
		}
		p.finish(0x300064, 0x300064)
	})
}

// A disk that takes long doesn't keep the server from getting its reply: it gets one before, and one after the flush.
func TestReplyBeforeASlowFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300080)).with(slowly(1200 * time.Millisecond))
		p.begin(Options{Slot: "s", StartLSN: 0x300000}, 0x300000)
		p.wal(0x300000, 80) // flushed as its file gets its name
		time.Sleep(5 * time.Second)
		asked := time.Now()
		p.wal(0x300050, 20)
		p.send(keepalive(0x300080, 1))
		for _, want := range []struct {
			text  string
			after time.Duration
		}{
			{"status 0/300064 0/300050", replyPatience}, {"status 0/300064 0/300050", 2 * replyPatience},
			{"status 0/300064 0/300064", 1200 * time.Millisecond},
		} {
			if m := p.expect(want.text); m.at.Sub(asked) != want.after {
				t.Errorf("%q came after %s, expected %s", m.text, m.at.Sub(asked), want.after)
			}
		}
		time.Sleep(time.Minute)
		p.quiet()
	})
}

// A write that hangs doesn't keep the server from hearing of us.
func TestStatusWhileAWriteHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.hook = func(op, _ string) error {
			if op == "write" {
				time.Sleep(1200 * time.Millisecond)
			}
			return nil
		}
		p := newPlay(t, oneTimeline(0x300080)).with(m)
		p.begin(Options{Slot: "s", StartLSN: 0x300000, StatusInterval: -1}, 0x300000)
		asked := time.Now()
		p.wal(0x300000, 100)
		for i := range 2 {
			if m := p.expect("status 0/300000 0/300000"); m.at.Sub(asked) != time.Duration(i+1)*blindInterval {
				t.Errorf("the server heard of us after %s", m.at.Sub(asked))
			}
		}
		time.Sleep(time.Minute)
		p.quiet()
		p.finish(0x300064, 0x300064)
	})
}

// A disk that hangs for longer than the server may be silent, whatever it is asked to do, is not blamed on the server.
func TestSilenceThatIsOurs(t *testing.T) {
	for _, op := range []string{"create", "allocate", "write"} {
		t.Run(op, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, hung := newMemory(), false
				m.hook = func(o, _ string) error {
					if o == op && !hung {
						hung = true
						time.Sleep(20100 * time.Millisecond)
					}
					return nil
				}
				p := newPlay(t, oneTimeline(0x300080)).with(m)
				p.begin(Options{StartLSN: 0x300000, ReceiveTimeout: 8 * time.Second}, 0x300000)
				p.wal(0x300000, 80)
				for range 40 {
					p.expect("status 0/300000 0/0")
				}
				time.Sleep(2 * time.Second)
				p.quiet()
				p.wal(0x300050, 20)
				p.finish(0x300064, 0)
				p.hasWAL(1, 0x300000, 0x300064)
			})
		})
	}
}

// Any number of requests that are read together has one reply.
func TestKeepaliveStorm(t *testing.T) {
	for _, slot := range []string{"", "s"} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlay(t, oneTimeline(0x300080))
			p.begin(Options{Slot: slot, StartLSN: 0x300000}, 0x300000)
			p.wal(0x300000, 80)
			storm := slices.Repeat(encode(keepalive(0x300080, 1)), 10_000) // 230 kB: less than a read takes
			p.write(storm)
			flushed := segment.LSN(0)
			if slot != "" {
				flushed = 0x300050
			}
			p.expect(fmt.Sprintf("status 0/300050 %s", flushed))
			p.quiet()
			if n := cap(p.s.wire.buf); n > bufferSize+len(storm) {
				t.Errorf("a buffer of %d bytes", n)
			}
			p.finish(0x300050, flushed)
		})
	}
}

// A synchronous receiver reports each message flushed, as soon as it is.
func TestStatusWhenSynchronous(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x500080)).with(slowly(20 * time.Millisecond))
		p.begin(Options{Synchronous: true, StartLSN: 0x300000}, 0x300000)
		for i := range 5 {
			lsn := segment.LSN(0x300000 + 40*i)
			p.wal(lsn, 40)
			sent := time.Now()
			m := p.next()
			for m.text != fmt.Sprintf("status %s %s", lsn+40, lsn+40) {
				m = p.next()
			}
			if d := m.at.Sub(sent); d > 40*time.Millisecond {
				t.Errorf("reported after %s", d)
			}
			p.quiet()
		}
		p.finish(0x3000C8, 0x3000C8)
	})
}

// With a slot, and in every way that it can end, the last status before CopyDone tells that all is flushed.
func TestStatusBeforeCopyDone(t *testing.T) {
	for name, o := range map[string]Options{"a slot": {Slot: "s", StartLSN: 0x300000}, "synchronous": {Synchronous: true, StartLSN: 0x300000}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlay(t, oneTimeline(0x300080)).with(slowly(2900 * time.Millisecond))
				p.begin(o, 0x300000)
				p.wal(0x300000, 100)
				p.stop()
				m := p.next()
				for m.text != "status 0/300064 0/300064" {
					m = p.next()
				}
				p.copyEnds()
				p.end(ErrStopped)
				p.usable()
			})
		})
	}
}

// However long the last flush takes, the server hears from us all the time, whatever the status interval: its keepalives are not
// read meanwhile. And nobody turns in a loop.
func TestStatusDuringTheLastFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300080)).with(slowly(24100 * time.Millisecond))
		p.receive(Options{Slot: "s", StartLSN: 0x300000, StatusInterval: -1, ReceiveTimeout: -1})
		p.identify()
		p.startReplication(0x300000)
		p.wal(0x300000, 80)
		begin := time.Now()
		p.stop()
		// The disk is still busy with the segment's first bytes, for 24.1 s; then it takes as long again.
		for i := range 96 {
			m := p.expect("status 0/300050 0/300000")
			if d := m.at.Sub(begin); d != time.Duration(i+1)*blindInterval {
				t.Errorf("a status update after %s", d)
			}
		}
		if m := p.expect("status 0/300050 0/300050"); m.at.Sub(begin) != 48200*time.Millisecond {
			t.Errorf("the last one after %s", m.at.Sub(begin))
		}
		p.copyEnds()
		p.end(ErrStopped)
		p.usable()
	})
}

// While the last flush runs, a progress event that is due does not make anybody turn in a loop: here that would not end.
func TestProgressDuringTheLastFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300080)).with(slowly(150 * time.Millisecond))
		p.begin(Options{StartLSN: 0x300000, ProgressInterval: 100 * time.Millisecond}, 0x300000)
		p.wal(0x300000, 40)
		p.wal(0x300028, 40)
		p.finish(0x300050, 0)
	})
}

// ------------------------------------------------------------------------------------------- a silent server

// A server that is silent is asked whether it is there, and given up when it doesn't answer.
func TestSilentServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300080))
		p.receive(Options{StatusInterval: -1, StartLSN: 0x300000}) // the server says 1min: two are allowed
		p.identify()
		p.startReplication(0x300000)
		p.wal(0x300000, 80)
		begin := time.Now()
		if m := p.expect("status 0/300050 0/0 ?"); m.at.Sub(begin) != time.Minute {
			t.Errorf("asked after %s", m.at.Sub(begin))
		}
		p.send(keepalive(0x300080, 0)) // it is there
		begin = time.Now()
		if m := p.expect("status 0/300050 0/0 ?"); m.at.Sub(begin) != time.Minute {
			t.Errorf("asked after %s", m.at.Sub(begin))
		}
		p.end(ErrConnectionLost)
		if d := time.Since(begin); d != 2*time.Minute {
			t.Errorf("given up after %s", d)
		}
		p.quiet()
		p.unusable()
		p.hasWAL(1, 0x300000, 0x300050)
	})
}

// A command is no different.
func TestSilentServerBeforeTheStream(t *testing.T) {
	for after, timeout := range map[int]time.Duration{0: defaultReceiveTimeout, 2: defaultReceiveTimeout, 3: 2 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlay(t, oneTimeline(0x300080))
			p.receive(Options{})
			begin := time.Now()
			for i, a := range [][]pgproto3.BackendMessage{answerOf(testSystem, 1, "0/300000", nil), answerOf("1MB"), answerOf("0700"), answerOf("1min")} {
				if i == after+1 {
					break
				}
				p.next()
				p.send(a...)
			}
			p.next()
			p.end(ErrConnectionLost)
			if d := time.Since(begin); d != timeout {
				t.Errorf("given up after %s, expected %s", d, timeout)
			}
			p.unusable()
		})
	}
}

// While the disk is behind it is we who don't listen.
func TestSilenceWhileTheDiskIsBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x20000000))
		var once sync.Once
		p.dir.hook = func(op, name string) error {
			if op == "sync" && name != "." {
				once.Do(func() { time.Sleep(5 * time.Minute) })
			}
			return nil
		}
		p.receive(Options{StatusInterval: time.Minute, ReceiveTimeout: time.Minute, StartLSN: 0x300000, EndLSN: 0x300000 + 70*mib})
		p.identify()
		p.startReplication(0x300000)
		p.conn.SetWriteDeadline(time.Time{})
		p.running.Go(func() {
			for lsn := segment.LSN(0x300000); lsn <= 0x300000+70*mib; lsn += mib {
				p.conn.Write(encode(dataMessage(lsn, 0, emptySegment(lsn))))
			}
		})
		for i := range 5 {
			if m := p.next(); i < 4 && (!strings.HasPrefix(m.text, "status") || strings.HasSuffix(m.text, "?")) {
				t.Errorf("the client sent %q", m.text)
			}
		}
		for p.next().text != "CopyDone" {
		}
		p.copyDone()
		p.end()
	})
}

// ------------------------------------------------------------------------------------------------------ the end

// The end LSN is looked for where a message or a segment ends, and must have been passed, as in pg_receivewal.
func TestEndLSN(t *testing.T) {
	for name, test := range map[string]struct {
		end      segment.LSN
		messages []int // bytes of WAL in each
		written  segment.LSN
	}{
		"in the middle of a message":             {0x300020, []int{100}, 0x300064},
		"a byte before the end of a message":     {0x300063, []int{100}, 0x300064},
		"at the end of a message":                {0x300064, []int{100, 1}, 0x300065},
		"in the first message":                   {1, nil, 0},
		"a byte before a segment's end":          {0x3FFFFF, []int{1<<20 - 50, 100}, 0x400000},
		"at a segment's end, in a message":       {0x400000, []int{1<<20 - 50, 100}, 0x400032},
		"a byte beyond a segment's end":          {0x400001, []int{1<<20 - 50, 100}, 0x400032},
		"at a segment's end, between messages":   {0x400000, []int{1 << 20, 60}, 0x40003C},
		"before a segment's end, message fits":   {0x3FFFFF, []int{1 << 20}, 0x400000},
		"two segments on, all in one message":    {0x500000, []int{3 << 20}, 0x600000},
		"in the second of three, in one message": {0x4FFFFF, []int{3 << 20}, 0x500000},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlay(t, oneTimeline(0x1000000))
				if test.messages == nil {
					// Already passed: nothing is streamed.
					p.receive(Options{StartLSN: 0x300000, EndLSN: test.end, ReceiveTimeout: -1})
					p.identify()
					p.end()
					p.quiet()
					p.usable()
					return
				}
				p.begin(Options{StartLSN: 0x300000, EndLSN: test.end}, 0x300000)
				lsn := segment.LSN(0x300000)
				for i, n := range test.messages {
					if i > 0 {
						p.quiet() // not there yet
					}
					p.wal(lsn, n)
					lsn += segment.LSN(n)
				}
				p.expect(fmt.Sprintf("status %s 0/0", test.written))
				p.send(p.walMessage(lsn, 100), keepalive(lsn+100, 1), p.walMessage(lsn+100, 100)) // on their way already
				p.copyEnds()
				p.end()
				p.hasWAL(1, 0x300000, test.written)
				if g := p.s.Progress(); g.WrittenLSN != test.written || g.FlushedLSN != test.written {
					t.Errorf("%+v", g)
				}
				p.usable()
			})
		})
	}
}

// EndLSN within the segment in which the receive starts is not passed yet, wherever the server is.
func TestEndLSNAtTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300080))
		p.begin(Options{StartLSN: 0x300000, EndLSN: 0x300000}, 0x300000)
		p.wal(0x300000, 41)
		p.expect("status 0/300029 0/0")
		p.copyEnds()
		p.end()
	})
}

// When all that was asked for is there, a connection that breaks afterwards is no failure.
func TestConnectionBreaksAfterTheEndLSN(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300080))
		p.begin(Options{StartLSN: 0x300000, EndLSN: 0x300020}, 0x300000)
		p.wal(0x300000, 100)
		p.expect("status 0/300064 0/0")
		p.expect("CopyDone")
		p.conn.Close()
		p.end()
		p.unusable()
		p.hasWAL(1, 0x300000, 0x300064)
	})
}
