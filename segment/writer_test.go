package segment

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"
)

// openDisk opens a simulated directory with these files.
func openDisk(t *testing.T, files map[string][]byte) (*disk, *Directory) {
	t.Helper()
	disk := newDisk(files)
	d, err := Open(disk, "wal")
	if err != nil {
		t.Fatal(err)
	}
	return disk, d
}

// openTiny opens one with a Writer of the tests' server at its beginning.
func openTiny(t *testing.T, files map[string][]byte) (*disk, *Writer) {
	t.Helper()
	disk, d := openDisk(t, files)
	return disk, tinyWriter(d, nil)
}

func tinyWriter(d *Directory, notify func()) *Writer {
	return d.NewWriter(WriterOptions{Timeline: 1, Start: begin, Size: tiny, SystemIdentifier: testSystem,
		History: server.history(1), Notify: notify})
}

// add appends a part of timeline 1, and waits until the syncer rests.
func add(t *testing.T, w *Writer, from, to LSN) {
	t.Helper()
	for from < to {
		n, err := w.Append(from, server.wal(1, from, to))
		if err != nil {
			t.Fatal(err)
		}
		from += LSN(n)
	}
	synctest.Wait()
}

func inBubble(t *testing.T, name string, test func(t *testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
}

// No LSN is the end of the last segment that an LSN can point into.
func TestAppendAtTheEnd(t *testing.T) {
	last := ^LSN(0) &^ LSN(tiny-1)
	for _, method := range []Compression{Plain, Gzip} {
		inBubble(t, method.String(), func(t *testing.T) {
			_, d := openDisk(t, nil)
			w := d.NewWriter(WriterOptions{Timeline: 1, Start: last, Size: tiny, SystemIdentifier: testSystem, Compression: method})
			if n, err := w.Append(last, make([]byte, 100)); n != 0 || !errors.Is(err, ErrGap) {
				t.Errorf("%d, %v, want ErrGap", n, err)
			}
			if err := w.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Data goes in only where the last ended, and never beyond its segment.
func TestAppend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, w := openTiny(t, nil)
		for _, lsn := range []LSN{0, begin - 1, begin + 1, begin + LSN(tiny)} {
			if n, err := w.Append(lsn, []byte("x")); n != 0 || !errors.Is(err, ErrGap) {
				t.Errorf("at %s: %d, %v, want ErrGap", lsn, n, err)
			}
		}
		if n, err := w.Append(begin, nil); n != 0 || err != nil {
			t.Errorf("nothing: %d, %v", n, err)
		}
		two := server.wal(1, begin, begin+2*LSN(tiny))
		if n, err := w.Append(begin, two); n != int(tiny) || err != nil {
			t.Errorf("two segments: took %d, %v, want %d", n, err, tiny)
		}
		if n, err := w.Append(begin, two); n != 0 || !errors.Is(err, ErrGap) {
			t.Errorf("the same again: %d, %v, want ErrGap", n, err)
		}
		if w.Written() != begin+LSN(tiny) {
			t.Errorf("written %s", w.Written())
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if n, err := w.Append(w.Written(), two[tiny:]); n != 0 || !errors.Is(err, ErrInternal) {
			t.Errorf("after Close: %d, %v, want ErrInternal", n, err)
		}
		if err := w.Close(); err != nil {
			t.Errorf("closed again: %v", err)
		}
	})
}

func TestStartsAtSegment(t *testing.T) {
	d, err := Open(newDisk(nil), "wal")
	if err != nil {
		t.Fatal(err)
	}
	w := d.NewWriter(WriterOptions{Timeline: 1, Start: begin + 1, Size: tiny})
	if _, err := w.Append(begin+1, []byte("x")); !errors.Is(err, ErrInternal) {
		t.Errorf("%v, want ErrInternal", err)
	}
	if err := w.Close(); !errors.Is(err, ErrInternal) {
		t.Errorf("%v, want ErrInternal", err)
	}
}

// Written and flushed are two positions: flushed follows a segment's end, a Flush, or the appearance of a file, and never
// goes into a header that is not whole.
func TestFlushed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, w := openTiny(t, nil)
		want := func(what string, flushed LSN) {
			t.Helper()
			synctest.Wait()
			if got := w.Flushed(); got != flushed {
				t.Errorf("%s: flushed %s of %s, want %s", what, got, w.Written(), flushed)
			}
		}
		want("nothing", begin)
		w.Flush()
		want("nothing to flush", begin)
		add(t, w, begin, begin+39)
		w.Flush()
		want("a part of the header", begin)
		add(t, w, begin+39, begin+60)
		want("that flush, once the header is whole", begin+60)
		add(t, w, begin+60, begin+100)
		want("no flush", begin+60)
		w.Flush()
		want("flush", begin+100)
		add(t, w, begin+100, begin+LSN(tiny))
		want("a whole segment", begin+LSN(tiny))
		add(t, w, begin+LSN(tiny), begin+LSN(tiny)+20)
		w.Flush()
		want("a part of the next header", begin+LSN(tiny))
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		want("closed", begin+LSN(tiny))
		if got := w.Partial(); got != "" {
			t.Errorf("%q is said to be partial, but is not visible", got)
		}

		_, w = openTiny(t, map[string][]byte{name(1, 5) + ".partial": nil})
		add(t, w, begin, begin+20)
		w.Flush()
		want("a part of a visible file's header", begin)
		add(t, w, begin+20, begin+60)
		want("that flush, once the header is whole", begin+60)
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestCloseFlushes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk, w := openTiny(t, nil)
		add(t, w, begin, begin+LSN(tiny)+100)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if w.Flushed() != begin+LSN(tiny)+100 {
			t.Errorf("flushed %s", w.Flushed())
		}
		if want := name(1, 6) + ".partial"; w.Partial() != want {
			t.Errorf("partial %q, want %q", w.Partial(), want)
		}
		if disk.handles != 1 {
			t.Errorf("%d files are still open", disk.handles-1)
		}
	})
}

