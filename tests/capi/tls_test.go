package capi_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"libreceivewal/tests/pg"
)

// client compiles tests/hosts/client.c, a host with libpq and OpenSSL that tells what it sees.
func client(t *testing.T) string {
	t.Helper()
	folder := lib(t)
	include := run1(t, "pg_config", "--includedir")
	return compile(t, "client", folder, "-I"+include, "-Wl,-rpath,"+folder, "-lpq", "-lssl", "-lcrypto")
}

// said tells whether the program has printed a line that matches.
func said(p *pg.Program, line string) bool {
	return regexp.MustCompile("(?m)^" + line + "$").MatchString(p.Output())
}

func waitSaid(t *testing.T, p *pg.Program, line string) {
	t.Helper()
	pg.WaitFor(t, "the host to say "+line, func() bool { return said(p, line) || !p.Running() && said(p, line) })
}

// wantSaid fails the test unless the program has printed such a line.
func wantSaid(t *testing.T, p *pg.Program, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !said(p, line) {
			t.Errorf("the host has not said %q", line)
		}
	}
}

var tlsVersions = []string{"TLSv1.2", "TLSv1.3"}

func tlsCluster(t *testing.T, version string) *pg.Cluster {
	t.Helper()
	return pg.New(t, pg.Options{SegmentSizeMB: 1, TLS: true, Conf: []string{
		"ssl_min_protocol_version = '" + version + "'", "ssl_max_protocol_version = '" + version + "'"}})
}

func verified(c *pg.Cluster) string {
	return c.TCPConnString("sslmode=verify-full", "host=localhost", "hostaddr=127.0.0.1", "sslrootcert="+c.RootCert)
}

// TestTLS: more than 100 MB over TLS of both versions are the server's byte for byte, however the host waits; and the session is the
// host's again in the end.
func TestTLS(t *testing.T) {
	host := client(t)
	for _, version := range tlsVersions {
		t.Run(version, func(t *testing.T) {
			c := tlsCluster(t, version)
			loops := []string{"block", "wait", "epoll"}
			dirs, programs := map[string]string{}, map[string]*pg.Program{}
			for _, loop := range loops {
				dirs[loop] = t.TempDir()
				programs[loop] = pg.Run(t, host, verified(c)+" application_name="+loop, dirs[loop], "loop="+loop)
				c.WaitStreaming(loop)
			}
			end := c.Generate(110)
			for _, loop := range loops {
				c.WaitReceived(loop, end, false)
			}
			// Idle for a moment: nothing is lost, nothing spins. What does so, spins for ever.
			least := map[string]time.Duration{}
			for _, loop := range loops {
				waitSaid(t, programs[loop], "completed "+c.SegmentName(1, end-pg.LSN(c.SegmentSize)))
				least[loop] = time.Hour
			}
			const enough = 100 * time.Millisecond
			for try := 0; try < 5 && slices.Max(slices.Collect(maps.Values(least))) > enough; try++ {
				before := map[string]time.Duration{}
				for _, loop := range loops {
					before[loop] = cpuTime(t, programs[loop].PID())
				}
				time.Sleep(2 * time.Second)
				for _, loop := range loops {
					least[loop] = min(least[loop], cpuTime(t, programs[loop].PID())-before[loop])
				}
			}
			for _, loop := range loops {
				if least[loop] > enough {
					t.Errorf("%s: an idle stream uses %v of processor time in 2 s", loop, least[loop])
				}
			}
			end = c.Tick()
			for _, loop := range loops {
				p, dir := programs[loop], dirs[loop]
				c.WaitReceived(loop, end, false)
				p.Stop()
				wantSaid(t, p, "encrypted "+version+" .*", "status 70 stopped", "usable 1", "sql [0-9]+")
				if n := len(c.CompareWithServer(dir).Equal); n < 100 {
					t.Errorf("%s: only %d segments", loop, n)
				}
				c.ComparePartial(dir, 1, end)
				c.CheckNoHole(dir)
			}
		})
	}
}

