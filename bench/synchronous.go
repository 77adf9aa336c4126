package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// noStandby is the server alone.
const noStandby = "limit: no standby"

// standbys are the receivers that a server's commits wait for.
func (o *options) standbys(more ...receiver) []receiver {
	return o.chosen(append(append([]receiver{
		{Name: ours, Command: []string{filepath.Join(o.programs, "receiver"), "-s", "-d", "{conninfo}", "-D", "{dir}", "-S", "{slot}"}},
		{Name: pgReceivewal, Command: append(o.pgReceivewal(), "--synchronous", "--no-loop")},
		{Name: noStandby},
	}, more...), o.more...))
}

// limits are those that flush each piece of WAL. They need the size of segments, and stop while they fill a new one's file.
func (o *options) limits(segmentMB int) []receiver {
	limit := func(mode string) []string {
		return []string{filepath.Join(o.programs, "limit"), mode, "{conninfo}", "{dir}", "{slot}", "", "FFFFFFFF/0", strconv.Itoa(segmentMB << 20)}
	}
	return []receiver{{Name: "limit: fdatasync", Command: limit("commit")}, {Name: "limit: direct I/O", Command: limit("direct")}}
}

// followers are the same receivers without synchronous mode.
func (o *options) followers() []receiver {
	return o.chosen(append([]receiver{
		{Name: ours, Command: []string{filepath.Join(o.programs, "receiver"), "-d", "{conninfo}", "-D", "{dir}", "-S", "{slot}"}},
		{Name: pgReceivewal, Command: append(o.pgReceivewal(), "--no-loop")},
	}, o.more...))
}

// following is a receiver that runs beside the server.
type following struct {
	*process
	server      *server
	dir         string
	synchronous bool
}

// nameOfStandby is the application_name that receivers have from the environment.
const nameOfStandby = "standby"

