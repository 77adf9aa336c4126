package segment

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// seg is the name of a segment of 1 MiB.
func seg(timeline Timeline, n uint64) string { return ID{timeline, n}.Name(MinSize) }

// segs are complete segments without content.
func segs(timeline Timeline, numbers ...uint64) map[string]made {
	files := map[string]made{}
	for _, n := range numbers {
		files[seg(timeline, n)] = sized(mib)
	}
	return files
}

// with adds files to others.
func with(sets ...map[string]made) map[string]made {
	all := map[string]made{}
	for _, set := range sets {
		for name, f := range set {
			all[name] = f
		}
	}
	return all
}

func one(name string, f made) map[string]made { return map[string]made{name: f} }

// began is a history file: each timeline's end, in MiB.
func began(timeline Timeline, ends ...string) map[string]made {
	var b strings.Builder
	for i, end := range ends {
		if end != "" {
			fmt.Fprintf(&b, "%d\t%s\tno recovery target specified\n", i+1, end)
		}
	}
	return one(HistoryName(timeline), bytesOf([]byte(b.String())))
}

// told is a problem in one line.
func told(p Problem) string {
	s := p.Kind.String()
	if p.File != "" {
		s += " " + p.File
	}
	if p.EndLSN != 0 {
		s += fmt.Sprintf(" %d:%s-%s", p.Timeline, p.LSN, p.EndLSN)
	}
	return s
}

func paged(timeline Timeline, lsn LSN, size Size, system uint64) made {
	h := header(timeline, lsn, size)
	for i := range 8 {
		h[24+i] = byte(system >> (8 * i))
	}
	return made{content: h[:], size: mib}
}

