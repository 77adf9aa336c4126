package stream

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"libreceivewal/segment"
)

// The payloads of CopyData in physical replication
// (https://www.postgresql.org/docs/current/protocol-replication.html#PROTOCOL-REPLICATION-XLOGDATA).
const (
	payloadWAL       = 'w'
	payloadKeepalive = 'k'
	payloadStatus    = 'r'

	walHeaderSize     = 1 + 8 + 8 + 8 // type, start LSN, server's end of WAL, server's clock
	keepaliveSize     = 1 + 8 + 8 + 1 // type, server's end of WAL, server's clock, reply requested
	statusMessageSize = headerSize + 1 + 8 + 8 + 8 + 8 + 1
)

// replyPatience is how long the answer to a keepalive waits for a flush that it is to report.
const replyPatience = 500 * time.Millisecond

// blindInterval is how often the server hears from us while nothing is read from it, and so no keepalive is seen: it
// ends the connection when it hears nothing for wal_sender_timeout.
const blindInterval = 500 * time.Millisecond

// copyStream is one timeline's stream: the connection is in COPY mode from the beginning to the end of run.
type copyStream struct {
	*receiver
	c *wire
	w *segment.Writer

	guard   *guard
	payload int         // bytes of the current WAL message's data that are still to come
	next    segment.LSN // where they begin

	news       atomic.Bool // the writer's syncer has something to tell
	reported   segment.LSN // the flushed position that was sent last
	lastStatus time.Time
	lastHeard  time.Time // when the server last sent anything, or we last didn't want it to
	asked      bool      // since then, a reply was asked for
	owed       time.Time // since when the server waits for a reply; zero: it doesn't
	answered   bool      // it has had one, but not all was flushed
	shown      time.Time // when the last progress event was
	changed    bool      // something has happened since then

	wanted    segment.LSN // up to where a flush was asked for because of its interval
	unflushed time.Time   // since when something is written that no flush was asked for; zero: nothing is
	blind     time.Time   // since when nothing is read, because of the disk; zero: it is read
	full      time.Time   // when writing failed on a full disk that we wait for; zero: it did not
	stalled   bool        // that was the writer's compression

	events []segment.Event // to be told

	segment string     // the name of the segment that is being written,
	named   segment.ID // which is this one

	server serverClock
	bytes  uint64 // since the last publish
	stored uint64 // of the writer, at the last publish
	done   bool   // the end LSN was reached
}

// serverClock is what the server said last of itself.
type serverClock struct {
	end      segment.LSN
	time     int64 // microseconds since 2000-01-01 UTC
	received time.Time
}

// ending is how COPY mode ends.
type ending int

const (
	goingOn     ending = iota
	endReached         // the end LSN was passed: we end it
	endStopped         // somebody wants to stop: we end it
	endTimeline        // the server has sent CopyDone
)

// writerOptions says how the stream that begins is written.
func (r *receiver) writerOptions() segment.WriterOptions {
	return segment.WriterOptions{
		Timeline:         r.timeline,
		Start:            r.start,
		Size:             r.sys.SegmentSize,
		SystemIdentifier: r.sys.SystemIdentifier,
		History:          r.history,
		Whole:            r.filling,
		CheckPages:       r.o.CheckPages,
		Synchronous:      r.o.Synchronous,
		NoSync:           r.o.NoSync,

		Compression:        r.o.Compression,
		CompressionLevel:   r.o.CompressionLevel,
		CompressionWorkers: r.o.CompressionWorkers,
	}
}

func newCopyStream(r *receiver) *copyStream {
	c := &copyStream{receiver: r, c: r.s.wire, next: r.start}
	if r.o.Confirm && !r.filling {
		r.s.hold.reach(r.start)
	}
	o := r.writerOptions()
	o.Notify = func() {
		c.news.Store(true)
		c.s.wake()
	}
	c.w = r.dir.NewWriter(o)
	c.mirrors.feeds(c.w)
	c.guard = newGuard(func() error {
		c.lastHeard = time.Now() // it is not the server who is silent
		return c.sendStatus(false)
	})
	c.lastStatus = time.Now()
	c.lastHeard = c.lastStatus
	return c
}

