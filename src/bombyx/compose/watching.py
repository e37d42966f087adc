# SPDX-License-Identifier: Apache-2.0
"""Watches a trial from outside: validators' public reports, the chain's events, and questions asked meanwhile.

Nothing here takes part. What is told comes from pages anybody may read and from the chain itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from bombyx.adapters.evm import AddressBook, Rpc
from bombyx.adapters.evm.case_history import CaseStep, case_steps
from bombyx.compose.asking import ask
from bombyx.compose.client import build
from bombyx.compose.network import RunningNetwork
from bombyx.errors import BombyxError
from bombyx.protocol.audit.asked import CHAT
from bombyx.protocol.primitives import Address
from bombyx.roles.client.core import Client
from bombyx.roles.client.kept import KeptReceipt

LOOK_SECONDS: Final = 1.0
MARKS: Final = (1, 3, 6)  # decimal logarithms of evidence that are told: something, alarm, a case
PAUSE_SECONDS: Final = 2.0  # between a client's questions
QUESTIONS: Final = (
    "Name three rivers.", "What is a prime number?", "Write a haiku about rain.", "How do magnets work?",
    "Translate 'good morning' to Spanish.", "What is 17 times 6?", "Who wrote Hamlet?", "What do bees eat?",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One thing to tell. `step` is the chain's event where it is one."""

    what: str
    who: str
    detail: str
    step: CaseStep | None = None


@dataclass(slots=True)
class Watcher:
    """Names everybody, and remembers what was told."""

    network: RunningNetwork
    answers: int = 0
    failed: int = 0
    steps: list[CaseStep] = field(default_factory=list)
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    bought: list[KeptReceipt] = field(default_factory=list)  # what a customer of the liar's paid for
    payout: Address | None = None  # where its refunds go
    _told: dict[tuple[str, str], int] = field(default_factory=dict)

    def name(self, address: str | None) -> str:
        """What a process of this network is called; an address otherwise."""
        return self._names().get(str(address).lower(), f"{str(address)[:8]}..." if address else "")

    async def watch(self, stop: asyncio.Event) -> AsyncIterator[Seen]:
        """Until the cheater's sentence is carried out and paid, or `stop`."""
        assert self.network.descriptor.contracts is not None
        book = AddressBook.from_dict(self.network.descriptor.contracts)
        rpc = Rpc(self.network.descriptor.chain_url.split(","))
        customer = await build(
            json.loads(self.network.descriptor.to_json()), state_dir=self.network.folder / "customer"
        )
        self.payout = customer.payer
        asking = asyncio.gather(self._keep_asking(), self._keep_buying(customer), return_exceptions=True)
        try:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as http:
                while not stop.is_set() and not self.over:
                    for seen in await self._look(rpc, book, http):
                        yield seen
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(stop.wait(), LOOK_SECONDS)
        finally:
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking
            await customer.close()
            await rpc.close()

    @property
    def over(self) -> bool:
        """The last refund of a sentence was paid, or there was nothing to pay."""
        closed = next((step for step in self.steps if step.step == "refunds closed"), None)
        if closed is None:
            return False
        claimed = {step.who for step in self.steps if step.step == "refund claimed"}
        return claimed <= {step.who for step in self.steps if step.step == "refund paid"}

    async def _look(self, rpc: Rpc, book: AddressBook, http: aiohttp.ClientSession) -> list[Seen]:
        found = await self._evidence(http)
        try:
            steps = await case_steps(rpc, book)
        except BombyxError:
            return found
        fresh, self.steps = steps[len(self.steps) :], steps
        return found + [self._seen(step) for step in fresh]

    async def _evidence(self, http: aiohttp.ClientSession) -> list[Seen]:
        """What validators newly say against somebody."""
        found = []
        for child in self.network.validators:
            try:
                async with http.get(f"{child.ready['url']}/v1/report") as response:
                    report = await response.json()
            except (aiohttp.ClientError, TimeoutError):
                continue
            self.reports[child.name] = report
            for row in report["workers"]:
                mark = max((m for m in MARKS if row["log10_peak"] >= m), default=0)
                key = (child.name, row["operator"])
                if mark > self._told.get(key, 0):
                    self._told[key] = mark
                    detail = f"10^{row['log10_peak']:.1f} after {row['judged']} canaries, {row['failed']} failed"
                    found.append(Seen(what=f"evidence of {child.name}", who=self.name(row["operator"]), detail=detail))
        return found

    def _seen(self, step: CaseStep) -> Seen:
        by = f"by {self.name(str(step.by))}" if step.by is not None else ""
        detail = ", ".join(part for part in (by, step.detail) if part)
        return Seen(what=step.step, who=self.name(str(step.who) if step.who else None), detail=detail, step=step)

    def _names(self) -> dict[str, str]:
        network = self.network
        workers = [*network.workers, *([network.cheater] if network.cheater else [])]
        named = {child.ready["operator"].lower(): child.name for child in workers}
        return named | {child.ready["address"].lower(): child.name for child in network.validators}

    async def _keep_buying(self, customer: Client) -> None:
        """A customer whose draw fell on the liar: it asks as others do, and is owed what it paid."""
        assert self.network.cheater is not None
        liar = Address.parse(self.network.cheater.ready["operator"])
        model = str(self.network.cheater.ready["model"])
        turn = 0
        while True:
            question = {"role": "user", "content": QUESTIONS[turn % len(QUESTIONS)]}
            body = {"model": model, "messages": [question], "max_tokens": 16}
            response = await customer.request("POST", CHAT, body=json.dumps(body).encode(), candidates=(liar,))
            await response.read()
            with contextlib.suppress(BombyxError):
                finished = await response.finished()
                if finished.kept is not None and finished.kept.paid:
                    self.bought.append(finished.kept)
            turn += 1
            await asyncio.sleep(2 * PAUSE_SECONDS)

    async def _keep_asking(self) -> None:
        """Ordinary questions of an ordinary client: what the cheater earned with them comes back."""
        turn = 0
        while True:
            try:
                await ask(self.network.endpoint, QUESTIONS[turn % len(QUESTIONS)])
                self.answers += 1
            except BombyxError:
                self.failed += 1
            turn += 1
            await asyncio.sleep(PAUSE_SECONDS)
