# SPDX-License-Identifier: Apache-2.0
"""Keeps cases moving: what anybody may call, called when it is due; jury duty; certificates (spec VAL-6 .., AUD-56).

Not here: what a juror finds (`juror.py`). Always: several validators try; whoever comes late is refused by the chain,
and that is no error.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from bombyx.errors import BombyxError, MalformedMessage, PaymentError, Peer, Unavailable
from bombyx.ports import Clock, Entropy, Ledger, OperatorRole, Validation
from bombyx.protocol.audit.case import (
    Case,
    CaseState,
    Ending,
    Step,
    ValidationParameters,
    Verdict,
    certificate_digest,
    certificate_message,
    encode_certificate,
)
from bombyx.protocol.primitives import Address, Digest
from bombyx.protocol.wire.signing import SigningKey, recover
from bombyx.roles.validator.asking import Pages
from bombyx.roles.validator.book import Book
from bombyx.roles.validator.juror import Juror
from bombyx.roles.validator.settings import ValidatorSettings

log = logging.getLogger("bombyx.validator")
CERTIFICATE = 65  # bytes of one juror's part: a signature
TURN_SECONDS = 1.5  # between validators who would take the same step


class Clerk:
    """Watches every case that is not closed."""

    def __init__(
        self,
        settings: ValidatorSettings,
        *,
        key: SigningKey,
        parameters: ValidationParameters,
        validation: Validation,
        ledger: Ledger,
        book: Book,
        juror: Juror,
        pages: Pages,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._settings = settings
        self._key = key
        self._parameters = parameters
        self._validation = validation
        self._ledger = ledger
        self._book = book
        self._juror = juror
        self._pages = pages
        self._clock = clock
        self._entropy = entropy
        self._first = 1  # every case before it is closed
        self._restituting: dict[int, int] = {}  # sentence -> case
        self.cases: dict[int, Case] = {}
        self.before_steps: Callable[[Case, int], Awaitable[Callable[[], Awaitable[None]] | None]] = _nothing
        self._busy: dict[int, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """For ever."""
        try:
            while True:
                try:
                    await self.look()
                except BombyxError as error:
                    log.warning("cases were not looked at: %s", error)
                await self._clock.sleep(self._settings.watch_seconds)
        finally:
            for task in list(self._busy.values()):
                task.cancel()
            await asyncio.gather(*self._busy.values(), return_exceptions=True)

    async def look(self) -> None:
        """One look at all of them; what a case wants of us runs beside, one task a case."""
        now, block = await self._validation.now()
        for case in await self._validation.cases(self._first):
            self._note(case)
            if case.id in self._busy:
                continue
            # A sample is shown before anything else: the next step would convict its decoy.
            due = await self.before_steps(case, now) or self._due(case, now, block)
            if due is not None:
                task = asyncio.create_task(self._one(case, due))
                self._busy[case.id] = task
                task.add_done_callback(self._done(case.id))
        while (known := self.cases.get(self._first)) is not None and self._over(known):
            self._first += 1

    def _done(self, case: int) -> Callable[[asyncio.Task[None]], None]:
        def done(_: asyncio.Task[None]) -> None:
            self._busy.pop(case, None)

        return done

    def _over(self, case: Case) -> bool:
        return case.state is CaseState.CLOSED and case.id not in self._restituting

    def _note(self, case: Case) -> None:
        before = self.cases.get(case.id)
        if before is None or (before.state, before.round, before.outcome) != (case.state, case.round, case.outcome):
            log.info("case %d: %s, round %d, %s", case.id, case.state.name, case.round, case.ending.name)
        self.cases[case.id] = case
        if case.ending is Ending.SLASHED and (before is None or before.ending is not Ending.SLASHED):
            self._restituting[case.id] = case.sentence

    def _due(self, case: Case, now: int, block: int) -> Callable[[], Awaitable[None]] | None:
        """What we do about a case now, if anything."""
        me = self._key.address
        if case.may_commit(me, now) or case.may_reveal(me, now):
            return lambda: self._duty(case, now)
        step = case.step(now=now, block=block)
        if step is not Step.NONE:
            return lambda: self._step(case, step)
        if case.id in self._restituting and case.state is CaseState.CLOSED:
            return lambda: self._finish(case)
        return None

    async def _one(self, case: Case, due: Callable[[], Awaitable[None]]) -> None:
        try:
            await due()
        except PaymentError as error:
            log.info("case %d: %s", case.id, error)  # another was faster, or the moment passed
        except BombyxError as error:
            log.warning("case %d: %s", case.id, error)

    # --- duty ---

    async def _duty(self, case: Case, now: int) -> None:
        if case.may_reveal(self._key.address, now) and await self._certified(case, now):
            return
        await self._juror.serve(case, now)

    async def _certified(self, case: Case, now: int) -> bool:
        """Try a certificate in the first half of the reveal time: one transaction instead of one for each juror."""
        if case.state is not CaseState.VOTING or now >= case.commit_until + self._parameters.reveal_seconds // 2:
            return False
        await self._clock.sleep(self._turn(case))
        again = await self._validation.case(case.id)
        if again is None or again.state is not CaseState.VOTING:
            return False  # another was faster: what is left is to reveal, for the fee
        kept = await self._book.vote(case.id, case.round)
        if kept is None or kept[0] == Verdict.ABSTAIN:
            return False  # nobody certifies that nothing was found: VAL-8
        verdict = Verdict(kept[0])
        signatures = await self._gather(case, verdict)
        if len(signatures) < case.quorum:
            return False
        await self._validation.certify(
            case.id, verdict, case.commit_until, encode_certificate(signatures), signer=self._key
        )
        log.info("case %d: certified %s by %d of %d", case.id, verdict.name, len(signatures), len(case.ballots))
        return True

    async def _gather(self, case: Case, verdict: Verdict) -> dict[Address, bytes]:
        """Signatures of jurors who say the same. A page that is silent or lies is left out."""
        digest = self._digest(case, verdict)
        pages = {o.address: o.endpoint for o in await self._ledger.operators(OperatorRole.VALIDATOR)}
        found = {self._key.address: self._key.sign(digest)}

        async def ask(juror: Address) -> None:
            url = f"{pages.get(juror, '').rstrip('/')}/v1/certificates/{case.id}/{case.round}"
            try:
                signature = await self._pages.get(url, CERTIFICATE)
                if len(signature) == CERTIFICATE and recover(digest, signature) == juror:
                    found[juror] = signature
            except BombyxError:
                pass

        await asyncio.gather(*(ask(juror) for juror in case.jury if juror != self._key.address))
        return found

    async def certificate(self, case_id: int, round_: int) -> bytes:
        """Our part of a certificate, for whoever asks; nothing before the time to commit is over (AUD-56)."""
        case = self.cases.get(case_id)
        kept = await self._book.vote(case_id, round_)
        if case is None or kept is None or case.round != round_:
            raise MalformedMessage("no vote of ours in that round", peer=Peer.CLIENT, rule="AUD-56")
        case = await self._validation.case(case_id)
        now, _ = await self._validation.now()
        mine = None if case is None else case.ballot(self._key.address)
        if case is None or case.round != round_ or mine is None or not mine.committed or now < case.commit_until:
            raise Unavailable("others may still commit", rule="AUD-56")
        return self._key.sign(self._digest(case, Verdict(kept[0])))

    def _digest(self, case: Case, verdict: Verdict) -> Digest:
        message = certificate_message(self._parameters.chain_id, self._parameters.service, case.id, case.round, verdict)
        return certificate_digest(self._parameters.service, case.commit_until, message)

    # --- what anybody may do ---

    def _turn(self, case: Case) -> float:
        """Seconds we wait, so that validators come one after the other; another order for each case."""
        place = sorted(case.jury or (self._key.address,), key=lambda who: bytes(who)[::-1])
        mine = place.index(self._key.address) if self._key.address in place else len(place)
        return TURN_SECONDS * ((mine + case.id) % (len(place) + 1))

    async def _step(self, case: Case, step: Step) -> None:
        await self._clock.sleep(self._turn(case) if step is not Step.DRAW else self._chance())
        again = await self._validation.case(case.id)
        now, block = await self._validation.now()
        if again is None or again.step(now=now, block=block) is not step:
            return
        calls = {
            Step.DRAW: self._validation.draw,
            Step.DECIDE: self._validation.decide,
            Step.EXECUTE: self._validation.execute,
        }
        await calls[step](case.id, signer=self._key)
        log.info("case %d: %s", case.id, step.name)

    def _chance(self) -> float:
        return TURN_SECONDS * self._entropy.bytes(1)[0] / 128

    async def _finish(self, case: Case) -> None:
        """After the clients' time to claim: close the sentence, then pay out what it owes them."""
        told = await self._validation.restitution(case.sentence)
        now, _ = await self._validation.now()
        if told is None or (told.finished and not any(told.owed.values())):
            self._restituting.pop(case.id, None)
            return
        if now < told.claim_until:
            return
        await self._clock.sleep(self._turn(case))
        told = await self._validation.restitution(case.sentence)
        if told is not None and not told.finished:
            await self._validation.finish_refunds(case.sentence, signer=self._key)
        elif told is not None:
            payout = next((who for who, owed in told.owed.items() if owed), None)
            if payout is not None:
                await self._validation.pay_refund(case.sentence, payout, signer=self._key)


async def _nothing(case: Case, now: int) -> None:
    """No sample of ours."""
