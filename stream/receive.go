package stream

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"libreceivewal/segment"
)

// Options says how to receive. The zero value of every field but Directory is a good default.
type Options struct {
	Directory string // must exist; locked while the receive runs
	Slot      string // a physical replication slot; "": none

	// Where to start if the directory has no WAL. 0: at the slot's position, else the server's. Rounded down to a segment.
	StartLSN      segment.LSN
	StartTimeline segment.Timeline // 0: the server's

	EndLSN segment.LSN // stop once a position beyond it was received; 0: never

	StatusInterval   time.Duration // between status updates to the server; 0: 10 s; negative: only when it asks
	ProgressInterval time.Duration // between progress events, at least; 0: 1 s

	// How long the server may be silent. After half of it, it is asked for a reply; after all of it, the connection is lost.
	// 0: twice the server's wal_sender_timeout, or 60 s where that is 0 or cannot be read; negative: for ever.
	ReceiveTimeout time.Duration

	Synchronous bool // flush WAL as soon as it arrives, and tell the server at once
	NoSync      bool // never wait for the disk: "flushed" then means nothing. Not with Synchronous

	FileMode fs.FileMode // of new files; 0: as the server's data_directory_mode says

	Events Events
}

// The defaults of [Options].
const (
	DefaultStatusInterval   = 10 * time.Second
	DefaultProgressInterval = time.Second

	defaultReceiveTimeout = 60 * time.Second
)

func (o *Options) check() error {
	switch {
	case o.Directory == "":
		return fail(ErrInvalid, "no directory was given")
	case o.Synchronous && o.NoSync:
		return fail(ErrInvalid, "cannot use synchronous together with no_sync")
	case o.StartTimeline != 0 && o.StartLSN == 0:
		return fail(ErrInvalid, "a start timeline needs a start LSN")
	}
	if o.StatusInterval == 0 {
		o.StatusInterval = DefaultStatusInterval
	}
	if o.ProgressInterval <= 0 {
		o.ProgressInterval = DefaultProgressInterval
	}
	if o.Slot != "" {
		return checkSlotName(o.Slot)
	}
	return nil
}

// Receive receives WAL into a directory until o.EndLSN (nil), until ctx ends or an event's callback returns an error
// (ErrStopped, with the callback's error), or until something fails. It blocks, and it alone calls the callbacks.
//
// In every case what was written is left so that the next Receive continues it; see Usable for the connection.
func (s *Session) Receive(ctx context.Context, o Options) (err error) {
	if err := o.check(); err != nil {
		return err
	}
	end, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	r := &receiver{s: s, o: o}
	s.log = o.Events.log
	s.silence = max(o.ReceiveTimeout, 0)
	if o.ReceiveTimeout == 0 {
		s.silence = defaultReceiveTimeout
	}
	s.setProgress(func(p *Progress) { *p = Progress{State: StateStarting} })
	defer s.setProgress(func(p *Progress) { p.State = StateIdle })

	if r.dir, err = segment.Open(s.fs, o.Directory); err != nil {
		return err
	}
	defer func() {
		if closeErr := r.dir.Close(); err == nil {
			err = closeErr
		}
	}()
	return r.persist(ctx)
}

// receiver is one Receive.
type receiver struct {
	s   *Session
	o   Options
	dir *segment.Directory
	sys System

	timeline segment.Timeline
	start    segment.LSN // of the timeline's streaming: the first byte of a segment
	history  segment.History

	stop error // why a callback wants to stop
}

// run receives over one connection.
func (r *receiver) run(ctx context.Context) error {
	if r.s.started != nil {
		if done, err := r.takeOver(ctx); done || err != nil {
			return err
		}
	}
	sys, err := r.s.identify(ctx)
	if err != nil {
		return err
	}
	r.sys = sys
	if r.o.ReceiveTimeout == 0 {
		if r.s.silence, err = r.s.senderTimeout(ctx); err != nil {
			return err
		}
	}
	if err := r.prepareDirectory(); err != nil {
		return err
	}
	if err := r.findStart(ctx); err != nil {
		return err
	}
	if r.timeline > r.sys.Timeline {
		return fail(ErrTimeline, "starting timeline %d is not present in the server", r.timeline)
	}
	r.debugf("starting log streaming at %s (timeline %d)", r.start, r.timeline)
	r.s.setProgress(func(p *Progress) {
		if p.StartLSN == 0 {
			p.StartLSN = r.start
		}
		p.ServerLSN = r.sys.LSN
	})
	return r.timelines(ctx)
}

// timelines receives one timeline after the other.
func (r *receiver) timelines(ctx context.Context) error {
	for {
		if err := r.prepareTimeline(ctx); err != nil {
			return err
		}
		if r.reached(r.start) {
			return nil
		}
		next, err := r.receiveTimeline(ctx)
		if err != nil || next == nil {
			return err
		}
		if err := r.follow(ctx, *next); err != nil {
			return err
		}
	}
}

// prepareDirectory makes sure that the directory's WAL is this server's, and durable.
func (r *receiver) prepareDirectory() error {
	r.dir.SetMode(segment.FileMode(r.sys.DataDirectoryMode))
	if r.o.FileMode != 0 {
		r.dir.SetMode(r.o.FileMode)
	}
	if err := r.dir.CheckOwner(r.sys.SystemIdentifier, r.sys.SegmentSize); err != nil {
		return err
	}
	if r.o.NoSync {
		return nil
	}
	return r.dir.Settle(time.Now())
}

