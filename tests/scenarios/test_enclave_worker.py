# SPDX-License-Identifier: Apache-2.0
"""A worker that runs unchanged in an enclave it did not make: over a dstack agent's socket, to the last receipt."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import openai
import pytest
from tests.scenarios.procs import MODEL, Processes

from bombyx.adapters.processes import stop_children
from bombyx.compose import new_simulated_platform


@pytest.mark.parametrize("kind", ["dstack", "tappd"])
async def test_a_worker_over_a_dstack_socket_answers(kind: str, tmp_path: Path) -> None:
    """ENC-1: evidence from the agent's socket is appraised like any other, and the answer has its receipt."""
    net = Processes(folder=tmp_path, policy=new_simulated_platform(tmp_path / "simulated-platform"))
    compose = tmp_path / "app-compose.json"
    # the image the development policy knows, as a file: what a dstack machine would have been started with
    compose.write_text('{"manifest_version":2,"name":"bombyx-worker","public_logs":false,"runner":"simulated"}')
    with tempfile.TemporaryDirectory(prefix="bx-") as sockets:
        try:
            await net.start_devnet()
            await net.start_proxy()
            where = ("--folder", sockets, "--compose", str(compose), "--port", "-1")
            agent = await net.start("agent", "enclave", "simulate", *where, "--platform", str(net.policy.parent))
            await net.start_worker("worker", "--enclave", kind, "--enclave-endpoint", agent.ready[kind])
            await net.start_client()
            async with openai.AsyncOpenAI(base_url=net.endpoint, api_key="unused") as client:
                asked = [{"role": "user", "content": "What is the capital of France?"}]
                answer = await client.chat.completions.create(model=MODEL, messages=asked, max_tokens=24)  # type: ignore[arg-type]
                assert answer.choices[0].message.content
            told = json.dumps(await net.verification())
            assert '"simulated"' in told
            assert [row["outcome"] for row in await net.receipts()] == ["complete"]
        finally:
            await stop_children(list(net.children.values())[::-1], grace=5.0)
