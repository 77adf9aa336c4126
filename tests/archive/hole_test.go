package archive

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"libreceivewal/segment"
	"libreceivewal/stream"
	"libreceivewal/tests/pg"
)

// Missing segments of every timeline passed are fetched from the newest server: before a switch, the one in which a timeline began, after
// it, and around two switches at once. What stayed partial at a switch stays so.
func TestHolesAcrossTimelines(t *testing.T) {
	t.Parallel()
	a := pg.New(t, pg.Options{SegmentSizeMB: 1})
	begin := a.Tick()
	b := a.Standby("b")
	b.CopyWAL(a)
	c := b.Standby("c")
	c.CopyWAL(a)
	dir := t.TempDir()
	fixStart(t, a, dir, begin)

	// A switch in the middle of a segment each, and complete segments on both sides.
	r := startReceive(t, c, "holes", stream.Options{Directory: dir})
	switch2 := a.Generate(4)
	c.WaitReplayed(switch2)
	a.Stop(pg.Immediate)
	b.Promote()
	switch3 := b.Generate(4)
	c.WaitReplayed(switch3)
	b.Stop(pg.Immediate)
	c.Promote()
	end := c.Generate(4)
	pg.WaitFor(t, "the end", func() bool { r.running(); return pg.LSN(r.Progress().WrittenLSN) >= end })
	r.stop()
	if err := r.wait(); !errors.Is(err, stream.ErrStopped) {
		t.Fatal(err)
	}
	verify(t, c, dir, begin, end)
	complete := func(timeline uint32, lsn pg.LSN) string { return c.SegmentName(timeline, lsn) }
	mb := pg.LSN(1 << 20)
	everything := pg.List(t, dir)

	for name, missing := range map[string][]string{
		"before a switch":           {complete(1, switch2-mb)},
		"where a timeline began":    {complete(2, switch2)},
		"around a switch":           {complete(1, switch2-mb), complete(2, switch2), complete(2, switch2+mb)},
		"around both switches":      {complete(1, switch2-2*mb), complete(1, switch2-mb), complete(2, switch2), complete(2, switch2+mb), complete(2, switch3-2*mb), complete(2, switch3-mb), complete(3, switch3)},
		"in several places at once": {complete(1, switch2-2*mb), complete(2, switch2+mb), complete(3, switch3+mb)},
	} {
		missing = slices.Compact(missing)
		for _, name := range missing {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		var found, repaired pg.LSN
		end = c.CurrentLSN()
		r := startReceive(t, c, "holes", stream.Options{Directory: dir, EndLSN: segment.LSN(end), Events: stream.Events{Hole: func(h stream.Hole) error {
			switch {
			case h.Kind != segment.Missing:
				t.Errorf("%s: %+v", name, h)
			case h.State == stream.HoleFound:
				found += pg.LSN(h.EndLSN - h.LSN)
			case h.State == stream.HoleRepaired:
				repaired += pg.LSN(h.EndLSN - h.LSN)
			}
			return nil
		}}})
		c.Tick()
		if err := r.wait(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if want := pg.LSN(len(missing)) * mb; found != want || repaired != want {
			t.Errorf("%s: %d bytes of %d found, %d repaired", name, found, want, repaired)
		}
		verify(t, c, dir, begin, end)
		if now := pg.List(t, dir); !slices.Equal(now.Complete, everything.Complete) || !slices.Equal(now.Partial, everything.Partial) {
			t.Errorf("%s: files %v %v, before %v %v", name, now.Complete, now.Partial, everything.Complete, everything.Partial)
		}
	}
}
