package segment

import (
	"encoding/binary"
	"fmt"
	"io"
)

// pageHeader is the beginning of a segment: the long header of its first page (XLogLongPageHeaderData in
// access/xlog_internal.h):
//
//	 0 magic        2 bytes   0xD1xx, of the server's version
//	 2 info         2         0x0002: a long header
//	 4 timeline     4         that wrote the page: an ancestor's, where a timeline began in the middle of the segment
//	 8 page address 8         the LSN of the page
//	16 rem_len      4         what remains of a record that began earlier, and 4 bytes of padding
//	24 system       8         the system identifier
//	32 segment size 4
//	36 block size   4
//
// The numbers are in the byte order of the server's machine, which the magic gives away.
type pageHeader [pageHeaderSize]byte

const (
	pageHeaderSize = 40
	longHeader     = 0x0002
)

func (h *pageHeader) order() binary.ByteOrder {
	if h[0]&0xF0 == 0xD0 && h[1]&0xF0 != 0xD0 {
		return binary.BigEndian
	}
	return binary.LittleEndian
}

// isHeader tells whether this can be a segment's beginning at all. One that was cut off lacks at least the block size.
func (h *pageHeader) isHeader() bool {
	o := h.order()
	return o.Uint16(h[0:])&0xF000 == 0xD000 && o.Uint16(h[2:])&longHeader != 0 && o.Uint32(h[36:]) != 0
}

func (h *pageHeader) timeline() Timeline       { return Timeline(h.order().Uint32(h[4:])) }
func (h *pageHeader) address() LSN             { return LSN(h.order().Uint64(h[8:])) }
func (h *pageHeader) systemIdentifier() uint64 { return h.order().Uint64(h[24:]) }
func (h *pageHeader) segmentSize() Size        { return Size(h.order().Uint32(h[32:])) }

// firstPage reads the beginning of a file: all zeros if the file is shorter, or cannot be decompressed up to there.
func (d *Directory) firstPage(f file) (pageHeader, error) {
	var h pageHeader
	in, err := d.dir.Open(f.name, false)
	if err != nil {
		return h, failure("open file", d.full(f.name), err)
	}
	defer in.Close()
	length, err := in.Size()
	if err != nil {
		return h, failure("stat file", d.full(f.name), err)
	}
	from := &fileReader{ReaderAt: in}
	_, err = io.ReadFull(decoder(f.compression, io.NewSectionReader(from, 0, length)), h[:])
	switch {
	case from.err != nil:
		return h, failure("read file", d.full(f.name), from.err)
	case err == nil:
		return h, nil
	}
	return pageHeader{}, nil
}

// checkFirstPage refuses a segment that is not what the server was asked for: another cluster's, another place's
// in the WAL, or another timeline's.
func (w *Writer) checkFirstPage(id ID, h *pageHeader) error {
	name, begin := id.Name(w.o.Size), id.LSN(w.o.Size)
	if !h.isHeader() {
		return fmt.Errorf("%w: segment %s does not begin with the header of a WAL page", ErrForeign, name)
	}
	if got := h.systemIdentifier(); got != w.o.SystemIdentifier {
		return fmt.Errorf("%w: segment %s is of the system %d, but the server says that it is %d",
			ErrForeign, name, got, w.o.SystemIdentifier)
	}
	if got := h.segmentSize(); got != w.o.Size {
		return fmt.Errorf("%w: segment %s is of a cluster with segments of %d bytes, but the server says %d",
			ErrForeign, name, got, w.o.Size)
	}
	if got := h.address(); got != begin {
		return fmt.Errorf("%w: segment %s begins with the page of %s instead of %s", ErrGap, name, got, begin)
	}
	// A timeline begins with a copy of the segment in which its parent ended, so the first page can be an ancestor's.
	if want := w.o.History.TimelineOf(begin); h.timeline() != want {
		return fmt.Errorf("%w: segment %s begins with a page of timeline %d instead of %d",
			ErrForeign, name, h.timeline(), want)
	}
	return nil
}

// pageChecker holds the short header of each page against the page's address. A header may come in pieces.
//
// A segment need not be WAL up to its end. Zeros follow where somebody has switched to the next segment (pg_switch_wal, archive_timeout).
// From a standby old WAL can follow instead: once it has replayed the switch it sends the rest of the segment from its file, a
// recycled one, where it may not have received the zeros yet. So a page that isn't WAL is damage only if one that is follows.
type pageChecker struct {
	head [shortHeaderSize]byte
	rest LSN // the segment's first page that isn't WAL; 0: all are
}

// shortHeaderSize is what every page begins with: magic, info, timeline and address.
const shortHeaderSize = 16

// check looks at data that continues the WAL at lsn, in a segment whose first header is first as far as it has come.
// Segments' first pages are checkFirstPage's.
func (c *pageChecker) check(first *pageHeader, size Size, lsn LSN, data []byte) error {
	if begin := size.Offset(lsn); begin < pageHeaderSize {
		c.rest = 0
		skip := min(len(data), int(pageHeaderSize-begin))
		data, lsn = data[skip:], lsn+LSN(skip)
	}
	if len(data) == 0 {
		return nil
	}
	blockSize := LSN(first.order().Uint32(first[36:]))
	if blockSize < 1<<10 || blockSize > 1<<16 || blockSize&(blockSize-1) != 0 {
		return fmt.Errorf("%w: the segment of %s says that its pages have %d bytes", ErrForeign, lsn, blockSize)
	}
	for len(data) > 0 {
		offset := int(lsn & (blockSize - 1))
		if offset < shortHeaderSize && size.Offset(lsn) >= uint32(blockSize) {
			if copy(c.head[offset:], data); offset+len(data) >= shortHeaderSize {
				if err := c.checkHeader(first, size, lsn&^(blockSize-1)); err != nil {
					return err
				}
			}
		}
		n := min(len(data), int(blockSize)-offset)
		data, lsn = data[n:], lsn+LSN(n)
	}
	return nil
}

// checkHeader checks one page's header.
func (c *pageChecker) checkHeader(first *pageHeader, size Size, page LSN) error {
	o := first.order()
	got := LSN(o.Uint64(c.head[8:]))
	switch {
	case c.head == [shortHeaderSize]byte{}:
	case o.Uint16(c.head[0:]) != o.Uint16(first[0:]):
		return fmt.Errorf("%w: the page at %s does not begin with the header of a WAL page", ErrForeign, page)
	case got == page && c.rest != 0:
		return fmt.Errorf("%w: there is no WAL from %s on, but there is again at %s", ErrGap, c.rest, page)
	case got == page:
		return nil
	case size.Offset(got) != size.Offset(page):
		return fmt.Errorf("%w: where the page of %s should be is that of %s", ErrGap, page, got)
	}
	if c.rest == 0 {
		c.rest = page
	}
	return nil
}
