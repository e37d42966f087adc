# SPDX-License-Identifier: Apache-2.0
"""Endorsements over HTTP: Intel's PCS or a PCCS, AMD's KDS, NVIDIA's attestation, key and RIM services.

Not trusted, and not asked during an appraisal: TLS is not what makes an answer good, the signatures in it are, and the
appraisal checks them each time. What is asked tells a service which platform or GPU you look at; a cache or an archive
keeps that to once.
Always: answers come out as the Endorser signed them; no answer, a late one or too large a one is `Unavailable`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlencode

import aiohttp
import dcap_qvl
import orjson

from bombyx.adapters.endorsements import keep_file, kept_file
from bombyx.errors import AttestationError, MalformedMessage, Unavailable
from bombyx.protocol.attest import snp
from bombyx.protocol.attest.bare import technology_of
from bombyx.protocol.attest.gpu import parse_gpu_evidence
from bombyx.protocol.attest.rim import parse_rim
from bombyx.protocol.attest.roots import NVIDIA_RIM_ROOT
from bombyx.protocol.primitives import sha256

INTEL_PCS: Final = "https://api.trustedservices.intel.com"
INTEL_ROOT_CRL: Final = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
AMD_KDS: Final = "https://kdsintf.amd.com"
NVIDIA_NRAS: Final = "https://nras.attestation.nvidia.com"
NVIDIA_RIM: Final = "https://rim.attestation.nvidia.com"
MAX_ANSWER: Final = 4_194_304  # bytes
TIMEOUT: Final = 20.0  # seconds a request


class Fetcher:
    """One HTTP session with bounds; every fault is `Unavailable`."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def get(self, url: str, headers: Mapping[str, str] | None = None) -> tuple[bytes, Mapping[str, str]]:
        return await self._ask("GET", url, None, headers)

    async def post(self, url: str, body: bytes, content_type: str = "application/json") -> bytes:
        return (await self._ask("POST", url, body, {"content-type": content_type}))[0]

    async def _ask(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str] | None
    ) -> tuple[bytes, Mapping[str, str]]:
        where = url.partition("?")[0]
        try:
            timeout = aiohttp.ClientTimeout(total=TIMEOUT)
            async with self._session.request(method, url, data=body, headers=headers, timeout=timeout) as answer:
                data = await answer.content.read(MAX_ANSWER + 1)
                while len(data) <= MAX_ANSWER and (more := await answer.content.read(MAX_ANSWER)):
                    data += more
                if answer.status != 200:
                    raise Unavailable(f"{where} answered {answer.status}", rule="ATT-11")
                if len(data) > MAX_ANSWER:
                    raise Unavailable(f"{where} answered more than {MAX_ANSWER} bytes", rule="ATT-11")
                return data, answer.headers
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"{where}: {type(error).__name__}", rule="ATT-11") from None


class IntelEndorsements:
    """Intel's Provisioning Certification Service (API v4), or a PCCS, which speaks the same."""

    def __init__(self, fetcher: Fetcher, base: str = INTEL_PCS, root_crl: str = INTEL_ROOT_CRL) -> None:
        self._fetcher, self._base, self._root_crl = fetcher, base.rstrip("/"), root_crl

    async def endorsements(self, quote: bytes) -> bytes:
        """QuoteCollateralV3 as JSON, for the platform this quote comes from."""
        try:
            parsed = dcap_qvl.parse_quote(quote)
            fmspc, authority = str(parsed.fmspc()), str(parsed.ca())
        except ValueError:
            raise Unavailable("no Endorsements for a quote that cannot be parsed", rule="ATT-11") from None
        kind = technology_of(quote)
        get = self._fetcher.get
        sgx, own = f"{self._base}/sgx/certification/v4", f"{self._base}/{kind}/certification/v4"
        tcb, tcb_headers = await get(f"{own}/tcb?{urlencode({'fmspc': fmspc})}")
        identity, identity_headers = await get(f"{own}/qe/identity")
        crl, crl_headers = await get(f"{sgx}/pckcrl?{urlencode({'ca': authority, 'encoding': 'der'})}")
        root_crl, _ = await get(self._root_crl)
        info, info_signature = _signed_part(tcb, "tcbInfo")
        enclave, enclave_signature = _signed_part(identity, "enclaveIdentity")
        return orjson.dumps(
            {
                "pck_crl_issuer_chain": _header(crl_headers, "SGX-PCK-CRL-Issuer-Chain"),
                "root_ca_crl": _plain(root_crl).hex(),
                "pck_crl": _plain(crl).hex(),
                "tcb_info_issuer_chain": _header(tcb_headers, "TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"),
                "tcb_info": info,
                "tcb_info_signature": info_signature,
                "qe_identity_issuer_chain": _header(identity_headers, "SGX-Enclave-Identity-Issuer-Chain"),
                "qe_identity": enclave,
                "qe_identity_signature": enclave_signature,
            }
        )


def _signed_part(body: bytes, name: str) -> tuple[str, str]:
    """The object exactly as it was signed (another spelling of the same JSON would not verify), and its signature."""
    try:
        text = body.decode()
        signature = json.loads(text)["signature"]
        start = text.index(":", text.index(f'"{name}"')) + 1
        start += len(text[start:]) - len(text[start:].lstrip())
        _, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Unavailable(f"the answer with {name} is not of the form expected", rule="ATT-11") from None
    return text[start:end], str(signature)


