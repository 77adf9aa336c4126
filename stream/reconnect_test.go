package stream

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"libreceivewal/segment"
)

// provider gives new connections, one by one, as the test says.
type provider struct {
	asked chan Reconnection
	given chan func() (NewConnection, error)
}

func newProvider() *provider {
	return &provider{make(chan Reconnection, 1), make(chan func() (NewConnection, error), 1)}
}

func (r *provider) reconnect(ctx context.Context, n Reconnection) (NewConnection, error) {
	r.asked <- n
	select {
	case give := <-r.given:
		return give()
	case <-ctx.Done():
		return NewConnection{}, ctx.Err()
	}
}

// give makes a new connection between the play and its session.
func (p *play) give(r *provider, o SessionOptions) {
	client, server := net.Pipe()
	oldServer, oldClient := p.conn, p.client
	p.t.Cleanup(func() { oldServer.Close(); oldClient.Close() })
	p.conn = server
	p.client = &watched{Conn: client}
	p.in = make(chan message, 300)
	go p.listen(server, p.in)
	next := p.client
	r.given <- func() (NewConnection, error) { return NewConnection{next, o}, nil }
}

// A lost connection is replaced by a new one, on which the receive goes on where the directory ends.
func TestReconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, r := newPlay(t, oneTimeline(0x500080)), newProvider()
		old := p.client
		p.begin(Options{Slot: "s", StartLSN: 0x300000, EndLSN: 0x50007F, Events: Events{Reconnect: r.reconnect}}, 0x300000)
		p.wal(0x300000, 1<<20)
		p.wal(0x400000, 100)
		p.conn.Close()
		lost := time.Now()
		n := <-r.asked
		if d := time.Since(lost); n.Attempt != 1 || !errors.Is(n.Lost, ErrConnectionLost) || d < firstBackoff/2 || d > firstBackoff {
			t.Errorf("%+v after %s", n, d)
		}
		if g := p.s.Progress(); g.State != StateReconnecting || g.FlushedLSN != 0x400064 || p.s.Usable() {
			t.Errorf("%+v", g)
		}
		p.give(r, SessionOptions{})
		p.identify()
		p.startReplication(0x400000)
		if !old.clean() {
			t.Error("the old connection has a deadline")
		}
		p.wal(0x400000, 1<<20)
		p.conn.Close()
		if n := <-r.asked; n.Attempt != 1 { // counts since there was data
			t.Errorf("%+v", n)
		}
		p.give(r, SessionOptions{})
		p.is(p.serve())
		p.hasWAL(1, 0x300000, 0x500080)
		if g := p.s.Progress(); g.Reconnects != 2 || g.StartLSN != 0x300000 || g.Segments != 2 {
			t.Errorf("%+v", g)
		}
		p.usable()
	})
}

// Whoever has no connection yet is asked again, after pauses that grow; and whoever gives up ends the receive.
func TestReconnectGivesUp(t *testing.T) {
	enough := errors.New("enough")
	synctest.Test(t, func(t *testing.T) {
		p, r := newPlay(t, oneTimeline(0x300080)), newProvider()
		p.begin(Options{StartLSN: 0x300000, Events: Events{Reconnect: r.reconnect}}, 0x300000)
		p.wal(0x300000, 100)
		p.conn.Close()
		for i := range 12 {
			begin := time.Now()
			n := <-r.asked
			most := min(firstBackoff<<i, lastBackoff)
			if d := time.Since(begin); n.Attempt != i+1 || d < most/2 || d > most {
				t.Errorf("%+v after %s, expected %s at most", n, d, most)
			}
			err := error(nil)
			if i == 11 {
				err = enough
			}
			r.given <- func() (NewConnection, error) { return NewConnection{}, err }
		}
		err := p.end(ErrConnectionLost)
		if !strings.Contains(err.Error(), "enough") || !strings.Contains(err.Error(), "unexpectedly") {
			t.Error(err)
		}
		p.hasWAL(1, 0x300000, 0x300064)
	})
}

