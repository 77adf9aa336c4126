package segment

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"libreceivewal/tests/encoder"
)

// Each encoder makes an ordinary file that holds what was written, whatever the pieces; after each Flush that much can be decoded of
// what has come out; and it does so again after Reset. gzip's last four bytes are the length, by which pg_receivewal judges a file.
func TestEncoders(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for method, highest := range map[Compression]int{Gzip: 9, LZ4: 12, Zstd: 19} {
		for level := range highest + 1 {
			t.Run(fmt.Sprint(method, level), func(t *testing.T) {
				e, err := newEncoder(method, level, MinSize)
				if err != nil {
					t.Fatal(err)
				}
				data, out := encoder.Check(t, e, func(in io.Reader) io.Reader { return decoder(method, in) }, random)
				if size := binary.LittleEndian.Uint32(out[len(out)-4:]); method == Gzip && size != uint32(len(data)) {
					t.Errorf("ISIZE is %d", size)
				}
			})
		}
		for _, level := range []int{-1, highest + 1} {
			if method.CheckLevel(level) == nil {
				t.Errorf("%s has a level %d", method, level)
			}
		}
	}
}

// gated is a disk whose files hold nothing, and whose writes wait for the gate.
type gated struct {
	*disk
	gate chan struct{}
}

func (g gated) OpenDir(path string) (Dir, error) {
	dir, err := g.disk.OpenDir(path)
	return gatedDir{bottomlessDir{dir}, g.gate}, err
}

type gatedDir struct {
	bottomlessDir
	gate chan struct{}
}

func (g gatedDir) Create(mode fs.FileMode) (File, error) {
	f, err := g.bottomlessDir.Create(mode)
	return gatedFile{f.(bottomlessFile), g.gate}, err
}

func (g gatedDir) Link(f File, name string) error {
	return g.bottomlessDir.Link(f.(gatedFile).bottomlessFile, name)
}

type gatedFile struct {
	bottomlessFile
	gate chan struct{}
}

func (g gatedFile) WriteAt(p []byte, _ int64) (int, error) {
	<-g.gate
	return len(p), nil
}

// While the disk, or the processor, is behind, no more waits in memory than is promised: some chunks for one worker, a segment for
// each of several, and 256 MiB whatever is asked for. As many segments are compressed at a time as there are workers.
func TestQueueIsBounded(t *testing.T) {
	for _, c := range []struct {
		workers int
		size    Size
		limit   int
		packed  int // segments that have begun
	}{
		{0, 16 << 20, 4 << 20, 1},
		{1, 64 << 20, 4 << 20, 1},
		{2, 16 << 20, 32 << 20, 2},
		{4, 1 << 20, 4 << 20, 4},
		{3, 16 << 20, 48 << 20, 3},
		{5, 64 << 20, 256 << 20, 4},
	} {
		inBubble(t, fmt.Sprint(c.workers, " workers, ", c.size), func(t *testing.T) {
			gate := make(chan struct{})
			d, err := Open(gated{newDisk(nil), gate}, "wal")
			if err != nil {
				t.Fatal(err)
			}
			w := d.NewWriter(WriterOptions{Timeline: 1, Start: LSN(c.size), Size: c.size, SystemIdentifier: testSystem, History: server.history(1),
				Compression: LZ4, CompressionWorkers: c.workers})
			random := rand.New(rand.NewPCG(1, 2))
			data := make([]byte, 128<<10)
			for i := range data {
				data[i] = byte(random.Uint32()) // so that it stays as large, and each worker soon has to write
			}
			lsn := LSN(c.size)
			appended := 0
			for w.Ready() {
				piece := data
				if c.size.Offset(lsn) == 0 {
					h := header(1, lsn, c.size)
					piece = append(h[:], data[pageHeaderSize:]...)
				}
				n, err := w.Append(lsn, piece)
				if err != nil {
					t.Fatal(err)
				}
				lsn += LSN(n)
				appended += n
				synctest.Wait()
			}
			w.mu.Lock()
			queued, begun := w.pack.queued*chunkSize, 0
			for _, s := range w.pending {
				if s.pack.taken {
					begun++
				}
			}
			w.mu.Unlock()
			if queued != c.limit {
				t.Errorf("%d bytes wait, want %d", queued, c.limit)
			}
			// An encoder and what it has put out hold a few chunks more each.
			if more := appended - queued; more < 0 || more > max(1, c.workers)*4*chunkSize {
				t.Errorf("%d bytes were taken besides", more)
			}
			if begun != c.packed {
				t.Errorf("%d segments are compressed at a time, want %d", begun, c.packed)
			}
			close(gate)
			synctest.Wait()
			chunks := func() int {
				w.mu.Lock()
				defer w.mu.Unlock()
				return len(w.pack.free)
			}
			if n := chunks(); n < c.limit/chunkSize {
				t.Errorf("%d chunks are kept for the next data, want %d", n, c.limit/chunkSize)
			}
			if time.Sleep(2*trimAfter + 1); chunks() != 0 || w.pack.trim != nil {
				t.Errorf("without data, %d chunks are kept", chunks())
			}
			if err := w.Close(); err != nil || w.Flushed() != lsn {
				t.Errorf("%v, flushed %s of %s", err, w.Flushed(), lsn)
			}
		})
	}
}

