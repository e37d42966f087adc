# SPDX-License-Identifier: Apache-2.0
"""Operators publish themselves; a stake manager moves them in and out of sets; publishers keep their own lists."""

from __future__ import annotations

from typing import Any

import pytest
from eth_abi import encode
from tests.onchain.conftest import AUTHORIZER, PAYER, RECEIVER, SESSION, STRANGER, Bench, address

from bombyx.protocol.primitives import keccak256

PROXY, WORKER, VALIDATOR = 1, 2, 3
MODEL = bytes([7]) * 32
CONFIG = b"\x11" * 1_230


@pytest.fixture
def registry(bench: Bench) -> Any:
    return bench.deploy("OperatorRegistry", *[AUTHORIZER.address] * 3, 0, 0, 0)


@pytest.fixture
def values(bench: Bench) -> Any:
    return bench.deploy("ReferenceValues")


def _register(registry: Any, who: Any, role: int, *, key: Any = SESSION, endpoint: str = "http://a") -> None:
    registry.register(
        role, str(key.address), str(key.address), endpoint, CONFIG, bytes(32), [MODEL], sender=str(who.address)
    )


def test_anyone_registers_and_is_listed_in_order(bench: Bench, registry: Any) -> None:
    """The stored digest is that of the parts that are only in the event."""
    _register(registry, PAYER, PROXY)
    _register(registry, RECEIVER, WORKER)
    _register(registry, STRANGER, PROXY, endpoint="http://b")
    found = registry.operators(PROXY, 0, 10)
    assert [line[0] for line in found] == [str(PAYER.address), str(STRANGER.address)]
    whole = encode(["string", "bytes", "bytes32", "bytes32[]"], ["http://b", CONFIG, bytes(32), [MODEL]])
    assert bytes(found[1][6]) == keccak256(whole)
    assert registry.operators(PROXY, 1, 1) == found[1:]
    assert registry.operators(PROXY, 2, 10) == []
    assert registry.operators(VALIDATOR, 0, 10) == []


def test_a_line_is_replaced_by_its_owner_alone_and_keeps_its_role(bench: Bench, registry: Any) -> None:
    """A worker does not become a proxy; old keys stay attributable to it."""
    _register(registry, PAYER, WORKER)
    _register(registry, PAYER, WORKER, key=RECEIVER)
    with bench.refused("RoleIsKept"):
        _register(registry, PAYER, PROXY)
    for role in (0, 4, 255):
        with bench.refused("UnknownRole"):
            _register(registry, STRANGER, role)
    assert registry.memberCount(WORKER) == 1
    for key in (SESSION, RECEIVER):
        assert registry.keySince(str(PAYER.address), str(key.address)) > 0
    assert registry.keySince(str(STRANGER.address), str(SESSION.address)) == 0


def test_a_retired_operator_is_not_offered(bench: Bench, registry: Any) -> None:
    """It can come back; nobody else can retire it."""
    with bench.refused("NotRegistered"):
        registry.retire(sender=str(PAYER.address))
    _register(registry, PAYER, WORKER)
    registry.retire(sender=str(PAYER.address))
    assert registry.operators(WORKER, 0, 10) == []
    _register(registry, PAYER, WORKER)
    assert len(registry.operators(WORKER, 0, 10)) == 1


def test_the_registrar_listens_to_its_stake_manager_alone(bench: Bench, registry: Any) -> None:
    """IAVSRegistrar: set ids are role numbers; only a registered operator of that role joins."""
    selectors = {
        "supportsAVS(address)": registry.supportsAVS,
        "registerOperator(address,address,uint32[],bytes)": registry.registerOperator,
        "deregisterOperator(address,address,uint32[])": registry.deregisterOperator,
    }
    assert set(selectors)  # their existence is the interface; the calls below encode them
    _register(registry, PAYER, VALIDATOR)
    who, avs, manager = str(PAYER.address), registry.address, str(AUTHORIZER.address)
    assert registry.supportsAVS(avs)
    assert not registry.supportsAVS(who)
    with bench.refused("OnlyStakeManager"):
        registry.registerOperator(who, avs, [VALIDATOR], b"", sender=str(STRANGER.address))
    with bench.refused("OtherAVS"):
        registry.registerOperator(who, who, [VALIDATOR], b"", sender=manager)
    with bench.refused("NotRegistered"):
        registry.registerOperator(who, avs, [WORKER], b"", sender=manager)
    registry.registerOperator(who, avs, [VALIDATOR], b"", sender=manager)
    assert registry.inSet(who, VALIDATOR)
    registry.deregisterOperator(who, avs, [VALIDATOR], sender=manager)
    assert not registry.inSet(who, VALIDATOR)


def test_publishers_speak_for_themselves(bench: Bench, values: Any) -> None:
    """Nobody can admit a value for everyone; no publishers and no quorum mean no."""
    good, one, two = b"\x01" * 32, str(PAYER.address), str(RECEIVER.address)
    values.propose(1, good, "https://example.org/image", sender=one)
    assert values.isGood(one, 1, good)
    assert not values.isGood(two, 1, good)
    assert not values.isGood(one, 2, good)
    assert values.agreed([one, two], 1, 1, good)
    assert not values.agreed([one, two], 2, 1, good)
    assert not values.agreed([one, one], 2, 1, good)  # named twice, counted once
    assert not values.agreed([one], 0, 1, good)
    assert not values.agreed([], 0, 1, good)
    with bench.refused("NotListed"):
        values.revoke(1, good, sender=two)
    values.revoke(1, good, sender=one)
    assert not values.agreed([one, two], 1, 1, good)
    with bench.refused("UnknownKind"):
        values.propose(3, good, "")


def test_additions_wait_and_revocations_do_not(bench: Bench, values: Any) -> None:
    """A thief of a publisher's key has to wait in the open; shortening the wait waits too."""
    value, who = b"\x02" * 32, str(PAYER.address)
    values.setDelay(1_000, sender=who)
    values.propose(2, value, "", sender=who)
    with bench.refused("AlreadyListed"):
        values.propose(2, value, "", sender=who)
    assert not values.isGood(who, 2, value)
    values.setDelay(0, sender=who)
    assert values.delayOf(who) == 1_000
    bench.pass_time(999)
    assert not values.isGood(who, 2, value)
    bench.pass_time(2)
    assert values.isGood(who, 2, value)
    assert values.delayOf(who) == 0
    values.revoke(2, value, sender=who)
    assert not values.isGood(who, 2, value)
    with bench.refused("DelayTooLong"):
        values.setDelay(31_536_001, sender=who)
    assert address(values)
