# SPDX-License-Identifier: Apache-2.0
"""Endorsements over real HTTP from a loopback server, caches, and captures that verify offline afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from cryptography.x509 import ocsp
from tests.unit.attest.providers import ENDORSEMENTS, GPUS, NONCE, NOW, PLATFORM, POLICY, SEED
from tests.unit.attest.services import CHIP, FixedClock, Services, running
from typer.testing import CliRunner

from bombyx.adapters.endorsements import CachedEndorsements, expires, platform_of
from bombyx.adapters.endorsements_http import AmdEndorsements, Fetcher, IntelEndorsements, NvidiaServices
from bombyx.adapters.evidence_http import Capture, with_nonce
from bombyx.adapters.revocation_http import MAX_ASKED, RevocationAnswers
from bombyx.adapters.simulator import SimulatedEnclave, sgx
from bombyx.adapters.simulator.golden import manifest
from bombyx.adapters.simulator.p384 import signer
from bombyx.adapters.simulator.snp import SnpGuest
from bombyx.cli.app import app
from bombyx.compose.enclave import vendor_endorsements
from bombyx.errors import BombyxError, LocalError, MalformedMessage, Unavailable
from bombyx.protocol.attest import Archive, Examination, Report, Verdict, examine, policy_to_toml, recognise
from bombyx.protocol.attest.gpu import parse_gpu_evidence
from bombyx.protocol.attest.ocsp import issued

QUOTE = PLATFORM.quote(SimulatedEnclave(platform=PLATFORM).report(bytes(64)))


@pytest.fixture
async def services() -> AsyncIterator[Services]:
    async with running() as found:
        yield found


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as found:
        yield found


def intel(services: Services, session: aiohttp.ClientSession) -> IntelEndorsements:
    return IntelEndorsements(Fetcher(session), services.url, f"{services.url}/root.crl")


async def test_intels_answers_become_collateral_byte_for_byte(
    services: Services, session: aiohttp.ClientSession
) -> None:
    """ATT-11: what is signed stays as it was signed."""
    assert orjson.loads(await intel(services, session).endorsements(QUOTE)) == orjson.loads(ENDORSEMENTS)
    assert any("fmspc=F0510FFFFF00" in asked.upper().replace("FMSPC", "fmspc") for asked in services.asked)


async def test_sgx_has_collateral_of_its_own(services: Services, session: aiohttp.ClientSession) -> None:
    """ATT-11."""
    quote = sgx.quote(PLATFORM, sgx.SgxEnclave())
    found = orjson.loads(await intel(services, session).endorsements(quote))
    assert orjson.loads(found["tcb_info"])["id"] == "SGX" and orjson.loads(found["qe_identity"])["id"] == "QE"


async def test_amd_certifies_the_chip_at_its_level(services: Services, session: aiohttp.ClientSession) -> None:
    """ATT-11: leaf first, with the revocation list."""
    report = CHIP.report(SnpGuest())
    found = await AmdEndorsements(Fetcher(session), services.url).endorsements(report)
    assert found == CHIP.endorsements(NOW)
    old = CHIP.report(SnpGuest(version=2))  # says no family: each is asked
    assert await AmdEndorsements(Fetcher(session), services.url).endorsements(old) == found


@pytest.mark.parametrize("broken", ["tcb", "identity", "pckcrl", "root.crl"])
@pytest.mark.parametrize("status", [404, 500])
async def test_an_endorser_that_cannot_answer(
    services: Services, session: aiohttp.ClientSession, broken: str, status: int
) -> None:
    """ATT-11: nobody's fault yet, and never half an answer."""
    services.broken = {broken: status}
    with pytest.raises(Unavailable, match=str(status)):
        await intel(services, session).endorsements(QUOTE)


