// Package capi_test checks the C API as a host sees it. It compiles the programs in tests/hosts against the public
// header and the libraries, and runs them; each line "ok NAME" or "FAIL NAME: why" that one prints is a check.
package capi_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	loaderName = "libreceivewal.so.1"
	coreName   = "libreceivewal-core.so.1"
)

var (
	root  = must(filepath.Abs("../.."))
	hosts = filepath.Join(root, "tests/hosts")
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// lib is the folder with the libraries under test.
func lib(t *testing.T) string {
	t.Helper()
	folder := os.Getenv("RECEIVEWAL_LIB")
	if folder == "" {
		folder = filepath.Join(root, "build/lib")
	}
	for _, name := range []string{loaderName, coreName, "libreceivewal.so"} {
		if _, err := os.Stat(filepath.Join(folder, name)); err != nil {
			t.Fatalf("%v: build the libraries first, or set RECEIVEWAL_LIB to their folder", err)
		}
	}
	return folder
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func cc() string {
	if cc := os.Getenv("CC"); cc != "" {
		return cc
	}
	return "cc"
}

var cFlags = []string{"-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-Iinclude"}

// compile makes a program of tests/hosts/NAME.c, linked with the loader in a folder.
func compile(t *testing.T, name, libraries string, flags ...string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), name)
	run(t, cc(), slices.Concat(cFlags,
		[]string{"-D_GNU_SOURCE", "-o", program, filepath.Join(hosts, name+".c"), "-L" + libraries, "-lreceivewal", "-ldl"}, flags)...)
	return program
}

// library compiles the loader's sources, or the fake core, with flags of the test's own.
func library(t *testing.T, output string, sources []string, flags ...string) {
	t.Helper()
	run(t, cc(), slices.Concat(cFlags, []string{"-fPIC", "-shared", "-Iloader", "-o", output}, flags, sources)...)
}

func loaderSources(t *testing.T) []string {
	t.Helper()
	sources, err := filepath.Glob(filepath.Join(root, "loader/*.c"))
	if err != nil || len(sources) == 0 {
		t.Fatalf("no sources of the loader: %v", err)
	}
	return sources
}

func symlink(t *testing.T, target, name string) {
	t.Helper()
	if err := os.Symlink(target, name); err != nil {
		t.Fatal(err)
	}
}

// copyLoader puts the loader into a folder of its own.
func copyLoader(t *testing.T, libraries string) string {
	t.Helper()
	folder := t.TempDir()
	data, err := os.ReadFile(filepath.Join(libraries, loaderName))
	if err == nil {
		err = os.WriteFile(filepath.Join(folder, loaderName), data, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return folder
}

// hashOf reads the hash of the headers that the libraries were built with from the core.
func hashOf(t *testing.T, libraries string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(libraries, coreName))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`\(core interface \d+, headers ([0-9a-z]+)\)`).FindSubmatch(data)
	if m == nil {
		t.Fatalf("%s does not tell its version", coreName)
	}
	return string(m[1])
}

