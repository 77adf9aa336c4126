package segment

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sort"
	"strings"
)

// ProblemKind says what is wrong.
type ProblemKind int

// The kinds of problems.
const (
	Missing     ProblemKind = iota // segments between the oldest and the newest are not there
	WrongSize                      // a file with a complete segment's name has not a segment's size, or a partial one is longer
	WrongPage                      // a segment's first page is another cluster's, another segment's or another timeline's
	Damaged                        // a compressed segment cannot be decompressed
	Leftover                       // a file that an interrupted receiver left, and nobody needs
	NoHistory                      // a timeline has segments, but no history file
	BadHistory                     // a history file cannot be read
	ForeignFile                    // a file with a segment's name that fits no segment size of this directory
)

func (k ProblemKind) String() string {
	return [...]string{"missing", "wrong size", "wrong page", "damaged", "leftover", "no history", "bad history", "foreign file"}[k]
}

// Problem is something that is wrong with a directory. A recovery that needs the WAL from LSN to EndLSN on Timeline fails,
// unless the kind is Leftover.
type Problem struct {
	Kind        ProblemKind
	Timeline    Timeline
	LSN, EndLSN LSN    // 0 where it is not about WAL
	File        string // "" where it is about a range
	Text        string // a sentence
}

// CheckOptions says how closely [Directory.Check] looks.
type CheckOptions struct {
	Size             Size
	SystemIdentifier uint64 // 0: as the oldest segment says; only with Pages
	Pages            bool   // also look at the first page of each plain segment, and of each partial one
	Decode           bool   // also decompress each compressed segment

	// Where the segments have to reach, along the history of a timeline. 0: to where receiving would go on.
	Until    LSN
	History  History
	Suffixes []string // for CheckDirectory: as [Directory.SetSuffixes]
}

// Report is what a check has found.
type Report struct {
	Size             Size
	SizeAssumed      bool  // no file tells the size: it is PostgreSQL's default
	Segments         int   // complete ones
	Oldest           ID    // the oldest complete segment
	Begin            LSN   // where the segments begin that were looked at for holes, the partial one with them; 0: there is none
	Next             Start // where receiving would go on
	Problems         []Problem
	SystemIdentifier uint64 // as the segments say; 0: nobody does
}

// defaultSize is the segment size of most clusters (DEFAULT_XLOG_SEG_SIZE in pg_config_manual.h).
const defaultSize Size = 16 << 20

// CheckDirectory checks a directory without locking or changing anything. Size 0 means: as the files say; where none does, as
// when all are encrypted, PostgreSQL's default if that fits their names.
func CheckDirectory(fsys FS, path string, o CheckOptions) (Report, error) {
	d, err := openUnlocked(fsys, path)
	if err != nil {
		return Report{}, err
	}
	defer d.dir.Close()
	d.SetSuffixes(o.Suffixes)
	if o.Size != 0 {
		return d.Check(o)
	}
	if o.Size, err = d.guessSize(); err != nil {
		return Report{}, err
	}
	if o.Size == 0 {
		return d.checkWithoutSize(o)
	}
	return d.Check(o)
}

// checkWithoutSize is the check where no file tells how large a segment is.
func (d *Directory) checkWithoutSize(o CheckOptions) (Report, error) {
	files, err := d.files()
	if err != nil {
		return Report{}, err
	}
	complete := slices.DeleteFunc(files, func(f file) bool { return f.partial })
	if len(complete) == 0 {
		return Report{}, nil // at most an empty partial that sets the start
	}
	var report Report
	for _, f := range complete {
		if _, err := ParseName(f.base, defaultSize); err != nil {
			report.add(Problem{Kind: ForeignFile, File: f.name, Text: fmt.Sprintf(
				"%q cannot be checked: no file tells the segment size, and the usual one of %d bytes does not fit, so it has to be given: %v",
				f.name, defaultSize, err)})
		}
	}
	if len(report.Problems) > 0 {
		return report, nil
	}
	o.Size = defaultSize
	report, err = d.Check(o)
	report.SizeAssumed = true
	return report, err
}

