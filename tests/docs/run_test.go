package docs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"libreceivewal/tests/pg"
)

// The C functions of README.md and docs/embedding.md do what is said of them, on a real server.
func TestFunctionsRun(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	libraries := filepath.Join(root, "build/lib")
	program := filepath.Join(folder, "guide")
	args := []string{"-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-I" + filepath.Join(root, "include"),
		"-I" + strings.TrimSpace(command(t, root, nil, "pg_config", "--includedir")), "-o", program, filepath.Join(root, "tests/docs/testdata/guide.c")}
	for _, d := range documents(t) {
		for i, b := range d.blocks {
			if b.language == "c" && b.how == "" && (d.name == "README.md" || d.name == "docs/embedding.md") {
				file := filepath.Join(folder, fmt.Sprintf("%s-%d.c", filepath.Base(d.name), i))
				write(t, file, b.code)
				args = append(args, file)
			}
		}
	}
	command(t, root, os.Environ(), compiler(), append(args, "-L"+libraries, "-Wl,-rpath,"+libraries, "-lreceivewal", "-lpq")...)

	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	c.Generate(2)
	ends := func(p *pg.Program, line string) {
		t.Helper()
		p.Succeed()
		if !strings.Contains(p.Output(), line) {
			t.Errorf("%q instead of %q", p.Output(), line)
		}
	}
	guide := func(mode string) (*pg.Program, string) {
		t.Helper()
		dir := filepath.Join(folder, mode)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		p := pg.Run(t, program, mode, c.ConnString("application_name="+mode), dir)
		c.WaitStreaming(mode)
		return p, dir
	}
	// arrives has the server fill a segment, and waits until it is there.
	arrives := func(dirs ...string) {
		t.Helper()
		c.Generate(2)
		name, _ := c.SwitchWAL()
		for _, dir := range dirs {
			pg.WaitFor(t, name+" in "+dir, func() bool { _, err := os.Stat(filepath.Join(dir, name)); return err == nil })
		}
	}
	compare := func(dir string) {
		t.Helper()
		c.CompareWithServer(dir)
		c.CheckNoHole(dir)
	}

	loop, loopDir := guide("run")
	term, termDir := guide("term")
	backup, backupDir := guide("backup")
	ever, everDir := guide("ever")
	c.Generate(5)
	ends(loop, "status 70, usable 1, 1 others")
	arrives(termDir, everDir, backupDir)
	term.Signal(syscall.SIGTERM)
	ends(term, "status 70, usable 1")
	c.Restart()
	ends(backup, "status 34")
	c.WaitStreaming("ever")
	arrives(everDir)
	ever.Kill9()
	for _, dir := range []string{loopDir, termDir, backupDir, everDir} {
		compare(dir)
	}
}
