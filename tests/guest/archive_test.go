package guest_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"libreceivewal/segment"
	"libreceivewal/tests/pg"
)

// The numbers of receivewal.h.
const (
	statusOK       = 0
	statusGap      = 60
	statusForeign  = 61
	statusTimeline = 62
	repairGoOn     = 0
	repairStop     = 1
	repairOff      = 2
)

// An archive is a directory that a C host receives into.
type archive struct {
	t                  *testing.T
	libraries, program string
	dir                string
}

func newArchive(t *testing.T) *archive {
	t.Helper()
	libraries := lib(t)
	return &archive{t, libraries, compile(t, "archive", libraries), t.TempDir()}
}

func (a *archive) host(c *pg.Cluster, args ...string) {
	a.t.Helper()
	start(a.t, a.libraries, a.program, append([]string{c.ConnString(), a.dir}, args...)...).finish()
}

// receive receives what the server has now, and says what has to come of it.
func (a *archive) receive(c *pg.Cluster, repair, status, found, repaired, lost int, text string) {
	a.t.Helper()
	end := c.Generate(1)
	c.Tick()
	a.host(c, "receive", end.String(), fmt.Sprint(repair), fmt.Sprint(status), fmt.Sprint(found), fmt.Sprint(repaired), fmt.Sprint(lost), text)
}

// begin puts an empty partial segment there, to set the start.
func (a *archive) begin(c *pg.Cluster) {
	a.t.Helper()
	if err := os.WriteFile(filepath.Join(a.dir, c.SegmentName(1, c.CurrentLSN())+".partial"), nil, 0o600); err != nil {
		a.t.Fatal(err)
	}
}

func (a *archive) remove(names ...string) {
	a.t.Helper()
	for _, name := range names {
		if err := os.Remove(filepath.Join(a.dir, name)); err != nil {
			a.t.Fatal(err)
		}
	}
}

