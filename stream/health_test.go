package stream

import (
	"testing"
	"testing/synctest"
	"time"

	"libreceivewal/segment"
)

// clocked is a health with a clock of the test's.
type clocked struct {
	h   health
	p   Progress
	now time.Time
}

func newClocked() *clocked {
	return &clocked{now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
}

// step lets time pass, then the server is ahead by server bytes more and we have received bytes more.
func (c *clocked) step(d time.Duration, server, bytes uint64) {
	c.now = c.now.Add(d)
	c.p.ServerLSN += segment.LSN(server)
	c.p.WrittenLSN += segment.LSN(bytes)
	c.p.Bytes += bytes
	c.h.note(&c.p, c.now)
}

// after is what is seen some time later.
func (c *clocked) after(d time.Duration) Progress {
	p := c.p
	c.h.look(&p, c.now.Add(d))
	return p
}

// The rate is that of the last five seconds, whatever was before; and decays when nothing comes, without being told.
func TestRate(t *testing.T) {
	c := newClocked()
	if rate := c.after(time.Hour).Rate; rate != 0 {
		t.Errorf("before the start: %d", rate)
	}
	c.step(0, 0, 0)
	for range 100 { // 10 s, 1 MB/s
		c.step(100*time.Millisecond, 100e3, 100e3)
	}
	for _, test := range []struct {
		later time.Duration
		want  uint64
	}{{0, 1e6}, {2500 * time.Millisecond, 500e3}, {4 * time.Second, 200e3}, {5 * time.Second, 0}, {time.Hour, 0}} {
		if got := c.after(test.later).Rate; got < test.want*9/10 || got > test.want*11/10 {
			t.Errorf("%s after 1 MB/s: %d", test.later, got)
		}
	}
	// A burst after an hour counts in the last five seconds, not in the hour.
	c.step(time.Hour, 5e6, 5e6)
	if got := c.after(0).Rate; got < 1e6 || got > 1.1e6 {
		t.Errorf("after a burst of 5 MB: %d", got)
	}
	// Shortly after the start, it is the rate since then.
	c = newClocked()
	c.step(0, 0, 0)
	c.step(500*time.Millisecond, 1e6, 1e6)
	if got := c.after(0).Rate; got != 2e6 {
		t.Errorf("1 MB in the first half of a second: %d", got)
	}
}

// The lag in time is the age of the newest state of the server that was reached.
func TestLagTime(t *testing.T) {
	c := newClocked()
	c.step(0, 0, 0)
	if p := c.after(time.Hour); p.Lag != 0 || p.LagTime != 0 || p.CatchUpTime != 0 {
		t.Errorf("with no lag: %d %s %s", p.Lag, p.LagTime, p.CatchUpTime)
	}
	c.step(time.Hour, 1000, 0)
	if p := c.after(3 * time.Second); p.Lag != 1000 || p.LagTime != 3*time.Second {
		t.Errorf("3 s after the server went ahead: %d %s", p.Lag, p.LagTime)
	}
	// The server goes on and we follow it, 10 s behind: the lag is 10 to 20 s, and does not grow.
	for range 10 {
		c.step(time.Second, 1000, 0)
	}
	for range 100 {
		c.step(time.Second, 1000, 1000)
		if p := c.after(0); p.LagTime < 10*time.Second || p.LagTime > 24*time.Second {
			t.Fatalf("10 s behind: %s", p.LagTime)
		}
	}
	c.step(time.Second, 0, 11000)
	if p := c.after(time.Minute); p.Lag != 0 || p.LagTime != 0 {
		t.Errorf("caught up: %d %s", p.Lag, p.LagTime)
	}
}

// The time to catch up follows from how the lag shrinks; where it does not shrink there is none.
func TestCatchUpTime(t *testing.T) {
	c := newClocked()
	c.p.ServerLSN = 100e6
	c.step(0, 0, 0)
	if p := c.after(0); p.CatchUpTime >= 0 {
		t.Errorf("at the start: %s", p.CatchUpTime)
	}
	for range 10 { // the lag shrinks by 1 MB/s
		c.step(time.Second, 1e6, 2e6)
	}
	if p := c.after(0); p.CatchUpTime != 90*time.Second {
		t.Errorf("90 MB behind, at 1 MB/s: %s", p.CatchUpTime)
	}
	if p := c.after(time.Minute); p.CatchUpTime >= 0 {
		t.Errorf("a minute later, when nothing came: %s", p.CatchUpTime)
	}
	for range 10 { // the server is faster
		c.step(time.Second, 2e6, 1e6)
	}
	if p := c.after(0); p.CatchUpTime >= 0 {
		t.Errorf("falling behind: %s", p.CatchUpTime)
	}
}

// What a receive shows of its health: the lag in the middle of a message, how long flushes took, what was reported.
func TestHealthOfAReceive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x30ABCD)).with(slowly(3 * time.Second))
		o := Options{Slot: "s", StartLSN: 0x100000, Synchronous: true}
		p.begin(o, 0x100000)
		p.wal(0x100000, 1000)
		time.Sleep(10 * time.Second)
		p.wait()
		got := p.s.Progress()
		if got.Lag != uint64(p.c.tip-0x1003E8) || got.LagTime != 10*time.Second || got.Rate != 0 || got.CatchUpTime >= 0 {
			t.Errorf("lag %d for %s, rate %d, %s to catch up", got.Lag, got.LagTime, got.Rate, got.CatchUpTime)
		}
		// The file gets its name meanwhile: two flushes of its data.
		if got.FlushTime != 6*time.Second || got.FlushTimeMax != 6*time.Second || got.ReportedLSN != 0x1003E8 {
			t.Errorf("flushed in %s, at most %s; reported %s", got.FlushTime, got.FlushTimeMax, got.ReportedLSN)
		}
		p.expect("status 0/1003E8 0/1003E8")
		p.wal(0x1003E8, 1000)
		others := 0
		for p.next().text != "status 0/1007D0 0/1007D0" { // others come before, while the disk is slow
			others++
		}
		if others == 0 {
			t.Error("the server has heard nothing while the disk was slow")
		}
		p.wait()
		if got := p.s.Progress(); got.FlushTime != 3*time.Second || got.FlushTimeMax != 6*time.Second {
			t.Errorf("flushed in %s, at most %s", got.FlushTime, got.FlushTimeMax)
		}
		p.finish(0x1007D0, 0x1007D0)
	})
}
