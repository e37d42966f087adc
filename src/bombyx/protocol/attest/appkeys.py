# SPDX-License-Identifier: Apache-2.0
"""Keys for code inside an enclave, and the chain of signatures that says whose they are (dstack's maths; ENC-2, ENC-3).

    root key       held by the key provider, the same for all code; its public key is measured as `key-provider`
    app key        HKDF(root, app id || "app-key"): one for each measured code
    derived key    HKDF(app key, path): what an application asks for

    chain[0]       app key signs    keccak256("<purpose>:<public key in hex>")
    chain[1]       root key signs   keccak256("dstack-kms-issued:" || app id || compressed app public key)

Not a key store: nothing is kept, the same inputs give the same key.
Trap, kept for compatibility: the algorithm is not part of the derivation, so secp256k1 and ed25519 keys of one path are
the same 32 bytes. Use a path for one algorithm only.

Always: the same root, app id and path give the same key; another app id never does; a chain says nothing about code
until its app id was found in a verified quote.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from coincurve import PrivateKey, PublicKey
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from bombyx.errors import MalformedMessage
from bombyx.protocol.primitives import Digest, Secret, keccak256, sha256

APP_ID_SIZE: Final = 20
KEY_SIZE: Final = 32
CHAIN_SIGNATURE_SIZE: Final = 65  # r || s || recovery id 0 or 1
_SALT: Final = b"RATLS"
_APP_LABEL: Final = b"app-key"
_ISSUED_LABEL: Final = b"dstack-kms-issued:"


class Algorithm(StrEnum):
    SECP256K1 = "secp256k1"
    ED25519 = "ed25519"
    PREHASHED = "secp256k1_prehashed"  # signing only: the caller hashed

    @classmethod
    def parse(cls, name: str) -> Algorithm:
        """With dstack's older names. Raises `MalformedMessage`."""
        try:
            return cls.SECP256K1 if name in ("", "k256") else cls(name)
        except ValueError:
            raise MalformedMessage(f"no key algorithm of this name; known: {', '.join(cls)}", rule="ENC-2") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedKey:
    """One key of one application, with the chain that leads to the root."""

    algorithm: Algorithm
    purpose: str
    secret: Secret
    public: bytes  # compressed point, or the 32 bytes of ed25519
    chain: tuple[bytes, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class AppKeys:
    """All keys of one application. `root` is the key provider's secret."""

    root: Secret = field(repr=False)
    app_id: bytes

    @property
    def app_key(self) -> Secret:
        return hkdf(self.root, self.app_id, _APP_LABEL)

    @property
    def root_public(self) -> bytes:
        return public_of(self.root)

    def derive(self, path: str, purpose: str = "", algorithm: Algorithm = Algorithm.SECP256K1) -> DerivedKey:
        """The key of `path`, certified for `purpose`."""
        app_key = self.app_key
        secret = hkdf(app_key, path.encode())
        public = public_of(secret, algorithm)
        chain = (
            _sign(app_key, _key_digest(purpose, public)),
            _sign(self.root, _app_digest(self.app_id, public_of(app_key))),
        )
        return DerivedKey(algorithm=algorithm, purpose=purpose, secret=secret, public=public, chain=chain)


def hkdf(parent: Secret, *context: bytes) -> Secret:
    """HKDF-SHA256 (RFC 5869) with dstack's salt; `context` is joined without separators, as dstack does."""
    return Secret(HKDF(SHA256(), KEY_SIZE, salt=_SALT, info=b"".join(context)).derive(parent.reveal()))


def public_of(secret: Secret, algorithm: Algorithm = Algorithm.SECP256K1) -> bytes:
    if algorithm is Algorithm.ED25519:
        return Ed25519PrivateKey.from_private_bytes(secret.reveal()).public_key().public_bytes_raw()
    return bytes(PrivateKey(secret.reveal()).public_key.format(compressed=True))


# --- signing with a derived key --------------------------------------------------------------------------------------


def sign(key: DerivedKey, data: bytes, algorithm: Algorithm) -> bytes:
    """64 bytes: r || s over SHA-256 of `data` (or over `data` itself when prehashed), or an ed25519 signature."""
    if algorithm is Algorithm.ED25519:
        return Ed25519PrivateKey.from_private_bytes(key.secret.reveal()).sign(data)
    return _sign(key.secret, _message_digest(data, algorithm))[:64]


def verify(algorithm: Algorithm, data: bytes, signature: bytes, public: bytes) -> bool:
    """Whether `public` signed `data`. Never raises: bytes that are no signature sign nothing."""
    try:
        if algorithm is Algorithm.ED25519:
            Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
            return True
        digest = _message_digest(data, algorithm)
        return len(signature) in (64, 65) and public in (_recovered(digest, signature[:64], v) for v in (0, 1))
    except (InvalidSignature, MalformedMessage, ValueError):
        return False


# --- checking a chain ------------------------------------------------------------------------------------------------


def chain_root(chain: tuple[bytes, ...], *, public: bytes, purpose: str, app_id: bytes) -> bytes:
    """The compressed public key of the root this chain leads to. Raises `MalformedMessage` (ENC-3).

    Recovery always gives some key for a well-formed signature: compare the answer with the root a quote measured.
    """
    if len(chain) != 2 or len(app_id) != APP_ID_SIZE:
        raise MalformedMessage("a key's chain is two signatures over a 20-byte app id", rule="ENC-3")
    app = _recover(_key_digest(purpose, public), chain[0])
    return _recover(_app_digest(app_id, app), chain[1])


def _key_digest(purpose: str, public: bytes) -> Digest:
    return keccak256(f"{purpose}:{public.hex()}".encode())


def _app_digest(app_id: bytes, app_public: bytes) -> Digest:
    return keccak256(_ISSUED_LABEL, app_id, app_public)


def _message_digest(data: bytes, algorithm: Algorithm) -> Digest:
    if algorithm is not Algorithm.PREHASHED:
        return sha256(data)
    if len(data) != Digest.SIZE:
        raise MalformedMessage(f"a prehashed message has 32 bytes, not {len(data)}", rule="ENC-2")
    return Digest(data)


def _sign(secret: Secret, digest: Digest) -> bytes:
    return bytes(PrivateKey(secret.reveal()).sign_recoverable(digest, hasher=None))


def _recover(digest: Digest, signature: bytes) -> bytes:
    if len(signature) != CHAIN_SIGNATURE_SIZE or signature[64] not in (0, 1, 27, 28):
        raise MalformedMessage("a chain's signature is 65 bytes and ends in its recovery id", rule="ENC-3")
    return _recovered(digest, signature[:64], signature[64] % 27)


def _recovered(digest: Digest, compact: bytes, recovery: int) -> bytes:
    try:
        point = PublicKey.from_signature_and_message(compact + bytes([recovery]), digest, hasher=None)
    except Exception:  # noqa: BLE001  coincurve raises a bare Exception for an unrecoverable point
        raise MalformedMessage("no key gives this signature", rule="ENC-3") from None
    return bytes(point.format(compressed=True))
