package segment

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// pagedSegment is a segment of 1 MiB of which each page has its header.
func pagedSegment(n uint64, block int) []byte {
	o := binary.LittleEndian
	data := make([]byte, MinSize)
	first := header(1, LSN(n)*LSN(MinSize), MinSize)
	o.PutUint32(first[36:], uint32(block))
	for at := range data {
		data[at] = byte(at*31) | 1
	}
	for at := 0; at < len(data); at += block {
		copy(data[at:], first[:shortHeaderSize])
		o.PutUint64(data[at+8:], n*uint64(MinSize)+uint64(at))
	}
	copy(data, first[:])
	return data
}

func pageWriter(t testing.TB, dir string, checkPages, noSync bool) (*Directory, *Writer) {
	t.Helper()
	d, err := Open(OS, dir)
	if err != nil {
		t.Fatal(err)
	}
	return d, d.NewWriter(WriterOptions{Timeline: 1, Start: 5 * LSN(MinSize), Size: MinSize, SystemIdentifier: testSystem,
		History: History{{Timeline: 1}}, CheckPages: checkPages, NoSync: noSync})
}

// appendPieces appends data cut at these offsets, and returns the offset of the piece that was refused.
func appendPieces(w *Writer, data []byte, cuts ...int) (at int, err error) {
	for _, end := range append(slices.Clone(cuts), len(data)) {
		if end == at {
			continue
		}
		n, err := w.Append(5*LSN(MinSize)+LSN(at), data[at:end])
		if err != nil {
			return at, err
		}
		at += n
	}
	return at, nil
}

// With CheckPages each page's header is held against its address, however the data is cut. What is refused is not written, and its
// segment never becomes complete.
func TestCheckPages(t *testing.T) {
	o := binary.LittleEndian
	for _, c := range []struct {
		name   string
		block  int
		change func(data []byte)
		page   int // that is refused
		err    error
		text   string
	}{
		{"sound", 8192, func([]byte) {}, 0, nil, ""},
		{"pages of 1 KiB", 1024, func([]byte) {}, 0, nil, ""},
		{"pages of 64 KiB", 65536, func([]byte) {}, 0, nil, ""},
		{"not WAL", 8192, func(d []byte) { d[5*8192+1] = 0 }, 5 * 8192, ErrForeign, "the page at 0/50A000 does not begin with the header"},
		{"another page", 8192, func(d []byte) { o.PutUint64(d[5*8192+8:], 0x50C000) }, 5 * 8192, ErrGap,
			"where the page of 0/50A000 should be is that of 0/50C000"},
		{"the page of another block size", 1024, func(d []byte) { d[3*1024+8]++ }, 3 * 1024, ErrGap, "0/500C00"},
		{"the last page", 8192, func(d []byte) { d[MinSize-8192+9] ^= 1 }, int(MinSize) - 8192, ErrGap, "0/5FE000"},
		{"the second page", 8192, func(d []byte) { d[8192] = 0 }, 8192, ErrForeign, "0/502000"},
		{"a zero page", 8192, func(d []byte) { clear(d[5*8192 : 6*8192]) }, 6 * 8192, ErrGap, "there is no WAL from 0/50A000 on"},
		{"zeros to the end", 8192, func(d []byte) { clear(d[5*8192+77:]) }, 0, nil, ""},
		{"zeros but one byte of the header", 8192, func(d []byte) { clear(d[5*8192 : 6*8192]); d[5*8192+15] = 1 }, 5 * 8192, ErrForeign, "0/50A000"},
		{"info, timeline and content are not looked at", 8192, func(d []byte) { d[8192+2], d[8192+4], d[8192+16] = 9, 9, 9 }, 0, nil, ""},
		{"an impossible block size", 8192, func(d []byte) { o.PutUint32(d[36:], 3000) }, 40, ErrForeign, "pages have 3000 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cuts := map[string][]int{"whole": nil, "after the first header": {pageHeaderSize}}
			for i := range shortHeaderSize + 1 {
				cuts[fmt.Sprintf("cut after %d bytes of each header", i)] = everyPage(c.block, i)
			}
			cuts["each byte of the second header"] = append([]int{c.block}, everyByte(c.block, shortHeaderSize)...)
			cuts["each byte of the bad header"] = append([]int{max(c.page, 1)}, everyByte(max(c.page, 1), 48)...)
			for name, cut := range cuts {
				dir := t.TempDir()
				d, w := pageWriter(t, dir, true, true)
				data := pagedSegment(5, c.block)
				c.change(data)
				at, err := appendPieces(w, data, cut...)
				if !errors.Is(err, c.err) || err != nil && !strings.Contains(err.Error(), c.text) {
					t.Errorf("%s: %v, want %v, %q", name, err, c.err, c.text)
				}
				if w.Written() != 5*LSN(MinSize)+LSN(at) {
					t.Errorf("%s: %s counts as written after %d", name, w.Written(), at)
				}
				if err := errors.Join(w.Close(), d.Close()); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				_, statErr := os.Stat(filepath.Join(dir, seg(1, 5)))
				if (statErr == nil) != (c.err == nil) {
					t.Errorf("%s: the complete segment: %v", name, statErr)
				}
				if c.err != nil {
					if at > c.page+shortHeaderSize && c.page >= c.block {
						t.Errorf("%s: refused at %d only, the page is at %d", name, at, c.page)
					}
					got, err := os.ReadFile(filepath.Join(dir, seg(1, 5)+".partial"))
					if err == nil && strings.Trim(string(got[at:]), "\x00") != "" {
						t.Errorf("%s: something from %d on was written", name, at)
					}
				}
			}
		})
	}
}

