package guest_test

import (
	"bufio"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"libreceivewal/tests/pg"
)

// A pgmoneta is the running tests/hosts/pgmoneta_like.c.
type pgmoneta struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
	folder string
}

func startPgmoneta(t *testing.T, clusters []*pg.Cluster) *pgmoneta {
	t.Helper()
	libraries := lib(t)
	m := &pgmoneta{t: t, folder: t.TempDir()}
	program := filepath.Join(t.TempDir(), "pgmoneta_like")
	command(t, compiler(), append(append([]string{}, cFlags...), "-D_GNU_SOURCE", "-o", program, "tests/hosts/pgmoneta_like.c",
		"-L"+libraries, "-Wl,-rpath,"+libraries, "-lreceivewal", "-lssl", "-lcrypto", "-lz")...)
	args := []string{m.folder}
	for i, c := range clusters {
		switch {
		case c.RootCert != "":
			// The server's own certificate is readable to its owner only.
			ca := filepath.Join(t.TempDir(), fmt.Sprint(i))
			if err := os.WriteFile(ca, must(os.ReadFile(c.RootCert)), 0o600); err != nil {
				t.Fatal(err)
			}
			args = append(args, "127.0.0.1", fmt.Sprint(c.Port), ca)
		case strings.Contains(c.TCPConnString(), "127.0.0.1") && c.Port != 5432:
			args = append(args, "127.0.0.1", fmt.Sprint(c.Port), "-")
		default:
			args = append(args, c.Dir, fmt.Sprint(c.Port), "-")
		}
	}
	m.cmd = exec.Command(program, args...)
	m.cmd.Stderr = os.Stderr
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	m.stdin = must(m.cmd.StdinPipe())
	m.stdout = bufio.NewReader(must(m.cmd.StdoutPipe()))
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-m.cmd.Process.Pid, syscall.SIGKILL)
		m.cmd.Wait()
	})
	return m
}

// A server is what the host says of one.
type server struct {
	pid                                               int
	file, written, flushed, failure                   string
	started, reconnects, segments, compressed, failed int
}

// status sends a command, and returns what the host then says of its servers.
func (m *pgmoneta) status(line string, args ...any) []server {
	m.t.Helper()
	fmt.Fprintf(m.stdin, line+"\n", args...)
	return m.read()
}

func (m *pgmoneta) read() []server {
	m.t.Helper()
	var servers []server
	for {
		line, err := m.stdout.ReadString('\n')
		if err != nil {
			m.t.Fatalf("the host says no more: %v", err)
		}
		if line == "end\n" {
			return servers
		}
		fields := map[string]string{}
		line, failure, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " error=")
		for _, field := range strings.Fields(line) {
			name, value, _ := strings.Cut(field, "=")
			fields[name] = value
		}
		number := func(name string) (n int) {
			if _, err := fmt.Sscan(fields[name], &n); err != nil {
				m.t.Fatalf("no number for %s in %q", name, line)
			}
			return n
		}
		servers = append(servers, server{number("pid"), fields["file"], fields["written"], fields["flushed"], failure,
			number("started"), number("reconnects"), number("segments"), number("compressed"), number("failed")})
	}
}

func (m *pgmoneta) wait(what string, done func([]server) bool) []server {
	m.t.Helper()
	var last []server
	defer func() {
		if m.t.Failed() {
			m.t.Logf("%+v", last)
		}
	}()
	pg.WaitFor(m.t, what, func() bool { last = m.status("status"); return done(last) })
	return last
}

