# SPDX-License-Identifier: Apache-2.0
"""The ordinary client a validator asks through: one for each epoch, with an account and a channel of its own.

Not here: what is asked, and what an answer is worth. Always: what goes out is what any client sends; of what comes back
nothing is logged.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from bombyx.compose.channels import open_channels
from bombyx.compose.client import opened
from bombyx.config import ClientConfig, NetworkDescriptor
from bombyx.errors import BombyxError, Peer, PeerError, StreamTruncated, Unavailable
from bombyx.protocol.audit.canary import compose
from bombyx.protocol.primitives import Address
from bombyx.protocol.wire.cases import PlannedCanary
from bombyx.roles.client.core import Client
from bombyx.roles.client.response import ClientResponse
from bombyx.roles.validator.asking import Ended, Heard, OnOffer

log = logging.getLogger("bombyx.validator")


class ClientAsker:
    """Over one state folder: one payer's keys and channels."""

    def __init__(self, config: ClientConfig, network: NetworkDescriptor, folder: Path) -> None:
        self._config = config
        self._network = network
        self._folder = folder
        self._client: Client | None = None

    async def open(self) -> None:
        self._client = await opened(self._config, self._network, self._folder, keep_openings=True)

    async def close(self) -> None:
        """Close the channel together with the proxy: what was not spent comes back. A proxy that does not answer
        keeps it until the channel's delay has passed; nobody waits for that here."""
        if self._client is None:
            return
        client, self._client = self._client, None
        await client.close()
        try:
            async with open_channels(self._config, self._network, self._folder, ask=None, change=True) as (it, wallet):
                for channel in wallet.channels():
                    await it.close(channel, alone=False)
        except BombyxError as error:
            log.info("an epoch's channel was not closed: %s", error)

    async def on_offer(self) -> tuple[OnOffer, ...]:
        client = self._opened()
        view = await client.view()
        found = []
        for model in await client.network.models(view):
            operators = tuple(sorted({o.operator for o in view.report.fit if model.digest in o.models}))
            found.append(
                OnOffer(
                    model=model.digest, name=model.manifest.name, manifest=model.manifest.encode(), operators=operators
                )
            )
        return tuple(found)

    async def ask(self, canary: PlannedCanary, nonce: bytes) -> Heard:
        began = time.monotonic()
        first: float | None = None
        made = compose(canary.seed, canary.name, canary.most)
        response: ClientResponse | None = None
        try:
            response = await self._opened().request(
                "POST",
                made.path,
                body=made.body,
                request_id=canary.request_id,
                candidates=canary.candidates,
                nonce=nonce,
            )
            async for _ in response.body:
                first = first or time.monotonic()
            return await self._heard(response, began, first)
        except BombyxError as error:
            return _failed(error, _operator(response), time.monotonic() - began)

    async def _heard(self, response: ClientResponse, began: float, first: float | None) -> Heard:
        finished = await response.finished()  # raises the check that failed
        seconds = time.monotonic() - began
        verdict = finished.verdict
        if verdict is None:
            raise response.error or Unavailable("no answer came", rule="AUD-53")
        if response.status != 200:
            return Heard(
                ended=Ended.REFUSED, operator=_operator(response), why=f"status {response.status}", seconds=seconds,
                first=None, output=0,
            )  # fmt: skip
        if verdict.package is None:
            raise Unavailable("an answer of no engine", rule="AUD-53")
        return Heard(
            ended=Ended.ANSWERED,
            operator=verdict.candidate.operator,
            why="",
            seconds=seconds,
            first=None if first is None else first - began,
            output=verdict.usage.output,
            package=verdict.package.encode(),
            bundle=await self._opened().blob(verdict.candidate.offer.bundle) or b"",
        )

    def _opened(self) -> Client:
        if self._client is None:
            raise Unavailable("this epoch's client is closed", rule="AUD-53")
        return self._client


def _operator(response: ClientResponse | None) -> Address | None:
    """Who answered, as the client found out; None where nobody did."""
    if response is None or response.delivery is None or response.delivery.answer.candidate is None:
        return None
    return response.delivery.answer.candidate.operator


def _failed(error: BombyxError, operator: Address | None, seconds: float) -> Heard:
    """Only what a worker's own key signed is held against it; all else may be the proxy's doing, or the line's."""
    by_worker = isinstance(error, PeerError) and error.peer is Peer.WORKER and not isinstance(error, StreamTruncated)
    ended = Ended.CHEATED if by_worker else Ended.LOST
    return Heard(ended=ended, operator=operator, why=error.code, seconds=seconds, first=None, output=0)
