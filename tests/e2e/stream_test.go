package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"libreceivewal/tests/pg"
)

// An empty directory gets the server's current segment from its first byte, and all that follows.
func TestFreshStart(t *testing.T) {
	eachServer(t, func(t *testing.T, version, size int) {
		c := pg.New(t, pg.Options{Version: version, SegmentSizeMB: size})
		begin := c.Tick()
		rs := fit(t, c)
		startAll(rs, c)
		c.SwitchWAL()
		c.Generate(3 * size)
		c.SwitchWAL()
		end := c.Tick()
		stopAt(rs, c, end)
		verify(rs, c, 1, end)
		first(rs, c, 1, begin)
		for _, r := range rs {
			for _, name := range pg.List(t, r.dir).Complete {
				if version != 15 {
					continue // pg_waldump is there in version 15
				}
				c.Waldump(filepath.Join(r.dir, name))
			}
		}
	})
}

// Without a slot the flush position stays unknown to the server; in synchronous mode it is told.
func TestFlushPositionIsReportedOnlyWhenWanted(t *testing.T) {
	t.Parallel()
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	rs := both(t)
	startAll(rs, c)
	end := c.Generate(3)
	for _, r := range rs {
		c.WaitReceived(r.name, end, false)
		if got := c.SQL("select flush_lsn is null and replay_lsn is null from pg_stat_replication where application_name = '" + r.name + "'"); got != "t" {
			t.Errorf("%s reports a flush or apply position", r.name)
		}
		r.Stop()
		c.WaitGone(r.name)
	}
	startAll(rs, c, "--synchronous")
	end = c.Generate(1)
	for _, r := range rs {
		c.WaitReceived(r.name, end, true)
	}
	stopAt(rs, c, end)
	verify(rs, c, 1, end)
}

// --endpos ends the program with success as soon as a position beyond it has arrived: in a segment, at its end, and
// where it has passed already.
func TestEndpos(t *testing.T) {
	t.Parallel()
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	begin := c.Tick()
	rs := both(t)
	startAll(rs, c)
	middle := c.Generate(2)
	stopAt(rs, c, middle)

	middle = c.Generate(1)
	_, boundary := c.SwitchWAL()
	c.Tick()
	for _, endpos := range []pg.LSN{middle, boundary} {
		for _, r := range rs {
			r.start(c, "--endpos", endpos.String())
			r.Succeed()
		}
		verify(rs, c, 1, endpos)
	}

	for _, r := range rs { // the directory is beyond it
		before := fmt.Sprint(pg.List(t, r.dir))
		r.start(c, "--endpos", begin.String())
		r.Succeed()
		if after := fmt.Sprint(pg.List(t, r.dir)); before != after {
			t.Errorf("%s: files before %s, after %s", r.name, before, after)
		}
	}
}

// A clean shutdown of the server, a crash, and a server that is away for a while: the program comes back and has it all.
func TestServerRestart(t *testing.T) {
	eachServer(t, func(t *testing.T, version, size int) {
		c := pg.New(t, pg.Options{Version: version, SegmentSizeMB: size})
		rs := fit(t, c)
		startAll(rs, c)
		c.Generate(2 * size)
		c.Restart()
		c.Generate(size)
		for _, r := range rs {
			c.WaitStreaming(r.name)
		}
		c.Generate(size)
		c.Kill9()
		time.Sleep(6 * time.Second) // longer than a program waits before it tries again
		c.Start()
		end := c.Generate(size)
		stopAt(rs, c, end)
		verify(rs, c, 1, end)
		for _, r := range rs {
			if !strings.Contains(r.Output(), "disconnected; waiting 5 seconds to try again") {
				t.Errorf("%s does not say that it waits", r.name)
			}
		}
	})
}

// With --no-loop the end of the connection is the end of the program, and an error.
func TestNoLoop(t *testing.T) {
	t.Parallel()
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	rs := both(t)
	startAll(rs, c, "--no-loop")
	c.Generate(2)
	end := c.Tick()
	for _, r := range rs {
		c.WaitReceived(r.name, end, false)
	}
	c.Restart()
	for _, r := range rs {
		if code := r.Wait(); code != 1 {
			t.Errorf("%s: exit code %d, want 1", r.name, code)
		}
	}
	verify(rs, c, 1, end)
}

// A server that shuts down waits until its receivers have everything, the last checkpoint included.
func TestShutdownCheckpointArrives(t *testing.T) {
	t.Parallel()
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	rs := both(t)
	for _, r := range rs {
		r.run(c, "--create-slot", "--slot", r.name).Succeed()
		r.start(c, "--no-loop", "--slot", r.name)
		c.WaitStreaming(r.name)
	}
	c.Generate(2)
	c.Stop(pg.Fast)
	for _, r := range rs {
		r.Wait()
	}
	c.Start()
	shutdown := c.LSN("select redo_lsn from pg_control_checkpoint()") // the shutdown checkpoint's own record
	verify(rs, c, 1, shutdown+8)
}

