package segment

import (
	"fmt"
	"strconv"
	"strings"
)

// LSN is a position in the WAL, in bytes. 0 is no position (InvalidXLogRecPtr in access/xlogdefs.h).
type LSN uint64

// ParseLSN reads an LSN as pg_lsn_in_internal in pg_lsn.c does: two numbers of one to eight hexadecimal
// digits around a slash. Leading zeros, as newer servers print them, are fine.
func ParseLSN(s string) (LSN, error) {
	high, low, found := strings.Cut(s, "/")
	if !found {
		return 0, fmt.Errorf("%q is not an LSN", s)
	}
	h, err := parseHex(high)
	if err != nil {
		return 0, fmt.Errorf("%q is not an LSN", s)
	}
	l, err := parseHex(low)
	if err != nil {
		return 0, fmt.Errorf("%q is not an LSN", s)
	}
	return LSN(h<<32 | l), nil
}

// parseHex reads one to eight hexadecimal digits. strconv alone would also take a sign or underscores.
func parseHex(s string) (uint64, error) {
	if len(s) < 1 || len(s) > 8 || strings.Trim(s, "0123456789abcdefABCDEF") != "" {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseUint(s, 16, 32)
}

// String formats the LSN as PostgreSQL prints it: 16/B374D848.
func (l LSN) String() string {
	return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l))
}

// Timeline is a timeline ID. 0 is none; the first is 1.
type Timeline uint32

// Size is the size of a WAL segment in bytes (wal_segment_size): a power of two from 1 MiB to 1 GiB.
type Size uint32

// The limits of wal_segment_size (WalSegMinSize and WalSegMaxSize in access/xlog_internal.h).
const (
	MinSize Size = 1 << 20
	MaxSize Size = 1 << 30
)

// Valid tells whether PostgreSQL can have segments of this size.
func (s Size) Valid() bool {
	return s >= MinSize && s <= MaxSize && s&(s-1) == 0
}

// ParseSize reads what SHOW wal_segment_size answers: a number with a unit, "16MB".
func ParseSize(s string) (Size, error) {
	digits := strings.TrimRight(s, "kMGB")
	n, err := strconv.ParseUint(digits, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is not a WAL segment size", s)
	}
	switch s[len(digits):] {
	case "GB":
		n <<= 30
	case "MB":
		n <<= 20
	case "kB":
		n <<= 10
	case "B", "":
	default:
		return 0, fmt.Errorf("%q is not a WAL segment size", s)
	}
	if n > uint64(MaxSize) || !Size(n).Valid() {
		return 0, fmt.Errorf("%q is not a WAL segment size: it must be a power of two from 1MB to 1GB", s)
	}
	return Size(n), nil
}

// Offset is the position of lsn within its segment.
func (s Size) Offset(lsn LSN) uint32 { return uint32(lsn) & uint32(s-1) }

// Floor is the first byte of the segment that holds lsn.
func (s Size) Floor(lsn LSN) LSN { return lsn &^ LSN(s-1) }

// perID is the number of segments that share the middle eight digits of a file name: those of 4 GiB.
func (s Size) perID() uint64 { return (1 << 32) / uint64(s) }
