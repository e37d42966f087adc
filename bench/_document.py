# SPDX-License-Identifier: Apache-2.0
"""Runs the benchmarks in their quick form and writes what they said to docs/benchmarks.md, with date and machine.

    python bench/_document.py            # all of them
    python bench/_document.py pay relay  # these; what the page says of others stays

A script that fails or takes too long is named with its reason; it does not stop the others. The last lines on standard
output are the goals, met and missed.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from _machine import table

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
LIMIT = 600  # seconds for one script
TIMED = ("overhead", "slow")  # show milliseconds, not ratios: a neighbour's load would be all one sees
ORDER = ("relay", "streams", "overhead", "slow", "client", "scale", "market", "pay", "gas", "appraise")  # then the rest
INTRODUCTION = """<!-- Written by `make bench`; changes by hand are lost. -->
# Benchmarks

Each section is one script of `bench/`, run with `--quick` on the machine it names; `load` is that machine's load
average when the script ended. These runs shared two cores with other work, so a figure in seconds says little: goals
are ratios to something measured in the same run, interleaved, wherever that is possible. A goal that is missed is
shown as missed, a peer that could not be had with its reason. `make bench` makes this page again; each script alone,
without `--quick`, takes longer and varies less.

The goals of `relay` and `streams` are those that prototypes reached before there were receipts, books and two payment
channels. `relay`'s row "forward only" is the shipped proxy without these: what is left is the cost of the transports.
"""


_GOAL = re.compile(r"^(\S.*?)\s{2,}(\S+)\s+([<>=]+ \S+)\s+(met|MISSED)$", re.MULTILINE)


def main() -> None:
    scripts = sorted((path.stem for path in HERE.glob("[a-z]*.py")), key=_place)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("script", nargs="*", help="only these: " + ", ".join(scripts))
    chosen = parser.parse_args().script
    if unknown := set(chosen) - set(scripts):
        parser.error(f"no such script: {', '.join(sorted(unknown))}")
    made = {}
    for name in chosen or scripts:
        sys.stderr.write(f"bench/{name}.py\n")
        made[name] = _section(name)
    sections = _known() | made
    parts = [sections[name] for name in scripts if name in sections]
    PAGE.write_text("\n".join([INTRODUCTION, _summary(parts), *parts]))
    sys.stdout.write(_summary(parts))


def _place(name: str) -> tuple[int, str]:
    return (ORDER.index(name) if name in ORDER else len(ORDER)), name


def _known() -> dict[str, str]:
    if not PAGE.exists():
        return {}
    found = re.split(r"^(?=## )", PAGE.read_text(), flags=re.MULTILINE)[1:]
    return {text.split("\n", 1)[0].removeprefix("## "): text.rstrip() + "\n" for text in found}


def _summary(parts: list[str]) -> str:
    """How many goals each section met, and which it missed."""
    lines = ["| script | goals met | missed |", "|---|---|---|"]
    for text in parts:
        name, goals = text.split("\n", 1)[0].removeprefix("## "), _GOAL.findall(text)
        missed = [f"{goal}: {value} ({bound})" for goal, value, bound, verdict in goals if verdict == "MISSED"]
        met = f"{len(goals) - len(missed)} of {len(goals)}" if goals else "did not run"
        lines.append(f"| [{name}](#{name}) | {met} | {'; '.join(missed)} |")
    return "\n".join([*lines, ""])


def _section(name: str) -> str:
    """Markdown of one run."""
    today = dt.datetime.now(dt.UTC).date().isoformat()
    command = [sys.executable, str(HERE / f"{name}.py"), "--quick", "--json"]
    run = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=_ahead if name in TIMED else None,
    )  # fmt: skip
    try:
        printed, told = run.communicate(timeout=LIMIT)
        said = json.loads(printed)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)  # and what it started; roles end with their parent
        run.communicate()
        return f"## {name}\n\n{today}: not within {LIMIT} s.\n"
    except ValueError:
        words = told.strip().splitlines()[-1:]
        return f"## {name}\n\n{today}: did not run. {_plain(' '.join(words))[:200]}\n"
    skipped = [line for line in told.splitlines() if line.startswith("skipped:")]
    return _written(name, today, said, skipped)


def _ahead() -> None:
    """Before other work on this machine, where the system lets us; inherited by what is started."""
    with contextlib.suppress(AttributeError, PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(5))


def _plain(text: str) -> str:
    """Without paths of this machine."""
    return re.sub(r"(/[\w.+-]+){2,}", "...", text)


def _written(name: str, today: str, said: dict[str, Any], skipped: list[str]) -> str:
    where = ", ".join(f"{key} {value}" for key, value in said["machine"].items())
    goals = [{**goal, "met": "met" if goal["met"] else "MISSED"} for goal in said["goals"]]
    lines = [f"## {name}", "", f"{today}; {where}; `python bench/{name}.py --quick`", ""]
    lines += ["```text", *table(said["rows"]), "", *table(goals), *map(_plain, skipped), "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