// Check looks for holes between the complete segments, and for files that are not what their names say. Segments that are
// compressed, or have a suffix of another program's, count as complete.
func (d *Directory) Check(o CheckOptions) (Report, error) {
	for tries := 10; ; tries-- {
		report, err := d.check(o)
		if tries > 0 && errors.Is(err, fs.ErrNotExist) {
			continue // a file has gone since the directory was listed: perhaps it has another name or suffix now
		}
		return report, err
	}
}

func (d *Directory) check(o CheckOptions) (Report, error) {
	report := Report{Size: o.Size, SystemIdentifier: o.SystemIdentifier}
	files, err := d.files()
	if err != nil {
		return report, err
	}
	complete := map[ID]string{}
	var candidates, partials []candidate
	for _, f := range files {
		id, err := ParseName(f.base, o.Size)
		if err != nil {
			report.add(Problem{Kind: ForeignFile, File: f.name, Text: err.Error()})
			continue
		}
		candidates = append(candidates, candidate{f, id})
	}
	if report.Next, err = d.startAmong(slices.Clone(candidates), o.Size, nil); err != nil {
		return report, err
	}
	for _, c := range candidates {
		f, id := c.file, c.id
		if f.partial {
			partials = append(partials, c)
			continue
		}
		look := o
		if id.End(o.Size) > report.Next.LSN {
			look.Decode = true // it was passed over: tell why
		}
		problem, err := d.checkFile(f, id, look, &report)
		if err != nil {
			return report, err
		}
		if problem != nil {
			report.add(*problem)
			continue
		}
		complete[id] = f.name
	}
	report.Segments = len(complete)
	for _, p := range partials {
		if name, ok := complete[p.id]; ok {
			report.add(Problem{Leftover, p.id.Timeline, p.id.LSN(o.Size), p.id.End(o.Size), p.name,
				fmt.Sprintf("%q is left over: %q is complete", p.name, name)})
			continue
		}
		problem, err := d.checkPartial(p.file, p.id, o, &report)
		if err != nil {
			return report, err
		}
		if problem != nil {
			report.add(*problem)
		}
	}
	if err := d.checkStrays(&report); err != nil {
		return report, err
	}
	last := Start{} // of the newest timeline
	for _, c := range candidates {
		if _, ok := complete[c.id]; !ok && !c.partial {
			continue
		}
		if next := c.next(o.Size); c.id.Timeline > last.Timeline || c.id.Timeline == last.Timeline && next > last.LSN {
			last = Start{LSN: next, Timeline: c.id.Timeline}
		}
	}
	histories, err := d.checkHistories(&report, complete, last.Timeline)
	if err != nil {
		return report, err
	}
	if o.Until != 0 {
		report.holes(o.History, o.Until, complete, partials)
		return report, nil
	}
	history, ok := histories[report.Next.Timeline]
	if !ok {
		history = History{{Timeline: report.Next.Timeline}}
	}
	report.holes(history, report.Next.LSN, complete, partials)
	// After a recovery to an earlier point, the timeline that is followed is a newer one that has not come as far yet.
	if history, ok := histories[last.Timeline]; ok && last.Timeline > report.Next.Timeline {
		oldest, begin := report.Oldest, report.Begin
		report.holes(history, last.LSN, complete, partials)
		report.Oldest, report.Begin = oldest, begin
	}
	return report, nil
}

// next is where receiving would go on after this file.
func (c candidate) next(size Size) LSN {
	if c.partial {
		return c.id.LSN(size)
	}
	return c.id.End(size)
}

func (r *Report) add(p Problem) { r.Problems = append(r.Problems, p) }

// wrong is what is wrong with a segment's file.
func wrong(kind ProblemKind, f file, id ID, size Size, format string, args ...any) *Problem {
	return &Problem{kind, id.Timeline, id.LSN(size), id.End(size), f.name, fmt.Sprintf(format, args...)}
}

