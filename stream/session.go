package stream

import (
	"context"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"libreceivewal/segment"
)

// SessionOptions says what is known of a connection beforehand.
type SessionOptions struct {
	ServerVersion int // as server_version_num: 150018 for 15.18; 0: not known

	// What its owner has already read from the connection, beyond what it has used itself. Copied.
	ReadAhead []byte

	FS segment.FS // where Receive writes; nil: the operating system's

	// Started: the owner has sent START_REPLICATION itself, and has read CopyBothResponse but none of the stream, except
	// into ReadAhead. The first Receive takes the stream over; nothing else can be done before. nil: not started.
	Started *StartedStream
}

// Session is the use of one connection for replication. One operation runs at a time; another one at the same time is
// ErrBusy. Progress and Usable may be called by any goroutine at any time.
type Session struct {
	wire          *wire
	fs            segment.FS
	serverVersion int
	started       *StartedStream // not taken over yet

	busy   atomic.Bool
	usable atomic.Bool // no answer is outstanding: the server is in ReadyForQuery
	log    func(level slog.Level, text string)

	silence time.Duration // how long the server may be silent when an answer is due; 0: for ever
	grace   time.Time     // when the answer that is due must be complete; zero: no matter, as long as nobody stops

	mu       sync.Mutex // guards wire against wake, progress and health
	progress Progress
	health   health

	hold hold
}

// NewSession makes a Session of a connection that is established with replication=true, authenticated and idle. Messages of the
// authentication may still be unread on it. The connection stays the caller's: a Session never closes it, and
// leaves it without deadlines.
func NewSession(conn net.Conn, o SessionOptions) *Session {
	s := &Session{fs: segment.OS, serverVersion: o.ServerVersion}
	if o.FS != nil {
		s.fs = o.FS
	}
	s.lend(conn, o)
	return s
}

// lend makes conn the session's connection.
func (s *Session) lend(conn net.Conn, o SessionOptions) {
	w := newWire(conn)
	w.buf, w.w = append([]byte(nil), o.ReadAhead...), len(o.ReadAhead)
	if o.ServerVersion != 0 {
		s.serverVersion = o.ServerVersion
	}
	s.started = o.Started
	s.mu.Lock()
	s.wire = w
	s.mu.Unlock()
	s.usable.Store(s.started == nil)
}

// wake wakes the operation in progress. Any goroutine.
func (s *Session) wake() {
	s.mu.Lock()
	w := s.wire
	s.mu.Unlock()
	w.wake()
}

// Usable tells whether the connection is idle in ReadyForQuery, so that its owner can go on using it.
func (s *Session) Usable() bool { return s.usable.Load() && !s.busy.Load() }

// begin claims the session for one operation, which ctx can wake. The returned function ends it.
func (s *Session) begin(ctx context.Context) (end func(), err error) {
	if !s.busy.CompareAndSwap(false, true) {
		return nil, ErrBusy
	}
	if !s.usable.Load() && s.started == nil {
		s.busy.Store(false)
		return nil, fail(ErrConnectionLost, "the connection is not idle: an earlier operation on it failed")
	}
	s.wire.release() // from the deadlines of the connection's earlier life
	woken := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		defer close(woken)
		s.wake()
	})
	return func() {
		if !cancel() {
			<-woken
		}
		s.wire.release()
		s.log, s.silence = nil, 0
		s.busy.Store(false)
	}, nil
}

func (s *Session) logf(level slog.Level, text string) {
	if s.log != nil {
		s.log(level, text)
	}
}

// stopGrace is how long the answer to a command is waited for after a stop: with the answer unread, the
// connection would be lost.
const stopGrace = 5 * time.Second

// message reads the next message that belongs to an answer. Messages that may come at any time are dealt with on the way.
// Not a byte beyond the message is read, so that nothing of the connection's later life is lost here.
func (s *Session) message(ctx context.Context) (kind byte, body []byte, err error) {
	for {
		kind, body, err = s.anyMessage(ctx)
		if err != nil {
			s.usable.Store(false)
			return 0, nil, err
		}
		asynchronous, err := s.asynchronous(kind, body)
		if err != nil {
			s.usable.Store(false)
			return 0, nil, err
		}
		if !asynchronous {
			return kind, body, nil
		}
	}
}

func (s *Session) anyMessage(ctx context.Context) (byte, []byte, error) {
	for {
		kind, length, ok, err := s.wire.header()
		if err != nil {
			return 0, nil, err
		}
		missing := headerSize - len(s.wire.buffered())
		if ok {
			var body []byte
			if body, missing, err = s.wire.body(kind, length); missing == 0 {
				return kind, body, err
			}
		}
		if err := s.read(ctx, missing); err != nil {
			return 0, nil, err
		}
	}
}

// read waits for some of the next n bytes: as long as the server may be silent, but the whole answer for no longer than
// stopGrace once ctx has ended.
func (s *Session) read(ctx context.Context, n int) error {
	var limit time.Time
	if s.silence > 0 {
		limit = time.Now().Add(s.silence)
	}
	for {
		if ctx.Err() != nil && s.grace.IsZero() {
			s.grace = time.Now().Add(stopGrace)
		}
		if !s.grace.IsZero() && (limit.IsZero() || s.grace.Before(limit)) {
			limit = s.grace
		}
		switch {
		case limit.IsZero() || time.Now().Before(limit):
		case ctx.Err() != nil:
			return fail(ErrStopped, "stopped; the server did not answer")
		case limit.Equal(s.grace):
			return fail(ErrConnectionLost, "the server did not answer in time")
		default:
			return silent(s.silence)
		}
		got, err := s.wire.read(min(n, bufferSize), limit)
		if err != nil || got {
			return err
		}
	}
}

