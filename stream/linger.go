package stream

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A server that catches us up sends as fast as it can, and we are faster: each of its pieces would be waited for, read and
// written by itself. Waiting for a piece costs more than reading it, so a moment later more is read at once.
//
// The moment is a nanosleep(2), not a time.Sleep, which costs what is to be saved. It occupies a thread, so only few connections
// may at once; the others wait as usual.
const (
	lingerTime = 50_000 // nanoseconds
	lingerers  = 4      // at a time

	// lingerLag is how far ahead the server must be for it to be certain that more is on its way: a few of its messages, and all that
	// socket buffers hold.
	lingerLag = 1 << 20
)

// lingering is how many connections linger now.
var lingering atomic.Int32

func linger() {
	if lingering.Add(1) <= lingerers {
		moment := unix.Timespec{Nsec: lingerTime}
		unix.Syscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&moment)), 0, 0) // an early end does no harm
	}
	lingering.Add(-1)
}