// foreign is an encoder of a program's own.
type foreign struct {
	Encoder
	freed *int
}

func (f foreign) Free() { *f.freed++ }

// An encoder of the program's own is used for LZ4 and nothing else, one for each worker, and freed however the worker ends.
func TestUseLZ4(t *testing.T) {
	defer UseLZ4(newLZ4)
	for _, method := range []Compression{LZ4, Gzip} {
		for _, whole := range []bool{true, false} {
			made, freed := 0, 0
			UseLZ4(func(level int) (Encoder, error) {
				made++
				e, err := newLZ4(level)
				return foreign{e, &freed}, err
			})
			synctest.Test(t, func(t *testing.T) {
				disk, d := openDisk(t, nil)
				w := d.NewWriter(WriterOptions{Timeline: 1, Start: begin, Size: tiny, SystemIdentifier: testSystem, History: server.history(1),
					Compression: method})
				add(t, w, begin, begin+2*LSN(tiny)+100)
				if !whole {
					disk.fail, disk.err = len(disk.log), unix.EIO
					if _, err := w.Append(begin+2*LSN(tiny)+100, server.wal(1, begin+2*LSN(tiny)+100, begin+3*LSN(tiny))); err != nil {
						t.Fatal(err)
					}
				}
				if err := w.Close(); (err == nil) != whole {
					t.Error(err)
				}
			})
			if want := map[Compression]int{LZ4: 1}[method]; made != want || freed != want {
				t.Errorf("%s, whole: %t: %d were made and %d freed, want %d", method, whole, made, freed, want)
			}
		}
	}
}

