package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"libreceivewal/segment"
)

// sender plays a thousand WAL senders that have a little WAL to send and then none: a server with as many of its own would need more
// memory than what is measured.
type sender struct {
	listener net.Listener
	folder   string // of the socket
	system   uint64
	start    segment.LSN
	wal      []byte // from start, of a real segment
}

// startSender listens on a Unix socket, with the beginning of the backlog.
func startSender(b *backlog, length int) (*sender, error) {
	f, err := os.Open(filepath.Join(b.server.data, "pg_wal", b.names()[0]))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := &sender{start: b.Start, wal: make([]byte, length)}
	if _, err := io.ReadFull(f, s.wal); err != nil {
		return nil, err
	}
	s.system = binary.LittleEndian.Uint64(s.wal[24:]) // xlp_sysid of XLogLongPageHeaderData in access/xlog_internal.h
	if s.folder, err = os.MkdirTemp("/tmp", "receivewal-bench-"); err != nil {
		return nil, err
	}
	if s.listener, err = net.Listen("unix", filepath.Join(s.folder, ".s.PGSQL.5432")); err != nil {
		return nil, err
	}
	go func() {
		for {
			conn, err := s.listener.Accept()
			if err != nil {
				return // closed
			}
			go s.serve(conn)
		}
	}()
	return s, nil
}

func (s *sender) close() {
	s.listener.Close()
	os.RemoveAll(s.folder)
}

func (s *sender) connString() string {
	return fmt.Sprintf("host=%s port=5432 user=postgres dbname=postgres sslmode=disable", s.folder)
}

// serve ends with the connection, whatever ends that; the receiver at the other end reports it.
func (s *sender) serve(conn net.Conn) {
	defer conn.Close()
	backend := pgproto3.NewBackend(conn, conn)
	if _, err := backend.ReceiveStartupMessage(); err != nil {
		return
	}
	backend.Send(&pgproto3.AuthenticationOk{})
	backend.Send(&pgproto3.ParameterStatus{Name: "server_version", Value: "15.0"})
	backend.Send(&pgproto3.BackendKeyData{ProcessID: 1, SecretKey: []byte{0, 0, 0, 1}})
	backend.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	for backend.Flush() == nil {
		message, err := backend.Receive()
		if err != nil {
			return
		}
		switch m := message.(type) {
		case *pgproto3.Query:
			s.answer(backend, m.String)
		case *pgproto3.CopyData:
			// A standby status update whose last byte asks for an answer.
			if len(m.Data) == 34 && m.Data[0] == 'r' && m.Data[33] == 1 {
				keepalive := append([]byte{'k'}, make([]byte, 17)...)
				binary.BigEndian.PutUint64(keepalive[1:], uint64(s.start)+uint64(len(s.wal)))
				backend.Send(&pgproto3.CopyData{Data: keepalive})
			}
		case *pgproto3.CopyDone:
			backend.Send(&pgproto3.CopyDone{})
			backend.Send(&pgproto3.CommandComplete{CommandTag: []byte("COPY 0")})
			backend.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
		case *pgproto3.Terminate:
			return
		}
	}
}

func (s *sender) answer(backend *pgproto3.Backend, query string) {
	end := s.start + segment.LSN(len(s.wal))
	rows := map[string][]string{
		"IDENTIFY_SYSTEM":          {fmt.Sprint(s.system), "1", end.String(), ""},
		"SHOW wal_segment_size":    {"16MB"},
		"SHOW data_directory_mode": {"0700"},
		"SHOW wal_sender_timeout":  {"1min"},
	}
	query = strings.TrimSuffix(query, ";")
	if strings.HasPrefix(query, "START_REPLICATION") {
		backend.Send(&pgproto3.CopyBothResponse{})
		header := append([]byte{'w'}, make([]byte, 24)...)
		binary.BigEndian.PutUint64(header[1:], uint64(s.start))
		binary.BigEndian.PutUint64(header[9:], uint64(end))
		binary.BigEndian.PutUint64(header[17:], uint64(time.Since(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)).Microseconds()))
		backend.Send(&pgproto3.CopyData{Data: append(header, s.wal...)})
		return
	}
	if row, known := rows[query]; known {
		description, data := &pgproto3.RowDescription{}, &pgproto3.DataRow{}
		for _, value := range row {
			column := []byte(value)
			if value == "" {
				column = nil // NULL: no database
			}
			description.Fields = append(description.Fields, pgproto3.FieldDescription{Name: []byte("value"), DataTypeOID: 25, DataTypeSize: -1})
			data.Values = append(data.Values, column)
		}
		backend.Send(description)
		backend.Send(data)
		backend.Send(&pgproto3.CommandComplete{CommandTag: []byte("SHOW")})
	} else {
		backend.Send(&pgproto3.ErrorResponse{Severity: "ERROR", Code: "42601", Message: "the bench's sender doesn't know " + query})
	}
	backend.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
}

// errEnded says that the host of streams went away while it was measured.
var errEnded = errors.New("the program has ended")
