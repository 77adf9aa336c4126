//go:build receivewal_panic

package main

import "strings"

// panicOnPurpose panics where a directory's name asks for it, so that a test can see what a host sees of a panic. Only a
// build for tests has it.
func panicOnPurpose(where, directory string) {
	if strings.HasSuffix(directory, "panic!"+where) {
		var m map[string]int
		m[where] = 1
	}
}
