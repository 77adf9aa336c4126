package stream

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"libreceivewal/segment"
)

// System is who a server is.
type System struct {
	SystemIdentifier  uint64 // of the cluster: the same on a primary and its standbys
	Timeline          segment.Timeline
	LSN               segment.LSN // the server's flushed position
	SegmentSize       segment.Size
	DataDirectoryMode fs.FileMode // permission bits
}

// IdentifySystem asks the server who it is: IDENTIFY_SYSTEM, SHOW wal_segment_size and SHOW data_directory_mode. A
// connection to one database (replication=database) is ErrUnsupported.
func (s *Session) IdentifySystem(ctx context.Context) (System, error) {
	end, err := s.begin(ctx)
	if err != nil {
		return System{}, err
	}
	defer end()
	return s.identify(ctx)
}

func (s *Session) identify(ctx context.Context) (System, error) {
	var sys System
	if s.serverVersion != 0 && s.serverVersion < oldestServer {
		return sys, fail(ErrUnsupported, "the server's version %d.%d.%d is not supported: it must be 9.4 or newer",
			s.serverVersion/10000, s.serverVersion/100%100, s.serverVersion%100)
	}
	row, err := s.row(ctx, "IDENTIFY_SYSTEM", 3)
	if err != nil {
		return sys, err
	}
	if len(row) > 3 && row[3] != nil {
		return sys, fail(ErrUnsupported, "the connection is to the database %q: physical replication needs replication=true, "+
			"not replication=database", row[3])
	}
	if sys.SystemIdentifier, err = strconv.ParseUint(string(row[0]), 10, 64); err != nil {
		return sys, fail(ErrProtocol, "the server's system identifier %q is not a number", row[0])
	}
	if sys.Timeline, err = parseTimeline(row[1]); err != nil {
		return sys, err
	}
	if sys.LSN, err = segment.ParseLSN(string(row[2])); err != nil {
		return sys, fail(ErrProtocol, "could not parse write-ahead log location: %w", err)
	}
	if sys.SegmentSize, err = s.segmentSize(ctx); err != nil {
		return sys, err
	}
	sys.DataDirectoryMode, err = s.dataDirectoryMode(ctx)
	return sys, err
}

// The first versions that have something: SQL commands like SHOW in replication connections, the setting
// data_directory_mode, READ_REPLICATION_SLOT, the refusal of an invalidated slot; and the first with replication slots at all.
const (
	oldestServer         = 90400
	versionShow          = 100000
	versionDirectoryMode = 110000
	versionReadSlot      = 150000
	versionRefusesLost   = 180000
)

// older tells whether the server is known to be older than a version.
func (s *Session) older(version int) bool { return s.serverVersion != 0 && s.serverVersion < version }

// segmentSize asks for the segment size; before version 10 every server that was not built otherwise had 16 MiB
// (RetrieveWalSegSize in streamutil.c).
func (s *Session) segmentSize(ctx context.Context) (segment.Size, error) {
	if s.older(versionShow) {
		return 16 << 20, nil
	}
	row, err := s.row(ctx, "SHOW wal_segment_size", 1)
	if err != nil {
		return 0, err
	}
	size, err := segment.ParseSize(string(row[0]))
	if err != nil {
		return 0, fail(ErrProtocol, "remote server reported invalid WAL segment size: %w", err)
	}
	return size, nil
}

// dataDirectoryMode asks for the mode that files are to follow (RetrieveDataDirCreatePerm in streamutil.c). A
// server that doesn't know the setting has only 0700.
func (s *Session) dataDirectoryMode(ctx context.Context) (fs.FileMode, error) {
	if s.older(versionDirectoryMode) {
		return 0o700, nil
	}
	row, err := s.row(ctx, "SHOW data_directory_mode", 1)
	if hasState(err, stateUndefinedObject) {
		return 0o700, nil
	}
	if err != nil {
		return 0, err
	}
	mode, err := strconv.ParseUint(string(row[0]), 8, 16)
	if err != nil || mode > 0o777 {
		return 0, fail(ErrProtocol, "the server's data_directory_mode %q is not a file mode", row[0])
	}
	return fs.FileMode(mode), nil
}

