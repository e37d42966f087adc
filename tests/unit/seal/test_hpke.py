# SPDX-License-Identifier: Apache-2.0
"""HPKE against RFC 9180's vectors, a second implementation and the library's own single shot."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import hpke as library
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from pyhpke import AEADId, CipherSuite, KDFId, KEMId

from bombyx.errors import MalformedMessage, SealError
from bombyx.protocol.seal.hpke import Kem, PrivateKey, setup_recipient, setup_sender

if TYPE_CHECKING:
    from tests.unit.seal.conftest import Scene

Vector = Callable[[str], dict[str, Any]]
BOTH = pytest.mark.parametrize("kem", list(Kem))
INFO = b"what this is for"


class Fixed:
    """Randomness of a vector."""

    def __init__(self, value: bytes) -> None:
        self._value = value

    def bytes(self, size: int) -> builtins.bytes:
        assert size == len(self._value)
        return self._value

    def mlkem768_encapsulate(self, public_key: builtins.bytes) -> tuple[builtins.bytes, builtins.bytes]:
        raise AssertionError("X25519 vectors encapsulate nothing")


def _library_suite(kem: Kem) -> library.Suite:
    number = library.KEM.X25519 if kem is Kem.X25519 else library.KEM.MLKEM768_X25519
    return library.Suite(number, library.KDF.HKDF_SHA256, library.AEAD.AES_128_GCM)


def _library_public(key: PrivateKey) -> Any:
    point = X25519PublicKey.from_public_bytes(key.public_bytes[-32:])
    if key.kem is Kem.X25519:
        return point
    return library.MLKEM768X25519PublicKey(MLKEM768PublicKey.from_public_bytes(key.public_bytes[:-32]), point)


def _library_private(key: PrivateKey) -> Any:
    if key._mlkem is None:
        return key._x25519
    return library.MLKEM768X25519PrivateKey(key._mlkem, key._x25519)


def test_rfc_9180_appendix_a_1_1(vector: Vector) -> None:
    """SEAL-11: encapsulation, every listed encryption (also past 255) and every export are the RFC's."""
    v = vector("rfc9180_a_1_1")
    key = PrivateKey.from_seed(Kem.X25519, bytes.fromhex(v["skRm"]))
    assert key.public_bytes.hex() == v["pkRm"]
    info, plaintext = bytes.fromhex(v["info"]), bytes.fromhex(v["pt"])
    enc, sender = setup_sender(Kem.X25519, key.public_bytes, info, Fixed(bytes.fromhex(v["skEm"])))
    assert enc.hex() == v["enc"]
    assert key.decapsulate(enc).hex() == v["shared_secret"]
    recipient = setup_recipient(key, enc, info)
    for sequence in range(257):
        sealed = sender.seal(b"Count-%d" % sequence, plaintext)
        assert recipient.open(b"Count-%d" % sequence, sealed) == plaintext
        assert v["encryptions"].get(str(sequence), sealed.hex()) == sealed.hex()
    for context, value in v["exports"].items():
        assert sender.export(bytes.fromhex(context), 32).hex() == value
        assert recipient.export(bytes.fromhex(context), 32).hex() == value


def test_x_wing_vector_at_the_recipient(vector: Vector) -> None:
    """SEAL-11: 0x647a expands its seed and decapsulates as the X-Wing draft's vector says."""
    v = vector("xwing_draft10_appendix_c_1")
    key = PrivateKey.from_seed(Kem.MLKEM768_X25519, bytes.fromhex(v["seed"]))
    assert key.public_bytes.hex().startswith(v["public_key_head"])
    assert key.public_bytes.hex().endswith(v["public_key_tail"])
    assert key.decapsulate(bytes.fromhex(v["ciphertext"])).hex() == v["shared_secret"]


@BOTH
def test_what_we_seal_the_library_opens(scene: Scene, kem: Kem) -> None:
    """SEAL-11: our sender, the library's single-shot recipient."""
    key = PrivateKey.generate(kem, scene.randomness)
    enc, sender = setup_sender(kem, key.public_bytes, INFO, scene.randomness)
    message = enc + sender.seal(b"", b"a word")
    assert _library_suite(kem).decrypt(message, _library_private(key), info=INFO) == b"a word"


@BOTH
def test_what_the_library_seals_we_open(scene: Scene, kem: Kem) -> None:
    """SEAL-11: the library's single-shot sender, our recipient."""
    key = PrivateKey.generate(kem, scene.randomness)
    message = _library_suite(kem).encrypt(b"a word", _library_public(key), info=INFO)
    recipient = setup_recipient(key, message[: kem.enc_size], INFO)
    assert recipient.open(b"", message[kem.enc_size :]) == b"a word"


