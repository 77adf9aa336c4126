package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// scale has one process receive many streams.
func scale(o *options, out io.Writer) error {
	b, err := openBacklog(o, o.backlogMB, 16, out, "max_wal_senders=200")
	if err != nil {
		return err
	}
	defer b.server.stop()
	idle := &report{
		Bench: "scale-idle",
		What:  "scale",
		Title: "Idle streams in one process",
		Columns: []column{
			{Name: "private memory", Unit: "MiB", Digits: 1},
			{Name: "of it libpq's connections", Unit: "MiB", Digits: 1},
			{Name: "RSS", Unit: "MiB", Digits: 1, Plot: true},
			{Name: "a stream more", Unit: "KiB", Digits: 1, Spread: true, Plot: true},
			{Name: "threads", Digits: 0, Spread: true, Plot: true},
			{Name: "CPU", Unit: "ms/s", Digits: 2},
		},
	}
	busy := &report{
		Bench: "scale-busy",
		What:  "scale",
		Title: "Busy streams in one process",
		Columns: []column{
			{Name: "all together", Unit: "MB/s", Spread: true, Plot: true, More: true},
			{Name: "slowest to mean", Digits: 2, Spread: true, Plot: true, More: true},
			{Name: "CPU", Unit: "s/GB", Digits: 2, Spread: true, Plot: true},
			{Name: "threads", Digits: 0, Spread: true},
			{Name: "RSS", Unit: "MiB", Digits: 1},
		},
	}
	if err := errors.Join(idle.open(o), busy.open(o)); err != nil {
		return err
	}
	for range o.rounds {
		round := idle.nextRound()
		busy.nextRound()
		// What the process takes but for its streams: base is what the first one has added to libpq's connection.
		var base float64
		for _, count := range slices.Sorted(slices.Values(append([]int{1}, o.streams...))) {
			if count == 1 && base != 0 {
				continue
			}
			name := fmt.Sprintf("%s, %d streams", ours, count)
			if count == 1 {
				name = ours + ", 1 stream"
			}
			values, added, err := b.idleStreams(o, count)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if count == 1 {
				base = added
			} else {
				values["a stream more"] = (added - base) / float64(count-1) / 1024
			}
			idle.add(name, "idle", round, values)
			fmt.Fprintf(out, "round %d, %s, idle: %.1f MiB, %.0f threads\n", round+1, name, values["private memory"], values["threads"])
			if count > 100 {
				continue // as many senders of a real server would be measured, not we
			}
			if values, err = b.busyStreams(o, count); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			busy.add(name, "busy", round, values)
			fmt.Fprintf(out, "round %d, %s, busy: %.0f MB/s, slowest to mean %.2f\n", round+1, name, values["all together"], values["slowest to mean"])
			if count == 1 {
				continue
			}
			if values, err = b.discarded(o, count); err != nil {
				return err
			}
			busy.add(fmt.Sprintf("limit: %d processes that discard", count), "busy", round, values)
		}
	}
	return errors.Join(idle.write(out), busy.write(out))
}

// streams is bench/host/streams.c at work.
type streams struct {
	*process
	in  *os.File
	out *bufio.Reader
}

// startStreams has it connect.
func startStreams(o *options, count int, conninfo, lsn string, memory uint64) (*streams, error) {
	dir := filepath.Join(o.cache, "received")
	if err := prepare(dir, int(memory)); err != nil {
		return nil, err
	}
	cmd := exec.Command(filepath.Join(o.programs, "streams"), strconv.Itoa(count), conninfo, dir, lsn)
	cmd.Env = environment()
	theirIn, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdin, cmd.Stdout = theirIn, theirOut
	p, err := start(cmd)
	theirIn.Close()
	theirOut.Close()
	if err != nil {
		return nil, err
	}
	s := &streams{p, in, bufio.NewReader(out)}
	return s, s.expect("connected")
}

// expect reads a line.
func (s *streams) expect(want string) error {
	if line, err := s.out.ReadString('\n'); err != nil || line != want+"\n" {
		return fmt.Errorf("%w: %q %s", errEnded, line, s.text())
	}
	return nil
}

