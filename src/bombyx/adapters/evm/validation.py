# SPDX-License-Identifier: Apache-2.0
"""`ports.Validation` on an EVM chain: one object over the contracts of roots, cases, faults and restitution.

Bonds are paid from the sender's own tokens: the contract that takes them is allowed to, once. Everything read is of the
newest block; a caller that must outlive a reorg asks again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bombyx.adapters.evm import judged
from bombyx.adapters.evm.abi import Reader, blob, call
from bombyx.adapters.evm.ledger import EvmLedger
from bombyx.errors import ConfigError, Unavailable
from bombyx.protocol.audit.case import (
    Accusation,
    Ballot,
    Case,
    CaseState,
    Challenge,
    EpochRoot,
    PlanCommitment,
    RefundClaim,
    Restitution,
    ValidationParameters,
    Verdict,
)
from bombyx.protocol.primitives import Address, Amount, Digest
from bombyx.protocol.wire.eip712 import word
from bombyx.protocol.wire.receipt import SignedReceipt, receipt_domain
from bombyx.protocol.wire.signing import SigningKey

PAGE: Final = 16  # rows asked for at once; what the development Multicall3 takes


class EvmValidation:
    """Beside a ledger of the same chain; the two share nonces, and whoever opened the ledger closes it."""

    def __init__(self, ledger: EvmLedger) -> None:
        if ledger.book.validation == Address.zero():
            raise ConfigError("this chain's address book names no validation service", rule="LEDGER-7")
        self._ledger = ledger
        self._book = ledger.book
        self._parameters: ValidationParameters | None = None
        self._closed: dict[int, Case] = {}

    async def parameters(self) -> ValidationParameters:
        if self._parameters is None:
            book = self._book
            service, slasher, restitution, epoch, window = await self._ledger.views(
                [
                    (book.validation, call("parameters()")),
                    (book.slasher, call("parameters()")),
                    (book.restitution, call("parameters()")),
                    (book.receipt_roots, call("EPOCH()")),
                    (book.receipt_roots, call("ROOT_WINDOW()")),
                ]
            )
            self._parameters = ValidationParameters(
                chain_id=book.chain_id,
                service=book.validation,
                registry=book.registry,
                restitution=book.restitution,
                epoch_seconds=epoch.uint(0),
                root_window=window.uint(0),
                jury=service.uint(0),
                min_jury=service.uint(1),
                jury_delay=service.uint(2),
                commit_seconds=service.uint(3),
                reveal_seconds=service.uint(4),
                appeal_seconds=service.uint(5),
                bond=service.uint(6),
                juror_fee=service.uint(7),
                veto_seconds=slasher.uint(0),
                strikes=slasher.uint(1),
                strike_cases=slasher.uint(2),
                claim_seconds=restitution.uint(0),
            )
        return self._parameters

    async def now(self) -> tuple[int, int]:
        newest = await self._ledger.newest()
        return newest.timestamp.seconds, newest.number

    # --- roots and plans ---

    async def post_root(
        self, receipt_key: Address, epoch: int, root: Digest, first_seq: int, count: int, *, signer: SigningKey
    ) -> Digest:
        data = call(
            "postRoot(address,uint64,bytes32,uint64,uint64)",
            word(receipt_key),
            word(epoch),
            root,
            word(first_seq),
            word(count),
        )
        return await self._send(self._book.receipt_roots, data, signer)

    async def roots_of(self, worker: Address, receipt_key: Address) -> tuple[EpochRoot, ...]:
        roots, whose = self._book.receipt_roots, (word(worker), word(receipt_key))
        count = (await self._ledger.view(roots, call("rootCount(address,address)", *whose))).uint(0)
        asked = [call("rootAt(address,address,uint256)", *whose, word(n)) for n in range(count)]
        return tuple(judged.root_of(answer) for answer in await self._pages(roots, asked))

    async def last_root(self, worker: Address, receipt_key: Address) -> EpochRoot | None:
        roots, whose = self._book.receipt_roots, (word(worker), word(receipt_key))
        count = (await self._ledger.view(roots, call("rootCount(address,address)", *whose))).uint(0)
        if not count:
            return None
        place = call("rootAt(address,address,uint256)", *whose, word(count - 1))
        return judged.root_of(await self._ledger.view(roots, place))

    async def commit_plan(self, epoch: int, root: Digest, count: int, *, signer: SigningKey) -> Digest:
        data = call("commitPlan(uint64,bytes32,uint64)", word(epoch), root, word(count))
        return await self._send(self._book.receipt_roots, data, signer)

    async def plan_of(self, validator: Address, epoch: int) -> PlanCommitment | None:
        data = call("planOf(address,uint64)", word(validator), word(epoch))
        found = await self._ledger.view(self._book.receipt_roots, data)
        count = found.uint(1)
        return PlanCommitment(epoch=epoch, root=found.digest(0), count=count) if count else None

    async def fix_beacon(self, epoch: int, *, signer: SigningKey) -> Digest:
        return await self._send(self._book.receipt_roots, call("fixBeacon(uint64)", word(epoch)), signer)

    async def beacon_of(self, epoch: int) -> Digest | None:
        found = await self._ledger.view(self._book.receipt_roots, call("beaconOf(uint64)", word(epoch)))
        return found.digest(0) if found.uint(0) else None

    # --- cases ---

    async def open_case(self, accusation: Accusation, *, signer: SigningKey) -> int:
        await self._ledger.allow(self._book.validation, (await self.parameters()).bond, signer)
        mined = await self._ledger.mined(self._book.validation, judged.open_case(accusation), signer)
        return judged.id_of(mined.logs, judged.CASE_OPENED)

    async def case(self, case: int) -> Case | None:
        count = await self._count("caseCount()", self._book.validation)
        return (await self._cases([case]))[0] if 0 < case <= count else None

    async def cases(self, first: int = 1) -> tuple[Case, ...]:
        count = await self._count("caseCount()", self._book.validation)
        return await self._cases(range(max(1, first), count + 1))

    async def _cases(self, numbers: Sequence[int]) -> tuple[Case, ...]:
        """Closed ones are read once, where no reorg can open them again."""
        service = self._book.validation
        missing = [number for number in numbers if number not in self._closed]
        heads = await self._pages(service, [call("caseOf(uint256)", word(number)) for number in missing])
        rounds = [word(number) + word(head.uint(2)) for number, head in zip(missing, heads, strict=True)]
        juries = [
            tuple(answer.items(0, lambda body, index: body.address(index)))
            for answer in await self._pages(service, [call("juryOf(uint256,uint8)", place) for place in rounds])
        ]
        votes = [
            call(f"{name}(uint256,uint8,address)", place, word(juror))
            for place, jury in zip(rounds, juries, strict=True)
            for juror in jury
            for name in ("commitmentOf", "verdictOf")
        ]
        answers = iter(await self._pages(service, votes))
        found = dict(self._closed)
        for number, head, jury in zip(missing, heads, juries, strict=True):
            ballots = tuple(_ballot(juror, next(answers), next(answers)) for juror in jury)
            found[number] = judged.case_of(number, head, ballots)
            if found[number].state is CaseState.CLOSED and not self._book.reorg_depth:
                self._closed[number] = found[number]
        return tuple(found[number] for number in numbers)

    async def draw(self, case: int, *, signer: SigningKey) -> Digest:
        return await self._step("draw(uint256)", case, signer)

    async def commit_verdict(self, case: int, commitment: Digest, *, signer: SigningKey) -> Digest:
        data = call("commitVerdict(uint256,bytes32)", word(case), commitment)
        return await self._send(self._book.validation, data, signer)

    async def reveal_verdict(self, case: int, verdict: Verdict, salt: Digest, *, signer: SigningKey) -> Digest:
        data = call("revealVerdict(uint256,uint8,bytes32)", word(case), word(verdict), salt)
        return await self._send(self._book.validation, data, signer)

    async def certify(
        self, case: int, verdict: Verdict, timestamp: int, certificate: bytes, *, signer: SigningKey
    ) -> Digest:
        data = call(
            "certify(uint256,uint8,uint32,bytes)", word(case), word(verdict), word(timestamp), blob(certificate)
        )
        return await self._send(self._book.validation, data, signer)

    async def decide(self, case: int, *, signer: SigningKey) -> Digest:
        return await self._step("decide(uint256)", case, signer)

    async def reveal_plant(self, case: int, verdict: Verdict, salt: Digest, *, signer: SigningKey) -> Digest:
        data = call("revealPlant(uint256,uint8,bytes32)", word(case), word(verdict), salt)
        return await self._send(self._book.validation, data, signer)

    async def appeal(self, case: int, *, signer: SigningKey) -> Digest:
        await self._ledger.allow(self._book.validation, (await self.parameters()).appeal_bond, signer)
        return await self._step("appeal(uint256)", case, signer)

    async def veto(self, case: int, *, signer: SigningKey) -> Digest:
        found = await self.case(case)
        sentence = found.sentence if found is not None else 0
        data = call("cancelSlashingRequest(uint256)", word(sentence))
        return await self._send(self._book.slasher, data, signer)

    async def execute(self, case: int, *, signer: SigningKey) -> Digest:
        return await self._step("execute(uint256)", case, signer)

    async def convictions(self, operator: Address) -> int:
        return (await self._ledger.view(self._book.slasher, call("strikesOf(address)", word(operator)))).uint(0)

    async def credit_of(self, account: Address) -> Amount:
        return Amount(sum(amount for _, amount in await self._credits(account)))

    async def collect(self, *, signer: SigningKey) -> Digest:
        """From each contract that owes the signer something. Gives the last transaction, or zero where none was due."""
        done = Digest.zero()
        for contract, amount in await self._credits(signer.address):
            if amount:
                done = await self._send(contract, call("collect(address)", word(signer.address)), signer)
        return done

    async def _credits(self, account: Address) -> list[tuple[Address, int]]:
        owing = (self._book.validation, self._book.receipt_faults, self._book.restitution)
        answers = await self._ledger.views([(one, call("credits(address)", word(account))) for one in owing])
        return [(one, answer.uint(0)) for one, answer in zip(owing, answers, strict=True)]

    # --- objective faults ---

    async def prove_equivocation(self, one: SignedReceipt, other: SignedReceipt, *, signer: SigningKey) -> Digest:
        kinds = f"proveEquivocation({judged.SIGNED},{judged.SIGNED})"
        data = call(kinds, judged.signed_receipt(one), judged.signed_receipt(other))
        return await self._send(self._book.receipt_faults, data, signer)

    async def challenge_receipt(self, held: SignedReceipt, *, signer: SigningKey) -> int:
        domain = receipt_domain(self._book.chain_id, self._book.registry)
        roots = await self.roots_of(held.receipt.operator, held.signer(domain))
        seq = held.receipt.seq
        index = next((n for n, row in enumerate(roots) if row.first_seq <= seq < row.first_seq + row.count), 0)
        terms = await self._ledger.view(self._book.receipt_faults, call("parameters()"))
        await self._ledger.allow(self._book.receipt_faults, terms.uint(0), signer)
        data = call(f"challengeReceipt({judged.SIGNED},uint256)", judged.signed_receipt(held), word(index))
        mined = await self._ledger.mined(self._book.receipt_faults, data, signer)
        return judged.id_of(mined.logs, judged.CHALLENGED)

    async def answer_challenge(
        self, challenge: int, root_index: int, proof: Sequence[Digest], *, signer: SigningKey
    ) -> Digest:
        kinds = "answerChallenge(uint256,uint256,bytes32[])"
        data = call(kinds, word(challenge), word(root_index), judged.digests(proof))
        return await self._send(self._book.receipt_faults, data, signer)

    async def default_challenge(self, challenge: int, *, signer: SigningKey) -> Digest:
        return await self._send(self._book.receipt_faults, call("defaultChallenge(uint256)", word(challenge)), signer)

    async def challenges(self, first: int = 1) -> tuple[Challenge, ...]:
        faults = self._book.receipt_faults
        numbers = range(max(1, first), await self._count("challengeCount()", faults) + 1)
        answers = await self._pages(faults, [call("challenges(uint256)", word(number)) for number in numbers])
        return tuple(judged.challenge_of(number, answer) for number, answer in zip(numbers, answers, strict=True))

    # --- restitution ---

    async def restitution(self, sentence: int) -> Restitution | None:
        found = await self._ledger.view(self._book.restitution, call("rows(uint256)", word(sentence)))
        if not found.uint(4):
            return None
        payouts = await self._payouts(sentence)
        owed = await self._pages(
            self._book.restitution, [call("owed(uint256,address)", word(sentence), word(one)) for one in payouts]
        )
        return Restitution(
            sentence=sentence,
            operator=found.address(0),
            slashed=found.uint(5),
            bounty=found.uint(6),
            for_clients=found.uint(7),
            claimed=found.uint(8),
            claim_until=found.uint(4),
            finished=found.uint(10) == 1,
            owed={one: answer.uint(0) for one, answer in zip(payouts, owed, strict=True)},
        )

    async def _payouts(self, sentence: int) -> tuple[Address, ...]:
        topics = [str(judged.REFUND_CLAIMED), "0x" + word(sentence).hex()]
        logs = await self._ledger.logs(self._book.restitution, topics)
        return tuple(dict.fromkeys(judged.payout_of_log(log) for log in logs))

    async def claim_refund(
        self, sentence: int, held: SignedReceipt, claim: RefundClaim, *, signer: SigningKey
    ) -> Digest:
        return await self._send(self._book.restitution, judged.claim_refund(sentence, held, claim), signer)

    async def finish_refunds(self, sentence: int, *, signer: SigningKey) -> Digest:
        return await self._send(self._book.restitution, call("finishRefunds(uint256)", word(sentence)), signer)

    async def pay_refund(self, sentence: int, payout: Address, *, signer: SigningKey) -> Digest:
        data = call("payRefund(uint256,address)", word(sentence), word(payout))
        return await self._send(self._book.restitution, data, signer)

    async def insurance(self) -> Amount:
        return Amount((await self._ledger.view(self._book.restitution, call("insurance()"))).uint(0))

    async def close(self) -> None:
        """The ledger is closed by whoever opened it."""

    # --- the node ---

    async def _send(self, to: Address, data: bytes, signer: SigningKey) -> Digest:
        return (await self._ledger.mined(to, data, signer)).hash

    async def _step(self, signature: str, case: int, signer: SigningKey) -> Digest:
        return await self._send(self._book.validation, call(signature, word(case)), signer)

    async def _count(self, signature: str, contract: Address) -> int:
        return (await self._ledger.view(contract, call(signature))).uint(0)

    async def _pages(self, contract: Address, asked: Sequence[bytes]) -> list[Reader]:
        found: list[Reader] = []
        for start in range(0, len(asked), PAGE):
            found += await self._ledger.views([(contract, data) for data in asked[start : start + PAGE]])
        return found


def _ballot(juror: Address, commitment: Reader, verdict: Reader) -> Ballot:
    try:
        shown = Verdict(verdict.uint(0)) if verdict.uint(0) else None
    except ValueError:
        raise Unavailable("the chain's answer is no verdict", rule="LEDGER-2") from None
    return Ballot(juror=juror, committed=commitment.uint(0) != 0, verdict=shown)
