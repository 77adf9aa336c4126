package stream

import (
	"context"
	"log/slog"
	"time"

	"libreceivewal/segment"
)

// Events is what Receive tells of. Each may be nil. All are called by Receive's goroutine, one at a time; an error stops the
// receive cleanly. They must not use the Session, but for Progress and Usable.
type Events struct {
	// Log has a line for a log. Debug is what pg_receivewal says with --verbose, Info what it always says.
	Log func(level slog.Level, text string)
	// SegmentOpened: the segment's .partial is visible and being filled. Not called for a segment that was complete
	// before its turn came, as happens while catching up.
	SegmentOpened func(Segment) error
	// SegmentCompleted: the segment is complete, durable and has its final name.
	SegmentCompleted func(Segment) error
	// TimelineSwitched: the server's timeline ended, and the next one's history file is in the directory.
	TimelineSwitched func(TimelineSwitch) error
	// Hole: something is wrong with the directory, as was found at the start; and what became of it.
	Hole func(Hole) error
	// DiskFull: with WaitOnDiskFull, the disk is full, or has room again.
	DiskFull func(DiskFull) error
	// Progress is called at most once per ProgressInterval, only when something has changed.
	Progress func(Progress) error
	// Reconnect is asked for a new connection after one was lost, with growing pauses. An error gives up: Receive then
	// returns ErrConnectionLost. nil: it does at once.
	Reconnect func(context.Context, Reconnection) (NewConnection, error)
}

func (e *Events) log(level slog.Level, text string) {
	if e.Log != nil {
		e.Log(level, text)
	}
}

// Segment is a segment that an event tells of.
type Segment struct {
	Name        string // file name within the directory
	Timeline    segment.Timeline
	LSN, EndLSN segment.LSN // first byte, and the byte after the last
	Size        segment.Size
}

// TimelineSwitch is a step to the next timeline.
type TimelineSwitch struct {
	OldTimeline, NewTimeline segment.Timeline
	SwitchLSN                segment.LSN // where the new one begins
	StartLSN                 segment.LSN // where streaming goes on: the first byte of the segment that holds SwitchLSN
}

// State is what a Session is doing.
type State int

// The states of a Session.
const (
	StateIdle         State = iota // no receive is in progress
	StateStarting                  // asking the server, looking through the directory
	StateStreaming                 // receiving
	StateStopping                  // flushing, and bringing the connection back to idle
	StateReconnecting              // waiting for a new connection
	StateDiskFull                  // waiting for room on the disk
)

// Progress is where a receive is. It is kept after the receive has ended, until the next one begins.
type Progress struct {
	State        State
	Timeline     segment.Timeline // of the data being received
	StartLSN     segment.LSN      // where this receive began
	WrittenLSN   segment.LSN      // end of what has been written to a file
	FlushedLSN   segment.LSN      // end of what is durable
	ServerLSN    segment.LSN      // the server's end of WAL, as it said last
	Bytes        uint64           // received since the start
	StoredBytes  uint64           // written to files since the start: fewer, where they are compressed
	Segments     uint64           // completed since the start
	Reconnects   uint64           // connections after the first
	ServerTime   time.Time        // the server's clock in its last message
	ReceivedTime time.Time        // ours at that moment
	Segment      string           // the segment being written, without .partial
}

// Progress tells where the receive is. Any goroutine, at any time.
func (s *Session) Progress() Progress {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.progress
}

func (s *Session) setProgress(change func(*Progress)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.progress)
}
