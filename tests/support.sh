#!/usr/bin/env bash
# The table of servers in the README, from what ran.
#
#   tests/support.sh table      prints it, as tests/support.tsv has it
#   tests/support.sh RECORD     makes tests/support.tsv of a record, and puts the table into the README
#
# ./build.sh support does both. A record is what the tests write to the file that RECEIVEWAL_RECORD names: a line for each test that has
# passed with a server, of major version, version, segment size in MiB and test.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

kept=tests/support.tsv

table() {
    sed -n 's/^# //p' "$kept"
    echo
    echo "| PostgreSQL | server | tests that have passed with it | segment sizes |"
    echo "|---|---|---|---|"
    grep -v '^#' "$kept" | sort -t "$(printf '\t')" -k 1,1n -k 2,2V -k 3,3n | awk -F '\t' '
        function row() { if (major != "") printf "| %s | %s | %d | %s MiB |\n", major, version, tests, sizes }
        $1 FS $2 != server { row(); server = $1 FS $2; major = $1; version = $2; tests = 0; sizes = ""; size = ""; split("", seen) }
        $3 != size { size = $3; sizes = sizes (sizes == "" ? "" : ", ") size }
        !($4 in seen) { seen[$4] = 1; tests++ }
        END { row() }'
}

case "${1:-}" in
table) table ;;
'')
    echo "usage: tests/support.sh table | RECORD" >&2
    exit 2
    ;;
*)
    {
        echo "# Ran $(date -u +%Y-%m-%d) on Linux $(uname -r | cut -d . -f 1,2) $(uname -m), $(getconf GNU_LIBC_VERSION), $(go env GOVERSION):"
        LC_ALL=C sort -u "$1"
    } >"$kept.new"
    mv "$kept.new" "$kept"
    awk -v table="$(table)" '
        /^<!-- support -->$/ { print; print table; skip = 1; next }
        /^<!-- end of support -->$/ { skip = 0 }
        !skip' README.md >README.md.new
    mv README.md.new README.md
    ;;
esac
