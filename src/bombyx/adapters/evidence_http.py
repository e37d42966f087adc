# SPDX-License-Identifier: Apache-2.0
"""Capture: ask a provider for its report with a nonce of ours, and gather all that verifies it offline, for ever.

Not here: any judgement; a captured report may be a bad one.
Always: what could not be had is named in the archive, never silently left out.
"""

from __future__ import annotations

import contextlib
import urllib.parse
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from bombyx.adapters.endorsements_http import Fetcher, NvidiaServices
from bombyx.adapters.revocation_http import RevocationAnswers
from bombyx.errors import AttestationError, MalformedMessage, Unavailable
from bombyx.ports import Clock, EndorsementSource
from bombyx.protocol.attest import Archive, Part, Report, recognise
from bombyx.protocol.attest.gpu import parse_gpu_evidence
from bombyx.protocol.attest.ocsp import issued
from bombyx.protocol.attest.rim import parse_rim
from bombyx.protocol.attest.x509chain import Chain

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """What a capture asks, and when."""

    fetcher: Fetcher
    endorsements: EndorsementSource
    nvidia: NvidiaServices
    revocation: RevocationAnswers
    clock: Clock

    async def capture(self, url: str, nonce: bytes, headers: dict[str, str] | None = None) -> Archive:
        """Ask `url` with our nonce. Raises `Unavailable`, or `MalformedMessage` when the answer is nothing we know."""
        report, _ = await self.fetcher.get(with_nonce(url, nonce), headers)
        return await self.complete(report, source=url, nonce=nonce)

    async def complete(self, report: bytes, *, source: str, nonce: bytes | None) -> Archive:
        """Gather what verifies a report that is already here."""
        found = recognise(report)
        if not isinstance(found, Report):
            raise MalformedMessage("a bundle carries its own Endorsements: keep it as it is", rule="ATT-6.1")
        gathered = _Gathered()
        for part in found.parts:
            await self._gather(part, gathered)
        gathered.ocsp, missing = await self.revocation.of(gathered.chains)
        gathered.missing += missing
        return Archive(
            report=report,
            source=source,
            captured=self.clock.now(),
            nonce=nonce,
            endorsements=tuple(dict.fromkeys(gathered.endorsements)),
            tokens=tuple(gathered.tokens),
            rims=tuple(dict.fromkeys(gathered.rims)),
            ocsp=tuple(dict.fromkeys(gathered.ocsp)),
            jwks=gathered.jwks,
            missing=tuple(gathered.missing),
        )

    async def _gather(self, part: Part, gathered: _Gathered) -> None:
        if part.quote:
            answer = await gathered.attempt(f"{part.name}: Endorsements", self.endorsements.endorsements(part.quote))
            gathered.endorsements += [answer] if answer else []
        nonce = part.binding.nonce if part.binding else part.gpu_nonce
        if part.gpu_evidence is None or nonce is None:
            return
        tokens = await gathered.attempt(f"{part.name}: NVIDIA's token", self.nvidia.tokens(part.gpu_evidence, nonce))
        gathered.tokens.append(tokens or b"")
        rims = await gathered.attempt(f"{part.name}: golden measurements", self.nvidia.rims(part.gpu_evidence))
        gathered.rims += rims or ()
        gathered.chains += _chains(part.gpu_evidence, rims or ())
        if not gathered.jwks:
            gathered.jwks = await gathered.attempt("NVIDIA's key set", self.nvidia.jwks()) or b""


class _Gathered:
    """What has come so far."""

    def __init__(self) -> None:
        self.endorsements: list[bytes] = []
        self.tokens: list[bytes] = []
        self.rims: list[bytes] = []
        self.jwks = b""
        self.chains: list[Chain] = []
        self.ocsp: tuple[bytes, ...] = ()
        self.missing: list[str] = []

    async def attempt(self, what: str, asked: Awaitable[T]) -> T | None:
        try:
            return await asked
        except (Unavailable, MalformedMessage) as error:
            self.missing.append(f"{what}: {error}")
            return None


def _chains(evidence: bytes, rims: tuple[bytes, ...]) -> list[Chain]:
    """Every chain an authority answers for; of what cannot be read, none."""
    found: list[Chain] = []
    with contextlib.suppress(MalformedMessage):
        found += [issued(report.chain) for report in parse_gpu_evidence(evidence)]
    for raw in rims:
        with contextlib.suppress(MalformedMessage, AttestationError):
            found.append(parse_rim(raw).chain)
    return found


def with_nonce(url: str, nonce: bytes) -> str:
    """The URL with our nonce in its query; one that stands there already is replaced."""
    parts = urllib.parse.urlsplit(url)
    query = [(key, value) for key, value in urllib.parse.parse_qsl(parts.query) if key != "nonce"]
    return urllib.parse.urlunsplit(parts._replace(query=urllib.parse.urlencode([*query, ("nonce", nonce.hex())])))
