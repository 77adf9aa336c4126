package main

// #include "descriptors.h"
import "C"

import (
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"libreceivewal/segment"
)

// held marks the descriptors of the core in the loader's table, so that a forked child closes its copies
// (loader/descriptors.c). It is a segment.Holder.
type held struct{}

// Hold marks a descriptor that was just opened.
func (held) Hold(fd int) {
	if word, bit := mark(fd); word != nil {
		atomic.OrUint64(word, bit)
	}
}

// Release takes the mark of a descriptor away that is about to be closed.
func (held) Release(fd int) {
	if word, bit := mark(fd); word != nil {
		atomic.AndUint64(word, ^bit)
	}
}

// mark is where a descriptor is marked; nil for a number beyond the table.
func mark(fd int) (word *uint64, bit uint64) {
	table := unsafe.Slice((*uint64)(C.rw_core_descriptors), int(C.rw_core_descriptor_words))
	if fd < 0 || fd/64 >= len(table) {
		return nil, 0
	}
	return &table[fd/64], 1 << (fd % 64)
}

// callsInFlight bounds the threads that wait for one disk: it is busy with that many.
const callsInFlight = 8

// files is the operating system's file system, with its descriptors marked, and shared by all sessions.
var files = segment.Limit(segment.OSFor(held{}), callsInFlight)

// A socket is what stream.DialFD gives.
type socket interface {
	net.Conn
	syscall.Conn
	ReadLazily(get func() []byte, put func()) (int, error)
}

// heldConn is a connection whose descriptor is marked until it is closed.
type heldConn struct {
	socket
	release func()
}

func hold(conn socket) socket {
	raw, err := conn.SyscallConn()
	if err != nil {
		return conn
	}
	var descriptor int
	if raw.Control(func(fd uintptr) { descriptor = int(fd); held{}.Hold(descriptor) }) != nil {
		return conn
	}
	return &heldConn{conn, sync.OnceFunc(func() { held{}.Release(descriptor) })}
}

func (c *heldConn) Close() error {
	c.release()
	return c.socket.Close()
}