// follow starts a receiver and waits until it streams, and commits wait for it where that is wanted.
func (s *server) follow(o *options, rec receiver, transport string, synchronous bool) (*following, error) {
	dir := filepath.Join(o.cache, "received")
	if err := prepare(dir, 0); err != nil {
		return nil, err
	}
	f := &following{server: s, dir: dir, synchronous: synchronous}
	if len(rec.Command) == 0 {
		return f, nil
	}
	if _, err := s.sql("select pg_drop_replication_slot(slot_name) from pg_replication_slots; select pg_create_physical_replication_slot('" + slotOfRun + "')"); err != nil {
		return nil, err
	}
	cmd := rec.command(s, transport, dir, slotOfRun)
	cmd.Env = append(cmd.Env, "PGAPPNAME="+nameOfStandby)
	var err error
	if f.process, err = start(cmd); err != nil {
		return nil, err
	}
	if err := s.waitWith(f.process, "select exists (select from pg_stat_replication where application_name = '"+nameOfStandby+"' and state = 'streaming')"); err != nil {
		return nil, fmt.Errorf("it does not stream: %w", err)
	}
	if synchronous {
		if err := s.set("synchronous_standby_names", nameOfStandby); err != nil {
			return nil, err
		}
		// Once in vain: from then on it is the standby that is waited for.
		if err := s.waitFor("select exists (select from pg_stat_replication where sync_state = 'sync')"); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// end stops the receiver and lets the server forget it.
func (f *following) end() error {
	if f.process == nil {
		return nil
	}
	if f.synchronous {
		if err := f.server.set("synchronous_standby_names", ""); err != nil {
			return err
		}
	}
	if err := f.process.stop(); err != nil {
		return err
	}
	if err := f.server.waitFor("select not active from pg_replication_slots where slot_name = '" + slotOfRun + "'"); err != nil {
		return err
	}
	_, err := f.server.sql("select pg_drop_replication_slot('" + slotOfRun + "')")
	return err
}

// cpu is what the receiver has used so far; 0 where there is none.
func (f *following) cpu() (float64, error) {
	if f.process == nil {
		return 0, nil
	}
	return cpu(f.cmd.Process.Pid)
}

// synchronous has commits wait for a receiver, with several numbers of clients.
func synchronous(o *options, out io.Writer) error {
	s, err := openDatabase(o, 16, out)
	if err != nil {
		return err
	}
	defer s.stop()
	r := &report{
		Bench: "synchronous",
		What:  "synchronous",
		Title: "Commits that wait for the receiver: pgbench -N",
		Columns: append([]column{
			{Name: "commits", Unit: "per s", Spread: true, Plot: true, More: true, Against: []string{pgReceivewal}},
			{Name: "CPU", Unit: "µs/commit", Digits: 1, Spread: true, Plot: true, Against: []string{pgReceivewal}},
		}, latencyColumns("")...),
	}
	if err := r.open(o); err != nil {
		return err
	}
	receivers := o.standbys(o.limits(16)...)
	for range o.rounds {
		round := r.nextRound()
		if err := s.refresh(); err != nil {
			return err
		}
		for _, clients := range o.clients {
			for _, rec := range turned(receivers, round) {
				in := fmt.Sprintf("%d clients", clients)
				if clients == 1 {
					in = "1 client"
				}
				m, err := s.commits(o, rec, clients, "-N")
				if err != nil {
					return fmt.Errorf("%s, %s: %w", in, rec.Name, err)
				}
				values := m.values("", m.transactions)
				values["commits"] = float64(len(m.transactions)) / m.seconds
				if rec.Name != noStandby {
					values["CPU"] = m.cpu / float64(len(m.transactions)) * 1e6
				}
				r.add(rec.Name, in, round, values)
				fmt.Fprintf(out, "round %d, %s, %s: %.0f commits per s\n", round+1, in, rec.Name, values["commits"])
			}
		}
	}
	return r.write(out)
}

// wideScript is pgbench -N with 8 kB more of WAL in each commit, so that segments change several times in a run.
const wideScript = `\set aid random(1, 100000 * :scale)
\set delta random(-5000, 5000)
begin;
update pgbench_accounts set abalance = abalance + :delta where aid = :aid;
select length(pg_logical_emit_message(true, 'bench', repeat('x', 8192))::text);
end;
`

// windowOfSwitch is how long after the server's step to the next segment commits count as those of a switch.
const windowOfSwitch = 100 * time.Millisecond

// switches has commits wait for a receiver while the WAL goes from segment to segment, several times.
func switches(o *options, out io.Writer) error {
	r := &report{
		Bench: "switches",
		What:  "switches",
		Title: "Commits that wait for the receiver, with 8 kB of WAL each: at the ends of segments",
		Columns: append(append([]column{
			{Name: "commits", Unit: "per s", Spread: true, More: true, Against: []string{pgReceivewal}},
			{Name: "switches", Digits: 0},
		}, latencyColumns("")...), latencyColumns("at switches: ")...),
	}
	if err := r.open(o); err != nil {
		return err
	}
	script, err := os.CreateTemp("", "bench")
	if err != nil {
		return err
	}
	defer os.Remove(script.Name())
	if _, err := script.WriteString(wideScript); err != nil {
		return err
	}
	if err := errors.Join(script.Chmod(0o644), script.Close()); err != nil {
		return err
	}
	receivers := o.standbys()
	first := r.Rounds
	r.Rounds += o.rounds
	for _, size := range o.segments {
		s, err := openDatabase(o, size, out)
		if err != nil {
			return err
		}
		for round := first; round < r.Rounds; round++ {
			if err := s.refresh(); err != nil {
				return err
			}
			for _, rec := range turned(receivers, round) {
				in := fmt.Sprintf("segments of %d MiB, 8 clients", size)
				m, err := s.commits(o, rec, 8, "-f", script.Name())
				if err != nil {
					return fmt.Errorf("%s, %s: %w", in, rec.Name, err)
				}
				values := m.values("", m.transactions)
				values["commits"] = float64(len(m.transactions)) / m.seconds
				values["switches"] = float64(len(m.switches))
				for name, value := range m.values("at switches: ", m.atSwitches()) {
					values[name] = value
				}
				r.add(rec.Name, in, round, values)
				fmt.Fprintf(out, "round %d, %s, %s: %.0f commits per s, %d switches\n", round+1, in, rec.Name, values["commits"], len(m.switches))
			}
		}
		s.stop()
	}
	return r.write(out)
}

func latencyColumns(prefix string) []column {
	return []column{
		{Name: prefix + "p50", Unit: "ms", Digits: 2},
		{Name: prefix + "p99", Unit: "ms", Digits: 2},
		{Name: prefix + "p99.9", Unit: "ms", Digits: 2, Spread: true, Plot: true, Against: []string{pgReceivewal}},
	}
}

// committing is what a run of pgbench with a standby was like.
type committing struct {
	seconds      float64
	cpu          float64 // of the receiver
	transactions []transaction
	switches     []time.Time // of the server's WAL to the next segment
}

// transaction is one line of pgbench's log.
type transaction struct {
	end     time.Time
	latency time.Duration
}

// commits runs pgbench while commits wait for a receiver.
func (s *server) commits(o *options, rec receiver, clients int, script ...string) (*committing, error) {
	f, err := s.follow(o, rec, "unix", true)
	if err != nil {
		return nil, err
	}
	m, err := s.pgbenchWith(f, clients, o.seconds, script...)
	if err != nil {
		return nil, errors.Join(err, f.end())
	}
	if len(m.transactions) == 0 {
		return nil, errors.Join(errors.New("no commit"), f.end())
	}
	return m, f.end()
}

// pgbenchWith runs pgbench beside a receiver.
func (s *server) pgbenchWith(f *following, clients, seconds int, args ...string) (*committing, error) {
	logs, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(logs)
	watched, err := watchSegments(filepath.Join(s.data, "pg_wal"))
	if err != nil {
		return nil, err
	}
	defer watched.close()
	before, err := f.cpu()
	if err != nil {
		return nil, err
	}
	m := &committing{}
	started := time.Now()
	args = append([]string{"-n", "-c", strconv.Itoa(clients), "-T", strconv.Itoa(seconds), "-l", "--log-prefix", filepath.Join(logs, "log")}, args...)
	if err := s.pgbench(args...); err != nil {
		return nil, err
	}
	m.seconds = time.Since(started).Seconds()
	after, err := f.cpu()
	if err != nil {
		return nil, err
	}
	m.cpu = after - before
	m.switches = watched.close()
	files, err := filepath.Glob(filepath.Join(logs, "log.*"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		if err := m.read(file); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// read reads a log of pgbench: client, number, microseconds, script, and the time of the end in seconds and microseconds.
func (m *committing) read(log string) error {
	f, err := os.Open(log)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 {
			return fmt.Errorf("a line in pgbench's log of another form: %s", lines.Text())
		}
		latency, err := strconv.ParseInt(fields[2], 10, 64)
		sec, err2 := strconv.ParseInt(fields[4], 10, 64)
		usec, err3 := strconv.ParseInt(fields[5], 10, 64)
		if err := errors.Join(err, err2, err3); err != nil {
			return fmt.Errorf("pgbench's log: %w", err)
		}
		m.transactions = append(m.transactions, transaction{time.Unix(sec, usec*1000), time.Duration(latency) * time.Microsecond})
	}
	return lines.Err()
}

// atSwitches are the transactions that were under way within a short time after a switch.
func (m *committing) atSwitches() []transaction {
	var some []transaction
	for _, t := range m.transactions {
		for _, at := range m.switches {
			if t.end.After(at) && t.end.Add(-t.latency).Before(at.Add(windowOfSwitch)) {
				some = append(some, t)
				break
			}
		}
	}
	return some
}

// values are the latencies' percentiles; none where there are no transactions.
func (m *committing) values(prefix string, transactions []transaction) map[string]float64 {
	values := map[string]float64{}
	var all []time.Duration
	for _, t := range transactions {
		all = append(all, t.latency)
	}
	slices.Sort(all)
	for name, share := range map[string]float64{"p50": 0.5, "p99": 0.99, "p99.9": 0.999} {
		if len(all) > 0 {
			values[prefix+name] = all[int(share*float64(len(all)-1)+0.5)].Seconds() * 1000
		}
	}
	return values
}

// watch tells when a server has begun with a segment: the first open of its file. Checkpoints, which open files too, don't
// happen meanwhile.
type watch struct {
	file *os.File
	done sync.WaitGroup
	once sync.Once
	at   []time.Time
}

func watchSegments(dir string) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_OPEN); err != nil {
		unix.Close(fd)
		return nil, err
	}
	w := &watch{file: os.NewFile(uintptr(fd), "inotify")}
	w.done.Go(func() {
		var newest string
		buffer := make([]byte, 64<<10)
		for {
			n, err := w.file.Read(buffer)
			if err != nil {
				return // closed
			}
			now := time.Now()
			for rest := buffer[:n]; len(rest) >= unix.SizeofInotifyEvent; {
				length := int(rest[12]) | int(rest[13])<<8 // len in struct inotify_event; names are short
				name := strings.TrimRight(string(rest[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+length]), "\x00")
				rest = rest[unix.SizeofInotifyEvent+length:]
				if len(name) != len("000000010000000000000001") || strings.Contains(name, ".") || name <= newest {
					continue
				}
				if newest != "" {
					w.at = append(w.at, now)
				}
				newest = name
			}
		}
	})
	return w, nil
}

// close ends it and returns the times.
func (w *watch) close() []time.Time {
	w.once.Do(func() { w.file.Close() })
	w.done.Wait()
	return w.at
}

// live has receivers follow a busy server without being waited for.
func live(o *options, out io.Writer) error {
	s, err := openDatabase(o, 16, out)
	if err != nil {
		return err
	}
	defer s.stop()
	r := &report{
		Bench: "live",
		What:  "live",
		Title: "Following pgbench -N -c 4",
		Columns: []column{
			{Name: "WAL", Unit: "MB/s", Digits: 2},
			{Name: "CPU", Unit: "% of a core", Digits: 2, Spread: true, Plot: true, Against: []string{pgReceivewal}},
			{Name: "CPU per WAL", Unit: "ms/MB", Digits: 2, Plot: true},
			{Name: "context switches", Unit: "per s", Digits: 0},
			{Name: "system calls", Unit: "per MB", Digits: 0},
		},
	}
	if err := r.open(o); err != nil {
		return err
	}
	receivers := o.followers()
	for range o.rounds {
		round := r.nextRound()
		if err := s.refresh(); err != nil {
			return err
		}
		for _, rate := range o.rates {
			in := "as fast as it can"
			if rate > 0 {
				in = fmt.Sprintf("%d commits a second", rate)
			}
			for _, rec := range turned(receivers, round) {
				values, err := s.followed(o, rec, rate, o.seconds)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", in, rec.Name, err)
				}
				r.add(rec.Name, in, round, values)
				fmt.Fprintf(out, "round %d, %s, %s: %.2f MB/s, %.2f %% of a core\n", round+1, in, rec.Name, values["WAL"], values["CPU"])
				if r.noted(rec.Name, in, "system calls") {
					continue
				}
				calls, err := s.followedCalls(o, rec, rate)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", in, rec.Name, err)
				}
				r.note(rec.Name, in, "system calls", calls)
			}
		}
	}
	return r.write(out)
}

