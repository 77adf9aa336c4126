package stream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"golang.org/x/sys/unix"

	"libreceivewal/segment"
)

// raw is a message of any type and body.
func raw(kind byte, body string) []byte {
	b := binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body)+4))
	return append(b, body...)
}

// dataWith is a message of WAL with some bytes changed.
func dataWith(lsn segment.LSN, n int, change func(data []byte)) []byte {
	data := bytes.Clone(oneTimeline(0).wal(1, lsn, n))
	change(data)
	return encode(dataMessage(lsn, 0, data))
}

// What doesn't belong into the stream ends it. What was received before stays, flushed. Where the message was one of the stream, COPY
// is ended in the regular way, and the connection is good; where it was not, nothing can be known of the connection.
func TestStrangeDataInTheStream(t *testing.T) {
	const at = 0x300064 // 100 bytes were received before
	wal := func(lsn segment.LSN) []byte { return encode(dataMessage(lsn, 0, []byte("data that is not wanted"))) }
	for name, test := range map[string]struct {
		bytes []byte
		want  error
	}{
		"a gap":                        {wal(at + 1), segment.ErrGap},
		"a gap of many segments":       {wal(at + 0x1_00000000), segment.ErrGap},
		"a step back":                  {wal(at - 1), segment.ErrGap},
		"the start again":              {wal(0x300000), segment.ErrGap},
		"LSN 0":                        {wal(0), segment.ErrGap},
		"the last LSN":                 {wal(1<<64 - 1), segment.ErrGap},
		"a gap without data":           {encode(dataMessage(at+1, 0, nil)), segment.ErrGap},
		"a header too short":           {raw('d', "w"+strings.Repeat("\x00", 23)), ErrProtocol},
		"only a type":                  {raw('d', "w"), ErrProtocol},
		"a keepalive too short":        {raw('d', "k"+strings.Repeat("\x00", 16)), ErrProtocol},
		"a keepalive of one byte":      {raw('d', "k"), ErrProtocol},
		"an empty payload":             {raw('d', ""), ErrProtocol},
		"an unknown payload":           {raw('d', "x and more"), ErrProtocol},
		"a status update":              {raw('d', "r"+strings.Repeat("\x00", 33)), ErrProtocol},
		"an unknown message":           {raw('?', ""), ErrProtocol},
		"an unknown message, large":    {append(raw('?', "")[:1], 0x00, 0x90, 0, 0, 1, 2, 3), ErrProtocol},
		"a row":                        {encode(row(1)), ErrProtocol},
		"ReadyForQuery":                {encode(ready), ErrProtocol},
		"CopyBothResponse":             {encode(&pgproto3.CopyBothResponse{}), ErrProtocol},
		"AuthenticationOk":             {encode(&pgproto3.AuthenticationOk{}), ErrProtocol},
		"a notice that cannot be read": {raw('N', "S"), ErrProtocol},
		"an error that cannot be read": {raw('E', "S"), ErrProtocol},
		"length 3":                     {[]byte("d\x00\x00\x00\x03"), ErrProtocol},
		"length 0":                     {[]byte("d\x00\x00\x00\x00"), ErrProtocol},
		"a negative length":            {[]byte("d\xff\xff\xff\xff"), ErrProtocol},
		"the smallest length":          {[]byte("d\x80\x00\x00\x00"), ErrProtocol},
		"a keepalive of 2 GiB":         {[]byte("d\x7f\xff\xff\xffk"), ErrProtocol},
		"an unknown payload of 2 GiB":  {[]byte("d\x7f\xff\xff\xffx"), ErrProtocol},
		"an error of 17 MiB":           {[]byte("E\x01\x10\x00\x00S"), ErrProtocol},
		"TLS":                          {[]byte("\x17\x03\x03\x00\x10encrypted"), ErrEncrypted},
		"HTTP":                         {[]byte("HTTP/1.1 400 Bad Request\r\n\r\n"), ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlay(t, oneTimeline(0x300080))
				p.begin(Options{Slot: "s", StartLSN: 0x300000}, 0x300000)
				p.wal(0x300000, 100)
				p.write(test.bytes)
				if errors.Is(test.want, segment.ErrGap) {
					p.expect("status 0/300064 0/300064")
					p.copyEnds()
					p.end(test.want)
					p.usable()
				} else {
					p.end(test.want)
					p.quiet()
					p.unusable()
				}
				p.hasWAL(1, 0x300000, at)
				if g := p.s.Progress(); g.WrittenLSN != at || g.FlushedLSN != at {
					t.Errorf("%+v", g)
				}
			})
		})
	}
}

