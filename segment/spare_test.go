package segment

import (
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// countOf counts the operations of a kind on a disk.
func countOf(d *disk, k kind) (n int) {
	for _, o := range d.log {
		if o.kind == k {
			n++
		}
	}
	return n
}

func liveWriter(d *Directory, live bool) *Writer {
	w := d.NewWriter(WriterOptions{Timeline: 1, Start: begin, Size: tiny, SystemIdentifier: testSystem, History: server.history(1),
		Synchronous: true, nameAfter: time.Hour})
	w.Live(live)
	return w
}

// While a segment is written, the next one's file is filled with zeros and made durable: to begin it then takes no operation but the
// write. It has no name before, and is gone with the Writer.
func TestSpare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk, d := openDisk(t, nil)
		w := liveWriter(d, true)
		add(t, w, begin, begin+60)
		if n := countOf(disk, opCreate); n != 2 {
			t.Errorf("%d files were made, want the segment's and the next one's", n)
		}
		if got := slices.Sorted(maps.Keys(disk.contents())); !slices.Equal(got, []string{name(1, 5) + ".partial"}) {
			t.Errorf("the directory has %q", got)
		}
		add(t, w, begin+60, begin+LSN(tiny))
		add(t, w, begin+LSN(tiny), begin+LSN(tiny)+60)
		if n := countOf(disk, opCreate); n != 3 {
			t.Errorf("%d files were made, want one for each segment and the next one's", n)
		}
		add(t, w, begin+LSN(tiny)+60, begin+2*LSN(tiny))
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil || disk.handles != 0 {
			t.Errorf("%d files are still open, %v", disk.handles, err)
		}
		for i, number := range []uint64{5, 6} {
			at := begin + LSN(i)*LSN(tiny)
			if got := disk.contents()[name(1, number)]; string(got) != string(server.wal(1, at, at+LSN(tiny))) {
				t.Errorf("segment %d differs", number)
			}
		}
	})
}

// While catching up, no zeros are written.
func TestNoZerosWhileCatchingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk, d := openDisk(t, nil)
		w := liveWriter(d, false)
		add(t, w, begin, begin+3*LSN(tiny))
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if creates, writes := countOf(disk, opCreate), countOf(disk, opWrite); creates != 3 || writes != 3 {
			t.Errorf("%d files and %d writes for 3 segments", creates, writes)
		}
	})
}

// Sync makes durable what was written when it returns true, without the syncer; else it leaves that to the syncer.
func TestSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, d := openDisk(t, nil)
		w := liveWriter(d, true)
		add(t, w, begin, begin+60) // it has got its name
		add(t, w, begin+60, begin+100)
		if !w.Sync() || w.Flushed() != begin+100 {
			t.Errorf("flushed up to %s", w.Flushed())
		}
		if w.Sync() {
			t.Error("there was nothing to flush")
		}
		add(t, w, begin+100, begin+LSN(tiny)+60) // the syncer has to complete one, and to name the next
		w.Sync()
		synctest.Wait()
		if w.Flushed() != begin+LSN(tiny)+60 {
			t.Errorf("flushed up to %s", w.Flushed())
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// A segment that is not the first gets its name after a while, or with a flush.
func TestNameInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, w := openTiny(t, nil)
		add(t, w, begin, begin+LSN(tiny)+100)
		if got := w.Partial(); got != "" {
			t.Errorf("%q is there at once", got)
		}
		time.Sleep(nameAfter)
		synctest.Wait()
		if got := w.Partial(); got != name(1, 6)+".partial" {
			t.Errorf("%q is there after %s", got, nameAfter)
		}
		add(t, w, begin+LSN(tiny)+100, begin+2*LSN(tiny)+100)
		w.Flush()
		synctest.Wait()
		if got := w.Partial(); got != name(1, 7)+".partial" {
			t.Errorf("%q is there after a flush", got)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
