package stream

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"libreceivewal/segment"
)

// play is a Session and a walsender that the test plays, over a pipe. In a bubble (package synctest) its times are exact,
// each write of the server is one read of the client, and nothing goes on once everybody waits.
type play struct {
	t      testing.TB
	c      *cluster
	dir    *memory
	s      *Session
	client *watched
	conn   net.Conn // the server's end
	bubble bool

	ctx  context.Context
	stop context.CancelFunc

	in     chan message // what the client sends
	result chan error   // of Receive

	running sync.WaitGroup // operations of the Session
	deaf    atomic.Bool    // read no more than one message from the client
	o       Options

	mu        sync.Mutex
	trace     []string         // all that the client has sent
	streaming segment.Timeline // what START_REPLICATION has asked for
	from      segment.LSN
	position  segment.LSN // as the last status says
	flushed   segment.LSN

	events []string // segments and timelines, one line each
	logs   []string
	on     func(event string) error // called for each of events, and for "progress"
	data   func(Data) error

	timeline segment.Timeline // being streamed
	written  int              // bytes that the server has sent
	sent     []byte           // all of them
	cut      int              // a write is cut in two before this byte; 0: none
	dribble  bool             // each byte is a write of its own
	eof      int              // the connection ends before this byte; 0: never
	stopAt   int              // the test stops the receive before this byte; 0: never
	chunk    int              // serve sends this much WAL in a message
	onDisk   bool             // in a real directory: dir is not used
	ask      bool             // serve asks for a reply after each message
}

// message is what the client has sent.
type message struct {
	text string // SQL, "CopyDone", or "status WRITTEN FLUSHED", with a " ?" at the end if it asks for a reply
	at   time.Time
}

// testPatience is how long a test waits for what must come; in a bubble it takes no time.
const testPatience = 20 * time.Second

// newPlay makes a play in a bubble, with an empty directory.
func newPlay(t testing.TB, c *cluster) *play {
	client, server := net.Pipe()
	return playOn(t, c, client, server, true)
}

func playOn(t testing.TB, c *cluster, client, server net.Conn, bubble bool) *play {
	p := &play{t: t, c: c, dir: newMemory(), conn: server, bubble: bubble, timeline: c.last(), chunk: 64 << 10}
	p.connect(client)
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.result = make(chan error, 1)
	t.Cleanup(p.close)
	return p
}

// connect makes the session on a connection.
func (p *play) connect(client net.Conn) {
	p.client = &watched{Conn: client}
	p.s = NewSession(p.client, SessionOptions{})
	p.s.fs = p.dir
	p.in = make(chan message, 300)
	go p.listen(p.conn, p.in)
}

// with replaces the directory.
func (p *play) with(m *memory) *play {
	p.dir, p.s.fs = m, m
	return p
}

func (p *play) close() {
	p.stop()
	p.conn.Close()
	p.client.Close()
	p.running.Wait()
}

// watched is a connection that knows its deadlines.
type watched struct {
	net.Conn
	mu          sync.Mutex
	read, write time.Time
	reads       atomic.Int64
	onRead      func(n int) // if not nil: told of each read
}

func (w *watched) Read(b []byte) (int, error) {
	w.reads.Add(1)
	n, err := w.Conn.Read(b)
	if w.onRead != nil {
		w.onRead(n)
	}
	return n, err
}

func (w *watched) SetDeadline(t time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.read, w.write = t, t
	return w.Conn.SetDeadline(t)
}

func (w *watched) SetReadDeadline(t time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.read = t
	return w.Conn.SetReadDeadline(t)
}

func (w *watched) SetWriteDeadline(t time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.write = t
	return w.Conn.SetWriteDeadline(t)
}

func (w *watched) clean() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.read.IsZero() && w.write.IsZero()
}

// ---------------------------------------------------------------------------------------- what the client does

