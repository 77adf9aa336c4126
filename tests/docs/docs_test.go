// Package docs_test holds the documentation to what it says: code in it compiles or runs, quotations are those of the files, links
// lead somewhere, and each name of the C API exists.
//
// A block of code is fenced and names its language. A comment right above it says how it is tried:
//
//	<!-- quote: FILE -->   its lines are in that file, in this order and without others between them but where a line says "..."
//	<!-- body -->          C: the inside of a function that has what bodyPrelude declares
//	<!-- run -->           sh: it is run, in a folder with a server; see runBlock
//
// Without a comment C is compiled as a file, Go vetted as a file, and each line of sh must begin with a command in knownCommands. What
// is only to be read is "text".
package docs_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"libreceivewal/tests/pg"
)

var root = must(pg.Root())

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A document is a file of Markdown.
type document struct {
	name   string // relative to the repository
	text   string
	prose  string // without the blocks
	blocks []block
}

// A block is fenced code.
type block struct {
	line     int // of its first line of code
	language string
	how      string // the comment above it
	code     string
}

var comment = regexp.MustCompile(`^\s*<!-- (quote: \S+|body|run) -->$`)

// documents are all that a reader finds: the README, docs, and the READMEs of packages.
func documents(t *testing.T) []document {
	t.Helper()
	var names []string
	for _, pattern := range []string{"*.md", "docs/*.md", "python/*.md", "bench/*.md", "examples/*.md"} {
		names = append(names, must(filepath.Glob(filepath.Join(root, pattern)))...)
	}
	var docs []document
	for _, name := range names {
		d := document{name: must(filepath.Rel(root, name)), text: string(must(os.ReadFile(name)))}
		d.parse(t)
		docs = append(docs, d)
	}
	if len(docs) < 5 {
		t.Fatalf("only %d documents", len(docs))
	}
	return docs
}

func (d *document) parse(t *testing.T) {
	t.Helper()
	var prose strings.Builder
	var open *block
	how := ""
	for i, line := range strings.Split(d.text, "\n") {
		fence, isFence := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case isFence && open == nil:
			open = &block{line: i + 2, language: fence, how: how}
			prose.WriteString("\n")
		case isFence:
			d.blocks = append(d.blocks, *open)
			open, how = nil, ""
			prose.WriteString("\n")
		case open != nil:
			open.code += line + "\n"
			prose.WriteString("\n")
		default:
			prose.WriteString(line + "\n")
			if m := comment.FindStringSubmatch(line); m != nil {
				how = m[1]
			} else if strings.TrimSpace(line) != "" {
				how = ""
			}
		}
	}
	if open != nil {
		t.Errorf("%s: the block at line %d has no end", d.name, open.line)
	}
	d.prose = prose.String()
}

// each runs a test for each block of a language.
func each(t *testing.T, language string, test func(t *testing.T, d document, b block)) {
	t.Helper()
	found := 0
	for _, d := range documents(t) {
		for _, b := range d.blocks {
			if b.language == language {
				found++
				t.Run(fmt.Sprintf("%s:%d", filepath.Base(d.name), b.line), func(t *testing.T) { test(t, d, b) })
			}
		}
	}
	if found == 0 {
		t.Errorf("there is no block of %s", language)
	}
}

// Each block says what it is.
func TestLanguages(t *testing.T) {
	tried := []string{"c", "python", "go", "sh", "json", "text"}
	for _, d := range documents(t) {
		for _, b := range d.blocks {
			if !slices.Contains(tried, b.language) {
				t.Errorf("%s:%d: a block of %q: nobody tries that; what is only to be read is text", d.name, b.line, b.language)
			}
			if b.language == "json" && !json.Valid([]byte(b.code)) {
				t.Errorf("%s:%d: this is no JSON", d.name, b.line)
			}
		}
	}
}

// A block is fenced: an indented one says nothing of itself, and would not be tried.
func TestFenced(t *testing.T) {
	for _, d := range documents(t) {
		before, list := "", false
		for i, line := range strings.Split(d.prose, "\n") {
			indented := strings.HasPrefix(line, "    ")
			if indented && before == "" && !list {
				t.Errorf("%s:%d: a block without a fence: %s", d.name, i+1, line)
			}
			if trimmed := strings.TrimSpace(line); trimmed != "" && !indented {
				list = strings.HasPrefix(trimmed, "- ") || strings.HasPrefix(trimmed, "* ") || list && strings.HasPrefix(line, " ")
			}
			before = strings.TrimSpace(line)
		}
	}
}

