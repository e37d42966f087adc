# SPDX-License-Identifier: Apache-2.0
"""The rules of a settlement contract and a registry, in memory: what stands in for a chain until one is configured.

It is NOT a chain: nothing survives the process and nobody but its owner keeps it honest; `LedgerInfo.kind` says
"memory". The checks are those of x402 batch-settlement, on the same digests, so that what passes here passes there.
Senders are given by address: whoever calls has checked them. Blocks come every second of the injected clock, linked by
hash.

Always: minted = sum of balances + sum over channels of (balance - claimed); a claim moves nothing twice; a refused call
changes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

from bombyx.adapters.memory_references import ReferenceLists
from bombyx.errors import PaymentError, Peer
from bombyx.ports import ChannelView, Claim, Clock, LedgerInfo, Operator, OperatorRole
from bombyx.protocol.pay.grant import signed_by
from bombyx.protocol.primitives import MAX_AMOUNT, Address, Amount, Digest, Instant, tagged_hash
from bombyx.protocol.wire.channel import (
    ChannelConfig,
    claim_batch_digest,
    refund_digest,
    settlement_domain,
    voucher_digest,
)
from bombyx.protocol.wire.evidence import BlockHeader

CHAIN_ID: Final = 31_337  # what development chains use
BLOCK_TIME: Final = 1_000  # ms
MIN_DELAY: Final = 900  # seconds; x402's bounds
MAX_DELAY: Final = 2_592_000
MAX_CLAIMS: Final = 64  # in one call
KEPT_BLOCKS: Final = 100_000  # headers that can be looked up: more than a day of them
NOBODY: Final = Address.zero()


class MemoryChain:
    """Accounts, channels, operators and blocks. Every method is one transaction."""

    def __init__(self, clock: Clock, *, chain_id: int = CHAIN_ID) -> None:
        self._clock = clock
        self.info = LedgerInfo(
            chain_id=chain_id,
            settlement=_contract("settlement"),
            registry=_contract("registry"),
            token=_contract("token"),
            kind="memory",
        )
        self.domain = settlement_domain(chain_id, self.info.settlement)
        self.minted = 0
        self._balances: dict[Address, int] = {}
        self._channels: dict[Digest, ChannelView] = {}
        self._operators: dict[Address, Operator] = {}
        self._transactions = 0
        self.references = ReferenceLists(lambda: self.head().timestamp.seconds)
        genesis = BlockHeader(
            number=0, hash=self._hash(0, Digest.zero(), clock.now()), parent=Digest.zero(), timestamp=clock.now()
        )
        self._head = genesis
        self._blocks: dict[Digest, BlockHeader] = {genesis.hash: genesis}

    # --- blocks ---

    def head(self) -> BlockHeader:
        """The newest block; as many as seconds have passed since the last look are made on the way."""
        now = self._clock.now()
        while self._head.timestamp + BLOCK_TIME <= now:
            self._extend(Instant(self._head.timestamp + BLOCK_TIME))
        return self._head

    def block(self, block_hash: Digest) -> BlockHeader | None:
        self.head()
        return self._blocks.get(block_hash)

    def _extend(self, timestamp: Instant) -> None:
        number, parent = self._head.number + 1, self._head.hash
        self._head = BlockHeader(
            number=number, hash=self._hash(number, parent, timestamp), parent=parent, timestamp=timestamp
        )
        self._blocks[self._head.hash] = self._head
        if len(self._blocks) > KEPT_BLOCKS:
            del self._blocks[next(iter(self._blocks))]

    def _hash(self, number: int, parent: Digest, timestamp: Instant) -> Digest:
        chain = self.info.chain_id.to_bytes(32)
        return tagged_hash("bombyx memory block v1", chain, number.to_bytes(8), parent, timestamp.to_bytes(8))

    def _done(self) -> Digest:
        self._transactions += 1
        return tagged_hash("bombyx memory transaction v1", self._transactions.to_bytes(8))

    # --- accounts ---

    def balance(self, account: Address) -> Amount:
        return Amount(self._balances.get(account, 0))

    def mint(self, account: Address, amount: int) -> Digest:
        """Money from nowhere, for development accounts."""
        if not 0 < amount <= MAX_AMOUNT - self.minted:
            raise PaymentError(f"cannot mint {amount}", rule="LEDGER-1")
        self.minted += amount
        self._pay(account, amount)
        return self._done()

    def _pay(self, account: Address, amount: int) -> None:
        self._balances[account] = self._balances.get(account, 0) + amount

    def conserved(self) -> bool:
        """Whether every token minted is somewhere, once."""
        locked = sum(view.balance - view.total_claimed for view in self._channels.values())
        return self.minted == sum(self._balances.values()) + locked

    # --- channels ---

    def deposit(self, sender: Address, config: ChannelConfig, amount: int) -> Digest:
        _require(sender == config.payer, "a deposit is sent by its payer")
        _require(NOBODY not in (config.payer, config.receiver, config.receiver_authorizer), "an empty party")
        _require(config.token == self.info.token, "another token")
        _require(MIN_DELAY <= config.withdraw_delay <= MAX_DELAY, "a withdrawal delay out of bounds")
        _require(0 < amount <= self.balance(sender), f"{sender} has {self.balance(sender)}, deposits {amount}")
        channel = config.channel_id(self.domain)
        view = self._channels.get(channel) or _empty(config)
        self._balances[sender] -= amount
        self._channels[channel] = dataclasses.replace(view, balance=Amount(view.balance + amount))
        return self._done()

    def channel(self, channel: Digest) -> ChannelView | None:
        return self._channels.get(channel)

    def claim(self, sender: Address, claims: Sequence[Claim]) -> Digest:
        """All or none. A total that was paid before is skipped, as the contract does."""
        for claim in claims:
            _require(sender in (claim.config.receiver, claim.config.receiver_authorizer), "not the receiver's to claim")
        return self._book(claims)

    def claim_signed(self, claims: Sequence[Claim], authorization: bytes) -> Digest:
        """All or none, in a batch that its receiver authorizer signed. Sender: anybody."""
        _require(len({claim.config.receiver_authorizer for claim in claims}) == 1, "a batch has one authorizer")
        entries = [(one.config.channel_id(self.domain), one.ceiling, one.total_claimed) for one in claims]
        digest = claim_batch_digest(self.domain, entries)
        signed = signed_by(claims[0].config.receiver_authorizer, digest, authorization)
        _require(signed, "the batch is not signed by its receiver authorizer")
        return self._book(claims)

    def _book(self, claims: Sequence[Claim]) -> Digest:
        _require(0 < len(claims) <= MAX_CLAIMS, f"a batch holds 1 to {MAX_CLAIMS} claims")
        after: dict[Digest, ChannelView] = {}
        for claim in claims:
            channel = claim.config.channel_id(self.domain)
            view = after.get(channel) or self._view(channel)
            if claim.total_claimed > view.total_claimed:
                self._check_claim(claim, channel, view)
                after[channel] = dataclasses.replace(view, total_claimed=claim.total_claimed)
        for channel, view in after.items():
            self._pay(view.config.receiver, view.total_claimed - self._channels[channel].total_claimed)
        self._channels.update(after)
        return self._done()

    def _check_claim(self, claim: Claim, channel: Digest, view: ChannelView) -> None:
        _require(claim.total_claimed <= claim.ceiling, f"claim {claim.total_claimed} is above {claim.ceiling}")
        _require(claim.total_claimed <= view.balance, f"claim {claim.total_claimed} is above balance {view.balance}")
        signer = claim.config.payer_authorizer if claim.config.payer_authorizer != NOBODY else claim.config.payer
        digest = voucher_digest(self.domain, channel, claim.ceiling)
        _require(signed_by(signer, digest, claim.signature), "the voucher is not signed by the payer's authorizer")

    def initiate_withdraw(self, sender: Address, channel: Digest, amount: int) -> Digest:
        view = self._view(channel)
        _require(sender in (view.config.payer, view.config.payer_authorizer), "not the payer's to withdraw")
        _require(not view.withdrawing, "a withdrawal is pending already")
        _require(0 < amount <= view.balance - view.total_claimed, "more than is left")
        self._channels[channel] = dataclasses.replace(
            view, withdraw_amount=Amount(amount), withdraw_requested_at=self.head().timestamp.seconds
        )
        return self._done()

    def finalize_withdraw(self, sender: Address, channel: Digest) -> Digest:
        view = self._view(channel)
        _require(sender in (view.config.payer, view.config.payer_authorizer), "not the payer's to withdraw")
        _require(view.withdrawing, "no withdrawal is pending")
        _require(view.seconds_left(self.head().timestamp) <= 0, "the delay has not passed")
        amount = min(view.withdraw_amount, view.balance - view.total_claimed)
        self._give_back(channel, view, amount, pending=0)
        return self._done()

    def refund(self, sender: Address, channel: Digest, amount: int, nonce: int, signature: bytes) -> Digest:
        view = self._view(channel)
        _require(nonce == view.refund_nonce, f"refund nonce {nonce}, expected {view.refund_nonce}")
        _require(amount > 0, "an empty refund")
        digest = refund_digest(self.domain, channel, nonce, amount)
        _require(signed_by(view.config.receiver_authorizer, digest, signature), "not the receiver authorizer's refund")
        given = min(amount, view.balance - view.total_claimed)
        after = dataclasses.replace(view, refund_nonce=nonce + 1)
        self._give_back(channel, after, given, pending=max(0, view.withdraw_amount - given))
        return self._done()

    def _give_back(self, channel: Digest, view: ChannelView, amount: int, *, pending: int) -> None:
        self._pay(view.config.payer, amount)
        self._channels[channel] = dataclasses.replace(
            view,
            balance=Amount(view.balance - amount),
            withdraw_amount=Amount(pending),
            withdraw_requested_at=view.withdraw_requested_at if pending else 0,
        )

    def _view(self, channel: Digest) -> ChannelView:
        view = self._channels.get(channel)
        if view is None:
            raise PaymentError("the chain has no such channel", peer=Peer.CHAIN, rule="LEDGER-1")
        return view

    # --- operators ---

    def register(self, sender: Address, operator: Operator) -> Digest:
        _require(sender == operator.address, "an operator registers itself")
        known = self._operators.get(sender)
        _require(known is None or known.role is operator.role, "an operator keeps its role")
        self._operators[sender] = operator
        return self._done()

    def operators(self, role: OperatorRole) -> tuple[Operator, ...]:
        """In address order, so that everybody draws from the same list."""
        return tuple(
            self._operators[address] for address in sorted(self._operators) if self._operators[address].role is role
        )

    # --- Reference Values ---

    def propose_reference(self, sender: Address, kind: int, reference: Digest, uri: str) -> Digest:
        self.references.propose(sender, kind, reference, uri)
        return self._done()

    def revoke_reference(self, sender: Address, kind: int, reference: Digest) -> Digest:
        self.references.revoke(sender, kind, reference)
        return self._done()

    def set_publisher_delay(self, sender: Address, seconds: int) -> Digest:
        self.references.set_delay(sender, seconds)
        return self._done()


def _empty(config: ChannelConfig) -> ChannelView:
    nothing = Amount(0)
    return ChannelView(
        config=config, balance=nothing, total_claimed=nothing, withdraw_amount=nothing, withdraw_requested_at=0
    )


def _contract(name: str) -> Address:
    return Address(tagged_hash("bombyx memory contract v1", name.encode())[12:])


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise PaymentError(f"the chain refuses: {message}", peer=Peer.CHAIN, rule="LEDGER-1")
