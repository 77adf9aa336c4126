package segment

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"sort"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"golang.org/x/sys/unix"
)

// tiny is a segment size that no server has, small enough to try everything.
const tiny Size = 256

const testSystem = 0x1122334455667788

// cluster is a server: its WAL, of which timeline i+1 ends at ends[i]; the last one does not end.
type cluster struct {
	size  Size
	ends  []LSN
	bytes map[Timeline][]byte // of each timeline from LSN 0 on
}

func newCluster(size Size, to LSN, ends ...LSN) *cluster {
	c := &cluster{size, ends, map[Timeline][]byte{}}
	for timeline := Timeline(1); timeline <= c.last(); timeline++ {
		h := c.history(timeline)
		data := make([]byte, to)
		for at := range data {
			lsn := LSN(at)
			owner := h.TimelineOf(lsn)
			data[at] = byte(uint64(lsn)*0x9E3779B97F4A7C15>>56) | 1 + byte(owner)<<1
			if offset := size.Offset(lsn); offset < pageHeaderSize {
				header := header(owner, lsn-LSN(offset), size)
				data[at] = header[offset]
			}
		}
		c.bytes[timeline] = data
	}
	return c
}

func (c *cluster) last() Timeline { return Timeline(len(c.ends) + 1) }

func (c *cluster) historyFile(timeline Timeline) []byte {
	var b bytes.Buffer
	for i, end := range c.ends[:timeline-1] {
		fmt.Fprintf(&b, "%d\t%s\tno recovery target specified\n", i+1, end)
	}
	return b.Bytes()
}

func (c *cluster) history(timeline Timeline) History {
	h, err := ParseHistory(timeline, c.historyFile(timeline))
	if err != nil {
		panic(err)
	}
	return h
}

// wal is a timeline's WAL from one position up to another.
func (c *cluster) wal(timeline Timeline, from, to LSN) []byte { return c.bytes[timeline][from:to] }

// segment is a whole segment's WAL.
func (c *cluster) segment(id ID) []byte { return c.wal(id.Timeline, id.LSN(c.size), id.End(c.size)) }

// header is the beginning of a segment.
func header(timeline Timeline, lsn LSN, size Size) pageHeader {
	var h pageHeader
	o := binary.LittleEndian
	o.PutUint16(h[0:], 0xD110)
	o.PutUint16(h[2:], longHeader)
	o.PutUint32(h[4:], uint32(timeline))
	o.PutUint64(h[8:], uint64(lsn))
	o.PutUint64(h[24:], testSystem)
	o.PutUint32(h[32:], uint32(size))
	o.PutUint32(h[36:], 8192)
	return h
}

func padded(data []byte, size Size) []byte {
	return append(slices.Clone(data), make([]byte, int(size)-len(data))...)
}

// cutGzip and cutLZ4 compress as far as a receiver has flushed, without the end of the file.
func cutGzip(data []byte) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write(data)
	z.Flush()
	return b.Bytes()
}

func cutZstd(data []byte) []byte {
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err)
	}
	z.Write(data)
	z.Flush()
	return b.Bytes()
}

func cutLZ4(data []byte) []byte {
	var b bytes.Buffer
	z := lz4.NewWriter(&b)
	z.Apply(lz4.BlockSizeOption(lz4.Block64Kb))
	z.Write(data)
	z.Flush()
	return b.Bytes()
}

// scenario is a directory and how WAL is received into it.
type scenario struct {
	name    string
	files   map[string][]byte // in the directory at first
	flushed LSN               // what the receiver that made them had reported, on timeline 1
	piece   int               // bytes of an Append, at most
	flush   int               // a Flush after so many Appends; 0: never
	behind  bool              // the disk is slow: data is appended faster
	stops   []LSN             // where receives end; the last one ends at finish
	methods []Compression     // of each receive; the last one of all that remain
	live    bool              // the Writer is Synchronous, and knows that the data is new; Sync instead of Flush
}