async def test_an_endorser_that_is_not_there(session: aiohttp.ClientSession) -> None:
    """ATT-11."""
    source = IntelEndorsements(Fetcher(session), "http://127.0.0.1:9")
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1"):
        await source.endorsements(QUOTE)
    with pytest.raises(Unavailable, match="cannot be parsed"):
        await source.endorsements(b"nonsense")


async def test_a_cache_asks_once_and_again_before_they_expire(
    services: Services, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """ATT-11: kept by platform, with dates read from what is kept."""
    source = intel(services, session)
    cached = CachedEndorsements(source, tmp_path, FixedClock())
    first = await cached.endorsements(QUOTE)
    count = len(services.asked)
    assert await cached.endorsements(QUOTE) == first and len(services.asked) == count
    late = CachedEndorsements(source, tmp_path, FixedClock(expires(first)))
    await late.endorsements(QUOTE)
    assert len(services.asked) > count


async def test_a_worker_on_real_hardware_carries_what_its_pccs_says(
    services: Services, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """ATT-11: what `compose` gives a worker that no simulator stands behind; a second quote asks nobody."""
    vendor = vendor_endorsements(session, services.url, tmp_path)
    assert orjson.loads(await vendor.endorsements(QUOTE)) == orjson.loads(ENDORSEMENTS)
    assert any(asked.startswith("/sgx/certification/v4/rootcacrl") for asked in services.asked)


def test_snp_endorsements_are_kept_by_chip_and_level() -> None:
    """ATT-11: the revocation list says when to ask again."""
    report = CHIP.report(SnpGuest())
    assert platform_of(report) == platform_of(CHIP.report(SnpGuest(report_data=b"x" * 64)))
    assert platform_of(report) != platform_of(replace(CHIP, levels=bytes(8)).report(SnpGuest()))
    assert expires(CHIP.endorsements(NOW)) == NOW.plus(seconds=30 * 86_400)
    assert expires(b'{"certificates": []}') == 0


# CAPTURE


@pytest.mark.parametrize("form", ["phala", "near"])
async def test_a_capture_verifies_offline_for_ever(
    services: Services, session: aiohttp.ClientSession, form: str
) -> None:
    """ATT-13: with nothing but what is in the archive, as of the time it was made."""
    url = f"{services.url}/{form}/v1/attestation/report?model=m&nonce=old"
    archive = await services.capture(session).capture(url, NONCE)
    report = recognise(archive.report)
    assert isinstance(report, Report) and archive.nonce == NONCE and archive.captured == NOW
    found = examine(report, POLICY, now=archive.captured, at_hand=archive.at_hand())
    assert found.verdict is Verdict.VERIFIED, [(one.name, one.why) for one in found.outcomes]
    assert any("token for 2 GPUs verifies" in step.detail for one in found.outcomes for step in one.steps)
    assert any("golden measurements" in gap for gap in archive.missing)  # the RIM service had none
    assert f"/{form}/v1/attestation/report?model=m&nonce={NONCE.hex()}" in services.asked


async def test_a_capture_names_what_it_could_not_have(services: Services, session: aiohttp.ClientSession) -> None:
    """ATT-13: and what is verified with it stays open there."""
    services.broken = {"tcb": 503, "attest/gpu": 500}
    archive = await services.capture(session).capture(f"{services.url}/phala/v1/attestation/report", NONCE)
    assert any("Endorsements" in gap and "503" in gap for gap in archive.missing)
    assert any("NVIDIA's token" in gap for gap in archive.missing)
    report = recognise(archive.report)
    assert isinstance(report, Report)
    assert examine(report, POLICY, now=NOW, at_hand=archive.at_hand()).verdict is Verdict.UNDECIDED


async def test_a_provider_that_answers_something_else(services: Services, session: aiohttp.ClientSession) -> None:
    """ATT-13.1."""
    capture: Capture = services.capture(session)
    with pytest.raises(MalformedMessage):
        await capture.capture(f"{services.url}/.well-known/jwks.json", NONCE)
    with pytest.raises(Unavailable, match="404"):
        await capture.capture(f"{services.url}/nothing", NONCE)


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://a/b", "http://a/b?nonce=00"),
        ("http://a/b?nonce=11&x=1", "http://a/b?x=1&nonce=00"),
        ("http://a/b?x=a%26b", "http://a/b?x=a%26b&nonce=00"),
    ],
)
def test_our_nonce_replaces_any_other(url: str, asked: str) -> None:
    """ATT-13.8."""
    assert with_nonce(url, b"\0") == asked


