// Package e2e drives the program build/bin/receivewal against real PostgreSQL servers, and pg_receivewal beside it on the
// same stream as the judge: both must leave the same files, and both those of the server.
//
// RECEIVEWAL_PROGRAM names another program to test in its place. With pg_receivewal itself there, all tests must
// pass but those named Better, which test what it gets wrong: that proves the tests, not the program.
package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"libreceivewal/tests/pg"
)

// A receiver is a program that receives WAL into a directory of its own. Its name is its application_name, and the name
// of its slot where it has one.
type receiver struct {
	*pg.Program
	t    testing.TB
	name string
	path string
	dir  string
}

// ours is the program under test.
func ours(t testing.TB) *receiver {
	t.Helper()
	path := os.Getenv("RECEIVEWAL_PROGRAM")
	if path == "" {
		root, err := pg.Root()
		if err != nil {
			t.Fatal(err)
		}
		path = filepath.Join(root, "build", "bin", "receivewal")
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v; run ./build.sh first", err)
	}
	return &receiver{t: t, name: "ours", path: path, dir: t.TempDir()}
}

// both are the program under test and pg_receivewal.
func both(t testing.TB) []*receiver {
	t.Helper()
	return []*receiver{ours(t), {t: t, name: "theirs", path: pg.ClientProgram(t, "pg_receivewal"), dir: t.TempDir()}}
}

// run runs the program without a directory, for its other actions.
func (r *receiver) run(c *pg.Cluster, args ...string) *pg.Program {
	r.t.Helper()
	return pg.Run(r.t, r.path, append([]string{"-v", "-d", c.ConnString("application_name=" + r.name)}, args...)...)
}

// start begins to receive. It reports its position each second, so that a test can see when it has arrived.
func (r *receiver) start(c *pg.Cluster, args ...string) {
	r.t.Helper()
	r.Program = r.run(c, append([]string{"-D", r.dir, "-s", "1"}, args...)...)
}

func startAll(rs []*receiver, c *pg.Cluster, args ...string) {
	for _, r := range rs {
		r.t.Helper()
		r.start(c, args...)
	}
	for _, r := range rs {
		c.WaitStreaming(r.name)
	}
}

// stopAt waits until all have received lsn and stops them.
func stopAt(rs []*receiver, c *pg.Cluster, lsn pg.LSN) {
	for _, r := range rs {
		r.t.Helper()
		c.WaitReceived(r.name, lsn, false)
		r.Stop()
	}
}

// put makes a file in all directories.
func put(rs []*receiver, name string, content []byte) {
	for _, r := range rs {
		if err := os.WriteFile(filepath.Join(r.dir, name), content, 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
}

// verify checks the directories of all: equal to each other and to the server's files, without holes, and on the given timeline
// complete up to lsn.
func verify(rs []*receiver, c *pg.Cluster, timeline uint32, lsn pg.LSN) {
	for _, r := range rs {
		r.t.Helper()
		if missing := c.CompareWithServer(r.dir).Missing; len(missing) > 0 {
			r.t.Errorf("%s: the server doesn't have %v to compare with", r.name, missing)
		}
		c.CheckNoHole(r.dir)
		if uint64(lsn)%c.SegmentSize != 0 {
			c.ComparePartial(r.dir, timeline, lsn)
		} else if last := c.SegmentName(timeline, lsn-1); !slices.Contains(pg.List(r.t, r.dir).Complete, last) {
			r.t.Errorf("%s: %s is not complete", r.name, last)
		}
	}
	if len(rs) > 1 {
		pg.CompareDirs(rs[0].t, rs[0].dir, rs[1].dir)
	}
}

// first fails unless the first segment of all is that of lsn on the timeline.
func first(rs []*receiver, c *pg.Cluster, timeline uint32, lsn pg.LSN) {
	for _, r := range rs {
		r.t.Helper()
		files := pg.List(r.t, r.dir)
		names := append(files.Complete, files.Partial...)
		slices.Sort(names)
		if want := c.SegmentName(timeline, lsn); len(names) == 0 || !strings.HasPrefix(names[0], want) {
			r.t.Errorf("%s: starts with %v, want %s", r.name, names, want)
		}
	}
}

// serverSegment reads a segment of the server.
func serverSegment(t testing.TB, c *pg.Cluster, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(c.WALDir(), name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// fit are those of both that work with a server: pg_receivewal 15 refuses newer ones.
func fit(t testing.TB, c *pg.Cluster) []*receiver {
	t.Helper()
	if c.Version > 15 {
		return []*receiver{ours(t)}
	}
	return both(t)
}

// eachServer runs a test with every version and every usual segment size; in the soak form (build.sh) with every version with every
// size. One test of each kind is run so, the others with eachSize.
func eachServer(t *testing.T, test func(t *testing.T, version, size int)) {
	servers := [][2]int{{13, 1}, {14, 16}, {15, 1}, {15, 16}, {16, 16}, {17, 64}, {18, 1}}
	if os.Getenv("RECEIVEWAL_SOAK") != "" {
		servers = nil
		for version := 13; version <= 18; version++ {
			servers = append(servers, [2]int{version, 1}, [2]int{version, 16}, [2]int{version, 64})
		}
	}
	for _, s := range servers {
		t.Run(fmt.Sprintf("%d/%dMiB", s[0], s[1]), func(t *testing.T) {
			t.Parallel()
			test(t, s[0], s[1])
		})
	}
}

// eachSize runs a test with the smallest and the default segment size.
func eachSize(t *testing.T, test func(t *testing.T, size int)) {
	for _, size := range []int{1, 16} {
		t.Run(fmt.Sprintf("%dMiB", size), func(t *testing.T) {
			t.Parallel()
			test(t, size)
		})
	}
}
