# SPDX-License-Identifier: Apache-2.0
"""From the engine into the answer: run what was asked, count it, and turn every failure into a sealed one (spec WRK).

Always: every way out of `fill` has finished the answer with an outcome and a bill; an engine's 4xx is the
application's fault and costs nothing; a crash, a hang or garbage is a sealed 502 that bills what was delivered and
nothing else; no message holds content.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from bombyx.errors import BadRequest, BombyxError, DeadlineExceeded, EngineUnavailable, LocalError
from bombyx.ports import Clock, Engine, EngineChunk, EngineEnd, EngineEvent, EngineHead, EngineRequest
from bombyx.protocol.pay.payee import Reservation
from bombyx.protocol.primitives import Address
from bombyx.protocol.seal.opening import OpenedRequest
from bombyx.protocol.wire.receipt import Outcome
from bombyx.protocol.wire.request import Meta
from bombyx.roles.worker.answer import Answer
from bombyx.roles.worker.asked import MODELS_PATH, Asked, error_body, models_body, read_asked
from bombyx.roles.worker.auditing import AnswerAudit
from bombyx.roles.worker.gate import Ticket
from bombyx.roles.worker.health import EngineHealth
from bombyx.roles.worker.meter import Meter
from bombyx.roles.worker.settings import Limits, ServedModel
from bombyx.roles.worker.signed import REPORT_PATH, SIGNATURE_PATH, Recorder, SignedAnswers

log = logging.getLogger("bombyx.worker")

JSON: Final = "application/json"
EVENT_STREAM: Final = "text/event-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A request that is paid for and open."""

    opened: OpenedRequest
    model: ServedModel = field(repr=False)
    health: EngineHealth = field(repr=False)
    ticket: Ticket = field(repr=False)
    reservation: Reservation | None
    ends_at: float  # monotonic seconds

    @property
    def meta(self) -> Meta:
        return self.opened.meta


