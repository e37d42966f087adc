# SPDX-License-Identifier: Apache-2.0
"""Settings: where they come from, what is refused, and that the refusal says where."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.config import ClientConfig, NetworkDescriptor, ProxyAddress, ProxyConfig, WorkerConfig, explain, load
from bombyx.errors import ConfigError
from bombyx.protocol.primitives import Address


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
    for kind in (ClientConfig, ProxyConfig, WorkerConfig):
        defaults = {name: getattr(kind(), name) for name in explain(kind)[1]}
        assert load(kind, overrides=defaults) == kind()


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
