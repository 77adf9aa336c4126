#!/usr/bin/env bash
#
# packaging/debian.sh VERSION FOLDER: makes a Debian package of FOLDER/receivewal-VERSION.tar.gz, in FOLDER, where the tarball is
# also unpacked and built. ./build.sh package calls this.
#
# One package has it all: the libraries, which a program may load by their names, are useless without each other, the program is
# small, and so is what a developer needs.
set -euo pipefail
version=$1
folder=$(cd "$2" && pwd)
package=libreceivewal
revision=$version-1
architecture=$(dpkg --print-architecture)
libdir=lib/$(dpkg-architecture -qDEB_HOST_MULTIARCH)
maintainer="libreceivewal authors <libreceivewal@example.org>"
umask 022

source=$folder/receivewal-$version
stage=$folder/debian/$package
rm -rf "$source" "$folder/debian"
tar -x -C "$folder" -f "$source.tar.gz" --no-same-owner
cd "$source"
DESTDIR=$stage LIBDIR=$libdir ./build.sh install /usr

strip --strip-unneeded --remove-section=.comment --remove-section=.note "$stage/usr/$libdir"/*.so.1 "$stage/usr/bin/receivewal"
chmod 644 "$stage/usr/$libdir"/*.so.1 # shared libraries are not executable there
gzip -9n "$stage"/usr/share/man/man?/*

# ---------------------------------------------------------------------------------------------- documents

doc=$stage/usr/share/doc/$package
install -d "$doc"
gzip -9nc CHANGELOG.md >"$doc/changelog.gz"
gzip -9nc >"$doc/changelog.Debian.gz" <<END
$package ($revision) unstable; urgency=medium

  * Release $version. changelog.gz tells what is new.

 -- $maintainer  $(LC_ALL=C date -ud "@$SOURCE_DATE_EPOCH" '+%a, %d %b %Y %T +0000')
END

# licence FILE: its text, but for the Apache licence, which every Debian system has.
licence() {
    sed '/^ *Apache License$/,/END OF TERMS AND CONDITIONS/c\
The Apache License 2.0, which is in /usr/share/common-licenses/Apache-2.0.' "$1"
}

# What is linked into the core: its Go modules, Go itself, and the LZ4 library.
{
    printf 'libreceivewal\n\n'
    licence LICENSE
    go list -deps -f '{{with .Module}}{{if .Version}}{{.Path}} {{.Version}}{{end}}{{end}}' ./capi | LC_ALL=C sort -u |
        while read -r module number; do
            printf '\n----\n\nlibreceivewal-core.so.1 contains parts of %s %s.\n\n' "$module" "$number"
            licence "vendor/$module/LICENSE"
        done
    printf '\n----\n\nlibreceivewal-core.so.1 contains the runtime and parts of the standard library of %s.\n\n' "$(go env GOVERSION)"
    licence "$(go env GOROOT)/LICENSE"
    printf '\n----\n\nlibreceivewal-core.so.1 contains the library of lz4 (its folder lib) %s.\n\n' "$(dpkg-query -Wf '${source:Version}' liblz4-dev)"
    cat /usr/share/doc/liblz4-dev/copyright
} >"$doc/copyright"

install -d "$stage/usr/share/lintian/overrides"
cat >"$stage/usr/share/lintian/overrides/$package" <<END
# One small package with both libraries, which only work together, and with what is needed to link them.
$package: package-name-doesnt-match-sonames
$package: link-to-shared-library-in-wrong-package
# Not made for an upload to Debian.
$package: initial-upload-closes-no-bugs
END

# ------------------------------------------------------------------------------------------------ control

control=$stage/DEBIAN
install -d "$control"
printf 'libreceivewal 1 %s (>= %s)\nlibreceivewal-core 1 %s (>= %s)\n' "$package" "$version" "$package" "$version" >"$control/shlibs"
echo "activate-noawait ldconfig" >"$control/triggers"
(cd "$stage" && find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum) >"$control/md5sums"

install -d "$folder/debian/debian" # dpkg-shlibdeps wants a source package
printf 'Source: receivewal\n\nPackage: %s\nArchitecture: any\n' "$package" >"$folder/debian/debian/control"
depends=$(cd "$folder/debian" && dpkg-shlibdeps -O -x"$package" -S"$package" -l"$package/usr/$libdir" \
    "$package/usr/bin/receivewal" "$package/usr/$libdir"/*.so.1)

cat >"$control/control" <<END
Package: $package
Version: $revision
Architecture: $architecture
Maintainer: $maintainer
Installed-Size: $(find "$stage/usr" -type f -printf '%s\n' | awk '{ kib += int(($1 + 1023) / 1024) } END { print kib }')
Depends: ${depends#shlibs:Depends=}
Suggests: libpq-dev, libssl-dev
Section: database
Priority: optional
Description: receive PostgreSQL's write-ahead log as a library
 A program that already has a replication connection to PostgreSQL hands it to
 libreceivewal, which receives the write-ahead log (WAL) into a directory of
 segment files, as pg_receivewal does, and gives the connection back, idle and
 usable. What it calls flushed has reached the disk.
 .
 This package has the library with its headers, pkg-config and CMake files,
 and the program receivewal, which takes the options of pg_receivewal.
END

dpkg-deb --root-owner-group -Zxz --threads-max=1 --build "$stage" "$folder/${package}_${revision}_$architecture.deb"
