# SPDX-License-Identifier: Apache-2.0
"""A proxy's money at a glance: what clients owe, what workers are owed, what is at risk, what is left (spec PAY-26).

Pure: books and chain views in, numbers out. For the operator alone: nothing here is served to the public.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bombyx.protocol.pay.payee import PayeeBook
from bombyx.protocol.pay.payer import PayerChannel
from bombyx.protocol.pay.view import ChannelView
from bombyx.protocol.primitives import Digest

Views = Mapping[Digest, ChannelView | None]


def income(book: PayeeBook, views: Views) -> dict[str, Any]:
    """What payers were charged, what of it was claimed, and what they could still be charged."""
    accounts = {channel: book.account(channel) for channel in book.channels}
    charged = sum(one.charged for one in accounts.values())
    claimed = sum(max(one.claimed, _claimed(views.get(channel))) for channel, one in accounts.items())
    return {
        "channels": len(accounts),
        "charged": charged,
        "claimed": claimed,
        "owed": charged - claimed,
        "reserved": sum(one.reserved for one in accounts.values()),
        "vouchers": sum(one.ceiling for one in accounts.values()),
        "locked": sum(_locked(views.get(channel)) for channel in accounts),
        "withdrawing": sum(1 for channel in accounts if _withdrawing(views.get(channel))),
        "not_covered": sum(max(0, one.charged - _balance(views.get(channel))) for channel, one in accounts.items()),
    }


def debt(channels: Iterable[PayerChannel], views: Views) -> dict[str, Any]:
    """What payees are owed by us, what they could take beyond it, and what lies in their channels."""
    known = tuple(channels)
    agreed = sum(one.agreed for one in known)
    taken = sum(_claimed(views.get(one.id)) for one in known)
    return {
        "channels": len(known),
        "agreed": agreed,
        "paid_out": taken,
        "debt": max(0, agreed - taken),
        "disputed": sum(one.disputed for one in known),
        "exposure": sum(one.worst_loss for one in known),
        "float": sum(max(0, _balance(views.get(one.id)) - one.agreed) for one in known),
        "frozen": sum(1 for one in known if one.frozen is not None),
    }


def statement(book: PayeeBook, channels: Iterable[PayerChannel], views: Views, *, balance: int) -> dict[str, Any]:
    """Everything. `commission` is what is left of income when every debt is paid."""
    earned, owed = income(book, views), debt(channels, views)
    return {
        "account": str(book.terms.receiver),
        "balance": balance,
        "income": earned,
        "debt": owed,
        "commission": earned["charged"] - owed["agreed"],
    }


def _claimed(view: ChannelView | None) -> int:
    return int(view.total_claimed) if view else 0


def _balance(view: ChannelView | None) -> int:
    return int(view.balance) if view else 0


def _locked(view: ChannelView | None) -> int:
    return int(view.balance - view.total_claimed) if view else 0


def _withdrawing(view: ChannelView | None) -> bool:
    return view is not None and view.withdrawing