// A segment that is not of this place and this cluster never gets a name.
func TestStrangeFirstPage(t *testing.T) {
	put := binary.LittleEndian
	for name, test := range map[string]struct {
		change func(data []byte)
		want   error
	}{
		"of another system":       {func(d []byte) { put.PutUint64(d[24:], testSystem+1) }, segment.ErrForeign},
		"of another timeline":     {func(d []byte) { put.PutUint32(d[4:], 2) }, segment.ErrForeign},
		"of another address":      {func(d []byte) { put.PutUint64(d[8:], 0x500000) }, segment.ErrGap},
		"of another segment size": {func(d []byte) { put.PutUint32(d[32:], 16<<20) }, segment.ErrForeign},
		"without a long header":   {func(d []byte) { put.PutUint16(d[2:], 0) }, segment.ErrForeign},
		"of zeros":                {func(d []byte) { clear(d) }, segment.ErrForeign},
		"of text":                 {func(d []byte) { copy(d, "HTTP/1.1 400 Bad Request") }, segment.ErrForeign},
	} {
		t.Run(name, func(t *testing.T) {
			for _, begin := range []segment.LSN{0x300000, 0x400000} {
				for _, n := range []int{40, 100_000} {
					synctest.Test(t, func(t *testing.T) {
						p := newPlay(t, oneTimeline(0x400080))
						p.begin(Options{Slot: "s", StartLSN: 0x300000}, 0x300000)
						if begin > 0x300000 {
							p.wal(0x300000, 1<<20)
						}
						p.write(dataWith(begin, n, test.change))
						p.expect("status " + begin.String() + " " + begin.String())
						p.copyEnds()
						p.end(test.want)
						p.usable()
						p.hasWAL(1, 0x300000, begin)
						if files := strings.Count(p.dir.list(), "\n"); files != int(begin-0x300000)/int(mib) {
							t.Errorf("the directory has\n%s", p.dir.list())
						}
					})
				}
			}
		})
	}
}

// Of a first page that is not complete, nothing is reported flushed.
func TestHalfAFirstPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300080))
		p.begin(Options{Slot: "s", StartLSN: 0x300000}, 0x300000)
		p.wal(0x300000, 39)
		p.finish(0x300027, 0x300000)
		if p.dir.list() != "" {
			t.Errorf("the directory has\n%s", p.dir.list())
		}
	})
}

// The server's error ends COPY. One that is not fatal leaves the connection as usable as ever.
func TestErrorInTheStream(t *testing.T) {
	for _, state := range []string{"58P01", "XX000", "42501"} {
		for name, after := range map[string]func(p *play){
			"at once":           func(p *play) {},
			"after WAL":         func(p *play) { p.wal(0x300000, 100) },
			"within a segment":  func(p *play) { p.wal(0x300000, 1<<20); p.wal(0x400000, 100) },
			"after a keepalive": func(p *play) { p.wal(0x300000, 100); p.send(keepalive(0x300064, 0)) },
			"behind a notice":   func(p *play) { p.send(anytime...) },
		} {
			t.Run(state+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := newPlay(t, oneTimeline(0x400080))
					p.begin(Options{Slot: "s", StartLSN: 0x300000}, 0x300000)
					after(p)
					p.send(between(anytime, []pgproto3.BackendMessage{&pgproto3.ErrorResponse{Severity: "ERROR", SeverityUnlocalized: "ERROR", Code: state,
						Message: "no", Detail: "because", Hint: "later"}, ready})...)
					if state == "58P01" { // what the slot still has is worth telling
						p.command(`READ_REPLICATION_SLOT "s"`, refusal("ERROR", "42601", "never heard of it")...)
					}
					err := p.outcome()
					var e *ServerError
					if !errors.As(err, &e) || *e != (ServerError{"ERROR", state, "no", "because", "later"}) {
						t.Error(err)
					}
					if errors.Is(err, ErrWALRemoved) != (state == "58P01") || errors.Is(err, ErrConnectionLost) || errors.Is(err, ErrProtocol) {
						t.Error(err)
					}
					p.quiet() // a CopyDone after an error would be one too many
					if g := p.s.Progress(); g.FlushedLSN != g.WrittenLSN {
						t.Errorf("%+v", g)
					}
					p.usable()
				})
			})
		}
	}
}

func TestFatalErrorInTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300080))
		p.begin(Options{StartLSN: 0x300000}, 0x300000)
		p.wal(0x300000, 100)
		p.send(errorOf("FATAL", "57P01", "terminating connection due to administrator command"))
		p.conn.Close()
		var e *ServerError
		if err := p.end(ErrConnectionLost); !errors.As(err, &e) || e.SQLSTATE != "57P01" {
			t.Error(err)
		}
		p.unusable()
		p.hasWAL(1, 0x300000, 0x300064)
	})
}

// A server that refuses, and then says nothing more, doesn't hold Receive up for ever.
func TestErrorWithoutReadyForQuery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300080))
		p.begin(Options{StartLSN: 0x300000}, 0x300000)
		p.send(errorOf("ERROR", "58P01", "gone"))
		begin := time.Now()
		p.end(ErrWALRemoved)
		if d := time.Since(begin); d != drainTime {
			t.Errorf("after %s", d)
		}
		p.unusable()
	})
}

// A server that shuts down ends COPY without CopyDone, after everything was confirmed.
func TestControlledShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300080))
		p.begin(Options{Slot: "s", StartLSN: 0x300000}, 0x300000)
		p.wal(0x300000, 100)
		p.send(keepalive(0x300064, 1))
		p.expect("status 0/300064 0/300064")
		p.send(&pgproto3.CommandComplete{CommandTag: []byte("COPY 0")})
		p.conn.Close()
		if err := p.end(ErrConnectionLost); !strings.Contains(err.Error(), "terminated before stop point") {
			t.Error(err)
		}
		p.unusable()
		p.hasWAL(1, 0x300000, 0x300064)
	})
}

// What comes right behind ReadyForQuery can have been read together with the end of the stream. What may come at any time is
// dealt with; nothing is lost.
func TestMessagesBehindReadyForQuery(t *testing.T) {
	for name, test := range map[string]struct {
		bytes  []byte
		usable bool
	}{
		"nothing":       {nil, true},
		"notices":       {encode(anytime...), true},
		"FATAL":         {encode(errorOf("FATAL", "57P01", "bye")), false},
		"a row":         {encode(row(1)), false},
		"no message":    {[]byte("\xff\xff\xff\xff\xff"), false},
		"half a notice": {encode(anytime[0])[:10], false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlay(t, oneTimeline(0x300080))
				p.begin(Options{StartLSN: 0x300000}, 0x300000)
				p.wal(0x300000, 100)
				p.write(append(encode(refusal("ERROR", "58P01", "gone")...), test.bytes...))
				p.end(ErrWALRemoved)
				if test.usable {
					p.usable()
				} else {
					p.unusable()
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, &cluster{testSystem, segment.History{{Timeline: 1, End: 0x300064}, {Timeline: 2}}, 0x300080})
		p.timeline = 1
		p.begin(Options{StartLSN: 0x300000, StartTimeline: 1}, 0x300000)
		p.wal(0x300000, 100)
		p.send(append(append([]pgproto3.BackendMessage{&pgproto3.CopyDone{}}, rows(row(2, "0/300064"))...), errorOf("FATAL", "57P01", "bye"))...)
		p.expect("status 0/300064 0/0")
		p.expect("CopyDone")
		var e *ServerError
		if err := p.end(ErrConnectionLost); !errors.As(err, &e) || e.SQLSTATE != "57P01" {
			t.Error(err)
		}
	})
}

