#!/usr/bin/env bash
#
# ./build.sh               builds into build/: lib/, include/, bin/receivewal
# ./build.sh demo          shows it at work against a throwaway PostgreSQL, and checks every byte received
# ./build.sh test          everything that must hold, with real servers; the last line is "N passed, N failed"
# ./build.sh test ARGS     only "go test ARGS", for example: ./build.sh test ./tests/e2e -run Endpos
# ./build.sh soak [ROUNDS] the long forms of the tests on real servers: kill -9, lost servers, a thousand streams; 1 round is 200 kills
# ./build.sh fuzz [TIME]   every fuzz target for TIME each, 10m unless told
# ./build.sh install DIR   installs into DIR, for example /usr/local (DESTDIR is honoured)
# ./build.sh clean         removes build/
# ./build.sh help          prints this
#
# Needed: Linux, Go and a C compiler. What else a command needs (libpq, PostgreSQL 15, …) is named if it is missing, and as
# root on Debian or Ubuntu installed. CC and CFLAGS are honoured.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

CC=${CC:-gcc}
version=$(sed -n 's/^#define RECEIVEWAL_VERSION "\(.*\)"$/\1/p' include/receivewal.h) # the one place that has it
overlay_go=go1.26.8 # a Go release that capi/runtime-overlay.sh fits
pg_bin=/usr/lib/postgresql/15/bin
staticcheck=honnef.co/go/tools/cmd/staticcheck@v0.8.2
export GOFLAGS="${GOFLAGS:-} -buildvcs=false" # a clone may belong to somebody else

die() {
    echo "build.sh: $*" >&2
    exit 1
}

# ------------------------------------------------------------------------------------------ what is needed

# A command or a file, and the Debian package that brings it.
needed_to_build=(
    gcc:gcc
    /usr/include/stdio.h:libc6-dev
    /etc/ssl/certs/ca-certificates.crt:ca-certificates
    pg_config:libpq-dev
    /usr/include/openssl/ssl.h:libssl-dev
)
needed_to_demo=(
    "$pg_bin/postgres:postgresql-15"
    "$pg_bin/pg_receivewal:postgresql-client-15"
)
needed_to_test=(
    g++:g++
    clang:clang
    readelf:binutils
    valgrind:valgrind
    shellcheck:shellcheck
    pkg-config:pkg-config
    npm:npm
    lz4:lz4
    zstd:zstd
    /sbin/mkfs.ext4:e2fsprogs
    /sbin/fsfreeze:util-linux
    /usr/bin/python3:python3
    /usr/lib/python3/dist-packages/psycopg2:python3-psycopg2
)