// begin starts the streams and waits until each has so many bytes.
func (s *streams) begin(least uint64) error {
	if _, err := s.in.WriteString("start\n"); err != nil {
		return err
	}
	if err := s.expect("started"); err != nil {
		return err
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		bytes, err := s.bytes()
		if err != nil {
			return err
		}
		if slices.Min(bytes) >= least {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("a stream has only %d bytes\n%s", slices.Min(bytes), s.text())
		}
	}
}

// bytes are what each stream has received.
func (s *streams) bytes() ([]uint64, error) {
	if _, err := s.in.WriteString("bytes\n"); err != nil {
		return nil, err
	}
	line, err := s.out.ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("%w: %s", errEnded, s.text())
	}
	var bytes []uint64
	for _, word := range strings.Fields(line) {
		n, err := strconv.ParseUint(word, 10, 64)
		if err != nil {
			return nil, err
		}
		bytes = append(bytes, n)
	}
	return bytes, nil
}

// end closes its input, which it ends at.
func (s *streams) end() error {
	defer os.Remove(s.output)
	s.in.Close()
	select {
	case err := <-s.exited:
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", s.cmd.Path, err, s.text())
		}
		return nil
	case <-time.After(time.Minute):
		s.cmd.Process.Kill()
		return fmt.Errorf("%s does not end\n%s", s.cmd.Path, s.text())
	}
}

// memory is what a process has to itself, and all that it has in memory, in bytes.
func memory(pid int) (private, rss float64, err error) {
	dirty, err := procNumber(pid, "smaps_rollup", "Private_Dirty")
	clean, err2 := procNumber(pid, "smaps_rollup", "Private_Clean")
	all, err3 := procNumber(pid, "smaps_rollup", "Rss")
	return float64(dirty+clean) * 1024, float64(all) * 1024, errors.Join(err, err2, err3)
}

// idleStreams measures a process whose streams have received the beginning of a segment and wait. added is what the streams have
// added to the private memory of a process that had only connected.
func (b *backlog) idleStreams(o *options, count int) (values map[string]float64, added float64, err error) {
	const some = 100_000
	server, err := startSender(b, some)
	if err != nil {
		return nil, 0, err
	}
	defer server.close()
	s, err := startStreams(o, count, server.connString(), b.Start.String(), 0)
	if err != nil {
		return nil, 0, err
	}
	pid := s.cmd.Process.Pid
	connected, _, err := memory(pid)
	if err != nil {
		return nil, 0, err
	}
	if err := s.begin(some); err != nil {
		return nil, 0, err
	}
	time.Sleep(3 * time.Second)
	before, err := cpu(pid)
	if err != nil {
		return nil, 0, err
	}
	time.Sleep(2 * time.Second)
	after, err := cpu(pid)
	if err != nil {
		return nil, 0, err
	}
	private, rss, err := memory(pid)
	if err != nil {
		return nil, 0, err
	}
	_, threads, err := switchesOf(pid)
	if err != nil {
		return nil, 0, err
	}
	return map[string]float64{
		"private memory": private / (1 << 20), "of it libpq's connections": connected / (1 << 20), "RSS": rss / (1 << 20), "threads": float64(threads),
		"CPU": (after - before) * 1000 / 2,
	}, private - connected, s.end()
}

