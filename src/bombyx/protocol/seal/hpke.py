# SPDX-License-Identifier: Apache-2.0
"""HPKE, base mode only (RFC 9180): contexts that seal, open and export, on the primitives of `cryptography`.

The library offers HPKE as a single shot, without contexts and without Export; both are needed for streamed answers.
KEMs: 0x647a MLKEM768-X25519 (draft-ietf-hpke-pq) and 0x0020 DHKEM(X25519, HKDF-SHA256). KDF HKDF-SHA256, AEAD
AES-128-GCM. NOT here: the auth and psk modes, which the successor of RFC 9180 drops.

Always: a context uses each nonce once; a failed `open` raises `SealError` and does not advance. Randomness arrives as
an argument. (docs/spec, SEAL-11.)
"""

from __future__ import annotations

import builtins
import hashlib
import hmac
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bombyx.errors import MalformedMessage, SealError

KDF_HKDF_SHA256: Final = 0x0001
AEAD_AES_128_GCM: Final = 0x0001
KEY_SIZE: Final = 16  # Nk of AES-128-GCM
NONCE_SIZE: Final = 12  # Nn
TAG_SIZE: Final = 16  # Nt
SEED_SIZE: Final = 32  # of a private key, either KEM

_HASH: Final = 32
_X25519: Final = 32
_MLKEM_PUBLIC: Final = 1184
_MLKEM_CIPHERTEXT: Final = 1088
_XWING_LABEL: Final = b"\\.//^\\"
_ALL: Final = (1 << 8 * NONCE_SIZE) - 1


class Kem(IntEnum):
    """Key encapsulation mechanisms, by their IANA numbers."""

    X25519 = 0x0020
    MLKEM768_X25519 = 0x647A

    @property
    def public_size(self) -> int:
        return _X25519 if self is Kem.X25519 else _MLKEM_PUBLIC + _X25519

    @property
    def enc_size(self) -> int:
        return _X25519 if self is Kem.X25519 else _MLKEM_CIPHERTEXT + _X25519


class ByteSource(Protocol):
    """Fresh random bytes. Must be cryptographically secure; the `Entropy` port is one."""

    def bytes(self, size: int) -> builtins.bytes: ...


class Randomness(ByteSource, Protocol):
    """What sealing asks of chance.

    - `mlkem768_encapsulate` gives (shared secret, ciphertext); it is a port because the library's takes no randomness
      from outside. It must raise ValueError for a malformed key.
    """

    def mlkem768_encapsulate(self, public_key: builtins.bytes) -> tuple[builtins.bytes, builtins.bytes]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateKey:
    """One recipient key. Made inside the enclave from fresh randomness, never exported; does not print itself."""

    kem: Kem
    public_bytes: bytes = field(repr=False)
    _x25519: X25519PrivateKey = field(repr=False)
    _mlkem: MLKEM768PrivateKey | None = field(repr=False)

    @classmethod
    def from_seed(cls, kem: Kem, seed: bytes) -> PrivateKey:
        """Both KEMs take 32 bytes; 0x647a expands them with SHAKE256 as draft-ietf-hpke-pq says."""
        if len(seed) != SEED_SIZE:
            raise ValueError(f"a private key takes {SEED_SIZE} bytes, not {len(seed)}")
        if kem is Kem.X25519:
            key = X25519PrivateKey.from_private_bytes(seed)
            return cls(kem=kem, public_bytes=key.public_key().public_bytes_raw(), _x25519=key, _mlkem=None)
        wide = hashlib.shake_256(seed).digest(96)
        mlkem, key = MLKEM768PrivateKey.from_seed_bytes(wide[:64]), X25519PrivateKey.from_private_bytes(wide[64:])
        public = mlkem.public_key().public_bytes_raw() + key.public_key().public_bytes_raw()
        return cls(kem=kem, public_bytes=public, _x25519=key, _mlkem=mlkem)

    @classmethod
    def generate(cls, kem: Kem, randomness: ByteSource) -> PrivateKey:
        return cls.from_seed(kem, randomness.bytes(SEED_SIZE))

    def decapsulate(self, enc: bytes) -> bytes:
        """The shared secret. Raises `SealError` for an `enc` of the wrong size or a degenerate point."""
        if len(enc) != self.kem.enc_size:
            raise SealError(f"an encapsulated key has {self.kem.enc_size} bytes, not {len(enc)}", rule="SEAL-11")
        point = enc[-_X25519:]
        shared = _exchange(self._x25519, point)
        if self._mlkem is None:
            return _dhkem_secret(shared, point, self.public_bytes)
        lattice = self._mlkem.decapsulate(enc[:_MLKEM_CIPHERTEXT])
        return _xwing_secret(lattice, shared, point, self.public_bytes[-_X25519:])