// method is the compression of the i-th receive.
func (s scenario) method(i int) Compression {
	if len(s.methods) == 0 {
		return Plain
	}
	return s.methods[min(i, len(s.methods)-1)]
}

// hasZstd tells whether pg_receivewal doesn't understand all files.
func (s scenario) hasZstd() bool { return slices.Contains(s.methods, Zstd) }

// compresses tells whether anything is compressed, or filled with zeros: beside the syncer, so that the order of operations is left to
// chance.
func (s scenario) compresses() bool {
	return s.live || slices.ContainsFunc(s.methods, func(c Compression) bool { return c != Plain })
}

// The scenarios' server: its timeline 1 ends in the middle of segment 8. Receiving begins at segment 5 and
// ends in segment 10.
const (
	begin    = 5 * LSN(tiny)
	switched = 8*LSN(tiny) + 100
	finish   = 10*LSN(tiny) + 77
)

var server = newCluster(tiny, 12*LSN(tiny), switched)

func name(timeline Timeline, number uint64) string { return ID{timeline, number}.Name(tiny) }

func scenarios() []scenario {
	from := func(number uint64, n int) []byte {
		at := LSN(number) * LSN(tiny)
		return server.wal(1, at, at+LSN(n))
	}
	all := []scenario{
		{name: "from nothing", piece: 97, flush: 2, stops: []LSN{7*LSN(tiny) + 130}},
		{name: "small pieces, each flushed", piece: 30, flush: 1},
		{name: "never flushed", piece: 1000, stops: []LSN{6 * LSN(tiny), 9 * LSN(tiny), 9*LSN(tiny) + 20}},
		{name: "synchronous", piece: 60, flush: 1, live: true, stops: []LSN{7*LSN(tiny) + 130}},
		{name: "synchronous, compressed partial", piece: 60, flush: 1, live: true, flushed: 6*LSN(tiny) + 150, files: map[string][]byte{
			name(1, 5):                  from(5, int(tiny)),
			name(1, 6) + ".lz4.partial": cutLZ4(from(6, 150)),
		}},
		{name: "disk behind", piece: 97, flush: 5, behind: true, stops: []LSN{6*LSN(tiny) + 1}},
		{name: "empty partial", piece: 97, flush: 2, files: map[string][]byte{name(1, 5) + ".partial": nil}},
		{name: "short partial", piece: 70, flush: 1, flushed: begin + 100,
			files: map[string][]byte{name(1, 5) + ".partial": from(5, 100)}},
		{name: "compressed partials", piece: 60, flush: 1, stops: []LSN{6*LSN(tiny) + 90}, flushed: 6*LSN(tiny) + 150, files: map[string][]byte{
			name(1, 5):                  from(5, int(tiny)),
			name(1, 6):                  []byte("not a segment"),
			name(1, 6) + ".gz.partial":  cutGzip(from(6, 150)),
			name(1, 6) + ".lz4.partial": cutLZ4(from(6, 60)),
			"notes.txt":                 []byte("of somebody else"),
		}},
		{name: "plain and compressed partial", piece: 60, flush: 1, flushed: 6*LSN(tiny) + 150, files: map[string][]byte{
			name(1, 5):                  from(5, int(tiny)),
			name(1, 6) + ".partial":     padded(from(6, 100), tiny),
			name(1, 6) + ".lz4.partial": cutLZ4(from(6, 150)),
		}},
		{name: "short plain and compressed partial, disk behind", piece: 60, flush: 1, behind: true, flushed: 6*LSN(tiny) + 256,
			files: map[string][]byte{
				name(1, 5):                 from(5, int(tiny)),
				name(1, 6) + ".partial":    from(6, 10),
				name(1, 6) + ".gz.partial": cutGzip(from(6, 256)),
			}},
		{name: "compressed partial, disk behind", piece: 60, behind: true, flushed: 6*LSN(tiny) + 256, files: map[string][]byte{
			name(1, 5):                 from(5, int(tiny)),
			name(1, 6) + ".gz.partial": cutGzip(from(6, 256)),
		}},
		{name: "damaged history file", piece: 97, flush: 2, flushed: switched - 1, files: map[string][]byte{
			name(1, 5) + ".gz":      gzipped(from(5, int(tiny))),
			name(1, 6):              from(6, int(tiny)),
			name(1, 7):              from(7, int(tiny)),
			name(1, 8) + ".partial": padded(from(8, 99), tiny),
			HistoryName(2):          nil,
		}},
	}
	for _, c := range []Compression{Gzip, LZ4, Zstd} {
		cut := map[Compression]func([]byte) []byte{Gzip: cutGzip, LZ4: cutLZ4, Zstd: cutZstd}[c]
		others := []Compression{Gzip, LZ4, Zstd}
		all = append(all,
			scenario{name: c.String() + " from nothing", piece: 97, flush: 2, stops: []LSN{7*LSN(tiny) + 130}, methods: []Compression{c}},
			scenario{name: c.String() + ", each piece flushed", piece: 60, flush: 1, stops: []LSN{6*LSN(tiny) + 50}, methods: []Compression{c}},
			scenario{name: c.String() + ", never flushed", piece: 1000, stops: []LSN{6 * LSN(tiny), 9*LSN(tiny) + 20}, methods: []Compression{c}},
			scenario{name: c.String() + ", disk behind", piece: 97, flush: 5, behind: true, stops: []LSN{6*LSN(tiny) + 1}, methods: []Compression{c}},
			scenario{name: c.String() + " over an empty partial", piece: 120, flush: 1, methods: []Compression{c},
				files: map[string][]byte{name(1, 5) + ".partial": nil}},
			scenario{name: c.String() + " over a plain partial", piece: 60, flush: 1, flushed: 6*LSN(tiny) + 150, methods: []Compression{c}, files: map[string][]byte{
				name(1, 5):              from(5, int(tiny)),
				name(1, 6) + ".partial": padded(from(6, 150), tiny),
			}},
			scenario{name: c.String() + " over its own partial with an old tail", piece: 60, flush: 1, flushed: 6*LSN(tiny) + 150, methods: []Compression{c},
				files: map[string][]byte{
					name(1, 5):                           from(5, int(tiny)),
					name(1, 6) + c.Suffix() + ".partial": append(cut(from(6, 150)), cut(from(6, 250))[140:]...),
				}},
			scenario{name: c.String() + " over all others, disk behind", piece: 97, flush: 1, behind: true, flushed: 6*LSN(tiny) + 200, methods: []Compression{c},
				files: map[string][]byte{
					name(1, 5) + ".gz":          gzipped(from(5, int(tiny))),
					name(1, 6) + ".partial":     padded(from(6, 90), tiny),
					name(1, 6) + ".gz.partial":  cutGzip(from(6, 200)),
					name(1, 6) + ".lz4.partial": cutLZ4(from(6, 70)),
					name(1, 6) + ".zst.partial": cutZstd(from(6, 180)),
				}},
			scenario{name: c.String() + " then plain then " + others[c%3].String(), piece: 97, flush: 2, methods: []Compression{c, Plain, others[c%3]},
				stops: []LSN{5*LSN(tiny) + 200, 6*LSN(tiny) + 150}},
		)
	}
	for i := range all {
		all[i].stops = append(all[i].stops, finish)
	}
	return all
}

