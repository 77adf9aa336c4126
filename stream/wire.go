package stream

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// Message types of the server that this package handles
// (https://www.postgresql.org/docs/current/protocol-message-formats.html).
const (
	typeAuthentication   = 'R'
	typeBackendKeyData   = 'K'
	typeCommandComplete  = 'C'
	typeCopyBothResponse = 'W'
	typeCopyData         = 'd'
	typeCopyDone         = 'c'
	typeDataRow          = 'D'
	typeEmptyQuery       = 'I'
	typeErrorResponse    = 'E'
	typeNoticeResponse   = 'N'
	typeNotification     = 'A'
	typeParameterStatus  = 'S'
	typeReadyForQuery    = 'Z'
	typeRowDescription   = 'T'
)

const (
	headerSize = 5 // a message's type, and its length with the length itself

	// maxMessage bounds the body of every message but the data of the stream, which is never collected. The longest that
	// PostgreSQL sends is a history file.
	maxMessage = 16 << 20

	// bufferSize is what one read takes at most: a few of the 128 KiB messages that walsender sends (MAX_SEND_SIZE in
	// walsender.c).
	bufferSize = 256 << 10

	// writeTimeout is how long the peer may keep us from sending a few bytes, at most; half of it at least.
	writeTimeout = 60 * time.Second
)

// buffers are for all connections: one that waits for its server has none.
var buffers bufferPool

// bufferPool gives large buffers while few are in use, smaller ones beyond, and at last the smallest: with a thousand streams most wait
// for the disk, and a large buffer each would only be in their way. It keeps no more of them than were in use at once, while sync.Pool
// would keep some for each processor.
type bufferPool struct {
	mu    sync.Mutex
	sizes [len(bufferSizes)]bufferClass
}

// bufferClass are the buffers of one size.
type bufferClass struct {
	free  [][]byte
	inUse int
}

// bufferSizes are the sizes, and how many of each are in use at a time, or of the last one kept for the next.
var bufferSizes = [3]struct{ size, most int }{{bufferSize, 16}, {64 << 10, 112}, {16 << 10, 128}}

func (p *bufferPool) get() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := 0
	for i < len(bufferSizes)-1 && p.sizes[i].inUse == bufferSizes[i].most {
		i++
	}
	c := &p.sizes[i]
	c.inUse++
	last := len(c.free) - 1
	if last < 0 {
		return make([]byte, bufferSizes[i].size)
	}
	b := c.free[last]
	c.free = c.free[:last]
	return b
}

func (p *bufferPool) put(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range bufferSizes {
		if len(b) != bufferSizes[i].size {
			continue
		}
		c := &p.sizes[i]
		c.inUse--
		if len(c.free) < bufferSizes[i].most {
			c.free = append(c.free, b)
		}
	}
}

// lazyReader is a connection that needs a buffer only once there is something to read. get gives the buffer, put takes it
// back where there was nothing after all.
type lazyReader interface {
	ReadLazily(get func() []byte, put func()) (int, error)
}

// wire is the connection, with a buffer for what was read but not used yet. One goroutine uses it; only wake may be
// called by others.
type wire struct {
	conn net.Conn
	buf  []byte // buf[r:w] was read and not used yet; nil while nothing is there and nothing is read
	r, w int
	lent bool // buf is of buffers
	got  int  // how many bytes the last read got

	lastRead time.Time     // when something was read last
	dense    int           // reads in a row that have not waited for long
	hot      bool          // conn may be hot
	paused   time.Duration // before the last read
	out      []byte

	writeBy time.Time // the deadline that conn has for writing

	lazy  lazyReader // conn, if it is one
	warm  heatable   // conn, if it is one
	limit int        // of the read in progress
	get   func() []byte
	put   func()

	mu     sync.Mutex
	poked  bool          // wake was called and nobody has noticed yet
	armed  time.Time     // the deadline that conn has
	wakeup chan struct{} // signalled by wake, for waiting without reading
}

func newWire(conn net.Conn) *wire {
	c := &wire{conn: conn, wakeup: make(chan struct{}, 1)}
	c.lazy, _ = conn.(lazyReader)
	c.warm, _ = conn.(heatable)
	c.get = func() []byte { return c.reserve(c.limit) }
	c.put = c.giveBack
	return c
}

