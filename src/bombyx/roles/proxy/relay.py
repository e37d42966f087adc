# SPDX-License-Identifier: Apache-2.0
"""One stream through the proxy: DATA frames from a worker become records of a client's response. The hot path.

No task, no lock and no wait per frame: the link calls `on_data` for each, `flush` once per message that touched the
stream. A frame costs one SHA-256 and its share of a join; what one message brought for one client leaves in one write.

Always: nothing is forwarded that is not counted in the receipt trail; a bad receipt stops the stream at the last good
one; DATA beyond the credit given is the worker's fault; after `ended` nothing is forwarded; a client sees no receipt
that a crash could make us forget: the two sides' books would differ by it. (LINK-3 .. LINK-6, RCT-3, PAY-17)
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Callable
from typing import Final, Protocol

from bombyx.errors import (
    BombyxError,
    DeadlineExceeded,
    EngineUnavailable,
    MalformedMessage,
    Peer,
    PeerError,
    StreamTruncated,
)
from bombyx.ports import HttpExchange
from bombyx.protocol.pay.trail import ReceiptTrail
from bombyx.protocol.primitives import Digest
from bombyx.protocol.seal import ResponseChain
from bombyx.protocol.wire.receipt import SignedReceipt
from bombyx.protocol.wire.records import LinkRefusal, LinkType, Record, ResponseHead, write_record
from bombyx.protocol.wire.varint import write_varint

HEADERS: Final = {
    "content-type": "application/vnd.bombyx.response",
    "cache-control": "no-store",
    "incremental": "?1",
    "x-accel-buffering": "no",
}

AHEAD: Final = 96  # frames that may go before a receipt that is on its way to the store; clients bear 256 (RCT-3)

OnReceipt = Callable[[bytes], asyncio.Future[None]]  # done once the receipt is durable
Observer = Callable[[str, bytes], None]


class FrameSender(Protocol):
    """The link's side of a stream."""

    def send(self, kind: LinkType, number: int, payload: bytes = b"") -> None: ...

    def forget(self, number: int) -> None: ...


