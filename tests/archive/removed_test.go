package archive

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"libreceivewal/segment"
	"libreceivewal/stream"
	"libreceivewal/tests/pg"
)

// Where the server no longer has the WAL that is needed, the error is one of its own and says what was wanted, what the slot still
// has (from version 15 on it can be asked), and what to do. The directory stays as it was. Since 18 the server refuses a slot that has
// lost its WAL; before, it shows in the stream.
func TestWALRemoved(t *testing.T) {
	for _, version := range []int{13, 14, 15, 16, 17, 18} {
		slots := []string{"lost", "never"}
		if version == 13 || version == 15 || version == 18 {
			slots = append(slots, "", "kept")
		}
		for _, slot := range slots {
			t.Run(fmt.Sprintf("%d%s", version, slot), func(t *testing.T) {
				t.Parallel()
				testRemoved(t, version, slot)
			})
		}
	}
}

func testRemoved(t *testing.T, version int, slot string) {
	c := pg.New(t, pg.Options{Version: version, SegmentSizeMB: 1})
	r := ours(t)
	if slot == "lost" || slot == "never" { // one that will be invalidated, or never keeps anything
		c.SQL(fmt.Sprintf("select pg_create_physical_replication_slot('%s', %t)", slot, slot == "lost"))
	}
	begin := c.Tick()
	fixStart(t, c, r.dir, begin)
	r.receive(c, c.Generate(2))
	before := fmt.Sprint(pg.List(t, r.dir))
	wanted := strings.TrimSuffix(pg.List(t, r.dir).Partial[0], ".partial")

	// The server removes that segment.
	c.Configure("wal_keep_size = 0", "min_wal_size = '2MB'", "max_wal_size = '2MB'", "max_slot_wal_keep_size = '3MB'")
	for range 4 {
		c.Generate(2)
		c.SwitchWAL()
		c.SQL("checkpoint")
	}
	c.WaitFor("the server to remove "+wanted, func() bool {
		if _, err := os.Stat(filepath.Join(c.WALDir(), wanted)); err == nil {
			c.SwitchWAL()
			c.SQL("checkpoint")
			return false
		}
		return true
	})
	kept := pg.LSN(0)
	if slot == "kept" { // one that was made too late
		c.SQL("select pg_create_physical_replication_slot('kept', true)")
		kept = c.LSN("select restart_lsn from pg_replication_slots")
	}
	if slot == "lost" {
		c.WaitFor("the slot to be lost", func() bool {
			c.SwitchWAL()
			c.SQL("checkpoint")
			return c.SQL("select wal_status from pg_replication_slots") == "lost"
		})
	}

	// By the Go API.
	err := startReceive(t, c, "removed", stream.Options{Directory: r.dir, Slot: slot}).wait()
	t.Log(err)
	if !errors.Is(err, stream.ErrWALRemoved) {
		t.Errorf("got %v", err)
	}
	size := segment.Size(c.SegmentSize)
	id, parseErr := segment.ParseName(wanted, size)
	if parseErr != nil {
		t.Fatal(parseErr)
	}
	for _, want := range []string{id.LSN(size).String(), wanted, "base backup"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q", want)
		}
	}
	if slot == "kept" && version >= 15 && !strings.Contains(err.Error(), "keeps WAL from "+kept.String()) {
		t.Errorf("the error does not say that the slot keeps WAL from %s on", kept)
	}
	// A slot without position: up to 17 the server doesn't tell why, so both reasons are named.
	says := func(what string) {
		t.Helper()
		if !strings.Contains(err.Error(), what) {
			t.Errorf("the error does not say %q", what)
		}
	}
	switch {
	case slot == "lost" && version >= 18:
		says(`slot "lost" was invalidated (max_slot_wal_keep_size)`)
	case version >= 15 && (slot == "lost" || slot == "never"):
		says(fmt.Sprintf(`slot %q keeps none: it has never reserved any`, slot))
		says("or it was invalidated")
	case version < 15 && slot != "":
		says("wal_status")
	}

	// By the program, which ends instead of trying for ever.
	args := []string{}
	if slot != "" {
		args = []string{"--slot", slot}
	}
	r.start(c, args...)
	if code := r.Wait(); code != 1 || !strings.Contains(r.Output(), wanted) || !strings.Contains(r.Output(), "base backup") {
		t.Errorf("exit code %d, output %s", code, r.Output())
	}
	if slot == "never" && version >= 18 && !strings.Contains(r.Output(), `slot "never" has never reserved any`) {
		t.Errorf("the program, which knows the server's version, does not say that the slot has never kept anything: %s", r.Output())
	}
	if strings.Contains(r.Output(), "try again") {
		t.Errorf("the program tried again: %s", r.Output())
	}
	if after := fmt.Sprint(pg.List(t, r.dir)); after != before {
		t.Errorf("files before: %s\nafter: %s", before, after)
	}
}
