# SPDX-License-Identifier: Apache-2.0
"""A worker: an engine, a model's manifest, an enclave device, and the network's proxies to dial."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp

from bombyx.adapters.calibrations import read_calibration, shipped_calibration
from bombyx.adapters.clock import SystemClock
from bombyx.adapters.engine_auditable import ENGINE, AuditableEngine
from bombyx.adapters.engine_embedded import EmbeddedOptions
from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.evm import EvmLedger
from bombyx.adapters.gguf import file_digest, find_packaged_model, read_gguf
from bombyx.adapters.ledger_http import HttpLedger
from bombyx.adapters.state_folder import StateFolder
from bombyx.adapters.token_gaps import TokenIndex
from bombyx.adapters.websocket import WebSocketDialer
from bombyx.compose.enclave import enclave_device, vendor_endorsements
from bombyx.compose.external import external
from bombyx.compose.rooting import keep_roots
from bombyx.compose.service import Service, fund, open_clock, open_ledger, open_store, stakes_of, validation_of
from bombyx.compose.staking import enter_set
from bombyx.config import NetworkDescriptor, WorkerConfig
from bombyx.errors import ConfigError
from bombyx.ports import OperatorRole
from bombyx.protocol.primitives import Digest, sha256
from bombyx.protocol.wire.audit import ALGORITHM, Calibration
from bombyx.protocol.wire.evidence import FileDigest, ModelManifest
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.worker.defence import Defence
from bombyx.roles.worker.runtime import Worker, WorkerPorts
from bombyx.roles.worker.settings import Limits, Price, ProxyPeer, ServedModel, Timings, WorkerSettings

EMBEDDED = "embedded"
DEV_FUNDS = 1_000_000  # base units a development chain gives a new worker, for what a claim may cost
READY_SECONDS = 60.0
Serve = Callable[[WorkerConfig], Awaitable[ServedModel]]


def packaged_model() -> Path | None:
    """The model that was installed with us, if it was."""
    try:
        return find_packaged_model()
    except ConfigError:
        return None


async def start(
    config: WorkerConfig, network: NetworkDescriptor, state: Path, *, serve: Serve | None = None
) -> Service:
    """`serve` gives the engine and what it is said to be; by default what the settings name."""
    from bombyx.compose import key_store

    service = Service(facts={"role": "worker"})
    clock, entropy = open_clock(), SystemEntropy()
    service.stack.callback(StateFolder.hold(state).release)
    operator = key_store(state).load_or_create("worker")
    ledger = open_ledger(network, state)
    service.stack.push_async_callback(ledger.close)
    store = open_store(state / "worker.db")
    service.stack.push_async_callback(store.close)
    model = await (serve or _model)(config)
    service.stack.push_async_callback(model.engine.close)
    await fund(ledger, operator.address, DEV_FUNDS)
    http = await service.stack.enter_async_context(aiohttp.ClientSession())
    vendor = vendor_endorsements(http, config.pccs, state / "endorsements")
    device = enclave_device(config, network, vendor)
    worker = Worker(
        _settings(config, network, model),
        WorkerPorts(
            clock=clock,
            entropy=entropy,
            store=store,
            ledger=ledger,
            device=device.source,
            endorser=device.endorser,
            dialer=WebSocketDialer(ssl=ssl.create_default_context()),
        ),
        operator=operator,
        models=(model,),
    )
    await worker.start()
    service.stack.push_async_callback(worker.stop)
    await keep_roots(service, ledger, store, worker.receipt_key, operator)
    await asyncio.wait_for(worker.ready.wait(), READY_SECONDS)
    await _stand_by(config, ledger, operator, service)
    service.drain = worker.drain
    service.facts |= {
        "operator": str(operator.address),
        "model": model.manifest.name,
        "engine": model.manifest.engine,
        "trust_class": device.shown_as,
    }
    return service


async def _stand_by(
    config: WorkerConfig, ledger: HttpLedger | EvmLedger, operator: SigningKey, service: Service
) -> None:
    """Stake what was asked for, and watch for cases against us."""
    stakes, validation = stakes_of(ledger), validation_of(ledger)
    if stakes is None or validation is None:
        return
    if config.stake:
        await fund(ledger, operator.address, DEV_FUNDS + 2 * config.stake)
        await enter_set(stakes, OperatorRole.WORKER, config.stake, operator)
    if config.appeal:
        defence = asyncio.create_task(Defence(validation, operator, SystemClock()).run())
        service.stack.push_async_callback(_ended, defence)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _settings(config: WorkerConfig, network: NetworkDescriptor, model: ServedModel) -> WorkerSettings:
    price = Price(input=config.price_input, cached_input=config.price_cached, output=config.price_output)
    return WorkerSettings(
        proxies=tuple(ProxyPeer(url=p.url.rstrip("/") + "/v1/link", address=p.address) for p in network.proxies),
        prices={model.digest: price},
        grain=config.grain,
        hardware=config.hardware,
        receipts_kept=config.receipts_kept,
        receipts_seconds=config.receipts_days * 86_400,
        claim_threshold=config.claim_threshold,
        claim_age=config.claim_age,
        limits=Limits(capacity=config.capacity, queue=config.capacity * 2),
        timings=Timings(rotation=config.rotation, overlap=config.overlap, claim=config.claim_every),
    )


# --- engines and what they serve -------------------------------------------------------------------------------------


async def _model(config: WorkerConfig) -> ServedModel:
    return await (embedded(config) if config.engine == EMBEDDED else external(config))


def _calibration(config: WorkerConfig, weights: Digest) -> Calibration | None:
    """What it is judged by: measured for this file by its operator, or by us. None: validators leave it alone."""
    if config.calibration:
        return read_calibration(Path(config.calibration))
    return shipped_calibration(weights)


async def embedded(config: WorkerConfig) -> ServedModel:
    if config.manifest or config.tokens:
        raise ConfigError("the embedded engine makes its own manifest: --manifest and --tokens are an external one's")
    path = Path(config.model_file) if config.model_file else find_packaged_model()
    facts = await asyncio.to_thread(read_gguf, path)
    digest = await asyncio.to_thread(file_digest, path)
    name = config.model or path.stem.removesuffix(f".{facts.quantisation}")
    options = EmbeddedOptions(
        model=path, name=name, threads=config.threads, parallel=config.capacity, context=config.context
    )
    engine = AuditableEngine(options, TokenIndex(facts.tokens, facts.end_of_text))
    await engine.start()
    table = facts.tokens.encode()
    manifest = ModelManifest(
        v=1,
        name=name,
        weights=(FileDigest(name=path.name, sha256=digest, size=path.stat().st_size),),
        tokenizer=sha256(table),
        chat_template=sha256(facts.chat_template.encode()) if facts.chat_template else None,
        quantisation=facts.quantisation,
        engine=ENGINE,
        arguments=(*options.arguments(), f"--sampler={ALGORITHM}"),
        context=config.context,
        parameters=facts.parameters,
        calibration=_calibration(config, digest),
    )
    return ServedModel(manifest=manifest, engine=engine, token_table=table)
