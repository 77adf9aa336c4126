package pg

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// record notes that a test has passed with a server, where RECEIVEWAL_RECORD names a file: a line of major version, full version,
// segment size in MiB and test. tests/support.sh makes the table in the README of them.
func (c *Cluster) record() {
	file := os.Getenv("RECEIVEWAL_RECORD")
	if file == "" {
		return
	}
	full, err := fullVersion(c.bin)
	c.must(err)
	test, _, _ := strings.Cut(c.t.Name(), "/")
	line := fmt.Sprintf("%d\t%s\t%d\t%s.%s\n", c.Version, full, c.SegmentSize>>20, strings.TrimSuffix(filepath.Base(os.Args[0]), ".test"), test)
	c.t.Cleanup(func() {
		if c.t.Failed() {
			return
		}
		f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
		c.must(err)
		_, err = f.WriteString(line) // one write: tests of other packages do the same
		c.must(err)
		c.must(f.Close())
	})
}

// fullVersion asks the server program for its version, such as 17.5.
func fullVersion(bin string) (string, error) {
	out, err := exec.Command(filepath.Join(bin, "postgres"), "--version").Output()
	if err != nil {
		return "", err
	}
	version := regexp.MustCompile(`\(PostgreSQL\) (\d+\.\d+)`).FindSubmatch(out)
	if version == nil {
		return "", fmt.Errorf("what version is %q?", out)
	}
	return string(version[1]), nil
}

// FullVersion is the version of the server programs of a major version, such as 17.5.
func FullVersion(t testing.TB, major int) string {
	t.Helper()
	bin, err := Bin(major)
	if err != nil {
		t.Fatal(err)
	}
	version, err := fullVersion(bin)
	if err != nil {
		t.Fatal(err)
	}
	return version
}
