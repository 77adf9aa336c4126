package program

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"libreceivewal/tests/pg"
)

// The scenario of pg_receivewal's own suite, on every server version: stream to a position, resume, complete the partial
// segment, from a slot's position, over a timeline switch. Up to version 15 pg_receivewal does the same beside us.
func TestScenario(t *testing.T) {
	for _, version := range []int{13, 14, 15, 16, 17, 18} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			c := pg.New(t, pg.Options{Version: version, SegmentSizeMB: 1})
			t.Run("stream", func(t *testing.T) { stream(t, c) })
			t.Run("slot", func(t *testing.T) { resumeFromSlot(t, c) })
			t.Run("timeline", func(t *testing.T) { followTimeline(t, c) })
		})
	}
}

func stream(t *testing.T, c *pg.Cluster) {
	p := newPair(t, c)
	c.SQL("create table test_table(x integer primary key)")
	c.SwitchWAL()
	first := c.SegmentName(1, c.CurrentLSN())
	end := c.LSN("select pg_current_wal_insert_lsn()")
	c.SQL("insert into test_table values (1)")

	r := p.ok("--verbose", "--endpos", end.String(), "--synchronous", "--no-loop")
	contains(t, r.stderr, "starting log streaming at", "stopped log streaming at", "not renaming \""+first+".partial\", segment is not complete")
	for _, dir := range p.dirs {
		if f := pg.List(t, dir); len(f.Partial) != 1 || f.Partial[0] != first+".partial" || len(f.Complete)+len(f.Other) != 0 {
			t.Errorf("%+v, want one partial segment %s", f, first)
		}
		c.ComparePartial(dir, 1, end)
	}

	// What was partial is completed by the next run, under its own name.
	c.SwitchWAL()
	c.Generate(3)
	end = c.LSN("select pg_current_wal_insert_lsn()")
	c.SQL("insert into test_table values (2)")
	r = p.ok("--verbose", "--endpos", end.String(), "--no-loop")
	contains(t, r.stderr, "finished segment at")
	exists(t, filepath.Join(p.dirs["ours"], first))
	p.compareFiles()
	for _, dir := range p.dirs {
		c.ComparePartial(dir, 1, end)
	}

	// A position that was passed already is success at once.
	p.ok("--verbose", "--endpos", "0/1", "--no-loop")
	p.compareFiles()
}

func resumeFromSlot(t *testing.T, c *pg.Cluster) {
	p := newPair(t, c)
	c.SQL("checkpoint")
	for _, program := range p.programs {
		c.SQL(fmt.Sprintf("select pg_create_physical_replication_slot('slot_%s', true)", program.name))
	}
	kept := c.SegmentName(1, c.LSN("select restart_lsn from pg_replication_slots where slot_name = 'slot_ours'"))
	c.SQL("insert into test_table values (5)")
	c.SwitchWAL()
	end := c.LSN("select pg_current_wal_insert_lsn()")
	c.SQL("insert into test_table values (6)")

	// READ_REPLICATION_SLOT is there from version 15 on. Before, and with --no-loop, the server refuses START_REPLICATION.
	r := p.receive("--slot", "nonexistentslot", "-n", "--no-sync", "--verbose", "--endpos", end.String())
	if r.code != 1 {
		t.Errorf("a slot that does not exist: %v", r)
	}
	contains(t, r.stderr, `replication slot "nonexistentslot" does not exist`, "\npg_receivewal: error: disconnected\n")
	if c.Version >= 15 {
		contains(t, r.stderr, `pg_receivewal: error: replication slot "nonexistentslot" does not exist`)
	}

	p.ok("--slot", slot, "-n", "--no-sync", "--verbose", "--endpos", end.String())
	if c.Version >= 15 {
		exists(t, filepath.Join(p.dirs["ours"], kept))
		p.compareFiles()
	}
	// The server may recycle what we have flushed, and nothing more. pg_receivewal does not report the last flush before it ends.
	position := func(name string) pg.LSN {
		return c.LSN(fmt.Sprintf("select restart_lsn from pg_replication_slots where slot_name = 'slot_%s'", name))
	}
	if at := position("ours"); at < end || at > c.CurrentLSN() || len(p.programs) == 2 && at < position("theirs") {
		t.Errorf("the slot is at %s, the end was at %s", at, end)
	}
	for _, program := range p.programs {
		c.SQL(fmt.Sprintf("select pg_drop_replication_slot('slot_%s')", program.name))
	}
}

