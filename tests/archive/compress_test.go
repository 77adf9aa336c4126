package archive

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"libreceivewal/segment"
	"libreceivewal/tests/pg"
)

// methods are the ways to compress, by the programs that everybody has for them.
var methods = map[string]struct{ suffix, tool string }{
	"gzip": {".gz", "gzip"}, "lz4": {".lz4", "lz4"}, "zstd": {".zst", "zstd"},
}

// unpack makes a directory as it would be without compression. It uses the usual programs: a complete file must satisfy them, and of a
// .partial they give as much as they can. Of several .partial files of a segment the longest counts.
func unpack(t testing.TB, dir string, size uint64) string {
	t.Helper()
	plain := t.TempDir()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	longest := map[string]int{}
	for _, entry := range entries {
		if entry.Name() == ".receivewal" {
			continue // a file was about to take the name of another; the next start removes what it left here
		}
		name, partial := strings.CutSuffix(entry.Name(), ".partial")
		data, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range methods {
			base, compressed := strings.CutSuffix(name, m.suffix)
			if !compressed {
				continue
			}
			name = base
			tool := exec.Command(m.tool, "-dc")
			if partial && m.tool == "zstd" {
				data = append(data, make([]byte, 3000)...) // docs/restore.md says why
			}
			tool.Stdin = bytes.NewReader(data)
			var said strings.Builder
			tool.Stderr = &said
			unpacked, err := tool.Output()
			if !partial && (err != nil || uint64(len(unpacked)) != size) {
				t.Errorf("%s %s: %d bytes, %v, %s", m.tool, entry.Name(), len(unpacked), err, said.String())
			}
			data = unpacked
			break
		}
		to := filepath.Join(plain, name)
		if partial {
			if n, twice := longest[name]; twice && n >= len(data) {
				continue
			}
			longest[name] = len(data)
			if len(data) > 0 { // else one that was made to set the start
				data = append(data, make([]byte, max(0, int(size)-len(data)))...)
			}
			to += ".partial"
		}
		if err := os.WriteFile(to, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return plain
}

// restoreCommand restores by our program whatever form a segment has.
const restoreCommand = "PROGRAMS/bin/receivewal --restore -D WAL %f %p"

// receivewal are the files of our program.
func receivewal(t testing.TB) []string {
	root, err := pg.Root()
	if err != nil {
		t.Fatal(err)
	}
	build := filepath.Join(root, "build")
	return []string{filepath.Join(build, "bin", "receivewal"), filepath.Join(build, "lib", "libreceivewal.so.1"),
		filepath.Join(build, "lib", "libreceivewal-core.so.1")}
}

// A receiver that compresses is killed with -9 at any moment, and comes back, with the same method or another one. After each kill complete
// files are whole and the server's, and what it was told to be flushed can be decompressed, by the usual programs.
func TestKilledCompressing(t *testing.T) {
	for _, test := range []struct {
		methods   []string
		segmentMB int
		args      []string
	}{
		{[]string{"gzip"}, 1, nil},
		{[]string{"lz4:1"}, 16, []string{"--compress-workers", "2"}},
		{[]string{"zstd:1"}, 1, []string{"--synchronous"}},
		{[]string{"gzip:1", "none", "lz4", "zstd"}, 1, []string{"--synchronous"}},
	} {
		t.Run(strings.Join(test.methods, ","), func(t *testing.T) {
			t.Parallel()
			random := chance(t)
			c := pg.New(t, pg.Options{SegmentSizeMB: test.segmentMB})
			dir := t.TempDir()
			begin := c.Tick()
			fixStart(t, c, dir, begin)
			c.SQL("select pg_create_physical_replication_slot('killed', true)")
			load := keepBusy(t, c, 2, writeSome)
			told := begin
			flushes := 0
			for i := range rounds(t, 7, 60) {
				r := ours(t).in(dir)
				method := test.methods[random.IntN(len(test.methods))]
				r.start(c, slices.Concat([]string{"--no-loop", "--slot", "killed", "-Z", method}, test.args)...)
				life := between(random, 0, 1500*time.Millisecond)
				if random.IntN(3) == 0 {
					life = between(random, 0, 150*time.Millisecond) // while it starts
				}
				time.Sleep(life)
				if !r.Running() {
					t.Fatalf("it has ended by itself: %s", r.Output())
				}
				r.Kill9()
				c.WaitGone(r.name)
				plain := unpack(t, dir, c.SegmentSize)
				checkNames(t, c, plain)
				c.CompareWithServerOrNothing(plain)
				if now := c.LSN("select restart_lsn from pg_replication_slots"); now > told {
					told = now
					flushes++
				}
				if told > begin {
					checkHolds(t, c, plain, 1, max(begin, told-2*pg.LSN(c.SegmentSize)), told)
				}
				if t.Failed() {
					t.Fatalf("after round %d, with %s: %s", i, method, strings.Join(names(t, dir), " "))
				}
			}
			load.stop()
			c.SwitchWAL() // the load may not have filled a large segment
			end := c.Tick()
			ours(t).in(dir).receive(c, end, "-Z", test.methods[0])
			verify(t, c, unpack(t, dir, c.SegmentSize), begin, end)
			report, err := segment.CheckDirectory(segment.OS, dir, segment.CheckOptions{Pages: true, Decode: true})
			if err != nil || len(report.Problems) > 0 {
				t.Errorf("the check finds %+v, %v", report.Problems, err)
			}
			t.Logf("%d files, %d moments with a flushed position", len(names(t, dir)), flushes)
		})
	}
}

func names(t testing.TB, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// No commit that a client was told of is lost with the server, whatever the method.
func TestNothingIsLostCompressed(t *testing.T) {
	for i, method := range []string{"gzip", "lz4", "zstd:1"} {
		for round := range rounds(t, 1, 10) {
			t.Run(fmt.Sprint(method, round), func(t *testing.T) {
				t.Parallel()
				loseServer(t, loss{receiverFirst: (i+round)%2 == 0, slot: (i+round)%4 >= 2, method: method})
			})
		}
	}
}

// pg_receivewal goes on where ours was stopped, and ours where it was, with the same method. (Each ends at a segment that the other has
// begun, and goes beyond it: pg_receivewal does not cut off what a file had before.)
func TestCompressedBesidePgReceivewal(t *testing.T) {
	for _, method := range []string{"gzip", "lz4"} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			c := pg.New(t, pg.Options{SegmentSizeMB: 1})
			dir := t.TempDir()
			begin := c.Tick()
			fixStart(t, c, dir, begin)
			var end pg.LSN
			for i := range 6 {
				r := ours(t).in(dir)
				if i%2 == 1 {
					r = theirs(t).in(dir)
				}
				end = c.Generate(3)
				r.receive(c, end, "-Z", method)
				verify(t, c, unpack(t, dir, c.SegmentSize), begin, end)
				if t.Failed() {
					t.Fatalf("after %s: %s", r.name, strings.Join(names(t, dir), " "))
				}
			}
			for _, name := range names(t, dir) {
				if !strings.Contains(name, methods[method].suffix) {
					t.Errorf("%s is not compressed", name)
				}
			}
		})
	}
}