// A file that cannot be closed is told of, though its data is durable.
func TestCloseFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk, w := openTiny(t, nil)
		disk.err = unix.EIO
		disk.before = func(o operation) {
			if o.kind == opClose {
				disk.fail = len(disk.log)
			}
		}
		add(t, w, begin, begin+100)
		if err := w.Close(); !errors.Is(err, unix.EIO) || w.Flushed() != begin+100 || disk.handles != 1 {
			t.Errorf("%v, flushed %s, %d files are still open", err, w.Flushed(), disk.handles-1)
		}
	})
}

// Events come in the order of the segments, each once: .partial when it is visible, the final name when that is durable.
func TestEvents(t *testing.T) {
	segments := func(events []Event) string {
		var b strings.Builder
		for _, e := range events {
			if want := e.ID.Name(tiny) + map[bool]string{true: "", false: ".partial"}[e.Complete]; e.Name != want {
				t.Errorf("%+v", e)
			}
			fmt.Fprintf(&b, "%d %v, ", e.ID.Number, e.Complete)
		}
		return b.String()
	}
	inBubble(t, "the disk keeps up", func(t *testing.T) {
		disk, d := openDisk(t, nil)
		news := 0
		w := tinyWriter(d, func() { news++ })
		add(t, w, begin, begin+50)
		if got := segments(w.Events()); got != "5 false, " || news != 1 || disk.cache[name(1, 5)+".partial"] == nil {
			t.Errorf("%s, %d news", got, news)
		}
		add(t, w, begin+50, begin+2*LSN(tiny)+50)
		w.Close()
		if got := segments(w.Events()); got != "5 true, 6 true, 7 false, " {
			t.Error(got)
		}
		if got := segments(w.Events()); got != "" {
			t.Errorf("told twice: %s", got)
		}
	})
	inBubble(t, "the disk is behind", func(t *testing.T) {
		disk, w := openTiny(t, nil)
		disk.slow = true
		add(t, w, begin, begin+3*LSN(tiny)+50)
		if got := segments(w.Events()); got != "" {
			t.Errorf("told before it was so: %s", got)
		}
		w.Close()
		if got := segments(w.Events()); got != "5 true, 6 true, 7 true, 8 false, " {
			t.Error(got)
		}
	})
	inBubble(t, "a partial that was there", func(t *testing.T) {
		_, w := openTiny(t, map[string][]byte{name(1, 5) + ".partial": nil})
		add(t, w, begin, begin+1)
		if got := segments(w.Events()); got != "5 false, " {
			t.Error(got)
		}
		add(t, w, begin+1, begin+LSN(tiny))
		w.Close()
		if got := segments(w.Events()); got != "5 true, " {
			t.Error(got)
		}
	})
	inBubble(t, "an error after a complete segment", func(t *testing.T) {
		disk, w := openTiny(t, nil)
		disk.slow, disk.err = true, unix.EIO
		disk.before = func(o operation) { // when the second segment is synced
			if o == (operation{opSync, "(no name)"}) && disk.cache[name(1, 5)] != nil {
				disk.fail = len(disk.log)
			}
		}
		add(t, w, begin, begin+LSN(tiny)+50)
		if err := w.Close(); !errors.Is(err, unix.EIO) {
			t.Errorf("%v, want EIO", err)
		}
		if got := segments(w.Events()); got != "5 true, " || w.Flushed() != begin+LSN(tiny) {
			t.Errorf("%s, flushed %s", got, w.Flushed())
		}
	})
}