// run streams until the timeline's or the caller's end. Whatever happens, what was written is then durable, or
// known not to be, and the connection is idle again unless it is lost.
func (c *copyStream) run(ctx context.Context) (*nextTimeline, error) {
	defer c.w.Close() // does nothing the second time: for a callback that panics
	c.publish(StateStreaming)
	end, err := c.loop(ctx)
	c.done = end == endReached
	c.publish(StateStopping)
	if flushErr := c.flush(streaming(err)); err == nil {
		err = flushErr
	}
	c.publish(StateStopping)
	if err != nil {
		c.leave(ctx, err)
		return nil, err
	}
	next, err := c.finish(ctx, end)
	switch end {
	case endStopped:
		err = c.stopped(ctx)
	case endReached:
		err = nil // all that was asked for is there; Usable tells what has become of the connection
		if c.stop != nil {
			err = c.stopped(ctx)
		}
	}
	return next, err
}

// loop is the COPY loop.
func (c *copyStream) loop(ctx context.Context) (ending, error) {
	for {
		if err := c.settle(); err != nil {
			return goingOn, err
		}
		if c.stop != nil {
			return endStopped, nil
		}
		if end, err := c.consume(); end != goingOn || err != nil {
			return end, err
		}
		if c.o.Synchronous {
			if err := c.flushNow(); err != nil {
				return goingOn, err
			}
		}
		if err := c.keepUp(time.Now()); err != nil {
			return goingOn, err
		}
		if c.stopped(ctx) != nil {
			return endStopped, nil
		}
		if err := c.await(); err != nil {
			return goingOn, err
		}
	}
}

// flushNow makes durable what was written, and tells the server. Where the disk is not busy with more than that, it is waited for
// here: what arrives meanwhile is flushed together the next time.
func (c *copyStream) flushNow() error {
	if max(c.durable(), c.wanted) >= c.w.Written() {
		return nil
	}
	c.wanted = c.w.Written()
	c.mirrors.flush()
	c.guard.enter()
	done := c.w.Sync()
	c.guard.leave()
	if !done {
		return nil
	}
	if err := c.w.Err(); err != nil {
		return err
	}
	c.changed = true
	if c.flushed() > c.reported {
		return c.sendStatus(false)
	}
	return nil
}

// await waits for the server, the syncer, a stop or the time of the next status update. While the disk is behind,
// it doesn't read: the server has to wait.
func (c *copyStream) await() error {
	if !c.reads() {
		if c.blind.IsZero() {
			c.blind = time.Now()
		}
		c.c.wait(c.deadline())
		c.lastHeard = time.Now()
		if !c.full.IsZero() && c.lastHeard.Sub(c.full) >= diskRetry {
			c.full = time.Time{}
			c.w.Retry()
		}
		return nil
	}
	c.blind = time.Time{}
	deadline := c.deadline()
	if c.c.hot && c.c.short() {
		behind, quiet := c.server.end >= c.next+gatherLag, c.quiet()
		switch {
		case behind:
			gather()
		case quiet && !c.o.Synchronous:
			c.c.pause(deadline)
		}
		if behind || quiet {
			c.c.linger(deadline)
		}
	}
	got, err := c.c.read(bufferSize, deadline)
	if got {
		c.lastHeard, c.asked = time.Now(), false
	}
	return err
}

// quiet tells whether the server alone can have something to tell: not the syncer, nor the caller.
func (c *copyStream) quiet() bool {
	return c.durable() >= max(c.wanted, c.reported) && !c.o.Confirm && c.o.Events.Data == nil
}

// reads tells whether there is room for more data.
func (c *copyStream) reads() bool {
	return c.full.IsZero() && c.w.Ready() && c.dataHasRoom() && c.mirrors.ready()
}

// dataHasRoom tells whether the caller comes for its data.
func (c *copyStream) dataHasRoom() bool {
	return c.o.DataAhead <= 0 || c.s.hold.waiting() < uint64(c.o.DataAhead)
}

