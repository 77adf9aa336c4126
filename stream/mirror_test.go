package stream

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
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
		if g := m.durable[name]; g == nil || !bytes.Equal(g.synced, f.data) || g.mode != f.mode {
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
					for _, e := range p.events {
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
					for _, e := range p.events {
						if strings.HasPrefix(e, "m1 failed: ") {
							n++
						}
					}
					return n
				}
				time.Sleep(5 * mirrorRetry) // it is tried again, and fails again
				if failed() != 1 || slices.Contains(p.events, "m1 restored") {
					t.Errorf("%q", p.events)
				}
				if g := p.s.Progress(); g.Mirrors != 1 || g.MirrorsFailed != 1 || g.FlushedLSN != 0x6003E8 {
					t.Errorf("%+v", g)
				}
				broken.Store(false)
				time.Sleep(2 * mirrorRetry)
				if g := p.s.Progress(); g.Mirrors != 2 || g.MirrorsFailed != 0 || !slices.Contains(p.events, "m1 restored") {
					t.Errorf("%+v %q", g, p.events)
				}
				p.follows(mirrors[0])
				p.wal(0x6003E8, 2<<20)
				p.stopped()
				p.equals(mirrors[0])
				p.equals(mirrors[1])
				p.hasWAL(1, 0x300000, 0x8003E8)
				if failed() != 1 {
					t.Errorf("%q", p.events)
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
				if len(p.events) == 0 || !slices.Contains(p.events, "m1 failed: it has not answered for 1m0s") {
					t.Errorf("%q", p.events)
				}
				release()
				time.Sleep(2 * mirrorRetry)
				if !slices.Contains(p.events, "m1 restored") {
					t.Errorf("%q", p.events)
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
				if last := p.events[len(p.events)-1]; !strings.HasPrefix(last, "m1 failed: it did not answer") {
					t.Errorf("%q", p.events)
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
		}
		p.wal(0x300000+segments*mib, 100)
		if !slices.Contains(p.events, "m1 failed: it does not keep up: more than 64 MiB wait for it") {
			t.Errorf("%q", p.events)
		}
		release()
		time.Sleep(2 * mirrorRetry)
		p.follows(mirrors[0])
		p.stopped()
		p.equals(mirrors[0])
		p.equals(mirrors[1])
	})
}
