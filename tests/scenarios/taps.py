# SPDX-License-Identifier: Apache-2.0
"""A wire tap: relays TCP on loopback and keeps every byte, by direction; undoes WebSocket masking, which hides text."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from bombyx.protocol.wire.records import LinkType


@dataclass
class Tap:
    """`sent`: what the connecting side said, per connection; `received`: what it was told."""

    port: int = 0
    sent: list[bytearray] = field(default_factory=list)
    received: list[bytearray] = field(default_factory=list)
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @classmethod
    async def open(cls, target: int) -> Tap:
        tap = cls()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, back = await asyncio.open_connection("127.0.0.1", target)
            sent, received = bytearray(), bytearray()
            tap.sent.append(sent)
            tap.received.append(received)
            for source, sink, kept in ((reader, back, sent), (there, writer, received)):
                task = asyncio.create_task(_pump(source, sink, kept))
                tap._tasks.add(task)
                task.add_done_callback(tap._tasks.discard)

        tap._server = await asyncio.start_server(accept, "127.0.0.1", 0)
        tap.port = tap._server.sockets[0].getsockname()[1]
        return tap

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()

    def everything(self) -> bytes:
        """Both directions as they went over the wire, and the same with WebSocket masks taken off."""
        raw = [bytes(stream) for stream in (*self.sent, *self.received)]
        return b"\n".join(raw + [split_blobs(unmasked(stream))[0] for stream in raw])

    def blobs(self) -> set[bytes]:
        """What workers published over their links."""
        return {blob for stream in self.sent for blob in split_blobs(unmasked(bytes(stream)))[1]}


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, kept: bytearray) -> None:
    try:
        while data := await source.read(65_536):
            kept += data
            sink.write(data)
            await sink.drain()
    except ConnectionError:
        pass
    finally:
        sink.close()


def unmasked(stream: bytes) -> bytes:
    """The payloads of a recorded WebSocket conversation (RFC 6455 section 5.2); nothing for other streams."""
    head = stream.find(b"\r\n\r\n")
    if head < 0 or b"upgrade: websocket" not in stream[:head].lower():
        return b""
    position, payloads = head + 4, []
    while position + 2 <= len(stream):
        control = stream[position] & 0x08
        masked, length = stream[position + 1] & 0x80, stream[position + 1] & 0x7F
        position += 2
        if length >= 126:
            size = 2 if length == 126 else 8
            length = int.from_bytes(stream[position : position + size])
            position += size
        mask = stream[position : position + 4] if masked else b""
        position += len(mask)
        data = stream[position : position + length]
        position += length
        if not control:
            payloads.append(_xor(data, mask) if mask else data)
    return b"".join(payloads)


def split_blobs(conversation: bytes) -> tuple[bytes, list[bytes]]:
    """An unmasked link conversation: its frames without the public blobs a worker publishes, and those blobs."""
    kept, blobs, part, position = [], [], b"", 0
    while position + 9 <= len(conversation):
        length, kind = int.from_bytes(conversation[position : position + 4]), conversation[position + 8]
        frame = conversation[position : position + 9 + length]
        position += 9 + length
        if kind not in (LinkType.BLOB_PART, LinkType.BLOB_END):
            kept.append(frame)
            continue
        part += frame[9:]
        if kind == LinkType.BLOB_END:
            blobs.append(part)
            part = b""
    return b"".join(kept), blobs


def _xor(data: bytes, mask: bytes) -> bytes:
    key = (mask * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data) ^ int.from_bytes(key)).to_bytes(len(data))