// quoted tells whether the lines are in the file. An ellipsis stands for lines that were left out.
func quoted(file string, b block) error {
	rest := string(must(os.ReadFile(filepath.Join(root, file))))
	for i, part := range regexp.MustCompile(`(?m)^\s*\.\.\.\n`).Split(b.code, -1) {
		part = strings.Trim(part, "\n") + "\n"
		at := strings.Index(rest, part)
		if at < 0 || at > 0 && rest[at-1] != '\n' {
			return fmt.Errorf("part %d is not in %s:\n%s", i+1, file, part)
		}
		rest = rest[at+len(part):]
	}
	return nil
}

func TestQuotations(t *testing.T) {
	found := 0
	for _, d := range documents(t) {
		for _, b := range d.blocks {
			if file, isQuote := strings.CutPrefix(b.how, "quote: "); isQuote {
				found++
				if err := quoted(file, b); err != nil {
					t.Errorf("%s:%d: %v", d.name, b.line, err)
				}
			}
		}
	}
	if found == 0 {
		t.Error("there is no quotation")
	}
}

// What the inside of a function may use.
const bodyPrelude = `#include <errno.h>
#include <libpq-fe.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <receivewal_openssl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>
extern receivewal *rw;
extern PGconn *conn;
extern int my_descriptor, loop, running;
void my_work(void);
receivewal_status body(receivewal_connection *connection, receivewal_options *options, receivewal_status status);
receivewal_status body(receivewal_connection *connection, receivewal_options *options, receivewal_status status)
{
    (void)connection;
    (void)options;
`

// C compiles without a warning.
func TestC(t *testing.T) {
	includes := []string{"-I" + filepath.Join(root, "include"), "-I" + strings.TrimSpace(command(t, root, nil, "pg_config", "--includedir"))}
	each(t, "c", func(t *testing.T, d document, b block) {
		if strings.HasPrefix(b.how, "quote: ") {
			return // its file is compiled elsewhere
		}
		code := b.code
		if b.how == "body" {
			code = bodyPrelude + code + "    return status;\n}\n"
		}
		file := filepath.Join(t.TempDir(), "block.c")
		write(t, file, code)
		args := []string{"-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-c", "-o", "/dev/null", file}
		command(t, root, nil, compiler(), append(args, includes...)...)
	})
}

// Go compiles, and go vet finds nothing.
func TestGo(t *testing.T) {
	each(t, "go", func(t *testing.T, d document, b block) {
		if strings.HasPrefix(b.how, "quote: ") {
			return
		}
		folder := must(os.MkdirTemp(filepath.Join(root, "tests/docs"), "_block-"))
		t.Cleanup(func() { os.RemoveAll(folder) })
		write(t, filepath.Join(folder, "main.go"), b.code)
		command(t, root, nil, "go", "vet", "./"+must(filepath.Rel(root, folder)))
	})
}

// Python compiles, and what it uses of the modules that it imports is there.
func TestPython(t *testing.T) {
	each(t, "python", func(t *testing.T, d document, b block) {
		if strings.HasPrefix(b.how, "quote: ") {
			return
		}
		file := filepath.Join(t.TempDir(), "block.py")
		write(t, file, b.code)
		if _, err := os.Stat(filepath.Join(root, "python/receivewal")); err != nil {
			command(t, root, nil, "/usr/bin/python3", "-m", "py_compile", file) // a tree without the package
			return
		}
		environment := append(os.Environ(), "PYTHONPATH="+filepath.Join(root, "python"), "PYTHONDONTWRITEBYTECODE=1",
			"RECEIVEWAL_LIB="+filepath.Join(root, "build/lib"))
		command(t, root, environment, "/usr/bin/python3", "tests/docs/testdata/names.py", file)
	})
}

