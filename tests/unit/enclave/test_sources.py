# SPDX-License-Identifier: Apache-2.0
"""Evidence sources behind the port, against the simulated guest agent: what a worker inside an enclave stands on."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiohttp import web

from bombyx.adapters.dstack import DstackEnclave, nvidia_evidence
from bombyx.adapters.dstack_server import SimulatedGuest
from bombyx.adapters.simulator import SimulatedImage
from bombyx.adapters.tappd import TappdEnclave
from bombyx.errors import ConfigError, MalformedMessage, Unavailable
from bombyx.protocol.attest.events import check_events, parse_event_log
from bombyx.protocol.attest.tdx import parse_quote

DATA = bytes(range(64))


@pytest.mark.parametrize(("kind", "name"), [(DstackEnclave, "dstack.sock"), (TappdEnclave, "tappd.sock")])
async def test_a_quote_carries_exactly_our_report_data(
    kind: type[DstackEnclave | TappdEnclave], name: str, agent: Path, image: SimulatedImage
) -> None:
    """ENC-1: both agents; the legacy one hashes unless told not to."""
    made = await kind(str(agent / name)).quote(DATA)
    body = parse_quote(made.quote).body
    assert body[520:584] == DATA
    registers = {f"rtmr{n}": body[328 + 48 * n : 376 + 48 * n] for n in range(4)}
    boot = check_events(parse_event_log(made.event_log), registers).value
    assert boot.compose_hash == image.compose_hash
    assert made.compose == image.compose
    assert made.technology == "tdx"
    assert await kind(str(agent / name)).gpu(bytes(32)) is None


async def test_keys_follow_code_and_path(agent: Path, guest: SimulatedGuest) -> None:
    """ENC-2: what the socket gives is what was derived."""
    source = DstackEnclave(str(agent / "dstack.sock"))
    key = await source.key("wallet", "pay")
    assert key == guest.keys.derive("wallet", "pay")
    assert key != await source.key("other", "pay")


async def test_no_agent_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENC-1: absent is `Unavailable` at an endpoint, a wrong setting without one."""
    with pytest.raises(Unavailable, match="does not answer"):
        await DstackEnclave(str(tmp_path / "none.sock")).quote(DATA)
    monkeypatch.delenv("DSTACK_SIMULATOR_ENDPOINT", raising=False)
    monkeypatch.setattr("bombyx.adapters.dstack.Path", lambda path: tmp_path / "none")
    with pytest.raises(ConfigError, match="no agent"):
        DstackEnclave()


async def scripted(answers: dict[str, object]) -> tuple[web.AppRunner, str]:
    """An agent that says what it is told to."""

    async def answer(request: web.Request) -> web.Response:
        said = answers.get(request.path)
        if said is None:
            return web.json_response({"error": "no"}, status=404)
        return web.json_response(said) if isinstance(said, dict) else web.Response(body=said)

    app = web.Application()
    app.router.add_post("/{name:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    return runner, f"http://{host}:{port}"


async def test_an_agent_that_quotes_something_else(guest: SimulatedGuest) -> None:
    """ENC-1: a quote over other report data is refused before anybody publishes it."""
    other = await guest.quote(bytes(64))
    runner, url = await scripted({"/GetQuote": other, "/Info": guest.info("")})
    with pytest.raises(MalformedMessage, match="ENC-1"):
        await DstackEnclave(url).quote(DATA)
    await runner.cleanup()


@pytest.mark.parametrize("said", [b"not json", {"quote": "zz", "event_log": "[]"}, {"quote": 7}, {"error": "busy"}])
async def test_nonsense_from_an_agent(said: object) -> None:
    """ENC-1: foreign bytes end in our errors."""
    runner, url = await scripted({"/GetQuote": said})
    with pytest.raises((MalformedMessage, Unavailable)):
        await DstackEnclave(url).quote(DATA)
    await runner.cleanup()


async def test_a_compose_file_other_than_the_measured_one(guest: SimulatedGuest) -> None:
    """ENC-1: what is shown must hash to what is stated."""
    info = {**guest.info(""), "compose_hash": "00" * 32}
    runner, url = await scripted({"/GetQuote": await guest.quote(DATA), "/Info": info})
    with pytest.raises(MalformedMessage, match="measured"):
        await DstackEnclave(url).quote(DATA)
    await runner.cleanup()


async def test_gpu_evidence_answers_our_nonce_or_nothing() -> None:
    """ENC-1: evidence taken at boot, for another nonce, is not passed on."""
    runner, url = await scripted({"/GpuInfo": {"attestation": "{}"}})
    with pytest.raises(Unavailable, match="too old"):
        await DstackEnclave(url).gpu(bytes(32))
    await runner.cleanup()
    entry = {"certificate": "AA==", "evidence": "AA=="}
    bundles = {"bundles": [{"vendor": "NVIDIA", "format": "spdm", "evidence": [entry]}]}
    runner, url = await scripted({"/AttestGpu": bundles})
    assert await DstackEnclave(url).gpu(bytes(32)) == b'{"evidence_list":[{"certificate":"AA==","evidence":"AA=="}]}'
    await runner.cleanup()
    assert nvidia_evidence({"bundles": []}) is None
