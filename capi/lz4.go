package main

/*
#cgo LDFLAGS: -l:liblz4.a
#include <lz4frame.h>
*/
import "C"

import (
	"fmt"
	"io"
	"slices"
	"unsafe"

	"libreceivewal/segment"
)

func init() { segment.UseLZ4(newLZ4) }

// lz4Encoder is the LZ4 library's (lz4frame.h), which costs about half of what the one in Go does. It is linked in, so that the core
// needs no other library. Its memory is C's: a hash table, of 16 KiB up to level 2 and 256 KiB above it, and a block.
type lz4Encoder struct {
	to          io.Writer
	state       *C.LZ4F_cctx
	preferences C.LZ4F_preferences_t
	out         []byte
	begun       bool // the frame has its header
}

// newLZ4 makes an encoder whose frames are as segment's own: independent blocks of 64 KiB, each with a checksum.
func newLZ4(level int) (segment.Encoder, error) {
	e := &lz4Encoder{}
	e.preferences.compressionLevel = C.int(level)
	e.preferences.frameInfo.blockSizeID = C.LZ4F_max64KB
	e.preferences.frameInfo.blockMode = C.LZ4F_blockIndependent
	e.preferences.frameInfo.blockChecksumFlag = C.LZ4F_blockChecksumEnabled
	if _, err := lz4Result(C.LZ4F_createCompressionContext(&e.state, C.LZ4F_VERSION)); err != nil {
		return nil, err
	}
	return e, nil
}

type lz4Size = C.size_t

// lz4Result is what a function of the library returns: a number of bytes, or an error.
func lz4Result(n lz4Size) (int, error) {
	if C.LZ4F_isError(n) != 0 {
		return 0, fmt.Errorf("LZ4: %s", C.GoString(C.LZ4F_getErrorName(n)))
	}
	return int(n), nil
}

// Free gives the memory back. The encoder is not used any more.
func (e *lz4Encoder) Free() {
	C.LZ4F_freeCompressionContext(e.state)
	e.state = nil
}

// Reset begins a new frame.
func (e *lz4Encoder) Reset(to io.Writer) { e.to, e.begun = to, false }

// step gives a function of the library room for what it puts out of n bytes, and passes that on.
func (e *lz4Encoder) step(n int, encode func(out unsafe.Pointer, size C.size_t) C.size_t) error {
	room := int(C.LZ4F_compressBound(C.size_t(n), &e.preferences)) + C.LZ4F_HEADER_SIZE_MAX
	e.out = slices.Grow(e.out[:0], room)[:room]
	size, err := lz4Result(encode(unsafe.Pointer(unsafe.SliceData(e.out)), C.size_t(room)))
	if err == nil && size > 0 {
		_, err = e.to.Write(e.out[:size])
	}
	return err
}

// begin writes the header, once.
func (e *lz4Encoder) begin() error {
	if e.begun {
		return nil
	}
	err := e.step(0, func(out unsafe.Pointer, size C.size_t) C.size_t {
		return C.LZ4F_compressBegin(e.state, out, size, &e.preferences)
	})
	e.begun = err == nil
	return err
}

// Write takes data; what is less than a block waits for more.
func (e *lz4Encoder) Write(b []byte) (int, error) {
	if err := e.begin(); err != nil || len(b) == 0 {
		return 0, err
	}
	err := e.step(len(b), func(out unsafe.Pointer, size C.size_t) C.size_t {
		return C.LZ4F_compressUpdate(e.state, out, size, unsafe.Pointer(unsafe.SliceData(b)), C.size_t(len(b)), nil)
	})
	if err != nil {
		return 0, err
	}
	return len(b), nil
}

// Flush ends the block.
func (e *lz4Encoder) Flush() error {
	if err := e.begin(); err != nil {
		return err
	}
	return e.step(0, func(out unsafe.Pointer, size C.size_t) C.size_t {
		return C.LZ4F_flush(e.state, out, size, nil)
	})
}

// Close ends the frame.
func (e *lz4Encoder) Close() error {
	if err := e.begin(); err != nil {
		return err
	}
	return e.step(0, func(out unsafe.Pointer, size C.size_t) C.size_t {
		return C.LZ4F_compressEnd(e.state, out, size, nil)
	})
}
