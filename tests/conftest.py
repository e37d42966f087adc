# SPDX-License-Identifier: Apache-2.0
"""What all tests share: Hypothesis profiles, and where vectors and captured evidence lie. No fakes live here."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

REPO = Path(__file__).resolve().parent.parent

# Deadlines are off everywhere: a shared machine's pauses are not failures, and pytest-timeout bounds the rest.
# HYPOTHESIS_PROFILE chooses; `ci` is repeatable from run to run, `thorough` is for an evening.
_SLOW_IS_FINE = [HealthCheck.too_slow]
settings.register_profile("dev", deadline=None, max_examples=60, suppress_health_check=_SLOW_IS_FINE)
settings.register_profile(
    "ci", deadline=None, max_examples=30, derandomize=True, database=None, suppress_health_check=_SLOW_IS_FINE
)
settings.register_profile(
    "thorough", deadline=None, max_examples=3000, suppress_health_check=_SLOW_IS_FINE, phases=list(Phase)
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def _captured_folder() -> Path:
    """Evidence captured from real hardware is too large and not ours to publish: it stays beside the repository."""
    named = os.environ.get("BOMBYX_CAPTURED")
    return Path(named) if named else REPO.parent / "shared" / "vectors"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs captured evidence where there is none."""
    folder = _captured_folder()
    if folder.is_dir():
        return
    absent = pytest.mark.skip(reason=f"no captured evidence: {folder.name}/ is not beside the repository")
    for item in items:
        if "captured" in item.keywords:
            item.add_marker(absent)


@pytest.fixture(scope="session")
def repo() -> Path:
    """The repository's top folder."""
    return REPO


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The vectors that belong to the repository."""
    return REPO / "tests" / "vectors"


@pytest.fixture(scope="session")
def captured() -> Path:
    """The folder of captured evidence. Mark the test `captured` too: its report then says what it stands on."""
    folder = _captured_folder()
    if not folder.is_dir():
        pytest.skip(f"no captured evidence: {folder.name}/ is not beside the repository")
    return folder


@pytest.fixture(autouse=True)
def _usual_recursion_limit() -> None:
    """An EVM in this process raises the limit to where nested JSON overflows the C stack; users do not have one."""
    sys.setrecursionlimit(1000)
