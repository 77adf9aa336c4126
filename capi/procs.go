package main

import "runtime"

// As many goroutines can be between two waits as Go has processors for them (GOMAXPROCS), and one that is in a call of the kernel keeps
// its processor until the monitor takes it away, after some time. So there are as many as calls of the file system may be in
// flight: streams share the disk more evenly, and the monitor has less to do.
func init() {
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), callsInFlight))
}
