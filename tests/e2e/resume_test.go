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

// What is in the directory decides where the program goes on: after a complete segment, or again at the first byte of a
// partial one, whatever it holds.
func TestResume(t *testing.T) {
	eachSize(t, func(t *testing.T, size int) {
		for _, test := range []struct {
			what  string
			put   func(rs []*receiver, name string, segment []byte)
			again bool // it receives the segment in the directory again
		}{
			{"complete", func(rs []*receiver, name string, segment []byte) { put(rs, name, segment) }, false},
			{"partial", func(rs []*receiver, name string, segment []byte) {
				half := slices.Clone(segment)
				clear(half[len(half)/2:])
				put(rs, name+".partial", half)
			}, true},
			{"partialOfZeros", func(rs []*receiver, name string, segment []byte) {
				put(rs, name+".partial", make([]byte, len(segment)))
			}, true},
			{"partialOfRubbish", func(rs []*receiver, name string, segment []byte) {
				rubbish := slices.Clone(segment)
				for i := range rubbish[100:] { // the first page's header is looked at
					rubbish[100+i] ^= 0xff
				}
				put(rs, name+".partial", rubbish)
			}, true},
			{"emptyPartial", func(rs []*receiver, name string, segment []byte) { put(rs, name+".partial", nil) }, true},
			{"completeAndPartial", func(rs []*receiver, name string, segment []byte) {
				put(rs, name, segment)
				put(rs, name+".partial", nil)
			}, false},
		} {
			t.Run(test.what, func(t *testing.T) {
				c := pg.New(t, pg.Options{SegmentSizeMB: size})
				rs := both(t)
				name, next := c.SwitchWAL()
				test.put(rs, name, serverSegment(t, c, name))
				c.SwitchWAL()
				c.Generate(size)
				startAll(rs, c)
				end := c.Generate(size)
				stopAt(rs, c, end)
				if test.what == "completeAndPartial" { // pg_receivewal leaves it; it is in nobody's way
					for _, r := range rs {
						os.Remove(filepath.Join(r.dir, name+".partial"))
					}
				}
				verify(rs, c, 1, end)
				for _, r := range rs {
					position := next
					if test.again {
						position -= pg.LSN(c.SegmentSize)
					}
					if want := fmt.Sprintf("START_REPLICATION %s TIMELINE 1", position); !strings.Contains(startCommands(c, r.name), want) {
						t.Errorf("%s: the server has not been asked for %q", r.name, want)
					}
				}
			})
		}
	})
}

// startCommands are the lines in the server's log with a START_REPLICATION of this application.
func startCommands(c *pg.Cluster, application string) string {
	var lines []string
	for _, line := range strings.Split(c.Log(), "\n") {
		if strings.Contains(line, "] "+application+" ") && strings.Contains(line, "START_REPLICATION") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "\n")
}

// Better: a receiver that is killed at any time goes on without a hole. pg_receivewal fails for good if it was killed
// while it filled a new file with zeros.
func TestBetterKilled(t *testing.T) {
	eachServer(t, func(t *testing.T, version, size int) {
		c := pg.New(t, pg.Options{Version: version, SegmentSizeMB: size})
		rs := []*receiver{ours(t)}
		begin := c.Tick()
		for range 5 {
			startAll(rs, c)
			c.Generate(size)
			for _, r := range rs {
				// Before the first file there is nothing to go on from, and no slot to keep the place.
				pg.WaitFor(t, "a first file", func() bool {
					files := pg.List(t, r.dir)
					return len(files.Complete)+len(files.Partial) > 0
				})
				r.Kill9()
				c.WaitGone(r.name)
			}
			c.Generate(size)
		}
		startAll(rs, c)
		end := c.Tick()
		stopAt(rs, c, end)
		verify(rs, c, 1, end)
		first(rs, c, 1, begin)
	})
}

// Better: pg_receivewal never gets over a .partial that a full disk left short.
func TestBetterShortPartial(t *testing.T) {
	eachSize(t, func(t *testing.T, size int) {
		c := pg.New(t, pg.Options{SegmentSizeMB: size})
		rs := []*receiver{ours(t)}
		name, begin := c.SwitchWAL()
		put(rs, name+".partial", serverSegment(t, c, name)[:614400])
		c.Generate(2 * size)
		startAll(rs, c)
		end := c.Generate(size)
		stopAt(rs, c, end)
		verify(rs, c, 1, end)
		first(rs, c, 1, begin-1)
	})
}

// Better: a directory with another cluster's WAL is refused, and left as it was.
func TestBetterForeignDirectory(t *testing.T) {
	t.Parallel()
	stranger := pg.New(t, pg.Options{SegmentSizeMB: 1})
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	rs := []*receiver{ours(t)}
	name, _ := stranger.SwitchWAL()
	put(rs, name, serverSegment(t, stranger, name))
	c.Generate(3)
	rs[0].start(c, "--no-loop")
	if code := rs[0].Wait(); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	if files := pg.List(t, rs[0].dir); fmt.Sprint(files.Complete, files.Partial) != fmt.Sprint([]string{name}, []string{}) {
		t.Errorf("files %+v, want only %s", files, name)
	}
}
