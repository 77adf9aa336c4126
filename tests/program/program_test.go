// Package program holds build/bin/receivewal against Debian's pg_receivewal: the same command line is given to both, and exit
// code, output, file names and file contents are compared. What is checked follows pg_receivewal's own test suite
// (src/bin/pg_basebackup/t/020_pg_receivewal.pl) and goes beyond it where scripts rely on more.
//
// A test here fails where a program or a server is missing; none is skipped.
package program

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"libreceivewal/tests/pg"
)

// program is one of the two that are compared. Both are run under the name pg_receivewal.
type program struct {
	path string
	name string // of its directories and slots: "theirs" or "ours"
}

func theirs(t testing.TB) program {
	t.Helper()
	return program{path: pg.ClientProgram(t, "pg_receivewal"), name: "theirs"}
}

func ours(t testing.TB) program {
	t.Helper()
	link := filepath.Join(t.TempDir(), "pg_receivewal")
	if err := os.Symlink(built(t, "receivewal"), link); err != nil {
		t.Fatal(err)
	}
	return program{path: link, name: "ours"}
}

func both(t testing.TB) []program {
	t.Helper()
	return []program{theirs(t), ours(t)}
}

// built is the path of a program that build.sh makes.
func built(t testing.TB, name string) string {
	t.Helper()
	root, err := pg.Root()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(root, "build", "bin", name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v (run ./build.sh first)", err)
	}
	return path
}

// result is what a program leaves behind.
type result struct {
	code           int // -1: killed by a signal
	stdout, stderr string
}

func (r result) String() string {
	return fmt.Sprintf("exit code %d\nstdout: %s\nstderr: %s", r.code, r.stdout, r.stderr)
}

// process is a program that runs.
type process struct {
	t              testing.TB
	cmd            *exec.Cmd
	stdout, stderr lockedBuffer
	done           chan struct{}
}

// start starts the program with nothing of our environment but what is given.
func (p program) start(t testing.TB, env []string, args ...string) *process {
	t.Helper()
	cmd := exec.Command(p.path, args...)
	cmd.Env = append([]string{"LC_ALL=C", "HOME=/nonexistent"}, env...)
	return startCommand(t, cmd)
}

func startCommand(t testing.TB, cmd *exec.Cmd) *process {
	t.Helper()
	r := &process{t: t, cmd: cmd, done: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout, cmd.Stderr = &r.stdout, &r.stderr
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { cmd.Wait(); close(r.done) }()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-r.done
		if t.Failed() {
			t.Logf("%s %q: %v\n%s%s", cmd.Path, cmd.Args[1:], cmd.ProcessState, r.stdout.String(), r.stderr.String())
		}
	})
	return r
}

func (r *process) wait() result {
	r.t.Helper()
	select {
	case <-r.done:
	case <-time.After(pg.Deadline):
		r.t.Fatalf("%s %q does not end", r.cmd.Path, r.cmd.Args[1:])
	}
	// getopt_long calls the program by its full path.
	stderr := strings.ReplaceAll(r.stderr.String(), r.cmd.Path, filepath.Base(r.cmd.Path))
	return result{r.cmd.ProcessState.ExitCode(), r.stdout.String(), stderr}
}

func (r *process) signal(sig syscall.Signal) {
	r.t.Helper()
	if err := r.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		r.t.Fatal(err)
	}
}

// waitStderr waits until the program has said text.
func (r *process) waitStderr(text string) {
	r.t.Helper()
	pg.WaitFor(r.t, fmt.Sprintf("%q in %q", text, r.stderr.String()), func() bool { return strings.Contains(r.stderr.String(), text) })
}

// run starts a program and waits for its end.
func (p program) run(t testing.TB, args ...string) result {
	t.Helper()
	return p.start(t, nil, args...).wait()
}

// same runs both programs and fails the test unless they end alike.
func same(t *testing.T, args ...string) result {
	t.Helper()
	want := theirs(t).run(t, args...)
	got := ours(t).run(t, args...)
	if got != want {
		t.Errorf("%q\n got %v\nwant %v", args, got, want)
	}
	return got
}

// pair receives from one server with both programs, each into a directory and with a slot of its own, and compares.
type pair struct {
	t        *testing.T
	c        *pg.Cluster
	programs []program
	dirs     map[string]string // by program's name
}