def test_pyhpke_agrees_in_both_directions(scene: Scene) -> None:
    """SEAL-11: contexts, sequence and Export agree with a second implementation."""
    suite = CipherSuite.new(KEMId.DHKEM_X25519_HKDF_SHA256, KDFId.HKDF_SHA256, AEADId.AES128_GCM)
    key = PrivateKey.from_seed(Kem.X25519, bytes(range(32)))
    enc, ours = setup_sender(Kem.X25519, key.public_bytes, INFO, scene.randomness)
    theirs = suite.create_recipient_context(enc, suite.kem.deserialize_private_key(bytes(range(32))), info=INFO)
    for word in (b"one", b"two", b"three"):
        assert theirs.open(ours.seal(b"aad", word), b"aad") == word
    assert theirs.export(b"exported", 48) == ours.export(b"exported", 48)
    enc, sender = suite.create_sender_context(suite.kem.deserialize_public_key(key.public_bytes), info=INFO)
    recipient = setup_recipient(key, enc, INFO)
    assert recipient.open(b"aad", sender.seal(b"one", b"aad")) == b"one"
    assert recipient.open(b"aad", sender.seal(b"two", b"aad")) == b"two"


@BOTH
def test_a_failed_open_does_not_advance(scene: Scene, kem: Kem) -> None:
    """SEAL-11: after a forged message the true one still opens."""
    key = PrivateKey.generate(kem, scene.randomness)
    enc, sender = setup_sender(kem, key.public_bytes, INFO, scene.randomness)
    recipient, sealed = setup_recipient(key, enc, INFO), sender.seal(b"", b"a word")
    with pytest.raises(SealError):
        recipient.open(b"", sealed[:-1] + bytes([sealed[-1] ^ 1]))
    with pytest.raises(SealError):
        recipient.open(b"other", sealed)
    assert recipient.open(b"", sealed) == b"a word"


@BOTH
def test_info_is_bound(scene: Scene, kem: Kem) -> None:
    """SEAL-11: a capsule made for one purpose opens for no other."""
    key = PrivateKey.generate(kem, scene.randomness)
    enc, sender = setup_sender(kem, key.public_bytes, INFO, scene.randomness)
    with pytest.raises(SealError):
        setup_recipient(key, enc, b"another purpose").open(b"", sender.seal(b"", b"a word"))


@BOTH
@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31)])
def test_a_degenerate_point_is_refused(scene: Scene, kem: Kem, point: bytes) -> None:
    """SEAL-11: low-order points give an all-zero secret, which RFC 9180 section 7.1.4 forbids on either side."""
    key = PrivateKey.generate(kem, scene.randomness)
    with pytest.raises(SealError):
        setup_recipient(key, bytes(kem.enc_size - 32) + point, INFO)
    with pytest.raises(SealError):
        setup_sender(kem, key.public_bytes[:-32] + point, INFO, scene.randomness)


@BOTH
def test_a_key_of_the_wrong_size_is_the_peers_fault(scene: Scene, kem: Kem) -> None:
    """SEAL-11: sizes are checked before anything is computed."""
    key = PrivateKey.generate(kem, scene.randomness)
    with pytest.raises(MalformedMessage):
        setup_sender(kem, key.public_bytes[:-1], INFO, scene.randomness)
    with pytest.raises(SealError):
        setup_recipient(key, bytes(kem.enc_size + 1), INFO)


def test_a_public_key_that_is_no_lattice_key_is_the_peers_fault(scene: Scene) -> None:
    """SEAL-11: coefficients out of range are refused, not reduced (FIPS 203 section 7.2)."""
    key = PrivateKey.generate(Kem.MLKEM768_X25519, scene.randomness)
    with pytest.raises(MalformedMessage):
        setup_sender(Kem.MLKEM768_X25519, b"\xff" * 1184 + key.public_bytes[-32:], INFO, scene.randomness)


@pytest.mark.parametrize("kem", list(Kem))
@given(enc=st.binary(max_size=1200), sealed=st.binary(max_size=64))
def test_any_foreign_bytes_give_a_typed_error(scene: Scene, kem: Kem, enc: bytes, sealed: bytes) -> None:
    """SEAL-11: no bytes crash a recipient."""
    key = PrivateKey.from_seed(kem, bytes(range(32)))
    enc = (enc * 1200)[: kem.enc_size] if enc else bytes(kem.enc_size)
    with pytest.raises(SealError):
        setup_recipient(key, enc, INFO).open(b"", sealed)


def test_a_private_key_does_not_print_itself(scene: Scene) -> None:
    """SEAL-11: neither seed nor secret is in its repr."""
    seed = scene.randomness.bytes(32)
    shown = repr(PrivateKey.from_seed(Kem.MLKEM768_X25519, seed))
    assert seed.hex() not in shown and "private" not in shown.lower().replace("privatekey", "")
