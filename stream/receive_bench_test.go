package stream

import (
	"encoding/binary"
	"fmt"
	"net"
	"testing"
	"time"

	"libreceivewal/segment"
)

// benchSize is a segment's. Messages don't cross its end, as a WAL sender's don't.
const benchSize = 64 << 20

// BenchmarkReceive is the cost of frames but for the socket and the disk: the connection gives WAL messages without end out of
// memory, as much of them as each read asks for, and the directory forgets what is written. Messages of 128 KiB are what a WAL
// sender makes when it catches up, small ones are those of commits.
func BenchmarkReceive(b *testing.B) {
	for _, size := range []int{256, 8 << 10, 128 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			const start = segment.LSN(3 * benchSize)
			c := &endless{next: start, wal: size, messages: b.N}
			c.pending = append(encode(append(append(answerOf(testSystem, 1, start), answerOf("64MB")...), answerOf("0700")...)...), 'W', 0, 0, 0, 7, 0, 0, 0)
			s := NewSession(c, SessionOptions{})
			directory := newMemory()
			directory.forgetful = true
			s.fs = directory
			b.SetBytes(int64(size))
			b.ReportAllocs()
			b.ResetTimer()
			err := s.Receive(b.Context(), Options{Directory: "wal", StartLSN: start, ReceiveTimeout: -1, StatusInterval: -1, NoSync: true})
			if got := s.Progress().Bytes; got != uint64(b.N)*uint64(size) {
				b.Fatalf("%d of %d bytes: %v", got, b.N*size, err)
			}
		})
	}
}

// endless is a connection whose server sends WAL messages and hears nothing.
type endless struct {
	pending  []byte // what is to be read next
	message  []byte
	next     segment.LSN
	wal      int
	messages int
}

func (c *endless) Read(b []byte) (int, error) {
	n := 0
	for n < len(b) {
		if len(c.pending) == 0 {
			if c.messages == 0 {
				break
			}
			c.refill()
		}
		m := copy(b[n:], c.pending)
		c.pending = c.pending[m:]
		n += m
	}
	if n == 0 {
		return 0, net.ErrClosed
	}
	return n, nil
}

// refill makes the next message in place of the last. Where a segment begins, so does its header.
func (c *endless) refill() {
	c.messages--
	if c.message == nil {
		c.message = encode(dataMessage(c.next, 0, make([]byte, c.wal)))
	}
	binary.BigEndian.PutUint64(c.message[headerSize+1:], uint64(c.next))
	data := c.message[len(c.message)-c.wal:]
	if c.next%benchSize == 0 {
		copy(data, pageHeader(testSystem, 1, c.next, benchSize))
	}
	c.next += segment.LSN(c.wal)
	c.pending = c.message
}

func (c *endless) Write(b []byte) (int, error)      { return len(b), nil }
func (c *endless) Close() error                     { return nil }
func (c *endless) LocalAddr() net.Addr              { return nil }
func (c *endless) RemoteAddr() net.Addr             { return nil }
func (c *endless) SetDeadline(time.Time) error      { return nil }
func (c *endless) SetReadDeadline(time.Time) error  { return nil }
func (c *endless) SetWriteDeadline(time.Time) error { return nil }
