package stream

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"golang.org/x/sys/unix"

	"libreceivewal/segment"
)

// switching is a cluster that was promoted twice: in the segment after the first, and in the one after that.
func switching() *cluster {
	return &cluster{testSystem, segment.History{{Timeline: 1, End: 0x400064}, {Timeline: 10, End: 0x500032}, {Timeline: 11}}, 0x5000C8}
}

// streamToEnd plays the stream of a timeline from a position to its end, up to the client's CopyDone.
func (p *play) streamToEnd(timeline segment.Timeline, lsn segment.LSN) {
	p.t.Helper()
	p.timeline = timeline
	p.startReplication(lsn)
	end, _ := p.c.end(timeline)
	p.wal(lsn, int(end-lsn))
	p.send(&pgproto3.CopyDone{})
	flushed := segment.LSN(0)
	if p.o.Slot != "" {
		flushed = end
	}
	p.expect(fmt.Sprintf("status %s %s", end, flushed))
	p.expect("CopyDone")
}

// nextTimeline is what the server says after the client's CopyDone at the end of a timeline.
func nextTimelineRow(values ...any) []pgproto3.BackendMessage {
	return append(answerOf(values...)[:3:3], &pgproto3.CommandComplete{CommandTag: []byte("START_REPLICATION")}, ready)
}

// At the end of a timeline, its last segment stays .partial, and streaming goes on where that segment begins, on the next timeline,
// after its history file.
func TestTimelineSwitch(t *testing.T) {
	for _, slot := range []string{"", "s"} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlay(t, switching())
			p.receive(Options{Slot: slot, StartLSN: 0x300000, StartTimeline: 1, EndLSN: 0x5000C7, ReceiveTimeout: -1, StatusInterval: -1})
			p.identify()
			p.streamToEnd(1, 0x300000)
			p.send(nextTimelineRow(10, "0/400064")...)
			p.command("TIMELINE_HISTORY 10", answerOf("0000000A.history", p.c.historyFile(10))...)
			p.streamToEnd(10, 0x400000)
			p.send(nextTimelineRow(11, "0/500032")...)
			p.command("TIMELINE_HISTORY 11", answerOf("0000000B.history", p.c.historyFile(11))...)
			p.timeline = 11
			p.startReplication(0x500000)
			p.wal(0x500000, 200)
			p.next()
			p.copyEnds()
			p.end()
			p.usable()
			p.hasWAL(1, 0x300000, 0x400064)
			p.hasWAL(10, 0x400000, 0x500032)
			p.hasWAL(11, 0x500000, 0x5000C8)
			for _, timeline := range []segment.Timeline{10, 11} {
				if got := string(p.dir.file(segment.HistoryName(timeline))); got != p.c.historyFile(timeline) {
					t.Errorf("history of timeline %d: %q", timeline, got)
				}
			}
			if n := strings.Count(p.dir.list(), "\n"); n != 7 {
				t.Errorf("the directory has\n%s", p.dir.list())
			}
			// A segment that is complete before its .partial's turn comes is not told of as opened.
			p.events = slices.DeleteFunc(p.events, func(event string) bool {
				return event == "opened 000000010000000000000003.partial" || event == "opened 0000000A0000000000000004.partial"
			})
			p.told("completed 000000010000000000000003 0/300000-0/400000",
				"opened 000000010000000000000004.partial", "switched 1-10 at 0/400064, going on at 0/400000",
				"completed 0000000A0000000000000004 0/400000-0/500000",
				"opened 0000000A0000000000000005.partial", "switched 10-11 at 0/500032, going on at 0/500000",
				"opened 0000000B0000000000000005.partial")
			want := []string{`INFO not renaming "000000010000000000000004.partial", segment is not complete`,
				"DEBUG switched to timeline 10 at 0/400064"}
			for _, line := range want {
				if !slices.Contains(p.logs, line) {
					t.Errorf("%q is not in the log:\n%s", line, strings.Join(p.logs, "\n"))
				}
			}
		})
	}
}

