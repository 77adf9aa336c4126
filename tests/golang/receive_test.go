// Package golang_test uses packages stream and segment as a Go program does: a connection of pgx, on real servers.
package golang_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"libreceivewal/segment"
	"libreceivewal/stream"
	"libreceivewal/tests/pg"
)

// connect opens a replication connection and takes it out of pgx.
func connect(t *testing.T, c *pg.Cluster) *pgconn.HijackedConn {
	t.Helper()
	conn, err := pgconn.Connect(context.Background(), c.ConnString("replication=true"))
	if err != nil {
		t.Fatal(err)
	}
	h, err := conn.Hijack()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Conn.Close() })
	return h
}

// giveBack makes a pgx connection of it again and runs a command on it.
func giveBack(t *testing.T, h *pgconn.HijackedConn) {
	t.Helper()
	conn, err := pgconn.Construct(h)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(context.Background(), "IDENTIFY_SYSTEM").ReadAll(); err != nil {
		t.Errorf("the connection came back broken: %v", err)
	}
}

func TestReceiveUntilEnd(t *testing.T) {
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	h := connect(t, c)
	dir := fromNow(t, c) // the start, however little the first receive gets to do
	end := make(chan segment.LSN, 1)
	completed := 0
	for round := range 3 {
		s := stream.NewSession(h.Conn, stream.SessionOptions{})
		if round == 0 {
			// One that is stopped before there is much to receive.
			ctx, cancel := context.WithCancel(context.Background())
			time.AfterFunc(300*time.Millisecond, cancel)
			if err := s.Receive(ctx, stream.Options{Directory: dir}); !errors.Is(err, stream.ErrStopped) {
				t.Fatal(err)
			}
		}
		lsn := c.Generate(5)
		end <- segment.LSN(lsn)
		e := <-end
		c.Tick()
		err := s.Receive(context.Background(), stream.Options{Directory: dir, EndLSN: e, Synchronous: round == 1,
			Events: stream.Events{
				Log:              func(l slog.Level, text string) { t.Log(l, text) },
				SegmentCompleted: func(s stream.Segment) error { completed++; return nil },
			}})
		if err != nil {
			t.Fatal(err)
		}
		if !s.Usable() {
			t.Fatal("not usable")
		}
		t.Logf("%+v", s.Progress())
	}
	c.CompareWithServer(dir)
	c.CheckNoHole(dir)
	if completed < 15 {
		t.Errorf("%d segments", completed)
	}
	giveBack(t, h)
}

func TestDialFD(t *testing.T) {
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	h := connect(t, c)
	f, err := h.Conn.(*net.UnixConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	conn, err := stream.DialFD(int(f.Fd()), nil)
	if err != nil {
		t.Fatal(err)
	}
	s := stream.NewSession(conn, stream.SessionOptions{})
	sys, err := s.IdentifySystem(context.Background())
	t.Logf("%+v %v", sys, err)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.DropSlot(context.Background(), "nothere", false); !errors.Is(err, stream.ErrNoSlot) {
		t.Error(err)
	}
	slot, err := s.CreateSlot(context.Background(), "x", stream.CreateSlotOptions{ReserveWAL: true})
	t.Logf("%+v %v", slot, err)
	slot, err = s.ReadSlot(context.Background(), "x")
	t.Logf("%+v %v", slot, err)
	conn.Close()
	giveBack(t, h)
}
