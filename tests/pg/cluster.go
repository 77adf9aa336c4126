// Package pg runs throwaway PostgreSQL clusters for tests: a real server in a temporary folder, on a Unix socket, gone when
// the test ends, however it ends. It also compares directories of received WAL with what the server itself has, and runs
// programs beside it.
//
// Versions 13 to 18 are there; tests/servers.sh finds or fetches them. As root the servers run as user postgres,
// otherwise as ourselves. The package must never skip a test: without a server, New fails it.
package pg

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Deadline bounds everything that the package waits for. It is only ever reached by a failure, so it is generous.
const Deadline = 300 * time.Second

// Options describe a cluster. The zero value is a PostgreSQL 15 with 16 MiB segments on a Unix socket.
type Options struct {
	Version       int      // major version, 13 to 18; 0: 15
	SegmentSizeMB int      // wal_segment_size in MiB; 0: 16
	GroupAccess   bool     // initdb --allow-group-access: data_directory_mode 0750
	Conf          []string // lines for postgresql.conf, "name = value"
	HBA           []string // lines for pg_hba.conf, ahead of "trust everybody local"
	TCP           bool     // listen on 127.0.0.1 too
	TLS           bool     // TCP with TLS, see RootCert; plain TCP is still allowed unless HBA refuses it
}

// Cluster is one PostgreSQL server and its data. Its methods fail the test that it was made for; those that
// begin with Try return an error instead and may be called from any goroutine.
type Cluster struct {
	Version     int
	SegmentSize uint64 // bytes
	Dir         string // the folder of everything, and of the Unix socket: what libpq calls host
	DataDir     string
	Port        int
	RootCert    string // with TLS: the certificate to trust, valid for localhost and 127.0.0.1

	t      testing.TB
	bin    string
	tcp    bool
	server *exec.Cmd
	exited chan struct{} // closed once server has exited
	shm    int           // id of the System V shared memory that the server has, and leaves behind when it is killed; 0: none
}

// New makes a cluster and starts it.
func New(t testing.TB, o Options) *Cluster {
	t.Helper()
	if o.Version == 0 {
		o.Version = 15
	}
	if o.SegmentSizeMB == 0 {
		o.SegmentSizeMB = 16
	}
	c := prepare(t, o.Version, uint64(o.SegmentSizeMB)<<20, o.TCP || o.TLS)

	args := []string{"--pgdata", c.DataDir, "--username", "postgres", "--auth", "trust", "--encoding", "UTF8", "--no-locale",
		"--no-sync", "--wal-segsize", strconv.Itoa(o.SegmentSizeMB)}
	if o.GroupAccess {
		args = append(args, "--allow-group-access")
	}
	if out, err := c.command("initdb", args...).CombinedOutput(); err != nil {
		t.Fatalf("initdb of PostgreSQL %d: %v\n%s", o.Version, err, out)
	}

	// A test wants every byte of WAL to stay for comparison, a server that starts and stops quickly, and
	// nothing that writes WAL or checkpoints by itself.
	conf := []string{
		"wal_level = replica",
		"max_wal_senders = 20",
		"max_replication_slots = 20",
		"wal_keep_size = '1TB'",
		"max_wal_size = '16GB'",
		"wal_recycle = off",
		"wal_init_zero = off",
		"checkpoint_timeout = '1h'",
		"autovacuum = off",
		"fsync = off",
		"shared_buffers = '32MB'",
		"dynamic_shared_memory_type = mmap", // files in the data directory, which go with it, also after a kill
		"log_min_messages = info",
		"log_replication_commands = on",
		"log_line_prefix = '%m [%p] %a '",
		"timezone = 'UTC'",
		"log_timezone = 'UTC'",
	}
	if o.TLS {
		c.RootCert = c.makeCertificate()
		conf = append(conf, "ssl = on")
	}
	c.appendFile("postgresql.conf", append(conf, o.Conf...))
	if len(o.HBA) > 0 {
		hba := filepath.Join(c.DataDir, "pg_hba.conf")
		old, err := os.ReadFile(hba)
		c.must(err)
		c.must(os.WriteFile(hba, []byte(strings.Join(o.HBA, "\n")+"\n"+string(old)), 0o600))
	}
	c.Start()
	c.record()
	return c
}

// prepare makes the folder of a cluster, without data, and arranges for its end.
func prepare(t testing.TB, version int, segmentSize uint64, tcp bool) *Cluster {
	t.Helper()
	bin, err := Bin(version)
	if err != nil {
		t.Fatal(err)
	}
	// Not t.TempDir(): a socket's path may have 107 bytes at most, and the user of the server must get there.
	dir, err := os.MkdirTemp("/tmp", "receivewal-pg-")
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{Version: version, SegmentSize: segmentSize, Dir: dir, DataDir: filepath.Join(dir, "data"), Port: 5432, t: t, bin: bin, tcp: tcp}
	c.must(own(dir))
	c.must(os.Chmod(dir, 0o755))
	if tcp {
		c.Port = c.freePort()
	}
	release := c.guard()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("server log of %s (end):\n%s", dir, tail(filepath.Join(dir, "log"), 16<<10))
		}
		c.kill()
		c.removeSharedMemory()
		os.RemoveAll(dir)
		release()
	})
	return c
}

