package segment

import (
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// CheckLevel refuses a level that the compression doesn't have. 0 is the default of each.
func (c Compression) CheckLevel(level int) error {
	if c < Plain || c >= Unknown {
		return fmt.Errorf("there is no compression %d", int(c))
	}
	if highest := [...]int{Plain: 0, Gzip: 9, LZ4: 12, Zstd: 19}[c]; level < 0 || level > highest {
		return fmt.Errorf("compression %s has no level %d, only up to %d", c, level, highest)
	}
	return nil
}

// Encoder compresses what is written to it: one gzip member, one LZ4 frame, one Zstandard frame. It is used by one goroutine at a time.
type Encoder interface {
	io.Writer
	Flush() error // all that was written can be decoded from what has come out
	Close() error // the same, and it is complete
	Reset(io.Writer)
}

// makeLZ4 makes encoders of LZ4: see UseLZ4.
var makeLZ4 = newLZ4

// UseLZ4 has all Writers take their encoders of LZ4 from make, in place of the one in Go that comes with this package: for a program
// that has a faster one. It is to be called before the first Writer is made. The level is one that CheckLevel has let pass. An encoder
// is Reset before each frame; when it is not needed any more, its Free is called, if it has that method. Frames should have a checksum
// of each block, as those of this package have, or damage is not noticed.
func UseLZ4(make func(level int) (Encoder, error)) { makeLZ4 = make }

// newEncoder makes an encoder of segments that starts no goroutine. It is to be Reset before its first use.
func newEncoder(c Compression, level int, size Size) (Encoder, error) {
	switch c {
	case Gzip:
		if level == 0 {
			level = gzip.DefaultCompression
		}
		return gzip.NewWriterLevel(nil, level)
	case LZ4:
		return makeLZ4(level)
	case Zstd:
		if level == 0 {
			level = defaultZstdLevel
		}
		return zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1),
			zstd.WithWindowSize(max(min(zstdWindow, int(size)), zstd.MinWindowSize)), zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(level)))
	}
	return nil, fmt.Errorf("%w: there is no encoder of %s", ErrInternal, c)
}

const (
	// On WAL this library's encoder gains nothing by the next level, 3, at three times the cost.
	defaultZstdLevel = 1

	// What an encoder of Zstandard looks back to, in bytes. WAL repeats itself within a few hundred kilobytes; more costs time, and
	// memory, and gains nothing.
	zstdWindow = 512 << 10
)

// newLZ4 maps the levels of the LZ4 library: up to 2 is fast, 3 to 12 is its high compression mode (lz4hc.h). Blocks of 64 KiB, as
// pg_receivewal's, fit into the processor's cache: larger ones cost a third more and gain two percent. With pg_receivewal's frames one
// cannot tell whether they are damaged. Ours have the checksum of each compressed block, a tenth of what that of all data would cost,
// and it holds for what was flushed of a frame that has no end.
func newLZ4(level int) (Encoder, error) {
	z := lz4.NewWriter(nil)
	levels := [...]lz4.CompressionLevel{lz4.Fast, lz4.Fast, lz4.Fast, lz4.Level1, lz4.Level2, lz4.Level3, lz4.Level4, lz4.Level5,
		lz4.Level6, lz4.Level7, lz4.Level8, lz4.Level9, lz4.Level9}
	err := z.Apply(lz4.BlockSizeOption(lz4.Block64Kb), lz4.ChecksumOption(false), lz4.BlockChecksumOption(true),
		lz4.CompressionLevelOption(levels[level]), lz4.ConcurrencyOption(1))
	return z, err
}
