package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"libreceivewal/segment"
)

// backlog is WAL that a server has and its receivers have not: complete segments from Start to End.
type backlog struct {
	Start, End  segment.LSN
	SegmentSize segment.Size
	MB          int

	server *server
}

// slotOfBacklog keeps the WAL; each run gets a copy of it, so that each begins at the same place.
const slotOfBacklog = "backlog"

// openBacklog starts the server that has a backlog of the wanted size, which is made the first time.
func openBacklog(o *options, mb, segmentMB int, out io.Writer, settings ...string) (*backlog, error) {
	folder := filepath.Join(o.cache, fmt.Sprintf("backlog-%d-%d", mb, segmentMB))
	b := &backlog{}
	text, err := os.ReadFile(filepath.Join(folder, "backlog.json"))
	if errors.Is(err, os.ErrNotExist) {
		fmt.Fprintf(out, "making %d MB of WAL in segments of %d MiB, once\n", mb, segmentMB)
		if err := makeBacklog(o, folder, mb, segmentMB); err != nil {
			return nil, err
		}
		text, err = os.ReadFile(filepath.Join(folder, "backlog.json"))
	}
	if err := errors.Join(err, json.Unmarshal(text, b)); err != nil {
		return nil, err
	}
	if b.server, err = startServer(o, filepath.Join(folder, "data"), settings...); err != nil {
		return nil, err
	}
	return b, b.warm()
}

// makeBacklog has the WAL that databases write: pgbench's small transactions with the pages that the first change after a
// checkpoint takes along, and rows in bulk.
func makeBacklog(o *options, folder string, mb, segmentMB int) error {
	if err := os.RemoveAll(folder); err != nil {
		return err
	}
	data := filepath.Join(folder, "data")
	if err := initServer(o, data, segmentMB, "fsync = off", "wal_recycle = off", "wal_init_zero = off", "wal_keep_size = '1TB'"); err != nil {
		return err
	}
	s, err := startServer(o, data)
	if err != nil {
		return err
	}
	defer s.stop()
	b := &backlog{server: s, SegmentSize: segment.Size(segmentMB) << 20, MB: mb}
	if err := s.pgbench("-i", "-s", "10", "-q"); err != nil {
		return err
	}
	if _, err := s.sql("select pg_switch_wal(); create table bulk (id bigint, at timestamptz, text text)"); err != nil {
		return err
	}
	// The slot begins at the last checkpoint: pgbench's own tables aren't WAL as usual.
	if _, err := s.sql("checkpoint"); err != nil {
		return err
	}
	if b.Start, err = s.lsn("select lsn from pg_create_physical_replication_slot('" + slotOfBacklog + "', true)"); err != nil {
		return err
	}
	b.Start = b.SegmentSize.Floor(b.Start)
	b.End = b.SegmentSize.Floor(b.Start + segment.LSN(mb)<<20)
	if b.End == b.Start {
		b.End += segment.LSN(b.SegmentSize)
	}
	for lsn := b.Start; lsn < b.End+segment.LSN(b.SegmentSize); {
		left := uint64(b.End) - uint64(min(lsn, b.End)) + uint64(b.SegmentSize)
		rows := min(200_000, left/2/190+1)
		if _, err := s.sql("checkpoint"); err != nil {
			return err
		}
		if err := s.pgbench("-N", "-n", "-c", "4", "-T", fmt.Sprint(min(3, 1+left>>26))); err != nil {
			return err
		}
		if _, err := s.sql(fmt.Sprintf("truncate bulk; insert into bulk select i, now(), md5(i::text) || repeat(' ', i %% 50) || md5(random()::text) from generate_series(1, %d) i", rows)); err != nil {
			return err
		}
		if lsn, err = s.lsn("select pg_current_wal_flush_lsn()"); err != nil {
			return err
		}
	}
	// What stays running must not write: the tables are of no more use.
	if _, err := s.sql("drop table bulk, pgbench_accounts, pgbench_branches, pgbench_history, pgbench_tellers; checkpoint"); err != nil {
		return err
	}
	text, err := json.Marshal(b)
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(filepath.Join(folder, "backlog.json"), text, 0o644))
}

// bytes is the WAL that each receiver gets.
func (b *backlog) bytes() uint64 { return uint64(b.End - b.Start) }

// names are the segments' file names, in order.
func (b *backlog) names() []string {
	var names []string
	for lsn := b.Start; lsn < b.End; lsn += segment.LSN(b.SegmentSize) {
		names = append(names, segment.At(1, lsn, b.SegmentSize).Name(b.SegmentSize))
	}
	return names
}

// warm reads the server's WAL into the page cache: senders are to be as fast as they can.
func (b *backlog) warm() error {
	for _, name := range b.names() {
		f, err := os.Open(filepath.Join(b.server.data, "pg_wal", name))
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, f)
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// first is the beginning of the backlog, of at most so many bytes.
func (b *backlog) first(bytes int) *backlog {
	part := *b
	part.End = min(b.End, b.Start+b.SegmentSize.Floor(segment.LSN(bytes)))
	return &part
}

// check compares what a receiver has written with what the server has.
func (b *backlog) check(dir string) error {
	for _, name := range b.names() {
		if err := sameFiles(filepath.Join(dir, name), filepath.Join(b.server.data, "pg_wal", name)); err != nil {
			return err
		}
	}
	return nil
}

func sameFiles(got, want string) error {
	g, err := os.Open(got)
	if err != nil {
		return err
	}
	defer g.Close()
	w, err := os.Open(want)
	if err != nil {
		return err
	}
	defer w.Close()
	a, b := make([]byte, 1<<20), make([]byte, 1<<20)
	for {
		n, err := io.ReadFull(g, a)
		m, err2 := io.ReadFull(w, b)
		if n != m || string(a[:n]) != string(b[:m]) {
			return fmt.Errorf("%s differs from the server's", got)
		}
		if err != nil || err2 != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return nil
			}
			return errors.Join(err, err2)
		}
	}
}
