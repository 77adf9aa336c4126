package main

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"sync"

	"golang.org/x/sys/unix"

	"libreceivewal/stream"
)

// maxLogs is how many log messages wait for a host that doesn't come for them; the rest is counted.
const maxLogs = 1000

// An event is a logEvent, a segmentEvent, a stream.TimelineSwitch, a stream.Progress, a stream.Hole, a stream.DiskFull, a
// stream.MirrorChange, a *dataEvent, a reconnectEvent or a doneEvent.
type event any

type logEvent struct {
	level slog.Level
	text  string
}

type segmentEvent struct {
	stream.Segment
	completed bool
}

// reconnectEvent asks the host for a new connection.
type reconnectEvent struct{ stream.Reconnection }

// doneEvent ends an operation. No event follows it until the next one begins.
type doneEvent struct {
	result any
	err    error
}

// queue holds events until the loader takes them, and keeps the loader's eventfd readable while there are any. Segments,
// timelines, data and ends are never dropped, a progress gives way to the next.
type queue struct {
	fd int // the eventfd

	mu       sync.Mutex
	events   []event
	progress *stream.Progress
	logs     int // logEvents in events
	dropped  int // logEvents that found no room
}

// add may be called by any goroutine.
func (q *queue) add(e event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	wasEmpty := len(q.events) == 0 && q.progress == nil
	switch e := e.(type) {
	case logEvent:
		if q.logs == maxLogs {
			q.dropped++
			return
		}
		q.logs++
		q.events = append(q.events, e)
	case stream.Progress:
		q.progress = &e
	case doneEvent:
		// The end is the last: what was held back comes before it.
		q.settle()
		q.events = append(q.events, e)
	default:
		q.events = append(q.events, e)
	}
	if wasEmpty {
		unix.Write(q.fd, binary.NativeEndian.AppendUint64(nil, 1))
	}
}

// settle appends what stands apart from the events: the newest progress, and how many log messages were dropped.
func (q *queue) settle() {
	if q.progress != nil {
		q.events = append(q.events, *q.progress)
		q.progress = nil
	}
	if q.dropped > 0 {
		q.events = append(q.events, logEvent{slog.LevelWarn, fmt.Sprintf("%d messages dropped, since nobody took them", q.dropped)})
		q.dropped = 0
	}
}

// take empties the queue and the eventfd.
func (q *queue) take() []event {
	q.mu.Lock()
	defer q.mu.Unlock()
	var count [8]byte
	unix.Read(q.fd, count[:]) // EAGAIN where there is nothing: as good
	q.settle()
	events := q.events
	q.events, q.logs = nil, 0
	return events
}
