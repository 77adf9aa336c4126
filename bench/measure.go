package main

import (
	"bufio"
	"errors"
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

// usage is what one process has used, all its threads and the children that it has waited for included.
type usage struct {
	Wall        float64 // seconds
	User        float64
	System      float64
	Written     uint64 // bytes that it has had written to disk (write_bytes in /proc/PID/io)
	Device      uint64 // bytes written to the block device meanwhile, by anybody, up to the sync at the end
	Peak        uint64 // bytes of memory at most (VmHWM)
	Switches    int64  // context switches
	Involuntary int64  // of them, those that the scheduler has forced
}

// CPU is in seconds.
func (u usage) CPU() float64 { return u.User + u.System }

// measure runs a command to its end. It is traced for one event only, its exit: there it stands still once more and its last
// figures in /proc can be read. Nothing before that is any slower.
func measure(cmd *exec.Cmd, folder string) (usage, error) {
	var u usage
	output, err := os.CreateTemp("", "bench")
	if err != nil {
		return u, err
	}
	defer os.Remove(output.Name())
	defer output.Close()
	cmd.Stdout, cmd.Stderr = output, output
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	before, err := deviceBytes(folder)
	if err != nil {
		return u, err
	}
	if err := cmd.Start(); err != nil {
		return u, err
	}
	pid := cmd.Process.Pid
	var status syscall.WaitStatus
	var rusage syscall.Rusage
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil || !status.Stopped() {
		return u, fmt.Errorf("%s does not stop at its start: %v %v", cmd.Path, status, err)
	}
	if err := syscall.PtraceSetOptions(pid, syscall.PTRACE_O_TRACEEXEC|syscall.PTRACE_O_TRACEEXIT|unix.PTRACE_O_EXITKILL); err != nil {
		return u, fmt.Errorf("ptrace: %w", err)
	}
	started := time.Now()
	for signal := 0; ; {
		if err := syscall.PtraceCont(pid, signal); err != nil {
			return u, fmt.Errorf("ptrace: %w", err)
		}
		if _, err := syscall.Wait4(pid, &status, 0, &rusage); err != nil {
			return u, fmt.Errorf("wait: %w", err)
		}
		if !status.Stopped() {
			break
		}
		signal = int(status.StopSignal())
		if status.TrapCause() > 0 { // an event, no signal
			signal = 0
		}
		if status.TrapCause() == syscall.PTRACE_EVENT_EXIT {
			u.Wall = time.Since(started).Seconds()
			if err := u.last(pid); err != nil {
				return u, err
			}
		}
	}
	cmd.Process.Release()
	unix.Sync()
	after, err := deviceBytes(folder)
	if err != nil {
		return u, err
	}
	u.Device = after - before
	u.User, u.System = seconds(rusage.Utime), seconds(rusage.Stime)
	u.Switches, u.Involuntary = rusage.Nvcsw+rusage.Nivcsw, rusage.Nivcsw
	if !status.Exited() || status.ExitStatus() != 0 {
		text, _ := os.ReadFile(output.Name())
		return u, fmt.Errorf("%s ended with code %d (-1: by a signal): %s", strings.Join(cmd.Args, " "), status.ExitStatus(), text)
	}
	if u.Peak == 0 {
		return u, fmt.Errorf("%s ended unseen", cmd.Path)
	}
	return u, nil
}

func seconds(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }

// last reads what a process leaves behind that stands at its exit.
func (u *usage) last(pid int) error {
	var err, err2 error
	u.Written, err = procNumber(pid, "io", "write_bytes")
	u.Peak, err2 = procNumber(pid, "status", "VmHWM")
	u.Peak <<= 10
	return errors.Join(err, err2)
}

// procNumber reads "name: number" out of a file of /proc/PID.
func procNumber(pid int, file, name string) (uint64, error) {
	path := fmt.Sprintf("/proc/%d/%s", pid, file)
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if n, rest, _ := strings.Cut(lines.Text(), ":"); n == name {
			number, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
			return strconv.ParseUint(number, 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", path, name)
}

// deviceBytes is how much has ever been written to the block device below a folder: the seventh number of its stat, in sectors of
// 512 bytes (Documentation/block/stat.rst in Linux). Where there is no block device, as with btrfs or tmpfs, it is 0.
func deviceBytes(folder string) (uint64, error) {
	var stat unix.Stat_t
	if err := unix.Stat(folder, &stat); err != nil {
		return 0, err
	}
	text, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(stat.Dev), unix.Minor(stat.Dev)))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text))
	if len(fields) < 7 {
		return 0, errors.New("a block device's stat of another form")
	}
	sectors, err := strconv.ParseUint(fields[6], 10, 64)
	return sectors * 512, err
}

// prepare makes a new folder for a receiver, and the machine as it was for the receiver before: nothing waits to be written, and
// memory has been touched once (the first touch is slow where a hypervisor hands it out page by page).
func prepare(dir string, memory int) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if memory == 0 {
		unix.Sync()
		return nil
	}
	touched, err := unix.Mmap(-1, 0, memory, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("%d bytes of memory: %w", memory, err)
	}
	if err := unix.Munmap(touched); err != nil {
		return err
	}
	unix.Sync()
	return nil
}

// systemCalls counts them in a run of its own, with strace: it slows down what it counts. The result is a number for each call.
func systemCalls(cmd *exec.Cmd) (map[string]float64, error) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	counts := filepath.Join(dir, "counts")
	traced := exec.Command(strace, append([]string{"-f", "-c", "-o", counts, cmd.Path}, cmd.Args[1:]...)...)
	traced.Env = cmd.Env
	if out, err := traced.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("strace: %w\n%s", err, out)
	}
	text, err := os.ReadFile(counts)
	if err != nil {
		return nil, err
	}
	return parseCounts(string(text))
}

// parseCounts reads the table of strace -c: % time, seconds, usecs/call, calls, errors (often empty), syscall.
func parseCounts(table string) (map[string]float64, error) {
	calls := map[string]float64{}
	for _, line := range strings.Split(table, "\n") {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		if n, err := strconv.ParseFloat(fields[3], 64); err == nil {
			calls[fields[len(fields)-1]] = n
		}
	}
	if calls["total"] == 0 {
		return nil, fmt.Errorf("strace -c counted nothing: %s", table)
	}
	return calls, nil
}
