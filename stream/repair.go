package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"libreceivewal/segment"
)

// RepairMode says what to do about holes: segments that are missing between complete ones.
type RepairMode int

// The modes of repair.
const (
	RepairGoOn RepairMode = iota // fetch them from the server before streaming; go on without those that it no longer has
	RepairStop                   // the same, but end with ErrGap if there are some that it no longer has
	RepairOff                    // only report them
)

// Hole is a problem of the directory that was found at the start, and what became of it.
type Hole struct {
	segment.Problem
	Directory string // which one: Options.Directory, or one of Options.Mirrors
	State     HoleState
}

// HoleState is what became of a Hole.
type HoleState int

// The states of a Hole. Each is told of once as HoleFound; missing segments, unless repair is off, once more.
const (
	HoleFound    HoleState = iota
	HoleRepaired           // the segments were fetched from the server; those of a mirror were copied from the first directory
	HoleLost               // the server no longer has them; those of a mirror the first directory does not have
)

// repair looks for holes in the directory and fetches what is missing from the server, oldest first.
func (r *receiver) repair(ctx context.Context) error {
	report, err := r.dir.Check(segment.CheckOptions{Size: r.sys.SegmentSize})
	if err != nil {
		return err
	}
	for _, p := range report.Problems {
		r.tellHole(Hole{p, r.o.Directory, HoleFound})
	}
	if err := r.stopped(ctx); err != nil {
		return err
	}
	for _, p := range report.Problems {
		if p.Kind != segment.Missing || r.o.Repair == RepairOff {
			continue
		}
		err := r.fetch(ctx, p)
		switch {
		case err == nil:
			r.tellHole(Hole{p, r.o.Directory, HoleRepaired})
		case errors.Is(err, ErrWALRemoved), errors.Is(err, ErrTimeline):
			r.tellHole(Hole{p, r.o.Directory, HoleLost})
			if r.o.Repair == RepairStop {
				text := p.Text + ", and the server no longer has it"
				if refused := (*ServerError)(nil); errors.As(err, &refused) {
					return fail(segment.ErrGap, "%s: %w", text, refused) // a gap, whatever the reason for it
				}
				return fail(segment.ErrGap, "%s: %s", text, err.Error())
			}
		default:
			return err
		}
		if err := r.stopped(ctx); err != nil {
			return err
		}
	}
	return nil
}

// fetch receives missing segments. It does not use the slot: that keeps what comes next, and must not go back.
func (r *receiver) fetch(ctx context.Context, p segment.Problem) error {
	f := &receiver{s: r.s, o: r.o, dir: r.dir, sys: r.sys, filling: true}
	f.o.Slot, f.o.Synchronous, f.o.FlushInterval = "", false, 0
	f.o.EndLSN = p.EndLSN - 1
	f.o.Confirm, f.o.Events.Data, f.o.DataAhead = false, nil, 0
	f.o.Events.SegmentOpened, f.o.Events.TimelineSwitched = nil, nil
	f.timeline, f.start = p.Timeline, p.LSN
	r.debugf("fetching missing segments from %s to %s (timeline %d)", p.LSN, p.EndLSN, p.Timeline)
	if err := f.prepareTimeline(ctx); err != nil {
		return err
	}
	next, err := f.receiveTimeline(ctx)
	r.stopOn(f.stop)
	if err == nil && next != nil {
		err = fail(ErrTimeline, "timeline %d ended on the server at %s", p.Timeline, next.begin)
	}
	return err
}

// tellHole tells the caller of a hole.
func (r *receiver) tellHole(h Hole) {
	level, text := slog.LevelWarn, h.Text
	how, who := "fetched", "the server no longer has it"
	if h.Directory != r.o.Directory {
		text = fmt.Sprintf("mirror \"%s\": %s", h.Directory, text)
		how, who = fmt.Sprintf("copied to mirror \"%s\"", h.Directory), "the first directory does not have it"
	}
	switch h.State {
	case HoleRepaired:
		level, text = slog.LevelInfo, fmt.Sprintf("%s what was missing from %s to %s (timeline %d)", how, h.LSN, h.EndLSN, h.Timeline)
	case HoleLost:
		text = fmt.Sprintf("%s, and %s: a recovery that needs the WAL from %s to %s fails", text, who, h.LSN, h.EndLSN)
	}
	r.o.Events.log(level, text)
	if e := r.o.Events.Hole; e != nil {
		r.stopOn(e(h))
	}
}