// On a real disk, with several workers: every file is whole, and what was told of it is so. Best with -race.
func TestWorkersOnDisk(t *testing.T) {
	for i, method := range []Compression{Gzip, LZ4, Zstd} {
		t.Run(method.String(), func(t *testing.T) {
			path := t.TempDir()
			d, err := Open(OS, path)
			if err != nil {
				t.Fatal(err)
			}
			const first, last = LSN(5 * MinSize), LSN(15*MinSize) + 5000
			c := newCluster(MinSize, 16*LSN(MinSize))
			news := make(chan struct{}, 1)
			w := d.NewWriter(WriterOptions{Timeline: 1, Start: first, Size: MinSize, SystemIdentifier: testSystem, History: c.history(1),
				Compression: method, CompressionLevel: 1, CompressionWorkers: 1 + i, Notify: func() {
					select {
					case news <- struct{}{}:
					default:
					}
				}})
			for at, n := first, 0; at < last; n++ {
				for !w.Ready() {
					<-news
				}
				took, err := w.Append(at, c.wal(1, at, min(last, at+LSN(1+n*7919%60000))))
				if err != nil {
					t.Fatal(err)
				}
				at += LSN(took)
				if n%50 == 0 {
					w.Flush()
				}
			}
			if err := w.Close(); err != nil || w.Flushed() != last || w.Written() != last {
				t.Fatalf("%v, flushed %s", err, w.Flushed())
			}
			partial := At(1, last, MinSize).Name(MinSize) + method.Suffix() + ".partial"
			if w.Partial() != partial {
				t.Errorf("the partial one is %q", w.Partial())
			}
			var told []string
			for _, e := range w.Events() {
				if e.Complete {
					told = append(told, e.Name)
				}
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			total, n := 0, 0
			for name, data := range readAll(t, path) {
				total += len(data)
				f, ok := parseFile(name)
				id, err := ParseName(f.base, MinSize)
				if !ok || err != nil || f.compression != method {
					t.Fatalf("a stray file %s", name)
				}
				have, err := io.ReadAll(decoder(method, bytes.NewReader(data)))
				switch want := c.wal(1, id.LSN(MinSize), min(last, id.End(MinSize))); {
				case f.partial != (name == partial), (err == nil) == f.partial, !bytes.Equal(have, want):
					t.Errorf("%s holds %d bytes of %d, %v", name, len(have), len(want), err)
				case !f.partial:
					n++
					if !strings.Contains(strings.Join(told, " "), name) {
						t.Errorf("%s was not told of", name)
					}
				}
			}
			if n != 10 || len(told) != 10 || uint64(total) != w.Stored() {
				t.Errorf("%d segments, %d told of; %d bytes of %d", n, len(told), w.Stored(), total)
			}
			if s, err := FindStart(path, 0, nil); err != nil || s.LSN != last-5000 || s.File != partial {
				t.Errorf("%+v, %v", s, err)
			}
		})
	}
}

// While there is no room nothing is lost and nothing is retried by itself; when it is asked for, it goes on where it was. Closed without
// room, the writer says so, and leaves what was flushed.
func TestStalled(t *testing.T) {
	for _, recovers := range []bool{true, false} {
		inBubble(t, fmt.Sprintf("recovers %v", recovers), func(t *testing.T) {
			disk, d := openDisk(t, nil)
			news := 0
			w := d.NewWriter(WriterOptions{Timeline: 1, Start: begin, Size: tiny, SystemIdentifier: testSystem, History: server.history(1),
				Compression: Gzip, Notify: func() { news++ }})
			add(t, w, begin, begin+100)
			disk.err = unix.ENOSPC
			room := false
			tries := 0
			disk.before = func(o operation) {
				if o.kind == opWrite && !room {
					disk.fail = len(disk.log)
					tries++
				}
			}
			before := news
			add(t, w, begin+100, begin+150)
			w.Flush()
			synctest.Wait()
			if err := w.Stalled(); !errors.Is(err, ErrDiskFull) || w.Ready() || w.Err() != nil || news == before || tries != 1 {
				t.Errorf("%v, ready %v, %v, %d tries", err, w.Ready(), w.Err(), tries)
			}
			if n, err := w.Append(begin+150, server.wal(1, begin+150, begin+160)); n != 0 || !errors.Is(err, ErrDiskFull) {
				t.Errorf("Append: %d, %v", n, err)
			}
			for range 3 {
				w.Retry()
				synctest.Wait()
			}
			if err := w.Stalled(); !errors.Is(err, ErrDiskFull) || tries != 4 || w.Flushed() != begin+100 {
				t.Errorf("%v, %d tries, flushed %s", err, tries, w.Flushed())
			}
			if room = recovers; room {
				w.Retry()
				synctest.Wait()
				if w.Stalled() != nil || !w.Ready() || w.Flushed() != begin+150 {
					t.Errorf("%v, ready %v, flushed %s", w.Stalled(), w.Ready(), w.Flushed())
				}
				add(t, w, begin+150, begin+2*LSN(tiny))
			}
			err := w.Close()
			if recovers != (err == nil) || err != nil && (!errors.Is(err, ErrDiskFull) || w.Flushed() != begin+100) || disk.handles != 1 {
				t.Errorf("%v, flushed %s, %d open", err, w.Flushed(), disk.handles-1)
			}
			want := server.wal(1, begin, begin+100)
			file := name(1, 5) + ".gz.partial"
			if recovers {
				want, file = server.segment(ID{1, 5}), name(1, 5)+".gz"
			}
			if have, _ := io.ReadAll(decoder(Gzip, bytes.NewReader(disk.contents()[file]))); !bytes.HasPrefix(have, want) {
				t.Errorf("%d bytes of %d", len(have), len(want))
			}
		})
	}
}

// A panic of an encoder becomes an error.
func TestPackerPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, d := openDisk(t, nil)
		w := d.NewWriter(WriterOptions{Timeline: 1, Start: begin, Size: tiny, SystemIdentifier: testSystem, History: server.history(1),
			Compression: Gzip})
		add(t, w, begin, begin+40)
		w.mu.Lock()
		w.pending[0].pack.queue = append(w.pending[0].pack.queue, nil)
		w.pack.work.Broadcast()
		w.mu.Unlock()
		synctest.Wait()
		if err := w.Close(); !errors.Is(err, ErrInternal) || err != w.Err() {
			t.Errorf("%v, want ErrInternal", err)
		}
	})
}