// runHost runs a compiled host and makes a subtest of each of its checks. It must say something, end by itself with
// status 0, and print nothing to stderr: nor must the libraries.
func runHost(t *testing.T, program, libraries string, env []string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = t.TempDir()
	cmd.WaitDelay = 5 * time.Second // should a child of the host have stayed
	// Were the host's environment the Go runtime's too, this would make it print to stderr.
	cmd.Env = append(append(os.Environ(), "LD_LIBRARY_PATH="+libraries, "GODEBUG=gctrace=1"), env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	checks := 0
	seen := map[string]bool{}
	for line := range strings.Lines(stdout.String()) {
		line = strings.TrimSuffix(line, "\n")
		if name, ok := strings.CutPrefix(line, "ok "); ok {
			checks++
			if !seen[name] {
				seen[name] = true
				t.Run(name, func(*testing.T) {})
			}
		} else if rest, ok := strings.CutPrefix(line, "FAIL "); ok {
			name, why, _ := strings.Cut(rest, ": ")
			t.Run(name, func(t *testing.T) { t.Error(why) })
		} else {
			t.Log(line)
		}
	}
	if err != nil {
		t.Errorf("%s: %v", filepath.Base(program), err)
	}
	if checks == 0 {
		t.Errorf("%s checked nothing", filepath.Base(program))
	}
	if stderr.Len() > 0 {
		t.Errorf("%s printed to stderr:\n%s", filepath.Base(program), stderr.String())
	}
}

// TestHosts runs the hosts that need no more than the libraries.
func TestHosts(t *testing.T) {
	libraries := lib(t)
	for _, name := range []string{"arguments", "handles", "receive", "threads", "fork", "signals", "guest", "directory", "io", "reconnect"} {
		t.Run(name, func(t *testing.T) { runHost(t, compile(t, name, libraries), libraries, nil) })
	}
	t.Run("leaks", func(t *testing.T) {
		runHost(t, compile(t, "leaks", libraries), libraries, nil, filepath.Join(libraries, coreName))
	})
}

// TestExports: each library exports its API and nothing else, under its own name.
func TestExports(t *testing.T) {
	libraries := lib(t)
	header := string(must(os.ReadFile(filepath.Join(root, "include/receivewal.h"))))
	var declared []string
	for _, m := range regexp.MustCompile(`(?m)^[a-z][a-z_ ]*[ *](receivewal_[a-z_]+)\(`).FindAllStringSubmatch(header, -1) {
		declared = append(declared, m[1])
	}
	slices.Sort(declared)
	if len(declared) < 20 {
		t.Fatalf("found only %q in the header", declared)
	}
	core := []string{"alive", "begin", "cancel", "close", "confirm", "lost", "open", "progress", "reconnect", "share", "take", "taken", "usable", "version"}
	for i := range core {
		core[i] = "receivewal_core_" + core[i]
	}
	for name, want := range map[string][]string{loaderName: declared, coreName: core} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(libraries, name)
			var exported []string
			for line := range strings.Lines(run(t, "nm", "-D", "--defined-only", path)) {
				fields := strings.Fields(line)
				exported = append(exported, fields[len(fields)-1])
			}
			slices.Sort(exported)
			if !slices.Equal(exported, want) {
				t.Errorf("exports\n%q\ninstead of\n%q", exported, want)
			}
			dynamic := run(t, "readelf", "-dW", path)
			for _, part := range []string{"Library soname: [" + name + "]", "NODELETE"} {
				if !strings.Contains(dynamic, part) {
					t.Errorf("no %q in\n%s", part, dynamic)
				}
			}
			if regexp.MustCompile(`RPATH|RUNPATH|TEXTREL`).MatchString(dynamic) {
				t.Errorf("RPATH or TEXTREL in\n%s", dynamic)
			}
		})
	}
}

// TestCoreDoesNotFit: a core that is missing, that is something else or another version's is refused with its file's name.
func TestCoreDoesNotFit(t *testing.T) {
	libraries := lib(t)
	host := compile(t, "nocore", libraries)
	fake := filepath.Join(hosts, "fakecore.c")
	source := func(t *testing.T, name, text string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		name  string
		put   func(t *testing.T, path string)
		parts []string
	}{
		{"missing", func(*testing.T, string) {}, []string{"No such file"}},
		{"a text", func(t *testing.T, path string) {
			symlink(t, source(t, "text", "hello\n"), path)
		}, []string{"cannot load"}},
		{"another library", func(t *testing.T, path string) {
			library(t, path, []string{source(t, "other.c", "extern int other; int other = 1;\n")})
		}, []string{"is not libreceivewal's core"}},
		{"another version", func(t *testing.T, path string) {
			library(t, path, []string{fake}, `-DFAKE_VERSION="0.0.9 (other)"`)
		}, []string{"0.0.9 (other)", "(core interface ", loaderName + " is version"}},
		{"another build", func(t *testing.T, path string) {
			library(t, path, []string{fake}, "-DHEADER_HASH=0123456789abcdef")
		}, []string{"headers 0123456789abcdef", "headers " + hashOf(t, libraries)}},
		{"a function missing", func(t *testing.T, path string) {
			library(t, path, []string{fake}, "-DHEADER_HASH="+hashOf(t, libraries), "-Dreceivewal_core_usable=other")
		}, []string{"receivewal_core_usable"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			folder := copyLoader(t, libraries)
			c.put(t, filepath.Join(folder, coreName))
			runHost(t, host, folder, nil, append([]string{filepath.Join(folder, coreName)}, c.parts...)...)
		})
	}
}

// TestFoundBySymlink: a link to the loader in another folder leads to the core that lies beside the loader itself.
func TestFoundBySymlink(t *testing.T) {
	libraries := lib(t)
	folder := t.TempDir()
	symlink(t, filepath.Join(libraries, loaderName), filepath.Join(folder, loaderName))
	runHost(t, compile(t, "directory", libraries), folder, nil)
}

// TestPanic: a panic in the core is an error code to the host. Only a core built for this has panics to offer.
func TestPanic(t *testing.T) {
	libraries := lib(t)
	folder := copyLoader(t, libraries)
	cmd := exec.Command("go", "build", "-buildmode=c-shared", "-tags", "receivewal_panic", "-o", filepath.Join(folder, coreName), "./capi")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1", "CGO_CFLAGS=-O1 -DHEADER_HASH="+hashOf(t, libraries))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// This core comes without the runtime overlay, so it reads GODEBUG.
	runHost(t, compile(t, "panic", libraries), folder, []string{"GODEBUG="})
}

