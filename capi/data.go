package main

// #include <stdlib.h>
import "C"

import (
	"fmt"
	"syscall"
	"unsafe"

	"libreceivewal/segment"
	"libreceivewal/stream"
)

// dataAhead is how much data waits for a host that doesn't come for it. Then the stream waits.
const dataAhead = 8 << 20

// dataChunk is the least room that a dataEvent has, so that the next data may join it: many small pieces for a slow host must not
// cost more than their bytes.
const dataChunk = 64 << 10

// dataEvent is data for the host, in C memory. It is the queue's until take, then the loader's.
type dataEvent struct {
	stream.Data // but for its Bytes

	bytes    unsafe.Pointer
	length   int
	capacity int
}

func newDataEvent(d stream.Data) (*dataEvent, error) {
	e := &dataEvent{Data: d, capacity: max(len(d.Bytes), dataChunk)}
	e.Bytes = nil
	// Not malloc, which in cgo ends the process where there is no memory.
	if e.bytes = C.realloc(nil, C.size_t(e.capacity)); e.bytes == nil {
		return nil, fmt.Errorf("cannot keep %d bytes of data: %w", len(d.Bytes), syscall.ENOMEM)
	}
	e.length = copy(unsafe.Slice((*byte)(e.bytes), e.capacity), d.Bytes)
	return e, nil
}

// join appends data that continues the event's, if it has room for it and that is in the same segment.
func (e *dataEvent) join(d stream.Data) bool {
	if d.Timeline != e.Timeline || d.LSN != e.LSN+segment.LSN(e.length) || d.SegmentSize.Offset(d.LSN) == 0 ||
		e.length+len(d.Bytes) > e.capacity {
		return false
	}
	e.length += copy(unsafe.Slice((*byte)(e.bytes), e.capacity)[e.length:], d.Bytes)
	e.ServerLSN = d.ServerLSN
	return true
}

func (e *dataEvent) free() {
	C.free(e.bytes)
	e.bytes = nil
}

// addData queues data, for the host to take.
func (q *queue) addData(d stream.Data) error {
	if q.joinData(d) {
		return nil
	}
	e, err := newDataEvent(d)
	if err != nil {
		return err
	}
	q.add(e)
	return nil
}

// joinData appends data to the last event, if that is data that it continues.
func (q *queue) joinData(d stream.Data) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.events) == 0 {
		return false
	}
	e, ok := q.events[len(q.events)-1].(*dataEvent)
	return ok && e.join(d)
}

// drop frees what nobody takes any more.
func (q *queue) drop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, e := range q.events {
		if e, ok := e.(*dataEvent); ok {
			e.free()
		}
	}
	q.events = nil
}
