// Package build tests what a user does first: build, install, compile against it, and the README's promises about that.
package build

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"libreceivewal/tests/pg"
)

func root(t *testing.T) string {
	t.Helper()
	dir, err := pg.Root()
	must(t, err)
	return dir
}

// run runs a command in a folder, with more in its environment, and returns what it prints.
func run(t *testing.T, dir string, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// The C in the README compiles, and what it calls is in the library.
func TestReadmeCompiles(t *testing.T) {
	blocks := regexp.MustCompile("(?ms)^```c\n(.*?)^```$").FindAllStringSubmatch(read(t, filepath.Join(root(t), "README.md")), -1)
	if len(blocks) == 0 {
		t.Fatal("there is no C in the README")
	}
	libpq := strings.TrimSpace(run(t, ".", nil, "pg_config", "--includedir"))
	for _, block := range blocks {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, "readme.c"), []byte(block[1]), 0o600))
		run(t, dir, nil, "gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-I"+root(t)+"/build/include", "-I"+libpq, "readme.c",
			"-L"+root(t)+"/build/lib", "-lreceivewal", "-lpq", "-Wl,-z,defs", "-o", "readme.so")
	}
}

// functions are those that the public header declares.
func functions(t *testing.T) []string {
	t.Helper()
	header := read(t, filepath.Join(root(t), "include", "receivewal.h"))
	var declared []string
	for _, match := range regexp.MustCompile(`(?m)^(?:receivewal_status |int |const char \*|char \*)(receivewal_\w+)\(`).FindAllStringSubmatch(header, -1) {
		declared = append(declared, match[1])
	}
	return declared
}

// The README names every function of the header, and no other.
func TestReadmeNamesTheAPI(t *testing.T) {
	declared := functions(t)
	table := regexp.MustCompile(`(?s)## The API.*?\n## `).FindString(read(t, filepath.Join(root(t), "README.md")))
	var named []string
	for _, match := range regexp.MustCompile("`(receivewal_\\w+)`").FindAllStringSubmatch(table, -1) {
		if match[1] != "receivewal_options" {
			named = append(named, match[1])
		}
	}
	slices.Sort(declared)
	slices.Sort(named)
	if !slices.Equal(declared, named) {
		t.Errorf("the header has\n%v\nthe README\n%v", declared, named)
	}
}

// A second build does nothing; a changed header builds both libraries anew, although Go's build cache doesn't look at it.
func TestBuildIsIncremental(t *testing.T) {
	dir := t.TempDir()
	run(t, root(t), nil, "sh", "-c", `cp -r build.sh go.mod go.sum CHANGELOG.md include loader capi stream segment examples "$0"`, dir)
	outputs := []string{"build/lib/libreceivewal.so.1", "build/lib/libreceivewal-core.so.1", "build/bin/receivewal"}
	look := func() (contents, times []string) {
		for _, output := range outputs {
			path := filepath.Join(dir, output)
			info, err := os.Stat(path)
			must(t, err)
			contents, times = append(contents, read(t, path)), append(times, info.ModTime().String())
		}
		return contents, times
	}
	run(t, dir, nil, "./build.sh")
	oldContents, oldTimes := look()
	run(t, dir, nil, "./build.sh")
	_, times := look()
	for i, output := range outputs {
		// The go command touches what is up to date.
		if times[i] != oldTimes[i] && !strings.Contains(output, "core") {
			t.Errorf("the second build has made %s again", output)
		}
	}
	header := filepath.Join(dir, "include", "receivewal.h")
	must(t, os.WriteFile(header, []byte(read(t, header)+"\n/* changed */\n"), 0o600))
	run(t, dir, nil, "./build.sh")
	contents, times := look()
	for i, output := range outputs {
		if times[i] == oldTimes[i] || contents[i] == oldContents[i] && strings.Contains(output, "lib/") {
			t.Errorf("with another header %s is still the old one", output)
		}
	}
}

// What is not a command, or misses something, is an error in one line.
func TestBuildErrors(t *testing.T) {
	for _, c := range []struct {
		args []string
		env  string // "": nothing more
		want string
	}{
		{[]string{"bild"}, "", "build.sh: unknown command bild; try ./build.sh help\n"},
		{[]string{"install"}, "", "build.sh: usage: ./build.sh install DIR\n"},
		{[]string{"install", "relative"}, "", "build.sh: install wants an absolute path, for example: ./build.sh install /usr/local\n"},
		{[]string{"install", "/x"}, "LIBDIR=/lib", "build.sh: LIBDIR is a folder below the one to install into, for example: lib64\n"},
		{[]string{"build"}, "PATH=/usr/bin:/bin", "build.sh: Go is missing (1.26 or newer, https://go.dev/dl/)\n"},
	} {
		cmd := exec.Command("./build.sh", c.args...)
		cmd.Dir = root(t)
		cmd.Env = os.Environ()
		if c.env != "" {
			cmd.Env = append(cmd.Env, c.env)
		}
		out, err := cmd.CombinedOutput()
		if err == nil || string(out) != c.want {
			t.Errorf("%v: %v, %q, want %q", c.args, err, out, c.want)
		}
	}
}
