package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// What docs/performance.md has around the tables of a bench: a line that names it, and one at their end.
const (
	tablesBegin = "<!-- bench: "
	tablesEnd   = "<!-- end -->"
)

// document puts tables and plots of the results into docs/performance.md. What hasn't been measured stays as it is there.
func document(o *options, out io.Writer) error {
	const docs = "docs"
	page := filepath.Join(docs, "performance.md")
	text, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	parts := strings.Split(string(text), tablesBegin)
	for i, part := range parts[1:] {
		name, rest, found := strings.Cut(part, " -->")
		_, after, ended := strings.Cut(rest, tablesEnd)
		if !found || !ended {
			return fmt.Errorf("%s: no end of the tables of %.20q", page, part)
		}
		r := &report{}
		raw, err := os.ReadFile(filepath.Join(o.results, name+".json"))
		if errors.Is(err, os.ErrNotExist) {
			fmt.Fprintf(out, "%s: no results, stays as it is\n", name)
			continue
		}
		if err := errors.Join(err, json.Unmarshal(raw, r)); err != nil {
			return err
		}
		plot := "performance-" + name + ".svg"
		if err := os.WriteFile(filepath.Join(docs, plot), []byte(r.plot()), 0o644); err != nil {
			return err
		}
		var tables strings.Builder
		fmt.Fprintf(&tables, " -->\n![%s](%s)\n\n%s. %d rounds. `%s`\n", r.Title, plot, r.Machine, r.Rounds, r.Command)
		for _, in := range r.cases() {
			fmt.Fprintf(&tables, "\n%s", r.table(in))
		}
		parts[i+1] = name + tables.String() + "\n" + tablesEnd + after
	}
	return os.WriteFile(page, []byte(strings.Join(parts, tablesBegin)), 0o644)
}