// consume takes apart what was read.
func (c *copyStream) consume() (ending, error) {
	for c.reads() {
		if c.payload > 0 {
			data := c.c.buffered()
			if len(data) == 0 {
				return goingOn, nil
			}
			if end, err := c.store(data[:min(len(data), c.payload)]); end != goingOn || err != nil {
				return end, err
			}
			continue
		}
		end, more, err := c.take()
		if end != goingOn || err != nil || !more {
			return end, err
		}
	}
	return goingOn, nil
}

// store writes a piece of WAL data.
func (c *copyStream) store(data []byte) (ending, error) {
	c.w.Live(c.server.end < c.next+segment.LSN(c.sys.SegmentSize))
	c.guard.enter()
	n, err := c.w.Append(c.next, data)
	c.guard.leave()
	if c.waitsForDisk(err) && c.w.Err() == nil {
		c.full = time.Now()
		c.diskFull(err)
		return goingOn, nil
	}
	if err != nil {
		return goingOn, err
	}
	c.full = time.Time{}
	c.diskHasRoom()
	c.mirrors.append(c.next, data[:n])
	c.c.used(n)
	c.payload -= n
	c.next += segment.LSN(n)
	c.bytes += uint64(n)
	c.changed = true
	c.give(data[:n])
	// As in pg_receivewal, the end is looked for where a message or a segment ends.
	if (c.payload == 0 || c.sys.SegmentSize.Offset(c.next) == 0) && c.reached(c.next) {
		return endReached, nil
	}
	return goingOn, nil
}

// give gives the caller what was just written, which ends at c.next.
func (c *copyStream) give(data []byte) {
	if c.o.Confirm {
		c.s.hold.reach(c.next)
	}
	if c.o.Events.Data == nil {
		return
	}
	c.s.hold.give(len(data))
	if c.refused {
		return
	}
	err := c.o.Events.Data(Data{c.timeline, c.next - segment.LSN(len(data)), c.server.end, c.sys.SegmentSize, data})
	if err != nil {
		c.refused = true
		c.stopOn(err)
	} else if c.o.DataAhead <= 0 {
		c.s.hold.take(len(data))
	}
}

// take takes one message from the buffer; of WAL data only the header. more is false if it isn't all there.
func (c *copyStream) take() (end ending, more bool, err error) {
	kind, length, ok, err := c.c.header()
	if err != nil || !ok {
		return goingOn, false, err
	}
	switch kind {
	case typeCopyData:
		more, err := c.takeData(length)
		return goingOn, more, err
	case typeCopyDone, typeErrorResponse, typeCommandComplete, typeNoticeResponse, typeParameterStatus, typeNotification:
	default:
		return goingOn, false, unexpected(kind, "START_REPLICATION") // however much of it is still to come
	}
	body, missing, err := c.c.body(kind, length)
	if missing > 0 || err != nil {
		return goingOn, false, err
	}
	switch kind {
	case typeCopyDone:
		return endTimeline, false, nil
	case typeErrorResponse:
		var m pgproto3.ErrorResponse
		if err := decode(&m, body); err != nil {
			return goingOn, false, err
		}
		return goingOn, false, streamFailure(newServerError(&m))
	case typeCommandComplete:
		// A server that shuts down ends COPY without CopyDone, once all was sent and confirmed (WalSndDone in walsender.c).
		return goingOn, false, fail(ErrConnectionLost, "replication stream was terminated before stop point")
	}
	_, err = c.s.asynchronous(kind, body)
	return goingOn, true, err
}

// takeData takes a message of the stream; more is false if it isn't all there.
func (c *copyStream) takeData(length int) (more bool, err error) {
	b := c.c.buffered()[headerSize:]
	if length > 0 && len(b) == 0 {
		return false, nil
	}
	payload := byte(0)
	if length > 0 {
		payload = b[0]
	}
	switch payload {
	case payloadWAL:
		return c.takeWAL(b, length)
	case payloadKeepalive:
		return c.takeKeepalive(length)
	}
	return false, fail(ErrProtocol, "unrecognized streaming header: %q", payload)
}

