// Command manual writes the man pages and the completion for bash, from what they are about: the program's --help, the public
// header, and the hand-written parts beside this file.
//
//	manual PROGRAM HEADER FOLDER     for example: manual build/bin/receivewal include/receivewal.h build/share
//
// FOLDER gets man/man1/receivewal.1, man/man3/receivewal.3 and bash-completion/completions/receivewal. An option that
// --help has is in the man page and in the completion; a description of an option that --help has not is an error.
// The pages carry the date of SOURCE_DATE_EPOCH, so that the same source makes the same pages.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: manual PROGRAM HEADER FOLDER")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintf(os.Stderr, "manual: %v\n", err)
		os.Exit(1)
	}
}

var versionMacro = regexp.MustCompile(`(?m)^#define RECEIVEWAL_VERSION "(.*)"$`)

func run(program, headerFile, folder string) error {
	help, err := exec.Command(program, "--help").Output()
	if err != nil {
		return fmt.Errorf("%s --help: %w", program, err)
	}
	sections, err := parseHelp(string(help))
	if err != nil {
		return fmt.Errorf("%s --help: %w", program, err)
	}
	text, err := os.ReadFile(headerFile)
	if err != nil {
		return err
	}
	version := versionMacro.FindSubmatch(text)
	if version == nil {
		return fmt.Errorf("%s has no RECEIVEWAL_VERSION", headerFile)
	}
	epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return errors.New("SOURCE_DATE_EPOCH is not set to a number of seconds")
	}
	e := edition{string(version[1]), time.Unix(epoch, 0).UTC().Format(time.DateOnly)}

	page1, err := programPage(e, sections)
	if err != nil {
		return err
	}
	page3, err := libraryPage(e, string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", headerFile, err)
	}
	for name, content := range map[string]string{
		"man/man1/receivewal.1":                  page1,
		"man/man3/receivewal.3":                  page3,
		"bash-completion/completions/receivewal": completion(sections),
	} {
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// edition is what the pages say of themselves.
type edition struct{ version, date string }
