package segment

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

const mib = 1 << 20

// a file of a test's directory
type made struct {
	content []byte
	size    int64 // longer than the content: the rest is a hole
	folder  bool
	link    string
}

func bytesOf(b []byte) made { return made{content: b} }
func sized(n int64) made    { return made{size: n} }

func makeFiles(t *testing.T, path string, files map[string]made) {
	t.Helper()
	for name, f := range files {
		full := filepath.Join(path, name)
		var err error
		switch {
		case f.folder:
			err = os.Mkdir(full, 0o700)
		case f.link != "":
			err = os.Symlink(f.link, full)
		default:
			if err = os.WriteFile(full, f.content, 0o600); err == nil && f.size > 0 {
				err = os.Truncate(full, f.size)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func wholeZstd(data []byte) []byte {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err)
	}
	return z.EncodeAll(data, nil)
}

func wholeLZ4(data []byte) []byte {
	var b bytes.Buffer
	z := lz4.NewWriter(&b)
	z.Write(data)
	z.Close()
	return b.Bytes()
}

func TestStart(t *testing.T) {
	gz, lz := gzipped(make([]byte, mib)), wholeLZ4(make([]byte, mib))
	const (
		n5 = "000000010000000000000005"
		n6 = "000000010000000000000006"
		n7 = "000000010000000000000007"
	)
	type files = map[string]made
	for _, c := range []struct {
		rule  string
		size  Size // 0: 1 MiB
		files files
		lsn   LSN
		tl    Timeline
		file  string
		warns []string // a part of each warning
	}{
		{rule: "nothing"},
		{rule: "foreign files and folders", files: files{"notes.txt": sized(mib), "backup_label": bytesOf(nil), n7 + ".zst.tmp": sized(mib),
			"00000002.history": bytesOf([]byte("x")), n7 + ".tmp": sized(mib), "00000001000000000000000a": sized(mib),
			n7: {folder: true}, n6 + ".partial": {folder: true}, ".receivewal": {folder: true}}},
		{rule: "made by another program of a complete one", files: files{n5: sized(mib), n6 + ".zst.aes": sized(3)}, lsn: 7 * mib, tl: 1,
			file: n6 + ".zst.aes"},
		{rule: "after a complete segment", files: files{n5: sized(mib)}, lsn: 6 * mib, tl: 1, file: n5},
		{rule: "again at a partial one", files: files{n5 + ".partial": sized(mib)}, lsn: 5 * mib, tl: 1, file: n5 + ".partial"},
		{rule: "empty partial", files: files{n5 + ".partial": bytesOf(nil)}, lsn: 5 * mib, tl: 1, file: n5 + ".partial"},
		{rule: "short partial", files: files{n5 + ".partial": sized(614400)}, lsn: 5 * mib, tl: 1, file: n5 + ".partial"},
		{rule: "the newest number", files: files{n5: sized(mib), n6: sized(mib), n7 + ".partial": sized(mib)}, lsn: 7 * mib, tl: 1,
			file: n7 + ".partial"},
		{rule: "number before timeline", files: files{"000000020000000000000005": sized(mib), n6: sized(mib)}, lsn: 7 * mib, tl: 1, file: n6},
		{rule: "the higher timeline", files: files{"000000020000000000000006": sized(mib), n6: sized(mib)}, lsn: 7 * mib, tl: 2,
			file: "000000020000000000000006"},
		{rule: "timeline before complete", files: files{"000000020000000000000006.partial": sized(mib), n6: sized(mib)}, lsn: 6 * mib, tl: 2,
			file: "000000020000000000000006.partial"},
		{rule: "complete before partial", files: files{n6: sized(mib), n6 + ".partial": sized(mib), n6 + ".gz.partial": sized(3)},
			lsn: 7 * mib, tl: 1, file: n6},
		{rule: "wrong sizes", files: files{n5: sized(mib), n6: sized(mib - 1), n7: sized(mib + 1)}, lsn: 6 * mib, tl: 1, file: n5,
			warns: []string{n7 + `" has incorrect size 1048577, skipping`, n6 + `" has incorrect size 1048575, skipping`}},
		{rule: "a complete one of the wrong size leaves the partial one", files: files{n6: bytesOf(nil), n6 + ".partial": sized(mib)},
			lsn: 6 * mib, tl: 1, file: n6 + ".partial", warns: []string{n6 + `" has incorrect size 0`}},
		{rule: "gzip", files: files{n5: sized(mib), n6 + ".gz": bytesOf(gz)}, lsn: 7 * mib, tl: 1, file: n6 + ".gz"},
		{rule: "gzip by its last four bytes", files: files{n6 + ".gz": bytesOf([]byte("xx\x00\x00\x10\x00"))}, lsn: 7 * mib, tl: 1,
			file: n6 + ".gz"},
		{rule: "gzip of the wrong size", files: files{n5: sized(mib), n6 + ".gz": bytesOf(gzipped(make([]byte, 10)))}, lsn: 6 * mib, tl: 1,
			file: n5, warns: []string{n6 + `.gz" has incorrect uncompressed size 10, skipping`}},
		{rule: "gzip without a size", files: files{n5: sized(mib), n6 + ".gz": bytesOf([]byte("x"))}, lsn: 6 * mib, tl: 1,
			file: n5, warns: []string{n6 + `.gz" has incorrect uncompressed size 0`}},
		{rule: "lz4", files: files{n5: sized(mib), n6 + ".lz4": bytesOf(lz)}, lsn: 7 * mib, tl: 1, file: n6 + ".lz4"},
		{rule: "lz4 cut off", files: files{n5: sized(mib), n6 + ".lz4": bytesOf(lz[:len(lz)/2])}, lsn: 6 * mib, tl: 1,
			file: n5, warns: []string{n6 + `.lz4" has incorrect uncompressed size`}},
		{rule: "lz4 of too much", files: files{n5: sized(mib), n6 + ".lz4": bytesOf(wholeLZ4(make([]byte, 9*mib)))}, lsn: 6 * mib, tl: 1,
			file: n5, warns: []string{n6 + `.lz4" has incorrect uncompressed size 1048577`}},
		{rule: "lz4 that is none", files: files{n5: sized(mib), n6 + ".lz4": sized(mib)}, lsn: 6 * mib, tl: 1,
			file: n5, warns: []string{n6 + `.lz4" has incorrect uncompressed size 0`}},
		{rule: "plain before compressed", files: files{n6: sized(mib), n6 + ".gz": bytesOf(nil)}, lsn: 7 * mib, tl: 1, file: n6},
		{rule: "compressed partials, whatever is in them", files: files{n6 + ".gz.partial": bytesOf([]byte("x")), n5: sized(mib)},
			lsn: 6 * mib, tl: 1, file: n6 + ".gz.partial"},
		{rule: "lz4 partial", files: files{n6 + ".lz4.partial": bytesOf(nil)}, lsn: 6 * mib, tl: 1, file: n6 + ".lz4.partial"},
		{rule: "impossible names", files: files{n5: sized(mib), "000000000000000000000009": sized(mib), "000000010000000000000000": sized(mib),
			"00000001FFFFFFFF00000FFF": sized(mib)}, lsn: 6 * mib, tl: 1, file: n5,
			warns: []string{"000000000000000000000009", "000000010000000000000000", "00000001FFFFFFFF00000FFF"}},
		{rule: "a link to a segment", files: files{"elsewhere": sized(mib), n5: {link: "elsewhere"}, n6: {link: "nowhere"}, n7: {link: "."}},
			lsn: 6 * mib, tl: 1, file: n5},
		{rule: "1 MiB: FFF is the last of 4 GiB", size: 1 << 20, files: files{"000000010000000300000FFF": sized(1 << 20)},
			lsn: 0x4_0000_0000, tl: 1, file: "000000010000000300000FFF"},
		{rule: "16 MiB: FF is the last of 4 GiB", size: 16 << 20, files: files{"0000000100000003000000FF": sized(16 << 20)},
			lsn: 0x4_0000_0000, tl: 1, file: "0000000100000003000000FF"},
		{rule: "16 MiB: the first of the next 4 GiB is newer", size: 16 << 20, files: files{"0000000100000003000000FF": sized(16 << 20),
			"000000010000000400000000.partial": sized(16 << 20)}, lsn: 0x4_0000_0000, tl: 1, file: "000000010000000400000000.partial"},
		{rule: "64 MiB: 3F is the last of 4 GiB", size: 64 << 20, files: files{"00000001000000030000003F": sized(64 << 20)},
			lsn: 0x4_0000_0000, tl: 1, file: "00000001000000030000003F"},
		{rule: "1 GiB: 3 is the last of 4 GiB", size: 1 << 30, files: files{"000000010000000300000003": sized(1 << 30)},
			lsn: 0x4_0000_0000, tl: 1, file: "000000010000000300000003"},
		{rule: "1 GiB, partial", size: 1 << 30, files: files{"000000010000000300000003.partial": sized(1 << 30)},
			lsn: 0x3_C000_0000, tl: 1, file: "000000010000000300000003.partial"},
		{rule: "beyond 32 bits of segments", files: files{"0000000A00ABCDEF00000FFE": sized(mib)}, lsn: 0xABCDEF_FFF0_0000, tl: 10,
			file: "0000000A00ABCDEF00000FFE"},
	} {
		t.Run(c.rule, func(t *testing.T) {
			if c.size == 0 {
				c.size = mib
			}
			path := t.TempDir()
			makeFiles(t, path, c.files)
			var warnings []string
			got, err := FindStart(path, c.size, func(text string) { warnings = append(warnings, text) })
			if want := (Start{c.lsn, c.tl, c.size, c.file}); err != nil || got != want {
				t.Errorf("%+v, %v, want %+v", got, err, want)
			}
			text := strings.Join(warnings, "\n")
			if len(warnings) != len(c.warns) {
				t.Errorf("warnings: %q, want %q", warnings, c.warns)
			}
			for _, part := range c.warns {
				if !strings.Contains(text, part) {
					t.Errorf("warnings: %q, want %q", warnings, c.warns)
				}
			}
		})
	}
}

// A name that segments of the server's size cannot have is another cluster's.
func TestStartRefusesOtherSize(t *testing.T) {
	path := t.TempDir()
	makeFiles(t, path, map[string]made{"0000000100000000000000FF": sized(16 * mib)})
	if _, err := FindStart(path, 64*mib, nil); !errors.Is(err, ErrForeign) {
		t.Errorf("%v, want ErrForeign", err)
	}
}

// Without a size from the caller, the newest segments' first pages tell it: plain or compressed.
func TestFindStartGuessesSize(t *testing.T) {
	page := func(size Size) []byte {
		h := header(1, 5*LSN(size), size)
		return append(h[:], make([]byte, int(size)-len(h))...)
	}
	const name = "000000010000000000000005"
	for rule, c := range map[string]struct {
		files map[string]made
		want  Start
		err   error
	}{
		"nothing":       {},
		"nothing tells": {files: map[string]made{name + ".partial": bytesOf(nil)}},
		"plain":         {files: map[string]made{name: bytesOf(page(2 * mib))}, want: Start{12 * mib, 1, 2 * mib, name}},
		"partial":       {files: map[string]made{name + ".partial": bytesOf(page(2 * mib)[:40])}, want: Start{10 * mib, 1, 2 * mib, name + ".partial"}},
		"gzip":          {files: map[string]made{name + ".gz": bytesOf(gzipped(page(mib)))}, want: Start{6 * mib, 1, mib, name + ".gz"}},
		"lz4 partial": {files: map[string]made{name + ".lz4.partial": bytesOf(cutLZ4(page(mib)[:100]))},
			want: Start{5 * mib, 1, mib, name + ".lz4.partial"}},
		"impossible size": {files: map[string]made{name: bytesOf(func() []byte { h := header(1, 5*mib, 3*mib); return h[:] }())}},
		"two sizes": {files: map[string]made{name: bytesOf(page(mib)), "000000010000000000000004": bytesOf(page(2 * mib))},
			err: ErrForeign},
	} {
		t.Run(rule, func(t *testing.T) {
			path := t.TempDir()
			makeFiles(t, path, c.files)
			if got, err := FindStart(path, 0, nil); got != c.want || !errors.Is(err, c.err) {
				t.Errorf("%+v, %v, want %+v, %v", got, err, c.want, c.err)
			}
		})
	}
}

func TestNoDirectory(t *testing.T) {
	path := t.TempDir()
	makeFiles(t, path, map[string]made{"file": sized(1)})
	for _, name := range []string{"missing", "file", "file/below", strings.Repeat("x", 300)} {
		if _, err := FindStart(filepath.Join(path, name), 0, nil); !errors.Is(err, ErrNoDirectory) {
			t.Errorf("%s: %v, want ErrNoDirectory", name, err)
		}
		if _, err := Open(OS, filepath.Join(path, name)); !errors.Is(err, ErrNoDirectory) {
			t.Errorf("%s: %v, want ErrNoDirectory", name, err)
		}
	}
}

// The files' mode follows the data directory's as PostgreSQL's own does.
func TestFileMode(t *testing.T) {
	for directory, want := range map[fs.FileMode]fs.FileMode{0o700: 0o600, 0o750: 0o640, 0o755: 0o640, 0o777: 0o640, 0o740: 0o600,
		0o710: 0o600, 0o050: 0o600, 0: 0o600} {
		if got := FileMode(directory); got != want {
			t.Errorf("%o beside a directory of %o, want %o", got, directory, want)
		}
	}
}

func TestCheckOwner(t *testing.T) {
	const name = "000000010000000000000005"
	page := func(system uint64, size Size) []byte {
		h := header(1, 5*LSN(size), size)
		for i := range 8 {
			h[24+i] = byte(system >> (8 * i))
		}
		return h[:]
	}
	bigEndian := pageHeader{0xD1, 0x10, 0, 2, 0, 0, 0, 1, 31: 7, 33: 0x10, 38: 0x20}
	for rule, c := range map[string]struct {
		files map[string][]byte
		text  string // of the error
	}{
		"empty":                     {},
		"ours":                      {files: map[string][]byte{name: page(7, mib)}},
		"another system":            {files: map[string][]byte{name: page(8, mib)}, text: `"wal/` + name + `" is of the system 8, but the server is 7`},
		"another system, partial":   {files: map[string][]byte{name + ".partial": page(8, mib)}, text: "is of the system 8"},
		"another system, gzip":      {files: map[string][]byte{name + ".gz": gzipped(page(8, mib))}, text: "is of the system 8"},
		"another system, lz4":       {files: map[string][]byte{name + ".lz4.partial": cutLZ4(page(8, mib))}, text: "is of the system 8"},
		"another size":              {files: map[string][]byte{name: page(7, 2*mib)}, text: "segments of 2097152 bytes, but the server's have 1048576"},
		"an old one behind ours":    {files: map[string][]byte{name: page(7, mib), "000000010000000000000004": page(8, mib)}, text: "is of the system 8"},
		"zeros, short, not WAL":     {files: map[string][]byte{name: make([]byte, 100), name + ".partial": page(8, mib)[:39], name + ".gz": []byte("x")}},
		"cut off, and then zeros":   {files: map[string][]byte{name + ".partial": append(page(8, mib)[:30], make([]byte, 100)...)}},
		"foreign files don't count": {files: map[string][]byte{name + ".zst": page(8, mib), "x": page(8, mib)}},
		"big-endian":                {files: map[string][]byte{name: bigEndian[:]}},
	} {
		t.Run(rule, func(t *testing.T) {
			disk := newDisk(c.files)
			d, err := Open(disk, "wal")
			if err != nil {
				t.Fatal(err)
			}
			err = d.CheckOwner(7, mib)
			if c.text == "" && err != nil || c.text != "" && (!errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), c.text)) {
				t.Errorf("%v, want %q", err, c.text)
			}
			d.Close()
			if disk.handles != 0 {
				t.Errorf("%d files are still open", disk.handles)
			}
		})
	}
}

