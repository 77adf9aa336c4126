package main

import (
	_ "embed"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

//go:embed receivewal.1.in
var programTemplate string

//go:embed options.txt
var optionDetails string

//go:embed receivewal.bash.in
var completionTemplate string

// programPage makes receivewal(1): each option with the words of --help, then with what options.txt has about it.
func programPage(e edition, sections []section) (string, error) {
	details, err := parseDetails(optionDetails)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for i, s := range sections {
		if i > 0 {
			fmt.Fprintf(&b, ".SS %s\n", escapeProse(s.title))
		}
		for _, o := range s.options {
			b.WriteString(".TP\n")
			b.WriteString(optionTag(o))
			b.WriteString(prose(sentence(o.text)))
			for i, paragraph := range details[o.long] {
				if i > 0 {
					b.WriteString(".IP\n")
				}
				b.WriteString(prose(paragraph))
			}
			delete(details, o.long)
		}
	}
	for long := range details {
		return "", fmt.Errorf("options.txt describes %s, which --help does not have", long)
	}
	page := strings.NewReplacer("@VERSION@", e.version, "@DATE@", e.date, "@OPTIONS@\n", b.String()).Replace(programTemplate)
	return page, nil
}

func optionTag(o option) string {
	arg := ""
	if o.arg != "" {
		arg = `\fI` + escape(o.arg) + `\fR`
	}
	tag := `\fB` + escape(o.long) + `\fR`
	if arg != "" {
		tag = `\fB` + escape(o.long) + `=\fR` + arg
	}
	if o.short != "" {
		short := `\fB` + escape(o.short) + `\fR`
		if arg != "" {
			short += `\ ` + arg
		}
		tag = short + ", " + tag
	}
	return tag + "\n"
}

// sentence makes a sentence of the words of --help.
func sentence(text string) string {
	r := []rune(text)
	r[0] = unicode.ToUpper(r[0])
	return string(r) + "."
}

// parseDetails reads options.txt: an option alone in a line, then paragraphs about it. Lines with "#" are comments.
func parseDetails(text string) (map[string][]string, error) {
	details := map[string][]string{}
	long, paragraph := "", ""
	end := func() {
		if paragraph != "" {
			details[long] = append(details[long], paragraph)
		}
		paragraph = ""
	}
	for line := range strings.Lines(text) {
		switch line = strings.TrimSpace(line); {
		case strings.HasPrefix(line, "#"):
		case line == "":
			end()
		case strings.HasPrefix(line, "--") && !strings.Contains(line, " "):
			end()
			if long = line; details[long] != nil {
				return nil, fmt.Errorf("options.txt describes %s twice", long)
			}
		case long == "":
			return nil, fmt.Errorf("options.txt: %q is about no option", line)
		default:
			paragraph = strings.TrimLeft(paragraph+" "+line, " ")
		}
	}
	end()
	return details, nil
}

// A name of an argument in --help that lists what it can be: "text|json".
var listed = regexp.MustCompile(`^[a-z0-9-]+(\|[a-z0-9-]+)+$`)

// completes says how the completion finds the values of an option, by the name of its argument in --help.
func completes(o option) string {
	arg := strings.Trim(o.arg, "[]")
	switch {
	case listed.MatchString(arg):
		return "words " + strings.ReplaceAll(arg, "|", " ")
	case strings.HasPrefix(arg, "METHOD"):
		return "methods"
	case strings.HasPrefix(arg, "DIR"):
		return "directories"
	case strings.HasPrefix(arg, "FILE"), strings.HasPrefix(arg, "PATH"):
		return "files"
	case o.long == "--host":
		return "hosts"
	case o.long == "--username":
		return "users"
	}
	return "nothing"
}

// completion makes the completion for bash.
func completion(sections []section) string {
	var words, cases []string
	for _, s := range sections {
		for _, o := range s.options {
			if o.short != "" {
				words = append(words, o.short)
			}
			if o.arg == "" {
				words = append(words, o.long)
				continue
			}
			words = append(words, o.long+"=")
			pattern := o.long
			if o.short != "" {
				pattern = o.short + " | " + o.long
			}
			cases = append(cases, fmt.Sprintf("        %s) _receivewal_%s ;;\n", pattern, completes(o)))
		}
	}
	slices.Sort(words)
	options := strings.ReplaceAll(wrap(strings.Join(words, " ")), "\n", "\n            ")
	return strings.NewReplacer("@OPTIONS@", strings.TrimSpace(options), "@CASES@\n", strings.Join(cases, "")).Replace(completionTemplate)
}
