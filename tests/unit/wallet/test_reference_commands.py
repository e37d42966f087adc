# SPDX-License-Identifier: Apache-2.0
"""ATT-14: `bombyx reference` publishes in one's own list, revokes at once, and says who agrees."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.ledger_http import serve_ledger
from bombyx.adapters.memory import MemoryLedger
from bombyx.cli.reference import app
from bombyx.compose import key_store
from bombyx.config import NetworkDescriptor
from bombyx.errors import ConfigError, PaymentError
from bombyx.protocol.attest import AppraisalPolicy, policy_to_toml
from bombyx.protocol.primitives import sha256


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A chain in a thread of its own, two publishers' keys, and a policy that wants both."""
    monkeypatch.setenv("BOMBYX_HOME", str(tmp_path / "home"))
    publishers = tuple(key_store().create(name).address for name in ("one", "two"))
    policy = tmp_path / "policy.toml"
    policy.write_text(policy_to_toml(AppraisalPolicy(publishers=publishers, publishers_agree=2)))
    loop, ready, urls = asyncio.new_event_loop(), threading.Event(), []

    async def serve() -> Any:
        server = await serve_ledger(MemoryLedger(SystemClock()))
        urls.append(server.url)
        ready.set()
        return server

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    serving = asyncio.run_coroutine_threadsafe(serve(), loop)
    assert ready.wait(10)
    file = tmp_path / "network.json"
    file.write_text(NetworkDescriptor(chain_url=urls[0], proxies=(), policy=policy, simulated=None).to_json())
    yield file
    asyncio.run_coroutine_threadsafe(serving.result().close(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def run(network: Path, *arguments: str, exit_code: int = 0) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*arguments, "--network", str(network), "--json"], catch_exceptions=False)
    assert done.exit_code == exit_code, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_two_publishers_agree_and_one_takes_it_back(network: Path, tmp_path: Path) -> None:
    """ATT-14: a file or its digest, the same thing."""
    compose = tmp_path / "app-compose.json"
    compose.write_bytes(b'{"name":"worker"}')
    digest = str(sha256(compose.read_bytes()))
    done = run(network, "propose", str(compose), "--key", "one", "--uri", "https://example.org", "--yes")
    assert (done["reference"], len(done["transaction"])) == (digest, 66)
    assert list(run(network, "check", digest, exit_code=1)["publishers"].values()) == [True, False]
    run(network, "propose", digest, "--key", "two", "--yes")
    assert run(network, "check", str(compose))["agreed"]
    run(network, "check", digest, "--kind", "model", exit_code=1)
    run(network, "revoke", digest, "--key", "two", "--yes")
    assert not run(network, "check", digest, exit_code=1)["agreed"]


def test_nothing_is_published_unasked(network: Path) -> None:
    """ATT-14: a dry run tells; nobody there to confirm is a no; a refusal of the chain is shown."""
    digest = str(sha256(b"image"))
    assert run(network, "propose", digest, "--key", "one", "--dry-run")["plan"]["reference"] == digest
    with pytest.raises(ConfigError, match="--yes"):
        CliRunner().invoke(app, ["propose", digest, "--key", "one", "--network", str(network)], catch_exceptions=False)
    with pytest.raises(PaymentError, match="NotListed"):
        run(network, "revoke", digest, "--key", "one", "--yes")


def test_an_addition_waits_for_the_publishers_delay(network: Path) -> None:
    """ATT-14."""
    digest = str(sha256(b"image"))
    run(network, "delay", "3600", "--key", "one", "--yes")
    for name in ("one", "two"):
        run(network, "propose", digest, "--key", name, "--yes")
    assert list(run(network, "check", digest, exit_code=1)["publishers"].values()) == [False, True]