class Filler:
    """Fills answers, one call each."""

    def __init__(
        self, *, limits: Limits, clock: Clock, names: tuple[str, ...], signed: SignedAnswers, operator: Address
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._names = names
        self._signed = signed
        self._operator = operator

    async def fill(self, job: Job, answer: Answer, meter: Meter) -> None:
        """Never raises but for cancellation."""
        try:
            await self._fill(job, answer, meter)
        except BadRequest as error:
            _fail(answer, meter, error, Outcome.REFUSED)
        except BombyxError as error:
            if isinstance(error, EngineUnavailable):
                job.health.failed()
            log.warning("request %s: %s", job.meta.request_id.hex(), error)
            _fail(answer, meter, error, Outcome.FAILED)
        except Exception as error:  # noqa: BLE001  the message may hold content: only its type is told
            log.error("request %s: %s in the worker", job.meta.request_id.hex(), type(error).__name__)
            _fail(answer, meter, LocalError("the worker failed"), Outcome.FAILED)

    async def _fill(self, job: Job, answer: Answer, meter: Meter) -> None:
        asked = read_asked(job.opened.bhttp, job.model.manifest.name)
        if asked.path == MODELS_PATH:
            _whole_answer(answer, 200, JSON, models_body(self._names))
            answer.finish(Outcome.COMPLETE, meter.nothing(""))
            return
        if not asked.body:
            _whole_answer(answer, 200, JSON, await self._vouched(job, asked))
            answer.finish(Outcome.COMPLETE, meter.nothing(""))
            return
        async with job.ticket.place(self._left(job)):
            await self._run_engine(job, asked, answer, meter)

    async def _vouched(self, job: Job, asked: Asked) -> bytes:
        """A signed answer, or a fresh report: a quote costs the device time, so it waits for its turn."""
        if asked.path != REPORT_PATH:
            return self._signed.signature(asked.path.removeprefix(SIGNATURE_PATH), asked.query)
        async with job.ticket.place(self._left(job)):
            return await self._signed.report(asked.query)

    async def _run_engine(self, job: Job, asked: Asked, answer: Answer, meter: Meter) -> None:
        seconds = self._left(job)
        audit = AnswerAudit(job.opened, asked, job.model.manifest, self._operator)
        recorder = self._signed.recorder(job.meta.model, asked.body)
        request = EngineRequest(
            path=asked.path,
            body=asked.body,
            stream=asked.stream,
            cache_salt=asked.cache_salt,
            max_output=job.meta.max_output,
            deadline_seconds=seconds,
            audit=audit.ask,
        )
        try:
            async with asyncio.timeout(seconds), _running(job.model.engine, request) as events:
                await self._take(events, answer, meter, recorder, audit)
        except TimeoutError:
            raise DeadlineExceeded("the engine did not finish before the deadline", rule="WRK-6") from None

    def _left(self, job: Job) -> float:
        return max(0.0, job.ends_at - self._clock.monotonic())

    async def _take(
        self, events: AsyncIterator[EngineEvent], answer: Answer, meter: Meter, recorder: Recorder, audit: AnswerAudit
    ) -> None:
        head = await anext(events, None)
        if not isinstance(head, EngineHead) or not (200 <= head.status < 300 or 400 <= head.status < 500):
            raise EngineUnavailable("the engine gave no answer", rule="WRK-5")
        if head.status >= 400:
            _whole_answer(answer, head.status, head.content_type, await self._collect(events, None))
            answer.finish(Outcome.REFUSED, meter.nothing("the engine refused the request"))
        elif head.content_type.startswith(EVENT_STREAM):
            await self._stream(head, events, answer, meter, recorder, audit)
        else:
            body = await self._collect(events, meter)
            _check_input(meter)
            recorder.put(body)
            recorder.finish()
            _whole_answer(answer, head.status, head.content_type, body)
            _complete(answer, meter, audit)

    async def _stream(
        self,
        head: EngineHead,
        events: AsyncIterator[EngineEvent],
        answer: Answer,
        meter: Meter,
        recorder: Recorder,
        audit: AnswerAudit,
    ) -> None:
        answer.begin(head.status, head.content_type, streamed=True)
        async for event in events:
            if isinstance(event, EngineEnd):
                meter.end(event.usage)
                recorder.finish()
                _complete(answer, meter, audit)
                return
            if isinstance(event, EngineChunk):
                recorder.put_events(event.data)
                event = audit.marked(event)
            chunk = _counted(event, meter)
            if not answer.begun:
                _check_input(meter)
            answer.put(chunk.data)
            await answer.backlog_below(self._limits.backlog)
        raise EngineUnavailable("the engine's stream has no end", rule="WRK-5")

    async def _collect(self, events: AsyncIterator[EngineEvent], meter: Meter | None) -> bytes:
        """A whole body, bounded. Without `meter` its end may be missing: there is nothing to count."""
        body = bytearray()
        async for event in events:
            if isinstance(event, EngineEnd):
                if meter is not None:
                    meter.end(event.usage)
                return bytes(body)
            body += (event if meter is None and isinstance(event, EngineChunk) else _counted(event, meter)).data
            if len(body) > self._limits.answer:
                raise EngineUnavailable(f"an answer of more than {self._limits.answer} bytes", rule="WRK-5")
        if meter is not None:
            raise EngineUnavailable("the engine's answer has no end", rule="WRK-5")
        return bytes(body)


def _counted(event: EngineEvent, meter: Meter | None) -> EngineChunk:
    """A chunk, counted before it is handed on, so that nothing above the cap ever leaves."""
    if not isinstance(event, EngineChunk):
        raise EngineUnavailable("the engine gave two heads", rule="WRK-5")
    if meter is not None:
        meter.chunk(event)
        if meter.output_over_cap:
            raise EngineUnavailable("the engine went over the output that was paid for", rule="WRK-4")
    return event


def _check_input(meter: Meter) -> None:
    if meter.input_over_cap:
        raise BadRequest(
            "the input has more tokens than the request was sealed for", code="context_length_exceeded", rule="WRK-4"
        )


def _complete(answer: Answer, meter: Meter, audit: AnswerAudit) -> None:
    bill, usage = meter.whole(), meter.usage
    assert usage is not None
    answer.finish(Outcome.COMPLETE, bill, audit.block(usage, bill.opening))


def _whole_answer(answer: Answer, status: int, content_type: str, body: bytes) -> None:
    answer.begin(status, content_type, streamed=False)
    answer.put(body)


def _fail(answer: Answer, meter: Meter, error: BombyxError, outcome: Outcome) -> None:
    """End with an error: as a whole answer while nothing has left, else as the stream's last event."""
    body = error_body(error.message, status=error.status, code=error.code)
    if answer.begun:
        answer.put(b"data: " + body + b"\n\n")
        answer.finish(Outcome.FAILED, answer.everything_bill(error.code))
        return
    _whole_answer(answer, error.status, JSON, body)
    answer.finish(outcome, meter.nothing(error.code))


@asynccontextmanager
async def _running(engine: Engine, request: EngineRequest) -> AsyncIterator[AsyncIterator[EngineEvent]]:
    """The engine's events; leaving closes them, which cancels the engine's work."""
    events = engine.run(request)
    try:
        yield events
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()
