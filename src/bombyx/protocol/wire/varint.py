# SPDX-License-Identifier: Apache-2.0
"""QUIC variable-length integers (RFC 9000 section 16), as BHTTP, OHTTP and our records use them."""

from __future__ import annotations

from typing import Final

MAX_VARINT: Final = 2**62 - 1


def write_varint(value: int, size: int | None = None) -> bytes:
    """`value` in its shortest form, or in exactly `size` (1, 2, 4, 8) bytes."""
    if size is None:
        if 0 <= value < 64:
            return bytes((value,))
        if 64 <= value < 16384:
            return (value | 0x4000).to_bytes(2)
        size = 4 if value < 2**30 else 8
    if not 0 <= value < 1 << (8 * size - 2):
        raise ValueError(f"{value} does not fit a varint of {size} bytes")
    prefix = {1: 0, 2: 1, 4: 2, 8: 3}[size]
    return (value | prefix << (8 * size - 2)).to_bytes(size)


def read_varint(data: bytes | bytearray | memoryview, position: int = 0) -> tuple[int, int] | None:
    """(value, position after it), or None when `data` ends before the number does."""
    if position >= len(data):
        return None
    size = 1 << (data[position] >> 6)
    end = position + size
    if end > len(data):
        return None
    return int.from_bytes(data[position:end]) & ((1 << (8 * size - 2)) - 1), end
