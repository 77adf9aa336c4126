// Package python_test checks the Python package with /usr/bin/python3 and Debian's drivers, on real servers. It runs the scripts beside it;
// each line "ok NAME" or "FAIL NAME: why" that one prints is a check.
package python_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"libreceivewal/tests/pg"
)

const python = "/usr/bin/python3"

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

var root = must(filepath.Abs("../.."))

// lib is the folder with the libraries under test.
func lib(t *testing.T) string {
	t.Helper()
	folder := os.Getenv("RECEIVEWAL_LIB")
	if folder == "" {
		folder = filepath.Join(root, "build/lib")
	}
	if _, err := os.Stat(filepath.Join(folder, "libreceivewal.so.1")); err != nil {
		t.Fatalf("%v: build the libraries first, or set RECEIVEWAL_LIB to their folder", err)
	}
	return folder
}

// environment is that of a script: the package as it lies in the repository, and the libraries under test.
func environment(t *testing.T) []string {
	return append(os.Environ(), "PYTHONPATH="+filepath.Join(root, "python"), "RECEIVEWAL_LIB="+lib(t), "PYTHONDONTWRITEBYTECODE=1", "PYTHONFAULTHANDLER=1")
}

// script runs one and makes a subtest of each of its checks. It must say something, end by itself with status 0, and print nothing
// to stderr: nor must the package. It returns the folders with WAL that the script has left.
func script(t *testing.T, name string, args ...string) []string {
	t.Helper()
	wal := t.TempDir()
	checks(t, wal, append(environment(t), "WAL="+wal), python, append([]string{filepath.Join(root, "tests/python", name)}, args...)...)
	return must(filepath.Glob(filepath.Join(wal, "*")))
}

func checks(t *testing.T, dir string, env []string, program string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Env = dir, env
	cmd.WaitDelay = 5 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	count := 0
	for line := range strings.Lines(stdout.String()) {
		line = strings.TrimSuffix(line, "\n")
		if name, ok := strings.CutPrefix(line, "ok "); ok {
			count++
			t.Run(name, func(*testing.T) {})
		} else if rest, ok := strings.CutPrefix(line, "FAIL "); ok {
			count++
			name, why, _ := strings.Cut(rest, ": ")
			t.Run(name, func(t *testing.T) { t.Error(why) })
		} else {
			t.Log(line)
		}
	}
	if err != nil {
		t.Errorf("%s: %v", args[0], err)
	}
	if count == 0 {
		t.Errorf("%s checked nothing", args[0])
	}
	if stderr.Len() > 0 {
		t.Errorf("%s printed to stderr:\n%s", args[0], stderr.String())
	}
}

func cluster(t *testing.T, o pg.Options) *pg.Cluster {
	t.Helper()
	o.SegmentSizeMB = 1
	return pg.New(t, o)
}

// compare compares what the scripts received with the server's own WAL.
func compare(t *testing.T, c *pg.Cluster, folders []string) {
	t.Helper()
	segments := 0
	for _, dir := range folders {
		if len(pg.List(t, dir).Complete) > 0 {
			segments += len(c.CompareWithServer(dir).Equal)
			c.CheckNoHole(dir)
		}
	}
	if segments == 0 {
		t.Error("no complete segment was received")
	}
}

func TestReceive(t *testing.T) {
	c := cluster(t, pg.Options{})
	compare(t, c, script(t, "receive.py", c.ConnString()))
}
