// Mutation takes the mechanisms of docs/durability.md out, one at a time, and runs the test that guards each: it must fail. A test
// that passes without what it is there for proves nothing.
//
//	go run ./tests/mutation [TEXT...]
//
// With TEXT, only the mutations whose row, file, package or test contains one of them. It works on a copy of the repository.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A mutation is a change that breaks a promise, and a test that has to notice.
type mutation struct {
	row      string // of the table of promises
	file     string
	from, to string // from is there once
	pkg      string
	test     string // as for go test -run
	build    bool   // the test runs what ./build.sh builds
}

func (m mutation) String() string {
	return fmt.Sprintf("%s: %s, by %s %s", m.row, m.file, m.pkg, m.test)
}

// wanted tells whether the arguments ask for a mutation.
func (m mutation) wanted(words []string) bool {
	return len(words) == 0 || slices.ContainsFunc(words, func(w string) bool { return strings.Contains(m.String(), w) })
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mutation:", err)
		os.Exit(1)
	}
}

func run(words []string) error {
	c, err := newCopy()
	if err != nil {
		return err
	}
	defer os.RemoveAll(c.dir)
	list := slices.DeleteFunc(slices.Clone(mutations), func(m mutation) bool { return !m.wanted(words) })
	if len(list) == 0 {
		return errors.New("there is no such mutation")
	}
	if err := c.whole(list); err != nil {
		return err
	}
	survived := 0
	for _, m := range list {
		begin := time.Now()
		verdict, err := c.try(m)
		if err != nil {
			verdict = broken
			fmt.Println(err)
		}
		if verdict != caught {
			survived++
		}
		fmt.Printf("%-8s %s (%.0f s)\n", verdict, m, time.Since(begin).Seconds())
	}
	fmt.Printf("%d mutations, %d of them caught\n", len(list), len(list)-survived)
	if survived > 0 {
		return errors.New("a mechanism can be taken out without a test that fails")
	}
	return nil
}

const (
	caught   = "caught"
	survivor = "SURVIVED"
	broken   = "BROKEN" // it cannot be made
)

// A clone is a copy of the repository, without its history, to break things in.
type clone struct{ dir string }

func newCopy() (clone, error) {
	c := clone{}
	list, err := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		return c, fmt.Errorf("list the repository's files: %w", err)
	}
	if c.dir, err = os.MkdirTemp("", "receivewal-mutation-"); err != nil {
		return c, err
	}
	for _, name := range strings.Split(strings.Trim(string(list), "\x00"), "\x00") {
		if err := copyFile(name, filepath.Join(c.dir, name)); err != nil {
			return c, errors.Join(err, os.RemoveAll(c.dir))
		}
	}
	return c, nil
}

func copyFile(from, to string) error {
	info, err := os.Stat(from)
	if errors.Is(err, os.ErrNotExist) {
		return nil // deleted, and not committed yet
	}
	if err != nil {
		return err
	}
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, content, info.Mode().Perm())
}

// whole runs all of the tests without any mutation: they have to pass.
func (c clone) whole(list []mutation) error {
	tests := map[string][]string{}
	build := false
	for _, m := range list {
		if !slices.Contains(tests[m.pkg], m.test) {
			tests[m.pkg] = append(tests[m.pkg], m.test)
		}
		build = build || m.build
	}
	if build {
		if out, err := c.command("./build.sh", "build"); err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
	}
	for pkg, names := range tests {
		if out, err := c.test(pkg, strings.Join(names, "|")); err != nil {
			return fmt.Errorf("%s %s fails without a mutation: %w\n%s", pkg, names, err, out)
		}
	}
	return nil
}

// try makes one change, runs its test and takes the change back.
func (c clone) try(m mutation) (string, error) {
	path := filepath.Join(c.dir, m.file)
	original, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	changed, err := m.apply(string(original))
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(path, []byte(changed), 0o644); err != nil {
		return "", err
	}
	verdict, err := c.verdict(m)
	return verdict, errors.Join(err, os.WriteFile(path, original, 0o644))
}

func (c clone) verdict(m mutation) (string, error) {
	if m.build {
		if out, err := c.command("./build.sh", "build"); err != nil {
			return "", fmt.Errorf("what was changed does not build: %w\n%s", err, out)
		}
	}
	if out, err := c.command("go", "vet", m.pkg); err != nil && strings.Contains(out, "vet:") {
		return "", fmt.Errorf("what was changed does not compile: %w\n%s", err, out)
	}
	out, err := c.test(m.pkg, m.test)
	if err == nil {
		return survivor, nil
	}
	if !strings.Contains(out, "--- FAIL") && !strings.Contains(out, "panic: ") && !strings.Contains(out, "fatal error: ") {
		return "", fmt.Errorf("the test did not run: %w\n%s", err, out)
	}
	return caught, nil
}

// apply is the changed text of the file.
func (m mutation) apply(text string) (string, error) {
	if n := strings.Count(text, m.from); n != 1 {
		return "", fmt.Errorf("%d times in %s: %s", n, m.file, m.from)
	}
	return strings.Replace(text, m.from, m.to, 1), nil
}

func (c clone) test(pkg, names string) (string, error) {
	return c.command("go", "test", "-count=1", "-timeout=3m", "-run", "^("+names+")$", pkg)
}

// command runs something in the copy, with at most 8 GB: what has lost its end can need any amount.
func (c clone) command(name string, args ...string) (string, error) {
	cmd := exec.Command("/bin/sh", append([]string{"-c", `ulimit -v 8000000; exec "$@"`, "sh", name}, args...)...)
	cmd.Dir = c.dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}
