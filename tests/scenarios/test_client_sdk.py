# SPDX-License-Identifier: Apache-2.0
"""A network of processes and a real model, used as an application would: stock openai, the SDK, the examples, the
commands.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.scenarios.procs import MODEL, network_of_processes

import bombyx

PARIS: Any = {
    "model": MODEL,
    "messages": [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is the capital of France?"},
    ],
    "max_tokens": 32,
    "temperature": 0,
}


async def run(folder: Path, endpoint: str, *arguments: str) -> str:
    """A Python process beside the network; its output when it ended well."""
    environment = os.environ | {"BOMBYX_HOME": str(folder / "home"), "BOMBYX_ENDPOINT": endpoint}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, (arguments, err.decode()[-3000:], out.decode()[-1000:])
    return out.decode()


def in_process(network: str, state: Path) -> tuple[str, list[str]]:
    """The synchronous SDK."""
    with bombyx.openai(network, state_dir=state) as client:
        whole = client.chat.completions.create(**PARIS).choices[0].message.content or ""
        stream = client.chat.completions.create(**PARIS, stream=True)
        return whole, [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]


@pytest.mark.timeout(300)  # a network and a dozen processes one after another, on a machine that may be busy
async def test_every_way_to_ask(tmp_path: Path, repo: Path) -> None:
    """CLI-9, CLI-10: the endpoint, both SDK classes, every example and every command of the client, on one network."""
    async with network_of_processes(tmp_path, workers=2) as network:
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        descriptor = tmp_path / "client.network.json"
        (home / "network.json").write_text(descriptor.read_text())

        async with openai.AsyncOpenAI(base_url=network.endpoint, api_key="unused") as client:
            raw = await client.chat.completions.with_raw_response.create(**PARIS)
            assert "Paris" in (raw.parse().choices[0].message.content or "")
            request_id = raw.headers["x-bombyx-request-id"]
            # An application that leaves in the middle: the next one is served, and nobody froze anything.
            stream = await client.chat.completions.create(**{**PARIS, "max_tokens": 200}, stream=True)
            await anext(aiter(stream))
            await stream.close()
            assert "Paris" in str((await client.chat.completions.create(**PARIS)).choices[0].message.content)
        told = await network.json(network.endpoint.removesuffix("/v1") + "/verification?format=json")
        assert [channel["frozen"] for channel in told["channels"]] == [None]
        assert told["trust_classes"] == ["simulated"]

        whole, pieces = await asyncio.to_thread(in_process, str(descriptor), tmp_path / "sdk")
        assert "Paris" in whole and "Paris" in "".join(pieces)
        async with bombyx.async_openai(json.loads(descriptor.read_text()), state_dir=tmp_path / "async") as mine:
            text = (await mine.chat.completions.create(**PARIS)).choices[0].message.content
            assert "Paris" in (text or "")

        for example in sorted((repo / "examples").glob("*.py")):
            assert (await run(tmp_path, network.endpoint, str(example))).strip(), example.name

        command = ("-c", "import sys; from bombyx.cli import main; main()")
        asked = json.loads(
            await run(
                tmp_path,
                network.endpoint,
                *command,
                "chat",
                PARIS["messages"][1]["content"],
                "--json",
                "--endpoint",
                network.endpoint,
            )
        )
        assert asked["receipt"]["outcome"] == "complete" and asked["answer"]
        state = ("--state", str(network.state("client")))
        rows = json.loads(await run(tmp_path, "", *command, "receipts", "list", *state, "--json"))
        assert {row["outcome"] for row in rows} >= {"complete"} and request_id in {
            row.get("request_id") for row in rows
        }
        again = json.loads(await run(tmp_path, "", *command, "receipts", "verify", request_id, *state, "--json"))
        assert again["passed"], again
        proof = tmp_path / "proof"
        await run(tmp_path, "", *command, "receipts", "show", request_id, *state, "--out", str(proof))
        assert json.loads(await run(tmp_path, "", *command, "verify", str(proof), "--json"))["passed"]
