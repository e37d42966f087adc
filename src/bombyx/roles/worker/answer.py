# SPDX-License-Identifier: Apache-2.0
"""One answer on its way out: shaped, sealed, handed to the link, and receipted as it goes (spec SEAL-8, RCT).

Not here: what the answer says (`serve.py` fills it) and how bytes become frames (`protocol/seal/shape.py`).

Always: a frame is sealed only when the link has credit for it, so sealed, sent and receipted frames are the same; in
constant shape a frame leaves at its tick or later, never earlier; the final receipt follows the final frame; a receipt
is written before it is sent.
"""

from __future__ import annotations

import asyncio
from typing import Final, Literal

from bombyx.errors import Unavailable
from bombyx.ports import Clock, Write
from bombyx.protocol.audit.commitment import unauditable
from bombyx.protocol.seal.fields import audit_trailers, usage_trailers
from bombyx.protocol.seal.hpke import TAG_SIZE
from bombyx.protocol.seal.ohttp import RESPONSE_NONCE_SIZE
from bombyx.protocol.seal.opening import OpenedRequest
from bombyx.protocol.seal.response import ResponseSealer
from bombyx.protocol.seal.shape import TICK, Frame, Shaper
from bombyx.protocol.wire.audit import AuditBlock
from bombyx.protocol.wire.receipt import Outcome, SignedReceipt
from bombyx.protocol.wire.request import Shape
from bombyx.roles.worker.meter import Bill, Meter
from bombyx.roles.worker.notary import AnswerReceipts, Delivered, Notary
from bombyx.roles.worker.settings import CHECKPOINT_FRAMES
from bombyx.roles.worker.streams import Stream

NOT_COMPLETE: Final = unauditable("the answer did not complete")
Stopped = asyncio.Task[Literal[True]]  # done once the stream was stopped
_OVERHEAD: Final = TAG_SIZE + 8 + RESPONSE_NONCE_SIZE  # most that sealing adds to a frame: tag, length, first nonce


