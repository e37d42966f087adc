# SPDX-License-Identifier: Apache-2.0
"""Times on the command line: Unix seconds or ISO 8601, so that what was written down can be typed in."""

from __future__ import annotations

import datetime as dt
import time

from bombyx.errors import ConfigError
from bombyx.protocol.primitives import Instant


def moment(text: str | None) -> Instant:
    """Now when nothing is given. A time without a zone is UTC. Raises `ConfigError`."""
    if text is None:
        return Instant.from_seconds(time.time())
    try:
        if text.replace(".", "", 1).isdigit():
            return Instant.from_seconds(float(text))
        parsed = dt.datetime.fromisoformat(text)
        return Instant.from_seconds((parsed if parsed.tzinfo else parsed.replace(tzinfo=dt.UTC)).timestamp())
    except (ValueError, OverflowError):
        raise ConfigError(f"{text!r} is neither Unix seconds nor a time like 2026-06-10T01:48:55Z") from None
