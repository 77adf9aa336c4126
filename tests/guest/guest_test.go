// Package guest_test puts the library into hosts of every kind and has them receive from real servers. The hosts are
// the C programs in tests/hosts that include postgres.h; each line "ok NAME" or "FAIL NAME: why" that one prints is a check.
//
// RECEIVEWAL_LONG=1 makes the tests as long as their rules say: a thousand streams, ten thousand rounds.
package guest_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"libreceivewal/tests/pg"
)

var root = must(pg.Root())

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func long() bool { return os.Getenv("RECEIVEWAL_LONG") != "" }

// lib is the folder with the libraries under test.
func lib(t *testing.T) string {
	t.Helper()
	folder := os.Getenv("RECEIVEWAL_LIB")
	if folder == "" {
		folder = filepath.Join(root, "build/lib")
	}
	for _, name := range []string{"libreceivewal.so.1", "libreceivewal-core.so.1", "libreceivewal.so"} {
		if _, err := os.Stat(filepath.Join(folder, name)); err != nil {
			t.Fatalf("%v: build the libraries first, or set RECEIVEWAL_LIB to their folder", err)
		}
	}
	return folder
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func compiler() string {
	if cc := os.Getenv("CC"); cc != "" {
		return cc
	}
	return "cc"
}

var cFlags = []string{"-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-Iinclude"}

// compile makes a program of tests/hosts/NAME.c, linked with libpq and the loader in a folder.
func compile(t *testing.T, name, libraries string, flags ...string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), name)
	command(t, compiler(), slices.Concat(cFlags, flags, []string{"-D_GNU_SOURCE", "-I" + strings.TrimSpace(command(t, "pg_config", "--includedir")),
		"-o", program, filepath.Join("tests/hosts", name+".c"), "-L" + libraries, "-lreceivewal", "-lpq", "-ldl"})...)
	return program
}

// A host is a running host program.
type host struct {
	t              *testing.T
	name           string
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
	exited         chan struct{}
	err            error
}

// start starts a compiled host. Neither it nor the libraries may print to stderr.
func start(t *testing.T, libraries, program string, args ...string) *host {
	t.Helper()
	return startWith(t, libraries, nil, nil, program, args...)
}

// startWith starts a host below a wrapper, such as valgrind, and with more environment.
func startWith(t *testing.T, libraries string, env, wrapper []string, program string, args ...string) *host {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	words := slices.Concat(wrapper, []string{program}, args)
	h := &host{t: t, name: filepath.Base(program), cmd: exec.CommandContext(ctx, words[0], words[1:]...), exited: make(chan struct{})}
	h.cmd.Dir = t.TempDir()
	h.cmd.WaitDelay = 5 * time.Second // should a child of the host have stayed
	h.cmd.Env = append(append(os.Environ(), "LD_LIBRARY_PATH="+libraries), env...)
	h.cmd.Stdout, h.cmd.Stderr = &h.stdout, &h.stderr
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { h.err = h.cmd.Wait(); close(h.exited) }()
	t.Cleanup(func() { cancel(); <-h.exited })
	return h
}

func (h *host) running() bool {
	select {
	case <-h.exited:
		return false
	default:
		return true
	}
}

// finish waits for the host's end and makes a subtest of each of its checks. It must end by itself, with status 0.
func (h *host) finish() {
	h.t.Helper()
	<-h.exited
	checks := 0
	seen := map[string]bool{}
	for line := range strings.Lines(h.stdout.String()) {
		line = strings.TrimSuffix(line, "\n")
		if name, ok := strings.CutPrefix(line, "ok "); ok {
			checks++
			if !seen[name] {
				seen[name] = true
				h.t.Run(name, func(*testing.T) {})
			}
		} else if rest, ok := strings.CutPrefix(line, "FAIL "); ok {
			name, why, _ := strings.Cut(rest, ": ")
			h.t.Run(name, func(t *testing.T) { t.Error(why) })
		} else {
			h.t.Log(line)
		}
	}
	if h.err != nil {
		h.t.Errorf("%s: %v", h.name, h.err)
	}
	if checks == 0 {
		h.t.Errorf("%s checked nothing", h.name)
	}
	if h.stderr.Len() > 0 {
		h.t.Errorf("%s printed to stderr:\n%s", h.name, h.stderr.String())
	}
}

