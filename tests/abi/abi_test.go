// Package abi_test holds the public header against tests/abi/abi.txt, the record of what programs that were compiled with
// an earlier header rely on: symbols, prototypes, sizes, offsets, numbers.
//
// What is in the record must stay so; what is new has to be put there, in the commit that adds it:
//
//	go test ./tests/abi -update
//
// That refuses what would break an old program. Such a change needs a new SONAME, and then a new record: delete the old one.
package abi_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"libreceivewal/tests/pg"
)

var (
	update = flag.Bool("update", false, "add what is new to abi.txt")
	root   = must(pg.Root())
)

const record = "abi.txt"

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

var (
	comment   = regexp.MustCompile(`(?s)/\*.*?\*/`)
	space     = regexp.MustCompile(`\s+`)
	structure = regexp.MustCompile(`(?s)typedef struct (\w+)\s*\{(.*?)\n\} (\w+);`)
	enum      = regexp.MustCompile(`(?s)typedef enum (\w+)\s*\{(.*?)\}`)
	number    = regexp.MustCompile(`(?m)^#define (RECEIVEWAL_\w+) \(?-?[0-9]\w*\)?\s*$`)
	prototype = regexp.MustCompile(`(?m)^[a-z][\w ]*[ *](receivewal_\w+)\([^;{]*\);`)
	pointer   = regexp.MustCompile(`\(\*(\w+)(\[\w+\])?\)`)
	plain     = regexp.MustCompile(`(\w+)(\[\w+\])?$`)
)

// A fact is one line of the record: what it is about, and what it says of that.
type fact struct{ about, says string }

func (f fact) String() string { return f.about + ": " + f.says }

// facts reads a header. What the compiler knows better is asked of a program that prints it.
func facts(t *testing.T, folder string) []fact {
	t.Helper()
	text := comment.ReplaceAllString(string(must(os.ReadFile(filepath.Join(folder, "receivewal.h")))), "")
	var list []fact
	var program strings.Builder
	program.WriteString("#include <receivewal.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void)\n{\n")
	for _, m := range structure.FindAllStringSubmatch(text, -1) {
		fmt.Fprintf(&program, "printf(\"struct %s: %%zu bytes, aligned to %%zu\\n\", sizeof(%s), _Alignof(%s));\n", m[1], m[3], m[3])
		for field := range strings.SplitSeq(m[2], ";") {
			field = strings.TrimSpace(space.ReplaceAllString(field, " "))
			if field == "" {
				continue
			}
			name := pointer.FindStringSubmatch(field)
			if name == nil {
				name = plain.FindStringSubmatch(field)
			}
			fmt.Fprintf(&program, "printf(\"field %s.%s: at %%zu, %%zu bytes, %s\\n\", offsetof(%s, %s), sizeof(((%s *)0)->%s));\n",
				m[1], name[1], field, m[3], name[1], m[3], name[1])
		}
	}
	for _, m := range enum.FindAllStringSubmatch(text, -1) {
		fmt.Fprintf(&program, "printf(\"enum %s: %%zu bytes\\n\", sizeof(%s));\n", m[1], m[1])
		for name := range strings.SplitSeq(m[2], ",") {
			name = strings.TrimSpace(strings.Split(name, "=")[0])
			if name != "" {
				fmt.Fprintf(&program, "printf(\"number %s: %%d\\n\", (int)%s);\n", name, name)
			}
		}
	}
	for _, m := range number.FindAllStringSubmatch(text, -1) {
		if m[1] != "RECEIVEWAL_VERSION_NUM" {
			fmt.Fprintf(&program, "printf(\"number %s: %%d\\n\", (int)%s);\n", m[1], m[1])
		}
	}
	program.WriteString("return 0;\n}\n")
	for _, m := range prototype.FindAllStringSubmatch(text, -1) {
		list = append(list, fact{"function " + m[1], types(m[0])})
	}
	for line := range strings.Lines(compileAndRun(t, folder, program.String())) {
		list = append(list, parse(line))
	}
	return list
}

// types drops the names of a prototype's parameters: they bind nobody.
func types(prototype string) string {
	result, parameters, _ := strings.Cut(space.ReplaceAllString(prototype, " "), "(")
	list := strings.Split(strings.TrimSuffix(parameters, ");"), ",")
	for i, p := range list {
		list[i] = strings.TrimSpace(plain.ReplaceAllString(p, "$2"))
		if list[i] == "" {
			list[i] = p // void
		}
	}
	return result + "(" + strings.Join(list, ", ") + ")"
}

func parse(line string) fact {
	about, says, _ := strings.Cut(strings.TrimSpace(line), ": ")
	return fact{about, says}
}

func compileAndRun(t *testing.T, folder, source string) string {
	t.Helper()
	dir := t.TempDir()
	file, program := filepath.Join(dir, "layout.c"), filepath.Join(dir, "layout")
	if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	cc := os.Getenv("CC")
	if cc == "" {
		cc = "cc"
	}
	if out, err := exec.Command(cc, "-std=c11", "-Wall", "-Werror", "-I"+folder, "-o", program, file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, source)
	}
	out, err := exec.Command(program).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// breaks tells what of the recorded facts no longer holds; news is what the record lacks.
