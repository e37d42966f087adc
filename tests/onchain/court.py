# SPDX-License-Identifier: Apache-2.0
"""Stake, cases and restitution in one EVM of this process: every contract as it is shipped, and who meets on them."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

from tests.onchain.conftest import ARTIFACTS, STRANGER, Bench, address

from bombyx.adapters.evm.staked import DEVELOPMENT, Seats, Word, put_staked, start_calls
from bombyx.protocol.audit.case import (
    WAD,
    CaseState,
    Ending,
    Verdict,
    plant_commitment,
    refund_digest,
    verdict_commitment,
)
from bombyx.protocol.primitives import Address, Digest, Instant, RequestId, Secret, sha256
from bombyx.protocol.wire.receipt import Kind, Outcome, Receipt, SignedReceipt, receipt_domain
from bombyx.protocol.wire.signing import SigningKey

PROXY, WORKER, VALIDATOR = 1, 2, 3
GUILTY, INNOCENT, ABSTAIN = Verdict.GUILTY, Verdict.INNOCENT, Verdict.ABSTAIN
TERMS = dataclasses.replace(DEVELOPMENT, epoch=120, root_window=60, answer=240, challengeable=600, claim=120)
STAKE = 100_000_000
MODEL = sha256(b"model")
EVIDENCE = sha256(b"evidence")
SALT = sha256(b"salt")
COMMITTEE = SigningKey(Secret(b"\x77" * 32))


def key(number: int) -> SigningKey:
    return SigningKey(Secret(bytes([number]) * 32))


CHEAT, HONEST = key(1), key(2)
VALIDATORS = tuple(key(number) for number in range(10, 18))
CLIENTS = tuple(key(number) for number in range(30, 33))


class Court:
    """One deployment. Methods are what a party does; `refused` from the bench says what must not be."""

    def __init__(self, bench: Bench, *, validators: int = 6, **changes: int) -> None:
        self.bench = bench
        self.boa = bench.boa
        self.terms = dataclasses.replace(TERMS, **changes)
        self.token = bench.deploy("Token3009", STRANGER.address)
        seats = Seats(admin=STRANGER.address, committee=COMMITTEE.address, steward=COMMITTEE.address)
        made: dict[str, Any] = {}

        async def put(name: str, words: tuple[Word, ...]) -> Address:
            made[name] = bench.deploy(name, *words)
            return address(made[name])

        self.staked = asyncio.run(put_staked(put, address(self.token), seats, self.terms, manager=None, strategy=None))
        self.manager, self.registry, self.slasher = made["StakeManager"], made["OperatorRegistry"], made["Slasher"]
        self.roots, self.faults, self.service = (
            made["ReceiptRoots"],
            made["ReceiptFaults"],
            made["ValidationService"],
        )
        self.restitution, self.validations = made["Restitution"], made["ValidationRegistry8004"]
        self.contracts = (self.manager, self.service, self.faults, self.restitution)
        for to, data in start_calls(self.staked):
            bench.boa.env.raw_call(str(to), data=data, sender=str(STRANGER.address))
        self.domain = receipt_domain(bench.chain_id, self.staked.registry)
        self.parties = (CHEAT, HONEST, *VALIDATORS[:validators], *CLIENTS, STRANGER, COMMITTEE)
        for one in self.parties:
            self.token.mint(str(one.address), 10 * STAKE, sender=str(STRANGER.address))
            for contract in self.contracts:
                self.token.approve(contract.address, 2**256 - 1, sender=str(one.address))
        for worker in (CHEAT, HONEST):
            self.join(worker, WORKER)
        for validator in VALIDATORS[:validators]:
            self.join(validator, VALIDATOR)
        self.validators = VALIDATORS[:validators]
        self.supply = self.token.totalSupply()
        self.pass_time(
            3 * self.terms.epoch - self.now % self.terms.epoch + 5
        )  # within a root window, whatever the hour

    # --- operators ---

    def join(self, who: SigningKey, role: int, *, stake: int = STAKE) -> None:
        mine = str(who.address)
        self.registry.register(role, mine, mine, "http://x", b"", bytes(32), [], sender=mine)
        self.manager.depositIntoStrategy(self.manager.address, self.token.address, stake, sender=mine)
        self.allocate(who, role, WAD)
        self.manager.registerForOperatorSets(mine, (self.registry.address, [role], b""), sender=mine)

    def allocate(self, who: SigningKey, role: int, wad: int) -> None:
        row = ((self.registry.address, role), [self.manager.address], [wad])
        self.manager.modifyAllocations(str(who.address), [row], sender=str(who.address))

    def leave(self, who: SigningKey, role: int) -> None:
        mine = str(who.address)
        self.manager.deregisterFromOperatorSets((mine, self.registry.address, [role]), sender=mine)

    def allocated(self, who: SigningKey, role: int) -> int:
        group = (self.registry.address, role)
        rows = self.manager.getAllocatedStake(group, [str(who.address)], [self.manager.address])
        return int(rows[0][0])

    def shares(self, who: SigningKey) -> int:
        return int(self.manager.shares(str(who.address)))

    def money(self, who: SigningKey) -> int:
        return int(self.token.balanceOf(str(who.address)))

    # --- time ---

    @property
    def now(self) -> int:
        return int(self.boa.env.timestamp)

    @property
    def epoch(self) -> int:
        return self.now // self.terms.epoch

    def pass_time(self, seconds: int) -> None:
        """Blocks of 12 s; at least one."""
        self.boa.env.time_travel(seconds=seconds)
        self.boa.env.time_travel(blocks=1, block_delta=0)

    def pass_blocks(self, blocks: int) -> None:
        self.boa.env.time_travel(blocks=blocks, block_delta=1)

    # --- cases ---

    def open(
        self, accuser: SigningKey, accused: SigningKey = CHEAT, *, plant: Digest = SALT, since: int | None = None
    ) -> int:
        last = self.epoch - 1
        first = last if since is None else since
        return int(
            self.service.openCase(
                *(str(accused.address), bytes(MODEL), bytes(EVIDENCE), "http://accuser", first, last, bytes(plant)),
                sender=str(accuser.address),
            )
        )

    def draw(self, case: int) -> tuple[SigningKey, ...]:
        """The jury of the standing round."""
        self.pass_blocks(self.terms.jury_delay + 1)
        self.service.draw(case, sender=str(STRANGER.address))
        return self.jury(case)

    def jury(self, case: int) -> tuple[SigningKey, ...]:
        known = {str(one.address): one for one in VALIDATORS}
        return tuple(known[one] for one in self.service.juryOf(case, self.row(case)[2]))

    def row(self, case: int) -> Any:
        return self.service.caseOf(case)[0]

    def state(self, case: int) -> CaseState:
        return CaseState(self.row(case)[0])

    def ending(self, case: int) -> Ending:
        return Ending(self.row(case)[1])

    def commit(self, case: int, juror: SigningKey, verdict: Verdict, salt: Digest = SALT) -> None:
        hidden = verdict_commitment(case, self.row(case)[2], verdict, salt, juror.address)
        self.service.commitVerdict(case, bytes(hidden), sender=str(juror.address))

    def reveal(self, case: int, juror: SigningKey, verdict: Verdict, salt: Digest = SALT) -> None:
        self.service.revealVerdict(case, verdict, bytes(salt), sender=str(juror.address))

    def vote(self, case: int, *verdicts: Verdict) -> None:
        """The whole jury, in its order, votes; then the round is decided."""
        jury = self.jury(case)
        assert len(verdicts) == len(jury)
        for juror, verdict in zip(jury, verdicts, strict=True):
            self.commit(case, juror, verdict)
        for juror, verdict in zip(jury, verdicts, strict=True):
            self.reveal(case, juror, verdict)
        self.decide(case)

    def decide(self, case: int) -> None:
        self.service.decide(case, sender=str(STRANGER.address))

    def execute(self, case: int) -> None:
        self.service.execute(case, sender=str(STRANGER.address))

    def judged(self, accuser: SigningKey, verdict: Verdict, accused: SigningKey = CHEAT) -> int:
        """A case whose first round is decided, unanimously."""
        case = self.open(accuser, accused)
        self.vote(case, *[verdict] * len(self.draw(case)))
        return case

    def convicted(self, accuser: SigningKey, accused: SigningKey = CHEAT) -> int:
        """A case that has been executed; its sentence is 1 + the last."""
        case = self.judged(accuser, GUILTY, accused)
        self.pass_time(self.terms.appeal)
        self.execute(case)
        self.pass_time(self.terms.veto)
        self.execute(case)
        return case

    def plant(self, accuser: SigningKey, verdict: Verdict) -> Digest:
        return plant_commitment(accuser.address, EVIDENCE, verdict, SALT)

    # --- receipts ---

    def receipt(self, seq: int, *, signer: SigningKey = CHEAT, **changes: Any) -> SignedReceipt:
        plain = Receipt(
            kind=Kind.FINAL,
            request_id=RequestId(seq.to_bytes(16)),
            request_hash=sha256(seq.to_bytes(8)),
            response_hash=Digest.zero(),
            model=MODEL,
            price_sheet=Digest.zero(),
            operator=CHEAT.address,
            frames=1,
            input_units=16,
            cached_units=0,
            output_units=16,
            charge=1_000,
            usage_commitment=Digest.zero(),
            audit_commitment=Digest.zero(),
            outcome=Outcome.COMPLETE,
            seq=seq,
            started_at=Instant(self.now * 1_000 - 5),
            finished_at=Instant(self.now * 1_000),
            previous=Digest.zero(),
        )
        return SignedReceipt.sign(dataclasses.replace(plain, **changes), self.domain, signer)

    def paid_receipt(self, seq: int, client: SigningKey, *, charge: int = 1_000, **changes: Any) -> SignedReceipt:
        """One whose audit commitment opens to `client`."""
        leaf = sha256(sha256(b"bombyx claim v1"), client.address)
        commitment = sha256(sha256(b"bombyx audit v2"), leaf, self.content(seq))
        return self.receipt(seq, charge=charge, audit_commitment=commitment, **changes)

    @staticmethod
    def content(seq: int) -> Digest:
        return sha256(b"content", seq.to_bytes(8))

    def claim(
        self,
        sentence: int,
        held: SignedReceipt,
        client: SigningKey,
        *,
        payout: Address | None = None,
        signer: SigningKey | None = None,
        signed_payout: Address | None = None,
    ) -> None:
        to = payout or client.address
        digest = refund_digest(
            self.bench.chain_id,
            self.staked.restitution,
            sentence,
            held.receipt.typed_digest(self.domain),
            signed_payout or to,
        )
        signature = (signer or client).sign(digest)
        content = bytes(self.content(held.receipt.seq))
        self.restitution.claimRefund(
            *(sentence, signed(held), str(client.address), content, str(to), signature), sender=str(STRANGER.address)
        )

    # --- what must always hold ---

    def check(self) -> None:
        """Tokens are conserved, each contract can pay what it owes, and no allocation is above its operator's stake."""
        service, terms = self.service, self.terms
        appeal = terms.bond + terms.juror_fee * (terms.jury + 1)
        held = 0
        for case in range(1, service.caseCount() + 1):
            row = self.row(case)
            if row[0] != CaseState.CLOSED:
                held += terms.bond + (appeal if row[2] == 2 else 0)
        accounts = [str(one.address) for one in self.parties]
        held += sum(service.credits(one) for one in accounts)
        assert self.token.balanceOf(service.address) == held
        assert self.token.balanceOf(self.manager.address) == self.manager.totalShares()
        assert self.manager.totalShares() == sum(self.manager.shares(one) for one in accounts)
        restitution = self.restitution
        assert self.token.balanceOf(restitution.address) >= restitution.accounted()
        assert restitution.accounted() >= restitution.insurance() + sum(restitution.credits(one) for one in accounts)
        everybody = [*accounts, *(one.address for one in self.contracts)]
        assert sum(self.token.balanceOf(one) for one in everybody) == self.supply
        for one in accounts:
            most = self.manager.getMaxMagnitude(one, self.manager.address)
            assert self.manager.encumbered(one) <= most <= WAD


def signed(held: SignedReceipt) -> tuple[Any, ...]:
    """A SignedReceipt as the ABI takes it."""
    one = held.receipt
    return (
        (
            int(one.kind),
            bytes(one.request_id),
            bytes(one.request_hash),
            bytes(one.response_hash),
            bytes(one.model),
            bytes(one.price_sheet),
            str(one.operator),
            one.frames,
            one.input_units,
            one.cached_units,
            one.output_units,
            one.charge,
            bytes(one.usage_commitment),
            bytes(one.audit_commitment),
            int(one.outcome),
            one.seq,
            int(one.started_at),
            int(one.finished_at),
            bytes(one.previous),
        ),
        held.signature,
    )


__all__ = ["ARTIFACTS", "Court", "signed"]
