# SPDX-License-Identifier: Apache-2.0
"""The client's money: one channel per proxy, opened when first needed, within one budget (spec PAY-18 .. PAY-22).

The rules stand in `protocol/pay/payer.py`; this file brings it a ledger, a store and randomness. Always: rows are
durable before the payment they describe leaves; a frozen channel is never paid through again; deposits over all proxies
together never pass the budget.
"""

from __future__ import annotations

import asyncio
from typing import Final

from bombyx.errors import BudgetExceeded, LocalError, PaymentError
from bombyx.ports import Clock, Ledger, LedgerInfo, Operator, Store, Write
from bombyx.protocol.pay.grant import KEY_SIZE
from bombyx.protocol.pay.payer import PayerChannel, PayerPolicy
from bombyx.protocol.pay.price import with_commission
from bombyx.protocol.primitives import Address, Amount, Digest, RequestId, Secret
from bombyx.protocol.seal import SESSION_LABEL, Randomness, encapsulate_request
from bombyx.protocol.seal.ohttp import parse_key_config
from bombyx.protocol.wire.channel import ChannelConfig, settlement_domain
from bombyx.protocol.wire.request import Payment
from bombyx.roles.client.settings import ClientKeys, ClientSettings

TABLE: Final = "client_channel"
SESSION_SECONDS: Final = 3600 * 6
LEFT_LIMIT: Final = 8  # requests left before the proxy is asked what became of them
CLOSED: Final = "closed by its owner"  # the reason a channel is frozen for when another takes its place
WINDOW_SHARE: Final = 20  # one voucher opens a twentieth of a deposit: what is at risk beyond requests under way