// takeWAL takes the header of WAL data.
func (c *copyStream) takeWAL(b []byte, length int) (more bool, err error) {
	if length < walHeaderSize {
		return false, fail(ErrProtocol, "streaming header too small: %d", length)
	}
	if len(b) < walHeaderSize {
		return false, nil
	}
	begin := segment.LSN(binary.BigEndian.Uint64(b[1:]))
	c.heard(b[9:])
	c.c.used(headerSize + walHeaderSize)
	c.payload = length - walHeaderSize
	if begin != c.next {
		return false, fail(segment.ErrGap, "got WAL data at %s, expected %s", begin, c.next)
	}
	c.join()
	return true, nil
}

// takeKeepalive takes a keepalive.
func (c *copyStream) takeKeepalive(length int) (more bool, err error) {
	if length < keepaliveSize {
		return false, fail(ErrProtocol, "streaming header too small: %d", length)
	}
	body, missing, err := c.c.body(typeCopyData, length)
	if missing > 0 || err != nil {
		return false, err
	}
	c.heard(body[1:])
	if body[keepaliveSize-1] == 0 {
		return true, nil
	}
	// The reply waits for a flush, if it reports one: a server that shuts down waits for everything to be flushed.
	if c.reportsFlush() {
		c.flushWritten()
	}
	if c.owed.IsZero() {
		c.owed = time.Now()
	}
	c.answered = false
	return true, nil
}

// heard notes the server's end of WAL and clock.
func (c *copyStream) heard(b []byte) {
	c.server = serverClock{segment.LSN(binary.BigEndian.Uint64(b)), int64(binary.BigEndian.Uint64(b[8:])), time.Now()}
	c.changed = true
}

// settle passes on what the writer's syncer has done, and reports it to the server where it waits for that.
func (c *copyStream) settle() error {
	answered, fresh := c.s.hold.changed(), c.mirrors.isFresh()
	if !c.news.Swap(false) && !answered && !fresh {
		return nil
	}
	c.publish(c.state()) // what the callbacks look at must not be older than what they are told
	if fresh {
		c.tellMirrors()
	}
	c.tellSegments()
	if err := c.w.Err(); err != nil {
		return err
	}
	if err := c.stall(); err != nil {
		return err
	}
	if err := c.mirrors.failure(); err != nil {
		return err
	}
	c.changed = true
	if (c.o.Synchronous || c.o.FlushInterval > 0 && c.reportsFlush()) && c.flushed() > c.reported {
		return c.sendStatus(false)
	}
	return nil
}

// flushWritten asks for a flush of everything written so far.
func (c *copyStream) flushWritten() {
	c.w.Flush()
	c.mirrors.flush()
}

// durable is the end of what is durable, in the first directory and in the mirrors that are required.
func (c *copyStream) durable() segment.LSN { return c.mirrors.flushed(c.w.Flushed()) }

// tellSegments tells the caller of segments: of a complete one once it is durable wherever it has to be.
func (c *copyStream) tellSegments() {
	c.events = append(c.events, c.w.Events()...)
	for len(c.events) > 0 {
		e := c.events[0]
		if end := e.ID.End(c.sys.SegmentSize); e.Complete && c.mirrors.flushed(end) < end {
			return
		}
		c.events = c.events[1:]
		c.tell(e)
	}
}

// stall notes that what was appended cannot be written because the disk is full, or can be again.
func (c *copyStream) stall() error {
	err := c.w.Stalled()
	switch {
	case err == nil && c.stalled:
		c.stalled, c.full = false, time.Time{}
		c.diskHasRoom()
	case err == nil:
	case !c.waitsForDisk(err):
		return err
	default:
		c.stalled, c.full = true, time.Now()
		c.diskFull(err)
	}
	return nil
}

// tell tells the caller of a segment.
func (c *copyStream) tell(e segment.Event) {
	size := c.sys.SegmentSize
	s := Segment{Name: e.Name, Timeline: e.ID.Timeline, LSN: e.ID.LSN(size), EndLSN: e.ID.End(size), Size: size}
	callback := c.o.Events.SegmentOpened
	if e.Complete {
		callback = c.o.Events.SegmentCompleted
		c.debugf("finished segment at %s (timeline %d)", s.EndLSN, s.Timeline)
		c.s.setProgress(func(p *Progress) { p.Segments++ })
	}
	if callback != nil {
		c.stopOn(callback(s))
	}
}

