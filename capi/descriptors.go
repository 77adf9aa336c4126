package main

// #include "descriptors.h"
import "C"

import (
	"sync/atomic"
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
