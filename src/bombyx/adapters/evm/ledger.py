# SPDX-License-Identifier: Apache-2.0
"""`ports.Ledger` on an EVM chain: our contracts, called by signed transactions, read in one round trip each.

Always: a change returns once it is mined (and `reorg_depth` blocks deep); a revert is `PaymentError` with the
contract's own word for it; a node that is gone, late or talks rubbish is `Unavailable`, and then nothing is known of
the change but what the chain shows later. Changes are safe to try again: claims are cumulative, refunds numbered,
lines replaced; a deposit made twice is more money in one's own channel.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final

from bombyx.adapters.evm import calls
from bombyx.adapters.evm.abi import Reader, call
from bombyx.adapters.evm.deploy import DEV_MINTER, AddressBook
from bombyx.adapters.evm.fees import Patience
from bombyx.adapters.evm.follower import Follower, topic
from bombyx.adapters.evm.operators import Operators
from bombyx.adapters.evm.reading import ChainReader
from bombyx.adapters.evm.rpc import Rpc, as_int
from bombyx.adapters.evm.transactions import Mined, Transactions
from bombyx.errors import PaymentError, Peer, Unavailable
from bombyx.ports import MAX_PUBLISHERS, ChannelView, Claim, LedgerInfo, Operator, OperatorRole, Store
from bombyx.protocol.primitives import MAX_AMOUNT, Address, Amount, Digest, keccak256
from bombyx.protocol.wire.channel import ChannelConfig, settlement_domain
from bombyx.protocol.wire.eip712 import struct_hash, type_hash, typed_digest, word
from bombyx.protocol.wire.signing import SigningKey

AUTHORIZATION_LIFE: Final = 3_600  # seconds an EIP-3009 authorization stays valid
GAS_MONEY: Final = 10**19  # wei, on development chains
_RECEIVE: Final = type_hash(
    "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,"
    "bytes32 nonce)"
)


class EvmLedger(ChainReader):
    """One account book of channels, operators and publishers."""

    def __init__(
        self, rpc: Rpc, book: AddressBook, *, patience: Patience | None = None, kept: Store | None = None
    ) -> None:
        """`kept`: where transactions under way and the last block looked at outlive the process: a store of this
        process alone, closed with the ledger."""
        super().__init__(rpc, book)
        self.transactions = Transactions(rpc, patience=patience or Patience(confirmations=book.reorg_depth), sent=kept)
        self._withdrawals = Follower(self, book.settlement, calls.WITHDRAW_INITIATED, store=kept)
        self._operators = Operators(self, Follower(self, book.registry))
        self._configs: dict[Digest, ChannelConfig] = {}
        self._fuelled: set[Address] = set()
        self._depositors: set[Address] = set()  # accounts that have deposited through this ledger
        self._token_domain: Digest | None = None

    # --- blocks and accounts ---

    async def info(self) -> LedgerInfo:
        return self.book.info

    async def balance(self, account: Address) -> Amount:
        return Amount(min(MAX_AMOUNT, await self._view_uint(self.book.token, "balanceOf(address)", word(account))))

    async def faucet(self, account: Address, amount: int) -> Digest:
        """Money from nowhere, on development chains alone. Not part of the port: no real chain has it."""
        if not self.book.development:
            raise PaymentError("this chain has no faucet", peer=Peer.CHAIN, rule="LEDGER-1")
        return await self._send(self.book.token, calls.mint(account, amount), DEV_MINTER)

    # --- channels ---

    async def deposit(self, config: ChannelConfig, amount: Amount, *, signer: SigningKey) -> Digest:
        """Open the channel, or top it up, from the signer's own tokens."""
        if signer.address != config.payer:
            raise PaymentError("a deposit is sent by its payer", peer=Peer.CHAIN, rule="LEDGER-1")
        if config.token != self.book.token:
            raise PaymentError("the channel is in another token", peer=Peer.CHAIN, rule="LEDGER-1")
        if await self._allowed(config.payer, amount, signer):
            done = await self._send(self.book.allowance_collector, calls.deposit_from_allowance(config, amount), signer)
        else:
            data = await self._authorization(config, amount, signer)
            call_data = calls.deposit(config, amount, self.book.erc3009_collector, data)
            done = await self._send(self.book.settlement, call_data, signer)
        self._configs[config.channel_id(self._domain)] = config
        self._depositors.add(config.payer)
        return done

    async def _allowed(self, payer: Address, amount: int, signer: SigningKey) -> bool:
        """Whether to deposit from an allowance. One without limit is given once, where it pays for itself: from an
        account's second deposit on. The collector spends it in its owner's own calls only."""
        how, spender = self.book.deposit_by, self.book.allowance_collector
        if how == "erc3009":
            return False
        if how == "auto" and payer not in self._depositors and await self._allowance(payer, spender) < amount:
            return False
        await self.allow(spender, amount, signer)
        return True

    async def _authorization(self, config: ChannelConfig, amount: int, signer: SigningKey) -> bytes:
        if self._token_domain is None:
            self._token_domain = Digest(await self.answer(self.book.token, call("DOMAIN_SEPARATOR()"), 32))
        before = (await self.head()).timestamp.seconds + AUTHORIZATION_LIFE
        salt = secrets.randbits(256)
        nonce = keccak256(config.channel_id(self._domain), word(salt))
        collector = self.book.erc3009_collector
        hashed = struct_hash(_RECEIVE, word(config.payer), word(collector), word(amount), word(0), word(before), nonce)
        return calls.erc3009_data(before, salt, signer.sign(typed_digest(self._token_domain, hashed)))

    async def channel(self, channel: Digest) -> ChannelView | None:
        """One block's view of it: the newest one's, or as many blocks down as a reorg may take. So a deposit counts
        for its payee when it counts for its payer, and a claim that may yet vanish is not booked as paid."""
        config = await self._config(channel)
        if config is None:
            return None
        views = [(self.book.settlement, data) for data in calls.channel_views(channel)]
        at = "latest"
        if self.book.reorg_depth:
            at = hex(max(0, as_int(await self._ask("eth_blockNumber")) - self.book.reorg_depth))
        answer = await self.answer(self.book.multicall, calls.aggregate(views), at=at)
        state, pending, nonce = (Reader(one) for one in calls.aggregated(answer))
        return ChannelView(
            config=config,
            balance=_amount(state.uint(0)),
            total_claimed=_amount(state.uint(1)),
            withdraw_amount=_amount(pending.uint(0)),
            withdraw_requested_at=pending.uint(1),
            refund_nonce=nonce.uint(0),
        )

    async def claim(self, claims: Sequence[Claim], *, signer: SigningKey) -> Digest:
        """Book the vouchers and send the receivers their tokens: in one transaction where that fits."""
        return await self._claim(claims, calls.claim(claims), signer)

    async def claim_signed(self, claims: Sequence[Claim], authorization: bytes, *, signer: SigningKey) -> Digest:
        return await self._claim(claims, calls.claim_with_signature(claims, authorization), signer)

    async def _claim(self, claims: Sequence[Claim], booked: bytes, signer: SigningKey) -> Digest:
        if len(claims) > calls.MAX_CLAIMS:
            raise PaymentError(f"a batch holds at most {calls.MAX_CLAIMS} claims", peer=Peer.CHAIN, rule="LEDGER-1")
        book = self.book.settlement
        parties = {(one.config.receiver, one.config.token): None for one in claims}
        paid = [calls.settle(receiver, token) for receiver, token in parties]
        if len(booked) <= calls.MAX_CALL_IN_MULTICALL and len(paid) < calls.MAX_CALLS_IN_MULTICALL:
            return await self._send(book, calls.multicall([booked, *paid]), signer)
        done = await self._send(book, booked, signer)
        for one in paid:
            await self._send(book, one, signer)
        return done

    async def initiate_withdraw(self, channel: Digest, amount: Amount, *, signer: SigningKey) -> Digest:
        config = await self._known_config(channel)
        return await self._send(self.book.settlement, calls.initiate_withdraw(config, amount), signer)

    async def finalize_withdraw(self, channel: Digest, *, signer: SigningKey) -> Digest:
        config = await self._known_config(channel)
        return await self._send(self.book.settlement, calls.finalize_withdraw(config), signer)

    async def leaving(self) -> frozenset[Digest] | None:
        """From the contract's events since the last block that was looked at, over restarts. None after a reorg that is
        deeper than usual, and the first time."""
        news = await self._withdrawals.look()
        return frozenset(topic(log, 1) for log in news.logs) if news.certain else None

    async def refund(
        self, channel: Digest, amount: Amount, nonce: int, signature: bytes, *, signer: SigningKey
    ) -> Digest:
        config = await self._known_config(channel)
        data = calls.refund_with_signature(config, amount, nonce, signature)
        return await self._send(self.book.settlement, data, signer)

    @property
    def _domain(self) -> Digest:
        return settlement_domain(self.book.chain_id, self.book.settlement)

    async def _known_config(self, channel: Digest) -> ChannelConfig:
        config = await self._config(channel)
        if config is None:
            raise PaymentError("the chain has no such channel", peer=Peer.CHAIN, rule="LEDGER-1")
        return config

    async def _config(self, channel: Digest) -> ChannelConfig | None:
        """The chain stores a digest only; the config is in the first deposit's event, and is checked against it."""
        if channel not in self._configs:
            topics = [str(calls.CHANNEL_CREATED), str(channel)]
            for log in await self.logs(self.book.settlement, topics, self.book.first_block):
                config = calls.config_of_log(log)
                if config.channel_id(self._domain) == channel:
                    self._configs[channel] = config
        return self._configs.get(channel)

    # --- operators ---

    async def register(self, operator: Operator, *, signer: SigningKey) -> Digest:
        if signer.address != operator.address:
            raise PaymentError("an operator registers itself", peer=Peer.CHAIN, rule="LEDGER-1")
        return await self._send(self.book.registry, calls.register(operator), signer)

    async def operators(self, role: OperatorRole) -> tuple[Operator, ...]:
        return await self._operators.of(role)

    # --- Reference Values ---

    async def references_agreed(self, publishers: Sequence[Address], quorum: int, kind: int, reference: Digest) -> bool:
        if not 0 < quorum <= len(publishers) <= MAX_PUBLISHERS:
            return False  # the contract says no too, or cannot be asked so much
        data = calls.agreed(publishers, quorum, kind, reference)
        return Reader(await self.answer(self.book.reference_values, data, 32)).uint(0) == 1

    async def propose_reference(self, kind: int, reference: Digest, uri: str, *, signer: SigningKey) -> Digest:
        return await self._send(self.book.reference_values, calls.propose(kind, reference, uri), signer)

    async def revoke_reference(self, kind: int, reference: Digest, *, signer: SigningKey) -> Digest:
        return await self._send(self.book.reference_values, calls.revoke(kind, reference), signer)

    async def set_publisher_delay(self, seconds: int, *, signer: SigningKey) -> Digest:
        return await self._send(self.book.reference_values, calls.set_delay(seconds), signer)

    async def close(self) -> None:
        await self.transactions.close()
        await self.rpc.close()

    # --- the node ---

    async def mined(self, to: Address, data: bytes, signer: SigningKey) -> Mined:
        """Any call of any contract, mined. For what stands beside this ledger and shares its nonces."""
        await self._fuel(signer)
        try:
            return await self.transactions.send(to, data, signer=signer)
        except PaymentError as error:
            if error.rule != "LEDGER-6" or not self.book.development:
                raise
        self._fuelled.discard(signer.address)  # a reorg of a development chain took the gas money too
        await self._fuel(signer)
        return await self.transactions.send(to, data, signer=signer)

    async def _fuel(self, signer: SigningKey) -> None:
        """Gas comes from nowhere, on development chains; elsewhere the account's owner brings it."""
        if self.book.development and signer.address not in self._fuelled:
            await self._ask("anvil_setBalance", str(signer.address), hex(GAS_MONEY))
            self._fuelled.add(signer.address)

    async def _send(self, to: Address, data: bytes, signer: SigningKey) -> Digest:
        return (await self.mined(to, data, signer)).hash

    async def allow(self, spender: Address, amount: int, signer: SigningKey) -> None:
        """Let a contract take `amount` of the signer's tokens, or any amount once it needed to be told."""
        if await self._allowance(signer.address, spender) < amount:
            await self._send(self.book.token, calls.approve(spender, 2**256 - 1), signer)

    async def _allowance(self, owner: Address, spender: Address) -> int:
        return await self._view_uint(self.book.token, "allowance(address,address)", word(owner), word(spender))


def _amount(value: int) -> Amount:
    if value > MAX_AMOUNT:
        raise Unavailable("the chain answers with more than an amount can be", rule="LEDGER-2")
    return Amount(value)
