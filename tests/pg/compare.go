package pg

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	completeName = regexp.MustCompile(`^[0-9A-F]{24}$`)
	partialName  = regexp.MustCompile(`^[0-9A-F]{24}\.partial$`)
	historyName  = regexp.MustCompile(`^[0-9A-F]{8}\.history$`)
)

// Files are the names in a directory of received WAL, sorted.
type Files struct {
	Complete  []string // plain segments
	Partial   []string // plain ones with .partial
	History   []string
	Other     []string // everything else, also compressed segments
	Directory string
}

// List lists a directory of received WAL.
func List(t testing.TB, dir string) Files {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	f := Files{Directory: dir}
	for _, entry := range entries {
		switch name := entry.Name(); {
		case completeName.MatchString(name):
			f.Complete = append(f.Complete, name)
		case partialName.MatchString(name):
			f.Partial = append(f.Partial, name)
		case historyName.MatchString(name):
			f.History = append(f.History, name)
		default:
			f.Other = append(f.Other, name)
		}
	}
	return f
}

// Comparison is what CompareWithServer has compared: byte-equal files.
type Comparison struct {
	Equal   []string // complete segments and history files
	Missing []string // complete segments that the server no longer has
}

// CompareWithServer compares each complete segment and history file in dir with the server's own. A difference, or a
// segment of the wrong size, fails the test, and so does finding nothing to compare.
func (c *Cluster) CompareWithServer(dir string) Comparison {
	c.t.Helper()
	var result Comparison
	files := List(c.t, dir)
	for _, name := range append(slices.Clone(files.Complete), files.History...) {
		received := mustRead(c.t, filepath.Join(dir, name))
		if len(name) == 24 && uint64(len(received)) != c.SegmentSize {
			c.t.Errorf("%s has %d bytes, not the segment size %d", name, len(received), c.SegmentSize)
		}
		original, err := os.ReadFile(filepath.Join(c.WALDir(), name))
		if os.IsNotExist(err) {
			result.Missing = append(result.Missing, name)
			continue
		}
		c.must(err)
		if at := difference(received, original); at >= 0 {
			c.t.Errorf("%s: byte %d differs from the server's own", name, at)
			continue
		}
		result.Equal = append(result.Equal, name)
	}
	if len(result.Equal) == 0 {
		c.t.Errorf("nothing in %s to compare with the server: %+v", dir, files)
	}
	return result
}

// ComparePartial compares the .partial of the segment that holds upto-1 with the server's segment, from its first byte up to
// upto, and checks that it has the full size.
func (c *Cluster) ComparePartial(dir string, timeline uint32, upto LSN) {
	c.t.Helper()
	name := c.SegmentName(timeline, upto-1)
	received := mustRead(c.t, filepath.Join(dir, name+".partial"))
	original := mustRead(c.t, filepath.Join(c.WALDir(), name))
	if uint64(len(received)) != c.SegmentSize {
		c.t.Errorf("%s.partial has %d bytes, not the segment size %d", name, len(received), c.SegmentSize)
		return
	}
	n := uint64(upto-1)%c.SegmentSize + 1
	if at := difference(received[:n], original[:n]); at >= 0 {
		c.t.Errorf("%s.partial: byte %d of the first %d differs from the server's own", name, at, n)
	}
}

// CompareDirs fails the test unless two directories hold the same complete segments and history files, byte for byte, and
// the same names of .partial files. Partial segments are compared by ComparePartial.
func CompareDirs(t testing.TB, got, want string) {
	t.Helper()
	g, w := List(t, got), List(t, want)
	if fmt.Sprint(g.Complete, g.Partial, g.History, g.Other) != fmt.Sprint(w.Complete, w.Partial, w.History, w.Other) {
		t.Errorf("other files than expected\n got %+v\nwant %+v", g, w)
	}
	for _, name := range append(slices.Clone(w.Complete), w.History...) {
		if !slices.Contains(g.Complete, name) && !slices.Contains(g.History, name) {
			continue // named above
		}
		if at := difference(mustRead(t, filepath.Join(got, name)), mustRead(t, filepath.Join(want, name))); at >= 0 {
			t.Errorf("%s: byte %d differs between %s and %s", name, at, got, want)
		}
	}
}

// CheckNoHole fails the test if a segment between the first and the last complete one of a timeline is missing.
func (c *Cluster) CheckNoHole(dir string) {
	c.t.Helper()
	names := List(c.t, dir).Complete
	for i := 1; i < len(names); i++ {
		if names[i][:8] == names[i-1][:8] && c.segmentNumber(names[i]) != c.segmentNumber(names[i-1])+1 {
			c.t.Errorf("a hole between %s and %s", names[i-1], names[i])
		}
	}
}

func (c *Cluster) segmentNumber(name string) uint64 {
	c.t.Helper()
	var high, low uint64
	_, err := fmt.Sscanf(name[8:], "%08X%08X", &high, &low)
	c.must(err)
	return high*(uint64(1<<32)/c.SegmentSize) + low
}

// Waldump reads a complete segment with pg_waldump, which checks every record's checksum, and returns what it prints.
// PostgreSQL 15 only: the format of the WAL differs between versions.
func (c *Cluster) Waldump(file string) string {
	c.t.Helper()
	if c.Version != 15 {
		c.t.Fatalf("pg_waldump is there for PostgreSQL 15, not %d", c.Version)
	}
	dir, name := filepath.Split(file)
	out, err := exec.Command(ClientProgram(c.t, "pg_waldump"), "--path", dir, name).CombinedOutput()
	if err != nil {
		c.t.Errorf("pg_waldump %s: %v\n%s", name, err, tailBytes(out, 2<<10))
	}
	if !strings.Contains(string(out), "rmgr:") {
		c.t.Errorf("pg_waldump finds no record in %s", name)
	}
	return string(out)
}

// WALDir is where the server keeps its own segments.
func (c *Cluster) WALDir() string { return filepath.Join(c.DataDir, "pg_wal") }

func mustRead(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// difference is the offset of the first byte that differs, or the shorter length, or -1.
func difference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// CompareWithServerOrNothing is CompareWithServer where there may be no complete segment yet.
func (c *Cluster) CompareWithServerOrNothing(dir string) {
	c.t.Helper()
	if f := List(c.t, dir); len(f.Complete)+len(f.History) > 0 {
		c.CompareWithServer(dir)
	}
}
