# SPDX-License-Identifier: Apache-2.0
"""A worker that runs unchanged in an enclave it did not make: over a dstack agent's socket, to the last receipt."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import aiohttp
import openai
import pytest
from tests.scenarios.procs import MODEL, Processes, network_of_processes

from bombyx.adapters.processes import stop_children
from bombyx.compose import new_simulated_platform
from bombyx.protocol.primitives import sha256
from bombyx.protocol.wire.answer_hash import answer_hash
from bombyx.protocol.wire.signing import recover
from bombyx.roles.worker.signed import answer_id, personal_digest


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


async def test_signatures_and_reports_as_other_providers_give_them(tmp_path: Path) -> None:
    """ENC-7: the stock client, then the two calls of other providers' verifiers, over the bytes it really received."""
    async with network_of_processes(tmp_path, workers=2) as net, aiohttp.ClientSession() as http:
        asked = {"model": MODEL, "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 8}
        for stream in (False, True):
            sent = json.dumps({**asked, "stream": stream}).encode()
            async with http.post(net.endpoint + "/chat/completions", data=sent) as answer:
                operator, kind = answer.headers["x-bombyx-operator"], answer.headers["content-type"]
                body = await answer.read()
            async with http.get(f"{net.endpoint}/signature/{answer_id(body)}?signing_algo=ecdsa") as answer:
                signed = await answer.json()
                assert answer.status == 200 and answer.headers["x-bombyx-operator"] == operator
            _, model, request, response, _, _ = signed["text"].split(":")
            assert (request, response) == (sha256(sent).hex(), answer_hash(body, kind).hex())
            signer = recover(personal_digest(signed["text"]), bytes.fromhex(signed["signature"][2:]))
            assert signed["signing_address"] == str(signer)
        async with http.get(f"{net.endpoint}/attestation/report?nonce={'ab' * 32}") as answer:
            report = await answer.json()
            assert report["request_nonce"] == "ab" * 32 and len(report["all_attestations"]) == 1
        async with http.get(net.endpoint + "/signature/chatcmpl-never-given-here") as answer:
            assert answer.status == 404
        rows = await net.receipts()
        assert sorted(row["charge"] > 0 for row in rows) == [False, False, False, True, True]
        assert model in {row["model"] for row in rows}
