# SPDX-License-Identifier: Apache-2.0
"""A simulated guest agent on real sockets."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.dstack_server import AgentServer, SimulatedGuest
from bombyx.adapters.simulator import SimulatedImage, SimulatedPlatform
from bombyx.protocol.primitives import Instant

NOW = Instant.from_seconds(1_790_000_000)


@pytest.fixture(scope="session")
def platform() -> SimulatedPlatform:
    return SimulatedPlatform.create(seed=bytes(range(32)), now=NOW)


@pytest.fixture
def image() -> SimulatedImage:
    return SimulatedImage.of("agent", code="one")


@pytest.fixture
def guest(platform: SimulatedPlatform, image: SimulatedImage) -> SimulatedGuest:
    return SimulatedGuest(platform, image)


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A folder whose path is short enough for UNIX sockets."""
    with tempfile.TemporaryDirectory(prefix="bx-") as folder:
        yield Path(folder)


@pytest.fixture
async def agent(guest: SimulatedGuest, sockets: Path) -> AsyncIterator[Path]:
    """Serves `dstack.sock` and `tappd.sock`; gives their folder."""
    server = AgentServer(guest, SystemClock())
    await server.serve_unix(sockets)
    yield sockets
    await server.close()
