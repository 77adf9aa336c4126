//go:build !receivewal_panic

package main

// panicOnPurpose does nothing: see panic_on.go.
func panicOnPurpose(where, directory string) {}
