package stream

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
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

	// Without Synchronous: make data durable, and report it, at the latest so long after it was written. 0: only at a segment's
	// end and when the server asks.
	FlushInterval time.Duration

	Repair         RepairMode // what to do about missing segments
	WaitOnDiskFull bool       // wait for room on a full disk and go on, instead of ErrDiskFull
	CheckPages     bool       // check the header of each WAL page, not only each segment's first; costs about 1.4 ms of processor time per GiB

	// How new segments are stored; older ones stay as they are. Level 0 is the method's default. So many segments are compressed at a time
	// as there are workers, 0: 1. One worker has up to 4 MiB of data waiting, more of them a segment each, but 256 MiB at most.
	Compression        segment.Compression
	CompressionLevel   int
	CompressionWorkers int

	// What other programs may have added to the name of a complete segment, such as ".enc", which then counts as complete.
	Suffixes []string

	// Directories that are written in step with Directory, each with its own lock, holes and errors. One that fails is tried again,
	// and gets from Directory what it has missed. Up to 64 MiB wait in memory for those that are slower, for all together.
	Mirrors        []string
	MirrorRequired bool // an error of a mirror ends the receive, and flushed means in each of them

	Confirm bool // the server is not told of a flushed position beyond that of Session.Confirm
	// Events.Data only queues what it is given: that counts as taken when Session.DataTaken says so, and while so many bytes have
	// not been taken, no more is read. 0: what Data has returned nil for is taken.
	DataAhead int
	SlotWait  time.Duration // how long to wait for a slot that is in use; 0: not; negative: for ever

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
	case o.CompressionWorkers < 0:
		return fail(ErrInvalid, "the number of compression workers is negative")
	case o.StartTimeline != 0 && o.StartLSN == 0:
		return fail(ErrInvalid, "a start timeline needs a start LSN")
	case slices.Contains(o.Mirrors, ""):
		return fail(ErrInvalid, "a mirror has no name")
	}
	if err := o.Compression.CheckLevel(o.CompressionLevel); err != nil {
		return fail(ErrInvalid, "%w", err)
	}
	if err := segment.CheckSuffixes(o.Suffixes); err != nil {
		return fail(ErrInvalid, "%w", err)
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
	s.setProgress(func(p *Progress) { *p, s.health = Progress{State: StateStarting}, health{} })
	defer s.setProgress(func(p *Progress) { p.State = StateIdle })
	s.hold.begin(o.Confirm)
	defer s.hold.end()

	if r.dir, err = segment.Open(s.fs, o.Directory); err != nil {
		return err
	}
	defer func() {
		if closeErr := r.dir.Close(); err == nil {
			err = closeErr
		}
	}()
	r.dir.SetSuffixes(o.Suffixes)
	defer func() {
		if closeErr := r.closeMirrors(); err == nil {
			err = closeErr
		}
	}()
	if err := r.openMirrors(ctx); err != nil {
		return err
	}
	return r.persist(ctx)
}