// listen reads what the client sends, and checks what must be true of every status update.
func (p *play) listen(conn net.Conn, in chan<- message) {
	defer close(in)
	backend := pgproto3.NewBackend(conn, io.Discard)
	for {
		m, err := backend.Receive()
		if err != nil {
			return
		}
		var text string
		switch m := m.(type) {
		case *pgproto3.Query:
			text = m.String
			p.startsAt(text)
		case *pgproto3.CopyDone:
			text = "CopyDone"
		case *pgproto3.CopyData:
			text = p.status(m.Data)
		default:
			text = fmt.Sprintf("%T", m)
		}
		p.mu.Lock()
		p.trace = append(p.trace, text)
		p.mu.Unlock()
		in <- message{text, time.Now()}
		if p.deaf.Load() {
			return
		}
	}
}

// startsAt notes what the status updates after a START_REPLICATION are about.
func (p *play) startsAt(sql string) {
	if i := strings.LastIndex(sql, "/"); strings.HasPrefix(sql, "START_REPLICATION ") && i > 0 {
		p.mu.Lock()
		defer p.mu.Unlock()
		fields := strings.Fields(sql)
		p.position, p.flushed = 0, 0
		p.from, _ = segment.ParseLSN(fields[len(fields)-3])
		fmt.Sscan(fields[len(fields)-1], &p.streaming)
	}
}

// status takes a standby status update apart.
func (p *play) status(b []byte) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(b) != 34 || b[0] != 'r' {
		p.t.Errorf("the client sent a payload %q of %d bytes", b[:1], len(b))
		return "garbage"
	}
	field := func(i int) segment.LSN { return segment.LSN(binary.BigEndian.Uint64(b[i:])) }
	written, flushed := field(1), field(9)
	if applied := field(17); applied != 0 {
		p.t.Errorf("status with an applied position %s", applied)
	}
	clock := time.UnixMicro(int64(field(25)) + time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro())
	late := testPatience // on its way
	if p.bubble {
		late = time.Second
	}
	if d := time.Since(clock); d < 0 || d > late {
		p.t.Errorf("status with a clock %s off", d)
	}
	if written < p.position || flushed < p.flushed || flushed > written {
		p.t.Errorf("status with written %s, flushed %s after %s, %s", written, flushed, p.position, p.flushed)
	}
	p.position, p.flushed = written, flushed
	reports := p.o.Slot != "" || p.o.Synchronous
	switch {
	case !reports && flushed != 0:
		p.t.Errorf("status with the flushed position %s: without a slot it must be 0", flushed)
	case reports && !p.onDisk:
		want := func(lsn segment.LSN, n int) []byte { return p.c.wal(p.streaming, lsn, n) }
		if err := p.dir.holds(p.streaming, p.from, flushed, testSize, want); err != nil {
			p.t.Errorf("status with flushed %s: %v", flushed, err)
		}
	}
	text := fmt.Sprintf("status %s %s", written, flushed)
	if b[33] != 0 {
		text += " ?"
	}
	return text
}

// receive begins a Receive.
func (p *play) receive(o Options) {
	if o.Directory == "" {
		o.Directory = "wal"
	}
	own := o.Events.Reconnect
	p.mu.Lock()
	p.o = o
	p.mu.Unlock()
	s, ctx, result := p.s, p.ctx, p.result
	p.running.Go(func() {
		o.Events = p.tellers(goroutine())
		o.Events.Reconnect = own
		result <- s.Receive(ctx, o)
	})
}

// heard is what events have come so far.
func (p *play) heard() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.events)
}