// While nothing happens the program answers the server's keepalives, so wal_sender_timeout never strikes.
func TestIdleConnectionIsKeptAlive(t *testing.T) {
	t.Parallel()
	c := pg.New(t, pg.Options{SegmentSizeMB: 1, Conf: []string{"wal_sender_timeout = '6s'"}})
	rs := both(t)
	for _, r := range rs {
		r.start(c, "-s", "0", "--no-loop") // the last -s counts: no update of its own accord
		c.WaitStreaming(r.name)
	}
	senders := c.SQL("select string_agg(pid::text, ' ' order by pid) from pg_stat_replication")
	time.Sleep(20 * time.Second)
	if now := c.SQL("select string_agg(pid::text, ' ' order by pid) from pg_stat_replication"); now != senders {
		t.Errorf("WAL senders before %q, after %q", senders, now)
	}
	end := c.Generate(2)
	stopAt(rs, c, end)
	verify(rs, c, 1, end)
}

// Files get the permissions that the server's data directory has.
func TestGroupAccess(t *testing.T) {
	for _, group := range []bool{false, true} {
		t.Run(fmt.Sprint(group), func(t *testing.T) {
			t.Parallel()
			want := fs.FileMode(0o600)
			if group {
				want = 0o640
			}
			c := pg.New(t, pg.Options{SegmentSizeMB: 1, GroupAccess: group})
			rs := both(t)
			startAll(rs, c)
			end := c.Generate(2)
			stopAt(rs, c, end)
			verify(rs, c, 1, end)
			for _, r := range rs {
				entries, err := os.ReadDir(r.dir)
				if err != nil {
					t.Fatal(err)
				}
				for _, entry := range entries {
					info, err := entry.Info()
					if err != nil {
						t.Fatal(err)
					}
					if info.Mode().Perm() != want {
						t.Errorf("%s: %s has mode %v, want %v", r.name, entry.Name(), info.Mode(), want)
					}
				}
			}
		})
	}
}

// Many segments that the server has already are fetched in one go, while more are written.
func TestBacklog(t *testing.T) {
	t.Parallel()
	c := pg.New(t, pg.Options{})
	rs := both(t)
	put(rs, c.SegmentName(1, c.CurrentLSN())+".partial", nil)
	c.Generate(384)
	startAll(rs, c)
	end := c.Generate(64)
	stopAt(rs, c, end)
	verify(rs, c, 1, end)
	if n := len(pg.List(t, rs[0].dir).Complete); n < 28 {
		t.Errorf("%d segments", n)
	}
}

// Segments of 1 GiB, the largest that there are: two of them, and a stop and a start in the second.
func TestLargestSegments(t *testing.T) {
	t.Parallel()
	c := pg.New(t, pg.Options{Version: 18, SegmentSizeMB: 1024, Conf: []string{"min_wal_size = '2GB'", "max_wal_size = '4GB'"}})
	rs := []*receiver{ours(t)}
	rs[0].run(c, "--create-slot", "--slot", "ours").Succeed()
	rs[0].start(c, "--slot", "ours")
	c.WaitStreaming("ours")
	begin := c.Generate(30)
	c.SwitchWAL()
	stopAt(rs, c, c.Generate(5))
	c.WaitGone("ours")
	rs[0].start(c, "--slot", "ours")
	c.WaitStreaming("ours")
	end := c.Generate(5)
	stopAt(rs, c, end)
	verify(rs, c, 1, end)
	first(rs, c, 1, begin)
	if n := len(pg.List(t, rs[0].dir).Complete); n != 1 {
		t.Errorf("%d complete segments", n)
	}
}

// A stream that no commit waits for is not read at each of them: some arrive at a time.
func TestBetterLive(t *testing.T) {
	t.Parallel()
	c := pg.New(t, pg.Options{})
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("select pg_logical_emit_message(true, 'x', 'y');\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	rs := both(t)
	startAll(rs, c)
	const commits = 1500
	writes := commits
	for try := 0; try < 5 && writes > commits/3; try++ { // on a machine that is busy with something else the commits come more slowly
		before := make(map[*receiver]int)
		for _, r := range rs {
			before[r] = r.Writes()
		}
		pg.Run(t, pg.ClientProgram(t, "pgbench"), append(c.ConnArgs(), "-n", "-R", "500", "-t", fmt.Sprint(commits), "-f", script, "postgres")...).Succeed()
		for _, r := range rs {
			n := r.Writes() - before[r]
			t.Logf("%s: %d writes for %d commits", r.name, n, commits)
			if r.name == "ours" {
				writes = n
			}
		}
	}
	if writes > commits/3 {
		t.Errorf("%d writes for %d commits", writes, commits)
	}
	c.SwitchWAL()
	end := c.Tick()
	stopAt(rs, c, end)
	verify(rs, c, 1, end)
}