// followed runs pgbench at a rate (0: none) beside a receiver.
func (s *server) followed(o *options, rec receiver, rate, seconds int) (map[string]float64, error) {
	f, err := s.follow(o, rec, "unix", false)
	if err != nil {
		return nil, err
	}
	pid := f.cmd.Process.Pid
	switchesBefore, _, err := switchesOf(pid)
	if err != nil {
		return nil, err
	}
	m, wal, err := s.paced(f, rate, seconds)
	if err != nil {
		return nil, errors.Join(err, f.end())
	}
	switchesAfter, _, err := switchesOf(pid)
	if err != nil {
		return nil, err
	}
	return map[string]float64{
		"WAL": wal / m.seconds, "CPU": m.cpu / m.seconds * 100, "CPU per WAL": m.cpu * 1000 / wal,
		"context switches": float64(switchesAfter-switchesBefore) / m.seconds,
	}, f.end()
}

// paced runs pgbench with 4 clients, and tells how many MB of WAL that was.
func (s *server) paced(f *following, rate, seconds int) (*committing, float64, error) {
	const position = "select pg_current_wal_flush_lsn()"
	before, err := s.lsn(position)
	if err != nil {
		return nil, 0, err
	}
	args := []string{"-N"}
	if rate > 0 {
		args = append(args, "-R", strconv.Itoa(rate))
	}
	m, err := s.pgbenchWith(f, 4, seconds, args...)
	if err != nil {
		return nil, 0, err
	}
	after, err := s.lsn(position)
	if err == nil && after == before {
		err = errors.New("no WAL")
	}
	return m, float64(after-before) / 1e6, err
}

