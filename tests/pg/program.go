package pg

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Program is a program that runs beside the test: a receiver, pgbench. It is killed when the test ends.
type Program struct {
	t      testing.TB
	name   string
	cmd    *exec.Cmd
	output buffer
	exited chan struct{}
	err    error // set before exited is closed
}

// Run starts a program with a clean environment. Its standard output and error are collected, and shown if the test fails.
func Run(t testing.TB, path string, args ...string) *Program {
	t.Helper()
	p := &Program{t: t, name: filepath.Base(path), cmd: exec.Command(path, args...), exited: make(chan struct{})}
	p.cmd.Env = environment(os.TempDir())
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	p.cmd.WaitDelay = 30 * time.Second // a grandchild may hold the output open
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.err = p.cmd.Wait(); close(p.exited) }()
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		<-p.exited
		if t.Failed() {
			t.Logf("%s: %v, output (end):\n%s", p.cmd.Args, p.cmd.ProcessState, tailBytes(p.output.Bytes(), 8<<10))
		}
	})
	return p
}

// Wait waits until the program has ended and returns its exit code; -1 if a signal killed it.
func (p *Program) Wait() int {
	p.t.Helper()
	select {
	case <-p.exited:
	case <-time.After(Deadline):
		p.t.Fatalf("%s does not end", p.name)
	}
	var exit *exec.ExitError
	if p.err != nil && !errors.As(p.err, &exit) {
		p.t.Fatalf("%s: %v", p.name, p.err)
	}
	return p.cmd.ProcessState.ExitCode()
}

// Succeed waits until the program has ended, and fails the test if its exit code is not 0.
func (p *Program) Succeed() {
	p.t.Helper()
	if code := p.Wait(); code != 0 {
		p.t.Fatalf("%s: exit code %d", p.name, code)
	}
}

// Signal sends a signal.
func (p *Program) Signal(sig syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatal(err)
	}
}

// Stop asks the program to end with SIGINT, and fails the test if its exit code is not 0.
func (p *Program) Stop() {
	p.t.Helper()
	p.Signal(syscall.SIGINT)
	p.Succeed()
}

// Writes is how many times the program has written to files so far (syscw in /proc/PID/io). What it sends is not among it.
func (p *Program) Writes() int {
	p.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "syscw: ")
	writes, err := strconv.Atoi(strings.SplitN(rest, "\n", 2)[0])
	if err != nil {
		p.t.Fatalf("/proc/PID/io: %v", err)
	}
	return writes
}

// Kill9 kills the program and waits for its end.
func (p *Program) Kill9() {
	p.t.Helper()
	p.Signal(syscall.SIGKILL)
	p.Wait()
}

// Running says whether the program has not ended yet.
func (p *Program) Running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// PID is the program's process id.
func (p *Program) PID() int { return p.cmd.Process.Pid }

// Output is what the program has printed so far, on standard output and standard error.
func (p *Program) Output() string { return string(p.output.Bytes()) }

// buffer is a bytes.Buffer for a writer and a reader.
type buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *buffer) Bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.buf.Bytes())
}

func tailBytes(b []byte, n int) []byte {
	if len(b) > n {
		b = b[len(b)-n:]
	}
	return b
}
