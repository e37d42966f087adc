# SPDX-License-Identifier: Apache-2.0
"""Channels by hand: open, top up, close, withdraw. What an endpoint does by itself is `wallet.py`'s (spec WAL-3 .. 5).

Two ways to get money back. Together: the proxy signs a refund of all it neither charged nor reserved, and the chain
pays at once. Alone: a withdrawal is announced, the proxy may claim what it is owed during the delay, then the rest is
ours; no proxy can prevent that. Always: a channel that is being closed signs nothing more, and that is durable before
the proxy is asked; a refund is checked before it is sent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bombyx.errors import HeldElsewhere, LocalError, PeerError, Unavailable, UntrustedProxyError
from bombyx.ports import ChannelView, Clock, Ledger, Operator, OperatorRole
from bombyx.protocol.pay.payer import PayerChannel
from bombyx.protocol.primitives import Address, Amount, Digest
from bombyx.protocol.wire.channel import close_digest, refund_digest
from bombyx.protocol.wire.signing import recover
from bombyx.roles.client.replicas import Replicas
from bombyx.roles.client.settings import ClientKeys, ProxyLine
from bombyx.roles.client.wallet import Wallet

MAX_ANSWER: Final = 65_536  # bytes of a proxy's answer to a close
STEP_SECONDS: Final = 10.0  # how often progress is told while a delay runs
Progress = Callable[[int], None]  # seconds left of the delay


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One channel: our books, and the chain's."""

    channel: PayerChannel
    view: ChannelView | None
    url: str
    seconds_left: int  # of a running withdrawal's delay

    @property
    def locked(self) -> int:
        """What lies on the chain and was not paid out."""
        return int(self.view.balance - self.view.total_claimed) if self.view else 0

    @property
    def state(self) -> str:
        if self.view is not None and self.view.withdrawing:
            return "withdrawing" if self.seconds_left > 0 else "withdrawable"
        if self.channel.frozen is not None:
            return "closed" if not self.locked else "frozen"
        return "open" if self.locked else "empty"

    def as_dict(self) -> dict[str, Any]:
        view, channel = self.view, self.channel
        return {
            "channel": str(channel.id),
            "proxy": str(channel.config.receiver),
            "url": self.url,
            "state": self.state,
            "balance": int(view.balance) if view else 0,
            "paid_out": int(view.total_claimed) if view else 0,
            "locked": self.locked,
            "agreed": int(channel.agreed),
            "open": channel.open_amount,
            "signed": int(channel.ceiling),
            "worst_loss": channel.worst_loss,
            "withdrawing": int(view.withdraw_amount) if view else 0,
            "seconds_left": self.seconds_left,
            "frozen": channel.frozen,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was done. `how`: deposit, refund, initiate, wait, finalize, nothing. `note`: what a person should know."""

    how: str
    channel: Digest | None
    amount: int = 0
    transaction: Digest | None = None
    seconds_left: int = 0
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {
            "how": self.how,
            "channel": str(self.channel) if self.channel else None,
            "amount": self.amount,
            "transaction": str(self.transaction) if self.transaction else None,
            "seconds_left": self.seconds_left,
            "note": self.note,
        }


class Channels:
    """All channels of one client, loaded by its `Wallet`. `keys` None: looking only."""

    def __init__(
        self, wallet: Wallet, lines: Sequence[ProxyLine], keys: ClientKeys | None, *, ledger: Ledger, clock: Clock
    ) -> None:
        self._wallet = wallet
        self._lines = {line.address: line for line in lines}
        self._replicas = Replicas(lines, wallet.owner)
        self._keys = keys
        self._ledger = ledger
        self._clock = clock

    async def standings(self) -> tuple[Standing, ...]:
        """Every channel ever opened, those in use first."""
        known = (*self._wallet.channels(), *self._wallet.closed_channels())
        return tuple([await self.standing(channel) for channel in known])

    async def standing(self, channel: PayerChannel) -> Standing:
        view = await self._ledger.channel(channel.id)
        left = 0
        if view is not None and view.withdrawing:
            left = max(0, view.seconds_left((await self._ledger.head()).timestamp))
        line = self._lines.get(channel.config.receiver)
        return Standing(channel=channel, view=view, url=line.url if line else "", seconds_left=left)

    def find(self, named: Address | None) -> PayerChannel:
        """The channel in use to a proxy; the only one when none is named."""
        known = self._wallet.channels()
        if named is None and len(known) == 1:
            return known[0]
        found = self._wallet.channel(named) if named is not None else None
        if found is None:
            raise LocalError(_which(named, tuple(one.config.receiver for one in known)), rule="WAL-4")
        return found

    def find_any(self, named: Address | Digest | None) -> PayerChannel:
        """Also one closed by hand: by its own id, or the newest to a proxy."""
        everything = (*self._wallet.closed_channels(), *self._wallet.channels())
        fitting = [one for one in everything if named is None or named in (one.id, one.config.receiver)]
        if not fitting or (named is None and len(fitting) > 1):
            raise LocalError(_which(named, tuple(one.config.receiver for one in everything)), rule="WAL-4")
        return fitting[-1]

    def proxy(self, named: Address | None) -> Address:
        """A proxy of the network; the only one when none is named."""
        if named is None and len(self._lines) == 1:
            return next(iter(self._lines))
        if named not in self._lines:
            raise LocalError(_which(named, tuple(self._lines)), rule="WAL-4")
        return named

    # --- in ---

    async def deposit(self, proxy: Address, amount: int) -> Outcome:
        """Open or top up."""
        operator = await self._registered(proxy)
        channel, done = await self._wallet.deposit(operator, amount)
        return Outcome(how="deposit", channel=channel.id, amount=amount, transaction=done)

    async def _registered(self, proxy: Address) -> Operator:
        for operator in await self._ledger.operators(OperatorRole.PROXY):
            if operator.address == proxy:
                return operator
        raise Unavailable(f"proxy {proxy} is not in the registry", rule="CLI-2")

    # --- out ---

    async def close(self, channel: PayerChannel, *, alone: bool = False) -> Outcome:
        """Together with the proxy if it answers, else alone."""
        await self._wallet.close(channel.config.receiver)
        standing = await self.standing(channel)
        if not standing.locked:
            return Outcome(how="nothing", channel=channel.id, note="nothing lies in the channel")
        why = "asked to withdraw alone"
        if not alone:
            try:
                return await self._together(channel, standing)
            except (PeerError, Unavailable) as error:
                why = f"no refund from the proxy: {error.message}"
        return await self._announce(channel, standing, why)

    async def withdraw(self, channel: PayerChannel, *, wait: bool, progress: Progress = lambda left: None) -> Outcome:
        """Announce, wait out the delay, take. Called again it goes on where it stands."""
        if self._wallet.channel(channel.config.receiver) is channel:
            await self._wallet.close(channel.config.receiver)
        standing = await self.standing(channel)
        if not standing.locked:
            return Outcome(how="nothing", channel=channel.id, note="nothing lies in the channel")
        announced = None
        if not standing.view or not standing.view.withdrawing:
            announced = await self._announce(channel, standing, "")
            standing = await self.standing(channel)
        while standing.seconds_left > 0:
            if not wait:
                return announced or Outcome(
                    how="wait", channel=channel.id, amount=standing.locked, seconds_left=standing.seconds_left
                )
            progress(standing.seconds_left)
            await self._clock.sleep(min(STEP_SECONDS, standing.seconds_left))
            standing = await self.standing(channel)
        return await self._take(channel, standing)

    async def _announce(self, channel: PayerChannel, standing: Standing, why: str) -> Outcome:
        if standing.view is not None and standing.view.withdrawing:
            return Outcome(
                how="wait", channel=channel.id, amount=standing.locked, seconds_left=standing.seconds_left, note=why
            )
        signer = self._signing().owner
        done = await self._ledger.initiate_withdraw(channel.id, Amount(standing.locked), signer=signer)
        await self._wallet.observe(channel)
        delay = channel.config.withdraw_delay
        return Outcome(
            how="initiate", channel=channel.id, amount=standing.locked, transaction=done, seconds_left=delay, note=why
        )

    async def _take(self, channel: PayerChannel, before: Standing) -> Outcome:
        done = await self._ledger.finalize_withdraw(channel.id, signer=self._signing().owner)
        await self._wallet.observe(channel)
        after = await self.standing(channel)
        balance = int(before.view.balance) if before.view else 0
        got = balance - (int(after.view.balance) if after.view else 0)
        return Outcome(how="finalize", channel=channel.id, amount=got, transaction=done)

    async def _together(self, channel: PayerChannel, standing: Standing) -> Outcome:
        amount, nonce, signature = await self._ask_refund(channel, standing)
        kept = standing.locked - amount
        if not amount:
            return Outcome(how="nothing", channel=channel.id, note=f"the proxy is owed all {kept} that is left")
        done = await self._ledger.refund(channel.id, Amount(amount), nonce, signature, signer=self._signing().owner)
        await self._wallet.observe(channel)
        return Outcome(
            how="refund",
            channel=channel.id,
            amount=amount,
            transaction=done,
            note=_what_is_kept(channel, standing, kept),
        )

    async def _ask_refund(self, channel: PayerChannel, standing: Standing) -> tuple[int, int, bytes]:
        """The proxy's signed refund, checked. Raises `PeerError` or `Unavailable`."""
        amount, nonce, signature = _read_refund(await self._asked_to_close(channel))
        view = standing.view
        if view is None or nonce != view.refund_nonce or not 0 <= amount <= standing.locked:
            raise UntrustedProxyError("its refund does not fit the channel", rule="PAY-25")
        if amount:
            signed = refund_digest(channel.domain, channel.id, nonce, amount)
            if recover(signed, signature) != channel.config.receiver_authorizer:
                raise UntrustedProxyError("its refund is signed by somebody else", rule="PAY-25")
        return amount, nonce, signature

    async def _asked_to_close(self, channel: PayerChannel) -> bytes:
        """What the proxy answers: the first of its replicas that can be reached, or the one it names (LEASE-5)."""
        digest = close_digest(channel.domain, channel.id, channel.config.receiver)
        body = json.dumps({"signature": self._signing().session.sign(digest).hex()}).encode()
        reason = Unavailable("this network does not list the proxy", rule="PAY-25")
        for line in self._replicas.lines():
            if line.address == channel.config.receiver:
                try:
                    return await self._answered(line, channel, body)
                except Unavailable as error:
                    reason = error
        raise reason

    async def _answered(self, line: ProxyLine, channel: PayerChannel, body: bytes) -> bytes:
        status, data = await _posted(line, channel, body)
        if status != 200 and (other := self._replicas.named(line, _holder(data))) is not None:
            status, data = await _posted(other, channel, body)
        if status != 200:
            raise UntrustedProxyError(f"it answered {status}", status=status, rule="PAY-25")
        return data

    def _signing(self) -> ClientKeys:
        if self._keys is None:
            raise LocalError("no keys are at hand: this only looks", rule="WAL-4")
        return self._keys


async def _posted(line: ProxyLine, channel: PayerChannel, body: bytes) -> tuple[int, bytes]:
    response = await line.transport.post(f"/v1/channel/{channel.id.hex()}/close", "application/json", body)
    try:
        data = b""
        async for piece in response.body():
            data += piece
            if len(data) > MAX_ANSWER:
                raise UntrustedProxyError("an answer above the limit", rule="PAY-25")
    finally:
        await response.aclose()
    return response.status, data


def _holder(data: bytes) -> str:
    """The replica that a `held_elsewhere` names; empty for any other refusal."""
    try:
        problem = json.loads(data)
        return str(problem["replica"]) if problem["code"] == HeldElsewhere.code else ""
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _read_refund(data: bytes) -> tuple[int, int, bytes]:
    try:
        raw = json.loads(data)
        return int(raw["amount"]), int(raw["nonce"]), bytes.fromhex(raw["signature"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UntrustedProxyError("its refund cannot be read", rule="PAY-25") from None


def _what_is_kept(channel: PayerChannel, standing: Standing, kept: int) -> str:
    """Whether the proxy kept more than receipts say it is owed."""
    paid_out = int(standing.view.total_claimed) if standing.view else 0
    owed = max(0, int(channel.agreed) - paid_out)
    if kept <= owed:
        return f"the proxy keeps {kept}, which receipts agree to" if kept else ""
    return (
        f"the proxy keeps {kept}; receipts agree to {owed}, requests that were cut explain at most"
        f" {channel.open_amount} more. What it does not claim can be withdrawn: `bombyx channel withdraw`"
    )


def _which(named: object, known: tuple[Address, ...]) -> str:
    listed = ", ".join(str(one) for one in dict.fromkeys(known)) or "none"
    return f"{named if named is not None else 'name one'}: the choice is {listed}"
