# SPDX-License-Identifier: Apache-2.0
"""secp256k1 signatures in the form a contract can judge: 65 bytes r || s || v over a 32-byte digest (ecrecover).

Always: s is in the lower half (EIP-2, no malleability); v is 27 or 28; recovering costs one curve operation (35 us).
RFC 6979 makes signing deterministic, so no randomness is asked for.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from coincurve import GLOBAL_CONTEXT, PrivateKey
from coincurve._libsecp256k1 import ffi, lib

from bombyx.errors import MalformedMessage
from bombyx.protocol.primitives import Address, Digest, Secret, keccak256

SIGNATURE_SIZE: Final = 65
_HALF_ORDER: Final = bytes.fromhex("7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0")
_CONTEXT: Final = GLOBAL_CONTEXT.ctx


class SigningKey:
    """A secp256k1 key that signs digests. Does not print itself."""

    __slots__ = ("_key", "address")

    def __init__(self, secret: Secret) -> None:
        self._key = PrivateKey(secret.reveal())
        self.address = _address_of(bytes(ffi.buffer(self._key.public_key.public_key)))

    def sign(self, digest: Digest) -> bytes:
        """r || s || v, 65 bytes."""
        raw = self._key.sign_recoverable(digest, hasher=None)
        return raw[:64] + bytes([raw[64] + 27])

    def secret(self) -> Secret:
        """For a key store; nowhere else."""
        return Secret(self._key.secret)

    def __repr__(self) -> str:
        return f"<signing key of {self.address}>"


def recover(digest: Digest, signature: bytes) -> Address:
    """Who signed `digest`. Raises `MalformedMessage` for a signature ecrecover or EIP-2 would refuse."""
    if len(signature) != SIGNATURE_SIZE or signature[64] not in (27, 28):
        raise MalformedMessage("a signature is 65 bytes and ends in 27 or 28", rule="WIRE-5")
    if signature[32:64] > _HALF_ORDER:
        raise MalformedMessage("a signature whose s is in the upper half is malleable", rule="WIRE-5")
    parsed, point = ffi.new("secp256k1_ecdsa_recoverable_signature *"), ffi.new("secp256k1_pubkey *")
    if not (
        len(digest) == 32
        and lib.secp256k1_ecdsa_recoverable_signature_parse_compact(
            _CONTEXT, parsed, signature[:64], signature[64] - 27
        )
        and lib.secp256k1_ecdsa_recover(_CONTEXT, point, parsed, digest)
    ):
        raise MalformedMessage("no key gives this signature", rule="WIRE-5")
    return _address_of(bytes(ffi.buffer(point)))


@lru_cache(maxsize=4096)
def _address_of(point: bytes) -> Address:
    """The address of a key, by libsecp256k1's own form of it. Most signatures are those of a few workers."""
    key, written, size = ffi.new("secp256k1_pubkey *"), ffi.new("unsigned char [65]"), ffi.new("size_t *", 65)
    ffi.memmove(key, point, len(point))
    lib.secp256k1_ec_pubkey_serialize(_CONTEXT, written, size, key, lib.SECP256K1_EC_UNCOMPRESSED)
    return Address(keccak256(bytes(ffi.buffer(written))[1:])[12:])
