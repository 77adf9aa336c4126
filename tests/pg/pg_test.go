package pg

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Every version starts, writes WAL, survives a stop and a crash, feeds a standby, and the standby can be promoted.
func TestEveryVersion(t *testing.T) {
	for _, version := range []int{13, 14, 15, 16, 17, 18} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			c := New(t, Options{Version: version, SegmentSizeMB: 1, Conf: []string{"log_disconnections = on"}})
			if got := c.SQL("show server_version"); !strings.HasPrefix(got, fmt.Sprint(version)+".") {
				t.Errorf("version %s, want %d", got, version)
			}
			if got := c.SQL("show wal_segment_size; show log_disconnections"); got != "on" {
				t.Errorf("log_disconnections is %s", got)
			}
			before := c.CurrentLSN()
			if after := c.Generate(3); after < before+3<<20 {
				t.Errorf("3 MiB of WAL took %s to %s", before, after)
			}
			c.Restart()
			c.SQL("create table crash as select 1 as x")
			c.Kill9()
			c.Start()
			if got := c.SQL("select x from crash"); got != "1" {
				t.Errorf("after the crash: %q", got)
			}

			s := c.Standby("second")
			s.WaitReplayed(c.Generate(2))
			if !s.InRecovery() {
				t.Error("the standby is not in recovery")
			}
			s.Promote()
			s.Tick()
			if got := s.Timeline(); got != 2 {
				t.Errorf("promoted to timeline %d", got)
			}
			third := s.Standby("third")
			third.WaitReplayed(s.Tick())
			s.Configure("log_disconnections = off")
			if got := s.SQL("show log_disconnections"); got != "off" {
				t.Errorf("log_disconnections is %s", got)
			}
		})
	}
}

// A server leaves nothing behind, killed or not: a machine has only some thousand System V shared memory segments.
func TestNothingStays(t *testing.T) {
	for what, end := range map[string]func(*Cluster){
		"running":   func(*Cluster) {},
		"killed":    func(c *Cluster) { c.Kill9() },
		"restarted": func(c *Cluster) { c.Kill9(); c.Start() },
		"stopped":   func(c *Cluster) { c.Stop(Fast) },
		"crashed":   func(c *Cluster) { c.Stop(Immediate) },
	} {
		t.Run(what, func(t *testing.T) {
			var dir string
			var shm int
			t.Run("server", func(t *testing.T) {
				c := New(t, Options{})
				dir, shm = c.Dir, c.shm
				if _, err := unix.SysvShmCtl(shm, unix.IPC_STAT, new(unix.SysvShmDesc)); err != nil {
					t.Errorf("the shared memory of a running server: %v", err)
				}
				if got := c.SQL("show dynamic_shared_memory_type"); got != "mmap" {
					t.Errorf("its dynamic shared memory is %s", got)
				}
				end(c)
				if c.shm != 0 {
					shm = c.shm
				}
			})
			WaitFor(t, "its shared memory to be gone", func() bool { // with the last of the killed processes
				_, err := unix.SysvShmCtl(shm, unix.IPC_STAT, new(unix.SysvShmDesc))
				return err != nil
			})
			if _, err := os.Stat(dir); !os.IsNotExist(err) {
				t.Errorf("its folder is still there: %v", err)
			}
		})
	}
}