// busyStreams has all streams catch up at the same time, for a few seconds.
func (b *backlog) busyStreams(o *options, count int) (map[string]float64, error) {
	s, err := startStreams(o, count, b.server.connString("unix"), b.Start.String(), b.bytes())
	if err != nil {
		return nil, err
	}
	pid := s.cmd.Process.Pid
	cpuBefore, err := cpu(pid)
	if err != nil {
		return nil, err
	}
	started := time.Now()
	if err := s.begin(1); err != nil {
		return nil, err
	}
	after, err := s.bytes()
	if err != nil {
		return nil, err
	}
	before := make([]uint64, count)
	if slices.Max(after) < b.bytes()/2 { // else there is too little WAL to leave the beginning out
		before, started = after, time.Now()
		if cpuBefore, err = cpu(pid); err != nil {
			return nil, err
		}
	}
	// No longer than there is WAL for the fastest.
	for time.Since(started) < time.Duration(min(o.seconds, 5))*time.Second && slices.Max(after) < b.bytes()*9/10 {
		time.Sleep(50 * time.Millisecond)
		if after, err = s.bytes(); err != nil {
			return nil, err
		}
	}
	seconds := time.Since(started).Seconds()
	cpuAfter, err := cpu(pid)
	if err != nil {
		return nil, err
	}
	_, threads, err := switchesOf(pid)
	if err != nil {
		return nil, err
	}
	_, rss, err := memory(pid)
	if err != nil {
		return nil, err
	}
	sum, least := growth(before, after)
	return map[string]float64{
		"all together": sum / 1e6 / seconds, "slowest to mean": least / (sum / float64(count)), "CPU": (cpuAfter - cpuBefore) / (sum / 1e9),
		"threads": float64(threads), "RSS": rss / (1 << 20),
	}, s.end()
}

// growth is by how many bytes all have grown together, and the one that has grown least.
func growth[T uint64 | float64](before, after []T) (sum, least float64) {
	least = math.Inf(1)
	for i := range after {
		n := float64(after[i] - before[i])
		sum, least = sum+n, min(least, n)
	}
	return sum, least
}

// discarded has as many processes receive and discard: what so many WAL senders can send, and how fairly. What they have sent is asked of
// the server.
func (b *backlog) discarded(o *options, count int) (values map[string]float64, err error) {
	rec := receiver{Command: []string{filepath.Join(o.programs, "limit"), "discard", "{conninfo}", "{dir}", "", "{start}", "{end}", "{segment_size}"}}
	dir := filepath.Join(o.cache, "received")
	if err := prepare(dir, 0); err != nil {
		return nil, err
	}
	beyond := *b
	beyond.End = math.MaxUint64 // they stay until they are killed
	begun := time.Now()
	for range count {
		p, err := start(beyond.command(rec, "unix", dir))
		if err != nil {
			return nil, err
		}
		defer func() {
			p.cmd.Process.Kill()
			<-p.exited
			os.Remove(p.output)
		}()
	}
	if err := b.server.waitFor(fmt.Sprintf("select count(*) = %d and min(sent_lsn) > '%s' from pg_stat_replication", count, b.Start)); err != nil {
		return nil, fmt.Errorf("%d processes that discard: %w", count, err)
	}
	before, err := b.sent(count)
	if err != nil {
		return nil, err
	}
	started, sent := time.Now(), before
	if slices.Max(before) >= float64(b.bytes())/2 {
		before, started = make([]float64, count), begun
	}
	for {
		if sent, err = b.sent(count); err != nil {
			return nil, err
		}
		// No longer than there is WAL for the fastest.
		if time.Since(started) >= time.Duration(min(o.seconds, 5))*time.Second || slices.Max(sent) >= float64(b.bytes())*0.9 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	seconds := time.Since(started).Seconds()
	sum, least := growth(before, sent)
	return map[string]float64{"all together": sum / 1e6 / seconds, "slowest to mean": least / (sum / float64(count))}, nil
}

// sent is how many bytes each WAL sender has sent.
func (b *backlog) sent(count int) ([]float64, error) {
	rows, err := b.server.sql(fmt.Sprintf("select coalesce(sent_lsn - '%s', 0) from pg_stat_replication order by pid", b.Start))
	if err != nil {
		return nil, err
	}
	if len(rows) != count {
		return nil, fmt.Errorf("%d WAL senders, not %d", len(rows), count)
	}
	var sent []float64
	for _, row := range rows {
		n, err := strconv.ParseFloat(row, 64)
		if err != nil {
			return nil, err
		}
		sent = append(sent, n)
	}
	return sent, nil
}