class Wallet:
    """All channels of this client. Calls for one proxy are serialised."""

    def __init__(
        self,
        settings: ClientSettings,
        keys: ClientKeys,
        *,
        clock: Clock,
        randomness: Randomness,
        store: Store,
        ledger: Ledger,
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._clock = clock
        self._randomness = randomness
        self._store = store
        self._ledger = ledger
        self._channels: dict[Address, PayerChannel] = {}  # by receiver
        self._closed: dict[Digest, PayerChannel] = {}  # by id; another may have taken their place
        self._deposited: dict[Digest, int] = {}
        self._lock = asyncio.Lock()
        self._writing = asyncio.Lock()  # rows must reach the store in the order in which they were taken
        self._info: LedgerInfo | None = None

    @property
    def owner(self) -> Address:
        """Whose money it is."""
        return self._keys.owner.address

    async def info(self) -> LedgerInfo:
        """The chain's constants."""
        if self._info is None:
            self._info = await self._ledger.info()
        return self._info

    async def load(self) -> None:
        """Read back what an earlier process wrote. What was in flight then counts as left."""
        domain = await self._domain()
        rows = await self._store.scan(TABLE)
        for channel in PayerChannel.load(domain, self._policy(), rows):
            if channel.frozen == CLOSED:
                self._closed[channel.id] = channel
            else:
                self._channels[channel.config.receiver] = channel
            await self._observe(channel)

    def channel(self, proxy: Address) -> PayerChannel | None:
        return self._channels.get(proxy)

    def channels(self) -> tuple[PayerChannel, ...]:
        return tuple(self._channels.values())

    def closed_channels(self) -> tuple[PayerChannel, ...]:
        """Those closed by hand. Something may still lie in them."""
        return tuple(self._closed.values())

    @property
    def spent(self) -> int:
        """What of the budget is used: deposited in all channels and not taken back."""
        return sum(self._deposited.values())

    async def deposit(self, proxy: Operator, amount: int) -> tuple[PayerChannel, Digest]:
        """Open the channel to a proxy, or top it up, by hand; the budget holds all the same."""
        async with self._lock:
            channel = self._channels.get(proxy.address) or await self._new_channel(proxy)
            if channel.frozen is not None:
                raise LocalError(f"the channel is frozen: {channel.frozen}", rule="PAY-21")
            return channel, await self._deposit(channel, amount, least=amount)

    async def close(self, proxy: Address) -> PayerChannel:
        """Sign nothing on this channel any more; the next payment to the proxy opens another. Durable."""
        channel = self._known(proxy)
        channel.freeze(CLOSED)
        await self._write(channel)
        if channel.frozen == CLOSED:
            self._closed[channel.id] = self._channels.pop(proxy)
        return channel

    async def observe(self, channel: PayerChannel) -> None:
        """Take note of what the chain shows of a channel now."""
        await self._observe(channel)

    async def pay(
        self, proxy: Operator, request_id: RequestId, *, cap: int, meta_hash: Digest, body_hash: Digest
    ) -> Payment:
        """Authorise one request up to `cap`; deposits and opens a session when that is due. Durable when it returns."""
        async with self._lock:
            channel = await self._opened(proxy, request_id, cap)
            if channel.needs_session(self._clock.now()):
                self._open_session(channel, proxy)
            payment = channel.authorize(
                request_id, cap=cap, meta_hash=meta_hash, body_hash=body_hash, signer=self._keys.session
            )
            await self._write(channel)
        return payment

    def checkpoint(self, proxy: Address, request_id: RequestId, worker_charge: int, bps: int) -> None:
        """Agree to a checkpoint's charge; written with the end of the answer."""
        self._known(proxy).checkpoint(request_id, with_commission(worker_charge, bps))

    def wants_account(self, proxy: Address) -> Digest | None:
        """The channel whose account to ask for: several requests were left, and nothing runs that could change it."""
        channel = self._channels.get(proxy)
        if channel is None or channel.in_flight or len(channel.left) < LEFT_LIMIT:
            return None
        return channel.id

    async def conclude(self, proxy: Address, *, charged: int, reserved: int) -> None:
        """The proxy says it books no more than we agreed to and holds nothing back: free what left requests reserve.

        Its word suffices, as it only gives up a claim; should it charge them after all, the channel freezes (PAY-21).
        """
        channel = self._known(proxy)
        if reserved == 0 and charged <= channel.agreed and not channel.in_flight:
            for request_id, agreed in channel.left.items():
                channel.agree(request_id, agreed)
            await self._write(channel)

    def confirm(self, proxy: Address, payment: Payment) -> None:
        """The proxy served under `payment`: voucher and grant need not be sent again."""
        self._known(proxy).confirm(payment)

    async def lost_deposit(self, proxy: Address) -> bool:
        """The proxy says the chain does not back our voucher: look, and say whether it is right. Then the next payment
        deposits anew; the proxy's word alone moves nothing."""
        async with self._lock:
            channel = self._known(proxy)
            await self._observe(channel)
            if channel.frozen is not None or channel.limit >= channel.ceiling:
                return False
            channel.drop_session()  # so that voucher and grant go along again, and the proxy looks at the chain
            return True

    def drop_session(self, proxy: Address) -> None:
        """The proxy has lost our session (PAY-11): the next payment opens a fresh one."""
        self._known(proxy).drop_session()

    async def check_account(self, proxy: Address, charged_total: int, *, evidence: Digest | None) -> None:
        """Compare the proxy's books with ours; freezes and raises when they cannot both be right (PAY-21)."""
        channel = self._known(proxy)
        try:
            channel.check_account(charged_total, evidence=evidence)
        except PaymentError as error:
            await self.freeze(proxy, error.message, evidence=evidence)
            raise

    async def settle(self, proxy: Address, request_id: RequestId, worker_charge: int, bps: int, *writes: Write) -> int:
        """Agree to a final's charge, durable together with `writes` (the receipt). Gives what the client pays."""
        channel = self._known(proxy)
        agreed = channel.agree(request_id, with_commission(worker_charge, bps))
        await self._write(channel, *writes)
        return int(agreed)

    async def leave(self, proxy: Address, request_id: RequestId, *writes: Write) -> None:
        """The answer stopped early: what the last checkpoint said stays agreed, the rest of the cap stays reserved."""
        channel = self._known(proxy)
        channel.leave(request_id)
        await self._write(channel, *writes)

    async def release(self, proxy: Address, request_id: RequestId) -> None:
        """Nothing was served: the cap is free again."""
        channel = self._known(proxy)
        channel.release(request_id)
        await self._write(channel)

    async def freeze(self, proxy: Address, reason: str, *, evidence: Digest | None = None) -> None:
        """Sign nothing for this proxy any more and start to withdraw what is left (PAY-21)."""
        channel = self._known(proxy)
        channel.freeze(reason, evidence=evidence)
        await self._write(channel)
        view = await self._ledger.channel(channel.id)
        if view is not None and not view.withdrawing and view.balance > view.total_claimed:
            left = type(view.balance)(view.balance - view.total_claimed)
            await self._ledger.initiate_withdraw(channel.id, left, signer=self._keys.owner)

    async def write(self, proxy: Address) -> None:
        """Make durable whatever changed on the proxy's channel."""
        await self._write(self._known(proxy))

    # --- within ---

    async def _opened(self, proxy: Operator, request_id: RequestId, cap: int) -> PayerChannel:
        channel = self._channels.get(proxy.address)
        if channel is None:
            channel = await self._new_channel(proxy)
        # A retry of a known request reserves nothing new: its cap is in `open_amount` already.
        more = 0 if request_id in channel.in_flight else cap
        needed = channel.agreed + channel.open_amount + more
        if needed > channel.limit and channel.frozen is None:
            await self._observe(channel)  # an earlier deposit whose end we never heard of may have gone through
            # The payee takes no request while the deposit is below what was signed, as after a reorg.
            short = max(needed, channel.ceiling) - channel.limit
            if short > 0:
                await self._deposit(channel, self._settings.deposit, least=short)
        return channel

    async def _new_channel(self, proxy: Operator) -> PayerChannel:
        info = await self.info()
        config = ChannelConfig(
            payer=self._keys.payer,
            payer_authorizer=self._keys.session.address,
            receiver=proxy.address,
            receiver_authorizer=proxy.pay_authorizer,
            token=info.token,
            withdraw_delay=self._settings.withdraw_delay,
            salt=Digest(self._randomness.bytes(32)),
        )
        channel = PayerChannel(config, await self._domain(), self._policy())
        await self._write(channel)  # before the deposit: a crash between the two must not lose the salt
        self._channels[proxy.address] = channel
        return channel

    async def _deposit(self, channel: PayerChannel, wanted: int, *, least: int) -> Digest:
        """Put `wanted` in, or as much as budget and account allow; refuses below `least`."""
        room = self._settings.budget - self.spent
        amount = min(max(wanted, least), room)
        if amount < least:
            raise BudgetExceeded(f"{least} more is needed, {max(0, room)} of the budget is left", rule="PAY-18")
        owned = await self._ledger.balance(self._keys.payer)
        if owned < least:
            raise BudgetExceeded(f"account {self._keys.payer} holds {int(owned)} of the {least} needed", rule="PAY-18")
        amount = min(amount, owned)
        done = await self._ledger.deposit(channel.config, Amount(amount), signer=self._keys.owner)
        await self._observe(channel)
        return done

    async def _observe(self, channel: PayerChannel) -> None:
        view = await self._ledger.channel(channel.id)
        if view is None:
            channel.observe_nothing()
        else:
            channel.observe(view)
        self._deposited[channel.id] = int(view.balance) if view is not None else 0

    def _open_session(self, channel: PayerChannel, proxy: Operator) -> None:
        key = Secret(self._randomness.bytes(KEY_SIZE))
        config = parse_key_config(proxy.pay_key_config)
        sealed, _ = encapsulate_request(config, key.reveal(), self._randomness, label=SESSION_LABEL)
        until = self._clock.now().plus(seconds=SESSION_SECONDS)
        channel.open_session(key, sealed_key=sealed, not_after=until, signer=self._keys.session)

    async def _write(self, channel: PayerChannel, *more: Write) -> None:
        async with self._writing:
            rows = [Write(table=TABLE, key=key, value=value) for key, value in channel.take_rows()]
            rows += more
            if rows:
                await self._store.write(rows)

    async def _domain(self) -> Digest:
        info = await self.info()
        return settlement_domain(info.chain_id, info.settlement)

    def _policy(self) -> PayerPolicy:
        settings = self._settings
        return PayerPolicy(budget=settings.budget, window=max(1, settings.deposit // WINDOW_SHARE))

    def _known(self, proxy: Address) -> PayerChannel:
        channel = self._channels.get(proxy)
        if channel is None:
            raise LocalError(f"no channel to proxy {proxy}", rule="PAY-18")
        return channel