// What another receiver may have left in the page cache is durable after Settle: the data, and the names.
func TestSettle(t *testing.T) {
	const segment, partial, history, old = "000000010000000000000005", "000000010000000000000006.lz4.partial", "00000002.history", "000000010000000000000004"
	disk := newDisk(map[string][]byte{"notes.txt": []byte("x"), old: []byte("x")})
	unsynced := &inode{data: []byte("unsynced"), changed: time.Now()}
	unsynced.dirty = []dirty{{data: unsynced.data}}
	for _, name := range []string{segment, partial, history} {
		f := *unsynced
		disk.change(change{to: name, file: &f})
	}
	disk.cache[old].changed = time.Now().Add(-2 * settleAge)
	disk.cache[segment].changed = time.Now().Add(time.Hour) // a clock that was wrong
	d, err := Open(disk, "wal")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Settle(time.Now()); err != nil {
		t.Fatal(err)
	}
	var synced []string
	for _, o := range disk.log {
		if o.kind == opSync {
			synced = append(synced, o.name)
		}
	}
	if want := []string{segment, partial, history}; !slices.Equal(synced, want) {
		t.Errorf("synced %q, want %q", synced, want)
	}
	disk.survivors(1, func(files map[string][]byte) {
		for _, name := range []string{segment, partial, history} {
			if string(files[name]) != "unsynced" {
				t.Errorf("%s is not durable", name)
			}
		}
	})
}

