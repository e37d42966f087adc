# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title Deposits by a signature: EIP-3009 `receiveWithAuthorization`, no gas and no allowance from the payer
@license Apache-2.0
@notice collectorData = abi.encode(uint256 validAfter, uint256 validBefore, uint256 salt, bytes signature), as in x402.
    The authorization's nonce is keccak256(abi.encode(channelId, salt)): it pays into that one channel, once.
    Always: holds no tokens between calls.
@custom:security Only the settlement contract may call. The token is the channel's, so it may be hostile: it can only
    fail, for settlement checks its own balance afterwards. A token that can call back meets settlement's lock.
    Whoever sees an authorization may submit it first; the money goes to the same channel all the same.
"""

from ethereum.ercs import IERC20
from interfaces import IDepositCollector
from interfaces import IERC3009

implements: IDepositCollector

settlement: public(immutable(address))


@deploy
def __init__(settlement_: address):
    settlement = settlement_


@external
def collect(payer: address, token: address, amount: uint256, channelId: bytes32, collectorData: Bytes[2048]):
    """@notice Take `amount` from the payer by its authorization and hand it on."""
    if msg.sender != settlement:
        raw_revert(method_id("OnlySettlement()"))
    valid_after: uint256 = 0
    valid_before: uint256 = 0
    salt: uint256 = 0
    signature: Bytes[1024] = b""
    valid_after, valid_before, salt, signature = abi_decode(collectorData, (uint256, uint256, uint256, Bytes[1024]))
    nonce: bytes32 = keccak256(abi_encode(channelId, salt))
    extcall IERC3009(token).receiveWithAuthorization(
        payer, self, amount, valid_after, valid_before, nonce, signature
    )
    assert extcall IERC20(token).transfer(settlement, amount, default_return_value=True)
