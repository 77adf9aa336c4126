// Count reads what "go test -json" prints, shows it to a person, and counts: each test that has no subtests is one. It exists
// because go test itself has no total, and because here more counts as failed than there: a test that is skipped or
// never ends, and a package that does not build or ends badly although all its tests passed.
//
// It writes "PASSED FAILED" to the file that is its only argument.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go test -json … 2>&1 | count FILE")
		os.Exit(2)
	}
	passed, failed := count(os.Stdin, os.Stdout)
	if err := os.WriteFile(os.Args[1], fmt.Appendf(nil, "%d %d\n", passed, failed), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// event is one line of "go test -json" (go doc test2json; build events: go help buildjson).
type event struct {
	Action      string
	Package     string
	ImportPath  string // of build events
	Test        string
	Elapsed     float64
	Output      string
	FailedBuild string
}

// A pkg is a package whose tests are running.
type pkg struct {
	tests          map[string]*test
	output         strings.Builder // what belongs to no test
	passed, failed int
}

type test struct {
	output         strings.Builder
	parent         *test
	hasSubtests    bool
	subtestsFailed bool
	done           bool
}

type counter struct {
	out            io.Writer
	pkgs           map[string]*pkg
	builds         map[string]*strings.Builder // compiler output
	passed, failed int
}

// count reads events until the end, prints a line for each package and all output of what failed, and returns the totals.
func count(in io.Reader, out io.Writer) (passed, failed int) {
	c := &counter{out: out, pkgs: map[string]*pkg{}, builds: map[string]*strings.Builder{}}
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		var e event
		if json.Unmarshal([]byte(line), &e) == nil && e.Action != "" {
			c.event(e)
		} else if strings.TrimSpace(line) != "" {
			fmt.Fprint(out, line) // the go command's own messages
		}
		if err != nil {
			break
		}
	}
	for name := range c.pkgs {
		c.end(name, event{Action: "fail", Output: "go test ended before the package did"})
	}
	if c.passed+c.failed == 0 {
		fmt.Fprintln(out, "FAIL  no test ran")
		c.failed++
	}
	return c.passed, c.failed
}

func (c *counter) event(e event) {
	switch e.Action {
	case "build-output":
		if c.builds[e.ImportPath] == nil {
			c.builds[e.ImportPath] = &strings.Builder{}
		}
		c.builds[e.ImportPath].WriteString(e.Output)
		return
	case "build-fail":
		return // the package's own "fail" follows
	}
	p := c.pkgs[e.Package]
	if p == nil {
		p = &pkg{tests: map[string]*test{}}
		c.pkgs[e.Package] = p
	}
	if e.Test == "" {
		switch e.Action {
		case "output":
			p.output.WriteString(e.Output)
		case "pass", "fail", "skip":
			c.end(e.Package, e)
		}
		return
	}
	t := p.tests[e.Test]
	if t == nil {
		t = &test{}
		p.tests[e.Test] = t
		if i := strings.LastIndexByte(e.Test, '/'); i >= 0 && p.tests[e.Test[:i]] != nil {
			t.parent = p.tests[e.Test[:i]]
			t.parent.hasSubtests = true
		}
	}
	switch e.Action {
	case "output":
		t.output.WriteString(e.Output)
	case "pass":
		t.done = true
		if !t.hasSubtests {
			p.passed++
		}
	case "fail", "skip":
		t.done = true
		if t.parent != nil {
			t.parent.subtestsFailed = true
		}
		if t.subtestsFailed {
			fmt.Fprint(c.out, ownWords(t.output.String())) // its subtests have been counted
			return
		}
		p.failed++
		fmt.Fprintf(c.out, "FAIL  %s %s%s\n%s", e.Package, e.Test, map[string]string{"skip": ": a skipped test counts as failed"}[e.Action], t.output.String())
	}
}

// ownWords is what a test has printed without the lines that go test adds.
func ownWords(output string) string {
	var own strings.Builder
	for line := range strings.Lines(output) {
		if !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(strings.TrimSpace(line), "--- ") {
			own.WriteString(line)
		}
	}
	return own.String()
}

// end closes a package.
func (c *counter) end(name string, e event) {
	p := c.pkgs[name]
	delete(c.pkgs, name)
	for testName, t := range p.tests {
		if !t.done {
			p.failed++
			fmt.Fprintf(c.out, "FAIL  %s %s: it has not ended\n%s", name, testName, t.output.String())
		}
	}
	if e.Action == "fail" {
		if p.failed == 0 {
			p.failed = 1 // it doesn't build, or panicked outside a test
		}
		fmt.Fprintf(c.out, "FAIL  %s\n%s", name, p.output.String())
		if build := c.builds[e.FailedBuild]; build != nil {
			fmt.Fprint(c.out, build.String())
		}
		if e.Output != "" {
			fmt.Fprintln(c.out, e.Output)
		}
	}
	if p.passed+p.failed > 0 {
		verdict := "ok  "
		if p.failed > 0 {
			verdict = "FAIL"
		}
		fmt.Fprintf(c.out, "%s  %s: %d passed, %d failed (%.1f s)\n", verdict, name, p.passed, p.failed, e.Elapsed)
	}
	c.passed += p.passed
	c.failed += p.failed
}
