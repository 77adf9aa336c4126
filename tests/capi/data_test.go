package capi_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"libreceivewal/tests/pg"
)

// lastLSN is the LSN in the last line of the host that begins with a word; 0: there is none.
func lastLSN(t *testing.T, p *pg.Program, word string) pg.LSN {
	t.Helper()
	lines := regexp.MustCompile("(?m)^"+word+" ([0-9A-F]+/[0-9A-F]+)$").FindAllStringSubmatch(p.Output(), -1)
	if len(lines) == 0 {
		return 0
	}
	return must(pg.ParseLSN(lines[len(lines)-1][1]))
}

// compareData fails unless the host was told the same bytes that are in the archive and on the server.
func compareData(t *testing.T, c *pg.Cluster, archive, data string, end pg.LSN) {
	t.Helper()
	complete := pg.List(t, archive).Complete
	for _, name := range complete {
		want := must(os.ReadFile(filepath.Join(archive, name)))
		if got := must(os.ReadFile(filepath.Join(data, name))); !bytes.Equal(got, want) {
			t.Errorf("the data of %s, %d bytes, is not the archive's", name, len(got))
		}
	}
	if len(complete) == 0 || len(c.CompareWithServer(archive).Equal) != len(complete) {
		t.Errorf("%d segments in the archive", len(complete))
	}
	name, n := c.SegmentName(1, end), uint64(end)%c.SegmentSize
	want := must(os.ReadFile(filepath.Join(archive, name+".partial")))
	if got := must(os.ReadFile(filepath.Join(data, name))); uint64(len(got)) < n || !bytes.Equal(got[:n], want[:n]) {
		t.Errorf("the data of %s, %d bytes, is not the archive's", name, len(got))
	}
}

// TestData: events.data brings every byte once and in order, with and without TLS, however the host waits; after a lost
// connection it begins anew at a segment.
func TestData(t *testing.T) {
	host := client(t)
	c := pg.New(t, pg.Options{SegmentSizeMB: 1, TLS: true})
	type run struct {
		*pg.Program
		name, dir, data string
	}
	var runs []run
	for _, loop := range []string{"block", "wait", "epoll"} {
		for kind, conninfo := range map[string]string{"plain": c.ConnString(), "tls": verified(c)} {
			r := run{nil, loop + kind, t.TempDir(), t.TempDir()}
			r.Program = pg.Run(t, host, conninfo+" application_name="+r.name, r.dir, "loop="+loop, "data="+r.data, "reconnect=0")
			runs = append(runs, r)
		}
	}
	for _, r := range runs {
		c.WaitStreaming(r.name)
	}
	end := c.Generate(20)
	for _, r := range runs {
		c.WaitReceived(r.name, end, false)
	}
	c.Restart()
	end = c.Generate(3)
	for _, r := range runs {
		c.WaitReceived(r.name, end, false)
		pg.WaitFor(t, r.name+" to be told", func() bool { return lastLSN(t, r.Program, "has") >= end })
		r.Stop()
		compareData(t, c, r.dir, r.data, end)
		begins := regexp.MustCompile(`(?m)^begins (.*)$`).FindAllStringSubmatch(r.Output(), -1)
		if len(begins) != 2 { // the start, and the new connection
			t.Errorf("%s: began %d times: %v", r.name, len(begins), begins)
		}
		for _, b := range begins {
			if lsn := must(pg.ParseLSN(b[1])); uint64(lsn)%c.SegmentSize != 0 {
				t.Errorf("%s: began at %s", r.name, lsn)
			}
		}
	}
}

// kept is how far the host has taken data, as its files tell; 0: it has none.
func kept(t *testing.T, c *pg.Cluster, data string) pg.LSN {
	t.Helper()
	names := pg.List(t, data).Complete
	if len(names) == 0 {
		return 0
	}
	name := names[len(names)-1]
	var high, low uint64
	must(fmt.Sscanf(name[8:], "%08X%08X", &high, &low))
	return pg.LSN(high<<32 + low*c.SegmentSize + uint64(must(os.Stat(filepath.Join(data, name))).Size()))
}

