# SPDX-License-Identifier: Apache-2.0
"""Receipts kept: checked again offline, by anyone, and found out when changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.client.pair import Pair, chat, make_pair
from typer.testing import CliRunner

from bombyx.adapters.simulator import development_policy
from bombyx.cli.app import app
from bombyx.errors import BadRequest, MalformedMessage, StreamTruncated
from bombyx.protocol.attest import AppraisalPolicy, policy_to_toml
from bombyx.protocol.primitives import Digest
from bombyx.protocol.wire.receipt import SignedReceipt
from bombyx.roles.client.kept import KeptReceipt, Proof, decode_proof, passed, verify
from bombyx.roles.client.receipts import summary


async def proved(pair: Pair, **changes: object) -> Proof:
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat(stream=True))
    await response.read()
    await response.finished()
    return await pair.client.book.proof("last")


async def test_a_proof_holds_offline(pair: Pair) -> None:
    """CLI-8: everything is recomputed; what cannot be is named."""
    proof = decode_proof((await proved(pair)).encode())
    checks = verify(proof, policy=development_policy(pair.platform))
    assert passed(checks) and [c.name for c in checks if c.ok is None] == ["registry and beacon", "usage opening"]
    offline = verify(proof, policy=development_policy(pair.platform).offline())
    assert passed(offline) and [c.name for c in offline if c.ok is None] == ["usage opening"]
    assert [c.name for c in verify(proof, policy=None) if c.ok is None] == ["evidence appraised", "usage opening"]


async def test_kept_openings_are_checked_too() -> None:
    """RCT-6: where output ids are kept, the commitment is opened again; they never leave with a proof for others."""
    pair = await make_pair(keep_openings=True)
    proof = await proved(pair)
    assert all(c.ok for c in verify(proof, policy=development_policy(pair.platform).offline()))
    shared = await pair.client.book.proof("last", with_usage=False)
    assert not shared.kept.usage and not shared.kept.salt


async def test_by_default_no_output_ids_are_stored(pair: Pair) -> None:
    """CLI-8: ids spell the answer."""
    proof = await proved(pair)
    assert proof.kept.usage == b"" and proof.kept.salt == b"" and proof.kept.output == 7


def charge_less(kept: KeptReceipt) -> KeptReceipt:
    final = kept.receipts[-1]
    cheaper = SignedReceipt(receipt=replace(final.receipt, charge=1), signature=final.signature)
    return replace(kept, receipts=(*kept.receipts[:-1], cheaper), paid=1)


CHANGES: dict[str, tuple[Callable[[KeptReceipt], KeptReceipt], str]] = {
    "a smaller charge": (charge_less, "signed by the attested receipt key"),
    "another bundle": (lambda k: replace(k, bundle=Digest(b"\1" * 32)), "evidence bundle is the one named"),
    "a better trust class": (lambda k: replace(k, trust_class="tdx"), "evidence appraised"),
    "a receipt left out": (lambda k: replace(k, receipts=k.receipts[1:]), "receipts follow one another"),
    "another body": (lambda k: replace(k, body=Digest(b"\2" * 32)), "receipt names the request"),
    "more paid than due": (lambda k: replace(k, paid=k.paid + 1), "price sheet and charge"),
    "no receipt at all": (lambda k: replace(k, receipts=()), "signed by the attested receipt key"),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_changed_proof_fails(pair: Pair, change: str) -> None:
    """CLI-8: and says where."""
    make, name = CHANGES[change]
    proof = await proved(pair)
    checks = verify(replace(proof, kept=make(proof.kept)), policy=development_policy(pair.platform))
    assert not passed(checks)
    assert name in {check.name for check in checks if check.ok is False}


async def test_an_empty_policy_passes_no_evidence(pair: Pair) -> None:
    """ATT-10: empty means no."""
    assert not passed(verify(await proved(pair), policy=AppraisalPolicy()))


async def test_receipts_are_found_by_the_beginning_of_their_name(pair: Pair) -> None:
    """CLI-8: and not when it is not one."""
    await proved(pair)
    name, kept = await pair.client.book.get("last")
    assert (await pair.client.book.get(name.hex()[:8]))[1] == kept
    for wrong in ("zz", "", "00" * 16):
        with pytest.raises(BadRequest):
            await pair.client.book.get(wrong)


@given(st.binary(max_size=300))
def test_no_file_crashes_the_reader(data: bytes) -> None:
    """WIRE-1: a file is a stranger's bytes."""
    with pytest.raises(MalformedMessage):
        decode_proof(data)


async def test_the_verify_command(pair: Pair, tmp_path: Path) -> None:
    """CLI-8: exit code 0 only when nothing failed; a bundle is appraised by a policy."""
    proof = await proved(pair)
    files = {
        "proof": proof.encode(),
        "forged": replace(proof, kept=charge_less(proof.kept)).encode(),
        "bundle": proof.bundle,
        "policy": policy_to_toml(development_policy(pair.platform)).encode(),
        "garbage": b"\x00garbage",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)

    def run(name: str, *more: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["verify", str(tmp_path / name), "--policy", str(tmp_path / "policy"), *more])
        return result.exit_code, result.output

    assert run("proof")[0] == 0 and run("bundle")[0] == 0
    assert "trust class simulated" in run("bundle")[1]
    assert run("forged")[0] == 1 and "FAILED" in run("forged")[1]
    assert run("garbage")[0] == 1
    for name in ("proof", "bundle"):  # what the policy asks of a chain is not passed over: it is a line of its own
        assert "registry and beacon" in run(name)[1] and "none is asked offline" in run(name, "--json")[1]
        assert run(name, "--strict")[0] == 3
    assert run("forged", "--strict")[0] == 1


async def test_an_answer_cut_before_its_first_receipt_is_found_by_its_request(pair: Pair) -> None:
    """CLI-8, RCT-9: what was shown of it cost nothing, and its record says which request it was."""
    pair.proxy.tamper = lambda records: records[:2]
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat(stream=True))
    with pytest.raises(StreamTruncated):
        await response.read()
    assert response.request_id is not None
    _, kept = await pair.client.book.get(response.request_id.hex())
    row = summary(kept)
    assert (row["request_id"], row["receipts"], row["paid"]) == (response.request_id.hex(), 0, 0)
    assert row["model"] == pair.proxy.seen[0].meta.model.hex()
