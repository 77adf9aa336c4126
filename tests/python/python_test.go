// Package python_test checks the Python package with /usr/bin/python3 and Debian's drivers, on real servers. It runs the scripts beside it;
// each line "ok NAME" or "FAIL NAME: why" that one prints is a check.
package python_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
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

func TestValues(t *testing.T) { script(t, "values.py") }

func TestReceive(t *testing.T) {
	t.Parallel()
	c := cluster(t, pg.Options{})
	compare(t, c, script(t, "receive.py", c.ConnString()))
}

// encrypted connects with TLS and nothing else.
func encrypted(c *pg.Cluster) string {
	return c.TCPConnString("sslmode=verify-full", "host=localhost", "hostaddr=127.0.0.1", "sslrootcert="+c.RootCert)
}

func TestTLS(t *testing.T) {
	for _, version := range []string{"TLSv1.2", "TLSv1.3"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			c := cluster(t, pg.Options{TLS: true, Conf: []string{
				"ssl_min_protocol_version = '" + version + "'", "ssl_max_protocol_version = '" + version + "'"}})
			compare(t, c, script(t, "tls.py", encrypted(c)))
		})
	}
}

// TestMoments: what may come at any moment, over both kinds of connection.
func TestMoments(t *testing.T) {
	t.Parallel()
	c := cluster(t, pg.Options{TLS: true})
	for _, name := range []string{"interrupt", "shutdown", "fork", "aio"} {
		t.Run(name, func(t *testing.T) {
			t.Run("plain", func(t *testing.T) { compare(t, c, script(t, name+".py", c.ConnString())) })
			t.Run("TLS", func(t *testing.T) { compare(t, c, script(t, name+".py", encrypted(c))) })
		})
	}
}

// run runs a command in the top folder and returns what it prints.
func run(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = root, env
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// wheel makes one into a folder, at a time, and returns its path.
func wheel(t *testing.T, folder, epoch string) string {
	t.Helper()
	version := regexp.MustCompile(`#define RECEIVEWAL_VERSION "(.*)"`).FindStringSubmatch(read(t, filepath.Join(root, "include/receivewal.h")))[1]
	out := run(t, append(os.Environ(), "SOURCE_DATE_EPOCH="+epoch), python, "python/wheel.py", version, lib(t), folder)
	return strings.TrimSpace(out)
}

// TestWheel: a wheel is the same each time, holds what it should, and runs in a clean environment without anything else.
func TestWheel(t *testing.T) {
	t.Parallel()
	one, two, other := wheel(t, t.TempDir(), ""), wheel(t, t.TempDir(), ""), wheel(t, t.TempDir(), "1700000000")
	if read(t, one) != read(t, two) || read(t, one) == read(t, other) || read(t, other) != read(t, wheel(t, t.TempDir(), "1700000000")) {
		t.Error("it is not the same for the same SOURCE_DATE_EPOCH, or the same for another")
	}
	if !regexp.MustCompile(`^receivewal-\d+\.\d+\.\d+-py3-none-linux_x86_64\.whl$`).MatchString(filepath.Base(one)) {
		t.Errorf("its name is %s", one)
	}
	dir := t.TempDir()
	venv := filepath.Join(dir, "venv")
	run(t, os.Environ(), python, "-m", "venv", venv)
	clean := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}
	run(t, clean, filepath.Join(venv, "bin/pip"), "install", "--no-index", "--disable-pip-version-check", one)
	listed := run(t, clean, filepath.Join(venv, "bin/pip"), "show", "-f", "receivewal")
	for _, part := range []string{"receivewal/libreceivewal.so.1", "receivewal/libreceivewal-core.so.1", "receivewal/py.typed", "License: BSD-3-Clause"} {
		if !strings.Contains(listed, part) {
			t.Errorf("no %q in\n%s", part, listed)
		}
	}
	// There is no driver in it, so the script brings its own.
	c := cluster(t, pg.Options{})
	c.Generate(3)
	wal := t.TempDir()
	checks(t, wal, append(clean, "WAL="+wal), filepath.Join(venv, "bin/python3"), filepath.Join(root, "tests/python/installed.py"), c.ConnString())
	compare(t, c, []string{wal})
	run(t, clean, filepath.Join(venv, "bin/pip"), "uninstall", "-y", "receivewal")
	if left, _ := filepath.Glob(filepath.Join(venv, "lib/python3*/site-packages/receivewal*")); len(left) > 0 {
		t.Errorf("uninstalled, but there are %q", left)
	}
}

