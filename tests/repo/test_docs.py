# SPDX-License-Identifier: Apache-2.0
"""The documents can be followed: links lead somewhere, commands exist. The work is done by scripts/check_docs.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def check_docs(repo: Path) -> ModuleType:
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location("check_docs", repo / "scripts" / "check_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_link_anchor_and_command_in_the_documents_is_good(check_docs: ModuleType, repo: Path) -> None:
    """Nothing a reader follows leads nowhere."""
    assert check_docs.problems(repo) == []


def test_the_check_sees_what_is_broken(check_docs: ModuleType, tmp_path: Path) -> None:
    """A check that finds nothing wrong in a wrong page is worth nothing."""
    (tmp_path / "Makefile").write_text("run:\n\t@true\n", encoding="utf-8")
    (tmp_path / "b.md").write_text("# One *fine* heading, `code`\n\n## Twice\n\n## Twice\n", encoding="utf-8")
    (tmp_path / "a.md").write_text(
        "[good](b.md) [good](b.md#one-fine-heading-code) [good](b.md#twice-1) [gone](c.md) [no anchor](b.md#three)\n"
        "`[not a link](nowhere.md)`\n\n```sh\nmake run\nmake nothing\n```\n\n```python\nx = (\n```\n",
        encoding="utf-8",
    )
    found = check_docs.problems(tmp_path)
    assert [problem.split(": ", 1)[0] for problem in found] == ["a.md:1", "a.md:1", "a.md:6", "a.md:10"]
    assert "c.md" in found[0]
    assert "#three" in found[1]
    assert "make nothing" in found[2]
    assert "python" in found[3]
