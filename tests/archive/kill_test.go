package archive

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"libreceivewal/tests/pg"
)

// A receiver that is killed with -9 at any moment, under load, leaves a directory in which the next one goes on: ours, then
// pg_receivewal, then ours again. What the server was told to be flushed is there after each kill, and in the end every byte.
func TestKilled(t *testing.T) {
	for _, test := range []struct {
		name      string
		version   int
		segmentMB int
		args      []string
	}{
		{"Plain", 15, 1, nil},
		{"Synchronous", 15, 16, []string{"--synchronous"}},
		{"Slot", 15, 16, []string{"--slot", "killed"}},
		{"SynchronousSlot", 15, 1, []string{"--synchronous", "--slot", "killed"}},
		{"Slot", 13, 64, []string{"--slot", "killed"}},
		{"Synchronous", 14, 1, []string{"--synchronous"}},
		{"SynchronousSlot", 16, 16, []string{"--synchronous", "--slot", "killed"}},
		{"Plain", 17, 16, nil},
		{"Slot", 18, 1, []string{"--slot", "killed"}},
	} {
		t.Run(fmt.Sprintf("%s/%d/%dMiB", test.name, test.version, test.segmentMB), func(t *testing.T) {
			t.Parallel()
			k := &killing{t: t, rand: chance(t), args: test.args}
			k.c = pg.New(t, pg.Options{Version: test.version, SegmentSizeMB: test.segmentMB})
			k.dir = t.TempDir()
			k.begin = k.c.Tick()
			fixStart(t, k.c, k.dir, k.begin)
			k.slot = slices.Contains(test.args, "--slot")
			if k.slot {
				k.c.SQL("select pg_create_physical_replication_slot('killed', true)")
			}
			n := rounds(t, map[bool]int{true: 7, false: 4}[test.version == 15], 60)
			k.run(n)
			t.Logf("%d rounds, %d segments, of them %d completed by the killed; %d moments with a flushed position; %d times pg_receivewal "+
				"could not go on after itself", n, len(pg.List(t, k.dir).Complete), len(k.compared), k.flushes, k.stuck)
		})
	}
}

type killing struct {
	t    *testing.T
	rand *rand.Rand
	c    *pg.Cluster
	dir  string
	args []string
	slot bool

	begin    pg.LSN
	compared map[string]bool // complete segments that are equal to the server's
	short    map[string]bool // .partial files that pg_receivewal was killed over before it had filled them with zeros
	flushes  int             // how often a slot's position was held against the directory
	stuck    int             // how often pg_receivewal ended because of such a file
}

func (k *killing) run(n int) {
	t, c := k.t, k.c
	k.compared, k.short = map[string]bool{}, map[string]bool{}
	load := keepBusy(t, c, 2, writeSome)
	for i := range n {
		r := ours(t).in(k.dir)
		if i%2 == 1 && c.Version <= 15 { // pg_receivewal 15 refuses newer servers
			r = theirs(t).in(k.dir)
		}
		k.round(r)
		if t.Failed() {
			t.Fatalf("after round %d, of %s", i, r.name)
		}
	}
	load.stop()
	c.SwitchWAL() // the load may not have filled a large segment
	end := c.Tick()
	ours(t).in(k.dir).receive(c, end, k.args...)
	verify(t, c, k.dir, k.begin, end)
}

// writeSome writes some WAL: mostly commits, at times so much that a segment is full, at times a segment's end.
func writeSome(ctx context.Context, conn *pgconn.PgConn) error {
	sql := "select pg_logical_emit_message(true, 'commit', 'small')"
	switch n := rand.IntN(100); {
	case n < 10:
		sql = "select count(pg_logical_emit_message(true, 'much', repeat(md5(random()::text), 512))) from generate_series(1, 64)"
	case n < 12:
		sql = "select pg_switch_wal()"
	}
	_, err := conn.Exec(ctx, sql).ReadAll()
	pause(ctx, 10*time.Millisecond)
	return err
}

// writeSmall commits a little.
func writeSmall(ctx context.Context, conn *pgconn.PgConn) error {
	_, err := conn.Exec(ctx, "select pg_logical_emit_message(true, 'commit', 'small')").ReadAll()
	pause(ctx, time.Millisecond)
	return err
}

