package segment

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// A segment is copied byte for byte under its name, whatever its form, and replaces its .partial. What is no such segment is not.
func TestCopySegment(t *testing.T) {
	const size = Size(1 << 20)
	id := ID{1, 3}
	name := id.Name(size)
	whole := append(testHead(1, id.LSN(size), size), bytes.Repeat([]byte{7}, int(size)-pageHeaderSize)...)
	foreign := append(testHead(1, id.LSN(size)+LSN(size), size), whole[pageHeaderSize:]...)
	enough := errors.New("enough")
	for title, test := range map[string]struct {
		file    string
		content []byte
		goOn    error
		want    error
	}{
		"plain":                 {name, whole, nil, nil},
		"compressed":            {name + ".gz", []byte("gzip"), nil, nil},
		"encrypted":             {name + ".zst.aes", bytes.Repeat([]byte("secret"), 400_000), nil, nil},
		"too short":             {name, whole[:size-1], nil, ErrSource},
		"another segment":       {name, foreign, nil, ErrSource},
		"not wanted any more":   {name, whole, enough, enough},
		"encrypted, not wanted": {name + ".aes", whole, enough, enough},
	} {
		t.Run(title, func(t *testing.T) {
			from, to := t.TempDir(), t.TempDir()
			write(t, filepath.Join(from, test.file), test.content)
			write(t, filepath.Join(to, name+".partial"), whole[:5000])
			source, target := lockedDirectory(t, from), lockedDirectory(t, to)
			s, err := source.Source(test.file)
			if err != nil {
				t.Fatal(err)
			}
			o := WriterOptions{Size: size, SystemIdentifier: testSystem, History: History{{Timeline: 1}}}
			err = target.CopySegment(s, id, o, func() error { return test.goOn })
			if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
				t.Errorf("%v, expected %v", err, test.want)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			names, err := target.dir.Names()
			if err != nil {
				t.Fatal(err)
			}
			if want := test.file; test.want == nil {
				if !slices.Equal(names, []string{want}) {
					t.Errorf("%q, expected %q", names, want)
				}
				if got, err := os.ReadFile(filepath.Join(to, want)); err != nil || !bytes.Equal(got, test.content) {
					t.Errorf("the copy differs, or %v", err)
				}
			} else if !slices.Equal(names, []string{name + ".partial"}) {
				t.Errorf("%q", names)
			}
		})
	}
	d := lockedDirectory(t, t.TempDir())
	if _, err := d.Source(name); !errors.Is(err, ErrSource) || !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := d.Growing(id, size); !errors.Is(err, ErrSource) || !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func testHead(timeline Timeline, lsn LSN, size Size) []byte {
	h := header(timeline, lsn, size)
	return h[:]
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func lockedDirectory(t *testing.T, path string) *Directory {
	t.Helper()
	d, err := Open(OS, path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// Holes are looked for along a history up to where the segments have to reach, and not beyond.
func TestCheckUntil(t *testing.T) {
	const size = Size(1 << 20)
	history := History{{Timeline: 1, End: 0x400010}, {Timeline: 2}}
	for title, test := range map[string]struct {
		files []string
		until LSN
		want  []Problem
		begin LSN
	}{
		"nothing":       {nil, 0x800000, nil, 0},
		"behind":        {[]string{"000000010000000000000002"}, 0x700000, []Problem{MissingFrom(1, 0x300000, 0x400000, size), MissingFrom(2, 0x400000, 0x700000, size)}, 0x200000},
		"only partial":  {[]string{"000000020000000000000005.partial"}, 0x700000, []Problem{MissingFrom(2, 0x500000, 0x700000, size)}, 0x500000},
		"ahead":         {[]string{"000000010000000000000003", "000000020000000000000004", "000000020000000000000009"}, 0x500000, nil, 0x300000},
		"left timeline": {[]string{"000000010000000000000003", "000000010000000000000004"}, 0x500000, []Problem{MissingFrom(2, 0x400000, 0x500000, size)}, 0x300000},
	} {
		t.Run(title, func(t *testing.T) {
			dir := t.TempDir()
			for _, name := range test.files {
				write(t, filepath.Join(dir, name), nil)
				if err := os.Truncate(filepath.Join(dir, name), int64(size)); err != nil {
					t.Fatal(err)
				}
			}
			report, err := lockedDirectory(t, dir).Check(CheckOptions{Size: size, Until: test.until, History: history})
			if err != nil {
				t.Fatal(err)
			}
			got := slices.DeleteFunc(report.Problems, func(p Problem) bool { return p.Kind != Missing })
			if !slices.Equal(got, test.want) || report.Begin != test.begin {
				t.Errorf("%v from %s, expected %v from %s", got, report.Begin, test.want, test.begin)
			}
		})
	}
}
