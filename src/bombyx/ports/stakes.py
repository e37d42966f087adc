# SPDX-License-Identifier: Apache-2.0
"""Stake of operators, and the cases that may cost it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from bombyx.ports.chain import OperatorRole
from bombyx.protocol.audit.case import (
    Accusation,
    Case,
    Challenge,
    EpochRoot,
    PlanCommitment,
    RefundClaim,
    Restitution,
    ValidationParameters,
    Verdict,
)
from bombyx.protocol.primitives import Address, Amount, Digest
from bombyx.protocol.wire.receipt import SignedReceipt
from bombyx.protocol.wire.signing import SigningKey


@dataclass(frozen=True, slots=True, kw_only=True)
class StakeInfo:
    """Constants of a chain's stake. Operator sets have the numbers of the roles: proxies 1, workers 2, validators 3."""

    manager: Address  # EigenLayer's AllocationManager, or our StakeManager
    registry: Address  # the AVS
    token: Address  # what is staked, and what refunds are paid in
    minimum: Mapping[OperatorRole, Amount]  # allocated, to join a role's set
    deallocation_blocks: int  # after leaving, for so long a slash still reaches the stake


@dataclass(frozen=True, slots=True, kw_only=True)
class StakeView:
    """One operator's stake. `allocated`: per role, what a slash of the whole allocation would take now."""

    operator: Address
    deposited: Amount
    allocated: Mapping[OperatorRole, Amount]
    member: frozenset[OperatorRole]
    slashable: frozenset[OperatorRole]  # members, and who left less than `deallocation_blocks` ago
    withdrawing: Amount
    withdraw_block: int  # 0: no withdrawal waits
    ejected_until: int  # Unix seconds; 0: it may join


class Stakes(Protocol):
    """Stake of operators: deposited, allocated to roles, slashed by the validation service alone.

    - As with `Ledger`: a change is final when the call returns, its sender is `signer`, a refused one raises
      `PaymentError`, an unreachable chain `Unavailable`.
    """

    async def info(self) -> StakeInfo: ...

    async def stake(self, operator: Address) -> StakeView: ...

    async def members(self, role: OperatorRole) -> tuple[Address, ...]:
        """Who is in the role's operator set, in no order that means anything."""
        ...

    async def is_slashable(self, operator: Address, role: OperatorRole) -> bool: ...

    async def deposit(self, amount: Amount, *, signer: SigningKey) -> Digest: ...

    async def allocate(self, role: OperatorRole, wad: int, *, signer: SigningKey) -> Digest:
        """So much of the deposit (in 1/10^18) answers for the role. Less counts after the deallocation delay."""
        ...

    async def join(self, role: OperatorRole, *, signer: SigningKey) -> Digest:
        """Needs a line in the registry with this role, and the minimum allocated."""
        ...

    async def leave(self, role: OperatorRole, *, signer: SigningKey) -> Digest: ...

    async def queue_withdrawal(self, amount: Amount, *, signer: SigningKey) -> Digest:
        """Slashable until it is withdrawn; one at a time."""
        ...

    async def withdraw(self, *, signer: SigningKey) -> Digest:
        """What was queued, less what was slashed meanwhile, once the deallocation delay has passed."""
        ...

    async def close(self) -> None: ...