// A message of any length streams through a buffer of fixed size.
func TestHugeMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const segments = 100
		p := newPlay(t, oneTimeline(0x300000+segments*mib))
		p.dir.forgetful = true
		p.conn.SetWriteDeadline(time.Time{})
		buffer := 0
		p.on = func(event string) error { // on Receive's goroutine
			buffer = max(buffer, cap(p.s.wire.buf))
			return nil
		}
		p.begin(Options{StartLSN: 0x300000, EndLSN: 0x300000 + segments*mib - 1}, 0x300000)
		p.conn.SetWriteDeadline(time.Time{})
		p.running.Go(func() {
			header := encode(dataMessage(0x300000, 0, nil))
			binary.BigEndian.PutUint32(header[1:], uint32(len(header)-1+segments<<20))
			p.conn.Write(header)
			for i := range segment.LSN(segments) {
				p.conn.Write(emptySegment(0x300000 + i*mib))
			}
		})
		p.expect("status 0/6700000 0/0")
		p.copyEnds()
		p.end()
		if buffer > 2*bufferSize {
			t.Errorf("a buffer of %d bytes", buffer)
		}
		if n := strings.Count(p.dir.list(), "\n"); n != segments || len(p.events) < segments {
			t.Errorf("%d segments, %d events", n, len(p.events))
		}
		p.usable()
	})
}

// Messages that are read many at a time, each read ending in the middle of one, are all taken, in a buffer that does not grow.
func TestManyMessagesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x400000))
		var notices []string
		p.begin(Options{StartLSN: 0x300000}, 0x300000)
		var all []byte
		lsn := segment.LSN(0x300000)
		for ; lsn < 0x360000; lsn += 1000 {
			text := strings.Repeat(string(rune('0'+len(notices)%70)), 4000+17*len(notices))
			all = append(all, encode(p.walMessage(lsn, 1000), &pgproto3.NoticeResponse{Severity: "NOTICE", Message: text}, keepalive(lsn, 0))...)
			notices = append(notices, "INFO NOTICE:  "+text)
		}
		p.write(all) // 3 MB
		if n := cap(p.s.wire.buf); n > 3*bufferSize {
			t.Errorf("a buffer of %d bytes", n)
		}
		p.finish(lsn, 0)
		p.hasWAL(1, 0x300000, lsn)
		logged := slices.DeleteFunc(slices.Clone(p.logs), func(line string) bool { return !strings.HasPrefix(line, "INFO NOTICE") })
		if !slices.Equal(logged, notices) {
			t.Errorf("%d notices, expected %d, or they differ", len(logged), len(notices))
		}
	})
}

// A message that is not the stream's data is collected, but only up to a limit, and only as it comes in.
func TestLargeMessageOfAnotherKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300080))
		p.begin(Options{StartLSN: 0x300000}, 0x300000)
		notice := encode(&pgproto3.NoticeResponse{Severity: "NOTICE", Message: strings.Repeat("x", 3<<20)})
		p.write(notice)
		p.wal(0x300000, 100)
		if n := cap(p.s.wire.buf); n > 2*(len(notice)+bufferSize) {
			t.Errorf("a buffer of %d bytes", n)
		}
		p.finish(0x300064, 0)
		if p.s.wire.buf != nil && cap(p.s.wire.buf) > bufferSize {
			t.Error("the buffer is kept")
		}
	})
}

// ----------------------------------------------------------------------------------------- the directory fails

