// Package stream receives WAL over a connection to PostgreSQL that somebody else has established with
// replication=true and authenticated, and gives the connection back idle.
//
// It speaks the streaming replication protocol
// (https://www.postgresql.org/docs/current/protocol-replication.html) in the way of pg_receivewal. It must never
// open or close a connection, lose a byte of the server's answers, or report a position flushed that package segment
// does not call flushed.
//
// # Use
//
// [NewSession] takes the connection, a [net.Conn]: of pgx by Hijack, after SyncConn has seen to it that pgx keeps nothing that it
// has read (examples/go/main.go does it, and puts the connection back by Construct); of a descriptor by [DialFD]. A TLS connection
// is one like any other. [Session.Receive] blocks until [Options.EndLSN] is reached, its context ends (ErrStopped) or something
// fails; all it has to tell goes through [Events], which it calls itself. Afterwards [Session.Usable] tells whether the
// connection is idle, so that its owner can go on with it. [Session.Progress] may be asked by any goroutine meanwhile.
//
// What an error means for the caller is told by errors.Is, with the errors of this package and those of package segment:
//
//	ErrStopped                             the context, or an event, has ended it: all that was written is flushed
//	ErrConnectionLost                      connect anew and receive again; or let Events.Reconnect do so
//	ErrWALRemoved                          the server no longer has what comes next: a new base backup is needed
//	ErrNoSlot, ErrSlotBusy, ErrSlotExists  about the slot
//	segment.ErrDiskFull                    make room and receive again; or set WaitOnDiskFull
//	segment.ErrLocked                      another receiver writes to the directory
//	segment.ErrForeign, segment.ErrGap     the WAL does not belong there; a person has to look
//
// # The path of a byte
//
//	Session.Receive          asks the server who it is and the directory where to go on
//	  receiver.timeline      START_REPLICATION, one timeline at a time
//	    copyStream.run       the COPY loop: read, take apart, send status updates
//	      copyStream.take    one message of the server
//	        segment.Writer.Append
package stream
