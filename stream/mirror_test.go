package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"libreceivewal/segment"
)

// disks are directories by their names.
type disks map[string]*memory

func (d disks) OpenDir(path string) (segment.Dir, error) {
	if m := d[path]; m != nil {
		return m.OpenDir(path)
	}
	return nil, unix.ENOENT
}

// withMirrors gives the play as many mirrors, m1, m2, …
func (p *play) withMirrors(n int) (paths []string, mirrors []*memory) {
	all := disks{"wal": p.dir}
	for i := range n {
		path := fmt.Sprintf("m%d", i+1)
		all[path] = newMemory()
		paths, mirrors = append(paths, path), append(mirrors, all[path])
	}
	p.s.fs = all
	return paths, mirrors
}

// equals checks that a mirror has exactly the files of the first directory, and all of it durable.
func (p *play) equals(m *memory) {
	p.t.Helper()
	m.check(p.t)
	if got, want := m.list(), p.dir.list(); got != want {
		p.t.Errorf("the mirror has\n%sthe first directory\n%s", got, want)
		return
	}
	for name, f := range p.dir.names {
		if g := m.durable[name]; g == nil || !bytes.Equal(unfilled(g.synced), unfilled(f.data)) || g.mode != f.mode {
			p.t.Errorf("%s of the mirror is not durable, or differs", name)
		}
	}
}

// lint checks what must be true of a directory at every moment: at most one .partial on each timeline, right behind what is complete.
func (m *memory) lint(size segment.Size) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	newest, partial := map[segment.Timeline]segment.ID{}, map[segment.Timeline]segment.ID{}
	oldest := map[segment.Timeline]segment.ID{}
	count := map[segment.Timeline]uint64{}
	for _, name := range sortedKeys(m.names) {
		base, isPartial := strings.CutSuffix(name, ".partial")
		id, err := segment.ParseName(base, size)
		if err != nil {
			continue
		}
		if isPartial {
			if other, found := partial[id.Timeline]; found {
				return fmt.Errorf("%v and %v are both partial", other, id)
			}
			partial[id.Timeline] = id
			continue
		}
		if count[id.Timeline] == 0 {
			oldest[id.Timeline] = id
		}
		count[id.Timeline]++
		newest[id.Timeline] = id
	}
	for timeline, n := range count {
		if last := newest[timeline]; last.Number-oldest[timeline].Number+1 != n {
			return fmt.Errorf("there is a hole before %v", last)
		} else if p, found := partial[timeline]; found && p.Number != last.Number+1 {
			return fmt.Errorf("%v is partial behind %v", p, last)
		}
	}
	return nil
}

// linted makes a directory check itself before each change of a name.
func (m *memory) linted(t testing.TB, size segment.Size) {
	before := m.hook
	m.hook = func(op, name string) error {
		if op == "link" || op == "rename" || op == "sync" && name == "." {
			if err := m.lint(size); err != nil {
				t.Errorf("before the %s of %s: %v", op, name, err)
			}
		}
		if before != nil {
			return before(op, name)
		}
		return nil
	}
}

func both(t *testing.T, test func(t *testing.T, required bool)) {
	for _, required := range []bool{false, true} {
		t.Run(fmt.Sprintf("required %t", required), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, required) })
		})
	}
}

// Mirrors get every byte, name and history file that the first directory gets, in step, through a switch of timelines.
func TestMirrors(t *testing.T) {
	both(t, func(t *testing.T, required bool) {
		p := newPlay(t, &cluster{testSystem, segment.History{{Timeline: 1, End: 0x4ABCDE}, {Timeline: 2, End: 0x600000}, {Timeline: 3}}, 0x700080})
		paths, mirrors := p.withMirrors(3)
		for _, m := range mirrors {
			m.linted(t, testSize)
		}
		inStep := 0
		p.on = func(string) error {
			if g := p.s.Progress(); g.Mirrors == 3 && g.MirrorsFailed == 0 {
				inStep++
			}
			return nil
		}
		p.ask = true
		p.receive(Options{Slot: "s", StartLSN: 0x300000, StartTimeline: 1, EndLSN: 0x70007F, Mirrors: paths, MirrorRequired: required,
			ReceiveTimeout: -1, StatusInterval: -1})
		p.is(p.serve())
		p.hasWAL(1, 0x300000, 0x4ABCDE)
		p.hasWAL(3, 0x600000, 0x700080)
		for _, m := range mirrors {
			p.equals(m)
			if m.file("00000003.history") == nil {
				t.Error("a history file is missing")
			}
		}
		if inStep == 0 {
			t.Error("the progress never said that all mirrors are written in step")
		}
		p.usable()
	})
}

