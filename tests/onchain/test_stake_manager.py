# SPDX-License-Identifier: Apache-2.0
"""Stake: what may be allocated, slashed and taken back; and that it looks as EigenLayer's AllocationManager does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.onchain.conftest import STRANGER, Bench
from tests.onchain.court import ARTIFACTS, CHEAT, HONEST, STAKE, VALIDATOR, VALIDATORS, WORKER, Court

from bombyx.protocol.audit.case import WAD
from bombyx.protocol.primitives import keccak256

# Published signatures (EigenLayer's docs and verified contracts): what an AVS, its operators and indexers know.
FUNCTIONS = (
    "updateAVSMetadataURI(address,string)",
    "setAVSRegistrar(address,address)",
    "createRedistributingOperatorSets(address,(uint32,address[],address)[],address[])",
    "slashOperator(address,(address,uint32,address[],uint256[],string))",
    "isOperatorSlashable(address,(address,uint32))",
    "isMemberOfOperatorSet(address,(address,uint32))",
    "getMembers((address,uint32))",
    "getMemberCount((address,uint32))",
    "getMinimumSlashableStake((address,uint32),address[],address[],uint32)",
    "getAllocatedStake((address,uint32),address[],address[])",
    "modifyAllocations(address,((address,uint32),address[],uint64[])[])",
    "registerForOperatorSets(address,(address,uint32[],bytes))",
    "deregisterFromOperatorSets((address,address,uint32[]))",
    "getMaxMagnitude(address,address)",
    "getAllocation(address,(address,uint32),address)",
    "getAVSRegistrar(address)",
    "DEALLOCATION_DELAY()",
    "depositIntoStrategy(address,address,uint256)",
)
EVENTS = (
    "OperatorSlashed(address,(address,uint32),address[],uint256[],string)",
    "OperatorAddedToOperatorSet(address,(address,uint32))",
    "OperatorRemovedFromOperatorSet(address,(address,uint32))",
    "AllocationUpdated(address,(address,uint32),address,uint64,uint32)",
    "EncumberedMagnitudeUpdated(address,address,uint64)",
    "MaxMagnitudeUpdated(address,address,uint64)",
    "AVSRegistrarSet(address,address)",
    "AVSMetadataURIUpdated(address,string)",
    "OperatorSetCreated((address,uint32))",
    "StrategyAddedToOperatorSet((address,uint32),address)",
    "RedistributionAddressSet((address,uint32),address)",
)


@pytest.fixture(scope="module")
def built(deployed: Bench) -> Iterator[Court]:
    with deployed.boa.env.anchor():
        yield Court(deployed, validators=1)


@pytest.fixture
def court(built: Court) -> Iterator[Court]:
    with built.boa.env.anchor():
        parties, supply = built.parties, built.supply
        yield built
        built.check()
        built.parties, built.supply = parties, supply


def _plain(item: dict[str, Any]) -> str:
    if item["type"].startswith("tuple"):
        return f"({','.join(_plain(one) for one in item['components'])}){item['type'][5:]}"
    return str(item["type"])


def test_selectors_and_topics_are_eigenlayers() -> None:
    """VAL-16: an AVS, an operator's tool and an indexer need not know which of the two they speak to."""
    abi = json.loads((ARTIFACTS / "StakeManager.json").read_text())["abi"]
    for kind, wanted in (("function", FUNCTIONS), ("event", EVENTS)):
        found = {
            f"{one['name']}({','.join(_plain(item) for item in one['inputs'])})" for one in abi if one["type"] == kind
        }
        assert set(wanted) <= found
    indexed = {one["name"]: [i["name"] for i in one["inputs"] if i["indexed"]] for one in abi if one["type"] == "event"}
    assert indexed["OperatorSlashed"] == []
    assert indexed["OperatorAddedToOperatorSet"] == ["operator"]


def _slash(court: Court, who: Any, role: int, wad: int, sender: Any) -> Any:
    params = (str(who.address), role, [court.manager.address], [wad], "why")
    return court.manager.slashOperator(court.registry.address, params, sender=sender)


