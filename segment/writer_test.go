package segment

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
)

const testSystem = 0x1122334455667788

// wal makes size bytes of WAL that begins with a segment's first page.
func wal(timeline Timeline, lsn LSN, size Size) []byte {
	data := bytes.Repeat([]byte{byte(lsn >> 20), 1, 2, 3}, int(size)/4)
	o := binary.LittleEndian
	o.PutUint16(data[0:], 0xD110)
	o.PutUint16(data[2:], longHeader)
	o.PutUint32(data[4:], uint32(timeline))
	o.PutUint64(data[8:], uint64(lsn))
	o.PutUint64(data[24:], testSystem)
	o.PutUint32(data[32:], uint32(size))
	o.PutUint32(data[36:], 8192)
	return data
}

func TestWriteSegments(t *testing.T) {
	path := t.TempDir()
	d, err := Open(OS, path)
	if err != nil {
		t.Fatal(err)
	}
	start := LSN(5 * MinSize)
	h, _ := ParseHistory(1, nil)
	w := d.NewWriter(WriterOptions{Timeline: 1, Start: start, Size: MinSize, SystemIdentifier: testSystem, History: h})
	lsn := start
	var want []byte
	for i := 0; i < 3; i++ {
		data := wal(1, start+LSN(i)*LSN(MinSize), MinSize)
		if i == 2 {
			data = data[:5000]
		}
		want = append(want, data...)
		for len(data) > 0 {
			n, err := w.Append(lsn, data[:min(len(data), 100_000)])
			if err != nil {
				t.Fatal(err)
			}
			data, lsn = data[n:], lsn+LSN(n)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if w.Flushed() != lsn {
		t.Errorf("flushed %s, want %s", w.Flushed(), lsn)
	}
	for _, e := range w.Events() {
		t.Logf("%+v", e)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"000000010000000000000005", "000000010000000000000006", "000000010000000000000007.partial"} {
		got, err := os.ReadFile(filepath.Join(path, name))
		if err != nil {
			t.Fatal(err)
		}
		part := make([]byte, MinSize)
		copy(part, want[i*int(MinSize):])
		if !bytes.Equal(got, part) {
			t.Errorf("%s differs", name)
		}
	}
	s, err := FindStart(path, 0, nil)
	t.Logf("%+v %v", s, err)
	if s.LSN != start+2*LSN(MinSize) {
		t.Errorf("start %+v", s)
	}
}
