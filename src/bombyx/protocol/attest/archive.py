# SPDX-License-Identifier: Apache-2.0
"""An archive: a report as it was answered, with all that is needed to verify it offline, for ever.

Not signed and not believed: it only carries. The nonce in it is the one its maker asked with; whether to take that word
for freshness is the reader's choice.
Form: one JSON object, binary values in base64, so that any tool can take it apart.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any, Final, Self

import orjson

from bombyx.protocol.attest import fields as read
from bombyx.protocol.attest.fields import malformed
from bombyx.protocol.attest.report import NONCE_SIZE, AtHand
from bombyx.protocol.primitives import Instant

KEY: Final = "bombyx_archive"
VERSION: Final = 1
MAX_ARCHIVE: Final = 16_777_216  # bytes
_LISTS: Final = ("endorsements", "tokens", "rims", "ocsp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """What was answered, when, and what vouches for it."""

    report: bytes = field(repr=False)  # as it came
    source: str = ""  # where from
    captured: Instant
    nonce: bytes | None = None
    endorsements: tuple[bytes, ...] = field(default=(), repr=False)
    tokens: tuple[bytes, ...] = field(default=(), repr=False)
    rims: tuple[bytes, ...] = field(default=(), repr=False)
    ocsp: tuple[bytes, ...] = field(default=(), repr=False)
    jwks: bytes = field(default=b"", repr=False)
    missing: tuple[str, ...] = ()  # what could not be had, and why

    def at_hand(self) -> AtHand:
        """For `examine`."""
        return AtHand(
            endorsements=self.endorsements,
            tokens=self.tokens,
            jwks=self.jwks,
            rims=self.rims,
            ocsp=self.ocsp,
            nonce=self.nonce,
        )

    def encode(self) -> bytes:
        document: dict[str, Any] = {
            KEY: VERSION,
            "source": self.source,
            "captured_ms": int(self.captured),
            "nonce": None if self.nonce is None else self.nonce.hex(),
            "report": _coded(self.report),
            "jwks": _coded(self.jwks),
            "missing": list(self.missing),
        }
        return orjson.dumps(
            document | {name: [_coded(one) for one in getattr(self, name)] for name in _LISTS},
            option=orjson.OPT_INDENT_2,
        )

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """Raises `MalformedMessage`."""
        if len(raw) > MAX_ARCHIVE:
            raise malformed(f"{len(raw)} bytes, at most {MAX_ARCHIVE}")
        try:
            document = orjson.loads(raw)
        except orjson.JSONDecodeError:
            raise malformed("an archive is JSON") from None
        if not isinstance(document, dict) or document.get(KEY) != VERSION:
            raise malformed("not an archive of version 1")
        captured, missing = document.get("captured_ms"), document.get("missing", [])
        if not isinstance(captured, int) or isinstance(captured, bool) or not 0 <= captured < 2**63:
            raise malformed("an archive without the time it was captured")
        if not isinstance(missing, list) or not all(isinstance(one, str) for one in missing):
            raise malformed("missing is not a list of sentences")
        return cls(
            report=_decoded(document.get("report")),
            source=read.text(document, "source") or "",
            captured=Instant(captured),
            nonce=read.hexed(document, "nonce", NONCE_SIZE),
            jwks=_decoded(document.get("jwks", "")),
            missing=tuple(missing),
            **{name: _list(document.get(name, []), name) for name in _LISTS},
        )


def _coded(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _decoded(value: Any) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError):
        raise malformed("a part of the archive is not base64") from None


def _list(values: Any, name: str) -> tuple[bytes, ...]:
    if not isinstance(values, list) or len(values) > 64:
        raise malformed(f"{name} is not a list of at most 64 parts")
    return tuple(_decoded(value) for value in values)