// cpuTime is what a process has used so far.
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	var user, system int
	fields := strings.Fields(rest)
	fmt.Sscan(fields[11], &user)
	fmt.Sscan(fields[12], &system)
	return time.Duration(user+system) * 10 * time.Millisecond
}

// TestTLSInterrupted: a session that the server ends, politely or not, is a lost connection; the next receive continues.
func TestTLSInterrupted(t *testing.T) {
	host := client(t)
	for _, version := range tlsVersions {
		t.Run(version, func(t *testing.T) {
			c := tlsCluster(t, version)
			dir := t.TempDir()
			for _, way := range []struct {
				name string
				end  func()
				says string
			}{
				{"terminated", func() {
					// Should a status update of ours be on its way, the server's last words would be lost with its socket.
					c.WaitReceived("client", c.CurrentLSN(), false)
					c.SQL("select pg_terminate_backend(pid) from pg_stat_replication where application_name = 'client'")
				}, "status 34 .*terminating connection due to administrator command"},
				{"fast shutdown", func() { c.Restart() }, "status 34 .*terminated before stop point"},
				{"immediate shutdown", func() { c.Stop(pg.Immediate); c.Start() }, "status 34 .*"},
				{"killed", func() { c.Kill9(); c.Start() }, "status 34 .*"},
			} {
				p := pg.Run(t, host, verified(c), dir)
				c.WaitStreaming("client")
				c.Generate(5)
				way.end()
				if code := p.Wait(); code != 44 {
					t.Errorf("%s: exit code %d", way.name, code)
				}
				wantSaid(t, p, way.says, "usable 0")
			}
			p := pg.Run(t, host, verified(c), dir)
			c.WaitStreaming("client")
			end := c.Generate(5)
			c.WaitReceived("client", end, false)
			p.Stop()
			c.CompareWithServer(dir)
			c.ComparePartial(dir, 1, end)
			c.CheckNoHole(dir)
		})
	}
}

// TestTLSWithoutIO: a descriptor that carries TLS and came without receivewal_io is recognised by its first answer.
func TestTLSWithoutIO(t *testing.T) {
	host := client(t)
	for _, version := range tlsVersions {
		c := tlsCluster(t, version)
		p := pg.Run(t, host, verified(c), t.TempDir(), "io=no")
		if code := p.Wait(); code != 43 {
			t.Errorf("exit code %d", code)
		}
		wantSaid(t, p, "status 33 the server speaks TLS on this connection: .*", "usable 0")
	}
}

// TestTLSProgram: the receivewal program receives over TLS as pg_receivewal does, also with a client certificate.
func TestTLSProgram(t *testing.T) {
	program := filepath.Join(filepath.Dir(lib(t)), "bin/receivewal")
	c := pg.New(t, pg.Options{SegmentSizeMB: 1, TLS: true,
		Conf: []string{"ssl_ca_file = 'server.crt'"},
		HBA: []string{
			"hostssl all,replication certified 127.0.0.1/32 cert",
			"hostnossl all,replication certified 127.0.0.1/32 reject",
		}})
	c.SQL("create role certified replication login")
	cert, key := clientCertificate(t, c, "certified")
	first := c.CurrentLSN()
	end := c.Generate(20)
	for _, p := range []struct{ name, path string }{{"receivewal", program}, {"pg_receivewal", pg.ClientProgram(t, "pg_receivewal")}} {
		dir := t.TempDir()
		name := c.SegmentName(1, first)
		if err := os.WriteFile(filepath.Join(dir, name+".partial"), nil, 0o600); err != nil { // where to start
			t.Fatal(err)
		}
		args := []string{"-D", dir, "-n", "-E", end.String(), "-d", verified(c) + " user=certified sslcert=" + cert + " sslkey=" + key}
		pg.Run(t, p.path, args...).Succeed()
		if n := len(c.CompareWithServer(dir).Equal); n < 19 {
			t.Errorf("%s: only %d segments", p.name, n)
		}
		without := pg.Run(t, p.path, "-D", dir, "-n", "-w", "-E", end.String(), "-d", verified(c)+" user=certified")
		if code := without.Wait(); code != 1 || !strings.Contains(without.Output(), "requires a valid client certificate") {
			t.Errorf("%s without a certificate: exit code %d", p.name, code)
		}
	}
}

