# SPDX-License-Identifier: Apache-2.0
"""What every script in `bench/` shares: the machine it ran on, and how its rows and goals are printed.

    parser = options(__doc__)            # --quick, --json
    report("pay", rows, goals, as_json=parser.json)

JSON: {"name", "machine", "rows", "goals": [{"name", "value", "goal", "met"}]}. A missed goal is printed, not raised:
a loaded machine is not a fault in the code. Absolute times mean little on another machine, so goals are ratios to
something measured in the same run wherever that is possible.
"""

from __future__ import annotations

import argparse
import json
import operator
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

COMPARISONS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}


@dataclass(frozen=True, slots=True)
class Goal:
    """`value` compared with `bound`: Goal("p95 ratio", 1.02, "<=", 1.1)."""

    name: str
    value: float
    comparison: str
    bound: float

    @property
    def met(self) -> bool:
        return COMPARISONS[self.comparison](self.value, self.bound)

    def as_dict(self) -> dict[str, object]:
        return {"name": self.name, "value": self.value, "goal": f"{self.comparison} {self.bound:g}", "met": self.met}


def options(doc: str | None, **more: str) -> argparse.Namespace:
    """The two options every script takes, and its own; the description is the first line of its docstring."""
    parser = argparse.ArgumentParser(description=(doc or "").strip().splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short run: rough figures")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    for name, meaning in more.items():
        parser.add_argument(f"--{name}", default="", help=meaning)
    return parser.parse_args()


def machine() -> dict[str, object]:
    """Where this ran: processor, cores, memory, system, Python, load."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "memory_gb": _memory_gb(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load": round(load, 2),
    }


def per_call(work: Callable[[], object], *, seconds: float = 0.3, rounds: int = 5) -> float:
    """Seconds of processor time of one call: the best of `rounds`, so that a neighbour's load counts little."""
    count, took = 1, 0.0
    while took < seconds / rounds / 4:
        count *= 2
        took = _timed(work, count)
    count = max(1, int(count * (seconds / rounds) / max(took, 1e-9)))
    return min(_timed(work, count) for _ in range(rounds)) / count


def report(name: str, rows: Sequence[Mapping[str, object]], goals: Sequence[Goal], *, as_json: bool) -> None:
    """Print the run: one JSON object, or tables."""
    where = machine()
    if as_json:
        found = {"name": name, "machine": where, "rows": list(rows), "goals": [goal.as_dict() for goal in goals]}
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return
    lines = [", ".join(f"{key} {value}" for key, value in where.items()), "", *table(rows), ""]
    lines += table([{**goal.as_dict(), "met": "met" if goal.met else "MISSED"} for goal in goals])
    sys.stdout.write("\n".join(lines) + "\n")


def table(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Aligned columns; a row without a column shows nothing there."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_cell(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _timed(work: Callable[[], object], count: int) -> float:
    start = time.process_time()
    for _ in range(count):
        work()
    return time.process_time() - start


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gb() -> float:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return 0.0
