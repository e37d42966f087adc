# SPDX-License-Identifier: Apache-2.0
"""The proxy's end of a worker's link: CHALLENGE, HELLO, WELCOME, then many streams (spec LINK-1 .. LINK-6).

`LinkSession` reads frames in callbacks; only a HELLO, which needs chain and appraisal, becomes a task.

Always: no stream is opened before the worker's evidence convinced and its operator signed our nonce; a stream number
is never used twice; bytes that break the framing end this link and nothing else; a link's end ends its streams at once.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Sequence
from typing import Final, Protocol

from bombyx.errors import BombyxError, MalformedMessage, Peer, PeerError, Unavailable
from bombyx.ports import Link
from bombyx.protocol.primitives import Digest
from bombyx.protocol.wire.records import (
    MAX_LINK_FRAME,
    LinkChallenge,
    LinkHello,
    LinkLoad,
    LinkType,
    write_link_frame,
)
from bombyx.roles.proxy.fetching import Fetch
from bombyx.roles.proxy.relay import Stream

log = logging.getLogger("bombyx.proxy")

_HEADER: Final = struct.Struct(">IIB")
_HEADER_SIZE: Final = _HEADER.size
_DATA: Final = int(LinkType.DATA)
LAST_STREAM: Final = 2**32 - 1
PART: Final = 65_536  # bytes of one REQUEST_PART: one large prompt must not stall the other streams of a link
BLOB_SECONDS: Final = 60.0  # in which a worker must have given the blobs it offered
SEND_HIGH: Final = 1 << 20  # bytes waiting on the link before an upload pauses


class LinkDesk(Protocol):
    """What a link asks of the proxy behind it."""

    def challenge(self) -> LinkChallenge: ...

    async def welcome(self, session: LinkSession, hello: LinkHello, nonce: Digest) -> bytes:
        """Check who this is and offer it; the encoded LinkWelcome. Raises `PeerError` to turn it away."""
        ...

    def loaded(self, session: LinkSession, load: LinkLoad) -> None: ...

    def draining(self, session: LinkSession) -> None: ...

    def gone(self, session: LinkSession) -> None: ...


class LinkSession:
    """One link, from the moment it connects."""

    def __init__(self, link: Link, desk: LinkDesk, *, handshake_seconds: float, max_streams: int) -> None:
        self._link = link
        self._desk = desk
        self._max_streams = max_streams
        self._streams: dict[int, Stream] = {}
        self._number = 0
        self._hello: asyncio.Task[None] | None = None
        self._fetch: Fetch | None = None
        self._closing: asyncio.Task[None] | None = None  # held, or the loop might drop it
        self._challenge = desk.challenge()
        self.welcomed = False
        self.closed = False
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(handshake_seconds, self._too_slow)
        self.send(LinkType.CHALLENGE, 0, self._challenge.encode())
        link.attach(self._on_message, self._on_close)

    @property
    def open_streams(self) -> int:
        return len(self._streams)

    # STREAMS (called by the dispatcher)

    def open(self, stream: Stream) -> Stream:
        """Take a new stream on. Raises `Unavailable` when this link cannot."""
        if self.closed or len(self._streams) >= self._max_streams or self._number >= LAST_STREAM:
            raise Unavailable("this worker's link takes no more streams", rule="LINK-3")
        self._number += 1
        stream.number = self._number
        self._streams[self._number] = stream
        return stream

    async def upload(self, stream: Stream, request: bytes) -> None:
        """Send a request in pieces, waiting for the link between them."""
        position = 0
        if len(request) <= PART:
            self.send(LinkType.REQUEST_END, stream.number, request)
            return
        while len(request) - position > PART:
            self.send(LinkType.REQUEST_PART, stream.number, request[position : position + PART])
            position += PART
            if self._link.buffered > SEND_HIGH:
                await self._link.drain()
            if stream.ended.done():
                return
        self.send(LinkType.REQUEST_END, stream.number, request[position:])

    async def fetch(self, wanted: Sequence[Digest], *, limit: int) -> tuple[bytes, ...]:
        """The blobs this worker offered by these digests. Call it for a worker whose HELLO was checked (LINK-7)."""
        self._timer.cancel()
        self._fetch = Fetch(wanted, limit=limit)
        self.send(LinkType.WANT, 0, self._fetch.payload)
        try:
            async with asyncio.timeout(BLOB_SECONDS):
                return await self._fetch.done
        except TimeoutError:
            raise Unavailable("the blobs it offered did not come in time", rule="LINK-7") from None
        finally:
            self._fetch = None

    def send(self, kind: LinkType, number: int, payload: bytes = b"") -> None:
        if not self.closed:
            self._link.send(write_link_frame(kind, number, payload))

    def forget(self, number: int) -> None:
        self._streams.pop(number, None)

    async def close(self) -> None:
        self._timer.cancel()
        await self._link.close()
        self._on_close()

    # FRAMES (called by the link)

    def _on_message(self, message: bytes) -> None:
        if self.closed:
            return
        touched: list[Stream] = []
        try:
            self._read(message, touched)
        except PeerError as error:
            self._turn_away(error)
        for stream in touched:
            stream.flush()

    def _read(self, message: bytes, touched: list[Stream]) -> None:
        """`read_link_frames` without a generator and an enum per frame; a test holds the two equal."""
        position, end, streams = 0, len(message), self._streams
        while position < end:
            if end - position < _HEADER_SIZE:
                raise MalformedMessage("link message ends inside a frame header", peer=Peer.WORKER, rule="LINK-1")
            length, number, kind = _HEADER.unpack_from(message, position)
            start = position + _HEADER_SIZE
            position = start + length
            if length > MAX_LINK_FRAME or position > end:
                raise MalformedMessage(f"link frame of {length} bytes does not fit", peer=Peer.WORKER, rule="LINK-1")
            stream = streams.get(number)
            if kind == _DATA and stream is not None:
                stream.on_data(message[start:position])
            else:
                self._on_frame(kind, number, stream, message[start:position])
            if stream is not None and not stream.touched:
                stream.touched = True
                touched.append(stream)

    def _on_frame(self, kind: int, number: int, stream: Stream | None, payload: bytes) -> None:
        if number == 0:
            self._on_link_frame(kind, payload)
        elif kind not in _ON_STREAM or number > self._number:
            raise MalformedMessage(f"frame {kind} does not belong on stream {number}", peer=Peer.WORKER, rule="LINK-6")
        elif stream is None:
            return  # it was on its way when we let go of the stream
        elif kind == LinkType.RECEIPT:
            stream.on_receipt(payload)
        elif kind == LinkType.END:
            stream.on_end()
        elif kind == LinkType.REFUSE:
            stream.on_refuse(payload)

    def _on_link_frame(self, kind: int, payload: bytes) -> None:
        if kind == LinkType.HELLO:
            if self._hello is not None:
                raise MalformedMessage("a HELLO while another is being checked", peer=Peer.WORKER, rule="LINK-2")
            self._hello = asyncio.get_running_loop().create_task(self._on_hello(LinkHello.decode(payload)))
        elif kind in (LinkType.BLOB_PART, LinkType.BLOB_END) and self._fetch is not None:
            self._fetch.part(payload, last=kind == LinkType.BLOB_END)
        elif not self.welcomed:
            raise MalformedMessage(f"frame {kind} before the HELLO", peer=Peer.WORKER, rule="LINK-2")
        elif kind == LinkType.LOAD:
            self._desk.loaded(self, LinkLoad.decode(payload))
        elif kind == LinkType.DRAIN:
            self._desk.draining(self)
        else:
            raise MalformedMessage(f"frame {kind} does not belong on stream 0", peer=Peer.WORKER, rule="LINK-6")

    async def _on_hello(self, hello: LinkHello) -> None:
        try:
            welcome = await self._desk.welcome(self, hello, self._challenge.nonce)
        except BombyxError as error:
            self._turn_away(error)
            return
        finally:
            self._hello = None
        self._timer.cancel()
        self.welcomed = True
        self.send(LinkType.WELCOME, 0, welcome)

    # ENDS

    def _too_slow(self) -> None:
        self._turn_away(Unavailable("no HELLO in time", rule="LINK-2"))

    def _turn_away(self, error: BombyxError) -> None:
        log.warning("a worker's link is closed: %s", error)
        self._closing = asyncio.get_running_loop().create_task(self._link.close())
        self._on_close()

    def _on_close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._timer.cancel()
        if self._hello is not None:
            self._hello.cancel()
        for stream in list(self._streams.values()):
            stream.lost()
        self._streams.clear()
        self._desk.gone(self)


_ON_STREAM: Final = frozenset({LinkType.DATA, LinkType.RECEIPT, LinkType.END, LinkType.REFUSE})