// A C host has segments compressed, by each method, is told their names and sizes, and gets one back as it was.
func TestCompressedArchive(t *testing.T) {
	t.Parallel()
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	for _, m := range []struct {
		number, level, workers int
		suffix                 string
	}{{1, 0, 0, ".gz"}, {2, 1, 2, ".lz4"}, {3, 19, 1, ".zst"}} {
		a := newArchive(t)
		a.begin(c)
		first := c.SegmentName(1, c.CurrentLSN())
		c.SQL("select count(pg_logical_emit_message(true, 'much', repeat('WAL ', 2000))) from generate_series(1, 400)") // shrinks well
		c.SwitchWAL()
		// Another program has made something of the first segment, and that counts.
		content, err := os.ReadFile(filepath.Join(c.WALDir(), first))
		if err != nil {
			t.Fatal(err)
		}
		end := c.Tick()
		if err := os.WriteFile(filepath.Join(a.dir, first+".crypt"), content, 0o600); err != nil {
			t.Fatal(err)
		}
		a.remove(first + ".partial")
		before := c.SegmentName(1, c.CurrentLSN()-pg.LSN(c.SegmentSize)*2)
		if before == first {
			t.Fatalf("%s is the segment before the last, too", first)
		}
		if err := os.WriteFile(filepath.Join(a.dir, c.SegmentName(1, segmentAfter(c, first))+".partial"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		a.host(c, "compressed", end.String(), fmt.Sprint(m.number), fmt.Sprint(m.level), fmt.Sprint(m.workers), m.suffix)
		target := filepath.Join(t.TempDir(), "RECOVERYXLOG")
		a.host(c, "restore", before, target, "0")
		got, err := os.ReadFile(target)
		want, wantErr := os.ReadFile(filepath.Join(c.WALDir(), before))
		if err != nil || wantErr != nil || string(got) != string(want) {
			t.Errorf("%s, restored, is not the server's: %v, %v", before, err, wantErr)
		}
		a.host(c, "restore", "00000009.history", target, "55")
		a.host(c, "restore", first, target, "54")
	}
}

// segmentAfter is the first byte of the segment after one.
func segmentAfter(c *pg.Cluster, name string) pg.LSN {
	id, err := segment.ParseName(name, segment.Size(c.SegmentSize))
	if err != nil {
		panic(err)
	}
	return pg.LSN(id.End(segment.Size(c.SegmentSize)))
}

// Holes are told, filled from the server, and told again as what has become of them.
func TestArchiveWithHoles(t *testing.T) {
	t.Parallel()
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	a := newArchive(t)
	a.begin(c)
	c.Generate(7)
	a.receive(c, repairGoOn, statusOK, 0, 0, 0, "")
	files := pg.List(t, a.dir).Complete
	a.host(c, "check", "0", fmt.Sprint(len(files)))

	a.remove(files[1], files[3], files[4])
	a.host(c, "check", "2", fmt.Sprint(len(files)-3))
	a.receive(c, repairOff, statusOK, 2, 0, 0, "")
	a.receive(c, repairGoOn, statusOK, 2, 2, 0, "")
	c.CompareWithServer(a.dir)
	c.CheckNoHole(a.dir)

	a.remove(files[2])
	if err := os.Remove(filepath.Join(c.WALDir(), files[2])); err != nil {
		t.Fatal(err)
	}
	a.receive(c, repairStop, statusGap, 1, 0, 1, files[2])
	a.receive(c, repairGoOn, statusOK, 1, 0, 1, "")
}

// Mirrors by the C API: told of and counted, with names that are copied, refused and waited for where they are required.
func TestArchiveWithMirrors(t *testing.T) {
	t.Parallel()
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	a := newArchive(t)
	a.begin(c)
	c.Generate(7)
	end := c.Tick()
	c.Tick()
	parent := t.TempDir()
	if err := os.Mkdir(filepath.Join(parent, "good"), 0o700); err != nil {
		t.Fatal(err)
	}
	a.host(c, "mirrors", end.String(), parent, "good", "late")
	for _, dir := range []string{a.dir, filepath.Join(parent, "good"), filepath.Join(parent, "late")} {
		c.CompareWithServer(dir)
		c.ComparePartial(dir, 1, end)
	}
	pg.CompareDirs(t, filepath.Join(parent, "good"), a.dir)
	pg.CompareDirs(t, filepath.Join(parent, "late"), a.dir)
}

// What does not belong together is refused by name, and nothing is written.
func TestArchiveOfSomebodyElse(t *testing.T) {
	t.Parallel()
	c, other := pg.New(t, pg.Options{SegmentSizeMB: 1}), pg.New(t, pg.Options{SegmentSizeMB: 1})
	large := pg.New(t, pg.Options{SegmentSizeMB: 16})
	a := newArchive(t)
	a.begin(c)
	c.Generate(3)
	a.receive(c, repairGoOn, statusOK, 0, 0, 0, "")
	before := fmt.Sprint(pg.List(t, a.dir))
	a.receive(other, repairGoOn, statusForeign, 0, 0, 0, "is of the system")
	a.receive(large, repairGoOn, statusForeign, 0, 0, 0, a.dir)
	if after := fmt.Sprint(pg.List(t, a.dir)); after != before {
		t.Errorf("%s, before %s", after, before)
	}

	// A timeline that the server never had.
	newest := pg.List(t, a.dir).Complete
	id, err := segment.ParseName(newest[len(newest)-1], segment.MinSize)
	if err != nil {
		t.Fatal(err)
	}
	id.Timeline = 9
	if err := os.WriteFile(filepath.Join(a.dir, id.Name(segment.MinSize)+".partial"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a.remove(pg.List(t, a.dir).Partial...)
	if err := os.WriteFile(filepath.Join(a.dir, id.Name(segment.MinSize)+".partial"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a.receive(c, repairGoOn, statusTimeline, 0, 0, 0, "timeline 9")
}

// A full disk fails, or is waited for.
func TestArchiveOnAFullDisk(t *testing.T) {
	t.Parallel()
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	a := newArchive(t)
	a.begin(c)
	end := c.Generate(3)
	c.Tick()
	a.host(c, "full", end.String())
	c.CompareWithServer(a.dir)
	c.CheckNoHole(a.dir)
}

func TestArchiveOptions(t *testing.T) {
	t.Parallel()
	newArchive(t).host(pg.New(t, pg.Options{SegmentSizeMB: 1}), "invalid")
}
