package build

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// install installs into a prefix below a new folder, by DESTDIR, and returns both.
func install(t *testing.T, prefix string, env ...string) (stage, installed string) {
	t.Helper()
	stage = t.TempDir()
	run(t, root(t), append(env, "DESTDIR="+stage), "./build.sh", "install", prefix)
	return stage, stage + prefix
}

// files are those below a folder, links too.
func files(t *testing.T, folder string) []string {
	t.Helper()
	var list []string
	must(t, filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			name, _ := filepath.Rel(folder, path)
			list = append(list, name)
		}
		return err
	}))
	slices.Sort(list)
	return list
}

// wantFiles are those that an installation has.
func wantFiles(t *testing.T, libdir string) []string {
	t.Helper()
	want := []string{"bin/receivewal", "share/man/man1/receivewal.1", "share/man/man3/receivewal.3",
		"share/bash-completion/completions/receivewal"}
	for _, file := range []string{"libreceivewal-core.so.1", "libreceivewal.so", "libreceivewal.so.1", "pkgconfig/receivewal.pc",
		"cmake/receivewal/receivewalConfig.cmake", "cmake/receivewal/receivewalConfigVersion.cmake"} {
		want = append(want, libdir+"/"+file)
	}
	headers, _ := filepath.Glob(filepath.Join(root(t), "include", "*.h"))
	for _, header := range headers {
		want = append(want, "include/"+filepath.Base(header))
	}
	slices.Sort(want)
	return want
}

// A program in C that is C++ as well. It fails unless header and library are of one version, and the core is found.
const hostProgram = `#include <receivewal.h>
#include <stdio.h>
#include <string.h>
int main(void)
{
    receivewal_start_point start = RECEIVEWAL_START_POINT_INIT;
    puts(receivewal_version_string());
    return strcmp(receivewal_version_string(), RECEIVEWAL_VERSION) || receivewal_find_start("/", 0, &start);
}
`

// install puts each file where it belongs, with a mode that everybody can read.
func TestInstall(t *testing.T) {
	stage, prefix := install(t, "/opt/receivewal")
	if got, want := files(t, prefix), wantFiles(t, "lib"); !slices.Equal(got, want) {
		t.Errorf("installed %v, want %v", got, want)
	}
	if got := len(files(t, stage)); got != len(files(t, prefix)) {
		t.Errorf("of %d files not all are in the prefix", got)
	}
	if link, _ := os.Readlink(prefix + "/lib/libreceivewal.so"); link != "libreceivewal.so.1" {
		t.Errorf("libreceivewal.so links to %q", link)
	}
	for _, name := range files(t, prefix) {
		info, err := os.Stat(filepath.Join(prefix, name))
		must(t, err)
		want := fs.FileMode(0o644)
		if strings.HasPrefix(name, "bin/") || strings.HasSuffix(name, ".so.1") || strings.HasSuffix(name, ".so") {
			want = 0o755
		}
		if info.Mode() != want {
			t.Errorf("%s has mode %v, want %v", name, info.Mode(), want)
		}
	}
	for _, library := range []string{"libreceivewal.so.1", "libreceivewal-core.so.1"} {
		if out := run(t, ".", nil, "readelf", "-d", prefix+"/lib/"+library); !strings.Contains(out, "Library soname: ["+library+"]") {
			t.Errorf("the SONAME of %s is not its name:\n%s", library, out)
		}
	}
	if got := run(t, ".", nil, prefix+"/bin/receivewal", "--version"); !strings.Contains(got, version(t)) {
		t.Errorf("receivewal --version: %q", got)
	}
}

// Root's installation into the system itself makes the library known to the loader; one into a DESTDIR changes nothing there.
func TestInstallTellsTheLoader(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "ldconfig"), []byte("#!/bin/sh\ntouch \"$0.called\"\n"), 0o755))
	path := "PATH=" + dir + ":" + os.Getenv("PATH")
	called := func() bool {
		_, err := os.Stat(filepath.Join(dir, "ldconfig.called"))
		return err == nil
	}
	install(t, "/usr/local", path)
	if called() {
		t.Error("ldconfig was called for a DESTDIR")
	}
	run(t, root(t), []string{path}, "./build.sh", "install", filepath.Join(dir, "prefix"))
	if called() != (os.Getuid() == 0) {
		t.Errorf("ldconfig called: %v, as user %d", called(), os.Getuid())
	}
}

