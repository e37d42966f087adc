# SPDX-License-Identifier: Apache-2.0
"""Every hash and MAC of the protocol has a label of its own, and the specification lists them all."""

from __future__ import annotations

import re
from pathlib import Path

from bombyx.protocol.primitives import sha256, tagged_hash

LABEL = re.compile(r'b?"((?:bombyx [a-z ]+ v\d|message/bombyx-[a-z]+ request v\d))(?:\\x00)?"')


def test_a_label_divides_hashes_of_the_same_bytes() -> None:
    """WIRE-4: another label or no label is another hash; the zero byte keeps labels from running into what follows."""
    digests = {tagged_hash("a", b"x"), tagged_hash("b", b"x"), tagged_hash("ax"), sha256(b"ax"), sha256(b"x")}
    assert len(digests) == 5


def test_no_label_has_two_meanings_and_the_specification_lists_each(repo: Path) -> None:
    """WIRE-4: a label is written in one protocol file, or where two ends of one exchange use it."""
    listed = (repo / "docs" / "spec" / "README.md").read_text(encoding="utf-8")
    found: dict[str, set[str]] = {}
    for path in (repo / "src" / "bombyx" / "protocol").glob("**/*.py"):
        for label in LABEL.findall(re.sub(r'"""[\s\S]*?"""', "", path.read_text(encoding="utf-8"))):
            found.setdefault(label, set()).add(str(path))
    assert len(found) >= 10
    assert not {label: files for label, files in found.items() if len(files) > 1}
    assert not [label for label in found if f"`{label}`" not in listed]
