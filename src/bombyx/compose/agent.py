# SPDX-License-Identifier: Apache-2.0
"""A simulated enclave for code that is not a worker: the guest agent on its sockets, and a program run beside it.

The image is measured from files: an app-compose file as it is, or a compose file made here that names the digest of
each program file. A changed byte is another image, hence other keys (spec ENC-2).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.dstack_server import AgentServer, SimulatedGuest
from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.gguf import file_digest
from bombyx.adapters.simulator import WORKER_IMAGE, SimulatedImage, SimulatedPlatform, development_policy
from bombyx.config import NetworkDescriptor, default_descriptor_path, state_home
from bombyx.errors import ConfigError
from bombyx.protocol.attest import policy_to_toml

Image = SimulatedImage
MAX_COMPOSE: Final = 1 << 20  # bytes


def image_of(compose: Path | None, programs: Sequence[Path]) -> Image:
    """What is measured. Raises `ConfigError` for files that cannot be read."""
    try:
        if compose is not None:
            return _from_compose(compose)
        files = {path.name: file_digest(path).hex() for path in programs}
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror}") from None
    name = programs[0].stem if programs else "development"
    return SimulatedImage.of(name, files=json.dumps(files, sort_keys=True))


@asynccontextmanager
async def serving(
    image: Image, folder: Path, *, port: int | None, platform: Path | None
) -> AsyncIterator[dict[str, Any]]:
    """The agent on its sockets; gives what to tell about it."""
    machine = load_platform(platform)
    guest = SimulatedGuest(machine, image, instance=SystemEntropy().bytes(16))
    server = AgentServer(guest, SystemClock())
    try:
        await server.serve_unix(folder)
        served = None if port is None else await server.serve_http(port)
        policy = folder / "policy.toml"
        await asyncio.to_thread(policy.write_text, policy_for(image, platform))
        yield {
            "trust_class": "simulated",
            "app": image.name,
            "app_id": image.app_id.hex(),
            "compose_hash": image.compose_hash.hex(),
            "dstack": str(folder / "dstack.sock"),
            "tappd": str(folder / "tappd.sock"),
            "http": None if served is None else f"http://127.0.0.1:{served}",
            "policy": str(policy),
        }
    finally:
        await server.close()


async def run_inside(image: Image, program: Path, arguments: Sequence[str], platform: Path | None) -> int:
    """Run `program` with the agent's sockets in its environment; its exit code."""
    with tempfile.TemporaryDirectory(prefix="bombyx-") as folder:
        async with serving(image, Path(folder), port=None, platform=platform) as facts:
            environment = {
                **os.environ,
                "DSTACK_SIMULATOR_ENDPOINT": facts["dstack"],
                "TAPPD_SIMULATOR_ENDPOINT": facts["tappd"],
            }
            process = await asyncio.create_subprocess_exec(sys.executable, str(program), *arguments, env=environment)
            return await process.wait()


def policy_for(image: Image, platform: Path | None) -> str:
    """TOML that accepts this image and the worker's, as `simulated`; for files, so no chain is asked."""
    accepted = development_policy(load_platform(platform), (WORKER_IMAGE, image))
    return policy_to_toml(accepted.offline())


def load_platform(folder: Path | None) -> SimulatedPlatform:
    """The platform named, that of the network running here, or one of this machine's own, made when first asked for."""
    if folder is not None:
        return SimulatedPlatform.load(folder)
    if default_descriptor_path().exists():
        network = NetworkDescriptor.load()
        if network.simulated is not None:
            return SimulatedPlatform.load(network.simulated)
    own = state_home() / "simulated-platform"
    if not own.exists():
        SimulatedPlatform.create(seed=SystemEntropy().bytes(32), now=SystemClock().now()).save(own)
    return SimulatedPlatform.load(own)


def _from_compose(path: Path) -> Image:
    data = path.read_bytes()
    try:
        value = json.loads(data)
        name = value.get("name") if isinstance(value, dict) and len(data) <= MAX_COMPOSE else None
    except ValueError:
        name = None
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{path} is not an app-compose file: a JSON object with a name")
    return SimulatedImage(name=name, compose=data)