class Answer:
    """From the first frame to the final one. `put` and `finish` fill it; `flow` sends until it is over."""

    def __init__(
        self,
        *,
        opened: OpenedRequest,
        response_nonce: bytes,
        stream: Stream,
        meter: Meter,
        receipts: AnswerReceipts,
        notary: Notary,
        clock: Clock,
    ) -> None:
        self._opened = opened
        self._sealer = ResponseSealer(opened, response_nonce)
        self._stream = stream
        self._meter = meter
        self._receipts = receipts
        self._notary = notary
        self._clock = clock
        self._shaper = Shaper(opened.meta.shape, opened.meta.frame_size)
        self._streamed = False
        self._flowing = False
        self._checkpoints = True
        self._put = 0
        self._delivered = 0  # content bytes known to have left; head and filler count as if they still waited
        self._shaped = 0  # bytes of frames that wait for credit
        self._changed = asyncio.Event()
        self._drained = asyncio.Event()
        self._writing = asyncio.Lock()  # fair: receipts leave in the order they were signed
        self._pending: set[asyncio.Task[None]] = set()
        self.outcome = Outcome.RUNNING
        self.bill: Bill = meter.nothing("")
        self._block = NOT_COMPLETE

    # --- filling ---

    @property
    def begun(self) -> bool:
        """Sending has started: what was begun cannot be taken back."""
        return self._flowing

    def begin(self, status: int, content_type: str, *, streamed: bool) -> None:
        """The head. Until sending has started it can be begun anew, with an error instead."""
        meta = self._opened.meta
        self._shaper = Shaper(meta.shape, meta.frame_size)
        self._put = 0
        self._streamed = streamed
        self._shaper.begin(status, ((b"content-type", content_type.encode("ascii", "replace")),), streamed=streamed)

    def put(self, data: bytes) -> None:
        self._shaper.put(data)
        self._put += len(data)
        self._changed.set()

    async def backlog_below(self, limit: int) -> None:
        """Back-pressure: wait until what the client has not taken is small again, or nobody waits for it any more."""
        while self._shaper.backlog > limit and not self._stream.stopped.is_set():
            self._drained.clear()
            await self._drained.wait()

    def finish(self, outcome: Outcome, bill: Bill, block: AuditBlock = NOT_COMPLETE) -> None:
        """No more content. `bill` and `block` are opened in the closing block; the final receipt commits to both."""
        self.outcome, self.bill, self._block = outcome, bill, block
        if not bill.charge:
            self._checkpoints = False  # a checkpoint protects a charge; where none follows it says nothing
        self._shaper.end((*usage_trailers(bill.opening), *audit_trailers(block)))
        self._changed.set()

    def delivered_bill(self) -> Bill:
        """What may be billed of an answer that ends now."""
        if self._ended and not self.bill.charge:
            return self.bill
        return self._meter.partial(self._delivered)

    def everything_bill(self, note: str) -> Bill:
        """What may be billed once all that was put has left."""
        return self._meter.partial(self._put, note)

    # --- sending ---

    async def flow(self) -> bool:
        """Send until the final frame has left (True) or the stream was stopped (False)."""
        stopped: Stopped = asyncio.ensure_future(self._stream.stopped.wait())
        stopped.add_done_callback(lambda _: self._changed.set())
        try:
            while not self._put and not self._ended:
                if not await self._wait_change(stopped):
                    return False
            self._flowing = True
            if self._streamed and self._opened.meta.shape is Shape.CONSTANT:
                return await self._flow_in_ticks(stopped)
            return await self._flow_as_ready(stopped)
        finally:
            stopped.cancel()
            self._drained.set()

    @property
    def _ended(self) -> bool:
        return self.outcome is not Outcome.RUNNING

    async def _flow_in_ticks(self, stopped: Stopped) -> bool:
        """One frame a tick on a fixed grid. A tick the link or the loop missed is not made up for."""
        start, tick = self._clock.monotonic(), 0
        size = self._opened.meta.frame_size + _OVERHEAD
        while True:
            if self._stream.credit >= size:
                for frame in self._shaper.tick():
                    self._emit(frame)
            if self._shaper.finished:
                return True
            tick = max(tick + 1, int((self._clock.monotonic() - start) / TICK) + 1)
            if not await self._wait_stop(stopped, start + tick * TICK):
                return False

    async def _flow_as_ready(self, stopped: Stopped) -> bool:
        """Bucket, off, and answers that are not streamed: frames as they fill, a flush each tick where one is due."""
        while not self._shaper.finished:
            self._changed.clear()
            frames = self._shaper.ready()
            if not frames and self._shaper.backlog and self._streamed:
                if not await self._wait_stop(stopped, self._clock.monotonic() + TICK):
                    return False
                frames = (*self._shaper.ready(), *self._shaper.tick())
            if not await self._emit_all(frames):
                return False
            if not frames and not await self._wait_change(stopped):
                return False
        return True

    async def _emit_all(self, frames: tuple[Frame, ...]) -> bool:
        self._shaped = sum(len(frame.plaintext) for frame in frames)
        for frame in frames:
            if not await self._stream.room(len(frame.plaintext) + _OVERHEAD):
                return False
            self._shaped -= len(frame.plaintext)
            self._emit(frame)
        return True

    def _emit(self, frame: Frame) -> None:
        sealer = self._sealer
        self._stream.data(sealer.seal_final(frame.plaintext) if frame.final else sealer.seal(frame.plaintext))
        self._delivered = max(self._delivered, self._put - self._shaper.backlog - self._shaped)
        self._drained.set()
        count = sealer.chain.frames
        if not frame.final and self._checkpoints and (count == 1 or count % CHECKPOINT_FRAMES == 0):
            self._checkpoint()

    async def _wait_stop(self, stopped: Stopped, until: float) -> bool:
        """Sleep until `until`; False when stopped instead."""
        seconds = until - self._clock.monotonic()
        if seconds > 0:
            await asyncio.wait((stopped,), timeout=seconds)
        return not stopped.done()

    async def _wait_change(self, stopped: Stopped) -> bool:
        """Wait until something was put or finished; False when stopped instead. No task: this is once a token."""
        if not stopped.done():
            await self._changed.wait()
        self._changed.clear()
        return not stopped.done()

    # --- receipts ---

    @property
    def _handed(self) -> Delivered:
        return Delivered(frames=self._sealer.chain.frames, response_hash=self._sealer.chain.digest)

    @property
    def agreed(self) -> int:
        """The charge of the last receipt: what a proxy whose link broke can agree to."""
        return self._receipts.last.receipt.charge if self._receipts.last is not None else 0

    @property
    def frames(self) -> int:
        return self._sealer.chain.frames

    def _checkpoint(self) -> None:
        bill = self.delivered_bill()
        signed, rows = self._receipts.checkpoint(bill, self._handed, self._clock.now())
        task = asyncio.create_task(self._write_and_send(signed, rows))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def _write_and_send(self, signed: SignedReceipt, rows: list[Write]) -> None:
        async with self._writing:
            try:
                await self._notary.write(rows)
            except Unavailable:
                self._stream.stop()  # nothing can be promised any more
                return
            self._stream.receipt(signed)

    def sign_final(self, outcome: Outcome, bill: Bill) -> tuple[SignedReceipt, list[Write]]:
        block = self._block if bill is self.bill else NOT_COMPLETE  # nothing but a whole answer opens its block
        return self._receipts.final(outcome, bill, self._handed, self._clock.now(), block)

    async def close(self, final: SignedReceipt, rows: list[Write]) -> None:
        """Write the end, then say it."""
        if self._pending:
            await asyncio.wait(set(self._pending))
        async with self._writing:
            await self._notary.write(rows)
            self._stream.receipt(final)
            self._stream.end()

    async def abandon(self, rows: list[Write]) -> None:
        """Nobody is there to hear the end: only write it."""
        if self._pending:
            await asyncio.wait(set(self._pending))
        await self._notary.write(rows)