// tellers notes the events; all must come from one goroutine.
func (p *play) tellers(owner string) Events {
	tell := func(format string, args ...any) error {
		if g := goroutine(); g != owner {
			p.t.Errorf("an event came on goroutine %s, not on %s", g, owner)
		}
		text := fmt.Sprintf(format, args...)
		if text != "progress" {
			p.mu.Lock()
			p.events = append(p.events, text)
			p.mu.Unlock()
		}
		if p.on != nil {
			return p.on(text)
		}
		return nil
	}
	data := p.data
	return Events{
		Data: data,
		Log: func(level slog.Level, text string) {
			if g := goroutine(); g != owner {
				p.t.Errorf("a log line came on goroutine %s, not on %s", g, owner)
			}
			p.logs = append(p.logs, fmt.Sprintf("%s %s", level, text))
		},
		SegmentOpened:    func(s Segment) error { return tell("opened %s", s.Name) },
		SegmentCompleted: func(s Segment) error { return tell("completed %s %s-%s", s.Name, s.LSN, s.EndLSN) },
		TimelineSwitched: func(s TimelineSwitch) error {
			return tell("switched %d-%d at %s, going on at %s", s.OldTimeline, s.NewTimeline, s.SwitchLSN, s.StartLSN)
		},
		Hole: func(h Hole) error {
			where := ""
			if h.Directory != "wal" {
				where = h.Directory + " "
			}
			return tell("%s%s %s-%s", where, [...]string{"hole", "filled", "lost"}[h.State], h.LSN, h.EndLSN)
		},
		Mirror: func(m MirrorChange) error {
			if m.State == MirrorRestored {
				return tell("%s restored", m.Directory)
			}
			return tell("%s failed: %v", m.Directory, m.Err)
		},
		DiskFull: func(d DiskFull) error {
			if d.Full {
				return tell("full: %v", d.Err)
			}
			return tell("room after %s", d.Waited)
		},
		Progress: func(Progress) error { return tell("progress") },
	}
}

// goroutine is the number of the goroutine that calls it.
func goroutine() string {
	var b [64]byte
	return strings.Fields(string(b[:runtime.Stack(b[:], false)]))[1]
}

// expect waits for the client's next message.
func (p *play) expect(want string) message {
	p.t.Helper()
	m := p.next()
	if m.text != want {
		p.t.Fatalf("the client sent %q, expected %q", m.text, want)
	}
	return m
}

func (p *play) next() message {
	p.t.Helper()
	select {
	case m, ok := <-p.in:
		if !ok {
			p.t.Fatal("the client is gone")
		}
		return m
	case <-time.After(time.Hour):
		p.t.Fatal("the client sent nothing")
		panic("unreachable")
	}
}

// quiet makes sure that the client has nothing to send.
func (p *play) quiet() {
	p.t.Helper()
	p.wait()
	if len(p.in) > 0 {
		p.t.Fatalf("the client sent %q", (<-p.in).text)
	}
}

// wait waits until everybody waits.
func (p *play) wait() {
	if p.bubble {
		synctest.Wait()
	}
}

// end waits for the result of Receive: an error that is all of these, or nil.
func (p *play) end(want ...error) error {
	p.t.Helper()
	err := p.outcome()
	p.is(err, want...)
	return err
}

func (p *play) is(err error, want ...error) {
	p.t.Helper()
	if (err == nil) != (len(want) == 0) {
		p.t.Fatalf("Receive: %v, expected %v", err, want)
	}
	for _, w := range want {
		if !errors.Is(err, w) {
			p.t.Fatalf("Receive: %v, expected %v", err, w)
		}
	}
}

// outcome waits for the result of Receive.
func (p *play) outcome() error {
	p.t.Helper()
	select {
	case err := <-p.result:
		p.tidy()
		return err
	case <-time.After(time.Hour):
		p.t.Fatal("Receive doesn't end")
		return nil
	}
}

// tidy checks what must be true after each Receive.
func (p *play) tidy() {
	p.t.Helper()
	p.wait()
	if !p.client.clean() {
		p.t.Error("the connection came back with a deadline")
	}
	p.dir.check(p.t)
	if state := p.s.Progress().State; state != StateIdle {
		p.t.Errorf("the state is still %d", state)
	}
}

