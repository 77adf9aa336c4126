// Package bench runs the bench in its smallest form, so that it goes on working: tables, plots and raw numbers are there and make
// sense, and a receiver that didn't receive is not measured. How fast anything is, it doesn't look at.
package bench

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"libreceivewal/tests/pg"
)

// folders makes one for servers and one for results. Not t.TempDir(): the user of the servers must get there.
func folders(t *testing.T) (cache, results string) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "receivewal-bench-test-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "cache"), filepath.Join(dir, "results")
}

// bench runs ./build.sh bench with a backlog of 32 MB, for a round of a second.
func bench(t *testing.T, cache, results string, args ...string) (string, error) {
	t.Helper()
	root, err := pg.Root()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("./build.sh", append([]string{"bench", "--cache", cache, "--results", results, "--backlog", "32", "--rounds", "1",
		"--seconds", "1"}, args...)...)
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// report is what the raw numbers hold.
type report struct {
	Rounds  int
	Machine string
	Runs    []struct {
		Receiver, Case string
		Round          int
		Values         map[string]float64
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// check looks at the three files of a bench: each case has each receiver, with these values in all rounds.
func check(t *testing.T, results, name string, cases, receivers, values []string) report {
	t.Helper()
	var r report
	if err := json.Unmarshal([]byte(read(t, filepath.Join(results, name+".json"))), &r); err != nil {
		t.Fatal(err)
	}
	table, plot := read(t, filepath.Join(results, name+".md")), read(t, filepath.Join(results, name+".svg"))
	for decoder := xml.NewDecoder(strings.NewReader(plot)); ; {
		if _, err := decoder.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%s.svg: %v", name, err)
		}
	}
	for _, in := range cases {
		if !strings.Contains(table, "| "+in+" ") || !strings.Contains(plot, ">"+in+"<") {
			t.Errorf("%s: no %s in the table or the plot", name, in)
		}
		for _, receiver := range receivers {
			if !strings.Contains(table, "\n| "+receiver+" ") || !strings.Contains(plot, ">"+receiver+"<") {
				t.Errorf("%s: no %s in the table or the plot", name, receiver)
			}
			runs := 0
			for _, run := range r.Runs {
				if run.Receiver != receiver || run.Case != in || run.Round < 0 {
					continue
				}
				runs++
				for _, value := range values {
					if v, measured := run.Values[value]; !measured || v < 0 {
						t.Errorf("%s: %s of %s, %s: %v, %v", name, value, receiver, in, v, measured)
					}
				}
			}
			if runs == 0 {
				t.Errorf("%s: %s did not run with %s", name, receiver, in)
			}
		}
	}
	return r
}

// Every bench prints and leaves what it has measured, and the instruments show what is known.
func TestBenches(t *testing.T) {
	cache, results := folders(t)
	tool := pg.ClientProgram(t, "pg_receivewal")
	out, err := bench(t, cache, results, "catchup", "segments", "--segments", "16", "--receiver", "no sync="+tool+" --no-sync -n -D {dir} -h {host} -p {port} -U postgres -S {slot} --endpos {last}")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	more, err := bench(t, cache, results, "compression", "synchronous", "switches", "live", "idle", "scale", "--segments", "16", "--clients", "2", "--rates", "0",
		"--streams", "1,3")
	if err != nil {
		t.Fatalf("%v\n%s", err, more)
	}
	out += more
	for _, table := range []string{"catchup", "scale-busy"} {
		if _, rest, _ := strings.Cut(read(t, filepath.Join(results, table+".md")), "\n\n"); !strings.Contains(out, rest) {
			t.Errorf("the table of %s is not what is printed:\n%s", table, out)
		}
	}
	both := []string{"libreceivewal", "pg_receivewal"}
	r := check(t, results, "catchup", []string{"unix", "tcp"}, append(both, "no sync", "limit: receive and discard", "limit: fdatasync inline", "limit: fdatasync in a thread"),
		[]string{"wall", "CPU", "written", "device", "context switches", "peak memory"})
	check(t, results, "segments", []string{"segments of 16 MiB"}, both, []string{"wall", "CPU"})
	check(t, results, "compression", []string{"gzip:1", "lz4"}, append(both, "libreceivewal, 2 threads"), []string{"wall", "CPU", "size"})
	check(t, results, "compression", []string{"zstd:1"}, []string{"libreceivewal", "libreceivewal, 2 threads"}, []string{"wall", "CPU", "size"})
	check(t, results, "synchronous", []string{"2 clients"}, append(both, "limit: no standby", "limit: fdatasync", "limit: direct I/O"), []string{"commits", "p50", "p99.9"})
	check(t, results, "switches", []string{"segments of 16 MiB, 8 clients"}, append(both, "limit: no standby"), []string{"commits", "switches", "p99.9"})
	check(t, results, "live", []string{"as fast as it can"}, both, []string{"WAL", "CPU", "CPU per WAL", "context switches"})
	check(t, results, "idle", []string{"1 s"}, both, []string{"CPU", "context switches", "clock ticks"})
	check(t, results, "scale-idle", []string{"idle"}, []string{"libreceivewal, 1 stream", "libreceivewal, 3 streams"}, []string{"private memory", "RSS", "threads"})
	check(t, results, "scale-busy", []string{"busy"}, []string{"libreceivewal, 1 stream", "libreceivewal, 3 streams", "limit: 3 processes that discard"}, []string{"all together", "slowest to mean"})

	calls := 0
	for _, run := range r.Runs {
		if run.Round < 0 {
			calls++
			if run.Values["system calls"] < 1 {
				t.Errorf("%s made %v system calls per MB", run.Receiver, run.Values["system calls"])
			}
			continue
		}
		// Each byte of WAL is written once, by pg_receivewal twice, and by who discards not at all.
		written, low, high := run.Values["written"], 0.99, 1.1
		switch run.Receiver {
		case "pg_receivewal":
			low, high = 1.99, 2.1
		case "limit: receive and discard":
			low, high = 0, 0.01
		case "no sync":
			high = 2.1 // zeros that are not on the disk yet are replaced
		}
		if written < low || written > high {
			t.Errorf("%s, %s has written each byte %.3f times", run.Receiver, run.Case, written)
		}
	}
	if calls != 13 { // six over a Unix socket, seven over TCP
		t.Errorf("system calls of %d receivers, not of 13", calls)
	}

	// Rounds add up.
	out, err = bench(t, cache, results, "catchup", "--add", "--only", "libreceivewal,pg_", "--transports", "tcp")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	r = check(t, results, "catchup", []string{"tcp"}, both, []string{"wall"})
	rounds := map[string][]int{}
	for _, run := range r.Runs {
		if run.Case == "tcp" {
			rounds[run.Receiver] = append(rounds[run.Receiver], run.Round)
		}
	}
	for receiver, want := range map[string][]int{"libreceivewal": {-1, 0, 1}, "pg_receivewal": {-1, 0, 1}, "limit: splice, no sync": {-1, 0}} {
		if slices.Sort(rounds[receiver]); r.Rounds != 2 || !slices.Equal(rounds[receiver], want) {
			t.Errorf("%d rounds, of %s %v", r.Rounds, receiver, rounds[receiver])
		}
	}

	// The documentation's page takes tables and plots over, and keeps what has not been measured.
	page := "# Page\n\n<!-- bench: catchup -->\nold\n<!-- end -->\nbetween\n<!-- bench: nothing -->\nkept\n<!-- end -->\n"
	docs := filepath.Join(filepath.Dir(results), "docs")
	if err := errors.Join(os.Mkdir(docs, 0o755), os.WriteFile(filepath.Join(docs, "performance.md"), []byte(page), 0o644)); err != nil {
		t.Fatal(err)
	}
	root, err := pg.Root()
	if err != nil {
		t.Fatal(err)
	}
	document := exec.Command(filepath.Join(root, "build/bench/bench"), "document", "--results", results, "--cache", cache)
	document.Dir = filepath.Dir(results)
	if out, err := document.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	got := read(t, filepath.Join(docs, "performance.md"))
	for _, want := range []string{"# Page\n", "(performance-catchup.svg)", "\n| libreceivewal ", "<!-- end -->\nbetween\n<!-- bench: nothing -->\nkept\n<!-- end -->\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("the page has no %q:\n%s", want, got)
		}
	}
	if strings.Contains(got, "old") || !strings.Contains(read(t, filepath.Join(docs, "performance-catchup.svg")), ">libreceivewal<") {
		t.Errorf("the page or its plot is not new:\n%s", got)
	}

	// Who has not received is not measured.
	for command, want := range map[string]string{
		"false":           "ended with code 1",
		"true":            "no such file or directory",
		"cp go.mod {dir}": "no such file or directory",
	} {
		out, err := bench(t, cache, filepath.Join(results, "lazy"), "catchup", "--only", "lazy", "--transports", "unix", "--receiver", "lazy="+command)
		if err == nil || !strings.Contains(out, "bench: catchup: lazy: ") || !strings.Contains(out, want) {
			t.Errorf("a receiver that only runs %q: %v\n%s", command, err, out)
		}
	}
}

// What cannot be meant is refused before anything is done.
func TestArguments(t *testing.T) {
	cache, results := folders(t)
	for _, c := range [][]string{{"nothing"}, {"--rounds", "0"}, {"--transports", "pigeon"}, {"--receiver", "nameless"}, {"--clients", "many"}} {
		if out, err := bench(t, cache, results, c...); err == nil || strings.Contains(out, "making") {
			t.Errorf("%v was taken: %s", c, out)
		}
	}
	if _, err := os.Stat(cache); !os.IsNotExist(err) {
		t.Errorf("something was done: %v", err)
	}
}
