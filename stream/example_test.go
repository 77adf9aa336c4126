package stream_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"os"
	"strings"

	"github.com/jackc/pgx/v5/pgproto3"

	"libreceivewal/segment"
	"libreceivewal/stream"
)

// The connection is established, authenticated and idle; examples/go/main.go shows how to come by one with pgx.
func ExampleNewSession() {
	conn, stop := connect()
	defer stop()
	session := stream.NewSession(conn, stream.SessionOptions{ServerVersion: stream.ParseVersion("15.18 (Debian 15.18-0)")})
	system, err := session.IdentifySystem(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("system", system.SystemIdentifier, "is at", system.LSN, "of timeline", system.Timeline)
	fmt.Println("usable:", session.Usable())
	// Output:
	// system 7300000000000000000 is at 0/300000 of timeline 1
	// usable: true
}

// One segment of 1 MiB is received, then the same connection answers another command.
func ExampleSession_Receive() {
	conn, stop := connect()
	defer stop()
	directory, err := os.MkdirTemp("", "wal")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(directory)
	session := stream.NewSession(conn, stream.SessionOptions{})
	err = session.Receive(context.Background(), stream.Options{
		Directory: directory,
		EndLSN:    0x3FFFFF, // stop beyond it
		Events: stream.Events{
			Log: func(level slog.Level, text string) {
				if level > slog.LevelInfo {
					log.Print(text)
				}
			},
			SegmentCompleted: func(s stream.Segment) error {
				fmt.Println(s.Name, "is durable up to", s.EndLSN)
				return nil
			},
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("flushed:", session.Progress().FlushedLSN)
	_, err = session.IdentifySystem(context.Background())
	fmt.Println("still usable:", err == nil && session.Usable())
	// Output:
	// 000000010000000000000003 is durable up to 0/400000
	// flushed: 0/400000
	// still usable: true
}

// A context that ends stops a receive cleanly: what was received is durable, the server knows, the connection is idle.
func ExampleSession_Receive_stop() {
	conn, stop := connect()
	defer stop()
	directory, err := os.MkdirTemp("", "wal")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(directory)
	ctx, cancel := context.WithCancel(context.Background())
	session := stream.NewSession(conn, stream.SessionOptions{})
	err = session.Receive(ctx, stream.Options{Directory: directory, Events: stream.Events{
		SegmentCompleted: func(stream.Segment) error { cancel(); return nil }, // or a signal; see signal.NotifyContext
	}})
	fmt.Println("stopped:", errors.Is(err, stream.ErrStopped))
	fmt.Println("usable:", session.Usable())
	// Output:
	// stopped: true
	// usable: true
}

// Errors are told apart by errors.Is. What the server has said is in a ServerError.
func ExampleServerError() {
	conn, stop := connect()
	defer stop()
	session := stream.NewSession(conn, stream.SessionOptions{})
	err := session.DropSlot(context.Background(), "backup", false)
	fmt.Println("no such slot:", errors.Is(err, stream.ErrNoSlot))
	var said *stream.ServerError
	if errors.As(err, &said) {
		fmt.Println(said.SQLSTATE, said.Message)
	}
	// Output:
	// no such slot: true
	// 42704 replication slot "backup" does not exist
}

func ExampleParseVersion() {
	fmt.Println(stream.ParseVersion("15.18 (Debian 15.18-0+deb12u1)"), stream.ParseVersion("18beta1"))
	// Output: 150018 180000
}

// connect gives a connection to a server that knows as much as the examples need. stop closes it.
func connect() (conn net.Conn, stop func()) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if conn, err := listener.Accept(); err == nil {
			serve(conn)
			conn.Close()
		}
	}()
	if conn, err = net.Dial("tcp", listener.Addr().String()); err != nil {
		log.Fatal(err)
	}
	return conn, func() {
		conn.Close()
		listener.Close()
		<-ended
	}
}

func serve(conn net.Conn) {
	server := pgproto3.NewBackend(conn, conn)
	for {
		message, err := server.Receive()
		if err != nil {
			return
		}
		switch query := message.(type) {
		case *pgproto3.CopyData: // a status update
			continue
		case *pgproto3.CopyDone:
			server.Send(&pgproto3.CopyDone{})
			server.Send(&pgproto3.CommandComplete{CommandTag: []byte("COPY 0")})
			server.Send(&pgproto3.CommandComplete{CommandTag: []byte("START_REPLICATION")})
			server.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
		case *pgproto3.Query:
			switch command, _, _ := strings.Cut(query.String, " "); {
			case command == "IDENTIFY_SYSTEM":
				answer(server, "7300000000000000000", "1", "0/300000")
			case query.String == "SHOW wal_segment_size":
				answer(server, "1MB")
			case query.String == "SHOW data_directory_mode":
				answer(server, "0700")
			case query.String == "SHOW wal_sender_timeout":
				answer(server, "1min")
			case command == "START_REPLICATION":
				server.Send(&pgproto3.CopyBothResponse{})
				sendSegment(server)
			default:
				server.Send(&pgproto3.ErrorResponse{Severity: "ERROR", SeverityUnlocalized: "ERROR", Code: "42704",
					Message: `replication slot "backup" does not exist`})
				server.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
			}
		}
		if server.Flush() != nil {
			return
		}
	}
}

func answer(server *pgproto3.Backend, values ...string) {
	var row pgproto3.DataRow
	var columns pgproto3.RowDescription
	for _, v := range values {
		row.Values = append(row.Values, []byte(v))
		columns.Fields = append(columns.Fields, pgproto3.FieldDescription{Name: []byte("column"), DataTypeOID: 25})
	}
	server.Send(&columns)
	server.Send(&row)
	server.Send(&pgproto3.CommandComplete{CommandTag: []byte("SELECT")})
	server.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
}

// sendSegment sends the WAL from 0/300000 to 0/400000: the first page's header, and zeros.
func sendSegment(server *pgproto3.Backend) {
	const start, size, piece = segment.LSN(0x300000), 1 << 20, 128 << 10
	wal := make([]byte, size)
	binary.LittleEndian.PutUint16(wal[0:], 0xD110) // the page's magic number, of PostgreSQL 15
	binary.LittleEndian.PutUint16(wal[2:], 2)      // the long header of a segment's first page
	binary.LittleEndian.PutUint32(wal[4:], 1)      // timeline
	binary.LittleEndian.PutUint64(wal[8:], uint64(start))
	binary.LittleEndian.PutUint64(wal[24:], 7300000000000000000) // system identifier
	binary.LittleEndian.PutUint32(wal[32:], size)
	binary.LittleEndian.PutUint32(wal[36:], 8192) // page size
	for lsn := start; lsn < start+size; lsn += piece {
		message := binary.BigEndian.AppendUint64([]byte{'w'}, uint64(lsn))
		message = binary.BigEndian.AppendUint64(message, uint64(start+size)) // the server's end of WAL
		message = binary.BigEndian.AppendUint64(message, 0)                  // its clock
		server.Send(&pgproto3.CopyData{Data: append(message, wal[lsn-start:lsn-start+piece]...)})
	}
}