// What is in the old file beyond the first byte that differs is not waited for: somebody else's leftovers do not keep a file without a
// name, and the flushed position back.
func TestOldFileDiffers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		whole := bytes.Clone(server.segment(ID{1, 5}))
		for i := 100; i < len(whole); i++ {
			whole[i] ^= 1
		}
		for what, files := range map[string]map[string][]byte{
			"plain":     {name(1, 5) + ".partial": whole},
			"gzip":      {name(1, 5) + ".gz.partial": gzipped(whole)},
			"its own":   {name(1, 5) + ".zst.partial": wholeZstd(whole)},
			"not WAL":   {name(1, 5) + ".lz4.partial": []byte("not a frame")},
			"all zeros": {name(1, 5) + ".partial": make([]byte, tiny)},
		} {
			disk, d := openDisk(t, files)
			w := d.NewWriter(WriterOptions{Timeline: 1, Start: begin, Size: tiny, SystemIdentifier: testSystem, History: server.history(1),
				Compression: Zstd})
			add(t, w, begin, begin+90)
			w.Flush()
			synctest.Wait()
			if w.Flushed() != begin+90 { // the old file has it, or there is a new one
				t.Errorf("%s: flushed %s", what, w.Flushed())
			}
			add(t, w, begin+90, begin+110)
			w.Flush()
			synctest.Wait()
			have, _ := io.ReadAll(decoder(Zstd, bytes.NewReader(disk.contents()[name(1, 5)+".zst.partial"])))
			if w.Flushed() != begin+110 || !bytes.Equal(have, server.wal(1, begin, begin+110)) || len(disk.contents()) != 1 {
				t.Errorf("%s: flushed %s, %d bytes, %d files", what, w.Flushed(), len(have), len(disk.contents()))
			}
			w.Close()
			d.Close()
		}
	})
}