// A connection that is lost before any data counts as another attempt.
func TestReconnectWithoutSuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, r := newPlay(t, oneTimeline(0x300080)), newProvider()
		p.receive(Options{StartLSN: 0x300000, Events: Events{Reconnect: r.reconnect}})
		for i := range 3 {
			p.expect("IDENTIFY_SYSTEM")
			p.send(errorOf("FATAL", "57P03", "the database system is starting up"))
			n := <-r.asked
			var e *ServerError
			if n.Attempt != i+1 || !errors.As(n.Lost, &e) || e.SQLSTATE != "57P03" {
				t.Errorf("%+v", n)
			}
			p.give(r, SessionOptions{})
		}
		p.expect("IDENTIFY_SYSTEM")
		p.stop()
		p.send(answerOf(testSystem, 1, "0/300000")...)
		p.end(ErrStopped)
		p.usable()
	})
}

func TestStopWhileReconnecting(t *testing.T) {
	for name, asked := range map[string]bool{"in the pause": false, "while asking": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, r := newPlay(t, oneTimeline(0x300080)), newProvider()
				p.begin(Options{StartLSN: 0x300000, Events: Events{Reconnect: r.reconnect}}, 0x300000)
				p.conn.Close()
				if asked {
					<-r.asked
				}
				p.wait()
				begin := time.Now()
				p.stop()
				p.end(ErrStopped)
				if d := time.Since(begin); d != 0 {
					t.Errorf("after %s", d)
				}
			})
		})
	}
}

// The new connection must be to the same cluster; its server may have another version.
func TestReconnectToAnotherServer(t *testing.T) {
	for system, want := range map[uint64]error{testSystem: ErrStopped, testSystem + 1: segment.ErrForeign} {
		synctest.Test(t, func(t *testing.T) {
			p, r := newPlay(t, oneTimeline(0x300080)), newProvider()
			p.begin(Options{StartLSN: 0x300000, Events: Events{Reconnect: r.reconnect}}, 0x300000)
			p.conn.Close()
			<-r.asked
			p.c = oneTimeline(0x300080)
			p.c.system = system
			p.give(r, SessionOptions{ServerVersion: 100023})
			p.command("IDENTIFY_SYSTEM", answerOf(system, 1, "0/300080")...)
			p.command("SHOW wal_segment_size", answerOf("1MB")...)
			if want == ErrStopped { // no SHOW data_directory_mode
				p.expect("START_REPLICATION 0/300000 TIMELINE 1")
				p.send(&pgproto3.CopyBothResponse{})
				p.stop()
				p.next()
				p.copyEnds()
			}
			p.end(want)
		})
	}
}

// The lost connection's walsender may hold the slot until the server notices: then it is tried again.
func TestReconnectWhileTheSlotIsBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, r := newPlay(t, oneTimeline(0x300080)), newProvider()
		p.begin(Options{Slot: "s", StartLSN: 0x300000, EndLSN: 0x300079, Events: Events{Reconnect: r.reconnect}}, 0x300000)
		p.wal(0x300000, 60)
		p.conn.Close()
		<-r.asked
		p.give(r, SessionOptions{})
		for range 3 {
			p.identify()
			p.command(`START_REPLICATION SLOT "s" 0/300000 TIMELINE 1`, refusal("ERROR", "55006", "slot is active for PID 1")...)
		}
		p.is(p.serve())
		p.hasWAL(1, 0x300000, 0x300080)
		p.usable()
	})
	// On the first connection it is somebody else's.
	synctest.Test(t, func(t *testing.T) {
		p, r := newPlay(t, oneTimeline(0x300080)), newProvider()
		p.receive(Options{Slot: "s", StartLSN: 0x300000, ReceiveTimeout: -1, Events: Events{Reconnect: r.reconnect}})
		p.identify()
		p.command(`START_REPLICATION SLOT "s" 0/300000 TIMELINE 1`, refusal("ERROR", "55006", "slot is active for PID 1")...)
		p.end(ErrSlotBusy)
		p.usable()
	})
}

// ------------------------------------------------------------------------------------------------- taking over

// started makes a play whose owner has sent START_REPLICATION, with what was read ahead of the stream.
func started(t testing.TB, c *cluster, s StartedStream, readAhead []byte) *play {
	p := newPlay(t, c)
	p.s = NewSession(p.client, SessionOptions{ReadAhead: readAhead, Started: &s})
	p.s.fs = p.dir
	p.streaming, p.from = s.Timeline, s.LSN
	return p
}