// asynchronous deals with a message that the server may send at any time
// (https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-ASYNC); false for every other.
func (s *Session) asynchronous(kind byte, body []byte) (bool, error) {
	switch kind {
	case typeNoticeResponse:
		var m pgproto3.NoticeResponse
		if err := decode(&m, body); err != nil {
			return true, err
		}
		e := pgproto3.ErrorResponse(m)
		s.logf(slog.LevelInfo, oneLine(newServerError(&e).Error()))
	case typeParameterStatus:
		var m pgproto3.ParameterStatus
		if err := decode(&m, body); err != nil {
			return true, err
		}
		if m.Name == "server_version" && s.serverVersion == 0 {
			s.serverVersion = ParseVersion(m.Value)
		}
	case typeNotification:
	default:
		return false, nil
	}
	return true, nil
}

// ParseVersion makes a server_version_num, as [SessionOptions] has it, of the server_version that a server reports at the
// start of a connection: 150018 of "15.18 (Debian 15.18-0)", 90603 of "9.6.3". 0 of what is no version.
func ParseVersion(version string) int {
	number, _, _ := strings.Cut(version, " ")
	var part [3]int
	for i, text := range strings.SplitN(number, ".", 3) {
		end := strings.IndexFunc(text, func(r rune) bool { return r < '0' || r > '9' }) // "19devel", "18beta1"
		if end < 0 {
			end = len(text)
		}
		n, err := strconv.ParseUint(text[:end], 10, 16)
		if err != nil {
			break // no number: not known
		}
		part[i] = int(n)
	}
	if part[0] >= 10 {
		return part[0]*10000 + part[1]
	}
	return part[0]*10000 + part[1]*100 + part[2]
}

// answer is what the server sent for a command.
type answer struct {
	rows     [][][]byte // NULL is nil
	copyBoth bool       // the connection is in COPY mode now
}

// idle marks the connection as idle after ReadyForQuery. While data was streamed, more than the answers
// could have been read with them: only messages that may come at any time.
func (s *Session) idle(ctx context.Context) error {
	return s.settle(ctx, func() bool { return false })
}

// Settle reads what came after the last answer and is no longer on the connection itself, because something between the
// two has read ahead, until pending says that there is no more. Only messages that may come at any time can be among it; after
// anything else the connection is not usable any more.
func (s *Session) Settle(ctx context.Context, pending func() bool) error {
	end, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	s.silence = drainTime
	s.usable.Store(false)
	return s.settle(ctx, pending)
}

func (s *Session) settle(ctx context.Context, pending func() bool) error {
	for len(s.wire.buffered()) > 0 || pending() {
		kind, body, err := s.anyMessage(ctx)
		if err != nil {
			return err
		}
		ok, err := s.asynchronous(kind, body)
		switch {
		case err != nil:
			return err
		case kind == typeErrorResponse: // the server ends the connection
			var m pgproto3.ErrorResponse
			if err := decode(&m, body); err != nil {
				return err
			}
			return fail(ErrConnectionLost, "the server closed the connection: %w", newServerError(&m))
		case !ok:
			return unexpected(kind, "ReadyForQuery")
		}
	}
	s.usable.Store(true)
	return nil
}

// maxRows is far more than any replication command answers; the rows together may be as long as one message.
const maxRows = 100

// command sends a command by the simple query protocol and reads its answer, up to ReadyForQuery or the beginning
// of COPY. A ReadyForQuery before any answer is the authentication's, unread until now.
func (s *Session) command(ctx context.Context, sql string) (answer, error) {
	var a answer
	if err := ctx.Err(); err != nil {
		return a, ErrStopped
	}
	if s.started != nil {
		return a, fail(ErrBusy, "replication has been started on this connection: only a receive can take it over")
	}
	s.usable.Store(false)
	s.grace = time.Time{}
	if err := s.wire.send(&pgproto3.Query{String: sql}); err != nil {
		return a, err
	}
	var failed error
	answered, size := false, 0
	for {
		kind, body, err := s.message(ctx)
		if err != nil {
			return a, err
		}
		switch kind {
		case typeReadyForQuery:
			if answered {
				s.usable.Store(true)
				return a, failed
			}
			continue // the authentication's
		case typeAuthentication, typeBackendKeyData:
			if answered {
				return a, unexpected(kind, sql)
			}
			continue
		case typeRowDescription, typeCommandComplete, typeEmptyQuery:
		case typeDataRow:
			row, err := decodeRow(body)
			if err != nil {
				return a, err
			}
			size += len(body)
			if a.rows = append(a.rows, row); len(a.rows) > maxRows || size > maxMessage {
				return a, fail(ErrProtocol, "the server sent too many rows for %q", sql)
			}
		case typeErrorResponse:
			var m pgproto3.ErrorResponse
			if err := decode(&m, body); err != nil {
				return a, err
			}
			e := newServerError(&m)
			failed = commandFailure(sql, e)
			if e.fatal() {
				return a, failed
			}
		case typeCopyBothResponse:
			if failed != nil {
				return a, unexpected(kind, sql)
			}
			a.copyBoth = true
			return a, nil
		default:
			return a, unexpected(kind, sql)
		}
		answered = true
	}
}

func unexpected(kind byte, doing string) error {
	return fail(ErrProtocol, "the server sent an unexpected message of type %q to %q", kind, doing)
}

// decodeRow copies the values of a row out of the read buffer.
func decodeRow(body []byte) ([][]byte, error) {
	var m pgproto3.DataRow
	if err := decode(&m, body); err != nil {
		return nil, err
	}
	row := make([][]byte, len(m.Values))
	for i, v := range m.Values {
		if v != nil {
			row[i] = append([]byte{}, v...)
		}
	}
	return row, nil
}