// Whatever fails in a mirror: the first directory goes on, the failure is told once, and the mirror comes back with all that it
// has missed. Where it is required the receive ends with its error, which names it.
func TestMirrorFails(t *testing.T) {
	for name, test := range map[string]struct {
		op, name string
		err      error
		want     error
	}{
		"no directory":    {"open", ".", unix.ENOENT, segment.ErrNoDirectory},
		"no permission":   {"open", ".", unix.EACCES, segment.ErrPermission},
		"create":          {"create", "", unix.EROFS, segment.ErrPermission},
		"allocate":        {"allocate", "", unix.EDQUOT, segment.ErrDiskFull},
		"write":           {"write", "", unix.ENOSPC, segment.ErrDiskFull},
		"write later":     {"write", "000000010000000000000003.partial", unix.EIO, segment.ErrIO},
		"fsync":           {"sync", "", unix.EIO, segment.ErrIO},
		"fsync later":     {"sync", "000000010000000000000004.partial", unix.EIO, segment.ErrIO},
		"link":            {"link", "000000010000000000000003.partial", unix.EACCES, segment.ErrPermission},
		"rename":          {"rename", "000000010000000000000004.partial", unix.EIO, segment.ErrIO},
		"fsync of names":  {"sync", ".", unix.EIO, segment.ErrIO},
		"open a .partial": {"open", "000000010000000000000004.partial", unix.EACCES, segment.ErrPermission},
	} {
		t.Run(name, func(t *testing.T) {
			both(t, func(t *testing.T, required bool) {
				p := newPlay(t, oneTimeline(0xA00080))
				paths, mirrors := p.withMirrors(2)
				var broken atomic.Bool
				broken.Store(true)
				mirrors[0].hook = func(op, name string) error {
					if op == test.op && name == test.name && broken.Load() {
						return test.err
					}
					return nil
				}
				mirrors[0].linted(t, testSize)
				o := Options{Slot: "s", Synchronous: true, StartLSN: 0x300000, Mirrors: paths, MirrorRequired: required,
					ReceiveTimeout: -1, StatusInterval: -1}
				p.receive(o)
				if required {
					err := p.serve()
					p.is(err, test.want)
					if !strings.Contains(err.Error(), `"m1`) {
						t.Errorf("%q does not say which directory", err)
					}
					if g := p.s.Progress(); g.FlushedLSN > 0x500000 {
						t.Errorf("%+v", g)
					}
					for _, e := range p.heard() {
						if strings.HasPrefix(e, "completed 000000010000000000000005") {
							t.Error(e)
						}
					}
					p.usable()
					return
				}
				p.identify()
				p.startReplication(0x300000)
				p.wal(0x300000, 100)
				p.wal(0x300064, 3<<20+900)
				failed := func() (n int) {
					for _, e := range p.heard() {
						if strings.HasPrefix(e, "m1 failed: ") {
							n++
						}
					}
					return n
				}
				time.Sleep(5 * mirrorRetry) // it is tried again, and fails again
				if failed() != 1 || slices.Contains(p.heard(), "m1 restored") {
					t.Errorf("%q", p.heard())
				}
				if g := p.s.Progress(); g.Mirrors != 1 || g.MirrorsFailed != 1 || g.FlushedLSN != 0x6003E8 {
					t.Errorf("%+v", g)
				}
				broken.Store(false)
				time.Sleep(2 * mirrorRetry)
				if g := p.s.Progress(); g.Mirrors != 2 || g.MirrorsFailed != 0 || !slices.Contains(p.heard(), "m1 restored") {
					t.Errorf("%+v %q", g, p.heard())
				}
				p.follows(mirrors[0])
				p.wal(0x6003E8, 2<<20)
				p.stopped()
				p.equals(mirrors[0])
				p.equals(mirrors[1])
				p.hasWAL(1, 0x300000, 0x8003E8)
				if failed() != 1 {
					t.Errorf("%q", p.heard())
				}
			})
		})
	}
}

