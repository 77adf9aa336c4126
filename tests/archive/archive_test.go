// Package archive proves on real servers that the directory of received WAL can be trusted on the worst day: after kill -9, with the
// server lost, with the disk full or slow, across timelines, and where the WAL is gone. The judges are the server's own files,
// pg_receivewal in the same directory, and PostgreSQL itself recovering from what was received.
//
// The tests are short. RECEIVEWAL_SOAK=N makes them long: N times the rounds that each test names for it. "./build.sh soak" sets it.
// Whatever is left to chance follows from a seed that the test prints; RECEIVEWAL_SEED=N has the same again.
package archive

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"libreceivewal/segment"
	"libreceivewal/stream"
	"libreceivewal/tests/pg"
)

// rounds is how often to do something: a few times, or in a soak test many times.
func rounds(t testing.TB, few, many int) int {
	t.Helper()
	text := os.Getenv("RECEIVEWAL_SOAK")
	if text == "" {
		return few
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("RECEIVEWAL_SOAK=%s is not a number of at least 1", text)
	}
	return n * many
}

// chance is a source of random numbers that can be had again.
func chance(t testing.TB) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("RECEIVEWAL_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("RECEIVEWAL_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// between is a random duration.
func between(r *rand.Rand, from, to time.Duration) time.Duration {
	return from + time.Duration(r.Int64N(int64(to-from)))
}

// A receiver is a program that receives WAL. Its name is its application_name.
type receiver struct {
	*pg.Program
	t    testing.TB
	name string
	path string
	dir  string
}

// ours is the program under test, with a directory of its own.
func ours(t testing.TB) *receiver {
	t.Helper()
	root, err := pg.Root()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(root, "build", "bin", "receivewal")
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v; run ./build.sh first", err)
	}
	return &receiver{t: t, name: "ours", path: path, dir: t.TempDir()}
}

// theirs is pg_receivewal, with a directory of its own.
func theirs(t testing.TB) *receiver {
	t.Helper()
	return &receiver{t: t, name: "theirs", path: pg.ClientProgram(t, "pg_receivewal"), dir: t.TempDir()}
}

func both(t testing.TB) []*receiver { return []*receiver{ours(t), theirs(t)} }

// in lets the receiver work in another directory.
func (r *receiver) in(dir string) *receiver {
	r.dir = dir
	return r
}

// start begins to receive. It reports its position each second.
func (r *receiver) start(c *pg.Cluster, args ...string) {
	r.t.Helper()
	r.Program = pg.Run(r.t, r.path, slices.Concat([]string{"-D", r.dir, "-s", "1", "-d", c.ConnString("application_name=" + r.name)}, args)...)
}

// receive receives until lsn has arrived, and stops.
func (r *receiver) receive(c *pg.Cluster, lsn pg.LSN, args ...string) {
	r.t.Helper()
	r.start(c, args...)
	r.stopAt(c, lsn)
}

// stopAt waits until lsn has arrived and stops the receiver.
func (r *receiver) stopAt(c *pg.Cluster, lsn pg.LSN) {
	r.t.Helper()
	c.WaitReceived(r.name, lsn, false)
	r.Stop()
	c.WaitGone(r.name)
}

// fixStart makes an empty .partial of the segment that holds lsn: receiving begins with it.
func fixStart(t testing.TB, c *pg.Cluster, dir string, lsn pg.LSN) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, c.SegmentName(c.Timeline(), lsn)+".partial"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// verify checks a directory in which receiving began at a position and was stopped at another, on the server's newest timeline: the
// server's own bytes, no hole, no file that doesn't belong there.
func verify(t testing.TB, c *pg.Cluster, dir string, begin, end pg.LSN) {
	t.Helper()
	verifyOn(t, c, c.Timeline(), dir, begin, end)
}

func verifyOn(t testing.TB, c *pg.Cluster, timeline uint32, dir string, begin, end pg.LSN) {
	t.Helper()
	checkNames(t, c, dir)
	if missing := c.CompareWithServer(dir).Missing; len(missing) > 0 {
		t.Errorf("the server doesn't have %v to compare with", missing)
	}
	files := pg.List(t, dir)
	if uint64(end)%c.SegmentSize != 0 {
		c.ComparePartial(dir, timeline, end)
	} else if last := c.SegmentName(timeline, end-1); !slices.Contains(files.Complete, last) {
		t.Errorf("%s is not complete", last)
	}
	all := append(files.Complete, files.Partial...)
	slices.SortFunc(all, bySegment)
	if len(all) == 0 || all[0][8:24] != c.SegmentName(timeline, begin)[8:] {
		t.Errorf("%v does not begin with the segment of %s", all, begin)
	}
	if len(files.Other) > 0 {
		t.Errorf("stray files: %v", files.Other)
	}
	report, err := segment.CheckDirectory(segment.OS, dir, segment.CheckOptions{Pages: true})
	if err != nil || len(report.Problems) > 0 {
		t.Errorf("the check finds %+v, %v", report.Problems, err)
	}
}

func bySegment(a, b string) int {
	if a[8:24] != b[8:24] {
		return cmp(a[8:24], b[8:24])
	}
	return cmp(a, b)
}

func cmp(a, b string) int {
	if a < b {
		return -1
	}
	return 1
}

