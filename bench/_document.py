# SPDX-License-Identifier: Apache-2.0
"""Runs the benchmarks in their quick form and writes what they said to docs/benchmarks.md, with date and machine.

    python bench/_document.py            # all of them
    python bench/_document.py pay relay  # these; what the file says of others stays

A script that fails or takes too long is named with its reason; it does not stop the others.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from _machine import table

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
LIMIT = 400  # seconds for one script
INTRODUCTION = """<!-- Written by `make bench`; changes by hand are lost. -->
# Benchmarks

Each section is one script of `bench/`, run with `--quick` on the machine it names. Figures in seconds mean little on
another machine, so goals are ratios to something measured in the same run wherever that is possible. A goal that is
missed is shown as missed. `make bench` makes this page again; each script alone prints the same tables.

The goals are those the prototypes reached before there were receipts, books and two payment channels; where the shipped
proxy misses them, this page says so. What it pays for a request today: about 600 Python calls (messages read strictly,
both books, choice, statistics), one signature recovered, two group commits, three TLS writes. A frame of a stream costs
one SHA-256, and a TLS write of its own when it comes alone.
"""


def main() -> None:
    scripts = sorted(path.stem for path in HERE.glob("[a-z]*.py"))
    sections = _known()
    for name in sys.argv[1:] or scripts:
        sys.stderr.write(f"bench/{name}.py\n")
        sections[name] = _section(name)
    parts = [sections[name] for name in scripts if name in sections]
    PAGE.write_text("\n".join([INTRODUCTION, *parts]))


def _known() -> dict[str, str]:
    if not PAGE.exists():
        return {}
    found = re.split(r"^(?=## )", PAGE.read_text(), flags=re.MULTILINE)[1:]
    return {text.split("\n", 1)[0].removeprefix("## "): text.rstrip() + "\n" for text in found}


def _section(name: str) -> str:
    """Markdown of one run."""
    today = dt.datetime.now(dt.UTC).date().isoformat()
    try:
        run = subprocess.run(
            [sys.executable, str(HERE / f"{name}.py"), "--quick", "--json"],
            capture_output=True, text=True, timeout=LIMIT, check=True,
        )  # fmt: skip
        said = json.loads(run.stdout)
    except subprocess.TimeoutExpired:
        return f"## {name}\n\n{today}: not within {LIMIT} s.\n"
    except (subprocess.CalledProcessError, ValueError) as error:
        words = (getattr(error, "stderr", "") or "").strip().splitlines()[-1:]
        return f"## {name}\n\n{today}: did not run. {' '.join(words)[:200]}\n"
    skipped = [line for line in run.stderr.splitlines() if line.startswith("skipped:")]
    return _written(name, today, said, skipped)


def _written(name: str, today: str, said: dict[str, Any], skipped: list[str]) -> str:
    where = ", ".join(f"{key} {value}" for key, value in said["machine"].items())
    goals = [{**goal, "met": "met" if goal["met"] else "MISSED"} for goal in said["goals"]]
    lines = [f"## {name}", "", f"{today}; {where}; `python bench/{name}.py --quick`", ""]
    lines += ["```text", *table(said["rows"]), "", *table(goals), *skipped, "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
