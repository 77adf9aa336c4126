package program

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
	"golang.org/x/sys/unix"
	"libreceivewal/tests/pg"
)

// Connection options are merged as pg_receivewal merges them; what libpq has to say is passed on.
func TestConnectionStrings(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{
		{"-d", "foo=bar"},
		{"-d", "host=/nonexistent port=1"},
		{"-d", "postgresql://u@%2Fnonexistent:1/db"},
		{"-d", "host=/nonexistent", "-h", "/nonexistent2", "-p", "7"},
		{"-d", "host=/nonexistent dbname=port=7"},
		{"-d", "host=/nonexistent replication=database"},
		{"-d", "service=nosuchservice"},
		{"-d", "host=/nonexistent port=nonsense"},
		{"-h", "/nonexistent", "-p", "x"},
		{"-h", "/nonexistent", "-E", " 1/2 "},
		{"-h", "/nonexistent", "-s", " 5 "},
		{"-h", "/nonexistent", "--status=5", "--end=1/2", "--sync"},
	} {
		t.Run(fmt.Sprint(args), func(t *testing.T) {
			if r := same(t, append([]string{"-D", dir}, args...)...); r.code != 1 {
				t.Errorf("exit code %d, want 1", r.code)
			}
		})
	}
}

// Every way to say where the server is leads to it: options, a string, an URI, the environment, a service file.
func TestWaysToConnect(t *testing.T) {
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	service := filepath.Join(t.TempDir(), "services")
	text := fmt.Sprintf("[wal]\nhost=%s\nport=%d\nuser=postgres\n", c.Dir, c.Port)
	if err := os.WriteFile(service, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	port := fmt.Sprint(c.Port)
	for _, program := range both(t) {
		for _, way := range []struct{ env, args []string }{
			{nil, c.ConnArgs()},
			{nil, []string{"-d", c.ConnString()}},
			{nil, []string{"-d", c.ConnString("dbname=nosuchdatabase", "replication=database")}},
			{nil, []string{"--dbname", fmt.Sprintf("postgresql://postgres@/db?host=%s&port=%s", c.Dir, port)}},
			{nil, []string{"-d", "port=1 user=nobody host=" + c.Dir, "-p", port, "--username=postgres"}},
			{[]string{"PGHOST=" + c.Dir, "PGPORT=" + port, "PGUSER=postgres", "PGDATABASE=nosuchdatabase"}, nil},
			{[]string{"PGSERVICEFILE=" + service}, []string{"-d", "service=wal"}},
			{[]string{"PGSERVICEFILE=" + service, "PGSERVICE=wal"}, nil},
		} {
			r := program.start(t, way.env, append([]string{"-D", t.TempDir(), "-n", "-E", "0/1"}, way.args...)...).wait()
			if r.code != 0 || r.stderr != "" {
				t.Errorf("%s %q %q: %v", program.name, way.env, way.args, r)
			}
		}
	}
}

// secret is a server that wants a password over TCP, and the arguments to get there.
func secret(t *testing.T) (*pg.Cluster, []string) {
	c := pg.New(t, pg.Options{SegmentSizeMB: 1, TCP: true, HBA: []string{
		"host all walreceiver 127.0.0.1/32 scram-sha-256", "host replication walreceiver 127.0.0.1/32 scram-sha-256"}})
	c.SQL("create role walreceiver replication login password 'open sesame'")
	return c, []string{"-h", "127.0.0.1", "-p", fmt.Sprint(c.Port), "-U", "walreceiver", "-n", "-E", "0/1"}
}

// The password comes from the environment, a password file or standard input; with -w nobody is asked.
func TestPassword(t *testing.T) {
	c, args := secret(t)
	passfile := filepath.Join(t.TempDir(), "pgpass")
	if err := os.WriteFile(passfile, fmt.Appendf(nil, "127.0.0.1:%d:replication:walreceiver:open sesame\n", c.Port), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, way := range []struct {
		env   []string
		stdin string
		args  []string
		code  int
		says  string
	}{
		{[]string{"PGPASSWORD=open sesame"}, "", nil, 0, ""},
		{[]string{"PGPASSFILE=" + passfile}, "", []string{"-w"}, 0, ""},
		{nil, "", []string{"-w"}, 1, "fe_sendauth: no password supplied\n"},
		{[]string{"PGPASSWORD=wrong"}, "", []string{"-w"}, 1, `password authentication failed for user "walreceiver"`},
		{nil, "open sesame\n", nil, 0, "Password: \n"},
		{nil, "wrong\n", nil, 1, "Password: \npg_receivewal: error: "},
		{[]string{"PGPASSWORD=wrong"}, "open sesame\n", []string{"-W"}, 0, "Password: "},
	} {
		var results []result
		for _, program := range both(t) {
			cmd := exec.Command(program.path, append(append([]string{"-D", t.TempDir()}, args...), way.args...)...)
			cmd.Env = append([]string{"LC_ALL=C", "HOME=/nonexistent"}, way.env...)
			cmd.Stdin = strings.NewReader(way.stdin)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no terminal
			results = append(results, startCommand(t, cmd).wait())
		}
		if results[0] != results[1] {
			t.Errorf("%q %q %q\n got %v\nwant %v", way.env, way.stdin, way.args, results[1], results[0])
		}
		if r := results[1]; r.code != way.code || !strings.Contains(r.stderr, way.says) {
			t.Errorf("%q %q %q: %v", way.env, way.stdin, way.args, r)
		}
	}
}

// Where standard input has ended, pg_receivewal asks again and again without a pause. We ask once.
func TestPasswordFromNobody(t *testing.T) {
	_, args := secret(t)
	cmd := exec.Command(ours(t).path, append([]string{"-D", t.TempDir()}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	r := startCommand(t, cmd).wait()
	if r.code != 1 || strings.Count(r.stderr, "Password: ") != 1 || !strings.Contains(r.stderr, "no password supplied") {
		t.Error(r)
	}
}

// terminal is a pseudo-terminal with a program on it.
type terminal struct {
	*process
	master *os.File
	seen   lockedBuffer
	closed chan struct{} // by the program, and all of it seen
}

// onTerminal starts a program with a new terminal as its controlling one, and as its standard input, output and error.
func onTerminal(t *testing.T, program program, args ...string) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	fd := int(master.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	cmd := exec.Command(program.path, args...)
	cmd.Env = []string{"LC_ALL=C", "HOME=/nonexistent"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	term := &terminal{process: startCommand(t, cmd), master: master, closed: make(chan struct{})}
	go func() { io.Copy(&term.seen, master); close(term.closed) }()
	return term
}

func (term *terminal) wait() result {
	term.t.Helper()
	r := term.process.wait()
	<-term.closed
	return r
}

func (term *terminal) expect(text string) {
	term.t.Helper()
	pg.WaitFor(term.t, fmt.Sprintf("%q on the terminal", text), func() bool { return strings.Contains(term.seen.String(), text) })
}

func (term *terminal) typeIn(text string) { io.WriteString(term.master, text) }

// A password is asked for on the terminal and not shown there.
func TestPasswordOnTerminal(t *testing.T) {
	_, args := secret(t)
	for _, program := range both(t) {
		term := onTerminal(t, program, append([]string{"-D", t.TempDir()}, args...)...)
		term.expect("Password: ")
		term.typeIn("open sesame\n")
		if r := term.wait(); r.code != 0 {
			t.Errorf("%s: %v", program.name, r)
		}
		if seen := term.seen.String(); seen != "Password: \r\n" {
			t.Errorf("%s: %q on the terminal", program.name, seen)
		}
	}
}

// --progress draws one line on a terminal, which messages replace and which is gone in the end; elsewhere it prints nothing.
func TestProgress(t *testing.T) {
	t.Parallel()
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	args := append([]string{"-D", t.TempDir(), "--progress", "-v", "-s", "1"}, c.ConnArgs()...)
	term := onTerminal(t, ours(t), args...)
	c.WaitStreaming("pg_receivewal")
	c.Generate(3)
	term.expect("\r\x1b[K0/")
	c.SwitchWAL()
	end := c.Tick()
	c.WaitReceived("pg_receivewal", end-1, false)
	term.expect("/s, up to date")
	term.typeIn("\x03")
	if r := term.wait(); r.code != 0 {
		t.Error(r)
	}
	seen := term.seen.String()
	for _, line := range strings.Split(seen, "\r\n") {
		// What stands on a line in the end is what came after the last time it was cleared.
		if at := strings.LastIndex(line, "\x1b[K"); at >= 0 {
			line = line[at+3:]
		}
		line = strings.TrimPrefix(line, "^C")
		if line != "" && !strings.HasPrefix(line, "pg_receivewal: ") {
			t.Errorf("%q is left on the terminal:\n%q", line, seen)
		}
	}

	c.WaitGone("pg_receivewal")
	quiet := ours(t).start(t, nil, append([]string{"-D", t.TempDir(), "--progress", "-s", "1"}, c.ConnArgs()...)...)
	c.WaitStreaming("pg_receivewal")
	for range 3 { // more than one event's worth
		c.WaitReceived("pg_receivewal", c.Tick(), false)
	}
	quiet.signal(syscall.SIGINT)
	if r := quiet.wait(); r.code != 0 || strings.ContainsAny(r.stderr, "\r\x1b") || strings.Contains(r.stderr, "/s, ") {
		t.Errorf("not on a terminal: %q", r)
	}
}

// Over TLS the same is received, and a certificate that cannot be trusted is refused by libpq as ever.
func TestTLS(t *testing.T) {
	c := pg.New(t, pg.Options{SegmentSizeMB: 1, TLS: true, HBA: []string{
		"hostnossl all all 127.0.0.1/32 reject", "hostnossl replication all 127.0.0.1/32 reject"}})
	p := newPair(t, c)
	first := c.SegmentName(1, c.CurrentLSN()) + ".partial"
	for _, dir := range p.dirs {
		if err := os.WriteFile(filepath.Join(dir, first), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tcp := []string{"-h", "127.0.0.1", "-n", "-v"}
	c.Generate(3)
	end := c.CurrentLSN() - 1
	for _, settings := range []string{
		"sslmode=verify-full sslrootcert=" + c.RootCert, // with the first, everything is received
		"sslmode=require",
		"",
	} {
		p.ok(append(tcp, "-d", settings, "-E", end.String())...)
	}
	p.compareFiles()
	for _, dir := range p.dirs {
		c.ComparePartial(dir, 1, end)
	}
	if r := p.receive(append(tcp, "-d", "sslmode=disable")...); r.code != 1 {
		t.Errorf("without TLS: %v", r)
	}
	if r := p.receive(append(tcp, "-d", "sslmode=verify-full sslrootcert=/nonexistent")...); r.code != 1 {
		t.Errorf("without a certificate to trust: %v", r)
	}

	// A live stream is encrypted, ends cleanly, and slots can be made over TLS too.
	args := []string{"-D", t.TempDir(), "-h", "127.0.0.1", "-p", fmt.Sprint(c.Port), "-U", "postgres", "-s", "1"}
	receiver := ours(t).start(t, nil, args...)
	c.WaitStreaming("pg_receivewal")
	c.WaitReceived("pg_receivewal", c.Tick(), false)
	if got := c.SQL("select ssl from pg_stat_ssl join pg_stat_replication using (pid)"); got != "t" {
		t.Errorf("ssl is %q", got)
	}
	receiver.signal(syscall.SIGINT)
	if r := receiver.wait(); r.code != 0 {
		t.Error(r)
	}
	if r := p.act("-h", "127.0.0.1", "--slot", slot, "--create-slot", "-d", "sslmode=require"); r.code != 0 {
		t.Error(r)
	}
}

// Servers that pg_receivewal refuses are refused in its words.
func TestRefusedServers(t *testing.T) {
	for name, parameters := range map[string]map[string]string{
		"too old":               {"server_version": "9.2.24", "integer_datetimes": "on"},
		"floats for times":      {"server_version": "9.6.24", "integer_datetimes": "off"},
		"doesn't say its times": {"server_version": "9.6.24"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			pretend(t, filepath.Join(dir, ".s.PGSQL.5432"), parameters)
			if r := same(t, "-D", dir, "-h", dir, "-p", "5432", "-U", "somebody"); r.code != 1 || !strings.HasPrefix(r.stderr, "pg_receivewal: error: ") {
				t.Error(r)
			}
		})
	}
}

// pretend listens on a Unix socket, lets everybody in with these parameters and answers every query as IDENTIFY_SYSTEM.
func pretend(t *testing.T, path string, parameters map[string]string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	serve := func(conn net.Conn) {
		defer conn.Close()
		backend := pgproto3.NewBackend(conn, conn)
		if _, err := backend.ReceiveStartupMessage(); err != nil {
			return
		}
		backend.Send(&pgproto3.AuthenticationOk{})
		for name, value := range parameters {
			backend.Send(&pgproto3.ParameterStatus{Name: name, Value: value})
		}
		for {
			backend.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
			if backend.Flush() != nil {
				return
			}
			message, err := backend.Receive()
			if _, query := message.(*pgproto3.Query); err != nil || !query {
				return
			}
			var fields []pgproto3.FieldDescription
			for _, name := range []string{"systemid", "timeline", "xlogpos", "dbname"} {
				fields = append(fields, pgproto3.FieldDescription{Name: []byte(name), DataTypeOID: 25})
			}
			backend.Send(&pgproto3.RowDescription{Fields: fields})
			backend.Send(&pgproto3.DataRow{Values: [][]byte{[]byte("7"), []byte("1"), []byte("0/1000000"), nil}})
			backend.Send(&pgproto3.CommandComplete{CommandTag: []byte("IDENTIFY_SYSTEM")})
		}
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go serve(conn)
		}
	}()
}
