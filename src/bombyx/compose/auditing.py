# SPDX-License-Identifier: Apache-2.0
"""One kept answer, judged again here, or handed to a validator through a proxy: what `bombyx audit` does.

The client may run meanwhile: its books are only read. Always: a package leaves this machine sealed, to a key in
evidence that our own policy accepts, and only when it was asked to.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.proxy_http import HttpProxyTransport
from bombyx.adapters.sqlite import SqliteStore
from bombyx.compose.handing_over import Carry, deliver
from bombyx.compose.policy import read_policy
from bombyx.compose.service import open_ledger
from bombyx.compose.weights import open_weights
from bombyx.config import NetworkDescriptor
from bombyx.errors import AttestationError, BadRequest, BombyxError, Unavailable
from bombyx.ports import Operator, OperatorRole, Store
from bombyx.protocol.audit.verdict import ResponseVerdict
from bombyx.protocol.primitives import Address, sha256
from bombyx.protocol.wire.audit import AuditPackage
from bombyx.protocol.wire.evidence import EvidenceBundle, ModelManifest
from bombyx.roles.client.receipts import ReceiptBook
from bombyx.roles.client.shelf import AuditShelf
from bombyx.roles.validator.examine import Examiner

OPT_IN = "/v1/opt-in/"
OCTETS = "application/octet-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """An answer's package, and the manifest of the model it is said to come from."""

    request_id: str
    package: AuditPackage
    manifest: ModelManifest


async def kept(state: Path, name: str) -> Kept:
    """By request id, the beginning of one, or `last`. Raises `BadRequest` where no package was kept."""
    store = SqliteStore.open(state / "client.db")
    try:
        return await _kept(store, name)
    finally:
        await store.close()


async def _kept(store: Store, name: str) -> Kept:
    book = ReceiptBook(store)
    request_id, _ = await book.get(name)
    package = await AuditShelf(store, keep=False, days=1, most=1).get(request_id)
    if package is None:
        raise BadRequest(
            "no package was kept of this answer: run the client with keep_audits", status=404, code="not_found",
            rule="AUD-9",
        )  # fmt: skip
    proof = await book.proof(name)
    model = package.receipt.receipt.model
    for data in EvidenceBundle.decode(proof.bundle).manifests:
        if sha256(data) == model:
            return Kept(request_id=request_id.hex(), package=package, manifest=ModelManifest.decode(data))
    raise Unavailable("the store has lost the model's manifest", rule="CLI-8")


async def rerun(held: Kept, model_file: Path | None, *, context: int, threads: int) -> ResponseVerdict:
    """Judge it with the weights in `model_file`, or the packaged model. Raises `Unavailable` for other weights."""
    models = await open_weights(model_file, context=context, threads=threads)
    try:
        return await Examiner(models).examine(held.package, held.manifest)
    finally:
        for model in models.values():
            await model.prefill.close()


async def hand_over(held: Kept, network: NetworkDescriptor, validator: Address) -> dict[str, Any]:
    """Seal it to the validator's enclave and send it through the first proxy that takes it (AUD-57)."""
    line = {one.address: one for one in await _validators(network)}.get(validator)
    if line is None:
        raise AttestationError("no such validator is registered", rule="AUD-57")
    return await _by_a_proxy(held, network, line)


async def dispute(held: Kept, network: NetworkDescriptor) -> dict[str, Any]:
    """Hand it to every registered validator that takes answers: each asks its worker more often if the answer fails."""
    told: dict[str, Any] = {}
    for line in await _validators(network):
        try:
            told[str(line.address)] = (await _by_a_proxy(held, network, line))["trust_class"]
        except BombyxError as error:
            told[str(line.address)] = error.message
    return {"request_id": held.request_id, "validators": told}


async def _validators(network: NetworkDescriptor) -> tuple[Operator, ...]:
    ledger = open_ledger(network)
    try:
        return await ledger.operators(OperatorRole.VALIDATOR)
    finally:
        await ledger.close()


async def _by_a_proxy(held: Kept, network: NetworkDescriptor, line: Operator) -> dict[str, Any]:
    reason: Exception | None = None
    for proxy in network.proxies:
        transport = HttpProxyTransport(proxy.url)
        try:
            carry, policy = _carry(transport, line.address), read_policy(network.policy)
            result, sent = await deliver(carry, held.package, line, policy, SystemClock())
            return {"validator": str(line.address), "bytes": sent, "trust_class": str(result.trust_class)}
        except Unavailable as error:
            reason = error
        finally:
            await transport.close()
    raise reason or Unavailable("no proxy is configured", rule="CLI-1")


def _carry(transport: HttpProxyTransport, validator: Address) -> Carry:
    async def carry(method: str, body: bytes) -> tuple[int, bytes]:
        if method == "GET":
            return await transport.get(f"{OPT_IN}{validator}")
        response = await transport.post(f"{OPT_IN}{validator}", OCTETS, body)
        await response.aclose()
        return response.status, b""

    return carry
