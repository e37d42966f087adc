# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title Deposits by an ERC-20 allowance: for tokens without EIP-3009, and the cheapest in gas
@license Apache-2.0
@notice The payer approves this contract, then calls `deposit` here; this calls settlement, which calls `collect`.
    Works with any contract of x402's `batch-settlement` interface. Always: holds no tokens.
@custom:security An allowance alone says nothing about which channel it is for, and settlement lets anyone deposit for
    anyone. So the payer's consent is that it is `msg.sender` of `deposit`; `collect` accepts only what that call
    announced, in transient storage, for this transaction, once. tx.origin is not looked at.
    An unlimited allowance exposes the payer to faults of this contract alone, which has no owner and cannot change.
"""

from ethereum.ercs import IERC20
from interfaces import IDepositCollector
from interfaces import ISettlement

implements: IDepositCollector

settlement: public(immutable(address))
_announced: transient(bytes32)


@deploy
def __init__(settlement_: address):
    settlement = settlement_


@external
def deposit(config: ISettlement.ChannelConfig, amount: uint128):
    """@notice Open or top up the sender's own channel from the sender's allowance."""
    if msg.sender != config.payer:
        raw_revert(method_id("OnlyPayer()"))
    channel: bytes32 = staticcall ISettlement(settlement).getChannelId(config)
    self._announced = self._announcement(config.payer, config.token, convert(amount, uint256), channel)
    extcall ISettlement(settlement).deposit(config, amount, self, b"")
    assert self._announced == empty(bytes32)


@external
def collect(payer: address, token: address, amount: uint256, channelId: bytes32, collectorData: Bytes[2048]):
    """@notice Called by settlement inside the payer's own `deposit`."""
    if msg.sender != settlement:
        raw_revert(method_id("OnlySettlement()"))
    if self._announced != self._announcement(payer, token, amount, channelId):
        raw_revert(method_id("NotAnnounced()"))
    self._announced = empty(bytes32)
    assert extcall IERC20(token).transferFrom(payer, settlement, amount, default_return_value=True)


@pure
@internal
def _announcement(payer: address, token: address, amount: uint256, channel: bytes32) -> bytes32:
    return keccak256(abi_encode(payer, token, amount, channel))