// newPair compares where pg_receivewal 15 works with the server; with a newer one, which it refuses, it runs
// our program alone.
func newPair(t *testing.T, c *pg.Cluster) *pair {
	t.Helper()
	p := &pair{t: t, c: c, programs: both(t), dirs: map[string]string{}}
	if c.Version > 15 {
		p.programs = p.programs[1:]
	}
	for _, program := range p.programs {
		p.dirs[program.name] = t.TempDir()
	}
	return p
}

// The word slot in arguments becomes each program's own slot.
const slot = "SLOT"

func (p *pair) args(program program, args []string) []string {
	full := append(p.c.ConnArgs(), args...)
	for i, arg := range full {
		if arg == slot {
			full[i] = "slot_" + program.name
		}
	}
	return full
}

// receive runs each program into its directory, one after the other, compares how they ended, and returns that.
func (p *pair) receive(args ...string) result {
	p.t.Helper()
	var results []result
	for _, program := range p.programs {
		full := append([]string{"-D", p.dirs[program.name]}, p.args(program, args)...)
		results = append(results, p.normal(program, program.run(p.t, full...)))
	}
	return p.compare(args, results)
}

// act is receive without a directory, for --create-slot and --drop-slot.
func (p *pair) act(args ...string) result {
	p.t.Helper()
	var results []result
	for _, program := range p.programs {
		results = append(results, p.normal(program, program.run(p.t, p.args(program, args)...)))
	}
	return p.compare(args, results)
}

func (p *pair) compare(args []string, results []result) result {
	p.t.Helper()
	if len(results) == 2 && results[0] != results[1] {
		p.t.Errorf("%q\n got %v\nwant %v", args, results[1], results[0])
	}
	return results[len(results)-1]
}

var (
	// Where a program stops depends on how the server cuts its messages. pg_receivewal says why it stops once more after
	// "not renaming".
	stopped  = regexp.MustCompile(`(stopped log streaming at) [0-9A-F]+/[0-9A-F]+`)
	stopping = regexp.MustCompile(`(?m)^.*(stopped log streaming at|received interrupt signal).*\n`)
	// We quote the whole command.
	startCommandText = regexp.MustCompile(`"START_REPLICATION .*": ERROR`)
	finished         = regexp.MustCompile(`(?m)^.*finished segment at.*\n`)
	// Our check for holes warns of the wrong size too.
)

// normal removes what may differ: the directory, the slot, the exact end, and when "finished segment" is said: we say it
// once the segment is durable, while the next ones are being received.
func (p *pair) normal(program program, r result) result {
	text := strings.ReplaceAll(r.stderr, p.dirs[program.name], "DIR")
	text = strings.ReplaceAll(text, "slot_"+program.name, slot)
	text = stopped.ReplaceAllString(text, "$1 LSN")
	if says := stopping.FindAllStringIndex(text, -1); len(says) == 2 && text[says[0][0]:says[0][1]] == text[says[1][0]:] {
		text = text[:says[1][0]]
	}
	text = startCommandText.ReplaceAllString(text, `"START_REPLICATION": ERROR`)
	r.stderr = finished.ReplaceAllString(text, "") + strings.Join(finished.FindAllString(text, -1), "")
	return r
}

// ok is receive that must end with exit code 0.
func (p *pair) ok(args ...string) result {
	p.t.Helper()
	r := p.receive(args...)
	if r.code != 0 {
		p.t.Fatalf("%q: %v", args, r)
	}
	return r
}

// compareFiles compares names, sizes, permissions and, where the programs must agree, contents of the two directories, and
// all that is complete with the server's own files.
func (p *pair) compareFiles() {
	p.t.Helper()
	ours := p.dirs["ours"]
	p.c.CompareWithServer(ours)
	p.c.CheckNoHole(ours)
	theirs, compared := p.dirs["theirs"]
	if !compared {
		return
	}
	pg.CompareDirs(p.t, ours, theirs)
	if got, want := modes(p.t, ours), modes(p.t, theirs); got != want {
		p.t.Errorf("files are\n%s, want\n%s", got, want)
	}
}

// modes lists names, sizes and permissions of what is in a directory.
func modes(t testing.TB, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, fmt.Sprintf("%v %d %s\n", info.Mode(), info.Size(), entry.Name()))
	}
	return strings.Join(lines, "")
}

func exists(t testing.TB, path string) {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

func contains(t testing.TB, text string, wanted ...string) {
	t.Helper()
	for _, w := range wanted {
		if !strings.Contains(text, w) {
			t.Errorf("%q is not in\n%s", w, text)
		}
	}
}

// lockedBuffer is a bytes.Buffer for a writer and a reader.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
