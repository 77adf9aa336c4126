package main

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"

	"libreceivewal/stream"
)

// lent is a connection that the host lends.
type lent struct {
	fd      int
	relayed bool // fd is the core's end of a relay of the loader
	options stream.SessionOptions
}

func (l *lent) dial() (net.Conn, *relayed, error) {
	conn, err := stream.DialFD(l.fd, held{})
	if err != nil {
		return nil, nil, err
	}
	if !l.relayed {
		return conn, nil, nil
	}
	r := &relayed{Socket: conn}
	return r, r, nil
}

// relayed is a connection that the loader relays. It counts what it has read, and knows why it ended.
type relayed struct {
	*stream.Socket
	taken  atomic.Uint64
	reason atomic.Pointer[string]
}

func (r *relayed) Read(b []byte) (int, error) {
	return r.count(r.Socket.Read(b))
}

func (r *relayed) ReadLazily(get func() []byte, put func()) (int, error) {
	return r.count(r.Socket.ReadLazily(get, put))
}

func (r *relayed) count(n int, err error) (int, error) {
	r.taken.Add(uint64(n))
	if err == io.EOF {
		if reason := r.reason.Load(); reason != nil {
			err = errors.New(*reason)
		}
	}
	return n, err
}

// lost notes why the relay is about to end the connection.
func (s *session) lost(reason string) {
	if s.relay != nil {
		s.relay.reason.Store(&reason)
	}
}

// An answer is the host's to a reconnectEvent: a connection, none for now (conn is nil), or an error.
type answer struct {
	conn    net.Conn
	relay   *relayed
	options stream.SessionOptions
	err     error
}

// reconnect asks the host for a new connection and waits for the answer: the operation's goroutine. The lost one is closed
// before, so that the server learns of it as soon as the host has closed its own descriptor.
func (s *session) reconnect(ctx context.Context, r stream.Reconnection) (stream.NewConnection, error) {
	s.conn.Close()
	answers := make(chan answer, 1)
	s.await(answers)
	s.queue.add(reconnectEvent{r})
	var a answer
	select {
	case a = <-answers:
	case <-ctx.Done():
		s.await(nil)
		select {
		case a = <-answers: // in the same moment: too late
			if a.conn != nil {
				a.conn.Close()
			}
		default:
		}
		return stream.NewConnection{}, ctx.Err()
	}
	return stream.NewConnection{Conn: a.conn, Options: a.options}, a.err
}

func (s *session) await(answers chan<- answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers = answers
}

// answer passes an answer to the operation; ErrStopped if it doesn't wait for one any more.
func (s *session) answer(a answer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.answers == nil {
		if a.conn != nil {
			a.conn.Close()
		}
		return stream.ErrStopped
	}
	if a.conn != nil {
		s.conn, s.relay = a.conn, a.relay
	}
	s.answers <- a // it has room for the one
	s.answers = nil
	return nil
}

// reconnected is the host's answer to a reconnectEvent; nil: not now.
func (s *session) reconnected(l *lent) error {
	if l == nil {
		return s.answer(answer{})
	}
	a := answer{options: l.options}
	a.options.ReadAhead = append([]byte(nil), l.options.ReadAhead...) // the host's, valid only until we return
	var err error
	if a.conn, a.relay, err = l.dial(); err != nil {
		return err
	}
	return s.answer(a)
}

// gaveUp is the host's answer that there will be no new connection.
func (s *session) gaveUp() error {
	return s.answer(answer{err: errors.New("the host gave up")})
}
