# SPDX-License-Identifier: Apache-2.0
"""`bombyx evidence`: capture a provider's report with all that verifies it offline, look into one, take one apart."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer
from rich.console import Console

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.endorsements import CachedEndorsements
from bombyx.adapters.endorsements_http import (
    AMD_KDS,
    INTEL_PCS,
    INTEL_ROOT_CRL,
    NVIDIA_NRAS,
    NVIDIA_RIM,
    AmdEndorsements,
    AnyEndorsements,
    Fetcher,
    IntelEndorsements,
    NvidiaServices,
)
from bombyx.adapters.evidence_http import Capture
from bombyx.adapters.revocation_http import NVIDIA_OCSP, RevocationAnswers
from bombyx.cli.examined import hexed
from bombyx.cli.files import read_bytes
from bombyx.cli.moments import moment
from bombyx.cli.output import print_json, print_rows
from bombyx.errors import ConfigError
from bombyx.protocol.attest import Archive, Report, recognise
from bombyx.protocol.wire.evidence import EvidenceBundle

app = typer.Typer(help="Providers' evidence: capture it, look into it, keep it.", no_args_is_help=True)
OutOption = Annotated[Path, typer.Option("--out", "-o", help="file to write")]


@app.command()
def capture(
    url: Annotated[
        str, typer.Argument(help="where the provider answers, e.g. https://.../v1/attestation/report?model=..")
    ],
    out: OutOption,
    nonce: Annotated[str | None, typer.Option(help="32 bytes in hex; default: random")] = None,
    header: Annotated[list[str] | None, typer.Option(help="'name: value', e.g. an authorization; may repeat")] = None,
    intel: Annotated[str, typer.Option(help="Intel's PCS, or a PCCS")] = INTEL_PCS,
    intel_root_crl: Annotated[str, typer.Option(help="the root's revocation list")] = INTEL_ROOT_CRL,
    amd: Annotated[str, typer.Option(help="AMD's KDS")] = AMD_KDS,
    nras: Annotated[str, typer.Option(help="NVIDIA's attestation service")] = NVIDIA_NRAS,
    rim: Annotated[str, typer.Option(help="NVIDIA's RIM service")] = NVIDIA_RIM,
    ocsp: Annotated[str, typer.Option(help="NVIDIA's OCSP responder")] = NVIDIA_OCSP,
    cache: Annotated[Path | None, typer.Option(help="folder for what may be used again until it runs out")] = None,
) -> None:
    """Ask a provider for evidence with a fresh nonce; keep it with all that is needed to verify it for ever."""
    asked = secrets.token_bytes(32) if nonce is None else hexed(nonce, "--nonce", 32)
    services = _Services(
        intel=intel, intel_root_crl=intel_root_crl, amd=amd, nras=nras, rim=rim, ocsp=ocsp, cache=cache
    )
    _keep(asyncio.run(services.capture(url, asked, _headers(header or []))), out)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Services:
    intel: str
    intel_root_crl: str
    amd: str
    nras: str
    rim: str
    ocsp: str
    cache: Path | None

    async def capture(self, url: str, nonce: bytes, headers: dict[str, str]) -> Archive:
        async with aiohttp.ClientSession() as session:
            fetcher, clock = Fetcher(session), SystemClock()
            intel = IntelEndorsements(fetcher, self.intel, self.intel_root_crl)
            vendors = AnyEndorsements(intel, AmdEndorsements(fetcher, self.amd))
            work = Capture(
                fetcher=fetcher,
                endorsements=vendors if self.cache is None else CachedEndorsements(vendors, self.cache, clock),
                nvidia=NvidiaServices(fetcher, self.nras, self.rim, directory=self.cache),
                revocation=RevocationAnswers(fetcher, clock, self.ocsp, self.cache),
                clock=clock,
            )
            return await work.capture(url, nonce, headers)


def _headers(given: list[str]) -> dict[str, str]:
    pairs = [line.partition(":") for line in given]
    if not all(separator for _, separator, _ in pairs):
        raise ConfigError("--header takes 'name: value'")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _keep(archive: Archive, out: Path) -> None:
    try:
        out.write_bytes(archive.encode())
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}") from None
    console = Console(highlight=False, stderr=True)
    console.print(f"{out}: captured at {archive.captured.seconds} (use --at {archive.captured.seconds})", markup=False)
    for gap in archive.missing:
        console.print(f"not in it: {gap}", markup=False)


@app.command()
def pack(
    report: Annotated[Path, typer.Argument(help="a report that was captured by other means")],
    out: OutOption,
    at: Annotated[str, typer.Option(help="when it was captured: Unix seconds or ISO 8601")],
    nonce: Annotated[str | None, typer.Option(help="the nonce that was asked, in hex")] = None,
    endorsements: Annotated[list[Path] | None, typer.Option(help="Intel collateral or AMD certificates")] = None,
    tokens: Annotated[list[Path] | None, typer.Option(help="NVIDIA's attestation tokens")] = None,
    jwks: Annotated[Path | None, typer.Option(help="the key set those tokens are signed with")] = None,
    rim: Annotated[list[Path] | None, typer.Option(help="NVIDIA's golden measurements")] = None,
    ocsp: Annotated[list[Path] | None, typer.Option(help="OCSP responses for GPU certificates")] = None,
) -> None:
    """Put a report and what vouches for it into one archive."""
    raw = read_bytes(report)
    if not isinstance(recognise(raw), Report):
        raise ConfigError(f"{report} is no provider's report")
    archive = Archive(
        report=raw,
        source=report.name,
        captured=moment(at),
        nonce=None if nonce is None else hexed(nonce, "--nonce", 32),
        endorsements=tuple(read_bytes(one) for one in endorsements or []),
        tokens=tuple(read_bytes(one) for one in tokens or []),
        jwks=read_bytes(jwks) if jwks else b"",
        rims=tuple(read_bytes(one) for one in rim or []),
        ocsp=tuple(read_bytes(one) for one in ocsp or []),
    )
    _keep(archive, out)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="evidence of any known kind")],
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Say what is in a file, without verifying any of it."""
    rows = list(_contents(recognise(read_bytes(file))))
    if json:
        print_json([{"part": part, "what": what, "found": found} for part, what, found in rows])
        return
    print_rows([*rows, ("", "", "nothing of this is verified; see `bombyx verify`")])


def _contents(found: Any) -> list[tuple[str, str, str]]:
    if isinstance(found, Archive):
        rows = [("archive", "source", found.source), ("archive", "captured", str(found.captured.seconds))]
        rows += [("archive", "nonce", "none" if found.nonce is None else found.nonce.hex())]
        counts = {name: len(getattr(found, name)) for name in ("endorsements", "tokens", "rims", "ocsp")}
        rows += [("archive", name, str(count)) for name, count in counts.items()]
        return rows + [("archive", "missing", gap) for gap in found.missing] + _contents(recognise(found.report))
    if isinstance(found, EvidenceBundle):
        return [("bundle", "technology", found.technology), ("bundle", "quote", f"{len(found.quote)} bytes")]
    rows = [("report", "form", found.form)]
    for part in found.parts:
        rows.append((part.name, "quote", f"{part.technology or 'none'}, {len(part.quote)} bytes"))
        if part.binding:
            rows += [(part.name, what, value) for what, value in part.binding.keys]
        if part.gpu_evidence:
            rows.append((part.name, "GPU evidence", f"{len(part.gpu_evidence)} bytes"))
    return rows
