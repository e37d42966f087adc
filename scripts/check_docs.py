# SPDX-License-Identifier: Apache-2.0
"""Check the documents: relative links and their anchors resolve, and what stands in a code block exists.

In ```sh blocks every `make TARGET` is in the Makefile and every `bombyx COMMAND --option` is in that command's help.
In ```python blocks the code parses. Addresses outside the repository are not fetched: this check works offline.

Use: python scripts/check_docs.py [FOLDER]
"""

from __future__ import annotations

import ast
import functools
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import typer

LEFT_OUT = {".venv", ".lock-venv", "build", ".git", "node_modules", ".hypothesis", ".pytest_cache", "vectors"}
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
REFERENCE = re.compile(r"^\s*\[[^\]]+\]:\s+<?(\S+?)>?(?:\s|$)")
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$")
ANCHOR = re.compile(r"<a\s+(?:id|name)=\"([^\"]+)\"")
FENCE = re.compile(r"^\s*(`{3,}|~{3,})\s*([\w-]*)")
SHELL = {"sh", "bash", "shell", "console"}


class Line(NamedTuple):
    """One line of a page, and the kind of code block it stands in (None: none)."""

    number: int
    text: str
    block: str | None


def pages(top: Path) -> list[Path]:
    """Every Markdown page that belongs to the folder."""
    return sorted(path for path in top.glob("**/*.md") if not LEFT_OUT & set(path.relative_to(top).parts))


@functools.cache
def lines_of(page: Path) -> tuple[Line, ...]:
    """The page's lines, each with the code block it is in; fence lines themselves are left out."""
    found: list[Line] = []
    fence: str | None = None
    kind = ""
    for number, text in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        mark = FENCE.match(text)
        if mark and fence is None:
            fence, kind = mark.group(1), mark.group(2).lower()
        elif mark and fence is not None and mark.group(1).startswith(fence) and not mark.group(2):
            fence = None
        else:
            found.append(Line(number, text, None if fence is None else kind))
    return tuple(found)


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    plain = re.sub(r"<[^>]+>", "", plain).replace("`", "").replace("*", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


@functools.cache
def anchors_of(page: Path) -> frozenset[str]:
    """Every anchor in a page; a heading met again gets -1, -2, ..."""
    found: set[str] = set()
    seen: dict[str, int] = {}
    for line in lines_of(page):
        if line.block is None:
            found.update(ANCHOR.findall(line.text))
            if heading := HEADING.match(line.text):
                name = slug(heading.group(1))
                count = seen.get(name, 0)
                seen[name] = count + 1
                found.add(f"{name}-{count}" if count else name)
    return frozenset(found)


def broken_links(page: Path, top: Path) -> Iterator[tuple[int, str]]:
    """Relative links of a page that lead nowhere."""
    for line in lines_of(page):
        if line.block is not None:
            continue
        text = re.sub(r"`[^`]*`", "``", line.text)
        for target in [*LINK.findall(text), *REFERENCE.findall(text)]:
            if re.match(r"[a-z][a-z0-9+.-]*:", target):
                continue
            path, _, anchor = unquote(target).partition("#")
            place = (
                page if not path else (top / path.lstrip("/") if path.startswith("/") else page.parent / path).resolve()
            )
            if not place.exists():
                yield line.number, f"link to {target}: no such file"
            elif anchor and place.suffix == ".md" and anchor not in anchors_of(place):
                yield line.number, f"link to {target}: no anchor #{anchor} there"


def commands(page: Path) -> Iterator[tuple[int, list[str]]]:
    """The commands in a page's shell blocks, continued lines joined, split into words."""
    started, joined = 0, ""
    for line in lines_of(page):
        if line.block not in SHELL:
            continue
        started = started if joined else line.number
        joined += line.text.strip().removeprefix("$ ")
        if joined.endswith("\\"):
            joined = joined[:-1] + " "
            continue
        for part in re.split(r"&&|\|\||[|;]", joined):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:
                words = part.split()
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words = words[1:]
            if words:
                yield started, words
        joined = ""


def unknown_commands(page: Path, top: Path) -> Iterator[tuple[int, str]]:
    """`make` targets and `bombyx` commands or options that do not exist."""
    for number, words in commands(page):
        program = Path(words[0]).name
        if program == "make":
            for target in words[1:]:
                if re.fullmatch(r"[a-z][a-z-]*", target) and target not in targets_of(top):
                    yield number, f"make {target}: no such target"
        elif program == "bombyx" and (top / "src" / "bombyx" / "cli").exists():
            yield from ((number, fault) for fault in faults_of(tuple(words[1:])))


@functools.cache
def targets_of(top: Path) -> frozenset[str]:
    """The Makefile's targets."""
    makefile = top / "Makefile"
    text = makefile.read_text(encoding="utf-8") if makefile.exists() else ""
    return frozenset(re.findall(r"^([a-z][a-z-]*):", text, flags=re.MULTILINE))


@functools.cache
def help_of(words: tuple[str, ...]) -> str | None:
    """What `bombyx WORDS --help` prints, or None when it is no command. In this process: a start takes a second."""
    from bombyx.cli.app import app

    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="bombyx", terminal_width=240, max_content_width=240)
    for word in words:
        deeper = command.get_command(context, word) if isinstance(command, typer.core.TyperGroup) else None
        if deeper is None:
            return None
        command, context = deeper, typer.Context(deeper, info_name=word, parent=context)
    return command.get_help(context)


def faults_of(words: tuple[str, ...]) -> Iterator[str]:
    """What is wrong with one `bombyx` command line, by the help of each command and of the last one's options."""
    path: tuple[str, ...] = ()
    text = help_of(path)
    if text is None:
        yield "bombyx --help: does not start"
        return
    for word in words:
        # only a group's usage line says COMMAND; what follows a leaf are its arguments
        if not re.fullmatch(r"[a-z][a-z-]*", word) or "COMMAND [ARGS]" not in text:
            break
        deeper = help_of((*path, word))
        if deeper is None:
            yield f"bombyx {' '.join((*path, word))}: no such command"
            return
        path, text = (*path, word), deeper
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("--") and len(option) > 2 and not re.search(rf"{re.escape(option)}(?![\w-])", text):
            yield f"bombyx {' '.join(path)} {option}: no such option"


def unparsable_python(page: Path) -> Iterator[tuple[int, str]]:
    """Python blocks that do not parse; the first line of the block is named."""
    block: list[Line] = []
    for line in [*lines_of(page), Line(0, "", None)]:
        if line.block in {"python", "py"} and (not block or line.number == block[-1].number + 1):
            block.append(line)
            continue
        if block:
            try:
                ast.parse("\n".join(part.text for part in block))
            except SyntaxError as error:
                yield block[0].number, f"python block: {error.msg}"
        block = [line] if line.block in {"python", "py"} else []


def problems(top: Path) -> list[str]:
    """Everything wrong in the documents below `top`, as `page:line: what`."""
    found: list[str] = []
    for page in pages(top):
        faults = [*broken_links(page, top), *unknown_commands(page, top), *unparsable_python(page)]
        found += [
            f"{page.relative_to(top)}:{number}: {what}" for number, what in sorted(faults, key=lambda fault: fault[0])
        ]
    return found


def main() -> int:
    """Print the problems; the exit status says whether there were any."""
    top = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent).resolve()
    found = problems(top)
    for problem in found:
        print(problem)
    print(f"docs: {len(pages(top))} pages, {len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