// Commands that a block may have without being run here, and where they are tried instead.
var knownCommands = map[string]string{
	"./build.sh build":           "by this suite",
	"./build.sh demo":            "by people; it is the program and pg_receivewal as in tests/e2e",
	"./build.sh test":            "this suite",
	"./build.sh soak":            "by people: it takes hours",
	"./build.sh fuzz":            "by people: it takes hours",
	"./build.sh install":         "tests/build",
	"./build.sh clean":           "removes a folder",
	"./build.sh help":            "prints",
	"./build.sh bench":           "by people: it takes minutes, and the machine for itself",
	"./build.sh package":         "tests/build",
	"./build.sh wheel":           "tests/python",
	"./build.sh support":         "by people: it is this suite, with a record",
	"./build.sh mutate":          "by people: it takes an hour",
	"pip install":                "tests/python, into an environment of its own",
	"python3 -m pip install":     "tests/python, into an environment of its own",
	"sudo apt-get install":       "installs",
	"sudo dpkg -i":               "tests/build, into another root",
	"go test ./segment ./stream": "this suite, with -race",
	"go get":                     "fetches",
	"git clone":                  "fetches",
	"systemctl enable":           "changes the machine",
	"python3 examples/embed.py":  "tests/python",
}

func TestShell(t *testing.T) {
	commands := string(must(os.ReadFile(filepath.Join(root, "build.sh"))))
	commands = commands[strings.LastIndex(commands, "case $command in"):]
	each(t, "sh", func(t *testing.T, d document, b block) {
		if b.how == "run" {
			runBlock(t, b)
			return
		}
		for line := range strings.Lines(b.code) {
			line = strings.TrimSpace(strings.SplitN(line, " #", 2)[0])
			if line == "" || line == "./build.sh" {
				continue
			}
			known := false
			for prefix := range knownCommands {
				known = known || line == prefix || strings.HasPrefix(line, prefix+" ")
			}
			if !known {
				t.Errorf("%s: %q: nobody tries that", d.name, line)
			}
			words := strings.Fields(line)
			if words[0] != "./build.sh" {
				continue
			}
			if !regexp.MustCompile(`(?m)^(\w+ \| )*` + regexp.QuoteMeta(words[1]) + `( \| [-\w]+)*\)`).MatchString(commands) {
				t.Errorf("%s: %q: build.sh has no such command", d.name, line)
			}
		}
	})
}

// runBlock runs a block with bash, which stops at the first error, in a folder that has a server (PGHOST, PGUSER, a database that
// is written to), the installed program and libraries, embed.c as program.c, and an empty directory wal.
func runBlock(t *testing.T, b block) {
	t.Helper()
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	c.Generate(4)
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				c.TrySQL("select pg_logical_emit_message(false, '', repeat('x', 500000))")
			}
		}
	}()
	defer func() { close(stop); <-done }()
	folder := t.TempDir()
	prefix := filepath.Join(folder, "prefix")
	command(t, root, os.Environ(), "./build.sh", "install", prefix)
	write(t, filepath.Join(folder, "program.c"), string(must(os.ReadFile(filepath.Join(root, "examples/embed.c")))))
	if err := os.Mkdir(filepath.Join(folder, "wal"), 0o700); err != nil {
		t.Fatal(err)
	}
	environment := append(os.Environ(), "PGHOST="+c.Dir, fmt.Sprint("PGPORT=", c.Port), "PGUSER=postgres", "PGSSLMODE=disable",
		"PATH="+filepath.Join(prefix, "bin")+":/usr/lib/postgresql/15/bin:"+os.Getenv("PATH"),
		"PKG_CONFIG_PATH="+filepath.Join(prefix, "lib/pkgconfig"), "LD_LIBRARY_PATH="+filepath.Join(prefix, "lib"))
	command(t, folder, environment, "timeout", "300", "bash", "-euc", b.code)
}

