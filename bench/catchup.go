package main

import (
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// slotOfRun is the slot that a receiver gets.
const slotOfRun = "run"

// catchup has receivers catch up with the same backlog, one after the other, in rounds.
func catchup(o *options, out io.Writer) error {
	b, err := openBacklog(o, o.backlogMB, 16, out)
	if err != nil {
		return err
	}
	defer b.server.stop()
	r := &report{
		Bench: "catchup",
		What:  "catchup",
		Title: fmt.Sprintf("Catching up with %d MB of WAL", b.MB),
		Columns: []column{
			{Name: "wall", Unit: "s", Digits: 2, Spread: true, Plot: true, Against: []string{pgReceivewal, discarding}},
			{Name: "CPU", Unit: "s/GB", Digits: 2, Spread: true, Plot: true, Against: []string{pgReceivewal}},
			{Name: "written", Unit: "per WAL byte", Digits: 3, Plot: true},
			{Name: "device", Unit: "per WAL byte", Digits: 3},
			{Name: "system calls", Unit: "per MB", Digits: 1},
			{Name: "context switches", Unit: "per MB", Digits: 1},
			{Name: "peak memory", Unit: "MiB", Digits: 1},
		},
	}
	if err := r.open(o); err != nil {
		return err
	}
	receivers := o.catchers()
	for range o.rounds {
		round := r.nextRound()
		for _, transport := range o.transports {
			for _, rec := range turned(receivers, round) {
				if rec.Only != "" && rec.Only != transport {
					continue
				}
				u, err := catchUp(o, b, rec, transport, round == 0)
				if err != nil {
					return fmt.Errorf("%s: %w", rec.Name, err)
				}
				r.add(rec.Name, transport, round, b.values(u))
				fmt.Fprintf(out, "round %d, %s, %s: %.2f s, %.2f s of CPU\n", round+1, transport, rec.Name, u.Wall, u.CPU())
			}
		}
	}
	for _, transport := range o.transports {
		for _, rec := range receivers {
			if rec.Only != "" && rec.Only != transport {
				continue
			}
			if r.noted(rec.Name, transport, "system calls") {
				continue
			}
			calls, err := b.systemCalls(o, rec, transport)
			if err != nil {
				return fmt.Errorf("%s: %w", rec.Name, err)
			}
			r.note(rec.Name, transport, "system calls", calls)
		}
	}
	return r.write(out)
}

// segments has receivers catch up with WAL in segments of several sizes.
func segments(o *options, out io.Writer) error {
	mb := min(512, o.backlogMB)
	r := &report{
		Bench: "segments",
		What:  "segments",
		Title: fmt.Sprintf("Catching up with %d MB of WAL over TCP, by the size of segments", mb),
		Columns: []column{
			{Name: "wall", Unit: "s", Digits: 2, Spread: true, Plot: true, Against: []string{pgReceivewal}},
			{Name: "CPU", Unit: "s/GB", Digits: 2, Spread: true, Plot: true, Against: []string{pgReceivewal}},
			{Name: "device", Unit: "per WAL byte", Digits: 3},
			{Name: "peak memory", Unit: "MiB", Digits: 1},
		},
	}
	if err := r.open(o); err != nil {
		return err
	}
	receivers := slices.DeleteFunc(o.catchers(), func(rec receiver) bool { return strings.HasPrefix(rec.Name, "limit") })
	first := r.Rounds
	r.Rounds += o.rounds
	for _, size := range o.segments {
		b, err := openBacklog(o, mb, size, out)
		if err != nil {
			return err
		}
		in := fmt.Sprintf("segments of %d MiB", size)
		for round := first; round < r.Rounds; round++ {
			for _, rec := range turned(receivers, round) {
				u, err := catchUp(o, b, rec, "tcp", round == 0)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", in, rec.Name, err)
				}
				r.add(rec.Name, in, round, b.values(u))
				fmt.Fprintf(out, "round %d, %s, %s: %.2f s, %.2f s of CPU\n", round+1, in, rec.Name, u.Wall, u.CPU())
			}
		}
		b.server.stop()
	}
	return r.write(out)
}

// turned are the receivers in a round's order: each begins once in a while, as who follows whom must not matter.
func turned(receivers []receiver, round int) []receiver {
	n := round % max(len(receivers), 1)
	return append(slices.Clone(receivers[n:]), receivers[:n]...)
}

// values are those of the report's columns.
func (b *backlog) values(u usage) map[string]float64 {
	wal := float64(b.bytes())
	return map[string]float64{
		"wall": u.Wall, "CPU": u.CPU() / (wal / 1e9), "user": u.User, "system": u.System,
		"written": float64(u.Written) / wal, "device": float64(u.Device) / wal,
		"context switches": float64(u.Switches) / (wal / 1e6), "involuntary": float64(u.Involuntary) / (wal / 1e6),
		"peak memory": float64(u.Peak) / (1 << 20),
	}
}

// catchUp is one run of one receiver. With check, what it has written is compared with what the server has.
func catchUp(o *options, b *backlog, rec receiver, transport string, check bool) (usage, error) {
	memory := b.bytes()
	if !rec.Writes {
		memory = 0
	}
	dir, err := b.begin(o, memory)
	if err != nil {
		return usage{}, err
	}
	u, err := measure(b.command(rec, transport, dir), dir)
	if err != nil {
		return u, err
	}
	if check && rec.Writes {
		if err := b.check(dir); err != nil {
			return u, err
		}
	}
	return u, b.end()
}

// systemCalls are a receiver's for each MB of the backlog's beginning: strace is slow.
func (b *backlog) systemCalls(o *options, rec receiver, transport string) (float64, error) {
	first := b.first(256 << 20)
	dir, err := first.begin(o, 0)
	if err != nil {
		return 0, err
	}
	calls, err := systemCalls(first.command(rec, transport, dir))
	if err != nil {
		return 0, err
	}
	return calls["total"] / (float64(first.bytes()) / 1e6), first.end()
}

// begin makes an empty folder and a slot that stands at the beginning.
func (b *backlog) begin(o *options, memory uint64) (dir string, err error) {
	// A run that failed has left its slot.
	if _, err := b.server.sql("select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = '" + slotOfRun + "'"); err != nil {
		return "", err
	}
	if _, err := b.server.sql("select pg_copy_physical_replication_slot('" + slotOfBacklog + "', '" + slotOfRun + "')"); err != nil {
		return "", err
	}
	dir = filepath.Join(o.cache, "received")
	return dir, prepare(dir, int(memory))
}

func (b *backlog) command(rec receiver, transport, dir string) *exec.Cmd {
	return rec.command(b.server, transport, dir, slotOfRun,
		"{start}", b.Start.String(), "{end}", b.End.String(),
		"{last}", (b.End - 1).String(), // pg_receivewal goes on until it is beyond its --endpos
		"{segment_size}", strconv.Itoa(int(b.SegmentSize)))
}

// end takes the slot away again.
func (b *backlog) end() error {
	if err := b.server.waitFor("select not active from pg_replication_slots where slot_name = '" + slotOfRun + "'"); err != nil {
		return err
	}
	_, err := b.server.sql("select pg_drop_replication_slot('" + slotOfRun + "')")
	return err
}
