# SPDX-License-Identifier: Apache-2.0
"""Keys for code inside, and their chains (ENC-2, ENC-3)."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.adapters.dstack_server import SimulatedGuest
from bombyx.adapters.simulator import SimulatedImage, SimulatedPlatform
from bombyx.errors import MalformedMessage
from bombyx.protocol.attest import appkeys
from bombyx.protocol.attest.appkeys import Algorithm, AppKeys, chain_root
from bombyx.protocol.primitives import Secret

KEYS = AppKeys(root=Secret(b"\x11" * 32), app_id=bytes(range(20)))
CURVES = (Algorithm.SECP256K1, Algorithm.ED25519)


def test_the_same_code_and_path_give_the_same_key_after_a_restart(platform: SimulatedPlatform) -> None:
    """ENC-2."""
    first = SimulatedGuest(platform, SimulatedImage.of("agent", code="one"), instance=b"1" * 16)
    again = SimulatedGuest(platform, SimulatedImage.of("agent", code="one"), instance=b"2" * 16)
    assert first.keys.derive("wallet") == again.keys.derive("wallet")


def test_other_code_never_gets_the_key(platform: SimulatedPlatform) -> None:
    """ENC-2: one byte of the measured file is enough, and another machine's seed too."""
    one = SimulatedGuest(platform, SimulatedImage.of("agent", code="one"))
    two = SimulatedGuest(platform, SimulatedImage.of("agent", code="two"))
    elsewhere = SimulatedPlatform.create(seed=b"x" * 32, now=platform.created)
    three = SimulatedGuest(elsewhere, one.image)
    keys = {guest.keys.derive("wallet").secret for guest in (one, two, three)}
    assert len(keys) == 3


def test_paths_are_apart() -> None:
    """ENC-2."""
    assert KEYS.derive("a").secret != KEYS.derive("b").secret


@pytest.mark.parametrize("curve", CURVES)
def test_a_chain_leads_to_the_root(curve: Algorithm) -> None:
    """ENC-3: for both curves."""
    key = KEYS.derive("wallet", "pay", curve)
    assert chain_root(key.chain, public=key.public, purpose="pay", app_id=KEYS.app_id) == KEYS.root_public


@pytest.mark.parametrize("curve", CURVES)
def test_a_chain_of_another_purpose_app_or_key_leads_elsewhere(curve: Algorithm) -> None:
    """ENC-3: each thing signed counts."""
    key, other = KEYS.derive("wallet", "pay", curve), KEYS.derive("other", "pay", curve)
    app = bytes(20)
    for public, purpose, app_id in (
        (other.public, "pay", KEYS.app_id),
        (key.public, "sign", KEYS.app_id),
        (key.public, "pay", app),
    ):
        try:
            found = chain_root(key.chain, public=public, purpose=purpose, app_id=app_id)
        except MalformedMessage:
            continue
        assert found != KEYS.root_public


@given(st.binary(max_size=70), st.binary(max_size=70))
def test_nonsense_for_a_chain(first: bytes, second: bytes) -> None:
    """ENC-3: a chain is two signatures, or it is refused; whatever it leads to is not the root."""
    found = b""
    with contextlib.suppress(MalformedMessage):
        found = chain_root((first, second), public=b"k", purpose="", app_id=KEYS.app_id)
    assert found != KEYS.root_public


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_what_is_signed_verifies_and_nothing_else_does(algorithm: Algorithm) -> None:
    """ENC-2: Sign and Verify of the agent."""
    curve = Algorithm.ED25519 if algorithm is Algorithm.ED25519 else Algorithm.SECP256K1
    key, data = KEYS.derive("vms", "signing", curve), b"d" * 32
    signature = appkeys.sign(key, data, algorithm)
    assert appkeys.verify(algorithm, data, signature, key.public)
    assert not appkeys.verify(algorithm, b"e" * 32, signature, key.public)
    assert not appkeys.verify(algorithm, data, bytes(64), key.public)
    assert not appkeys.verify(algorithm, data, signature, KEYS.derive("x", "", curve).public)
    assert not appkeys.verify(algorithm, data, b"", b"")


def test_an_unhashed_message_is_not_signed_as_a_hash() -> None:
    """ENC-2."""
    with pytest.raises(MalformedMessage, match="ENC-2"):
        appkeys.sign(KEYS.derive("vms"), b"short", Algorithm.PREHASHED)


def test_dstacks_derivation_is_reproduced() -> None:
    """ENC-2: HKDF-SHA256 with salt RATLS over the joined context, written out once more by hand."""
    import hashlib
    import hmac

    def derive(parent: bytes, info: bytes) -> bytes:
        return hmac.new(hmac.new(b"RATLS", parent, hashlib.sha256).digest(), info + b"\x01", hashlib.sha256).digest()

    app = derive(b"\x11" * 32, KEYS.app_id + b"app-key")
    assert KEYS.derive("a/b").secret.reveal() == derive(app, b"a/b")
