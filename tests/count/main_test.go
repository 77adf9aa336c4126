package main

import (
	"strings"
	"testing"
)

func TestCount(t *testing.T) {
	for _, c := range []struct {
		what, events   string
		passed, failed int
		shown          string // must be in the output
	}{
		{"leaves count, parents don't", `
{"Action":"run","Package":"p","Test":"A"}
{"Action":"run","Package":"p","Test":"A/x"}
{"Action":"pass","Package":"p","Test":"A/x"}
{"Action":"run","Package":"p","Test":"A/y"}
{"Action":"pass","Package":"p","Test":"A/y"}
{"Action":"pass","Package":"p","Test":"A"}
{"Action":"pass","Package":"p"}`, 2, 0, "ok    p: 2 passed"},

		{"a failed subtest is one failure, with its output", `
{"Action":"run","Package":"p","Test":"A"}
{"Action":"run","Package":"p","Test":"A/x"}
{"Action":"output","Package":"p","Test":"A/x","Output":"the reason\n"}
{"Action":"fail","Package":"p","Test":"A/x"}
{"Action":"fail","Package":"p","Test":"A"}
{"Action":"fail","Package":"p"}`, 0, 1, "the reason"},

		{"a parent that fails by itself is one failure", `
{"Action":"run","Package":"p","Test":"A"}
{"Action":"run","Package":"p","Test":"A/x"}
{"Action":"pass","Package":"p","Test":"A/x"}
{"Action":"fail","Package":"p","Test":"A"}
{"Action":"fail","Package":"p"}`, 1, 1, "FAIL  p A"},

		{"a skipped test counts as failed", `
{"Action":"run","Package":"p","Test":"A"}
{"Action":"skip","Package":"p","Test":"A"}
{"Action":"pass","Package":"p"}`, 0, 1, "skipped"},

		{"a package without tests counts as nothing", `
{"Action":"run","Package":"p","Test":"A"}
{"Action":"pass","Package":"p","Test":"A"}
{"Action":"pass","Package":"p"}
{"Action":"skip","Package":"q"}`, 1, 0, "ok"},

		{"a package that doesn't build", `
{"ImportPath":"p [p.test]","Action":"build-output","Output":"undefined: x\n"}
{"ImportPath":"p [p.test]","Action":"build-fail"}
{"Action":"fail","Package":"p","FailedBuild":"p [p.test]"}`, 0, 1, "undefined: x"},

		{"a package that ends badly although its tests passed", `
{"Action":"run","Package":"p","Test":"A"}
{"Action":"pass","Package":"p","Test":"A"}
{"Action":"output","Package":"p","Output":"DATA RACE\n"}
{"Action":"fail","Package":"p"}`, 1, 1, "DATA RACE"},

		{"a test that never ends", `
{"Action":"run","Package":"p","Test":"A"}
{"Action":"fail","Package":"p"}`, 0, 1, "has not ended"},

		{"go test that is killed", `
{"Action":"run","Package":"p","Test":"A"}
{"Action":"pass","Package":"p","Test":"A"}`, 1, 1, "ended before"},

		{"nothing at all", "go: no such package", 0, 1, "go: no such package"},
	} {
		t.Run(c.what, func(t *testing.T) {
			var out strings.Builder
			passed, failed := count(strings.NewReader(c.events), &out)
			if passed != c.passed || failed != c.failed {
				t.Errorf("%d passed, %d failed; want %d and %d", passed, failed, c.passed, c.failed)
			}
			if !strings.Contains(out.String(), c.shown) {
				t.Errorf("%q is not in the output:\n%s", c.shown, out.String())
			}
		})
	}
}
