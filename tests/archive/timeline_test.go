package archive

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"libreceivewal/segment"
	"libreceivewal/stream"
	"libreceivewal/tests/pg"
)

// startAll begins to receive with all of them, each into its own directory, from the segment of begin on.
func startAll(rs []*receiver, c *pg.Cluster) {
	for _, r := range rs {
		r.t.Helper()
		r.start(c)
	}
	for _, r := range rs {
		c.WaitStreaming(r.name)
	}
}

func stopAll(rs []*receiver, c *pg.Cluster, lsn pg.LSN) {
	for _, r := range rs {
		r.t.Helper()
		r.stopAt(c, lsn)
	}
}

// hasHistory fails unless the directory has the history files of these timelines and no others; verify compares their bytes.
func hasHistory(t testing.TB, dir string, timelines ...uint32) {
	t.Helper()
	var want []string
	for _, timeline := range timelines {
		want = append(want, fmt.Sprintf("%08X.history", timeline))
	}
	if got := pg.List(t, dir).History; !slices.Equal(got, want) {
		t.Errorf("history files %v, want %v", got, want)
	}
}

// hasPartial fails unless the segment of lsn on the timeline has stayed partial, and holds the server's WAL up to lsn.
func hasPartial(t testing.TB, c *pg.Cluster, dir string, timeline uint32, lsn pg.LSN) {
	t.Helper()
	name := c.SegmentName(timeline, lsn-1)
	if files := pg.List(t, dir); !slices.Contains(files.Partial, name+".partial") || slices.Contains(files.Complete, name) {
		t.Errorf("segment %s did not stay partial: %v %v", name, files.Complete, files.Partial)
		return
	}
	c.ComparePartial(dir, timeline, lsn)
}

// The primary is killed in the middle of a record that is longer than a segment; its standby has the record's beginning, and so have
// those who stream from it. The standby is promoted, and its timeline begins where the torn record did: before what has been received.
func TestPromotionWithATornRecord(t *testing.T) {
	t.Parallel()
	a := pg.New(t, pg.Options{SegmentSizeMB: 1})
	backup := a.BaseBackup()
	begin := a.LSN("select redo_lsn from pg_control_checkpoint()")
	b := a.Standby("b")
	b.CopyWAL(a)
	rs := both(t)
	for _, r := range rs {
		fixStart(t, a, r.dir, begin)
	}
	startAll(rs, b)
	b.WaitReplayed(a.Tick())
	torn := a.CurrentLSN()

	// One record of 300 MB. It is flushed segment by segment on its way, or behind it; the standby receives that.
	const length = 300_000_000
	wall := filepath.Join(b.WALDir(), b.SegmentName(1, torn+200<<20)) // should we be late, the standby gets no further than here
	if err := os.Mkdir(wall, 0o700); err != nil {
		t.Fatal(err)
	}
	record := make(chan struct{})
	go func() {
		defer close(record)
		a.TrySQL(fmt.Sprintf("select pg_logical_emit_message(false, 'torn', repeat('x', %d))", length))
	}()
	b.WaitFor("some of the record", func() bool { return b.LSN("select pg_last_wal_receive_lsn()") > torn+3<<20 })
	a.Kill9()
	<-record
	received := b.LSN("select pg_last_wal_receive_lsn()")
	if received > torn+length {
		t.Fatal("the standby has received the record whole")
	}
	if err := os.Remove(wall); err != nil {
		t.Fatal(err)
	}
	for _, r := range rs {
		b.WaitReceived(r.name, received, false)
	}
	b.Promote()
	switched := switchPoint(t, b, 2)
	if switched > torn+1<<20 || received < switched+2<<20 {
		t.Fatalf("the timeline switched at %s; the record began at %s and was received up to %s", switched, torn, received)
	}
	b.SQL("create table after_the_switch as select 1 as x")
	end := b.Generate(3)
	for _, r := range rs { // what the server knows to be received is more: it is of the old timeline
		b.WaitFor(r.name+" to follow", func() bool { return holds(b, r.dir, 2, switched, end) == nil })
	}
	stopAll(rs, b, end)
	for _, r := range rs {
		t.Run(r.name, func(t *testing.T) {
			checkNames(t, b, r.dir)
			hasHistory(t, r.dir, 2)
			checkHolds(t, b, r.dir, 2, switched, end)
			checkHolds(t, a, r.dir, 1, begin, received)
			if got := backup.Restore(r.dir).SQL("select x from after_the_switch"); got != "1" {
				t.Errorf("recovered %q", got)
			}
		})
	}
	pg.CompareDirs(t, rs[0].dir, rs[1].dir)
}