// A file may vanish between the listing and the look at it: an archive is cleaned up while a receive starts.
func TestFilesVanish(t *testing.T) {
	const name, next = "000000010000000000000005", "000000010000000000000006"
	for _, suffix := range []string{"", ".gz", ".lz4", ".lz4.partial"} {
		disk := newDisk(map[string][]byte{name: make([]byte, mib), next + suffix: nil})
		d, err := Open(vanishing{disk, next + suffix}, "wal")
		if err != nil {
			t.Fatal(err)
		}
		if err := d.CheckOwner(7, mib); err != nil {
			t.Errorf("CheckOwner: %v", err)
		}
		if err := d.Settle(time.Now()); err != nil {
			t.Errorf("Settle: %v", err)
		}
		if s, err := d.Start(mib, nil); err != nil || s.LSN != 6*mib {
			t.Errorf("Start: %+v, %v", s, err)
		}
	}
}

// vanishing is a disk that lists a file, which then is not there.
type vanishing struct {
	*disk
	name string
}

func (v vanishing) OpenDir(path string) (Dir, error) {
	dir, err := v.disk.OpenDir(path)
	return vanishingDir{dir, v.name}, err
}

type vanishingDir struct {
	Dir
	name string
}

func (v vanishingDir) Stat(name string) (int64, time.Time, error) {
	if name == v.name {
		return 0, time.Time{}, fs.ErrNotExist
	}
	return v.Dir.Stat(name)
}