// guard starts a shell that outlives us by a moment: should this process be killed, the shell's standard input ends, and it
// stops the server and removes its folder. The function that it returns ends it after a regular clean-up.
func (c *Cluster) guard() func() {
	script := `read -r word; [ "$word" = done ] && exit
kill -QUIT "$(head -n 1 "$1/data/postmaster.pid")" 2>/dev/null; sleep 2
read -r _ shm <<END
$(sed -n 7p "$1/data/postmaster.pid" 2>/dev/null)
END
[ -z "$shm" ] || ipcrm -m "$shm"
rm -rf "$1"`
	shell := exec.Command("/bin/sh", "-c", script, "guard", c.Dir)
	shell.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := shell.StdinPipe()
	c.must(err)
	c.must(shell.Start())
	return func() {
		io.WriteString(in, "done\n")
		in.Close()
		shell.Wait()
	}
}

// Start starts the server and waits until it accepts connections. After a crash that includes recovery.
func (c *Cluster) Start() {
	c.t.Helper()
	for try := 1; ; try++ {
		err := c.start()
		if err == nil {
			return
		}
		// Somebody may have taken the free port, or a child of a killed server may still hold its shared memory.
		if try == 20 {
			c.t.Fatalf("starting PostgreSQL %d: %v\n%s", c.Version, err, tail(filepath.Join(c.Dir, "log"), 4<<10))
		}
		time.Sleep(250 * time.Millisecond)
	}
}

func (c *Cluster) start() error {
	log, err := os.OpenFile(filepath.Join(c.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	listen := ""
	if c.tcp {
		listen = "127.0.0.1"
	}
	server := c.command("postgres", "-D", c.DataDir, "-k", c.Dir, "-p", strconv.Itoa(c.Port), "-c", "listen_addresses="+listen)
	server.Stdout, server.Stderr = log, log
	if err := server.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() { server.Wait(); close(exited) }()
	c.server, c.exited = server, exited

	// The eighth line of postmaster.pid is the state, as pg_ctl reads it (wait_for_postmaster in pg_ctl.c); the seventh has key
	// and id of the shared memory (CreateLockFile in miscinit.c).
	for end := time.Now().Add(Deadline); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		select {
		case <-exited:
			return errors.New("the server ended at once")
		default:
		}
		text, _ := os.ReadFile(filepath.Join(c.DataDir, "postmaster.pid"))
		lines := strings.Split(string(text), "\n")
		if len(lines) >= 8 && lines[0] == strconv.Itoa(server.Process.Pid) && strings.TrimSpace(lines[7]) == "ready" {
			var key int
			if _, err := fmt.Sscan(lines[6], &key, &c.shm); err != nil {
				return fmt.Errorf("the shared memory in postmaster.pid, %q: %w", lines[6], err)
			}
			return nil
		}
	}
	return errors.New("the server does not get ready")
}

// How a server is told to stop, as in pg_ctl -m.
const (
	Smart     = syscall.SIGTERM // waits for clients
	Fast      = syscall.SIGINT  // disconnects clients, after the WAL senders have sent everything
	Immediate = syscall.SIGQUIT // like a crash
)

// Stop stops the server and waits until it has ended.
func (c *Cluster) Stop(mode syscall.Signal) {
	c.t.Helper()
	c.must(c.server.Process.Signal(mode))
	c.waitExit()
	c.shm = 0
}

// Restart stops the server in fast mode and starts it again.
func (c *Cluster) Restart() {
	c.t.Helper()
	c.Stop(Fast)
	c.Start()
}

// Kill9 kills the server and all its children at once, like the machine's memory killer.
func (c *Cluster) Kill9() {
	c.t.Helper()
	c.kill()
}

// Running says whether the server runs.
func (c *Cluster) Running() bool {
	if c.server == nil {
		return false
	}
	select {
	case <-c.exited:
		return false
	default:
		return true
	}
}

func (c *Cluster) kill() {
	if !c.Running() {
		return
	}
	children := childrenOf(c.server.Process.Pid)
	c.server.Process.Kill()
	for _, pid := range children {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	<-c.exited
}

// removeSharedMemory does what a killed server could not do, and the next start in its data directory would: some thousand
// left behind are all that a machine can have (SHMMNI).
func (c *Cluster) removeSharedMemory() {
	if c.shm == 0 {
		return
	}
	_, err := unix.SysvShmCtl(c.shm, unix.IPC_RMID, nil)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EIDRM) { // it is gone
		c.t.Errorf("removing the shared memory of PostgreSQL %d: %v", c.Version, err)
	}
	c.shm = 0
}

func (c *Cluster) waitExit() {
	c.t.Helper()
	select {
	case <-c.exited:
	case <-time.After(Deadline):
		c.t.Fatalf("PostgreSQL %d does not stop", c.Version)
	}
}

// Configure adds lines to postgresql.conf and has the server read them.
func (c *Cluster) Configure(lines ...string) {
	c.t.Helper()
	c.appendFile("postgresql.conf", lines)
	if !c.Running() {
		return
	}
	before := c.SQL("select pg_conf_load_time()")
	c.must(c.server.Process.Signal(syscall.SIGHUP))
	c.WaitFor("the server to read its configuration", func() bool { return c.SQL("select pg_conf_load_time()") != before })
}

// ConnString is a libpq connection string for the Unix socket. More settings can be added, "replication=true".
func (c *Cluster) ConnString(more ...string) string {
	return c.connString(c.Dir, "disable", more)
}

// TCPConnString is one for 127.0.0.1, without TLS unless sslmode is added.
func (c *Cluster) TCPConnString(more ...string) string {
	return c.connString("127.0.0.1", "disable", more)
}

func (c *Cluster) connString(host, sslmode string, more []string) string {
	words := append([]string{"host=" + host, "port=" + strconv.Itoa(c.Port), "user=postgres", "dbname=postgres", "sslmode=" + sslmode}, more...)
	return strings.Join(words, " ")
}

// ConnArgs are the same settings as options of PostgreSQL's programs: -h, -p, -U.
func (c *Cluster) ConnArgs() []string {
	return []string{"-h", c.Dir, "-p", strconv.Itoa(c.Port), "-U", "postgres"}
}

// Log returns what the server has logged so far.
func (c *Cluster) Log() string {
	text, _ := os.ReadFile(filepath.Join(c.Dir, "log"))
	return string(text)
}

// PID is the process id of the postmaster.
func (c *Cluster) PID() int { return c.server.Process.Pid }

// WaitFor polls until done returns true, and fails the test if that takes longer than Deadline.
func (c *Cluster) WaitFor(what string, done func() bool) {
	c.t.Helper()
	WaitFor(c.t, what, done)
}

// WaitFor polls until done returns true, and fails the test if that takes longer than Deadline.
func WaitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(Deadline); ; time.Sleep(20 * time.Millisecond) {
		if done() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("waited %v in vain for %s", Deadline, what)
		}
	}
}