// A receive that starts exactly where the timeline ended gets no stream, only the row; also several times in a row.
func TestStartAtTheEndOfATimeline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, &cluster{testSystem, segment.History{{Timeline: 1, End: 0x400000}, {Timeline: 2, End: 0x400000}, {Timeline: 3, End: 0x400032}, {Timeline: 4}}, 0x400080})
		p.dir.put("000000010000000000000003", p.c.wal(1, 0x300000, 1<<20), int64(testSize))
		p.receive(Options{EndLSN: 0x400050, ReceiveTimeout: -1})
		p.is(p.serve())
		want := []string{
			"START_REPLICATION 0/400000 TIMELINE 1", "TIMELINE_HISTORY 2",
			"START_REPLICATION 0/400000 TIMELINE 2", "TIMELINE_HISTORY 3",
			"START_REPLICATION 0/400000 TIMELINE 3", "status 0/400032 0/0", "CopyDone", "TIMELINE_HISTORY 4",
			"START_REPLICATION 0/400000 TIMELINE 4", "status 0/400080 0/0", "CopyDone",
		}
		if got := p.trace[3:]; !slices.Equal(got, want) {
			t.Errorf("the client sent %q, expected %q", got, want)
		}
		p.told("switched 1-2 at 0/400000, going on at 0/400000", "switched 2-3 at 0/400000, going on at 0/400000",
			"opened 000000030000000000000004.partial", "switched 3-4 at 0/400032, going on at 0/400000",
			"opened 000000040000000000000004.partial")
		p.hasWAL(3, 0x400000, 0x400032)
		p.hasWAL(4, 0x400000, 0x400080)
		p.usable()
	})
}

// What the server says of the next timeline must make sense; if not, the answer was complete, and the connection is good.
func TestNextTimelineMustMakeSense(t *testing.T) {
	complete := &pgproto3.CommandComplete{}
	for name, answer := range map[string][]pgproto3.BackendMessage{
		"the same":                  nextTimelineRow(10, "0/400064"),
		"an earlier one":            nextTimelineRow(9, "0/400064"),
		"timeline 0":                nextTimelineRow(0, "0/400064"),
		"no timeline":               nextTimelineRow(nil, "0/400064"),
		"not a number":              nextTimelineRow("next", "0/400064"),
		"begins beyond the data":    nextTimelineRow(11, "0/400065"),
		"begins far beyond":         nextTimelineRow(11, "1/400064"),
		"without a beginning":       nextTimelineRow(11, nil),
		"beginning of letters":      nextTimelineRow(11, "here"),
		"one column":                nextTimelineRow(11),
		"no row":                    {complete, complete, ready},
		"two rows":                  {&pgproto3.RowDescription{}, row(11, "0/400064"), row(12, "0/400064"), complete, complete, ready},
		"too many rows":             append(slices.Repeat([]pgproto3.BackendMessage{row(11, "0/400064")}, maxRows+1), ready),
		"rows that are too large":   append(slices.Repeat([]pgproto3.BackendMessage{row(strings.Repeat("x", 9<<20))}, 2), ready),
		"a row that cannot be read": {&pgproto3.RowDescription{}, &pgproto3.NoData{}},
	} {
		lost := strings.Contains(name, "too") || strings.Contains(name, "cannot")
		for _, inCopy := range []bool{true, false} {
			if !inCopy && strings.HasPrefix(name, "begins") {
				continue // there: beyond the start
			}
			t.Run(fmt.Sprint(name, inCopy), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := newPlay(t, &cluster{testSystem, segment.History{{Timeline: 10, End: 0x400064}, {Timeline: 11}}, 0x4000C8})
					p.dir.put("0000000A.history", []byte("1\t0/100000\tlong ago\n"), 20)
					p.receive(Options{StartLSN: 0x400000, StartTimeline: 10, ReceiveTimeout: -1, StatusInterval: -1})
					p.identify()
					if inCopy {
						p.streamToEnd(10, 0x400000)
					} else {
						p.expect("START_REPLICATION 0/400000 TIMELINE 10")
					}
					sent := make(chan struct{})
					go func() { // not all of it may be read
						p.conn.Write(encode(answer...))
						close(sent)
					}()
					p.end(ErrProtocol)
					p.quiet()
					if lost {
						p.unusable()
						p.close()
					} else {
						p.usable()
					}
					<-sent
					if p.dir.file("0000000B.history") != nil || len(p.events) > 1 {
						t.Errorf("%v\n%s", p.events, p.dir.list())
					}
				})
			})
		}
	}
}

