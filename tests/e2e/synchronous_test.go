package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"libreceivewal/tests/pg"
)

// As a synchronous standby: when a commit returns, its WAL is in the receiver's files already, and commits don't wait for
// anything but that. (A receiver that holds the last message back makes each take until the next keepalive.)
func TestSynchronousStandby(t *testing.T) {
	eachServer(t, func(t *testing.T, version, size int) {
		c := pg.New(t, pg.Options{Version: version, SegmentSizeMB: size})
		c.SQL("create table t(i int)")
		rs := []*receiver{ours(t)}
		rs[0].run(c, "--create-slot", "--slot", "ours").Succeed()
		rs[0].start(c, "--slot", "ours", "--synchronous")
		c.WaitStreaming("ours")
		c.Configure("synchronous_standby_names = 'ours'")
		c.WaitFor("the synchronous standby", func() bool { return c.SQL("select sync_state from pg_stat_replication") == "sync" })
		c.SQL("checkpoint") // the checkpointer, which makes commits wait, has read its configuration then

		commits := 200
		if version != 15 {
			commits = 20 // the rest is the same, and waits for the disk
		}
		for range commits {
			// The commit record comes after this position, and is flushed when the commit returns.
			lsn := c.LSN("begin; insert into t values (1); select pg_current_wal_insert_lsn(); commit")
			name := c.SegmentName(1, lsn-1)
			received, err := os.ReadFile(filepath.Join(rs[0].dir, name+".partial"))
			if os.IsNotExist(err) {
				received, err = os.ReadFile(filepath.Join(rs[0].dir, name))
			}
			if err != nil {
				t.Fatal(err)
			}
			n := uint64(lsn-1)%c.SegmentSize + 1
			if string(received[:n]) != string(serverSegment(t, c, name)[:n]) {
				t.Fatalf("the commit at %s has returned, but isn't in %s", lsn, name)
			}
		}

		pgbench := pg.ClientProgram(t, "pgbench")
		pg.Run(t, pgbench, append(c.ConnArgs(), "-i", "-q", "postgres")...).Succeed()
		pg.Run(t, pgbench, append(c.ConnArgs(), "-n", "-c", "4", "-j", "2", "-t", fmt.Sprint(commits*5/2), "postgres")...).Succeed()
		c.SwitchWAL()
		end := c.Tick()
		stopAt(rs, c, end)
		verify(rs, c, 1, end)

		// With nobody to confirm it a commit has to wait: so those above did depend on the receiver.
		c.WaitGone("ours")
		go c.TrySQL("insert into t values (2)")
		c.WaitFor("a commit that waits", func() bool {
			return c.SQL("select count(*) from pg_stat_activity where wait_event = 'SyncRep'") == "1"
		})
	})
}
