package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"libreceivewal/tests/pg"
)

// Mirrors have what the first directory has, through a promotion. One that is taken away does not stop the others, and gets what
// it has missed once it is back.
func TestBetterMirror(t *testing.T) {
	t.Parallel()
	a := pg.New(t, pg.Options{SegmentSizeMB: 1})
	b := a.Standby("b")
	r := ours(t)
	parent := t.TempDir()
	mirrors := []string{filepath.Join(parent, "one"), filepath.Join(parent, "two")}
	args := []string{}
	for _, dir := range mirrors {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--mirror", dir)
	}
	dirs := append([]string{r.dir}, mirrors...)

	r.start(b, args...)
	b.WaitReplayed(a.Generate(3))
	// The second mirror's disk is taken away between two runs.
	stopAt([]*receiver{r}, b, a.Generate(1))
	if err := os.Rename(mirrors[1], mirrors[1]+".away"); err != nil {
		t.Fatal(err)
	}
	r.start(b, args...)
	switched := a.Generate(3)
	b.WaitReplayed(switched)
	a.Stop(pg.Immediate)
	b.Promote()
	b.Generate(2)
	pg.WaitFor(t, "the mirror to be told of", func() bool { return strings.Contains(r.Output(), "going on without mirror") })
	if err := os.Rename(mirrors[1]+".away", mirrors[1]); err != nil {
		t.Fatal(err)
	}
	pg.WaitFor(t, "the mirror to be back", func() bool { return strings.Contains(r.Output(), "is written in step again") })
	end := b.Generate(1)
	stopAt([]*receiver{r}, b, end)
	for _, dir := range dirs {
		b.CompareWithServer(dir)
		b.ComparePartial(dir, 2, end)
		b.CheckNoHole(dir)
		pg.CompareDirs(t, dir, r.dir)
		a.ComparePartial(dir, 1, switched)
		if files := pg.List(t, dir); !slices.Contains(files.History, "00000002.history") || len(files.Other) != 0 || len(files.Partial) != 2 {
			t.Errorf("%s has %+v", dir, files)
		}
	}
}

// A mirror that is required ends the receive where it fails.
func TestBetterMirrorRequired(t *testing.T) {
	t.Parallel()
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	r := ours(t)
	missing := filepath.Join(t.TempDir(), "missing")
	r.start(c, "--no-loop", "--mirror", missing, "--mirror-required")
	if code := r.Wait(); code != 1 || !strings.Contains(r.Output(), missing) {
		t.Errorf("exit code %d: %s", code, r.Output())
	}
	p := r.run(c, "-D", r.dir, "--mirror-required")
	if code := p.Wait(); code != 1 || !strings.Contains(p.Output(), "--mirror-required needs --mirror") {
		t.Errorf("exit code %d: %s", code, p.Output())
	}
}

// Killed with -9 at any moment, both directories are ones to go on in, whichever is the first then, and in the end both have
// every byte.
func TestBetterMirrorKilled(t *testing.T) {
	t.Parallel()
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	r := ours(t)
	first, mirror := r.dir, t.TempDir()
	for round := range 6 {
		args := []string{"--mirror", mirror}
		if round%3 != 2 {
			args = append(args, "--synchronous", "--mirror-required")
		}
		r.dir = first
		r.start(c, args...)
		at := c.Generate(2 + round)
		if round%2 == 0 {
			c.WaitReceived(r.name, at, round%3 != 2)
		}
		r.Kill9()
		for _, dir := range []string{first, mirror} {
			c.CompareWithServerOrNothing(dir) // it may have begun only where the first WAL of this test ends
			if files := pg.List(t, dir); len(files.Partial) > 1 || len(files.Other) > 0 {
				t.Errorf("%s has %+v", dir, files)
			}
		}
		if round%2 == 0 && round%3 != 2 { // what was reported flushed is in both
			for _, dir := range []string{first, mirror} {
				c.ComparePartial(dir, 1, at)
			}
		}
		first, mirror = mirror, first
	}
	r.dir = first
	r.start(c, "--mirror", mirror)
	end := c.Generate(1)
	pg.WaitFor(t, "the mirror to have it, too", func() bool { // it is not required: a stop does not wait for it
		name, n := c.SegmentName(1, end-1), uint64(end-1)%c.SegmentSize+1
		got, err := os.ReadFile(filepath.Join(mirror, name+".partial"))
		return err == nil && uint64(len(got)) >= n && bytes.Equal(got[:n], serverSegment(t, c, name)[:n])
	})
	stopAt([]*receiver{r}, c, end)
	for _, dir := range []string{first, mirror} {
		c.CompareWithServer(dir)
		c.ComparePartial(dir, 1, end)
		c.CheckNoHole(dir)
	}
	pg.CompareDirs(t, mirror, first)
}
