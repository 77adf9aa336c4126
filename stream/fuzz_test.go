package stream

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"libreceivewal/segment"
)

// stranger is the server's side of a session: bytes that were there before anybody asked.
type stranger struct {
	net.Conn // nil: for the methods that nobody calls
	t        testing.TB
	in       []byte
	piece    int // what a read gives at most
	dir      *memory
	s        *Session

	mu       sync.Mutex
	deadline time.Time

	reports  bool             // a flushed position may be reported
	timeline segment.Timeline // as in START_REPLICATION
	from     segment.LSN
}

func (c *stranger) SetDeadline(d time.Time) error    { return c.SetReadDeadline(d) }
func (c *stranger) SetWriteDeadline(time.Time) error { return nil }
func (c *stranger) SetReadDeadline(d time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = d
	return nil
}

func (c *stranger) Read(b []byte) (int, error) {
	c.mu.Lock()
	late := !c.deadline.IsZero() && c.deadline.Before(time.Now())
	c.mu.Unlock()
	if late {
		return 0, os.ErrDeadlineExceeded
	}
	if len(b) > bufferSize || cap(c.s.wire.buf) > 2*maxMessage {
		c.t.Errorf("a read of %d bytes, a buffer of %d", len(b), cap(c.s.wire.buf))
	}
	n := copy(b[:min(len(b), c.piece)], c.in)
	c.in = c.in[n:]
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// Write gets whole messages.
func (c *stranger) Write(b []byte) (int, error) {
	switch b[0] {
	case 'Q':
		sql := string(b[headerSize : len(b)-1])
		if !commands.MatchString(sql) {
			c.t.Errorf("a command %q", sql)
		}
		if fields := strings.Fields(sql); fields[0] == "START_REPLICATION" {
			c.from, _ = segment.ParseLSN(fields[len(fields)-3])
			fmt.Sscan(fields[len(fields)-1], &c.timeline)
		}
	case 'd':
		written, flushed := segment.LSN(binary.BigEndian.Uint64(b[6:])), segment.LSN(binary.BigEndian.Uint64(b[14:]))
		if len(b) != statusMessageSize || b[5] != 'r' || flushed > written || !c.reports && flushed != 0 {
			c.t.Errorf("a status %q", b)
		}
		c.check(flushed)
	case 'c':
	default:
		c.t.Errorf("a message %q", b)
	}
	return len(b), nil
}

// commands is all that a receive ever sends.
var commands = regexp.MustCompile(`^(IDENTIFY_SYSTEM|SHOW (wal_segment_size|data_directory_mode|wal_sender_timeout)|` +
	`READ_REPLICATION_SLOT "s"|TIMELINE_HISTORY \d+|START_REPLICATION (SLOT "s" )?[0-9A-F]{1,8}/[0-9A-F]{1,8} TIMELINE \d+)$`)

// check makes sure that what is said to be flushed is durable: every segment up to there, with all that was written.
func (c *stranger) check(flushed segment.LSN) {
	size := segment.Size(0)
	c.dir.mu.Lock()
	for name, f := range c.dir.names {
		if len(name) >= 24 {
			size = segment.Size(f.size)
		}
	}
	c.dir.mu.Unlock()
	if size == 0 {
		if flushed > c.from {
			c.t.Errorf("%s is flushed, but there is no file", flushed)
		}
		return
	}
	if err := c.dir.holds(c.timeline, c.from, flushed, size, nil); err != nil {
		c.t.Errorf("%s is said to be flushed: %v", flushed, err)
	}
}

// What a server can send that speaks the protocol, to begin with.
func sessions() map[string][]byte {
	p := &play{c: &cluster{testSystem, segment.History{{Timeline: 1, End: 0x300046}, {Timeline: 2}}, 0x300080}}
	cat := func(parts ...any) []byte {
		var b []byte
		for _, part := range parts {
			switch part := part.(type) {
			case []byte:
				b = append(b, part...)
			case []pgproto3.BackendMessage:
				b = append(b, encode(part...)...)
			case pgproto3.BackendMessage:
				b = append(b, encode(part)...)
			}
		}
		return b
	}
	who := cat(answerOf(testSystem, 2, "0/300080", nil), answerOf("1MB"), answerOf("0700"))
	slot := answerOf("physical", "0/300000", 1)
	wal := func(timeline segment.Timeline, lsn segment.LSN, n int) pgproto3.BackendMessage {
		return dataMessage(lsn, 0x300080, p.c.wal(timeline, lsn, n))
	}
	both, done, complete := &pgproto3.CopyBothResponse{}, &pgproto3.CopyDone{}, &pgproto3.CommandComplete{CommandTag: []byte("COPY 0")}
	return map[string][]byte{
		"nothing":    nil,
		"to the end": cat(authentication, who, slot, both, wal(1, 0x300000, 60), keepalive(0x300080, 1), wal(1, 0x30003C, 60), done, complete, complete, ready),
		"switch": cat(who, slot, both, wal(1, 0x300000, 0x46), done, rows(row(2, "0/300046")), answerOf("00000002.history", p.c.historyFile(2)),
			both, wal(2, 0x300000, 0x60), done, complete, ready),
		"at the end of a timeline": cat(who, slot, rows(row(2, "0/300000")), answerOf("00000002.history", "1\t0/300000\n"), both, wal(2, 0x300000, 0x40)),
		"error":                    cat(who, slot, both, wal(1, 0x300000, 60), refusal("ERROR", "58P01", "gone")),
		"shutdown":                 cat(who, slot, both, wal(1, 0x300000, 60), complete),
		"gap":                      cat(who, slot, both, wal(1, 0x300000, 60), wal(1, 0x30003D, 10), done, complete, ready, anytime),
		"notices":                  cat(anytime, who, anytime, slot, anytime, both, anytime, wal(1, 0x300000, 60), anytime, done, complete, ready),
		"no slot":                  cat(who, answerOf(nil, nil, nil)),
		"old":                      cat(&pgproto3.ParameterStatus{Name: "server_version", Value: "9.6.1"}, answerOf(testSystem, 1, "0/300080"), both, wal(1, 0x300000, 60)),
		"end of the WAL":           cat(answerOf(testSystem, 1, "FFFFFFFF/FFFFFFFF"), answerOf("1MB"), answerOf("0700"), slot, both, dataMessage(1<<64-1<<20, 0, pageHeader(testSystem, 1, 1<<64-1<<20, testSize))),
		"huge":                     cat(who, slot, both, []byte("d\x7f\xff\xff\xffw\x00\x00\x00\x00\x00\x30\x00\x00"), make([]byte, 16), p.c.wal(1, 0x300000, 60)),
		"TLS":                      []byte("\x15\x03\x01\x00\x02\x02\x46"),
		"HTTP":                     []byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
	}
}

// Whatever a server sends: no panic, nothing but WAL in the directory, a bounded buffer, and nothing reported flushed that is
// not durable.
func FuzzServer(f *testing.F) {
	for _, bytes := range sessions() {
		for _, options := range []uint16{0, 1, 2, 4, 8, 16, 32, 63, 64, 129, 257, 512} {
			f.Add(bytes, options, uint16(0))
			f.Add(bytes, options, uint16(7))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte, options uint16, piece uint16) {
		dir := newMemory()
		o := Options{Directory: "wal", ReceiveTimeout: -1, StatusInterval: -1}
		c := &stranger{t: t, in: in, piece: int(piece), dir: dir, timeline: 1}
		if piece == 0 {
			c.piece = len(in) + 1
		}
		so := SessionOptions{}
		if options&1 != 0 {
			o.Slot = "s"
		}
		if options&2 != 0 {
			o.Synchronous = true
		}
		if options&4 != 0 {
			o.StartLSN, o.StartTimeline = 0x300000, 1
		}
		if options&8 != 0 {
			o.EndLSN = 0x300050
		}
		if options&16 != 0 {
			dir.put("000000010000000000000003.partial", bytes.Clone(oneTimeline(0).wal(1, 0x300000, 50)), int64(testSize))
		}
		if options&32 != 0 {
			c.from = 0x300000
			so.Started = &StartedStream{LSN: 0x300000, Timeline: 1, SystemIdentifier: testSystem, SegmentSize: testSize}
			so.ReadAhead, c.in = c.in[:len(in)/2], c.in[len(in)/2:]
		}
		if options&64 != 0 {
			o.ReceiveTimeout = 0
		}
		o.CheckPages = options&128 != 0
		if options&256 != 0 {
			o.FlushInterval = 1
		}
		if options&512 != 0 { // a hole
			dir.put("000000010000000000000002", bytes.Clone(oneTimeline(0).wal(1, 0x200000, 50)), int64(testSize))
			dir.put("000000010000000000000004", bytes.Clone(oneTimeline(0).wal(1, 0x400000, 50)), int64(testSize))
		}
		c.reports = o.Slot != "" || o.Synchronous
		s := NewSession(c, so)
		s.fs, c.s = dir, s
		err := s.Receive(context.Background(), o)
		if errors.Is(err, segment.ErrInternal) {
			t.Error(err)
		}
		if g := s.Progress(); g.FlushedLSN > g.WrittenLSN && g.StartLSN > 0 {
			t.Errorf("%+v", g)
		}
		if dir.handles != 0 || dir.locked || !c.deadline.IsZero() {
			t.Errorf("%d files open, locked: %t, deadline %s", dir.handles, dir.locked, c.deadline)
		}
		for name := range dir.names {
			if !ours.MatchString(name) {
				t.Errorf("there is a file %q", name)
			}
		}
	})
}

// A name that passes is a name to PostgreSQL, too, and nothing else.
func FuzzSlotName(f *testing.F) {
	for _, name := range []string{"", "a", "a_9", "A", `"`, "a\x00", "ä", strings.Repeat("a", 64)} {
		f.Add(name)
	}
	valid := regexp.MustCompile(`\A[a-z0-9_]{1,63}\z`)
	f.Fuzz(func(t *testing.T, name string) {
		if err := checkSlotName(name); (err == nil) != valid.MatchString(name) {
			t.Errorf("%q: %v", name, err)
		}
	})
}

func FuzzParseVersion(f *testing.F) {
	for _, version := range []string{"", "9.6.3", "15.18 (Debian 15.18-0)", "19devel", "99999999999999999999.1"} {
		f.Add(version)
	}
	f.Fuzz(func(t *testing.T, version string) {
		if n := ParseVersion(version); n < 0 || n > 1<<30 {
			t.Errorf("%q: %d", version, n)
		}
	})
}

func FuzzParseDuration(f *testing.F) {
	for _, duration := range []string{"", "0", "1min", "60s", "2147483647d", "1.5s"} {
		f.Add(duration)
	}
	f.Fuzz(func(t *testing.T, duration string) {
		if d := parseDuration(duration); d < 0 || d > longest {
			t.Errorf("%q: %s", duration, d)
		}
	})
}
