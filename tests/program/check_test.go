package program

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// report is what --check --json prints.
type report struct {
	Problems []struct {
		Kind, File, LSN, Text string
		EndLSN                string `json:"end_lsn"`
		Timeline              uint32
	}
	ProblemCount     int    `json:"problem_count"`
	LeftoverCount    int    `json:"leftover_count"`
	Segments         int    `json:"segments"`
	SegmentSize      int    `json:"segment_size"`
	SizeAssumed      bool   `json:"segment_size_assumed"`
	SystemIdentifier string `json:"system_identifier"`
	OldestLSN        string `json:"oldest_lsn"`
	NextLSN          string `json:"next_lsn"`
	Timeline         int    `json:"timeline"`
}

// putSegment makes a segment of 1 MiB that begins as PostgreSQL 15's do.
func putSegment(t *testing.T, dir string, number byte) {
	t.Helper()
	data := make([]byte, 1<<20)
	copy(data, []byte{0x10, 0xD1, 2, 0, 1, 0, 0, 0, 0, 0, number << 4, 0, 24: 7, 34: 0x10, 37: 0x20, 39: 0})
	if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("0000000100000000000000%02X", number)), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// --check ends with 0 for a sound directory, 2 for one with problems and 1 where it could not look, and says the same to people and as
// JSON, whatever the files and folders are called.
func TestCheck(t *testing.T) {
	program := ours(t)
	for _, c := range []struct {
		name                string
		args                []string // besides --check
		make                func(dir string)
		code                int
		problems, leftovers int
		segments            int
		assumed             bool     // the segment size
		says                []string // without --json
		kinds               string
	}{
		{name: "empty", make: func(string) {}, says: []string{"there is no WAL in"}},
		{name: "sound", make: func(d string) { putSegment(t, d, 5); putSegment(t, d, 6) }, segments: 2,
			says: []string{"2 complete segments of 1048576 bytes from 0/500000, going on at 0/700000 (timeline 1), system identifier 7: 0 problems"}},
		{name: "a hole", make: func(d string) { putSegment(t, d, 5); putSegment(t, d, 7) }, code: 2, problems: 1, segments: 2, kinds: "missing",
			says: []string{"missing: segment 000000010000000000000006 is missing (timeline 1, 0/600000 to 0/700000)", ": 1 problems"}},
		{name: "leftovers are no problem", make: func(d string) {
			putSegment(t, d, 5)
			os.WriteFile(filepath.Join(d, "00000002.history.tmp"), nil, 0o600)
		}, leftovers: 1, segments: 1, kinds: "leftover", says: []string{"leftover: ", ": 0 problems"}},
		{name: "a \"quoted\\ \n\xff\u20ac name", make: func(d string) {
			putSegment(t, d, 5)
			for _, name := range []string{"a \"b\"\\\n\xff\u20ac", "0000000100000000000000\"6", "0000000100000000000000FF.partial\n", ".hidden"} {
				os.WriteFile(filepath.Join(d, name), []byte("x"), 0o600)
			}
			os.WriteFile(filepath.Join(d, "000000000000000000000006"), []byte("x"), 0o600)
			os.WriteFile(filepath.Join(d, "000000010000000000000006"), []byte("x"), 0o600)
		}, code: 2, problems: 2, segments: 1, kinds: "foreign_file wrong_size", says: []string{"foreign_file: ", "wrong_size: "}},
		{name: "encrypted", make: func(d string) {
			os.WriteFile(filepath.Join(d, "000000010000000000000006.zst.aes"), []byte("x"), 0o600)
		}, segments: 1, assumed: true, says: []string{"1 complete segments of 16777216 bytes (assumed", "going on at 0/7000000"}},
		{name: "encrypted, of another size", make: func(d string) {
			os.WriteFile(filepath.Join(d, "000000010000000000000100.zst.aes"), []byte("x"), 0o600)
		}, code: 2, problems: 1, kinds: "foreign_file", says: []string{"segment size"}},
		{name: "of a size that is given", args: []string{"--wal-segsize", "1"}, make: func(d string) {
			for _, name := range []string{"0000000100000000000000FF.zst.aes", "000000010000000000000100.zst.aes"} {
				os.WriteFile(filepath.Join(d, name), []byte("x"), 0o600)
			}
		}, segments: 2, says: []string{"2 complete segments of 1048576 bytes from 0/FF00000, going on at 0/10100000"}},
		{name: "partials that nobody can fill", make: func(d string) {
			putSegment(t, d, 5)
			putSegment(t, d, 9)
			os.Rename(filepath.Join(d, "000000010000000000000009"), filepath.Join(d, "000000010000000000000006.partial"))
			os.WriteFile(filepath.Join(d, "000000020000000000000006.partial"), make([]byte, 1<<20+1), 0o600)
			os.WriteFile(filepath.Join(d, "00000002.history"), []byte("1\t0/680000\tno recovery target specified\n"), 0o600)
		}, code: 2, problems: 2, segments: 1, kinds: "wrong_page wrong_size", says: []string{"longer than a segment", "0/900000 instead of 0/600000"}},
	} {
		t.Run(c.kinds+c.says[0], func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), c.name)
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			c.make(dir)
			r := program.start(t, nil, slices.Concat([]string{"--check", "-D", dir}, c.args)...).wait()
			if r.code != c.code || r.stderr != "" {
				t.Errorf("want exit code %d: %s", c.code, r)
			}
			for _, part := range c.says {
				if !strings.Contains(r.stdout, part) {
					t.Errorf("no %q in: %s", part, r)
				}
			}
			r = program.start(t, nil, slices.Concat([]string{"--check", "--json", "-D", dir}, c.args)...).wait()
			if r.code != c.code || r.stderr != "" {
				t.Errorf("want exit code %d: %s", c.code, r)
			}
			var got report
			if err := json.Unmarshal([]byte(r.stdout), &got); err != nil {
				t.Fatalf("%v: %s", err, r)
			}
			var kinds []string
			for _, p := range got.Problems {
				kinds = append(kinds, p.Kind)
				if p.Text == "" {
					t.Errorf("a problem without text: %+v", p)
				}
			}
			if got.ProblemCount != c.problems || got.LeftoverCount != c.leftovers || got.Segments != c.segments || got.SizeAssumed != c.assumed || strings.Join(kinds, " ") != c.kinds {
				t.Errorf("got %+v, want %d problems, %d leftovers, %d segments: %s", got, c.problems, c.leftovers, c.segments, c.kinds)
			}
		})
	}
	missing := filepath.Join(t.TempDir(), "missing")
	for _, args := range [][]string{{"--check", "-D", missing}, {"--check", "--json", "-D", missing}, {"--json", "-D", missing}, {"--check"},
		{"--check", "-D", t.TempDir(), "--wal-segsize", "3"}, {"--check", "-D", t.TempDir(), "--wal-segsize", "2048"}, {"-D", t.TempDir(), "--wal-segsize", "1"}} {
		if r := program.start(t, nil, args...).wait(); r.code != 1 || r.stdout != "" || r.stderr == "" {
			t.Errorf("%q: %s", args, r)
		}
	}
}
