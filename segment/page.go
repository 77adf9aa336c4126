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
	_, err = io.ReadFull(decoder(f.compression, io.NewSectionReader(in, 0, length)), h[:])
	switch {
	case err == nil:
		return h, nil
	case f.compression == Plain && err != io.EOF && err != io.ErrUnexpectedEOF:
		return h, failure("read file", d.full(f.name), err)
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
