package program

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"libreceivewal/tests/pg"
)

// What is wrong on the command line is found in the same order and said in the same words, before any connection is made.
func TestCommandLineErrors(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{
		{},
		{"--create-slot"},
		{"--drop-slot"},
		{"--create-slot", "--drop-slot"},
		{"--create-slot", "--drop-slot", "--slot", "x"},
		{"-D", dir, "--create-slot", "--drop-slot"},
		{"-D", dir, "--create-slot"},
		{"-D", dir, "--synchronous", "--no-sync"},
		{"--synchronous", "--no-sync"},
		{"-D", dir, "extra", "arguments"},
		{"extra", "-D", dir},
		{"--create-slot", "--drop-slot", "extra"},
		{"-x"},
		{"--nosuch"},
		{"-D"},
		{"--directory"},
		{"--s"},
		{"--no"},
		{"--verbose=yes"},
		{"-D", dir, "--help"},
		{"-D", dir, "-?"},
		{"-D", dir, "--version"},
		{"-D", dir, "-V"},
		{"-D", dir, "-E", "nonsense"},
		{"-D", dir, "-E", "12"},
		{"-D", dir, "-E", "1/"},
		{"-D", dir, "--endpos="},
		{"-D", dir, "-s", "x"},
		{"-D", dir, "-s", "1x"},
		{"-D", dir, "-s", "-1"},
		{"-D", dir, "-s", "2147484"},
		{"-D", dir, "-s", "99999999999999999999"},
		{"-D", ""},
		{"-D", filepath.Join(dir, "missing")},
		{"-D", "/dev/null"},
		{"-D", dir, "--synchronous", "--no-sync", "-Z", "nonsense"},
		{"-Z", "nonsense"},
		{"-D", filepath.Join(dir, "missing"), "-Z", "nonsense"},
	} {
		t.Run(fmt.Sprint(args), func(t *testing.T) {
			if r := same(t, args...); r.code != 1 {
				t.Errorf("exit code %d, want 1", r.code)
			}
		})
	}
}

// The syntax of --compress is pg_receivewal's, with its messages. What is right ends at the next check: the directory.
func TestCompressSyntax(t *testing.T) {
	for _, spec := range []string{
		"none", "none:0", "0", "",
		"none:1", "none:", "none:foo", "none:level", "none:level=1", "none:workers=2", "none:1,2",
		"foo", "FOO", ":", ":1", "5 ", "99", "none,gzip",
		"gzip:", "gzip:foo", "gzip:99", "gzip:0", "gzip:level", "gzip:level=", "gzip:level=x", "gzip:workers=3", "gzip:workers", "gzip:,",
		"gzip:level=3,", "gzip:foo=1", "lz4:99", "lz4:13", "lz4:level=13",
		"gzip", "5", "9", "10", "gzip:1", "gzip:9", "gzip:10", "gzip:level=3", "gzip:level=3,level=4", "lz4", "lz4:1", "lz4:12", "lz4:level=9",
		"lz4:0", "lz4:workers=2", "lz4:", "-1",
	} {
		t.Run(spec, func(t *testing.T) {
			if r := same(t, "-D", "/nonexistent", "--compress", spec); r.code != 1 {
				t.Errorf("exit code %d, want 1", r.code)
			}
		})
	}
	// PostgreSQL 16 added "long".
	for spec, want := range map[string]string{
		"none:long":       `invalid compression specification: compression algorithm "none" does not support long-distance mode`,
		"gzip:long=on":    `invalid compression specification: compression algorithm "gzip" does not support long-distance mode`,
		"zstd:long=maybe": `invalid compression specification: value for compression option "long" must be a Boolean value`,
		"zstd:long=off":   `invalid compression specification: this program does not support long-distance mode`,
		// Ours has the levels of the zstd program without --fast and --ultra; PostgreSQL 15 has none in pg_receivewal.
		"zstd":                   `could not open directory "/nonexistent": No such file or directory`,
		"zstd:3":                 `could not open directory "/nonexistent": No such file or directory`,
		"zstd:level=3,workers=2": `could not open directory "/nonexistent": No such file or directory`,
		"zstd:20":                `invalid compression specification: compression algorithm "zstd" expects a compression level between 1 and 19 (default at 1)`,
		"zstd:level=-1":          `invalid compression specification: compression algorithm "zstd" expects a compression level between 1 and 19 (default at 1)`,
		"zstd:workers=-1":        `invalid compression specification: the worker count must be in range 0..1024`,
	} {
		r := ours(t).run(t, "-D", "/nonexistent", "-Z", spec)
		if r.code != 1 || r.stderr != "pg_receivewal: error: "+want+"\n" {
			t.Errorf("%s: %v", spec, r)
		}
	}
}

// --help prints pg_receivewal's, line by line, then our additions.
func TestHelp(t *testing.T) {
	want := theirs(t).run(t, "--help")
	for _, option := range []string{"--help", "-?"} {
		got := ours(t).run(t, option)
		if got.code != 0 || got.stderr != "" {
			t.Errorf("%s: %v", option, got)
		}
		lines := strings.Split(got.stdout, "\n")
		for _, line := range strings.Split(want.stdout, "\n") {
			if line == strings.TrimSpace(line) && strings.Contains(line, "PostgreSQL home page") || strings.Contains(line, "Report bugs") {
				continue
			}
			i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, line) })
			if i < 0 {
				t.Errorf("%s lacks the line %q, or has it elsewhere", option, line)
				continue
			}
			lines = lines[i+1:]
		}
		contains(t, strings.Join(lines, "\n"), "--progress", "libreceivewal")
	}
}

// The program goes by the name that it is called by. As pg_receivewal it answers to --version as PostgreSQL's programs do:
// the third word is a version.
func TestNameAndVersion(t *testing.T) {
	dir := t.TempDir()
	root, err := pg.Root()
	if err != nil {
		t.Fatal(err)
	}
	header, err := os.ReadFile(filepath.Join(root, "include", "receivewal.h"))
	if err != nil {
		t.Fatal(err)
	}
	ours := regexp.MustCompile(`#define RECEIVEWAL_VERSION "(.*)"`).FindSubmatch(header)
	if ours == nil {
		t.Fatal("receivewal.h has no RECEIVEWAL_VERSION")
	}
	for name, version := range map[string]string{
		"receivewal":    fmt.Sprintf("receivewal (libreceivewal) %s\n", ours[1]),
		"pg_receivewal": fmt.Sprintf("pg_receivewal (PostgreSQL) 18.0 (libreceivewal %s)\n", ours[1]),
	} {
		link := filepath.Join(dir, name)
		if err := os.Symlink(built(t, "receivewal"), link); err != nil {
			t.Fatal(err)
		}
		for _, option := range []string{"--version", "-V"} {
			p := pg.Run(t, link, option)
			p.Succeed()
			if p.Output() != version {
				t.Errorf("%s %s: %q, want %q", name, option, p.Output(), version)
			}
		}
		p := pg.Run(t, link)
		if code := p.Wait(); code != 1 {
			t.Errorf("exit code %d", code)
		}
		want := name + ": error: no target directory specified\n" + name + ": hint: Try \"" + name + " --help\" for more information.\n"
		if p.Output() != want {
			t.Errorf("%q, want %q", p.Output(), want)
		}
	}
}