// A history file that cannot be had or stored ends the receive: without it, the timeline cannot be restored from.
func TestHistoryFile(t *testing.T) {
	good := "1\t0/400064\treason\n"
	for name, test := range map[string]struct {
		answer []pgproto3.BackendMessage
		disk   error
		want   error
	}{
		"another name":        {answerOf("0000000B.history", good), nil, ErrProtocol},
		"a lower-case name":   {answerOf("0000000a.history", good), nil, ErrProtocol},
		"a path":              {answerOf("../0000000A.history", good), nil, ErrProtocol},
		"no name":             {answerOf(nil, good), nil, ErrProtocol},
		"no content":          {answerOf("0000000A.history", nil), nil, ErrProtocol},
		"one column":          {answerOf("0000000A.history"), nil, ErrProtocol},
		"no row":              {rows(), nil, ErrProtocol},
		"nonsense":            {answerOf("0000000A.history", "nonsense"), nil, ErrProtocol},
		"of a later timeline": {answerOf("0000000A.history", "11\t0/400064\n"), nil, ErrProtocol},
		"a full disk":         {answerOf("0000000A.history", good), unix.ENOSPC, segment.ErrDiskFull},
		"a failed fsync":      {answerOf("0000000A.history", good), unix.EIO, segment.ErrIO},
		"refused":             {refusal("ERROR", "58P01", `could not open file "pg_wal/0000000A.history"`), nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlay(t, &cluster{testSystem, segment.History{{Timeline: 10}}, 0x4000C8})
				p.dir.hook = func(op, name string) error {
					if op == "write" && test.disk == unix.ENOSPC || op == "sync" && name == "" && test.disk == unix.EIO {
						return test.disk
					}
					return nil
				}
				p.receive(Options{StartLSN: 0x400000, ReceiveTimeout: -1})
				p.identify()
				p.command("TIMELINE_HISTORY 10", test.answer...)
				err := p.outcome()
				var e *ServerError
				if test.want == nil {
					if !errors.As(err, &e) || e.SQLSTATE != "58P01" {
						t.Error(err)
					}
				} else if !errors.Is(err, test.want) {
					t.Errorf("%v, expected %v", err, test.want)
				}
				p.quiet()
				p.usable()
				if p.dir.list() != "" {
					t.Errorf("the directory has\n%s", p.dir.list())
				}
			})
		})
	}
}

// A history file that is in the directory already is not asked for again.
func TestHistoryFileIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, &cluster{testSystem, segment.History{{Timeline: 1, End: 0x400064}, {Timeline: 2}}, 0x4000C8})
		p.dir.put("00000002.history", []byte("1\t0/400064\tmine\n"), 16)
		p.receive(Options{StartLSN: 0x400000, StartTimeline: 1, EndLSN: 0x4000C0, ReceiveTimeout: -1})
		p.is(p.serve())
		if slices.Contains(p.trace, "TIMELINE_HISTORY 2") || string(p.dir.file("00000002.history")) != "1\t0/400064\tmine\n" {
			t.Errorf("%q", p.trace)
		}
		p.hasWAL(2, 0x400000, 0x4000C8)
	})
}

// At the end of a timeline, too, the server can fail or fall silent.
func TestEndOfTimelineFails(t *testing.T) {
	for name, test := range map[string]struct {
		then   func(p *play)
		want   error
		usable bool
	}{
		"with an error": {func(p *play) {
			p.send(refusal("ERROR", "58P01", "gone")...)
			p.expect("READ_REPLICATION_SLOT \"s\"") // what the slot still has is worth telling
			p.send(refusal("ERROR", "42601", "never heard of it")...)
		}, ErrWALRemoved, true},
		"fatally":                      {func(p *play) { p.send(errorOf("FATAL", "57P01", "bye")) }, ErrConnectionLost, false},
		"in silence":                   {func(p *play) { time.Sleep(drainTime) }, ErrConnectionLost, false},
		"after the row":                {func(p *play) { p.send(nextTimelineRow(11, "0/400064")[:3]...); time.Sleep(drainTime) }, ErrConnectionLost, false},
		"by the end of the connection": {func(p *play) { p.conn.Close() }, ErrConnectionLost, false},
		"with a message that is none":  {func(p *play) { p.write([]byte("?\x00\x00\x00\x04")) }, ErrProtocol, false},
		"with COPY again":              {func(p *play) { p.send(&pgproto3.CopyBothResponse{}) }, ErrProtocol, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlay(t, &cluster{testSystem, segment.History{{Timeline: 1, End: 0x400064}, {Timeline: 2}}, 0x4000C8})
				p.receive(Options{Slot: "s", StartLSN: 0x400000, StartTimeline: 1, ReceiveTimeout: -1, StatusInterval: -1})
				p.identify()
				p.streamToEnd(1, 0x400000)
				test.then(p)
				begin := time.Now()
				err := p.end(test.want)
				var e *ServerError
				if name == "fatally" && (time.Since(begin) != 0 || !errors.As(err, &e) || e.SQLSTATE != "57P01") {
					t.Errorf("%v after %s", err, time.Since(begin))
				}
				if test.usable {
					p.usable()
				} else {
					p.unusable()
				}
				p.hasWAL(1, 0x400000, 0x400064)
			})
		})
	}
}