func followTimeline(t *testing.T, c *pg.Cluster) {
	s := c.Standby("standby")
	p := newPair(t, s)
	for _, program := range p.programs {
		s.SQL(fmt.Sprintf("select pg_create_physical_replication_slot('slot_%s', true)", program.name))
	}
	s.WaitReplayed(c.Tick())
	before := c.SegmentName(1, s.LSN("select restart_lsn from pg_replication_slots where slot_name = 'slot_ours'"))
	// pg_receivewal of a server older than 15 starts at the server's position, which lies on the new timeline: have it
	// start where the others do.
	for _, dir := range p.dirs {
		if err := os.WriteFile(filepath.Join(dir, before+".partial"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.Promote()
	after := s.SegmentName(2, s.CurrentLSN())
	s.SQL("insert into test_table values (7)")
	s.SwitchWAL()
	end := s.LSN("select pg_current_wal_insert_lsn()")
	s.SQL("insert into test_table values (8)")

	r := p.ok("--verbose", "--endpos", end.String(), "--slot", slot, "--no-sync", "-n")
	contains(t, r.stderr, "switched to timeline 2 at")
	exists(t, filepath.Join(p.dirs["ours"], after))
	exists(t, filepath.Join(p.dirs["ours"], "00000002.history"))
	p.compareFiles()
	if f := pg.List(t, p.dirs["ours"]); len(f.Partial) != 2 { // the old timeline's last segment, and the one that is being filled
		t.Errorf("partial segments %v, want the old timeline's last and the newest", f.Partial)
	}
}

// Slots are created without keeping WAL, and dropped; --if-not-exists forgives only that the slot is there.
func TestSlotActions(t *testing.T) {
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	p := newPair(t, c)
	slots := func() string {
		return c.SQL("select slot_name, slot_type, temporary, coalesce(restart_lsn::text, 'none') from pg_replication_slots order by 1")
	}
	if r := p.act("--slot", slot, "--create-slot"); r.code != 0 || r.stderr != "" {
		t.Errorf("create: %v", r)
	}
	if got, want := slots(), "slot_ours|physical|f|none\nslot_theirs|physical|f|none"; got != want {
		t.Errorf("slots are\n%s, want\n%s", got, want)
	}
	if r := p.act("--slot", slot, "--create-slot", "--if-not-exists"); r.code != 0 {
		t.Errorf("create again, if not exists: %v", r)
	}
	if r := p.act("--slot", slot, "--create-slot"); r.code != 1 {
		t.Errorf("create again: %v", r)
	}
	if r := p.act("--slot", slot, "--drop-slot", "--verbose"); r.code != 0 || r.stderr != "pg_receivewal: dropping replication slot \"SLOT\"\n" {
		t.Errorf("drop: %v", r)
	}
	if r := p.act("--slot", slot, "--drop-slot"); r.code != 1 {
		t.Errorf("drop again: %v", r)
	}
	if got := slots(); got != "" {
		t.Errorf("slots are left: %s", got)
	}
	if r := p.act("--slot", slot, "--create-slot", "--if-not-exists", "-v"); r.code != 0 || r.stderr != "pg_receivewal: creating replication slot \"SLOT\"\n" {
		t.Errorf("create, if not exists: %v", r)
	}
	// A directory is not looked at.
	p.act("-D", "/nonexistent", "--slot", slot, "--drop-slot")
	if got := slots(); got != "" {
		t.Errorf("slots are left: %s", got)
	}
	// The server would refuse these too, all but the long one, which it cuts off.
	for _, name := range []string{"", "No Such Name", "Upper", strings.Repeat("x", 64), "a-b", "x\"y"} {
		for _, action := range [][]string{{"--create-slot"}, {"--drop-slot"}, {"-n", "-D", t.TempDir()}} {
			r := ours(t).run(t, append(append(c.ConnArgs(), "--slot", name), action...)...)
			want := fmt.Sprintf("pg_receivewal: error: replication slot name \"%s\" is not valid\npg_receivewal: hint: ", name)
			if r.code != 1 || !strings.HasPrefix(r.stderr, want) {
				t.Errorf("%q %q: %v", name, action, r)
			}
		}
	}
}

// Files are made 0600, or 0640 where the server's data directory allows its group access, whatever the umask.
func TestPermissions(t *testing.T) {
	for _, group := range []bool{false, true} {
		want := "-rw-------"
		if group {
			want = "-rw-r-----"
		}
		c := pg.New(t, pg.Options{SegmentSizeMB: 1, GroupAccess: group})
		for _, umask := range []string{"0", "027", "077"} {
			p := newPair(t, c)
			first := c.SegmentName(1, c.CurrentLSN()) + ".partial"
			end := c.Generate(2)
			for _, dir := range p.dirs {
				if err := os.WriteFile(filepath.Join(dir, first), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for _, program := range p.programs {
				args := append([]string{"-c", "umask " + umask + `; exec "$0" "$@"`, program.path, "-D", p.dirs[program.name], "-n", "-E", (end - 1).String()}, c.ConnArgs()...)
				shell := exec.Command("/bin/sh", args...)
				if r := startCommand(t, shell).wait(); r.code != 0 {
					t.Fatal(r)
				}
				lines := strings.Split(strings.TrimSpace(modes(t, p.dirs[program.name])), "\n")
				if len(lines) < 3 {
					t.Errorf("%s received %q only", program.name, lines)
				}
				for _, line := range lines[1:] { // the first is the file that we made
					if !strings.HasPrefix(line, want) {
						t.Errorf("%s, group access %v, umask %s: %s, want %s", program.name, group, umask, line, want)
					}
				}
			}
			p.compareFiles()
		}
	}
}

// The directory decides where to start: a zero-length .partial sets the position, a complete segment of the wrong size is
// skipped with a warning, and what is no segment is left alone.
func TestStartInDirectory(t *testing.T) {
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	end := c.Generate(5)
	for what, files := range map[string]map[string]string{
		"zero-length partial":   {c.SegmentName(1, end-3<<20) + ".partial": ""},
		"wrong size":            {c.SegmentName(1, end-3<<20) + ".partial": "", c.SegmentName(1, end-1<<20): "short"},
		"other files":           {c.SegmentName(1, end-3<<20) + ".partial": "", "README": "text", "00000001.history": "none", "000000010000000000000001.bak": ""},
		"nothing but strangers": {"README": "text"},
	} {
		t.Run(what, func(t *testing.T) {
			p := newPair(t, c)
			for _, dir := range p.dirs {
				for name, text := range files {
					if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			r := p.ok("--verbose", "--no-loop", "--endpos", (end - 1).String())
			if what == "wrong size" {
				contains(t, r.stderr, "warning: segment file ", "has incorrect size 5, skipping")
			}
			if got, want := modes(t, p.dirs["ours"]), modes(t, p.dirs["theirs"]); got != want {
				t.Errorf("files are\n%s, want\n%s", got, want)
			}
			for name, text := range files {
				if b, err := os.ReadFile(filepath.Join(p.dirs["ours"], name)); strings.HasSuffix(name, "partial") == false && text != "short" && (err != nil || string(b) != text) {
					t.Errorf("%s was touched: %q, %v", name, b, err)
				}
			}
		})
	}
}

// --synchronous makes a synchronous standby of the receiver: commits return at once. The application is called pg_receivewal.
func TestSynchronous(t *testing.T) {
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	c.Configure("synchronous_standby_names = 'pg_receivewal'")
	for _, program := range both(t) {
		t.Run(program.name, func(t *testing.T) {
			args := append([]string{"-D", t.TempDir(), "--synchronous", "-s", "0"}, c.ConnArgs()...)
			receiver := program.start(t, nil, args...)
			c.WaitStreaming("pg_receivewal")
			c.WaitFor("a synchronous standby", func() bool {
				return c.SQL("select count(*) from pg_stat_replication where sync_state = 'sync' and flush_lsn is not null") == "1"
			})
			began := time.Now()
			for range 20 {
				c.Tick()
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("20 commits took %v", took)
			}
			receiver.signal(syscall.SIGINT)
			if r := receiver.wait(); r.code != 0 {
				t.Error(r)
			}
			c.WaitGone("pg_receivewal")
		})
	}
}

// Without a slot and without --synchronous no flush position is reported; with a slot it is.
func TestFlushPosition(t *testing.T) {
	t.Parallel()
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	p := newPair(t, c)
	p.act("--slot", slot, "--create-slot")
	for _, program := range p.programs {
		for _, withSlot := range []bool{false, true} {
			args := append([]string{"-D", t.TempDir(), "-s", "1"}, c.ConnArgs()...)
			if withSlot {
				args = append(args, p.args(program, []string{"--slot", slot})...)
			}
			receiver := program.start(t, nil, args...)
			c.WaitStreaming("pg_receivewal")
			end := c.Tick()
			c.WaitReceived("pg_receivewal", end, false)
			if withSlot {
				// Without --synchronous, a flush comes with the end of a segment.
				_, end := c.SwitchWAL()
				c.WaitReceived("pg_receivewal", end, true)
			} else if got := c.SQL("select coalesce(flush_lsn::text, 'none') from pg_stat_replication"); got != "none" {
				t.Errorf("%s reports %s as flushed", program.name, got)
			}
			if got := c.SQL("select coalesce(replay_lsn::text, 'none') from pg_stat_replication"); got != "none" {
				t.Errorf("%s reports %s as applied", program.name, got)
			}
			receiver.signal(syscall.SIGINT)
			if r := receiver.wait(); r.code != 0 {
				t.Error(r)
			}
			c.WaitGone("pg_receivewal")
		}
	}
}

// SIGINT and, as from pg_receivewal 16 on, SIGTERM end it cleanly: exit code 0, and with --verbose a message.
func TestSignals(t *testing.T) {
	t.Parallel()
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		p := newPair(t, c)
		if sig == syscall.SIGTERM {
			p.programs = p.programs[1:]
		}
		var results []result
		for _, program := range p.programs {
			receiver := program.start(t, nil, append([]string{"-D", p.dirs[program.name], "-v", "-s", "1"}, c.ConnArgs()...)...)
			c.WaitStreaming("pg_receivewal")
			c.WaitReceived("pg_receivewal", c.Tick(), false)
			receiver.signal(sig)
			results = append(results, p.normal(program, receiver.wait()))
			c.WaitGone("pg_receivewal")
		}
		r := p.compare([]string{sig.String()}, results)
		if r.code != 0 {
			t.Errorf("%v: %v", sig, r)
		}
		contains(t, r.stderr, "pg_receivewal: received interrupt signal, exiting\n")
	}
	// Any other signal has its default action.
	receiver := ours(t).start(t, nil, append([]string{"-D", t.TempDir()}, c.ConnArgs()...)...)
	c.WaitStreaming("pg_receivewal")
	receiver.signal(syscall.SIGHUP)
	if r := receiver.wait(); r.code != -1 {
		t.Errorf("SIGHUP: %v", r)
	}
}

// While a clean stop waits for the server, a second signal ends the program on the spot.
func TestSecondSignal(t *testing.T) {
	t.Parallel()
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	receiver := ours(t).start(t, nil, append([]string{"-D", t.TempDir(), "-v"}, c.ConnArgs()...)...)
	c.WaitStreaming("pg_receivewal")
	var sender int
	fmt.Sscan(c.SQL("select pid from pg_stat_replication"), &sender)
	if sender <= 1 {
		t.Fatalf("no WAL sender: %d", sender)
	}
	syscall.Kill(sender, syscall.SIGSTOP)
	defer syscall.Kill(sender, syscall.SIGCONT)
	receiver.signal(syscall.SIGINT)
	receiver.signal(syscall.SIGINT) // the same request: timeout(1) signals a program, and then its group
	time.Sleep(5 * time.Second)     // the stop waits for 10
	select {
	case <-receiver.done:
		t.Fatal("the stop does not wait for the server")
	default:
	}
	receiver.signal(syscall.SIGINT)
	r := receiver.wait()
	if status := receiver.cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGINT {
		t.Errorf("%v, want the end by SIGINT", r)
	}
}

// When the server goes away: with --no-loop the end, with exit code 1; else another try every five seconds, until a signal comes.
func TestLostConnection(t *testing.T) {
	for name, mode := range map[string]syscall.Signal{"shutdown": pg.Fast, "crash": pg.Immediate} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := pg.New(t, pg.Options{SegmentSizeMB: 1})
			p := newPair(t, c)
			for _, program := range p.programs {
				once := program.start(t, nil, append([]string{"-D", t.TempDir(), "-n"}, c.ConnArgs()...)...)
				again := program.start(t, nil, append([]string{"-D", p.dirs[program.name]}, c.ConnArgs()...)...)
				c.WaitFor("both to stream", func() bool { return c.SQL("select count(*) from pg_stat_replication where state = 'streaming'") == "2" })
				began := time.Now() // nothing is lost yet: the second try comes 5 seconds from here or later
				c.Stop(mode)
				r := once.wait()
				lines := strings.Split(strings.TrimSpace(r.stderr), "\n")
				if r.code != 1 || len(lines) < 2 || lines[len(lines)-1] != "pg_receivewal: error: disconnected" || !strings.Contains(r.stderr, "pg_receivewal: error: ") {
					t.Errorf("%s: %v", program.name, r)
				}
				again.waitStderr("pg_receivewal: disconnected; waiting 5 seconds to try again\n")
				c.WaitFor("a second try", func() bool { return strings.Count(again.stderr.String(), "waiting 5 seconds") == 2 })
				if took := time.Since(began); took < 4900*time.Millisecond {
					t.Errorf("%s waited %v, not 5 seconds", program.name, took)
				}
				c.Start()
				c.WaitStreaming("pg_receivewal")
				complete, _ := c.SwitchWAL()
				c.WaitFor(complete, func() bool {
					_, err := os.Stat(filepath.Join(p.dirs[program.name], complete))
					return err == nil
				})
				again.signal(syscall.SIGINT)
				if r := again.wait(); r.code != 0 {
					t.Errorf("%s: %v", program.name, r)
				}
				c.WaitGone("pg_receivewal")
			}
			c.CompareWithServer(p.dirs["ours"])
			c.CheckNoHole(p.dirs["ours"])
		})
	}
}

// A signal ends the wait between two tries at once. Where the first connection fails there is no second try.
func TestConnectionRefused(t *testing.T) {
	t.Parallel()
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	waiting := ours(t).start(t, nil, append([]string{"-D", t.TempDir(), "-v"}, c.ConnArgs()...)...)
	c.WaitStreaming("pg_receivewal")
	c.Stop(pg.Fast)
	waiting.waitStderr("waiting 5 seconds")
	began := time.Now()
	waiting.signal(syscall.SIGINT)
	r := waiting.wait()
	if took := time.Since(began); r.code != 0 || took > 4*time.Second || !strings.HasSuffix(r.stderr, "pg_receivewal: received interrupt signal, exiting\n") {
		t.Errorf("after %v: %v", took, r)
	}
	for _, args := range [][]string{{}, {"-n"}, {"--slot", "x", "--create-slot"}, {"--slot", "x", "--drop-slot"}} {
		if r := same(t, append(append([]string{"-D", t.TempDir()}, c.ConnArgs()...), args...)...); r.code != 1 {
			t.Errorf("%q: %v", args, r)
		}
	}
}

// -s sets how often the server hears from us.
func TestStatusInterval(t *testing.T) {
	t.Parallel()
	c := pg.New(t, pg.Options{SegmentSizeMB: 1, Conf: []string{"wal_sender_timeout = 0"}})
	for _, program := range both(t) {
		for interval, wanted := range map[string]bool{"1": true, "0": false} {
			receiver := program.start(t, nil, append([]string{"-D", t.TempDir(), "-s", interval}, c.ConnArgs()...)...)
			c.WaitStreaming("pg_receivewal")
			time.Sleep(1500 * time.Millisecond)
			before := c.SQL("select reply_time from pg_stat_replication")
			time.Sleep(2500 * time.Millisecond)
			after := c.SQL("select reply_time from pg_stat_replication")
			if (before != after) != wanted {
				t.Errorf("%s -s %s: replies at %q and %q", program.name, interval, before, after)
			}
			receiver.signal(syscall.SIGINT)
			receiver.wait()
			c.WaitGone("pg_receivewal")
		}
	}
}

// The example of the README receives three segments and goes on with its connection.
func TestEmbed(t *testing.T) {
	root, err := pg.Root()
	if err != nil {
		t.Fatal(err)
	}
	include, err := exec.Command("pg_config", "--includedir").Output()
	if err != nil {
		t.Fatal(err)
	}
	embed := filepath.Join(t.TempDir(), "embed")
	lib := filepath.Join(root, "build", "lib")
	out, err := exec.Command("gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-I"+filepath.Join(root, "include"), "-I"+strings.TrimSpace(string(include)),
		filepath.Join(root, "examples", "embed.c"), "-o", embed, "-L"+lib, "-Wl,-rpath,"+lib, "-lreceivewal", "-lpq").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	dir := t.TempDir()
	p := pg.Run(t, embed, c.ConnString("application_name=embed"), dir)
	c.WaitStreaming("embed")
	c.Generate(5)
	p.Succeed()
	contains(t, p.Output(), "is complete and safe on disk", "the server is at 0/")
	// What has arrived before the stop is completed too.
	if f := pg.List(t, dir); len(f.Complete) < 3 || len(f.Complete) != strings.Count(p.Output(), "is complete") {
		t.Errorf("%+v, want 3 complete segments or more", f)
	}
	c.CompareWithServer(dir)
}

// With --compress both make files of the same names that decompress to the same, and say the same. Ours also knows zstd.
func TestCompressedFiles(t *testing.T) {
	for spec, method := range map[string]struct{ suffix, tool string }{"gzip": {".gz", "gzip"}, "1": {".gz", "gzip"}, "gzip:level=9": {".gz", "gzip"},
		"lz4": {".lz4", "lz4"}, "lz4:3": {".lz4", "lz4"}, "zstd": {".zst", "zstd"}, "zstd:level=3": {".zst", "zstd"}} {
		t.Run(spec, func(t *testing.T) {
			c := pg.New(t, pg.Options{SegmentSizeMB: 1})
			p := newPair(t, c)
			if method.tool == "zstd" {
				p.programs = p.programs[1:]
			}
			first := c.SegmentName(1, c.CurrentLSN())
			for _, program := range p.programs {
				if err := os.WriteFile(filepath.Join(p.dirs[program.name], first+method.suffix+".partial"), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 { // the second run goes on in the partial one
				c.Generate(2)
				end := c.Tick()
				c.Tick()
				p.ok("--verbose", "--endpos", end.String(), "--no-loop", "-Z", spec)
				names := map[string][]string{}
				for _, program := range p.programs {
					entries, err := os.ReadDir(p.dirs[program.name])
					if err != nil {
						t.Fatal(err)
					}
					for _, e := range entries {
						names[program.name] = append(names[program.name], e.Name())
						base, compressed := strings.CutSuffix(e.Name(), method.suffix)
						if !compressed {
							continue
						}
						path := filepath.Join(p.dirs[program.name], e.Name())
						if out, err := exec.Command(method.tool, "-t", path).CombinedOutput(); err != nil {
							t.Errorf("%s -t %s: %v, %s", method.tool, path, err, out)
						}
						got, err := exec.Command(method.tool, "-dc", path).Output()
						want, wantErr := os.ReadFile(filepath.Join(c.WALDir(), base))
						if err != nil || wantErr != nil || string(got) != string(want) {
							t.Errorf("%s of %s is not the server's: %v, %v", e.Name(), program.name, err, wantErr)
						}
					}
				}
				if theirs := names["theirs"]; len(names["ours"]) < 3 || theirs != nil && strings.Join(names["ours"], " ") != strings.Join(theirs, " ") {
					t.Errorf("ours has %v, pg_receivewal %v", names["ours"], theirs)
				}
			}
		})
	}
}

// --restore ends with 0, 1 or 255, as PostgreSQL has to know it, whatever is wrong with the command line.
func TestRestoreExitCodes(t *testing.T) {
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	dir, target := t.TempDir(), filepath.Join(t.TempDir(), "x")
	end := c.Generate(2)
	c.Tick()
	ours(t).run(t, append([]string{"-D", dir, "-Z", "gzip", "--endpos", end.String(), "--no-loop"}, c.ConnArgs()...)...)
	first := c.SegmentName(1, end-1)
	for what, test := range map[string]struct {
		args []string
		code int
		says string
	}{
		"a segment":         {[]string{"-D", dir, first, target}, 0, ""},
		"none":              {[]string{"-D", dir, "0000000100000000000000FE", target}, 1, ""},
		"none, and say so":  {[]string{"-v", "-D", dir, "0000000100000000000000FE", target}, 1, "has nothing of segment"},
		"no directory":      {[]string{first, target}, 255, "no target directory specified"},
		"a wrong directory": {[]string{"-D", "/nonexistent", first, target}, 255, "/nonexistent"},
		"a wrong target":    {[]string{"-D", dir, first, "/nonexistent/x"}, 255, "/nonexistent"},
		"no target":         {[]string{"-D", dir, first}, 255, "--restore needs the name of a file"},
		"too much":          {[]string{"-D", dir, first, target, "more"}, 255, "too many command-line arguments"},
		"a wrong option":    {[]string{"-D", dir, "--nonsense", first, target}, 255, "--nonsense"},
		"with --check":      {[]string{"-D", dir, "--check", first, target}, 255, "cannot use --restore together with --check"},
	} {
		r := ours(t).run(t, append([]string{"--restore"}, test.args...)...)
		if r.code != test.code || !strings.Contains(r.stderr, test.says) || test.says == "" && r.stderr != "" {
			t.Errorf("%s: %v", what, r)
		}
	}
	if r := ours(t).run(t, "-D", dir, first, target); r.code != 1 {
		t.Errorf("names without --restore: %v", r)
	}
}
