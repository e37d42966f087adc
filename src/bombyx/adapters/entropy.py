# SPDX-License-Identifier: Apache-2.0
"""The operating system's randomness, for the `Entropy` port and for `protocol/seal` (its `Randomness`).

ML-KEM encapsulation sits here because the library draws its own randomness inside it.
"""

from __future__ import annotations

import builtins
import functools
import secrets

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey


class SystemEntropy:
    """Cryptographically secure bytes, and encapsulations made with them."""

    __slots__ = ()

    def bytes(self, size: int) -> builtins.bytes:
        """`size` fresh random bytes."""
        return secrets.token_bytes(size)

    def mlkem768_encapsulate(self, public_key: builtins.bytes) -> tuple[builtins.bytes, builtins.bytes]:
        """(shared secret, ciphertext) for an ML-KEM-768 public key (FIPS 203). Raises ValueError for a malformed
        key.
        """
        return _loaded(public_key).encapsulate()


@functools.lru_cache(maxsize=256)  # loading costs as much as encapsulating, and a client seals to the same few workers
def _loaded(public_key: bytes) -> MLKEM768PublicKey:
    return MLKEM768PublicKey.from_public_bytes(public_key)
