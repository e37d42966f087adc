# SPDX-License-Identifier: Apache-2.0
"""Calibrations that ship with bombyx: measured once, for weights everybody has (spec JDG-6).

`calibrations.json` beside this file maps the SHA-256 of a weight file and an engine family to a `Calibration`. It was
written by `bombyx calibrate`; its figures say how many honest answers they rest on.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, Final

from bombyx.errors import ConfigError, MalformedMessage
from bombyx.protocol.audit.calibration import FAMILY, MAX_FILE, from_json
from bombyx.protocol.primitives import Digest
from bombyx.protocol.wire.audit import Calibration

FILE: Final = Path(__file__).with_suffix(".json")


def shipped_calibration(weights: Digest, family: str = FAMILY) -> Calibration | None:
    """The one for this weight file on this engine family; None: nobody measured it, `bombyx calibrate` does."""
    found = _shipped().get(f"{weights.hex()} {family}")
    return None if found is None else from_json(json.dumps(found))


def read_calibration(path: Path) -> Calibration:
    """A file of `bombyx calibrate --out`. Raises `ConfigError`."""
    try:
        with path.open("rb") as file:
            return from_json(file.read(MAX_FILE + 1))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", rule="JDG-7") from None
    except MalformedMessage as error:
        raise ConfigError(f"{path} is no calibration of `bombyx calibrate`: {error.message}", rule="JDG-7") from None


@functools.cache
def _shipped() -> dict[str, Any]:
    shipped: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return shipped