// What a killed pg_receivewal leaves, a shorter stream and behind it the rest of an older one, is replaced by ours.
func TestOldTail(t *testing.T) {
	for _, method := range []string{"gzip", "lz4"} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			c := pg.New(t, pg.Options{SegmentSizeMB: 16})
			dir := t.TempDir()
			begin := c.Tick()
			fixStart(t, c, dir, begin)
			old := theirs(t).in(dir)
			old.start(c, "-Z", method)
			c.WaitReceived(old.name, c.Generate(3), false)
			old.Kill9()
			c.WaitGone(old.name)
			short := theirs(t).in(dir)
			short.start(c, "-Z", method)
			c.WaitStreaming(short.name)
			short.Kill9()
			c.WaitGone(short.name)
			end := c.Generate(1)
			ours(t).in(dir).receive(c, end, "-Z", method, "--synchronous")
			c.ComparePartial(unpack(t, dir, c.SegmentSize), 1, end)
			c.SwitchWAL()
			end = c.Tick()
			ours(t).in(dir).receive(c, end, "-Z", method)
			verify(t, c, unpack(t, dir, c.SegmentSize), begin, end)
		})
	}
}

// A hole is filled by what is asked for now, whatever the segments beside it are.
func TestHoleIsFilledCompressed(t *testing.T) {
	t.Parallel()
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	dir := t.TempDir()
	begin := c.Tick()
	fixStart(t, c, dir, begin)
	ours(t).in(dir).receive(c, c.Generate(4), "-Z", "gzip")
	missing := names(t, dir)[1]
	if err := os.Remove(filepath.Join(dir, missing)); err != nil {
		t.Fatal(err)
	}
	end := c.Generate(1)
	ours(t).in(dir).receive(c, end, "-Z", "zstd")
	if want := strings.TrimSuffix(missing, ".gz") + ".zst"; names(t, dir)[1] != want {
		t.Errorf("%v, want %s to be filled", names(t, dir), want)
	}
	verify(t, c, unpack(t, dir, c.SegmentSize), begin, end)
}

// Each restore_command of docs/restore.md brings back everything, the last commit in the .partial, too.
func TestRestoreCommands(t *testing.T) {
	for _, test := range []struct{ method, name, command string }{
		{"none", "ours", restoreCommand},
		{"gzip", "ours", restoreCommand},
		{"lz4", "ours", restoreCommand},
		{"zstd", "ours", restoreCommand},
		{"none", "cp", "none"},
		{"gzip", "gzip", "gzip"},
		{"lz4", "lz4", "lz4"},
		{"zstd", "zstd", "zstd"},
	} {
		t.Run(test.method+" by "+test.name, func(t *testing.T) {
			t.Parallel()
			command := test.command
			if command != restoreCommand {
				command = documented(t, test.command)
			}
			c := pg.New(t, pg.Options{SegmentSizeMB: 16})
			c.SQL("create table commits (id bigint)")
			backup := c.BaseBackup()
			r := ours(t)
			fixStart(t, c, r.dir, c.LSN("select redo_lsn from pg_control_checkpoint()"))
			r.start(c, "-Z", test.method)
			for i := range 3 {
				c.SQL(fmt.Sprintf("insert into commits values (%d)", i))
				c.Generate(1)
				if i < 2 {
					c.SwitchWAL()
				}
			}
			c.SQL("insert into commits values (99)")
			r.stopAt(c, c.CurrentLSN())
			c.Destroy()
			restored := backup.RestoreBy(r.dir, command, receivewal(t))
			if got := restored.SQL("select count(*), max(id) from commits"); got != "4|99" {
				t.Errorf("recovered %s, want 4|99, with %s", got, command)
			}
		})
	}
}

// documented is the restore_command of docs/restore.md for a method.
func documented(t testing.TB, method string) string {
	t.Helper()
	root, err := pg.Root()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "docs", "restore.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "\n### "+method+"\n")
	_, rest, found2 := strings.Cut(rest, "restore_command = '")
	command, _, found3 := strings.Cut(rest, "'\n")
	if !found || !found2 || !found3 {
		t.Fatalf("docs/restore.md has no restore_command for %s", method)
	}
	return strings.ReplaceAll(command, "/backup/wal", "WAL")
}
