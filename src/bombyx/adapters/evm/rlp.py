# SPDX-License-Identifier: Apache-2.0
"""Recursive Length Prefix, the encoding of transactions (Ethereum yellow paper, appendix B). Encoding only."""

from __future__ import annotations

from collections.abc import Sequence

Item = int | bytes | Sequence["Item"]


def encode(item: Item) -> bytes:
    """Integers are their shortest big-endian bytes; zero is the empty string."""
    if isinstance(item, int):
        item = item.to_bytes((item.bit_length() + 7) // 8)
    if isinstance(item, bytes):
        return item if len(item) == 1 and item[0] < 0x80 else _prefix(0x80, len(item)) + item
    body = b"".join(encode(inner) for inner in item)
    return _prefix(0xC0, len(body)) + body


def _prefix(kind: int, size: int) -> bytes:
    if size <= 55:
        return bytes([kind + size])
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes([kind + 55 + len(length)]) + length
