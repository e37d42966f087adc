# SPDX-License-Identifier: Apache-2.0
"""A worker that lies, for `bombyx up --with-cheater` and its test: it says one model and runs a cheaper one.

NOT for use: it needs a network of simulated enclaves, whose "measurements" anybody on this machine can sign. In a real
enclave the measured image computes the manifest from the file it runs; to lie like this one must break the enclave.
Everything else about it is an ordinary worker, stake and appeal included.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from bombyx.adapters.calibrations import shipped_calibration
from bombyx.adapters.gguf import file_digest, find_packaged_model
from bombyx.adapters.gguf_pruned import prune
from bombyx.compose.service import Service
from bombyx.compose.worker import embedded
from bombyx.compose.worker import start as start_worker
from bombyx.config import NetworkDescriptor, WorkerConfig
from bombyx.errors import ConfigError
from bombyx.ports import Engine, EngineEvent, EngineRequest
from bombyx.protocol.audit.commitment import request_digest
from bombyx.protocol.wire.evidence import FileDigest
from bombyx.roles.worker.settings import ServedModel

PRUNED: Final = (10, 14, 18)  # of SmolLM2's 30 blocks; 16 tokens of it are enough for a conviction (median)
WARNING: Final = "a lying worker: only a SIMULATED enclave signs a manifest that is not true"


async def start(config: WorkerConfig, network: NetworkDescriptor, state: Path, *, only: Path | None = None) -> Service:
    """`only`: a validator's list of its own canaries, for a decoy that wrongs nobody else.

    Raises `ConfigError` on any network but one of simulated enclaves."""
    if network.simulated is None:
        raise ConfigError("a cheater is for simulated enclaves: a real one would not sign for it")

    async def serve(config: WorkerConfig) -> ServedModel:
        lying = await _lying(config, state)
        if only is None:
            return lying
        honest = await embedded(config)
        return replace(honest, engine=TwoFaced(honest.engine, lying.engine, only))

    service = await start_worker(config, network, state, serve=serve)
    service.facts |= {"warning": WARNING}
    return service


class TwoFaced:
    """An `Engine`: the cheap one for requests whose digest is a line of the file, the good one for all others."""

    def __init__(self, good: Engine, cheap: Engine, listed: Path) -> None:
        self._good = good
        self._cheap = cheap
        self._listed = listed

    async def models(self) -> tuple[str, ...]:
        return await self._good.models()

    def run(self, request: EngineRequest) -> AsyncIterator[EngineEvent]:
        return (self._cheap if self._is_listed(request) else self._good).run(request)

    async def close(self) -> None:
        await asyncio.gather(self._good.close(), self._cheap.close())

    def _is_listed(self, request: EngineRequest) -> bool:
        try:
            listed = self._listed.read_text().split()
        except OSError:
            return False  # its validator has not planned yet
        return request_digest(request.path, request.body).hex() in listed


async def _lying(config: WorkerConfig, state: Path) -> ServedModel:
    """The pruned copy's engine under the good file's manifest."""
    good = Path(config.model_file) if config.model_file else find_packaged_model()
    cheap = state / good.name
    await asyncio.to_thread(prune, good, cheap, PRUNED)
    served = await embedded(replace(config, model_file=str(cheap)))
    digest = await asyncio.to_thread(file_digest, good)
    claimed = FileDigest(name=good.name, sha256=digest, size=good.stat().st_size)
    manifest = replace(served.manifest, weights=(claimed,), calibration=shipped_calibration(digest))
    return replace(served, manifest=manifest)
