# SPDX-License-Identifier: Apache-2.0
"""The house keeps its own rules: headers, names, floors, and nothing of one machine in it."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

SPDX = "# SPDX-License-Identifier: Apache-2.0"
SHAPELESS = {"utils", "util", "common", "helpers", "helper", "misc"}

# Written in pieces, so that this file does not name what it forbids.
MACHINE_PATHS = re.compile(
    r"(?<![\w.~-])/(?:"
    + "|".join(["wo" + "rk", "ro" + "ot", "home/" + r"\w+", "opt/" + "(?:pypi|wheels)", "tmp/" + "d"])
    + r")/"
)
REGISTRIES = re.compile(
    "|".join(
        re.escape(host)
        for host in (
            "pypi" + ".org",
            "pythonhosted" + ".org",
            "registry.npmjs" + ".org",
            "deb.debian" + ".org",
            "npmmirror" + ".com",
        )
    )
)


def _sources(files: list[Path], repo: Path) -> list[Path]:
    return [path for path in files if path.suffix == ".py" and path.is_relative_to(repo / "src")]


def test_every_python_file_names_its_licence(texts: dict[Path, str], repo: Path) -> None:
    """The licence stands on the first line."""
    without = [
        str(path.relative_to(repo))
        for path, text in texts.items()
        if path.suffix == ".py" and not text.removeprefix("#!/usr/bin/env python3\n").startswith(SPDX)
    ]
    assert not without, f"no {SPDX!r} on the first line of: {without}"


def test_every_source_file_says_what_it_is(files: list[Path], repo: Path) -> None:
    """A file's first words are its meaning."""
    silent = [
        str(path.relative_to(repo))
        for path in _sources(files, repo)
        if ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) is None
    ]
    assert not silent, f"no docstring at the top of: {silent}"


def test_no_file_is_named_for_everything(files: list[Path], repo: Path) -> None:
    """A file has one noun."""
    shapeless = [
        str(path.relative_to(repo)) for path in files if path.stem in SHAPELESS and path.suffix in {".py", ".vy"}
    ]
    assert not shapeless, f"name these for what they hold: {shapeless}"


@pytest.mark.parametrize(("what", "pattern"), [("a machine's path", MACHINE_PATHS), ("a registry's host", REGISTRIES)])
def test_nothing_of_one_machine_is_kept(
    what: str, pattern: re.Pattern[str], texts: dict[Path, str], repo: Path
) -> None:
    """A clone works anywhere, through any mirror."""
    found = [
        f"{path.relative_to(repo)}:{number}: {match.group()}"
        for path, text in texts.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if (match := pattern.search(line))
    ]
    assert not found, f"{what} in tracked files: {found}"


def test_nothing_is_left_unfinished(texts: dict[Path, str], repo: Path) -> None:
    """What is not built is absent, not promised."""
    marks = re.compile("|".join([r"\bTO" + r"DO\b", r"\bFIX" + r"ME\b", "NotImplemented" + "Error"]))
    found = [
        f"{path.relative_to(repo)}:{number}"
        for path, text in texts.items()
        if path.suffix in {".py", ".vy", ".sh"}
        for number, line in enumerate(text.splitlines(), start=1)
        if marks.search(line)
    ]
    assert not found, f"unfinished: {found}"


def test_the_floors_hold(repo: Path) -> None:
    """Imports point downwards only, and the protocol is pure."""
    tool = Path(sys.executable).with_name("lint-imports")
    if not tool.exists():
        pytest.skip("import-linter is not installed")
    ran = subprocess.run([tool, "--no-cache"], cwd=repo, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_no_two_messages_share_a_tag() -> None:
    """WIRE-1: no signed message can be read as another."""
    from bombyx import protocol
    from bombyx.protocol.wire.codec import Message

    for module in pkgutil.walk_packages(protocol.__path__, "bombyx.protocol."):
        importlib.import_module(module.name)
    holders: dict[int, list[str]] = defaultdict(list)
    waiting = list(Message.__subclasses__())
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        # slotted dataclasses leave their unslotted first draft among the subclasses; only the one a module shows counts
        if kind.__module__.startswith("bombyx.") and getattr(sys.modules[kind.__module__], kind.__name__, None) is kind:
            holders[kind.TAG].append(f"{kind.__module__}.{kind.__name__}")
    assert 0 not in holders, f"messages without a tag: {holders.get(0)}"
    shared = {hex(tag): names for tag, names in holders.items() if len(names) > 1}
    assert not shared, f"one tag, several messages: {shared}"


@pytest.mark.parametrize("command", ["make run", "make test"])
def test_the_readme_opens_with_the_two_commands(command: str, repo: Path) -> None:
    """A stranger needs two commands; both stand in the README."""
    assert command in (repo / "README.md").read_text(encoding="utf-8")