// Programs in C and C++ find by pkg-config alone what they are compiled and linked with, also after the installation has moved.
func TestPkgConfig(t *testing.T) {
	for _, libdir := range []string{"lib", "lib64", "lib/x86_64-linux-gnu"} {
		_, installed := install(t, "/opt/receivewal", "LIBDIR="+libdir)
		if got, want := files(t, installed), wantFiles(t, libdir); !slices.Equal(got, want) {
			t.Errorf("installed %v, want %v", got, want)
		}
		prefix := filepath.Join(t.TempDir(), "moved")
		must(t, os.Rename(installed, prefix))
		testPkgConfig(t, prefix, libdir)
		if got := run(t, ".", nil, prefix+"/bin/receivewal", "--version"); !strings.Contains(got, version(t)) {
			t.Errorf("receivewal --version: %q", got)
		}
	}
}

func testPkgConfig(t *testing.T, prefix, libdir string) {
	t.Helper()
	dir := t.TempDir()
	env := []string{"PKG_CONFIG_LIBDIR=" + prefix + "/" + libdir + "/pkgconfig"}
	flags := strings.Fields(run(t, dir, env, "pkg-config", "--cflags", "--libs", "receivewal"))
	if got := strings.TrimSpace(run(t, dir, env, "pkg-config", "--modversion", "receivewal")); got != version(t) {
		t.Errorf("receivewal.pc says version %q", got)
	}
	for source, compiler := range map[string]string{"host.c": "gcc", "host.cc": "g++"} {
		must(t, os.WriteFile(filepath.Join(dir, source), []byte(hostProgram), 0o600))
		run(t, dir, nil, compiler, append([]string{"-Wall", "-Werror", source, "-o", "host"}, flags...)...)
		if got := run(t, dir, []string{"LD_LIBRARY_PATH=" + prefix + "/" + libdir}, "./host"); got != version(t)+"\n" {
			t.Errorf("%s prints %q", source, got)
		}
	}
}

// So do those that are built with CMake, which also finds the libraries when they run.
func TestCMake(t *testing.T) {
	for _, libdir := range []string{"lib", "lib/x86_64-linux-gnu"} {
		_, installed := install(t, "/opt/receivewal", "LIBDIR="+libdir)
		prefix := filepath.Join(t.TempDir(), "moved")
		must(t, os.Rename(installed, prefix))
		testCMake(t, prefix)
	}
}

func testCMake(t *testing.T, prefix string) {
	t.Helper()
	dir := t.TempDir()
	major, minor, _ := strings.Cut(version(t), ".")
	minor, _, _ = strings.Cut(minor, ".")
	must(t, os.WriteFile(filepath.Join(dir, "host.c"), []byte(hostProgram), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "host.cc"), []byte(hostProgram), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "CMakeLists.txt"), []byte(`cmake_minimum_required(VERSION 3.13)
project(host C CXX)
find_package(receivewal 99)
if(receivewal_FOUND)
    message(FATAL_ERROR "version 99 found")
endif()
find_package(receivewal `+major+`.`+minor+` REQUIRED)
find_package(receivewal REQUIRED) # once more does no harm
message(STATUS "found version ${receivewal_VERSION}")
add_executable(c host.c)
add_executable(cxx host.cc)
target_link_libraries(c receivewal::receivewal)
target_link_libraries(cxx receivewal::receivewal)
`), 0o600))
	out := run(t, dir, nil, "cmake", "-S", ".", "-B", "out", "-DCMAKE_PREFIX_PATH="+prefix, "-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF")
	if !strings.Contains(out, "found version "+version(t)+"\n") {
		t.Errorf("cmake found another version:\n%s", out)
	}
	run(t, dir, nil, "cmake", "--build", "out")
	for _, program := range []string{"out/c", "out/cxx"} {
		if got := run(t, dir, nil, "./"+program); got != version(t)+"\n" {
			t.Errorf("%s prints %q", program, got)
		}
	}

	// An installation that lacks a part is not found.
	core, err := filepath.Glob(prefix + "/lib*/libreceivewal-core.so.1")
	more, _ := filepath.Glob(prefix + "/lib/*/libreceivewal-core.so.1")
	if core = append(core, more...); err != nil || len(core) != 1 {
		t.Fatalf("the core is at %v", core)
	}
	must(t, os.Rename(core[0], core[0]+".away"))
	cmd := exec.Command("cmake", "-S", ".", "-B", "again", "-DCMAKE_PREFIX_PATH="+prefix, "-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(strings.Join(strings.Fields(string(out)), " "), "libreceivewal-core.so.1 is missing") {
		t.Errorf("without the core: %v\n%s", err, out)
	}
	must(t, os.Rename(core[0]+".away", core[0]))
}
