package archive

import (
	"errors"
	"testing"
	"time"

	"libreceivewal/stream"
	"libreceivewal/tests/pg"
)

// With a flush interval and a slot, not synchronous, what is written is durable soon after, and the server knows it: during a
// stream, and when it goes idle after a burst. Without the interval it stays unflushed.
func TestFlushInterval(t *testing.T) {
	t.Parallel()
	c := pg.New(t, pg.Options{SegmentSizeMB: 4})
	for _, name := range []string{"bounded", "unbounded"} {
		c.SQL("select pg_create_physical_replication_slot('" + name + "', true)")
	}
	dir := t.TempDir()
	begin := c.Tick()
	fixStart(t, c, dir, begin)
	interval := 300 * time.Millisecond
	r := startReceive(t, c, "bounded", stream.Options{Directory: dir, Slot: "bounded", FlushInterval: interval, StatusInterval: -1})
	u := startReceive(t, c, "unbounded", stream.Options{Directory: t.TempDir(), Slot: "unbounded", StatusInterval: -1})
	c.WaitStreaming("bounded")
	c.WaitStreaming("unbounded")
	var end pg.LSN
	for range 5 {
		end = c.Generate(1)
		c.WaitReceived("bounded", end, true) // nothing comes after it, and nobody asks
		time.Sleep(interval / 2)
	}
	end = c.Tick()
	c.WaitReceived("bounded", end, true)
	c.WaitFor("the slot to move on", func() bool {
		return c.LSN("select restart_lsn from pg_replication_slots where slot_name = 'bounded'") >= end
	})
	c.WaitFor("the other to write it, too", func() bool { return pg.LSN(u.Progress().WrittenLSN) >= end })
	if p := u.Progress(); p.FlushedLSN >= p.WrittenLSN {
		t.Errorf("without a flush interval: written %s, flushed %s", p.WrittenLSN, p.FlushedLSN)
	}
	for _, r := range []*receive{r, u} {
		r.stop()
		if err := r.wait(); !errors.Is(err, stream.ErrStopped) {
			t.Error(err)
		}
	}
	verify(t, c, dir, begin, end)
}

// While WAL comes without a pause, what is not yet flushed never gets much older than the interval.
func TestFlushIntervalUnderLoad(t *testing.T) {
	t.Parallel()
	c := pg.New(t, pg.Options{SegmentSizeMB: 64}) // no segment's end helps
	dir := t.TempDir()
	c.SQL("select pg_create_physical_replication_slot('bounded', true)")
	startReceive(t, c, "bounded", stream.Options{Directory: dir, Slot: "bounded", FlushInterval: 200 * time.Millisecond, StatusInterval: -1})
	c.WaitStreaming("bounded")
	load := keepBusy(t, c, 1, writeSmall)
	for range 10 {
		c.WaitReceived("bounded", c.CurrentLSN(), true)
	}
	load.stop()
}