// round starts a receiver, kills it, and looks at what it has left.
func (k *killing) round(r *receiver) {
	t := k.t
	r.start(k.c, append([]string{"--no-loop"}, k.args...)...)
	life := between(k.rand, 0, 1200*time.Millisecond)
	if k.slot && !slices.Contains(k.args, "--synchronous") {
		life *= 2 // it tells what is flushed only each second
	}
	if k.rand.IntN(3) == 0 {
		life = between(k.rand, 0, 150*time.Millisecond) // while it starts
	}
	time.Sleep(life)
	switch {
	case r.Running():
		r.Kill9()
	case r.name == "theirs" && len(k.short) > 0 && strings.Contains(r.Output(), "bytes, should be 0 or"):
		k.stuck++ // we were killed before we got to mend that
	default:
		t.Fatalf("%s has ended by itself: %s", r.name, r.Output())
	}
	k.c.WaitGone(r.name)
	if k.slot { // before PostgreSQL 15 it is released after that
		k.c.WaitFor("the slot to be free", func() bool { return k.c.SQL("select active from pg_replication_slots") == "f" })
	}

	checkNames(t, k.c, k.dir)
	k.checkSizes(r)
	for _, name := range pg.List(t, k.dir).Complete {
		if !k.compared[name] {
			k.compared[name] = k.equal(name)
		}
	}
	if !k.slot {
		return
	}
	if told := k.c.LSN("select restart_lsn from pg_replication_slots"); told > k.begin {
		checkHolds(t, k.c, k.dir, 1, max(k.begin, told-2*pg.LSN(k.c.SegmentSize)), told)
		k.flushes++
	}
}

// checkSizes fails if one of ours has made a .partial that is shorter than a segment. (The first one was made empty by us.)
func (k *killing) checkSizes(r *receiver) {
	before := k.short
	k.short = map[string]bool{}
	for _, name := range pg.List(k.t, k.dir).Partial {
		info, err := os.Stat(filepath.Join(k.dir, name))
		if err != nil {
			k.t.Fatal(err)
		}
		if size := uint64(info.Size()); size != 0 && size != k.c.SegmentSize {
			k.short[name] = true
			if r.name == "ours" && !before[name] {
				k.t.Errorf("%s has %d bytes", name, size)
			}
		}
	}
}

func (k *killing) equal(name string) bool {
	received, err := os.ReadFile(filepath.Join(k.dir, name))
	if err != nil {
		k.t.Fatal(err)
	}
	original, err := os.ReadFile(filepath.Join(k.c.WALDir(), name))
	if err != nil {
		k.t.Fatal(err)
	}
	if string(received) != string(original) {
		k.t.Errorf("%s is complete, but not as the server's", name)
	}
	return true
}

// The same with the server's promotion in between: the receiver follows a standby that is promoted, and is killed all the time.
func TestKilledAroundPromotion(t *testing.T) {
	t.Parallel()
	for i := range rounds(t, 3, 18) {
		// In the short form with the oldest, the default and the newest version, in the long one with all.
		version := []int{15, 18, 13, 14, 16, 17}[i%6]
		t.Run(fmt.Sprintf("%d/%d", i, version), func(t *testing.T) {
			random := chance(t)
			a := pg.New(t, pg.Options{Version: version, SegmentSizeMB: 1 + 15*(i%2)})
			dir := t.TempDir()
			begin := a.Tick()
			b := a.Standby("b", "wal_retrieve_retry_interval = 100ms")
			b.CopyWAL(a)
			fixStart(t, a, dir, begin)
			kill := func(n int) {
				for i := range n {
					r := ours(t).in(dir)
					if i%2 == 1 && version <= 15 {
						r = theirs(t).in(dir)
					}
					r.start(b, "--no-loop")
					time.Sleep(between(random, 0, 400*time.Millisecond))
					r.Kill9()
					checkNames(t, b, dir)
				}
			}
			load := keepBusy(t, a, 1, writeSome)
			kill(3)
			load.stop()
			a.Stop(pg.Fast)
			promoted := make(chan error, 1)
			go func() {
				_, err := b.TrySQL("select pg_promote(true, 120)")
				promoted <- err
			}()
			kill(4)
			if err := <-promoted; err != nil {
				t.Fatal(err)
			}
			b.WaitFor("the end of recovery", func() bool { return !b.InRecovery() })
			load = keepBusy(t, b, 1, writeSome)
			kill(4)
			load.stop()
			b.SwitchWAL()
			end := b.Tick()
			ours(t).in(dir).receive(b, end)
			verify(t, b, dir, begin, end)
			if history := pg.List(t, dir).History; len(history) != 1 {
				t.Errorf("history files: %v", history)
			}
		})
	}
}