def _header(headers: Mapping[str, str], *names: str) -> str:
    for name in names:
        if name in headers:
            return unquote(headers[name])
    raise Unavailable(f"an answer lacks the header {names[0]}", rule="ATT-11")


def _plain(body: bytes) -> bytes:
    """A PCCS writes some lists in hex."""
    try:
        return bytes.fromhex(body.decode("ascii").strip())
    except ValueError:
        return body


class AmdEndorsements:
    """AMD's Key Distribution Service: the chip's certificate, its authorities, the revocation list."""

    def __init__(self, fetcher: Fetcher, base: str = AMD_KDS) -> None:
        self._fetcher, self._base = fetcher, base.rstrip("/")

    async def endorsements(self, quote: bytes) -> bytes:
        """Certificates (leaf first) and CRL, as JSON."""
        try:
            report = snp.parse_quote(quote)
        except MalformedMessage:
            raise Unavailable("no Endorsements for a report that cannot be parsed", rule="ATT-11") from None
        problem = Unavailable("AMD's service knows no such chip", rule="ATT-11")
        for family in snp.families(report):
            try:
                return await self._of(report, f"{self._base}/vcek/v1/{family}")
            except Unavailable as error:
                problem = error
        raise problem

    async def _of(self, report: snp.SnpReport, base: str) -> bytes:
        levels = {snp.KDS_NAMES[name]: f"{level:02d}" for name, level in report.levels().items()}
        leaf, _ = await self._fetcher.get(f"{base}/{report.chip_id.hex()}?{urlencode(levels)}")
        authorities, _ = await self._fetcher.get(f"{base}/cert_chain")
        crl, _ = await self._fetcher.get(f"{base}/crl")
        try:
            return snp.write_collateral((leaf, *snp.der_of_pem(authorities)), crl)
        except MalformedMessage:
            raise Unavailable("AMD's service answered something that is no certificate", rule="ATT-11") from None


class AnyEndorsements:
    """Asks whoever vouches for the technology at hand (`ports.EndorsementSource`)."""

    def __init__(self, intel: IntelEndorsements, amd: AmdEndorsements) -> None:
        self._intel, self._amd = intel, amd

    async def endorsements(self, quote: bytes) -> bytes:
        source: Any = self._amd if technology_of(quote) == snp.TECHNOLOGY else self._intel
        found: bytes = await source.endorsements(quote)
        return found


class NvidiaServices:
    """NVIDIA's Remote Attestation Service, its key set, and its RIM service.

    A RIM file never changes under its name: with a `directory` it is asked for once, and kept if its signature holds.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        nras: str = NVIDIA_NRAS,
        rim: str = NVIDIA_RIM,
        rim_key: str | None = None,
        *,
        directory: Path | None = None,
        rim_root: bytes = NVIDIA_RIM_ROOT,
    ) -> None:
        self._fetcher, self._nras, self._rim = fetcher, nras.rstrip("/"), rim.rstrip("/")
        self._directory, self._rim_root = directory, rim_root
        self._headers = {"authorization": f"Bearer {rim_key}"} if rim_key else {}

    async def tokens(self, evidence: bytes, nonce: bytes) -> bytes:
        """NVIDIA's own appraisal of this evidence."""
        document = orjson.loads(evidence)
        fields = {"certificate", "evidence"}
        listed = [{name: one[name] for name in fields} for one in document["evidence_list"]]
        body = {"nonce": nonce.hex(), "arch": document.get("arch", "HOPPER"), "evidence_list": listed}
        return await self._fetcher.post(f"{self._nras}/v3/attest/gpu", orjson.dumps(body))

    async def jwks(self) -> bytes:
        """The keys tokens are signed with today."""
        return (await self._fetcher.get(f"{self._nras}/.well-known/jwks.json"))[0]

    async def rims(self, evidence: bytes) -> tuple[bytes, ...]:
        """The golden measurements for every driver and VBIOS in this evidence."""
        names = dict.fromkeys(name for report in parse_gpu_evidence(evidence) for name in report.runtime().names())
        return tuple([await self._rim_file(name) for name in names])

    async def _rim_file(self, name: str) -> bytes:
        path = None if self._directory is None else self._directory / f"rim-{sha256(name.encode()).hex()[:32]}.xml"
        kept = None if path is None else await asyncio.to_thread(kept_file, path)
        if kept is not None and self._holds(kept):
            return kept
        fresh = await self._fetched(name)
        if path is not None and self._holds(fresh):
            await asyncio.to_thread(keep_file, path, fresh)
        return fresh

    def _holds(self, rim: bytes) -> bool:
        try:
            parse_rim(rim, self._rim_root)
        except (MalformedMessage, AttestationError):
            return False
        return True

    async def _fetched(self, name: str) -> bytes:
        body, _ = await self._fetcher.get(f"{self._rim}/v1/rim/{urllib.parse.quote(name, safe='')}", self._headers)
        try:
            return base64.b64decode(orjson.loads(body)["rim"], validate=True)
        except (ValueError, KeyError, TypeError):
            raise Unavailable(
                f"the RIM service's answer for {name} is not of the form expected", rule="ATT-11"
            ) from None
