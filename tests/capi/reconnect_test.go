package capi_test

import (
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"libreceivewal/tests/pg"
)

// TestReconnect: whatever ends a connection, the receive goes on over the next one, plain or encrypted, blocking or in an event
// loop, and not a byte is lost or written twice.
func TestReconnect(t *testing.T) {
	host := client(t)
	c := tlsCluster(t, "TLSv1.3")
	type receiver struct {
		name, dir string
		program   *pg.Program
	}
	var receivers []receiver
	for _, way := range []struct{ name, conninfo string }{{"plain", c.ConnString()}, {"tls", verified(c)}} {
		for _, loop := range []string{"block", "wait", "epoll"} {
			r := receiver{name: way.name + "_" + loop, dir: t.TempDir()}
			r.program = pg.Run(t, host, way.conninfo+" application_name="+r.name, r.dir, "reconnect=0", "loop="+loop)
			receivers = append(receivers, r)
		}
	}
	var end pg.LSN
	all := func() {
		t.Helper()
		for _, r := range receivers {
			c.WaitStreaming(r.name)
		}
		end = c.Generate(4)
		for _, r := range receivers {
			c.WaitReceived(r.name, end, false)
		}
	}
	all()
	breaks := []func(){
		func() { c.SQL("select pg_terminate_backend(pid) from pg_stat_replication") },
		c.Restart,
		func() { c.Stop(pg.Immediate); c.Start() },
		func() { c.Kill9(); c.Start() },
	}
	for _, breakAll := range breaks {
		breakAll()
		all()
	}
	for _, r := range receivers {
		r.program.Stop()
		wantSaid(t, r.program, `asked 1 34 \[57P01\] .*administrator command`, `asked 1 34 \[\] .*`, "status 70 stopped",
			fmt.Sprintf("bytes [0-9]+ reconnects %d", len(breaks)), "usable 1", "sql [0-9]+")
		if n := len(c.CompareWithServer(r.dir).Equal); n < 16 {
			t.Errorf("%s: only %d segments", r.name, n)
		}
		c.ComparePartial(r.dir, 1, end)
		c.CheckNoHole(r.dir)
	}
}

// proxy is between a host and a server, and fails on demand.
type proxy struct {
	address string

	mu    sync.Mutex
	pairs [][2]*net.TCPConn
	mute  bool // swallows everything, in both directions
}

func newProxy(t *testing.T, server string) *proxy {
	t.Helper()
	listener := must(net.Listen("tcp", "127.0.0.1:0"))
	p := &proxy{address: listener.Addr().String()}
	var work sync.WaitGroup
	t.Cleanup(func() { listener.Close(); p.drop(); work.Wait() })
	work.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			upstream, err := net.Dial("tcp", server)
			if err != nil {
				client.Close()
				continue
			}
			pair := [2]*net.TCPConn{client.(*net.TCPConn), upstream.(*net.TCPConn)}
			p.mu.Lock()
			p.pairs = append(p.pairs, pair)
			p.mu.Unlock()
			work.Go(func() { p.copy(pair[0], pair[1]) })
			work.Go(func() { p.copy(pair[1], pair[0]) })
		}
	})
	return p
}

func (p *proxy) copy(to, from *net.TCPConn) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		p.mu.Lock()
		mute := p.mute
		p.mu.Unlock()
		if !mute && n > 0 {
			to.Write(buffer[:n])
		}
		if err != nil {
			if !mute && err == io.EOF {
				to.CloseWrite()
			}
			return
		}
	}
}

// silence makes the connections of now half-open: neither side hears of the other any more. Later ones work.
func (p *proxy) silence() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mute = true
}

// drop resets every connection, on both sides.
func (p *proxy) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pair := range p.pairs {
		for _, conn := range pair {
			conn.SetLinger(0)
			conn.Close()
		}
	}
	p.pairs = nil
}