// stopped stops the receive, and checks that the connection is usable.
func (p *play) stopped() {
	p.t.Helper()
	p.stop()
	for m := p.next(); m.text != "CopyDone"; m = p.next() {
	}
	p.copyDone()
	p.end(ErrStopped)
	p.usable()
}

// follows checks, in the middle of a receive, that a mirror has every byte of the first directory.
func (p *play) follows(m *memory) {
	p.t.Helper()
	p.wait()
	p.dir.mu.Lock()
	defer p.dir.mu.Unlock()
	for name, f := range p.dir.names {
		if !bytes.Equal(m.file(name), f.data) {
			p.t.Errorf("%s of the mirror differs", name)
		}
	}
}

// hang makes a directory hang in an operation until the function that it returns is called.
func (m *memory) hang(where string) (release func()) {
	let := make(chan struct{})
	m.hook = func(op, name string) error {
		if op+" "+name == where {
			<-let
		}
		return nil
	}
	return func() { close(let) }
}

// A mirror that hangs, wherever it does, holds up nobody: it is let go, and comes back once the disk does.
func TestMirrorHangs(t *testing.T) {
	for _, where := range []string{"open .", "write ", "sync ", "sync .", "link 000000010000000000000003.partial",
		"write 000000010000000000000003.partial", "sync 000000010000000000000004.partial"} {
		t.Run(where, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlay(t, oneTimeline(0xA00080))
				paths, mirrors := p.withMirrors(1)
				release := mirrors[0].hang(where)
				mirrors[0].linted(t, testSize)
				p.begin(Options{Slot: "s", Synchronous: true, StartLSN: 0x300000, Mirrors: paths}, 0x300000)
				begin := time.Now()
				p.wal(0x300000, 100)
				p.expectFlushed(0x300064)
				p.wal(0x300064, 3<<20)
				p.expectFlushed(0x600064)
				if d := time.Since(begin); d != 0 {
					t.Errorf("the receive was held up for %s", d)
				}
				time.Sleep(2 * mirrorPatience)
				if len(p.heard()) == 0 || !slices.Contains(p.heard(), "m1 failed: it has not answered for 1m0s") {
					t.Errorf("%q", p.heard())
				}
				release()
				time.Sleep(2 * mirrorRetry)
				if !slices.Contains(p.heard(), "m1 restored") {
					t.Errorf("%q", p.heard())
				}
				p.follows(mirrors[0])
				p.stopped()
				p.equals(mirrors[0])
			})
		})
	}
}

// expectFlushed waits for a status update with a flushed position.
func (p *play) expectFlushed(lsn segment.LSN) {
	p.t.Helper()
	for !strings.HasSuffix(p.next().text, " "+lsn.String()) {
	}
}

// The end of a receive waits for a mirror that hangs, but not for long. What hangs closes its files later.
func TestEndWithHangingMirror(t *testing.T) {
	for _, where := range []string{"open .", "write ", "sync 000000010000000000000003.partial"} {
		t.Run(where, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlay(t, oneTimeline(0xA00080))
				paths, mirrors := p.withMirrors(2)
				release := mirrors[0].hang(where)
				p.begin(Options{Slot: "s", StartLSN: 0x300000, Mirrors: paths}, 0x300000)
				p.wal(0x300000, 1<<20+100)
				begin := time.Now()
				p.stopped()
				if d := time.Since(begin); d < mirrorGrace || d > mirrorGrace+time.Hour { // stopped waits an hour
					t.Errorf("after %s", d)
				}
				if last := p.heard()[len(p.heard())-1]; !strings.HasPrefix(last, "m1 failed: it did not answer") {
					t.Errorf("%q", p.heard())
				}
				p.equals(mirrors[1])
				release()
				synctest.Wait()
				mirrors[0].check(t)
				if err := mirrors[0].lint(testSize); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// What waits for a mirror is bounded: one that takes nothing is let go, and fetches later what it has missed.
func TestMirrorDoesNotKeepUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const segments = 90
		p := newPlay(t, oneTimeline(0x300000+segments*mib+100))
		paths, mirrors := p.withMirrors(2)
		release := mirrors[0].hang("write ")
		p.begin(Options{Slot: "s", StartLSN: 0x300000, Mirrors: paths}, 0x300000)
		for lsn := segment.LSN(0x300000); lsn < 0x300000+segments*mib; lsn += mib {
			p.wal(lsn, 1<<20)
			failed := slices.Contains(p.heard(), "m1 failed: it does not keep up: more than 64 MiB wait for it")
			if waits := lsn + mib - 0x300000; failed != (waits > mirrorBytes) {
				t.Fatalf("%d bytes wait, let go: %t", waits, failed)
			}
		}
		p.wal(0x300000+segments*mib, 100)
		release()
		time.Sleep(2 * mirrorRetry)
		p.follows(mirrors[0])
		p.stopped()
		p.equals(mirrors[0])
		p.equals(mirrors[1])
	})
}

