# SPDX-License-Identifier: Apache-2.0
"""One link to one proxy: both sides prove who they are, then many requests share it (spec LINK).

Not here: what a request means (`serve.py`), when to dial again (`dialling.py`).

Always: no request is taken before the WELCOME has been verified; each stream's memory is bounded by the credit the
proxy gave and by `limits.uploads`; bytes that break the framing end the link, never the worker; when the link ends,
every stream on it is stopped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final, Protocol

from bombyx.errors import BadRequest, BombyxError, MalformedMessage, Peer, PeerError, Unavailable
from bombyx.ports import Link
from bombyx.protocol.primitives import Address, Digest
from bombyx.protocol.wire.records import (
    BLOB_PART_SIZE,
    MAX_BLOBS,
    LinkChallenge,
    LinkHello,
    LinkLoad,
    LinkType,
    WorkerRequest,
    read_link_frames,
    write_link_frame,
)
from bombyx.roles.worker.greeting import Greeting
from bombyx.roles.worker.streams import Stream
from bombyx.roles.worker.uploads import Uploads

log = logging.getLogger("bombyx.worker")

FULL_MESSAGE: Final = 65_536  # bytes; below it, frames that are ready together travel together
MAX_STREAMS: Final = 4096  # open at once on one link; far above any capacity

GIVE_SECONDS: Final = 60.0  # to give the blobs a proxy lacks, and be welcomed

Frame = tuple[LinkType, int, bytes]


class LinkDesk(Protocol):
    """What a link asks of the worker behind it."""

    def introduce(self, challenge: LinkChallenge) -> LinkHello:
        """Our HELLO for this proxy, with the keys of now."""
        ...

    def blob(self, digest: Digest) -> bytes | None:
        """One of the blobs the HELLO offers, by its digest."""
        ...

    async def proxy_keys(self, proxy: Address) -> frozenset[Address]:
        """Keys that may sign a WELCOME for `proxy`; empty when we do not know it."""
        ...

    def admit(self) -> None:
        """Raise `Overloaded` or `Unavailable` when a new request cannot be taken."""
        ...

    async def serve(self, proxy: Address, request: bytes, stream: Stream) -> None:
        """One request's life. Must not raise for anything a peer can cause."""
        ...

    async def voucher(self, proxy: Address, payment: bytes) -> None:
        """A payment outside a request."""
        ...

    def load(self) -> LinkLoad: ...


