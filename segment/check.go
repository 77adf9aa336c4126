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
	WrongSize                      // a file with a complete segment's name has not a segment's size
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
	Pages            bool   // also look at the first page of each plain segment
	Decode           bool   // also decompress each compressed segment

	Suffixes []string // for CheckDirectory: as [Directory.SetSuffixes]
}

// Report is what a check has found.
type Report struct {
	Size             Size
	Segments         int   // complete ones
	Oldest           ID    // the oldest complete segment
	Next             Start // where receiving would go on
	Problems         []Problem
	SystemIdentifier uint64 // as the segments say; 0: nobody does
}

// CheckDirectory checks a directory without locking or changing anything. Size 0 means: as the files say.
func CheckDirectory(fsys FS, path string, o CheckOptions) (Report, error) {
	d, err := openUnlocked(fsys, path)
	if err != nil {
		return Report{}, err
	}
	defer d.dir.Close()
	d.SetSuffixes(o.Suffixes)
	if o.Size == 0 {
		if o.Size, err = d.guessSize(); err != nil {
			return Report{}, err
		}
		if o.Size == 0 {
			return d.checkWithoutSize()
		}
	}
	return d.Check(o)
}

// checkWithoutSize is the check where no segment tells how large it is: either there is no WAL, or nothing can be said of it.
func (d *Directory) checkWithoutSize() (Report, error) {
	var report Report
	files, err := d.files()
	for _, f := range files {
		if !f.partial {
			report.add(Problem{Kind: ForeignFile, File: f.name,
				Text: fmt.Sprintf("%q cannot be checked: no segment tells the segment size, so it has to be given", f.name)})
		}
	}
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
		}
	}
	if err := d.checkStrays(&report); err != nil {
		return report, err
	}
	history, err := d.checkHistory(&report, complete)
	if err != nil {
		return report, err
	}
	report.holes(history, complete)
	return report, nil
}

func (r *Report) add(p Problem) { r.Problems = append(r.Problems, p) }

// checkFile checks one complete segment's file.
func (d *Directory) checkFile(f file, id ID, o CheckOptions, report *Report) (*Problem, error) {
	wrong := func(kind ProblemKind, format string, args ...any) *Problem {
		return &Problem{kind, id.Timeline, id.LSN(o.Size), id.End(o.Size), f.name, fmt.Sprintf(format, args...)}
	}
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
			return wrong(Damaged, "compressed segment file %q cannot be decompressed: %v", f.name, damage), nil
		}
		if size != int64(o.Size) {
			return wrong(Damaged, "compressed segment file %q has incorrect uncompressed size %d, skipping", f.name, size), nil
		}
		return nil, nil
	}
	length, _, err := d.dir.Stat(f.name)
	if err != nil {
		return nil, failure("stat file", d.full(f.name), err)
	}
	if length != int64(o.Size) {
		return wrong(WrongSize, "segment file %q has incorrect size %d, skipping", f.name, length), nil
	}
	if !o.Pages {
		return nil, nil
	}
	page, err := d.firstPage(f)
	if err != nil {
		return nil, err
	}
	switch {
	case !page.isHeader():
		return wrong(WrongPage, "segment file %q does not begin with the header of a WAL page", f.name), nil
	case page.segmentSize() != o.Size:
		return wrong(WrongPage, "segment file %q is of a cluster with segments of %d bytes", f.name, page.segmentSize()), nil
	case page.address() != id.LSN(o.Size):
		return wrong(WrongPage, "segment file %q begins with the page of %s instead of %s", f.name, page.address(), id.LSN(o.Size)), nil
	case page.timeline() > id.Timeline:
		return wrong(WrongPage, "segment file %q begins with a page of timeline %d", f.name, page.timeline()), nil
	}
	if report.SystemIdentifier == 0 {
		report.SystemIdentifier = page.systemIdentifier()
	}
	if page.systemIdentifier() != report.SystemIdentifier {
		return wrong(WrongPage, "segment file %q is of the system %d instead of %d", f.name, page.systemIdentifier(), report.SystemIdentifier), nil
	}
	return nil, nil
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

// checkHistory checks the history files of the timelines that have segments, and reads that of the newest.
func (d *Directory) checkHistory(report *Report, complete map[ID]string) (History, error) {
	timelines := map[Timeline]bool{}
	for id := range complete {
		timelines[id.Timeline] = true
	}
	if report.Next.Timeline != 0 {
		timelines[report.Next.Timeline] = true
	}
	newest := History{{Timeline: report.Next.Timeline}}
	for _, timeline := range slices.Sorted(keys(timelines)) {
		if timeline == 1 {
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
		if timeline == report.Next.Timeline {
			newest = history
		}
	}
	return newest, nil
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

// holes finds the segments that are missing between the oldest complete one and where receiving goes on, along the history of
// the newest timeline. A segment in which a timeline began has to be there on that timeline.
func (r *Report) holes(history History, complete map[ID]string) {
	next := uint64(r.Next.LSN) / uint64(r.Size)
	var have []uint64
	for id := range complete {
		if id.Number < next && history.TimelineOf(id.End(r.Size)-1) == id.Timeline {
			have = append(have, id.Number)
		}
	}
	if len(have) == 0 {
		return
	}
	slices.Sort(have)
	r.Oldest = ID{history.TimelineOf(LSN((have[0]+1)*uint64(r.Size)) - 1), have[0]}
	for i, n := range have {
		end := next
		if i+1 < len(have) {
			end = have[i+1]
		}
		r.missing(history, LSN((n+1)*uint64(r.Size)), LSN(end*uint64(r.Size)))
	}
}

// missing adds a hole, cut where a timeline's first segment begins.
func (r *Report) missing(history History, from, to LSN) {
	for from < to {
		timeline, end := history.TimelineOf(from+LSN(r.Size)-1), to
		for _, e := range history {
			if e.Timeline == timeline && e.End != 0 {
				end = min(end, max(r.Size.Floor(e.End), from+LSN(r.Size)))
			}
		}
		first, last := At(timeline, from, r.Size).Name(r.Size), At(timeline, end-1, r.Size).Name(r.Size)
		text := fmt.Sprintf("segment %s is missing", first)
		if first != last {
			text = fmt.Sprintf("segments %s to %s are missing", first, last)
		}
		r.add(Problem{Kind: Missing, Timeline: timeline, LSN: from, EndLSN: end, Text: text})
		from = end
	}
}
