# SPDX-License-Identifier: Apache-2.0
"""How commands print: JSON for programs, plain tables for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any


def print_json(value: Any) -> None:
    """One JSON value on standard output, nothing else."""
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


def print_rows(rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns, one line a row whatever the terminal's width, so that lines can be searched and compared."""
    rows = [["".join(c if c.isprintable() else "?" for c in cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    for row in rows:
        sys.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")