# REVOCATION


def ninth(found: Examination) -> str:
    return next(one.steps[8].detail for one in found.outcomes if one.claims is not None and one.claims.gpus)


async def test_a_capture_asks_whether_a_gpu_was_revoked(services: Services, session: aiohttp.ClientSession) -> None:
    """ATT-9: the answer is in the archive, and verified offline; two GPUs of one model are asked about once."""
    archive = await services.capture(session).capture(f"{services.url}/phala/v1/attestation/report", NONCE)
    assert services.asked.count("/ocsp") == 1 and len(archive.ocsp) == 1
    report = recognise(archive.report)
    assert isinstance(report, Report)
    found = examine(report, POLICY, now=NOW, at_hand=Archive.decode(archive.encode()).at_hand())
    assert "none of the GPUs' certificates revoked" in ninth(found)
    late = NOW.plus(seconds=2 * 86_400)
    assert found.outcomes[0].until is not None and found.outcomes[0].until < late


async def test_a_captured_gpu_that_was_revoked(services: Services, session: aiohttp.ClientSession) -> None:
    """ATT-9."""
    services.status = ocsp.OCSPCertStatus.REVOKED
    archive = await services.capture(session).capture(f"{services.url}/phala/v1/attestation/report", NONCE)
    report = recognise(archive.report)
    assert isinstance(report, Report)
    found = examine(report, POLICY, now=NOW, at_hand=archive.at_hand())
    assert found.verdict is Verdict.REFUSED and "is revoked" in found.outcomes[0].why