def test_a_slash_takes_its_share_of_what_is_allocated_and_no_more(court: Court) -> None:
    """VAL-16: magnitudes and shares as EigenLayer's example run has them: 1000, half allocated, 10 % slashed: 950."""
    court.allocate(CHEAT, WORKER, WAD // 2)
    court.pass_blocks(court.terms.deallocation_blocks + 2)
    assert court.allocated(CHEAT, WORKER) == STAKE // 2
    slasher = court.slasher.address
    before = court.token.balanceOf(court.restitution.address)
    assert _slash(court, CHEAT, WORKER, WAD // 10, slasher) == (1, [STAKE // 20])
    assert court.shares(CHEAT) == STAKE * 95 // 100
    manager, mine = court.manager, str(CHEAT.address)
    assert manager.getMaxMagnitude(mine, manager.address) == WAD * 95 // 100
    assert manager.getAllocation(mine, (court.registry.address, WORKER), manager.address)[0] == WAD * 45 // 100
    assert court.allocated(CHEAT, WORKER) == STAKE * 45 // 100
    court.boa.env.raw_call(  # what came in is told, as the slasher would, so that the books hold
        court.restitution.address,
        data=keccak256(b"insure(uint256)")[:4] + (STAKE // 20).to_bytes(32),
        sender=slasher,
    )
    assert court.token.balanceOf(court.restitution.address) - before == STAKE // 20


def test_attack_slashing_by_others_or_beyond(court: Court) -> None:
    """VAL-16: the set's slasher only, a share of at most all, of a member, in the set's own strategy."""
    slasher, manager = court.slasher.address, court.manager
    for sender in (str(STRANGER.address), str(HONEST.address), court.registry.address):
        with court.bench.refused("InvalidCaller"):
            _slash(court, CHEAT, WORKER, WAD, sender)
    for wad in (0, WAD + 1):
        with court.bench.refused("InvalidWadToSlash"):
            _slash(court, CHEAT, WORKER, wad, slasher)
    with court.bench.refused("OperatorNotSlashable"):
        _slash(court, CHEAT, VALIDATOR, WAD, slasher)
    with court.bench.refused("InvalidOperatorSet"):
        _slash(court, CHEAT, 9, WAD, slasher)
    row = (str(CHEAT.address), WORKER, [court.token.address], [WAD], "")
    with court.bench.refused("StrategyNotInOperatorSet"):
        manager.slashOperator(court.registry.address, row, sender=slasher)
    row = (str(CHEAT.address), WORKER, [manager.address], [WAD, WAD], "")
    with court.bench.refused("InputArrayLengthMismatch"):
        manager.slashOperator(court.registry.address, row, sender=slasher)


def test_less_allocated_counts_after_the_delay(court: Court) -> None:
    """VAL-5, VAL-16: until then it is slashed with the rest; one change at a time; more counts at once."""
    court.allocate(CHEAT, WORKER, WAD // 4)
    assert court.allocated(CHEAT, WORKER) == STAKE
    with court.bench.refused("ModificationAlreadyPending"):
        court.allocate(CHEAT, WORKER, WAD // 2)
    later = court.boa.env.evm.patch.block_number + court.terms.deallocation_blocks + 1
    group = (court.registry.address, WORKER)
    rows = court.manager.getMinimumSlashableStake(group, [str(CHEAT.address)], [court.manager.address], later)
    assert rows == [[STAKE // 4]]
    court.pass_blocks(court.terms.deallocation_blocks + 1)
    assert court.allocated(CHEAT, WORKER) == STAKE // 4
    with court.bench.refused("SameMagnitude"):
        court.allocate(CHEAT, WORKER, WAD // 4)
    court.allocate(CHEAT, WORKER, WAD)
    assert court.allocated(CHEAT, WORKER) == STAKE
    with court.bench.refused("InsufficientMagnitude"):
        court.allocate(CHEAT, VALIDATOR, 1)


def test_a_set_takes_who_has_the_minimum(court: Court) -> None:
    """VAL-7, VAL-16: registered for that role, with enough allocated; nobody is enrolled or removed by strangers."""
    new = VALIDATORS[5]
    mine = str(new.address)
    court.token.mint(mine, STAKE, sender=str(STRANGER.address))
    court.token.approve(court.manager.address, STAKE, sender=mine)
    manager, registry = court.manager, court.registry
    wanted = (registry.address, [VALIDATOR], b"")
    with court.bench.refused("NotRegistered"):
        manager.registerForOperatorSets(mine, wanted, sender=mine)
    registry.register(VALIDATOR, mine, mine, "", b"", bytes(32), [], sender=mine)
    with court.bench.refused("StakeTooSmall"):
        manager.registerForOperatorSets(mine, wanted, sender=mine)
    manager.depositIntoStrategy(manager.address, court.token.address, court.terms.validator_minimum, sender=mine)
    court.allocate(new, VALIDATOR, WAD)
    with court.bench.refused("InvalidCaller"):
        manager.registerForOperatorSets(mine, wanted, sender=str(STRANGER.address))
    with court.bench.refused("NotRegistered"):
        manager.registerForOperatorSets(mine, (registry.address, [WORKER], b""), sender=mine)
    manager.registerForOperatorSets(mine, wanted, sender=mine)
    with court.bench.refused("AlreadyMemberOfSet"):
        manager.registerForOperatorSets(mine, wanted, sender=mine)
    with court.bench.refused("InvalidCaller"):
        manager.deregisterFromOperatorSets((mine, registry.address, [VALIDATOR]), sender=str(STRANGER.address))
    assert registry.isFit(mine, VALIDATOR)
    court.leave(new, VALIDATOR)
    assert not registry.isFit(mine, VALIDATOR)
    with court.bench.refused("NotMemberOfSet"):
        court.leave(new, VALIDATOR)
    with court.bench.refused("AlreadyMemberOfSet"):  # slashable still: it comes back when that is over
        manager.registerForOperatorSets(mine, wanted, sender=mine)
    court.parties = (*court.parties, new)
    court.supply = court.token.totalSupply()


def test_withdrawals_wait_and_share_every_slash(court: Court) -> None:
    """VAL-5, VAL-16: what is queued is slashed in proportion; nobody takes out more than is left."""
    manager, mine = court.manager, str(CHEAT.address)
    for amount in (0, STAKE + 1):
        with court.bench.refused("InvalidWithdrawal"):
            manager.queueWithdrawal(amount, sender=mine)
    manager.queueWithdrawal(STAKE // 2, sender=mine)
    with court.bench.refused("InvalidWithdrawal"):
        manager.queueWithdrawal(1, sender=mine)
    _slash(court, CHEAT, WORKER, WAD // 5, court.slasher.address)
    with court.bench.refused("WithdrawalDelayNotElapsed"):
        manager.completeWithdrawal(sender=mine)
    court.pass_blocks(court.terms.deallocation_blocks + 1)
    before = court.money(CHEAT)
    manager.completeWithdrawal(sender=mine)
    assert court.money(CHEAT) - before == STAKE // 2 * 8 // 10
    assert court.shares(CHEAT) == STAKE * 8 // 10 - STAKE // 2 * 8 // 10
    with court.bench.refused("WithdrawalDelayNotElapsed"):
        manager.completeWithdrawal(sender=mine)


def test_an_avs_is_set_up_by_itself_alone(court: Court) -> None:
    """VAL-16: no one makes sets, or names a registrar, for another; a set is made once."""
    manager, other = court.manager, str(STRANGER.address)
    avs = court.registry.address
    sets = ([(WORKER, [manager.address], other)], [other])
    with court.bench.refused("InvalidCaller"):
        manager.createRedistributingOperatorSets(avs, *sets, sender=other)
    with court.bench.refused("InvalidOperatorSet"):
        manager.createRedistributingOperatorSets(avs, *sets, sender=avs)
    with court.bench.refused("NonexistentAVSMetadata"):
        manager.createRedistributingOperatorSets(other, *sets, sender=other)
    with court.bench.refused("InvalidAVSRegistrar"):
        manager.setAVSRegistrar(other, avs, sender=other)
    manager.updateAVSMetadataURI(other, "urn:x", sender=other)
    for bad in (court.manager.address, "0x" + "00" * 20):
        with court.bench.refused("InvalidRedistributionRecipient"):
            manager.createRedistributingOperatorSets(other, sets[0], [bad], sender=other)