func (v vanishingDir) Open(name string, write bool) (File, error) {
	if name == v.name {
		return nil, fs.ErrNotExist
	}
	return v.Dir.Open(name, write)
}

// A history file appears with exactly the server's bytes, whole and durable or not at all; one that is wrong is replaced.
func TestWriteHistory(t *testing.T) {
	content := []byte("1\t0/3000000\tno recovery target specified\n")
	const name = "00000002.history"
	for rule, files := range map[string]map[string][]byte{
		"new":            {},
		"the same":       {name: content},
		"damaged":        {name: {}},
		"wrong":          {name: []byte("1\t0/4000000\tx\n")},
		"longer":         {name: append(slices.Clone(content), 0)},
		"with leftovers": {name + ".tmp": []byte("x")},
	} {
		t.Run(rule, func(t *testing.T) {
			disk := newDisk(files)
			d, err := Open(disk, "wal")
			if err != nil {
				t.Fatal(err)
			}
			before := files[name]
			disk.before = func(operation) {
				disk.survivors(1, func(files map[string][]byte) {
					if got, found := files[name]; found && !bytes.Equal(got, before) && !bytes.Equal(got, content) || !found && before != nil {
						t.Errorf("after %s, a power cut leaves %q", last(disk.log), got)
					}
				})
			}
			if err := d.WriteHistory(2, content); err != nil {
				t.Fatal(err)
			}
			d.Close()
			disk.survivors(1, func(files map[string][]byte) {
				if !bytes.Equal(files[name], content) {
					t.Errorf("a power cut afterwards leaves %q", files[name])
				}
			})
			if want := map[string][]byte{name: content}; difference(disk.contents(), want) != nil && rule != "the same" {
				t.Error(difference(disk.contents(), want))
			}
			if disk.handles != 0 {
				t.Errorf("%d files are still open", disk.handles)
			}
		})
	}
}

