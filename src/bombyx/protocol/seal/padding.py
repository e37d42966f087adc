# SPDX-License-Identifier: Apache-2.0
"""Padding: how long a request looks. Padme sizes cost at most 12 % and leave few lengths to tell apart (SEAL-13)."""

from __future__ import annotations

from typing import Final

MIN_REQUEST: Final = 1024  # bytes a request is padded to at least


def padme(size: int) -> int:
    """The next Padme size (Nikitin et al., PETS 2019): leaks O(log log size) bits, costs at most 12 %."""
    if size < 2:
        return size
    exponent = size.bit_length() - 1
    low_bits = exponent - exponent.bit_length()
    mask = (1 << max(0, low_bits)) - 1
    return (size + mask) & ~mask


def pad_request(bhttp: bytes, minimum: int = MIN_REQUEST) -> bytes:
    """A request with zero padding (RFC 9292 section 3.8) to a Padme size, at least `minimum` (SEAL-13)."""
    return bhttp + bytes(padme(max(len(bhttp), minimum)) - len(bhttp))
