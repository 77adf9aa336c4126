#!/usr/bin/env bash
#
# ./build.sh               builds into build/: lib/, include/, bin/receivewal
# ./build.sh demo          shows it at work against a throwaway PostgreSQL, and checks every byte received
# ./build.sh test          everything that must hold, with real servers; the last line is "N passed, N failed"
# ./build.sh test ARGS     only "go test ARGS", for example: ./build.sh test ./tests/e2e -run Endpos
# ./build.sh bench [WHAT]  measures beside pg_receivewal and what the machine allows: bench/README.md says what and how
# ./build.sh soak [ROUNDS] the long forms of the tests on real servers: kill -9, lost servers, a thousand streams; 1 round is 200 kills
# ./build.sh support       all tests, and then the README's table of servers from what ran
# ./build.sh fuzz [TIME]   every fuzz target for TIME each, 10m unless told
# ./build.sh install DIR   installs into DIR, for example /usr/local (DESTDIR is honoured; LIBDIR is lib unless told)
# ./build.sh package       makes a source tarball and, of what is in it, a Debian package: both in build/package
# ./build.sh wheel         makes build/receivewal-VERSION-py3-none-linux_ARCH.whl, the Python package with the libraries inside
# ./build.sh mutate [TEXT] takes the mechanisms of docs/durability.md out, one at a time: a test must fail; TEXT picks some of them
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
# The date that what is made carries: the newest release's, unless told. So the same source gives the same bytes at any time.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(date -ud "$(sed -n 's/^## .* (\(.*\))$/\1/p;T;q' CHANGELOG.md)" +%s)}
export SOURCE_DATE_EPOCH
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
    /usr/lib/*/liblz4.a:liblz4-dev
)
needed_to_demo=(
    "$pg_bin/postgres:postgresql-15"
    "$pg_bin/pg_receivewal:postgresql-client-15"
)
needed_to_package=(
    dpkg-deb:dpkg
    dpkg-shlibdeps:dpkg-dev
    strip:binutils
)
needed_to_bench=(
    strace:strace
    lz4:lz4
    zstd:zstd
)
needed_to_test=(
    g++:g++
    clang:clang
    readelf:binutils
    valgrind:valgrind
    shellcheck:shellcheck
    git:git
    pkg-config:pkg-config
    cmake:cmake
    make:make
    lintian:lintian
    debootstrap:debootstrap
    mandoc:mandoc
    groff:groff
    man:man-db
    npm:npm
    lz4:lz4
    zstd:zstd
    /sbin/mkfs.ext4:e2fsprogs
    /sbin/fsfreeze:util-linux
    /usr/include/zlib.h:zlib1g-dev
    /usr/bin/python3:python3
    /usr/lib/python3/dist-packages/psycopg2:python3-psycopg2
    /usr/lib/python3/dist-packages/psycopg:python3-psycopg
    /usr/lib/python3/dist-packages/tqdm:python3-tqdm
    /usr/lib/python3*/ensurepip:python3-venv
    /usr/bin/mypy:mypy
)

# need COMMAND-OR-FILE:PACKAGE ...: installs the packages of those that are missing, or says which they are.
need() {
    local item packages=()
    command -v go >/dev/null || die "Go is missing (1.26 or newer, https://go.dev/dl/)"
    for item in "$@"; do
        command -v "${item%%:*}" >/dev/null || compgen -G "${item%%:*}" >/dev/null || packages+=("${item##*:}")
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
    # Go's own build ID depends on the folder, by way of the flags; the linker's is of what it has linked.
    CGO_ENABLED=1 CC=$CC CGO_CFLAGS="-O2 -g -DHEADER_HASH=$(header_hash)" \
        go build -buildmode=c-shared -trimpath -overlay "$overlay" \
        -ldflags "-buildid= -B none -X runtime.godebugDefault=asyncpreemptoff=1 -extldflags '-Wl,--build-id=sha1 -Wl,-soname,libreceivewal-core.so.1 \"-Wl,--version-script=$PWD/capi/core.map\"'" \
        -o build/lib/libreceivewal-core.so.1 ./capi
    rm -f build/lib/libreceivewal-core.so.h # Go writes a header; the core has no public one
    chmod 755 build/lib/libreceivewal-core.so.1
}

