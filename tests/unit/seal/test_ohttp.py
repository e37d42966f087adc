# SPDX-License-Identifier: Apache-2.0
"""Oblivious HTTP against RFC 9458 Appendix A, and its parsers against anybody."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.errors import KeyConfigError, MalformedMessage, SealError
from bombyx.protocol.primitives import sha256
from bombyx.protocol.seal.hpke import Kem, PrivateKey
from bombyx.protocol.seal.ohttp import (
    GatewayKey,
    KeyConfig,
    decapsulate_request,
    decapsulate_response,
    encapsulate_request,
    encapsulate_response,
    encode_key_configs,
    parse_key_config,
    parse_key_configs,
)

if TYPE_CHECKING:
    from tests.unit.seal.conftest import Scene

Vector = Callable[[str], dict[str, Any]]


class Ephemeral:
    """The client's secret in the RFC's example."""

    def __init__(self, value: bytes) -> None:
        self._value = value

    def bytes(self, size: int) -> Any:
        return self._value

    def mlkem768_encapsulate(self, public_key: Any) -> Any:
        raise AssertionError("the example is X25519")


def test_rfc_9458_appendix_a(vector: Vector) -> None:
    """SEAL-3: key configuration, encapsulated request and encapsulated response are the RFC's, byte for byte."""
    v = {name: bytes.fromhex(value) for name, value in vector("rfc9458_appendix_a").items() if name != "source"}
    config = parse_key_config(v["key_config"])
    assert (config.key_id, config.kem, config.suites) == (1, Kem.X25519, ((1, 1), (1, 3)))
    assert config.encode() == v["key_config"]
    request, client = encapsulate_request(config, v["request"], Ephemeral(v["client_secret"]))
    assert request == v["encapsulated_request"]
    gateway = GatewayKey(config=config, private_key=PrivateKey.from_seed(Kem.X25519, v["gateway_secret"]))
    plaintext, server, key = decapsulate_request([gateway], request)
    assert plaintext == v["request"]
    assert key is gateway
    response = encapsulate_response(server, v["response"], v["response_nonce"])
    assert response == v["encapsulated_response"]
    assert decapsulate_response(client, response) == v["response"]


def test_key_configs_come_back_as_they_went(scene: Scene) -> None:
    """SEAL-10: application/ohttp-keys, hybrid first; a candidate's id is the SHA-256 of its configuration."""
    configs = tuple(key.config for key in scene.keys)
    assert parse_key_configs(encode_key_configs(configs)) == configs
    assert configs[0].candidate_id() == sha256(configs[0].encode())


def test_a_configuration_of_an_unknown_kem_is_left_out(scene: Scene) -> None:
    """SEAL-10: RFC 9458 asks clients to ignore what they do not know, not to fail."""
    known = scene.keys[1].config
    unknown = b"\x07\x00\x10" + bytes(65) + b"\x00\x04\x00\x01\x00\x01"
    both = len(unknown).to_bytes(2) + unknown + encode_key_configs([known])
    assert parse_key_configs(both) == (known,)


def test_a_key_without_our_suite_is_not_sealed_to(scene: Scene) -> None:
    """SEAL-10: AES-128-GCM with HKDF-SHA256 or nothing."""
    config = KeyConfig(key_id=1, kem=Kem.X25519, public_key=scene.keys[1].config.public_key, suites=((1, 3),))
    with pytest.raises(KeyConfigError):
        encapsulate_request(config, b"a word", scene.randomness)


def test_an_unknown_key_id_is_an_ohttp_key_problem(scene: Scene) -> None:
    """SEAL-10: the client appraises again and retries; nothing else has happened."""
    capsule, _ = encapsulate_request(scene.keys[0].config, b"a word", scene.randomness)
    with pytest.raises(KeyConfigError, match="SEAL-10"):
        decapsulate_request(scene.keys[1:], capsule)


def test_another_key_of_the_same_id_is_an_ohttp_key_problem(scene: Scene) -> None:
    """SEAL-10: a restarted worker's new key may bear the old id."""
    capsule, _ = encapsulate_request(scene.keys[0].config, b"a word", scene.randomness)
    reborn = GatewayKey.generate(scene.keys[0].config.key_id, Kem.MLKEM768_X25519, scene.randomness)
    with pytest.raises(KeyConfigError, match="SEAL-10"):
        decapsulate_request([reborn], capsule)


def test_a_capsule_of_one_label_opens_under_no_other(scene: Scene) -> None:
    """SEAL-3: a session key's capsule cannot be played as a request."""
    capsule, _ = encapsulate_request(scene.keys[0].config, b"a word", scene.randomness, label=b"one")
    with pytest.raises(SealError):
        decapsulate_request(scene.keys, capsule, label=b"two")


def test_a_response_to_another_request_does_not_open(scene: Scene) -> None:
    """SEAL-7: response keys belong to one capsule."""
    config = scene.keys[0].config
    capsule, _ = encapsulate_request(config, b"a word", scene.randomness)
    _, other = encapsulate_request(config, b"a word", scene.randomness)
    _, server, _ = decapsulate_request(scene.keys, capsule)
    with pytest.raises(SealError):
        decapsulate_response(other, encapsulate_response(server, b"an answer", bytes(16)))


@given(st.binary(max_size=200))
def test_any_bytes_as_key_configs(data: bytes) -> None:
    """SEAL-10: a tuple or MalformedMessage; what parses encodes to what parses the same."""
    try:
        configs = parse_key_configs(data)
    except MalformedMessage:
        return
    assert parse_key_configs(encode_key_configs(configs)) == configs


@given(st.data())
def test_broken_key_configs(scene: Scene, data: st.DataObject) -> None:
    """SEAL-10: real configurations, cut or with a byte changed."""
    good = bytearray(encode_key_configs(key.config for key in scene.keys))
    place = data.draw(st.integers(0, len(good) - 1))
    if data.draw(st.booleans()):
        broken = bytes(good[:place])
    else:
        good[place] ^= data.draw(st.integers(1, 255))
        broken = bytes(good)
    try:
        parse_key_configs(broken)
    except MalformedMessage:
        pass


def test_too_long_a_list_of_keys_is_refused() -> None:
    """SEAL-10: bounded before it is read."""
    with pytest.raises(MalformedMessage):
        parse_key_configs(bytes(16_385))


@given(st.binary(max_size=1400))
def test_any_bytes_as_a_capsule(scene: Scene, data: bytes) -> None:
    """SEAL-3: MalformedMessage or SealError, whatever comes, also behind a header we hold a key for."""
    for front in (b"", scene.keys[0].config.header(), scene.keys[1].config.header()):
        with pytest.raises((MalformedMessage, SealError)):
            decapsulate_request(scene.keys, front + data)