class LinkSession:
    """From CHALLENGE to the end. `run` returns when the link ends and raises what the peer did wrong."""

    def __init__(
        self,
        link: Link,
        desk: LinkDesk,
        uploads: Uploads,
        *,
        chain_id: int,
        expected_proxy: Address | None,
        handshake_seconds: float,
        on_welcome: Callable[[LinkSession], None],
        on_end: Callable[[LinkSession], None],
    ) -> None:
        self._link = link
        self._desk = desk
        self._uploads = uploads
        self._greeting = Greeting(chain_id=chain_id, expected=expected_proxy)
        self._handshake_seconds = handshake_seconds
        self._on_welcomed = on_welcome
        self._on_end = on_end
        self._window = 0
        self._streams: dict[int, Stream] = {}
        self._refused: set[int] = set()  # streams whose remaining parts are dropped
        self._highest = 0
        self._outbox = bytearray()
        self._tasks: set[asyncio.Task[None]] = set()
        self._giving: asyncio.Task[None] | None = None
        self.welcomed = asyncio.Event()

    @property
    def proxy(self) -> Address:
        """Who is at the other end. Known once the challenge has been read."""
        if self._greeting.challenge is None:
            raise Unavailable("the proxy has not introduced itself yet")
        return self._greeting.challenge.proxy

    # --- life --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        frames = self._frames()
        try:
            async with asyncio.timeout(self._handshake_seconds) as patience:
                await self._handshake(frames, patience)
            async for kind, number, payload in frames:
                await self._on_frame(kind, number, payload)
        except TimeoutError:
            raise Unavailable(f"no handshake within {self._handshake_seconds} s") from None
        finally:
            self._lost()
            await self._link.close()

    async def _frames(self) -> AsyncIterator[Frame]:
        async for message in self._link.messages():
            for frame in read_link_frames(message):
                yield frame

    async def _handshake(self, frames: AsyncIterator[Frame], patience: asyncio.Timeout) -> None:
        """CHALLENGE -> HELLO -> WELCOME, nothing else before, but for one WANT."""
        challenge = self._greeting.on_challenge(await self._expect(frames, LinkType.CHALLENGE))
        self._greeting.keys = await self._desk.proxy_keys(challenge.proxy)
        self.introduce()
        kind, payload = await self._expect_one(frames, LinkType.WELCOME, LinkType.WANT)
        if kind is LinkType.WANT:
            patience.reschedule(asyncio.get_running_loop().time() + GIVE_SECONDS)
            self._on_want(payload)
            payload = await self._expect(frames, LinkType.WELCOME)
        self._on_welcome(payload)
        self.report_load()

    async def _expect(self, frames: AsyncIterator[Frame], wanted: LinkType) -> bytes:
        return (await self._expect_one(frames, wanted))[1]

    async def _expect_one(self, frames: AsyncIterator[Frame], *wanted: LinkType) -> tuple[LinkType, bytes]:
        try:
            kind, number, payload = await anext(frames)
        except StopAsyncIteration:
            raise Unavailable(f"the link ended before its {wanted[0].name}") from None
        if kind not in wanted or number != 0:
            raise _fault(f"expected {wanted[0].name}, found {kind.name} on stream {number}")
        return kind, payload

    def _lost(self) -> None:
        self._on_end(self)
        self._flush()
        for stream in self._streams.values():
            stream.stop(link_lost=True)
        for number in self._streams:
            self._uploads.drop((id(self), number))

    # --- frames in ---------------------------------------------------------------------------------------------------

    async def _on_frame(self, kind: LinkType, number: int, payload: bytes) -> None:
        if number == 0:
            await self._on_link_frame(kind, payload)
        elif kind is LinkType.REQUEST_PART or kind is LinkType.REQUEST_END:
            self._on_part(number, payload, last=kind is LinkType.REQUEST_END)
        elif kind is LinkType.CANCEL:
            self._on_cancel(number)
        elif kind is LinkType.WINDOW:
            if len(payload) != 4:
                raise _fault(f"WINDOW of {len(payload)} bytes, not 4")
            if number in self._streams:  # credit for a stream that has ended is normal: it was on its way
                self._streams[number].grant(int.from_bytes(payload))
        else:
            raise _fault(f"{kind.name} does not belong on stream {number}")

    async def _on_link_frame(self, kind: LinkType, payload: bytes) -> None:
        if kind is LinkType.WELCOME:
            self._on_welcome(payload)
        elif kind is LinkType.WANT:
            self._on_want(payload)
        elif kind is LinkType.VOUCHER:
            self._spawn(self._desk.voucher(self.proxy, payload))
        elif kind is LinkType.DRAIN:
            log.info("proxy %s drains; its link stays for what runs", self.proxy)
        else:
            raise _fault(f"{kind.name} does not belong on stream 0")

    def _on_welcome(self, payload: bytes) -> None:
        self._window = self._greeting.on_welcome(payload)
        self.welcomed.set()
        self._on_welcomed(self)

    def _on_want(self, payload: bytes) -> None:
        """The proxy lacks some of the blobs we offered: give them, once at a time (LINK-7)."""
        if len(payload) % Digest.SIZE or not 0 < len(payload) <= MAX_BLOBS * Digest.SIZE:
            raise _fault(f"WANT of {len(payload)} bytes")
        if self._giving is not None and not self._giving.done():
            raise _fault("a WANT while another is being answered")
        blobs = [self._desk.blob(Digest(payload[at : at + Digest.SIZE])) for at in range(0, len(payload), Digest.SIZE)]
        if None in blobs:
            raise _fault("a WANT for a blob we did not offer")
        self._giving = self._spawn(self._give([blob for blob in blobs if blob is not None]))

    async def _give(self, blobs: list[bytes]) -> None:
        for blob in blobs:
            pieces = [blob[at : at + BLOB_PART_SIZE] for at in range(0, len(blob), BLOB_PART_SIZE)] or [b""]
            for piece in pieces[:-1]:
                self._send(LinkType.BLOB_PART, 0, piece)
                await self._link.drain()  # the streams of this link have their turn in between
            self._send(LinkType.BLOB_END, 0, pieces[-1])

    def _on_part(self, number: int, payload: bytes, *, last: bool) -> None:
        if number in self._refused:
            if last:
                self._refused.discard(number)
            return
        stream = self._streams.get(number) or self._open(number)
        key = (id(self), number)
        try:
            if not self._uploads.holds(key):
                self._desk.admit()
            self._uploads.add(key, payload, WorkerRequest.MAX_SIZE, asyncio.get_running_loop().time())
        except (Unavailable, PeerError) as error:
            self._uploads.drop(key)
            self._refuse(stream, error, unread=not last)
            return
        if last:
            self._spawn(self._serve(stream, self._uploads.take(key)))

    def _open(self, number: int) -> Stream:
        if number <= self._highest:
            raise _fault(f"stream {number} was used before")
        if len(self._streams) >= MAX_STREAMS or len(self._refused) >= MAX_STREAMS:
            raise _fault(f"more than {MAX_STREAMS} streams at once")
        self._highest = number
        self._streams[number] = Stream(number, self._window, self._send)
        return self._streams[number]

    def _refuse(self, stream: Stream, error: BombyxError, *, unread: bool) -> None:
        log.info("refused stream %d of %s: %s", stream.number, self.proxy, error.code)
        stream.refuse(error)
        self._streams.pop(stream.number, None)
        if unread:
            self._refused.add(stream.number)

    def _on_cancel(self, number: int) -> None:
        self._refused.discard(number)
        stream = self._streams.get(number)
        if stream is None:
            return
        stream.stop()
        if self._uploads.drop((id(self), number)):  # cancelled while it was still being sent
            stream.end()
            self._streams.pop(number, None)

    async def _serve(self, stream: Stream, request: bytes) -> None:
        asyncio.get_running_loop().call_soon(self.report_load)  # once it has been let in
        try:  # END or REFUSE below does nothing when the answer has said its own
            await self._desk.serve(self.proxy, request, stream)
        finally:
            if stream.delivered:
                stream.end()
            else:
                stream.refuse(Unavailable("the worker could not finish this request"))
            self._streams.pop(stream.number, None)
            self.report_load()

    # --- frames out --------------------------------------------------------------------------------------------------

    def introduce(self) -> None:
        """HELLO with the keys of now; again after each rotation."""
        if self._greeting.challenge is None:
            return
        hello = self._desk.introduce(self._greeting.challenge)
        self._greeting.said(hello)
        self._send(LinkType.HELLO, 0, hello.encode())

    def report_load(self) -> None:
        if self.welcomed.is_set():
            self._send(LinkType.LOAD, 0, self._desk.load().encode())

    def drop_stalled(self, seconds: float) -> None:
        """Refuse requests whose sender stopped in the middle: their bytes are others' room."""
        for link, number in self._uploads.stalled(asyncio.get_running_loop().time() - seconds):
            if link == id(self) and number in self._streams:
                self._uploads.drop((link, number))
                stalled = BadRequest("the request stopped in its middle", status=408, peer=Peer.PROXY, rule="LINK-3")
                self._refuse(self._streams[number], stalled, unread=True)

    def announce_drain(self) -> None:
        self._send(LinkType.DRAIN, 0, b"")

    def _send(self, kind: LinkType, number: int, payload: bytes) -> None:
        """Frames of one turn of the event loop leave in one message, unless they are many."""
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox += write_link_frame(kind, number, payload)
        if len(self._outbox) >= FULL_MESSAGE:
            self._flush()

    def _flush(self) -> None:
        if self._outbox:
            message, self._outbox = bytes(self._outbox), bytearray()
            self._link.send(message)

    async def close(self) -> None:
        self._flush()
        await self._link.drain()
        await self._link.close()

    async def settled(self) -> None:
        """Wait until no request of this link runs."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def stop_streams(self) -> None:
        """Our own CANCEL for everything that runs: each ends with a receipt for what was delivered."""
        for stream in tuple(self._streams.values()):
            stream.stop()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a request ended in %s; this is a fault of the worker", type(error).__name__)


def _fault(message: str) -> MalformedMessage:
    return MalformedMessage(message, peer=Peer.PROXY, rule="LINK-6")