// keepUp does what is due at a time: the reply to a keepalive, a status update, a question whether the server is still
// there, a progress event.
func (c *copyStream) keepUp(now time.Time) error {
	if c.statusDue(now) {
		if err := c.sendStatus(false); err != nil {
			return err
		}
	}
	c.flushInTime(now)
	if limit := c.s.silence; limit > 0 {
		quiet := now.Sub(c.lastHeard)
		if quiet >= limit {
			return silent(quiet)
		}
		if quiet >= limit/2 && !c.asked {
			c.asked = true
			if err := c.sendStatus(true); err != nil {
				return err
			}
		}
	}
	if c.changed {
		c.publish(c.state())
		if e := c.o.Events.Progress; e != nil && now.Sub(c.shown) >= c.o.ProgressInterval {
			c.shown, c.changed = now, false
			c.stopOn(e(c.s.Progress()))
		}
	}
	return nil
}

// flushInTime asks for a flush once data has waited for one for the flush interval.
func (c *copyStream) flushInTime(now time.Time) {
	switch {
	case c.o.FlushInterval <= 0 || c.o.Synchronous:
	case max(c.durable(), c.wanted) >= c.w.Written():
		c.unflushed = time.Time{}
	case c.unflushed.IsZero():
		c.unflushed = now
	case now.Sub(c.unflushed) >= c.o.FlushInterval:
		c.unflushed, c.wanted = time.Time{}, c.w.Written()
		c.flushWritten()
	}
}

// statusDue tells whether it is time for a status update.
func (c *copyStream) statusDue(now time.Time) bool {
	next := c.regularStatus()
	return c.replyDue(now) || !next.IsZero() && !now.Before(next)
}

// replyDue tells whether a reply is owed, and there is nothing to wait for any more.
func (c *copyStream) replyDue(now time.Time) bool {
	if c.owed.IsZero() {
		return false
	}
	if !c.reportsFlush() || c.flushed() >= c.w.Written() {
		return true
	}
	due := c.replyTime()
	return !due.IsZero() && !now.Before(due) || c.answered && c.flushed() > c.reported
}

// replyTime is when a reply that is owed does not wait for the disk any longer; zero: never. For the caller (see hold) only the
// first one waits: another one follows when there is something new to tell.
func (c *copyStream) replyTime() time.Time {
	if c.owed.IsZero() || c.answered && c.durable() >= c.w.Written() {
		return time.Time{}
	}
	return c.owed.Add(replyPatience)
}

// deadline is when keepUp has to be called at the latest; zero: never.
func (c *copyStream) deadline() time.Time {
	first := c.statusTime()
	if !c.unflushed.IsZero() {
		first = earlier(first, c.unflushed.Add(c.o.FlushInterval))
	}
	if !c.full.IsZero() {
		first = earlier(first, c.full.Add(diskRetry))
	}
	if limit := c.s.silence; limit > 0 {
		if !c.asked {
			limit /= 2
		}
		first = earlier(first, c.lastHeard.Add(limit))
	}
	if c.changed && c.o.Events.Progress != nil {
		first = earlier(first, c.shown.Add(c.o.ProgressInterval))
	}
	return first
}

// statusTime is when the next status update is due at the latest; zero: never.
func (c *copyStream) statusTime() time.Time {
	first := c.regularStatus()
	if due := c.replyTime(); !due.IsZero() {
		first = earlier(first, due)
	}
	return first
}

// regularStatus is when the next status update is due that the server has not asked for; zero: never.
func (c *copyStream) regularStatus() time.Time {
	var next time.Time
	if c.o.StatusInterval > 0 {
		next = c.lastStatus.Add(c.o.StatusInterval)
	}
	if !c.blind.IsZero() {
		last := c.lastStatus
		if last.Before(c.blind) {
			last = c.blind
		}
		next = earlier(next, last.Add(blindInterval))
	}
	return next
}

