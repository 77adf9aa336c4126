package golang_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"libreceivewal/segment"
	"libreceivewal/stream"
	"libreceivewal/tests/pg"
)

// receiveTo receives until an LSN and returns the holes that were told of.
func receiveTo(t *testing.T, c *pg.Cluster, dir string, end pg.LSN, change func(*stream.Options)) ([]stream.Hole, error) {
	t.Helper()
	h := connect(t, c)
	var holes []stream.Hole
	o := stream.Options{Directory: dir, EndLSN: segment.LSN(end), Events: stream.Events{
		Log:  func(l slog.Level, text string) { t.Log(l, text) },
		Hole: func(h stream.Hole) error { holes = append(holes, h); return nil },
	}}
	if change != nil {
		change(&o)
	}
	s := stream.NewSession(h.Conn, stream.SessionOptions{})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := s.Receive(ctx, o)
	if !s.Usable() {
		t.Errorf("the connection is not usable after %v", err)
	}
	return holes, err
}

// generate makes n MiB of WAL, and a commit beyond it so that its end is passed.
func generate(c *pg.Cluster, n int) pg.LSN {
	end := c.Generate(n)
	c.Tick()
	return end
}

func TestHolesAreFilled(t *testing.T) {
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	dir := t.TempDir()
	start := segment.LSN(c.CurrentLSN())
	begin := func(o *stream.Options) { o.StartLSN = start }
	if _, err := receiveTo(t, c, dir, generate(c, 9), begin); err != nil {
		t.Fatal(err)
	}
	files := pg.List(t, dir).Complete
	for _, i := range []int{1, 2, 5} {
		if err := os.Remove(filepath.Join(dir, files[i])); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(filepath.Join(dir, files[7]), 5); err != nil {
		t.Fatal(err)
	}
	holes, err := receiveTo(t, c, dir, generate(c, 2), nil)
	if err != nil {
		t.Fatal(err)
	}
	repaired := 0
	for _, h := range holes {
		t.Logf("%d %+v", h.State, h.Problem)
		if h.State == stream.HoleRepaired {
			repaired++
		}
	}
	if repaired != 3 {
		t.Errorf("%d holes repaired, want 3", repaired)
	}
	c.CompareWithServer(dir)
	c.CheckNoHole(dir)
	report, err := segment.CheckDirectory(segment.OS, dir, segment.CheckOptions{Pages: true, Decode: true})
	if err != nil || len(report.Problems) != 0 {
		t.Errorf("%+v %v", report, err)
	}
}

func TestHoleThatTheServerNoLongerHas(t *testing.T) {
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	dir := t.TempDir()
	start := segment.LSN(c.CurrentLSN())
	if _, err := receiveTo(t, c, dir, generate(c, 5), func(o *stream.Options) { o.StartLSN = start }); err != nil {
		t.Fatal(err)
	}
	name := pg.List(t, dir).Complete[1]
	os.Remove(filepath.Join(dir, name))
	os.Remove(filepath.Join(c.WALDir(), name))
	_, err := receiveTo(t, c, dir, generate(c, 1), func(o *stream.Options) { o.Repair = stream.RepairStop })
	if !errors.Is(err, segment.ErrGap) || !strings.Contains(err.Error(), name) {
		t.Errorf("got %v, want a gap at %s", err, name)
	}
	holes, err := receiveTo(t, c, dir, generate(c, 1), nil)
	if err != nil || len(holes) != 2 || holes[1].State != stream.HoleLost {
		t.Errorf("got %+v, %v", holes, err)
	}
}

func TestWALRemoved(t *testing.T) {
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	dir := t.TempDir()
	start := segment.LSN(c.CurrentLSN())
	if _, err := receiveTo(t, c, dir, generate(c, 3), func(o *stream.Options) { o.StartLSN = start }); err != nil {
		t.Fatal(err)
	}
	name := strings.TrimSuffix(pg.List(t, dir).Partial[0], ".partial")
	end := generate(c, 2)
	os.Remove(filepath.Join(c.WALDir(), name))
	_, err := receiveTo(t, c, dir, end, nil)
	if !errors.Is(err, stream.ErrWALRemoved) || !strings.Contains(err.Error(), name) {
		t.Errorf("got %v", err)
	}
	t.Log(err)
}

// A server that was recovered to a point before our newest segment is on a timeline of its own from there on.
func TestRecoveredToAnEarlierPoint(t *testing.T) {
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	dir := t.TempDir()
	start := segment.LSN(c.CurrentLSN())
	first := generate(c, 2)
	s := c.Standby("early")
	s.WaitReplayed(c.CurrentLSN())
	s.Configure("primary_conninfo = ''")
	c.WaitGone("early")
	if _, err := receiveTo(t, c, dir, generate(c, 6), func(o *stream.Options) { o.StartLSN = start }); err != nil {
		t.Fatal(err)
	}
	_ = first
	s.Promote()
	for range 3 {
		if _, err := receiveTo(t, s, dir, generate(s, 1), nil); err != nil {
			t.Fatal(err)
		}
	}
	files := pg.List(t, dir)
	t.Log(files)
	c.CompareWithServer(dir) // timeline 1
	for _, name := range files.Complete {
		if name[:8] == "00000001" {
			os.Remove(filepath.Join(s.WALDir(), name)) // of the segment in which it left it may have less
		}
	}
	s.CompareWithServer(dir)
	if len(files.History) != 1 {
		t.Errorf("history files: %v", files.History)
	}
}
