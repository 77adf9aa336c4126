package main

import (
	"log/slog"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"libreceivewal/stream"
)

func newQueue(t *testing.T) *queue {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return &queue{fd: fd}
}

func readable(q *queue) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(q.fd), Events: unix.POLLIN}}, 0)
	return err == nil && n == 1
}

// The eventfd is readable exactly while there is something to take.
func TestQueueWakes(t *testing.T) {
	for _, e := range []event{logEvent{}, segmentEvent{}, stream.TimelineSwitch{}, stream.Progress{}, doneEvent{}} {
		q := newQueue(t)
		if readable(q) {
			t.Error("readable while empty")
		}
		for range 3 {
			q.add(e)
			if !readable(q) {
				t.Errorf("not readable with a %T", e)
			}
		}
		if len(q.take()) == 0 || readable(q) {
			t.Errorf("a %T was not taken, or the eventfd is readable after that", e)
		}
		if len(q.take()) != 0 {
			t.Errorf("a %T was taken twice", e)
		}
	}
}

// A flood of log messages is cut short and accounted for; segments are not, and the newest progress replaces the older.
func TestQueueDropsOnlyWhatMayBeDropped(t *testing.T) {
	q := newQueue(t)
	for i := range 3 * maxLogs {
		q.add(logEvent{slog.LevelInfo, "line"})
		q.add(segmentEvent{stream.Segment{}, true})
		q.add(stream.Progress{Bytes: uint64(i)})
	}
	q.add(doneEvent{})
	var logs, segments int
	var progress []uint64
	events := q.take()
	for _, e := range events {
		switch e := e.(type) {
		case logEvent:
			logs++
		case segmentEvent:
			segments++
		case stream.Progress:
			progress = append(progress, e.Bytes)
		}
	}
	if logs != maxLogs+1 || segments != 3*maxLogs || !slices.Equal(progress, []uint64{3*maxLogs - 1}) {
		t.Errorf("%d log messages, %d segments, progress %v", logs, segments, progress)
	}
	if last := events[len(events)-2]; last != (logEvent{slog.LevelWarn, "2000 messages dropped, since nobody took them"}) {
		t.Errorf("before the end: %v", last)
	}
	if _, ok := events[len(events)-1].(doneEvent); !ok {
		t.Errorf("the last event is %T", events[len(events)-1])
	}
	// Room again.
	q.add(logEvent{slog.LevelInfo, "line"})
	if events := q.take(); len(events) != 1 {
		t.Errorf("%v", events)
	}
}
