package golang_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"libreceivewal/segment"
	"libreceivewal/stream"
	"libreceivewal/tests/pg"
)

// Segments of a real server by each method, one after the other in one directory, with holes filled by the next one's: the usual programs
// accept and decompress them to the server's bytes, and Restore gives back every segment, up to the end of what was received.
func TestCompressed(t *testing.T) {
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	dir := t.TempDir()
	start := c.CurrentLSN()
	var end pg.LSN
	for i, method := range []segment.Compression{segment.Gzip, segment.LZ4, segment.Plain, segment.Zstd, segment.Gzip} {
		if i == 3 {
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(filepath.Join(dir, entries[1].Name())); err != nil {
				t.Fatal(err)
			}
		}
		end = generate(c, 3)
		var opened, completed []string
		holes, err := receiveTo(t, c, dir, end, func(o *stream.Options) {
			o.StartLSN, o.CheckPages = segment.LSN(start), true
			o.Compression, o.CompressionWorkers = method, 1+i%2
			o.Synchronous = i%2 == 0
			o.Events.SegmentOpened = func(s stream.Segment) error { opened = append(opened, s.Name); return nil }
			o.Events.SegmentCompleted = func(s stream.Segment) error { completed = append(completed, s.Name); return nil }
		})
		if err != nil || len(completed) < 3 || len(holes) != map[bool]int{true: 2}[i == 3] {
			t.Fatalf("%s: %v, completed %q, holes %v", method, err, completed, holes)
		}
		for _, name := range completed {
			if name != name[:24]+method.Suffix() {
				t.Errorf("%s: completed %s", method, name)
			}
		}
		for _, name := range opened {
			if name != name[:24]+method.Suffix()+".partial" {
				t.Errorf("%s: opened %s", method, name)
			}
		}
	}
	report, err := segment.CheckDirectory(segment.OS, dir, segment.CheckOptions{Decode: true})
	if err != nil || len(report.Problems) > 0 {
		t.Errorf("the check finds %+v, %v", report.Problems, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	partials, forms := 0, map[string]int{}
	for _, e := range entries {
		base, suffix := e.Name()[:24], e.Name()[24:]
		forms[suffix]++
		original, err := os.ReadFile(filepath.Join(c.WALDir(), base))
		if err != nil {
			t.Fatal(err)
		}
		target := filepath.Join(t.TempDir(), "RECOVERYXLOG")
		if err := segment.Restore(segment.OS, dir, base, target); err != nil {
			t.Fatal(err)
		}
		restored, err := os.ReadFile(target)
		if err != nil || len(restored) != len(original) {
			t.Fatalf("%s, restored, has %d bytes, %v", e.Name(), len(restored), err)
		}
		if strings.HasSuffix(suffix, ".partial") {
			partials++
			original, restored = original[:uint64(end)%c.SegmentSize], restored[:uint64(end)%c.SegmentSize]
		}
		if string(restored) != string(original) {
			t.Errorf("%s, restored, is not the server's", e.Name())
		}
		if tool := map[string]string{".gz": "gzip", ".lz4": "lz4", ".zst": "zstd"}[suffix]; tool != "" {
			path := filepath.Join(dir, e.Name())
			if out, err := exec.Command(tool, "-t", path).CombinedOutput(); err != nil {
				t.Errorf("%s -t: %v, %s", tool, err, out)
			}
			if unpacked, err := exec.Command(tool, "-dc", path).Output(); err != nil || string(unpacked) != string(original) {
				t.Errorf("%s -dc %s: %d bytes, %v", tool, e.Name(), len(unpacked), err)
			}
		}
	}
	if partials != 1 || len(forms) != 5 {
		t.Errorf("%v", forms)
	}
}
