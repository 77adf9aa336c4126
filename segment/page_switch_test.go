package segment

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
)

// What the check of each page takes, and what it refuses, however the data is cut into pieces.
func TestPagesAfterASegmentSwitch(t *testing.T) {
	const size, block = Size(1 << 20), 8192
	begin := LSN(5) * LSN(size)
	header := func(page []byte, lsn LSN) {
		o := binary.LittleEndian
		o.PutUint16(page, 0xD110)
		o.PutUint32(page[4:], 1)
		o.PutUint64(page[8:], uint64(lsn))
	}
	pages := func(from, to int, change func(page []byte, lsn LSN)) func([]byte) {
		return func(segment []byte) {
			for i := from; i < to; i++ {
				change(segment[i*block:(i+1)*block], begin+LSN(i*block))
			}
		}
	}
	zero := func(page []byte, _ LSN) { clear(page) }
	old := func(page []byte, lsn LSN) { header(page, lsn-3*LSN(size)) } // of a recycled segment
	other := func(page []byte, lsn LSN) { header(page, lsn+block) }
	rubbish := func(page []byte, _ LSN) { page[0]++ }
	for _, test := range []struct {
		name   string
		change func([]byte)
		want   error
	}{
		{"WAL to the end", nil, nil},
		{"zeros at the end", pages(70, 128, zero), nil},
		{"old WAL at the end", pages(70, 128, old), nil},
		{"zeros, then old WAL", func(s []byte) { pages(70, 90, zero)(s); pages(90, 128, old)(s) }, nil},
		{"old WAL, then zeros", func(s []byte) { pages(1, 90, old)(s); pages(90, 128, zero)(s) }, nil},
		{"a page of zeros", pages(70, 71, zero), ErrGap},
		{"a page of old WAL", pages(70, 71, old), ErrGap},
		{"all but the last page is old", pages(1, 127, old), ErrGap},
		{"another page", pages(70, 71, other), ErrGap},
		{"another page at the end", pages(127, 128, other), ErrGap},
		{"no header", pages(70, 71, rubbish), ErrForeign},
		{"no header at the end", pages(127, 128, rubbish), ErrForeign},
	} {
		data := make([]byte, 2*size)
		for i := 0; i < len(data); i += block {
			header(data[i:], begin+LSN(i))
		}
		if test.change != nil {
			test.change(data)
		}
		var first pageHeader
		copy(first[:], data)
		binary.LittleEndian.PutUint32(first[36:], block)
		for _, piece := range []int{1, 7, 8192, 10000, int(size)} {
			t.Run(fmt.Sprint(test.name, " in pieces of ", piece), func(t *testing.T) {
				var c pageChecker
				var err error
				for at := 0; at < len(data) && err == nil; { // a second segment begins anew
					n := min(piece, int(size)-at%int(size))
					err = c.check(&first, size, begin+LSN(at), data[at:at+n])
					at += n
				}
				if !errors.Is(err, test.want) {
					t.Errorf("got %v, want %v", err, test.want)
				}
			})
		}
	}
}