// One that is there already, but perhaps only in the page cache, is durable afterwards, too.
func TestWriteHistoryAgain(t *testing.T) {
	content := []byte("1\t0/3000000\tx\n")
	disk := newDisk(nil)
	disk.change(change{to: "00000002.history", file: &inode{data: content, dirty: []dirty{{data: content}}}})
	d, err := Open(disk, "wal")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.WriteHistory(2, content); err != nil {
		t.Fatal(err)
	}
	disk.survivors(1, func(files map[string][]byte) {
		if !bytes.Equal(files["00000002.history"], content) {
			t.Errorf("a power cut leaves %q", files)
		}
	})
}

func TestHasHistory(t *testing.T) {
	const name = "00000002.history"
	for content, want := range map[string]bool{"1\t0/3000000\tx\n": true, "": false, "# nothing\n": false, "x": false,
		"1\t0/3000000\tx\n\x00": false, "\x00\x00\x00": false} {
		d, err := Open(newDisk(map[string][]byte{name: []byte(content)}), "wal")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := d.HasHistory(2); got != want || err != nil {
			t.Errorf("%q: %v, %v, want %v", content, got, err, want)
		}
		h, err := d.History(2)
		if want && !slices.Equal(h, History{{1, 0x3000000}, {2, 0}}) {
			t.Errorf("%q: %v, %v", content, h, err)
		}
		if got, err := d.HasHistory(3); got || err != nil {
			t.Errorf("timeline 3: %v, %v", got, err)
		}
		if _, err := d.History(3); !errors.Is(err, fs.ErrNotExist) || !errors.Is(err, ErrIO) {
			t.Errorf("timeline 3: %v", err)
		}
		if h, err := d.History(1); err != nil || !slices.Equal(h, History{{1, 0}}) {
			t.Errorf("timeline 1: %v, %v", h, err)
		}
	}
}

