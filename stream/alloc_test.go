package stream

import (
	"encoding/binary"
	"io"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"libreceivewal/segment"
)

// In the steady state a WAL message makes no garbage, with or without a callback for progress, and a keepalive and its reply make
// none either.
func TestNoGarbage(t *testing.T) {
	for name, test := range map[string]struct {
		o     Options
		reply bool
	}{
		"WAL":               {Options{}, false},
		"WAL with progress": {Options{ProgressInterval: time.Nanosecond, Events: Events{Progress: func(Progress) error { return nil }}}, false},
		"keepalives":        {Options{}, true},
	} {
		t.Run(name, func(t *testing.T) {
			fd, server := pair(t)
			client, err := DialFD(fd, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			s := NewSession(client, SessionOptions{})
			s.fs = newMemory()
			s.fs.(*memory).forgetful = true
			test.o.Directory, test.o.StartLSN, test.o.ReceiveTimeout, test.o.StatusInterval = "wal", 0x300000, -1, -1
			result := make(chan error, 1)
			go func() { result <- s.Receive(t.Context(), test.o) }()
			answers := encode(append(append(answerOf(testSystem, 1, "0/300000"), answerOf("1MB")...), answerOf("0700")...)...)
			if _, err := server.Write(append(answers, encode(&pgproto3.CopyBothResponse{})...)); err != nil {
				t.Fatal(err)
			}
			discard(t, server, len("QxxxxIDENTIFY_SYSTEM\x00QxxxxSHOW wal_segment_size\x00QxxxxSHOW data_directory_mode\x00QxxxxSTART_REPLICATION 0/300000 TIMELINE 1\x00"))

			const n = 1000
			next := segment.LSN(0x300000)
			message := encode(dataMessage(next, 0, segmentOf(testSystem, 1, next)[:n]))
			request := encode(keepalive(next, 1))
			reply := make([]byte, statusMessageSize)
			round := func() {
				binary.BigEndian.PutUint64(message[headerSize+1:], uint64(next))
				server.Write(message)
				next += n
				if test.reply {
					server.Write(request)
					io.ReadFull(server, reply)
				}
				for s.Progress().WrittenLSN < next {
					time.Sleep(10 * time.Microsecond)
				}
			}
			for range 100 { // the segment is open, and visible; its name is known
				round()
			}
			time.Sleep(10 * time.Millisecond)
			if got := testing.AllocsPerRun(500, round); got != 0 {
				t.Errorf("%v allocations per message", got)
			}
			server.Close()
			<-result
		})
	}
}

func discard(t *testing.T, r io.Reader, n int) {
	t.Helper()
	if _, err := io.CopyN(io.Discard, r, int64(n)); err != nil {
		t.Fatal(err)
	}
}
