package golang_test

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"libreceivewal/segment"
	"libreceivewal/tests/pg"
)

var (
	programOnce sync.Once
	programPath string
)

// program is examples/go, compiled.
func program(t *testing.T) string {
	t.Helper()
	programOnce.Do(func() {
		root, err := pg.Root()
		if err != nil {
			t.Fatal(err)
		}
		dir, err := os.MkdirTemp("", "receive")
		if err != nil {
			t.Fatal(err)
		}
		programPath = filepath.Join(dir, "receive")
		if out, err := exec.Command("go", "build", "-o", programPath, root+"/examples/go").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	})
	return programPath
}

func TestMain(m *testing.M) {
	code := m.Run()
	if programPath != "" {
		os.RemoveAll(filepath.Dir(programPath))
	}
	os.Exit(code)
}

// fromNow makes an empty directory in which receiving begins at the server's current segment.
func fromNow(t *testing.T, c *pg.Cluster) string {
	t.Helper()
	dir := t.TempDir()
	name := c.SegmentName(c.Timeline(), c.CurrentLSN()) + ".partial"
	if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// The program receives up to an LSN and runs a command on the connection it came by, the only one it has opened.
func TestProgram(t *testing.T) {
	for _, tls := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls=%v", tls), func(t *testing.T) {
			c := pg.New(t, pg.Options{SegmentSizeMB: 1, TLS: tls, Conf: []string{"log_connections = on"}})
			connection := c.ConnString("application_name=example")
			if tls {
				connection = c.TCPConnString("application_name=example", "sslmode=verify-full", "sslrootcert="+c.RootCert)
			}
			dir := fromNow(t, c)
			end := generate(c, 4)
			p := pg.Run(t, program(t), "-end", segment.LSN(end).String(), "-mode", "0640", connection, dir)
			p.Succeed()
			if equal := c.CompareWithServer(dir).Equal; len(equal) < 4 {
				t.Errorf("received only %v", equal)
			}
			for _, name := range pg.List(t, dir).Complete[1:] { // the first was there
				if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != fs.FileMode(0o640) {
					t.Errorf("%s has mode %v, %v", name, info.Mode(), err)
				}
			}
			if !strings.Contains(p.Output(), `msg="the connection is back"`) || !strings.Contains(p.Output(), `msg="segment completed" name=0000`) {
				t.Errorf("it prints %s", p.Output())
			}
			opened := regexp.MustCompile(`(?m)connection authorized: .*application_name=example.*$`).FindAllString(c.Log(), -1)
			if len(opened) != 1 || strings.Contains(opened[0], "SSL enabled") != tls {
				t.Errorf("it has opened %v", opened)
			}
		})
	}
}

// A signal stops it cleanly at any time, and its slot, which it has created itself, has kept what it goes on with; also
// where the server can't tell the slot's position (before 15).
func TestProgramStopsAndGoesOn(t *testing.T) {
	for _, version := range []int{13, 15} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			c := pg.New(t, pg.Options{Version: version, SegmentSizeMB: 1})
			dir := t.TempDir()
			for round := range 2 {
				p := pg.Run(t, program(t), "-slot", "example", "-synchronous", c.ConnString("application_name=example"), dir)
				c.WaitStreaming("example")
				end := generate(c, 2)
				c.WaitReceived("example", end, true)
				p.Stop()
				if !strings.Contains(p.Output(), `msg="the connection is back"`) {
					t.Errorf("round %d: it prints %s", round, p.Output())
				}
				generate(c, 1) // which nobody receives
			}
			c.CompareWithServer(dir)
			c.CheckNoHole(dir)
		})
	}
}

// What has failed is said, in one line, and the connection is used no more where it is not idle.
func TestProgramFails(t *testing.T) {
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	dir := fromNow(t, c)
	name := c.SegmentName(c.Timeline(), c.CurrentLSN())
	generate(c, 2)
	if err := os.Remove(filepath.Join(c.WALDir(), name)); err != nil {
		t.Fatal(err)
	}
	for _, f := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{c.ConnString(), dir}, 1, "take a new base backup"},
		{[]string{c.ConnString(), dir + "/nowhere"}, 1, "nowhere"},
		{[]string{"-end", "here", c.ConnString(), dir}, 2, `"here" is not an LSN`},
		{[]string{"-mode", "rw", c.ConnString(), dir}, 2, "-mode"},
		{[]string{c.ConnString()}, 2, "usage: "},
		{[]string{"host=" + dir, dir}, 1, dir},
	} {
		p := pg.Run(t, program(t), f.args...)
		if code := p.Wait(); code != f.code || !strings.Contains(p.Output(), f.want) {
			t.Errorf("%v: exit status %d\n%s", f.args, code, p.Output())
		}
	}
}

// The server may say something unasked right behind the end of the authentication, and pgx reads it along. It is not lost, and
// nothing that follows is taken for something else.
func TestProgramWithReadAhead(t *testing.T) {
	c := pg.New(t, pg.Options{SegmentSizeMB: 1, TCP: true})
	dir := fromNow(t, c)
	end := generate(c, 2)

	// Behind the first ReadyForQuery, in the same write: a ParameterStatus, complete, then one of which most is late.
	ready := []byte{'Z', 0, 0, 0, 5, 'I'}
	status := []byte("S\x00\x00\x00\x13work_mem\x004MB....\x00")
	status[4] = byte(len(status) - 1)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	injected := make(chan bool, 1)
	go func() {
		defer close(injected)
		client, err := listener.Accept()
		if err != nil {
			return
		}
		defer client.Close()
		server, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", c.Port))
		if err != nil {
			return
		}
		defer server.Close()
		go func() {
			io.Copy(server, client)
			server.Close()
		}()
		var greeting []byte
		for buffer := make([]byte, 8192); !bytes.HasSuffix(greeting, ready); {
			n, err := server.Read(buffer)
			if err != nil {
				return
			}
			greeting = append(greeting, buffer[:n]...)
		}
		greeting = append(append(greeting, status...), status[:9]...)
		if _, err := client.Write(greeting); err != nil {
			return
		}
		// The rest comes before the next answer of the server.
		buffer := make([]byte, 8192)
		n, err := server.Read(buffer)
		if err != nil {
			return
		}
		if _, err := client.Write(append(bytes.Clone(status[9:]), buffer[:n]...)); err != nil {
			return
		}
		injected <- true
		io.Copy(client, server)
	}()
	port := listener.Addr().(*net.TCPAddr).Port
	p := pg.Run(t, program(t), "-end", segment.LSN(end).String(),
		fmt.Sprintf("host=127.0.0.1 port=%d user=postgres sslmode=disable", port), dir)
	p.Succeed()
	if !<-injected || !strings.Contains(p.Output(), `msg="the connection is back"`) {
		t.Errorf("it prints %s", p.Output())
	}
	c.CompareWithServer(dir)
}
