package stream

import (
	"errors"
	"log/slog"
	"time"

	"libreceivewal/segment"
)

// diskRetry is how long a full disk is given before it is tried again.
const diskRetry = 3 * time.Second

// DiskFull tells of a disk that is full, or has room again.
type DiskFull struct {
	Full   bool
	Err    error         // what failed, while Full
	Waited time.Duration // since it was full first
}

// waitsForDisk tells whether an error is to be waited out.
func (r *receiver) waitsForDisk(err error) bool {
	return r.o.WaitOnDiskFull && errors.Is(err, segment.ErrDiskFull)
}

// diskFull notes that the disk is full, and tells the caller the first time.
func (r *receiver) diskFull(err error) {
	if !r.fullSince.IsZero() {
		return
	}
	r.fullSince = time.Now()
	r.s.setProgress(func(p *Progress) { p.State = StateDiskFull })
	r.o.Events.log(slog.LevelWarn, err.Error()+"; waiting for room")
	if e := r.o.Events.DiskFull; e != nil {
		r.stopOn(e(DiskFull{Full: true, Err: err}))
	}
}

// diskHasRoom tells the caller that a full disk is no longer.
func (r *receiver) diskHasRoom() {
	if r.fullSince.IsZero() {
		return
	}
	waited := time.Since(r.fullSince)
	r.fullSince = time.Time{}
	r.o.Events.log(slog.LevelInfo, "the disk has room again")
	if e := r.o.Events.DiskFull; e != nil {
		r.stopOn(e(DiskFull{Waited: waited}))
	}
}