// checkFile checks one complete segment's file.
func (d *Directory) checkFile(f file, id ID, o CheckOptions, report *Report) (*Problem, error) {
	if f.compression == Unknown {
		return nil, nil
	}
	if f.compression != Plain {
		if !o.Decode && f.compression != Gzip {
			return nil, nil
		}
		size, err := d.uncompressedSize(f, int64(o.Size))
		var damage error
		if err == nil && o.Decode {
			size, damage, err = d.decode(f, int64(o.Size))
		}
		if err != nil {
			return nil, err
		}
		if damage != nil {
			return wrong(Damaged, f, id, o.Size, "compressed segment file %q cannot be decompressed: %v", f.name, damage), nil
		}
		if size != int64(o.Size) {
			return wrong(Damaged, f, id, o.Size, "compressed segment file %q has incorrect uncompressed size %d, skipping", f.name, size), nil
		}
		return nil, nil
	}
	length, _, err := d.dir.Stat(f.name)
	if err != nil {
		return nil, failure("stat file", d.full(f.name), err)
	}
	if length != int64(o.Size) {
		return wrong(WrongSize, f, id, o.Size, "segment file %q has incorrect size %d, skipping", f.name, length), nil
	}
	if !o.Pages {
		return nil, nil
	}
	page, err := d.firstPage(f)
	if err != nil {
		return nil, err
	}
	return checkPage(f, id, &page, o.Size, report), nil
}

// checkPage checks what a segment's file begins with.
func checkPage(f file, id ID, page *pageHeader, size Size, report *Report) *Problem {
	switch {
	case !page.isHeader():
		return wrong(WrongPage, f, id, size, "segment file %q does not begin with the header of a WAL page", f.name)
	case page.segmentSize() != size:
		return wrong(WrongPage, f, id, size, "segment file %q is of a cluster with segments of %d bytes", f.name, page.segmentSize())
	case page.address() != id.LSN(size):
		return wrong(WrongPage, f, id, size, "segment file %q begins with the page of %s instead of %s", f.name, page.address(), id.LSN(size))
	case page.timeline() > id.Timeline:
		return wrong(WrongPage, f, id, size, "segment file %q begins with a page of timeline %d", f.name, page.timeline())
	}
	if report.SystemIdentifier == 0 {
		report.SystemIdentifier = page.systemIdentifier()
	}
	if page.systemIdentifier() != report.SystemIdentifier {
		return wrong(WrongPage, f, id, size, "segment file %q is of the system %d instead of %d", f.name, page.systemIdentifier(), report.SystemIdentifier)
	}
	return nil
}

// checkPartial checks one partial segment's file. It may be short, empty or nothing but zeros: it is filled from its beginning. But one
// that is too long, or begins with a stranger's WAL, is not filled ([Writer.fit], [Directory.CheckOwner]).
func (d *Directory) checkPartial(f file, id ID, o CheckOptions, report *Report) (*Problem, error) {
	var length int64
	var err error
	switch {
	case f.compression == Plain:
		if length, _, err = d.dir.Stat(f.name); err != nil {
			return nil, failure("stat file", d.full(f.name), err)
		}
	case o.Decode:
		if length, err = d.decodedSize(f, int64(o.Size)); err != nil {
			return nil, err
		}
	}
	if length > int64(o.Size) {
		return wrong(WrongSize, f, id, o.Size, "partial segment file %q is longer than a segment of %d bytes", f.name, o.Size), nil
	}
	if !o.Pages {
		return nil, nil
	}
	page, err := d.firstPage(f)
	if err != nil || [4]byte(page[36:]) == [4]byte{} { // nothing has arrived yet, or the header was cut off: see isHeader
		return nil, err
	}
	return checkPage(f, id, &page, o.Size, report), nil
}

// checkStrays looks for what an interrupted write of ours leaves where the file system has no unnamed files.
func (d *Directory) checkStrays(report *Report) error {
	names, err := d.dir.Names()
	if err != nil {
		return failure("read directory", d.path, err)
	}
	sort.Strings(names)
	for _, name := range names {
		base, temporary := strings.CutSuffix(name, ".tmp")
		if _, history := parseHistoryName(base); temporary && history {
			report.add(Problem{Kind: Leftover, File: name, Text: fmt.Sprintf("%q is left over from an interrupted write", name)})
		}
	}
	return nil
}