// A first page that is not what the server was asked for is refused, before anything of it gets to a file.
func TestFirstPage(t *testing.T) {
	o := binary.LittleEndian
	for rule, c := range map[string]struct {
		change func(h []byte)
		err    error
		text   string
	}{
		"not WAL":              {func(h []byte) { clear(h) }, ErrForeign, "does not begin with the header of a WAL page"},
		"a short header":       {func(h []byte) { h[2] = 0 }, ErrForeign, "does not begin with the header of a WAL page"},
		"another system":       {func(h []byte) { h[24]++ }, ErrForeign, "is of the system"},
		"another size":         {func(h []byte) { o.PutUint32(h[32:], 2*uint32(tiny)) }, ErrForeign, "segments of 512 bytes"},
		"another segment":      {func(h []byte) { o.PutUint64(h[8:], uint64(begin)+uint64(tiny)) }, ErrGap, "begins with the page of 0/600 instead of 0/500"},
		"4 GiB back":           {func(h []byte) { o.PutUint64(h[8:], uint64(begin)+1<<32) }, ErrGap, "instead of 0/500"},
		"another timeline":     {func(h []byte) { h[4] = 2 }, ErrForeign, "begins with a page of timeline 2 instead of 1"},
		"another byte order":   {func(h []byte) { h[0], h[1] = h[1], h[0] }, ErrForeign, "does not begin with the header"},
		"another server's":     {func(h []byte) { h[0] = 0x18 }, nil, ""}, // PostgreSQL 18
		"whatever rem_len is":  {func(h []byte) { h[16] = 99 }, nil, ""},
		"more bits in info":    {func(h []byte) { h[2] |= 1 | 4 | 8 }, nil, ""},
		"whatever block size":  {func(h []byte) { o.PutUint32(h[36:], 32768) }, nil, ""},
		"what we asked for":    {func([]byte) {}, nil, ""},
		"a big-endian machine": {swapHeader, nil, ""},
	} {
		for _, piece := range []int{1, 13, 39, 40, 100} {
			inBubble(t, fmt.Sprintf("%s in pieces of %d", rule, piece), func(t *testing.T) {
				partial := name(1, 5) + ".partial"
				ours := padded(server.wal(1, begin, begin+100), tiny)
				disk, w := openTiny(t, map[string][]byte{partial: ours})
				data := slices.Clone(server.wal(1, begin, begin+LSN(tiny)))
				c.change(data[:pageHeaderSize])
				var err error
				for at := 0; at < len(data) && err == nil; {
					var n int
					n, err = w.Append(begin+LSN(at), data[at:min(len(data), at+piece)])
					at += n
				}
				if !errors.Is(err, c.err) || c.err != nil && !strings.Contains(err.Error(), c.text) {
					t.Errorf("%v, want %v, %q", err, c.err, c.text)
				}
				if err := w.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
				got := disk.contents()
				if c.err != nil && (!bytes.Equal(got[partial], ours) || w.Flushed() != begin) {
					t.Errorf("it got to the disk: %x, flushed %s", got[partial], w.Flushed())
				}
				if c.err == nil && !bytes.Equal(got[name(1, 5)], data) {
					t.Errorf("it did not get to the disk: %x", got)
				}
			})
		}
	}
}

