# SPDX-License-Identifier: Apache-2.0
"""Revocation answers (OCSP) for GPUs' and RIM signers' certificates, over HTTP, kept until the next one is due.

Only the responder named here is asked: evidence is foreign, and a URL in its certificates is not followed. Not trusted:
an appraisal checks each answer's signature and dates (`protocol/attest/ocsp.py`).
Always: each certificate is asked about once, at most 64 in one go; what could not be had is named, never left out.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from bombyx.adapters.endorsements import keep_file, kept_file
from bombyx.adapters.endorsements_http import Fetcher
from bombyx.errors import MalformedMessage, Unavailable
from bombyx.ports import Clock
from bombyx.protocol.attest.ocsp import MAX_AGE, MAX_RESPONSE, parse_response
from bombyx.protocol.attest.x509chain import Chain

NVIDIA_OCSP: Final = "https://ocsp.ndis.nvidia.com"
MAX_ASKED: Final = 64  # certificates in one go; eight GPUs and their RIM files need about 30
MARGIN: Final = 3_600  # seconds before an answer runs out that it is asked for again


class RevocationAnswers:
    """One responder, and a folder of its answers (None: nothing is kept)."""

    def __init__(
        self, fetcher: Fetcher, clock: Clock, responder: str = NVIDIA_OCSP, directory: Path | None = None
    ) -> None:
        self._fetcher, self._clock, self._responder, self._directory = fetcher, clock, responder, directory

    async def of(self, chains: Iterable[Chain]) -> tuple[tuple[bytes, ...], tuple[str, ...]]:
        """(answers, what is missing and why) for every certificate below the roots."""
        pairs = {pair[0].fingerprint(hashes.SHA256()): pair for chain in chains for pair in itertools.pairwise(chain)}
        answers, missing = [], []
        for number, (certificate, issuer) in enumerate(pairs.values()):
            try:
                if number >= MAX_ASKED:
                    raise Unavailable(f"more than {MAX_ASKED} certificates", rule="ATT-11")
                answers.append(await self._answer(certificate, issuer))
            except Unavailable as error:
                missing.append(f"revocation of certificate {certificate.serial_number:x}: {error}")
        return tuple(answers), tuple(missing)

    async def _answer(self, certificate: x509.Certificate, issuer: x509.Certificate) -> bytes:
        path = None
        if self._directory is not None:
            path = self._directory / f"ocsp-{certificate.fingerprint(hashes.SHA256()).hex()[:32]}.der"
            kept = await asyncio.to_thread(kept_file, path, MAX_RESPONSE)
            if kept is not None and self._is_due_later(kept):
                return kept
        fresh = await self._fetcher.post(self._responder, _request(certificate, issuer), "application/ocsp-request")
        if not _is_about(fresh, certificate):
            raise Unavailable(f"{self._responder} answered something else than a revocation status", rule="ATT-11")
        if path is not None:
            await asyncio.to_thread(keep_file, path, fresh)
        return fresh

    def _is_due_later(self, answer: bytes) -> bool:
        try:
            response = parse_response(answer)
        except MalformedMessage:
            return False
        ends: dt.datetime = response.next_update_utc or response.this_update_utc + MAX_AGE
        return ends.timestamp() > self._clock.now().seconds + MARGIN


def _request(certificate: x509.Certificate, issuer: x509.Certificate) -> bytes:
    """Without a nonce: responders answer from a cache then, and so may we."""
    try:
        built = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, hashes.SHA384()).build()
        return built.public_bytes(Encoding.DER)
    except (ValueError, UnsupportedAlgorithm):
        raise Unavailable("a certificate nobody can ask about", rule="ATT-11") from None


def _is_about(answer: bytes, certificate: x509.Certificate) -> bool:
    try:
        return bool(parse_response(answer).serial_number == certificate.serial_number)
    except MalformedMessage:
        return False