// checkHistories checks and reads the history files of the timelines that have segments, and of the newest.
func (d *Directory) checkHistories(report *Report, complete map[ID]string, newest Timeline) (map[Timeline]History, error) {
	timelines := map[Timeline]bool{newest: newest != 0}
	for id := range complete {
		timelines[id.Timeline] = true
	}
	if report.Next.Timeline != 0 {
		timelines[report.Next.Timeline] = true
	}
	histories := map[Timeline]History{}
	for _, timeline := range slices.Sorted(keys(timelines)) {
		if timeline <= 1 {
			continue
		}
		name := HistoryName(timeline)
		content, err := d.readHistory(timeline)
		if errors.Is(err, fs.ErrNotExist) {
			report.add(Problem{Kind: NoHistory, Timeline: timeline, File: name,
				Text: fmt.Sprintf("timeline %d has segments, but %q is not there", timeline, name)})
			continue
		}
		if err != nil {
			return nil, err
		}
		history, err := ParseHistory(timeline, content)
		if err == nil && len(history) < 2 {
			err = fmt.Errorf("history of timeline %d: it names no ancestor", timeline)
		}
		if err != nil {
			report.add(Problem{Kind: BadHistory, Timeline: timeline, File: name, Text: fmt.Sprintf("%q cannot be used: %v", name, err)})
			continue
		}
		histories[timeline] = history
	}
	return histories, nil
}

func keys[K comparable, V any](m map[K]V) func(yield func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// holes finds the segments that are missing between the oldest one and where they have to reach, along a history. A segment in which
// a timeline began has to be there on that timeline.
func (r *Report) holes(history History, until LSN, complete map[ID]string, partials []candidate) {
	next := uint64(until) / uint64(r.Size)
	along := func(id ID) bool { return id.Number < next && history.TimelineOf(id.End(r.Size)-1) == id.Timeline }
	var have []uint64
	for id := range complete {
		if along(id) {
			have = append(have, id.Number)
		}
	}
	if len(have) == 0 {
		for _, p := range partials { // of which the newest counts, as at the start of a receive
			if along(p.id) {
				r.Begin = max(r.Begin, p.id.LSN(r.Size))
			}
		}
		if r.Begin != 0 {
			r.missing(history, r.Begin, until)
		}
		return
	}
	slices.Sort(have)
	r.Oldest = ID{history.TimelineOf(LSN((have[0]+1)*uint64(r.Size)) - 1), have[0]}
	r.Begin = r.Oldest.LSN(r.Size)
	for i, n := range have {
		end := next
		if i+1 < len(have) {
			end = have[i+1]
		}
		r.missing(history, LSN((n+1)*uint64(r.Size)), LSN(end*uint64(r.Size)))
	}
}

func (r *Report) missing(history History, from, to LSN) {
	for _, p := range MissingAlong(history, from, to, r.Size) {
		if !slices.Contains(r.Problems, p) {
			r.add(p)
		}
	}
}

// MissingAlong are the problems that all segments from one position to another are missing along a history: one for each timeline, cut
// where a timeline's first segment begins.
func MissingAlong(history History, from, to LSN, size Size) []Problem {
	var problems []Problem
	for from < to {
		timeline, end := history.TimelineOf(from+LSN(size)-1), to
		for _, e := range history {
			if e.Timeline == timeline && e.End != 0 {
				end = min(end, max(size.Floor(e.End), from+LSN(size)))
			}
		}
		problems = append(problems, MissingFrom(timeline, from, end, size))
		from = end
	}
	return problems
}

// MissingFrom is the problem that the segments of a timeline from one position to another are missing.
func MissingFrom(timeline Timeline, from, to LSN, size Size) Problem {
	first, last := At(timeline, from, size).Name(size), At(timeline, to-1, size).Name(size)
	text := fmt.Sprintf("segment %s is missing", first)
	if first != last {
		text = fmt.Sprintf("segments %s to %s are missing", first, last)
	}
	return Problem{Kind: Missing, Timeline: timeline, LSN: from, EndLSN: to, Text: text}
}
