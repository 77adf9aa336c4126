package stream

import (
	"encoding/binary"

	"libreceivewal/segment"
)

const (
	joinMost   = 8 << 10 // bytes of a message's data that are rather moved than written by themselves
	joinPieces = 64      // at a time
)

// join makes one piece of the data of the WAL message whose header was just taken, and of those behind it in the buffer: a server sends
// what its commits have flushed, mostly some hundred bytes, and to write each by itself costs more than to move it. It stops before
// what is not all there, or large, or ends the stream. Where the caller limits the data that waits for it, there is no joining.
func (c *copyStream) join() {
	b := c.c.buffered()
	if c.payload > joinMost || c.payload >= len(b) || c.o.Events.Data != nil && c.o.DataAhead > 0 {
		return
	}
	var ends, lengths [joinPieces]int // of the pieces
	ends[0], lengths[0] = c.payload, c.payload
	last, next := 0, c.next+segment.LSN(c.payload)
	for last+1 < joinPieces && !c.reached(next) {
		m := b[ends[last]:]
		if len(m) < headerSize+walHeaderSize || m[0] != typeCopyData || m[headerSize] != payloadWAL {
			break
		}
		length := int(int32(binary.BigEndian.Uint32(m[1:]))) - 4 - walHeaderSize
		if length < 0 || length > joinMost || length > len(m)-headerSize-walHeaderSize || segment.LSN(binary.BigEndian.Uint64(m[headerSize+1:])) != next {
			break
		}
		c.heard(m[headerSize+9:])
		last++
		ends[last], lengths[last] = ends[last-1]+headerSize+walHeaderSize+length, length
		next += segment.LSN(length)
	}
	begin := ends[last] - lengths[last]
	for i := last - 1; i >= 0; i-- { // towards the last one, so that what follows it stays where it is
		begin -= lengths[i]
		copy(b[begin:], b[ends[i]-lengths[i]:ends[i]])
	}
	c.c.used(begin)
	c.payload = int(next - c.next)
}