// usable runs a command on the connection, which must be idle, after every timer of what was before.
func (p *play) usable() {
	p.t.Helper()
	if p.bubble {
		time.Sleep(time.Hour)
	}
	if !p.s.Usable() {
		p.t.Fatal("the connection is not usable")
	}
	result := make(chan error, 1)
	go func() {
		sys, err := p.s.IdentifySystem(context.Background())
		if err == nil && sys.SystemIdentifier != p.c.system {
			err = fmt.Errorf("system identifier %d", sys.SystemIdentifier)
		}
		result <- err
	}()
	p.who()
	if err := <-result; err != nil {
		p.t.Fatalf("the connection came back broken: %v", err)
	}
}

// unusable makes sure that nobody uses the connection any more.
func (p *play) unusable() {
	p.t.Helper()
	if p.s.Usable() {
		p.t.Fatal("the connection is usable")
	}
	if _, err := p.s.IdentifySystem(context.Background()); !errors.Is(err, ErrConnectionLost) {
		p.t.Fatalf("a command on it: %v", err)
	}
}

// ---------------------------------------------------------------------------------------- what the server does

// write sends bytes, cut as the play says.
func (p *play) write(b []byte) {
	p.t.Helper()
	p.conn.SetWriteDeadline(time.Now().Add(time.Hour))
	for len(b) > 0 {
		n := len(b)
		if p.stopAt > 0 && p.stopAt == p.written {
			p.stop()
			p.wait()
		}
		for _, at := range []int{p.cut, p.stopAt} {
			if at > p.written && at < p.written+n {
				n = at - p.written
			}
		}
		if p.dribble {
			n = 1
		}
		ends := p.eof > 0 && p.written+n >= p.eof
		if ends {
			n = p.eof - p.written
		}
		if _, err := p.conn.Write(b[:n]); err != nil {
			if p.eof == 0 {
				p.t.Fatalf("the client doesn't read: %v", err)
			}
			return
		}
		p.sent = append(p.sent, b[:n]...)
		p.written += n
		b = b[n:]
		if ends {
			p.conn.Close()
		}
		p.wait()
	}
}

// send sends messages, all in one write.
func (p *play) send(messages ...pgproto3.BackendMessage) {
	p.t.Helper()
	p.write(encode(messages...))
}

func encode(messages ...pgproto3.BackendMessage) []byte {
	var b []byte
	for _, m := range messages {
		var err error
		if b, err = m.Encode(b); err != nil {
			panic(err)
		}
	}
	return b
}

var ready = &pgproto3.ReadyForQuery{TxStatus: 'I'}

// row is a DataRow of strings; nil is NULL.
func row(values ...any) *pgproto3.DataRow {
	m := &pgproto3.DataRow{}
	for _, v := range values {
		if v == nil {
			m.Values = append(m.Values, nil)
		} else {
			m.Values = append(m.Values, []byte(fmt.Sprint(v)))
		}
	}
	return m
}

// answerOf is the whole answer to a command: one row.
func answerOf(values ...any) []pgproto3.BackendMessage {
	return rows(row(values...))
}

func rows(rows ...*pgproto3.DataRow) []pgproto3.BackendMessage {
	m := []pgproto3.BackendMessage{&pgproto3.RowDescription{}}
	for _, r := range rows {
		m = append(m, r)
	}
	return append(m, &pgproto3.CommandComplete{CommandTag: []byte("SELECT")}, ready)
}

// refusal is the whole answer to a command that fails.
func refusal(severity, state, text string) []pgproto3.BackendMessage {
	return []pgproto3.BackendMessage{errorOf(severity, state, text), ready}
}

func errorOf(severity, state, text string) *pgproto3.ErrorResponse {
	return &pgproto3.ErrorResponse{Severity: severity, SeverityUnlocalized: severity, Code: state, Message: text}
}

// command answers the client's next command, which must be this one.
func (p *play) command(sql string, answer ...pgproto3.BackendMessage) {
	p.t.Helper()
	p.expect(sql)
	p.send(answer...)
}