// switchPoint is where a timeline began, by the server's history file.
func switchPoint(t testing.TB, c *pg.Cluster, timeline uint32) pg.LSN {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(c.WALDir(), fmt.Sprintf("%08X.history", timeline)))
	if err != nil {
		t.Fatal(err)
	}
	history, err := segment.ParseHistory(segment.Timeline(timeline), content)
	if err != nil {
		t.Fatal(err)
	}
	return pg.LSN(history[len(history)-2].End)
}

// Two promotions within one segment: it is there on three timelines, and partial on each. The receivers are there for one and away
// for the other, and start again on the newest.
func TestTwoPromotionsInOneSegment(t *testing.T) {
	for version, size := range map[int]int{13: 16, 14: 64, 15: 16, 16: 16, 17: 16, 18: 64} { // more than is written in between
		t.Run(fmt.Sprintf("%d/%dMiB", version, size), func(t *testing.T) {
			t.Parallel()
			testTwoPromotionsInOneSegment(t, version, size)
		})
	}
}

func testTwoPromotionsInOneSegment(t *testing.T, version, size int) {
	a := pg.New(t, pg.Options{Version: version, SegmentSizeMB: size})
	begin := a.Tick()
	b := a.Standby("b")
	b.CopyWAL(a)
	c := b.Standby("c", "wal_retrieve_retry_interval = 100ms")
	c.CopyWAL(a)
	rs := both(t)
	if version > 15 { // pg_receivewal 15 refuses newer servers
		rs = rs[:1]
	}
	for _, r := range rs {
		fixStart(t, a, r.dir, begin)
	}
	startAll(rs, b)
	a.SwitchWAL()
	a.Generate(size + 1) // a complete segment, and one MiB of the next
	switch2 := a.CurrentLSN()
	b.WaitReplayed(switch2)
	a.Stop(pg.Immediate)
	b.Promote()
	stopAll(rs, b, b.Generate(1))

	switch3 := b.Generate(1)
	c.WaitReplayed(switch3)
	b.Stop(pg.Immediate)
	c.Promote()
	startAll(rs, c)
	stopAll(rs, c, c.Generate(1))
	startAll(rs, c) // again, on timeline 3 now
	end := c.Generate(1)
	stopAll(rs, c, end)
	for _, r := range rs {
		t.Run(r.name, func(t *testing.T) {
			verify(t, c, r.dir, begin, end)
			hasHistory(t, r.dir, 2, 3)
			hasPartial(t, a, r.dir, 1, switch2)
			hasPartial(t, b, r.dir, 2, switch3)
			hasPartial(t, c, r.dir, 3, end)
			if a, b, c := a.SegmentName(1, switch2), b.SegmentName(2, switch3), c.SegmentName(3, end); a[8:] != b[8:] || b[8:] != c[8:] {
				t.Errorf("segments %s, %s and %s are not the same", a, b, c)
			}
		})
	}
	pg.CompareDirs(t, rs[0].dir, rs[len(rs)-1].dir)
}

// A chain a, b, c, d of standbys of standbys: the receivers follow the last, without a break, while first b and then c become the
// primary. d switches along without being promoted.
func TestFollowingACascade(t *testing.T) {
	t.Parallel()
	a := pg.New(t, pg.Options{SegmentSizeMB: 1})
	begin := a.Tick()
	quick := "wal_retrieve_retry_interval = 100ms"
	b := a.Standby("b", quick)
	b.CopyWAL(a)
	c := b.Standby("c", quick)
	c.CopyWAL(a)
	d := c.Standby("d", quick)
	d.CopyWAL(a)
	rs := both(t)
	for _, r := range rs {
		fixStart(t, a, r.dir, begin)
	}
	startAll(rs, d)
	switch2 := a.Generate(2)
	d.WaitReplayed(switch2)
	a.Stop(pg.Immediate)
	b.Promote()
	switch3 := b.Generate(2)
	d.WaitReplayed(switch3)
	b.Stop(pg.Immediate)
	c.Promote()
	end := c.Generate(2)
	d.WaitReplayed(end)
	stopAll(rs, d, end)
	for _, r := range rs {
		t.Run(r.name, func(t *testing.T) {
			verifyOn(t, c, 3, r.dir, begin, end)
			hasHistory(t, r.dir, 2, 3)
			hasPartial(t, a, r.dir, 1, switch2)
			hasPartial(t, b, r.dir, 2, switch3)
		})
	}
	pg.CompareDirs(t, rs[0].dir, rs[1].dir)
}

