# SPDX-License-Identifier: Apache-2.0
"""An answer as an application sees it: opened from a worker, made here, or an error of ours in OpenAI's shape.

Always: `body` ends when the checks have ended; `finished()` raises the check that failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bombyx.errors import BombyxError
from bombyx.protocol.primitives import RequestId
from bombyx.roles.client.delivery import Delivery, Finished
from bombyx.roles.client.problem import problem_body, problem_headers, status_of
from bombyx.roles.client.receipts import summary

JSON: Final = {"content-type": "application/json"}


@dataclass(slots=True, kw_only=True)
class ClientResponse:
    """An answer as an application sees it. Iterate `body` once; then `finished()` tells how the checks ended."""

    status: int
    headers: dict[str, str]
    body: AsyncIterator[bytes] = field(repr=False)
    error: BombyxError | None = None  # why `status` is an error of ours; None for what a worker said
    request_id: RequestId | None = None
    steps: tuple[dict[str, Any], ...] = ()  # of the appraisal of the worker that answers
    delivery: Delivery | None = field(default=None, repr=False)

    async def finished(self) -> Finished:
        """Wait until everything is checked and settled. Raises the check that failed."""
        if self.delivery is None:
            if self.error is not None:
                raise self.error
            return Finished(kept=None)
        return await self.delivery.finished()

    async def paid(self) -> int:
        """What the answer cost us, commission included, however it ended. 0 for what was not let through."""
        if self.delivery is None:
            return 0
        kept = (await asyncio.shield(self.delivery.task)).kept
        return kept.paid if kept else 0

    async def receipt(self) -> dict[str, Any] | None:
        """The receipt's summary, after the end; None for answers made here (`/v1/models`)."""
        finished = await self.finished()
        return summary(finished.kept) if finished.kept else None

    @property
    def between_events(self) -> bool:
        """Whether the stream stands between two events, so that an event of our own may follow."""
        text = self.delivery.answer.text if self.delivery is not None else None
        return text is not None and text.between_events

    async def read(self) -> bytes:
        """The whole body."""
        return b"".join([piece async for piece in self.body])

    def stop_reading(self) -> None:
        """The body ends here for its reader; the answer runs on."""
        if self.delivery is not None:
            self.delivery.stop_reading()

    async def leave(self, seconds: float) -> None:
        """Cancel the request after its next receipt, so that what was delivered is billed; within `seconds`."""
        if self.delivery is not None:
            await self.delivery.leave(seconds)

    async def aclose(self) -> None:
        """Done reading. Before a stream's `[DONE]` this cancels the request."""
        if self.delivery is not None:
            await self.delivery.aclose()


def local(body: bytes, *, status: int = 200, headers: Mapping[str, str] = JSON) -> ClientResponse:
    """An answer made here."""
    return ClientResponse(status=status, headers=dict(headers), body=_once(body))


def failure(error: BombyxError, *, sent: bool, request_id: RequestId | None = None) -> ClientResponse:
    """An error of ours as an OpenAI-shaped answer."""
    headers = problem_headers(error, sent=sent) | (marks(request_id) if request_id else {})
    return ClientResponse(
        status=status_of(error), headers=headers, body=_once(problem_body(error)), error=error, request_id=request_id
    )


def marks(request_id: RequestId) -> dict[str, str]:
    name = request_id.hex()
    return {"x-bombyx-request-id": name, "x-bombyx-receipt": f"/v1/receipts/{name}"}


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body
