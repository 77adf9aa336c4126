#!/usr/bin/env bash
#
# packaging/source.sh VERSION FOLDER: makes FOLDER/receivewal-VERSION.tar.gz of the repository's files (git's, where it is a clone) and
# of the Go modules that they need, in vendor/, so that it builds without a network. ./build.sh package calls this.
set -euo pipefail
version=$1 folder=$2
cd "$(dirname "${BASH_SOURCE[0]}")/.."
name=receivewal-$version
umask 022

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$folder" "$work/$name"

if [ -e .git ] && command -v git >/dev/null; then
    # A clone may belong to somebody else. What is deleted but not committed is not there to be packed.
    git -c safe.directory='*' ls-files -z | while IFS= read -rd '' file; do
        [ ! -e "$file" ] || printf '%s\0' "$file"
    done
else
    # The same files: all but what .gitignore names, and the modules.
    find . \( -path ./build -o -path ./vendor -o -path ./.git -o -path ./node_modules -o -name __pycache__ \) -prune -o \
        -type f ! -name '*.pyc' -print0
fi >"$work/files"
tar -c --null --files-from "$work/files" | tar -x -C "$work/$name"

if [ -d vendor ]; then
    cp -r vendor "$work/$name/"
else
    go mod vendor -o "$work/$name/vendor"
fi

# Names in order, no owners, one date, and modes that don't depend on the umask: the same files give the same bytes.
LC_ALL=C tar -c -C "$work" --sort=name --format=gnu --owner=0 --group=0 --numeric-owner --mode=a+rX,u+w,go-w \
    --mtime="@$SOURCE_DATE_EPOCH" "$name" | gzip -9n >"$folder/$name.tar.gz.new"
mv "$folder/$name.tar.gz.new" "$folder/$name.tar.gz"
echo "$folder/$name.tar.gz"