// earlier is the earlier of two times; zero is no time.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// reportsFlush tells whether the server is told the flushed position. Without a slot, a receiver that does not flush
// at once should not count as a synchronous standby (ReceiveXlogStream in receivelog.c).
func (c *copyStream) reportsFlush() bool { return c.o.Slot != "" || c.o.Synchronous }

// flushed is the flushed position that the server may be told: what is durable, and neither waits for Events.Data nor for
// Session.Confirm.
func (c *copyStream) flushed() segment.LSN {
	flushed := c.durable()
	if c.filling || c.o.Events.Data == nil && !c.o.Confirm {
		return flushed
	}
	return min(flushed, c.s.hold.limit(c.start, c.next))
}

// sendStatus sends a standby status update; with ask, one that the server answers with a keepalive.
func (c *copyStream) sendStatus(ask bool) error {
	now := time.Now()
	written, flushed := c.w.Written(), segment.LSN(0)
	if c.reportsFlush() {
		flushed = c.flushed()
		if flushed == 0 && !c.owed.IsZero() {
			// Nothing is confirmed. To a server that shuts down, a receiver without a flushed position is done once all is
			// written (WalSndDone in walsender.c): so one byte is not.
			written--
		}
	}
	m := c.c.scratch(statusMessageSize)
	m[0] = typeCopyData
	binary.BigEndian.PutUint32(m[1:], statusMessageSize-1)
	m[5] = payloadStatus
	binary.BigEndian.PutUint64(m[6:], uint64(written))
	binary.BigEndian.PutUint64(m[14:], uint64(flushed))
	// m[22:30]: the applied position. Nothing is ever applied.
	binary.BigEndian.PutUint64(m[30:], uint64(now.UnixMicro()-postgresEpoch))
	if ask {
		m[38] = 1
	}
	if err := c.c.write(m); err != nil {
		return err
	}
	c.lastStatus, c.reported = now, flushed
	c.s.setProgress(func(p *Progress) { p.ReportedLSN = flushed })
	if !c.reportsFlush() || flushed >= written {
		c.owed, c.answered = time.Time{}, false
	} else if !c.owed.IsZero() {
		c.owed, c.answered = now, true // an answer before the flush; another one follows it
	}
	return nil
}

// postgresEpoch is 2000-01-01 UTC in microseconds since 1970: PostgreSQL's clock begins there.
const postgresEpoch = 946684800 * 1000000

func (c *copyStream) state() State {
	if c.full.IsZero() {
		return StateStreaming
	}
	return StateDiskFull
}

// publish makes the progress visible to everybody.
func (c *copyStream) publish(state State) {
	written, flushed, stored := c.w.Written(), c.durable(), c.w.Stored()
	if id := segment.At(c.timeline, written, c.sys.SegmentSize); id != c.named {
		c.named, c.segment = id, id.Name(c.sys.SegmentSize)+c.o.Compression.Suffix()
	}
	last, slowest := c.w.FlushTime()
	now := time.Now()
	c.s.setProgress(func(p *Progress) {
		p.State, p.Timeline, p.WrittenLSN, p.FlushedLSN = state, c.timeline, written, flushed
		p.Bytes += c.bytes
		p.StoredBytes += stored - c.stored
		p.Segment = c.segment
		if last > 0 {
			p.FlushTime, p.FlushTimeMax = last, max(p.FlushTimeMax, slowest)
		}
		if !c.server.received.IsZero() {
			p.ServerLSN = c.server.end
			p.ServerTime, p.ReceivedTime = time.UnixMicro(c.server.time+postgresEpoch), c.server.received
		}
		c.s.health.note(p, now)
	})
	c.bytes, c.stored = 0, stored
}

