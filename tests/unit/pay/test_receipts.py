# SPDX-License-Identifier: Apache-2.0
"""Lies a worker may tell in its receipts, and who catches each: proxy and client alike, or the client alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from bombyx.errors import Equivocation, Peer, ReceiptError
from bombyx.protocol.pay.receipts import find_equivocation
from bombyx.protocol.pay.trail import LAG, ReceiptTrail
from bombyx.protocol.pay.usage import check_text, open_usage, usage_commitment
from bombyx.protocol.primitives import Digest, Instant, RequestId, Secret, sha256
from bombyx.protocol.wire.receipt import ChoiceIds, Kind, Outcome, SignedReceipt, UsageOpening
from bombyx.protocol.wire.signing import SigningKey
from bombyx.protocol.wire.tokens import Relation, TokenTable

Answering = Any
SALT = b"\x08" * 32
OTHER = sha256(b"other")


@pytest.fixture(params=["proxy", "client"])
def trail(request: pytest.FixtureRequest, answering: Answering) -> ReceiptTrail:
    """Both keep one. Whatever is caught in a test that uses this is caught by either."""
    return ReceiptTrail(answering.expected)


def deliver(trail: ReceiptTrail, answering: Answering, frames: int) -> None:
    for _ in range(frames):
        trail.delivered(*answering.deliver())


def caught(rule: str) -> Any:
    return pytest.raises(ReceiptError, match=f"^{rule}:")


def test_an_honest_answer_is_agreed_to(trail: ReceiptTrail, answering: Answering) -> None:
    """RCT-1 .. RCT-8: checkpoint 0 with frame 1, one more, the final."""
    deliver(trail, answering, 1)
    trail.receive(answering.sign())
    assert trail.charge == answering.expected.price.output * 16 // 10**6 + 18
    deliver(trail, answering, 20)
    trail.receive(answering.sign())
    deliver(trail, answering, 3)
    final = trail.receive(answering.sign(Kind.FINAL))
    assert trail.final is not None
    assert trail.charge == final.charge


def test_the_fault_is_the_workers_and_the_receipt_is_the_proof(trail: ReceiptTrail, answering: Answering) -> None:
    """RCT-5: an error names the peer and carries the signed receipt."""
    deliver(trail, answering, 1)
    lie = answering.sign(charge=1)
    with pytest.raises(ReceiptError) as error:
        trail.receive(lie)
    assert (error.value.peer, error.value.proof) == (Peer.WORKER, lie)


def test_a_key_that_was_not_attested(trail: ReceiptTrail, answering: Answering) -> None:
    """RCT-1."""
    deliver(trail, answering, 1)
    other = SigningKey(Secret(b"\x09" * 32))
    with caught("RCT-1"):
        trail.receive(SignedReceipt.sign(answering.receipt(), answering.domain, other))
    with caught("RCT-1"):
        trail.receive(SignedReceipt(receipt=answering.receipt(), signature=bytes(65)))
    with caught("RCT-1"):
        trail.receive(SignedReceipt.sign(answering.receipt(), OTHER, answering.key))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("request_id", RequestId(bytes(16))),
        ("request_hash", OTHER),
        ("model", OTHER),
        ("price_sheet", OTHER),
        ("operator", SigningKey(Secret(b"\x09" * 32)).address),
    ],
)
def test_a_receipt_for_something_else(trail: ReceiptTrail, answering: Answering, field: str, value: object) -> None:
    """RCT-2: another request, another model (a cheaper one run in its place), another price sheet, another operator."""
    deliver(trail, answering, 1)
    with caught("RCT-2"):
        trail.receive(answering.sign(**{field: value}))


@pytest.mark.parametrize(
    "change", [{"response_hash": OTHER}, {"frames": 2}, {"frames": 4}, {"frames": 0}, {"frames": 10_000}]
)
def test_frames_that_were_not_delivered(trail: ReceiptTrail, answering: Answering, change: dict[str, Any]) -> None:
    """RCT-3: another hash, fewer or more frames than there were."""
    deliver(trail, answering, 3)
    with caught("RCT-3"):
        trail.receive(answering.sign(**change))


def test_a_final_for_less_than_was_delivered(trail: ReceiptTrail, answering: Answering) -> None:
    """RCT-3: under-run: a final that leaves out frames the client holds would contradict it later."""
    deliver(trail, answering, 1)
    early = answering.receipt(Kind.FINAL)
    deliver(trail, answering, 1)
    with caught("RCT-3"):
        trail.receive(SignedReceipt.sign(early, answering.domain, answering.key))


def test_a_receipt_may_trail_its_frame_but_not_for_ever(trail: ReceiptTrail, answering: Answering) -> None:
    """RCT-3: signing happens beside the stream."""
    deliver(trail, answering, 1)
    late = answering.sign()
    deliver(trail, answering, LAG - 1)
    trail.receive(late)
    deliver(trail, answering, 1)
    late = answering.sign(output_units=16, charge=82)
    deliver(trail, answering, LAG)
    with caught("RCT-3"):
        trail.receive(late)


@pytest.mark.parametrize(
    "change",
    [
        {"output_units": 17},
        {"input_units": 16, "cached_units": 32},
        {"input_units": 1_040},
        {"output_units": 1_040},
    ],
)
def test_units_off_the_grain_or_above_the_caps(
    trail: ReceiptTrail, answering: Answering, change: dict[str, Any]
) -> None:
    """RCT-4."""
    deliver(trail, answering, 2)
    with caught("RCT-4"):
        trail.receive(answering.sign(**change))


def test_more_output_than_bytes(answering: Answering) -> None:
    """RCT-4: the proxy, which reads nothing, still catches a gross over-count by the bytes it relayed."""
    answering.frame = 40
    trail = ReceiptTrail(answering.expected)
    deliver(trail, answering, 2)
    with caught("RCT-4"):
        trail.receive(answering.sign(output_units=112))


@pytest.mark.parametrize("charge", [0, 81, 83, 2**127])
def test_a_charge_that_is_not_price_times_units(trail: ReceiptTrail, answering: Answering, charge: int) -> None:
    """RCT-5: neither above nor below: 16 fresh, 16 cached, 16 out cost 16 + 1.6 + 64, rounded up to 82."""
    deliver(trail, answering, 1)
    with caught("RCT-5"):
        trail.receive(answering.sign(charge=charge))
    assert answering.receipt().charge == 82


def test_a_charge_above_the_cap(answering: Answering) -> None:
    """RCT-5: right by the sheet, and still more than was authorised."""
    trail = ReceiptTrail(dataclasses.replace(answering.expected, cap=81))
    deliver(trail, answering, 1)
    with caught("RCT-5"):
        trail.receive(answering.sign())


@pytest.mark.parametrize(
    ("field", "by"),
    [("input_units", -16), ("output_units", -16), ("finished_at", -1)],
)
def test_checkpoints_that_decrease(trail: ReceiptTrail, answering: Answering, field: str, by: int) -> None:
    """RCT-7: what was delivered stays delivered."""
    deliver(trail, answering, 10)
    first = answering.sign()
    trail.receive(first)
    deliver(trail, answering, 1)
    honest = answering.receipt()
    lower = getattr(first.receipt, field) + by
    lie = dataclasses.replace(honest, **{field: lower if field != "finished_at" else Instant(lower)})
    price = answering.expected.price
    due = (lie.input_units - lie.cached_units) * price.input + lie.cached_units * price.cached_input
    lie = dataclasses.replace(lie, charge=-(-(due + lie.output_units * price.output) // 10**6))
    with caught("RCT-7"):
        trail.receive(SignedReceipt.sign(lie, answering.domain, answering.key))


def test_receipts_that_do_not_name_their_predecessor(trail: ReceiptTrail, answering: Answering) -> None:
    """RCT-7: a checkpoint hidden from one side shows in the next one."""
    deliver(trail, answering, 1)
    answering.sign()  # kept back by whoever relays
    deliver(trail, answering, 1)
    with caught("RCT-7"):
        trail.receive(answering.sign())


@pytest.mark.parametrize("change", [{"seq": 1}, {"started_at": Instant(999)}, {"previous": Digest.zero()}])
def test_seq_start_and_previous_hold_the_answer_together(
    trail: ReceiptTrail, answering: Answering, change: dict[str, Any]
) -> None:
    """RCT-7."""
    deliver(trail, answering, 1)
    trail.receive(answering.sign())
    deliver(trail, answering, 1)
    with caught("RCT-7"):
        trail.receive(answering.sign(**change))


def test_an_answer_twice(trail: ReceiptTrail, answering: Answering) -> None:
    """RCT-8, RCT-10: a second, different final is slashable by itself."""
    deliver(trail, answering, 2)
    final = answering.sign(Kind.FINAL)
    trail.receive(final)
    with pytest.raises(Equivocation) as proof:
        trail.receive(answering.sign(Kind.FINAL))
    assert isinstance(proof.value.proof, tuple) and proof.value.proof[0] == final
    with caught("RCT-8"):
        trail.receive(final)
    with caught("RCT-8"):
        trail.delivered(OTHER, 1)


@pytest.mark.parametrize(("kind", "outcome"), [(Kind.FINAL, Outcome.RUNNING), (Kind.CHECKPOINT, Outcome.COMPLETE)])
def test_a_kind_that_contradicts_its_outcome(
    trail: ReceiptTrail, answering: Answering, kind: Kind, outcome: Outcome
) -> None:
    """RCT-8."""
    deliver(trail, answering, 1)
    with caught("RCT-8"):
        trail.receive(answering.sign(kind, outcome=outcome))


def test_nothing_delivered_costs_nothing(trail: ReceiptTrail, answering: Answering) -> None:
    """RCT-9: no frames, or a refusal by the engine: no charge."""
    with caught("RCT-9"):
        trail.receive(answering.sign(Kind.FINAL, outcome=Outcome.FAILED))
    deliver(trail, answering, 1)
    with caught("RCT-9"):
        trail.receive(answering.sign(Kind.FINAL, outcome=Outcome.REFUSED))
    free = {"input_units": 0, "cached_units": 0, "output_units": 0, "charge": 0, "previous": Digest.zero()}
    trail.receive(answering.sign(Kind.FINAL, outcome=Outcome.REFUSED, **free))
    assert trail.charge == 0


def test_equivocation_is_two_words_of_one_key_about_one_thing(answering: Answering) -> None:
    """RCT-10: and nothing else is: honest workers must be safe from clever pairs of receipts."""
    answering.deliver()
    sign, domain = answering.sign, answering.domain
    a, b = sign(previous=Digest.zero()), sign(previous=Digest.zero(), output_units=32)
    assert find_equivocation(a, b, domain) is not None, "two checkpoints of equal frames"
    final, other = sign(Kind.FINAL), sign(Kind.FINAL, outcome=Outcome.CANCELLED)
    assert find_equivocation(final, other, domain) is not None, "two finals"
    assert find_equivocation(final, final, domain) is None, "one receipt twice"
    assert find_equivocation(a, final, domain) is None, "a checkpoint and a final"
    assert find_equivocation(a, sign(frames=2), domain) is None, "checkpoints of different frames"
    assert find_equivocation(final, sign(Kind.FINAL, request_hash=OTHER), domain) is None, "different requests"
    stranger = SignedReceipt.sign(other.receipt, domain, SigningKey(Secret(b"\x09" * 32)))
    assert find_equivocation(final, stranger, domain) is None, "different keys"
    forged = dataclasses.replace(other, signature=bytes(65))
    assert find_equivocation(final, forged, domain) is None, "nobody's signature"


# --- what only the client sees ---------------------------------------------------------------------------------------

TABLE = TokenTable.build([b"The", b" capital", b" of", b" France", b" is", b" Paris", b".", b"<end>"], [7])
TEXT = "The capital of France is Paris."


def opening(ids: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7), **changes: Any) -> UsageOpening:
    honest = UsageOpening(
        v=1,
        input=20,
        cached_input=10,
        output=len(ids),
        choices=(ChoiceIds(ids=ids, finish="stop"),),
        verified=True,
        note="",
    )
    return dataclasses.replace(honest, **changes)


def open_it(answering: Answering, usage: UsageOpening, **receipt: Any) -> UsageOpening:
    answering.deliver()
    commitment = usage_commitment(SALT, usage)
    signed = answering.receipt(Kind.FINAL, **{"usage_commitment": commitment, "output_units": 16, **receipt})
    return open_usage(signed, salt=SALT, opening=usage.encode(), grain=16)


def test_the_client_opens_the_exact_counts(answering: Answering) -> None:
    """RCT-6: 20, 10 and 8 tokens were billed as 32, 16 and 16 units; the text is that of the ids."""
    usage = open_it(answering, opening())
    assert check_text(usage, [TEXT], TABLE) == (Relation.EQUAL,)


def test_the_client_catches_a_padded_bill(answering: Answering) -> None:
    """RCT-6: over-count by one grain, where the proxy can see nothing: the opening rounds to less than was billed."""
    with caught("RCT-6"):
        open_it(answering, opening(), output_units=32)


def test_the_client_catches_a_count_without_ids(answering: Answering) -> None:
    """RCT-6: twelve billed, eight ids opened."""
    with caught("RCT-6"):
        open_it(answering, opening(output=12))


def test_the_client_catches_invented_ids(answering: Answering) -> None:
    """RCT-6: as many ids as billed, but they are not the text's; or not in the model's table at all."""
    for ids in ((0, 1, 2, 3, 4, 5, 6, 6), (0, 1, 2, 3, 4, 5, 99, 7)):
        usage = open_it(answering, opening(ids))
        with caught("RCT-6"):
            check_text(usage, [TEXT], TABLE)


def test_the_client_catches_a_missing_choice(answering: Answering) -> None:
    """RCT-6: two choices billed, one delivered."""
    usage = open_it(answering, opening())
    with caught("RCT-6"):
        check_text(usage, [TEXT, TEXT], TABLE)


def test_the_client_catches_an_opening_that_is_not_the_committed_one(answering: Answering) -> None:
    """RCT-6."""
    with caught("RCT-6"):
        open_it(answering, opening(), usage_commitment=OTHER)
    with caught("RCT-6"):
        open_usage(answering.receipt(Kind.FINAL), salt=SALT, opening=b"\xff", grain=16)


def test_usage_the_enclave_could_not_verify_is_marked_not_trusted(answering: Answering) -> None:
    """RCT-6: an engine without ids: counts round right, no relation of text to ids is claimed."""
    usage = open_it(answering, opening((), output=8, verified=False, note="usage unverified"))
    assert check_text(usage, [TEXT], TABLE) == ()


def test_a_commitment_says_nothing_without_its_salt() -> None:
    """RCT-6: the same counts under another wrap look different."""
    assert usage_commitment(SALT, opening()) != usage_commitment(b"\x00" * 32, opening())
