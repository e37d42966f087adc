# SPDX-License-Identifier: Apache-2.0
"""Endorsements from files (`ports.EndorsementSource`): one fixed file, or a cache in a directory over another source.

Always: bytes come out as the Endorser signed them; what is past its date, unreadable or absent is `Unavailable`, never
a stale default. Not here: any check of signatures; the appraisal does that each time.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
from pathlib import Path
from typing import Final

import dcap_qvl
import orjson
from cryptography import x509

from bombyx.errors import MalformedMessage, Unavailable
from bombyx.ports import Clock, EndorsementSource
from bombyx.protocol.attest import snp
from bombyx.protocol.attest.bare import technology_of
from bombyx.protocol.primitives import Instant, sha256

MAX_FILE: Final = 262_144  # bytes; Intel's collateral is 19 kB
_DATED: Final = ("tcb_info", "qe_identity")
_LISTS: Final = ("root_ca_crl", "pck_crl")


class FileEndorsements:
    """One file, e.g. exported for offline use."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path, self._clock = path, clock

    async def endorsements(self, quote: bytes) -> bytes:
        found = await asyncio.to_thread(kept_file, self._path)
        if found is None:
            raise Unavailable(f"no Endorsements in {self._path}", rule="ATT-11")
        if expires(found) <= self._clock.now():
            raise Unavailable(f"the Endorsements in {self._path} have expired", rule="ATT-11")
        return found


class CachedEndorsements:
    """Asks `source` once per kind of platform; keeps the answer until `margin` seconds before it expires."""

    def __init__(self, source: EndorsementSource, directory: Path, clock: Clock, *, margin: float = 3600) -> None:
        self._source, self._directory, self._clock, self._margin = source, directory, clock, margin

    async def endorsements(self, quote: bytes) -> bytes:
        path = self._directory / f"{platform_of(quote)}.json"
        cached = await asyncio.to_thread(kept_file, path)
        if cached is not None and expires(cached) > self._clock.now().plus(seconds=self._margin):
            return cached
        fresh = await self._source.endorsements(quote)
        await asyncio.to_thread(keep_file, path, fresh)
        return fresh


def platform_of(quote: bytes) -> str:
    """A file name for the platform a quote comes from: its Endorsements serve every quote of that platform."""
    if technology_of(quote) == snp.TECHNOLOGY:  # AMD certifies each chip at each firmware level
        return f"snp-{sha256(quote[0x180:0x188], quote[0x1A0:0x1E0]).hex()[:32]}"
    try:
        parsed = dcap_qvl.parse_quote(quote)
        root = sha256(bytes(parsed.cert_chain_pem_bytes()).rstrip(b"\0").rpartition(b"-----BEGIN")[2])
        return f"{parsed.quote_type()}-{parsed.fmspc()}-{parsed.ca()}-{root.hex()[:16]}".lower()
    except ValueError:
        raise Unavailable("no Endorsements for a quote that cannot be parsed", rule="ATT-11") from None


def expires(endorsements: bytes) -> Instant:
    """When the first of TCB info, QE identity and both revocation lists runs out; the epoch when that is unreadable."""
    try:
        fields = orjson.loads(endorsements)
        if "certificates" in fields:
            return _expires_snp(endorsements)
        dates = [dt.datetime.fromisoformat(orjson.loads(fields[part])["nextUpdate"]) for part in _DATED]
        lists = [x509.load_der_x509_crl(bytes.fromhex(fields[part])).next_update_utc for part in _LISTS]
        return Instant.from_seconds(min(date.timestamp() for date in (*dates, *lists) if date is not None))
    except (ValueError, KeyError, TypeError, OverflowError, x509.InvalidVersion):
        return Instant(0)


def _expires_snp(endorsements: bytes) -> Instant:
    """With a revocation list, when the next one comes; the chip's certificates last for years."""
    try:
        read = snp.parse_collateral(endorsements)
    except MalformedMessage:
        return Instant(0)
    ends = [one.not_valid_after_utc for one in read.chain]
    if read.crl is not None and read.crl.next_update_utc is not None:
        ends.append(read.crl.next_update_utc)
    return Instant.from_seconds(min(ends).timestamp())


def kept_file(path: Path, most: int = MAX_FILE) -> bytes | None:
    """None where there is none, or one too large to be ours."""
    try:
        with path.open("rb") as file:
            found = file.read(most + 1)
    except OSError:
        return None
    return found if len(found) <= most else None


def keep_file(path: Path, data: bytes) -> None:
    """Whole or not at all. A cache that cannot be written is no reason to fail."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError:
        return
