# SPDX-License-Identifier: Apache-2.0
"""A statement: what an agent in an enclave publishes, with the proof of who said it (ENC-4, ENC-5).

Its body names the words, the request and receipt they came by, and the agent's key. One quote binds the body, hence
the words, to the agent's measured code; the key's chain binds it to the same code at any other time.
Here: the agent's side. What the receipt proves of the model is `roles/client/statements.py`'s.

Always: nothing in a statement is believed because it says so; code whose app id is not the hash of what was measured
is refused, for other code could then hold its keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar, Final

import orjson
from coincurve import PublicKey

from bombyx.errors import MalformedMessage
from bombyx.protocol.attest.appkeys import APP_ID_SIZE, chain_root
from bombyx.protocol.attest.claims import BootClaims
from bombyx.protocol.attest.examine import Outcome, examine
from bombyx.protocol.attest.policy import AppraisalPolicy
from bombyx.protocol.attest.report import AtHand, Part, Report
from bombyx.protocol.attest.steps import Status
from bombyx.protocol.primitives import Address, Digest, Instant, RequestId, keccak256, tagged_hash
from bombyx.protocol.wire.codec import Message
from bombyx.protocol.wire.signing import recover

VERSION: Final = 1
TAG_TEXT: Final = "bombyx statement v1"
KEY_PURPOSE: Final = "bombyx agent"
MAX_PROOF: Final = 8 << 20  # bytes
MAX_TOKENS: Final = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementBody(Message):
    """What is stated. The quote's report data is over its canonical bytes."""

    TAG: ClassVar[int] = 27050
    v: int
    said: str  # the model's words, as the agent publishes them
    asked: str  # the agent's word alone: what the model was asked travels sealed
    model: Digest  # of the ModelManifest
    request_id: RequestId
    proof: Digest  # of the receipt's proof
    public: bytes  # the agent's key: a compressed secp256k1 point
    at: Instant  # the agent's clock

    def report_data(self) -> bytes:
        return hashlib.sha512(TAG_TEXT.encode() + self.encode()).digest()

    def signed(self) -> Digest:
        """What the agent's key signs."""
        return tagged_hash(TAG_TEXT, self.encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement(Message):
    """A body and all that proves it, in one file."""

    TAG: ClassVar[int] = 27051
    MAX_SIZE: ClassVar[int] = MAX_PROOF + MAX_TOKENS + (1 << 20)

    v: int
    body: bytes = field(repr=False)
    signature: bytes = field(repr=False)  # of the agent's key over `body`
    chain: tuple[bytes, ...] = field(repr=False)  # of that key, up to the key provider's root
    technology: str
    quote: bytes = field(repr=False)
    event_log: bytes = field(repr=False)
    compose: bytes = field(repr=False)
    endorsements: bytes = field(repr=False)
    proof: bytes = field(repr=False)  # the receipt with its evidence and its opened usage
    tokens: bytes = field(repr=False)  # the model's token table: turns the receipt's output ids into words


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a check: `ok` True, False, or None for "not checked"."""

    name: str
    ok: bool | None
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFound:
    """The agent's side, checked. `code` only where a verified quote shows it."""

    body: StatementBody
    lines: tuple[Line, ...]
    code: Digest | None


def agent_address(public: bytes) -> Address:
    """The account of a compressed key. Raises `MalformedMessage`."""
    try:
        point = PublicKey(public)
    except (ValueError, TypeError):
        raise MalformedMessage("the agent's key is no point of secp256k1", rule="ENC-4") from None
    return Address(keccak256(point.format(compressed=False)[1:])[12:])


def read_statement(data: bytes) -> tuple[Statement, StatementBody]:
    """Raises `MalformedMessage` for a file that is none."""
    statement = Statement.decode(data)
    body = StatementBody.decode(statement.body)
    if (statement.v, body.v) != (VERSION, VERSION):
        raise MalformedMessage(f"statement version {statement.v}, expected {VERSION}", rule="ENC-4")
    return statement, body


def check_agent(
    statement: Statement,
    body: StatementBody,
    policy: AppraisalPolicy,
    *,
    now: Instant,
    endorsements: tuple[bytes, ...] = (),
    key_roots: Collection[bytes] = (),
) -> AgentFound:
    """Quote, code, key chain and signature. `key_roots`: key providers trusted beside the one the quote measured."""
    outcome = _examined(statement, body, policy, now, endorsements)
    lines = [Line(name=f"agent: {s.name}", ok=_verdict(s.status), detail=s.detail) for s in outcome.steps]
    if outcome.trust_class is None:
        lines.append(Line(name="agent: verdict", ok=False, detail=outcome.why))
    boot = outcome.claims.boot if outcome.claims is not None and outcome.trust_class is not None else None
    lines.append(_code_line(boot))
    lines.append(_chain_line(statement, body, boot, key_roots))
    lines.append(_signature_line(statement, body))
    return AgentFound(body=body, lines=tuple(lines), code=boot.compose_hash if boot is not None else None)


def _examined(
    statement: Statement, body: StatementBody, policy: AppraisalPolicy, now: Instant, endorsements: tuple[bytes, ...]
) -> Outcome:
    part = Part(
        name="agent",
        technology=statement.technology,
        quote=statement.quote,
        event_log=statement.event_log,
        compose=statement.compose,
    )
    own = (statement.endorsements,) if statement.endorsements else ()
    at_hand = AtHand(endorsements=(*endorsements, *own), report_data=body.report_data())
    return examine(Report(form="statement", parts=(part,)), policy, now=now, at_hand=at_hand).outcomes[0]


def _verdict(status: Status) -> bool | None:
    """A step that does not apply (an image that opens no GPU) lacks nothing."""
    return {Status.PASSED: True, Status.NOT_APPLICABLE: True, Status.FAILED: False}.get(status)


def _code_line(boot: BootClaims | None) -> Line:
    name = "agent: its keys are its code's"
    if boot is None or boot.compose_hash is None:
        return Line(name=name, ok=None, detail="no verified quote shows the code")
    if boot.app_id != boot.compose_hash[:APP_ID_SIZE]:
        return Line(
            name=name, ok=False, detail="ENC-5: the app id is not the measured code's: others may hold its keys"
        )
    return Line(name=name, ok=True, detail=f"app id {boot.app_id.hex()}")


def _chain_line(
    statement: Statement, body: StatementBody, boot: BootClaims | None, key_roots: Collection[bytes]
) -> Line:
    name = "agent: key chain"
    if boot is None:
        return Line(name=name, ok=None, detail="no verified quote names app id and key provider")
    try:
        root = chain_root(statement.chain, public=body.public, purpose=KEY_PURPOSE, app_id=boot.app_id)
    except MalformedMessage as error:
        return Line(name=name, ok=False, detail=error.message)
    if root != _measured_root(boot.key_provider) and root not in key_roots:
        return Line(name=name, ok=False, detail="ENC-3: the chain does not lead to the key provider that was measured")
    return Line(name=name, ok=True, detail=f"leads to {root.hex()}")


def _measured_root(event: bytes) -> bytes:
    """The root's public key in the event `key-provider`; empty where it holds none."""
    try:
        return bytes.fromhex(orjson.loads(event)["id"])
    except (ValueError, KeyError, TypeError):
        return b""


def _signature_line(statement: Statement, body: StatementBody) -> Line:
    name = "agent: signature"
    try:
        signer, agent = recover(body.signed(), statement.signature), agent_address(body.public)
    except MalformedMessage as error:
        return Line(name=name, ok=False, detail=error.message)
    if signer != agent:
        return Line(name=name, ok=False, detail="ENC-4: not signed by the key it names")
    return Line(name=name, ok=True, detail=f"by {agent}")