// flush makes everything written durable and ends the writer. However long the disk takes, the server gets its status
// updates meanwhile, if it still streams; if it cannot be reached any more, that shows later.
func (c *copyStream) flush(streaming bool) error {
	c.blind = time.Now()
	closed := make(chan error)
	c.mirrors.flush()
	go func() {
		err := c.w.Close()
		if mirrorErr := c.mirrors.end(); err == nil {
			err = mirrorErr
		}
		closed <- err
	}()
	var err error
	if streaming {
		err = c.report(closed)
	} else {
		err = <-closed
	}
	c.tellMirrors()
	c.tellSegments()
	if c.done {
		c.debugf("stopped log streaming at %s (timeline %d)", c.next, c.timeline)
	}
	if name := c.w.Partial(); name != "" {
		c.o.Events.log(slog.LevelInfo, "not renaming \""+name+"\", segment is not complete")
	}
	return err
}

// report waits for the end of a flush, and sends status updates meanwhile.
func (c *copyStream) report(closed <-chan error) error {
	for {
		var due <-chan time.Time
		if next := c.statusTime(); !next.IsZero() {
			due = time.After(time.Until(next))
		}
		select {
		case err := <-closed:
			return err
		case <-due:
		}
		if err := c.sendStatus(false); err != nil {
			return <-closed
		}
	}
}

// drainTime is how long the server may take to end COPY.
const drainTime = 10 * time.Second

// finish ends COPY mode after all is flushed: a last status update, CopyDone, and the server's answers up to
// ReadyForQuery. It returns the next timeline if the server was at the end of this one.
func (c *copyStream) finish(ctx context.Context, end ending) (*nextTimeline, error) {
	if err := c.sendStatus(false); err != nil {
		return nil, err
	}
	rows, err := c.end(ctx)
	if err != nil || end != endTimeline {
		return nil, err
	}
	return c.parseNext(rows, c.w.Written())
}

// leave brings the connection back to idle after an error in the middle of the stream, unless the connection itself is
// what failed. An error of its own on the way changes nothing: Usable tells the result.
func (c *copyStream) leave(ctx context.Context, err error) {
	switch {
	case streaming(err):
		c.finish(ctx, endStopped)
	case !lost(err):
		c.drain(ctx) // the server has ended COPY itself
	}
}

// streaming tells whether the server still streams after an error.
func streaming(err error) bool {
	var refused *ServerError
	return !lost(err) && !errors.As(err, &refused)
}

// lost tells whether nothing can be done with the connection any more after an error.
func lost(err error) bool {
	return errors.Is(err, ErrConnectionLost) || errors.Is(err, ErrProtocol) || errors.Is(err, ErrEncrypted)
}

// end sends CopyDone and reads the server's answers.
func (c *copyStream) end(ctx context.Context) (rows [][][]byte, err error) {
	if err := c.c.send(&pgproto3.CopyDone{}); err != nil {
		return nil, err
	}
	return c.drain(ctx)
}

// drain reads what the server sends after COPY has ended, up to ReadyForQuery: data that was on its way, which is not
// wanted any more, and at the end of a timeline a row with the next one.
func (c *copyStream) drain(ctx context.Context) (rows [][][]byte, err error) {
	c.s.grace = time.Now().Add(drainTime) // whether somebody stops meanwhile or not
	for c.payload > 0 {
		n := min(c.payload, len(c.c.buffered()))
		c.c.used(n)
		c.payload -= n
		if c.payload > 0 {
			if err := c.s.read(ctx, c.payload); err != nil {
				return nil, err
			}
		}
	}
	var failed error
	size := 0
	for {
		kind, body, err := c.s.message(ctx)
		if err != nil {
			return nil, err
		}
		switch kind {
		case typeCopyData, typeCopyDone, typeRowDescription, typeCommandComplete:
		case typeDataRow:
			row, err := decodeRow(body)
			if err != nil {
				return nil, err
			}
			size += len(body)
			if rows = append(rows, row); len(rows) > maxRows || size > maxMessage {
				return nil, fail(ErrProtocol, "the server sent too many rows at the end of the stream")
			}
		case typeErrorResponse:
			var m pgproto3.ErrorResponse
			if err := decode(&m, body); err != nil {
				return nil, err
			}
			e := newServerError(&m)
			failed = streamFailure(e)
			if e.fatal() {
				return nil, failed
			}
		case typeReadyForQuery:
			return rows, errors.Join(failed, c.s.idle(ctx))
		default:
			return nil, unexpected(kind, "CopyDone")
		}
	}
}
