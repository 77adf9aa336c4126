package main

import (
	"reflect"
	"strings"
	"testing"
)

func TestParseHelp(t *testing.T) {
	got, err := parseHelp(`p receives.

Usage:
  p [OPTION]...

Options:
  -D, --directory=DIR    a directory
      --very-long-option=ARGUMENT
                         says what it does
                         in two lines
  -?, --help             show this help, then exit

More of them:
      --json             as JSON

This is p.
`)
	want := []section{
		{"Options", []option{
			{"-D", "--directory", "DIR", "a directory"},
			{"", "--very-long-option", "ARGUMENT", "says what it does in two lines"},
			{"-?", "--help", "", "show this help, then exit"},
		}},
		{"More of them", []option{{"", "--json", "", "as JSON"}}},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, help := range []string{
		"",
		"Options:\n  -D, --directory=DIR\n", // nothing is said of it
		"Options:\n  -x                     not long\n",   // would be left out
		"Options:\n  --a                    b\n   more\n", // so would "more"
	} {
		if got, err := parseHelp(help); err == nil {
			t.Errorf("%q: %+v", help, got)
		}
	}
}

// options.txt may not describe what isn't there.
func TestOptionsAreThoseOfHelp(t *testing.T) {
	if _, err := programPage(edition{}, []section{{"Options", []option{{"", "--json", "", "x"}}}}); err == nil || !strings.Contains(err.Error(), "which --help does not have") {
		t.Errorf("got %v", err)
	}
	for _, text := range []string{"about nothing\n", "--json\nx\n\n--json\ny\n"} {
		if got, err := parseDetails(text); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}

// What values an option has is told from the name of its argument, so that a new option is completed without being known here.
func TestCompletes(t *testing.T) {
	for arg, want := range map[string]string{
		"DIR": "directories", "DIRECTORY": "directories", "FILE": "files", "PATH": "files", "METHOD[:DETAIL]": "methods",
		"text|json": "words text json", "LSN": "nothing", "CONNSTR": "nothing",
	} {
		if got := completes(option{long: "--x", arg: arg}); got != want {
			t.Errorf("%s: %s, want %s", arg, got, want)
		}
	}
}

func TestRoff(t *testing.T) {
	for text, want := range map[string]string{
		"with --slot-name, or -n": `with \fB\%\-\-slot\-name\fR, or \fB\%\-n\fR` + "\n",
		"write-ahead log":         "write-ahead log\n",
		`a \ and "b"`:             `a \e and \(dqb\(dq` + "\n",
		".partial first":          `\&.partial first` + "\n",
		"call receivewal_stop.":   `call \fB\%receivewal_stop\fR.` + "\n",
	} {
		if got := prose(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	long := prose(strings.Repeat("'word ", 40))
	for line := range strings.Lines(long) {
		if len(line) > 80 || strings.HasPrefix(line, "'") {
			t.Errorf("%q", line)
		}
	}
	if got, want := code(".a\n'b' \\n\n"), ".EX\n\\&.a\n\\(aqb\\(aq \\en\n.EE\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestParseHeader(t *testing.T) {
	about, blocks, err := parseHeader(`/*
 * x.h: a title.
 *
 *     code
 */
#ifndef X
extern "C" {
#endif

/* ---------------------------------------- types */

/* A thing. */
typedef struct thing
{
    int a; /* with a comment */

    int b;
} thing;
#define THING_INIT { 0, 0 }

/*
 * About both.
 */

/* One of
 * them. */
int receivewal_one(void);

#ifdef __cplusplus
}
#endif
`)
	want := []block{
		{"types", "A thing.", "typedef struct thing\n{\n    int a; /* with a comment */\n\n    int b;\n} thing;\n#define THING_INIT { 0, 0 }\n"},
		{"types", "About both.", ""},
		{"types", "One of\nthem.", "int receivewal_one(void);\n"},
	}
	if err != nil || about != "x.h: a title.\n\n    code" || !reflect.DeepEqual(blocks, want) {
		t.Errorf("%q\n%q\n%v", about, blocks, err)
	}
	if _, _, err := parseHeader("int a;\n"); err == nil {
		t.Error("a header without anything is accepted")
	}
}