func swapHeader(h []byte) {
	for _, field := range [][2]int{{0, 2}, {2, 4}, {4, 8}, {8, 16}, {16, 20}, {24, 32}, {32, 36}, {36, 40}} {
		slices.Reverse(h[field[0]:field[1]])
	}
}

// After a timeline switch the first segment begins with its ancestor's page.
func TestFirstPageOfAncestor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for timeline, c := range map[Timeline]struct {
			start LSN
			err   error
		}{2: {tiny.Floor(switched), nil}, 1: {tiny.Floor(switched) + LSN(tiny), ErrForeign}} {
			d, err := Open(newDisk(nil), "wal")
			if err != nil {
				t.Fatal(err)
			}
			w := d.NewWriter(WriterOptions{Timeline: 2, Start: c.start, Size: tiny, SystemIdentifier: testSystem, History: server.history(2)})
			if _, err := w.Append(c.start, server.wal(timeline, c.start, c.start+LSN(tiny))); !errors.Is(err, c.err) {
				t.Errorf("%v, want %v", err, c.err)
			}
			if err := w.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

// A partial that is longer than a segment is of another cluster, and not ours to cut.
func TestTooLongPartial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		long := make([]byte, 2*tiny)
		disk, w := openTiny(t, map[string][]byte{name(1, 5) + ".partial": long})
		if _, err := w.Append(begin, server.wal(1, begin, begin+50)); !errors.Is(err, ErrForeign) {
			t.Errorf("%v, want ErrForeign", err)
		}
		w.Close()
		if len(disk.contents()[name(1, 5)+".partial"]) != len(long) || disk.handles != 1 {
			t.Errorf("%d bytes, %d open", len(disk.contents()[name(1, 5)+".partial"]), disk.handles)
		}
	})
}

// Somebody else's file with the name that we want is not replaced.
func TestPartialAppears(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk, w := openTiny(t, nil)
		add(t, w, begin, begin+20)
		disk.change(change{to: name(1, 5) + ".partial", file: &inode{data: []byte("x")}})
		add(t, w, begin+20, begin+50)
		if err := w.Close(); !errors.Is(err, ErrIO) || !strings.Contains(err.Error(), name(1, 5)+".partial") || w.Flushed() != begin {
			t.Errorf("%v, flushed %s", err, w.Flushed())
		}
		if got := disk.contents()[name(1, 5)+".partial"]; string(got) != "x" || disk.handles != 1 {
			t.Errorf("%q, %d open", got, disk.handles)
		}
	})
}

