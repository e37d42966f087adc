# SPDX-License-Identifier: Apache-2.0
"""A chain that stops, lies, takes blocks back or becomes dear, and clocks that are wrong, under real processes.

After each: conversations go on, and every account on chain equals what the receipts say, to the unit.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from tests.onchain.devnet import need_anvil
from tests.scenarios.audit import settled
from tests.scenarios.procs import Processes, network_of_processes
from tests.scenarios.relay import Mood, Relay
from tests.scenarios.test_kills import Reading, ask, read

from bombyx.adapters.evm import Rpc
from bombyx.adapters.evm.fees import GWEI, Fees
from bombyx.adapters.evm.outbox import Call, signed
from bombyx.adapters.evm.rpc import as_int
from bombyx.protocol.primitives import Secret
from bombyx.protocol.wire.signing import SigningKey

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

OFTEN = {
    f"BOMBYX_{role}_CLAIM_{name}": value
    for role in ("PROXY", "WORKER")
    for name, value in (("THRESHOLD", "1"), ("EVERY", "0.5"))
}
DEPTH = 2  # blocks a reorg may take in these tests' chain, by its address book


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def net(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Processes, Relay]]:
    need_anvil()
    relays: list[Relay] = []

    async def between(running: Processes) -> None:
        facts = running.children["devnet"].ready
        relays.append(await Relay(facts["url"]).open())
        facts["url"] = relays[0].url
        facts["contracts"]["reorg_depth"] = DEPTH

    folder = tmp_path_factory.mktemp("chain-faults")
    async with network_of_processes(
        folder, chain="evm", chain_arguments=("--block-time", "0.3"), environment=dict(OFTEN), on_chain=between
    ) as running:
        await ask(running)
        yield running, relays[0]
        relays[0].mood = Mood.GOOD
    await relays[0].close()


async def talk(net: Processes, times: int) -> int:
    """Conversations that may fail; how many went well."""
    good = 0
    for _ in range(times):
        reading = await read(net, Reading(), "Name a river.", 8)
        good += reading.done and not reading.error
    return good


@contextmanager
def node_stopped(relay: Relay) -> Iterator[None]:
    """SIGSTOP for anvil itself, found by the port it was told to listen on."""
    port = relay.upstream.rsplit(":", 1)[1].strip("/").encode()
    (pid,) = (
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if (words := _words(path)) and words[0].endswith(b"anvil") and port in words
    )
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def strangers_transaction(node: Rpc) -> str:
    """Of an account that nobody else knows: all there is in the blocks that take the place of ours."""
    stranger = SigningKey(Secret(os.urandom(32)))
    await node.call("anvil_setBalance", str(stranger.address), hex(10**18))
    call, fees = Call(to=stranger.address, data=b"", gas=21_000), Fees(tip=GWEI, limit=1_000 * GWEI)
    return "0x" + signed(call, chain_id=await node.chain_id(), nonce=0, fees=fees, signer=stranger).raw.hex()


def _words(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\0")
    except OSError:
        return []


async def test_a_node_that_stops_for_a_minute(net: tuple[Processes, Relay]) -> None:
    """PAY-4, LEDGER-2: for a minute answers go on without a chain; what was earned meanwhile is claimed after it."""
    running, relay = net
    with node_stopped(relay):
        assert await talk(running, 2) == 2
        stopped = time.monotonic()
        while time.monotonic() - stopped < 60:
            await asyncio.sleep(12)
            assert await talk(running, 1) == 1
    assert (await ask(running)).text
    await settled(running, within=60)


@pytest.mark.parametrize("mood", [Mood.TWICE, Mood.GARBAGE, Mood.LATE])
async def test_a_node_that_answers_badly(net: tuple[Processes, Relay], mood: Mood) -> None:
    """LEDGER-2, LEDGER-6: whatever was carried out unheard or twice is found out; nothing is paid twice."""
    running, relay = net
    relay.mood = mood
    try:
        assert await talk(running, 4) >= 3
        for _ in range(60):
            if relay.spoilt[mood] > 3:
                break
            await asyncio.sleep(0.25)
    finally:
        relay.mood = Mood.GOOD
    assert relay.spoilt[mood] > 3
    assert (await ask(running)).text
    await settled(running, within=60)


async def test_gas_becomes_dear_while_claims_are_under_way(net: tuple[Processes, Relay]) -> None:
    """LEDGER-6: a spike above the cap is waited out, one below it is paid; the claim is made once."""
    running, relay = net
    node = Rpc([relay.upstream])
    for price in (100 * GWEI, 900 * GWEI):
        talking = asyncio.create_task(talk(running, 2))
        for _ in range(20):
            await node.call("anvil_setNextBlockBaseFeePerGas", hex(price))
            await asyncio.sleep(0.15)
        assert await talking == 2
    await node.call("anvil_setNextBlockBaseFeePerGas", hex(GWEI))
    await settled(running, within=60)
    await node.close()


async def test_a_reorg_takes_a_deposit_and_its_claims(net: tuple[Processes, Relay]) -> None:
    """PAY-15, PAY-18, LEDGER-4: deeper than anybody waits for: the client deposits anew, the payees claim anew."""
    running, relay = net
    node = Rpc([relay.upstream])
    running.environment["BOMBYX_CLIENT_DEPOSIT"] = "1"  # so that each request tops its channel up by what it needs
    await running.kill("client")
    running.client_state = "client-reorg"
    running.clients.append("client-reorg")
    await running.start_client()
    assert (await ask(running)).text
    await settled(running, clients=tuple(running.clients))
    before = as_int(await node.call("eth_blockNumber"))
    snapshot = await node.call("evm_snapshot")
    for _ in range(2):
        assert (await ask(running, tokens=24)).text
    found = await settled(running, clients=tuple(running.clients))
    assert as_int(await node.call("eth_blockNumber")) > before + DEPTH
    assert await node.call("evm_revert", snapshot)
    assert (await ask(running)).text
    after = await settled(running, clients=tuple(running.clients), within=90)
    assert sum(hop.paid for hop in after.client.values()) > sum(hop.paid for hop in found.client.values())
    await node.close()


@pytest.mark.parametrize("depth", [DEPTH, 30])
async def test_a_reorg_by_the_node_itself(net: tuple[Processes, Relay], depth: int) -> None:
    """PAY-15, LEDGER-4, LEDGER-9: `anvil_reorg`: as many blocks anew, none of our transactions in them but one that
    is not ours; as deep as everybody waits for, and far deeper. Requests go on meanwhile."""
    running, relay = net
    node = Rpc([relay.upstream])
    clients = tuple(running.clients)
    assert (await ask(running, tokens=24)).text
    talking = asyncio.create_task(talk(running, 3))
    for _ in range(2):
        await asyncio.sleep(1.0)
        await node.call("anvil_reorg", depth, [[await strangers_transaction(node), 0]])
    await talking
    assert (await ask(running)).text
    await settled(running, clients=clients, within=90)
    await node.close()


@pytest.mark.parametrize("error", [{"proxy": 100.0}, {"worker-0": -100.0}, {"proxy": 60.0, "worker-0": -60.0}])
async def test_clocks_that_are_wrong(net: tuple[Processes, Relay], error: dict[str, float]) -> None:
    """PAY-15, RCT-1: dates differ, money does not."""
    running, _ = net
    for name, seconds in error.items():
        await running.kill(name)
        running.environment["BOMBYX_CLOCK_ERROR"] = str(seconds)
        try:
            await (running.start_proxy(port=running.port) if name == "proxy" else running.start_worker(name))
        finally:
            del running.environment["BOMBYX_CLOCK_ERROR"]
    assert (await ask(running)).text
    await settled(running, clients=tuple(running.clients), within=60)