// through is the cluster's connection string by way of the proxy.
func (p *proxy) through(c *pg.Cluster, sslmode string) string {
	_, port, _ := net.SplitHostPort(p.address)
	return c.TCPConnString("port="+port, "sslmode="+sslmode, "application_name=client")
}

func upstream(c *pg.Cluster) string { return fmt.Sprintf("127.0.0.1:%d", c.Port) }

// TestReconnectAfterReset: a reset connection is found at once.
func TestReconnectAfterReset(t *testing.T) {
	host := client(t)
	for _, sslmode := range []string{"disable", "require"} {
		t.Run(sslmode, func(t *testing.T) {
			c := tlsCluster(t, "TLSv1.3")
			proxy := newProxy(t, upstream(c))
			dir := t.TempDir()
			p := pg.Run(t, host, proxy.through(c, sslmode), dir, "reconnect=0")
			for range 3 {
				c.WaitStreaming("client")
				end := c.Generate(3)
				c.WaitReceived("client", end, false)
				pid := c.SQL("select pid from pg_stat_replication where application_name = 'client'")
				proxy.drop()
				c.WaitFor("the lost connection's WAL sender to go", func() bool { // there may soon be another one of that name
					return c.SQL("select count(*) from pg_stat_replication where pid = "+pid) == "0"
				})
			}
			c.WaitStreaming("client")
			end := c.Tick()
			c.WaitReceived("client", end, false)
			p.Stop()
			wantSaid(t, p, `asked 1 34 \[\] could not receive data from server: .*[Cc]onnection reset by peer`, "bytes [0-9]+ reconnects 3")
			c.CompareWithServer(dir)
			c.ComparePartial(dir, 1, end)
			c.CheckNoHole(dir)
		})
	}
}

// TestReconnectAfterSilence: a server that has gone without a word is found by its silence. The slot is still held by the lost
// connection's WAL sender; the receive waits for it.
func TestReconnectAfterSilence(t *testing.T) {
	host := client(t)
	for _, sslmode := range []string{"disable", "require"} {
		t.Run(sslmode, func(t *testing.T) {
			c := tlsCluster(t, "TLSv1.3")
			c.SQL("select pg_create_physical_replication_slot('s')")
			proxy := newProxy(t, upstream(c))
			dir := t.TempDir()
			p := pg.Run(t, host, proxy.through(c, sslmode), dir, "reconnect=0", "timeout=4000", "slot=s", "synchronous=1",
				"conninfo2="+c.TCPConnString("application_name=second", "sslmode="+sslmode))
			c.WaitStreaming("client")
			end := c.Generate(3)
			c.WaitReceived("client", end, true)
			proxy.silence()
			end = c.Generate(3)
			waitSaid(t, p, `asked 1 34 \[\] no message from the server for ([4-9]|[1-9][0-9]+)(\.[0-9]+)?s`)
			waitSaid(t, p, `warning .*replication slot "s" is active for PID [0-9]+.*`)
			proxy.drop()
			c.WaitStreaming("second")
			c.WaitReceived("second", end, true)
			p.Stop()
			wantSaid(t, p, "status 70 stopped", "bytes [0-9]+ reconnects 1", "usable 1")
			c.CompareWithServer(dir)
			c.ComparePartial(dir, 1, end)
			c.CheckNoHole(dir)
		})
	}
}

