package archive

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"libreceivewal/segment"
	"libreceivewal/tests/pg"
)

// Whatever a cluster goes through, in whatever order: promotions with the receiver there or away, recoveries to an earlier point from
// what was received, segments that get lost, receivers that are killed. In the end the directory is sound, and recovers the first base
// backup to the last commit of the newest timeline.
func TestAnyLife(t *testing.T) {
	t.Parallel()
	for i := range rounds(t, 1, 20) {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			l := &life{t: t, rand: chance(t), r: ours(t)}
			size := []int{1, 1, 4, 16}[l.rand.IntN(4)]
			t.Logf("segments of %d MB", size)
			l.c = pg.New(t, pg.Options{SegmentSizeMB: size})
			l.c.SQL("create table commits (id int)")
			l.backup = l.c.BaseBackup()
			fixStart(t, l.c, l.r.dir, l.c.LSN("select redo_lsn from pg_control_checkpoint()"))
			l.receive()
			for range 5 {
				[]func(){l.promote, l.recoverEarlier, l.lose, l.receive}[l.rand.IntN(4)]()
			}
			l.receive()

			if files := pg.List(t, l.r.dir); len(files.Other) > 0 {
				t.Errorf("stray files: %v", files.Other)
			}
			report, err := segment.CheckDirectory(segment.OS, l.r.dir, segment.CheckOptions{Pages: true})
			if err != nil || len(report.Problems) > 0 {
				t.Errorf("the check finds %+v, %v", report.Problems, err)
			}
			got := l.backup.Restore(l.r.dir).SQL("select string_agg(id::text, ' ' order by id) from commits")
			if want := strings.Trim(fmt.Sprint(l.commits), "[]"); got != want {
				t.Errorf("recovered the commits %s, want %s", got, want)
			}
		})
	}
}

// A life is that of a cluster, and of the receiver of its WAL.
type life struct {
	t       *testing.T
	rand    *rand.Rand
	r       *receiver
	backup  *pg.Backup
	c       *pg.Cluster // the primary
	commits []int       // of its timeline and those before
	steps   int
}

func (l *life) name() string { l.steps++; return fmt.Sprintf("step%d", l.steps) }

// work commits something, and makes some WAL.
func (l *life) work() pg.LSN {
	commit := func() {
		id := len(l.commits) + 1000*l.steps // differs from what was there before a recovery
		l.c.SQL(fmt.Sprintf("insert into commits values (%d)", id))
		l.commits = append(l.commits, id)
	}
	commit()
	l.c.Generate(l.rand.IntN(3*int(l.c.SegmentSize>>20)) + 1)
	if l.rand.IntN(3) == 0 {
		l.c.SwitchWAL()
	}
	commit()
	return l.c.CurrentLSN()
}

// receive receives what there is, at times by several receivers of which all but the last are killed.
func (l *life) receive() {
	for range l.rand.IntN(3) {
		l.r.start(l.c)
		time.Sleep(between(l.rand, 0, 400*time.Millisecond))
		l.r.Kill9()
		l.c.WaitGone(l.r.name)
	}
	l.r.start(l.c)
	l.r.stopAt(l.c, l.work())
}

func (l *life) promote() {
	s := l.c.Standby(l.name(), "wal_retrieve_retry_interval = 100ms", "recovery_target_name = ''", "restore_command = ''")
	s.CopyWAL(l.c)
	there := l.rand.IntN(2) == 0
	l.t.Logf("a promotion; the receiver is there: %t", there)
	if there {
		l.r.start(s)
	}
	s.WaitReplayed(l.work())
	l.c.Stop(pg.Immediate)
	s.Promote()
	l.c = s
	if end := l.work(); there {
		l.r.stopAt(l.c, end)
	}
}

func (l *life) recoverEarlier() {
	point := l.name()
	l.c.SQL("select pg_create_restore_point('" + point + "')")
	commits := slices.Clone(l.commits)
	l.receive()
	l.receive()
	next := l.backup.Restore(l.r.dir, "recovery_target_name = '"+point+"'")
	l.t.Logf("a recovery to an earlier point, timeline %d", next.Timeline())
	l.c.Destroy()
	l.c, l.commits = next, commits
}

// lose removes some segments that the server has.
func (l *life) lose() {
	files := pg.List(l.t, l.r.dir).Complete
	if len(files) < 2 {
		return
	}
	files = files[1:] // nothing tells that the first was ever there
	for range l.rand.IntN(4) {
		name := files[l.rand.IntN(len(files))]
		if name[:8] != fmt.Sprintf("%08X", l.c.Timeline()) {
			continue // the server may have it only under another name, if at all
		}
		if _, err := os.Stat(filepath.Join(l.c.WALDir(), name)); err == nil && os.Remove(filepath.Join(l.r.dir, name)) == nil {
			l.t.Logf("%s is lost", name)
		}
	}
	l.receive()
}
