package segment

import "testing"

func TestParseLSN(t *testing.T) {
	for _, c := range []struct {
		text string
		lsn  LSN
	}{
		{"0/0", 0},
		{"0/1", 1},
		{"16/B374D848", 0x16B374D848},
		{"16/b374d848", 0x16B374D848},
		{"00000016/0B374D84", 0x160B374D84}, // as PostgreSQL 19 prints it
		{"FFFFFFFF/FFFFFFFF", 0xFFFFFFFFFFFFFFFF},
	} {
		if got, err := ParseLSN(c.text); err != nil || got != c.lsn {
			t.Errorf("ParseLSN(%q) = %s, %v, want %s", c.text, got, err, c.lsn)
		}
	}
	for _, text := range []string{"", "/", "0", "0/", "/0", "0/0/0", " 0/0", "0/0 ", "0/0\n", "-1/0", "+1/0", "0x1/0", "1_0/0", "0/G",
		"123456789/0", "0/123456789", "000000000/0", "0/-", "0\x00/0", "٣/0"} {
		if got, err := ParseLSN(text); err == nil {
			t.Errorf("ParseLSN(%q) = %s, want an error", text, got)
		}
	}
}

func TestLSNString(t *testing.T) {
	for lsn, want := range map[LSN]string{0: "0/0", 0x16B374D848: "16/B374D848", 1 << 32: "1/0", 0xABC: "0/ABC",
		0xFFFFFFFFFFFFFFFF: "FFFFFFFF/FFFFFFFF"} {
		if got := lsn.String(); got != want {
			t.Errorf("%d is %q, want %q", uint64(lsn), got, want)
		}
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]Size{"1MB": 1 << 20, "16MB": 16 << 20, "64MB": 64 << 20, "512MB": 512 << 20, "1GB": 1 << 30,
		"1024kB": 1 << 20, "16777216B": 16 << 20, "16777216": 16 << 20, "1024MB": 1 << 30} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "MB", "0", "0MB", "3MB", "512kB", "2GB", "2048MB", "4294967295GB", "4294967296MB", "16 MB", "16mb",
		"16BM", "16MBMB", "-16MB", "+16MB", "16.0MB", "16TB", "16MB "} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("ParseSize(%q) = %d, want an error", text, got)
		}
	}
}

func TestSize(t *testing.T) {
	valid := 0
	for s := Size(1); s != 0; s <<= 1 {
		if s.Valid() {
			valid++
		}
		if s > 2 && (s-1).Valid() || s > 1 && (s+1).Valid() {
			t.Errorf("%d±1 is valid", s)
		}
	}
	if valid != 11 || !MinSize.Valid() || !MaxSize.Valid() || (MinSize / 2).Valid() || (MaxSize * 2).Valid() || Size(0).Valid() {
		t.Errorf("%d sizes are valid", valid)
	}
	const lsn LSN = 0x12_3456_789A
	for size, want := range map[Size]struct {
		offset uint32
		floor  LSN
	}{
		1 << 20:  {0x6789A, 0x12_3450_0000},
		16 << 20: {0x56789A, 0x12_3400_0000},
		1 << 30:  {0x3456789A, 0x12_0000_0000},
	} {
		if size.Offset(lsn) != want.offset || size.Floor(lsn) != want.floor {
			t.Errorf("%d: %s is at %X from %s", size, lsn, size.Offset(lsn), size.Floor(lsn))
		}
	}
}