// findStart decides where to start: the directory, else the caller, else the slot, else the server.
func (r *receiver) findStart(ctx context.Context) error {
	found, err := r.dir.Start(r.sys.SegmentSize, r.warn)
	if err != nil {
		return err
	}
	if found.LSN == 0 && r.start != 0 {
		return nil // nothing was received yet since the first connection: that decided it
	}
	r.start, r.timeline = found.LSN, found.Timeline
	if r.start == 0 && r.o.StartLSN != 0 {
		r.start, r.timeline = r.o.StartLSN, r.o.StartTimeline
	}
	if r.start == 0 && r.o.Slot != "" {
		slot, err := r.s.readSlot(ctx, r.o.Slot)
		if err != nil && !errors.Is(err, ErrUnsupported) {
			return err
		}
		r.start, r.timeline = slot.RestartLSN, slot.RestartTimeline
	}
	if r.start == 0 {
		r.start, r.timeline = r.sys.LSN, r.sys.Timeline
	}
	if r.timeline == 0 {
		r.timeline = r.sys.Timeline
	}
	r.start = r.sys.SegmentSize.Floor(r.start)
	return nil
}

// prepareTimeline makes sure that the timeline's history file is in the directory, and reads it.
func (r *receiver) prepareTimeline(ctx context.Context) error {
	if r.timeline > 1 {
		have, err := r.dir.HasHistory(r.timeline)
		if err != nil {
			return err
		}
		if !have {
			content, err := r.s.timelineHistory(ctx, r.timeline)
			if err != nil {
				return err
			}
			if _, err := segment.ParseHistory(r.timeline, content); err != nil {
				return fail(ErrProtocol, "the server's %w", err)
			}
			if err := r.dir.WriteHistory(r.timeline, content); err != nil {
				return err
			}
		}
	}
	history, err := r.dir.History(r.timeline)
	if err != nil {
		return err
	}
	r.history = history
	return nil
}

// reached tells whether end LSN lies before the position, and says so.
func (r *receiver) reached(lsn segment.LSN) bool {
	if r.o.EndLSN == 0 || lsn <= r.o.EndLSN {
		return false
	}
	r.debugf("stopped log streaming at %s (timeline %d)", lsn, r.timeline)
	return true
}

// nextTimeline is what the server tells at the end of a timeline.
type nextTimeline struct {
	timeline segment.Timeline
	begin    segment.LSN
}

// receiveTimeline streams one timeline. It returns the next one if the server reached the timeline's end, and
// nil if the end LSN was reached.
func (r *receiver) receiveTimeline(ctx context.Context) (*nextTimeline, error) {
	sql := "START_REPLICATION "
	if r.o.Slot != "" {
		sql += fmt.Sprintf("SLOT %q ", r.o.Slot)
	}
	sql += fmt.Sprintf("%s TIMELINE %d", r.start, r.timeline)
	a, err := r.s.command(ctx, sql)
	if err != nil {
		if hasState(err, stateInternalError) && r.timeline != r.sys.Timeline {
			// The only refusal without an SQLSTATE of its own that names another timeline (StartReplication in walsender.c).
			return nil, fail(ErrTimeline, "%w", err)
		}
		return nil, err
	}
	if !a.copyBoth {
		// The position is exactly where the timeline ended: there is nothing to copy.
		return r.parseNext(a.rows, r.start)
	}
	c := newCopyStream(r)
	return c.run(ctx)
}

// parseNext reads the row that ends a timeline (ReadEndOfStreamingResult in receivelog.c).
func (r *receiver) parseNext(rows [][][]byte, received segment.LSN) (*nextTimeline, error) {
	if len(rows) != 1 || len(rows[0]) < 2 {
		return nil, fail(ErrProtocol, "unexpected result set after end-of-timeline: got %d rows", len(rows))
	}
	timeline, err := parseTimeline(rows[0][0])
	if err != nil {
		return nil, err
	}
	begin, err := segment.ParseLSN(string(rows[0][1]))
	if err != nil {
		return nil, fail(ErrProtocol, "could not parse next timeline's starting point: %w", err)
	}
	if timeline <= r.timeline {
		return nil, fail(ErrProtocol, "server reported unexpected next timeline %d, following timeline %d", timeline, r.timeline)
	}
	if begin > received {
		return nil, fail(ErrProtocol, "server stopped streaming timeline %d at %s, but reported next timeline %d to begin at %s",
			r.timeline, received, timeline, begin)
	}
	return &nextTimeline{timeline, begin}, nil
}

// follow steps to the next timeline: streaming goes on at the beginning of the segment that holds the switch point.
func (r *receiver) follow(ctx context.Context, next nextTimeline) error {
	old := r.timeline
	r.timeline, r.start = next.timeline, r.sys.SegmentSize.Floor(next.begin)
	if err := r.prepareTimeline(ctx); err != nil {
		return err
	}
	r.debugf("switched to timeline %d at %s", r.timeline, next.begin)
	if e := r.o.Events.TimelineSwitched; e != nil {
		r.stopOn(e(TimelineSwitch{old, r.timeline, next.begin, r.start}))
	}
	return r.stopped(ctx)
}

// stopOn notes a callback's wish to stop.
func (r *receiver) stopOn(err error) {
	if err != nil && r.stop == nil {
		r.stop = err
	}
}

// stopped is ErrStopped once somebody wants to stop.
func (r *receiver) stopped(ctx context.Context) error {
	if r.stop != nil {
		return fail(ErrStopped, "stopped by a callback: %w", r.stop)
	}
	if ctx.Err() != nil {
		return ErrStopped
	}
	return nil
}

func (r *receiver) debugf(format string, args ...any) {
	r.o.Events.log(slog.LevelDebug, fmt.Sprintf(format, args...))
}

func (r *receiver) warn(text string) { r.o.Events.log(slog.LevelWarn, text) }