// A mirror that lags behind is told of and filled from the first directory, whatever form its segments have, before it goes on in step.
func TestMirrorLags(t *testing.T) {
	both(t, func(t *testing.T, required bool) {
		p := newPlay(t, &cluster{testSystem, segment.History{{Timeline: 1, End: 0x400010}, {Timeline: 2}}, 0xA00080})
		paths, mirrors := p.withMirrors(2)
		const mib = int64(testSize)
		history := []byte(p.c.historyFile(2))
		p.dir.put("00000002.history", history, int64(len(history)))
		for i, timeline := range []segment.Timeline{1, 1, 2, 2, 2, 2, 2} { // 2 to 8
			lsn := segment.LSN(0x200000 + i<<20)
			name := segment.At(timeline, lsn, testSize).Name(testSize)
			switch i {
			case 3: // encrypted by another program: nobody can look into it
				p.dir.put(name+".zst.aes", []byte("secret"), 6)
			case 4: // here and there nowhere
			default:
				p.dir.put(name, p.c.wal(timeline, lsn, 1<<20), mib)
			}
			if i < 2 {
				mirrors[0].put(name, p.c.wal(timeline, lsn, 1<<20), mib)
			}
		}
		p.dir.put("000000010000000000000004.partial", append(p.c.wal(1, 0x400000, 0x10), make([]byte, mib-0x10)...), mib) // where timeline 1 ended
		mirrors[0].put("000000020000000000000004.partial", p.c.wal(2, 0x400000, 5000), mib)                               // behind 2 and 3
		for _, lsn := range []segment.LSN{0x300000, 0x800000} {                                                           // with a hole
			timeline := segment.Timeline(1 + lsn>>23)
			mirrors[1].put(segment.At(timeline, lsn, testSize).Name(testSize), p.c.wal(timeline, lsn, 1<<20), mib)
		}
		p.receive(Options{Slot: "s", Repair: RepairOff, Mirrors: paths[:1], MirrorRequired: required, ReceiveTimeout: -1, StatusInterval: -1})
		p.identify()
		p.startReplication(0x900000)
		p.wal(0x900000, 1000)
		p.stopped()
		told := slices.DeleteFunc(p.heard(), func(e string) bool { return !strings.HasPrefix(e, "m1") })
		want := []string{"m1 hole 0/400000-0/900000", "m1 filled 0/400000-0/600000", "m1 lost 0/600000-0/700000", "m1 filled 0/700000-0/900000"}
		if !slices.Equal(told, want) {
			t.Errorf("%q, expected %q", told, want)
		}
		p.equals(mirrors[0])

		// A hole is filled only if that is wanted.
		for _, repair := range []RepairMode{RepairOff, RepairGoOn} {
			p.ctx, p.stop = context.WithCancel(context.Background())
			p.events = nil
			p.dir.put("000000020000000000000006", p.c.wal(2, 0x600000, 1<<20), mib) // so that the first directory has none
			p.receive(Options{Slot: "s", Repair: repair, Mirrors: paths[1:], MirrorRequired: required, ReceiveTimeout: -1, StatusInterval: -1})
			p.identify()
			p.startReplication(0x900000)
			p.stopped()
			want = []string{"m2 hole 0/400000-0/800000"}
			if repair == RepairGoOn {
				want = append(want, "m2 filled 0/400000-0/800000")
			}
			if !slices.Equal(p.heard(), want) {
				t.Errorf("%q, expected %q", p.heard(), want)
			}
		}
		for name, f := range p.dir.names {
			if g := mirrors[1].durable[name]; (g == nil || !bytes.Equal(g.synced, f.data)) && !strings.HasSuffix(name, "02") && !strings.HasSuffix(name, "partial") {
				t.Errorf("%s is missing", name)
			}
		}
	})
}

