package archive

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"libreceivewal/tests/pg"
)

// No commit that a client was told of is lost with the server. The receiver is its only synchronous standby; both are killed, in
// either order, and the server's data is deleted. A base backup and the receiver's directory bring everything back.
func TestNothingIsLost(t *testing.T) {
	for i := range rounds(t, 2, 20) {
		order := []string{"ReceiverFirst", "ServerFirst"}[i%2]
		t.Run(fmt.Sprint(i, order), func(t *testing.T) {
			t.Parallel()
			loseServer(t, loss{receiverFirst: i%2 == 0, slot: i%4 >= 2})
		})
	}
}

// The same while the receiver's disk hangs. Commits have to wait for it: what it has taken but not made durable has no name yet, and is
// gone with the receiver.
func TestNothingIsLostOnAHungDisk(t *testing.T) {
	for i := range rounds(t, 1, 10) {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			loseServer(t, loss{receiverFirst: true, slot: i%2 == 1, hung: newHungDisk(t)})
		})
	}
}

// loss is how a server is lost.
type loss struct {
	receiverFirst bool
	slot          bool
	method        string    // of compression; "": none
	hung          *hungDisk // nil: the disk is well
}

// loseServer is one round.
func loseServer(t *testing.T, how loss) {
	random := chance(t)
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	c.SQL("create table commits (id bigint)")
	backup := c.BaseBackup()
	r := ours(t)
	if how.hung != nil {
		r.dir = how.hung.wal
	}
	args := []string{"--synchronous"}
	if how.method != "" {
		args = append(args, "-Z", how.method)
	}
	if how.slot {
		c.SQL("select pg_create_physical_replication_slot('lost', true)")
		args = append(args, "--slot", "lost")
	}
	fixStart(t, c, r.dir, c.LSN("select redo_lsn from pg_control_checkpoint()")) // where the backup begins
	r.start(c, args...)
	c.WaitStreaming(r.name)
	c.Configure("synchronous_standby_names = 'ours'")
	c.WaitFor("the synchronous standby", func() bool { return c.SQL("select sync_state from pg_stat_replication") == "sync" })

	clients := commit(t, c, 4)
	// At the beginning of a segment the receiver has most to do.
	switcher := keepBusy(t, c, 1, func(ctx context.Context, conn *pgconn.PgConn) error {
		pause(ctx, 60*time.Millisecond)
		_, err := conn.Exec(ctx, "select pg_switch_wal()").ReadAll()
		return err
	})
	c.WaitFor("some commits", func() bool { return clients.count() > 300 })
	time.Sleep(between(random, 0, 700*time.Millisecond))
	if how.hung != nil {
		how.hung.freeze()
		time.Sleep(5 * time.Second) // what was on its way
		before := clients.count()
		time.Sleep(between(random, 2*time.Second, 4*time.Second))
		if n := clients.count() - before; n > 0 {
			t.Errorf("%d commits were acknowledged while the disk hung", n)
		}
		r.Signal(syscall.SIGKILL)
		how.hung.thaw() // until then it cannot die
	}
	kills := []func(){r.Kill9, c.Kill9}
	if !how.receiverFirst {
		kills = []func(){c.Kill9, r.Kill9}
	}
	kills[0]()
	time.Sleep(between(random, 0, 300*time.Millisecond))
	kills[1]()
	switcher.stop()
	clients.stop()
	c.Destroy()

	var restored *pg.Cluster
	if how.method == "" {
		checkNames(t, c, r.dir)
		restored = backup.Restore(r.dir)
	} else {
		checkNames(t, c, unpack(t, r.dir, c.SegmentSize))
		restored = backup.RestoreBy(r.dir, restoreCommand, receivewal(t))
	}
	have := map[string]bool{}
	for _, id := range strings.Split(restored.SQL("select id from commits"), "\n") {
		have[id] = true
	}
	lost := 0
	for _, id := range clients.acknowledged {
		if !have[fmt.Sprint(id)] {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d commits are lost", lost, len(clients.acknowledged))
	}
	t.Logf("%d commits acknowledged, %d recovered", len(clients.acknowledged), len(have))
}

// clients commit and note what was acknowledged.
type clients struct {
	*busy
	mu           sync.Mutex
	acknowledged []int64
}

func commit(t *testing.T, c *pg.Cluster, n int) *clients {
	var next atomic.Int64
	k := &clients{}
	k.busy = keepBusy(t, c, n, func(ctx context.Context, conn *pgconn.PgConn) error {
		id := next.Add(1)
		results, err := conn.Exec(context.Background(), fmt.Sprintf("insert into commits values (%d)", id)).ReadAll()
		if err != nil {
			return err
		}
		if tag := results[0].CommandTag.String(); tag != "INSERT 0 1" {
			t.Errorf("an insert answered %q", tag)
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		k.acknowledged = append(k.acknowledged, id)
		return nil
	})
	return k
}

func (k *clients) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.acknowledged)
}

// A base backup of timeline 1 and the directory of a receiver that went along to timelines 2 and 3 recover to the last commit on 3:
// whether the receiver was there when the servers were promoted, or came later.
func TestRecoveryAcrossTimelines(t *testing.T) {
	for _, away := range []bool{false, true} {
		t.Run(map[bool]string{false: "There", true: "Away"}[away], func(t *testing.T) {
			t.Parallel()
			a := pg.New(t, pg.Options{SegmentSizeMB: 1})
			a.SQL("create table commits (id bigint)")
			backup := a.BaseBackup()
			begin := a.LSN("select redo_lsn from pg_control_checkpoint()")
			b := a.Standby("b")
			b.CopyWAL(a)
			r := ours(t)
			fixStart(t, a, r.dir, begin)
			if !away {
				r.start(b)
			}
			id := 0
			fill := func(c *pg.Cluster) pg.LSN {
				for range 50 {
					id++
					c.SQL(fmt.Sprintf("insert into commits values (%d)", id))
				}
				c.Generate(2)
				id++
				c.SQL(fmt.Sprintf("insert into commits values (%d)", id))
				return c.CurrentLSN()
			}
			// promote makes the standby the primary after everything on it has arrived.
			promote := func(primary, standby *pg.Cluster) {
				standby.WaitReplayed(fill(primary))
				primary.Stop(pg.Immediate)
				standby.Promote()
			}
			promote(a, b)
			fill(b)
			c := b.Standby("c")
			c.CopyWAL(b)
			if !away {
				r.stopAt(b, b.CurrentLSN())
				r.start(c)
			}
			promote(b, c)
			end := fill(c)
			if away {
				r.start(c)
			}
			r.stopAt(c, end)
			c.Destroy()
			b.Destroy()
			a.Destroy()

			restored := backup.Restore(r.dir)
			if got := restored.SQL("select count(distinct id), max(id) from commits"); got != fmt.Sprintf("%d|%d", id, id) {
				t.Errorf("recovered %s of %d commits", got, id)
			}
			if got := restored.Timeline(); got != 4 {
				t.Errorf("recovered to timeline %d, want 4 after 3", got)
			}
		})
	}
}
