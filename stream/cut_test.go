package stream

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"libreceivewal/segment"
)

// shortSession is a whole session of few bytes: two streams, a timeline switch, keepalives.
func shortSession(t testing.TB) *play {
	p := newPlay(t, &cluster{testSystem, segment.History{{Timeline: 1, End: 0x300046}, {Timeline: 2}}, 0x30005F})
	p.chunk, p.ask = 45, true
	return p
}

// run plays a session to its end, as the server's bytes are cut.
func (p *play) run() error {
	p.receive(Options{Slot: "s", EndLSN: p.c.tip - 1, StatusInterval: -1})
	return p.serve()
}

// outcomeOf is all that a session leaves: files with their contents, and events.
func (p *play) outcomeOf() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%s\n", strings.Join(p.events, "\n"), p.dir.list())
	for _, name := range sortedKeys(p.dir.names) {
		b.Write(p.dir.file(name))
	}
	return b.String()
}

// same compares two sessions. Their contents are too long to print.
func same(t *testing.T, what string, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %.2000s\nexpected: %.2000s", what, got, want)
	}
}

// However the server's bytes are cut into pieces, the session is the same: the same files, events and messages to the server.
func TestCutEverywhere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		reference := shortSession(t)
		reference.is(reference.run())
		reference.usable()
		if n := strings.Count(strings.Join(reference.trace, "\n"), "status"); n < 5 {
			t.Fatalf("only %d status updates", n)
		}
		for cut := range len(reference.sent) {
			p := shortSession(t)
			p.cut, p.dribble = cut, cut == 0 // for once, each byte by itself
			p.is(p.run())
			p.usable()
			p.close()
			same(t, fmt.Sprintf("cut at %d", cut), p.outcomeOf(), reference.outcomeOf())
			if !slices.Equal(p.trace, reference.trace) {
				t.Fatalf("cut at %d, the client sent %q,\nexpected %q", cut, p.trace, reference.trace)
			}
		}
	})
}

// Messages that are cut, or come together, around the end of a segment.
func TestCutAroundTheEndOfASegment(t *testing.T) {
	t.Parallel()
	session := func(t testing.TB) *play {
		p := newPlay(t, oneTimeline(0x400080))
		p.chunk = 1<<19 + 100 // the second message goes beyond the segment's end
		return p
	}
	synctest.Test(t, func(t *testing.T) {
		reference := session(t)
		reference.is(reference.run())
		// The second message begins after 1<<19+100 bytes of WAL, and the next segment begins in it.
		first := bytes.Index(reference.sent, []byte("d\x00\x08"))
		second := first + headerSize + walHeaderSize + 1<<19 + 100
		boundary := second + headerSize + walHeaderSize + 1<<19 - 100
		if !bytes.Equal(reference.sent[boundary:boundary+40], reference.c.wal(1, 0x400000, 40)) {
			t.Fatal("the second segment begins elsewhere")
		}
		for cut := boundary - 1; cut < boundary+42; cut++ {
			p := session(t)
			p.cut = cut
			p.is(p.run())
			p.close()
			p.hasWAL(1, 0x300000, 0x400080)
			if !slices.Equal(p.trace, reference.trace) {
				t.Fatalf("cut at %d, the client sent %q,\nexpected %q", cut, p.trace, reference.trace)
			}
		}
	})
}

// A session, up to the end of its stream, can be under way before the client has asked for anything, in pieces that have nothing to
// do with messages: it reads what belongs to each answer, and no more.
func TestEverythingAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		session := func(t testing.TB) *play {
			p := newPlay(t, oneTimeline(0x300800))
			p.chunk, p.ask = 99, true
			return p
		}
		reference := session(t)
		reference.is(reference.run())
		files := func(p *play) string { p.events = nil; return p.outcomeOf() }
		commands := func(p *play) []string {
			return slices.DeleteFunc(slices.Clone(p.trace), func(s string) bool { return strings.HasPrefix(s, "status") })
		}
		for _, piece := range []int{1 << 30, 1, 2, 3, 5, 8, 13, 50, 100, 1000} {
			p := session(t)
			p.running.Go(func() {
				for b := range slices.Chunk(reference.sent, piece) {
					p.conn.Write(b)
				}
			})
			p.receive(Options{Slot: "s", EndLSN: p.c.tip - 1, StatusInterval: -1})
			p.end()
			if !slices.Equal(commands(p), commands(reference)) {
				t.Errorf("in pieces of %d, the client sent %q,\nexpected %q", piece, commands(p), commands(reference))
			}
			same(t, fmt.Sprintf("in pieces of %d", piece), files(p), files(reference))
			p.close()
		}
	})
}

// Wherever the connection breaks: what was written is durable, survives a power cut, and the next receive goes on with it.
func TestConnectionBreaksEverywhere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		reference := shortSession(t)
		reference.is(reference.run())
		for eof := 1; eof < len(reference.sent); eof++ {
			p := shortSession(t)
			p.eof = eof
			err := p.run()
			if err != nil || p.s.Progress().WrittenLSN != p.c.tip {
				p.is(err, ErrConnectionLost)
			}
			p.unusable()
			p.close()
			g := p.s.Progress()
			if g.FlushedLSN != g.WrittenLSN && testSize.Offset(g.WrittenLSN) >= 40 {
				t.Fatalf("broken at %d: %+v", eof, g)
			}
			left := p.dir.crash()
			if g.FlushedLSN != 0 {
				if err := left.holds(g.Timeline, 0x300000, g.FlushedLSN, testSize, func(lsn segment.LSN, n int) []byte { return p.c.wal(g.Timeline, lsn, n) }); err != nil {
					t.Fatalf("broken at %d: %v", eof, err)
				}
			}
			again := shortSession(t).with(left)
			again.is(again.run())
			again.close()
			again.hasWAL(2, 0x300000, again.c.tip)
		}
	})
}

// Whenever somebody stops: the connection is good, and the next receive on it goes on.
func TestStopEverywhere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		reference := shortSession(t)
		reference.is(reference.run())
		ended := false
		for at := 1; at < len(reference.sent); at++ {
			p := shortSession(t)
			p.stopAt = at
			switch err := p.run(); {
			case err != nil:
				p.is(err, ErrStopped)
				if ended {
					t.Errorf("stopped at %d, though it was over before", at)
				}
			case p.s.Progress().WrittenLSN != p.c.tip:
				t.Fatalf("stopped at %d: %+v", at, p.s.Progress())
			default:
				ended = true // while COPY was ended
			}
			p.usable()
			p.stopAt = 0
			p.again(Options{Slot: "s"})
			p.hasWAL(2, 0x300000, p.c.tip)
			p.close()
		}
	})
}
