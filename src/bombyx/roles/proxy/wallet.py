# SPDX-License-Identifier: Apache-2.0
"""What this proxy pays its workers: one channel to each enclave, opened and topped up on demand (PAY-18 .. PAY-22).

Always: rows of a payment are durable before its bytes leave; a worker's channel never holds more than `float_limit`
beyond what was agreed, which is also the most one dishonest worker can take; deposits are made one at a time.
"""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass, field
from typing import Final

from bombyx.errors import BombyxError, MalformedMessage, Peer, Unavailable
from bombyx.ports import Clock, Ledger, LedgerInfo, Operator
from bombyx.protocol.pay.payer import PayerChannel, PayerPolicy
from bombyx.protocol.primitives import MAX_AMOUNT, Amount, Digest, RequestId, Secret
from bombyx.protocol.seal import SESSION_LABEL, KeyConfig, Randomness, encapsulate_request
from bombyx.protocol.seal.ohttp import parse_key_config
from bombyx.protocol.wire.channel import ChannelConfig, settlement_domain
from bombyx.protocol.wire.request import Payment
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.proxy.holdings import PAYER, Holdings
from bombyx.roles.proxy.scribe import Scribe
from bombyx.roles.proxy.settings import ProxySettings

log = logging.getLogger("bombyx.proxy")

MAX_IN_FLIGHT: Final = 4_096


@dataclass(slots=True, kw_only=True, eq=False)
class WorkerAccount:
    """Our channel to one worker enclave, and the key session keys are sealed to."""

    channel: PayerChannel
    pay_key: KeyConfig = field(repr=False)
    looked_at: float = 0.0  # when the chain was last asked about it