func gzipped(data []byte) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write(data)
	z.Close()
	return b.Bytes()
}

// claims is what was reported flushed on each timeline, ever.
type claims map[Timeline]LSN

// receiver does what package stream does with this one, without a connection.
type receiver struct {
	scenario
	disk    *disk
	claims  claims
	w       *Writer
	run     int      // number of the receive
	at      Timeline // of w
	retries bool     // an Append that fails is tried again
	failed  error    // it has failed with this
}

func newReceiver(s scenario, files map[string][]byte, c claims) *receiver {
	r := &receiver{scenario: s, disk: newDisk(files), claims: maps.Clone(c)}
	r.disk.slow = s.behind
	return r
}

func (s scenario) firstClaims() claims {
	if s.flushed == 0 {
		return claims{}
	}
	return claims{1: s.flushed}
}

// observe notes what is reported as flushed.
func (r *receiver) observe() {
	if r.w != nil {
		if flushed := r.w.Flushed(); flushed > r.w.o.Start {
			r.claims[r.at] = max(r.claims[r.at], flushed)
		}
	}
}

func (r *receiver) receiveAll() error {
	for i, until := range r.stops {
		r.run = i
		if err := r.receive(until); err != nil {
			return err
		}
	}
	return nil
}

func (r *receiver) receive(until LSN) (err error) {
	d, err := Open(r.disk, "wal")
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := d.Close(); err == nil {
			err = closeErr
		}
	}()
	if err := d.CheckOwner(testSystem, tiny); err != nil {
		return err
	}
	if err := d.Settle(time.Now()); err != nil {
		return err
	}
	start, err := d.Start(tiny, nil)
	if err != nil {
		return err
	}
	at, timeline := start.LSN, start.Timeline
	if at == 0 {
		at, timeline = begin, 1
	}
	for {
		if timeline > 1 {
			have, err := d.HasHistory(timeline)
			if err != nil {
				return err
			}
			if !have {
				if err := d.WriteHistory(timeline, server.historyFile(timeline)); err != nil {
					return err
				}
			}
		}
		history, err := d.History(timeline)
		if err != nil {
			return err
		}
		end := until
		if timeline < server.last() {
			end = min(end, server.ends[timeline-1])
		}
		if err := r.stream(d, timeline, at, end, history); err != nil {
			return err
		}
		if end == until {
			return nil
		}
		at, timeline = tiny.Floor(end), timeline+1
	}
}

