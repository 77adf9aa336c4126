package capi_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"libreceivewal/tests/pg"
)

// takeover compiles tests/hosts/takeover.c, a host that has begun a conversation with the server itself.
func takeover(t *testing.T) string {
	t.Helper()
	folder := lib(t)
	return compile(t, "takeover", folder, "-I"+run1(t, "pg_config", "--includedir"), "-Wl,-rpath,"+folder, "-lpq", "-lssl", "-lcrypto")
}

// ways are the ways to a cluster that a raw host has: a Unix socket, and TLS.
func ways(c *pg.Cluster) map[string]string {
	return map[string]string{
		"plain": fmt.Sprintf("%s/.s.PGSQL.%d", c.Dir, c.Port),
		"tls":   fmt.Sprintf("127.0.0.1:%d", c.Port),
	}
}

// TestStreamOfTheHost: a stream that the host has started, and of which it has read the first messages or a part of one, goes on
// without the loss of a byte. Where it doesn't fit, it is ended and begun again at the right place.
func TestStreamOfTheHost(t *testing.T) {
	host := takeover(t)
	c := tlsCluster(t, "TLSv1.3")
	_, start := c.SwitchWAL()
	c.Generate(3)
	for name, where := range ways(c) {
		for _, test := range []struct {
			name string
			args []string
			log  string
		}{
			{"nothing read", nil, "taking over log streaming at .*"},
			{"half a header read", []string{"ahead=17"}, "taking over log streaming at .*"},
			{"a header read", []string{"ahead=30"}, "taking over log streaming at .*"},
			{"a page read", []string{"ahead=8000"}, "taking over log streaming at .*"},
			{"half a segment read", []string{"ahead=500000"}, "taking over log streaming at .*"},
			{"two segments read", []string{"ahead=2200000"}, "taking over log streaming at .*"},
			{"server not known", []string{"ahead=300000", "system=0"}, "starting log streaming at .*"},
		} {
			t.Run(name+" "+test.name, func(t *testing.T) {
				dir := t.TempDir()
				p := pg.Run(t, host, append([]string{"raw", where, dir, start.String()}, test.args...)...)
				c.WaitStreaming("takeover")
				waitSaid(t, p, "log "+test.log)
				end := c.Tick()
				c.WaitReceived("takeover", end, false)
				p.Stop()
				wantSaid(t, p, "status 70 stopped", "usable 1", "ok flags", "sql [0-9]+")
				if files := pg.List(t, dir); len(files.Complete) < 3 || files.Complete[0] != c.SegmentName(1, start) {
					t.Errorf("received %+v from %s on", files, start)
				}
				c.CompareWithServer(dir)
				c.ComparePartial(dir, 1, end)
				c.CheckNoHole(dir)

				// The directory ends elsewhere now: the same stream again does not fit.
				p = pg.Run(t, host, append([]string{"raw", where, dir, start.String()}, test.args...)...)
				waitSaid(t, p, "log starting log streaming at .*")
				end = c.Tick()
				c.WaitReceived("takeover", end, false)
				p.Stop()
				wantSaid(t, p, "usable 1", "sql [0-9]+")
				c.CompareWithServer(dir)
				c.ComparePartial(dir, 1, end)
				c.CheckNoHole(dir)
			})
		}
	}
}

// TestStreamOfLibpq: the same with libpq. It keeps what it reads ahead, so the stream must have nothing to send yet.
func TestStreamOfLibpq(t *testing.T) {
	host := takeover(t)
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	c.Still()
	_, start := c.SwitchWAL()
	dir := t.TempDir()
	p := pg.Run(t, host, "libpq", c.ConnString(), dir, start.String())
	waitSaid(t, p, "log taking over log streaming at .*")
	end := c.Generate(3)
	c.WaitReceived("takeover", end, false)
	p.Stop()
	wantSaid(t, p, "status 70 stopped", "usable 1")
	if files := pg.List(t, dir); len(files.Complete) < 3 || files.Complete[0] != c.SegmentName(1, start) {
		t.Errorf("received %+v from %s on", files, start)
	}
	c.CompareWithServer(dir)
	c.ComparePartial(dir, 1, end)
	c.CheckNoHole(dir)
}

// TestUnreadAuthentication: messages of the authentication that nobody has read, or that the host has read a part of, do not disturb.
func TestUnreadAuthentication(t *testing.T) {
	host := takeover(t)
	c := pg.New(t, pg.Options{SegmentSizeMB: 1, TLS: true})
	for name, where := range ways(c) {
		t.Run(name, func(t *testing.T) { runHost(t, host, lib(t), nil, "unread", where, ".") })
	}
}

// TestConnectionByTurns: one connection, by turns the library's and libpq's, 1000 times.
func TestConnectionByTurns(t *testing.T) {
	host := takeover(t)
	c := tlsCluster(t, "TLSv1.3")
	for name, conninfo := range map[string]string{"plain": c.ConnString(), "TCP": c.TCPConnString(), "tls": verified(c)} {
		t.Run(name, func(t *testing.T) {
			runHost(t, host, lib(t), nil, "again", conninfo, filepath.Clean(t.TempDir()), "1000")
		})
	}
}
