package segment_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"libreceivewal/segment"
)

func ExampleParseLSN() {
	lsn, err := segment.ParseLSN("16/B374D848")
	if err != nil {
		log.Fatal(err)
	}
	next, err := segment.ParseLSN("16/B4000000")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(lsn, "is", uint64(next-lsn), "bytes before", next)
	// Output: 16/B374D848 is 9119672 bytes before 16/B4000000
}

func ExampleParseSize() {
	size, err := segment.ParseSize("16MB") // as SHOW wal_segment_size answers
	fmt.Println(size, err)
	// Output: 16777216 <nil>
}

func ExampleAt() {
	const size = 16 << 20
	lsn, err := segment.ParseLSN("16/B374D848")
	if err != nil {
		log.Fatal(err)
	}
	id := segment.At(1, lsn, size)
	fmt.Println(id.Name(size), "has", id.LSN(size), "to", id.End(size))
	// Output: 0000000100000016000000B3 has 16/B3000000 to 16/B4000000
}

func ExampleParseName() {
	id, err := segment.ParseName("0000000200000016000000B3", 16<<20)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("timeline", id.Timeline, "from", id.LSN(16<<20))

	_, err = segment.ParseName("00000002.history", 16<<20)
	fmt.Println(err)
	// Output:
	// timeline 2 from 16/B3000000
	// "00000002.history" is not a WAL segment name
}

func ExampleParseHistory() {
	history, err := segment.ParseHistory(3, []byte("1\t0/5000060\tno recovery target specified\n\n2\t0/A000000\t\n"))
	if err != nil {
		log.Fatal(err)
	}
	for _, lsn := range []segment.LSN{0x5000000, 0x5000060, 0xB000000} {
		fmt.Println(lsn, "is of timeline", history.TimelineOf(lsn))
	}
	// Output:
	// 0/5000000 is of timeline 1
	// 0/5000060 is of timeline 2
	// 0/B000000 is of timeline 3
}

// An empty file with the name of a partial segment says where to begin, as for pg_receivewal.
func ExampleFindStart() {
	dir, err := os.MkdirTemp("", "wal")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "0000000100000000000000A7.partial"), nil, 0o600); err != nil {
		log.Fatal(err)
	}
	start, err := segment.FindStart(dir, 16<<20, func(text string) { log.Print(text) })
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s on timeline %d, because of %s\n", start.LSN, start.Timeline, start.File)
	// Output: 0/A7000000 on timeline 1, because of 0000000100000000000000A7.partial
}

// A directory without segments 2 and 3, of 1 MiB each.
func ExampleCheckDirectory() {
	dir, err := os.MkdirTemp("", "wal")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for _, number := range []uint64{1, 4, 5} {
		name := segment.ID{Timeline: 1, Number: number}.Name(1 << 20)
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 1<<20), 0o600); err != nil {
			log.Fatal(err)
		}
	}
	report, err := segment.CheckDirectory(segment.OS, dir, segment.CheckOptions{Size: 1 << 20})
	if err != nil {
		log.Fatal(err)
	}
	for _, p := range report.Problems {
		fmt.Printf("%s: from %s to %s\n", p.Kind, p.LSN, p.EndLSN)
	}
	fmt.Println(report.Segments, "complete segments")
	// Output:
	// missing: from 0/200000 to 0/400000
	// 3 complete segments
}

// One segment of 1 MiB is written, made durable and renamed. A second receiver is kept out all the while.
func ExampleWriter() {
	path, err := os.MkdirTemp("", "wal")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(path)
	dir, err := segment.Open(segment.OS, path)
	if err != nil {
		log.Fatal(err)
	}
	defer dir.Close()
	_, err = segment.Open(segment.OS, path)
	fmt.Println("locked:", errors.Is(err, segment.ErrLocked))

	const size, start, system = 1 << 20, segment.LSN(3 << 20), 7300000000000000000
	history, err := segment.ParseHistory(1, nil)
	if err != nil {
		log.Fatal(err)
	}
	w := dir.NewWriter(segment.WriterOptions{Timeline: 1, History: history, Start: start, Size: size, SystemIdentifier: system})
	data := make([]byte, size)
	copy(data, firstPage(1, start, system, size))
	for lsn := start; len(data) > 0; {
		n, err := w.Append(lsn, data[:min(len(data), 128<<10)])
		if err != nil {
			log.Fatal(err)
		}
		lsn, data = lsn+segment.LSN(n), data[n:]
	}
	if err := w.Close(); err != nil { // waits for the disk
		log.Fatal(err)
	}
	fmt.Println("flushed:", w.Flushed())
	files, err := os.ReadDir(path)
	if err != nil {
		log.Fatal(err)
	}
	for _, f := range files {
		fmt.Println(f.Name())
	}
	// Output:
	// locked: true
	// flushed: 0/400000
	// 000000010000000000000003
}

// firstPage is the header of a segment's first page (XLogLongPageHeaderData in access/xlog_internal.h), which a server sends.
func firstPage(timeline uint32, lsn segment.LSN, system uint64, size uint32) []byte {
	b := binary.LittleEndian.AppendUint16(nil, 0xD110) // XLOG_PAGE_MAGIC of PostgreSQL 15
	b = binary.LittleEndian.AppendUint16(b, 2)         // XLP_LONG_HEADER
	b = binary.LittleEndian.AppendUint32(b, timeline)
	b = binary.LittleEndian.AppendUint64(b, uint64(lsn))
	b = binary.LittleEndian.AppendUint64(b, 0) // no record goes on here
	b = binary.LittleEndian.AppendUint64(b, system)
	b = binary.LittleEndian.AppendUint32(b, size)
	return binary.LittleEndian.AppendUint32(b, 8192)
}