// While an old file may hold more, nothing but what it holds, too, counts as flushed, and the new one has no name.
func TestFlushedByOldFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := cutGzip(server.wal(1, begin, begin+200))
		disk, d := openDisk(t, map[string][]byte{name(1, 5) + ".gz.partial": old})
		w := d.NewWriter(WriterOptions{Timeline: 1, Start: begin, Size: tiny, SystemIdentifier: testSystem, History: server.history(1), Compression: Gzip})
		for at := begin; at < begin+180; at += 60 {
			add(t, w, at, at+60)
			w.Flush()
			synctest.Wait()
			if w.Flushed() != at+60 || !bytes.Equal(disk.contents()[name(1, 5)+".gz.partial"], old) || len(disk.contents()) != 1 || w.Partial() != "" {
				t.Errorf("at %s: flushed %s, %q", at+60, w.Flushed(), w.Partial())
			}
		}
		add(t, w, begin+180, begin+201)
		w.Flush()
		synctest.Wait()
		have, _ := io.ReadAll(decoder(Gzip, bytes.NewReader(disk.contents()[name(1, 5)+".gz.partial"])))
		if w.Flushed() != begin+201 || !bytes.Equal(have, server.wal(1, begin, begin+201)) || w.Partial() == "" {
			t.Errorf("flushed %s, %d bytes", w.Flushed(), len(have))
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A file takes the name of another one, whether the file system knows unnamed files or not, and leaves nothing beside it.
func TestReplace(t *testing.T) {
	for _, tmpfile := range []bool{true, false} {
		path := t.TempDir()
		d, err := OS.OpenDir(path)
		if err != nil {
			t.Fatal(err)
		}
		d.(*osDir).noTmpfile = !tmpfile
		if err := d.Lock(); err != nil {
			t.Fatal(err)
		}
		os.WriteFile(filepath.Join(path, "x"), []byte("old"), 0o600)
		f, err := d.Create(0o640)
		if err != nil {
			t.Fatal(err)
		}
		f.WriteAt([]byte("new"), 0)
		if err := errors.Join(d.Replace(f, "x"), f.Close()); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(filepath.Join(path, "x"))
		if err != nil || info.Mode().Perm() != 0o640 {
			t.Errorf("%v, %v", info, err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if got := readAll(t, path); len(got) != 1 || string(got["x"]) != "new" {
			t.Errorf("%q", got)
		}
	}
}

// Where an old file differs it ends, whatever follows; what the disk cannot read is an error, not its end, and removes nothing.
func TestOldFileEnds(t *testing.T) {
	o := &old{in: bufio.NewReader(strings.NewReader("aXbb")), from: &fileReader{}}
	if err := o.compare([]byte("abb")); err != nil || o.same != 1 || o.in != nil {
		t.Errorf("%v, %d bytes are the same", err, o.same)
	}
	synctest.Test(t, func(t *testing.T) {
		gz := name(1, 5) + ".gz.partial"
		disk, d := openDisk(t, map[string][]byte{gz: cutGzip(server.wal(1, begin, begin+200))})
		want := disk.contents()[gz]
		disk.before = func(o operation) {
			if o.kind == opRead {
				disk.fail, disk.err = len(disk.log), unix.EIO
			}
		}
		w := d.NewWriter(WriterOptions{Timeline: 1, Start: begin, Size: tiny, SystemIdentifier: testSystem, History: server.history(1), Compression: LZ4})
		if n, err := w.Append(begin, server.wal(1, begin, begin+100)); n != 0 || !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), gz) {
			t.Errorf("%d, %v", n, err)
		}
		if err := w.Close(); err != nil || disk.handles != 1 || !bytes.Equal(disk.contents()[gz], want) || len(disk.contents()) != 1 {
			t.Errorf("%v, %d open, %d files", err, disk.handles-1, len(disk.contents()))
		}
	})
}

// A segment that fills a hole counts as flushed only once it is there, whole.
func TestFillsAHole(t *testing.T) {
	for _, method := range []Compression{Plain, Gzip, LZ4, Zstd} {
		inBubble(t, method.String(), func(t *testing.T) {
			disk, d := openDisk(t, nil)
			w := d.NewWriter(WriterOptions{Timeline: 1, Start: begin, Size: tiny, SystemIdentifier: testSystem, History: server.history(1), Whole: true,
				Compression: method})
			add(t, w, begin, begin+100)
			w.Flush()
			synctest.Wait()
			if w.Flushed() != begin || len(disk.contents()) != 0 {
				t.Errorf("flushed %s, %d files", w.Flushed(), len(disk.contents()))
			}
			add(t, w, begin+100, begin+LSN(tiny)+50)
			if w.Flushed() != begin+LSN(tiny) || len(disk.contents()) != 1 || disk.contents()[name(1, 5)+method.Suffix()] == nil {
				t.Errorf("flushed %s, %d files", w.Flushed(), len(disk.contents()))
			}
			if err := w.Close(); err != nil || w.Flushed() != begin+LSN(tiny) || len(disk.contents()) != 1 || disk.handles != 1 {
				t.Errorf("%v, flushed %s", err, w.Flushed())
			}
		})
	}
}

// A new segment's file gets its name as soon as its header is there, without a flush: it tells the next receive where to go on.
func TestCompressedIsShown(t *testing.T) {
	for _, method := range []Compression{Gzip, LZ4, Zstd} {
		inBubble(t, method.String(), func(t *testing.T) {
			disk, d := openDisk(t, nil)
			w := d.NewWriter(WriterOptions{nameAfter: -1, Timeline: 1, Start: begin, Size: tiny, SystemIdentifier: testSystem, History: server.history(1), Compression: method})
			for _, at := range []LSN{begin, begin + LSN(tiny)} {
				partial := At(1, at, tiny).Name(tiny) + method.Suffix() + ".partial"
				add(t, w, at, at+39)
				if _, found := disk.contents()[partial]; found {
					t.Errorf("%s is there before its header", partial)
				}
				add(t, w, at+39, at+60)
				if have, _ := io.ReadAll(decoder(method, bytes.NewReader(disk.contents()[partial]))); !bytes.Equal(have, server.wal(1, at, at+60)) || w.Partial() != partial {
					t.Errorf("%s holds %d bytes; partial is %q", partial, len(have), w.Partial())
				}
				add(t, w, at+60, at+LSN(tiny))
			}
			if err := w.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