// receiver is one Receive.
type receiver struct {
	s       *Session
	o       Options
	dir     *segment.Directory
	mirrors *mirrors // nil: none
	sys     System

	timeline segment.Timeline
	start    segment.LSN // of the timeline's streaming: the first byte of a segment
	history  segment.History

	repaired  bool      // what was wrong with the directory has been told
	filling   bool      // fetching missing segments, not the stream
	fullSince time.Time // since when the disk is full; zero: it is not
	stop      error     // why a callback wants to stop
	refused   bool      // Events.Data did: it is given nothing any more
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
	if r.sys.SystemIdentifier != 0 && r.sys.SystemIdentifier != sys.SystemIdentifier {
		return fail(segment.ErrForeign, "the new connection is to the cluster with system identifier %d, the lost one was to %d",
			sys.SystemIdentifier, r.sys.SystemIdentifier)
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
	if !r.repaired {
		if err := r.repair(ctx); err != nil {
			return err
		}
		r.repaired = true
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
		var next *nextTimeline
		var err error
		reached := r.reached(r.start)
		if !reached {
			next, err = r.receiveTimeline(ctx)
		}
		if reached && r.timeline != r.sys.Timeline || errors.Is(err, ErrTimeline) {
			// What we have may be of a timeline that the server has abandoned.
			moved, fitErr := r.fitTimeline(ctx, err)
			if fitErr != nil {
				return fitErr
			}
			if moved {
				continue
			}
		}
		if reached {
			r.debugf("stopped log streaming at %s (timeline %d)", r.start, r.timeline)
			return nil
		}
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
	r.dir.SetMode(r.fileMode())
	if err := r.dir.CheckOwner(r.sys.SystemIdentifier, r.sys.SegmentSize); err != nil {
		return err
	}
	if r.o.NoSync {
		return nil
	}
	return r.dir.Settle(time.Now())
}

// fileMode is the mode of new files.
func (r *receiver) fileMode() fs.FileMode {
	if r.o.FileMode != 0 {
		return r.o.FileMode
	}
	return segment.FileMode(r.sys.DataDirectoryMode)
}

// findStart decides where to start: the directory, else the caller, else the slot, else the server.
func (r *receiver) findStart(ctx context.Context) error {
	found, err := r.dir.Start(r.sys.SegmentSize, nil) // repair warns of what is passed over
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

// fitTimeline moves the start to where it is in the server's history, if it is not. The server may have been recovered to a
// point before our newest segment, and have gone on from there on a timeline of its own: then that is followed from where it
// began, and what the directory has of the abandoned one stays. A timeline that the server never had is refused. refused is why
// the server did not start the stream; nil: it was not asked.
func (r *receiver) fitTimeline(ctx context.Context, refused error) (moved bool, err error) {
	content, err := r.s.timelineHistory(ctx, r.sys.Timeline)
	if err != nil {
		if errors.Is(err, ErrConnectionLost) || errors.Is(err, ErrStopped) {
			return false, err
		}
		return false, refused // without the server's history there is no more to say
	}
	history, err := segment.ParseHistory(r.sys.Timeline, content)
	if err != nil {
		return false, fail(ErrProtocol, "the server's %w", err)
	}
	end, known := history.EndOf(r.timeline)
	if !known {
		text := fmt.Sprintf("timeline %d, where the directory goes on at %s, is not in the history of the server's timeline %d",
			r.timeline, r.start, r.sys.Timeline)
		if refused == nil {
			return false, fail(ErrTimeline, "%s", text)
		}
		return false, fail(ErrTimeline, "%s: %w", text, refused)
	}
	if end == 0 || r.start <= end {
		return false, refused
	}
	r.warn(fmt.Sprintf("the server left timeline %d at %s, before the directory's newest WAL at %s: following it", r.timeline, end, r.start))
	r.leaveTimeline(end)
	found, err := r.dir.StartAfter(r.timeline, history, r.sys.SegmentSize)
	if err != nil {
		return false, err
	}
	if found.LSN == 0 {
		found = segment.Start{LSN: r.sys.SegmentSize.Floor(end), Timeline: history.Child(r.timeline)}
	}
	r.start, r.timeline = found.LSN, found.Timeline
	return true, nil
}

// prepareTimeline makes sure that the timeline's history file is in the directory, and reads it.
func (r *receiver) prepareTimeline(ctx context.Context) error {
	if err := r.fetchHistory(ctx, r.timeline); err != nil {
		return err
	}
	history, err := r.dir.History(r.timeline)
	if err != nil {
		return err
	}
	r.history = history
	return nil
}

// fetchHistory fetches a timeline's history file, unless it is there.
func (r *receiver) fetchHistory(ctx context.Context, timeline segment.Timeline) error {
	if timeline == 1 {
		return nil
	}
	have, err := r.dir.HasHistory(timeline)
	if err != nil || have {
		return err
	}
	content, err := r.s.timelineHistory(ctx, timeline)
	if err != nil {
		return err
	}
	if _, err := segment.ParseHistory(timeline, content); err != nil {
		return fail(ErrProtocol, "the server's %w", err)
	}
	return r.dir.WriteHistory(timeline, content)
}

// reached tells whether the end LSN lies before a position.
func (r *receiver) reached(lsn segment.LSN) bool { return r.o.EndLSN != 0 && lsn > r.o.EndLSN }

// nextTimeline is what the server tells at the end of a timeline.
type nextTimeline struct {
	timeline segment.Timeline
	begin    segment.LSN
}

// receiveTimeline streams one timeline. It returns the next one if the server reached the timeline's end, and
// nil if the end LSN was reached.
func (r *receiver) receiveTimeline(ctx context.Context) (*nextTimeline, error) {
	defer r.mirrors.end() // does nothing the second time: for a stream that does not come about
	if err := r.beginMirrors(ctx); err != nil {
		return nil, err
	}
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
		if hasState(err, stateNotInPrerequisiteState) && r.o.Slot != "" {
			return nil, r.explainSlot(ctx, err)
		}
		if errors.Is(err, ErrSlotBusy) {
			// The server's own text has the slot's name and the process that has it.
			return nil, fail(ErrSlotBusy, "%w; end the receiver or standby that uses it (pg_stat_replication shows it by that PID), "+
				"wait for it, or give this one a slot of its own", err)
		}
		return nil, err
	}
	if !a.copyBoth {
		// The position is exactly where the timeline ended: there is nothing to copy.
		return r.parseNext(a.rows, r.start)
	}
	c := newCopyStream(r)
	next, err := c.run(ctx)
	if errors.Is(err, ErrWALRemoved) && !r.filling {
		err = r.explainRemoved(ctx, c.next, err)
	}
	return next, err
}

// explainRemoved makes an ErrWALRemoved that says what was wanted, what there is, and what to do.
func (r *receiver) explainRemoved(ctx context.Context, wanted segment.LSN, err error) error {
	text := fmt.Sprintf("the WAL from %s on (segment %s) is needed", wanted,
		segment.At(r.timeline, wanted, r.sys.SegmentSize).Name(r.sys.SegmentSize))
	if r.o.Slot != "" {
		text += "; " + r.explainKept(ctx, hasState(err, stateNotInPrerequisiteState))
	}
	return fail(ErrWALRemoved, "%s; the archive has a gap from there on: make a new base backup and receive into an empty directory: %w",
		text, err)
}

// explainKept says why the slot has not kept the WAL. refused: the server has refused to use the slot.
func (r *receiver) explainKept(ctx context.Context, refused bool) string {
	const again = ": drop it, and create it again"
	text := fmt.Sprintf("slot %q", r.o.Slot)
	slot, err := Slot{}, error(ErrConnectionLost)
	if r.s.usable.Load() {
		slot, err = r.s.readSlot(ctx, r.o.Slot)
	}
	switch {
	case err != nil:
		return text + " has not kept it: it is younger than that, or was invalidated (max_slot_wal_keep_size; its wal_status in " +
			"pg_replication_slots tells)"
	case slot.RestartLSN != 0:
		return fmt.Sprintf("%s keeps WAL from %s on", text, slot.RestartLSN)
	case refused:
		return text + " was invalidated (max_slot_wal_keep_size), and keeps none any more" + again
	case r.s.serverVersion >= versionRefusesLost:
		return text + " has never reserved any (it was created without RESERVE_WAL, and not used since)"
	}
	// Such a server doesn't tell a walsender whether a slot without position was invalidated.
	return text + " keeps none: it has never reserved any (it was created without RESERVE_WAL, and not used since), or it was " +
		"invalidated (max_slot_wal_keep_size; then its wal_status in pg_replication_slots is \"lost\")" + again
}

// explainSlot tells apart why the server refuses to use the slot: since 18 one that was invalidated, by an error without an
// SQLSTATE of its own (ReplicationSlotAcquire in slot.c), and in every version a logical one (StartReplication in walsender.c).
func (r *receiver) explainSlot(ctx context.Context, err error) error {
	if !r.s.usable.Load() {
		return err
	}
	slot, slotErr := r.s.readSlot(ctx, r.o.Slot)
	switch {
	case slotErr == nil && slot.RestartLSN == 0:
		return r.explainRemoved(ctx, r.start, err)
	case errors.Is(slotErr, ErrNoSlot), errors.Is(slotErr, ErrUnsupported): // a server older than 15 refuses for no other reason
		return fail(ErrNoSlot, "slot %q is not a physical one, or not usable as such: %w", r.o.Slot, err)
	}
	return err
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
	r.leaveTimeline(next.begin)
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

// leaveTimeline notes that the timeline is left at lsn: what was confirmed of it beyond that is not what comes next.
func (r *receiver) leaveTimeline(lsn segment.LSN) {
	r.s.hold.leave(lsn)
	r.s.setProgress(func(p *Progress) { p.ConfirmedLSN = min(p.ConfirmedLSN, lsn) })
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
