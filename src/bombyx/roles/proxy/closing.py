# SPDX-License-Identifier: Apache-2.0
"""A payer closes its channel: the proxy signs back, at once, all it neither charged nor reserved (spec PAY-25).

Always: only the channel's payer or its authorizer is heeded; nothing is signed while a request is in flight; that the
channel takes no more requests is durable before the refund leaves, so nothing can be charged against what was given
back. Asked again, the same refund is signed again: its nonce lets it through once.
"""

from __future__ import annotations

import json
from typing import Any, Final

from bombyx.errors import BadRequest, MalformedMessage, PaymentError, Peer
from bombyx.ports import ChannelView
from bombyx.protocol.primitives import Digest
from bombyx.protocol.wire.channel import close_digest
from bombyx.protocol.wire.signing import SigningKey, recover
from bombyx.roles.proxy.accounts import Accounts

MAX_BODY: Final = 1_024  # bytes


class Closing:
    """Refunds."""

    def __init__(self, accounts: Accounts, key: SigningKey) -> None:
        self._accounts = accounts
        self._key = key

    async def close(self, channel: Digest, body: bytes) -> dict[str, Any]:
        """What `POST /v1/channel/{id}/close` answers. Raises whose fault it is that there is no refund."""
        signature = _signature_in(body)
        view = await self._accounts.look_up(channel)
        self._check_asker(channel, view, signature)
        await self._accounts.close_channel(channel, view)
        amount, nonce, signed = self._accounts.book.sign_refund(channel, view=view, signer=self._key)
        account = self._accounts.account(channel)
        return {
            "channel": channel.hex(),
            "amount": int(amount),
            "nonce": nonce,
            "signature": signed.hex(),
            "charged": int(account.charged),
            "claimed": int(account.claimed),
        }

    def _check_asker(self, channel: Digest, view: ChannelView, signature: bytes) -> None:
        config = view.config
        asker = recover(close_digest(self._accounts.book.domain, channel, self._key.address), signature)
        if asker not in (config.payer, config.payer_authorizer):
            raise PaymentError("only a channel's payer closes it", peer=Peer.CLIENT, rule="PAY-25")


def _signature_in(body: bytes) -> bytes:
    if len(body) > MAX_BODY:
        raise BadRequest(f"more than {MAX_BODY} bytes", status=413, peer=Peer.CLIENT, rule="PAY-25")
    try:
        return bytes.fromhex(json.loads(body)["signature"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise MalformedMessage('a close is {"signature": hex}', peer=Peer.CLIENT, rule="PAY-25") from None
