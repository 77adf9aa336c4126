package stream

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const slotIsActive = `replication slot "s" is active for PID 4711`

// A slot that is in use: without SlotWait that is an error at once, with everything that helps to find who has it. With it, the
// slot is asked for each second, until the time is over; the log says so once, and the state is that of the start.
func TestSlotWait(t *testing.T) {
	for _, test := range []struct {
		wait     time.Duration
		attempts int // that fail
		freed    bool
	}{
		{0, 1, false},
		{2500 * time.Millisecond, 4, false}, // at 0, 1, 2 and 2.5 s
		{2500 * time.Millisecond, 3, true},
		{-1, 100, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlay(t, oneTimeline(0x300080))
			p.receive(Options{Slot: "s", StartLSN: 0x300000, SlotWait: test.wait, ReceiveTimeout: -1, StatusInterval: -1})
			begin := time.Now()
			for range test.attempts {
				p.identify()
				p.command(`START_REPLICATION SLOT "s" 0/300000 TIMELINE 1`, refusal("ERROR", "55006", slotIsActive)...)
				p.wait()
				if state := p.s.Progress().State; test.wait != 0 && test.freed && state != StateStarting {
					t.Errorf("the state is %d", state)
				}
			}
			waited := time.Since(begin)
			if test.freed {
				p.identify()
				p.startReplication(0x300000)
				p.wal(0x300000, 0x80)
				p.wait()
				p.finish(0x300080, 0x300080)
			} else {
				err := p.end(ErrSlotBusy)
				for _, part := range []string{slotIsActive, "START_REPLICATION", "pg_stat_replication"} {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("%q is not in %q", part, err)
					}
				}
				p.usable()
				if waited != max(test.wait, 0) {
					t.Errorf("waited %s, not %s", waited, test.wait)
				}
			}
			told := 0
			for _, line := range p.logs {
				if strings.HasPrefix(line, "WARN waiting for the slot: ") && strings.Contains(line, "4711") {
					told++
				}
			}
			if want := map[bool]int{true: 1, false: 0}[test.wait != 0]; told != want {
				t.Errorf("told %d times: %q", told, p.logs)
			}
		})
	}
}

// A stop ends the wait for a slot at once.
func TestSlotWaitStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300080))
		p.receive(Options{Slot: "s", StartLSN: 0x300000, SlotWait: -1, ReceiveTimeout: -1})
		p.identify()
		p.command(`START_REPLICATION SLOT "s" 0/300000 TIMELINE 1`, refusal("ERROR", "55006", slotIsActive)...)
		p.wait()
		before := time.Now()
		p.stop()
		p.end(ErrStopped)
		if waited := time.Since(before); waited != 0 {
			t.Errorf("ended after %s", waited)
		}
		p.usable()
	})
}

// Positions are read with leading zeros too, as newer development versions print them.
func TestPositionsWithLeadingZeros(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x300080))
		p.receive(Options{Slot: "s", ReceiveTimeout: -1, StatusInterval: -1})
		p.command("IDENTIFY_SYSTEM", answerOf(p.c.system, 1, "0/00300080", nil)...)
		p.command("SHOW wal_segment_size", answerOf("1MB")...)
		p.command("SHOW data_directory_mode", answerOf("0700")...)
		p.command(`READ_REPLICATION_SLOT "s"`, answerOf("physical", "00000000/00200010", 1)...)
		p.startReplication(0x200000)
		p.wal(0x200000, 0x100)
		p.wait()
		p.finish(0x200100, 0x200100)
		if i := slices.Index(p.trace, `START_REPLICATION SLOT "s" 0/200000 TIMELINE 1`); i < 0 {
			t.Errorf("the client sent %q", p.trace)
		}
	})
}
