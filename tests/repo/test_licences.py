# SPDX-License-Identifier: Apache-2.0
"""What bombyx runs on may be passed on under Apache-2.0: no dependency takes that freedom away."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest

# Bound to their own terms when passed on (GPL, AGPL), or not open source at all (BUSL, SSPL, Elastic, Commons Clause).
REFUSED = re.compile(
    r"\bA?GPL|GNU (?:Affero )?General Public|\bBUSL|Business Source|\bSSPL|Server Side Public|Elastic License"
    r"|Commons Clause|Non-?Commercial|CC[- ]BY[- ]NC",
    re.IGNORECASE,
)
MILD = re.compile(r"\bLGPL|Lesser General Public", re.IGNORECASE)

# Their metadata names no licence; what their own licence file says is noted here.
READ_BY_HAND = {"aiofastnet": "MIT", "picows": "MIT"}


def _locked(lock: Path) -> list[str]:
    return re.findall(r"^([A-Za-z0-9_.-]+)==", lock.read_text(encoding="utf-8"), flags=re.MULTILINE)


def _stated(package: Distribution) -> str:
    """Every word of the package's metadata about its licence."""
    metadata = package.metadata
    words = [*metadata.get_all("License-Expression", []), *metadata.get_all("License", [])]
    words += [line for line in metadata.get_all("Classifier", []) if line.startswith("License ::")]
    return "; ".join(word.strip().splitlines()[0] for word in words if word.strip() and word.strip() != "UNKNOWN")


def _installed(lock: Path) -> list[Distribution]:
    found = []
    for name in _locked(lock):
        try:
            found.append(distribution(name))
        except PackageNotFoundError:  # locked for another platform or another Python
            continue
    return found


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-model.lock", "requirements-contracts.lock"])
def test_every_runtime_dependency_may_be_passed_on(lock: str, repo: Path) -> None:
    """Each states a licence, and none is GPL, AGPL, BUSL or closer."""
    packages = _installed(repo / lock)
    assert packages, f"nothing of {lock} is installed here"
    unstated, refused = [], []
    for package in packages:
        stated = READ_BY_HAND.get(package.name.lower()) or _stated(package)
        if not stated:
            unstated.append(package.name)
        elif REFUSED.search(MILD.sub("", stated)):
            refused.append(f"{package.name}: {stated}")
    assert not refused, f"licences that bind: {refused}"
    assert not unstated, f"no licence in the metadata; read their files and note them in READ_BY_HAND: {unstated}"


def test_the_lock_files_belong_together(repo: Path) -> None:
    """What is tested is what runs: the development lock holds each runtime package in the same version."""
    pin = re.compile(r"^([A-Za-z0-9_.-]+==[^ \\;]+)", flags=re.MULTILINE)
    runtime = set(pin.findall((repo / "requirements.lock").read_text(encoding="utf-8")))
    development = set(pin.findall((repo / "requirements-dev.lock").read_text(encoding="utf-8")))
    assert runtime <= development, f"differ: {sorted(runtime - development)}; run `make lock`"


def test_every_declared_dependency_is_locked(repo: Path) -> None:
    """The lock is as new as pyproject.toml."""
    project = tomllib.loads((repo / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    names = {re.split(r"[<>=!~\[; ]", line, maxsplit=1)[0].lower() for line in declared}
    locked = {name.lower() for name in _locked(repo / "requirements.lock")}
    assert names <= locked, f"not in requirements.lock: {sorted(names - locked)}; run `make lock`"