// TestDataHoldsBack: what a slow host has not taken is not reported as flushed; some MiB wait for it, no more, and the connection
// does not suffer from it, plain or over TLS.
func TestDataHoldsBack(t *testing.T) {
	host := client(t)
	for _, kind := range []string{"plain", "tls"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			c := pg.New(t, pg.Options{SegmentSizeMB: 1, TLS: true, Conf: []string{"wal_sender_timeout = 6s"}})
			conninfo := c.ConnString("application_name=slow")
			if kind == "tls" {
				conninfo = verified(c) + " application_name=slow"
			}
			c.SQL("select pg_create_physical_replication_slot('slow', true)")
			dir, data := t.TempDir(), t.TempDir()
			p := pg.Run(t, host, conninfo, dir, "slot=slow", "synchronous=1", "data="+data, "pause=80")
			c.WaitStreaming("slow")
			end := c.Generate(24)
			const ahead = 8<<20 + 256<<10 // and what was being received
			looked := 0
			for {
				at := strings.Split(c.SQL("select coalesce(flush_lsn, '0/0'), coalesce(write_lsn, '0/0') from pg_stat_replication"), "|")
				if len(at) != 2 {
					t.Fatalf("the connection is lost: %s", p.Output())
				}
				flushed, written := must(pg.ParseLSN(at[0])), must(pg.ParseLSN(at[1]))
				taken := kept(t, c, data)
				if flushed > taken && lastLSN(t, p, "begins") != flushed {
					t.Errorf("%s is reported flushed, but only %s was taken", flushed, taken)
				}
				if taken > 0 && taken < end && written > taken+ahead {
					t.Errorf("%s is written, but only %s was taken", written, taken)
				}
				if flushed >= end {
					break
				}
				if taken > 0 && flushed < end {
					looked++
				}
				time.Sleep(20 * time.Millisecond)
			}
			if looked < 10 {
				t.Errorf("looked only %d times while the host was behind", looked)
			}
			p.Stop()
			compareData(t, c, dir, data, end)
		})
	}
}

// TestDataRefused: a non-zero answer stops cleanly, no data comes after it, and it is not reported.
func TestDataRefused(t *testing.T) {
	host := client(t)
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	c.SQL("select pg_create_physical_replication_slot('s', true)")
	p := pg.Run(t, host, c.ConnString("application_name=s"), t.TempDir(), "slot=s", "data="+t.TempDir(), "refuse=3000000")
	c.WaitStreaming("s")
	c.Generate(20)
	p.Succeed()
	wantSaid(t, p, "status 70 .*", "usable 1", "sql [0-9]+")
	refused := lastLSN(t, p, "refused")
	if refused == 0 || strings.Count(p.Output(), "\nrefused ") != 1 || lastLSN(t, p, "has") != refused {
		t.Errorf("refused at %s, after %s", refused, lastLSN(t, p, "has"))
	}
	c.WaitGone("s")
	if at := c.LSN("select restart_lsn from pg_replication_slots"); at > refused {
		t.Errorf("the slot is at %s, but the host has refused what begins at %s", at, refused)
	}
}

// fifo makes a FIFO, and gives a function that writes a line into it.
func fifo(t *testing.T) (path string, write func(line any)) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f := must(os.OpenFile(path, os.O_RDWR, 0)) // read too: opening waits for nobody
	t.Cleanup(func() { f.Close() })
	return path, func(line any) {
		t.Helper()
		if _, err := fmt.Fprintln(f, line); err != nil {
			t.Fatal(err)
		}
	}
}

