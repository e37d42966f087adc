# SPDX-License-Identifier: Apache-2.0
"""The operating system's randomness and clocks keep the promises sealing and roles rely on."""

from __future__ import annotations

import pytest

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.entropy import SystemEntropy
from bombyx.protocol.seal.hpke import Kem, PrivateKey, setup_recipient, setup_sender


def test_it_never_repeats_itself() -> None:
    """SEAL-11: fresh bytes, and a fresh encapsulation to the same key each time."""
    source = SystemEntropy()
    assert len({source.bytes(16) for _ in range(100)}) == 100
    key = PrivateKey.generate(Kem.MLKEM768_X25519, source)
    sealed = {setup_sender(key.kem, key.public_bytes, b"", source)[0] for _ in range(10)}
    assert len(sealed) == 10
    assert len({enc[:1088] for enc in sealed}) == 10
    for enc in sealed:
        setup_recipient(key, enc, b"")


def test_a_malformed_lattice_key_is_a_value_error() -> None:
    """SEAL-11: the port's promise; hpke makes MalformedMessage of it."""
    for _ in range(2):
        with pytest.raises(ValueError):
            SystemEntropy().mlkem768_encapsulate(b"\xff" * 1184)


async def test_the_monotonic_clock_never_turns_back() -> None:
    """SEAL-6: key erasure goes by it."""
    clock = SystemClock()
    before, now = clock.monotonic(), clock.now()
    await clock.sleep(0.01)
    assert clock.monotonic() > before
    assert abs(int(clock.now()) - int(now)) < 60_000
