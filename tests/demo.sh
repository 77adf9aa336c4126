#!/usr/bin/env bash
# What ./build.sh demo runs: a throwaway PostgreSQL 15, a busy database, two programs that receive its WAL through
# libreceivewal, and a comparison of every byte with the server's own files. Ends with 0 only if nothing differs.
#
#   receivewal   examples/receivewal.c, a pg_receivewal on this library, with a replication slot
#   embed        examples/embed.c, the smallest host: receives three segments, then goes on using its connection
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

pg=/usr/lib/postgresql/15/bin
dir=$(mktemp -d /tmp/receivewal-demo-XXXXXX) # short: it is the folder of the Unix socket too
receivers=()

as_server=() # PostgreSQL refuses to run as root
[ "$(id -u)" != 0 ] || as_server=(runuser -u postgres --)

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
sql() { "$pg/psql" -X -qAt -v ON_ERROR_STOP=1 -h "$dir" -U postgres -c "$1" postgres; }

clean_up() {
    local status=$?
    trap - EXIT INT TERM
    [ ${#receivers[@]} -eq 0 ] || { kill "${receivers[@]}" && wait "${receivers[@]}"; } 2>/dev/null || true
    [ ! -e "$dir/data/postmaster.pid" ] || "${as_server[@]}" "$pg/pg_ctl" -D "$dir/data" -m immediate stop >/dev/null 2>&1 || true
    if [ "$status" -ge 128 ]; then
        printf '\ninterrupted; everything is cleaned up\n'
    elif [ "$status" != 0 ]; then
        printf '\nThe demo has failed (%s). The end of what the programs have said:\n' "$status"
        tail -n 8 "$dir"/*.log 2>/dev/null || true
    fi
    cd /
    rm -rf "$dir"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

[ "$(id -u)" != 0 ] || chown postgres: "$dir"
chmod 755 "$dir"
mkdir "$dir/receivewal" "$dir/embed"
"${CC:-gcc}" -Ibuild/include "-I$(pg_config --includedir)" examples/embed.c -o build/bin/embed \
    -Lbuild/lib -lreceivewal "-L$(pg_config --libdir)" -lpq "-Wl,-rpath,\$ORIGIN/../lib"

say "A PostgreSQL 15 in $dir"
cd "$dir" # where user postgres may be
"${as_server[@]}" "$pg/initdb" -D "$dir/data" -U postgres --auth trust --no-sync --no-locale --encoding UTF8 >"$dir/initdb.log" 2>&1
"${as_server[@]}" "$pg/pg_ctl" -D "$dir/data" -l "$dir/server.log" -w start >/dev/null \
    -o "-k $dir -c listen_addresses= -c wal_keep_size=4GB -c max_wal_size=4GB -c fsync=off"
cd "$OLDPWD"
sql 'select version()' | cut -d ' ' -f 1-2

say "Two receivers on it"
build/bin/receivewal -d "host=$dir user=postgres" --slot demo --create-slot
build/bin/receivewal -d "host=$dir user=postgres" --slot demo -D "$dir/receivewal" -v 2>"$dir/receivewal.log" &
receivers+=($!)
build/bin/embed "host=$dir user=postgres sslmode=disable" "$dir/embed" >"$dir/embed.log" 2>&1 &
receivers+=($!)
for _ in {1..300}; do
    [ "$(sql "select count(*) from pg_stat_replication where state = 'streaming'")" != 2 ] || break
    sleep 0.1
done
sql "select '  WAL sender ' || pid || ' streams from ' || sent_lsn from pg_stat_replication"

say "A busy database: pgbench, and a new segment now and then"
"$pg/pgbench" -h "$dir" -U postgres -i -s 5 -q postgres >"$dir/pgbench.log" 2>&1
for _ in 1 2 3; do
    "$pg/pgbench" -h "$dir" -U postgres -n -c 4 -j 2 -T 3 postgres 2>>"$dir/pgbench.log" | grep -E '^(tps|number of transactions)' | sed 's/^/  /'
    sql 'select pg_switch_wal()' >/dev/null
done

# Both have everything once the slot is confirmed up to the last switch.
end=$(sql 'select pg_current_wal_lsn()')
for _ in {1..600}; do
    [ "$(sql "select restart_lsn >= '$end' from pg_replication_slots")" != t ] || break
    sleep 0.1
done
kill -INT "${receivers[0]}"
wait "${receivers[0]}" || { echo "receivewal: exit code $?"; exit 1; }
wait "${receivers[1]}" || { echo "embed: exit code $?"; exit 1; }
receivers=()

say "What embed has printed, the last line after its connection came back"
sed 's/^/  /' "$dir/embed.log"

say "Every segment beside the server's own file, and read by pg_waldump"
segments=0 bytes=0 wrong=0
for file in "$dir"/{receivewal,embed}/*; do
    name=${file##*/}
    [[ $name =~ ^[0-9A-F]{24}$ ]] || continue
    verdict=equal
    cmp -s "$file" "$dir/data/pg_wal/$name" || verdict=DIFFERENT
    records=$("$pg/pg_waldump" -p "${file%/*}" "$name" 2>"$dir/waldump.log" | wc -l) || verdict=UNREADABLE
    [ "$verdict" = equal ] || wrong=$((wrong + 1))
    segments=$((segments + 1))
    bytes=$((bytes + $(stat -c %s "$file")))
    printf '  %-10s  %s  %s  %7d records\n' "$(basename "${file%/*}")" "$name" "$verdict" "$records"
done

say "Summary"
echo "  received   $segments segments, $((bytes / 1048576)) MiB, over connections that the two programs had made"
if [ "$wrong" != 0 ] || [ "$segments" -lt 6 ]; then
    echo "  verdict    $wrong of $segments segments are wrong; at least 6 were expected"
    exit 1
fi
echo "  verdict    each equals the server's own, byte for byte; embed's connection was alive afterwards"
