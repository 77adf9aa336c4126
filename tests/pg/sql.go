package pg

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"
)

// SQL runs statements over a connection of its own and returns the rows of the last one that has any, as "psql -At" prints
// them: columns separated by "|", rows by newlines.
func (c *Cluster) SQL(sql string) string {
	c.t.Helper()
	out, err := c.TrySQL(sql)
	if err != nil {
		c.t.Fatalf("%s: %v", sql, err)
	}
	return out
}

// TrySQL is SQL for those who expect an error, or who run in another goroutine.
func (c *Cluster) TrySQL(sql string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Deadline)
	defer cancel()
	conn, err := pgconn.Connect(ctx, c.ConnString("application_name=test"))
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	return query(ctx, conn, sql)
}

func query(ctx context.Context, conn *pgconn.PgConn, sql string) (string, error) {
	results, err := conn.Exec(ctx, sql).ReadAll()
	if err != nil {
		return "", err
	}
	var last [][][]byte
	for _, result := range results {
		if len(result.FieldDescriptions) > 0 {
			last = result.Rows
		}
	}
	var rows []string
	for _, row := range last {
		var columns []string
		for _, value := range row {
			columns = append(columns, string(value))
		}
		rows = append(rows, strings.Join(columns, "|"))
	}
	return strings.Join(rows, "\n"), nil
}

// LSN is a position in the WAL. The harness has its own, so that it doesn't rely on what it tests.
type LSN uint64

// ParseLSN reads "16/B374D848".
func ParseLSN(s string) (LSN, error) {
	high, low, found := strings.Cut(s, "/")
	h, err1 := strconv.ParseUint(high, 16, 32)
	l, err2 := strconv.ParseUint(low, 16, 32)
	if !found || err1 != nil || err2 != nil {
		return 0, fmt.Errorf("%q is not an LSN", s)
	}
	return LSN(h<<32 | l), nil
}

func (l LSN) String() string { return fmt.Sprintf("%X/%X", uint64(l)>>32, uint32(l)) }

// LSN runs a statement that returns one LSN.
func (c *Cluster) LSN(sql string) LSN {
	c.t.Helper()
	lsn, err := ParseLSN(c.SQL(sql))
	if err != nil {
		c.t.Fatalf("%s: %v", sql, err)
	}
	return lsn
}

// CurrentLSN is the end of the durable WAL; on a standby, of what was replayed.
func (c *Cluster) CurrentLSN() LSN {
	c.t.Helper()
	if c.InRecovery() {
		return c.LSN("select pg_last_wal_replay_lsn()")
	}
	return c.LSN("select pg_current_wal_flush_lsn()")
}

// InRecovery says whether the server is a standby.
func (c *Cluster) InRecovery() bool {
	c.t.Helper()
	return c.SQL("select pg_is_in_recovery()") == "t"
}

// Timeline is the one that the server writes WAL on.
func (c *Cluster) Timeline() uint32 {
	c.t.Helper()
	text := c.SQL("select ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int")
	n, err := strconv.ParseUint(text, 10, 32)
	c.must(err)
	return uint32(n)
}

// SegmentName is the file name of the segment that holds lsn.
func (c *Cluster) SegmentName(timeline uint32, lsn LSN) string {
	number, perID := uint64(lsn)/c.SegmentSize, uint64(1<<32)/c.SegmentSize
	return fmt.Sprintf("%08X%08X%08X", timeline, number/perID, number%perID)
}

// Generate writes at least n MiB of WAL, durable when it returns, and returns its end. The records are small enough for
// each segment, however small, to begin a few.
func (c *Cluster) Generate(n int) LSN {
	c.t.Helper()
	for ; n > 0; n -= 64 { // one transaction each; the server needs no memory to speak of
		c.SQL(fmt.Sprintf("select count(pg_logical_emit_message(true, 'fill', repeat(md5(random()::text), 512))) from generate_series(1, %d)", min(n, 64)*64))
	}
	return c.CurrentLSN()
}

// Still stops the background writer, which logs the running transactions every 15 seconds: for tests in which the end of the WAL must not
// move by itself. The server cannot be stopped in order then.
func (c *Cluster) Still() {
	c.t.Helper()
	var pid int
	fmt.Sscan(c.SQL("select pid from pg_stat_activity where backend_type = 'background writer'"), &pid)
	if pid <= 1 {
		c.t.Fatal("there is no background writer")
	}
	c.must(syscall.Kill(pid, syscall.SIGSTOP))
	c.t.Cleanup(func() { syscall.Kill(pid, syscall.SIGCONT) })
}

// Tick commits one small transaction and returns the end of the WAL after it.
func (c *Cluster) Tick() LSN {
	c.t.Helper()
	c.SQL("select pg_logical_emit_message(true, 'tick', 'tack')")
	return c.CurrentLSN()
}

// SwitchWAL writes a little and ends the segment. It returns the name of the segment that is complete now, and
// the first LSN after it.
func (c *Cluster) SwitchWAL() (name string, end LSN) {
	c.t.Helper()
	c.Tick()
	lsn := c.LSN("select pg_switch_wal()")
	name = c.SegmentName(c.Timeline(), lsn-1)
	return name, LSN((uint64(lsn-1)/c.SegmentSize + 1) * c.SegmentSize)
}

// WaitStreaming waits until a WAL sender streams to the application of this name.
func (c *Cluster) WaitStreaming(application string) {
	c.t.Helper()
	sql := fmt.Sprintf("select count(*) from pg_stat_replication where state = 'streaming' and application_name = '%s'", application)
	c.WaitFor(application+" to stream", func() bool { return c.SQL(sql) != "0" })
}

// WaitGone waits until no WAL sender serves the application of this name.
func (c *Cluster) WaitGone(application string) {
	c.t.Helper()
	sql := fmt.Sprintf("select count(*) from pg_stat_replication where application_name = '%s'", application)
	c.WaitFor(application+" to be gone", func() bool { return c.SQL(sql) == "0" })
}

// WaitReceived waits until the application has reported lsn as written, or in flush mode as flushed.
func (c *Cluster) WaitReceived(application string, lsn LSN, flushed bool) {
	c.t.Helper()
	column := "write_lsn"
	if flushed {
		column = "flush_lsn"
	}
	sql := fmt.Sprintf("select count(*) from pg_stat_replication where application_name = '%s' and %s >= '%s'", application, column, lsn)
	c.WaitFor(fmt.Sprintf("%s to reach %s of %s", application, column, lsn), func() bool { return c.SQL(sql) != "0" })
}