// everyPage is each page's position and i bytes.
func everyPage(block, i int) []int {
	var cuts []int
	for at := block + i; at < int(MinSize); at += block {
		cuts = append(cuts, at)
	}
	return cuts
}

// everyByte is n positions from one on.
func everyByte(from, n int) []int {
	var cuts []int
	for i := 1; i <= n && from+i < int(MinSize); i++ {
		cuts = append(cuts, from+i)
	}
	return cuts
}

// Without CheckPages, only the first page is looked at.
func TestPagesAreNotCheckedUnlessAsked(t *testing.T) {
	d, w := pageWriter(t, t.TempDir(), false, true)
	data := pagedSegment(5, 8192)
	data[5*8192] = 0
	if _, err := appendPieces(w, data); err != nil {
		t.Error(err)
	}
	if err := errors.Join(w.Close(), d.Close()); err != nil {
		t.Error(err)
	}
}

// Within a segment, appending makes no garbage, however small the message is.
func TestAppendMakesNoGarbage(t *testing.T) {
	data := pagedSegment(5, 8192)
	for _, check := range []bool{false, true} {
		for _, size := range []int{100, 8192} {
			d, w := pageWriter(t, t.TempDir(), check, true)
			const first = 128 << 10 // the segment is open then
			if _, err := w.Append(5*LSN(MinSize), data[:first]); err != nil {
				t.Fatal(err)
			}
			at := first
			append := func() {
				if _, err := w.Append(5*LSN(MinSize)+LSN(at), data[at:at+size]); err != nil {
					t.Fatal(err)
				}
				at += size
			}
			if got := testing.AllocsPerRun(50, append); got != 0 {
				t.Errorf("%v allocations for a message of %d bytes, pages checked: %v", got, size, check)
			}
			if err := errors.Join(w.Close(), d.Close()); err != nil {
				t.Error(err)
			}
		}
	}
}

// BenchmarkAppend is the cost of CheckPages: messages as a WAL sender makes them, 16 pages each, into a segment's file that is
// filled again and again, without waiting for the disk.
func BenchmarkAppend(b *testing.B) {
	data := pagedSegment(5, 8192)
	for _, check := range []bool{false, true} {
		b.Run(map[bool]string{false: "plain", true: "CheckPages"}[check], func(b *testing.B) {
			d, w := pageWriter(b, b.TempDir(), check, true)
			const message = 128 << 10
			if _, err := w.Append(5*LSN(MinSize), data[:message]); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(MinSize) - message)
			b.ReportAllocs()
			for b.Loop() {
				w.written.Store(5*uint64(MinSize) + message) // the segment again, but for its end, which would complete it
				for at := message; at < len(data); at += message {
					part := data[at:min(at+message, len(data)-1)]
					if _, err := w.Append(5*LSN(MinSize)+LSN(at), part); err != nil {
						b.Fatal(err)
					}
				}
			}
			if err := errors.Join(w.Close(), d.Close()); err != nil {
				b.Fatal(err)
			}
		})
	}
}
