package build

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"libreceivewal/segment"
	"libreceivewal/tests/pg"
)

// packages are what ./build.sh package makes in a folder.
type packages struct{ folder, tarball, deb string }

func packagesIn(t *testing.T, dir string) packages {
	t.Helper()
	folder := filepath.Join(dir, "build", "package")
	debs, _ := filepath.Glob(folder + "/*.deb")
	tarballs, _ := filepath.Glob(folder + "/*.tar.gz")
	if len(debs) != 1 || len(tarballs) != 1 {
		t.Fatalf("made %v and %v", debs, tarballs)
	}
	return packages{folder, tarballs[0], debs[0]}
}

var packageOnce sync.Once

// made are the packages of the repository.
func made(t *testing.T) packages {
	t.Helper()
	packageOnce.Do(func() {
		must(t, os.RemoveAll(filepath.Join(root(t), "build", "package")))
		run(t, root(t), nil, "./build.sh", "package")
	})
	return packagesIn(t, root(t))
}

func sum(t *testing.T, path string) string {
	t.Helper()
	return fmt.Sprintf("%x", sha256.Sum256([]byte(read(t, path))))
}

// The tarball has the repository's files, and what else is needed to make the same packages of it, to the byte: in
// another folder, without git, without a network, with another umask and at another time.
func TestPackagesAreReproducible(t *testing.T) {
	first := made(t)
	name := "receivewal-" + version(t)
	if got := filepath.Base(first.tarball); got != name+".tar.gz" {
		t.Errorf("the tarball is %s", got)
	}
	var have []string
	for header := range members(t, first.tarball) {
		file, found := strings.CutPrefix(header.Name, name+"/")
		if !found || header.Uid != 0 || header.Gid != 0 || header.Uname+header.Gname != "" {
			t.Errorf("%s of %d:%d", header.Name, header.Uid, header.Gid)
		}
		if header.Typeflag == tar.TypeReg && !strings.HasPrefix(file, "vendor/") {
			have = append(have, file)
		}
	}
	want := sources(t)
	if _, err := os.Stat(filepath.Join(root(t), ".git")); err == nil { // and not a tarball itself
		want = strings.Split(strings.TrimRight(run(t, root(t), nil, "git", "-c", "safe.directory=*", "ls-files", "-z"), "\x00"), "\x00")
	}
	slices.Sort(have)
	if slices.Sort(want); !slices.Equal(have, want) {
		t.Errorf("the tarball has\n%v\nthe repository\n%v", have, want)
	}

	other := filepath.Join(t.TempDir(), "another folder")
	must(t, os.Mkdir(other, 0o755))
	run(t, other, nil, "tar", "-xf", first.tarball)
	dir := filepath.Join(other, name)
	run(t, dir, []string{"GOPROXY=off", "GOMODCACHE=" + t.TempDir(), "TZ=Asia/Kolkata", "LC_ALL=C.UTF-8", "PATH=" + os.Getenv("PATH")},
		"sh", "-c", "umask 077 && exec ./build.sh package")
	second := packagesIn(t, dir)
	for _, pair := range [][2]string{
		{first.tarball, second.tarball},
		{first.deb, second.deb},
		{first.folder + "/" + name + "/build/lib/libreceivewal.so.1", second.folder + "/" + name + "/build/lib/libreceivewal.so.1"},
		{first.folder + "/" + name + "/build/lib/libreceivewal-core.so.1", second.folder + "/" + name + "/build/lib/libreceivewal-core.so.1"},
		{first.folder + "/" + name + "/build/bin/receivewal", second.folder + "/" + name + "/build/bin/receivewal"},
	} {
		if sum(t, pair[0]) != sum(t, pair[1]) {
			t.Errorf("%s and %s differ", pair[0], pair[1])
		}
	}
}

// members are the headers of what is in a .tar.gz.
func members(t *testing.T, path string) func(func(*tar.Header) bool) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	z, err := gzip.NewReader(f)
	must(t, err)
	r := tar.NewReader(z)
	return func(yield func(*tar.Header) bool) {
		for {
			header, err := r.Next()
			if errors.Is(err, io.EOF) {
				return
			}
			must(t, err)
			if !yield(header) {
				return
			}
		}
	}
}