// TestSanitizers runs hosts and the loader compiled with the compiler's sanitizers: over the fake core, where these see
// every thread, and over the real one, where they see the host's and the loader's.
func TestSanitizers(t *testing.T) {
	libraries := lib(t)
	for _, c := range []struct {
		name, options string
		flags         []string
		core          string // "": the fake one
		hosts         []string
	}{
		{"thread, fake core", "TSAN_OPTIONS=halt_on_error=1", []string{"-fsanitize=thread"}, "", []string{"races"}},
		{"thread, Go core", "TSAN_OPTIONS=halt_on_error=1", []string{"-fsanitize=thread"}, filepath.Join(libraries, coreName),
			[]string{"threads", "receive"}},
		{"address, fake core", "ASAN_OPTIONS=detect_leaks=1", addressSanitizer, "", []string{"races"}},
		{"address, Go core", "ASAN_OPTIONS=detect_leaks=1", addressSanitizer, filepath.Join(libraries, coreName),
			[]string{"arguments", "handles", "receive", "threads", "io", "reconnect"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			flags := append(slices.Clone(c.flags), "-DHEADER_HASH="+hashOf(t, libraries))
			folder := t.TempDir()
			library(t, filepath.Join(folder, loaderName), loaderSources(t), append(flags, "-Wl,-soname,"+loaderName, "-ldl")...)
			symlink(t, loaderName, filepath.Join(folder, "libreceivewal.so"))
			if c.core == "" {
				library(t, filepath.Join(folder, coreName), []string{filepath.Join(hosts, "fakecore.c")}, flags...)
			} else {
				symlink(t, c.core, filepath.Join(folder, coreName))
			}
			for _, name := range c.hosts {
				t.Run(name, func(t *testing.T) {
					runHost(t, compile(t, name, folder, c.flags...), folder, []string{c.options})
				})
			}
		})
	}
}

var addressSanitizer = []string{"-fsanitize=address,undefined", "-fno-sanitize-recover=all"}

// TestHeader: the header is C11 and C++, with all warnings, by itself and included twice.
func TestHeader(t *testing.T) {
	source := filepath.Join(t.TempDir(), "header.c")
	text := `#define _POSIX_C_SOURCE 200809L
#include <receivewal.h>
#include <receivewal.h>
#include <receivewal_openssl.h>
#include <receivewal_openssl.h>
receivewal_io io = RECEIVEWAL_IO_INIT;
receivewal_connection c = RECEIVEWAL_CONNECTION_INIT;
receivewal_options o = RECEIVEWAL_OPTIONS_INIT;
receivewal_progress p = RECEIVEWAL_PROGRESS_INIT;
receivewal_system s = RECEIVEWAL_SYSTEM_INIT;
receivewal_slot l = RECEIVEWAL_SLOT_INIT;
receivewal_start_point t = RECEIVEWAL_START_POINT_INIT;
`
	if err := os.WriteFile(source, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, language := range [][]string{{"c", "-std=c11"}, {"c", "-std=c2x"}, {"c++", "-std=c++11"}, {"c++", "-std=c++20"}} {
		t.Run(strings.Join(language, " "), func(t *testing.T) {
			compiler := cc()
			if language[0] == "c++" {
				compiler = "c++"
			}
			run(t, compiler, "-x", language[0], language[1], "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-Iinclude", source)
		})
	}
}

// TestRelay tests the relay by itself: with the sanitizers, and with valgrind.
func TestRelay(t *testing.T) {
	libraries := lib(t)
	for _, c := range []struct {
		name  string
		flags []string
		under []string
	}{
		{"sanitizers", addressSanitizer, nil},
		{"valgrind", nil, []string{"--error-exitcode=9", "--leak-check=full", "--track-fds=no", "--log-file=valgrind"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			folder := t.TempDir()
			flags := slices.Concat(c.flags, []string{"-Iloader"})
			var objects []string
			for _, name := range []string{"relay", "descriptors"} {
				object := filepath.Join(folder, name+".o")
				run(t, cc(), slices.Concat(cFlags, flags, []string{"-c", "-o", object, "loader/" + name + ".c"})...)
				objects = append(objects, object)
			}
			host := compile(t, "relay", libraries, slices.Concat(flags, objects)...)
			if c.under == nil {
				runHost(t, host, libraries, nil)
				return
			}
			runHost(t, run1(t, "which", "valgrind"), libraries, nil, append(c.under, host)...)
		})
	}
}

// TestOpenSSL tests receivewal_openssl.h by itself.
func TestOpenSSL(t *testing.T) {
	libraries := lib(t)
	for name, flags := range map[string][]string{"plain": nil, "sanitizers": addressSanitizer} {
		t.Run(name, func(t *testing.T) {
			runHost(t, compile(t, "openssl", libraries, append([]string{"-lssl", "-lcrypto"}, flags...)...), libraries, nil)
		})
	}
}

// run1 is what a command prints, without the newline.
func run1(t *testing.T, name string, args ...string) string {
	t.Helper()
	return strings.TrimSpace(run(t, name, args...))
}