class Context:
    """What both ends hold after the key schedule. A sender's only seals, a recipient's only opens."""

    __slots__ = ("_aead", "_base_nonce", "_exporter_secret", "_sequence", "_suite")

    def __init__(self, kem: Kem, shared_secret: bytes, info: bytes) -> None:
        self._suite, psk_id_hash = _SUITES[kem]
        info_hash = _labeled_extract(self._suite, b"", b"info_hash", info)
        schedule = b"\x00" + psk_id_hash + info_hash
        secret = _labeled_extract(self._suite, shared_secret, b"secret", b"")
        self._aead = AESGCM(_labeled_expand(self._suite, secret, b"key", schedule, KEY_SIZE))
        self._base_nonce = int.from_bytes(_labeled_expand(self._suite, secret, b"base_nonce", schedule, NONCE_SIZE))
        self._exporter_secret = _labeled_expand(self._suite, secret, b"exp", schedule, _HASH)
        self._sequence = 0

    def export(self, context: bytes, length: int) -> bytes:
        """A secret of `length` bytes that both ends can derive and nobody else."""
        return _labeled_expand(self._suite, self._exporter_secret, b"sec", context, length)

    def as_stream(self) -> tuple[AESGCM, int]:
        """Key and base nonce for chunked OHTTP, which seals with this context but for its framing."""
        if self._sequence:
            raise ValueError("this context has sealed or opened already")
        self._sequence = _ALL  # the stream takes the nonces over
        return self._aead, self._base_nonce

    def _nonce(self) -> bytes:
        if self._sequence == _ALL:
            raise SealError("this context has sealed all it may", rule="SEAL-11")
        return (self._base_nonce ^ self._sequence).to_bytes(NONCE_SIZE)


class SenderContext(Context):
    """The client's end."""

    __slots__ = ()

    def seal(self, aad: bytes, plaintext: bytes) -> bytes:
        sealed = self._aead.encrypt(self._nonce(), plaintext, aad)
        self._sequence += 1
        return sealed


class RecipientContext(Context):
    """The enclave's end."""

    __slots__ = ()

    def open(self, aad: bytes, ciphertext: bytes) -> bytes:
        try:
            plaintext = self._aead.decrypt(self._nonce(), ciphertext, aad)
        except InvalidTag:
            raise SealError("the sealed bytes do not open under this key", rule="SEAL-11") from None
        self._sequence += 1
        return plaintext


def setup_sender(kem: Kem, public_key: bytes, info: bytes, randomness: Randomness) -> tuple[bytes, SenderContext]:
    """(enc, context) towards `public_key`. Raises `MalformedMessage` when it is no key of this KEM."""
    if len(public_key) != kem.public_size:
        raise MalformedMessage(f"a public key has {kem.public_size} bytes, not {len(public_key)}", rule="SEAL-11")
    ephemeral = X25519PrivateKey.from_private_bytes(randomness.bytes(_X25519))
    point, theirs = ephemeral.public_key().public_bytes_raw(), public_key[-_X25519:]
    shared = _exchange(ephemeral, theirs)
    if kem is Kem.X25519:
        return point, SenderContext(kem, _dhkem_secret(shared, point, theirs), info)
    try:
        lattice, ciphertext = randomness.mlkem768_encapsulate(public_key[:_MLKEM_PUBLIC])
    except ValueError:
        raise MalformedMessage("not an ML-KEM-768 public key", rule="SEAL-11") from None
    return ciphertext + point, SenderContext(kem, _xwing_secret(lattice, shared, point, theirs), info)


def setup_recipient(key: PrivateKey, enc: bytes, info: bytes) -> RecipientContext:
    """The recipient's context for `enc`. A wrong key shows only when `open` fails."""
    return RecipientContext(key.kem, key.decapsulate(enc), info)


# --- HKDF-SHA256 (RFC 5869) and HPKE's labels (RFC 9180 section 4) ---------------------------------------------------


def hkdf_extract(salt: bytes, secret: bytes) -> bytes:
    return hmac.digest(salt or bytes(_HASH), secret, "sha256")


def hkdf_expand(key: bytes, info: bytes, length: int) -> bytes:
    if length <= _HASH:
        return hmac.digest(key, info + b"\x01", "sha256")[:length]
    block, out, counter = b"", b"", 1
    while len(out) < length:
        block = hmac.digest(key, block + info + bytes([counter]), "sha256")
        out += block
        counter += 1
    return out[:length]


def _labeled_extract(suite: bytes, salt: bytes, label: bytes, secret: bytes) -> bytes:
    return hkdf_extract(salt, b"HPKE-v1" + suite + label + secret)


def _labeled_expand(suite: bytes, key: bytes, label: bytes, info: bytes, length: int) -> bytes:
    return hkdf_expand(key, length.to_bytes(2) + b"HPKE-v1" + suite + label + info, length)


def _suite(kem: Kem) -> tuple[bytes, bytes]:
    """(suite id, hash of the empty psk id), the same for every context of this KEM."""
    suite = b"HPKE" + b"".join(number.to_bytes(2) for number in (kem, KDF_HKDF_SHA256, AEAD_AES_128_GCM))
    return suite, _labeled_extract(suite, b"", b"psk_id_hash", b"")


_SUITES: Final = {kem: _suite(kem) for kem in Kem}


# --- the two KEMs ----------------------------------------------------------------------------------------------------


def _exchange(private: X25519PrivateKey, point: bytes) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(point))
    except ValueError:  # RFC 9180 section 7.1.4: an all-zero result must be refused
        raise SealError("a degenerate X25519 point", rule="SEAL-11") from None


def _dhkem_secret(shared: bytes, point: bytes, public: bytes) -> bytes:
    suite = b"KEM" + int(Kem.X25519).to_bytes(2)
    key = _labeled_extract(suite, b"", b"eae_prk", shared)
    return _labeled_expand(suite, key, b"shared_secret", point + public, _HASH)


def _xwing_secret(lattice: bytes, shared: bytes, point: bytes, public: bytes) -> bytes:
    return hashlib.sha3_256(lattice + shared + point + public + _XWING_LABEL).digest()