func TestCheck(t *testing.T) {
	noise := make([]byte, mib) // does not compress: a bit that is wrong stays one
	for i, r := 0, rand.New(rand.NewPCG(1, 2)); i < len(noise); i++ {
		noise[i] = byte(r.Uint32())
	}
	gz, lz := gzipped(make([]byte, mib)), wholeLZ4(make([]byte, mib))
	zst := wholeZstd(make([]byte, mib))
	noisy := gzipped(noise)
	flip := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[at] ^= 0x10
		return b
	}
	const system = 7
	page := func(timeline Timeline, n uint64) map[string]made {
		return one(seg(timeline, n), paged(timeline, LSN(n*mib), MinSize, system))
	}
	pages, decode := CheckOptions{Size: MinSize, Pages: true}, CheckOptions{Size: MinSize, Decode: true}
	for _, c := range []struct {
		name     string
		files    map[string]made
		o        CheckOptions // zero: 1 MiB
		segments int
		oldest   string
		next     LSN
		timeline Timeline
		problems []string
		says     string // a part of the first problem's text
	}{
		{name: "nothing"},
		{name: "nothing that is ours", files: map[string]made{"notes": sized(3), "x.history": sized(1), seg(1, 5): {folder: true}}},
		{name: "sound", files: with(segs(1, 5, 6, 7), one(seg(1, 8)+".partial", sized(mib))), segments: 3, oldest: seg(1, 5), next: 8 * mib, timeline: 1},
		{name: "a hole", files: segs(1, 5, 7), segments: 2, oldest: seg(1, 5), next: 8 * mib, timeline: 1,
			problems: []string{"missing 1:0/600000-0/700000"}, says: "segment " + seg(1, 6) + " is missing"},
		{name: "ranges", files: segs(1, 5, 9, 10, 12), segments: 4, oldest: seg(1, 5), next: 13 * mib, timeline: 1,
			problems: []string{"missing 1:0/600000-0/900000", "missing 1:0/B00000-0/C00000"},
			says:     "segments " + seg(1, 6) + " to " + seg(1, 8) + " are missing"},
		{name: "a hole beyond 4 GiB", files: segs(1, 4095, 4097), segments: 2, oldest: seg(1, 4095), next: 4098 * mib, timeline: 1,
			problems: []string{"missing 1:1/0-1/100000"}, says: "000000010000000100000000"},
		{name: "a hole before a partial", files: with(segs(1, 5), one(seg(1, 7)+".partial", sized(mib))), segments: 1, oldest: seg(1, 5), next: 7 * mib,
			timeline: 1, problems: []string{"missing 1:0/600000-0/700000"}},
		{name: "a partial where one should be complete", files: with(segs(1, 5, 7), one(seg(1, 6)+".partial", sized(mib))), segments: 2,
			oldest: seg(1, 5), next: 8 * mib, timeline: 1, problems: []string{"missing 1:0/600000-0/700000"}},
		{name: "a partial alone", files: one(seg(1, 7)+".partial", sized(0)), next: 7 * mib, timeline: 1},
		{name: "a switch", files: with(segs(1, 5, 6), one(seg(1, 7)+".partial", sized(mib)), segs(2, 7, 8), began(2, "0/780000")), segments: 4,
			oldest: seg(1, 5), next: 9 * mib, timeline: 2},
		{name: "a hole across a switch", files: with(segs(1, 5), segs(2, 9), began(2, "0/780000")), segments: 2, oldest: seg(1, 5), next: 10 * mib,
			timeline: 2, problems: []string{"missing 1:0/600000-0/700000", "missing 2:0/700000-0/900000"}},
		{name: "a hole across a switch between segments", files: with(segs(1, 5), segs(2, 8), began(2, "0/700000")), segments: 2, oldest: seg(1, 5),
			next: 9 * mib, timeline: 2, problems: []string{"missing 1:0/600000-0/700000", "missing 2:0/700000-0/800000"}},
		{name: "a hole across two switches in one segment", files: with(segs(1, 5), segs(3, 8), began(2, "0/610000"), began(3, "0/610000", "0/620000")),
			segments: 2, oldest: seg(1, 5), next: 9 * mib, timeline: 3, problems: []string{"missing 3:0/600000-0/800000"}},
		{name: "where a timeline began", files: with(segs(1, 5, 6, 7), segs(2, 8), began(2, "0/780000")), segments: 4, oldest: seg(1, 5),
			next: 9 * mib, timeline: 2, problems: []string{"missing 2:0/700000-0/800000"}},
		{name: "several abandoned timelines", files: with(segs(1, 5, 6, 7), segs(2, 6, 7), segs(3, 6, 7, 8), began(2, "0/680000"), began(3, "0/670000")),
			segments: 8, oldest: seg(1, 5), next: 9 * mib, timeline: 3},
		{name: "a newer timeline that has not come as far as the abandoned one", files: with(segs(1, 5, 6, 7, 8, 9), segs(2, 6, 8), began(2, "0/680000")),
			segments: 7, oldest: seg(1, 5), next: 10 * mib, timeline: 1, problems: []string{"missing 2:0/700000-0/800000"}},
		{name: "a hole of both", files: with(segs(1, 5, 7, 8, 9, 10, 11), segs(2, 7, 8), one(seg(2, 10)+".partial", sized(0)), began(2, "0/780000")),
			segments: 8, oldest: seg(1, 5), next: 12 * mib, timeline: 1, problems: []string{"missing 1:0/600000-0/700000", "missing 2:0/900000-0/A00000"}},
		{name: "wrong size", files: with(segs(1, 5, 7), one(seg(1, 6), sized(5))), segments: 2, oldest: seg(1, 5), next: 8 * mib, timeline: 1,
			problems: []string{"wrong size " + seg(1, 6) + " 1:0/600000-0/700000", "missing 1:0/600000-0/700000"}, says: "size 5"},
		{name: "only a wrong size", files: one(seg(1, 6), sized(5)), problems: []string{"wrong size " + seg(1, 6) + " 1:0/600000-0/700000"}},
		{name: "compressed and foreign ones are complete", files: with(segs(1, 5), one(seg(1, 6)+".gz", bytesOf(gz)), one(seg(1, 7)+".lz4", bytesOf(lz)),
			one(seg(1, 8)+".zst", sized(3)), one(seg(1, 9)+".zst.aes", sized(3)), segs(1, 10)), segments: 6, oldest: seg(1, 5), next: 11 * mib, timeline: 1},
		{name: "with an older suffix", files: with(segs(1, 5, 6), one(seg(1, 5)+".gz", bytesOf(gz))), segments: 2, oldest: seg(1, 5), next: 7 * mib, timeline: 1},
		{name: "gzip of another size", files: with(segs(1, 5, 7), one(seg(1, 6)+".gz", bytesOf(gzipped(make([]byte, 100))))), segments: 2, oldest: seg(1, 5),
			next: 8 * mib, timeline: 1, problems: []string{"damaged " + seg(1, 6) + ".gz 1:0/600000-0/700000", "missing 1:0/600000-0/700000"}, says: "size 100"},
		{name: "gzip is not read to its end unless asked", files: with(segs(1, 5, 7), one(seg(1, 6)+".gz", bytesOf(flip(noisy, len(noisy)/2)))), segments: 3,
			oldest: seg(1, 5), next: 8 * mib, timeline: 1},
		{name: "a bit of gzip", o: decode, files: with(segs(1, 5, 7), one(seg(1, 6)+".gz", bytesOf(flip(noisy, len(noisy)/2)))), segments: 2,
			oldest: seg(1, 5), next: 8 * mib, timeline: 1,
			problems: []string{"damaged " + seg(1, 6) + ".gz 1:0/600000-0/700000", "missing 1:0/600000-0/700000"}, says: "checksum"},
		{name: "gzip cut off", o: decode, files: with(segs(1, 5, 7), one(seg(1, 6)+".gz", bytesOf(noisy[:len(noisy)-3]))), segments: 2,
			oldest: seg(1, 5), next: 8 * mib, timeline: 1,
			problems: []string{"damaged " + seg(1, 6) + ".gz 1:0/600000-0/700000", "missing 1:0/600000-0/700000"}},
		{name: "lz4 cut off", o: decode, files: with(segs(1, 5, 7), one(seg(1, 6)+".lz4", bytesOf(lz[:len(lz)/2]))), segments: 2,
			oldest: seg(1, 5), next: 8 * mib, timeline: 1,
			problems: []string{"damaged " + seg(1, 6) + ".lz4 1:0/600000-0/700000", "missing 1:0/600000-0/700000"}},
		{name: "a bit of lz4", o: decode, files: with(segs(1, 5, 7), one(seg(1, 6)+".lz4", bytesOf(flip(wholeLZ4(noise), mib/2)))), segments: 2,
			oldest: seg(1, 5), next: 8 * mib, timeline: 1,
			problems: []string{"damaged " + seg(1, 6) + ".lz4 1:0/600000-0/700000", "missing 1:0/600000-0/700000"}},
		{name: "sound when decoded", o: decode, files: with(segs(1, 5), one(seg(1, 6)+".gz", bytesOf(noisy)), one(seg(1, 7)+".lz4", bytesOf(lz)),
			one(seg(1, 8)+".zst", bytesOf(wholeZstd(noise))), one(seg(1, 9)+".aes", sized(3))), segments: 5, oldest: seg(1, 5), next: 10 * mib, timeline: 1},
		{name: "zstd cut off", o: decode, files: with(segs(1, 5, 7), one(seg(1, 6)+".zst", bytesOf(zst[:len(zst)-1]))), segments: 2,
			oldest: seg(1, 5), next: 8 * mib, timeline: 1,
			problems: []string{"damaged " + seg(1, 6) + ".zst 1:0/600000-0/700000", "missing 1:0/600000-0/700000"}},
		{name: "a bit of zstd", o: decode, files: with(segs(1, 5, 7), one(seg(1, 6)+".zst", bytesOf(flip(wholeZstd(noise), mib/2)))), segments: 2,
			oldest: seg(1, 5), next: 8 * mib, timeline: 1,
			problems: []string{"damaged " + seg(1, 6) + ".zst 1:0/600000-0/700000", "missing 1:0/600000-0/700000"}},
		{name: "the newest is damaged zstd", files: with(segs(1, 5, 6), one(seg(1, 7)+".zst", bytesOf(zst[:len(zst)-1]))), segments: 2,
			oldest: seg(1, 5), next: 7 * mib, timeline: 1, problems: []string{"damaged " + seg(1, 7) + ".zst 1:0/700000-0/800000"}},
		{name: "a suffix that is not known", files: with(segs(1, 5, 7), one(seg(1, 6)+".crypt", sized(3))), segments: 2, oldest: seg(1, 5), next: 8 * mib,
			timeline: 1, problems: []string{"missing 1:0/600000-0/700000"}},
		{name: "a suffix that was told", o: CheckOptions{Size: MinSize, Suffixes: []string{".crypt"}}, files: with(segs(1, 5, 7),
			one(seg(1, 6)+".gz.crypt", sized(3))), segments: 3, oldest: seg(1, 5), next: 8 * mib, timeline: 1},
		{name: "the newest is damaged lz4", files: with(segs(1, 5, 6), one(seg(1, 7)+".lz4", bytesOf(lz[:len(lz)/2]))), segments: 2,
			oldest: seg(1, 5), next: 7 * mib, timeline: 1, problems: []string{"damaged " + seg(1, 7) + ".lz4 1:0/700000-0/800000"}},
		{name: "first pages", o: pages, files: with(page(1, 5), page(1, 6), one(seg(2, 7), paged(1, 7*mib, MinSize, system)), page(2, 8), began(2, "0/780000")),
			segments: 4, oldest: seg(1, 5), next: 9 * mib, timeline: 2},
		{name: "another system's", o: pages, files: with(page(1, 5), one(seg(1, 6), paged(1, 6*mib, MinSize, 99)), page(1, 7)), segments: 2,
			oldest: seg(1, 5), next: 8 * mib, timeline: 1,
			problems: []string{"wrong page " + seg(1, 6) + " 1:0/600000-0/700000", "missing 1:0/600000-0/700000"}, says: "system 99 instead of 7"},
		{name: "not the system that is wanted", o: CheckOptions{Size: MinSize, Pages: true, SystemIdentifier: 8}, files: page(1, 5), next: 6 * mib, timeline: 1,
			problems: []string{"wrong page " + seg(1, 5) + " 1:0/500000-0/600000"}, says: "system 7 instead of 8"},
		{name: "another place's", o: pages, files: with(page(1, 5), one(seg(1, 6), paged(1, 9*mib, MinSize, system)), page(1, 7)), segments: 2,
			oldest: seg(1, 5), next: 8 * mib, timeline: 1,
			problems: []string{"wrong page " + seg(1, 6) + " 1:0/600000-0/700000", "missing 1:0/600000-0/700000"}, says: "0/900000 instead of 0/600000"},
		{name: "another timeline's", o: pages, files: with(page(1, 5), one(seg(1, 6), paged(2, 6*mib, MinSize, system)), page(1, 7)), segments: 2,
			oldest: seg(1, 5), next: 8 * mib, timeline: 1,
			problems: []string{"wrong page " + seg(1, 6) + " 1:0/600000-0/700000", "missing 1:0/600000-0/700000"}, says: "timeline 2"},
		{name: "another size's", o: pages, files: with(page(1, 5), one(seg(1, 6), paged(1, 6*mib, 16*mib, system)), page(1, 7)), segments: 2,
			oldest: seg(1, 5), next: 8 * mib, timeline: 1,
			problems: []string{"wrong page " + seg(1, 6) + " 1:0/600000-0/700000", "missing 1:0/600000-0/700000"}, says: "16777216"},
		{name: "no page at all", o: pages, files: with(page(1, 5), segs(1, 6), page(1, 7)), segments: 2, oldest: seg(1, 5), next: 8 * mib, timeline: 1,
			problems: []string{"wrong page " + seg(1, 6) + " 1:0/600000-0/700000", "missing 1:0/600000-0/700000"}, says: "header of a WAL page"},
		{name: "pages are looked at only when asked", files: segs(1, 5, 6), segments: 2, oldest: seg(1, 5), next: 7 * mib, timeline: 1},
		{name: "a partial that is longer", files: with(segs(1, 5), one(seg(1, 6)+".partial", sized(mib+1))), segments: 1, oldest: seg(1, 5),
			next: 6 * mib, timeline: 1, problems: []string{"wrong size " + seg(1, 6) + ".partial 1:0/600000-0/700000"}, says: "longer than a segment"},
		{name: "a compressed partial that is longer", o: decode, files: with(segs(1, 5), one(seg(1, 6)+".gz.partial", bytesOf(gzipped(make([]byte, mib+1)))),
			one(seg(2, 6)+".lz4.partial", bytesOf(cutLZ4(make([]byte, mib)))), began(2, "0/680000")), segments: 1, oldest: seg(1, 5), next: 6 * mib, timeline: 2,
			problems: []string{"wrong size " + seg(1, 6) + ".gz.partial 1:0/600000-0/700000"}},
		{name: "partials", o: pages, files: with(page(1, 5), one(seg(1, 6)+".partial", made{content: paged(1, 6*mib, MinSize, system).content}),
			one(seg(2, 6)+".partial", paged(1, 6*mib, MinSize, system)), one(seg(3, 6)+".partial", sized(mib)), one(seg(4, 6)+".partial", sized(0)),
			began(2, "0/680000"), began(3, "0/680000"), began(4, "0/680000")), segments: 1, oldest: seg(1, 5), next: 6 * mib, timeline: 4},
		{name: "another system's partial", o: pages, files: with(page(1, 5), one(seg(1, 6)+".partial", paged(1, 6*mib, MinSize, 99))), segments: 1,
			oldest: seg(1, 5), next: 6 * mib, timeline: 1, problems: []string{"wrong page " + seg(1, 6) + ".partial 1:0/600000-0/700000"},
			says: "system 99 instead of 7"},
		{name: "another system's compressed partial", o: pages, files: with(page(1, 5), one(seg(1, 6)+".gz.partial",
			bytesOf(gzipped(paged(1, 6*mib, MinSize, 99).content)))), segments: 1, oldest: seg(1, 5), next: 6 * mib, timeline: 1,
			problems: []string{"wrong page " + seg(1, 6) + ".gz.partial 1:0/600000-0/700000"}, says: "system 99 instead of 7"},
		{name: "another place's partial", o: pages, files: one(seg(1, 6)+".partial", paged(1, 9*mib, MinSize, 99)), next: 6 * mib, timeline: 1,
			problems: []string{"wrong page " + seg(1, 6) + ".partial 1:0/600000-0/700000"}, says: "0/900000 instead of 0/600000"},
		{name: "a partial of no WAL", o: pages, files: one(seg(1, 6)+".partial", made{content: []byte(strings.Repeat("no WAL", 10)), size: mib}),
			next: 6 * mib, timeline: 1, problems: []string{"wrong page " + seg(1, 6) + ".partial 1:0/600000-0/700000"}, says: "header of a WAL page"},
		{name: "a partial whose header was cut off", o: pages, files: one(seg(1, 6)+".partial", made{content: paged(1, 9*mib, MinSize, 99).content[:36], size: mib}),
			next: 6 * mib, timeline: 1},
		{name: "a partial of another size", o: pages, files: one(seg(1, 6)+".partial", paged(1, 6*mib, 16*mib, 7)), next: 6 * mib, timeline: 1,
			problems: []string{"wrong page " + seg(1, 6) + ".partial 1:0/600000-0/700000"}, says: "16777216"},
		{name: "no history", files: with(segs(1, 5), segs(2, 6)), segments: 2, oldest: seg(2, 6), next: 7 * mib, timeline: 2,
			problems: []string{"no history 00000002.history"}, says: "timeline 2"},
		{name: "no history of a partial's timeline", files: with(segs(1, 5), one(seg(2, 6)+".partial", sized(0))), segments: 1, next: 6 * mib, timeline: 2,
			problems: []string{"no history 00000002.history"}},
		{name: "an unreadable history", files: with(segs(1, 5), segs(2, 6), one("00000002.history", bytesOf([]byte("what?\n")))), segments: 2,
			oldest: seg(2, 6), next: 7 * mib, timeline: 2, problems: []string{"bad history 00000002.history"}, says: "what?"},
		{name: "an empty history", files: with(segs(1, 5), segs(2, 6), one("00000002.history", bytesOf(nil))), segments: 2,
			oldest: seg(2, 6), next: 7 * mib, timeline: 2, problems: []string{"bad history 00000002.history"}, says: "no ancestor"},
		{name: "an ancestor's history", files: with(segs(1, 5), segs(2, 6), segs(3, 7), began(3, "0/600000", "0/700000")), segments: 3,
			oldest: seg(1, 5), next: 8 * mib, timeline: 3, problems: []string{"no history 00000002.history"}},
		{name: "leftover partial", files: with(segs(1, 5, 6), one(seg(1, 6)+".partial", sized(mib)), one(seg(1, 5)+".gz.partial", sized(3))), segments: 2,
			oldest: seg(1, 5), next: 7 * mib, timeline: 1,
			problems: []string{"leftover " + seg(1, 5) + ".gz.partial 1:0/500000-0/600000", "leftover " + seg(1, 6) + ".partial 1:0/600000-0/700000"}},
		{name: "leftover history", files: with(segs(1, 5), one("00000002.history.tmp", sized(3)), one("0000000g.history.tmp", sized(3))), segments: 1,
			oldest: seg(1, 5), next: 6 * mib, timeline: 1, problems: []string{"leftover 00000002.history.tmp"}},
		{name: "another segment size", o: CheckOptions{Size: 16 * mib}, files: map[string]made{"000000010000000000000005": sized(16 * mib),
			"000000010000000000000100": sized(mib), "000000010000000000000101.partial": sized(mib)}, segments: 1, oldest: "000000010000000000000005",
			next: 96 * mib, timeline: 1, problems: []string{"foreign file 000000010000000000000100", "foreign file 000000010000000000000101.partial"},
			says: "16777216 bytes"},
		{name: "impossible names", files: with(segs(1, 5), segs(0, 5), segs(1, 0)), segments: 1, oldest: seg(1, 5), next: 6 * mib, timeline: 1,
			problems: []string{"foreign file " + seg(0, 5), "foreign file " + seg(1, 0)}, says: "timeline 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			makeFiles(t, dir, c.files)
			if c.o.Size == 0 {
				c.o.Size = MinSize
			}
			r, err := CheckDirectory(OS, dir, c.o)
			if err != nil {
				t.Fatal(err)
			}
			var problems []string
			for _, p := range r.Problems {
				problems = append(problems, told(p))
				if p.Text == "" {
					t.Errorf("no text: %+v", p)
				}
			}
			if !slices.Equal(problems, c.problems) {
				t.Errorf("problems\n%q, want\n%q", problems, c.problems)
			}
			if len(r.Problems) > 0 && !strings.Contains(r.Problems[0].Text, c.says) {
				t.Errorf("%q does not say %q", r.Problems[0].Text, c.says)
			}
			oldest := ""
			if r.Oldest.Timeline != 0 {
				oldest = r.Oldest.Name(c.o.Size)
			}
			if r.Segments != c.segments || oldest != c.oldest || r.Next.LSN != c.next || r.Next.Timeline != c.timeline {
				t.Errorf("%d segments, oldest %q, next %s on %d; want %d, %q, %s on %d", r.Segments, oldest, r.Next.LSN, r.Next.Timeline,
					c.segments, c.oldest, c.next, c.timeline)
			}
			if start, err := FindStart(dir, c.o.Size, nil); err == nil && start != r.Next {
				t.Errorf("a receive would start at %+v instead of %+v", start, r.Next)
			}
		})
	}
}

