package capi_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"libreceivewal/tests/pg"
)

// TestConvertedSegments: a host that turns each segment into X.zst.aes once it is complete, in its callback or by a process that
// goes on by itself, is never raced: over stops and kills each segment is received once, and is there once, without a hole.
func TestConvertedSegments(t *testing.T) {
	host := client(t)
	for _, how := range []string{"callback", "process"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			c := pg.New(t, pg.Options{SegmentSizeMB: 1})
			dir := t.TempDir()
			begin := c.Tick()
			var output strings.Builder
			for i := range 6 {
				p := pg.Run(t, host, c.ConnString("application_name=s"), dir, "convert="+how)
				c.WaitStreaming("s")
				end := c.Generate(4)
				if i%2 == 0 {
					c.WaitReceived("s", end, false)
					p.Stop()
				} else {
					p.Kill9() // with what it was about to convert
				}
				c.WaitGone("s")
				output.WriteString(p.Output())
			}
			p := pg.Run(t, host, c.ConnString("application_name=s"), dir, "convert="+how)
			end := c.Tick()
			c.WaitReceived("s", end, false)
			p.Stop()
			output.WriteString(p.Output())
			pg.WaitFor(t, "all to be converted", func() bool {
				left, err := filepath.Glob(filepath.Join(dir, "*.tmp"))
				return err == nil && len(left) == 0
			})

			times := map[string]int{}
			for _, m := range regexp.MustCompile(`(?m)^completed (.*)$`).FindAllStringSubmatch(output.String(), -1) {
				times[m[1]]++
			}
			converted := 0
			for lsn := begin; lsn < end-pg.LSN(uint64(end)%c.SegmentSize); lsn += pg.LSN(c.SegmentSize) {
				name := c.SegmentName(1, lsn)
				if times[name] > 1 {
					t.Errorf("%s was completed %d times", name, times[name])
				}
				want := must(os.ReadFile(filepath.Join(c.WALDir(), name)))
				got, err := os.ReadFile(filepath.Join(dir, name+".zst.aes"))
				if err == nil {
					converted++
				} else { // the host was killed before it heard of it
					got, err = os.ReadFile(filepath.Join(dir, name))
				}
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: %d bytes, %v", name, len(got), err)
				}
			}
			if converted < 12 {
				t.Errorf("only %d segments were converted", converted)
			}
			if strings.Contains(output.String(), "warning") || len(pg.List(t, dir).Partial) != 1 {
				t.Errorf("%s\n%v", output.String(), pg.List(t, dir))
			}
		})
	}
}

// TestTemporarySlot: a slot that is made for this connection only, and keeps WAL from then on, is used by a receive on it, and
// goes with it.
func TestTemporarySlot(t *testing.T) {
	host := client(t)
	for _, version := range []int{13, 15, 18} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			c := pg.New(t, pg.Options{Version: version, SegmentSizeMB: 1})
			dir := t.TempDir()
			p := pg.Run(t, host, c.ConnString("application_name=s"), dir, "temporary=mine", "synchronous=1")
			c.WaitStreaming("s")
			end := c.Generate(3)
			c.WaitReceived("s", end, true)
			c.WaitFor("the slot to move on", func() bool {
				at := c.SQL("select restart_lsn from pg_replication_slots where slot_name = 'mine' and temporary and active")
				return at != "" && must(pg.ParseLSN(at)) >= end
			})
			p.Stop()
			c.WaitGone("s")
			c.WaitFor("the slot to go", func() bool { return c.SQL("select count(*) from pg_replication_slots") == "0" })
			c.ComparePartial(dir, 1, end)
		})
	}
}