async def test_answers_on_revocation_are_kept_until_the_next_is_due(
    services: Services, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """ATT-11: asked once a certificate; a file in the cache that is none is asked for again."""
    services.kept = tmp_path / "kept"
    chains = [issued(device.chain) for device in GPUS.devices]
    first, missing = await services.capture(session).revocation.of(chains)
    assert len(first) == 1 and not missing
    assert await services.capture(session).revocation.of(chains) == (first, ())
    assert services.asked.count("/ocsp") == 1
    [file] = services.kept.iterdir()
    for broken in (b"", b"nonsense", bytes(20_000)):
        file.write_bytes(broken)
        assert len((await services.capture(session).revocation.of(chains))[0]) == 1
    assert services.asked.count("/ocsp") == 4
    late = RevocationAnswers(Fetcher(session), FixedClock(NOW.plus(seconds=86_000)), f"{services.url}/ocsp", tmp_path)
    await late.of(chains)
    assert services.asked.count("/ocsp") == 5


async def test_golden_measurements_are_asked_for_once(
    services: Services, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """ATT-11: a RIM file never changes under its name; one that does not verify is neither kept nor used again."""
    evidence = orjson.dumps(GPUS.evidence(NONCE))
    names = parse_gpu_evidence(evidence)[0].runtime().names()
    good = manifest("570", dict(enumerate(GPUS.measurements())), GPUS.root)
    services.rims = {names[0]: good, names[1]: b"<no rim/>"}
    keeper = NvidiaServices(Fetcher(session), services.url, services.url, directory=tmp_path, rim_root=GPUS.root.root)
    assert await keeper.rims(evidence) == (good, b"<no rim/>") == await keeper.rims(evidence)
    asked = [one for one in services.asked if one.startswith("/v1/rim/")]
    [kept] = await asyncio.to_thread(lambda: list(tmp_path.iterdir()))
    assert len(asked) == 3
    await asyncio.to_thread(kept.write_bytes, good[:-20])
    assert (await keeper.rims(evidence))[0] == good


@pytest.mark.parametrize("broken", ["status", "unauthorized", "many"])
async def test_a_responder_that_does_not_answer_is_named(
    services: Services, session: aiohttp.ClientSession, broken: str
) -> None:
    """ATT-11: what is missing stands in the archive with its reason, and at most 64 are asked."""
    chains = [issued(device.chain) for device in GPUS.devices]
    if broken == "status":
        services.broken = {"ocsp": 503}
    elif broken == "unauthorized":
        chains = [CHIP.vcek.chain]
    else:
        root = GPUS.root
        chains = [signer(SEED, f"device {number}", NOW, root, ca=False).chain for number in range(70)]
    found, missing = await services.capture(session).revocation.of(chains)
    assert found == () and len(missing) == {"status": 1, "unauthorized": 2, "many": 70}[broken]
    assert len([asked for asked in services.asked if asked == "/ocsp"]) <= MAX_ASKED
    words = {"status": "503", "unauthorized": "something else", "many": "more than 64"}[broken]
    assert words in missing[-1]


# COMMANDS


async def run(*arguments: str) -> tuple[int, str, str]:
    """In this process, beside the server's loop; errors become exit codes as in `main`."""
    result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    if isinstance(result.exception, BombyxError):
        return (2 if isinstance(result.exception, LocalError) else 1), result.stdout, str(result.exception)
    return result.exit_code, result.stdout, result.stderr


async def test_capture_pin_verify_as_a_person_types_them(services: Services, tmp_path: Path) -> None:
    """ATT-13: the commands of docs/verify-a-provider.md against a loopback provider, exit codes and all."""
    kept, policy, pinned = (str(tmp_path / name) for name in ("kept.json", "base.toml", "pinned.toml"))
    await asyncio.to_thread(Path(policy).write_text, policy_to_toml(replace(POLICY, reference_values=())))
    code, _, said = await run(
        *("evidence", "capture", f"{services.url}/phala/v1/attestation/report", "--out", kept),
        *("--intel", services.url, "--intel-root-crl", f"{services.url}/root.crl"),
        *("--amd", services.url, "--nras", services.url, "--rim", services.url),
        *("--ocsp", f"{services.url}/ocsp", "--cache", str(tmp_path / "cache")),
    )
    assert code == 0 and "captured at" in said and "not in it" in said
    at = ("--at", str(NOW.seconds))
    shown: tuple[Any, ...] = await run("evidence", "show", kept, "--json")
    assert {"part": "archive", "what": "tokens", "found": "1"} in orjson.loads(shown[1])
    assert (await run("verify", kept, "--policy", policy, *at))[0] == 3
    code, toml, _ = await run("policy", "pin", kept, "--policy", policy, *at)
    await asyncio.to_thread(Path(pinned).write_text, toml)
    assert code == 0 and (await run("policy", "explain", pinned))[0] == 0
    code, table, _ = await run("verify", kept, "--policy", pinned, *at)
    assert code == 0 and len([line for line in table.splitlines() if "  passed  " in line]) == 10
    code, answer, _ = await run("verify", kept, "--policy", pinned, *at, "--json")
    parsed = orjson.loads(answer)
    assert code == 0 and parsed["passed"] and parsed["parts"][0]["trust_class"] == "simulated"
    assert (await run("verify", kept, "--policy", pinned, *at, "--strict"))[0] == 3  # no golden measurements at hand
    assert (await run("verify", kept, "--policy", pinned, *at, "--nonce", "00" * 32))[0] == 1
    assert (await run("verify", kept, *at))[0] == 1  # a simulator is nothing to the production preset
    assert (await run("verify", kept, "--policy", pinned, "--at", "yesterday"))[0] == 2
    assert (await run("verify", str(tmp_path / "nothing")))[0] == 2