class Stream:
    """One attempt at one request. Made by the dispatcher, fed by the link."""

    __slots__ = (
        "_cancelled",
        "_credit",
        "_deadline",
        "_exchange",
        "_grace",
        "_head",
        "_held",
        "_held_at",
        "_link",
        "_on_receipt",
        "_out",
        "_owed",
        "_released",
        "_rest",
        "_timer",
        "_unkept",
        "_window",
        "_written",
        "bytes",
        "chain",
        "ended",
        "kept",
        "number",
        "observer",
        "opened",
        "receipts",
        "sizes",
        "touched",
        "trail",
    )

    def __init__(
        self,
        link: FrameSender,
        exchange: HttpExchange,
        *,
        candidate: Digest,
        trail: ReceiptTrail,
        window: int,
        on_receipt: OnReceipt,
        observer: Observer | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.number = 0  # given by the link
        self.trail = trail
        self.chain = ResponseChain()
        self.opened: asyncio.Future[BombyxError | None] = loop.create_future()  # None: the first frame is here
        self.ended: asyncio.Future[BombyxError | None] = loop.create_future()  # None: END after a final receipt
        self.touched = False
        self.bytes = self.receipts = 0
        self.sizes: dict[int, int] = {}  # payload size -> how many frames
        self.observer = observer
        self._link = link
        self._exchange = exchange
        self._head = _head_record(candidate)
        self._out: list[bytes] = []
        self._rest: list[bytes] = []
        self._held: list[bytes] = []  # records of receipts that are not durable yet
        self._held_at = 0  # frames there were when the first of them came
        self._released = 0  # how many were
        self._written = False
        self._window = self._credit = window
        self._owed = 0
        self._on_receipt = on_receipt
        self._unkept = b""
        self.kept = False  # a receipt of this stream was given to `on_receipt`
        self._cancelled = False
        self._grace = 0.0
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None

    # FRAMES IN (called by the link)

    def on_data(self, payload: bytes) -> None:
        size = len(payload)
        self._credit -= size
        if self._credit < 0:
            self._fail(MalformedMessage("DATA beyond the credit given", peer=Peer.WORKER, rule="LINK-5"))
            return
        try:
            self.trail.delivered(self.chain.update(payload), size)
        except PeerError as error:
            self._fail(error)
            return
        sizes, out = self.sizes, self._out
        sizes[size] = sizes.get(size, 0) + 1
        if self.observer is not None:
            self.observer("frame", payload)
        if not self.bytes:
            if not self.opened.done():
                self.opened.set_result(None)
            out.append(self._head)
        self.bytes += size
        out += (_data_prefix(size), payload)
        self._owed += size

    def on_receipt(self, payload: bytes) -> None:
        try:
            self.trail.receive(SignedReceipt.decode(payload))
        except PeerError as error:
            self._fail(error)
            return
        self._unkept = payload
        self.receipts += 1
        if self.observer is not None:
            self.observer("receipt", payload)
        if self.trail.frames:
            if not self._held:
                self._held_at = self.trail.frames
            self._held.append(write_record(Record.RECEIPT, payload))

    def on_end(self) -> None:
        if self.trail.final is None:
            self._fail(StreamTruncated("the worker ended without a final receipt", peer=Peer.WORKER, rule="RCT-8"))
            return
        if not self.opened.done():
            self.opened.set_result(EngineUnavailable("the worker delivered nothing", rule="LINK-4"))
        self._unkept = b""
        if self._written:
            self.flush()
        else:  # the whole answer in one message: it leaves together with its END, in one system call
            self._rest, self._out = self._out, []
        self._end(None)

    def say_last(self, words: bytes) -> None:
        """The answer's last records, behind what was kept back for them: it is all booked now."""
        rest = (*self._rest, *self._out, *self._held)
        self._rest, self._out, self._held = [], [], []
        if self._exchange.started:
            self._exchange.end(b"".join((*rest, words)))
        else:
            self._exchange.respond(200, HEADERS, b"".join((*rest, words)))

    def on_refuse(self, payload: bytes) -> None:
        try:
            refusal = LinkRefusal.decode(payload)
        except MalformedMessage as error:
            self._fail(error)
            return
        if self.trail.frames:
            self._fail(MalformedMessage("a refusal after DATA", peer=Peer.WORKER, rule="LINK-4"))
        else:
            self._end(Refused(refusal))

    def lost(self) -> None:
        """The link is gone."""
        self._end(StreamTruncated("the worker's link was lost", peer=Peer.WORKER, rule="LINK-1"))

    # BACK-PRESSURE

    def flush(self) -> None:
        """Write what has gathered, and give the worker new credit for what the client takes."""
        self.touched = False
        out = self._out
        if self._unkept and not self.ended.done():  # the answer goes on: should we crash, it is settled at this receipt
            durable = self._on_receipt(self._unkept)
            durable.add_done_callback(functools.partial(self._release, self._released + len(self._held)))
            self._unkept, self.kept = b"", True
        if self._held and self.trail.frames - self._held_at > AHEAD:
            return  # without new credit the worker stops soon; `_release` or `say_last` goes on
        if out:
            if not self._written:
                self._written = True
                self._exchange.start(200, HEADERS)
            self._exchange.write(b"".join(out))
            out.clear()
        if self._owed * 2 >= self._window and not self._exchange.paused:
            self.grant()

    def _release(self, until: int, durable: asyncio.Future[None]) -> None:
        """The first `until` receipts are durable, unless the store failed: then they leave at the end."""
        lost = durable.cancelled() or durable.exception() is not None
        count = until - self._released
        if self.ended.done() or count <= 0:
            return
        self._held_at = self.trail.frames
        if not lost:
            self._out += self._held[:count]
            del self._held[:count]
            self._released = until
        self.flush()

    def grant(self) -> None:
        """More credit. Called by the exchange, too, when a slow client has caught up."""
        if self._owed and not self.ended.done():
            self._link.send(LinkType.WINDOW, self.number, self._owed.to_bytes(4))
            self._credit += self._owed
            self._owed = 0

    # TIME

    def watch(self, *, first_frame: float, deadline: float, grace: float) -> None:
        """Give up when nothing came within `first_frame` seconds, stop the worker at the `deadline` (seconds from now);
        after a stop, wait `grace` for the receipt of what was delivered."""
        loop = asyncio.get_running_loop()
        self._grace = grace
        self._deadline = loop.time() + deadline
        self._timer = loop.call_later(max(0.0, min(first_frame, deadline)), self._late, min(first_frame, deadline))

    def _late(self, waited: float) -> None:
        loop = asyncio.get_running_loop()
        left = self._deadline - loop.time()
        if not self.opened.done():
            self.give_up(DeadlineExceeded(f"no frame within {waited:.1f} s", rule="LINK-4"))
        elif left > 0:
            self._timer = loop.call_later(left, self._late, 0.0)
        else:
            self._stop(DeadlineExceeded("the request's deadline has passed", rule="LINK-4"))

    def client_left(self) -> None:
        self._stop(StreamTruncated("the client went", peer=Peer.CLIENT, rule="LINK-4"))

    def _stop(self, reason: BombyxError) -> None:
        self.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._grace, self.give_up, reason)

    # ENDS

    def cancel(self) -> None:
        """Stop the worker. What it delivers until it hears of it is forwarded, counted and receipted as ever."""
        if not self._cancelled and not self.ended.done():
            self._cancelled = True
            self._link.send(LinkType.CANCEL, self.number)

    def give_up(self, error: BombyxError) -> None:
        """We stop waiting for this stream."""
        self.cancel()
        self._end(error)

    def _fail(self, error: BombyxError) -> None:
        if not self.ended.done():
            self.cancel()
            self._end(error)

    def _end(self, error: BombyxError | None) -> None:
        self._unkept = b""  # what it says is booked at once
        self.flush()
        self._link.forget(self.number)
        if self._timer is not None:
            self._timer.cancel()
        if not self.opened.done():
            self.opened.set_result(error)
        if not self.ended.done():
            self.ended.set_result(error)