// long ago: a deadline that makes a read return at once.
var past = time.Unix(1, 0)

// wake makes a read or a wait that is in progress, or else the next one, return early. Any goroutine.
func (c *wire) wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.poked, c.armed = true, past
	c.conn.SetReadDeadline(past)
	select {
	case c.wakeup <- struct{}{}:
	default:
	}
}

// arm sets the deadline of the next read (zero: none); false if wake was called since the last read.
func (c *wire) arm(deadline time.Time) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.poked {
		c.poked = false
		return false, nil
	}
	if deadline.Equal(c.armed) {
		return true, nil
	}
	if !deadline.IsZero() && deadline.After(c.armed) && c.armed.After(time.Now()) {
		return true, nil // it returns early once, and is called again; the deadline moves on with each message, and to set it costs
	}
	c.armed = deadline
	return true, c.conn.SetReadDeadline(deadline)
}

// buffered is what was read and not used yet.
func (c *wire) buffered() []byte { return c.buf[c.r:c.w] }

// used marks the first n buffered bytes as used.
func (c *wire) used(n int) {
	if c.r += n; c.r == c.w {
		c.r, c.w = 0, 0
	}
}

// read waits until deadline (zero: for ever) for more bytes, and buffers at most limit of them. It returns false
// without an error where the deadline passed or wake was called first.
func (c *wire) read(limit int, deadline time.Time) (bool, error) {
	if ok, err := c.arm(deadline); err != nil {
		return false, readFailure(err)
	} else if !ok {
		return false, nil
	}
	c.limit = limit
	var n int
	var err error
	if c.lazy != nil {
		n, err = c.lazy.ReadLazily(c.get, c.put)
	} else {
		n, err = c.conn.Read(c.get())
	}
	c.w += n
	c.got = n
	if n > 0 {
		c.heat(time.Now())
		return true, nil // an error, if there is one, comes again
	}
	if isTimeout(err) {
		return false, nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return false, readFailure(err)
}

// linger waits for more bytes in the kernel, but not beyond deadline (zero: no matter). A wake is noticed only after it.
func (c *wire) linger(deadline time.Time) {
	if limit := within(lingerTime, deadline); limit > 0 {
		c.warm.Linger(limit)
	}
}

// pause lets the server send some more, but not beyond deadline (zero: no matter). A wake is noticed only after it.
func (c *wire) pause(deadline time.Time) {
	c.paused = nextPause(c.paused, c.got)
	if limit := within(c.paused, deadline); limit > 0 {
		c.warm.Pause(limit)
		c.lastRead = time.Now() // to wait was our wish
	}
}

// within is limit, or the time until deadline (zero: no matter) if that is less.
func within(limit time.Duration, deadline time.Time) time.Duration {
	if deadline.IsZero() {
		return limit
	}
	return min(limit, time.Until(deadline))
}

// heat makes a connection hot that was never waited for for long; one that was is cool by itself.
func (c *wire) heat(now time.Time) {
	if now.Sub(c.lastRead) >= lingerTime {
		c.dense, c.hot, c.paused = 0, false, 0
	} else if c.dense++; c.dense%denseReads == 0 && c.warm != nil {
		c.warm.Heat()
		c.hot = true
	}
	c.lastRead = now
}

// short tells whether the last read has got little: we are faster than the server.
func (c *wire) short() bool { return c.got < bufferSize/2 }

// reserve makes room in the buffer for more bytes, n at most, and gives that room.
func (c *wire) reserve(n int) []byte {
	if c.r == c.w && !c.lent {
		c.buf = nil // it was made for one message, or is as long as what was read ahead
	}
	if c.buf == nil {
		c.buf, c.lent = buffers.get(), true
	}
	if c.w+n > len(c.buf) {
		if have := c.w - c.r; have+n > len(c.buf) && have > len(c.buf)/2 {
			c.move(make([]byte, max(bufferSize, 2*len(c.buf))))
		} else {
			c.w = copy(c.buf, c.buffered())
			c.r = 0
		}
	}
	return c.buf[c.w:min(c.w+n, len(c.buf))]
}

// move moves what is buffered into another buffer of our own.
func (c *wire) move(into []byte) {
	w := copy(into, c.buffered())
	if c.lent {
		buffers.put(c.buf)
	}
	c.buf, c.r, c.w, c.lent = into, 0, w, false
}

// giveBack gives the buffer back if nothing is in it.
func (c *wire) giveBack() {
	if c.r == c.w {
		c.move(nil)
	}
}

// wait waits until deadline (zero: for ever) or wake, without reading.
func (c *wire) wait(deadline time.Time) {
	c.mu.Lock()
	poked := c.poked
	c.poked = false
	c.mu.Unlock()
	if poked {
		return
	}
	var due <-chan time.Time
	if !deadline.IsZero() {
		timer := time.NewTimer(time.Until(deadline))
		defer timer.Stop()
		due = timer.C
	}
	select {
	case <-c.wakeup:
	case <-due:
	}
}

// header looks at the next message's type and the length of its body; false if it isn't buffered yet.
func (c *wire) header() (kind byte, length int, ok bool, err error) {
	b := c.buffered()
	if len(b) < headerSize {
		return 0, 0, false, nil
	}
	kind, length = b[0], int(int32(binary.BigEndian.Uint32(b[1:])))-4
	if b[0] >= 0x14 && b[0] <= 0x17 && b[1] == 3 { // a TLS record (RFC 8446, 5.1)
		return 0, 0, false, fail(ErrEncrypted, "the server speaks TLS on this connection: "+
			"the descriptor alone is not enough to read it")
	}
	if length < 0 {
		return 0, 0, false, fail(ErrProtocol, "the server sent a message of type %q with the impossible length %d", kind, length+4)
	}
	return kind, length, true, nil
}

// body takes the whole message that header has looked at from the buffer, or tells how many bytes of it are missing.
// The body is valid until the next read.
func (c *wire) body(kind byte, length int) (body []byte, missing int, err error) {
	if length > maxMessage {
		return nil, 0, fail(ErrProtocol, "the server sent a message of type %q with %d bytes", kind, length)
	}
	if missing = headerSize + length - len(c.buffered()); missing > 0 {
		return nil, missing, nil
	}
	body = c.buffered()[headerSize : headerSize+length]
	c.used(headerSize + length)
	return body, 0, nil
}

// send writes a message.
func (c *wire) send(m pgproto3.FrontendMessage) error {
	out, err := m.Encode(c.out[:0])
	if err != nil {
		return fail(ErrInvalid, "could not encode a message: %w", err)
	}
	c.out = out
	return c.write(out)
}

// scratch is n zero bytes to make a message in, until the next one.
func (c *wire) scratch(n int) []byte {
	c.out = append(c.out[:0], make([]byte, n)...)
	return c.out
}

func (c *wire) write(b []byte) error {
	// To set it costs, so one that is still far away stays.
	if now := time.Now(); c.writeBy.Sub(now) < writeTimeout/2 {
		c.writeBy = now.Add(writeTimeout)
		if err := c.conn.SetWriteDeadline(c.writeBy); err != nil {
			return fail(ErrConnectionLost, "could not send data to server: %w", plain(err))
		}
	}
	if _, err := c.conn.Write(b); err != nil {
		return fail(ErrConnectionLost, "could not send data to server: %w", plain(err))
	}
	return nil
}

// decode decodes the body of a message that is not the stream's data.
func decode(m pgproto3.Message, body []byte) error {
	if err := m.Decode(body); err != nil {
		return fail(ErrProtocol, "the server sent a message that cannot be read: %w", err)
	}
	return nil
}

// release leaves the connection as it was found: without deadlines. The buffer goes, too, but for what is in it.
func (c *wire) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.warm != nil && c.warm.Cool() == nil {
		c.dense, c.hot, c.paused = 0, false, 0
	}
	c.poked, c.armed, c.writeBy = false, time.Time{}, time.Time{}
	c.conn.SetDeadline(time.Time{})
	select {
	case <-c.wakeup:
	default:
	}
	if c.lent {
		c.move(bytes.Clone(c.buffered()))
	}
	c.giveBack()
}