// Recovery to an earlier point, from what we received ourselves: the server goes on from there on a timeline of its own, before the
// newest segments of the directory. Those stay; the new timeline is received from the segment where it begins, also over restarts and
// a second such recovery. In the end the directory recovers to the last commit of each of the three timelines. (pg_receivewal asks
// for what the server no longer has, and never comes back.)
func TestRecoveryToAnEarlierPoint(t *testing.T) {
	t.Parallel()
	a := pg.New(t, pg.Options{SegmentSizeMB: 1})
	a.SQL("create table commits (what text)")
	backup := a.BaseBackup()
	begin := a.LSN("select redo_lsn from pg_control_checkpoint()")
	r := ours(t)
	fixStart(t, a, r.dir, begin)

	// live generates WAL around a restore point, and receives it.
	live := func(c *pg.Cluster, name string) pg.LSN {
		r.start(c)
		c.Generate(2)
		c.SQL("insert into commits values ('before " + name + "')")
		point := c.LSN("select pg_create_restore_point('" + name + "')")
		c.SQL("insert into commits values ('after " + name + "')")
		r.stopAt(c, c.Generate(3))
		r.start(c)
		r.stopAt(c, c.Generate(2))
		return point
	}
	first := live(a, "first")
	a.Destroy()

	b := backup.Restore(r.dir, "recovery_target_name = 'first'")
	second := live(b, "second")
	hasHistory(t, r.dir, 2)
	if at := switchPoint(t, b, 2); at < first || at > first+1<<20 {
		t.Errorf("timeline 2 begins at %s, after the restore point at %s", at, first)
	}
	b.CompareWithServer(r.dir)

	c := backup.Restore(r.dir, "recovery_target_name = 'second'")
	b.Destroy()
	live(c, "third")
	hasHistory(t, r.dir, 2, 3)
	if at := switchPoint(t, c, 3); at < second || at > second+1<<20 {
		t.Errorf("timeline 3 begins at %s, after the restore point at %s", at, second)
	}
	c.CompareWithServer(r.dir)
	end := c.CurrentLSN()
	c.Destroy()
	checkNames(t, c, r.dir)

	for _, want := range []struct{ conf, commits string }{
		{"recovery_target_timeline = latest", "before first,before second,before third,after third"},
		{"recovery_target_timeline = 1", "before first,after first"},
	} {
		got := backup.Restore(r.dir, want.conf).SQL("select string_agg(what, ',') from commits")
		if got != want.commits {
			t.Errorf("%s: recovered %q, want %q; the last one ended at %s", want.conf, got, want.commits, end)
		}
	}
}

// A receiver that follows a standby on which pages after a segment's end, by pg_switch_wal, are old WAL: a standby that has replayed
// the switch sends the rest of the segment from its file, where it may not have received the zeros yet. Not even the check of every page
// takes that for damage.
func TestSwitchesOnAStandby(t *testing.T) {
	t.Parallel()
	a := pg.New(t, pg.Options{SegmentSizeMB: 1})
	b := a.Standby("b", "wal_recycle = on", "wal_keep_size = 0", "min_wal_size = 64MB")
	a.Generate(20)
	b.WaitReplayed(a.CurrentLSN())
	a.SQL("checkpoint")
	b.WaitReplayed(a.Tick())
	b.SQL("checkpoint")                                                // a restartpoint: it recycles what is behind it
	b.SQL("select pg_create_physical_replication_slot('pages', true)") // nor may it recycle what we still want
	dir := t.TempDir()
	r := startReceive(t, b, "pages", stream.Options{Directory: dir, Slot: "pages", CheckPages: true})
	b.WaitStreaming("pages")
	begin := b.CurrentLSN()
	load := keepBusy(t, a, 1, func(ctx context.Context, conn *pgconn.PgConn) error {
		_, err := conn.Exec(ctx, "select pg_logical_emit_message(true, 'x', repeat('y', 100000)); select pg_switch_wal()").ReadAll()
		pause(ctx, 10*time.Millisecond)
		return err
	})
	for stop := time.Now().Add(time.Duration(rounds(t, 5, 60)) * time.Second); time.Now().Before(stop); time.Sleep(50 * time.Millisecond) {
		r.running()
	}
	load.stop()
	end := a.Tick()
	b.WaitReplayed(end)
	pg.WaitFor(t, "the end", func() bool { r.running(); return pg.LSN(r.Progress().WrittenLSN) >= end })
	r.stop()
	r.wait()
	checkNames(t, b, dir)

	// The server's own bytes as far as there is WAL in a segment, whatever follows the switch.
	stale := 0
	for _, name := range pg.List(t, dir).Complete {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(filepath.Join(a.WALDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		n := len(strings.TrimRight(string(want), "\x00"))
		if string(got[:n]) != string(want[:n]) {
			t.Errorf("%s differs", name)
		}
		if string(got) != string(want) {
			stale++
		}
	}
	t.Logf("%d segments from %s to %s, %d of them with old WAL after a switch", len(pg.List(t, dir).Complete), begin, end, stale)
}
