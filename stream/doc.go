// Package stream receives WAL over a connection to PostgreSQL that somebody else has established with
// replication=true and authenticated, and gives the connection back idle.
//
// It speaks the streaming replication protocol
// (https://www.postgresql.org/docs/current/protocol-replication.html) in the way of pg_receivewal. It must never
// open or close a connection, lose a byte of the server's answers, or report a position flushed that package segment
// does not call flushed.
//
// # The path of a byte
//
//	Session.Receive          asks the server who it is and the directory where to go on
//	  receiver.timeline      START_REPLICATION, one timeline at a time
//	    copyStream.run       the COPY loop: read, take apart, send status updates
//	      copyStream.take    one message of the server
//	        segment.Writer.Append
package stream
