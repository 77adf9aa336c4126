package main

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// A block of the header is a comment at the beginning of a line and the declarations right below it. Either may be "".
type block struct {
	group   string // the heading that it is under
	comment string // without the stars
	code    string
}

var (
	banner    = regexp.MustCompile(`^/\* -{20,} (.*) \*/$`)
	prototype = regexp.MustCompile(`(?m)^[a-z][\w ]*[ *](receivewal_\w+)\(`)
	item      = regexp.MustCompile(`^( *)([A-Z]\w*) {2,}(\S.*)$`)
)

// parseHeader takes the header apart: its first comment, then the blocks between extern "C" { and its end.
func parseHeader(text string) (about string, blocks []block, err error) {
	first, rest, found := strings.Cut(text, "*/\n")
	if !found || !strings.HasPrefix(text, "/*\n") {
		return "", nil, errors.New("it does not begin with a comment")
	}
	_, rest, found = strings.Cut(rest, "extern \"C\" {\n#endif\n")
	if !found {
		return "", nil, errors.New(`it has no extern "C"`)
	}
	rest, _, found = strings.Cut(rest, "#ifdef __cplusplus\n}")
	if !found {
		return "", nil, errors.New(`its extern "C" does not end`)
	}
	var b block
	end := func() {
		if b.comment != "" || b.code != "" {
			blocks = append(blocks, b)
		}
		b = block{group: b.group}
	}
	var comment []string // of the lines of an open comment
	depth, open := 0, false
	for line := range strings.Lines(rest) {
		line = strings.TrimRight(line, "\n")
		switch {
		case banner.MatchString(line):
			end()
			b.group = banner.FindStringSubmatch(line)[1]
		case open || depth == 0 && strings.HasPrefix(line, "/*"):
			if !open {
				end()
			}
			comment = append(comment, line)
			if open = !strings.HasSuffix(line, "*/"); !open {
				b.comment = uncomment(strings.Join(comment, "\n"))
				comment = nil
			}
		case line == "" && depth == 0:
			end()
		default:
			b.code += line + "\n"
			depth += strings.Count(line, "{") - strings.Count(line, "}")
		}
	}
	end()
	return uncomment(first), blocks, nil
}

// uncomment takes the stars off a comment. What lines are indented by beyond " * " stays.
func uncomment(text string) string {
	text = strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(text), "/*"), "*/")
	var b strings.Builder
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, " \n")
		if bare := strings.TrimLeft(line, " "); strings.HasPrefix(bare, "*") {
			line = strings.TrimPrefix(bare, "*")
		}
		b.WriteString(strings.TrimPrefix(line, " ") + "\n")
	}
	return strings.Trim(b.String(), "\n")
}

// libraryPage makes receivewal(3) of the header: what it says of itself, its functions, then its types and constants.
func libraryPage(e edition, text string) (string, error) {
	about, blocks, err := parseHeader(text)
	if err != nil {
		return "", err
	}
	title, about, _ := strings.Cut(about, "\n")
	name, title, found := strings.Cut(title, ": ")
	if !found || name != "receivewal.h" {
		return "", errors.New(`its first line is not "receivewal.h: ..."`)
	}
	about, _, _ = strings.Cut(about, "\nBSD-3-Clause")

	var prototypes string
	var functions, types strings.Builder
	functionGroup, typeGroup := "", ""
	for _, b := range blocks {
		page, group := &types, &typeGroup
		if isFunction(b.code) || b.code == "" {
			page, group = &functions, &functionGroup
			prototypes += b.code
		}
		if b.group != *group {
			*group = b.group
			fmt.Fprintf(page, ".SS %s\n", escapeProse(strings.ToUpper(b.group[:1])+b.group[1:]))
		}
		if b.code != "" {
			page.WriteString(".PP\n" + code(b.code))
		}
		if b.comment != "" {
			page.WriteString(comment(b.comment, b.code != ""))
		}
	}
	if prototypes == "" {
		return "", errors.New("it declares no function")
	}

	var b strings.Builder
	b.WriteString(".\\\" Made from include/receivewal.h. Do not edit.\n")
	fmt.Fprintf(&b, ".TH RECEIVEWAL 3 %s \"libreceivewal %s\" libreceivewal\n", e.date, e.version)
	b.WriteString(".SH NAME\n" + wrap("receivewal \\- "+escapeProse(strings.TrimSuffix(title, "."))))
	b.WriteString(".SH SYNOPSIS\n" + code("#include <receivewal.h>\n\n"+prototypes))
	b.WriteString(".PP\nCompile and link with\n" + `.RB \(dq "cc program.c $(pkg\-config \-\-cflags \-\-libs receivewal)" \(dq.` + "\n")
	b.WriteString(".SH DESCRIPTION\n" + comment(strings.Trim(about, "\n"), false))
	b.WriteString(".SH FUNCTIONS\n" + functions.String())
	b.WriteString(".SH TYPES\n" + types.String())
	b.WriteString(".SH \"SEE ALSO\"\n.BR receivewal (1)\n.PP\n" + prose("For connections that OpenSSL encrypts: <receivewal_openssl.h>."))
	return needless.ReplaceAllString(b.String(), "$1"), nil
}

// A heading is followed by a paragraph anyhow.
var needless = regexp.MustCompile(`(?m)^(\.S[HS] .*\n)\.PP\n`)

// isFunction tells prototypes from types, whose fields may be functions, and from macros.
func isFunction(code string) bool {
	return prototype.MatchString(code) && !strings.Contains(code, "{")
}

// comment makes paragraphs of a comment: those that are indented by four and more are code, and a word that stands by itself
// before an indented text is what that text is about. Below a declaration it is indented.
func comment(text string, indented bool) string {
	var b strings.Builder
	begin, nested := ".PP\n", ".RS\n"
	if indented {
		begin, nested = ".IP\n", ".RS 14\n"
	}
	for paragraph := range strings.SplitSeq(text, "\n\n") {
		lines := strings.Split(paragraph, "\n")
		if strings.HasPrefix(lines[0], "    ") {
			b.WriteString(strings.TrimSuffix(begin, ".IP\n"))
			if indented {
				b.WriteString(".PP\n")
			}
			b.WriteString(nested + code(strings.ReplaceAll("\n"+paragraph, "\n    ", "\n")[1:]) + ".RE\n")
			continue
		}
		var words []string
		start := begin
		flush := func() {
			if len(words) > 0 {
				b.WriteString(start + prose(strings.Join(words, " ")))
			}
			words, start = nil, begin
		}
		for _, line := range lines {
			if m := item.FindStringSubmatch(line); m != nil && m[1] != "" {
				flush()
				start = ".TP\n.B " + m[2] + "\n"
				line = m[3]
			}
			words = append(words, line)
		}
		flush()
	}
	return b.String()
}
