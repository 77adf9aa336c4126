package segment

import (
	"bytes"
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

func FuzzParseLSN(f *testing.F) {
	for _, text := range []string{"0/0", "16/B374D848", "16/b374d848", "00000001/0000000A", "FFFFFFFF/FFFFFFFF", "/", "0/", "123456789/0", "+1/0"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		lsn, err := ParseLSN(text)
		if err != nil {
			return
		}
		if again, err := ParseLSN(lsn.String()); err != nil || again != lsn {
			t.Errorf("%q is %s, and that is %s, %v", text, lsn, again, err)
		}
		trim := func(s string) string { // of leading zeros
			high, low, _ := strings.Cut(strings.ToUpper(s), "/")
			clean := func(s string) string { return strings.TrimLeft(s[:len(s)-1], "0") + s[len(s)-1:] }
			return clean(high) + "/" + clean(low)
		}
		if trim(text) != lsn.String() {
			t.Errorf("%q is %s", text, lsn)
		}
	})
}

func FuzzParseName(f *testing.F) {
	for _, name := range []string{"000000010000000000000001", "0000000100000003000000FF", "00000001FFFFFFFF000000FF", "FFFFFFFFFFFFFFFF000000FE",
		"000000000000000000000001", "00000001000000000000000a", "000000010000000000000000"} {
		for _, bits := range []uint8{0, 4, 10} {
			f.Add(name, bits)
		}
	}
	f.Fuzz(func(t *testing.T, name string, bits uint8) {
		size := MinSize << (bits % 11)
		id, err := ParseName(name, size)
		if err != nil {
			return
		}
		if id.Name(size) != name || id.LSN(size) == 0 || id.End(size) != id.LSN(size)+LSN(size) || id.End(size) < id.LSN(size) {
			t.Errorf("%q is %+v, from %s to %s, %q", name, id, id.LSN(size), id.End(size), id.Name(size))
		}
		if At(id.Timeline, id.LSN(size), size) != id || At(id.Timeline, id.End(size)-1, size) != id || size.Floor(id.End(size)-1) != id.LSN(size) {
			t.Errorf("%q does not hold its own bytes", name)
		}
	})
}

// ownFile is what this package writes: as pg_receivewal's segmentFile, and with Zstandard.
var ownFile = regexp.MustCompile(`^[0-9A-F]{24}(\.gz|\.lz4|\.zst)?(\.partial)?$`)

// otherFile is what another program makes of a complete segment.
var otherFile = regexp.MustCompile(`^[0-9A-F]{24}(\.(gz|lz4|zst|zstd|bz2|xz|aes|gpg|enc|age))+$`)

func FuzzParseFile(f *testing.F) {
	const base = "000000010000000000000001"
	for _, suffix := range []string{"", ".partial", ".gz", ".lz4", ".gz.partial", ".lz4.partial", ".zst.partial", ".partial.gz", ".zst", ".zst.aes", ".history", ".", "\x00"} {
		f.Add(base + suffix)
	}
	f.Add("00000002.history")
	f.Fuzz(func(t *testing.T, name string) {
		got, ok := parseFile(name)
		if want := (ownFile.MatchString(name) || otherFile.MatchString(name)) && !strings.HasSuffix(name, "\n"); ok != want {
			t.Errorf("%q: %v, want %v", name, ok, want)
		}
		if !ok {
			return
		}
		if got.compression == Unknown {
			return // its suffix is another program's
		}
		again := got.base + got.compression.Suffix()
		if got.partial {
			again += partialSuffix
		}
		if again != name || got.name != name {
			t.Errorf("%q is %+v", name, got)
		}
		if _, history := parseHistoryName(name); history {
			t.Errorf("%q is a history file, too", name)
		}
	})
}

func FuzzParseHistory(f *testing.F) {
	for _, content := range []string{"", "1\t0/3000000\tno recovery target specified\n", "# x\n\n1 0/1\n3 A/0 y\n", "1\t0/0\n", "1\n", "\x00", "2\t0/1\n1\t0/2\n"} {
		f.Add(uint32(4), []byte(content))
	}
	f.Fuzz(func(t *testing.T, timeline uint32, content []byte) {
		h, err := ParseHistory(Timeline(timeline), content)
		if err != nil {
			return
		}
		if last := h[len(h)-1]; last != (HistoryEntry{Timeline(timeline), 0}) {
			t.Errorf("the last entry is %+v", last)
		}
		if !slices.IsSortedFunc(h, func(a, b HistoryEntry) int { return int(int64(a.Timeline) - int64(b.Timeline)) }) {
			t.Errorf("%v does not increase", h)
		}
		for _, e := range h {
			if got := h.TimelineOf(e.End); got > Timeline(timeline) {
				t.Errorf("%s was written by timeline %d", e.End, got)
			}
		}
	})
}

