package main

import (
	"bytes"
	"testing"
	"unsafe"

	"libreceivewal/segment"
	"libreceivewal/stream"
)

const dataSegment = 1 << 20

// Data waits in order and whole. Small pieces that continue each other join, so that many of them cost little; but not over the
// end of a segment, over a gap, into another timeline, or around another event.
func TestQueueData(t *testing.T) {
	q := newQueue(t)
	defer q.drop()
	all := bytes.Repeat([]byte("0123456789abcdef"), dataSegment/8)
	at := func(timeline segment.Timeline, begin, end int) {
		d := stream.Data{Timeline: timeline, LSN: segment.LSN(begin), ServerLSN: segment.LSN(end), SegmentSize: dataSegment, Bytes: all[begin:end]}
		if err := q.addData(d); err != nil {
			t.Fatal(err)
		}
	}
	last := dataSegment - 100
	for i := range 100 {
		at(1, last+i, last+i+1)
	}
	at(1, dataSegment, dataSegment+50)
	q.add(logEvent{})
	at(1, dataSegment+50, dataSegment+60)
	at(1, dataSegment+70, dataSegment+80)
	at(2, dataSegment+80, dataSegment+90)
	at(2, dataSegment+90, dataSegment+100_000) // more than there is room for
	at(2, dataSegment+100_000, dataSegment+100_001)

	type piece struct {
		timeline   segment.Timeline
		begin, end int
		server     segment.LSN
	}
	var got []piece
	for _, e := range q.take() {
		d, ok := e.(*dataEvent)
		if !ok {
			continue
		}
		if text := unsafe.Slice((*byte)(d.bytes), d.length); !bytes.Equal(text, all[d.LSN:int(d.LSN)+d.length]) {
			t.Errorf("the bytes at %s are not those that were added", d.LSN)
		}
		got = append(got, piece{d.Timeline, int(d.LSN), int(d.LSN) + d.length, d.ServerLSN})
		d.free()
	}
	want := []piece{
		{1, last, dataSegment, dataSegment}, {1, dataSegment, dataSegment + 50, dataSegment + 50},
		{1, dataSegment + 50, dataSegment + 60, dataSegment + 60}, {1, dataSegment + 70, dataSegment + 80, dataSegment + 80},
		{2, dataSegment + 80, dataSegment + 90, dataSegment + 90},
		{2, dataSegment + 90, dataSegment + 100_000, dataSegment + 100_000},
		{2, dataSegment + 100_000, dataSegment + 100_001, dataSegment + 100_001},
	}
	if len(got) != len(want) {
		t.Fatalf("%d events: %v", len(got), got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("event %d is %v, want %v", i, got[i], want[i])
		}
	}
}
