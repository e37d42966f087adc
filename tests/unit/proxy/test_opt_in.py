# SPDX-License-Identifier: Apache-2.0
"""Answers handed to validators pass through the proxy as sealed bytes, to registered validators only."""

from __future__ import annotations

import aiohttp
import pytest
from tests.unit.proxy.kit import ProxyNet, key

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.memory import MemoryLedger
from bombyx.errors import BadRequest, MalformedMessage, Overloaded, Unavailable
from bombyx.ports import Operator, OperatorRole
from bombyx.protocol.primitives import Digest
from bombyx.roles.proxy.opt_in import AT_ONCE, MAX_PACKAGE, OptInRelay

VALIDATOR = key("validator")
NAME = str(VALIDATOR.address)
SEALED = b"sealed to the validator's enclave"


class Wire:
    """What reached a validator's page."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, bytes]] = []
        self.status = 202

    async def forward(self, method: str, url: str, body: bytes, most: int) -> tuple[int, bytes]:
        self.seen.append((method, url, body))
        return (200, b"evidence") if method == "GET" else (self.status, b"")


@pytest.fixture
async def relay() -> tuple[OptInRelay, Wire]:
    ledger, wire = MemoryLedger(SystemClock()), Wire()
    named = Operator(
        address=VALIDATOR.address, role=OperatorRole.VALIDATOR, endpoint="http://validator.example/",
        receipt_address=VALIDATOR.address, pay_authorizer=VALIDATOR.address, pay_key_config=b"",
        price_sheet=Digest.zero(), models=(),
    )  # fmt: skip
    await ledger.register(named, signer=VALIDATOR)
    return OptInRelay(ledger, wire.forward, SystemClock()), wire


async def test_bytes_go_there_as_they_are_and_a_status_comes_back(relay: tuple[OptInRelay, Wire]) -> None:
    """AUD-57: nothing is added, nothing read."""
    through, wire = relay
    assert await through.evidence(NAME) == b"evidence"
    assert await through.take(NAME, SEALED) == 202
    wire.status = 429
    assert await through.take(NAME, SEALED) == 429
    assert wire.seen[0] == ("GET", "http://validator.example/v1/enclave", b"")
    assert wire.seen[1] == ("POST", "http://validator.example/v1/opt-in", SEALED)


async def test_nobody_is_reached_whom_the_registry_does_not_name(relay: tuple[OptInRelay, Wire]) -> None:
    """AUD-57: the proxy is no relay to anywhere else."""
    through, wire = relay
    for name in (str(key("somebody").address), "http://127.0.0.1/", "", "0x00"):
        with pytest.raises(BadRequest):
            await through.take(name, SEALED)
    with pytest.raises(MalformedMessage):
        await through.take(NAME, bytes(MAX_PACKAGE + 1))
    assert wire.seen == []
    through._open = AT_ONCE
    with pytest.raises(Overloaded):
        await through.take(NAME, SEALED)


async def test_the_route_is_there_only_where_a_proxy_offers_it(net: ProxyNet) -> None:
    """AUD-57."""
    async with aiohttp.ClientSession() as http:
        async with http.post(f"{net.url}/v1/opt-in/{NAME}", data=SEALED) as response:
            assert response.status in (404, 405)
        wire = Wire()
        assert net.proxy._front is not None
        net.proxy._front._opt_ins = OptInRelay(net.ledger, wire.forward, SystemClock())
        async with http.post(f"{net.url}/v1/opt-in/{NAME}", data=SEALED) as response:
            assert response.status == 404
        async with http.put(f"{net.url}/v1/opt-in/{NAME}", data=SEALED) as response:
            assert response.status == 405


async def test_a_validator_that_does_not_answer_is_unavailable(relay: tuple[OptInRelay, Wire]) -> None:
    """AUD-57."""
    through, wire = relay

    async def silent(method: str, url: str, body: bytes, most: int) -> tuple[int, bytes]:
        raise Unavailable("no answer")

    through._forward = silent
    with pytest.raises(Unavailable):
        await through.take(NAME, SEALED)
    assert wire.seen == []
