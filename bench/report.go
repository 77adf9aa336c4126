package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// report is what a bench has measured: a table and a plot made of rounds, and the rounds themselves.
type report struct {
	Bench   string // names its files
	What    string // the bench that makes it
	Title   string
	Command string // that makes it again
	Columns []column
	Machine string
	Rounds  int
	Runs    []measurement

	folder string
	given  string // options
}

// column is one measured thing. Less is better, unless More.
type column struct {
	Name    string
	Unit    string
	Digits  int
	Spread  bool     // show the smallest and the largest too
	Plot    bool     // draw it
	More    bool     // more is better
	Against []string // receivers to show the ratio to
}

// measurement is one run of one receiver in one case. Round is -1 for what was measured beside the rounds.
type measurement struct {
	Receiver string
	Case     string
	Round    int
	Values   map[string]float64
}

// open begins a report, or goes on with the one that the results hold.
func (r *report) open(o *options) error {
	r.folder, r.given, r.Machine = o.results, o.given, machine(o.cache)
	if err := os.MkdirAll(r.folder, 0o755); err != nil {
		return err
	}
	if !o.addRounds {
		return nil
	}
	text, err := os.ReadFile(filepath.Join(r.folder, r.Bench+".json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	old := report{}
	if err := errors.Join(err, json.Unmarshal(text, &old)); err != nil {
		return err
	}
	r.Rounds, r.Runs = old.Rounds, old.Runs
	return nil
}

// nextRound counts rounds from 0.
func (r *report) nextRound() int {
	r.Rounds++
	return r.Rounds - 1
}

func (r *report) add(receiver, in string, round int, values map[string]float64) {
	r.Runs = append(r.Runs, measurement{receiver, in, round, values})
}

// note keeps a value that was measured beside the rounds, in place of an earlier one.
func (r *report) note(receiver, in, name string, value float64) {
	for _, run := range r.Runs {
		if run.Receiver == receiver && run.Case == in && run.Round < 0 {
			run.Values[name] = value
			return
		}
	}
	r.add(receiver, in, -1, map[string]float64{name: value})
}

// noted tells whether there is such a value from an earlier time.
func (r *report) noted(receiver, in, name string) bool {
	_, is := r.values(receiver, in, name)[-1]
	return is
}

// values are one receiver's in one case, by round.
func (r *report) values(receiver, in, name string) map[int]float64 {
	values := map[int]float64{}
	for _, run := range r.Runs {
		if v, measured := run.Values[name]; measured && run.Receiver == receiver && run.Case == in {
			values[run.Round] = v
		}
	}
	return values
}

// cases and receivers are in the order of their first run, which a round's turn doesn't change: it is sorted out by names.
func (r *report) cases() []string {
	var names []string
	for _, run := range r.Runs {
		if !slices.Contains(names, run.Case) {
			names = append(names, run.Case)
		}
	}
	return names
}

// receivers of a case: ours, pg_receivewal, others by name, limits at the end.
func (r *report) receivers(in string) []string {
	var names []string
	for _, run := range r.Runs {
		if run.Case == in && !slices.Contains(names, run.Receiver) {
			names = append(names, run.Receiver)
		}
	}
	rank := func(name string) int {
		switch {
		case strings.HasPrefix(name, ours):
			return 0
		case strings.HasPrefix(name, pgReceivewal):
			return 1
		case strings.HasPrefix(name, "limit"):
			return 3
		}
		return 2
	}
	slices.SortStableFunc(names, func(a, b string) int { return rank(a) - rank(b) })
	return names
}

// median of some values, which must not be empty.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

func numbers(byRound map[int]float64) []float64 {
	var all []float64
	for _, v := range byRound {
		all = append(all, v)
	}
	return all
}

// ratio is the median of the ratios within each round: what the machine does to a round, it does to both.
func (r *report) ratio(receiver, against, in, name string) (float64, bool) {
	of, to := r.values(receiver, in, name), r.values(against, in, name)
	var ratios []float64
	for round, v := range of {
		if w, both := to[round]; both && w != 0 {
			ratios = append(ratios, v/w)
		}
	}
	if len(ratios) == 0 {
		return 0, false
	}
	return median(ratios), true
}

// table is Markdown, aligned so that it can be read as it is.
func (r *report) table(in string) string {
	receivers := r.receivers(in)
	header := []string{in}
	var rows [][]string
	for _, name := range receivers {
		rows = append(rows, []string{name})
	}
	for _, c := range r.Columns {
		var cells []string
		measured := false
		for _, name := range receivers {
			cell := ""
			if all := numbers(r.values(name, in, c.Name)); len(all) > 0 {
				measured = true
				cell = fmt.Sprintf("%.*f", c.Digits, median(all))
				if c.Spread && len(all) > 1 {
					cell += fmt.Sprintf(" (%.*f–%.*f)", c.Digits, slices.Min(all), c.Digits, slices.Max(all))
				}
			}
			cells = append(cells, cell)
		}
		if !measured {
			continue
		}
		header = append(header, strings.TrimSuffix(c.Name+", "+c.Unit, ", "))
		for i := range rows {
			rows[i] = append(rows[i], cells[i])
		}
		for _, against := range c.Against {
			if !slices.Contains(receivers, against) || len(receivers) == 1 {
				continue
			}
			header = append(header, "to "+strings.TrimPrefix(against, "limit: "))
			for i, name := range receivers {
				cell := ""
				if ratio, both := r.ratio(name, against, in, c.Name); both && name != against {
					cell = fmt.Sprintf("%.2f", ratio)
				}
				rows[i] = append(rows[i], cell)
			}
		}
	}
	return markdown(header, rows)
}

func markdown(header []string, rows [][]string) string {
	widths := make([]int, len(header))
	for _, row := range append([][]string{header}, rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	var text strings.Builder
	line := func(row []string) {
		for i, cell := range row {
			space := strings.Repeat(" ", widths[i]-len([]rune(cell)))
			if i == 0 {
				text.WriteString("| " + cell + space)
			} else {
				text.WriteString(" | " + space + cell)
			}
		}
		text.WriteString(" |\n")
	}
	line(header)
	for i, width := range widths {
		if i == 0 {
			text.WriteString("|" + strings.Repeat("-", width+2))
		} else {
			text.WriteString("|" + strings.Repeat("-", width+1) + ":")
		}
	}
	text.WriteString("|\n")
	for _, row := range rows {
		line(row)
	}
	return text.String()
}

// write prints the tables, and leaves them, the plot and the raw numbers in the folder of results.
func (r *report) write(out io.Writer) error {
	r.Command = fmt.Sprintf("./build.sh bench %s --rounds %d%s", r.What, r.Rounds, r.given)
	var text strings.Builder
	fmt.Fprintf(&text, "# %s\n\n%s. Medians of %d rounds (smallest–largest); ratios are medians of each round's ratio.\n`%s`\n",
		r.Title, r.Machine, r.Rounds, r.Command)
	for _, in := range r.cases() {
		fmt.Fprintf(&text, "\n%s", r.table(in))
	}
	raw, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\n%s", text.String())
	return errors.Join(
		os.WriteFile(filepath.Join(r.folder, r.Bench+".json"), append(raw, '\n'), 0o644),
		os.WriteFile(filepath.Join(r.folder, r.Bench+".md"), []byte(text.String()), 0o644),
		os.WriteFile(filepath.Join(r.folder, r.Bench+".svg"), []byte(r.plot()), 0o644))
}

// machine says what the figures were measured on.
func machine(folder string) string {
	var name unix.Utsname
	release := "unknown"
	if err := unix.Uname(&name); err == nil {
		release, _, _ = strings.Cut(unix.ByteSliceToString(name.Release[:]), "-")
	}
	var stat unix.Statfs_t
	kind := "unknown"
	if err := unix.Statfs(existing(folder), &stat); err == nil {
		kind = map[int64]string{unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs",
			unix.TMPFS_MAGIC: "tmpfs", unix.OVERLAYFS_SUPER_MAGIC: "overlayfs"}[stat.Type]
		if kind == "" {
			kind = fmt.Sprintf("file system %#x", stat.Type)
		}
	}
	var info unix.Sysinfo_t
	memory := math.NaN()
	if err := unix.Sysinfo(&info); err == nil {
		memory = float64(info.Totalram) * float64(info.Unit) / (1 << 30)
	}
	return fmt.Sprintf("%d cores (%s), %.0f GiB of memory, Linux %s, %s", runtime.NumCPU(), processor(), memory, release, kind)
}

// existing is the nearest folder above that there is.
func existing(folder string) string {
	for folder != "/" {
		if _, err := os.Stat(folder); err == nil {
			break
		}
		folder = filepath.Dir(folder)
	}
	return folder
}

// processor is its name as /proc/cpuinfo has it.
func processor() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for _, line := range strings.Split(string(text), "\n") {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}
