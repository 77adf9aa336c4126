package main

import (
	"fmt"
	"regexp"
	"strings"
)

// A section is a heading of --help and the options below it.
type section struct {
	title   string // without the colon
	options []option
}

// An option is what --help says of it.
type option struct {
	short string // "-D", or ""
	long  string // "--directory"
	arg   string // "DIR", or ""
	text  string
}

var (
	optionLine = regexp.MustCompile(`^ {2,6}(?:(-[A-Za-z?]), )?(--[a-z][a-z0-9-]*)(?:=(\S+))?(?: +(\S.*))?$`)
	moreText   = regexp.MustCompile(`^ {20,}(\S.*)$`)
)

// parseHelp takes --help apart, which has the form of PostgreSQL's programs. A line under a heading that is neither an option
// nor more text of one is an error: nothing gets lost unseen.
func parseHelp(help string) ([]section, error) {
	var sections []section
	var last *section
	for line := range strings.Lines(help) {
		line = strings.TrimRight(line, "\n")
		switch title, isTitle := strings.CutSuffix(line, ":"); {
		case line == "":
		case line[0] != ' ' && isTitle && title != "Usage":
			sections = append(sections, section{title: title})
			last = &sections[len(sections)-1]
		case line[0] != ' ':
			last = nil // a sentence, or "Usage:"
		case last == nil: // the usage
		default:
			if m := moreText.FindStringSubmatch(line); m != nil && len(last.options) > 0 {
				o := &last.options[len(last.options)-1]
				o.text = strings.TrimLeft(o.text+" "+m[1], " ")
			} else if m := optionLine.FindStringSubmatch(line); m != nil {
				last.options = append(last.options, option{m[1], m[2], m[3], m[4]})
			} else {
				return nil, fmt.Errorf("%q is not an option in the form of PostgreSQL's programs", line)
			}
		}
	}
	for _, s := range sections {
		for _, o := range s.options {
			if o.text == "" {
				return nil, fmt.Errorf("nothing is said of %s", o.long)
			}
		}
	}
	if len(sections) == 0 {
		return nil, fmt.Errorf("there are no options")
	}
	return sections, nil
}