func breaks(old, now []fact) (broken []string, news []fact) {
	current, recorded := map[string]string{}, map[string]string{}
	for _, f := range now {
		current[f.about] = f.says
	}
	for _, f := range old {
		recorded[f.about] = f.says
		if says, ok := current[f.about]; !ok {
			broken = append(broken, f.String()+": gone")
		} else if says != f.says && !compatible(f.about, f.says, says) {
			broken = append(broken, f.String()+": now "+says)
		}
	}
	for _, f := range now {
		if recorded[f.about] == f.says {
			continue
		}
		news = append(news, f)
		// Padding at a struct's end: an old program has left anything there.
		kind, field, _ := strings.Cut(f.about, " ")
		within, _, _ := strings.Cut(field, ".")
		if says, ok := recorded["struct "+within]; ok && kind == "field" && recorded[f.about] == "" && within != "receivewal_events" {
			var size, at int
			fmt.Sscanf(says, "%d bytes", &size)
			fmt.Sscanf(f.says, "at %d", &at)
			if at < size {
				broken = append(broken, f.String()+": where old programs have no field")
			}
		}
	}
	return broken, news
}

// compatible tells whether a fact may change like that. Structs begin with their size, and so may grow. receivewal_events does
// not, but it is the last field of receivewal_options, whose size covers it.
func compatible(about, old, now string) bool {
	var before, after, beforeAlign, afterAlign, beforeAt, afterAt int
	kind, name, _ := strings.Cut(about, " ")
	switch {
	case kind == "struct":
		fmt.Sscanf(old, "%d bytes, aligned to %d", &before, &beforeAlign)
		fmt.Sscanf(now, "%d bytes, aligned to %d", &after, &afterAlign)
		return after >= before && afterAlign == beforeAlign
	case name == "receivewal_options.events":
		fmt.Sscanf(old, "at %d, %d bytes", &beforeAt, &before)
		fmt.Sscanf(now, "at %d, %d bytes", &afterAt, &after)
		return afterAt == beforeAt && after >= before
	case name == "receivewal_events.reserved": // it gives way to new callbacks
		return true
	}
	return false
}

func read(t *testing.T) []fact {
	t.Helper()
	text, err := os.ReadFile(record)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var list []fact
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "#") {
			list = append(list, parse(line))
		}
	}
	return list
}

const head = `# What programs that were compiled against include/receivewal.h rely on (64-bit Linux).
# Never edit a line that is here: go test ./tests/abi -update adds what is new.
`

