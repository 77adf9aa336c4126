package program

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"libreceivewal/tests/pg"
)

// status reads a status file, which must be whole whenever it is looked at; nil while there is none.
func status(t *testing.T, path string) map[string]any {
	t.Helper()
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	var s map[string]any
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return s
}

// lsnOf is a position of a status; 0 for null.
func lsnOf(t *testing.T, s map[string]any, name string) pg.LSN {
	t.Helper()
	text, ok := s[name].(string)
	if !ok {
		return 0
	}
	lsn, err := pg.ParseLSN(text)
	if err != nil {
		t.Fatal(err)
	}
	return lsn
}

// metric is a sample: name and labels as they stand, and the value.
type metric struct {
	name, labels string
	value        float64
}

var (
	metricLine = regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$`)
	labelPair  = regexp.MustCompile(`^([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"(,|$)`)
	helpLine   = regexp.MustCompile(`^# HELP (\S+) (.+\.)$`)
	typeLine   = regexp.MustCompile(`^# TYPE (\S+) (counter|gauge)$`)
)

// metrics reads a metrics file by the rules of Prometheus' text format and of promtool's linter: each metric has HELP, TYPE and then
// its samples, all in one group; names have base units, those of counters end in _total and no others; no sample comes twice.
func metrics(t *testing.T, path string) []metric {
	t.Helper()
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(string(text), "\n") {
		t.Fatalf("the last line has no end:\n%s", text)
	}
	var found []metric
	var help, name, kind string
	groups, samples := map[string]bool{}, map[string]bool{}
	for i, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		bad := func(format string, args ...any) {
			t.Helper()
			t.Errorf("line %d, %q: %s", i+1, line, fmt.Sprintf(format, args...))
		}
		if m := helpLine.FindStringSubmatch(line); m != nil {
			help = m[1]
			if groups[help] {
				bad("a second group")
			}
			groups[help] = true
			continue
		}
		if m := typeLine.FindStringSubmatch(line); m != nil {
			if name, kind = m[1], m[2]; name != help {
				bad("no HELP before it")
			}
			if strings.HasSuffix(name, "_total") != (kind == "counter") {
				bad("only counters end in _total")
			}
			if !strings.HasPrefix(name, "receivewal_") || regexp.MustCompile(`_(ms|us|milliseconds|microseconds|kb|mb|gauge|counter)(_|$)`).MatchString(name) {
				bad("a name that is not as it should be")
			}
			continue
		}
		m := metricLine.FindStringSubmatch(line)
		if m == nil {
			bad("neither a comment nor a sample")
			continue
		}
		if m[1] != name {
			bad("not in the group of its name, %s", name)
		}
		for rest := m[2]; rest != ""; {
			label := labelPair.FindStringSubmatch(rest)
			if label == nil {
				bad("labels %q", rest)
				break
			}
			rest = rest[len(label[0]):]
		}
		value, err := strconv.ParseFloat(m[3], 64)
		if err != nil || kind == "counter" && value < 0 {
			bad("value %q", m[3])
		}
		if samples[m[1]+m[2]] {
			bad("for the second time")
		}
		samples[m[1]+m[2]] = true
		found = append(found, metric{m[1], m[2], value})
	}
	return found
}

// value is that of the only sample with a name, and labels that contain some text.
func value(t *testing.T, all []metric, name, labels string) float64 {
	t.Helper()
	found, result := 0, 0.0
	for _, m := range all {
		if m.name == "receivewal_"+name && strings.Contains(m.labels, labels) {
			found, result = found+1, m.value
		}
	}
	if found != 1 {
		t.Errorf("%d samples receivewal_%s with %s", found, name, labels)
	}
	return result
}

// --status-file and --metrics-file say where the receive is, go on while the server is away, and in the end have the final state. They
// are never half written, and nothing is left beside them.
func TestHealthFiles(t *testing.T) {
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	c.SQL("select pg_create_physical_replication_slot('s', true)")
	folder := t.TempDir()
	// What has to be escaped, and a byte that is not UTF-8.
	dir := filepath.Join(t.TempDir(), "a \"b\\c\n\xff")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	statusFile, metricsFile := filepath.Join(folder, "status.json"), filepath.Join(folder, "receivewal.prom")
	// Left by a run that was killed; a link must not be followed.
	victim := filepath.Join(t.TempDir(), "victim")
	if err := errors.Join(os.WriteFile(victim, []byte("untouched"), 0o600), os.Symlink(victim, statusFile+".tmp")); err != nil {
		t.Fatal(err)
	}
	p := ours(t).start(t, nil, append(c.ConnArgs(), "-D", dir, "--slot=s", "--synchronous", "--status-file", statusFile, "--metrics-file="+metricsFile)...)

	see := func(what string, is func(s map[string]any, m []metric) bool) (map[string]any, []metric) {
		t.Helper()
		var s map[string]any
		var m []metric
		pg.WaitFor(t, what, func() bool {
			s, m = status(t, statusFile), metrics(t, metricsFile)
			return s != nil && m != nil && is(s, m)
		})
		return s, m
	}
	see("the stream", func(s map[string]any, m []metric) bool {
		return s["state"] == "streaming" && value(t, m, "state", `state="streaming"`) == 1
	})
	end := c.Generate(5)
	s, m := see("all to be reported", func(s map[string]any, m []metric) bool {
		return lsnOf(t, s, "reported_lsn") >= end && value(t, m, "reported_lsn_bytes", "") >= float64(end)
	})
	for _, name := range []string{"written_lsn", "flushed_lsn", "server_lsn"} {
		if lsnOf(t, s, name) < end || value(t, m, name+"_bytes", "") < float64(end) {
			t.Errorf("%s is %v, want %s or more", name, s[name], end)
		}
	}
	if want := strings.ToValidUTF8(dir, "\ufffd"); s["directory"] != want {
		t.Errorf("directory is %q, want %q", s["directory"], want)
	}
	value(t, m, "info", `directory="`+strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\xff", "\ufffd").Replace(dir)+`",slot="s",version=`)
	numbers := map[string]float64{"lag_bytes": 0, "lag_ms": 0, "catch_up_ms": 0, "timeline": 1, "reconnects": 0, "mirrors": 0, "mirrors_failed": 0}
	for name, want := range numbers {
		if s[name] != want {
			t.Errorf("%s is %v, want %v", name, s[name], want)
		}
	}
	for _, name := range []string{"bytes", "segments", "flush_us", "flush_max_us", "pid"} {
		if n, ok := s[name].(float64); !ok || n <= 0 {
			t.Errorf("%s is %v", name, s[name])
		}
	}
	for _, name := range []string{"updated", "server_time", "received_time"} {
		if at, err := time.Parse(time.RFC3339, fmt.Sprint(s[name])); err != nil || time.Since(at) > time.Hour || time.Since(at) < 0 {
			t.Errorf("%s is %v, %v", name, s[name], err)
		}
	}
	if s["exit_code"] != nil || s["last_error"] != nil || s["slot"] != "s" || s["segment"] != c.SegmentName(1, end) {
		t.Errorf("exit code %v, error %v, slot %v, segment %v", s["exit_code"], s["last_error"], s["slot"], s["segment"])
	}
	received := s["bytes"].(float64)

	c.Stop(pg.Fast)
	see("the lost connection", func(s map[string]any, m []metric) bool {
		return s["state"] == "connecting" && s["last_error"] != nil && s["catch_up_ms"] != nil &&
			value(t, m, "state", `state="streaming"`) == 0 && value(t, m, "state", `state="connecting"`) == 1
	})
	c.Start()
	see("the stream again", func(s map[string]any, m []metric) bool { return s["state"] == "streaming" })
	end = c.Tick()
	s, m = see("what came then", func(s map[string]any, m []metric) bool {
		return lsnOf(t, s, "reported_lsn") >= end && value(t, m, "reported_lsn_bytes", "") >= float64(end)
	})
	if s["reconnects"] != 1.0 || s["bytes"].(float64) <= received || value(t, m, "received_bytes_total", "") != s["bytes"] {
		t.Errorf("reconnects %v, bytes %v, first %v", s["reconnects"], s["bytes"], received)
	}

	p.signal(syscall.SIGINT)
	if r := p.wait(); r.code != 0 {
		t.Errorf("%v", r)
	}
	s, m = status(t, statusFile), metrics(t, metricsFile)
	if s["state"] != "ended" || s["exit_code"] != 0.0 || value(t, m, "state", `state="ended"`) != 1 || lsnOf(t, s, "flushed_lsn") < end {
		t.Errorf("in the end: %v", s)
	}
	entries, err := os.ReadDir(folder)
	if err != nil || len(entries) != 2 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if text, err := os.ReadFile(victim); string(text) != "untouched" {
		t.Errorf("a link was followed: %q, %v", text, err)
	}
	if info, err := os.Stat(metricsFile); err != nil || info.Mode().Perm()&0o044 == 0 {
		t.Errorf("node_exporter cannot read the metrics: %v, %v", info.Mode(), err)
	}
}

// A program that fails says so in the end, too.
func TestHealthFilesOfAFailure(t *testing.T) {
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	file := filepath.Join(t.TempDir(), "s")
	r := ours(t).run(t, append(c.ConnArgs(), "-D", t.TempDir(), "--no-loop", "--slot", "nobody", "--status-file", file)...)
	s := status(t, file)
	if r.code != 1 || s["state"] != "ended" || s["exit_code"] != 1.0 || s["last_error"] != "disconnected" {
		t.Errorf("%v\n%v", r, s)
	}
	r = ours(t).run(t, "-h", "/nonexistent", "-D", t.TempDir(), "--no-loop", "--status-file", file)
	if s = status(t, file); r.code != 1 || s["exit_code"] != 1.0 || !strings.Contains(fmt.Sprint(s["last_error"]), "/nonexistent") {
		t.Errorf("%v\n%v", r, s)
	}
}

// A file that cannot be written is warned of once, and costs no WAL.
func TestHealthFileNotWritable(t *testing.T) {
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	missing := filepath.Join(t.TempDir(), "missing")
	dir := t.TempDir()
	p := ours(t).start(t, nil, append(c.ConnArgs(), "-D", dir, "-s", "1", "--status-file", filepath.Join(missing, "x"), "--metrics-file", "/dev/null/x")...)
	c.WaitStreaming("pg_receivewal")
	end := c.Generate(3)
	c.WaitReceived("pg_receivewal", end, false)
	time.Sleep(2200 * time.Millisecond) // more than two turns
	p.signal(syscall.SIGINT)
	r := p.wait()
	for _, file := range []string{missing + "/x", "/dev/null/x"} {
		if n := strings.Count(r.stderr, fmt.Sprintf(`pg_receivewal: warning: could not write file "%s": `, file)); n != 1 {
			t.Errorf("warned %d times of %s:\n%s", n, file, r.stderr)
		}
	}
	if r.code != 0 {
		t.Errorf("%v", r)
	}
	c.ComparePartial(dir, 1, end)
}

// Our own options never stand in the way of an abbreviation of pg_receivewal's, and the value of an option is never one of them.
func TestOwnOptions(t *testing.T) {
	for _, args := range [][]string{
		{"--sl"}, {"--stat"}, {"--sta=x"}, {"--c"}, {"--check-"}, {"--js"}, {"--progres"}, {"-D", "--check"}, {"-vD", "--json"},
		{"--dir", "--progress"}, {"--slot", "--status-file", "-D"}, {"--", "--check"}, {"-", "x"}, {"--metric"}, {"--res"},
	} {
		same(t, args...)
	}
	dir := t.TempDir()
	for message, args := range map[string][]string{
		"option '--check' doesn't allow an argument":                            {"--check=yes"},
		"option '--status-file' requires an argument":                           {"-D", dir, "--status-file"},
		"--json needs --check":                                                  {"-D", dir, "--json"},
		"--reserve-wal needs --create-slot":                                     {"-D", dir, "--reserve-wal"},
		"--slot-wait needs a slot to be specified using --slot":                 {"-D", dir, "--slot-wait", "5"},
		"invalid value \"x\" for option --slot-wait":                            {"-D", dir, "--slot-wait=x", "--slot", "s"},
		"--slot-wait must be in range -1..":                                     {"-D", dir, "--slot-wait", "-2", "--slot", "s"},
		"could not open directory \"/nonexistent/--status-file\": No such file": {"-D", "/nonexistent/--status-file", "--status-file", "/nonexistent/x"},
	} {
		r := ours(t).run(t, args...)
		contains(t, r.stderr, message)
		if r.code != 1 {
			t.Errorf("%q: %v", args, r)
		}
	}
}

// --slot-wait waits for a slot that is in use, and says so once; --reserve-wal makes a slot that keeps WAL.
func TestSlotWait(t *testing.T) {
	c := pg.New(t, pg.Options{SegmentSizeMB: 1})
	program := ours(t)
	if r := program.run(t, append(c.ConnArgs(), "--create-slot", "--reserve-wal", "--slot", "s")...); r.code != 0 {
		t.Fatal(r)
	}
	if at := c.SQL("select restart_lsn from pg_replication_slots where slot_name = 's'"); at == "" {
		t.Error("the slot keeps no WAL")
	}
	first := program.start(t, nil, append(c.ConnArgs(), "-D", t.TempDir(), "--slot", "s")...)
	c.WaitStreaming("pg_receivewal")
	pid := c.SQL("select active_pid from pg_replication_slots")
	r := program.run(t, append(c.ConnArgs(), "-D", t.TempDir(), "--slot", "s", "--slot-wait", "2", "--no-loop")...)
	if r.code != 1 || strings.Count(r.stderr, "waiting for the slot") != 1 || strings.Count(r.stderr, `replication slot "s" is active for PID `+pid) != 2 {
		t.Errorf("%v", r)
	}
	second := program.start(t, nil, append(c.ConnArgs(), "-D", t.TempDir(), "--slot", "s", "--slot-wait=-1")...)
	second.waitStderr("waiting for the slot")
	third := program.start(t, nil, append(c.ConnArgs(), "-D", t.TempDir(), "--slot", "s", "--slot-wait=-1")...)
	third.waitStderr("waiting for the slot")
	third.signal(syscall.SIGTERM)
	if r := third.wait(); r.code != 0 {
		t.Errorf("stopped while it waited: %v", r)
	}
	first.signal(syscall.SIGINT)
	first.wait()
	c.WaitFor("the second to have the slot", func() bool {
		now := c.SQL("select active_pid from pg_replication_slots")
		return now != "" && now != pid
	})
	second.signal(syscall.SIGINT)
	if r := second.wait(); r.code != 0 {
		t.Errorf("%v", r)
	}
}
