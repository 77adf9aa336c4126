// Command bench measures libreceivewal beside pg_receivewal, beside programs that do as little as can be done, and beside any
// receiver that is named. README.md says what each bench does; ./build.sh bench builds everything and runs it.
//
// It only measures: it judges nothing but that what was received is complete and right.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are those of the command line.
type options struct {
	rounds     int
	backlogMB  int
	transports []string
	segments   []int // MiB
	clients    []int
	streams    []int
	rates      []int // transactions a second
	seconds    int
	methods    []string
	only       []string
	more       []receiver
	addRounds  bool
	results    string
	cache      string
	programs   string // the folder of receiver, streams and limit
	libraries  string // and of the program receivewal: ../bin
	pgBin      string
	given      string // the options that say what is measured, as they were given
	servers    servers
}

// benches are what can be measured, in the order in which "all" runs them.
var benches = []struct {
	name string
	run  func(*options, io.Writer) error
}{
	{"catchup", catchup},
	{"segments", segments},
	{"compression", compression},
	{"synchronous", synchronous},
	{"switches", switches},
	{"live", live},
	{"idle", idle},
	{"scale", scale},
	{"document", document}, // which measures nothing
}

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	// Receivers are traced, and servers bound to our life, by the thread that starts them: all of it is this one.
	runtime.LockOSThread()
	o, what, err := parse(args)
	if err != nil {
		return err
	}
	// A stop by hand must not leave a server behind.
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		<-stop
		o.servers.stop()
		os.Exit(130)
	}()
	defer o.servers.stop()
	// Held until this process ends. Two benches at once would measure each other anyway.
	if err := os.MkdirAll(o.cache, 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(o.cache, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("another bench uses %s: %w", o.cache, err)
	}
	for _, b := range benches {
		if !slices.Contains(what, b.name) && (b.name == "document" || !slices.Contains(what, "all")) {
			continue
		}
		started := time.Now()
		if err := b.run(o, out); err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
		fmt.Fprintf(out, "\n%s: %.0f s, results in %s\n", b.name, time.Since(started).Seconds(), o.results)
	}
	return nil
}

func parse(args []string) (*options, []string, error) {
	o := &options{}
	var names []string
	for _, b := range benches {
		names = append(names, b.name)
	}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.IntVar(&o.rounds, "rounds", 5, "how often each receiver runs, interleaved with the others")
	flags.IntVar(&o.backlogMB, "backlog", 2048, "MB of WAL to catch up with; made once for each size")
	flags.IntVar(&o.seconds, "seconds", 10, "length of a round where time is given, not WAL")
	flags.BoolVar(&o.addRounds, "add", false, "add to the rounds that the results hold already")
	transports := flags.String("transports", "unix,tcp", "how receivers connect")
	segments := flags.String("segments", "16,64", "wal_segment_size in MiB (segments, switches)")
	clients := flags.String("clients", "1,8,32", "clients of pgbench (synchronous)")
	rates := flags.String("rates", "250,1000,0", "transactions a second, 0: as many as there can be (live)")
	streams := flags.String("streams", "1,10,100,1000", "streams in one process (scale)")
	methods := flags.String("compress", "gzip:1,lz4,zstd:1", "methods, as pg_receivewal --compress takes them (compression)")
	only := flags.String("only", "", "only receivers whose name contains one of these")
	flags.StringVar(&o.results, "results", "build/bench/results", "folder of tables, plots and raw numbers")
	flags.StringVar(&o.cache, "cache", defaultCache(), "folder of the servers' data; receivers write there too")
	flags.StringVar(&o.programs, "programs", "build/bench", "folder of the programs that ./build.sh bench makes")
	flags.StringVar(&o.libraries, "libraries", "build/lib", "folder of the libraries")
	flags.StringVar(&o.pgBin, "pg", "/usr/lib/postgresql/15/bin", "folder of PostgreSQL's programs")
	flags.Func("receiver", "another one, 'name=command with {dir} {host} {port} {slot} {end}'; may be given more than once", func(s string) error {
		name, command, found := strings.Cut(s, "=")
		if !found || name == "" || len(strings.Fields(command)) == 0 {
			return errors.New("wanted name=command")
		}
		o.more = append(o.more, receiver{Name: name, Command: strings.Fields(command), Writes: true})
		return nil
	})
	flags.Usage = func() {
		fmt.Fprintf(flags.Output(), "usage: ./build.sh bench [OPTION]... [%s|all]...\n", strings.Join(names, "|"))
		flags.PrintDefaults()
	}
	// Options and names may come in any order.
	var what []string
	for rest := args; ; {
		if err := flags.Parse(rest); err != nil {
			return nil, nil, err
		}
		if flags.NArg() == 0 {
			break
		}
		what, rest = append(what, flags.Arg(0)), flags.Args()[1:]
	}
	if len(what) == 0 {
		what = []string{"catchup"}
	}
	for _, w := range what {
		if w != "all" && !slices.Contains(names, w) {
			return nil, nil, fmt.Errorf("there is no bench %q, only %s and all", w, strings.Join(names, ", "))
		}
	}
	flags.Visit(func(f *flag.Flag) {
		switch f.Name {
		case "backlog", "seconds", "transports", "segments", "clients", "rates", "streams", "compress":
			o.given += fmt.Sprintf(" --%s %s", f.Name, f.Value)
		}
	})
	o.transports = list(*transports)
	for _, t := range o.transports {
		if t != "unix" && t != "tcp" {
			return nil, nil, fmt.Errorf("there is no transport %q, only unix and tcp", t)
		}
	}
	o.methods, o.only = list(*methods), list(*only)
	for _, numbers := range []struct {
		text string
		to   *[]int
	}{{*segments, &o.segments}, {*clients, &o.clients}, {*streams, &o.streams}, {*rates, &o.rates}} {
		for _, word := range list(numbers.text) {
			var n int
			if _, err := fmt.Sscanf(word, "%d", &n); err != nil || n < 0 {
				return nil, nil, fmt.Errorf("%q is no number of something", word)
			}
			*numbers.to = append(*numbers.to, n)
		}
	}
	if o.rounds < 1 || o.backlogMB < 1 || o.seconds < 1 {
		return nil, nil, errors.New("rounds, backlog and seconds are at least 1")
	}
	for _, path := range []*string{&o.results, &o.cache, &o.programs, &o.libraries} {
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return nil, nil, err
		}
		*path = absolute
	}
	return o, what, nil
}

func list(text string) []string {
	var words []string
	for _, word := range strings.Split(text, ",") {
		if word = strings.TrimSpace(word); word != "" {
			words = append(words, word)
		}
	}
	return words
}

// defaultCache is beside the servers of the tests, or where a user may write.
func defaultCache() string {
	if os.Getuid() == 0 {
		return "/var/cache/libreceivewal/bench"
	}
	if dir, err := os.UserCacheDir(); err == nil {
		return filepath.Join(dir, "libreceivewal", "bench")
	}
	return "build/bench/cache"
}
