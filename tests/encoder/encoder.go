// Package encoder checks encoders of compressed segments: segment's own, and those that a program brings along.
package encoder

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"
)

// Encoder is as segment.Encoder; that package's own tests use this one.
type Encoder interface {
	io.Writer
	Flush() error
	Close() error
	Reset(io.Writer)
}

// Check makes sure that an encoder makes an ordinary file that holds what was written, whatever the pieces; that after each Flush that
// much can be decoded of what has come out; and that it does so again after Reset. It gives what came out at last.
func Check(t *testing.T, e Encoder, decoder func(io.Reader) io.Reader, random *rand.Rand) (data, encoded []byte) {
	t.Helper()
	data = make([]byte, 300_000)
	for i := range data {
		data[i] = byte(random.Uint32()) >> (i / 30_000 % 8)
	}
	for round := range 2 {
		var out bytes.Buffer
		e.Reset(&out)
		for at := 0; at < len(data); {
			n := min(len(data)-at, 1+random.IntN(90_000))
			if got, err := e.Write(data[at : at+n]); got != n || err != nil {
				t.Fatal(got, err)
			}
			if at += n; round == 1 {
				continue
			}
			if err := e.Flush(); err != nil {
				t.Fatal(err)
			}
			have, err := io.ReadAll(decoder(bytes.NewReader(out.Bytes())))
			if !bytes.Equal(have, data[:at]) || err == nil {
				t.Fatalf("after a flush at %d, %d bytes can be read, %v", at, len(have), err)
			}
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		encoded = out.Bytes()
		if have, err := io.ReadAll(decoder(bytes.NewReader(encoded))); !bytes.Equal(have, data) || err != nil {
			t.Errorf("%d bytes, %v", len(have), err)
		}
	}
	return data, encoded
}
