# SPDX-License-Identifier: Apache-2.0
"""WAL-1: wallets that every Ethereum tool can open, and that give nothing away."""

from __future__ import annotations

import contextlib
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.keystore import QUICK, Keystore, WrongPassphrase, address_in, seal, unseal
from bombyx.errors import ConfigError
from bombyx.protocol.primitives import Secret
from bombyx.protocol.wire.signing import SigningKey

VECTORS = Path(__file__).resolve().parents[2] / "vectors" / "keystore"
PASS = Secret(b"correct horse")
KEY = SigningKey(Secret(bytes.fromhex("7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d")))
SEALED = seal(KEY, PASS, entropy=SystemEntropy(), work=QUICK)


@pytest.fixture
def folder(tmp_path: Path) -> Keystore:
    return Keystore(tmp_path / "wallets", SystemEntropy(), work=QUICK)


@pytest.mark.parametrize(
    ("name", "passphrase", "secret"),
    [
        ("pbkdf2", b"testpassword", KEY.secret().reveal().hex()),
        ("31_bytes", b"foo", "fa7b3db73dc7dfdf8c5fbdb796d741e4488628c41fc4febd9160a866ba0f35"),
        ("30_bytes", b"foo", "81c29e8142bb6a81bef5a92bda7a8328a5c85bb2f9542e76f9b0f94fc018"),
    ],
)
def test_the_published_wallets_open(name: str, passphrase: bytes, secret: str) -> None:
    """WAL-1: test wallets of the Web3 Secret Storage definition, and geth's of keys that begin with zeros."""
    text = (VECTORS / f"{name}.json").read_text()
    assert unseal(text, Secret(passphrase)).secret().reveal().hex() == secret.rjust(64, "0")
    with pytest.raises(WrongPassphrase):
        unseal(text, Secret(b"another"))


def test_a_wallet_outside_of_scrypts_own_bounds_is_refused_by_name() -> None:
    """WAL-1: the definition's scrypt wallet has n = 2^18 with r = 1, which RFC 7914 section 6 forbids."""
    with pytest.raises(ConfigError, match="RFC 7914"):
        unseal((VECTORS / "scrypt_r1.json").read_text(), Secret(b"testpassword"))


def test_a_wallet_comes_back_and_is_private(folder: Keystore) -> None:
    """WAL-1: made, kept as 0600, opened; the file does not hold the key."""
    made = folder.create("owner", PASS)
    path = folder.path("owner")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert made.secret().reveal().hex() not in path.read_text()
    assert folder.load("owner", PASS).address == made.address == folder.accounts()["owner"]


def test_an_existing_wallet_is_never_overwritten(folder: Keystore) -> None:
    """WAL-1: it may hold the only key to money."""
    folder.create("owner", PASS)
    before = folder.text("owner")
    with pytest.raises(ConfigError, match="not overwritten"):
        folder.create("owner", PASS)
    assert folder.text("owner") == before


def test_a_wallet_others_can_read_is_refused(folder: Keystore) -> None:
    """WAL-1: whoever copied it can guess at leisure."""
    folder.create("owner", PASS)
    folder.path("owner").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        folder.load("owner", PASS)


def test_a_wallet_that_names_another_address_is_refused() -> None:
    """WAL-1: the address in a file is a hint; money would be sent to whoever wrote it."""
    lying = json.loads(SEALED) | {"address": "00" * 20}
    with pytest.raises(ConfigError, match="holds the key of"):
        unseal(json.dumps(lying), PASS)


@pytest.mark.parametrize(
    "change",
    [
        {"n": 1 << 30},
        {"n": 1 << 20, "r": 64},
        {"n": 3},
        {"p": 1 << 24},
        {"dklen": 64},
        {"n": True},
        {"n": "4096"},
        {"salt": "00" * 2000},
    ],
)
def test_a_wallet_that_asks_for_absurd_work_is_refused_before_it_is_done(change: dict[str, Any]) -> None:
    """WAL-1: a file from elsewhere must not take the machine's memory."""
    wallet = json.loads(SEALED)
    wallet["crypto"]["kdfparams"] |= change
    with pytest.raises(ConfigError) as refused:
        unseal(json.dumps(wallet), PASS)
    assert not isinstance(refused.value, WrongPassphrase)


def test_a_changed_ciphertext_is_noticed_before_it_is_opened() -> None:
    """WAL-1: the MAC covers it."""
    wallet = json.loads(SEALED)
    wallet["crypto"]["ciphertext"] = "00" * 32
    with pytest.raises(WrongPassphrase):
        unseal(json.dumps(wallet), PASS)


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(["crypto", "version", "address"]), JSONISH)
def test_damaged_wallets_are_settings_errors(name: str, value: Any) -> None:
    """WAL-1: whatever a file holds, the answer is one of ours."""
    text = json.dumps(json.loads(SEALED) | {name: value})
    with contextlib.suppress(ConfigError):
        address_in(text)
    with contextlib.suppress(ConfigError):
        unseal(text, Secret(b"wrong"))


@given(st.sampled_from(["cipher", "cipherparams", "ciphertext", "kdf", "kdfparams", "mac"]), JSONISH)
def test_damaged_ciphers_are_settings_errors(name: str, value: Any) -> None:
    """WAL-1: whatever a file holds, the answer is one of ours."""
    wallet = json.loads(SEALED)
    wallet["crypto"][name] = value
    with pytest.raises(ConfigError):
        unseal(json.dumps(wallet), Secret(b"wrong"))


@given(st.text(max_size=200))
def test_what_is_no_wallet_is_said_to_be_none(text: str) -> None:
    """WAL-1: bounded, and never a foreign exception."""
    with pytest.raises(ConfigError):
        unseal(text, PASS)