// who answers the commands of IdentifySystem.
func (p *play) who() {
	p.t.Helper()
	p.command("IDENTIFY_SYSTEM", answerOf(p.c.system, p.c.last(), p.c.tip, nil)...)
	p.command("SHOW wal_segment_size", answerOf("1MB")...)
	p.command("SHOW data_directory_mode", answerOf("0700")...)
}

// identify answers what Receive asks first.
func (p *play) identify() {
	p.t.Helper()
	p.who()
	if p.o.ReceiveTimeout == 0 {
		p.command("SHOW wal_sender_timeout", answerOf("1min")...)
	}
}

// begin plays everything up to the first WAL: Receive with these options, which streams from a position.
func (p *play) begin(o Options, lsn segment.LSN) {
	p.t.Helper()
	if o.ReceiveTimeout == 0 {
		o.ReceiveTimeout = -1
	}
	if o.StatusInterval == 0 {
		o.StatusInterval = -1
	}
	p.receive(o)
	p.identify()
	p.startReplication(lsn)
}

// startReplication answers START_REPLICATION.
func (p *play) startReplication(lsn segment.LSN) {
	p.t.Helper()
	slot := ""
	if p.o.Slot != "" {
		slot = fmt.Sprintf("SLOT %q ", p.o.Slot)
	}
	p.command(fmt.Sprintf("START_REPLICATION %s%s TIMELINE %d", slot, lsn, p.timeline), &pgproto3.CopyBothResponse{})
}

// wal sends a message with n bytes of WAL.
func (p *play) wal(lsn segment.LSN, n int) {
	p.t.Helper()
	p.send(p.walMessage(lsn, n))
}

func (p *play) walMessage(lsn segment.LSN, n int) *pgproto3.CopyData {
	return dataMessage(lsn, p.c.tip, p.c.wal(p.timeline, lsn, n))
}

func dataMessage(lsn, end segment.LSN, data []byte) *pgproto3.CopyData {
	b := binary.BigEndian.AppendUint64([]byte{'w'}, uint64(lsn))
	b = binary.BigEndian.AppendUint64(b, uint64(end))
	b = binary.BigEndian.AppendUint64(b, uint64(serverClockOf(time.Now())))
	return &pgproto3.CopyData{Data: append(b, data...)}
}

func keepalive(end segment.LSN, reply byte) *pgproto3.CopyData {
	b := binary.BigEndian.AppendUint64([]byte{'k'}, uint64(end))
	b = binary.BigEndian.AppendUint64(b, uint64(serverClockOf(time.Now())))
	return &pgproto3.CopyData{Data: append(b, reply)}
}

func serverClockOf(t time.Time) int64 {
	return t.UnixMicro() - time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
}

// copyEnds answers the client's CopyDone.
func (p *play) copyEnds() {
	p.t.Helper()
	p.expect("CopyDone")
	p.copyDone()
}

// copyDone is what the server says after a CopyDone of the client.
func (p *play) copyDone() {
	p.t.Helper()
	p.send(&pgproto3.CopyDone{}, &pgproto3.CommandComplete{CommandTag: []byte("COPY 0")},
		&pgproto3.CommandComplete{CommandTag: []byte("START_REPLICATION")}, ready)
}

// finish stops the Receive, which has received up to a position, and checks that the connection is usable again.
func (p *play) finish(written, flushed segment.LSN) {
	p.t.Helper()
	p.stop()
	p.expect(fmt.Sprintf("status %s %s", written, flushed))
	p.copyEnds()
	p.end(ErrStopped)
	p.usable()
}

// serve plays a whole walsender that has the cluster's WAL, until Receive ends, and returns its result.
func (p *play) serve() error {
	p.t.Helper()
	err := p.stream()
	p.tidy()
	return err
}

