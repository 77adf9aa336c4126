package main

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/pierrec/lz4/v4"

	"libreceivewal/tests/encoder"
)

// Frames of the LZ4 library hold what was written, whatever the pieces; after each Flush that much can be decoded of what has come
// out; a damaged byte does not pass for data.
func TestLZ4(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	decoder := func(in io.Reader) io.Reader { return lz4.NewReader(in) }
	for level := range 13 {
		t.Run(fmt.Sprint(level), func(t *testing.T) {
			e, err := newLZ4(level)
			if err != nil {
				t.Fatal(err)
			}
			defer e.(*lz4Encoder).Free()
			data, out := encoder.Check(t, e, decoder, random)
			for range 100 {
				damaged := bytes.Clone(out)
				damaged[random.IntN(len(damaged))] ^= 1 << random.IntN(8)
				if have, err := io.ReadAll(decoder(bytes.NewReader(damaged))); err == nil && len(have) == len(data) && !bytes.Equal(have, data) {
					t.Error("damage is not noticed")
				}
			}
		})
	}
}

// What goes wrong is told, and the next frame begins anew.
func TestLZ4Errors(t *testing.T) {
	e, err := newLZ4(0)
	if err != nil {
		t.Fatal(err)
	}
	defer e.(*lz4Encoder).Free()
	e.Reset(full{})
	if n, err := e.Write([]byte("x")); n != 0 || err != io.ErrShortWrite {
		t.Errorf("%d, %v", n, err)
	}
	if err := e.Flush(); err != io.ErrShortWrite {
		t.Errorf("the header is not written: %v", err)
	}
	var out bytes.Buffer
	e.Reset(&out)
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if have, err := io.ReadAll(lz4.NewReader(&out)); len(have) != 0 || err != nil {
		t.Errorf("of an empty frame: %q, %v", have, err)
	}
	if _, err := lz4Result(^lz4Size(0)); err == nil || err.Error() != "LZ4: ERROR_GENERIC" {
		t.Errorf("an error is %v", err)
	}
}

// full is a disk that takes nothing.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, io.ErrShortWrite }