// checkNames checks what must be true of a directory at every moment, also right after a crash: nothing but segments and history
// files (one that is not there yet may have its temporary name); on each timeline no hole, and at most one .partial, which follows the
// last complete segment.
func checkNames(t testing.TB, c *pg.Cluster, dir string) {
	t.Helper()
	files := pg.List(t, dir)
	for _, name := range files.Other {
		history, temporary := strings.CutSuffix(name, ".tmp")
		if !temporary || !strings.HasSuffix(history, ".history") || slices.Contains(files.History, history) {
			t.Errorf("a stray file: %s", name)
		}
	}
	c.CheckNoHole(dir)
	last := map[string]string{} // of each timeline
	for _, name := range files.Complete {
		last[name[:8]] = name
	}
	partial := map[string]string{}
	for _, name := range files.Partial {
		timeline, before := name[:8], last[name[:8]]
		if partial[timeline] != "" {
			t.Errorf("two partial segments: %s and %s", partial[timeline], name)
		}
		partial[timeline] = name
		if before != "" && segmentNumber(t, c, name) != segmentNumber(t, c, before)+1 {
			t.Errorf("%s does not follow %s", name, before)
		}
	}
}

func segmentNumber(t testing.TB, c *pg.Cluster, name string) uint64 {
	t.Helper()
	id, err := segment.ParseName(name[:24], segment.Size(c.SegmentSize))
	if err != nil {
		t.Fatal(err)
	}
	return id.Number
}

// checkHolds fails unless the directory has all of the timeline's WAL from the segment of begin up to end, as the server has it: in
// complete segments, and in a .partial.
func checkHolds(t testing.TB, c *pg.Cluster, dir string, timeline uint32, begin, end pg.LSN) {
	t.Helper()
	if err := holds(c, dir, timeline, begin, end); err != nil {
		t.Errorf("the WAL up to %s should be there: %v", end, err)
	}
}

func holds(c *pg.Cluster, dir string, timeline uint32, begin, end pg.LSN) error {
	size := pg.LSN(c.SegmentSize)
	for lsn := begin / size * size; lsn < end; lsn += size {
		name := c.SegmentName(timeline, lsn)
		n := int(min(end-lsn, size))
		received, err := os.ReadFile(filepath.Join(dir, name))
		if os.IsNotExist(err) {
			received, err = os.ReadFile(filepath.Join(dir, name+".partial"))
		}
		if err != nil {
			return err
		}
		original, err := os.ReadFile(filepath.Join(c.WALDir(), name))
		if err != nil {
			return err
		}
		if len(received) < n || string(received[:n]) != string(original[:n]) {
			return fmt.Errorf("%s has not the server's first %d bytes", name, n)
		}
	}
	return nil
}

// busy is something that goes on in the background until it is stopped.
type busy struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// keepBusy runs work again and again, over several connections, until it is stopped or the connection breaks.
func keepBusy(t testing.TB, c *pg.Cluster, connections int, work func(ctx context.Context, conn *pgconn.PgConn) error) *busy {
	ctx, cancel := context.WithCancel(context.Background())
	b := &busy{cancel: cancel}
	for range connections {
		b.wg.Go(func() {
			conn, err := pgconn.Connect(ctx, c.ConnString("application_name=load"))
			if err != nil {
				if ctx.Err() == nil {
					t.Errorf("load: %v", err)
				}
				return
			}
			defer conn.Close(context.Background())
			for ctx.Err() == nil && work(ctx, conn) == nil {
			}
		})
	}
	t.Cleanup(b.stop)
	return b
}

func (b *busy) stop() {
	b.cancel()
	b.wg.Wait()
}

// pause waits, or less long if ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// connect opens a replication connection and takes it out of pgx.
func connect(t testing.TB, c *pg.Cluster, application string) *pgconn.HijackedConn {
	t.Helper()
	conn, err := pgconn.Connect(context.Background(), c.ConnString("replication=true", "application_name="+application))
	if err != nil {
		t.Fatal(err)
	}
	h, err := conn.Hijack()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Conn.Close() })
	return h
}

// A receive is a Receive of the Go API in the background.
type receive struct {
	*stream.Session
	t      testing.TB
	stop   context.CancelFunc
	result chan error
}

// startReceive begins a Receive over a new connection.
func startReceive(t testing.TB, c *pg.Cluster, application string, o stream.Options) *receive {
	t.Helper()
	h := connect(t, c, application)
	ctx, cancel := context.WithCancel(context.Background())
	r := &receive{stream.NewSession(h.Conn, stream.SessionOptions{}), t, cancel, make(chan error, 1)}
	go func() { r.result <- r.Receive(ctx, o) }()
	t.Cleanup(func() {
		cancel()
		h.Conn.Close() // should it not obey
	})
	return r
}

// wait waits for the end of the Receive.
func (r *receive) wait() error {
	r.t.Helper()
	select {
	case err := <-r.result:
		return err
	case <-time.After(pg.Deadline):
		r.t.Fatal("the receive does not end")
		panic("unreachable")
	}
}

// running fails the test if the Receive has ended.
func (r *receive) running() {
	r.t.Helper()
	select {
	case err := <-r.result:
		r.t.Fatalf("the receive has ended: %v", err)
	default:
	}
}

// sender is the WAL sender that serves an application: its process, and when it heard from the receiver last.
func sender(c *pg.Cluster, application string) string {
	return c.SQL(fmt.Sprintf("select pid from pg_stat_replication where application_name = '%s'", application))
}
