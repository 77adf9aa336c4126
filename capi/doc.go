// Package main is libreceivewal-core.so.1, the Go half of libreceivewal, built with -buildmode=c-shared. It maps the private C
// interface of loader/core.h to package stream and package segment, and their errors to the numbers of
// include/receivewal.h; it decides nothing.
//
// It must never block in an exported function, never call a function of the host (the loader does that, on the host's own
// thread), and never let a panic out: each exported function and each goroutine that it starts recovers, and answers
// RECEIVEWAL_ERR_INTERNAL.
package main

func main() {}
