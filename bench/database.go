package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// openDatabase starts a server with pgbench's tables, whose commits wait for its disk as they do in earnest. Its data is made the
// first time.
func openDatabase(o *options, segmentMB int, out io.Writer) (*server, error) {
	// So much WAL is kept for use again that the server doesn't make new segments while it is measured, which takes time too.
	mb := min(1900, 150*o.seconds)
	folder := filepath.Join(o.cache, fmt.Sprintf("database-%d-%d", mb, segmentMB))
	data, done := filepath.Join(folder, "data"), filepath.Join(folder, "done")
	if _, err := os.Stat(done); err == nil {
		return startServer(o, data)
	}
	fmt.Fprintf(out, "making a database with segments of %d MiB, once\n", segmentMB)
	if err := os.RemoveAll(folder); err != nil {
		return nil, err
	}
	if err := initServer(o, data, segmentMB, fmt.Sprintf("min_wal_size = '%dMB'", max(mb+100, 2*segmentMB))); err != nil {
		return nil, err
	}
	s, err := startServer(o, data)
	if err != nil {
		return nil, err
	}
	if err := s.pgbench("-i", "-s", "4", "-q"); err != nil {
		return nil, err
	}
	if _, err := s.sql(fmt.Sprintf("select pg_logical_emit_message(false, 'bench', repeat('x', 1 << 20)) from generate_series(1, %d)", mb)); err != nil {
		return nil, err
	}
	if _, err := s.sql("checkpoint"); err != nil {
		return nil, err
	}
	return s, os.WriteFile(done, nil, 0o644)
}

// refresh is done before each round: what was used of the kept segments is made ready again, and pages are touched once, so that no
// commit of the round has to take a whole page along.
func (s *server) refresh() error {
	_, err := s.sql("truncate pgbench_history")
	if err == nil {
		_, err = s.sql("checkpoint")
	}
	if err == nil {
		_, err = s.sql("vacuum pgbench_accounts")
	}
	if err == nil {
		_, err = s.sql("update pgbench_accounts set abalance = 0; update pgbench_tellers set tbalance = 0; update pgbench_branches set bbalance = 0")
	}
	if err == nil {
		_, err = s.sql("vacuum pgbench_accounts")
	}
	return err
}
