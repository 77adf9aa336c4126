package archive

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"libreceivewal/stream"
	"libreceivewal/tests/pg"
)

// A logical slot cannot be used, wherever the receive begins; a connection to one database cannot be used either. Both are said so, in
// every version, and leave the connection usable.
func TestLogicalReplicationIsRefused(t *testing.T) {
	for _, version := range []int{13, 14, 15, 16, 17, 18} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			t.Parallel()
			c := pg.New(t, pg.Options{Version: version, SegmentSizeMB: 1, Conf: []string{"wal_level = logical"}})
			c.SQL("select pg_create_logical_replication_slot('l', 'pgoutput')")
			for _, o := range []stream.Options{{}, {StartLSN: 1 << 20 * 2}} { // the slot's position, or ours
				o.Directory, o.Slot = t.TempDir(), "l"
				r := startReceive(t, c, "logical", o)
				err := r.wait()
				if !errors.Is(err, stream.ErrNoSlot) || !strings.Contains(err.Error(), "logical") || !strings.Contains(err.Error(), `"l"`) {
					t.Errorf("a logical slot, from %s: %v", o.StartLSN, err)
				}
				if !r.Usable() {
					t.Error("the connection is not usable")
				}
			}

			conn, err := pgconn.Connect(context.Background(), c.ConnString("replication=database"))
			if err != nil {
				t.Fatal(err)
			}
			hijacked, err := conn.Hijack()
			if err != nil {
				t.Fatal(err)
			}
			defer hijacked.Conn.Close()
			s := stream.NewSession(hijacked.Conn, stream.SessionOptions{})
			err = s.Receive(context.Background(), stream.Options{Directory: t.TempDir()})
			if !errors.Is(err, stream.ErrUnsupported) || !strings.Contains(err.Error(), "replication=database") || !s.Usable() {
				t.Errorf("a connection to a database: %v, usable: %t", err, s.Usable())
			}
		})
	}
}