// clientCertificate makes a certificate for a user, signed by the server's own.
func clientCertificate(t *testing.T, c *pg.Cluster, user string) (certFile, keyFile string) {
	t.Helper()
	ca := must(tls.LoadX509KeyPair(c.RootCert, filepath.Join(c.DataDir, "server.key")))
	parent := must(x509.ParseCertificate(ca.Certificate[0]))
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2),
		Subject:      pkix.Name{CommonName: user},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
	cert := must(x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, ca.PrivateKey))
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("client.crt", "CERTIFICATE", cert), write("client.key", "PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(key)))
}

// TestStopOverTLS: a stop is quick also while data streams in.
func TestStopOverTLS(t *testing.T) {
	host := client(t)
	c := tlsCluster(t, "TLSv1.3")
	for _, loop := range []string{"block", "epoll"} {
		p := pg.Run(t, host, verified(c), t.TempDir(), "loop="+loop)
		c.WaitStreaming("client")
		done := make(chan error, 1)
		go func() {
			_, err := c.TrySQL("select count(pg_logical_emit_message(true, 'fill', repeat(md5(random()::text), 512))) from generate_series(1, 4000)")
			done <- err
		}()
		waitSaid(t, p, "completed .*")
		began := time.Now()
		p.Signal(syscall.SIGINT)
		p.Succeed()
		if d := time.Since(began); d > 9*time.Second { // the server need not be waited for, which would take 10
			t.Errorf("the stop took %v", d)
		}
		wantSaid(t, p, "usable 1", "sql [0-9]+")
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// underValgrind are the arguments for valgrind to run a host that loads the Go core.
func underValgrind(log string) []string {
	return []string{"--error-exitcode=9", "--leak-check=full", "--log-file=" + log,
		"--suppressions=" + filepath.Join(root, "tests/capi/core.supp")}
}

// TestValgrind: valgrind finds nothing in a host that receives over TLS and gets new connections, nor in the loader under it.
func TestValgrind(t *testing.T) {
	host := client(t)
	c := tlsCluster(t, "TLSv1.3")
	dir, log := t.TempDir(), filepath.Join(t.TempDir(), "valgrind")
	p := pg.Run(t, run1(t, "which", "valgrind"), append(underValgrind(log), host, verified(c), dir, "reconnect=0", "loop=epoll")...)
	c.WaitStreaming("client")
	c.Generate(3)
	c.SQL("select pg_terminate_backend(pid) from pg_stat_replication where application_name = 'client'")
	waitSaid(t, p, "asked 1 .*")
	c.WaitStreaming("client")
	end := c.Generate(3)
	c.WaitReceived("client", end, false)
	p.Signal(syscall.SIGINT)
	if code := p.Wait(); code != 0 {
		t.Errorf("exit code %d\n%s", code, must(os.ReadFile(log)))
	}
	wantSaid(t, p, "bytes [0-9]+ reconnects 1", "usable 1", "sql [0-9]+")
	c.CompareWithServer(dir)
	c.ComparePartial(dir, 1, end)
	// What was looked at: the log tells of the suppressed errors in the core.
	if text := string(must(os.ReadFile(log))); !strings.Contains(text, "ERROR SUMMARY: 0 errors") || !strings.Contains(text, "definitely lost: 0 bytes") {
		t.Errorf("valgrind:\n%s", text)
	}
	libraries := lib(t)
	log = filepath.Join(t.TempDir(), "valgrind")
	runHost(t, run1(t, "which", "valgrind"), libraries, nil, append(underValgrind(log), compile(t, "reconnect", libraries))...)
}
