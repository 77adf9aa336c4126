package segment

import (
	"io"
	"io/fs"
	"time"
)

// FS opens directories. [OS] is the real one; tests have others that fail or lose power.
type FS interface {
	OpenDir(path string) (Dir, error)
}

// Holder is told of the descriptors that a file system keeps open: each just after it was opened, and again just before it is
// closed. Any goroutine.
type Holder interface {
	Hold(fd int)
	Release(fd int)
}

// Dir is an open directory and all that this package does to one. Names are of files directly in it; what
// happens to the directory's own path, or to the process's working directory, after it was opened makes no
// difference.
type Dir interface {
	// Names lists the regular files, and the symbolic links to such, in no order.
	Names() ([]string, error)
	// Stat tells a file's length in bytes, and when anything about it was last changed.
	Stat(name string) (size int64, changed time.Time, err error)
	// Open opens an existing file, to read or also to write.
	Open(name string, write bool) (File, error)
	// Create makes a file with exactly these permission bits that has no visible name, and so is gone after a
	// crash, until Link.
	Create(mode fs.FileMode) (File, error)
	// Link gives a file made by Create its name. An existing file of that name is an error (fs.ErrExist).
	Link(f File, name string) error
	// Replace gives a file made by Create a name that another file has, which loses it. The change is atomic, and what it made
	// visible is durable before.
	Replace(f File, name string) error
	// Rename replaces an existing file of the new name.
	Rename(from, to string) error
	Remove(name string) error
	// Sync makes the names durable.
	Sync() error
	// Lock keeps out every other Lock of this directory until Close: at once, or ErrLocked.
	Lock() error
	Close() error
}

// File is an open file and all that this package does to one.
type File interface {
	io.ReaderAt
	io.WriterAt
	// Allocate makes the file size bytes long, with disk space for all of them where the file system can.
	// What was never written reads as zeros; what was stays.
	Allocate(size int64) error
	// Size is the file's length in bytes.
	Size() (int64, error)
	// Sync makes the data, and the length, durable. After it has failed once the file must not be trusted.
	Sync() error
	Close() error
}
