#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Build the worker's image twice and compare it, blob by blob; then start the program in it (no enclave, no network).
#
#   images/check.sh [FOLDER]        FOLDER is kept; default: a temporary one
set -eu
here=$(cd "$(dirname "$0")" && pwd -P)
folder=${1:-}
[ -n "$folder" ] || { folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; }

COMMIT=$(git -C "$here" rev-parse "${COMMIT:-HEAD}") # whatever is committed meanwhile
export COMMIT
for build in one two; do "$here/build.sh" "$folder/$build"; done
for build in one two; do (cd "$folder/$build/oci" && find . -type f -exec sha256sum {} + | LC_ALL=C sort -k 2) > "$folder/$build.sums"; done
if ! cmp -s "$folder/one.sums" "$folder/two.sums"; then
    diff "$folder/one.sums" "$folder/two.sums" >&2 || true
    echo "image: the two builds differ" >&2
    exit 1
fi
echo "the same $(wc -l < "$folder/one.sums") files twice, $(du -sh "$folder/one/oci" | cut -f1): $(cat "$folder/one/digest")"

umoci unpack --image "$folder/one/oci:worker" "$folder/unpacked"
chroot "$folder/unpacked/rootfs" /usr/bin/bombyx version
chroot "$folder/unpacked/rootfs" /usr/bin/bombyx worker --help > "$folder/help"
grep -q -- --enclave "$folder/help"
echo "bombyx starts in it"
