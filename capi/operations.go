package main

// #include "core.h"
import "C"

import (
	"context"
	"log/slog"

	"libreceivewal/segment"
	"libreceivewal/stream"
)

func identify(ctx context.Context, s *session) (any, error) {
	return s.stream.IdentifySystem(ctx)
}

func createSlot(name string, options stream.CreateSlotOptions) operation {
	return func(ctx context.Context, s *session) (any, error) { return s.stream.CreateSlot(ctx, name, options) }
}

func dropSlot(name string, wait bool) operation {
	return func(ctx context.Context, s *session) (any, error) { return nil, s.stream.DropSlot(ctx, name, wait) }
}

func readSlot(name string) operation {
	return func(ctx context.Context, s *session) (any, error) { return s.stream.ReadSlot(ctx, name) }
}

func findStart(directory string, size segment.Size) operation {
	return func(context.Context, *session) (any, error) {
		panicOnPurpose("operation", directory)
		return segment.FindStart(directory, size, nil)
	}
}

// check looks through a directory; problems are events.
func check(directory string, options segment.CheckOptions) operation {
	return func(_ context.Context, s *session) (any, error) {
		report, err := segment.CheckDirectory(files, directory, options)
		for _, p := range report.Problems {
			s.queue.add(stream.Hole{Problem: p, Directory: directory})
		}
		return report, err
	}
}

func restore(directory, name, target string) operation {
	return func(context.Context, *session) (any, error) {
		return nil, segment.Restore(files, directory, name, target)
	}
}

func receive(options stream.Options, wanted uint32) operation {
	return func(ctx context.Context, s *session) (any, error) {
		panicOnPurpose("operation", options.Directory)
		options.Events, options.DataAhead = s.queue.listen(wanted), dataAhead
		if wanted&C.RW_CORE_WANT_RECONNECT != 0 {
			options.Events.Reconnect = s.reconnect
		}
		return nil, s.stream.Receive(ctx, options)
	}
}

// settle reads what a relay has read ahead, so that the connection can be given back.
func settle(passed uint64) operation {
	return func(ctx context.Context, s *session) (any, error) {
		return nil, s.stream.Settle(ctx, func() bool { return s.relay.taken.Load() < passed })
	}
}

// listen makes the events of a receive that the host has callbacks for go to the queue. None of them waits for the host; its
// answers come back by stop.
func (q *queue) listen(wanted uint32) stream.Events {
	var events stream.Events
	if wanted&C.RW_CORE_WANT_LOG != 0 {
		events.Log = func(level slog.Level, text string) { q.add(logEvent{level, text}) }
	}
	if wanted&C.RW_CORE_WANT_OPENED != 0 {
		events.SegmentOpened = func(s stream.Segment) error { q.add(segmentEvent{s, false}); return nil }
	}
	if wanted&C.RW_CORE_WANT_COMPLETED != 0 {
		events.SegmentCompleted = func(s stream.Segment) error { q.add(segmentEvent{s, true}); return nil }
	}
	if wanted&C.RW_CORE_WANT_TIMELINE != 0 {
		events.TimelineSwitched = func(t stream.TimelineSwitch) error { q.add(t); return nil }
	}
	if wanted&C.RW_CORE_WANT_PROGRESS != 0 {
		events.Progress = func(p stream.Progress) error { q.add(p); return nil }
	}
	if wanted&C.RW_CORE_WANT_PROBLEM != 0 {
		events.Hole = func(h stream.Hole) error { q.add(h); return nil }
	}
	if wanted&C.RW_CORE_WANT_DISK_FULL != 0 {
		events.DiskFull = func(d stream.DiskFull) error { q.add(d); return nil }
	}
	if wanted&C.RW_CORE_WANT_MIRROR != 0 {
		events.Mirror = func(m stream.MirrorChange) error { q.add(m); return nil }
	}
	if wanted&C.RW_CORE_WANT_DATA != 0 {
		events.Data = q.addData
	}
	return events
}
