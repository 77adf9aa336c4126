package segment

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// What can be wrong with a directory or its files. Every error of this package wraps one of these.
var (
	ErrNoDirectory = errors.New("no such directory")
	ErrPermission  = errors.New("permission denied")
	ErrLocked      = errors.New("another receiver is writing to the directory")
	ErrDiskFull    = errors.New("disk full")
	ErrIO          = errors.New("I/O error")
	ErrGap         = errors.New("gap in the WAL")
	ErrForeign     = errors.New("WAL of another cluster")
	ErrNoFile      = errors.New("no such file of the WAL")
	ErrInternal    = errors.New("internal error")
)

// failure says what was being done to which file, and wraps both the kind of error and its cause.
func failure(doing, name string, err error) error {
	kind := ErrIO
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		kind = ErrDiskFull
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		kind = ErrPermission
	}
	return failureOf(kind, doing, name, err)
}

func failureOf(kind error, doing, name string, err error) error {
	return &fileError{fmt.Sprintf("could not %s \"%s\": %s", doing, name, reason(err)), kind, err}
}

// fileError is an error about a file: a sentence, the kind for errors.Is, and the cause.
type fileError struct {
	text  string
	kind  error
	cause error
}

func (e *fileError) Error() string   { return e.text }
func (e *fileError) Unwrap() []error { return []error{e.kind, e.cause} }

// reason is the innermost text of an operating system's error, without the names that the caller puts in front.
func reason(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}
