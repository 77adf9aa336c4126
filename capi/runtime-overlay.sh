#!/bin/sh
# Writes an overlay for "go build -overlay" into the folder $1 and prints the overlay file's name.
#
# A library is a guest in its host's process, and Go has habits that a guest can't have and that no flag turns
# off. The overlay compiles the runtime with them changed; the Go installation itself stays as it is.
#
#   SIGCHLD, SIGPROF, SIGSTKFLT, SIGRTMIN   Go unblocks them on each of its threads, whatever mask the thread inherits
#                            (_SigUnblock in sigtab_linux_generic.go, minitSignalMask in signal_unix.go). A host's handler without
#                            SA_ONSTACK would then run on a goroutine's stack of a few KiB and overflow it, and a host that
#                            blocks SIGCHLD everywhere to read it from a signalfd would lose some. SIGRTMIN (34) is unblocked
#                            for musl's sake, where a c-shared library doesn't work anyway.
#   the environment          Go reads GODEBUG, GOMAXPROCS, GOTRACEBACK, ... of the host, and GODEBUG can make it print. It
#                            finds them behind argv, where a host that sets its process title has already written
#                            something else. An empty environment it is (goenvs, getGodebugEarly).
#   the monitor's pace       A thread of Go's looks after the others every 20 us while they are busy (sysmon), which is a seventh of the
#                            CPU that a synchronous stream takes. For what waits for a disk and a socket, 10 ms at first and up to 100 ms
#                            when nothing is to be done do: see procs.go.
#   the limit of descriptors Go raises the soft RLIMIT_NOFILE of the process to the hard one (init in syscall/rlimit.go). A host
#                            that uses select, or execs programs that do, has it low for that reason.
#
# Each substitution is checked: a Go release that has changed these lines fails the build rather than the host.
set -eu

out=$1
runtime=$(go env GOROOT)/src/runtime
syscall=$(go env GOROOT)/src/syscall
mkdir -p "$out"
out=$(cd "$out" && pwd)

fail() {
    echo "runtime-overlay.sh: $(go version): $1 is not as expected" >&2
    exit 1
}

# Not named .go, so that "go vet ./..." does not take the folder for a package.
table=$out/sigtab_linux_generic.go.overlay
sed -e '/"SIGCHLD:\|"SIGPROF:\|"SIGSTKFLT:\|"signal 34"/s/ + _SigUnblock//' "$runtime/sigtab_linux_generic.go" >"$table"
[ "$(diff "$runtime/sigtab_linux_generic.go" "$table" | grep -c '^>')" = 4 ] || fail sigtab_linux_generic.go

linux=$out/os_linux.go.overlay
sed -e '/^func goenvs() {$/,/^}$/s/goenvs_unix()/envs = []string{}/' "$runtime/os_linux.go" >"$linux"
[ "$(diff "$runtime/os_linux.go" "$linux" | grep -c '^>')" = 1 ] || fail os_linux.go

proc=$out/proc.go.overlay
sed -e '/^func getGodebugEarly() (string, bool) {$/,/^}$/s/^\tvar env string$/\tif true {\n\t\treturn "", true\n\t}\n&/' \
    -e '/^func sysmon() {$/,/^}$/{s/\<delay = 20\>/delay = 10000/; s/\<idle > 50\>/idle > 20/; s/delay > 10\*1000/delay > 100*1000/; s/delay = 10 \* 1000/delay = 100 * 1000/}' "$runtime/proc.go" >"$proc"
[ "$(diff "$runtime/proc.go" "$proc" | grep -c '^>')" = 8 ] || fail proc.go

rlimit=$out/rlimit.go.overlay
sed -e '/^func init() {$/,/^}$/s/lim.Max > 0 \&\& lim.Cur < lim.Max-1/false/' "$syscall/rlimit.go" >"$rlimit"
[ "$(diff "$syscall/rlimit.go" "$rlimit" | grep -c '^>')" = 1 ] || fail rlimit.go

cat >"$out/overlay.json" <<END
{"Replace": {
    "$runtime/sigtab_linux_generic.go": "$table",
    "$runtime/os_linux.go": "$linux",
    "$runtime/proc.go": "$proc",
    "$syscall/rlimit.go": "$rlimit"
}}
END
echo "$out/overlay.json"