// The package has what an installation has, where Debian wants it; lintian finds nothing to say; it serves pkg-config and CMake.
func TestDebianPackage(t *testing.T) {
	deb := made(t).deb
	architecture := strings.TrimSpace(run(t, ".", nil, "dpkg", "--print-architecture"))
	if want := "libreceivewal_" + version(t) + "-1_" + architecture + ".deb"; filepath.Base(deb) != want {
		t.Errorf("the package is %s, want %s", filepath.Base(deb), want)
	}
	if out := run(t, ".", nil, "lintian", "--allow-root", "--fail-on", "error,warning", "--tag-display-limit", "0", deb); out != "" {
		t.Errorf("lintian: %s", out)
	}
	field := func(name string) string { return strings.TrimSpace(run(t, ".", nil, "dpkg-deb", "-f", deb, name)) }
	if field("Version") != version(t)+"-1" || field("Package") != "libreceivewal" {
		t.Errorf("it says it is %s %s", field("Package"), field("Version"))
	}
	for _, library := range []string{"libc6", "libpq5", "libssl3"} {
		if !regexp.MustCompile(`(^|, )` + library + ` \(>= [^)]*\)(, |$)`).MatchString(field("Depends")) {
			t.Errorf("it does not depend on a version of %s: %s", library, field("Depends"))
		}
	}
	if n := strings.Count(field("Depends"), ","); n != 2 {
		t.Errorf("it depends on %s", field("Depends"))
	}

	unpacked := t.TempDir()
	run(t, ".", nil, "dpkg-deb", "-x", deb, unpacked)
	libdir := "lib/" + strings.TrimSpace(run(t, ".", nil, "dpkg-architecture", "-qDEB_HOST_MULTIARCH"))
	want := []string{"share/doc/libreceivewal/changelog.Debian.gz", "share/doc/libreceivewal/changelog.gz", "share/doc/libreceivewal/copyright",
		"share/lintian/overrides/libreceivewal"}
	for _, file := range wantFiles(t, libdir) {
		if strings.HasPrefix(file, "share/man/") {
			file += ".gz"
		}
		want = append(want, file)
	}
	slices.Sort(want)
	if got := files(t, unpacked+"/usr"); !slices.Equal(got, want) || len(files(t, unpacked)) != len(want) {
		t.Errorf("it has %v, want %v", files(t, unpacked), want)
	}
	if out := run(t, ".", nil, "readelf", "-d", unpacked+"/usr/bin/receivewal"); strings.Contains(out, "RPATH") || strings.Contains(out, "RUNPATH") {
		t.Errorf("the program looks for its libraries outside the system's folders:\n%s", out)
	}
	testPkgConfig(t, unpacked+"/usr", libdir)
	testCMake(t, unpacked+"/usr")

	// Each module that is linked into the core is named with its licence.
	copyright := read(t, unpacked+"/usr/share/doc/libreceivewal/copyright")
	if !strings.Contains(copyright, "contains the library of lz4") || !strings.Contains(copyright, "Yann Collet") {
		t.Error("the copyright does not name lz4")
	}
	linked := regexp.MustCompile(`(?m)^\tdep\t(\S+)\t(\S+)`).FindAllStringSubmatch(run(t, ".", nil, "go", "version", "-m", unpacked+"/usr/"+libdir+"/libreceivewal-core.so.1"), -1)
	if len(linked) < 2 {
		t.Fatalf("the core says that it has %v", linked)
	}
	for _, m := range linked {
		if !strings.Contains(copyright, "contains parts of "+m[1]+" "+m[2]+".\n") {
			t.Errorf("the copyright does not name %s %s", m[1], m[2])
		}
	}
}

// On a Debian that has nothing else, the package installs with its dependencies, the program receives from a server, and
// once it is removed, nothing is left.
func TestDebianRoot(t *testing.T) {
	deb := made(t).deb
	clean := filepath.Join(t.TempDir(), "root")
	release := regexp.MustCompile(`(?m)^VERSION_CODENAME=(\w+)$`).FindStringSubmatch(read(t, "/etc/os-release"))
	if release == nil {
		t.Fatal("/etc/os-release does not tell Debian's release")
	}
	// From where this machine has its packages.
	mirror := ""
	for line := range strings.Lines(run(t, ".", nil, "apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)", "Created-By: Packages")) {
		if words := strings.Fields(line); len(words) == 3 && words[1] == release[1] && words[2] == "main" {
			mirror = words[0]
			break
		}
	}
	if mirror == "" {
		t.Fatalf("apt knows no mirror of %s", release[1])
	}
	run(t, ".", nil, "debootstrap", "--variant=minbase", "--include=libpq5", release[1], clean, mirror)
	in := func(args ...string) string {
		t.Helper()
		return run(t, "/", []string{"LC_ALL=C.UTF-8", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, "chroot", append([]string{clean}, args...)...)
	}
	listing := func() []string {
		return slices.DeleteFunc(files(t, clean), func(name string) bool {
			return strings.HasPrefix(name, "var/") || strings.HasPrefix(name, "etc/ld.so.cache")
		})
	}
	before := listing()
	must(t, os.WriteFile(clean+"/tmp/libreceivewal.deb", []byte(read(t, deb)), 0o644))
	in("dpkg", "-i", "/tmp/libreceivewal.deb")
	must(t, os.Remove(clean+"/tmp/libreceivewal.deb"))
	if got, want := in("receivewal", "--version"), "receivewal (libreceivewal) "+version(t)+"\n"; got != want {
		t.Errorf("receivewal --version: %q, want %q", got, want)
	}
	if got := in("ldconfig", "-p"); !strings.Contains(got, "libreceivewal.so.1 ") {
		t.Error("ldconfig was not run")
	}
	in("dpkg", "--verify", "libreceivewal")

	c := pg.New(t, pg.Options{SegmentSizeMB: 1, TLS: true})
	must(t, os.Mkdir(clean+"/wal", 0o700))
	connection := c.TCPConnString("sslmode=require")
	in("receivewal", "-d", connection, "-S", "clean", "--create-slot")
	must(t, os.WriteFile(clean+"/wal/"+c.SegmentName(c.Timeline(), c.CurrentLSN())+".partial", nil, 0o600)) // where to start
	end := c.Generate(3)
	c.Tick()
	in("receivewal", "-d", connection, "-S", "clean", "-D", "/wal", "-E", segment.LSN(end).String(), "--no-loop", "--synchronous")
	if equal := c.CompareWithServer(clean + "/wal").Equal; len(equal) < 3 {
		t.Errorf("received only %v", equal)
	}
	must(t, os.RemoveAll(clean+"/wal"))

	in("dpkg", "--purge", "libreceivewal")
	if after := listing(); !slices.Equal(before, after) {
		left := slices.DeleteFunc(after, func(name string) bool { return slices.Contains(before, name) })
		t.Errorf("the removed package has left %v, or taken others with it", left)
	}
}
