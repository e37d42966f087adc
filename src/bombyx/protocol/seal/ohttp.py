# SPDX-License-Identifier: Apache-2.0
"""Oblivious HTTP (RFC 9458): key configurations, Encapsulated Requests, Encapsulated Responses.

The worker's enclave is Gateway and Target, the proxy is the Relay. NOT here: chunking (`chunked.py`), HTTP
(`bhttp.py`).

Always: the header that names key and algorithms is bound into HPKE's info; only AES-128-GCM with HKDF-SHA256 is
spoken, other suites of a foreign configuration are read and left alone. (docs/spec, SEAL-3, SEAL-10.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bombyx.errors import KeyConfigError, MalformedMessage, Peer, SealError
from bombyx.protocol.primitives import Digest, sha256
from bombyx.protocol.seal.hpke import (
    AEAD_AES_128_GCM,
    KDF_HKDF_SHA256,
    KEY_SIZE,
    NONCE_SIZE,
    TAG_SIZE,
    ByteSource,
    Context,
    Kem,
    PrivateKey,
    Randomness,
    hkdf_expand,
    hkdf_extract,
    setup_recipient,
    setup_sender,
)

REQUEST_LABEL: Final = b"message/bhttp request"
RESPONSE_LABEL: Final = b"message/bhttp response"
SESSION_LABEL: Final = b"message/bombyx-session request v1"  # a payer's session key, sealed to a payee (PAY-9)
SUITE: Final = (KDF_HKDF_SHA256, AEAD_AES_128_GCM)
HEADER_SIZE: Final = 7  # key id, KEM, KDF, AEAD
RESPONSE_NONCE_SIZE: Final = max(KEY_SIZE, NONCE_SIZE)
MAX_KEY_CONFIGS: Final = 16_384  # bytes of one application/ohttp-keys; ours of two keys has 1300
MAX_SUITES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyConfig:
    """One key configuration (RFC 9458 section 3.1) of a KEM we know."""

    key_id: int
    kem: Kem
    public_key: bytes = field(repr=False)
    suites: tuple[tuple[int, int], ...] = (SUITE,)

    def encode(self) -> bytes:
        """Without the 2-byte length that stands before it in a list."""
        suites = b"".join(kdf.to_bytes(2) + aead.to_bytes(2) for kdf, aead in self.suites)
        return bytes([self.key_id]) + self.kem.to_bytes(2) + self.public_key + len(suites).to_bytes(2) + suites

    def candidate_id(self) -> Digest:
        """How META names the holder of this key: SHA-256 of the encoded configuration."""
        return sha256(self.encode())

    def header(self) -> bytes:
        """The first bytes of an Encapsulated Request to this key."""
        if SUITE not in self.suites:
            raise KeyConfigError("a key without HKDF-SHA256 and AES-128-GCM", peer=Peer.WORKER, rule="SEAL-10")
        return bytes([self.key_id]) + b"".join(n.to_bytes(2) for n in (self.kem, *SUITE))


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayKey:
    """A configuration and the private key behind it."""

    config: KeyConfig
    private_key: PrivateKey = field(repr=False)

    @classmethod
    def generate(cls, key_id: int, kem: Kem, randomness: ByteSource) -> GatewayKey:
        private = PrivateKey.generate(kem, randomness)
        return cls(
            config=KeyConfig(key_id=key_id, kem=kem, public_key=private.public_bytes),
            private_key=private,
        )


def encode_key_configs(configs: Iterable[KeyConfig]) -> bytes:
    """`application/ohttp-keys`: each configuration after its 2-byte length."""
    return b"".join(len(one).to_bytes(2) + one for one in (config.encode() for config in configs))


def parse_key_configs(data: bytes) -> tuple[KeyConfig, ...]:
    """Read `application/ohttp-keys`. Configurations of unknown KEMs are left out, as RFC 9458 asks."""
    if len(data) > MAX_KEY_CONFIGS:
        raise _bad_config(f"{len(data)} bytes, at most {MAX_KEY_CONFIGS}")
    configs: list[KeyConfig] = []
    position = 0
    while position < len(data):
        size = int.from_bytes(data[position : position + 2])
        one = data[position + 2 : position + 2 + size]
        if len(one) != size or position + 2 > len(data):
            raise _bad_config("it ends inside a configuration")
        if int.from_bytes(one[1:3]) in Kem._value2member_map_:
            configs.append(parse_key_config(one))
        position += 2 + size
    return tuple(configs)


def parse_key_config(data: bytes) -> KeyConfig:
    """Read one configuration, without a length before it."""
    try:
        kem = Kem(int.from_bytes(data[1:3]))
    except ValueError:
        raise _bad_config("an unknown KEM") from None
    key_end = 3 + kem.public_size
    size = int.from_bytes(data[key_end : key_end + 2])
    if len(data) != key_end + 2 + size or size == 0 or size % 4 or size > 4 * MAX_SUITES:
        raise _bad_config("its lengths do not add up")
    pairs = data[key_end + 2 :]
    suites = tuple((int.from_bytes(pairs[i : i + 2]), int.from_bytes(pairs[i + 2 : i + 4])) for i in range(0, size, 4))
    return KeyConfig(key_id=data[0], kem=kem, public_key=data[3:key_end], suites=suites)


def _bad_config(what: str) -> MalformedMessage:
    return MalformedMessage(f"a key configuration is malformed: {what}", rule="SEAL-10")


# --- encapsulation ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Encapsulation:
    """What either end keeps of one Encapsulated Request: enough to seal or open what answers it."""

    enc: bytes = field(repr=False)
    context: Context = field(repr=False)


def encapsulate_request(
    config: KeyConfig, plaintext: bytes, randomness: Randomness, *, label: bytes = REQUEST_LABEL
) -> tuple[bytes, Encapsulation]:
    """header || enc || ciphertext (RFC 9458 section 4.3)."""
    header = config.header()
    enc, context = setup_sender(config.kem, config.public_key, label + b"\x00" + header, randomness)
    return header + enc + context.seal(b"", plaintext), Encapsulation(enc=enc, context=context)


def decapsulate_request(
    keys: Iterable[GatewayKey], data: bytes, *, label: bytes = REQUEST_LABEL
) -> tuple[bytes, Encapsulation, GatewayKey]:
    """(plaintext, encapsulation, the key that opened it). Raises `KeyConfigError` when it was
    sealed to another key.
    """
    key, header, enc, rest = split_request(keys, data)
    context = setup_recipient(key.private_key, enc, label + b"\x00" + header)
    try:
        return context.open(b"", rest), Encapsulation(enc=enc, context=context), key
    except SealError:
        raise not_ours(header[0]) from None


def split_request(keys: Iterable[GatewayKey], data: bytes) -> tuple[GatewayKey, bytes, bytes, bytes]:
    """(key, header, enc, what follows): the unencrypted front of any Encapsulated Request, chunked or not."""
    if len(data) < HEADER_SIZE:
        raise MalformedMessage("an Encapsulated Request ends inside its header", rule="SEAL-3")
    header = data[:HEADER_SIZE]
    for key in keys:
        if key.config.header() == header:
            end = HEADER_SIZE + key.config.kem.enc_size
            if len(data) < end:
                raise MalformedMessage("an Encapsulated Request ends inside its key", rule="SEAL-3")
            return key, header, data[HEADER_SIZE:end], data[end:]
    raise not_ours(header[0])


def not_ours(key_id: int) -> KeyConfigError:
    """Key ids have one byte: an unknown id and a capsule that does not open say the same, another key was meant."""
    return KeyConfigError(f"not sealed to key {key_id} as it is held here now", peer=Peer.CLIENT, rule="SEAL-10")


def encapsulate_response(to: Encapsulation, plaintext: bytes, response_nonce: bytes) -> bytes:
    """nonce || ciphertext (RFC 9458 section 4.4), whole and unchunked."""
    key, nonce = response_keys(to.enc, to.context.export(RESPONSE_LABEL, RESPONSE_NONCE_SIZE), response_nonce)
    return response_nonce + AESGCM(key).encrypt(nonce, plaintext, b"")


def decapsulate_response(of: Encapsulation, data: bytes) -> bytes:
    """Open a whole, unchunked response."""
    if len(data) < RESPONSE_NONCE_SIZE + TAG_SIZE:
        raise MalformedMessage("an Encapsulated Response is too short", rule="SEAL-7")
    secret = of.context.export(RESPONSE_LABEL, RESPONSE_NONCE_SIZE)
    key, nonce = response_keys(of.enc, secret, data[:RESPONSE_NONCE_SIZE])
    try:
        return AESGCM(key).decrypt(nonce, data[RESPONSE_NONCE_SIZE:], b"")
    except InvalidTag:
        raise SealError(
            "the response does not open under this request's key", peer=Peer.WORKER, rule="SEAL-7"
        ) from None


def response_keys(enc: bytes, secret: bytes, response_nonce: bytes) -> tuple[bytes, bytes]:
    """(key, nonce) of a response: HKDF over enc || response nonce."""
    if len(response_nonce) != RESPONSE_NONCE_SIZE:
        raise ValueError(f"a response nonce has {RESPONSE_NONCE_SIZE} bytes, not {len(response_nonce)}")
    pseudorandom = hkdf_extract(enc + response_nonce, secret)
    return hkdf_expand(pseudorandom, b"key", KEY_SIZE), hkdf_expand(pseudorandom, b"nonce", NONCE_SIZE)
