# SPDX-License-Identifier: Apache-2.0
"""The chain: operators, channels, deposits, reference values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final, Protocol

from bombyx.protocol.pay.view import ChannelView, Claim
from bombyx.protocol.pay.x402_payment import Deposit
from bombyx.protocol.primitives import Address, Amount, Digest
from bombyx.protocol.wire.channel import ChannelConfig
from bombyx.protocol.wire.evidence import BlockHeader
from bombyx.protocol.wire.signing import SigningKey


class OperatorRole(StrEnum):
    PROXY = "proxy"
    WORKER = "worker"
    VALIDATOR = "validator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One line of the registry: what the operator last published of itself."""

    address: Address
    role: OperatorRole
    endpoint: str  # proxies: where clients and workers reach it; workers: empty, they dial out
    receipt_address: Address  # workers: attested receipt key; proxies: the key that signs welcomes
    pay_authorizer: Address  # receiverAuthorizer of channels to this operator
    pay_key_config: bytes  # RFC 9458 key configuration session keys are sealed to
    price_sheet: Digest
    models: tuple[Digest, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerInfo:
    """Constants of a chain: everything a domain separator is made of."""

    chain_id: int
    settlement: Address  # BatchSettlement contract
    registry: Address  # OperatorRegistry contract; receipt domain
    token: Address
    kind: str  # "memory" or "evm"


class ReferenceKind(IntEnum):
    """What a publisher holds good, as contracts/ReferenceValues.vy numbers it."""

    MEASUREMENT = 1  # an enclave image, by its compose hash
    MODEL = 2  # a model manifest, by its digest


MAX_PUBLISHERS: Final = 32  # in one question


class Ledger(Protocol):
    """The chain: blocks, channels, operators, publishers' Reference Values.

    - A method that changes state must return only when the change is final for our purposes, and give its reference
      (a transaction hash; a counter in memory). Its sender is `signer`: whoever a contract would demand as msg.sender.
    - A refused change must raise `PaymentError` with the rule; an unreachable chain must raise `Unavailable`.
    """

    async def info(self) -> LedgerInfo: ...

    async def head(self) -> BlockHeader: ...

    async def block(self, block_hash: Digest) -> BlockHeader | None: ...

    async def balance(self, account: Address) -> Amount: ...

    async def deposit(self, config: ChannelConfig, amount: Amount, *, signer: SigningKey) -> Digest:
        """Open the channel, or top it up. Sender: the payer."""
        ...

    async def channel(self, channel: Digest) -> ChannelView | None: ...

    async def claim(self, claims: Sequence[Claim], *, signer: SigningKey) -> Digest:
        """Pay vouchers out to their receivers, all or none. Sender: each one's receiver or receiver authorizer."""
        ...

    async def claim_signed(self, claims: Sequence[Claim], authorization: bytes, *, signer: SigningKey) -> Digest:
        """The same for claims of one receiver authorizer, which signed the batch (`claim_batch_digest`): anybody may
        send them."""
        ...

    async def initiate_withdraw(self, channel: Digest, amount: Amount, *, signer: SigningKey) -> Digest:
        """Sender: the payer or its authorizer; claims stay possible until the delay has passed."""
        ...

    async def finalize_withdraw(self, channel: Digest, *, signer: SigningKey) -> Digest:
        """Sender: the payer or its authorizer, after the delay."""
        ...

    async def leaving(self) -> frozenset[Digest] | None:
        """Channels whose payers began to withdraw since this process last asked; each at least once, some again. None:
        it is not known, and whatever depends on it must look at its channels."""
        ...

    async def refund(
        self, channel: Digest, amount: Amount, nonce: int, signature: bytes, *, signer: SigningKey
    ) -> Digest:
        """Give back at once what the payee releases: `signature` is the receiver authorizer's. Sender: anybody."""
        ...

    async def register(self, operator: Operator, *, signer: SigningKey) -> Digest:
        """Publish one's own line of the registry. Sender: the operator."""
        ...

    async def operators(self, role: OperatorRole) -> tuple[Operator, ...]: ...

    async def references_agreed(self, publishers: Sequence[Address], quorum: int, kind: int, reference: Digest) -> bool:
        """Whether `quorum` of `publishers` hold it good now. None asked, quorum 0 or out of reach: no."""
        ...

    async def propose_reference(self, kind: int, reference: Digest, uri: str, *, signer: SigningKey) -> Digest:
        """Add to the signer's own list; good once the signer's delay has passed. Sender: the publisher."""
        ...

    async def revoke_reference(self, kind: int, reference: Digest, *, signer: SigningKey) -> Digest:
        """Take out of the signer's own list, at once. Sender: the publisher."""
        ...

    async def set_publisher_delay(self, seconds: int, *, signer: SigningKey) -> Digest:
        """How long the signer's additions wait. A shorter delay counts after the one it replaces."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DepositTerms:
    """What a payer must know to sign a deposit that others carry: the collector, and the token's EIP-712 domain."""

    collector: Address
    token_name: str
    token_version: str


class Carrier(Protocol):
    """Takes deposits to the chain for payers without gas (ERC-3009).

    - `carry` must return once the deposit is final for our purposes, as `Ledger.deposit` does; `signer` pays the gas.
    - A deposit the chain refuses must cost no gas where that can be told beforehand, and raise `PaymentError`.
    """

    async def terms(self) -> DepositTerms: ...

    async def carry(self, config: ChannelConfig, deposit: Deposit, *, signer: SigningKey) -> Digest: ...
