# SPDX-License-Identifier: Apache-2.0
"""Reading other providers' JSON: bounded, typed, refusing; absent is None, wrong is `MalformedMessage`."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final

import orjson

from bombyx.errors import MalformedMessage

MAX_REPORT: Final = 4_194_304  # bytes; one with eight GPUs has 240 kB
MAX_TEXT: Final = 1_048_576  # characters of one field

Fields = Mapping[str, Any]


def malformed(what: str) -> MalformedMessage:
    return MalformedMessage(f"report: {what}", rule="ATT-6.1")


def load(raw: bytes | str) -> Any:
    """Any JSON value."""
    if len(raw) > MAX_REPORT:
        raise malformed(f"{len(raw)} bytes, at most {MAX_REPORT}")
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise malformed("not JSON") from None


def mapping(fields: Fields, name: str) -> Fields:
    """An object, or text that holds one; empty when absent."""
    value = fields.get(name)
    if isinstance(value, str):
        value = load(value) if value else {}
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise malformed(f"{name} is not an object")
    return value


def text(fields: Fields, name: str) -> str | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise malformed(f"{name} is not text")
    return value


def needed(fields: Fields, name: str) -> str:
    value = text(fields, name)
    if not value:
        raise malformed(f"no {name}")
    return value


def hexed(fields: Fields, name: str, *sizes: int) -> bytes | None:
    """Hex, with or without 0x; of one of these sizes when any is named."""
    value = text(fields, name)
    if not value:
        return None
    try:
        data = bytes.fromhex(value.removeprefix("0x"))
    except ValueError:
        raise malformed(f"{name} is not hex") from None
    if sizes and len(data) not in sizes:
        raise malformed(f"{name} has {len(data)} bytes")
    return data


def document(fields: Fields, name: str) -> bytes | None:
    """JSON that some send as text and some as it is: its bytes."""
    value = fields.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    return orjson.dumps(value)


def entries(fields: Fields, name: str, most: int) -> list[Fields]:
    """A list of objects; empty when absent."""
    value = fields.get(name) or []
    if not isinstance(value, list) or len(value) > most or not all(isinstance(one, dict) for one in value):
        raise malformed(f"{name} is not a list of at most {most} objects")
    return value


def quote_bytes(value: str, name: str) -> bytes:
    """A quote, which some send as hex and some as base64."""
    plain = value.strip().removeprefix("0x")
    try:
        return bytes.fromhex(plain)
    except ValueError:
        pass
    try:
        return base64.b64decode(plain, validate=True)
    except ValueError:
        raise malformed(f"{name} is neither hex nor base64") from None
