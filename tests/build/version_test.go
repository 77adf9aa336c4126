package build

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// version is the one that the header says.
func version(t *testing.T) string {
	t.Helper()
	match := regexp.MustCompile(`(?m)^#define RECEIVEWAL_VERSION "(.*)"$`).FindStringSubmatch(read(t, filepath.Join(root(t), "include", "receivewal.h")))
	if match == nil {
		t.Fatal("receivewal.h has no RECEIVEWAL_VERSION")
	}
	return match[1]
}

// sources are the files that the source tarball would have, but for the modules.
func sources(t *testing.T) []string {
	t.Helper()
	var list []string
	must(t, filepath.WalkDir(root(t), func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root(t), path)
		switch d.Name() {
		case "build", "vendor", ".git", "node_modules", "__pycache__":
			if name == d.Name() || d.Name() == "__pycache__" {
				if d.IsDir() {
					return filepath.SkipDir
				}
				return nil // .git of a worktree is a file
			}
		}
		if d.Type().IsRegular() && !strings.HasSuffix(name, ".pyc") {
			list = append(list, name)
		}
		return nil
	}))
	return list
}

// The version is in one place, the header; what else needs it takes it from there. The changelog begins with it.
func TestVersion(t *testing.T) {
	v := version(t)
	var major, minor, patch int
	if _, err := fmt.Sscanf(v, "%d.%d.%d", &major, &minor, &patch); err != nil {
		t.Fatalf("version %q: %v", v, err)
	}
	number := fmt.Sprintf("#define RECEIVEWAL_VERSION_NUM %d ", major*10000+minor*100+patch)
	if !strings.Contains(read(t, filepath.Join(root(t), "include", "receivewal.h")), number) {
		t.Errorf("receivewal.h does not have %q", number)
	}
	newest := regexp.MustCompile(`(?m)^## (\S+) \((\d{4}-\d\d-\d\d)\)$`).FindStringSubmatch(read(t, filepath.Join(root(t), "CHANGELOG.md")))
	if newest == nil || newest[1] != v {
		t.Errorf("the newest release in CHANGELOG.md is %q, the header's version %s", newest, v)
	}

	copied := regexp.MustCompile(`(?m)(^|[^0-9.])` + regexp.QuoteMeta(v) + `($|[^0-9.]|\.$|\.[^0-9])`)
	for _, name := range sources(t) {
		if name == "include/receivewal.h" || name == "CHANGELOG.md" || name == "go.sum" {
			continue
		}
		content, err := os.ReadFile(filepath.Join(root(t), name))
		must(t, err)
		for line := range bytes.Lines(content) {
			if copied.Match(line) {
				t.Errorf("%s has the version too: %s", name, line)
			}
		}
	}
	for _, program := range []string{"build/bin/receivewal"} {
		if got := run(t, root(t), nil, program, "--version"); got != "receivewal (libreceivewal) "+v+"\n" {
			t.Errorf("%s --version: %q", program, got)
		}
	}
}