func (p *play) stream() error {
	var next, end segment.LSN // what is being streamed; equal: nothing
	copying, ended := false, segment.Timeline(0)
	for {
		var m message
		if copying && next < end {
			select {
			case m = <-p.in:
			default:
				n := int(min(end-next, segment.LSN(p.chunk)))
				p.wal(next, n)
				if p.ask {
					p.send(keepalive(p.c.tip, 1))
				}
				if next += segment.LSN(n); next == end {
					if ended != 0 {
						p.send(&pgproto3.CopyDone{})
					} else {
						p.send(keepalive(p.c.tip, 1))
					}
				}
				continue
			}
		} else {
			select {
			case err := <-p.result:
				return err
			case m = <-p.in:
			}
		}
		var lsn string
		var timeline segment.Timeline
		command := strings.Replace(m.text, fmt.Sprintf("SLOT %q ", p.o.Slot), "", 1)
		switch {
		case m.text == "":
			return <-p.result // the client is gone
		case strings.HasPrefix(m.text, "status"):
		case m.text == "CopyDone":
			copying = false
			answer := []pgproto3.BackendMessage{}
			if ended == 0 || next < end {
				answer = append(answer, &pgproto3.CopyDone{})
			}
			if ended != 0 {
				switchLSN, _ := p.c.end(p.timeline)
				answer = append(answer, &pgproto3.RowDescription{}, row(ended, switchLSN),
					&pgproto3.CommandComplete{CommandTag: []byte("SELECT")})
			}
			p.send(append(answer, &pgproto3.CommandComplete{CommandTag: []byte("START_REPLICATION")}, ready)...)
		case m.text == "IDENTIFY_SYSTEM":
			p.send(answerOf(p.c.system, p.c.last(), p.c.tip, nil)...)
		case m.text == "SHOW wal_segment_size":
			p.send(answerOf("1MB")...)
		case m.text == "SHOW data_directory_mode":
			p.send(answerOf("0700")...)
		case m.text == "SHOW wal_sender_timeout":
			p.send(answerOf("1min")...)
		case strings.HasPrefix(m.text, "READ_REPLICATION_SLOT "):
			p.send(answerOf("physical", "0/300080", 1)...)
		case scan(m.text, "TIMELINE_HISTORY %d", &timeline):
			p.send(answerOf(segment.HistoryName(timeline), p.c.historyFile(timeline))...)
		case scan(command, "START_REPLICATION %s TIMELINE %d", &lsn, &timeline):
			next, _ = segment.ParseLSN(lsn)
			p.timeline = timeline
			if end, ended = p.c.end(timeline); ended == 0 {
				end = p.c.tip
			} else if end == next {
				p.send(rows(row(ended, end))...)
				continue
			}
			copying = true
			p.send(&pgproto3.CopyBothResponse{})
		default:
			p.t.Errorf("the client sent %q", m.text)
			p.conn.Close()
		}
	}
}

func scan(text, format string, into ...any) bool {
	n, err := fmt.Sscanf(text, format, into...)
	return err == nil && n == len(into)
}

// unfilled is what a file holds before the zeros at its end, which may be those that it was filled with.
func unfilled(content []byte) []byte { return bytes.TrimRight(content, "\x00") }

// hasWAL checks the files of a timeline: complete segments, and a partial one if end is within a segment.
func (p *play) hasWAL(timeline segment.Timeline, begin, end segment.LSN) {
	p.t.Helper()
	for lsn := begin; lsn < end; lsn += mib {
		name := segment.At(timeline, lsn, testSize).Name(testSize)
		n := int(testSize)
		if end-lsn < mib {
			name, n = name+".partial", int(end-lsn)
		}
		if got := p.dir.file(name); !bytes.Equal(unfilled(got), unfilled(p.c.wal(timeline, lsn, n))) {
			p.t.Errorf("%s has %d bytes that are not the server's; the directory has\n%s", name, len(got), p.dir.list())
		}
	}
}

// told checks the events of segments and timelines.
func (p *play) told(want ...string) {
	p.t.Helper()
	if got := strings.Join(p.events, "\n"); got != strings.Join(want, "\n") {
		p.t.Errorf("events:\n%s\nexpected:\n%s", got, strings.Join(want, "\n"))
	}
}