// TestRecord: what an old program relies on is there, and nothing is new without being recorded.
func TestRecord(t *testing.T) {
	now := facts(t, filepath.Join(root, "include"))
	old := read(t)
	broken, news := breaks(old, now)
	for _, b := range broken {
		t.Errorf("this breaks programs that are compiled already: %s", b)
	}
	if len(broken) > 0 || len(news) == 0 {
		return
	}
	if !*update {
		for _, f := range news {
			t.Errorf("not in the record (go test ./tests/abi -update): %s", f)
		}
		return
	}
	var text strings.Builder
	text.WriteString(head)
	for _, f := range now {
		fmt.Fprintln(&text, f)
	}
	if err := os.WriteFile(record, []byte(text.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestSymbols: each function of the record is in the library.
func TestSymbols(t *testing.T) {
	folder := os.Getenv("RECEIVEWAL_LIB")
	if folder == "" {
		folder = filepath.Join(root, "build/lib")
	}
	out, err := exec.Command("nm", "-D", "--defined-only", filepath.Join(folder, "libreceivewal.so.1")).CombinedOutput()
	if err != nil {
		t.Fatalf("build the libraries first, or set RECEIVEWAL_LIB to their folder: %v\n%s", err, out)
	}
	symbols := strings.Fields(string(out))
	functions := 0
	for _, f := range read(t) {
		if name, ok := strings.CutPrefix(f.about, "function "); ok {
			functions++
			if !slices.Contains(symbols, name) {
				t.Errorf("%s is not exported", name)
			}
		}
	}
	if functions < 20 {
		t.Errorf("the record has only %d functions", functions)
	}
}

// TestWhatBreaks: changes that break an old program are found, and additions are not taken for such.
func TestWhatBreaks(t *testing.T) {
	header := string(must(os.ReadFile(filepath.Join(root, "include/receivewal.h"))))
	old := read(t)
	for _, c := range []struct {
		name, from, to string
		broken, news   string // what must be named; "" for nothing at all
	}{
		{"a field moved", "    int server_version;", "    int extra; int server_version;", "receivewal_connection.server_version", "receivewal_connection.extra"},
		{"a field removed", "    int no_sync;", "", "receivewal_options.no_sync", ""},
		{"a field of another size", "    int flush_interval;", "    int64_t flush_interval;", "receivewal_options.flush_interval", ""},
		{"a field of another type", "    uint32_t file_mode;", "    float file_mode;", "receivewal_options.file_mode", ""},
		{"a struct shrunk", "    uint32_t segment_size;       /* wal_segment_size in bytes; 0: not known */", "", "struct receivewal_connection", ""},
		{"a struct grown", "    uint32_t data_directory_mode;  /* permission bits, 0700 or 0750 */",
			"    uint32_t data_directory_mode; uint64_t more;", "", "receivewal_system.more"},
		{"a field in the padding", "    uint32_t segment_size;       /* wal_segment_size in bytes; 0: not known */",
			"    uint32_t segment_size; uint32_t more;", "receivewal_connection.more", "receivewal_connection.more"},
		{"a number changed", "RECEIVEWAL_ERR_LOCKED = 52", "RECEIVEWAL_ERR_LOCKED = 56", "RECEIVEWAL_ERR_LOCKED", ""},
		{"a number added", "RECEIVEWAL_ERR_LOCKED = 52", "RECEIVEWAL_ERR_LOCKED = 52, RECEIVEWAL_ERR_MORE = 56", "", "RECEIVEWAL_ERR_MORE"},
		{"a number gone", "RECEIVEWAL_STATE_STOPPING = 3,", "", "RECEIVEWAL_STATE_STOPPING", ""},
		{"a flag changed", "RECEIVEWAL_SLOT_WAIT 8u", "RECEIVEWAL_SLOT_WAIT 16u", "RECEIVEWAL_SLOT_WAIT", ""},
		{"a buffer's length", "RECEIVEWAL_LSN_LEN 18", "RECEIVEWAL_LSN_LEN 20", "RECEIVEWAL_LSN_LEN", ""},
		{"a function gone", "int receivewal_connection_usable(receivewal *rw);", "", "receivewal_connection_usable", ""},
		{"a parameter changed", "receivewal_wait(receivewal *rw, int timeout)", "receivewal_wait(receivewal *rw, int64_t timeout)", "receivewal_wait", ""},
		{"a parameter renamed", "receivewal_wait(receivewal *rw, int timeout)", "receivewal_wait(receivewal *rw, int ms)", "", ""},
		{"a function added", "receivewal_status receivewal_stop(", "int receivewal_more(receivewal *rw);\nreceivewal_status receivewal_stop(", "", "receivewal_more"},
		{"a callback added", "void (*reserved[6])(void);", "int (*more)(void *ctx); void (*reserved[5])(void);", "", "receivewal_events.more"},
		{"a callback in the middle", "    int (*problem)(void *ctx, const receivewal_problem *problem);\n\n",
			"    int (*more)(void *ctx); int (*problem)(void *ctx, const receivewal_problem *problem);\n\n", "receivewal_events.problem", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			changed := strings.Replace(header, c.from, c.to, 1)
			if changed == header {
				t.Fatalf("%q is not in the header", c.from)
			}
			folder := t.TempDir()
			if err := os.WriteFile(filepath.Join(folder, "receivewal.h"), []byte(changed), 0o600); err != nil {
				t.Fatal(err)
			}
			broken, news := breaks(old, facts(t, folder))
			if text := strings.Join(broken, "\n"); (c.broken == "") != (text == "") || !strings.Contains(text, c.broken) {
				t.Errorf("found as broken:\n%s\nexpected: %q", text, c.broken)
			}
			if !strings.Contains(fmt.Sprint(news), c.news) {
				t.Errorf("found as new:\n%s\nexpected: %q", news, c.news)
			}
		})
	}
}

// TestCompilers: the headers compile without a warning, as C and as C++, with both compilers; receivewal.h alone.
func TestCompilers(t *testing.T) {
	source := filepath.Join(t.TempDir(), "header")
	text := `#include <receivewal.h>
#ifdef _POSIX_C_SOURCE
#include <receivewal_openssl.h>
#endif
receivewal_io i = RECEIVEWAL_IO_INIT;
receivewal_connection c = RECEIVEWAL_CONNECTION_INIT;
receivewal_options o = RECEIVEWAL_OPTIONS_INIT;
receivewal_progress p = RECEIVEWAL_PROGRESS_INIT;
receivewal_check_options q = RECEIVEWAL_CHECK_OPTIONS_INIT;
receivewal_check k = RECEIVEWAL_CHECK_INIT;
`
	if err := os.WriteFile(source, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range [][]string{{"gcc", "c", "c11"}, {"clang", "c", "c11"}, {"g++", "c++", "c++17"}, {"clang++", "c++", "c++17"}} {
		for _, define := range []string{"-DNOTHING", "-D_POSIX_C_SOURCE=200809L"} {
			t.Run(c[0]+" "+define, func(t *testing.T) {
				out, err := exec.Command(c[0], "-x", c[1], "-std="+c[2], "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only",
					define, "-I"+filepath.Join(root, "include"), source).CombinedOutput()
				if err != nil {
					t.Errorf("%v\n%s", err, out)
				}
			})
		}
	}
}
