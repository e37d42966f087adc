# SPDX-License-Identifier: Apache-2.0
"""An agent pays for its own inference and states what was said; then everybody forges that statement (ENC-4, ENC-5)."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.scenarios.procs import MODEL, network_of_processes
from typer.testing import CliRunner

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.dstack import DstackEnclave
from bombyx.adapters.dstack_server import AgentServer, SimulatedGuest
from bombyx.adapters.simulator import WORKER_IMAGE, SimulatedImage, SimulatedPlatform, development_policy
from bombyx.cli.app import app
from bombyx.compose.agent_client import build_agent
from bombyx.errors import ConfigError, MalformedMessage
from bombyx.protocol.attest import AppraisalPolicy, policy_to_toml
from bombyx.protocol.attest.appkeys import AppKeys
from bombyx.protocol.attest.statement import Statement, StatementBody, read_statement
from bombyx.protocol.primitives import Instant, Secret
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.agent import Agent, AgentWallet, Answered
from bombyx.roles.client.kept import decode_proof
from bombyx.roles.client.statements import accepted, verify_statement

QUESTION = "What is the capital of France?"
HONEST = SimulatedImage.of("agent", code="one")
CHANGED = SimulatedImage.of("agent", code="two")


class BorrowedName(SimulatedImage):
    """Other code that was started under the honest agent's app id, as an upgradable application may be."""

    @property
    def app_id(self) -> bytes:
        return HONEST.app_id


@dataclass(frozen=True, kw_only=True)
class World:
    """One answer that was really given and paid for, and the machine its agent runs on."""

    platform: SimulatedPlatform
    policy: AppraisalPolicy
    honest: Statement
    other: Statement  # by the same agent, of another request
    answered: Answered
    address: str
    addresses: tuple[str, ...]  # of the honest agent again, and of the changed one
    example: str
    verified: dict[str, Any]

    def checks(self, statement: Statement | bytes, policy: AppraisalPolicy | None = None) -> dict[str, bool | None]:
        data = statement if isinstance(statement, bytes) else statement.encode()
        found = verify_statement(data, policy or self.policy, now=SystemClock().now())
        return {check.name: check.ok for check in found}

    def accepts(self, statement: Statement | bytes, policy: AppraisalPolicy | None = None) -> bool:
        data = statement if isinstance(statement, bytes) else statement.encode()
        return accepted(verify_statement(data, policy or self.policy, now=SystemClock().now()))


def answer_of(statement: Statement) -> Answered:
    _, body = read_statement(statement.encode())
    return Answered(
        text=body.said,
        model=body.model,
        request_id=body.request_id,
        proof=statement.proof,
        tokens=statement.tokens,
    )


@asynccontextmanager
async def inside(platform: SimulatedPlatform, image: SimulatedImage, keys: AppKeys | None = None) -> Any:
    """The sockets of one guest; `keys` takes the place of its own."""
    guest = SimulatedGuest(platform, image)
    guest.keys = keys or guest.keys
    server = AgentServer(guest, SystemClock())
    with tempfile.TemporaryDirectory(prefix="bx-") as folder:
        await server.serve_unix(Path(folder))
        try:
            yield str(Path(folder) / "dstack.sock")
        finally:
            await server.close()


async def restated(
    platform: SimulatedPlatform, image: SimulatedImage, answered: Answered, keys: AppKeys | None = None
) -> Statement:
    """What an agent of this code states of an answer it was handed."""

    async def unused(*_: Any) -> Any:
        raise AssertionError

    async with inside(platform, image, keys) as endpoint:
        device = DstackEnclave(endpoint)
        wallet = await AgentWallet.derive(device.key)
        agent = Agent(wallet=wallet, device=device, endorser=None, clock=SystemClock(), ask=unused, close=unused)
        made = await agent.state(answered, QUESTION)
    return replace(made, endorsements=platform.endorsements(SystemClock().now()))