// senderTimeout asks after how long a silence the server gives a connection up, and allows twice that.
func (s *Session) senderTimeout(ctx context.Context) (time.Duration, error) {
	if s.older(versionShow) {
		return defaultReceiveTimeout, nil
	}
	row, err := s.row(ctx, "SHOW wal_sender_timeout", 1)
	var refused *ServerError
	if errors.As(err, &refused) && !refused.fatal() {
		return defaultReceiveTimeout, nil
	}
	if err != nil {
		return 0, err
	}
	if d := parseDuration(string(row[0])); d > 0 {
		return 2 * d, nil
	}
	return defaultReceiveTimeout, nil
}

// longest is more than any duration of PostgreSQL: the milliseconds of an int.
const longest = 25 * 24 * time.Hour

// parseDuration reads a duration as SHOW prints it, "1min"; 0 for what it cannot read.
func parseDuration(s string) time.Duration {
	digits := strings.TrimRight(s, "abcdefghijklmnopqrstuvwxyz")
	n, err := strconv.ParseUint(digits, 10, 31) // milliseconds in an int
	unit := map[string]time.Duration{"": time.Millisecond, "ms": time.Millisecond, "s": time.Second, "min": time.Minute,
		"h": time.Hour, "d": 24 * time.Hour}[s[len(digits):]]
	if err != nil || unit > 0 && n > uint64(longest/unit) {
		return 0
	}
	return time.Duration(n) * unit
}

// hasState tells whether an error is the server's, with this SQLSTATE.
func hasState(err error, state string) bool {
	var e *ServerError
	return errors.As(err, &e) && e.SQLSTATE == state
}

// row sends a command that answers one row of at least so many columns, the first of them not NULL.
func (s *Session) row(ctx context.Context, sql string, columns int) ([][]byte, error) {
	a, err := s.command(ctx, sql)
	if err != nil {
		return nil, err
	}
	if err := s.notCopy(a, sql); err != nil {
		return nil, err
	}
	if len(a.rows) != 1 || len(a.rows[0]) < columns {
		fields := 0
		if len(a.rows) > 0 {
			fields = len(a.rows[0])
		}
		return nil, fail(ErrProtocol, "unexpected result of %q: got %d rows and %d fields, expected 1 row and %d or more fields",
			sql, len(a.rows), fields, columns)
	}
	return a.rows[0], nil
}

// notCopy refuses an answer that has put the connection into COPY mode.
func (s *Session) notCopy(a answer, sql string) error {
	if a.copyBoth {
		return unexpected(typeCopyBothResponse, sql)
	}
	return nil
}

func parseTimeline(b []byte) (segment.Timeline, error) {
	n, err := strconv.ParseUint(string(b), 10, 32)
	if err != nil || n == 0 {
		return 0, fail(ErrProtocol, "the server's timeline %q is not a timeline", b)
	}
	return segment.Timeline(n), nil
}

// Slot is a physical replication slot's position.
type Slot struct {
	RestartLSN      segment.LSN      // the oldest WAL that it keeps; 0: none yet
	RestartTimeline segment.Timeline // 0 with RestartLSN 0, or where the server doesn't say
}

// CreateSlotOptions says what kind of slot CreateSlot makes.
type CreateSlotOptions struct {
	ReserveWAL  bool // keep WAL from now on, instead of from the slot's first use on
	Temporary   bool // the slot goes with the connection
	IfNotExists bool // one of this name that exists already is no error
}

// CreateSlot creates a physical replication slot. ErrSlotExists wraps the server's error if there is one of
// this name. The Slot has a position only with ReserveWAL.
func (s *Session) CreateSlot(ctx context.Context, name string, o CreateSlotOptions) (Slot, error) {
	if err := checkSlotName(name); err != nil {
		return Slot{}, err
	}
	end, err := s.begin(ctx)
	if err != nil {
		return Slot{}, err
	}
	defer end()
	sql := fmt.Sprintf("CREATE_REPLICATION_SLOT %q", name)
	if o.Temporary {
		sql += " TEMPORARY"
	}
	sql += " PHYSICAL"
	if o.ReserveWAL {
		sql += " RESERVE_WAL"
	}
	row, err := s.row(ctx, sql, 2)
	if o.IfNotExists && errors.Is(err, ErrSlotExists) {
		return Slot{}, nil
	}
	if err != nil {
		return Slot{}, err
	}
	lsn, err := segment.ParseLSN(string(row[1])) // consistent_point: 0/0 for a slot without position
	if err != nil {
		return Slot{}, fail(ErrProtocol, "unexpected position of the new slot %q: %w", name, err)
	}
	return Slot{RestartLSN: lsn}, nil
}