// plain copies a directory of WAL, and decompresses what is compressed in it. It returns how much that was.
func plain(t *testing.T, dir string) (copied string, compressed int) {
	t.Helper()
	copied = t.TempDir()
	for _, entry := range must(os.ReadDir(dir)) {
		in := must(os.Open(filepath.Join(dir, entry.Name())))
		defer in.Close()
		var source io.Reader = in
		name, isCompressed := strings.CutSuffix(entry.Name(), ".gz")
		if isCompressed {
			source = must(gzip.NewReader(in))
			compressed++
		}
		out := must(os.OpenFile(filepath.Join(copied, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)) // not both
		defer out.Close()
		if _, err := io.Copy(out, source); err != nil {
			t.Fatalf("%s: %v", entry.Name(), err)
		}
	}
	return copied, compressed
}

// Four servers, two over TLS: what pgmoneta does with its processes happens to each of them, and every byte is the server's.
func TestPgmoneta(t *testing.T) {
	t.Parallel()
	tls := func(version string) pg.Options {
		return pg.Options{SegmentSizeMB: 1, TLS: true, Conf: []string{"ssl_min_protocol_version = '" + version + "'",
			"ssl_max_protocol_version = '" + version + "'"}, HBA: []string{"hostssl all all 127.0.0.1/32 trust", "host all all 0.0.0.0/0 reject"}}
	}
	var clusters []*pg.Cluster
	for _, o := range []pg.Options{tls("TLSv1.2"), tls("TLSv1.3"), {SegmentSizeMB: 1}, {SegmentSizeMB: 1, TCP: true}} {
		clusters = append(clusters, pg.New(t, o))
	}
	m := startPgmoneta(t, clusters)
	streaming := func() {
		t.Helper()
		for _, c := range clusters {
			c.WaitStreaming("pgmoneta")
		}
	}
	// generate has every server write, and waits until all of it is said to be here.
	generate := func(n int) {
		t.Helper()
		ends := make([]pg.LSN, len(clusters))
		for i, c := range clusters {
			ends[i] = c.Generate(n)
		}
		m.wait("all WAL to be there", func(servers []server) bool {
			for i, s := range servers {
				lsn, err := pg.ParseLSN(s.flushed)
				if err != nil || lsn < ends[i] {
					return false
				}
			}
			return true
		})
	}
	streaming()
	generate(5)

	// The main process: no thread, no environment.
	main := filepath.Join("/proc", fmt.Sprint(m.cmd.Process.Pid))
	if threads := must(os.ReadDir(filepath.Join(main, "task"))); len(threads) != 1 {
		t.Errorf("the main process has %d threads", len(threads))
	}
	if environment := strings.Trim(string(must(os.ReadFile(filepath.Join(main, "environ")))), "\x00"); environment != "" {
		t.Errorf("the main process still has %q", environment)
	}

	// A WAL child is killed, another one told to end: each gets a successor.
	before := m.status("status")
	for i, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		if err := syscall.Kill(before[i].pid, sig); err != nil {
			t.Fatal(err)
		}
	}
	m.wait("the successors", func(now []server) bool {
		return now[0].pid > 0 && now[0].pid != before[0].pid && now[1].pid > 0 && now[1].pid != before[1].pid
	})
	// A server restarts: its WAL child finds it again. Another one is taken out of service: its child sees the flag and ends.
	clusters[3].Restart()
	m.status("offline 2")
	m.wait("an end by the flag", func(now []server) bool { return now[2].pid == 0 })
	clusters[2].WaitGone("pgmoneta")
	clusters[2].Generate(3)
	if now := m.status("status")[2]; now.pid != 0 || now.failure != "" {
		t.Errorf("out of service: %+v", now)
	}
	m.status("online 2")
	streaming()
	generate(5)

	servers := m.wait("the compression", func(now []server) bool {
		for _, s := range now {
			if s.compressed+s.failed < s.segments {
				return false
			}
		}
		return now[3].reconnects > 0
	})
	for i, s := range servers {
		if want := clusters[i].SegmentName(1, clusters[i].CurrentLSN()) + ".partial"; s.file != want {
			t.Errorf("server %d: the current file is said to be %s, not %s", i, s.file, want)
		}
		if (s.started > 1) != (i < 3) {
			t.Errorf("server %d: %d WAL children", i, s.started)
		}
		if s.failed > 0 || s.segments < 8 {
			t.Errorf("server %d: %+v", i, s)
		}
	}

	if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for i, s := range m.read() {
		if s.failure != "" {
			t.Errorf("server %d: %s", i, s.failure)
		}
	}
	if err := m.cmd.Wait(); err != nil {
		t.Error(err)
	}
	for i, c := range clusters {
		dir, compressed := plain(t, filepath.Join(m.folder, fmt.Sprint(i), "wal"))
		if compressed < 8 {
			t.Errorf("server %d: only %d compressed segments", i, compressed)
		}
		same(t, c, dir, c.CurrentLSN())
	}
}