var (
	link   = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	head   = regexp.MustCompile(`(?m)^#+ +(.*)$`)
	noSlug = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

func anchors(text string) []string {
	var all []string
	for _, m := range head.FindAllStringSubmatch(text, -1) {
		all = append(all, strings.ReplaceAll(noSlug.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-"))
	}
	return all
}

// Links between documents lead somewhere, to the heading that they name.
func TestLinks(t *testing.T) {
	found := 0
	for _, d := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(d.prose, -1) {
			target := must(url.Parse(m[1]))
			if target.Scheme != "" {
				continue
			}
			found++
			file := filepath.Join(root, filepath.Dir(d.name), target.Path)
			if target.Path == "" {
				file = filepath.Join(root, d.name)
			}
			if _, err := os.Stat(file); err != nil {
				t.Errorf("%s: %s: %v", d.name, m[1], err)
			} else if target.Fragment != "" && !slices.Contains(anchors(string(must(os.ReadFile(file)))), target.Fragment) {
				t.Errorf("%s: %s: there is no such heading", d.name, m[1])
			}
		}
	}
	if found == 0 {
		t.Error("there is no link")
	}
}

var apiName = regexp.MustCompile(`\b(receivewal_[a-z_]+|RECEIVEWAL_[A-Z0-9_]+)\b`)

func header() string {
	text := ""
	for _, name := range must(filepath.Glob(filepath.Join(root, "include/*.h"))) {
		text += string(must(os.ReadFile(name)))
	}
	return text
}

// What the documents name of the C API exists. Environment variables of the tests have names of the same form.
func TestNames(t *testing.T) {
	known := map[string]bool{}
	for _, name := range apiName.FindAllString(header(), -1) {
		known[name] = true
	}
	tests := []string{"RECEIVEWAL_LIB", "RECEIVEWAL_PROGRAM", "RECEIVEWAL_LONG", "RECEIVEWAL_SOAK", "RECEIVEWAL_SEED", "RECEIVEWAL_RECORD"}
	for _, d := range documents(t) {
		for _, name := range apiName.FindAllString(d.text, -1) {
			if !known[name] && !slices.Contains(tests, name) && !strings.HasSuffix(name, "_") {
				t.Errorf("%s: %s is not in the header", d.name, name)
			}
		}
	}
}

// The guides name each error. That the README names every function is tests/build's.
func TestComplete(t *testing.T) {
	text := func(name string) string { return string(must(os.ReadFile(filepath.Join(root, name)))) }
	contains := func(name, what string) {
		if !regexp.MustCompile(`\b` + what + `\b`).MatchString(text(name)) {
			t.Errorf("%s does not name %s", name, what)
		}
	}
	public := string(must(os.ReadFile(filepath.Join(root, "include/receivewal.h"))))
	errors := regexp.MustCompile(`(?m)^ +(RECEIVEWAL_ERR_\w+) =`).FindAllStringSubmatch(public, -1)
	if len(errors) < 25 {
		t.Fatalf("%d errors in the header", len(errors))
	}
	for _, m := range errors {
		short := strings.TrimPrefix(m[1], "RECEIVEWAL_ERR_")
		contains("docs/troubleshooting.md", m[1])
		contains("docs/embedding.md", "(RECEIVEWAL_)?ERR_"+short)
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func command(t *testing.T, folder string, environment []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = folder, environment
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return string(out)
}

func compiler() string {
	if cc := os.Getenv("CC"); cc != "" {
		return cc
	}
	return "cc"
}

// The README's table of servers is what tests/support.tsv says, and that is about the servers which the tests use.
func TestSupport(t *testing.T) {
	table := command(t, root, os.Environ(), "tests/support.sh", "table")
	readme := string(must(os.ReadFile(filepath.Join(root, "README.md"))))
	_, rest, _ := strings.Cut(readme, "<!-- support -->\n")
	shown, _, found := strings.Cut(rest, "<!-- end of support -->")
	if !found || strings.TrimSpace(shown) != strings.TrimSpace(table) {
		t.Errorf("the README's table of servers is not that of tests/support.tsv; ./build.sh support makes both. It should be\n%s", table)
	}
	for line := range strings.Lines(command(t, root, os.Environ(), "tests/servers.sh", "versions")) {
		var major int
		if _, err := fmt.Sscan(line, &major); err != nil {
			t.Fatal(err)
		}
		if version := pg.FullVersion(t, major); major != 15 && !strings.Contains(table, "| "+version+" |") { // 15 is whatever Debian has
			t.Errorf("the table has no PostgreSQL %s, with which the tests run; ./build.sh support makes it anew", version)
		}
	}
}