// TestNoReconnect: a host that gives up gets the reason why the connection was lost; one that has no connection yet is asked again
// later; and one that gives something unusable is told so.
func TestNoReconnect(t *testing.T) {
	host := client(t)
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	for _, loop := range []string{"block", "epoll"} {
		p := pg.Run(t, host, c.ConnString(), t.TempDir(), "reconnect=2", "loop="+loop)
		c.WaitStreaming("client")
		c.Stop(pg.Fast)
		if code := p.Wait(); code != 44 {
			t.Errorf("exit code %d", code)
		}
		wantSaid(t, p, `asked 1 34 \[\] replication stream was terminated before stop point`, "unreachable .*", `asked 2 34 .*`,
			`status 34 no new connection \(the host gave up\) after: replication stream was terminated before stop point`, "usable 0")
		c.Start()
	}

	dir := t.TempDir()
	p := pg.Run(t, host, c.ConnString(), dir, "reconnect=wrong")
	c.WaitStreaming("client")
	c.Restart()
	c.WaitStreaming("client")
	end := c.Generate(3)
	c.WaitReceived("client", end, false)
	p.Stop()
	wantSaid(t, p, "warning the new connection cannot be used: descriptor [0-9]+ is not a socket", "asked 2 34 .*", "usable 1")
	c.CompareWithServer(dir)
	c.CheckNoHole(dir)

	other := pg.New(t, pg.Options{SegmentSizeMB: 1})
	p = pg.Run(t, host, c.ConnString(), t.TempDir(), "reconnect=0", "conninfo2="+other.ConnString())
	c.WaitStreaming("client")
	c.Stop(pg.Fast)
	if code := p.Wait(); code != 71 {
		t.Errorf("exit code %d with another cluster", code)
	}
	wantSaid(t, p, "status 61 .*system identifier.*", "usable 1")
}

// TestStopWithoutConnection: a stop while the receive waits for a new connection ends it at once.
func TestStopWithoutConnection(t *testing.T) {
	host := client(t)
	for _, loop := range []string{"block", "epoll"} {
		c := pg.New(t, pg.Options{SegmentSizeMB: 1})
		dir := t.TempDir()
		p := pg.Run(t, host, c.ConnString(), dir, "reconnect=0", "loop="+loop)
		c.WaitStreaming("client")
		end := c.Generate(2)
		c.WaitReceived("client", end, false)
		c.Stop(pg.Fast)
		waitSaid(t, p, "log waiting .* for a new connection, attempt 4") // 4 to 8 seconds
		began := time.Now()
		p.Signal(syscall.SIGINT)
		p.Succeed()
		if d := time.Since(began); d > 3500*time.Millisecond {
			t.Errorf("%s: the stop took %v", loop, d)
		}
		wantSaid(t, p, "status 70 stopped", "usable 0")
		c.CompareWithServer(dir)
	}
}

// TestNothingLostBeforeTheFirstWAL: a connection that is lost before any WAL came has decided where the receive starts, also
// if the server has gone on by several segments before the next one. So it is in the library and in the receivewal program.
func TestNothingLostBeforeTheFirstWAL(t *testing.T) {
	host := client(t)
	program := filepath.Join(filepath.Dir(lib(t)), "bin/receivewal")
	for _, name := range []string{"client", "receivewal"} {
		t.Run(name, func(t *testing.T) {
			c := pg.New(t, pg.Options{SegmentSizeMB: 1})
			c.Still()
			dir := t.TempDir()
			c.SwitchWAL()
			var p *pg.Program
			if name == "client" {
				p = pg.Run(t, host, c.ConnString(), dir, "reconnect=0")
			} else {
				p = pg.Run(t, program, "-D", dir, "-s", "1", "-d", c.ConnString())
			}
			c.WaitStreaming(name)
			first := c.SegmentName(1, c.CurrentLSN())
			if files := pg.List(t, dir); len(files.Partial)+len(files.Complete) > 0 {
				t.Fatalf("WAL came at once: %+v", files)
			}
			c.SQL("select pg_terminate_backend(pid) from pg_stat_replication")
			c.Generate(4)
			c.WaitStreaming(name)
			end := c.Tick()
			c.WaitReceived(name, end, false)
			p.Stop()
			if files := pg.List(t, dir); len(files.Complete) < 4 || files.Complete[0] != first {
				t.Errorf("the receive began at %s, got %s", first, strings.Join(files.Complete, " "))
			}
			c.CompareWithServer(dir)
			c.ComparePartial(dir, 1, end)
			c.CheckNoHole(dir)
		})
	}
}
