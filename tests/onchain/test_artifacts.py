# SPDX-License-Identifier: Apache-2.0
"""What is shipped is what the sources say, and what it costs is written down."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from tests.onchain.conftest import ARTIFACTS

SOURCES = ARTIFACTS.parents[2] / "contracts"


def test_artifacts_are_what_the_sources_give() -> None:
    """Same compiler, same source, same bytes. If this fails: python scripts/compile_contracts.py."""
    script = runpy.run_path(str(SOURCES.parent / "scripts" / "compile_contracts.py"))
    for source in sorted(SOURCES.glob("*.vy")):
        shipped = (ARTIFACTS / f"{source.stem}.json").read_text(encoding="utf-8")
        assert script["as_text"](script["compiled"](source)) == shipped, source.name


@pytest.mark.parametrize("source", sorted(SOURCES.glob("**/*.vy*")), ids=lambda path: path.name)
def test_every_contract_is_short_and_says_what_it_risks(source: Path) -> None:
    """Under 300 lines, licence, pinned compiler; whatever is deployed names the risks it accepts."""
    text = source.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 300
    assert "# SPDX-License-Identifier: Apache-2.0" in text
    assert text.startswith("# pragma version 0.4.3\n")
    if source.parent == SOURCES:
        assert "@custom:security" in text
        assert re.search(r"@title .+", text)
        # EIP-712 declarations stay on one line, as the standard hashes them
        assert all(len(line) <= 120 or line.startswith('    "') for line in text.splitlines())