async def _command(home: Path, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, env=os.environ | {"BOMBYX_HOME": str(home)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, (arguments, err.decode()[-3000:], out.decode()[-1000:])
    return out.decode()


async def _world(folder: Path, example: Path) -> World:
    async with network_of_processes(folder) as network:
        descriptor = str(folder / "client.network.json")
        platform = SimulatedPlatform.load(network.policy.parent)
        made, addresses = [], []
        for image, asks in ((HONEST, 2), (HONEST, 0), (CHANGED, 0)):
            async with inside(platform, image) as endpoint:
                agent = await build_agent(descriptor, endpoint=endpoint, state_dir=folder / "agent")
                addresses.append(str(agent.address))
                try:
                    made += [await agent.say(QUESTION, model=MODEL, max_tokens=16) for _ in range(asks)]
                finally:
                    await agent.close()
        home = folder / "home"
        home.mkdir(exist_ok=True)
        shutil.copy(descriptor, home / "network.json")
        file, policy = folder / "statement", folder / "policy.toml"
        shown = await _command(home, str(example), QUESTION, "--out", str(file))
        policy.write_text(await _command(home, "-m", "bombyx", "enclave", "policy", str(example)))
        verified = await _command(home, "-m", "bombyx", "verify", str(file), "--policy", str(policy), "--json")
    return World(
        platform=platform,
        policy=development_policy(platform, (WORKER_IMAGE, HONEST)).offline(),
        honest=made[0],
        other=made[1],
        answered=answer_of(made[0]),
        address=addresses[0],
        addresses=tuple(addresses[1:]),
        example=shown,
        verified=json.loads(verified),
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    example = Path(__file__).parent.parent.parent / "examples" / "agent.py"
    return asyncio.run(_world(tmp_path_factory.mktemp("agent"), example))


def test_an_honest_statement_is_accepted(world: World) -> None:
    """ENC-4: offline, from the file and the policy alone; and its wallet signed it."""
    checks = world.checks(world.honest)
    assert all(checks.values()), checks
    assert world.accepts(world.honest) and world.accepts(world.other)
    assert read_statement(world.honest.encode())[1].said


def test_the_example_is_accepted_by_the_command(world: World) -> None:
    """ENC-4: `bombyx enclave run` around itself, `bombyx enclave policy`, `bombyx verify`."""
    assert "the model said: " in world.example
    assert world.verified["passed"] and world.verified["said"] in world.example
    assert all(row["ok"] for row in world.verified["checks"])


def test_the_same_code_has_the_same_wallet_and_changed_code_another(world: World) -> None:
    """ENC-2: after a restart, and after a change."""
    again, changed = world.addresses
    assert again == world.address != changed


def _body(world: World, **changes: Any) -> StatementBody:
    return replace(read_statement(world.honest.encode())[1], **changes)


def other_words(world: World) -> Statement:
    return replace(world.honest, body=_body(world, said="Berlin").encode())


def other_words_signed_by_another(world: World) -> Statement:
    body = _body(world, said="Berlin")
    return replace(world.honest, body=body.encode(), signature=SigningKey(Secret(b"\x07" * 32)).sign(body.signed()))


def another_question(world: World) -> Statement:
    return replace(world.honest, body=_body(world, asked="Who are you?").encode())


def anothers_quote(world: World) -> Statement:
    return replace(world.honest, quote=world.other.quote)


def anothers_event_log(world: World) -> Statement:
    return replace(world.honest, event_log=b"[]")


def anothers_receipt(world: World) -> Statement:
    return replace(world.honest, proof=world.other.proof)


def another_key(world: World) -> Statement:
    key = AppKeys(root=Secret(b"\x09" * 32), app_id=HONEST.app_id).derive("bombyx/wallet", "bombyx agent")
    body = _body(world, public=key.public)
    return replace(
        world.honest, body=body.encode(), chain=key.chain, signature=SigningKey(key.secret).sign(body.signed())
    )


def no_chain(world: World) -> Statement:
    return replace(world.honest, chain=())


def a_chain_upside_down(world: World) -> Statement:
    return replace(world.honest, chain=world.honest.chain[::-1])


def no_token_table(world: World) -> Statement:
    return replace(world.honest, tokens=b"")


def another_token_table(world: World) -> Statement:
    return replace(world.honest, tokens=world.honest.tokens[:-1] + b"\x00")


def no_endorsements(world: World) -> Statement:
    return replace(world.honest, endorsements=b"")


FORGERIES: list[Callable[[World], Statement]] = [
    other_words,
    other_words_signed_by_another,
    another_question,
    anothers_quote,
    anothers_event_log,
    anothers_receipt,
    another_key,
    no_chain,
    a_chain_upside_down,
    no_token_table,
    another_token_table,
    no_endorsements,
]


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
def test_a_forged_statement_is_refused(forge: Callable[[World], Statement], world: World) -> None:
    """ENC-4: each part counts."""
    assert not world.accepts(forge(world))


async def test_a_changed_agent_is_not_believed(world: World) -> None:
    """ENC-4: whole and true in itself, but not the code the policy names."""
    statement = await restated(world.platform, CHANGED, world.answered)
    assert world.checks(statement)["agent: measurement, compose hash and configuration"] is False
    assert not world.accepts(statement)
    both = development_policy(world.platform, (WORKER_IMAGE, CHANGED)).offline()
    assert world.accepts(statement, both), "it is true of its own code"


async def test_words_the_model_did_not_say(world: World) -> None:
    """ENC-4: accepted code, its own quote and key, and a real receipt; yet the ids spell something else."""
    invented = replace(world.answered, text="The capital of France is Berlin.")
    checks = world.checks(await restated(world.platform, HONEST, invented))
    assert {name for name, ok in checks.items() if not ok} == {"model: the words are those of the output ids"}


async def test_a_receipt_whose_ids_were_not_opened(world: World) -> None:
    """ENC-4: a bare receipt proves that something was said, not what."""
    proof = decode_proof(world.answered.proof)
    closed = replace(proof, kept=replace(proof.kept, usage=b"", salt=b"")).encode()
    assert not world.accepts(await restated(world.platform, HONEST, replace(world.answered, proof=closed)))


async def test_other_code_under_the_agents_app_id(world: World) -> None:
    """ENC-5: it would hold the agent's keys; the app id must be the measured code's."""
    borrowed = BorrowedName(name=CHANGED.name, compose=CHANGED.compose)
    statement = await restated(world.platform, borrowed, world.answered)
    policy = development_policy(world.platform, (WORKER_IMAGE, CHANGED)).offline()
    checks = world.checks(statement, policy)
    assert checks["agent: its keys are its code's"] is False
    assert {name for name, ok in checks.items() if not ok} == {"agent: its keys are its code's"}


async def test_a_key_provider_the_quote_did_not_measure(world: World) -> None:
    """ENC-3: keys handed in by somebody else, known to somebody else."""
    keys = AppKeys(root=Secret(b"\x03" * 32), app_id=HONEST.app_id)
    checks = world.checks(await restated(world.platform, HONEST, world.answered, keys))
    assert {name for name, ok in checks.items() if not ok} == {"agent: key chain"}


async def test_a_key_provider_named_on_the_command_line(world: World, tmp_path: Path) -> None:
    """ENC-3: dstack's key service signs with a key that no event names: its name is given."""
    keys = AppKeys(root=Secret(b"\x03" * 32), app_id=HONEST.app_id)
    file, policy = tmp_path / "statement", tmp_path / "policy.toml"
    file.write_bytes((await restated(world.platform, HONEST, world.answered, keys)).encode())
    policy.write_text(policy_to_toml(world.policy))

    def run(*more: str) -> Any:
        return CliRunner().invoke(app, ["verify", str(file), "--policy", str(policy), *more])

    assert run().exit_code == 1 and "does not lead to the key provider" in run("--json").output
    assert run("--key-root", keys.root_public.hex(), "--strict").exit_code == 0
    assert run("--key-root", AppKeys(root=Secret(b"\x04" * 32), app_id=b"").root_public.hex()).exit_code == 1
    assert isinstance(run("--key-root", "00").exception, ConfigError)


def test_a_policy_that_asks_a_chain_accepts_no_statement_offline(world: World) -> None:
    """ENC-4: what could not be checked is not a pass, and says which line it is."""
    policy = replace(world.policy, require_chain=True)
    checks = world.checks(world.honest, policy)
    assert {name for name, ok in checks.items() if not ok} == {"model: registry and beacon"}
    assert not world.accepts(world.honest, policy)


async def test_an_agent_that_vouches_for_its_own_model(world: World) -> None:
    """ENC-4: what the agent may run, a worker may not."""
    statement = await restated(world.platform, WORKER_IMAGE, world.answered)
    checks = world.checks(statement)
    assert checks["model: evidence appraised"] is False
    assert checks["model: another code than the agent's"] is False


def test_an_empty_policy_accepts_nothing(world: World) -> None:
    """ENC-4."""
    assert not world.accepts(world.honest, AppraisalPolicy())


def test_an_old_statement_as_of_a_time_its_endorsements_do_not_cover(world: World) -> None:
    """ENC-4: dates count."""
    late = Instant(SystemClock().now() + 400 * 86_400_000)
    assert not accepted(verify_statement(world.honest.encode(), world.policy, now=late))


@pytest.mark.parametrize("part", ["body", "signature", "quote", "compose", "proof", "tokens", "chain"])
def test_no_changed_bit_of_what_counts_survives(part: str, world: World) -> None:
    """ENC-4: event log and Endorsements also hold words that nobody reads; everything else counts to the bit."""
    data, chance = world.honest.encode(), random.Random(part)
    value = world.honest.chain[0] if part == "chain" else getattr(world.honest, part)
    start = data.index(value)
    for place in chance.sample(range(start, start + len(value)), 12):
        changed = data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]
        try:
            survived = world.accepts(changed)
        except MalformedMessage:
            survived = False
        assert not survived, place - start


@given(st.binary(max_size=200))
def test_nonsense_is_no_statement(data: bytes) -> None:
    """ENC-4."""
    with pytest.raises(MalformedMessage):
        read_statement(data)