# build_program OUTPUT LIBDIR: the program, which finds the libraries in ../LIBDIR, or, with "", where the system has its own.
build_program() {
    compile "$1" examples/receivewal.c examples/health.[ch] include/*.h -- \
        -Iinclude "-I$(pg_config --includedir)" examples/receivewal.c examples/health.c -Wl,-z,now -Wl,-z,relro \
        -Lbuild/lib -lreceivewal "-L$(pg_config --libdir)" -lpq -lssl -lcrypto -pthread ${2:+"-Wl,-rpath,\$ORIGIN/../$2"}
}

# What bench/ runs: hosts of the library and the programs that show the machine's limits.
build_bench() {
    local host
    for host in bench/host/*.c; do
        compile "build/bench/$(basename "$host" .c)" "$host" include/*.h -- \
            -D_GNU_SOURCE -Iinclude "-I$(pg_config --includedir)" "$host" \
            -Lbuild/lib -lreceivewal "-L$(pg_config --libdir)" -lpq "-Wl,-rpath,\$ORIGIN/../lib"
    done
    compile build/bench/limit bench/limit/limit.c -- \
        -D_GNU_SOURCE "-I$(pg_config --includedir)" bench/limit/limit.c "-L$(pg_config --libdir)" -lpq -pthread
    go build -o build/bench/bench ./bench
}

build() {
    need "${needed_to_build[@]}"
    build_headers
    build_core
    build_loader
    build_program build/bin/receivewal lib
}

# ------------------------------------------------------------------------------------- install and package

install_to() {
    local prefix=${1%/} libdir=${LIBDIR:-lib} up program=build/bin/receivewal root file
    [[ $1 = /* ]] || die "install wants an absolute path, for example: ./build.sh install /usr/local"
    [[ $libdir != /* && $libdir != *..* ]] || die "LIBDIR is a folder below the one to install into, for example: lib64"
    build
    if [ "$prefix" = /usr ]; then
        program=build/install/receivewal
        build_program "$program" ""
    elif [ "$libdir" != lib ]; then
        program=build/install/receivewal
        build_program "$program" "$libdir"
    fi
    go run ./packaging/manual build/bin/receivewal include/receivewal.h build/share

    root=${DESTDIR:-}$prefix
    install -d "$root"/{"$libdir"/{pkgconfig,cmake/receivewal},include,bin,share/{man/{man1,man3},bash-completion/completions}}
    install -m 755 build/lib/libreceivewal.so.1 build/lib/libreceivewal-core.so.1 "$root/$libdir/"
    ln -sf libreceivewal.so.1 "$root/$libdir/libreceivewal.so"
    install -m 644 include/*.h "$root/include/"
    install -m 755 "$program" "$root/bin/receivewal"
    for file in man/man1/receivewal.1 man/man3/receivewal.3 bash-completion/completions/receivewal; do
        install -m 644 "build/share/$file" "$root/share/$file"
    done
    up=$(realpath -ms --relative-to="/$libdir/pkgconfig" /)
    for file in pkgconfig/receivewal.pc cmake/receivewal/receivewalConfig{,Version}.cmake; do
        sed -e "s|@VERSION@|$version|; s|@UP@|$up|" "packaging/templates/${file##*/}" >"$root/$libdir/$file"
        chmod 644 "$root/$libdir/$file"
    done
    # So that programs find the library in /usr/local/lib and the like.
    if [ -z "${DESTDIR:-}" ] && [ "$(id -u)" = 0 ]; then
        PATH=$PATH:/usr/sbin:/sbin ldconfig
    fi
    echo "installed libreceivewal $version in $root"
}

package() {
    need "${needed_to_build[@]}" "${needed_to_package[@]}"
    packaging/source.sh "$version" build/package
    packaging/debian.sh "$version" build/package
}

build_wheel() {
    need /usr/bin/python3:python3
    build
    /usr/bin/python3 python/wheel.py "$version" build/lib build
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
        check shellcheck shellcheck build.sh .ci/run tests/*.sh packaging/*.sh capi/*.sh
        go_tests -race ./segment/... ./stream/...
        go_tests -count=1 ./tests/... ./packaging/...
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

support() {
    rm -f build/record.tsv
    RECEIVEWAL_RECORD=$PWD/build/record.tsv test_all "$@"
    tests/support.sh build/record.tsv
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
bench)
    need "${needed_to_build[@]}" "${needed_to_demo[@]}" "${needed_to_bench[@]}"
    build
    build_bench
    exec build/bench/bench "$@"
    ;;
soak) soak "$@" ;;
support) support "$@" ;;
fuzz) fuzz "$@" ;;
mutate)
    need "${needed_to_build[@]}" "${needed_to_demo[@]}" "${needed_to_test[@]}"
    tests/servers.sh all
    exec go run ./tests/mutation "$@"
    ;;
install)
    [ $# -eq 1 ] || die "usage: ./build.sh install DIR"
    install_to "$1"
    ;;
package) package ;;
wheel)
    [ $# -eq 0 ] || die "usage: ./build.sh wheel"
    build_wheel
    ;;
clean) rm -rf build ;;
help | -h | --help) sed -n '3,/^[^#]/s/^# \{0,1\}//p' build.sh ;;
*) die "unknown command $command; try ./build.sh help" ;;
esac
