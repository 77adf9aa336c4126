package stream

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"

	"libreceivewal/segment"
)

// durableGzip is what can be decompressed of a file as it is on the disk.
func (p *play) durableGzip(name string) ([]byte, error) {
	p.dir.mu.Lock()
	defer p.dir.mu.Unlock()
	f := p.dir.durable[name]
	if f == nil {
		return nil, errors.New("there is no " + name)
	}
	z, err := gzip.NewReader(bytes.NewReader(f.synced))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

// With compression, too, what is reported flushed can be read from the disk, up to the last byte; names, progress and events are those
// of the compressed files.
func TestCompressedSynchronous(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x400080))
		p.begin(Options{Slot: "s", StartLSN: 0x300000, Synchronous: true, Compression: segment.Gzip}, 0x300000)
		const partial = "000000010000000000000003.gz.partial"
		for lsn := segment.LSN(0x300000); lsn < 0x300800; lsn += 0x80 {
			p.wal(lsn, 0x80)
			p.expect("status " + (lsn + 0x80).String() + " " + (lsn + 0x80).String())
			if have, err := p.durableGzip(partial); err != io.ErrUnexpectedEOF || !bytes.Equal(have, p.c.wal(1, 0x300000, int(lsn+0x80-0x300000))) {
				t.Fatalf("%s: %d bytes, %v", lsn, len(have), err)
			}
		}
		g := p.s.Progress()
		if g.Segment != "000000010000000000000003.gz" || g.StoredBytes == 0 || g.StoredBytes >= g.Bytes+1000 || g.Bytes != 0x800 {
			t.Errorf("%+v", g)
		}
		p.wal(0x300800, 1<<20-0x800)
		for m := p.next(); m.text != "status 0/400000 0/400000"; m = p.next() {
			if !strings.HasPrefix(m.text, "status 0/3") && !strings.HasPrefix(m.text, "status 0/400000 0/3") {
				t.Fatal(m.text)
			}
		}
		if have, err := p.durableGzip("000000010000000000000003.gz"); err != nil || !bytes.Equal(have, p.c.wal(1, 0x300000, 1<<20)) {
			t.Errorf("%d bytes, %v", len(have), err)
		}
		p.finish(0x400000, 0x400000)
		want := []string{"opened " + partial, "completed 000000010000000000000003.gz"}
		if got := strings.Join(p.events, ", "); !strings.Contains(got, want[0]) || !strings.Contains(got, want[1]) {
			t.Errorf("%s", got)
		}
	})
}

// On a full disk the encoder's data waits, though it was taken from the connection already and nothing more comes: once there is
// room it is all there. Without WaitOnDiskFull the receive ends with ErrDiskFull.
func TestCompressedDiskFull(t *testing.T) {
	for name, waits := range map[string]bool{"waits": true, "fails": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlay(t, oneTimeline(0x400080))
				var full atomic.Bool
				p.dir.hook = func(op, _ string) error {
					if op == "write" && full.Load() {
						return unix.ENOSPC
					}
					return nil
				}
				p.begin(Options{Slot: "s", StartLSN: 0x300000, Synchronous: true, WaitOnDiskFull: waits, Compression: segment.Gzip}, 0x300000)
				p.wal(0x300000, 100)
				p.expect("status 0/300064 0/300064")
				full.Store(true)
				p.wal(0x300064, 100)
				if !waits {
					p.expect("status 0/3000C8 0/300064")
					p.copyEnds()
					p.end(segment.ErrDiskFull)
					p.usable()
					return
				}
				for range 20 {
					p.expect("status 0/3000C8 0/300064")
				}
				if g := p.s.Progress(); g.State != StateDiskFull {
					t.Errorf("%+v", g)
				}
				full.Store(false)
				time.Sleep(diskRetry)
				for m := p.next(); m.text != "status 0/3000C8 0/3000C8"; m = p.next() {
					if m.text != "status 0/3000C8 0/300064" {
						t.Fatal(m.text)
					}
				}
				if have, _ := p.durableGzip("000000010000000000000003.gz.partial"); !bytes.Equal(have, p.c.wal(1, 0x300000, 200)) {
					t.Errorf("%d bytes", len(have))
				}
				if g := p.s.Progress(); g.State != StateStreaming {
					t.Errorf("%+v", g)
				}
				p.wal(0x3000C8, 10)
				p.expect("status 0/3000D2 0/3000D2")
				p.finish(0x3000D2, 0x3000D2)
				if got := strings.Join(p.events, ", "); strings.Count(got, "full: ") != 1 || strings.Count(got, "room after ") != 1 {
					t.Error(got)
				}
			})
		})
	}
}

// What a Go program may get wrong.
func TestCompressionOptions(t *testing.T) {
	for text, o := range map[string]Options{
		"no level 10":     {Compression: segment.Gzip, CompressionLevel: 10},
		"no level 1":      {CompressionLevel: 1},
		"no compression":  {Compression: segment.Unknown},
		"workers":         {Compression: segment.Zstd, CompressionWorkers: -1},
		"not a suffix":    {Suffixes: []string{".enc"}},
		`".partial"`:      {Suffixes: []string{".partial"}},
		`"zst" is not`:    {Suffixes: []string{"zst"}},
		`"./.x" is not a`: {Suffixes: []string{"./.x"}},
	} {
		o.Directory = "."
		err := o.check()
		if text == "not a suffix" {
			if err != nil {
				t.Error(err)
			}
			continue
		}
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), text) {
			t.Errorf("%v, want %q", err, text)
		}
	}
}