// A failure of the syncer is final: it is told, every later call says so, nothing is tried again, and flushed stays.
func TestSyncerFails(t *testing.T) {
	for _, kind := range []kind{opSync, opSyncDir, opLink, opRename, opClose} {
		inBubble(t, string(kind), func(t *testing.T) {
			disk, d := openDisk(t, nil)
			told := false
			w := tinyWriter(d, func() { told = true })
			disk.err = unix.EIO
			disk.before = func(o operation) {
				if o.kind == kind && disk.fail < 0 && w.Flushed() > begin {
					disk.fail, told = len(disk.log), false
				}
			}
			at := begin
			for n := 0; w.Err() == nil; n++ {
				for end := at + 30; at < end && w.Err() == nil; {
					took, err := w.Append(at, server.wal(1, at, end))
					if err != nil {
						t.Fatal(err)
					}
					at += LSN(took)
					synctest.Wait() // or the next segment is begun while the syncer fails
				}
				if n%3 == 2 {
					w.Flush()
					synctest.Wait()
				}
			}
			flushed := w.Flushed()
			if !told || flushed == begin {
				t.Errorf("told %v, flushed %s", told, flushed)
			}
			if n, err := w.Append(at, server.wal(1, at, at+10)); n != 0 || !errors.Is(err, unix.EIO) {
				t.Errorf("Append: %d, %v, want EIO", n, err)
			}
			w.Flush()
			synctest.Wait()
			if err := w.Close(); !errors.Is(err, unix.EIO) || err != w.Err() {
				t.Errorf("Close: %v, want EIO", err)
			}
			if w.Flushed() != flushed || disk.handles != 1 {
				t.Errorf("flushed %s, and later %s; %d files are still open", flushed, w.Flushed(), disk.handles-1)
			}
			for _, o := range disk.log[disk.fail+1:] {
				if o.kind.changes() {
					t.Errorf("%s after the failure", o)
				}
			}
		})
	}
}

// A panic in the syncer becomes an error.
func TestPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, err := Open(panicking{newDisk(nil)}, "wal")
		if err != nil {
			t.Fatal(err)
		}
		w := tinyWriter(d, nil)
		add(t, w, begin, begin+100)
		if err := w.Close(); !errors.Is(err, ErrInternal) || !strings.Contains(err.Error(), "on purpose") {
			t.Errorf("%v, want ErrInternal", err)
		}
	})
}

type panicking struct{ *disk }

func (p panicking) OpenDir(path string) (Dir, error) {
	dir, err := p.disk.OpenDir(path)
	return panickingDir{dir}, err
}

type panickingDir struct{ Dir }

func (panickingDir) Sync() error { panic("on purpose") }

// While the disk is behind, the caller has to wait; it is told when it may go on. Failures end the wait, too.
func TestReady(t *testing.T) {
	for _, fails := range []bool{false, true} {
		inBubble(t, fmt.Sprintf("fails %v", fails), func(t *testing.T) {
			const size = MaxSize / 8 // 128 MiB: two segments may wait
			d, err := Open(bottomless{newDisk(nil)}, "wal")
			if err != nil {
				t.Fatal(err)
			}
			disk := d.dir.(bottomlessDir).Dir.(*diskDir).d
			disk.slow = true
			news := make(chan struct{}, 1)
			w := d.NewWriter(WriterOptions{Timeline: 1, Start: LSN(size), Size: size, SystemIdentifier: testSystem,
				History: server.history(1), Notify: func() { news <- struct{}{} }})
			if fails {
				disk.before = func(o operation) {
					if o.kind == opSync {
						disk.fail, disk.err = len(disk.log), unix.EIO
					}
				}
			}
			lsn, data := LSN(size), make([]byte, size)
			segment := func() {
				t.Helper()
				h := header(1, lsn, size)
				copy(data, h[:])
				if n, err := w.Append(lsn, data); n != len(data) || err != nil {
					t.Fatal(n, err)
				}
				lsn += LSN(size)
				synctest.Wait()
			}
			segment()
			segment()
			if !w.Ready() {
				t.Error("not ready with two segments waiting")
			}
			segment()
			if w.Ready() {
				t.Error("ready with three segments waiting")
			}
			<-news
			switch err := w.Err(); {
			case fails && !errors.Is(err, unix.EIO):
				t.Error(err)
			case !fails && !w.Ready():
				t.Error("not ready with two segments waiting again")
			}
			go func() {
				for range news {
				}
			}()
			if err := w.Close(); err != nil && !fails {
				t.Error(err)
			}
			close(news)
		})
	}
}