// What a compressed file holds is counted as far as it can be read: what a receiver has flushed into a file without an
// end, but nothing behind damage, and never more than the limit.
func TestDecodable(t *testing.T) {
	data := make([]byte, 300_000)
	for i := range data {
		data[i] = byte(i * i >> 8)
	}
	flushed := map[Compression][]byte{Gzip: cutGzip(data), LZ4: cutLZ4(data)}
	whole := map[Compression][]byte{Gzip: gzipped(data), LZ4: wholeLZ4(data)}
	for _, c := range []Compression{Gzip, LZ4} {
		count := func(b []byte, limit int64) int64 {
			n, _ := decodable(c, bytes.NewReader(b), limit)
			return n
		}
		for text, got := range map[string]int64{
			"whole":                 count(whole[c], mib),
			"flushed":               count(flushed[c], mib),
			"flushed, then garbage": count(append(slices.Clone(flushed[c]), "garbage"...), mib),
			"padded with zeros":     count(append(slices.Clone(flushed[c]), make([]byte, 5000)...), mib),
		} {
			if got < int64(len(data)) {
				t.Errorf("%q %s: %d bytes, want %d", c.Suffix(), text, got, len(data))
			}
		}
		if got := count(whole[c], 1000); got != 1000 {
			t.Errorf("%q: %d bytes, but the limit is 1000", c.Suffix(), got)
		}
		for _, b := range [][]byte{nil, {0}, []byte("garbage garbage garbage"), whole[c][:5]} {
			if got := count(b, mib); got != 0 {
				t.Errorf("%q: %d bytes in %q", c.Suffix(), got, b)
			}
		}
		previous := int64(0)
		for cut := 0; cut < len(whole[c]); cut += 1 + len(whole[c])/50 {
			got := count(whole[c][:cut], mib)
			if got < previous || got > int64(len(data)) {
				t.Errorf("%q: %d bytes of the first %d, %d of fewer", c.Suffix(), got, cut, previous)
			}
			previous = got
		}
	}
	if got, _ := decodable(Plain, bytes.NewReader(data), mib); got != int64(len(data)) {
		t.Errorf("plain: %d bytes", got)
	}
}

func TestErrorKinds(t *testing.T) {
	err := failure("write to file", "x", fmt.Errorf("wrapped: %w", fs.ErrPermission))
	if !errors.Is(err, ErrPermission) || !errors.Is(err, fs.ErrPermission) || errors.Is(err, ErrIO) {
		t.Error(err)
	}
	if want := `could not write to file "x": wrapped: permission denied`; err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
}