// flow makes WAL until the host has ended.
func (h *host) flow(c *pg.Cluster, pause time.Duration) {
	h.t.Helper()
	for h.running() {
		c.Generate(1)
		time.Sleep(pause)
	}
	h.finish()
}

// ahead is the position n MiB after the server's own.
func ahead(c *pg.Cluster, n int) pg.LSN { return c.CurrentLSN() + pg.LSN(n)<<20 }

// same compares a directory with the server: all segments up to the one that holds end, and that one as .partial.
func same(t *testing.T, c *pg.Cluster, dir string, end pg.LSN) {
	t.Helper()
	files := pg.List(t, dir)
	if len(files.Other) > 0 {
		t.Errorf("%s: there should not be %q", dir, files.Other)
	}
	if partial := c.SegmentName(c.Timeline(), end) + ".partial"; len(files.Partial) != 1 || files.Partial[0] != partial {
		t.Errorf("%s: %q instead of %s", dir, files.Partial, partial)
	}
	c.CompareWithServer(dir)
	c.CheckNoHole(dir)
}

// A parent that never calls, a child per stream, grandchildren, a kill and a replacement.
func TestFork(t *testing.T) {
	t.Parallel()
	libraries := lib(t)
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	c.SQL("select pg_create_physical_replication_slot('s' || i, true) from generate_series(0, 7) i")
	folder := t.TempDir()
	end := ahead(c, 48)
	h := start(t, libraries, compile(t, "forks", libraries), c.ConnString(), folder, end.String())
	h.flow(c, 150*time.Millisecond)
	for i := range 8 {
		same(t, c, filepath.Join(folder, fmt.Sprint(i)), end)
	}
}

// One thread, an event loop, and many streams.
func TestEventLoop(t *testing.T) {
	t.Parallel()
	libraries := lib(t)
	streams, servers := 50, 1
	if long() {
		streams, servers = 1000, 4
	}
	var clusters []*pg.Cluster
	args := []string{fmt.Sprint(streams), t.TempDir()}
	for range servers {
		c := pg.New(t, pg.Options{SegmentSizeMB: 1, Conf: []string{"max_wal_senders = 250", "max_connections = 280"}})
		clusters = append(clusters, c)
		args = append(args, c.ConnString())
	}
	h := start(t, libraries, compile(t, "loop", libraries), args...)
	h.finish()
	for i := range streams {
		c := clusters[i%servers]
		same(t, c, filepath.Join(args[1], fmt.Sprint(i)), c.CurrentLSN())
	}
}

// Every signal of the host, ten thousand of them, handled in each way that there is to install a handler.
func TestSignals(t *testing.T) {
	t.Parallel()
	libraries := lib(t)
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	folder := t.TempDir()
	h := start(t, libraries, compile(t, "storm", libraries), c.ConnString(), folder, "10000")
	h.flow(c, 100*time.Millisecond)
	for i := range 16 {
		c.CompareWithServer(filepath.Join(folder, fmt.Sprint(i)))
		c.CheckNoHole(filepath.Join(folder, fmt.Sprint(i)))
	}
}

// Threads that receive, look, stop and clash, as they are and under the sanitizers. These see the host and the loader; the
// Go core has its own tests with -race.
func TestThreads(t *testing.T) {
	t.Parallel()
	libraries := lib(t)
	for name, c := range map[string]struct {
		libraries string
		flags     []string
	}{
		"plain":            {libraries, nil},
		"ThreadSanitizer":  {sanitized(t, libraries, "-fsanitize=thread"), []string{"-fsanitize=thread"}},
		"AddressSanitizer": {sanitized(t, libraries, addressSanitizer...), addressSanitizer},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cluster := pg.New(t, pg.Options{SegmentSizeMB: 1})
			folder := t.TempDir()
			h := startWith(t, c.libraries, []string{"TSAN_OPTIONS=halt_on_error=1", "ASAN_OPTIONS=detect_leaks=1"}, nil,
				compile(t, "crowd", c.libraries, c.flags...), cluster.ConnString(), folder, "10")
			h.flow(cluster, 100*time.Millisecond)
			for i := range 4 {
				cluster.CompareWithServer(filepath.Join(folder, fmt.Sprint(i)))
				cluster.CheckNoHole(filepath.Join(folder, fmt.Sprint(i)))
			}
		})
	}
}

