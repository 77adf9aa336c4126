package stream

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// What can end an operation, besides the errors of package segment. Test with errors.Is; a *ServerError inside, found
// with errors.As, has what the server said.
var (
	ErrStopped        = errors.New("stopped")
	ErrInvalid        = errors.New("invalid argument")
	ErrBusy           = errors.New("another operation is in progress")
	ErrBadFD          = errors.New("not an open descriptor")
	ErrNotSocket      = errors.New("not a stream socket")
	ErrNotConnected   = errors.New("not connected")
	ErrConnectionLost = errors.New("connection lost")
	ErrEncrypted      = errors.New("the peer speaks TLS")
	ErrProtocol       = errors.New("protocol violation")
	ErrUnsupported    = errors.New("not supported by this server or connection")
	ErrWALRemoved     = errors.New("WAL removed")
	ErrNoSlot         = errors.New("no such physical replication slot")
	ErrSlotBusy       = errors.New("replication slot in use")
	ErrSlotExists     = errors.New("replication slot exists")
	ErrTimeline       = errors.New("timeline not in the server's history")
)

// ServerError is an ErrorResponse of the server
// (https://www.postgresql.org/docs/current/protocol-error-fields.html).
type ServerError struct {
	Severity string // ERROR, FATAL or PANIC, never translated where the server is 9.6 or newer
	SQLSTATE string // five characters
	Message  string
	Detail   string
	Hint     string
}

// Error is the message as libpq prints it.
func (e *ServerError) Error() string { return e.Severity + ":  " + e.Message }

// fatal tells whether the server closes the connection after this error.
func (e *ServerError) fatal() bool { return e.Severity == "FATAL" || e.Severity == "PANIC" }

func newServerError(m *pgproto3.ErrorResponse) *ServerError {
	e := &ServerError{Severity: m.SeverityUnlocalized, SQLSTATE: m.Code, Message: m.Message, Detail: m.Detail, Hint: m.Hint}
	if e.Severity == "" {
		e.Severity = m.Severity
	}
	return e
}

// opError is a sentence with the kind of error and its cause.
type opError struct {
	text  string
	kind  error
	cause error
}

func (e *opError) Error() string { return e.text }

func (e *opError) Unwrap() []error {
	if e.cause == nil {
		return []error{e.kind}
	}
	return []error{e.kind, e.cause}
}

// fail makes an error of the given kind with a sentence of its own. Its last argument may be the cause.
func fail(kind error, format string, args ...any) error {
	e := &opError{text: fmt.Errorf(format, args...).Error(), kind: kind}
	if len(args) > 0 {
		e.cause, _ = args[len(args)-1].(error)
	}
	return e
}

// SQLSTATEs that a caller has to tell apart (errcodes.txt in PostgreSQL's source).
const (
	stateSyntaxError            = "42601"
	stateUndefinedObject        = "42704"
	stateDuplicateObject        = "42710"
	stateObjectInUse            = "55006"
	stateUndefinedFile          = "58P01"
	stateNotInPrerequisiteState = "55000"
	stateInternalError          = "XX000"
	stateFeatureNotSupported    = "0A000"
)

// commandFailure turns the server's refusal of a command into an error.
func commandFailure(sql string, e *ServerError) error {
	kind := error(e)
	slot := strings.Contains(sql, "SLOT ")
	switch {
	case e.fatal():
		kind = ErrConnectionLost // the server has closed it
	case slot && e.SQLSTATE == stateUndefinedObject:
		kind = ErrNoSlot
	case slot && e.SQLSTATE == stateDuplicateObject:
		kind = ErrSlotExists
	case slot && e.SQLSTATE == stateObjectInUse:
		kind = ErrSlotBusy
	}
	for _, name := range []string{"START_REPLICATION", "TIMELINE_HISTORY"} { // of these, pg_receivewal names only the command
		if strings.HasPrefix(sql, name) {
			sql = name
		}
	}
	return fail(kind, "could not send replication command \"%s\": %w", sql, e)
}

// streamFailure turns an error of the server in the middle of a stream into ours. WAL that was removed shows only
// there, as a file that the walsender cannot open (CheckXLogRemoved in xlog.c).
func streamFailure(e *ServerError) error {
	kind := error(e)
	switch {
	case e.fatal():
		kind = ErrConnectionLost
	case e.SQLSTATE == stateUndefinedFile:
		kind = ErrWALRemoved
	}
	return fail(kind, "unexpected termination of replication stream: %w", e)
}

// readFailure is the error for a connection that could not be read.
func readFailure(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fail(ErrConnectionLost, "server closed the connection unexpectedly")
	}
	return fail(ErrConnectionLost, "could not receive data from server: %s", plain(err))
}

// silent is the error for a server that has not sent anything for too long.
func silent(d time.Duration) error {
	return fail(ErrConnectionLost, "no message from the server for %s", d.Round(time.Millisecond))
}

// plain is the innermost text of a network error.
func plain(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	var call *os.SyscallError
	if errors.As(err, &call) {
		err = call.Err
	}
	return err
}

// isTimeout tells a deadline that passed from a connection that broke.
func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// oneLine makes a server's text fit for a log line.
func oneLine(s string) string { return strings.Join(strings.FieldsFunc(s, isBreak), " ") }

func isBreak(r rune) bool { return r == '\n' || r == '\r' || r == 0 }