// The comparisons see a difference of one byte, a wrong size, a hole, and an empty directory.
func TestComparisonsFail(t *testing.T) {
	c := New(t, Options{SegmentSizeMB: 1})
	first := LSN(uint64(c.CurrentLSN()) / c.SegmentSize * c.SegmentSize)
	end := c.Generate(3)
	dir := t.TempDir()
	var names []string
	for lsn := first; lsn+LSN(c.SegmentSize) <= end; lsn += LSN(c.SegmentSize) {
		names = append(names, c.SegmentName(1, lsn))
	}
	for _, name := range names {
		must(t, copyFile(filepath.Join(c.WALDir(), name), filepath.Join(dir, name), 0o600))
	}
	last := c.SegmentName(1, end)
	must(t, copyFile(filepath.Join(c.WALDir(), last), filepath.Join(dir, last+".partial"), 0o600))

	if got := c.CompareWithServer(dir); len(got.Equal) != len(names) {
		t.Errorf("compared %v, want %v", got.Equal, names)
	}
	c.ComparePartial(dir, 1, end)
	c.CheckNoHole(dir)
	CompareDirs(t, dir, dir)
	for _, name := range names {
		c.Waldump(filepath.Join(dir, name))
	}

	for what, check := range map[string]struct {
		spoil   func(dir string)
		compare func(c *Cluster, dir string)
	}{
		"a flipped bit in a segment":    {flip(names[1], 777777), func(c *Cluster, dir string) { c.CompareWithServer(dir) }},
		"a flipped bit for pg_waldump":  {flip(names[1], 777777), func(c *Cluster, dir string) { c.Waldump(filepath.Join(dir, names[1])) }},
		"a flipped bit beside another":  {flip(names[1], 0), func(c *Cluster, other string) { CompareDirs(c.t, other, dir) }},
		"a flipped bit in the .partial": {flip(last+".partial", 0), func(c *Cluster, dir string) { c.ComparePartial(dir, 1, end) }},
		"a short segment":               {truncate(names[1]), func(c *Cluster, dir string) { c.CompareWithServer(dir) }},
		"a short .partial":              {truncate(last + ".partial"), func(c *Cluster, dir string) { c.ComparePartial(dir, 1, end) }},
		"a missing segment":             {remove(names[1]), func(c *Cluster, dir string) { c.CheckNoHole(dir) }},
		"a missing segment beside":      {remove(names[1]), func(c *Cluster, other string) { CompareDirs(c.t, other, dir) }},
		"an empty directory":            {remove("*"), func(c *Cluster, dir string) { c.CompareWithServer(dir) }},
	} {
		spoilt := t.TempDir()
		for _, name := range append(names[:len(names):len(names)], last+".partial") {
			must(t, copyFile(filepath.Join(dir, name), filepath.Join(spoilt, name), 0o600))
		}
		check.spoil(spoilt)
		record := &recorder{TB: t}
		blind := *c
		blind.t = record
		check.compare(&blind, spoilt)
		if !record.failed {
			t.Errorf("%s is not noticed", what)
		}
	}
}

// recorder notes a failure instead of failing.
type recorder struct {
	testing.TB
	failed bool
}

func (r *recorder) Errorf(string, ...any) { r.failed = true }

func flip(name string, at int) func(string) {
	return func(dir string) {
		b, _ := os.ReadFile(filepath.Join(dir, name))
		b[at] ^= 1
		os.WriteFile(filepath.Join(dir, name), b, 0o600)
	}
}

func truncate(name string) func(string) {
	return func(dir string) { os.Truncate(filepath.Join(dir, name), 8192) }
}

func remove(pattern string) func(string) {
	return func(dir string) {
		names, _ := filepath.Glob(filepath.Join(dir, pattern))
		for _, name := range names {
			os.Remove(name)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TLS is on when asked for, and TCP listens on a port of its own.
func TestTLS(t *testing.T) {
	c := New(t, Options{TLS: true, HBA: []string{"hostnossl all all 127.0.0.1/32 reject"}})
	psql := Run(t, ClientProgram(t, "psql"), "-Atc", "select ssl from pg_stat_ssl where pid = pg_backend_pid()",
		c.TCPConnString("sslmode=verify-full", "sslrootcert="+c.RootCert))
	psql.Succeed()
	if got := strings.TrimSpace(psql.Output()); got != "t" {
		t.Errorf("ssl is %q", got)
	}
	plain := Run(t, ClientProgram(t, "psql"), "-Atc", "select 1", c.TCPConnString())
	if code := plain.Wait(); code == 0 {
		t.Error("pg_hba.conf does not reject plain TCP")
	}
}
