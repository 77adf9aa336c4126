package stream

import "testing"

// The more buffers are in use, the smaller they are; what is given back is used again, and no more is kept than that.
func TestBufferPool(t *testing.T) {
	var p bufferPool
	var all [][]byte
	for n := range 300 {
		b := p.get()
		want := 16 << 10
		if n < 16 {
			want = bufferSize
		} else if n < 128 {
			want = 64 << 10
		}
		if len(b) != want {
			t.Fatalf("buffer %d has %d bytes", n, len(b))
		}
		all = append(all, b)
	}
	for _, b := range all {
		p.put(b)
	}
	for i, want := range []int{16, 112, 128} {
		if c := &p.sizes[i]; len(c.free) != want || c.inUse != 0 {
			t.Errorf("%d buffers are kept, %d in use", len(c.free), c.inUse)
		}
	}
	if allocs := testing.AllocsPerRun(100, func() { p.put(p.get()) }); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}
