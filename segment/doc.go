// Package segment knows WAL segments: their positions, timelines and file names, the directory that holds
// them, and how to write them so that they survive a crash.
//
// It must never know of a connection or a protocol, and it must never call an LSN flushed before the data up to
// it, and the directory entry of its file, are durable.
//
// # Use
//
// Positions and names need no directory: [ParseLSN], [ParseSize], [At], [ParseName], [ParseHistory]. [FindStart] and
// [CheckDirectory] look at one without a lock and change nothing. A receiver opens it with [Open], and writes with
// [Directory.NewWriter]; package stream does both for a Go program that has a connection.
//
// Errors are told apart by errors.Is: [ErrDiskFull] and [ErrIO] leave the directory as it can be continued, [ErrLocked] means
// that somebody else writes to it, [ErrGap] and [ErrForeign] that the data doesn't belong there.
//
// # The path of a byte
//
// A [Directory] is opened and locked, [Directory.Start] tells where to go on, and a [Writer] takes the data:
//
//	Writer.Append ── pwrite ──> an open segment           (the caller's goroutine)
//	                                 |
//	syncer: fdatasync -> link or rename -> fsync directory -> flushed LSN moves
//
// With compression a worker stands between Append and the file: it takes the data from a queue through an encoder, and
// the syncer counts only what a decoder can read.
//
// Every file operation goes through the [FS] interface, so that tests can make it fail, or cut the power.
package segment
