package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a program that runs until it is stopped.
type process struct {
	cmd    *exec.Cmd
	output string // file
	exited chan error
}

func start(cmd *exec.Cmd) (*process, error) {
	output, err := os.CreateTemp("", "bench")
	if err != nil {
		return nil, err
	}
	defer output.Close()
	if cmd.Stdout == nil {
		cmd.Stdout = output
	}
	cmd.Stderr = output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		os.Remove(output.Name())
		return nil, err
	}
	p := &process{cmd, output.Name(), make(chan error, 1)}
	go func() { p.exited <- cmd.Wait() }()
	return p, nil
}

// stop ends it as Ctrl-C does, and wants exit code 0.
func (p *process) stop() error {
	defer os.Remove(p.output)
	p.cmd.Process.Signal(syscall.SIGINT)
	select {
	case err := <-p.exited:
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", p.cmd.Path, err, p.text())
		}
		return nil
	case <-time.After(time.Minute):
		p.cmd.Process.Kill()
		<-p.exited
		return fmt.Errorf("%s does not stop\n%s", p.cmd.Path, p.text())
	}
}

func (p *process) text() string {
	text, _ := os.ReadFile(p.output)
	return string(text)
}

// cpu is the processor time, in seconds, that a process has used in all its threads: its clock, which counts nanoseconds
// (clock_getcpuclockid).
func cpu(pid int) (float64, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &t); err != nil {
		return 0, fmt.Errorf("clock of process %d: %w", pid, err)
	}
	return float64(t.Sec) + float64(t.Nsec)/1e9, nil
}

// switchesOf counts the context switches of all threads that a process has now, and those threads.
func switchesOf(pid int) (count uint64, threads int, err error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil {
		return 0, 0, err
	}
	for _, task := range tasks {
		f, err := os.Open(task)
		if err != nil {
			continue // it has ended
		}
		threads++
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if name, value, _ := strings.Cut(lines.Text(), ":"); strings.HasSuffix(name, "voluntary_ctxt_switches") {
				n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 64)
				if err != nil {
					f.Close()
					return 0, 0, err
				}
				count += n
			}
		}
		f.Close()
	}
	return count, threads, nil
}
