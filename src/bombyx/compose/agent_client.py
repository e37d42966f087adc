# SPDX-License-Identifier: Apache-2.0
"""An agent inside an enclave: its keys from the guest agent's socket, a client paid from its own wallet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.dstack import DstackEnclave
from bombyx.adapters.simulator import SimulatedEndorsements, SimulatedPlatform
from bombyx.compose.client import build, descriptor_of
from bombyx.config import state_home
from bombyx.errors import EngineUnavailable
from bombyx.protocol.primitives import Digest, sha256
from bombyx.protocol.wire.evidence import EvidenceBundle, ModelManifest
from bombyx.roles.agent import Agent, AgentWallet, Answered
from bombyx.roles.client.core import Client
from bombyx.roles.client.kept import Proof
from bombyx.roles.client.settings import ClientKeys

CHAT = "/v1/chat/completions"


async def build_agent(
    network: str | dict[str, Any] | None,
    *,
    endpoint: str = "",
    state_dir: Path | None = None,
    budget: int | None = None,
) -> Agent:
    """`endpoint`: the guest agent's socket or URL; empty: where its own clients look. Raises `ConfigError` outside."""
    device = DstackEnclave(endpoint)
    wallet = await AgentWallet.derive(device.key)
    descriptor = descriptor_of(network)
    client = await build(
        network,
        state_dir=state_dir or state_home() / "agents" / str(wallet.owner.address),
        budget=budget,
        keys=ClientKeys(owner=wallet.owner, session=wallet.session),
        keep_openings=True,
    )
    platform = SimulatedPlatform.load(descriptor.simulated) if descriptor.simulated is not None else None

    async def ask(body: bytes) -> Answered:
        return await _ask(client, body)

    return Agent(
        wallet=wallet,
        device=device,
        endorser=SimulatedEndorsements(platform=platform, clock=SystemClock()) if platform is not None else None,
        clock=SystemClock(),
        ask=ask,
        close=client.close,
    )


async def _ask(client: Client, body: bytes) -> Answered:
    """One answer, read to its end, checked, and with everything that proves it."""
    response = await client.request("POST", CHAT, body=body)
    content = await response.read()
    if response.error is not None:
        raise response.error
    finished = await response.finished()
    if response.status != 200 or finished.kept is None or finished.kept.last is None:
        raise EngineUnavailable(f"the model answered with status {response.status}")
    receipt = finished.kept.last.receipt
    proof = await client.book.proof(receipt.request_id.hex())
    return Answered(
        text=str(orjson.loads(content)["choices"][0]["message"]["content"]),
        model=receipt.model,
        request_id=receipt.request_id,
        proof=proof.encode(),
        tokens=await _token_table(client, receipt.model, proof),
    )


async def _token_table(client: Client, model: Digest, proof: Proof) -> bytes:
    """The table the model's manifest names; empty where the model has none."""
    for raw in EvidenceBundle.decode(proof.bundle).manifests:
        tokenizer = ModelManifest.decode(raw).tokenizer
        if sha256(raw) == model and tokenizer is not None:
            return await client.blob(tokenizer) or b""
    return b""
