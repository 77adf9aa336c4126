package stream

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"

	"libreceivewal/segment"
)

// The data of small messages that arrived together is written in one piece; a keepalive, a large message, one that is not all
// there, a segment's end and the end of the receive come in between.
func TestJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x30ABCD))
		var pieces []string
		p.data = func(d Data) error {
			if !bytes.Equal(d.Bytes, p.c.wal(1, d.LSN, len(d.Bytes))) {
				t.Errorf("%s: other data", d.LSN)
			}
			pieces = append(pieces, fmt.Sprintf("%s+%X", d.LSN, len(d.Bytes)))
			return nil
		}
		p.begin(Options{Slot: "s", StartLSN: 0x100000, EndLSN: 0x2002FF}, 0x100000)
		lsn := segment.LSN(0x100000)
		wal := func(n int) []byte {
			m := p.walMessage(lsn, n)
			lsn += segment.LSN(n)
			return encode(m)
		}
		var all []byte
		for _, m := range [][]byte{
			wal(0x10), wal(0x100), wal(0x20), encode(keepalive(lsn, 0)), wal(joinMost), wal(1), wal(joinMost + 1), wal(2), wal(3),
		} {
			all = append(all, m...)
		}
		rest := wal(0x400)
		p.write(append(all, rest[:0x100]...))
		p.wait()
		p.write(rest[0x100:])
		p.wait()
		p.send(p.walMessage(lsn, int(0x200000-0x100-lsn)))
		p.wait()
		lsn = 0x200000 - 0x100
		p.write(bytes.Join([][]byte{wal(0x80), wal(0x100), wal(0x80), wal(0x200), wal(0x80), wal(0x80)}, nil)) // ends behind the fifth
		p.wait()
		want := "0/100000+130 0/100130+2001 0/102131+2001 0/104132+5 0/104137+E2 0/104219+31E"
		if got := strings.Join(pieces, " "); !strings.HasPrefix(got, want) {
			t.Errorf("pieces %s\n  want %s", got, want)
		}
		want = "0/1FFF00+100 0/200000+300"
		if got := strings.Join(pieces, " "); !strings.HasSuffix(got, want) {
			t.Errorf("pieces %s\n  want %s at the end", got, want)
		}
		p.expect("status 0/200300 0/200300")
		p.copyEnds()
		p.end()
	})
}

// However the messages are cut, the data is that of the WAL, and none is lost.
func TestJoinAnything(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			p := newPlay(t, oneTimeline(0x30ABCD))
			next := segment.LSN(0x100000)
			p.data = func(d Data) error {
				if d.LSN != next || !bytes.Equal(d.Bytes, p.c.wal(1, d.LSN, len(d.Bytes))) {
					t.Errorf("seed %d: wrong data at %s, expected %s", seed, d.LSN, next)
				}
				next += segment.LSN(len(d.Bytes))
				return nil
			}
			p.begin(Options{Slot: "s", StartLSN: 0x100000}, 0x100000)
			lsn := segment.LSN(0x100000)
			for range 20 {
				var all []byte
				for range random.IntN(100) {
					n := random.IntN(300)
					if random.IntN(10) == 0 {
						n = random.IntN(2 * joinMost)
					}
					all = append(all, encode(p.walMessage(lsn, n))...)
					lsn += segment.LSN(n)
					if random.IntN(20) == 0 {
						all = append(all, encode(keepalive(lsn, 0))...)
					}
				}
				for len(all) > 0 {
					n := min(len(all), 1+random.IntN(5000))
					p.write(all[:n])
					p.wait()
					all = all[n:]
				}
			}
			if got := p.s.Progress().WrittenLSN; next != lsn || got != lsn {
				t.Errorf("seed %d: data up to %s, written %s, expected %s", seed, next, got, lsn)
			}
			p.stop()
		})
	}
}