# need COMMAND-OR-FILE:PACKAGE ...: installs the packages of those that are missing, or says which they are.
need() {
    local item packages=()
    command -v go >/dev/null || die "Go is missing (1.26 or newer, https://go.dev/dl/)"
    for item in "$@"; do
        command -v "${item%%:*}" >/dev/null || [ -e "${item%%:*}" ] || packages+=("${item##*:}")
    done
    [ ${#packages[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        die "missing: ${packages[*]} (Debian packages; as root this script installs them)"
    fi
    echo "installing ${packages[*]}"
    install_packages "${packages[@]}"
}

install_packages() {
    local log no_cluster=/etc/postgresql-common/createcluster.d/libreceivewal.conf
    log=$(mktemp)
    # Should this install PostgreSQL: no server is to be set up and started for the machine.
    mkdir -p "${no_cluster%/*}"
    echo "create_main_cluster = false" >"$no_cluster"
    export DEBIAN_FRONTEND=noninteractive
    if ! apt-get install -y --no-install-recommends "$@" >"$log" 2>&1 </dev/null; then
        # The package lists may be missing or old.
        if ! { apt-get update && apt-get install -y --no-install-recommends "$@"; } >"$log" 2>&1 </dev/null; then
            cat "$log" >&2
            rm -f "$no_cluster" "$log"
            die "cannot install $*"
        fi
    fi
    rm -f "$no_cluster" "$log"
}

# --------------------------------------------------------------------------------------------------- build

c_flags=(-std=c11 -O2 -g -Wall -Wextra -Werror -D_FORTIFY_SOURCE=2 -fstack-protector-strong "-ffile-prefix-map=$PWD=.")
read -r -a more_c_flags <<<"${CFLAGS:-}"

# compile OUTPUT INPUT... -- ARGUMENTS: runs the compiler if the output is missing, or the inputs or the command have changed.
compile() {
    local output=$1 inputs=() stamp stamp_file=build/stamps/${1##*/}
    shift
    while [ "$1" != -- ]; do
        inputs+=("$1")
        shift
    done
    shift
    stamp=$({ printf '%s\n' "$CC" "${c_flags[@]}" "${more_c_flags[@]}" "$@"; cat "${inputs[@]}"; } | sha256sum)
    if [ -e "$output" ] && [ "$(cat "$stamp_file" 2>/dev/null)" = "$stamp" ]; then
        return
    fi
    echo "  $output"
    mkdir -p "${output%/*}" build/stamps
    "$CC" "${c_flags[@]}" "${more_c_flags[@]}" "$@" -o "$output.new"
    mv "$output.new" "$output" # a running program keeps its old file
    echo "$stamp" >"$stamp_file"
}

build_headers() {
    mkdir -p build/include
    cp -u include/*.h build/include/
}

# The loader and the core must have been compiled with the same headers; each call of the core compares this hash. It also makes Go
# compile anew when they, or the version script, change: its build cache doesn't look at them.
header_hash() {
    cat include/*.h loader/core.h capi/core.map | sha256sum | cut -c 1-16
}

# The library that hosts link: plain C.
build_loader() {
    compile build/lib/libreceivewal.so.1 loader/* include/*.h -- \
        -fPIC -shared -fvisibility=hidden "-DHEADER_HASH=$(header_hash)" -Iinclude loader/*.c \
        -Wl,-soname,libreceivewal.so.1 -Wl,--version-script=loader/libreceivewal.map \
        -Wl,-z,defs -Wl,-z,nodelete -Wl,-z,now -Wl,-z,relro -pthread -ldl
    ln -sf libreceivewal.so.1 build/lib/libreceivewal.so
}

# The Go core that it loads. A guest in its host's process: no signals to preempt goroutines, and a runtime overlay whose script
# says what else.
build_core() {
    local overlay
    mkdir -p build/lib
    # A Go whose runtime is not as the overlay expects: then the release that it was written for, which go fetches.
    if ! overlay=$(capi/runtime-overlay.sh build/overlay); then
        export GOTOOLCHAIN=$overlay_go
        overlay=$(capi/runtime-overlay.sh build/overlay)
    fi
    CGO_ENABLED=1 CC=$CC CGO_CFLAGS="-O2 -g -DHEADER_HASH=$(header_hash)" \
        go build -buildmode=c-shared -trimpath -overlay "$overlay" \
        -ldflags "-X runtime.godebugDefault=asyncpreemptoff=1 -extldflags '-Wl,-soname,libreceivewal-core.so.1 -Wl,--version-script=$PWD/capi/core.map'" \
        -o build/lib/libreceivewal-core.so.1 ./capi
    rm -f build/lib/libreceivewal-core.so.h # Go writes a header; the core has no public one
    chmod 755 build/lib/libreceivewal-core.so.1
}

build_program() {
    compile build/bin/receivewal examples/receivewal.c examples/health.[ch] include/*.h -- \
        -Iinclude "-I$(pg_config --includedir)" examples/receivewal.c examples/health.c \
        -Lbuild/lib -lreceivewal "-L$(pg_config --libdir)" -lpq -lssl -lcrypto -pthread "-Wl,-rpath,\$ORIGIN/../lib"
}

build() {
    need "${needed_to_build[@]}"
    build_headers
    build_core
    build_loader
    build_program
}

install_to() {
    local prefix=${1%/} root=${DESTDIR:-}
    [[ $prefix = /* ]] || die "install wants an absolute path, for example: ./build.sh install /usr/local"
    build
    install -d "$root$prefix"/{lib/pkgconfig,include,bin}
    install -m 755 build/lib/libreceivewal.so.1 build/lib/libreceivewal-core.so.1 "$root$prefix/lib/"
    ln -sf libreceivewal.so.1 "$root$prefix/lib/libreceivewal.so"
    install -m 644 include/*.h "$root$prefix/include/"
    install -m 755 build/bin/receivewal "$root$prefix/bin/"
    cat >"$root$prefix/lib/pkgconfig/receivewal.pc" <<-PC
		prefix=$prefix
		libdir=\${prefix}/lib
		includedir=\${prefix}/include

		Name: receivewal
		Description: Receive PostgreSQL's write-ahead log over a connection that the program already holds
		Version: $version
		Libs: -L\${libdir} -lreceivewal
		Cflags: -I\${includedir}
	PC
    echo "installed libreceivewal $version in $root$prefix"
}

# ---------------------------------------------------------------------------------------------------- test

passed=0
failed=0

# check NAME COMMAND...: one test that passes if the command succeeds.
check() {
    local name=$1 output
    shift
    if output=$("$@" 2>&1); then
        passed=$((passed + 1))
        echo "ok    $name"
    else
        failed=$((failed + 1))
        printf 'FAIL  %s\n%s\n' "$name" "$output"
    fi
}

# go_tests ARGUMENTS: runs go test and counts every test in it.
go_tests() {
    local counts p f
    counts=$(mktemp)
    go test -json -p 2 -parallel 4 -timeout 40m "$@" 2>&1 | build/test/count "$counts" || true
    read -r p f <"$counts" || { p=0; f=1; }
    rm -f "$counts"
    passed=$((passed + p))
    failed=$((failed + f))
}

gofmt_is_clean() {
    local files
    files=$(find . -path ./build -prune -o -name '*.go' -print0 | xargs -0 gofmt -l)
    [ -z "$files" ] || { echo "not formatted: $files"; false; }
}

test_all() {
    need "${needed_to_build[@]}" "${needed_to_demo[@]}" "${needed_to_test[@]}"
    go build -o build/test/count ./tests/count
    if [ $# -gt 0 ]; then
        build
        go_tests -count=1 "$@"
    else
        check build ./build.sh build
        check "servers of every version" tests/servers.sh all
        check gofmt gofmt_is_clean
        check "go vet" go vet ./...
        check staticcheck go run "$staticcheck" ./...
        check shellcheck shellcheck build.sh .ci/run tests/*.sh
        go_tests -race ./segment/... ./stream/...
        go_tests -count=1 ./tests/...
    fi
    echo "$passed passed, $failed failed"
    [ "$failed" = 0 ] && [ "$passed" -gt 0 ]
}

# What takes hours rather than minutes. The tests read the environment; RECEIVEWAL_SEED=N has the choices of an earlier run again.
soak() {
    need "${needed_to_build[@]}" "${needed_to_demo[@]}" "${needed_to_test[@]}"
    build
    tests/servers.sh all
    RECEIVEWAL_SOAK=${1:-1} RECEIVEWAL_LONG=1 go test -v -count=1 -p 1 -timeout 0 ./tests/archive ./tests/e2e ./tests/guest
}

fuzz() {
    local package target
    for package in ./segment ./stream; do
        for target in $(go test -list '^Fuzz' "$package" | grep '^Fuzz'); do
            echo "$package $target"
            go test -run '^$' -fuzz "^$target\$" -fuzztime "${1:-10m}" "$package"
        done
    done
}

# ---------------------------------------------------------------------------------------------------- main

command=${1:-build}
[ $# -eq 0 ] || shift
case $command in
build) build ;;
demo)
    need "${needed_to_build[@]}" "${needed_to_demo[@]}"
    build
    exec tests/demo.sh
    ;;
test) test_all "$@" ;;
soak) soak "$@" ;;
fuzz) fuzz "$@" ;;
install)
    [ $# -eq 1 ] || die "usage: ./build.sh install DIR"
    install_to "$1"
    ;;
clean) rm -rf build ;;
help | -h | --help) sed -n '3,/^[^#]/s/^# \{0,1\}//p' build.sh ;;
*) die "unknown command $command; try ./build.sh help" ;;
esac