// TestConfirm: a commit that waits for the host returns once the host has confirmed it, and not before; the slot stays at what
// was confirmed; and a stop does not wait for what was not.
func TestConfirm(t *testing.T) {
	host := client(t)
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	c.Still()
	c.SQL("create table t(i int)")
	c.SQL("select pg_create_physical_replication_slot('s', true)")
	path, confirm := fifo(t)
	p := pg.Run(t, host, c.ConnString("application_name=s"), t.TempDir(), "slot=s", "synchronous=1", "confirm="+path)
	c.WaitStreaming("s")
	begin := c.CurrentLSN()
	c.WaitReceived("s", begin, false)
	confirm(begin)
	waitSaid(t, p, "confirm "+begin.String()+" 0 ")
	c.Configure("synchronous_standby_names = 's'")
	c.WaitFor("the synchronous standby", func() bool { return c.SQL("select sync_state from pg_stat_replication") == "sync" })
	waiting := func() bool {
		return c.SQL("select count(*) from pg_stat_activity where wait_event = 'SyncRep'") == "1"
	}
	for i := range 3 {
		done := make(chan error, 1)
		go func() { _, err := c.TrySQL(fmt.Sprintf("insert into t values (%d)", i)); done <- err }()
		c.WaitFor("the commit to wait", waiting)
		end := c.CurrentLSN()
		c.WaitReceived("s", end, false)
		confirm(end - 1) // all but the last byte
		waitSaid(t, p, "confirm "+(end-1).String()+" 0 ")
		c.WaitReceived("s", end-1, true)
		if !waiting() {
			t.Error("a commit has returned that was not confirmed")
		}
		confirm(end)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	end := c.LSN("select flush_lsn from pg_stat_replication")
	confirm("FFFFFFFF/0")
	waitSaid(t, p, `confirm FFFFFFFF/0 10 receivewal_confirm: cannot confirm WAL up to FFFFFFFF/0: only that up to .* was received`)
	c.Configure("synchronous_standby_names = ''")
	c.WaitReceived("s", c.Generate(3), false)
	p.Stop()
	wantSaid(t, p, "status 70 stopped", "usable 1", "sql [0-9]+")
	c.WaitGone("s")
	if at := c.LSN("select restart_lsn from pg_replication_slots"); at != end {
		t.Errorf("the slot is at %s, confirmed was %s", at, end)
	}
}

// TestConfirmInData: a host that confirms in its data callback holds nothing up: it never waits for itself.
func TestConfirmInData(t *testing.T) {
	host := client(t)
	c := pg.New(t, pg.Options{SegmentSizeMB: 1, TLS: true})
	c.SQL("create table t(i int)")
	for name, conninfo := range map[string]string{"plain": c.ConnString("application_name=s"), "tls": verified(c) + " application_name=s"} {
		t.Run(name, func(t *testing.T) {
			p := pg.Run(t, host, conninfo, t.TempDir(), "synchronous=1", "confirm=data", "data="+t.TempDir())
			c.WaitStreaming("s")
			c.Tick()
			c.WaitFor("a confirmed position", func() bool { return c.SQL("select flush_lsn from pg_stat_replication where flush_lsn > '0/0'") != "" })
			c.Configure("synchronous_standby_names = 's'")
			c.WaitFor("the synchronous standby", func() bool { return c.SQL("select sync_state from pg_stat_replication") == "sync" })
			for i := range 50 {
				c.SQL(fmt.Sprintf("insert into t values (%d)", i))
			}
			c.Configure("synchronous_standby_names = ''")
			p.Stop()
			c.WaitGone("s")
		})
	}
}

// TestConfirmShutdown: a server that is shut down waits until the host has confirmed all, whether it had confirmed something
// before or not, and ends then. The connection lives for as long as that takes.
func TestConfirmShutdown(t *testing.T) {
	host := client(t)
	for _, before := range []bool{false, true} {
		t.Run(fmt.Sprint(before), func(t *testing.T) {
			t.Parallel()
			c := pg.New(t, pg.Options{SegmentSizeMB: 1, Conf: []string{"wal_sender_timeout = 6s", "log_checkpoints = on"}})
			c.SQL("select pg_create_physical_replication_slot('s', true)")
			path, confirm := fifo(t)
			dir := t.TempDir()
			p := pg.Run(t, host, c.ConnString("application_name=s"), dir, "slot=s", "confirm="+path)
			c.WaitStreaming("s")
			end := c.Generate(2)
			c.WaitReceived("s", end, false)
			if before {
				confirm(end)
				waitSaid(t, p, "confirm "+end.String()+" 0 ")
			}
			stopped := make(chan struct{})
			go func() { c.Stop(pg.Fast); close(stopped) }()
			pg.WaitFor(t, "the checkpoint of the shutdown", func() bool {
				_, after, found := strings.Cut(c.Log(), "received fast shutdown request")
				return found && strings.Contains(after, "checkpoint complete")
			})
			select {
			case <-stopped:
				t.Fatalf("the server has ended, although nothing of the end was confirmed:\n%s", p.Output())
			case <-time.After(9 * time.Second): // longer than it would wait for a receiver that is silent
			}
			confirm("all") // with the checkpoint of the shutdown, which came last
			waitSaid(t, p, "confirm all 0 ")
			<-stopped
			if code := p.Wait(); code != 44 {
				t.Errorf("exit code %d: %s", code, p.Output())
			}
			if strings.Contains(c.Log(), "terminating walsender process due to replication timeout") {
				t.Error("the connection was lost")
			}
		})
	}
}
