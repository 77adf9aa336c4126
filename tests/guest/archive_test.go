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
