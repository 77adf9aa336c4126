package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// compression has receivers catch up and compress what they receive.
func compression(o *options, out io.Writer) error {
	whole, err := openBacklog(o, o.backlogMB, 16, out)
	if err != nil {
		return err
	}
	defer whole.server.stop()
	b := whole.first(512 << 20)
	r := &report{
		Bench: "compression",
		What:  "compression",
		Title: fmt.Sprintf("Catching up with %d MB of WAL over a Unix socket, compressed", b.bytes()>>20),
		Columns: []column{
			{Name: "wall", Unit: "s", Digits: 2, Spread: true, Plot: true, Against: []string{pgReceivewal}},
			{Name: "CPU", Unit: "s/GB", Digits: 2, Spread: true, Plot: true, Against: []string{pgReceivewal}},
			{Name: "size", Unit: "% of the WAL", Digits: 1, Plot: true},
			{Name: "device", Unit: "per WAL byte", Digits: 3},
			{Name: "peak memory", Unit: "MiB", Digits: 1},
		},
	}
	if err := r.open(o); err != nil {
		return err
	}
	for range o.rounds {
		round := r.nextRound()
		for _, method := range o.methods {
			for _, rec := range turned(o.compressors(method), round) {
				u, size, err := compressed(o, b, rec, method, round == 0)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", method, rec.Name, err)
				}
				values := b.values(u)
				values["size"] = float64(size) / float64(b.bytes()) * 100
				r.add(rec.Name, method, round, values)
				fmt.Fprintf(out, "round %d, %s, %s: %.2f s, %.2f s of CPU, %.1f %%\n", round+1, method, rec.Name, u.Wall, u.CPU(), values["size"])
			}
		}
	}
	return r.write(out)
}

// compressors are the receivers that know a method: pg_receivewal has no zstd. Ours runs with one thread that compresses and with
// two.
func (o *options) compressors(method string) []receiver {
	var all []receiver
	for _, workers := range []string{"1", "2"} {
		name := ours
		if workers != "1" {
			name += ", " + workers + " threads"
		}
		all = append(all, receiver{Name: name, Writes: true, Command: []string{filepath.Join(o.programs, "receiver"),
			"-d", "{conninfo}", "-D", "{dir}", "-S", "{slot}", "-E", "{last}", "-Z", method, "-W", workers}})
	}
	if !strings.HasPrefix(method, "zstd") {
		all = append(all, receiver{Name: pgReceivewal, Writes: true, Command: append(o.pgReceivewal(), "--endpos={last}", "--no-loop", "-Z", method)})
	}
	return o.chosen(append(all, o.more...))
}

// compressed is one run, and how many bytes its files have.
func compressed(o *options, b *backlog, rec receiver, method string, check bool) (usage, int64, error) {
	dir, err := b.begin(o, b.bytes())
	if err != nil {
		return usage{}, 0, err
	}
	u, err := measure(b.command(rec, "unix", dir), dir)
	if err != nil {
		return u, 0, err
	}
	tool, _, _ := strings.Cut(method, ":")
	suffix := map[string]string{"gzip": ".gz", "lz4": ".lz4", "zstd": ".zst"}[tool]
	var size int64
	for _, name := range b.names() {
		path := filepath.Join(dir, name+suffix)
		info, err := os.Stat(path)
		if err != nil {
			return u, 0, err
		}
		size += info.Size()
		if !check {
			continue
		}
		if err := unpack(tool, path, filepath.Join(dir, name)); err != nil {
			return u, 0, err
		}
	}
	if check {
		err = b.check(dir)
	}
	return u, size, errors.Join(err, b.end())
}

// unpack decompresses with the method's own program.
func unpack(tool, from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	cmd := exec.Command(tool, "-dc")
	cmd.Stdin, cmd.Stdout = in, out
	if err := cmd.Run(); err != nil {
		err = fmt.Errorf("%s -dc of %s: %w", tool, from, err)
		return errors.Join(err, out.Close())
	}
	return out.Close()
}
