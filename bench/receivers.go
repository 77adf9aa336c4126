package main

import (
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// receiver is a program that receives WAL, with words in braces for what differs from run to run.
type receiver struct {
	Name    string
	Command []string
	Writes  bool   // whether it leaves the segments behind
	Only    string // the one transport that it is for; "": both
}

// The receivers that others are compared with.
const (
	pgReceivewal = "pg_receivewal"
	ours         = "libreceivewal"
	discarding   = "limit: receive and discard"
)

// catchers are the receivers of a catch-up.
func (o *options) catchers() []receiver {
	limit := func(mode string) []string {
		return []string{filepath.Join(o.programs, "limit"), mode, "{conninfo}", "{dir}", "{slot}", "{start}", "{end}", "{segment_size}"}
	}
	all := []receiver{
		{Name: ours, Writes: true,
			Command: []string{filepath.Join(o.programs, "receiver"), "-d", "{conninfo}", "-D", "{dir}", "-S", "{slot}", "-E", "{last}"}},
		{Name: pgReceivewal, Writes: true,
			Command: append(o.pgReceivewal(), "--endpos={last}", "--no-loop")},
		{Name: discarding, Command: limit("discard")},
		{Name: "limit: fdatasync inline", Writes: true, Command: limit("inline")},
		{Name: "limit: fdatasync in a thread", Writes: true, Command: limit("thread")},
		{Name: "limit: splice, no sync", Writes: true, Command: limit("splice"), Only: "tcp"},
	}
	return o.chosen(append(all, o.more...))
}

// pgReceivewal is its command line, but for where it ends.
func (o *options) pgReceivewal() []string {
	return []string{filepath.Join(o.pgBin, "pg_receivewal"), "-D", "{dir}", "-h", "{host}", "-p", "{port}", "-U", "postgres", "-S", "{slot}"}
}

func (o *options) chosen(all []receiver) []receiver {
	if len(o.only) == 0 {
		return all
	}
	var some []receiver
	for _, r := range all {
		for _, part := range o.only {
			if strings.Contains(r.Name, part) {
				some = append(some, r)
				break
			}
		}
	}
	return some
}

// command fills a receiver's words in.
func (r receiver) command(s *server, transport, dir, slot string, more ...string) *exec.Cmd {
	replacer := strings.NewReplacer(append([]string{
		"{dir}", dir, "{host}", s.host(transport), "{port}", strconv.Itoa(s.port), "{slot}", slot, "{conninfo}", s.connString(transport),
	}, more...)...)
	var words []string
	for _, word := range r.Command {
		words = append(words, replacer.Replace(word))
	}
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Env = environment()
	return cmd
}