// A stream that fits is taken over without a word, however much of it was read ahead.
func TestTakeOver(t *testing.T) {
	c := oneTimeline(0x300080)
	stream := encode(dataMessage(0x300000, 0, c.wal(1, 0x300000, 60)), keepalive(0x30003C, 1))
	for n := range len(stream) + 1 {
		synctest.Test(t, func(t *testing.T) {
			ahead := append([]byte(nil), stream[:n]...)
			p := started(t, c, StartedStream{0x300000, 1, testSystem, testSize}, ahead)
			clear(ahead) // it was copied
			if p.s.Usable() {
				t.Error("usable in the middle of COPY")
			}
			if _, err := p.s.IdentifySystem(p.ctx); !errors.Is(err, ErrBusy) {
				t.Error(err)
			}
			p.receive(Options{Slot: "s", ReceiveTimeout: -1, StatusInterval: -1})
			p.write(stream[n:])
			p.expect("status 0/30003C 0/30003C")
			p.wal(0x30003C, 60)
			p.finish(0x300078, 0x300078)
			p.hasWAL(1, 0x300000, 0x300078)
			p.again(Options{Slot: "s"})
		})
	}
}

// What was read ahead does not decide how much is read at once later.
func TestReadsAfterTakingOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := oneTimeline(0x400000)
		p := started(t, c, StartedStream{0x300000, 1, testSystem, testSize}, encode(dataMessage(0x300000, 0, c.wal(1, 0x300000, 70))))
		p.receive(Options{ReceiveTimeout: -1, StatusInterval: -1})
		p.wait()
		before := p.client.reads.Load()
		p.wal(0x300046, 1<<19)
		if n := p.client.reads.Load() - before; n > 2+1<<19/bufferSize {
			t.Errorf("%d reads of half a MiB", n)
		}
		p.finish(0x380046, 0)
	})
}

// One that ends with its timeline is followed.
func TestTakeOverFollowsTheTimeline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{testSystem, segment.History{{Timeline: 1, End: 0x300046}, {Timeline: 2}}, 0x300080}
		p := started(t, c, StartedStream{0x300000, 1, testSystem, testSize}, nil)
		p.receive(Options{EndLSN: 0x300070, ReceiveTimeout: -1, StatusInterval: -1})
		p.timeline = 1
		p.send(p.walMessage(0x300000, 0x46), &pgproto3.CopyDone{})
		p.expect("status 0/300046 0/0")
		p.expect("CopyDone")
		p.send(nextTimelineRow(2, "0/300046")...)
		p.is(p.serve())
		p.hasWAL(1, 0x300000, 0x300046)
		p.hasWAL(2, 0x300000, 0x300080)
		p.usable()
	})
}

// One that does not fit, or of which too little is known, is ended, and one is started that does.
func TestTakeOverThatDoesNotFit(t *testing.T) {
	fits := StartedStream{0x300000, 1, testSystem, testSize}
	for name, test := range map[string]struct {
		change func(s *StartedStream)
		file   string
		start  string
	}{
		"system not known":             {func(s *StartedStream) { s.SystemIdentifier = 0 }, "", "0/300000 TIMELINE 1"},
		"segment size not known":       {func(s *StartedStream) { s.SegmentSize = 0 }, "", "0/300000 TIMELINE 1"},
		"within a segment":             {func(s *StartedStream) { s.LSN = 0x300010 }, "", "0/300000 TIMELINE 1"},
		"not where the directory ends": {func(s *StartedStream) {}, "000000010000000000000004", "0/500000 TIMELINE 1"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := fits
				test.change(&s)
				p := started(t, oneTimeline(0x500080), s, encode(keepalive(0, 1)))
				if test.file != "" {
					p.dir.put(test.file, p.c.wal(1, 0x400000, 1<<20), int64(testSize))
				}
				p.receive(Options{ReceiveTimeout: -1, StatusInterval: -1})
				p.send(p.walMessage(s.LSN, 100))
				p.copyEnds()
				p.identify()
				p.command("START_REPLICATION "+test.start, &pgproto3.CopyBothResponse{})
				p.stop()
				p.next()
				p.copyEnds()
				p.end(ErrStopped)
				p.usable()
			})
		})
	}
}

// The stream of another cluster than the directory's is ended, and nothing else is asked of it.
func TestTakeOverOfAnotherCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := started(t, oneTimeline(0x500080), StartedStream{0x300000, 1, testSystem + 1, testSize}, nil)
		p.dir.put("000000010000000000000002", p.c.wal(1, 0x200000, 1<<20), int64(testSize))
		p.receive(Options{ReceiveTimeout: -1})
		p.copyEnds()
		p.end(segment.ErrForeign)
		p.usable()
	})
}
