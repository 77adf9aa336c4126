package stream

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"sync"

	"libreceivewal/segment"
)

const (
	testSystem = 7_000_000_000_000_000_001
	testSize   = segment.Size(1 << 20)
	mib        = segment.LSN(testSize)
)

// cluster is a server's WAL: its timelines, and where it ends.
type cluster struct {
	system  uint64
	history segment.History // of the last timeline
	tip     segment.LSN
}

// oneTimeline is a cluster that has always been on timeline 1.
func oneTimeline(tip segment.LSN) *cluster {
	return &cluster{testSystem, segment.History{{Timeline: 1}}, tip}
}

func (c *cluster) last() segment.Timeline { return c.history[len(c.history)-1].Timeline }

// ancestry is the history of one of the timelines.
func (c *cluster) ancestry(timeline segment.Timeline) segment.History {
	for i, e := range c.history {
		if e.Timeline == timeline {
			return append(slices.Clone(c.history[:i]), segment.HistoryEntry{Timeline: timeline})
		}
	}
	panic("no such timeline")
}

// end is where a timeline ends, and the next one; 0 for the last timeline.
func (c *cluster) end(timeline segment.Timeline) (segment.LSN, segment.Timeline) {
	for i, e := range c.history[:len(c.history)-1] {
		if e.Timeline == timeline {
			return e.End, c.history[i+1].Timeline
		}
	}
	return 0, 0
}

// historyFile is what the server sends for TIMELINE_HISTORY. The comment has bytes that text functions spoil.
func (c *cluster) historyFile(timeline segment.Timeline) string {
	text := "# \xff\tcomment\r\n\n"
	for _, e := range c.ancestry(timeline) {
		if e.End != 0 {
			text += fmt.Sprintf("%d\t%s\tno recovery target specified\n", e.Timeline, e.End)
		}
	}
	return text
}

// wal is the WAL of a timeline from lsn on.
func (c *cluster) wal(timeline segment.Timeline, lsn segment.LSN, n int) []byte {
	out := make([]byte, 0, n)
	ancestry := c.ancestry(timeline)
	for len(out) < n {
		writer := ancestry.TimelineOf(lsn)
		data := segmentOf(c.system, writer, testSize.Floor(lsn))[testSize.Offset(lsn):]
		if end, _ := (&cluster{history: ancestry}).end(writer); end != 0 && end-lsn < segment.LSN(len(data)) {
			data = data[:end-lsn]
		}
		data = data[:min(len(data), n-len(out))]
		out = append(out, data...)
		lsn += segment.LSN(len(data))
	}
	return out
}

var segments sync.Map

// segmentOf is a whole segment as one timeline would write it: the header of its first page, then bytes that differ from place
// to place and between timelines.
func segmentOf(system uint64, timeline segment.Timeline, begin segment.LSN) []byte {
	type key struct {
		system   uint64
		timeline segment.Timeline
		begin    segment.LSN
	}
	k := key{system, timeline, begin}
	if data, found := segments.Load(k); found {
		return data.([]byte)
	}
	data := make([]byte, testSize)
	for i := 0; i < len(data); i += 8 {
		binary.LittleEndian.PutUint64(data[i:], (uint64(begin)+uint64(i)+1)*0x9E3779B97F4A7C15^uint64(timeline))
	}
	copy(data, pageHeader(system, timeline, begin, testSize))
	segments.Store(k, data)
	return data
}

// pageHeader is a segment's first 40 bytes (XLogLongPageHeaderData in access/xlog_internal.h).
func pageHeader(system uint64, timeline segment.Timeline, begin segment.LSN, size segment.Size) []byte {
	h := make([]byte, 40)
	o := binary.LittleEndian
	o.PutUint16(h[0:], 0xD110)
	o.PutUint16(h[2:], 0x0002) // a long header
	o.PutUint32(h[4:], uint32(timeline))
	o.PutUint64(h[8:], uint64(begin))
	o.PutUint64(h[24:], system)
	o.PutUint32(h[32:], uint32(size))
	o.PutUint32(h[36:], 8192)
	return h
}

// emptySegment is a segment of timeline 1 with a header and nothing else.
func emptySegment(begin segment.LSN) []byte {
	return append(pageHeader(testSystem, 1, begin, testSize), make([]byte, testSize-40)...)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