// TestTypes: mypy finds nothing, also not in the examples, and tells a program that uses the package wrongly.
func TestTypes(t *testing.T) {
	t.Parallel()
	env := append(os.Environ(), "MYPYPATH=python")
	run(t, env, "mypy", "--strict", "--cache-dir="+t.TempDir(), "--python-version=3.9", "python/receivewal")
	use := filepath.Join(t.TempDir(), "use.py")
	text := `import receivewal
rw = receivewal.attach(3)
reveal_type(rw.receive("wal", slot="s", on_segment=lambda s: print(s.name)))
reveal_type(rw.identify().lsn)
rw.receive("wal", slots="s")
rw.start("wal", synchronous="yes")
rw.stream(5)
rw.stream("wal", repair="no")
`
	if err := os.WriteFile(use, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("mypy", "--strict", "--cache-dir="+t.TempDir(), use)
	cmd.Dir, cmd.Env = root, env
	out, _ := cmd.CombinedOutput()
	for _, part := range []string{`:3: note: Revealed type is "receivewal._values.Progress"`, `:4: note: Revealed type is "receivewal._values.LSN"`,
		`:5: error: Unexpected keyword argument "slots"`, `:6: error: Argument "synchronous"`, `:7: error: Argument 1`, `:8: error: Argument "repair"`,
		"Found 4 errors"} {
		if !strings.Contains(string(out), part) {
			t.Errorf("no %q in\n%s", part, out)
		}
	}
}

// TestReadme: the README's program is the example that TestExamples runs.
func TestReadme(t *testing.T) {
	block := regexp.MustCompile("(?s)```python\n(.*?)```").FindStringSubmatch(read(t, filepath.Join(root, "python/README.md")))
	if block == nil || block[1] != read(t, filepath.Join(root, "examples/embed.py")) {
		t.Error("the program in python/README.md is not examples/embed.py")
	}
	for _, name := range regexp.MustCompile(`(?m)^class (\w+)\(\w*Error`).FindAllStringSubmatch(read(t, filepath.Join(root, "python/receivewal/_values.py")), -1) {
		if !strings.Contains(read(t, filepath.Join(root, "python/README.md")), "`"+name[1]+"`") {
			t.Errorf("python/README.md does not tell of %s", name[1])
		}
	}
}

func TestExamples(t *testing.T) {
	t.Parallel()
	c := cluster(t, pg.Options{})
	env := append([]string{"/usr/bin/env"}, environment(t)[len(os.Environ()):]...)
	example := func(name string, args ...string) *pg.Program {
		t.Helper()
		return pg.Run(t, env[0], slices.Concat(env[1:], []string{python, "-u", filepath.Join(root, "examples", name)}, args)...)
	}

	t.Run("embed", func(t *testing.T) {
		dir := t.TempDir()
		p := example("embed.py", c.ConnString("application_name=embed"), dir)
		c.WaitStreaming("embed")
		name, _ := c.SwitchWAL()
		pg.WaitFor(t, "the segment", func() bool { return strings.Contains(p.Output(), name+" is complete and safe on disk, up to 0/") })
		p.Signal(syscall.SIGINT)
		if p.Wait(); !strings.Contains(p.Output(), "KeyboardInterrupt") || !strings.Contains(p.Output(), "system_identifier=") {
			t.Error(p.Output())
		}
		compare(t, c, []string{dir})
	})

	t.Run("receiver", func(t *testing.T) {
		dir := t.TempDir()
		p := example("receiver.py", "-D", dir, "-S", "example", "--create-slot", "--synchronous", "-v", "-d", c.ConnString())
		c.WaitStreaming("receiver.py")
		end := c.Generate(3)
		c.WaitReceived("receiver.py", end, true)
		c.Restart()
		c.WaitStreaming("receiver.py")
		end = c.Generate(2)
		c.WaitReceived("receiver.py", end, true)
		p.Stop() // SIGINT, and exit code 0
		c.WaitGone("receiver.py")
		p = example("receiver.py", "-D", dir, "-S", "example", "-d", c.ConnString())
		c.WaitStreaming("receiver.py")
		end = c.Tick()
		c.WaitReceived("receiver.py", end, false)
		p.Signal(syscall.SIGTERM)
		p.Succeed()
		compare(t, c, []string{dir})
		c.ComparePartial(dir, 1, end)
		refused := example("receiver.py", "-D", dir, "-n", "-S", "nowhere", "-d", c.ConnString())
		if code := refused.Wait(); code != 1 || !strings.Contains(refused.Output(), "error: ") || strings.Contains(refused.Output(), "Traceback") {
			t.Errorf("a slot that does not exist: exit code %d\n%s", code, refused.Output())
		}
		if lines := strings.Count(read(t, filepath.Join(root, "examples/receiver.py")), "\n"); lines >= 80 {
			t.Errorf("it has %d lines", lines)
		}
	})
}