// A mirror that is ahead, since it is the first directory that was replaced, keeps its complete segments, and gets those in between.
func TestMirrorIsAhead(t *testing.T) {
	both(t, func(t *testing.T, required bool) {
		p := newPlay(t, oneTimeline(0xA00080))
		paths, mirrors := p.withMirrors(1)
		for _, lsn := range []segment.LSN{0x200000, 0x300000, 0x500000, 0x600000} {
			mirrors[0].put(segment.At(1, lsn, testSize).Name(testSize), p.c.wal(1, lsn, 1<<20), int64(testSize))
		}
		mirrors[0].put("000000010000000000000007.partial", p.c.wal(1, 0x700000, 1000), int64(testSize))
		mirrors[0].hook = func(op, name string) error {
			for _, number := range "2356" {
				if op == "write" && strings.HasSuffix(name, "0"+string(number)) {
					t.Errorf("%s of %s", op, name)
				}
			}
			if names := mirrors[0].list(); strings.Count(names, "partial") > 1 && op == "write" {
				t.Errorf("before the %s of %s there is\n%s", op, name, names)
			}
			return nil
		}
		p.begin(Options{Slot: "s", Synchronous: true, StartLSN: 0x300000, Mirrors: paths, MirrorRequired: required}, 0x300000)
		for lsn := segment.LSN(0x300000); lsn < 0x880000; lsn += 0x80000 {
			p.wal(lsn, 0x80000)
			if lsn == 0x580000 {
				p.expectFlushed(0x600000)
			}
		}
		p.stopped()
		if mirrors[0].file("000000010000000000000002") == nil {
			t.Error("an old segment is gone")
		}
		delete(mirrors[0].names, "000000010000000000000002")
		p.equals(mirrors[0])
	})
}

// A directory is written by one, be it as a mirror, and a mirror with another cluster's WAL is not touched.
func TestMirrorRefused(t *testing.T) {
	for name, test := range map[string]struct {
		mirror func(p *play, m *memory) string
		want   error
	}{
		"the first directory": {func(*play, *memory) string { return "wal" }, segment.ErrLocked},
		"another mirror":      {func(p *play, m *memory) string { p.s.fs.(disks)["m2"] = m; return "m2" }, segment.ErrLocked},
		"not there":           {func(*play, *memory) string { return "m3" }, segment.ErrNoDirectory},
		"another cluster's": {func(p *play, m *memory) string {
			m2 := newMemory()
			m2.put("000000010000000000000003", pageHeader(testSystem+1, 1, 0x300000, testSize), int64(testSize))
			p.s.fs.(disks)["m2"] = m2
			return "m2"
		}, segment.ErrForeign},
		"of other segments": {func(p *play, m *memory) string {
			m2 := newMemory()
			m2.put("000000010000000000000003", pageHeader(testSystem, 1, 0x300000, 16<<20), int64(testSize))
			p.s.fs.(disks)["m2"] = m2
			return "m2"
		}, segment.ErrForeign},
	} {
		t.Run(name, func(t *testing.T) {
			both(t, func(t *testing.T, required bool) {
				p := newPlay(t, oneTimeline(0xA00080))
				paths, mirrors := p.withMirrors(1)
				o := Options{Slot: "s", StartLSN: 0x300000, MirrorRequired: required, ReceiveTimeout: -1, StatusInterval: -1,
					Mirrors: append(paths, test.mirror(p, mirrors[0]))}
				before := ""
				if m2 := p.s.fs.(disks)["m2"]; m2 != nil {
					before = m2.list()
				}
				p.receive(o)
				if required {
					if test.want == segment.ErrForeign { // known once the server has said who it is
						p.identify()
					}
					err := p.end(test.want)
					if o := o.Mirrors[1]; name != "another mirror" && !strings.Contains(err.Error(), o) {
						t.Errorf("%q does not name %s", err, o)
					}
					p.usable()
				} else {
					p.identify()
					p.startReplication(0x300000)
					p.wal(0x300000, 1<<20)
					if g := p.s.Progress(); g.Mirrors != 1 || g.MirrorsFailed != 1 {
						t.Errorf("%+v", g)
					}
					p.stopped()
					if name != "another mirror" { // where either may be first
						p.equals(mirrors[0])
					}
				}
				if test.want == segment.ErrForeign && p.s.fs.(disks)["m2"].list() != before {
					t.Error("another cluster's directory was changed")
				}
			})
		})
	}
}

