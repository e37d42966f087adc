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
from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.proxy_http import HttpProxyTransport
from bombyx.adapters.sqlite import SqliteStore
from bombyx.compose.policy import read_policy
from bombyx.compose.service import open_ledger
from bombyx.compose.weights import open_weights
from bombyx.config import NetworkDescriptor
from bombyx.errors import AttestationError, BadRequest, BombyxError, Unavailable
from bombyx.ports import OperatorRole, Store
from bombyx.protocol.attest import AttestationResult, appraise
from bombyx.protocol.audit.verdict import ResponseVerdict
from bombyx.protocol.primitives import Address, sha256
from bombyx.protocol.seal import encapsulate_request, parse_key_configs
from bombyx.protocol.wire.audit import AuditPackage
from bombyx.protocol.wire.evidence import EvidenceBundle, ModelManifest
from bombyx.roles.client.receipts import ReceiptBook
from bombyx.roles.client.shelf import AuditShelf
from bombyx.roles.validator.examine import Examiner
from bombyx.roles.validator.opt_in import LABEL

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
    reason: Exception | None = None
    for proxy in network.proxies:
        transport = HttpProxyTransport(proxy.url)
        try:
            return await _through(transport, held, network, validator)
        except Unavailable as error:
            reason = error
        finally:
            await transport.close()
    raise reason or Unavailable("no proxy is configured", rule="CLI-1")


async def dispute(held: Kept, network: NetworkDescriptor) -> dict[str, Any]:
    """Hand it to every registered validator that takes answers: each asks its worker more often if the answer fails."""
    ledger = open_ledger(network)
    try:
        lines = await ledger.operators(OperatorRole.VALIDATOR)
    finally:
        await ledger.close()
    told: dict[str, Any] = {}
    for line in lines:
        try:
            told[str(line.address)] = (await hand_over(held, network, line.address))["trust_class"]
        except BombyxError as error:
            told[str(line.address)] = error.message
    return {"request_id": held.request_id, "validators": told}


async def _through(
    transport: HttpProxyTransport, held: Kept, network: NetworkDescriptor, validator: Address
) -> dict[str, Any]:
    status, bundle = await transport.get(f"{OPT_IN}{validator}")
    if status != 200:
        raise Unavailable(f"the proxy gave no evidence of the validator (status {status})", rule="AUD-57")
    result = appraise(bundle, read_policy(network.policy).offline(), now=SystemClock().now())
    await _check_registered(network, validator, result)
    config = parse_key_configs(result.key_configs)[0]
    sealed, _ = encapsulate_request(config, held.package.encode(), SystemEntropy(), label=LABEL)
    response = await transport.post(f"{OPT_IN}{validator}", OCTETS, sealed)
    await response.aclose()
    if response.status != 202:
        raise Unavailable(f"the validator did not take it (status {response.status})", rule="AUD-57")
    return {"validator": str(validator), "bytes": len(sealed), "trust_class": str(result.trust_class)}


async def _check_registered(network: NetworkDescriptor, validator: Address, result: AttestationResult) -> None:
    """The registry must name the very key we seal to: an enclave says of itself whom it works for."""
    ledger = open_ledger(network)
    try:
        lines = {line.address: line for line in await ledger.operators(OperatorRole.VALIDATOR)}
    finally:
        await ledger.close()
    line = lines.get(validator)
    if line is None or result.keyset.operator != validator or line.pay_key_config != result.key_configs:
        raise AttestationError("not the key that the registry names for this validator", rule="AUD-57")
