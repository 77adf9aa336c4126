package segment

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ID says which segment: its number, counted from the beginning of the WAL, on a timeline.
type ID struct {
	Timeline Timeline
	Number   uint64
}

// At is the segment of the given size that holds lsn.
func At(timeline Timeline, lsn LSN, size Size) ID {
	return ID{timeline, uint64(lsn) / uint64(size)}
}

// LSN is the segment's first byte.
func (id ID) LSN(size Size) LSN { return LSN(id.Number * uint64(size)) }

// End is the byte after the segment's last.
func (id ID) End(size Size) LSN { return LSN((id.Number + 1) * uint64(size)) }

// Name is the segment's file name: 24 upper-case hexadecimal digits (XLogFileName in access/xlog_internal.h).
func (id ID) Name(size Size) string {
	return fmt.Sprintf("%08X%08X%08X", uint32(id.Timeline), uint32(id.Number/size.perID()), uint32(id.Number%size.perID()))
}

// errSegmentPart means that the last eight digits are higher than segments of this size have.
var errSegmentPart = errors.New("not the name of a WAL segment")

// ParseName reads a segment's file name. It rejects names that PostgreSQL does not make for segments of this size.
func ParseName(name string, size Size) (ID, error) {
	if len(name) != 24 || strings.Trim(name, "0123456789ABCDEF") != "" {
		return ID{}, fmt.Errorf("%q is not a WAL segment name", name)
	}
	var part [3]uint64
	for i := range part {
		part[i], _ = strconv.ParseUint(name[i*8:i*8+8], 16, 32) // eight hexadecimal digits: cannot fail
	}
	if part[0] == 0 {
		return ID{}, fmt.Errorf("%q is not a WAL segment name: there is no timeline 0", name)
	}
	if part[2] >= size.perID() {
		return ID{}, fmt.Errorf("%q is %w of %d bytes", name, errSegmentPart, size)
	}
	id := ID{Timeline(part[0]), part[1]*size.perID() + part[2]}
	if id.Number == 0 || id.End(size) == 0 {
		return ID{}, fmt.Errorf("%q is not a WAL segment name: there is no WAL at the first and the last LSN", name)
	}
	return id, nil
}

// partialSuffix marks a segment that is not complete.
const partialSuffix = ".partial"

// Compression is how a segment's file is compressed.
type Compression int

// The ways that segments are written, and Unknown: what other programs make of complete ones. pg_receivewal has all
// of them but Zstd.
const (
	Plain Compression = iota
	Gzip
	LZ4
	Zstd
	Unknown
)

func (c Compression) String() string {
	return [...]string{"none", "gzip", "lz4", "zstd", "unknown"}[c]
}

// otherSuffixes are of programs that compress or encrypt complete segments; several may follow each other (.zst.aes).
var otherSuffixes = []string{".gz", ".lz4", ".zst", ".zstd", ".bz2", ".xz", ".aes", ".gpg", ".enc", ".age"}

// Suffix is what a compression adds to the file name.
func (c Compression) Suffix() string {
	switch c {
	case Gzip:
		return ".gz"
	case LZ4:
		return ".lz4"
	case Zstd:
		return ".zst"
	}
	return ""
}

// file is what a name in the directory says of the file.
type file struct {
	name        string
	base        string // the 24 digits
	compression Compression
	partial     bool
}

// parseFile takes the file name of a segment apart; false for every other file. suffixes are some that a complete segment may have
// besides otherSuffixes.
func parseFile(name string, suffixes ...string) (file, bool) {
	if len(name) < 24 || strings.Trim(name[:24], "0123456789ABCDEF") != "" {
		return file{}, false
	}
	f := file{name: name, base: name[:24]}
	suffix, partial := strings.CutSuffix(name[24:], partialSuffix)
	f.partial = partial
	switch suffix {
	case "":
	case Gzip.Suffix():
		f.compression = Gzip
	case LZ4.Suffix():
		f.compression = LZ4
	case Zstd.Suffix():
		f.compression = Zstd
	default:
		f.compression = Unknown
		return f, !partial && isOther(suffix, suffixes)
	}
	return f, true
}

// CheckSuffixes refuses what [Directory.SetSuffixes] doesn't take.
func CheckSuffixes(suffixes []string) error {
	for _, s := range suffixes {
		if len(s) < 2 || s[0] != '.' || strings.ContainsAny(s, "/\x00") || strings.HasSuffix(s, partialSuffix) {
			return fmt.Errorf("%q is not a suffix of a complete segment", s)
		}
	}
	return nil
}

// isOther tells whether a suffix is made of otherSuffixes and some more.
func isOther(suffix string, more []string) bool {
	if suffix == "" {
		return true
	}
	known := func(s string) bool {
		rest, found := strings.CutPrefix(suffix, s)
		return found && s != "" && (rest == "" || rest[0] == '.') && isOther(rest, more)
	}
	return slices.ContainsFunc(otherSuffixes, known) || slices.ContainsFunc(more, known)
}

// HistoryName is the name of a timeline's history file (TLHistoryFileName in access/xlog_internal.h).
func HistoryName(timeline Timeline) string {
	return fmt.Sprintf("%08X.history", uint32(timeline))
}

// parseHistoryName is the inverse of HistoryName.
func parseHistoryName(name string) (Timeline, bool) {
	base, found := strings.CutSuffix(name, ".history")
	if !found || len(base) != 8 || filepath.Base(name) != name || strings.Trim(base, "0123456789ABCDEF") != "" {
		return 0, false
	}
	n, _ := strconv.ParseUint(base, 16, 32) // eight hexadecimal digits: cannot fail
	return Timeline(n), n != 0
}