// Where mirrors are required, flushed means in each of them, and a segment is complete once it is so everywhere.
func TestRequiredMirrorIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const segments = 200
		p := newPlay(t, oneTimeline(0x300000+segments*mib))
		paths, mirrors := p.withMirrors(2)
		p.begin(Options{Slot: "s", Synchronous: true, StartLSN: 0x300000, Mirrors: paths, MirrorRequired: true}, 0x300000)
		p.wal(0x300000, 1000)
		p.expectFlushed(0x3003E8)
		release := mirrors[1].hang("sync 000000010000000000000003.partial")
		p.wal(0x3003E8, 1<<20)
		time.Sleep(time.Hour)
		if g := p.s.Progress(); g.FlushedLSN != 0x3003E8 || g.WrittenLSN != 0x4003E8 || g.Mirrors != 2 {
			t.Errorf("%+v", g)
		}
		if slices.Contains(p.heard(), "completed 000000010000000000000003 0/300000-0/400000") {
			t.Error("a segment is complete that is not durable in a mirror")
		}
		// The server has to wait as well.
		var sent atomic.Int64
		p.conn.SetWriteDeadline(time.Time{})
		p.running.Go(func() {
			for lsn := segment.LSN(0x4003E8); lsn < 0x300000+(segments-1)*mib; lsn += mib {
				p.conn.Write(encode(p.walMessage(lsn, 1<<20)))
				sent.Add(1 << 20)
			}
		})
		for range 100 { // while the server hears of us
			for !strings.HasSuffix(p.next().text, " 0/3003E8") {
			}
		}
		if n := sent.Load(); n > 2*mirrorBytes+8<<20 {
			t.Errorf("%d bytes were received that a required mirror does not have", n)
		}
		p.mu.Lock()
		p.onDisk = true // so much is not compared with each status update, but once, below
		p.mu.Unlock()
		release()
		p.expectFlushed(0x300000 + (segments-1)*mib + 1000)
		p.stopped()
		p.equals(mirrors[0])
		p.equals(mirrors[1])
		if !slices.Contains(p.heard(), "completed 000000010000000000000003 0/300000-0/400000") {
			t.Error("a complete segment was not told of")
		}
	})
}