// stream receives one timeline.
func (r *receiver) stream(d *Directory, timeline Timeline, at, end LSN, history History) (err error) {
	news := make(chan struct{}, 1)
	r.at = timeline
	r.w = d.NewWriter(WriterOptions{nameAfter: time.Hour, Synchronous: r.live, Timeline: timeline, Start: at, Size: tiny, SystemIdentifier: testSystem,
		History: history, Compression: r.method(r.run), CompressionLevel: min(1, int(r.method(r.run))), Notify: func() {
			select {
			case news <- struct{}{}:
			default:
			}
		}})
	r.w.Live(r.live)
	defer func() {
		closeErr := r.w.Close()
		if err == nil {
			err = closeErr
		}
		r.observe()
		r.w = nil
	}()
	for n := 1; at < end; n++ {
		for !r.w.Ready() && r.w.Err() == nil {
			if stalled := r.w.Stalled(); stalled != nil {
				if !r.retries || r.failed != nil {
					return stalled
				}
				r.failed = stalled
				r.w.Retry()
			}
			<-news
		}
		took, err := r.w.Append(at, server.wal(timeline, at, min(end, at+LSN(r.piece))))
		if err != nil && r.retries && r.w.Err() == nil && r.failed == nil {
			r.failed = err
			continue
		}
		if err != nil {
			return err
		}
		at += LSN(took)
		if r.flush > 0 && n%r.flush == 0 {
			if r.live {
				r.w.Sync()
			} else {
				r.w.Flush()
			}
		}
		synctest.Wait() // until the syncer has nothing left to do, or waits for a slow disk
		r.observe()
	}
	return nil
}