class Refused(BombyxError):
    """A worker's unsealed word on why it did not start: a hint, and `code` says whether another may."""

    def __init__(self, refusal: LinkRefusal) -> None:
        super().__init__(refusal.message)
        self.code = refusal.code if _CODE.fullmatch(refusal.code) else "unreadable"  # it is logged and passed on
        self.retry_after = refusal.retry_after_ms / 1000

    @property
    def blames_worker(self) -> bool:
        """Whether it counts as a failure of the worker's: not for being busy, nor for what the client sent."""
        return self.code in _WORKER_FAULTS

    @property
    def final(self) -> bool:
        """Whether another worker would refuse as well."""
        return self.code in _CLIENT_FAULTS


_CODE: Final = re.compile(r"[a-z0-9_]{1,48}")
_WORKER_FAULTS: Final = frozenset({"engine_unavailable", "unavailable", "bombyx_error", "local_error"})
_CLIENT_FAULTS: Final = frozenset({"malformed_message", "seal_error", "replayed", "bad_request"})


@functools.lru_cache(maxsize=4096)
def _data_prefix(size: int) -> bytes:
    """Type and length of a DATA record; answers use a handful of sizes."""
    return bytes([Record.DATA]) + write_varint(size)


@functools.lru_cache(maxsize=4096)
def _head_record(candidate: Digest) -> bytes:
    """The first record of an answer; a worker has two candidates an hour."""
    return write_record(Record.HEAD, ResponseHead(candidate=candidate).encode())
