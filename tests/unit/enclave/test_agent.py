# SPDX-License-Identifier: Apache-2.0
"""The simulated guest agent under hostile and mistaken callers (ENC-8)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.dstack_server import AgentServer, SimulatedGuest
from bombyx.adapters.dstack_server.methods import GuestAgent, call
from bombyx.adapters.simulator import SimulatedImage, SimulatedPlatform
from bombyx.errors import BombyxError, ConfigError, LocalError, MalformedMessage
from bombyx.protocol.attest.events import check_events, parse_event_log
from bombyx.protocol.primitives import Instant

PLATFORM = SimulatedPlatform.create(seed=bytes(32), now=Instant.from_seconds(1_790_000_000))
VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.binary(max_size=70).map(bytes.hex),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = ("report_data", "path", "purpose", "algorithm", "data", "signature", "public_key", "event", "payload")
FIELDS = (*NAMES, "subject", "alt_names", "not_before", "not_after", "hash_algorithm", "prefix", "usage_ra_tls")


async def ask(folder: Path, socket: str, method: str, path: str, body: bytes = b"{}") -> tuple[int, Any]:
    connector = aiohttp.UnixConnector(str(folder / socket))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.request(method, "http://localhost" + path, data=body) as response,
    ):
        return response.status, json.loads(await response.read())


async def test_calls_by_every_path(agent: Path) -> None:
    """ENC-8: as the real agent: with and without a prefix, and GET with a query."""
    for path in ("/Version", "/prpc/Version", "/prpc/DstackGuest.Version"):
        assert (await ask(agent, "dstack.sock", "POST", path))[0] == 200
    status, key = await ask(agent, "dstack.sock", "GET", "/GetKey?path=a&purpose=b", b"")
    assert status == 200
    assert key == (await ask(agent, "dstack.sock", "POST", "/GetKey", b'{"path":"a","purpose":"b"}'))[1]
    status, legacy = await ask(agent, "tappd.sock", "POST", "/prpc/Tappd.DeriveK256Key", b'{"path":"a","purpose":"b"}')
    assert (status, legacy["k256_key"]) == (200, key["key"])


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/Nothing", b"{}", 404),
        ("/prpc/Tappd.GetKey", b"{}", 404),
        ("/GetKey", b"[]", 400),
        ("/GetKey", b"nonsense", 400),
        ("/GetKey", b'{"algorithm":"rsa"}', 400),
        ("/GetKey", b'{"algorithm":"secp256k1_prehashed"}', 400),
        ("/GetKey", b'{"path":7}', 400),
        ("/GetQuote", b'{"report_data":"zz"}', 400),
        ("/GetQuote", b'{"report_data":"' + b"00" * 65 + b'"}', 400),
        ("/prpc/Tappd.TdxQuote", b'{"report_data":"00","hash_algorithm":"md5"}', 400),
        ("/Sign", b'{"algorithm":"secp256k1_prehashed","data":"00"}', 400),
        ("/GetTlsKey", b'{"not_before":9,"not_after":3}', 400),
        ("/GetTlsKey", b'{"not_after":"soon"}', 400),
        ("/GetTlsKey", b'{"alt_names":[""]}', 400),
        ("/GetTlsKey", b'{"subject":"' + b"x" * 65 + b'"}', 400),
        ("/EmitEvent", b'{"event":""}', 400),
        ("/EmitEvent", b'{"event":"a:b"}', 400),
    ],
)
async def test_what_is_not_a_call_is_refused(agent: Path, path: str, body: bytes, status: int) -> None:
    """ENC-8."""
    found, answer = await ask(agent, "dstack.sock", "POST", path, body)
    assert found == status
    assert answer["error"]


@pytest.mark.parametrize("name", ["compose-hash", "app-id", "instance-id", "os-image-hash", "key-provider"])
def test_a_program_that_measures_itself_as_another(name: str, guest: SimulatedGuest) -> None:
    """ENC-8: the boot's own names are not to be had."""
    with pytest.raises(MalformedMessage, match="ENC-8"):
        guest.emit(name, bytes(32))


async def test_events_stand_in_the_next_quote(guest: SimulatedGuest) -> None:
    """ENC-8: emitted before, seen after."""
    guest.emit("said", b"hello")
    made = await guest.quote(b"")
    raw = bytes.fromhex(made["quote"])
    registers = {f"rtmr{n}": raw[376 + 48 * n : 424 + 48 * n] for n in range(4)}
    events = parse_event_log(made["event_log"].encode())
    check_events(events, registers)
    assert [(event.name, event.payload) for event in events][-1] == ("said", b"hello")


@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=6), st.data())
def test_any_arguments_end_in_an_answer_or_our_error(arguments: dict[str, Any], data: st.DataObject) -> None:
    """ENC-8."""
    agent = GuestAgent(SimulatedGuest(PLATFORM, SimulatedImage.of("fuzzed")), SystemClock())
    table = data.draw(st.sampled_from([agent.current, agent.legacy]))
    name = data.draw(st.sampled_from(sorted(table)))
    try:
        answer = asyncio.run(call(table, name, arguments))
    except BombyxError as error:
        assert error.status in (400, 404)  # noqa: PT017
    else:
        json.dumps(answer)


async def test_a_running_agents_socket_is_not_taken_a_dead_ones_is(guest: SimulatedGuest, sockets: Path) -> None:
    """ENC-8: what a killed process left does not stand in the way."""
    first, second = AgentServer(guest, SystemClock()), AgentServer(guest, SystemClock())
    await first.serve_unix(sockets)
    with pytest.raises(LocalError, match="already"):
        await second.serve_unix(sockets)
    await asyncio.sleep(0.05)  # the probe's connection comes and goes
    for server in first._servers:
        await server.close(grace=0)
    await second.serve_unix(sockets)
    assert (await ask(sockets, "dstack.sock", "POST", "/Version"))[0] == 200
    assert (sockets / "dstack.sock").stat().st_mode & 0o077 == 0
    await second.close()
    assert not any(path.exists() for path in second.paths)


async def test_a_path_no_socket_can_have(guest: SimulatedGuest, tmp_path: Path) -> None:
    """ENC-8: said in words, not by the kernel."""
    with pytest.raises(ConfigError, match="100 bytes"):
        await AgentServer(guest, SystemClock()).serve_unix(tmp_path / ("x" * 100))