// Bin returns the folder of the server programs of a major version.
func Bin(version int) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	script := exec.Command("bash", filepath.Join(root, "tests", "servers.sh"), strconv.Itoa(version))
	var stderr strings.Builder
	script.Stderr = &stderr
	out, err := script.Output()
	if err != nil {
		return "", fmt.Errorf("no PostgreSQL %d: %w\n%s", version, err, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}

// ClientProgram returns the path of a client program of PostgreSQL 15: pgbench, pg_receivewal, pg_waldump, psql.
func ClientProgram(t testing.TB, name string) string {
	t.Helper()
	bin, err := Bin(15)
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(bin, name)
}

// Root returns the top folder of the repository: the one above the working directory that holds go.mod.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("no go.mod above the working directory")
}

// credential is that of the user who runs servers: postgres where we are root, else nil for ourselves.
func credential() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL does not run as root: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

// command is a program of the server, as the user of the server, in a session of its own so that Ctrl-C at a terminal
// reaches only the tests.
func (c *Cluster) command(name string, args ...string) *exec.Cmd {
	c.t.Helper()
	cred, err := credential()
	c.must(err)
	cmd := exec.Command(filepath.Join(c.bin, name), args...)
	cmd.Dir = c.Dir
	cmd.Env = environment(c.Dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred, Setsid: true}
	return cmd
}

// environment is the same everywhere: nothing of the caller's PG* variables or locale.
func environment(home string) []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "LC_ALL=C.UTF-8", "TZ=UTC"}
}

func (c *Cluster) appendFile(name string, lines []string) {
	c.t.Helper()
	f, err := os.OpenFile(filepath.Join(c.DataDir, name), os.O_APPEND|os.O_WRONLY, 0)
	c.must(err)
	_, err = f.WriteString(strings.Join(lines, "\n") + "\n")
	c.must(err)
	c.must(f.Close())
}

func (c *Cluster) freePort() int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	c.must(err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (c *Cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// childrenOf lists the processes whose parent is pid.
func childrenOf(pid int) []int {
	var children []int
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, stat := range stats {
		text, _ := os.ReadFile(stat)
		// pid (name) state ppid …, where name may contain anything.
		_, rest, _ := strings.Cut(string(text), ") ")
		fields := strings.Fields(rest)
		if len(fields) > 1 && fields[1] == strconv.Itoa(pid) {
			child, _ := strconv.Atoi(filepath.Base(filepath.Dir(stat)))
			children = append(children, child)
		}
	}
	return children
}

// tail returns at most n bytes from the end of a file.
func tail(path string, n int) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	if len(text) > n {
		text = text[len(text)-n:]
	}
	return string(text)
}
