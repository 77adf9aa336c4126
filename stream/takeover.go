package stream

import (
	"context"
	"errors"

	"libreceivewal/segment"
)

// StartedStream is a stream that the connection's owner has started.
type StartedStream struct {
	LSN      segment.LSN // as in its START_REPLICATION
	Timeline segment.Timeline

	// Who the server is. If both are known, the stream is taken over as it is, provided that it begins where the
	// directory ends. Otherwise it is ended, and one is started that does.
	SystemIdentifier uint64       // 0: not known
	SegmentSize      segment.Size // 0: not known
}

// takeOver receives from the stream that the connection's owner has started. done is false if the stream does not fit: then
// it has been ended, and the connection is idle.
func (r *receiver) takeOver(ctx context.Context) (done bool, err error) {
	started := *r.s.started
	r.s.started = nil
	fits, err := r.fits(started)
	if !fits || err != nil {
		c := &copyStream{receiver: r, c: r.s.wire}
		if _, endErr := c.end(ctx); err == nil {
			err = endErr
		}
		if r.o.StartLSN == 0 {
			r.o.StartLSN, r.o.StartTimeline = started.LSN, started.Timeline
		}
		return false, err
	}
	r.debugf("taking over log streaming at %s (timeline %d)", r.start, r.timeline)
	r.s.setProgress(func(p *Progress) {
		if p.StartLSN == 0 {
			p.StartLSN = r.start
		}
	})
	defer r.mirrors.end()
	if err := r.beginMirrors(ctx); err != nil {
		c := &copyStream{receiver: r, c: r.s.wire}
		_, endErr := c.end(ctx)
		return true, errors.Join(err, endErr)
	}
	next, err := newCopyStream(r).run(ctx)
	if err != nil || next == nil {
		return true, err
	}
	if err := r.follow(ctx, *next); err != nil {
		return true, err
	}
	return true, r.timelines(ctx)
}

// fits tells whether a started stream can be taken over as it is, and makes the receiver ready for it. In the
// middle of COPY nothing can be asked: all that has to be known must be known.
func (r *receiver) fits(started StartedStream) (fits bool, err error) {
	if started.SystemIdentifier == 0 || !started.SegmentSize.Valid() || started.SegmentSize.Offset(started.LSN) != 0 {
		return false, nil
	}
	if r.sys.SystemIdentifier != 0 && r.sys.SystemIdentifier != started.SystemIdentifier {
		return false, nil // after a lost connection, one to another cluster
	}
	defer func(before System) {
		if !fits {
			r.sys = before
		}
	}(r.sys)
	r.sys = System{
		SystemIdentifier:  started.SystemIdentifier,
		Timeline:          started.Timeline,
		LSN:               started.LSN,
		SegmentSize:       started.SegmentSize,
		DataDirectoryMode: 0o700,
	}
	if err := r.prepareDirectory(); err != nil {
		return false, err
	}
	found, err := r.dir.Start(r.sys.SegmentSize, r.warn)
	if err != nil {
		return false, err
	}
	if found.LSN == 0 {
		found.LSN, found.Timeline = r.start, r.timeline // of a connection that was lost before any WAL came; or 0
	}
	if found.LSN != 0 && (found.LSN != started.LSN || found.Timeline != started.Timeline) {
		return false, nil
	}
	if started.Timeline != 1 {
		if have, err := r.dir.HasHistory(started.Timeline); err != nil || !have {
			return false, err
		}
	}
	r.start, r.timeline = started.LSN, started.Timeline
	if r.history, err = r.dir.History(r.timeline); err != nil {
		return false, err
	}
	return true, nil
}