// check holds a directory after a power cut against the promises.
func (s scenario) check(files map[string][]byte, c claims) error {
	complete, partial := map[Timeline][]uint64{}, map[Timeline][]uint64{}
	for name, data := range files {
		if old, found := s.files[name]; found && bytes.Equal(data, old) && !strings.HasSuffix(name, ".partial") {
			if id, err := ParseName(name[:min(len(name), 24)], tiny); err == nil && (len(data) == int(tiny) || strings.HasSuffix(name, ".gz")) {
				complete[id.Timeline] = append(complete[id.Timeline], id.Number)
			}
			continue
		}
		if name == HistoryName(2) || name == HistoryName(2)+".tmp" {
			if !bytes.Equal(data, server.historyFile(2)) {
				return fmt.Errorf("%s has the wrong content", name)
			}
			continue
		}
		f, ok := parseFile(name)
		id, err := ParseName(f.base, tiny)
		old, isOld := s.files[name]
		switch {
		case !ok || err != nil:
			return fmt.Errorf("stray file %s", name)
		case isOld && f.partial && bytes.Equal(data, old):
			partial[id.Timeline] = append(partial[id.Timeline], id.Number)
		case f.compression != Plain:
			if !slices.Contains(s.methods, f.compression) {
				return fmt.Errorf("stray file %s", name)
			}
			have, err := io.ReadAll(decoder(f.compression, bytes.NewReader(data)))
			if f.partial { // what was not flushed may decompress to anything; covers looks at the rest
				partial[id.Timeline] = append(partial[id.Timeline], id.Number)
				if err := s.replaces(files, name, id, have); err != nil {
					return err
				}
			} else if complete[id.Timeline] = append(complete[id.Timeline], id.Number); !bytes.Equal(have, server.segment(id)) || err != nil {
				return fmt.Errorf("complete segment %s holds %d bytes, %v: %x", name, len(have), err, have)
			}
		case !f.partial:
			if !bytes.Equal(data, server.segment(id)) {
				return fmt.Errorf("complete segment %s has the wrong content", name)
			}
			complete[id.Timeline] = append(complete[id.Timeline], id.Number)
		default:
			if len(data) != int(tiny) && !(isOld && len(old) != int(tiny)) {
				return fmt.Errorf("%s has %d bytes", name, len(data))
			}
			right := server.segment(id)
			for i, b := range data {
				if b != 0 && b != right[i] {
					return fmt.Errorf("%s has a wrong byte at %d", name, i)
				}
			}
			partial[id.Timeline] = append(partial[id.Timeline], id.Number)
			if !isOld {
				if err := s.replaces(files, name, id, data); err != nil {
					return err
				}
			}
		}
	}
	for timeline, first := range map[Timeline]uint64{1: uint64(begin / LSN(tiny)), 2: uint64(switched / LSN(tiny))} {
		next := first
		sort.Slice(complete[timeline], func(i, j int) bool { return complete[timeline][i] < complete[timeline][j] })
		for _, number := range complete[timeline] {
			if number != next {
				return fmt.Errorf("complete segments of timeline %d: %d, without %d", timeline, complete[timeline], next)
			}
			next++
		}
		slices.Sort(partial[timeline]) // of one segment several, where one replaces others
		if p := slices.Compact(partial[timeline]); len(p) > 1 || len(p) == 1 && p[0] != next {
			return fmt.Errorf("timeline %d has complete segments %d and partial ones %d", timeline, complete[timeline], p)
		}
		if err := covers(files, timeline, first, c[timeline]); err != nil {
			return err
		}
	}
	return nil
}

// replaces checks that a new .partial appeared only when it held as much as the old ones beside it.
func (s scenario) replaces(files map[string][]byte, name string, id ID, data []byte) error {
	right := server.segment(id)
	for _, c := range []Compression{Plain, Gzip, LZ4, Zstd} {
		old := id.Name(tiny) + c.Suffix() + ".partial"
		if content, found := files[old]; found && old != name && bytes.Equal(content, s.files[old]) {
			have, _ := io.ReadAll(decoder(c, bytes.NewReader(content)))
			if !bytes.HasPrefix(data, have[:equalBytes(have, right)]) {
				return fmt.Errorf("%s appeared before it held as much as %s", name, old)
			}
		}
	}
	return nil
}