// A mirror comes back in the middle of a segment, if the first directory's file can be read, and else with the next one. What the
// first directory no longer has is told.
func TestMirrorComesBack(t *testing.T) {
	for name, test := range map[string]struct {
		gone     string // what is taken away from the first directory meanwhile
		readable bool
	}{
		"in the middle":              {"", true},
		"with the next segment":      {"", false},
		"without what is gone":       {"000000010000000000000005", true},
		"with the next, without it":  {"000000010000000000000005", false},
		"with a compressed segment":  {"000000010000000000000005 to .zst.aes", true},
		"with the next, compressed":  {"000000010000000000000005 to .zst.aes", false},
		"without all that it lacked": {"000000010000000000000004", true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlay(t, oneTimeline(0xB00080))
				paths, mirrors := p.withMirrors(1)
				var broken, closed atomic.Bool
				mirrors[0].hook = func(op, _ string) error {
					if broken.Load() {
						return unix.EIO
					}
					return nil
				}
				p.dir.hook = func(op, name string) error {
					if closed.Load() && op == "open" && name == "000000010000000000000008.partial" {
						return unix.EACCES
					}
					return nil
				}
				p.begin(Options{Slot: "s", StartLSN: 0x300000, Mirrors: paths}, 0x300000)
				p.wal(0x300000, 1<<20+1000)
				time.Sleep(time.Second) // the second segment has a name
				broken.Store(true)
				p.wal(0x4003E8, 4<<20)
				p.wait()
				if from, compressed := strings.CutSuffix(test.gone, " to .zst.aes"); from != "" {
					p.mu.Lock()
					p.onDisk = true // what was flushed need not be there any more
					p.mu.Unlock()
					p.dir.mu.Lock()
					if compressed {
						p.dir.put(from+".zst.aes", []byte("secret"), 6)
					}
					delete(p.dir.names, from)
					delete(p.dir.durable, from)
					p.dir.mu.Unlock()
				}
				closed.Store(!test.readable)
				time.Sleep(2 * mirrorRetry)
				broken.Store(false)
				time.Sleep(2 * mirrorRetry)
				restored := slices.Contains(p.heard(), "m1 restored")
				if restored != test.readable {
					t.Errorf("back: %t; %q", restored, p.heard())
				}
				p.wal(0x8003E8, 1<<20)
				time.Sleep(time.Minute)
				if !slices.Contains(p.heard(), "m1 restored") {
					t.Errorf("it never came back: %q", p.heard())
				}
				p.stopped()
				lost := slices.DeleteFunc(slices.Clone(p.heard()), func(e string) bool { return !strings.Contains(e, " lost ") })
				switch test.gone {
				case "", "000000010000000000000005 to .zst.aes":
					if len(lost) != 0 {
						t.Errorf("%q", lost)
					}
				case "000000010000000000000005":
					if !slices.Equal(lost, []string{"m1 lost 0/500000-0/600000"}) {
						t.Errorf("%q", lost)
					}
				default: // its .partial is what is left
					if !slices.Equal(lost, []string{"m1 lost 0/400000-0/500000"}) || mirrors[0].file(test.gone+".partial") == nil {
						t.Errorf("%q", lost)
					}
					delete(mirrors[0].names, test.gone+".partial")
				}
				p.equals(mirrors[0])
			})
		})
	}
}

// Mirrors outlive a connection, and a timeline's end that comes while one of them is not there.
func TestMirrorThroughReconnect(t *testing.T) {
	both(t, func(t *testing.T, required bool) {
		p := newPlay(t, oneTimeline(0x700080))
		paths, mirrors := p.withMirrors(2)
		var broken atomic.Bool
		mirrors[1].hook = func(string, string) error {
			if broken.Load() {
				return unix.EIO
			}
			return nil
		}
		r := newProvider()
		o := Options{Slot: "s", StartLSN: 0x300000, EndLSN: 0x70007F, Mirrors: paths, MirrorRequired: required,
			Events: Events{Reconnect: r.reconnect}}
		p.begin(o, 0x300000)
		p.wal(0x300000, 1<<20+1000)
		broken.Store(!required)
		p.wal(0x4003E8, 1<<20)
		p.conn.Close()
		<-r.asked
		broken.Store(false)
		if !required {
			time.Sleep(2 * mirrorRetry) // there is nothing to join yet
			if g := p.s.Progress(); g.Mirrors != 1 || g.MirrorsFailed != 1 {
				t.Errorf("%+v", g)
			}
		}
		p.give(r, SessionOptions{})
		p.is(p.serve())
		if g := p.s.Progress(); g.Mirrors != 2 || g.MirrorsFailed != 0 {
			t.Errorf("%+v", g)
		}
		p.equals(mirrors[0])
		p.equals(mirrors[1])
	})
}