// Without a segment size, the segments tell it; where none does, it is the default, unless the names say that it is not.
func TestCheckWithoutSize(t *testing.T) {
	for _, c := range []struct {
		name     string
		files    map[string]made
		size     Size
		assumed  bool
		system   uint64
		problems []string
		err      error
	}{
		{name: "nothing"},
		{name: "an empty partial", files: one(seg(1, 5)+".partial", sized(0))},
		{name: "as they say", files: one(seg(1, 5), paged(1, 5*mib, MinSize, 7)), size: MinSize, system: 7},
		{name: "as compressed ones say", files: with(one(seg(1, 5)+".gz", bytesOf(gzipped(append(slices.Clone(paged(1, 5*mib, MinSize, 7).content),
			make([]byte, mib-pageHeaderSize)...)))), segs(1, 7)), size: MinSize, problems: []string{
			"wrong page " + seg(1, 7) + " 1:0/700000-0/800000", "missing 1:0/600000-0/800000"}},
		{name: "encrypted", files: with(one(seg(1, 5)+".zst.aes", sized(9)), one(seg(1, 6)+".zst.aes", sized(9)), one(seg(1, 7)+".partial", sized(0))),
			size: 16 * mib, assumed: true},
		{name: "encrypted, with a hole", files: with(one(seg(1, 255)+".zst.aes", sized(9)), one("000000010000000100000001.zst.aes", sized(9))),
			size: 16 * mib, assumed: true, problems: []string{"missing 1:1/0-1/1000000"}},
		{name: "encrypted, of another size", files: with(one(seg(1, 5)+".zst.aes", sized(9)), one(seg(1, 256)+".zst.aes", sized(9))),
			problems: []string{"foreign file " + seg(1, 256) + ".zst.aes"}},
		{name: "cut off", files: one(seg(1, 5), sized(9)), size: 16 * mib, assumed: true,
			problems: []string{"wrong size " + seg(1, 5) + " 1:0/5000000-0/6000000"}},
		{name: "two sizes", files: with(one(seg(1, 5), paged(1, 5*mib, MinSize, 7)), one(seg(1, 6), paged(1, 6*mib, 16*mib, 7))), err: ErrForeign},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			makeFiles(t, dir, c.files)
			r, err := CheckDirectory(OS, dir, CheckOptions{Pages: true})
			var problems []string
			for _, p := range r.Problems {
				problems = append(problems, told(p))
			}
			if !errors.Is(err, c.err) || r.Size != c.size || r.SizeAssumed != c.assumed || r.SystemIdentifier != c.system || !slices.Equal(problems, c.problems) {
				t.Errorf("%v, %+v, want %v, size %d, system %d, %q", err, r, c.err, c.size, c.system, c.problems)
			}
		})
	}
	if _, err := CheckDirectory(OS, filepath.Join(t.TempDir(), "missing"), CheckOptions{}); !errors.Is(err, ErrNoDirectory) {
		t.Errorf("a missing directory: %v", err)
	}
}

// encrypting is a file system in which another program encrypts each segment at the moment when it is looked at.
type encrypting struct{}

type encryptingDir struct {
	Dir
	path string
}

func (c encrypting) OpenDir(path string) (Dir, error) {
	d, err := OS.OpenDir(path)
	return encryptingDir{d, path}, err
}

func (d encryptingDir) Stat(name string) (size int64, changed time.Time, err error) {
	if !strings.HasSuffix(name, ".aes") {
		if err := os.Rename(filepath.Join(d.path, name), filepath.Join(d.path, name+".aes")); err != nil {
			return 0, changed, err
		}
	}
	return d.Dir.Stat(name)
}

// A directory in use is checked as it is at the end, not as it was when it was listed.
func TestCheckWhileFilesChange(t *testing.T) {
	dir := t.TempDir()
	makeFiles(t, dir, segs(1, 5, 6, 7))
	r, err := CheckDirectory(encrypting{}, dir, CheckOptions{Size: MinSize})
	if err != nil || len(r.Problems) > 0 || r.Segments != 3 {
		t.Errorf("%v, %+v", err, r)
	}
}
