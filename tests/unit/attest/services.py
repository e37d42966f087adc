# SPDX-License-Identifier: Apache-2.0
"""A loopback server that answers as Intel, AMD, NVIDIA and a provider do. Real HTTP, roots of the tests' own."""

from __future__ import annotations

import base64
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from aiohttp import web
from cryptography.x509 import ocsp as x509_ocsp
from tests.unit.attest.providers import GPUS, NOW, PLATFORM, PROVIDER, SEED

from bombyx.adapters.endorsements_http import (
    AmdEndorsements,
    AnyEndorsements,
    Fetcher,
    IntelEndorsements,
    NvidiaServices,
)
from bombyx.adapters.evidence_http import Capture
from bombyx.adapters.revocation_http import RevocationAnswers
from bombyx.adapters.simulator import sgx
from bombyx.adapters.simulator.golden import revocation_answer
from bombyx.adapters.simulator.snp import SimulatedSnp
from bombyx.protocol.primitives import Instant, Secret

UNAUTHORIZED = b"\x30\x03\x0a\x01\x06"  # what a responder says of a certificate that is not its own
CHIP = SimulatedSnp(seed=Secret(SEED), created=NOW)


@dataclass(frozen=True)
class FixedClock:
    at: Instant = NOW

    def now(self) -> Instant:
        return self.at

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        return None


@dataclass
class Services:
    """What was asked, what is broken, and where it runs."""

    asked: list[str] = field(default_factory=list)
    broken: dict[str, int] = field(default_factory=dict)  # part of a path: status answered instead
    rims: dict[str, bytes] = field(default_factory=dict)
    url: str = ""
    status: x509_ocsp.OCSPCertStatus = x509_ocsp.OCSPCertStatus.GOOD  # of the GPUs' certificate
    kept: Path | None = None  # where answers on revocation are kept

    def answered(
        self, answer: Callable[[web.Request], Awaitable[web.Response]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handler(request: web.Request) -> web.Response:
            self.asked.append(request.path_qs)
            for part, status in self.broken.items():
                if part in request.path:
                    return web.Response(status=status)
            return await answer(request)

        return handler

    async def intel(self, request: web.Request) -> web.Response:
        kind, what = request.match_info["kind"], request.match_info["what"]
        made = PLATFORM.endorsements(NOW) if kind == "tdx" else sgx.endorsements(PLATFORM, NOW)
        fields: dict[str, str] = orjson.loads(made)
        if what == "pckcrl":
            headers = {"SGX-PCK-CRL-Issuer-Chain": urllib.parse.quote(fields["pck_crl_issuer_chain"])}
            return web.Response(body=bytes.fromhex(fields["pck_crl"]), headers=headers)
        name, key, header = {
            "tcb": ("tcb_info", "tcbInfo", "TCB-Info-Issuer-Chain"),
            "qe/identity": ("qe_identity", "enclaveIdentity", "SGX-Enclave-Identity-Issuer-Chain"),
        }[what]
        chain = urllib.parse.quote(fields[f"{name}_issuer_chain"])
        text = f'{{"{key}": {fields[name]}, "signature": "{fields[f"{name}_signature"]}"}}'
        return web.Response(text=text, headers={header: chain}, content_type="application/json")

    async def root_crl(self, request: web.Request) -> web.Response:
        fields: dict[str, str] = orjson.loads(PLATFORM.endorsements(NOW))
        return web.Response(text=fields["root_ca_crl"])  # in hex, as a PCCS writes it

    async def amd(self, request: web.Request) -> web.Response:
        what = request.match_info["what"]
        fields: dict[str, Any] = orjson.loads(CHIP.endorsements(NOW))
        if request.match_info["family"] != "Genoa":
            return web.Response(status=404)
        if what == "cert_chain":
            return web.Response(body=CHIP.authority.pem())
        if what == "crl":
            return web.Response(body=base64.b64decode(fields["crl"]))
        known = what == CHIP.chip.hex() and request.query["blSPL"] == "09" and request.query["ucodeSPL"] == "72"
        return web.Response(body=CHIP.vcek.der()[0]) if known else web.Response(status=404)

    async def nras(self, request: web.Request) -> web.Response:
        body = orjson.loads(await request.read())
        assert set(body) == {"nonce", "arch", "evidence_list"}
        return web.Response(body=GPUS.tokens(bytes.fromhex(body["nonce"]), NOW))

    async def jwks(self, request: web.Request) -> web.Response:
        return web.Response(body=GPUS.jwks())

    async def rim(self, request: web.Request) -> web.Response:
        found = self.rims.get(request.match_info["id"])
        if found is None:
            return web.Response(status=404)
        return web.json_response({"id": request.match_info["id"], "rim": base64.b64encode(found).decode()})

    async def ocsp(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/ocsp-request"
        asked = x509_ocsp.load_der_ocsp_request(await request.read())
        if asked.serial_number != GPUS.model.certificate.serial_number:
            return web.Response(body=UNAUTHORIZED)
        return web.Response(body=revocation_answer(GPUS.model.certificate, GPUS.root, at=NOW, status=self.status))

    async def report(self, request: web.Request) -> web.Response:
        nonce = bytes.fromhex(request.query["nonce"])
        if request.match_info["form"] == "near":
            return web.json_response(PROVIDER.near(nonce, NOW))
        return web.json_response(PROVIDER.phala(nonce))

    def capture(self, session: aiohttp.ClientSession) -> Capture:
        fetcher = Fetcher(session)
        intel = IntelEndorsements(fetcher, self.url, f"{self.url}/root.crl")
        return Capture(
            fetcher=fetcher,
            endorsements=AnyEndorsements(intel, AmdEndorsements(fetcher, self.url)),
            nvidia=NvidiaServices(fetcher, self.url, self.url, rim_key="key"),
            revocation=RevocationAnswers(fetcher, FixedClock(), f"{self.url}/ocsp", self.kept),
            clock=FixedClock(),
        )


@asynccontextmanager
async def running() -> AsyncIterator[Services]:
    """The services on a loopback port of their own."""
    services = Services()
    app = web.Application(client_max_size=4 << 20)
    app.router.add_get("/sgx/certification/v4/rootcacrl", services.answered(services.root_crl))
    app.router.add_get("/{kind:(tdx|sgx)}/certification/v4/{what:.+}", services.answered(services.intel))
    app.router.add_get("/root.crl", services.answered(services.root_crl))
    app.router.add_get("/vcek/v1/{family}/{what}", services.answered(services.amd))
    app.router.add_post("/v3/attest/gpu", services.answered(services.nras))
    app.router.add_get("/.well-known/jwks.json", services.answered(services.jwks))
    app.router.add_get("/v1/rim/{id}", services.answered(services.rim))
    app.router.add_post("/ocsp", services.answered(services.ocsp))
    app.router.add_get("/{form}/v1/attestation/report", services.answered(services.report))
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    services.url = f"http://127.0.0.1:{port}"
    try:
        yield services
    finally:
        await runner.cleanup()