// A power cut at any moment leaves every directory as one from which a receive can go on, and what was reported flushed in it: in the
// first directory always, in the mirrors where they are required.
func TestMirrorPowerCut(t *testing.T) {
	both(t, func(t *testing.T, required bool) {
		for cut := 0; ; cut += 7 {
			p := newPlay(t, oneTimeline(0x600080))
			paths, mirrors := p.withMirrors(1)
			all := []*memory{p.dir, mirrors[0]}
			var left []*memory
			var mu sync.Mutex
			operations, flushed := 0, segment.LSN(0)
			for _, m := range all {
				m.hook = func(string, string) error {
					mu.Lock()
					defer mu.Unlock()
					if operations++; operations == cut+1 {
						p.mu.Lock()
						flushed = p.flushed
						p.mu.Unlock()
						for _, m := range all {
							left = append(left, m.crash())
						}
					}
					return nil
				}
			}
			o := Options{Slot: "s", Synchronous: true, StartLSN: 0x300000, EndLSN: 0x60007F, Mirrors: paths, MirrorRequired: required,
				ReceiveTimeout: -1, StatusInterval: -1}
			p.chunk = 300_000
			p.receive(o)
			p.is(p.serve())
			if left == nil {
				if cut < 100 {
					t.Errorf("only %d operations", operations)
				}
				return
			}
			for i, m := range left {
				if err := m.lint(testSize); err != nil {
					t.Errorf("cut at %d: directory %d: %v", cut, i, err)
				}
				want := func(lsn segment.LSN, n int) []byte { return p.c.wal(1, lsn, n) }
				if err := m.holds(1, 0x300000, flushed, testSize, want); err != nil && (i == 0 || required) {
					t.Errorf("cut at %d: directory %d: %v", cut, i, err)
				}
			}
			q := newPlay(t, p.c)
			q.with(left[0])
			q.s.fs = disks{"wal": left[0], "m1": left[1]}
			q.receive(o)
			q.is(q.serve())
			q.hasWAL(1, 0x300000, 0x600080)
			q.equals(left[1])
		}
	})
}

// With WaitOnDiskFull the full disk of a required mirror is waited for.
func TestRequiredMirrorIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x600080))
		paths, mirrors := p.withMirrors(1)
		var full atomic.Bool
		mirrors[0].hook = func(op, _ string) error {
			if op == "write" && full.Load() {
				return unix.ENOSPC
			}
			return nil
		}
		p.on = func(event string) error {
			if strings.HasPrefix(event, "completed 000000010000000000000003") {
				full.Store(true)
				time.AfterFunc(3*diskRetry, func() { full.Store(false) })
			}
			return nil
		}
		p.receive(Options{Slot: "s", StartLSN: 0x300000, EndLSN: 0x60007F, WaitOnDiskFull: true, Mirrors: paths, MirrorRequired: true,
			ReceiveTimeout: -1, StatusInterval: -1})
		p.is(p.serve())
		p.equals(mirrors[0])
		if !slices.ContainsFunc(p.heard(), func(e string) bool { return strings.HasPrefix(e, "full: mirror \"m1\": ") }) {
			t.Errorf("%q", p.heard())
		}
		p.usable()
	})
}

// A mirror with a hole that cannot be filled is none where holes are to end the receive.
func TestMirrorWithAHole(t *testing.T) {
	both(t, func(t *testing.T, required bool) {
		p := newPlay(t, oneTimeline(0xA00080))
		paths, mirrors := p.withMirrors(1)
		for _, number := range "35" {
			name := "00000001000000000000000" + string(number)
			mirrors[0].put(name, p.c.wal(1, segment.LSN(number-'0')<<20, 1<<20), int64(testSize))
		}
		p.receive(Options{Slot: "s", StartLSN: 0x600000, Repair: RepairStop, Mirrors: paths, MirrorRequired: required,
			ReceiveTimeout: -1, StatusInterval: -1})
		p.identify()
		want := []string{"m1 hole 0/400000-0/500000", "m1 lost 0/400000-0/500000",
			"m1 failed: segment 000000010000000000000004 is missing, and the first directory does not have it"}
		if required {
			p.end(segment.ErrGap)
			p.usable()
		} else {
			p.startReplication(0x600000)
			time.Sleep(5 * mirrorRetry)
			p.stopped()
		}
		if !slices.Equal(p.heard(), want) {
			t.Errorf("%q, expected %q", p.heard(), want)
		}
	})
}

// Callbacks can stop the receive, as everywhere.
func TestMirrorCallbackStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0xA00080))
		enough := errors.New("enough")
		p.on = func(event string) error {
			if strings.HasPrefix(event, "missing failed") {
				return enough
			}
			return nil
		}
		p.withMirrors(0)
		p.receive(Options{StartLSN: 0x300000, Mirrors: []string{"missing"}, ReceiveTimeout: -1, StatusInterval: -1})
		p.identify()
		p.startReplication(0x300000)
		p.expect("status 0/300000 0/0")
		p.copyEnds()
		p.end(ErrStopped, enough)
		p.usable()
	})
}
