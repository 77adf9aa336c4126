package build

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// options are those that the program takes: what its table for getopt_long says, with a value or without.
func options(t *testing.T) map[string]bool {
	t.Helper()
	source := read(t, filepath.Join(root(t), "examples", "receivewal.c"))
	table := regexp.MustCompile(`(?m)^ +\{ "([a-z-]+)", (no|required|optional)_argument, `).FindAllStringSubmatch(source, -1)
	if len(table) < 20 {
		t.Fatalf("only %d options found in receivewal.c", len(table))
	}
	list := map[string]bool{}
	for _, m := range table {
		list["--"+m[1]] = m[2] == "required"
	}
	return list
}

// --help, the man page and the completion have each option that the program takes, and no other.
func TestEveryOptionIsDocumented(t *testing.T) {
	_, prefix := install(t, "/usr/local")
	page := read(t, prefix+"/share/man/man1/receivewal.1")
	tags := regexp.MustCompile(`(?m)^\.TP\n(.*\\fB\\-\\-.*)$`).FindAllStringSubmatch(page, -1)
	inPage := map[string]bool{}
	for _, m := range tags {
		tag := strings.NewReplacer(`\-`, "-", `\fB`, "", `\fR`, "", `\fI`, "").Replace(m[1])
		long, _, value := strings.Cut(tag[strings.Index(tag, "--"):], "=")
		inPage[long] = value
	}
	help := run(t, root(t), nil, "build/bin/receivewal", "--help")
	inHelp := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^ {2,6}(?:-., )?(--[a-z-]+)(=?)`).FindAllStringSubmatch(help, -1) {
		inHelp[m[1]] = m[2] != ""
	}
	inCompletion := map[string]bool{}
	for _, word := range complete(t, prefix, "receivewal", "--") {
		long, value := strings.CutSuffix(word, "=")
		inCompletion[long] = value
	}
	taken := options(t)
	for where, have := range map[string]map[string]bool{"--help": inHelp, "the man page": inPage, "the completion": inCompletion} {
		for long, value := range taken {
			if has, ok := have[long]; !ok || has != value {
				t.Errorf("%s: %s is missing, or differs in whether it has a value", where, long)
			}
		}
		for long := range have {
			if _, ok := taken[long]; !ok {
				t.Errorf("%s: receivewal.c takes no %s", where, long)
			}
		}
	}

	// The words of --help are in the page, each of them.
	rendered := strings.Join(strings.Fields(render(t, prefix+"/share/man/man1/receivewal.1")), " ")
	for _, m := range regexp.MustCompile(`(?m)^ {2,6}-.*? {2,}(\S.*)$|^ {20,}(\S.*)$`).FindAllStringSubmatch(help, -1) {
		text := strings.Join(strings.Fields(m[1]+m[2]), " ")
		if !strings.Contains(strings.ToLower(rendered), strings.ToLower(text)) {
			t.Errorf("the man page lacks %q", text)
		}
	}
}

// render prints a page as a wide terminal shows it, without hyphenation.
func render(t *testing.T, page string) string {
	t.Helper()
	return run(t, ".", []string{"MANWIDTH=1000", "LC_ALL=C.UTF-8"}, "man", "--nh", "--nj", "-P", "cat", "-l", page)
}

// receivewal(3) has each function of the header with its comment, and each type.
func TestManualOfTheLibrary(t *testing.T) {
	_, prefix := install(t, "/usr/local")
	page := render(t, prefix+"/share/man/man3/receivewal.3")
	for _, heading := range []string{"NAME", "SYNOPSIS", "DESCRIPTION", "FUNCTIONS", "TYPES", "SEE ALSO"} {
		if !regexp.MustCompile(`(?m)^` + heading + `$`).MatchString(page) {
			t.Errorf("there is no %s", heading)
		}
	}
	_, body, _ := strings.Cut(page, "\nFUNCTIONS\n")
	body, types, _ := strings.Cut(body, "\nTYPES\n")
	for _, function := range functions(t) {
		if strings.Count(page, function+"(") < 2 || !regexp.MustCompile(`(?m)^ +[a-z].*[ *]`+function+`\(`).MatchString(body) {
			t.Errorf("%s is not in the synopsis and among the functions", function)
		}
	}
	header := read(t, filepath.Join(root(t), "include", "receivewal.h"))
	defined := regexp.MustCompile(`(?m)^(?:\} (receivewal\w*);|typedef .* (receivewal\w*);|#define (RECEIVEWAL_\w+) )`).FindAllStringSubmatch(header, -1)
	if len(defined) < 40 {
		t.Fatalf("only %d types and constants found in the header", len(defined))
	}
	for _, m := range defined {
		if name := m[1] + m[2] + m[3]; !regexp.MustCompile(`\b` + name + `\b`).MatchString(types) {
			t.Errorf("%s is not among the types", name)
		}
	}
	// What comments say, wherever they stand: about a function, a group of them, a type, a field, and all of them.
	flat := strings.Join(strings.Fields(page), " ")
	for _, text := range []string{
		"Lends a connection to the library. No byte is sent or received by this call.",
		"These send a command and wait for its answer; no callbacks.",
		"How to receive. Zero or NULL is the default wherever nothing else is said.",
		"/* a physical replication slot that exists; NULL: none */",
		"Ownership Everything passed in is copied before the call returns",
		`o.directory = "/backup/wal";`,
	} {
		if !strings.Contains(flat, text) {
			t.Errorf("the page lacks %q", text)
		}
	}
	if !strings.Contains(page, version(t)) {
		t.Error("the page does not tell the version")
	}
}

// Neither page gives any of three programs a reason to complain.
func TestManualIsClean(t *testing.T) {
	_, prefix := install(t, "/usr/local")
	for _, page := range []string{"man1/receivewal.1", "man3/receivewal.3"} {
		path := prefix + "/share/man/" + page
		for _, lint := range [][]string{
			{"mandoc", "-Tlint", path},
			{"groff", "-man", "-ww", "-z", "-Tutf8", path},
			{"man", "--warnings", "-E", "UTF-8", "-Tutf8", "-Z", "-l", path},
		} {
			cmd := exec.Command(lint[0], lint[1:]...)
			var stderr strings.Builder
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if lint[0] == "man" {
				out = nil // the page
			}
			if err != nil || len(out) > 0 || stderr.Len() > 0 {
				t.Errorf("%v: %v\n%s%s", lint, err, out, &stderr)
			}
		}
	}
}

// complete asks the completion, as bash does, what the last word may become.
func complete(t *testing.T, prefix string, words ...string) []string {
	t.Helper()
	const script = `set -u
source "$0/share/bash-completion/completions/receivewal"
COMP_WORDS=("$@")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
"$(complete -p receivewal | sed 's/.*-F \([^ ]*\) .*/\1/')" receivewal "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
[ ${#COMPREPLY[@]} = 0 ] || printf '%s\n' "${COMPREPLY[@]}"`
	out := run(t, t.TempDir(), nil, "bash", append([]string{"-c", script, prefix}, words...)...)
	list := strings.Fields(out)
	slices.Sort(list)
	return list
}

func TestCompletion(t *testing.T) {
	_, prefix := install(t, "/usr/local")
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "wal-1"), 0o755))
	must(t, os.Mkdir(filepath.Join(dir, "wal-2"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "wal-file"), nil, 0o644))
	wal := []string{dir + "/wal-1", dir + "/wal-2"}
	for _, c := range []struct {
		words string // bash has taken "=" and ":" for words
		want  []string
	}{
		{"receivewal --s", []string{"--slot-wait=", "--slot=", "--status-file=", "--status-interval=", "--suffix=", "--synchronous"}},
		{"receivewal -v --no-l", []string{"--no-loop"}},
		{"receivewal -D " + dir + "/w", wal},
		{"receivewal -v --directory " + dir + "/w", wal},
		{"receivewal --directory = " + dir + "/w", wal},
		{"receivewal --directory=" + dir + "/w", []string{"--directory=" + wal[0], "--directory=" + wal[1]}}, // without "=" in COMP_WORDBREAKS
		{"receivewal -Z ", []string{"gzip", "lz4", "none", "zstd"}},
		{"receivewal --compress =", []string{"gzip", "lz4", "none", "zstd"}},
		{"receivewal --compress = z", []string{"zstd"}},
		{"receivewal --compress=z", []string{"--compress=zstd"}},
		{"receivewal -Z gzip :", []string{"level="}},
		{"receivewal --compress = zstd : l", []string{"level="}},
		{"receivewal -S ", nil},
		{"receivewal --slot = x", nil},
		{"receivewal -U roo", []string{"root"}},
		{"receivewal -S backup --end", []string{"--endpos="}},
	} {
		if got := complete(t, prefix, strings.Split(c.words, " ")...); !slices.Equal(got, c.want) {
			t.Errorf("%q: %v, want %v", c.words, got, c.want)
		}
	}

	// Each method that is offered is one that the program knows, even where it can't do it.
	for _, method := range complete(t, prefix, "receivewal", "-Z", "") {
		cmd := exec.Command(filepath.Join(root(t), "build/bin/receivewal"), "-D", dir, "-Z", method, "-d", "host=/nowhere", "-n")
		out, err := cmd.CombinedOutput()
		if err == nil || strings.Contains(string(out), "unrecognized") {
			t.Errorf("-Z %s: %v, %s", method, err, out)
		}
	}

	run(t, root(t), nil, "shellcheck", "--shell=bash", prefix+"/share/bash-completion/completions/receivewal")
}
