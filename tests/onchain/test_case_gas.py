# SPDX-License-Identifier: Apache-2.0
"""What stake and cases cost in gas, compared with gas.json as test_gas.py does; execution alone, without calldata.

Written anew with BOMBYX_GAS=write.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from tests.onchain.conftest import ARTIFACTS, STRANGER, Bench
from tests.onchain.court import CHEAT, CLIENTS, GUILTY, VALIDATORS, Court, signed
from tests.onchain.test_gas import CASES, SNAPSHOT

from bombyx.protocol.audit.merkle import merkle_proof, merkle_root
from bombyx.protocol.primitives import sha256

SIZE_LIMIT = 24_576  # bytes of a contract (EIP-170)
CHANCE = 100  # gas; times and signatures have more zero bytes in one run than in another
TRANSACTION_LIMIT = 2**24  # gas of a transaction (EIP-7825)


@pytest.fixture
def court(deployed: Bench) -> Iterator[Court]:
    with deployed.boa.env.anchor():
        yield Court(deployed, validators=3)


class Meter:
    """Runs a step and keeps what the contract it was called on used."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}

    def __call__(self, name: str, contract: Any, step: Callable[[], Any]) -> Any:
        result = step()
        self.found[CASES + name] = contract._computation.get_gas_used()
        return result


def test_gas_of_a_case_is_as_written_down(court: Court) -> None:
    """VAL-6 .. VAL-15: every step of the longest ordinary case; none comes near a transaction's limit."""
    meter, service, client = Meter(), court.service, CLIENTS[0]
    mine = str(CHEAT.address)
    held = [court.paid_receipt(seq, client) for seq in range(1, 5)]
    leaves = [one.receipt.typed_digest(court.domain) for one in held]
    root = bytes(merkle_root(leaves))
    meter("root of an epoch", court.roots, lambda: court.roots.postRoot(mine, court.epoch - 1, root, 1, 4, sender=mine))
    accuser = STRANGER  # not a member: so that every draw looks at the same three
    plan, who = bytes(sha256(b"plan")), str(VALIDATORS[0].address)
    meter("plan", court.roots, lambda: court.roots.commitPlan(court.epoch + 1, plan, 9, sender=who))
    number = meter(
        "challenge",
        court.faults,
        lambda: court.faults.challengeReceipt(signed(held[2]), 0, sender=str(accuser.address)),
    )
    proof = [bytes(one) for one in merkle_proof(leaves, 2)]
    meter("challenge, answered", court.faults, lambda: court.faults.answerChallenge(number, 0, proof))
    case = meter("accusation", service, lambda: court.open(accuser))
    court.pass_blocks(court.terms.jury_delay + 1)
    meter("draw of 3 among 3", service, lambda: service.draw(case))
    jury = court.jury(case)
    for juror in jury:
        meter("verdict, hidden", service, partial(court.commit, case, juror, GUILTY))
    for juror in jury:
        meter("verdict, shown", service, partial(court.reveal, case, juror, GUILTY))
    meter("round of 3, decided", service, lambda: court.decide(case))
    court.pass_time(court.terms.appeal)
    meter("conviction", service, lambda: court.execute(case))
    court.pass_time(court.terms.veto)
    meter("slash, fees and ejection", service, lambda: court.execute(case))
    meter("refund, claimed", court.restitution, lambda: court.claim(1, held[0], client))
    court.pass_time(court.terms.claim)
    meter("refunds, finished", court.restitution, lambda: court.restitution.finishRefunds(1))
    meter("refund, paid", court.restitution, lambda: court.restitution.payRefund(1, str(client.address)))
    one, two = court.receipt(9), court.receipt(9, charge=1)
    meter("equivocation", court.faults, lambda: court.faults.proveEquivocation(signed(one), signed(two)))
    written = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    if os.environ.get("BOMBYX_GAS") == "write":
        plain = {name: gas for name, gas in written.items() if not name.startswith(CASES)}
        SNAPSHOT.write_text(json.dumps(plain | meter.found, indent=1) + "\n", encoding="utf-8")
        written = plain | meter.found
    kept = {name: gas for name, gas in written.items() if name.startswith(CASES)}
    assert meter.found.keys() == kept.keys()
    changed = {name: (gas, kept[name]) for name, gas in meter.found.items() if abs(gas - kept[name]) > CHANCE}
    assert not changed
    assert max(meter.found.values()) < TRANSACTION_LIMIT // 20


def test_a_draw_from_a_full_set_fits_into_a_transaction(deployed: Bench) -> None:
    """VAL-7: 31 jurors are the most; the set's bound keeps a draw far below EIP-7825's limit."""
    with deployed.boa.env.anchor():
        court = Court(deployed, validators=8, jury=8, bond=1_000_000)
        case = court.open(STRANGER)
        court.pass_blocks(court.terms.jury_delay + 1)
        court.service.draw(case)
        a_member = court.service._computation.get_gas_used() / 8
        assert 31 * a_member + 512 * 5_000 < TRANSACTION_LIMIT  # 31 drawn; 512 members read, 2,100 gas a cold slot


def test_contracts_fit() -> None:
    """VAL-16: EIP-170, with room."""
    for file in ARTIFACTS.glob("*.json"):
        assert json.loads(file.read_text(encoding="utf-8"))["runtime_bytes"] < SIZE_LIMIT * 3 // 4, file.name
