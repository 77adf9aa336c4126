package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"libreceivewal/tests/pg"
)

func slotExists(c *pg.Cluster, name string) bool {
	return c.SQL("select count(*) from pg_replication_slots where slot_type = 'physical' and slot_name = '"+name+"'") == "1"
}

// A slot keeps WAL from its first use on, decides where an empty directory starts, follows what is durable, and can be dropped.
func TestSlot(t *testing.T) {
	eachServer(t, func(t *testing.T, version, size int) {
		c := pg.New(t, pg.Options{Version: version, SegmentSizeMB: size})
		c.Tick()
		c.SwitchWAL()
		rs := fit(t, c)
		for _, r := range rs {
			r.run(c, "--create-slot", "--slot", r.name).Succeed()
			if !slotExists(c, r.name) {
				t.Fatalf("%s has not created its slot", r.name)
			}
			r.start(c, "--slot", r.name)
			c.WaitStreaming(r.name)
		}
		begin := c.Tick()
		stopAt(rs, c, begin)
		for _, r := range rs {
			c.WaitGone(r.name)
			r.dir = t.TempDir()
		}
		if version < 15 { // which can't be asked for a slot's position: an empty file says where to start
			put(rs, c.SegmentName(1, begin)+".partial", nil)
		}
		c.Generate(3 * size)
		for _, r := range rs {
			r.start(c, "--slot", r.name)
			c.WaitStreaming(r.name)
		}
		c.Generate(2 * size)
		_, boundary := c.SwitchWAL()
		end := c.Tick()
		for _, r := range rs {
			// A segment's end is flushed and reported at once; the rest only when it is asked for.
			c.WaitReceived(r.name, boundary, true)
			c.WaitFor("the slot to move on", func() bool {
				return c.LSN("select restart_lsn from pg_replication_slots where slot_name = '"+r.name+"'") >= boundary
			})
		}
		stopAt(rs, c, end)
		verify(rs, c, 1, end)
		first(rs, c, 1, begin)
		for _, r := range rs {
			c.WaitGone(r.name)
			r.run(c, "--drop-slot", "--slot", r.name).Succeed()
			if slotExists(c, r.name) {
				t.Errorf("%s has not dropped its slot", r.name)
			}
		}
	})
}

// What goes wrong with slots has pg_receivewal's exit codes and messages.
func TestSlotErrors(t *testing.T) {
	t.Parallel()
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	for _, r := range both(t) {
		t.Run(r.name, func(t *testing.T) {
			r.t = t
			expect := func(code int, message string, args ...string) {
				t.Helper()
				p := r.run(c, args...)
				if got := p.Wait(); got != code {
					t.Errorf("%v: exit code %d, want %d\n%s", args, got, code, p.Output())
				}
				if !strings.Contains(p.Output(), message) {
					t.Errorf("%v: %q is not in the output:\n%s", args, message, p.Output())
				}
			}
			expect(0, "", "--create-slot", "--slot", r.name)
			expect(1, fmt.Sprintf(`replication slot "%s" already exists`, r.name), "--create-slot", "--slot", r.name)
			expect(0, "", "--create-slot", "--slot", r.name, "--if-not-exists")
			expect(1, `replication slot "nobody" does not exist`, "--drop-slot", "--slot", "nobody")
			expect(1, `replication slot "nobody" does not exist`, "-D", r.dir, "--no-loop", "--slot", "nobody")

			r.start(c, "--slot", r.name)
			c.WaitStreaming(r.name)
			expect(1, fmt.Sprintf(`replication slot "%s" is active`, r.name), "-D", t.TempDir(), "--no-loop", "--slot", r.name)
			r.Stop()
		})
	}
}

// Better: a clean stop leaves the slot at exactly what was received, also in the middle of a segment.
func TestBetterSlotAfterStop(t *testing.T) {
	t.Parallel()
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	rs := []*receiver{ours(t)}
	rs[0].run(c, "--create-slot", "--slot", "ours").Succeed()
	rs[0].start(c, "--slot", "ours", "-s", "0") // no update of its own accord, so nothing flushes before the stop
	c.WaitStreaming("ours")
	var end pg.LSN
	for range 5 { // a .partial is flushed when it gets its name; what comes after that isn't
		end = c.Tick()
		c.WaitFor("the last byte", func() bool {
			received, err := os.ReadFile(filepath.Join(rs[0].dir, c.SegmentName(1, end)+".partial"))
			n := uint64(end) % c.SegmentSize
			return err == nil && bytes.Equal(received[:n], serverSegment(t, c, c.SegmentName(1, end))[:n])
		})
	}
	if got := c.LSN("select coalesce(restart_lsn, '0/0') from pg_replication_slots"); got >= end {
		t.Fatalf("the slot is at %s before the stop: this proves nothing", got)
	}
	rs[0].Stop()
	c.WaitGone("ours")
	if got := c.LSN("select restart_lsn from pg_replication_slots"); got < end {
		t.Errorf("the slot is at %s, although everything up to %s was received", got, end)
	}
	c.ComparePartial(rs[0].dir, 1, end)
}