class Validation(Protocol):
    """Epoch roots, plans, cases against operators, and what becomes of slashed stake.

    - Changes are final, sent by `signer` and refused as in `Stakes`. Moments are Unix seconds of the chain's clock.
    - `draw`, `decide`, `execute`, `fix_beacon`, `finish_refunds`, `pay_refund` and `default_challenge` may be called by
      anybody, and must be refused (never done twice) when they are not due.
    """

    async def parameters(self) -> ValidationParameters: ...

    async def now(self) -> tuple[int, int]:
        """Timestamp and number of the newest block: what deadlines are held against."""
        ...

    # roots and plans

    async def post_root(
        self, receipt_key: Address, epoch: int, root: Digest, first_seq: int, count: int, *, signer: SigningKey
    ) -> Digest:
        """A worker's receipts of an epoch that has ended. `first_seq` must follow the key's last root (1 at first)."""
        ...

    async def roots_of(self, worker: Address, receipt_key: Address) -> tuple[EpochRoot, ...]: ...

    async def last_root(self, worker: Address, receipt_key: Address) -> EpochRoot | None:
        """The newest of `roots_of`, without reading the others."""
        ...

    async def commit_plan(self, epoch: int, root: Digest, count: int, *, signer: SigningKey) -> Digest:
        """Before the epoch begins, by a member of the validators' set, once."""
        ...

    async def plan_of(self, validator: Address, epoch: int) -> PlanCommitment | None: ...

    async def fix_beacon(self, epoch: int, *, signer: SigningKey) -> Digest:
        """Called twice: once the epoch's roots are final it names a block to come; after that block it keeps its
        hash."""
        ...

    async def beacon_of(self, epoch: int) -> Digest | None: ...

    # cases

    async def open_case(self, accusation: Accusation, *, signer: SigningKey) -> int:
        """Bonded, by a member of the validators' set or by anyone who pays the bond. Gives the case's id (1, 2, ..)."""
        ...

    async def case(self, case: int) -> Case | None: ...

    async def cases(self, first: int = 1) -> tuple[Case, ...]:
        """Every case from id `first` on, in order."""
        ...

    async def draw(self, case: int, *, signer: SigningKey) -> Digest: ...

    async def commit_verdict(self, case: int, commitment: Digest, *, signer: SigningKey) -> Digest:
        """`verdict_commitment(...)`. When the last juror has committed, revealing begins at once."""
        ...

    async def reveal_verdict(self, case: int, verdict: Verdict, salt: Digest, *, signer: SigningKey) -> Digest: ...

    async def certify(
        self, case: int, verdict: Verdict, timestamp: int, certificate: bytes, *, signer: SigningKey
    ) -> Digest:
        """Ends the round by the signatures of two thirds of its jury, each of whom has committed. Sender: anybody."""
        ...

    async def decide(self, case: int, *, signer: SigningKey) -> Digest: ...

    async def reveal_plant(self, case: int, verdict: Verdict, salt: Digest, *, signer: SigningKey) -> Digest:
        """The accuser, while the case is DECIDED or QUEUED."""
        ...

    async def appeal(self, case: int, *, signer: SigningKey) -> Digest: ...

    async def veto(self, case: int, *, signer: SigningKey) -> Digest: ...

    async def execute(self, case: int, *, signer: SigningKey) -> Digest: ...

    async def convictions(self, operator: Address) -> int:
        """Strikes among its last `strike_cases` cases."""
        ...

    async def credit_of(self, account: Address) -> Amount:
        """Fees, returned bonds and bounties that wait for `account`."""
        ...

    async def collect(self, *, signer: SigningKey) -> Digest: ...

    # objective faults: no jury, no veto

    async def prove_equivocation(self, one: SignedReceipt, other: SignedReceipt, *, signer: SigningKey) -> Digest: ...

    async def challenge_receipt(self, held: SignedReceipt, *, signer: SigningKey) -> int:
        """Bonded: its worker must show it inside a root in time, or lose its stake. Gives the challenge's id."""
        ...

    async def answer_challenge(
        self, challenge: int, root_index: int, proof: Sequence[Digest], *, signer: SigningKey
    ) -> Digest: ...

    async def default_challenge(self, challenge: int, *, signer: SigningKey) -> Digest:
        """The time for an answer has passed."""
        ...

    async def challenges(self, first: int = 1) -> tuple[Challenge, ...]: ...

    # restitution

    async def restitution(self, sentence: int) -> Restitution | None: ...

    async def claim_refund(
        self, sentence: int, held: SignedReceipt, claim: RefundClaim, *, signer: SigningKey
    ) -> Digest:
        """Within `claim_seconds` of the slash. Sender: anybody, so that a claimant needs no gas."""
        ...

    async def finish_refunds(self, sentence: int, *, signer: SigningKey) -> Digest: ...

    async def pay_refund(self, sentence: int, payout: Address, *, signer: SigningKey) -> Digest: ...

    async def insurance(self) -> Amount: ...

    async def close(self) -> None: ...