// covers checks that each segment up to a position is in some file.
func covers(files map[string][]byte, timeline Timeline, first uint64, flushed LSN) error {
	for id := (ID{timeline, first}); id.LSN(tiny) < flushed; id.Number++ {
		want := server.wal(timeline, id.LSN(tiny), min(flushed, id.End(tiny)))
		found := false
		for _, c := range []Compression{Plain, Gzip, LZ4, Zstd} {
			for _, suffix := range []string{"", ".partial"} {
				if data, exists := files[id.Name(tiny)+c.Suffix()+suffix]; exists {
					have, _ := io.ReadAll(decoder(c, bytes.NewReader(data)))
					found = found || bytes.HasPrefix(have, want)
				}
			}
		}
		if !found {
			return fmt.Errorf("flushed was %s, but nothing has segment %s up to there", flushed, id.Name(tiny))
		}
	}
	return nil
}

// archive is a directory's files as they decompress, without the suffixes of the scenario's methods.
func (s scenario) archive(files map[string][]byte) (map[string][]byte, error) {
	plain := map[string][]byte{}
	for name, data := range files {
		f, ok := parseFile(name)
		if _, isOld := s.files[name]; ok && f.compression != Plain && (!isOld || f.partial) {
			have, err := io.ReadAll(decoder(f.compression, bytes.NewReader(data)))
			name, data = f.base, have
			switch {
			case f.partial:
				name, data = name+partialSuffix, padded(have, tiny)
			case err != nil:
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
		if _, twice := plain[name]; twice {
			return nil, fmt.Errorf("%s is there twice", name)
		}
		plain[name] = data
	}
	return plain, nil
}

// isWant tells how a directory differs from the archive as it must be in the end.
func (s scenario) isWant(files map[string][]byte) error {
	got, err := s.archive(files)
	if err != nil {
		return err
	}
	return difference(got, s.want())
}

// want is that archive.
func (s scenario) want() map[string][]byte {
	files := map[string][]byte{}
	for name, data := range s.files {
		if _, isSegment := parseFile(name); !isSegment || strings.HasSuffix(name, ".gz") {
			files[name] = data
		}
	}
	add := func(timeline Timeline, from, to LSN) {
		for at := from; at < to; at += LSN(tiny) {
			id := At(timeline, at, tiny)
			if id.End(tiny) <= to {
				files[id.Name(tiny)] = server.segment(id)
			} else {
				files[id.Name(tiny)+".partial"] = padded(server.wal(timeline, at, to), tiny)
			}
		}
	}
	from := begin
	if _, found := files[name(1, 5)+".gz"]; found {
		from += LSN(tiny)
	}
	add(1, from, switched)
	add(2, tiny.Floor(switched), finish)
	files[HistoryName(2)] = server.historyFile(2)
	return files
}

func difference(got, want map[string][]byte) error {
	if !slices.Equal(slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want))) {
		return fmt.Errorf("the directory has %q, want %q", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
	for name := range want {
		if !bytes.Equal(got[name], want[name]) {
			return fmt.Errorf("%s differs:\n got %x\nwant %x", name, got[name], want[name])
		}
	}
	return nil
}

var segmentFile = regexp.MustCompile(`^([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})(\.gz|\.lz4)?(\.partial)?$`)

// pgReceivewalStart is the rule of FindStreamingStart in pg_receivewal.c, written down from there once more.
func pgReceivewalStart(files map[string][]byte) (LSN, Timeline) {
	var highSegment, highTimeline uint64
	highPartial, found := false, false
	for name, data := range files {
		m := segmentFile.FindStringSubmatch(name)
		if m == nil {
			continue
		}
		var part [3]uint64
		for i := range part {
			fmt.Sscanf(m[i+1], "%X", &part[i])
		}
		timeline, segno := part[0], part[1]*(0x100000000/uint64(tiny))+part[2]
		partial := m[5] != ""
		length := uint64(len(data))
		switch {
		case partial:
			length = uint64(tiny)
		case m[4] == ".gz":
			length = uint64(binary.LittleEndian.Uint32(data[len(data)-4:]))
		case m[4] == ".lz4":
			n, _ := io.Copy(io.Discard, lz4.NewReader(bytes.NewReader(data)))
			length = uint64(n)
		}
		if length != uint64(tiny) {
			continue
		}
		if !found || segno > highSegment || segno == highSegment && timeline > highTimeline ||
			segno == highSegment && timeline == highTimeline && highPartial && !partial {
			highSegment, highTimeline, highPartial, found = segno, timeline, partial, true
		}
	}
	if !found {
		return 0, 0
	}
	if !highPartial {
		highSegment++
	}
	return LSN(highSegment * uint64(tiny)), Timeline(highTimeline)
}

// ourStart is where Directory.Start would go on.
func ourStart(files map[string][]byte) (LSN, Timeline, error) {
	d, err := openUnlocked(newDisk(files), "wal")
	if err != nil {
		return 0, 0, err
	}
	defer d.Close()
	s, err := d.Start(tiny, nil)
	return s.LSN, s.Timeline, err
}

// key identifies a directory and what was claimed of it.
func key(files map[string][]byte, c claims) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(files)) {
		b.WriteString(name)
		b.WriteByte(byte(len(files[name]) >> 8))
		b.WriteByte(byte(len(files[name])))
		b.Write(files[name])
	}
	fmt.Fprint(&b, uint64(c[1]), uint64(c[2]))
	return b.String()
}