// A directory of whatever names and contents: it can be looked at, whatever comes out; it is left as it is, and no
// file stays open. The files come as lines of a name and a content.
func FuzzStart(f *testing.F) {
	const n5, n6 = "000000010000000000000005", "000000010000000000000006"
	page := header(1, 5*LSN(tiny), tiny)
	add := func(lines ...string) { f.Add([]byte(strings.Join(lines, "\n--\n"))) }
	add()
	add(n5+" "+string(server.segment(ID{1, 5})), n6+".partial "+string(page[:]))
	add(n5+".gz "+string(gzipped(server.segment(ID{1, 5}))), n6+".gz.partial "+string(cutGzip(page[:])))
	add(n5+".lz4 "+string(wholeLZ4(server.segment(ID{1, 5}))), n6+".lz4.partial "+string(cutLZ4(page[:])))
	add(n5+".lz4 "+string(wholeLZ4(make([]byte, 1<<20))), n6+".gz "+string(gzipped(make([]byte, 1<<20))))
	add("00000002.history 1\t0/3000000\tx\n", "notes.txt x", "000000000000000000000001 ", "00000001FFFFFFFF00FFFFFF ", "0000000100000000FFFFFFFF x")
	f.Fuzz(func(t *testing.T, lines []byte) {
		files := map[string][]byte{}
		for _, line := range bytes.Split(lines, []byte("\n--\n")) {
			name, content, _ := bytes.Cut(line, []byte(" "))
			files[string(name)] = content
		}
		disk := newDisk(files)
		d, err := Open(disk, "wal")
		if err != nil {
			t.Fatal(err)
		}
		s, err := d.Start(tiny, nil)
		_, there := files[s.File]
		switch {
		case err != nil && !errors.Is(err, ErrForeign):
			t.Errorf("error: %v", err)
		case err == nil && (s.File == "") != (s.LSN == 0) || tiny.Offset(s.LSN) != 0:
			t.Errorf("%+v", s)
		case err == nil && s.File != "" && !there:
			t.Errorf("%+v, but there is no such file", s)
		}
		if theirs, timeline, ok := pgReceivewalOrNothing(files); ok && err == nil && (s.LSN != theirs || s.Timeline != timeline) {
			t.Errorf("we start at %s on %d, pg_receivewal at %s on %d", s.LSN, s.Timeline, theirs, timeline)
		}
		if err := d.CheckOwner(testSystem, tiny); err != nil && !errors.Is(err, ErrForeign) {
			t.Errorf("owner: %v", err)
		}
		if _, err := d.guessSize(); err != nil && !errors.Is(err, ErrForeign) {
			t.Errorf("size: %v", err)
		}
		if _, err := d.HasHistory(2); err != nil {
			t.Errorf("history: %v", err)
		}
		if err := d.Settle(time.Now()); err != nil {
			t.Errorf("settle: %v", err)
		}
		d.Close()
		if err := difference(disk.contents(), files); err != nil || disk.handles != 0 {
			t.Errorf("%d files are open, %v", disk.handles, err)
		}
	})
}

// pgReceivewalOrNothing is false where pg_receivewal itself would give up, counts names that no server makes, or does not count what
// another program has made of a complete segment.
func pgReceivewalOrNothing(files map[string][]byte) (LSN, Timeline, bool) {
	for name, data := range files {
		f, ok := parseFile(name)
		if !ok {
			continue
		}
		if _, err := ParseName(f.base, tiny); err != nil || f.compression == Unknown || f.compression == Zstd ||
			f.compression == Gzip && !f.partial && len(data) < 4 {
			return 0, 0, false
		}
	}
	lsn, timeline := pgReceivewalStart(files)
	return lsn, timeline, true
}

// A little data that decompresses to a lot is not decompressed.
func FuzzDecodable(f *testing.F) {
	data := bytes.Repeat([]byte("WAL "), 100_000)
	f.Add(uint8(Gzip), gzipped(data))
	f.Add(uint8(Gzip), cutGzip(data[:1000]))
	f.Add(uint8(LZ4), wholeLZ4(data))
	f.Add(uint8(LZ4), cutLZ4(data[:1000]))
	f.Add(uint8(LZ4), []byte("\x02\x21\x4c\x18"))                 // the legacy format
	f.Add(uint8(LZ4), []byte("\x50\x2a\x4d\x18\xff\xff\xff\xff")) // a frame to skip
	f.Add(uint8(Zstd), wholeZstd(data))
	f.Add(uint8(Zstd), wholeZstd(data)[:100])
	f.Add(uint8(Zstd), []byte("\x28\xb5\x2f\xfd\x00\x88"))         // a window of 128 MiB
	f.Add(uint8(Zstd), []byte("\x50\x2a\x4d\x18\xff\xff\xff\xff")) // a frame to skip
	f.Fuzz(func(t *testing.T, method uint8, data []byte) {
		c := Gzip + Compression((method+2)%3) // that of the seeds
		const limit = 10_000
		in := bytes.NewReader(data)
		if n, _ := decodable(c, in, limit); n < 0 || n > limit {
			t.Errorf("%d bytes, but the limit is %d", n, limit)
		}
		var h pageHeader
		decoder(c, bytes.NewReader(data)).Read(h[:])
	})
}
