package segment

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A segment comes whole, in whatever form it is there; what was never received of it is zeros. Nothing else is taken for one.
func TestRestore(t *testing.T) {
	c := newCluster(MinSize, 7*LSN(MinSize))
	five := c.segment(ID{1, 5})
	half := five[:300_000]
	zeros := func(data []byte) []byte { return padded(data, MinSize) }
	const name = "000000010000000000000005"
	for what, test := range map[string]struct {
		files map[string][]byte
		name  string // if not that segment's
		want  []byte
		err   error
		says  string
	}{
		"plain":               {files: map[string][]byte{name: five}, want: five},
		"gzip":                {files: map[string][]byte{name + ".gz": gzipped(five)}, want: five},
		"lz4":                 {files: map[string][]byte{name + ".lz4": wholeLZ4(five)}, want: five},
		"zstd":                {files: map[string][]byte{name + ".zst": wholeZstd(five)}, want: five},
		"complete, partial":   {files: map[string][]byte{name + ".gz": gzipped(five), name + ".partial": zeros(half)}, want: five},
		"one is damaged":      {files: map[string][]byte{name: five[:9], name + ".zst": wholeZstd(five)}, want: five},
		"damaged gzip":        {files: map[string][]byte{name + ".gz": gzipped(five)[:900], name + ".partial": zeros(half)}, err: ErrIO, says: name + ".gz"},
		"gzip, then a tail":   {files: map[string][]byte{name + ".gz": append(gzipped(five), "tail"...)}, err: ErrIO, says: name + ".gz"},
		"damaged zstd":        {files: map[string][]byte{name + ".zst": wholeZstd(five)[:900]}, err: ErrIO, says: name + ".zst"},
		"damaged lz4":         {files: map[string][]byte{name + ".lz4": wholeLZ4(five)[:900]}, err: ErrIO, says: name + ".lz4"},
		"short":               {files: map[string][]byte{name: half}, err: ErrIO, says: "which are no segment"},
		"no WAL":              {files: map[string][]byte{name: make([]byte, MinSize)}, err: ErrIO, says: "which are no segment"},
		"encrypted":           {files: map[string][]byte{name + ".zst.aes": five}, err: ErrIO, says: "another program"},
		"partial":             {files: map[string][]byte{name + ".partial": zeros(half)}, want: zeros(half)},
		"short partial":       {files: map[string][]byte{name + ".partial": half}, want: zeros(half)},
		"gzip partial":        {files: map[string][]byte{name + ".gz.partial": cutGzip(half)}, want: zeros(half)},
		"lz4 partial":         {files: map[string][]byte{name + ".lz4.partial": cutLZ4(half)}, want: zeros(half)},
		"zstd partial":        {files: map[string][]byte{name + ".zst.partial": cutZstd(half)}, want: zeros(half)},
		"the fullest partial": {files: map[string][]byte{name + ".partial": zeros(half[:100_000]), name + ".gz.partial": cutGzip(half), name + ".lz4.partial": cutLZ4(half[:5000])}, want: zeros(half)},
		"the plain one":       {files: map[string][]byte{name + ".partial": zeros(half), name + ".gz.partial": cutGzip(half[:9000])}, want: zeros(half)},
		"an empty partial":    {files: map[string][]byte{name + ".partial": nil}, err: ErrNoFile},
		"another segment":     {files: map[string][]byte{"000000010000000000000006": five}, err: ErrNoFile},
		"a history file":      {files: map[string][]byte{"00000002.history": []byte("1\t0/1\tx\n")}, name: "00000002.history", want: []byte("1\t0/1\tx\n")},
		"no history file":     {name: "00000003.history", err: ErrNoFile},
		"a backup label":      {files: map[string][]byte{name + ".00000028.backup": []byte("x")}, name: name + ".00000028.backup", want: []byte("x")},
		"a path":              {name: "../secret", err: ErrNoFile},
		"no name":             {name: "", err: ErrNoFile},
	} {
		t.Run(what, func(t *testing.T) {
			dir, target := t.TempDir(), filepath.Join(t.TempDir(), "RECOVERYXLOG")
			if what != "plain" {
				os.WriteFile(target, []byte("what was there before"), 0o600)
			}
			for name, content := range test.files {
				if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			wanted := test.name
			if wanted == "" && what != "no name" {
				wanted = name
			}
			err := Restore(OS, dir, wanted, target)
			got, _ := os.ReadFile(target)
			switch {
			case !errors.Is(err, test.err) || err != nil && !strings.Contains(err.Error(), test.says):
				t.Errorf("%v, want %v, %q", err, test.err, test.says)
			case errors.Is(err, ErrNoFile) != (test.err == ErrNoFile):
				t.Errorf("%v: not there or damaged?", err)
			case err == nil && !bytes.Equal(got, test.want):
				t.Errorf("%d bytes, want %d", len(got), len(test.want))
			case err != nil && string(got) != "what was there before":
				t.Errorf("the target was touched: %d bytes", len(got))
			}
			if list := readAll(t, filepath.Dir(target)); len(list) != 1 {
				t.Errorf("beside the target: %q", slices.Collect(maps.Keys(list)))
			}
			if err := difference(readAll(t, dir), test.files); err != nil {
				t.Errorf("the directory has changed: %v", err)
			}
		})
	}
}

// An error at any operation is told, closes all files, and leaves what is at the target, or puts the whole file there.
func TestRestoreErrors(t *testing.T) {
	c := newCluster(MinSize, 7*LSN(MinSize))
	const name = "000000010000000000000005"
	for what, files := range map[string]map[string][]byte{
		"complete": {name + ".gz": gzipped(c.segment(ID{1, 5}))},
		"partial":  {name + ".partial": padded(c.segment(ID{1, 5})[:5000], MinSize), name + ".zst.partial": cutZstd(c.segment(ID{1, 5})[:6000])},
	} {
		dir := t.TempDir()
		for name, content := range files {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		target := filepath.Join(dir, "RECOVERYXLOG")
		dry := &failing{at: -1}
		if err := Restore(dry, dir, name, target); err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(target)
		if err != nil {
			t.Fatal(err)
		}
		for at, o := range dry.log {
			os.WriteFile(target, []byte("old"), 0o600)
			f := &failing{at: at}
			err := Restore(f, dir, name, target)
			got, _ := os.ReadFile(target)
			if f.open != 0 {
				t.Errorf("%s, %s: %d files are open", what, o, f.open)
			}
			if string(got) != "old" && !bytes.Equal(got, want) {
				t.Errorf("%s, %s: %d bytes", what, o, len(got))
			}
			if quiet := strings.HasPrefix(o, "close") || strings.HasPrefix(o, "read past"); err == nil && (!quiet || string(got) == "old") || errors.Is(err, ErrNoFile) {
				t.Errorf("%s, %s: %v", what, o, err)
			}
		}
		if len(dry.log) < 20 {
			t.Errorf("only %d operations were tried", len(dry.log))
		}
	}
}

// failing is the real file system, of which one operation fails.
type failing struct {
	log  []string
	at   int
	open int
}

func (f *failing) do(what string) error {
	f.log = append(f.log, what)
	if len(f.log)-1 == f.at {
		return unix.EIO
	}
	return nil
}

func (f *failing) OpenDir(path string) (Dir, error) {
	if err := f.do("open directory"); err != nil {
		return nil, err
	}
	d, err := OS.OpenDir(path)
	f.open++
	return failingDir{d, f}, err
}

type failingDir struct {
	Dir
	f *failing
}

func (d failingDir) Names() ([]string, error) {
	if err := d.f.do("list"); err != nil {
		return nil, err
	}
	return d.Dir.Names()
}

func (d failingDir) file(f File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	d.f.open++
	return failingFile{f, d.f}, nil
}

func (d failingDir) Open(name string, write bool) (File, error) {
	if err := d.f.do("open " + name); err != nil {
		return nil, err
	}
	return d.file(d.Dir.Open(name, write))
}

func (d failingDir) Create(mode fs.FileMode) (File, error) {
	if err := d.f.do("create"); err != nil {
		return nil, err
	}
	return d.file(d.Dir.Create(mode))
}

func (d failingDir) Link(f File, name string) error {
	if err := d.f.do("link " + name); err != nil {
		return err
	}
	return d.Dir.Link(f.(failingFile).File, name)
}

func (d failingDir) Rename(from, to string) error {
	if err := d.f.do("rename " + from); err != nil {
		return err
	}
	return d.Dir.Rename(from, to)
}

func (d failingDir) Remove(name string) error {
	if err := d.f.do("remove " + name); err != nil {
		return err
	}
	return d.Dir.Remove(name)
}

func (d failingDir) Close() error {
	d.f.open--
	return errors.Join(d.f.do("close directory"), d.Dir.Close())
}

type failingFile struct {
	File
	f *failing
}

func (f failingFile) ReadAt(p []byte, offset int64) (int, error) {
	what := "read"
	if size, _ := f.File.Size(); offset >= size {
		what = "read past the end"
	}
	if err := f.f.do(what); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, offset)
}

func (f failingFile) WriteAt(p []byte, offset int64) (int, error) {
	if err := f.f.do("write"); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, offset)
}

func (f failingFile) Size() (int64, error) {
	if err := f.f.do("size"); err != nil {
		return 0, err
	}
	return f.File.Size()
}

func (f failingFile) Allocate(size int64) error {
	if err := f.f.do("allocate"); err != nil {
		return err
	}
	return f.File.Allocate(size)
}

func (f failingFile) Sync() error {
	if err := f.f.do("sync"); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f failingFile) Close() error {
	f.f.open--
	return errors.Join(f.f.do("close"), f.File.Close())
}
