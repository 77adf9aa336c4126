package segment

import (
	"bufio"
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// History is a timeline's ancestry, oldest first, as its history file tells it: which timeline ended where. The
// timeline itself is the last entry, with End 0: it has not ended.
type History []HistoryEntry

// HistoryEntry is one timeline of a History.
type HistoryEntry struct {
	Timeline Timeline
	End      LSN // the first byte that no longer belongs to it; 0: it has no end
}

// ParseHistory reads the contents of the history file of a timeline by the rules of readTimeLineHistory in
// timeline.c: lines of a timeline ID and the position where it ended; comments and empty lines are skipped, IDs
// increase, and each is below the timeline's own. Timeline 1 has no file: pass no content.
func ParseHistory(timeline Timeline, content []byte) (History, error) {
	var h History
	lines := bufio.NewScanner(bytes.NewReader(content))
	lines.Buffer(nil, len(content)+1)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		fields := strings.Fields(line)
		id, err := strconv.ParseUint(fields[0], 10, 32)
		if err != nil || id == 0 || len(fields) < 2 {
			return nil, fmt.Errorf("history of timeline %d: cannot read line %q", timeline, line)
		}
		end, err := ParseLSN(fields[1])
		if err != nil {
			return nil, fmt.Errorf("history of timeline %d: line %q: %w", timeline, line, err)
		}
		if len(h) > 0 && Timeline(id) <= h[len(h)-1].Timeline {
			return nil, fmt.Errorf("history of timeline %d: timeline IDs must increase, but %d follows %d",
				timeline, id, h[len(h)-1].Timeline)
		}
		h = append(h, HistoryEntry{Timeline(id), end})
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("history of timeline %d: %w", timeline, err)
	}
	if len(h) > 0 && h[len(h)-1].Timeline >= timeline {
		return nil, fmt.Errorf("history of timeline %d: it names timeline %d as its ancestor",
			timeline, h[len(h)-1].Timeline)
	}
	return append(h, HistoryEntry{Timeline: timeline}), nil
}

// TimelineOf is the timeline that wrote the byte at lsn (tliOfPointInHistory in timeline.c).
func (h History) TimelineOf(lsn LSN) Timeline {
	for _, e := range h {
		if e.End == 0 || lsn < e.End {
			return e.Timeline
		}
	}
	return 0
}

// EndOf is where a timeline of the history ended; 0 for the newest, which has not. false: it is not in the history.
func (h History) EndOf(timeline Timeline) (LSN, bool) {
	for _, e := range h {
		if e.Timeline == timeline {
			return e.End, true
		}
	}
	return 0, false
}

// Child is the timeline that follows one in the history, or 0.
func (h History) Child(timeline Timeline) Timeline {
	for _, e := range h {
		if e.Timeline > timeline {
			return e.Timeline
		}
	}
	return 0
}

// Ancestry is the history of a timeline in it; of one that is not in it, nothing but itself.
func (h History) Ancestry(timeline Timeline) History {
	for i, e := range h {
		if e.Timeline == timeline {
			return append(slices.Clone(h[:i]), HistoryEntry{Timeline: timeline})
		}
	}
	return History{{Timeline: timeline}}
}
