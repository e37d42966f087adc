# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title A dollar for development chains: ERC-20 with EIP-3009, in the form USDC has
@license Apache-2.0
@notice Never deploy where money is real: `minter` makes any amount.
@custom:security Signatures are ECDSA or EIP-1271. The form of `transferWithAuthorization` with v, r, s is missing:
    Vyper has no overloading, and x402 uses the other one.
"""

from ethereum.ercs import IERC20
from lib import signatures

implements: IERC20

event Transfer:
    sender: indexed(address)
    receiver: indexed(address)
    value: uint256

event Approval:
    owner: indexed(address)
    spender: indexed(address)
    value: uint256

event AuthorizationUsed:
    authorizer: indexed(address)
    nonce: indexed(bytes32)

name: public(constant(String[8])) = "USD Coin"
symbol: public(constant(String[4])) = "USDC"
version: public(constant(String[1])) = "2"
decimals: public(constant(uint8)) = 6
RECEIVE_WITH_AUTHORIZATION_TYPEHASH: public(constant(bytes32)) = keccak256(
    "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
)
TRANSFER_WITH_AUTHORIZATION_TYPEHASH: public(constant(bytes32)) = keccak256(
    "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
)

minter: public(immutable(address))

balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])
authorizationState: public(HashMap[address, HashMap[bytes32, bool]])
totalSupply: public(uint256)


@deploy
def __init__(minter_: address):
    minter = minter_


@external
def mint(to: address, amount: uint256):
    """@notice Money from nowhere, for development accounts."""
    assert msg.sender == minter, "only the minter"
    assert amount > 0 and amount < 2**128 - self.totalSupply, "not so much"
    self.totalSupply += amount
    self.balanceOf[to] += amount
    log Transfer(sender=empty(address), receiver=to, value=amount)


@external
def transfer(to: address, amount: uint256) -> bool:
    self._move(msg.sender, to, amount)
    return True


@external
def approve(spender: address, amount: uint256) -> bool:
    self.allowance[msg.sender][spender] = amount
    log Approval(owner=msg.sender, spender=spender, value=amount)
    return True


@external
def transferFrom(sender: address, to: address, amount: uint256) -> bool:
    """@notice An allowance of 2^256 - 1 is without limit and is not counted down."""
    allowed: uint256 = self.allowance[sender][msg.sender]
    if allowed != max_value(uint256):
        assert allowed >= amount, "above the allowance"
        self.allowance[sender][msg.sender] = allowed - amount
    self._move(sender, to, amount)
    return True


@external
def receiveWithAuthorization(
    sender: address,
    receiver: address,
    amount: uint256,
    validAfter: uint256,
    validBefore: uint256,
    nonce: bytes32,
    signature: Bytes[1024],
):
    """@notice A transfer that `sender` signed and only `receiver` may submit."""
    assert msg.sender == receiver, "only the receiver"
    digest: bytes32 = keccak256(
        abi_encode(RECEIVE_WITH_AUTHORIZATION_TYPEHASH, sender, receiver, amount, validAfter, validBefore, nonce)
    )
    self._authorize(sender, digest, validAfter, validBefore, nonce, signature)
    self._move(sender, receiver, amount)


@external
def transferWithAuthorization(
    sender: address,
    receiver: address,
    amount: uint256,
    validAfter: uint256,
    validBefore: uint256,
    nonce: bytes32,
    signature: Bytes[1024],
):
    """@notice A transfer that `sender` signed and anyone may submit."""
    digest: bytes32 = keccak256(
        abi_encode(TRANSFER_WITH_AUTHORIZATION_TYPEHASH, sender, receiver, amount, validAfter, validBefore, nonce)
    )
    self._authorize(sender, digest, validAfter, validBefore, nonce, signature)
    self._move(sender, receiver, amount)


@view
@external
def DOMAIN_SEPARATOR() -> bytes32:
    return self._domain()


@view
@internal
def _domain() -> bytes32:
    return signatures._separator(keccak256("USD Coin"), keccak256("2"))


@internal
def _authorize(
    sender: address,
    struct_hash: bytes32,
    valid_after: uint256,
    valid_before: uint256,
    nonce: bytes32,
    signature: Bytes[1024],
):
    assert block.timestamp > valid_after, "not yet valid"
    assert block.timestamp < valid_before, "no longer valid"
    assert not self.authorizationState[sender][nonce], "used already"
    assert signatures._is_signed(sender, signatures._typed(self._domain(), struct_hash), signature), "not signed"
    self.authorizationState[sender][nonce] = True
    log AuthorizationUsed(authorizer=sender, nonce=nonce)


@internal
def _move(sender: address, receiver: address, amount: uint256):
    assert self.balanceOf[sender] >= amount, "above the balance"
    assert receiver != empty(address) and receiver != self, "to nobody"
    self.balanceOf[sender] -= amount
    self.balanceOf[receiver] += amount
    log Transfer(sender=sender, receiver=receiver, value=amount)
