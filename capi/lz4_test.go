package main

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/pierrec/lz4/v4"
)

// Frames of the LZ4 library hold what was written, whatever the pieces; after each Flush that much can be decoded of what has come
// out; a damaged byte does not pass for data.
func TestLZ4(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 300_000)
	for i := range data {
		data[i] = byte(random.Uint32()) >> (i / 30_000 % 8)
	}
	for level := range 13 {
		t.Run(fmt.Sprint(level), func(t *testing.T) {
			made, err := newLZ4(level)
			if err != nil {
				t.Fatal(err)
			}
			e := made.(*lz4Encoder)
			defer e.Free()
			for round := range 2 {
				var out bytes.Buffer
				e.Reset(&out)
				for at := 0; at < len(data); {
					n := min(len(data)-at, random.IntN(150_000))
					if got, err := e.Write(data[at : at+n]); got != n || err != nil {
						t.Fatal(got, err)
					}
					if at += n; round == 1 {
						continue
					}
					if err := e.Flush(); err != nil {
						t.Fatal(err)
					}
					if have, err := io.ReadAll(lz4.NewReader(bytes.NewReader(out.Bytes()))); !bytes.Equal(have, data[:at]) || err == nil {
						t.Fatalf("after a flush at %d, %d bytes can be read, %v", at, len(have), err)
					}
				}
				if err := e.Close(); err != nil {
					t.Fatal(err)
				}
				if have, err := io.ReadAll(lz4.NewReader(bytes.NewReader(out.Bytes()))); !bytes.Equal(have, data) || err != nil {
					t.Errorf("%d bytes, %v", len(have), err)
				}
				for range 50 {
					damaged := bytes.Clone(out.Bytes())
					damaged[random.IntN(len(damaged))] ^= 1 << random.IntN(8)
					if have, err := io.ReadAll(lz4.NewReader(bytes.NewReader(damaged))); err == nil && len(have) == len(data) && !bytes.Equal(have, data) {
						t.Error("damage is not noticed")
					}
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