// A power cut at any moment, keeping any of what was not yet synced, leaves a directory that has everything ever reported
// flushed, from which both our rule and pg_receivewal's go on, to the same archive in the end. That holds for a power
// cut during that second receive, too, and so on: every directory that can come of it is tried.
func TestPowerCut(t *testing.T) {
	for _, s := range scenarios() {
		t.Run(s.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { powerCuts(t, s) })
		})
	}
}

type leftover struct {
	files  map[string][]byte
	claims claims
	cuts   int    // how many power cuts it took
	how    string // the last one
}

func powerCuts(t *testing.T, s scenario) {
	queue := []leftover{{files: s.files, claims: s.firstClaims()}}
	seen := map[string]bool{}
	runs, moments, states := 0, 0, 0
	var broken error // which before, in whatever goroutine, cannot report
	for ; len(queue) > 0; queue = queue[1:] {
		l := queue[0]
		runs++
		r := newReceiver(s, l.files, l.claims)
		r.disk.before = func(o operation) {
			if !o.kind.changes() {
				return
			}
			r.observe()
			moments++
			r.disk.survivors(uint64(len(r.disk.log)), func(files map[string][]byte) {
				states++
				k := key(files, r.claims)
				if seen[k] {
					return
				}
				seen[k] = true
				how := fmt.Sprintf("%s\n%d: after %s", l.how, len(r.disk.log), last(r.disk.log))
				if err := s.check(files, r.claims); err != nil && broken == nil {
					broken = fmt.Errorf("power cut %s: %w", how, err)
				}
				queue = append(queue, leftover{files, maps.Clone(r.claims), l.cuts + 1, how})
			})
		}
		err := r.receiveAll()
		if broken != nil {
			t.Fatal(broken)
		}
		if err != nil {
			t.Fatalf("after the power cut %s: %v", l.how, err)
		}
		if err := s.isWant(r.disk.contents()); err != nil {
			t.Fatalf("after the power cut %s: %v", l.how, err)
		}
		if r.disk.handles != 0 {
			t.Fatalf("%d files are still open", r.disk.handles)
		}
		ours, timeline, err := ourStart(l.files)
		theirs, theirTimeline := pgReceivewalStart(l.files)
		if err != nil || !s.hasZstd() && (ours != theirs || timeline != theirTimeline) {
			t.Fatalf("after the power cut %s: we start at %s on %d, pg_receivewal at %s on %d, %v", l.how, ours, timeline,
				theirs, theirTimeline, err)
		}
	}
	t.Logf("%d receives, %d moments, %d directories, %d of them different", runs, moments, states, len(seen))
}

