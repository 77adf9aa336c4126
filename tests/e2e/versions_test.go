package e2e

import (
	"fmt"
	"testing"

	"libreceivewal/tests/pg"
)

// The same on every version of PostgreSQL: a slot, an empty directory, a stop and a start, a restart of the server, a
// promotion; the source is a hot standby, and no ALTER SYSTEM is allowed. pg_receivewal is there in version 15, which refuses newer servers.
func TestEveryVersion(t *testing.T) {
	for _, version := range []int{13, 14, 15, 16, 17, 18} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			t.Parallel()
			var conf []string
			if version >= 17 {
				conf = []string{"allow_alter_system = off"}
			}
			a := pg.New(t, pg.Options{Version: version, SegmentSizeMB: 1, Conf: conf})
			b := a.Standby("b")
			rs := []*receiver{ours(t)}
			if version <= 15 {
				rs = both(t)
			}
			for _, r := range rs {
				r.run(b, "--create-slot", "--slot", r.name).Succeed()
				r.start(b, "--slot", r.name)
				b.WaitStreaming(r.name)
			}
			end := a.Generate(2)
			stopAt(rs, b, end)
			for _, r := range rs {
				r.start(b, "--slot", r.name)
				b.WaitStreaming(r.name)
			}
			a.Generate(1)
			b.Restart()
			switch2 := a.Generate(2)
			b.WaitReplayed(switch2)
			a.Stop(pg.Immediate)
			b.Promote()
			end = b.Generate(2)
			stopAt(rs, b, end)
			verify(rs, b, 2, end)
			hasFiles(rs, "00000002.history", b.SegmentName(1, switch2)+".partial")
		})
	}
}
