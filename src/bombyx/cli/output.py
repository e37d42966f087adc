# SPDX-License-Identifier: Apache-2.0
"""How commands print: JSON for programs, plain tables for people."""

from __future__ import annotations

import json
import sys
from typing import Any


def print_json(value: Any) -> None:
    """One JSON value on standard output, nothing else."""
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")
