package segment

import (
	"slices"
	"strings"
	"testing"
)

func TestParseHistory(t *testing.T) {
	for _, c := range []struct {
		timeline Timeline
		content  string
		want     History
	}{
		{1, "", History{{1, 0}}},
		{2, "1\t0/3000000\tno recovery target specified\n", History{{1, 0x3000000}, {2, 0}}},
		{2, "1\t0/3000000\tno recovery target specified", History{{1, 0x3000000}, {2, 0}}},             // no newline
		{2, "1\t0/3000000\tno recovery target specified\r\n", History{{1, 0x3000000}, {2, 0}}},         // a text file
		{2, " 1 0/3000000\n", History{{1, 0x3000000}, {2, 0}}},                                         // spaces, no reason
		{2, "1\t00000000/03000000\tbefore transaction 7\n", History{{1, 0x3000000}, {2, 0}}},           // leading zeros
		{4, "# by hand\n\n1\t0/1\tx\n  \n3\tA/0\tbefore\n", History{{1, 1}, {3, 0xA00000000}, {4, 0}}}, // comments, a timeline left out
		{0xFFFFFFFF, "4294967294\tF/F\t\n", History{{0xFFFFFFFE, 0xF0000000F}, {0xFFFFFFFF, 0}}},
	} {
		if got, err := ParseHistory(c.timeline, []byte(c.content)); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%q: %v, %v, want %v", c.content, got, err, c.want)
		}
	}
	for _, c := range []struct {
		timeline Timeline
		content  string
		err      string
	}{
		{2, "x\n", "cannot read line"},
		{2, "1\n", "cannot read line"},
		{2, "0/3000000\n", "cannot read line"},
		{2, "\x00", "cannot read line"}, // pgmoneta's NUL byte
		{2, "1\t0/3000000\tx\n\x00", "cannot read line"},
		{2, "-1\t0/3000000\tx\n", "cannot read line"},
		{2, "4294967296\t0/3000000\tx\n", "cannot read line"},
		{2, "0\t0/3000000\tx\n", "cannot read line"},
		{2, "1\t3000000\tx\n", "not an LSN"},
		{2, "1\t0/\tx\n", "not an LSN"},
		{3, "2\t0/1\tx\n1\t0/2\tx\n", "must increase"},
		{3, "1\t0/1\tx\n1\t0/2\tx\n", "must increase"},
		{2, "2\t0/1\tx\n", "as its ancestor"},
		{2, "1\t0/1\tx\n3\t0/2\tx\n", "as its ancestor"},
		{1, "1\t0/1\tx\n", "as its ancestor"},
	} {
		if got, err := ParseHistory(c.timeline, []byte(c.content)); err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("timeline %d, %q: %v, %v, want an error with %q", c.timeline, c.content, got, err, c.err)
		}
	}
}

func TestTimelineOf(t *testing.T) {
	h := History{{1, 100}, {3, 200}, {4, 0}}
	for lsn, want := range map[LSN]Timeline{0: 1, 99: 1, 100: 3, 199: 3, 200: 4, 1 << 60: 4} {
		if got := h.TimelineOf(lsn); got != want {
			t.Errorf("%s was written by timeline %d, want %d", lsn, got, want)
		}
	}
	if got := (History{}).TimelineOf(1); got != 0 {
		t.Errorf("without a history, timeline %d", got)
	}
}