// A failure of the disk ends the receive; the server is told the truth, and the connection is good.
func TestDiskFails(t *testing.T) {
	for name, test := range map[string]struct {
		op, name string
		err      error
		want     error
		flushed  segment.LSN // 0: it depends on how far the disk got before
	}{
		"create":                {"create", "", unix.ENOSPC, segment.ErrDiskFull, 0x300000},
		"allocate":              {"allocate", "", unix.EDQUOT, segment.ErrDiskFull, 0x300000},
		"write":                 {"write", "", unix.ENOSPC, segment.ErrDiskFull, 0x300000},
		"write to a named file": {"write", "000000010000000000000003.partial", unix.EIO, segment.ErrIO, 0},
		"fsync":                 {"sync", "", unix.EIO, segment.ErrIO, 0x300000},
		"fsync of a named file": {"sync", "000000010000000000000003.partial", unix.EIO, segment.ErrIO, 0x300000},
		"link":                  {"link", "000000010000000000000003.partial", unix.EACCES, segment.ErrPermission, 0x300000},
		"rename":                {"rename", "000000010000000000000003.partial", unix.EIO, segment.ErrIO, 0}, // what was flushed under the .partial name stays so
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlay(t, oneTimeline(0x400080))
				failed := false
				p.dir.hook = func(op, name string) error {
					if op == test.op && name == test.name {
						failed = true
						return test.err
					}
					return nil
				}
				p.begin(Options{Slot: "s", StartLSN: 0x300000}, 0x300000)
				p.running.Go(func() { // the client may stop in the middle
					for lsn := segment.LSN(0x300000); lsn < 0x400080; lsn += 1 << 19 {
						p.conn.Write(encode(p.walMessage(lsn, min(1<<19, 0x400080-int(lsn)))))
						time.Sleep(time.Second)
					}
				})
				for m := p.next(); m.text != "CopyDone"; m = p.next() {
					if test.flushed != 0 && !strings.HasSuffix(m.text, " "+test.flushed.String()) {
						t.Errorf("the client sent %q", m.text)
					}
				}
				time.Sleep(5 * time.Second)
				p.copyDone()
				p.end(test.want, test.err)
				if !failed {
					t.Error("nothing has failed")
				}
				p.usable()
				if g := p.s.Progress(); test.flushed != 0 && g.FlushedLSN != test.flushed || g.FlushedLSN > g.WrittenLSN {
					t.Errorf("%+v", g)
				}
				for _, e := range p.events {
					if strings.HasPrefix(e, "completed") {
						t.Error(e)
					}
				}
			})
		})
	}
}

// A directory that cannot be opened, or that holds another cluster's WAL, ends the receive before the stream.
func TestDirectoryRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300080))
		p.dir.hook = func(op, name string) error { return unix.ENOENT }
		p.receive(Options{})
		p.end(segment.ErrNoDirectory)
		p.quiet()
		p.dir.hook = nil
		foreign := pageHeader(testSystem+1, 1, 0x300000, testSize)
		p.dir.put("000000010000000000000003", foreign, int64(testSize))
		p.receive(Options{ReceiveTimeout: -1})
		p.identify()
		p.end(segment.ErrForeign)
		p.quiet()
		p.usable()
	})
}

// Two receivers never write to one directory.
func TestDirectoryLocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, q := newPlay(t, oneTimeline(0x300080)), newPlay(t, oneTimeline(0x300080))
		q.with(p.dir)
		p.begin(Options{StartLSN: 0x300000}, 0x300000)
		if err := q.s.Receive(q.ctx, Options{Directory: "wal"}); !errors.Is(err, segment.ErrLocked) {
			t.Error(err)
		}
		q.quiet()
		p.finish(0x300000, 0)
	})
}

// A connection on which nothing can be sent is lost, but what was written is durable.
func TestServerThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300080))
		p.begin(Options{StartLSN: 0x300000}, 0x300000)
		p.wal(0x300000, 100)
		p.deaf.Store(true)
		p.send(keepalive(0x300064, 1)) // the last that is read
		begin := time.Now()
		p.send(keepalive(0x300064, 1))
		p.end(ErrConnectionLost)
		if d := time.Since(begin); d != writeTimeout {
			t.Errorf("after %s", d)
		}
		p.unusable()
		if g := p.s.Progress(); g.FlushedLSN != 0x300064 {
			t.Errorf("%+v", g)
		}
	})
}
