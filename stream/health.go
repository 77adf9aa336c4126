package stream

import (
	"time"

	"libreceivewal/segment"
)

// health is what a Progress needs to know of the past. It has no timer of its own: note is called when there is something new, and
// look works out what has become of it since. Guarded by Session.mu.
type health struct {
	samples [healthWindow/healthInterval + 4]sample // a ring; the newest is at last
	last    int
	moved   time.Time // when Bytes last changed
	bytes   uint64    // what they were then

	// Whatever the server had at base is written. mark is what it had some time later: once that is written, it is the new base.
	base, marked time.Time
	mark         segment.LSN
	level        bool // there was no lag: until now, what is written was all that the server had
}

// sample is how things were at a time; the zero value is none.
type sample struct {
	at    time.Time
	bytes uint64
	lag   uint64
}

// The time over which the rates are taken, and between the samples that they are taken of.
const (
	healthWindow   = 5 * time.Second
	healthInterval = 250 * time.Millisecond
)

func lag(p *Progress) uint64 {
	if p.ServerLSN <= p.WrittenLSN {
		return 0
	}
	return uint64(p.ServerLSN - p.WrittenLSN)
}

// note takes note of how things are.
func (h *health) note(p *Progress, now time.Time) {
	if p.Bytes != h.bytes || h.moved.IsZero() {
		h.bytes, h.moved = p.Bytes, now
	}
	if h.base.IsZero() || h.level {
		h.base, h.marked, h.mark = now, now, p.ServerLSN
	} else if p.WrittenLSN >= h.mark {
		h.base, h.marked, h.mark = h.marked, now, p.ServerLSN
	}
	h.level = lag(p) == 0
	if last := &h.samples[h.last]; last.at.IsZero() || now.Sub(last.at) >= healthInterval {
		h.last = (h.last + 1) % len(h.samples)
		h.samples[h.last] = sample{now, p.Bytes, lag(p)}
	}
}

// look fills in what p says of lag and rates.
func (h *health) look(p *Progress, now time.Time) {
	p.Lag, p.LagTime, p.Rate, p.CatchUpTime = lag(p), 0, 0, 0
	if p.Lag > 0 {
		p.CatchUpTime = -1
		if !h.base.IsZero() {
			p.LagTime = max(now.Sub(h.base), time.Millisecond)
		}
	}
	then, passed := h.before(now)
	if passed < time.Millisecond || now.Sub(h.moved) >= healthWindow {
		return
	}
	p.Rate = uint64(float64(p.Bytes-then.bytes) / passed.Seconds())
	if p.Lag > 0 && then.lag > p.Lag {
		seconds := float64(p.Lag) / (float64(then.lag-p.Lag) / passed.Seconds())
		p.CatchUpTime = max(time.Millisecond, time.Duration(min(seconds, longest.Seconds())*float64(time.Second)))
	}
}

// before is how things were at the window's begin, or when the samples begin, and how long ago that was. A sample older than the
// window stands for its begin: nothing has changed in between.
func (h *health) before(now time.Time) (sample, time.Duration) {
	var found sample
	for i := range h.samples {
		s := h.samples[(h.last+len(h.samples)-i)%len(h.samples)]
		if s.at.IsZero() {
			break
		}
		found = s
		if now.Sub(s.at) >= healthWindow {
			return found, healthWindow
		}
	}
	if found.at.IsZero() {
		return found, 0
	}
	return found, now.Sub(found.at)
}