// last is the end of a disk's log.
func last(log []operation) string {
	var b strings.Builder
	for _, o := range log[max(0, len(log)-5):] {
		b.WriteString(o.String() + "; ")
	}
	return b.String()
}

// An error at any operation ends the receive with that error, or does not matter at all. What was reported flushed
// stays, a next receive goes on in the same process, or after a power cut, to the same archive, and no file stays open.
func TestErrors(t *testing.T) {
	for _, s := range scenarios() {
		t.Run(s.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { failures(t, s) })
		})
	}
}

func failures(t *testing.T, s scenario) {
	dry := newReceiver(s, s.files, s.firstClaims())
	if err := dry.receiveAll(); err != nil {
		t.Fatal(err)
	}
	failed, others, seen := 0, 0, map[string]bool{}
	for at, o := range dry.disk.log {
		kinds := []error{unix.EIO}
		if o.kind.needsRoom() {
			kinds = append(kinds, []error{unix.ENOSPC, unix.EDQUOT, unix.EFBIG}[at%3])
		}
		if o.kind == opWrite {
			kinds = append(kinds, io.ErrUnexpectedEOF) // a short write, as os.File reports it
		}
		for _, kind := range kinds {
			for _, retries := range []bool{false, true} {
				if retries && kind == unix.EIO {
					continue
				}
				r := newReceiver(s, s.files, s.firstClaims())
				r.disk.fail, r.disk.err, r.retries = at, kind, retries
				err := r.receiveAll()
				if s.compresses() && (len(r.disk.log) <= at || r.disk.log[at].kind != o.kind) {
					others++ // not an error that this operation can have
					continue
				}
				if got := r.disk.log[at]; got != o && !s.compresses() {
					t.Fatalf("operation %d is %s, and was %s", at, got, o)
				}
				if err == nil && r.failed != nil {
					err = r.failed
				}
				fail := func(problem error) {
					t.Fatalf("%v at %d, %s, after %s: %v", kind, at, o, last(dry.disk.log[:at]), problem)
				}
				if r.disk.handles != 0 {
					fail(fmt.Errorf("%d files are still open", r.disk.handles))
				}
				if err != nil {
					failed++
					if problem := rightError(err, kind); problem != nil {
						fail(problem)
					}
				}
				r.disk.survivors(uint64(at), func(files map[string][]byte) {
					k := key(files, r.claims)
					if seen[k] {
						return
					}
					seen[k] = true
					if err := s.check(files, r.claims); err != nil {
						fail(err)
					}
				})
				again := &receiver{scenario: s, disk: r.disk, claims: r.claims}
				if err := again.receiveAll(); err != nil {
					fail(fmt.Errorf("next receive: %w", err))
				}
				if err := s.isWant(r.disk.contents()); err != nil {
					fail(err)
				}
			}
		}
	}
	t.Logf("%d operations, %d failed receives, %d times in another order", len(dry.disk.log), failed, others)
}

func rightError(err, cause error) error {
	want := ErrIO
	if cause == unix.ENOSPC || cause == unix.EDQUOT || cause == unix.EFBIG || cause == io.ErrUnexpectedEOF {
		want = ErrDiskFull
	}
	switch {
	case !errors.Is(err, want):
		return fmt.Errorf("the error is not %q: %v", want, err)
	case cause != io.ErrUnexpectedEOF && !errors.Is(err, cause):
		return fmt.Errorf("the error does not wrap its cause: %v", err)
	case !strings.Contains(err.Error(), `"wal`):
		return fmt.Errorf("the error names no file: %v", err)
	}
	return nil
}