// followedCalls are a receiver's system calls for each MB, in a short run under strace.
func (s *server) followedCalls(o *options, rec receiver, rate int) (float64, error) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	counts := filepath.Join(dir, "counts")
	// -D: the receiver is our child, and gets our signals.
	rec.Command = append([]string{strace, "-D", "-f", "-c", "-o", counts}, rec.Command...)
	f, err := s.follow(o, rec, "unix", false)
	if err != nil {
		return 0, err
	}
	_, wal, err := s.paced(f, rate, 3)
	if err := errors.Join(err, f.end()); err != nil {
		return 0, err
	}
	var text []byte
	for range 100 { // strace writes when its child has ended
		if text, err = os.ReadFile(counts); err == nil && strings.Contains(string(text), "total") {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	calls, err := parseCounts(string(text))
	return calls["total"] / wal, err
}

// idle has receivers follow a server that does nothing.
func idle(o *options, out io.Writer) error {
	s, err := openDatabase(o, 16, out)
	if err != nil {
		return err
	}
	defer s.stop()
	r := &report{
		Bench: "idle",
		What:  "idle",
		Title: "Following a server that does nothing",
		Columns: []column{
			{Name: "CPU", Unit: "ms/min", Digits: 2, Spread: true, Plot: true},
			{Name: "context switches", Unit: "per min", Digits: 0, Spread: true, Plot: true},
			{Name: "clock ticks", Unit: "per run", Digits: 0},
		},
	}
	if err := r.open(o); err != nil {
		return err
	}
	receivers := o.followers()
	for range o.rounds {
		round := r.nextRound()
		for _, rec := range turned(receivers, round) {
			values, err := s.idleFor(o, rec)
			if err != nil {
				return fmt.Errorf("%s: %w", rec.Name, err)
			}
			r.add(rec.Name, fmt.Sprintf("%d s", o.seconds), round, values)
			fmt.Fprintf(out, "round %d, %s: %.2f ms of CPU a minute, %.0f context switches\n", round+1, rec.Name, values["CPU"], values["context switches"])
		}
	}
	return r.write(out)
}

func (s *server) idleFor(o *options, rec receiver) (map[string]float64, error) {
	f, err := s.follow(o, rec, "unix", false)
	if err != nil {
		return nil, err
	}
	pid := f.cmd.Process.Pid
	// A little WAL, so that it is in the middle of a segment; then time for everything that comes after it.
	if _, err := s.sql("select pg_logical_emit_message(true, 'bench', 'x')"); err != nil {
		return nil, err
	}
	time.Sleep(2 * time.Second)
	var cpus [2]float64
	var ticks, count [2]uint64
	for i := range 2 {
		if i == 1 {
			time.Sleep(time.Duration(o.seconds) * time.Second)
		}
		if cpus[i], err = cpu(pid); err != nil {
			return nil, err
		}
		if ticks[i], err = clockTicks(pid); err != nil {
			return nil, err
		}
		if count[i], _, err = switchesOf(pid); err != nil {
			return nil, err
		}
	}
	perMinute := 60 / float64(o.seconds)
	return map[string]float64{
		"CPU": (cpus[1] - cpus[0]) * 1000 * perMinute, "context switches": float64(count[1]-count[0]) * perMinute,
		"clock ticks": float64(ticks[1] - ticks[0]),
	}, f.end()
}

// clockTicks are a process's user and system time as top and ps see it: the 14th and 15th number of /proc/PID/stat.
func clockTicks(pid int) (uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), ") ") // the name may contain anything
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, errors.New("/proc/PID/stat of another form")
	}
	user, err := strconv.ParseUint(fields[11], 10, 64)
	system, err2 := strconv.ParseUint(fields[12], 10, 64)
	return user + system, errors.Join(err, err2)
}