// DropSlot drops a replication slot; with wait it waits until the slot is no longer in use, instead of ErrSlotBusy.
func (s *Session) DropSlot(ctx context.Context, name string, wait bool) error {
	if err := checkSlotName(name); err != nil {
		return err
	}
	end, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	sql := fmt.Sprintf("DROP_REPLICATION_SLOT %q", name)
	if wait {
		sql += " WAIT"
	}
	a, err := s.command(ctx, sql)
	if err != nil {
		return err
	}
	return s.notCopy(a, sql)
}

// ReadSlot asks for a physical slot's position. Servers older than 15 cannot tell: ErrUnsupported.
func (s *Session) ReadSlot(ctx context.Context, name string) (Slot, error) {
	if err := checkSlotName(name); err != nil {
		return Slot{}, err
	}
	end, err := s.begin(ctx)
	if err != nil {
		return Slot{}, err
	}
	defer end()
	return s.readSlot(ctx, name)
}

func (s *Session) readSlot(ctx context.Context, name string) (Slot, error) {
	var slot Slot
	if s.older(versionReadSlot) {
		return slot, fail(ErrUnsupported, "a server older than 15 cannot read a replication slot")
	}
	row, err := s.row(ctx, fmt.Sprintf("READ_REPLICATION_SLOT %q", name), 3)
	if hasState(err, stateSyntaxError) {
		return slot, fail(ErrUnsupported, "the server cannot read a replication slot: %w", err)
	}
	if hasState(err, stateNotInPrerequisiteState) {
		// ReadReplicationSlot in walsender.c.
		return slot, fail(ErrNoSlot, "slot %q is a logical one, and this needs a physical one: %w", name, err)
	}
	if err != nil {
		return slot, err
	}
	if row[0] == nil {
		return slot, fail(ErrNoSlot, "replication slot %q does not exist", name)
	}
	if string(row[0]) != "physical" {
		return slot, fail(ErrNoSlot, "expected a physical replication slot, got type %q instead", row[0])
	}
	if row[1] != nil {
		if slot.RestartLSN, err = segment.ParseLSN(string(row[1])); err != nil {
			return slot, fail(ErrProtocol, "could not parse restart_lsn of replication slot %q: %w", name, err)
		}
	}
	if row[2] != nil {
		if slot.RestartTimeline, err = parseTimeline(row[2]); err != nil {
			return slot, err
		}
	}
	return slot, nil
}

// checkSlotName demands of a name what PostgreSQL does (ReplicationSlotValidateName in slot.c), so that nothing but a name gets
// into a command.
func checkSlotName(name string) error {
	switch {
	case name == "":
		return fail(ErrInvalid, "replication slot name %q is too short", name)
	case len(name) > 63:
		return fail(ErrInvalid, "replication slot name %q is too long", name)
	case strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") != "":
		return fail(ErrInvalid, "replication slot name %q contains invalid character: "+
			"it may only contain lower case letters, numbers, and the underscore character", name)
	}
	return nil
}

// timelineHistory asks for the history file of a timeline: exactly its bytes.
func (s *Session) timelineHistory(ctx context.Context, timeline segment.Timeline) ([]byte, error) {
	row, err := s.row(ctx, fmt.Sprintf("TIMELINE_HISTORY %d", timeline), 2)
	if err != nil {
		return nil, err
	}
	if want := segment.HistoryName(timeline); string(row[0]) != want {
		return nil, fail(ErrProtocol, "server reported unexpected history file name for timeline %d: %q", timeline, row[0])
	}
	if row[1] == nil {
		return nil, fail(ErrProtocol, "server reported no content of history file %q", row[0])
	}
	return row[1], nil
}
