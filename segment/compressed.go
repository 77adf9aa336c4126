package segment

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// fileReader keeps apart what the disk refused and what a decoder did not understand.
type fileReader struct {
	io.ReaderAt
	err error
}

func (r *fileReader) ReadAt(p []byte, offset int64) (int, error) {
	n, err := r.ReaderAt.ReadAt(p, offset)
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

// uncompressedSize tells how many bytes a compressed file holds, as cheaply as pg_receivewal does: a complete gzip file says it
// in its last four bytes, the others have to be read.
func (d *Directory) uncompressedSize(f file, limit int64) (int64, error) {
	if f.compression != Gzip || f.partial {
		return d.decodedSize(f, limit)
	}
	in, err := d.dir.Open(f.name, false)
	if err != nil {
		return 0, failure("open file", d.full(f.name), err)
	}
	defer in.Close()
	length, err := in.Size()
	if err != nil {
		return 0, failure("stat file", d.full(f.name), err)
	}
	var size [4]byte // ISIZE, RFC 1952
	if length < int64(len(size)) {
		return 0, nil
	}
	if _, err := in.ReadAt(size[:], length-int64(len(size))); err != nil {
		return 0, failure("read file", d.full(f.name), err)
	}
	return int64(binary.LittleEndian.Uint32(size[:])), nil
}

// decodedSize decompresses a file to tell how many bytes it holds. One that cannot be read to its end has as many as could
// be decoded; nothing beyond limit is looked at.
func (d *Directory) decodedSize(f file, limit int64) (int64, error) {
	n, _, err := d.decode(f, limit)
	return n, err
}

// decode is decodedSize and what keeps the file from being read to its end, such as a wrong checksum.
func (d *Directory) decode(f file, limit int64) (n int64, damage, err error) {
	in, err := d.dir.Open(f.name, false)
	if err != nil {
		return 0, nil, failure("open file", d.full(f.name), err)
	}
	defer in.Close()
	length, err := in.Size()
	if err != nil {
		return 0, nil, failure("stat file", d.full(f.name), err)
	}
	from := &fileReader{ReaderAt: in}
	n, damage = decodable(f.compression, io.NewSectionReader(from, 0, length), limit+1)
	if from.err != nil {
		return 0, nil, failure("read file", d.full(f.name), from.err)
	}
	return n, damage, nil
}

// decodable counts the bytes that can be decoded before the data ends, is damaged, or reaches the limit.
func decodable(compression Compression, in io.Reader, limit int64) (n int64, damage error) {
	return io.Copy(io.Discard, io.LimitReader(decoder(compression, in), limit))
}

// maxWindow is what a frame of Zstandard may make its reader keep: as much as the zstd program allows (ZSTD_WINDOWLOG_LIMIT_DEFAULT).
const maxWindow = 128 << 20

// decoder reads what a file holds. It starts no goroutine.
func decoder(compression Compression, in io.Reader) io.Reader {
	switch compression {
	case Gzip:
		z, err := gzip.NewReader(bufio.NewReader(in))
		if err != nil {
			return bytes.NewReader(nil)
		}
		return z
	case LZ4:
		return lz4.NewReader(in)
	case Zstd:
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return bytes.NewReader(nil)
		}
		return z
	}
	return in
}
