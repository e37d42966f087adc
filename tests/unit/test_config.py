# SPDX-License-Identifier: Apache-2.0
"""Settings: where they come from, what is refused, and that the refusal says where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.compose.client import settings_of
from bombyx.config import ClientConfig, NetworkDescriptor, ProxyAddress, ProxyConfig, WorkerConfig, explain, load, shown
from bombyx.errors import ConfigError
from bombyx.protocol.pay.price import MAX_COMMISSION, MAX_GRAIN
from bombyx.protocol.primitives import Address
from bombyx.protocol.seal.chunked import CHUNK
from bombyx.protocol.seal.hpke import TAG_SIZE
from bombyx.protocol.wire.evidence import MAX_KEYSET_LIFE
from bombyx.protocol.wire.request import MAX_DEADLINE, MAX_FRAME, MIN_FRAME, Shape
from bombyx.roles.proxy.settings import Timings as ProxyTimings
from bombyx.roles.worker.settings import Limits as WorkerLimits


def test_later_sources_win_and_the_origin_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "bombyx.toml"
    file.write_text("[client]\nport = 1\nk = 2\nbudget = 7\n")
    monkeypatch.setenv("BOMBYX_CLIENT_PORT", "3")
    monkeypatch.setenv("BOMBYX_CLIENT_K", "4")
    config, origin = explain(ClientConfig, file=file, overrides={"k": 5, "shape": None})
    assert (config.budget, config.port, config.k, config.shape) == (7, 3, 5, "constant")
    assert origin["budget"] == f"file {file}"
    assert (origin["port"], origin["k"], origin["shape"]) == ("environment", "command line", "default")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[client]\nprot = 1\n", "no setting 'prot'"),
        ("[client]\nport = 'x'\n", "client.port takes a int"),
        ("[client]\nport = 70000\n", "outside 0 .. 65535"),
        ("[client]\nk = true\n", "client.k takes a int"),
        ("client = 1\n", "must be a table"),
        ("[client\n", "is not TOML"),
    ],
)
def test_a_wrong_file_is_refused_and_named(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "bombyx.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        load(ClientConfig, file=file)
    assert str(file) in str(caught.value)


def test_a_missing_file_and_a_huge_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load(ProxyConfig, file=tmp_path / "none.toml")
    huge = tmp_path / "huge.toml"
    huge.write_text("#" * (1 << 20) + "\n")
    with pytest.raises(ConfigError, match="larger"):
        load(ProxyConfig, file=huge)


def test_the_defaults_are_within_their_own_bounds() -> None:
    kinds: tuple[Any, ...] = (ClientConfig, ProxyConfig, WorkerConfig)
    for kind in kinds:
        defaults = {name: getattr(kind(), name) for name in explain(kind)[1]}
        assert load(kind, overrides=defaults) == kind()


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        (ClientConfig, {"frame_size": MAX_FRAME, "deadline": float(MAX_DEADLINE)}),
        (ProxyConfig, {"commission_bps": MAX_COMMISSION}),
        (WorkerConfig, {"grain": MAX_GRAIN}),
    ],
)
def test_settings_reach_as_far_as_the_protocol_and_no_further(kind: Any, most: dict[str, float]) -> None:
    """SEAL-8, PROXY-2, PAY-13, PAY-12: what every peer would refuse is refused here, with the setting's name."""
    load(kind, overrides=most)
    for name, value in most.items():
        with pytest.raises(ConfigError, match=f"{kind.ROLE}.{name} = .* is outside"):
            load(kind, overrides={name: value + 1})


def test_the_protocols_bounds_are_one_number_each() -> None:
    """SEAL-8, PROXY-2: proxies and workers take what clients may set."""
    assert MAX_FRAME == CHUNK + TAG_SIZE
    assert ProxyTimings().max_deadline == WorkerLimits().deadline_seconds == MAX_DEADLINE


@pytest.mark.parametrize("size", [1, MIN_FRAME - 1])
def test_a_frame_too_small_to_hold_anything_is_refused(size: int) -> None:
    """SEAL-8: 0 means the shape's own size, nothing else may lie below the least."""
    with pytest.raises(ConfigError, match=f"below {MIN_FRAME}"):
        load(ClientConfig, overrides={"frame_size": size})


@pytest.mark.parametrize(("shape", "size"), [(Shape.CONSTANT, 1024), (Shape.BUCKET, 256), (Shape.OFF, 1024)])
def test_a_shape_has_its_own_frame_unless_told(shape: Shape, size: int) -> None:
    """SEAL-8: 256 bytes in `bucket`, 1 024 in `constant`."""
    assert settings_of(load(ClientConfig, overrides={"shape": shape.value})).frame == size
    assert settings_of(load(ClientConfig, overrides={"shape": shape.value, "frame_size": 512})).frame == 512


def test_a_keyset_that_verifiers_would_refuse_is_refused_here() -> None:
    """ATT-3: rotation and overlap together end before 7 200 s from a beacon that is older than the keyset."""
    load(WorkerConfig, overrides={"rotation": 5_400.0, "overlap": 1_680.0})
    with pytest.raises(ConfigError, match=f"grant a keyset {MAX_KEYSET_LIFE} s from its beacon"):
        load(WorkerConfig, overrides={"rotation": 5_400.0, "overlap": 1_800.0})


def test_a_descriptor_comes_back_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "network.json"
    network = NetworkDescriptor(
        chain_url="http://127.0.0.1:1",
        proxies=(ProxyAddress(address=Address(bytes(range(20))), url="http://127.0.0.1:2"),),
        policy=tmp_path / "policy.toml",
        simulated=tmp_path / "sim",
    )
    file.write_text(network.to_json())
    assert NetworkDescriptor.load(file) == network


def test_no_network_says_how_to_start_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOMBYX_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="bombyx up"):
        NetworkDescriptor.load()


@given(st.text(max_size=200) | st.sampled_from(["{}", "[]", "1", '{"version":1}', '{"version":1,"chain":[]}']))
def test_nonsense_is_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        NetworkDescriptor.from_json(text)


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("sqlite", "sqlite"),
        ("postgresql://me:pa@ss:w/rd@db:5432/books?password=other", "postgresql://***@db:5432/books"),
        ("postgresql://db/books", "postgresql://db/books"),
    ],
)
def test_a_password_in_a_store_is_never_shown(monkeypatch: pytest.MonkeyPatch, url: str, seen: str) -> None:
    """A setting that may hold a password is neither printed nor repeated."""
    monkeypatch.setenv("BOMBYX_PROXY_STORE", url)
    made = load(ProxyConfig)
    assert made.store == url
    assert shown(made)["store"] == seen
    assert "store" not in repr(made)


def test_a_store_is_a_file_or_postgresql(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a wrong one is not repeated either."""
    monkeypatch.setenv("BOMBYX_PROXY_STORE", "mysql://me:secret@db/books")
    with pytest.raises(ConfigError) as refused:
        load(ProxyConfig)
    assert "secret" not in str(refused.value)
