#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Build the worker's image, reproducibly and without an image registry: Debian packages by mmdebstrap, Python packages by pip
# from requirements.lock (every file by hash), bombyx from the committed tree, packed as an OCI layout by umoci.
#
#   images/build.sh OUT             build into the folder OUT; prints the manifest's digest
#   images/build.sh --lock OUT      the same, and write images/worker/packages.lock anew
#
# COMMIT names the commit; default: HEAD. Same commit, same locks, same digest. What may change it: the Debian archive has moved on from packages.lock (the build
# then stops and says so), or another major version of mmdebstrap, tar or umoci.
# Needs: mmdebstrap, umoci, git, tar, and a Python with pip. APT_SOURCES names a file of package sources; default: this machine's.
set -eu
here=$(cd "$(dirname "$0")" && pwd -P)
root=$(dirname "$here")
lock=0
[ "${1:-}" = --lock ] && { lock=1; shift; }
out=${1:?usage: images/build.sh [--lock] OUT}
suite=bookworm
python_version=3.11 # of that suite
python=${PYTHON:-$root/.venv/bin/python}
sources=${APT_SOURCES:-/etc/apt/sources.list.d/debian.sources}
[ -e "$sources" ] || sources=/etc/apt/sources.list

fail() { printf 'image: %s\n' "$*" >&2; exit 1; }
say() { printf 'image: %s\n' "$*" >&2; }
for tool in mmdebstrap umoci git tar; do
    command -v "$tool" >/dev/null 2>&1 || fail "$tool is missing. On Debian: apt-get install mmdebstrap umoci git tar"
done

commit=$(git -C "$root" rev-parse "${COMMIT:-HEAD}")
SOURCE_DATE_EPOCH=$(git -C "$root" log -1 --format=%ct "$commit")
export SOURCE_DATE_EPOCH
created=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
umask 022
mkdir -p "$out"
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT

# 1. Debian
say "Debian $suite"
include=$(grep -v '^#' "$here/worker/packages.txt" | paste -sd,)
mmdebstrap --quiet --variant=minbase --include="$include" \
    --aptopt='Apt::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook='chroot "$1" dpkg-query -W -f "\${Package}=\${Version}\n" | LC_ALL=C sort > '"$stage/packages" \
    --customize-hook='rm -rf "$1"/var/cache/apt "$1"/var/lib/apt/lists "$1"/var/log "$1"/etc/apt/sources.list.d "$1"/etc/apt/sources.list' \
    "$suite" "$stage/debian.tar" - < "$sources"
if [ "$lock" = 1 ]; then
    { printf '# What packages.txt resolved to. Written by: images/build.sh --lock\n'; cat "$stage/packages"; } > "$here/worker/packages.lock"
fi
grep -v '^#' "$here/worker/packages.lock" | cmp -s - "$stage/packages" || {
    grep -v '^#' "$here/worker/packages.lock" | diff - "$stage/packages" >&2 || true
    fail "the archive gives other versions than packages.lock: use a snapshot of it (APT_SOURCES), or --lock"
}

# 2. Python packages and bombyx itself
say "Python packages"
app=$stage/app/usr/lib/bombyx
mkdir -p "$app"
for lockfile in requirements.lock requirements-model.lock pyproject.toml; do git -C "$root" show "$commit:$lockfile" > "$stage/$lockfile"; done
"$python" -m pip install --quiet --no-input --disable-pip-version-check --no-compile --no-deps --require-hashes \
    --only-binary=:all: --python-version "$python_version" --implementation cp --platform manylinux_2_28_x86_64 \
    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_36_x86_64 --target "$app" \
    -r "$stage/requirements.lock" -r "$stage/requirements-model.lock"
rm -rf "$app/bin"
find "$app" -name __pycache__ -type d -prune -exec rm -rf {} +
find "$app" \( -name RECORD -o -name direct_url.json -o -name REQUESTED \) -path '*.dist-info/*' -delete
git -C "$root" archive "$commit" src/bombyx | tar -x -C "$stage"
cp -r "$stage/src/bombyx" "$app/bombyx"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$stage/pyproject.toml" | head -1)
mkdir "$app/bombyx-$version.dist-info" "$stage/app/usr/bin" "$stage/app/var" "$stage/app/var/lib" "$stage/app/var/lib/bombyx"
printf 'Metadata-Version: 2.1\nName: bombyx\nVersion: %s\n' "$version" > "$app/bombyx-$version.dist-info/METADATA"
printf '#!/bin/sh\nPYTHONPATH=/usr/lib/bombyx PYTHONDONTWRITEBYTECODE=1 exec /usr/bin/python3 -s -m bombyx "$@"\n' > "$stage/app/usr/bin/bombyx"
chmod 755 "$stage/app/usr/bin/bombyx"
find "$stage/app" -type d -exec chmod 755 {} +
find "$stage/app" -type f ! -perm -u=x -exec chmod 644 {} +
tar --create --file "$stage/app.tar" --format=pax --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 \
    --numeric-owner --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime -C "$stage/app" .

# 3. OCI
say "OCI layout"
layout=$out/oci
rm -rf "$layout"
umoci init --layout "$layout"
umoci new --image "$layout:worker"
for layer in debian app; do
    umoci raw add-layer --image "$layout:worker" --history.created "$created" --history.created_by "images/build.sh: $layer" \
        "$stage/$layer.tar"
done
umoci config --image "$layout:worker" --created "$created" --history.created "$created" --history.created_by "images/build.sh" \
    --architecture amd64 --os linux --config.entrypoint /usr/bin/bombyx --config.env "PATH=/usr/bin:/bin" \
    --config.env "BOMBYX_HOME=/var/lib/bombyx" --config.workingdir /
umoci gc --layout "$layout"
digest=$(sed -n 's/.*"manifests":\[{[^}]*"digest":"\(sha256:[0-9a-f]*\)".*/\1/p' "$layout/index.json")
[ -n "$digest" ] || fail "no manifest in $layout/index.json"
printf '%s\n' "$digest" | tee "$out/digest"
