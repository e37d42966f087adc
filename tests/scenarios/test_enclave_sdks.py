# SPDX-License-Identifier: Apache-2.0
"""The real dstack clients, from their registries and unchanged, against `bombyx enclave simulate` (ENC-2, ENC-8).

They are installed on demand, beside the interpreter; where no registry can be reached the tests are skipped.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import dcap_qvl
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ObjectIdentifier

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.dstack_server import SimulatedGuest, tls
from bombyx.adapters.processes import Child, start_child, stop_children
from bombyx.adapters.simulator import SimulatedImage, SimulatedPlatform
from bombyx.protocol.attest.appkeys import Algorithm, chain_root, public_of
from bombyx.protocol.attest.dstack_binary import parse_attestation
from bombyx.protocol.primitives import Secret

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PYTHON_SDK = "dstack-sdk==0.5.4"
NODE_SDK = ("@phala/dstack-sdk@0.5.8", "@noble/curves@^1.8.1")  # the second: an optional peer that its index requires
ELIZA = "@elizaos/plugin-tee@1.0.2"
SDKS = Path(sys.prefix) / "enclave-sdks"
CLIENTS = Path(__file__).parent / "sdks"


def _run(
    *command: str, seconds: float = 200, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    given = os.environ | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, cwd=cwd, env=given)


@pytest.fixture(scope="module")
def python_sdk() -> Path:
    """An interpreter with the PyPI client."""
    folder = SDKS / "python"
    python = folder / "bin" / "python"
    if not python.exists():
        _run(sys.executable, "-m", "venv", str(folder))
    if _run(str(python), "-c", "import dstack_sdk").returncode:
        got = _run(str(python), "-m", "pip", "install", "-q", PYTHON_SDK)
        if got.returncode:
            pytest.skip(f"{PYTHON_SDK} cannot be installed here: {got.stderr.strip().splitlines()[-1:]}")
    return python


@pytest.fixture(scope="module")
def node_sdk() -> Path:
    """A folder with the npm client."""
    folder = SDKS / "node"
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no node here")
    if not (folder / "node_modules" / "@noble" / "curves").exists():
        folder.mkdir(parents=True, exist_ok=True)
        got = _run("npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), *NODE_SDK)
        if got.returncode:
            pytest.skip(f"{NODE_SDK[0]} cannot be installed here: {got.stderr.strip().splitlines()[-1:]}")
    return folder


@pytest.fixture(scope="module")
def eliza_plugin() -> Path:
    """A folder with ElizaOS's TEE plugin and all it wants: some 190 packages, minutes on a slow line."""
    folder = SDKS / "eliza"
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no node here")
    if not (folder / "node_modules" / "@elizaos" / "plugin-tee" / "dist").exists():
        folder.mkdir(parents=True, exist_ok=True)
        options = ("--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder))
        try:
            got = _run("npm", "install", *options, ELIZA, seconds=600)
        except subprocess.TimeoutExpired:
            pytest.skip(f"{ELIZA} does not install within ten minutes here")
        if got.returncode:
            pytest.skip(f"{ELIZA} cannot be installed here: {got.stderr.strip().splitlines()[-1:]}")
    return folder


@pytest.fixture
def machine(tmp_path: Path) -> SimulatedPlatform:
    platform = SimulatedPlatform.create(seed=b"\x05" * 32, now=SystemClock().now())
    platform.save(tmp_path / "platform")
    return platform


@asynccontextmanager
async def _simulate(folder: Path) -> AsyncIterator[Child]:
    with tempfile.TemporaryDirectory(prefix="bx-") as sockets:
        where = ("--folder", sockets, "--platform", str(folder / "platform"), "--port", "0")
        agent = await start_child("agent", ["enclave", "simulate", *where, "--child"], log=folder / "agent.log")
        try:
            yield agent
        finally:
            await stop_children([agent])


async def _told(*command: str, cwd: Path | None = None, **environment: str) -> dict[str, Any]:
    done = await asyncio.to_thread(_run, *command, seconds=60, cwd=cwd, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def _report_data(quote: str, platform: SimulatedPlatform) -> str:
    """Of a quote that dcap-qvl verifies under the simulator's root."""
    now = SystemClock().now()
    collateral = dcap_qvl.QuoteCollateralV3.from_json(platform.endorsements(now).decode())
    raw = bytes.fromhex(quote.removeprefix("0x"))
    report = dcap_qvl.verify_with_root_ca(raw, collateral, platform.root_certificate, now.seconds)
    return str(json.loads(report.to_json())["report"]["TD10"]["report_data"])


def _guest(platform: SimulatedPlatform) -> SimulatedGuest:
    return SimulatedGuest(platform, SimulatedImage.of("development", files="{}"))


def _check_common(told: dict[str, Any], platform: SimulatedPlatform) -> None:
    guest = _guest(platform)
    assert told["reachable"] and "bombyx" in told["version"]
    assert told["compose_hash"] == told["compose_hash_by_sdk"] == guest.image.compose_hash.hex()
    assert told["app_id"] == guest.image.app_id.hex()
    for name in ("secp256k1", "ed25519"):
        secret, *chain = told[f"key_{name}"]
        key = guest.keys.derive("wallet", "pay")
        assert secret == key.secret.reveal().hex()
        public = public_of(Secret(bytes.fromhex(secret)), Algorithm(name))
        links = tuple(bytes.fromhex(link) for link in chain)
        assert chain_root(links, public=public, purpose="pay", app_id=guest.image.app_id) == guest.keys.root_public
    assert _report_data(told["quote"], platform) == b"hello".ljust(64, b"\0").hex()
    raw = bytes.fromhex(told["quote"].removeprefix("0x"))
    assert [told["replayed"][n] for n in range(4)] == [raw[376 + 48 * n : 424 + 48 * n].hex() for n in range(4)]
    assert "said" in told["event_log"]
    attested = parse_attestation(bytes.fromhex(told["attestation"].removeprefix("0x")))
    assert attested.report_data == b"x".ljust(64, b"\0") and attested.events[-1].name == "said"
    assert _report_data(attested.quote.hex(), platform) == attested.report_data.hex()
    for checked in told["signatures"].values():
        assert checked == [True, False, 3]
    assert told["tls"] == ["-----BEGIN PRIVATE KEY-----", 2, 32]


@pytest.mark.parametrize("transport", ["sockets", "http"])
async def test_the_python_client_works_unchanged(
    transport: str, python_sdk: Path, machine: SimulatedPlatform, tmp_path: Path
) -> None:
    """ENC-2, ENC-8: every call of dstack-sdk, sync and async, over the sockets and over the port."""
    async with _simulate(tmp_path) as agent:
        names = ("dstack", "tappd") if transport == "sockets" else ("http", "http")
        endpoints = [agent.ready[name] for name in names]
        told = await _told(str(python_sdk), str(CLIENTS / "python_client.py"), *endpoints)
    _check_common(told, machine)
    assert told["key_k256"] == told["key_secp256k1"] and told["async_key"] == told["key_secp256k1"][0]
    assert told["events"].count("said") == 1
    assert told["refused"] == 400
    assert told["legacy_app_id"] == told["app_id"]
    assert _report_data(told["tdx_quote"], machine) == hashlib.sha512(b"app-data:some data").hexdigest()
    assert _report_data(told["tdx_quote_raw"], machine) == (b"r" * 64).hex()
    assert told["derived"][0] == told["derived"][1] != told["derived"][2]
    certificate = x509.load_pem_x509_certificate(told["certificate"].encode())
    extension = certificate.extensions.get_extension_for_oid(ObjectIdentifier(tls.QUOTE_OID)).value
    assert isinstance(extension, x509.UnrecognizedExtension)
    bound = hashlib.sha512(tls.RA_TLS_TAG + _spki(certificate)).hexdigest()
    assert _report_data(extension.value[4:].hex(), machine) == bound


@pytest.mark.parametrize("transport", ["sockets", "http"])
async def test_the_node_client_and_elizas_calls_work_unchanged(
    transport: str, node_sdk: Path, machine: SimulatedPlatform, tmp_path: Path
) -> None:
    """ENC-2, ENC-8: every call of @phala/dstack-sdk, and what ElizaOS's TEE plugin does with it."""
    async with _simulate(tmp_path) as agent:
        names = ("dstack", "tappd") if transport == "sockets" else ("http", "http")
        endpoints = [agent.ready[name] for name in names]
        told = await _told("node", str(CLIENTS / "node_client.mjs"), *endpoints, cwd=node_sdk)
    _check_common(told, machine)
    eliza = told["eliza"]
    said = hashlib.sha512(b"app-data:" + eliza["message"].encode()).hexdigest()
    assert eliza["reachable"] and _report_data(eliza["quote"], machine) == said
    assert eliza["seeds"][0] == eliza["seeds"][1] != eliza["seeds"][2]


@pytest.mark.timeout(900)
async def test_elizas_own_plugin_works_unchanged(
    eliza_plugin: Path, machine: SimulatedPlatform, tmp_path: Path
) -> None:
    """ENC-2, ENC-8: its providers and its service, LOCAL mode: quotes that verify, wallets that last."""
    async with _simulate(tmp_path) as agent:
        told = await _told(
            *("node", str(CLIENTS / "eliza_plugin.mjs")),
            cwd=eliza_plugin,
            DSTACK_SIMULATOR_ENDPOINT=str(agent.ready["http"]),
        )
    first, again, other = told["wallets"]
    assert first == again and first["evm_address"] == told["service"] != other["evm_address"]
    assert len(first["solana_public_key"]) in (43, 44)
    named = json.dumps({"agentId": "agent", "publicKey": told["service"]}, separators=(",", ":"))
    assert _report_data(told["key_quote"], machine) == hashlib.sha512(b"app-data:" + named.encode()).hexdigest()
    said = _report_data(told["quote"], machine)  # over a message with the time it was made, up to seconds before
    assert any(_eliza_said(told["timestamp"] - earlier) == said for earlier in range(10_000))


def _eliza_said(timestamp: int) -> str:
    message = {"entityId": "entity", "roomId": "room", "content": "hi"}
    whole = json.dumps({"agentId": "agent", "timestamp": timestamp, "message": message}, separators=(",", ":"))
    return hashlib.sha512(b"app-data:" + whole.encode()).hexdigest()


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
