package e2e

import (
	"slices"
	"testing"

	"libreceivewal/tests/pg"
)

// hasFiles fails unless all have these files.
func hasFiles(rs []*receiver, want ...string) {
	for _, r := range rs {
		r.t.Helper()
		files := pg.List(r.t, r.dir)
		all := slices.Concat(files.Complete, files.Partial, files.History)
		for _, name := range want {
			if !slices.Contains(all, name) {
				r.t.Errorf("%s has no %s; it has %v", r.name, name, all)
			}
		}
	}
}

// The standby that a receiver streams from is promoted, and then a standby of that one: the receiver follows from timeline 1
// to 2 to 3. Each old timeline's last segment stays partial, and holds the WAL up to the switch.
func TestPromotion(t *testing.T) {
	eachServer(t, func(t *testing.T, version, size int) {
		a := pg.New(t, pg.Options{Version: version, SegmentSizeMB: size})
		b := a.Standby("b")
		rs := fit(t, a)
		startAll(rs, b)
		switch2 := a.Generate(2 * size)
		b.WaitReplayed(switch2)
		a.Stop(pg.Immediate)
		b.Promote()
		end := b.Generate(2 * size)
		stopAt(rs, b, end)
		verify(rs, b, 2, end)
		hasFiles(rs, "00000002.history", b.SegmentName(1, switch2)+".partial", b.SegmentName(2, switch2))
		for _, r := range rs {
			a.ComparePartial(r.dir, 1, switch2)
		}

		c := b.Standby("c")
		c.CopyWAL(b) // as a copy it begins with the segment of its backup
		startAll(rs, c)
		switch3 := b.Generate(2 * size)
		c.WaitReplayed(switch3)
		b.Stop(pg.Immediate)
		c.Promote()
		end = c.Generate(2 * size)
		stopAt(rs, c, end)
		verify(rs, c, 3, end)
		hasFiles(rs, "00000002.history", "00000003.history", c.SegmentName(2, switch3)+".partial", c.SegmentName(3, switch3))
		for _, r := range rs {
			b.ComparePartial(r.dir, 2, switch3)
		}
	})
}

// A receiver that was away while its server got two timelines further begins on the old one, and catches up with both.
func TestPromotionWhileAway(t *testing.T) {
	t.Parallel()
	a := pg.New(t, pg.Options{SegmentSizeMB: 1})
	rs := both(t)
	startAll(rs, a)
	away := a.Generate(2)
	stopAt(rs, a, away)

	b := a.Standby("b")
	switch2 := a.Generate(3)
	b.WaitReplayed(switch2)
	a.Stop(pg.Immediate)
	b.Promote()
	c := b.Standby("c")
	switch3 := b.Generate(3)
	c.WaitReplayed(switch3)
	b.Stop(pg.Immediate)
	c.Promote()

	c.CopyWAL(b)
	c.CopyWAL(a)
	startAll(rs, c)
	end := c.Generate(2)
	stopAt(rs, c, end)
	verify(rs, c, 3, end)
	hasFiles(rs, "00000002.history", "00000003.history", c.SegmentName(1, switch2)+".partial", c.SegmentName(2, switch3)+".partial")
	for _, r := range rs {
		a.ComparePartial(r.dir, 1, switch2)
		b.ComparePartial(r.dir, 2, switch3)
	}
}

// A promotion right at the end of a segment: there is no segment of the old timeline that stays partial.
func TestPromotionAtSegmentBoundary(t *testing.T) {
	t.Parallel()
	a := pg.New(t, pg.Options{SegmentSizeMB: 1})
	b := a.Standby("b")
	rs := both(t)
	startAll(rs, b)
	a.Generate(1)
	_, boundary := a.SwitchWAL()
	b.WaitFor("the standby to have the whole segment", func() bool { return b.LSN("select pg_last_wal_receive_lsn()") >= boundary })
	a.Stop(pg.Immediate)
	b.Promote()
	end := b.Generate(2)
	stopAt(rs, b, end)
	verify(rs, b, 2, end)
	hasFiles(rs, b.SegmentName(1, boundary-1), "00000002.history")
}

// A first start on timeline 3 brings its history file, which tells of the timelines before.
func TestFreshStartOnALaterTimeline(t *testing.T) {
	t.Parallel()
	a := pg.New(t, pg.Options{SegmentSizeMB: 1})
	b := a.Standby("b")
	a.Stop(pg.Immediate)
	b.Promote()
	c := b.Standby("c")
	c.WaitReplayed(b.Tick())
	b.Stop(pg.Immediate)
	c.Promote()
	rs := both(t)
	startAll(rs, c)
	end := c.Generate(2)
	stopAt(rs, c, end)
	verify(rs, c, 3, end)
	hasFiles(rs, "00000003.history")
}
