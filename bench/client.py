# SPDX-License-Identifier: Apache-2.0
"""What a client costs its machine: megabytes installed, seconds to import, and what memory it starts with.

The set of packages is `dependencies` in pyproject.toml, installed by pip into a folder of its own (kept, and made again
when the list changes); compiled bytecode is not counted. Import times are processor time, an empty interpreter's taken
off.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

from _machine import Goal, options, report

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "bombyx"
WHERE = ROOT / ".venv" / "bench-client"
MEGABYTE = 1 << 20
PARTS_OF = {
    "all for the command line": (
        "typer",
        "rich",
        "pydantic",
        "pydantic_core",
        "pygments",
        "markdown_it",
        "shellingham",
    ),
    "all for the event loop": ("uvloop",),
}
PARTS = {
    "import bombyx": "import bombyx",
    "import bombyx, and its client": "import bombyx, bombyx.compose.client, bombyx.roles.client.core",
    "the command line": "import bombyx.cli",
}


def installed() -> Path:
    """A folder with the client's packages and what they stand on."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    told, listed = WHERE / "wanted.txt", "\n".join([sys.version, *wanted])
    if not told.exists() or told.read_text() != listed:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--upgrade", "--target", str(WHERE)]
        subprocess.run([*pip, *wanted], check=True, capture_output=True, timeout=900)
        told.write_text(listed)
    return WHERE


def size(folder: Path) -> float:
    """Megabytes of a folder, bytecode aside."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return sum(path.stat().st_size for path in files) / MEGABYTE


def seconds(code: str, times: int) -> tuple[float, float]:
    """(processor time, most resident megabytes) of an interpreter that runs `code`: medians."""
    took, most = [], []
    for _ in range(times):
        child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(SOURCE.parent)})
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"{code}: exit {child.returncode}")
        took.append(usage.ru_utime + usage.ru_stime)
        most.append(usage.ru_maxrss / 1024)
    return statistics.median(took), statistics.median(most)


def main() -> None:
    given = options(__doc__)
    folder = installed()
    packages = sorted(((size(path), path.name) for path in folder.iterdir() if path.is_dir()), reverse=True)
    whole = size(folder) + size(SOURCE)
    rows: list[dict[str, object]] = [{"what": f"package {name}", "MB": megabytes} for megabytes, name in packages[:8]]
    by_name = {name: megabytes for megabytes, name in packages}
    for what, names in PARTS_OF.items():
        rows.append({"what": what, "MB": sum(by_name.get(name, 0.0) for name in names)})
    rows += [{"what": "bombyx itself", "MB": size(SOURCE)}, {"what": "installed, all", "MB": whole}]
    times = 5 if given.quick else 25
    empty, _ = seconds("pass", times)
    imports = {}
    for name, code in PARTS.items():
        took, most = seconds(code, times)
        imports[name] = took - empty
        rows.append({"what": name, "seconds": took - empty, "MB resident": most})
    goals = [
        Goal("client's packages and bombyx, MB", whole, "<", 40),
        Goal("import bombyx, s", imports["import bombyx"], "<", 0.3),
    ]
    report("client", rows, goals, as_json=given.json)


if __name__ == "__main__":
    main()
