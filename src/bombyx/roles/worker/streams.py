# SPDX-License-Identifier: Apache-2.0
"""One stream of a worker link: the answer's way out, paid for in credit.

Always: DATA goes out only within the credit the proxy gave, so a client that does not read costs no memory here;
after END or REFUSE nothing follows; a stream number is never used twice on a link. (spec LINK-3 .. LINK-5)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bombyx.errors import BombyxError, Unavailable
from bombyx.protocol.wire.receipt import SignedReceipt
from bombyx.protocol.wire.records import LinkRefusal, LinkType

SendFrame = Callable[[LinkType, int, bytes], None]


class Stream:
    """What the serving side sees of one request's stream. `stopped` is set by CANCEL or by the link's end."""

    __slots__ = ("_changed", "_done", "_send", "credit", "delivered", "link_lost", "number", "stopped")

    def __init__(self, number: int, window: int, send: SendFrame) -> None:
        self.number = number
        self.credit = window
        self.delivered = 0  # DATA frames handed to the link
        self.stopped = asyncio.Event()
        self.link_lost = False
        self._send = send
        self._done = False
        self._changed = asyncio.Event()

    # what the link reports

    def grant(self, size: int) -> None:
        """The proxy takes `size` more bytes."""
        self.credit += size
        self._changed.set()

    def stop(self, *, link_lost: bool = False) -> None:
        """CANCEL, or the link is gone. Final either way."""
        self.link_lost = self.link_lost or link_lost
        self.stopped.set()
        self._changed.set()

    # what the answer does

    @property
    def finished(self) -> bool:
        return self._done

    def data(self, payload: bytes) -> bool:
        """Hand one chunk to the link; False, and nothing is sent, when there is not enough credit."""
        if self._done or self.link_lost or len(payload) > self.credit:
            return False
        self.credit -= len(payload)
        self.delivered += 1
        self._send(LinkType.DATA, self.number, payload)
        return True

    async def room(self, size: int) -> bool:
        """Wait until `size` bytes may be sent. False when the stream was stopped instead."""
        while self.credit < size and not self.stopped.is_set():
            self._changed.clear()
            await self._changed.wait()
        return not self.stopped.is_set()

    def receipt(self, receipt: SignedReceipt) -> None:
        if not self._done and not self.link_lost:
            self._send(LinkType.RECEIPT, self.number, receipt.encode())

    def end(self) -> None:
        """Nothing follows."""
        if not self._done and not self.link_lost:
            self._send(LinkType.END, self.number, b"")
        self._done = True

    def refuse(self, error: BombyxError) -> None:
        """Instead of any DATA: why nothing was started. An unsealed word, so it never holds content."""
        if not self._done and not self.link_lost:
            self._send(LinkType.REFUSE, self.number, refusal(error).encode())
        self._done = True


def refusal(error: BombyxError) -> LinkRefusal:
    """`error` as it may travel outside the seal."""
    after = error.retry_after if isinstance(error, Unavailable) and error.retry_after is not None else 0.0
    return LinkRefusal(code=error.code, message=error.message[:500], retry_after_ms=int(after * 1000))