// bottomless is a disk whose files hold nothing.
type bottomless struct{ *disk }

func (b bottomless) OpenDir(path string) (Dir, error) {
	dir, err := b.disk.OpenDir(path)
	return bottomlessDir{dir}, err
}

type bottomlessDir struct{ Dir }

func (b bottomlessDir) Create(os.FileMode) (File, error) {
	f, err := b.Dir.Create(0)
	return bottomlessFile{f}, err
}

func (b bottomlessDir) Link(f File, name string) error {
	return b.Dir.Link(f.(bottomlessFile).File, name)
}

type bottomlessFile struct{ File }

func (bottomlessFile) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (bottomlessFile) Allocate(int64) error                   { return nil }

// The same on a real disk, with goroutines that look on all the time: what is reported flushed is in a file, and never
// goes back. Best with -race.
func TestOnDisk(t *testing.T) {
	path := t.TempDir()
	d, err := Open(OS, path)
	if err != nil {
		t.Fatal(err)
	}
	const first, last = LSN(5 * MinSize), LSN(12*MinSize) + 5000
	c := newCluster(MinSize, 13*LSN(MinSize))
	w := d.NewWriter(WriterOptions{Timeline: 1, Start: first, Size: MinSize, SystemIdentifier: testSystem, History: c.history(1)})
	var watch sync.WaitGroup
	done := make(chan struct{})
	for range 2 {
		watch.Go(func() {
			for flushed := first; ; {
				select {
				case <-done:
					return
				default:
				}
				now := w.Flushed()
				if now < flushed || now > w.Written() || w.Err() != nil {
					t.Errorf("flushed %s after %s, written %s, %v", now, flushed, w.Written(), w.Err())
					return
				}
				if flushed = now; flushed > first {
					id := At(1, flushed-1, MinSize)
					got, err := os.ReadFile(filepath.Join(path, id.Name(MinSize)+".partial"))
					if errors.Is(err, os.ErrNotExist) {
						got, err = os.ReadFile(filepath.Join(path, id.Name(MinSize)))
					}
					if err != nil || !bytes.HasPrefix(got, c.wal(1, id.LSN(MinSize), flushed)) {
						t.Errorf("flushed %s, but it isn't there: %v", flushed, err)
						return
					}
				}
				w.Ready()
			}
		})
	}
	for at, n := first, 0; at < last; n++ {
		took, err := w.Append(at, c.wal(1, at, min(last, at+LSN(1+n*7919%60000))))
		if err != nil {
			t.Fatal(err)
		}
		at += LSN(took)
		if n%5 == 0 {
			w.Flush()
		}
		w.Events()
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	close(done)
	watch.Wait()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	want := map[string][]byte{}
	for id := At(1, first, MinSize); id.End(MinSize) <= last; id.Number++ {
		want[id.Name(MinSize)] = c.segment(id)
	}
	id := At(1, last, MinSize)
	want[id.Name(MinSize)+".partial"] = padded(c.wal(1, id.LSN(MinSize), last), MinSize)
	if got := readAll(t, path); difference(got, want) != nil {
		t.Error("the archive is not the server's WAL")
	}
	if s, err := FindStart(path, 0, nil); err != nil || s.LSN != id.LSN(MinSize) {
		t.Errorf("%+v, %v", s, err)
	}
}

// readAll reads the files of a directory; folders come with a slash and no content.
func readAll(t *testing.T, path string) map[string][]byte {
	t.Helper()
	entries, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, e := range entries {
		if e.IsDir() {
			files[e.Name()+"/"] = nil
			continue
		}
		if files[e.Name()], err = os.ReadFile(filepath.Join(path, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return files
}
