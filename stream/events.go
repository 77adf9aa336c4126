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
	// Data was received and written: each byte once and in order, but what is fetched to fill a hole. The server is not told that it
	// is flushed before Data has returned nil. After an error it is not called again.
	Data func(Data) error
	// Mirror: a mirror failed, or is back.
	Mirror func(MirrorChange) error
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

// Data is WAL that was received. It continues where the last ended, but at the start of a receive, after a lost connection and
// after a timeline's end: there it begins anew, at the first byte of a segment.
type Data struct {
	Timeline    segment.Timeline
	LSN         segment.LSN // of the first byte
	ServerLSN   segment.LSN // the server's end of WAL, as it said last
	SegmentSize segment.Size
	Bytes       []byte // never beyond the end of a segment; valid only during the callback
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
	ReportedLSN  segment.LSN      // the flushed position that the server was told last; 0: none
	ConfirmedLSN segment.LSN      // what the caller has confirmed last (Options.Confirm); 0: nothing

	Lag          uint64        // bytes that the server has, as it said last, and are not written yet
	LagTime      time.Duration // since WrittenLSN was last the server's end of WAL; 0: it is
	Rate         uint64        // bytes received per second, over the last seconds
	CatchUpTime  time.Duration // until Lag is 0, as things go; 0: it is; negative: not as things go
	FlushTime    time.Duration // that the last flush took; 0: there was none
	FlushTimeMax time.Duration // that the slowest one took

	Mirrors       int // of Options.Mirrors, those that are written in step
	MirrorsFailed int // and those that are not, at the moment
}

// Progress tells where the receive is. Any goroutine, at any time.
func (s *Session) Progress() Progress {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.progress
	s.health.look(&p, time.Now())
	return p
}

func (s *Session) setProgress(change func(*Progress)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.progress)
}
