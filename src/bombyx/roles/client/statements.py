# SPDX-License-Identifier: Apache-2.0
"""A statement, checked from both ends: the agent that published it and the model that said it (ENC-4, ENC-5).

The receipt in it is signed by an attested worker and commits to the output ids; the opened ids, turned into text by the
table the model's manifest names, must be the words stated.

Always: offline; every line is shown; a line that could not be checked is not a pass. The agent's own code never vouches
for the model: its Reference Value is taken out before the worker's evidence is appraised.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from bombyx.errors import BombyxError, MalformedMessage, ReceiptError
from bombyx.protocol.attest import AppraisalPolicy
from bombyx.protocol.attest.statement import AgentFound, StatementBody, check_agent, read_statement
from bombyx.protocol.pay.usage import check_text
from bombyx.protocol.primitives import Digest, Instant, sha256
from bombyx.protocol.wire.evidence import EvidenceBundle, ModelManifest
from bombyx.protocol.wire.receipt import Outcome, UsageOpening
from bombyx.protocol.wire.tokens import TokenTable
from bombyx.roles.client.kept import Check, Proof, decode_proof, verify


def verify_statement(
    data: bytes,
    policy: AppraisalPolicy,
    *,
    now: Instant,
    endorsements: tuple[bytes, ...] = (),
    key_roots: Collection[bytes] = (),
) -> tuple[Check, ...]:
    """Every line of it. Raises `MalformedMessage` only for bytes that are no statement."""
    statement, body = read_statement(data)
    found = check_agent(statement, body, policy, now=now, endorsements=endorsements, key_roots=key_roots)
    checks = [Check(name=line.name, ok=line.ok, detail=line.detail) for line in found.lines]
    try:
        proof = decode_proof(statement.proof)
    except MalformedMessage as error:
        return (*checks, Check(name="receipt", ok=False, detail=str(error)))
    proven = verify(proof, policy=without(policy, found.code))
    checks += [replace(check, name=f"model: {check.name}") for check in proven]

    def run(name: str, check: Callable[[], str]) -> None:
        try:
            checks.append(Check(name=f"model: {name}", ok=True, detail=check()))
        except BombyxError as error:
            checks.append(Check(name=f"model: {name}", ok=False, detail=str(error)))

    run("the receipt stated is this one", lambda: _same_receipt(body, statement.proof, proof))
    run("another code than the agent's", lambda: _other_code(found, proof))
    run("the words are those of the output ids", lambda: _words(body, proof, statement.tokens))
    return tuple(checks)


def accepted(checks: tuple[Check, ...]) -> bool:
    """Every line was checked, and passed."""
    return bool(checks) and all(check.ok for check in checks)


def without(policy: AppraisalPolicy, code: Digest | None) -> AppraisalPolicy:
    """The policy for the model's side: what the agent may run, a worker may not."""
    kept = tuple(value for value in policy.reference_values if code is None or value.compose_hash != code)
    return replace(policy, reference_values=kept)


def _same_receipt(body: StatementBody, raw: bytes, proof: Proof) -> str:
    last = proof.kept.last
    if sha256(raw) != body.proof or last is None:
        raise ReceiptError("the receipt is not the one the statement names", rule="ENC-4")
    receipt = last.receipt
    if (receipt.request_id, receipt.model) != (body.request_id, body.model):
        raise ReceiptError("the receipt is of another request or another model", rule="ENC-4")
    if receipt.outcome is not Outcome.COMPLETE:
        raise ReceiptError(f"the receipt's outcome is {receipt.outcome.name.lower()}", rule="ENC-4")
    return f"request {receipt.request_id.hex()}"


def _other_code(found: AgentFound, proof: Proof) -> str:
    measured = sha256(EvidenceBundle.decode(proof.bundle).compose)
    if found.code is not None and measured == found.code:
        raise ReceiptError("ENC-4: the agent vouches for its own model", rule="ENC-4")
    return measured.hex()


def _words(body: StatementBody, proof: Proof, tokens: bytes) -> str:
    """The opening was held against the receipt's commitment among the checks before."""
    if not proof.kept.usage or not tokens:
        raise ReceiptError("no opened usage or no token table: nothing ties the words to the receipt", rule="ENC-4")
    usage = UsageOpening.decode(proof.kept.usage)
    manifests = {sha256(raw): ModelManifest.decode(raw) for raw in EvidenceBundle.decode(proof.bundle).manifests}
    manifest = manifests.get(body.model)
    if manifest is None or manifest.tokenizer != sha256(tokens):
        raise ReceiptError("the token table is not the model's", rule="ENC-4")
    relations = check_text(usage, [body.said], TokenTable.decode(tokens))
    if not relations:
        raise ReceiptError("the enclave calls its usage unverified: there are no ids to hold against", rule="ENC-4")
    return f"{usage.output} output ids of {manifest.name}: {relations[0]}"
