package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

// A promise is a row of the table in docs/durability.md.
type promise struct {
	name  string
	tests []string // "stream.TestReceive"
}

var quoted = regexp.MustCompile("`([^`]*)`")

// promises reads the table. Its first column is the row's name, the last the tests.
func promises(t *testing.T) []promise {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docs", "durability.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "## Promises\n")
	table, _, _ = strings.Cut(table, "\n## ")
	var list []promise
	for _, line := range strings.Split(table, "\n") {
		cells := strings.Split(strings.Trim(line, "|"), " | ")
		if len(cells) != 4 || strings.TrimSpace(cells[0]) == "row" {
			continue
		}
		p := promise{name: strings.TrimSpace(cells[0])}
		for _, match := range quoted.FindAllStringSubmatch(cells[3], -1) {
			p.tests = append(p.tests, match[1])
		}
		list = append(list, p)
	}
	if len(list) < 20 {
		t.Fatalf("only %d promises in the table", len(list))
	}
	return list
}

// functions are the tests of a package.
func functions(t *testing.T, pkg string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, pkg, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				names = append(names, fn.Name.Name)
			}
		}
	}
	return names
}

// Every mutation can still be made, belongs to a promise, and its test is one that the promise names. Every promise has a mutation, and
// the tests that it names are there.
func TestList(t *testing.T) {
	rows := promises(t)
	for _, p := range rows {
		if !slices.ContainsFunc(mutations, func(m mutation) bool { return m.row == p.name }) {
			t.Errorf("the promise %q has no mutation", p.name)
		}
		if len(p.tests) == 0 {
			t.Errorf("the promise %q has no test", p.name)
		}
		for _, test := range p.tests {
			pkg, name, _ := strings.Cut(test, ".")
			if !slices.Contains(functions(t, pkg), name) {
				t.Errorf("the promise %q names %s, which is not there", p.name, test)
			}
		}
	}
	for _, m := range mutations {
		text, err := os.ReadFile(filepath.Join(root, m.file))
		if err != nil {
			t.Fatal(err)
		}
		if changed, err := m.apply(string(text)); err != nil || changed == string(text) {
			t.Errorf("%s: %v", m, err)
		}
		i := slices.IndexFunc(rows, func(p promise) bool { return p.name == m.row })
		if i < 0 {
			t.Errorf("%s: there is no such promise", m)
			continue
		}
		if test := strings.TrimPrefix(m.pkg, "./") + "." + m.test; !slices.Contains(rows[i].tests, test) {
			t.Errorf("%s: the promise does not name %s", m, test)
		}
	}
}

// What is to be changed has to be there once.
func TestApply(t *testing.T) {
	m := mutation{file: "x.go", from: "one", to: "two"}
	for text, want := range map[string]string{"a one b": "a two b", "one one": "", "nothing": ""} {
		if got, err := m.apply(text); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", text, got, err, want)
		}
	}
}
