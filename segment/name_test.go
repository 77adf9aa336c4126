package segment

import (
	"fmt"
	"testing"
)

// The middle eight digits of a name count 4 GiB, whatever the size of a segment; the last eight go up to FF for
// segments of 16 MiB.
func TestNameBoundary(t *testing.T) {
	for _, c := range []struct {
		size   Size
		last   string // before the boundary
		next   string
		before LSN // where the last begins
	}{
		{1 << 20, "000000010000000700000FFF", "000000010000000800000000", 0x7_FFF0_0000},
		{2 << 20, "0000000100000007000007FF", "000000010000000800000000", 0x7_FFE0_0000},
		{16 << 20, "0000000100000007000000FF", "000000010000000800000000", 0x7_FF00_0000},
		{64 << 20, "00000001000000070000003F", "000000010000000800000000", 0x7_FC00_0000},
		{512 << 20, "000000010000000700000007", "000000010000000800000000", 0x7_E000_0000},
		{1 << 30, "000000010000000700000003", "000000010000000800000000", 0x7_C000_0000},
	} {
		id, err := ParseName(c.last, c.size)
		if err != nil {
			t.Fatal(err)
		}
		if id.LSN(c.size) != c.before || id.End(c.size) != 0x8_0000_0000 || id.Name(c.size) != c.last {
			t.Errorf("%d: %s is from %s to %s", c.size, c.last, id.LSN(c.size), id.End(c.size))
		}
		if got := At(1, id.End(c.size), c.size).Name(c.size); got != c.next {
			t.Errorf("%d: %s follows %s, want %s", c.size, got, c.last, c.next)
		}
		if got := At(1, id.End(c.size)-1, c.size); got != id {
			t.Errorf("%d: the byte before the boundary is in %s", c.size, got.Name(c.size))
		}
		if _, err := ParseName(fmt.Sprintf("0000000100000007%08X", c.size.perID()), c.size); err == nil {
			t.Errorf("%d: a part of %X is accepted", c.size, c.size.perID())
		}
	}
}

func TestParseName(t *testing.T) {
	const size = 16 << 20
	for name, want := range map[string]ID{
		"000000010000000000000001": {1, 1},
		"0000000A00000001000000FF": {10, 0x1FF},
		"FFFFFFFFFFFFFFFF000000FE": {0xFFFFFFFF, 0xFFFFFFFFFE},
	} {
		if got, err := ParseName(name, size); err != nil || got != want || got.Name(size) != name {
			t.Errorf("ParseName(%q) = %v, %v, want %v", name, got, err, want)
		}
	}
	for _, name := range []string{
		"", "00000001000000000000001", "0000000100000000000000010", // too short, too long
		"00000001000000000000000a", "00000001 00000000000001", "0x0000010000000000000001", "+00000010000000000000001",
		"000000000000000000000001",         // no timeline 0
		"000000010000000000000100",         // beyond FF
		"000000010000000000000000",         // LSN 0 is no position
		"00000001FFFFFFFF000000FF",         // ends where LSNs do
		"000000010000000000000001.partial", // a suffix
	} {
		if got, err := ParseName(name, size); err == nil {
			t.Errorf("ParseName(%q) = %v, want an error", name, got)
		}
	}
}

func TestParseFile(t *testing.T) {
	const base = "00000001000000000000000A"
	for name, want := range map[string]file{
		base:                  {base: base},
		base + ".partial":     {base: base, partial: true},
		base + ".gz":          {base: base, compression: Gzip},
		base + ".gz.partial":  {base: base, compression: Gzip, partial: true},
		base + ".lz4":         {base: base, compression: LZ4},
		base + ".lz4.partial": {base: base, compression: LZ4, partial: true},
		base + ".zst":         {base: base, compression: Zstd},
		base + ".zst.partial": {base: base, compression: Zstd, partial: true},
		base + ".zstd":        {base: base, compression: Unknown},
		base + ".bz2":         {base: base, compression: Unknown},
		base + ".aes":         {base: base, compression: Unknown},
		base + ".zst.aes":     {base: base, compression: Unknown},
		base + ".gz.gpg":      {base: base, compression: Unknown},
	} {
		want.name = name
		if got, ok := parseFile(name); !ok || got != want {
			t.Errorf("parseFile(%q) = %+v, %v", name, got, ok)
		}
		if got := want.base + want.compression.Suffix(); got != base+want.compression.Suffix() {
			t.Errorf("suffix of %q is %q", name, got)
		}
	}
	for _, name := range []string{"", ".partial", ".gz", "00000001.history", base + ".history", base + ".00000028.backup", base + ".zstd.partial",
		base + ".zst.tmp", base + ".aesx", base + ".gz.tmp", base + ".partial.gz", base + ".partial.partial", base + ".GZ",
		base + ".Partial", base + ".", base + ".tmp", base + "0", base[1:], "00000001000000000000000a", "archive_status", "." + base,
		base + "\n", "backup_label"} {
		if got, ok := parseFile(name); ok {
			t.Errorf("parseFile(%q) = %+v, want it ignored", name, got)
		}
	}
}

// Suffixes that were told make a complete segment, alone or with known ones, and nothing else of a file.
func TestParseFileSuffixes(t *testing.T) {
	const base = "00000001000000000000000A"
	told := []string{".crypt", ".a.b", ""}
	for name, want := range map[string]Compression{".crypt": Unknown, ".gz.crypt": Unknown, ".a.b": Unknown, ".crypt.a.b.aes": Unknown, ".gz": Gzip, "": Plain} {
		if f, ok := parseFile(base+name, told...); !ok || f.compression != want || f.partial {
			t.Errorf("%q is %+v, %v", name, f, ok)
		}
	}
	for _, name := range []string{".crypt.partial", ".partial.crypt", ".cryptx", ".a", ".b", ".", ".crypt."} {
		if f, ok := parseFile(base+name, told...); ok {
			t.Errorf("%q is %+v, want it ignored", name, f)
		}
	}
	if _, ok := parseFile("00000002.history.crypt", told...); ok {
		t.Error("a history file is a segment")
	}
}

func TestHistoryName(t *testing.T) {
	for timeline, want := range map[Timeline]string{2: "00000002.history", 10: "0000000A.history", 0xFFFFFFFF: "FFFFFFFF.history"} {
		if got := HistoryName(timeline); got != want {
			t.Errorf("HistoryName(%d) = %q", timeline, got)
		}
		if got, ok := parseHistoryName(want); !ok || got != timeline {
			t.Errorf("parseHistoryName(%q) = %d, %v", want, got, ok)
		}
	}
	for _, name := range []string{"", ".history", "0000000a.history", "00000000.history", "2.history", "000000002.history", "00000002.histor",
		"00000002.history.tmp", "00000002.history~", "/0000002.history"} {
		if got, ok := parseHistoryName(name); ok {
			t.Errorf("parseHistoryName(%q) = %d, want it ignored", name, got)
		}
	}
}