class Wallet:
    """All channels we pay from."""

    def __init__(
        self,
        settings: ProxySettings,
        key: SigningKey,
        info: LedgerInfo,
        *,
        ledger: Ledger,
        clock: Clock,
        randomness: Randomness,
        scribe: Scribe,
        holdings: Holdings,
    ) -> None:
        self._holdings = holdings
        self._settings = settings
        self._key = key
        self._info = info
        self._ledger = ledger
        self._clock = clock
        self._randomness = randomness
        self._scribe = scribe
        self._domain = settlement_domain(info.chain_id, info.settlement)
        self._policy = PayerPolicy(budget=MAX_AMOUNT, window=settings.voucher_window, max_in_flight=MAX_IN_FLIGHT)
        self._channels: dict[Digest, PayerChannel] = {}
        self._idle_since: dict[Digest, float] = {}  # channels without a linked worker, since when
        self._left_since: dict[tuple[Digest, RequestId], float] = {}  # cut answers that still reserve their caps
        self._depositing = asyncio.Lock()

    def load(self, rows: list[tuple[bytes, bytes]]) -> None:
        """Channels of an earlier run. Requests that were in flight then are left: only their receipts count."""
        self._channels.clear()
        for channel in PayerChannel.load(self._domain, self._policy, rows, payee=Peer.WORKER):
            if not self._holdings.shared or channel.config.salt == self._salt:
                channel.expect_unwritten()
                self._channels[channel.id] = channel

    @property
    def _salt(self) -> Digest:
        """Each replica has channels of its own: two processes must not sign for one channel."""
        return Digest(self._holdings.slot.to_bytes(32))

    def channel(self, channel: Digest) -> PayerChannel | None:
        return self._channels.get(channel)

    async def account(self, line: Operator) -> WorkerAccount:
        """The channel to the enclave the registry names for this operator, deposited and ready."""
        config = ChannelConfig(
            payer=self._key.address,
            payer_authorizer=self._key.address,
            receiver=line.address,
            receiver_authorizer=line.pay_authorizer,
            token=self._info.token,
            withdraw_delay=self._settings.withdraw_delay,
            salt=self._salt,
        )
        try:
            pay_key = parse_key_config(line.pay_key_config)
        except MalformedMessage as error:
            raise MalformedMessage(
                f"the registered payment key is malformed: {error.message}", peer=Peer.WORKER, rule="PAY-9"
            ) from None
        channel = self._channels.get(config.channel_id(self._domain))
        if channel is None:
            channel = PayerChannel(config, self._domain, self._policy, payee=Peer.WORKER)
            self._channels[channel.id] = channel
            await self._write(channel)
        account = WorkerAccount(channel=channel, pay_key=pay_key)
        await self.top_up(account)
        return account

    async def top_up(self, account: WorkerAccount) -> None:
        """Bring what is deposited and not agreed back to the float, when less than half of it is left."""
        channel, most = account.channel, self._settings.float_limit
        async with self._depositing:
            view = await self._ledger.channel(channel.id)
            free = (view.spendable if view else 0) - channel.agreed
            if free < most // 2:
                await self._ledger.deposit(channel.config, Amount(most - free), signer=self._key)
                view = await self._ledger.channel(channel.id)
            if view is None:
                raise Unavailable("the channel was deposited and is not there", retry_after=1.0, rule="PAY-18")
            channel.observe(view)
            account.looked_at = self._clock.monotonic()

    def doubt(self, account: WorkerAccount) -> None:
        """The worker finds no deposit behind our voucher: look at the chain soon, and show the voucher again."""
        account.looked_at = -math.inf
        account.channel.drop_session()

    def dispute(self, account: WorkerAccount) -> bool:
        """The worker has booked more than we agreed to. True: cut answers explain it, and the next voucher reaches
        further; False: nothing does."""
        conceded = account.channel.concede()
        self.put(account.channel)
        return conceded

    async def lapse(self) -> None:
        """Free what answers reserve that were cut so long ago that neither side can still serve them (PAY-27)."""
        now = self._clock.monotonic()
        left = {(channel.id, name): channel for channel in self._channels.values() for name in channel.left}
        self._left_since = {key: self._left_since.get(key, now) for key in left}
        over = [key for key, since in self._left_since.items() if now - since > self._settings.timings.lapse_after]
        for key in over:
            left[key].lapse(key[1])
            self.put(left[key])
        if over:
            await self._scribe.write(PAYER, [])

    def runs_low(self, account: WorkerAccount) -> bool:
        """Whether `top_up` is due: little is left as far as we know, or what we know is old."""
        old = self._clock.monotonic() - account.looked_at > self._settings.timings.deposit_fresh
        return old or account.channel.limit - account.channel.agreed < self._settings.float_limit // 2

    async def reclaim(self, in_use: set[Digest]) -> None:
        """Take back what lies in channels to enclaves that are gone: announce it, wait out the delay, withdraw. One
        that the chain refuses keeps no other from its turn."""
        for channel in list(self._channels.values()):
            if channel.id in in_use:
                self._idle_since.pop(channel.id, None)
                continue
            since = self._idle_since.setdefault(channel.id, self._clock.monotonic())
            try:
                await self._reclaim(channel, self._clock.monotonic() - since)
            except BombyxError as error:
                log.warning("taking back what lies in channel %s: %s", channel.id.hex()[:12], error)

    async def _reclaim(self, channel: PayerChannel, idle: float) -> None:
        view = await self._ledger.channel(channel.id)
        if view is None or view.balance <= channel.ceiling:
            return
        if view.withdrawing and view.seconds_left(self._clock.now()) < 0:
            await self._ledger.finalize_withdraw(channel.id, signer=self._key)
        elif not view.withdrawing and idle > self._settings.timings.reclaim_after:
            left = Amount(view.balance - channel.ceiling)  # never what a worker may still claim
            await self._ledger.initiate_withdraw(channel.id, left, signer=self._key)

    async def authorize(
        self, account: WorkerAccount, request_id: RequestId, *, cap: int, meta_hash: Digest, body_hash: Digest
    ) -> Payment:
        """A payment for one request, durable before it is returned. `BudgetExceeded`: the float is used up."""
        channel = account.channel
        if channel.needs_session(self._clock.now()):
            self._open_session(account)
        payment = channel.authorize(request_id, cap=cap, meta_hash=meta_hash, body_hash=body_hash, signer=self._key)
        if self._holdings.shared or payment.voucher is not None or payment.grant is not None:
            await self._scribe.write(PAYER, channel.take_rows())
        else:  # it promises nothing that is not written already; its row goes before the charge's (PAY-17)
            self.put(channel)
        return payment

    def _open_session(self, account: WorkerAccount) -> None:
        key = Secret(self._randomness.bytes(32))
        sealed, _ = encapsulate_request(account.pay_key, key.reveal(), self._randomness, label=SESSION_LABEL)
        not_after = self._clock.now().plus(seconds=self._settings.session_seconds)
        account.channel.open_session(key, sealed_key=sealed, not_after=not_after, signer=self._key)

    def agree(self, channel: PayerChannel, request_id: RequestId, charge: int, *, final: bool) -> None:
        """Book what a checked receipt says. Rows go out with the next `write` of the scribe."""
        if final:
            channel.agree(request_id, charge)
        else:
            if charge:
                channel.checkpoint(request_id, charge)
            channel.leave(request_id)
        self.put(channel)

    def release(self, channel: PayerChannel, request_id: RequestId) -> None:
        channel.release(request_id)
        self.put(channel)

    def put(self, channel: PayerChannel) -> None:
        self._scribe.put(PAYER, channel.take_rows())

    async def _write(self, channel: PayerChannel) -> None:
        await self._scribe.write(PAYER, channel.take_rows())
