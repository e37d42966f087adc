# SPDX-License-Identifier: Apache-2.0
"""Kill -9 of each role at each moment of a request's life, with real processes and the real model.

After each: nothing hung past its deadline, nothing that was promised is lost, nobody is charged twice, and the network
goes on.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.scenarios.procs import MODEL, Processes, network_of_processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

LONG_PROMPT = "Tell a story about the silk moth, and begin it with these words: " + "mulberry leaf " * 550
PATIENCE = 20.0  # seconds in which a cut must be noticed; the requests' own deadline is 120


@dataclass
class Reading:
    """One streamed answer as it comes; `error` is what the stream or the status said."""

    text: str = ""
    error: str = ""
    done: bool = False
    seconds: float = 0.0
    request_id: str = ""
    started: asyncio.Event = field(default_factory=asyncio.Event)


async def read(net: Processes, reading: Reading, prompt: str, tokens: int) -> Reading:
    """Ask and read to the end, whatever the end is."""
    began = time.monotonic()
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "stream": True,
        "temperature": 1.2,
    }
    try:
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{net.endpoint}/chat/completions", json=body) as answer,
        ):
            reading.request_id = answer.headers.get("x-bombyx-request-id", "")
            if answer.status != 200:
                reading.error = await answer.text()
            else:
                await _read_events(answer, reading)
    except aiohttp.ClientError as error:
        reading.error = reading.error or type(error).__name__
    reading.seconds = time.monotonic() - began
    return reading


async def _read_events(answer: aiohttp.ClientResponse, reading: Reading) -> None:
    async for line in answer.content:
        if line.startswith(b"data: [DONE]"):
            reading.done = True
        elif line.startswith(b"data: "):
            event = json.loads(line[6:])
            if "error" in event:
                reading.error = json.dumps(event["error"])
                continue
            choices = event.get("choices") or [{}]
            reading.text += choices[0].get("delta", {}).get("content") or ""
            if reading.text:
                reading.started.set()


async def ask(net: Processes, prompt: str = "Name a river.", tokens: int = 16) -> Reading:
    """A request that must go well, once the network had time to mend itself."""
    last = Reading()
    for _ in range(40):
        last = await read(net, Reading(), prompt, tokens)
        if last.done and not last.error:
            return last
        await asyncio.sleep(0.5)
    raise AssertionError(f"the network did not come back: {last.error}")


async def accounts(net: Processes) -> dict[str, Any]:
    """The client's account of its channel and the proxy's account of the same."""
    (channel,) = (await net.verification())["channels"]
    booked = await net.booked(channel["id"])
    receipts = await net.receipts()
    finals = [r["request_id"] for r in receipts]
    assert len(finals) == len(set(finals)), "one record a request"
    assert channel["frozen"] is None
    return {
        "agreed": channel["agreed"],
        "charged": booked["charged"],
        "receipts": receipts,
        "ceiling": channel["ceiling"],
    }


async def settled_accounts(net: Processes) -> dict[str, Any]:
    """The accounts once both sides say the same; they may need the next request to reconcile a cut one."""
    found: dict[str, Any] = {}
    for _ in range(10):
        found = await accounts(net)
        if found["agreed"] == found["charged"]:
            return found
        await ask(net)
    raise AssertionError(f"client agreed {found['agreed']}, proxy charged {found['charged']}")


async def busy_workers(net: Processes) -> list[str]:
    """Operators that run a request now, as the proxy knows them."""
    network = await net.json(f"http://127.0.0.1:{net.port}/network")
    return [w["operator"] for w in network["workers"] if w["load"]["active"]]


def worker_named(net: Processes, operator: str) -> str:
    return next(n for n, c in net.children.items() if n.startswith("worker") and c.ready["operator"] == operator)


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Processes]:
    async with network_of_processes(tmp_path, workers=2, worker_arguments=("--capacity", "1")) as running:
        await ask(running)
        yield running


async def test_a_worker_killed_in_the_middle_of_a_stream_is_an_error_in_the_application(net: Processes) -> None:
    """SEAL-7: the stream is cut and says so; both sides charge the last checkpoint; the other worker serves."""
    reading = Reading()
    task = asyncio.create_task(read(net, reading, "Count slowly from one to a thousand.", 900))
    await asyncio.wait_for(reading.started.wait(), 30)
    (operator,) = await busy_workers(net)
    killed = time.monotonic()
    await net.kill(worker_named(net, operator))
    await asyncio.wait_for(task, PATIENCE)
    assert time.monotonic() - killed < PATIENCE
    assert not reading.done
    assert reading.error
    assert (await ask(net)).text
    found = await settled_accounts(net)
    cut = next(r for r in found["receipts"] if r["request_id"] == reading.request_id)
    assert cut["outcome"] != "complete"
    assert cut["paid"] <= cut.get("charge", 0) * 2


@pytest.mark.parametrize("alone", [0, 10_000])
async def test_a_worker_killed_before_the_first_frame_is_replaced_by_the_next_candidate(
    net: Processes, alone: int
) -> None:
    """MKT-5, MKT-14: the application never notices; one final receipt, one charge; asked alone or in company."""
    net.environment["BOMBYX_CLIENT_SINGLE_SHARE_BPS"] = str(alone)
    await net.kill("client", signal.SIGTERM)
    await net.start_client()
    await ask(net)
    reading = Reading()
    task = asyncio.create_task(read(net, reading, LONG_PROMPT, 8))
    operator = await _first_busy(net)
    assert not reading.started.is_set(), "the long prompt is still being read by the engine"
    await net.kill(worker_named(net, operator))
    await asyncio.wait_for(task, 90)
    assert reading.done
    assert not reading.error
    found = await settled_accounts(net)
    assert [r["outcome"] for r in found["receipts"] if r["request_id"] == reading.request_id] == ["complete"]


async def test_a_worker_killed_with_a_queue_loses_only_what_it_was_saying(net: Processes) -> None:
    """LINK-4, LINK-5: who waited there is served elsewhere or told at once; nobody waits for a deadline."""
    readings = [Reading() for _ in range(4)]
    tasks = [asyncio.create_task(read(net, r, f"Story number {i}, please.", 60)) for i, r in enumerate(readings)]
    operator = await _first_busy(net)
    await asyncio.sleep(0.3)
    await net.kill(worker_named(net, operator))
    await asyncio.wait_for(asyncio.gather(*tasks), 90)
    assert all(r.done or r.error for r in readings)
    assert sum(r.done and not r.error for r in readings) >= 2
    await settled_accounts(net)


async def test_a_killed_proxy_cuts_its_streams_and_comes_back_with_its_books(net: Processes) -> None:
    """PAY-17: after the restart nothing charged is forgotten and nothing is charged twice; workers link again."""
    reading, port = Reading(), net.port
    task = asyncio.create_task(read(net, reading, "Count slowly from one to a thousand.", 900))
    await asyncio.wait_for(reading.started.wait(), 30)
    before = await accounts(net)
    await net.kill("proxy")
    await asyncio.wait_for(task, PATIENCE)
    assert not reading.done
    assert reading.error
    await net.start_proxy(port=port)
    assert (await ask(net)).text
    found = await settled_accounts(net)
    assert found["charged"] >= before["charged"]
    assert found["charged"] <= found["ceiling"]


async def test_a_killed_client_is_charged_for_what_it_got_and_goes_on_with_the_same_channel(net: Processes) -> None:
    """PAY-18: the proxy cancels the work; the next life reads channel and receipts back and opens no second channel.

    The dead client never saw the last frames it is charged for: that gap is at most what the one cut request was booked
    at, it stays inside the signed ceiling, and it does not grow.
    """
    reading = Reading()
    task = asyncio.create_task(read(net, reading, "Count slowly from one to a thousand.", 900))
    await asyncio.wait_for(reading.started.wait(), 30)
    before = await accounts(net)
    channels = [c["id"] for c in (await net.verification())["channels"]]
    await net.kill("client")
    await asyncio.wait_for(task, PATIENCE)
    await _until_idle(net)
    await net.start_client()
    assert (await ask(net)).text
    assert [c["id"] for c in (await net.verification())["channels"]] == channels
    cut = (await net.json(f"http://127.0.0.1:{net.port}/v1/view/{reading.request_id}"))["booked"]["charge"]
    first = await accounts(net)
    assert 0 <= first["charged"] - first["agreed"] <= cut
    assert (await ask(net)).text
    found = await accounts(net)
    assert found["charged"] - found["agreed"] <= first["charged"] - first["agreed"]
    assert found["charged"] <= found["ceiling"]
    known = {r["request_id"] for r in before["receipts"]}
    assert known <= {r["request_id"] for r in found["receipts"]}, "no receipt is lost"


async def test_a_worker_told_to_stop_finishes_what_it_says(net: Processes) -> None:
    """WRK-8: SIGTERM drains: the running answer ends well, then the process ends."""
    reading = Reading()
    task = asyncio.create_task(read(net, reading, "Tell a story.", 200))
    await asyncio.wait_for(reading.started.wait(), 30)
    (operator,) = await busy_workers(net)
    name = worker_named(net, operator)
    await net.kill(name, signal.SIGTERM)
    await asyncio.wait_for(task, 60)
    assert reading.done
    assert not reading.error
    assert net.children[name].process.returncode == 0
    await settled_accounts(net)


async def test_a_stopped_chain_does_not_stop_answers(net: Processes) -> None:
    """PAY-4: channels are open and views are fresh enough: requests go on for a while without the chain."""
    child = net.children["devnet"]
    child.process.send_signal(signal.SIGSTOP)
    try:
        assert (await ask(net)).text
    finally:
        child.process.send_signal(signal.SIGCONT)
    await settled_accounts(net)


async def _first_busy(net: Processes) -> str:
    for _ in range(200):
        busy = await busy_workers(net)
        if busy:
            return busy[0]
        await asyncio.sleep(0.02)
    raise AssertionError("no worker became busy")


async def _until_idle(net: Processes) -> None:
    for _ in range(100):
        if not await busy_workers(net):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the cancelled work went on")
