package main

import (
	"regexp"
	"strings"
)

// escape makes text that roff prints as it is. "-" alone would become a hyphen, which can't be copied into a shell.
func escape(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`).Replace(text)
	if strings.HasPrefix(text, ".") {
		text = `\&` + text
	}
	return text
}

// What stands out in a sentence: options, names of the API, file names of the library.
var emphasis = regexp.MustCompile(`--?[A-Za-z][\w-]*|\b(?:receivewal|RECEIVEWAL)_[\w*]*\w\b|\blib[a-z-]+\.so(?:\.\d+)?`)

// prose makes filled text of a sentence, in lines that are not too long.
func prose(text string) string {
	var b strings.Builder
	at := 0
	for _, m := range emphasis.FindAllStringIndex(text, -1) {
		if m[0] > 0 && text[m[0]] == '-' && !strings.ContainsRune(" (/\"", rune(text[m[0]-1])) {
			continue // the middle of a word
		}
		b.WriteString(escapeProse(text[at:m[0]]) + `\fB\%` + escape(text[m[0]:m[1]]) + `\fR`)
		at = m[1]
	}
	b.WriteString(escapeProse(text[at:]))
	return wrap(b.String())
}

// escapeProse leaves hyphens and apostrophes to roff.
func escapeProse(text string) string {
	return strings.NewReplacer(`\`, `\e`, `"`, `\(dq`, "^", `\(ha`, "~", `\(ti`).Replace(text)
}

// wrap breaks text into lines; none begins with a character that roff takes for a request.
func wrap(text string) string {
	var b strings.Builder
	column := 0
	for word := range strings.FieldsSeq(text) {
		switch {
		case column == 0:
		case column+1+len(word) > 78:
			b.WriteByte('\n')
			column = 0
		default:
			b.WriteByte(' ')
			column++
		}
		if column == 0 && (word[0] == '.' || word[0] == '\'') {
			word = `\&` + word
		}
		b.WriteString(word)
		column += len(word)
	}
	return b.String() + "\n"
}

// code is text that keeps its lines.
func code(text string) string {
	var b strings.Builder
	b.WriteString(".EX\n")
	for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		b.WriteString(escape(strings.ReplaceAll(line, "\t", "        ")) + "\n")
	}
	b.WriteString(".EE\n")
	return b.String()
}