var addressSanitizer = []string{"-fsanitize=address,undefined", "-fno-sanitize-recover=all"}

// sanitized makes a folder with the loader compiled with the sanitizer's flags, and the core as it is.
func sanitized(t *testing.T, libraries string, flags ...string) string {
	t.Helper()
	folder := t.TempDir()
	core := must(os.ReadFile(filepath.Join(libraries, "libreceivewal-core.so.1")))
	hash := regexp.MustCompile(`\(core interface \d+, headers ([0-9a-z]+)\)`).FindSubmatch(core)
	if hash == nil {
		t.Fatal("the core does not tell its version")
	}
	sources := must(filepath.Glob(filepath.Join(root, "loader/*.c")))
	command(t, compiler(), slices.Concat(cFlags, flags, []string{"-fPIC", "-shared", "-Iloader", "-DHEADER_HASH=" + string(hash[1]),
		"-Wl,-soname,libreceivewal.so.1", "-o", filepath.Join(folder, "libreceivewal.so.1")}, sources, []string{"-ldl"})...)
	for name, target := range map[string]string{
		"libreceivewal.so":        "libreceivewal.so.1",
		"libreceivewal-core.so.1": filepath.Join(libraries, "libreceivewal-core.so.1"),
	} {
		if err := os.Symlink(target, filepath.Join(folder, name)); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

// A thousand times attach, receive, detach on one connection: nothing adds up.
func TestRounds(t *testing.T) {
	t.Parallel()
	libraries := lib(t)
	rounds := 1000
	if long() {
		rounds = 10000
	}
	c, folder := pg.New(t, pg.Options{SegmentSizeMB: 1}), t.TempDir()
	c.Generate(2)
	h := start(t, libraries, compile(t, "rounds", libraries), c.ConnString(), folder, filepath.Join(libraries, "libreceivewal-core.so.1"), fmt.Sprint(rounds))
	h.finish()
	clean(t, filepath.Join(folder, "0"))
}

// clean fails the test if anything but segments and history files is in a directory, hidden or not.
func clean(t *testing.T, dir string) {
	t.Helper()
	for _, entry := range must(os.ReadDir(dir)) {
		if !regexp.MustCompile(`^[0-9A-F]{24}(\.partial)?$|^[0-9A-F]{8}\.history$`).MatchString(entry.Name()) {
			t.Errorf("%s was left in the directory", entry.Name())
		}
	}
}

// A daemon: no standard descriptors, no environment, a process title, another working directory.
func TestDaemon(t *testing.T) {
	t.Parallel()
	libraries := lib(t)
	c, folder := pg.New(t, pg.Options{SegmentSizeMB: 1}), t.TempDir()
	h := start(t, libraries, compile(t, "daemon", libraries), c.ConnString(), folder, "4")
	h.flow(c, 50*time.Millisecond)
	c.CompareWithServer(filepath.Join(folder, "0"))
	c.CheckNoHole(filepath.Join(folder, "0"))
	clean(t, filepath.Join(folder, "0"))
}

// Valgrind watches a host and the loader: no error, and nothing lost. tests/valgrind.supp is for what the Go runtime does.
func TestValgrind(t *testing.T) {
	t.Parallel()
	libraries := lib(t)
	c, folder := pg.New(t, pg.Options{SegmentSizeMB: 1}), t.TempDir()
	c.Generate(2)
	log := filepath.Join(t.TempDir(), "log")
	h := startWith(t, libraries, nil, []string{"valgrind", "--log-file=" + log, "--error-exitcode=99", "--leak-check=full",
		"--errors-for-leak-kinds=definite,indirect", "--suppressions=" + filepath.Join(root, "tests/valgrind.supp")},
		compile(t, "rounds", libraries), c.ConnString(), folder, filepath.Join(libraries, "libreceivewal-core.so.1"), "20")
	h.finish()
	if text := string(must(os.ReadFile(log))); t.Failed() || !strings.Contains(text, "ERROR SUMMARY: 0 errors") {
		t.Errorf("valgrind:\n%s", text)
	}
}
