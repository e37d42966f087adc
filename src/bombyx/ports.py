# SPDX-License-Identifier: Apache-2.0
"""Everything bombyx asks of the outside world: one page of Protocols, each with its promises.

Roles know these and nothing of what stands behind them; `compose.py` joins the two. `adapters/memory.py` doubles
them all for tests. Foreign exceptions never pass: an adapter raises `bombyx.errors` only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, Final, NamedTuple, Protocol

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
from bombyx.protocol.audit.margin import Row
from bombyx.protocol.pay.view import ChannelView as ChannelView
from bombyx.protocol.pay.view import Claim as Claim
from bombyx.protocol.pay.x402_payment import Deposit
from bombyx.protocol.primitives import Address, Amount, Digest, Instant
from bombyx.protocol.wire.audit import SamplerBlock
from bombyx.protocol.wire.channel import ChannelConfig
from bombyx.protocol.wire.evidence import BlockHeader
from bombyx.protocol.wire.receipt import SignedReceipt
from bombyx.protocol.wire.signing import SigningKey

# --- time and chance -------------------------------------------------------------------------------------------------


class Clock(Protocol):
    """Two clocks: `now` for dates others see, `monotonic` (seconds) for everything that must not be turned back."""

    def now(self) -> Instant: ...

    def monotonic(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class Entropy(Protocol):
    """Must be a cryptographically secure source; a test may pass a seeded one."""

    def bytes(self, size: int) -> bytes: ...


class Signer(Protocol):
    """An account whose key is elsewhere: another process, a device.

    - `data` is EIP-712 typed data as `eth_signTypedData_v4` takes it; `digest` is what it comes to. Must give 65 bytes
      by `address` over exactly that digest, or raise: `Unavailable` when it refuses or does not answer.
    """

    @property
    def address(self) -> Address: ...

    async def sign_typed(self, data: Mapping[str, Any], digest: Digest) -> bytes: ...


# --- storage ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to change what `name` stands for. `token` is larger than that of every earlier lease of the name."""

    name: bytes
    token: int


class Write(NamedTuple):
    """One row of a batch. `value` None deletes. `lease`: what the row's owner must still hold for it to be written."""

    table: str
    key: bytes
    value: bytes | None
    lease: Lease | None = None


class Store(Protocol):
    """Durable rows, written before they are acted on.

    - `write` must return only when the whole batch would survive a crash (group commit allowed), all rows or none.
    - `write` must raise `LeaseLost`, and write nothing, when a row's lease has a successor. A store that one process
      alone uses has no leases to check.
    - `read` and `scan` must see every finished write; `scan` is in key order.
    - Must raise `Unavailable` when it cannot promise this.
    """

    async def write(self, rows: Sequence[Write]) -> None: ...

    async def read(self, table: str, key: bytes) -> bytes | None: ...

    async def scan(self, table: str, *, prefix: bytes = b"", limit: int | None = None) -> list[tuple[bytes, bytes]]: ...

    async def close(self) -> None: ...


class Leases(Protocol):
    """Which of several processes over one store has what in hand. One object a process: the holder.

    - A name must have one holder at a time. `acquire` must raise `HeldElsewhere`, with the holder's URL, while another
      process has the name and has renewed within the time to live; the store's clock decides, never a holder's.
    - `acquire` of a name that lapsed must make its older leases worthless at once: the store refuses their rows.
    - `announce` says how this holder is reached: what others hear in `HeldElsewhere`.
    - `renew` keeps everything this holder has, and must return the names that were taken from it since.
    - `leave` gives everything back, so that others need not wait. After it nothing else is called.
    """

    async def acquire(self, name: bytes) -> Lease: ...

    async def announce(self, url: str) -> None: ...

    async def release(self, leases: Sequence[Lease]) -> None: ...

    async def renew(self) -> frozenset[bytes]: ...

    async def leave(self) -> None: ...


# --- chain -----------------------------------------------------------------------------------------------------------


class OperatorRole(StrEnum):
    PROXY = "proxy"
    WORKER = "worker"
    VALIDATOR = "validator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One line of the registry: what the operator last published of itself."""

    address: Address
    role: OperatorRole
    endpoint: str  # proxies: where clients and workers reach it; workers: empty, they dial out
    receipt_address: Address  # workers: attested receipt key; proxies: the key that signs welcomes
    pay_authorizer: Address  # receiverAuthorizer of channels to this operator
    pay_key_config: bytes  # RFC 9458 key configuration session keys are sealed to
    price_sheet: Digest
    models: tuple[Digest, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerInfo:
    """Constants of a chain: everything a domain separator is made of."""

    chain_id: int
    settlement: Address  # BatchSettlement contract
    registry: Address  # OperatorRegistry contract; receipt domain
    token: Address
    kind: str  # "memory" or "evm"


class ReferenceKind(IntEnum):
    """What a publisher holds good, as contracts/ReferenceValues.vy numbers it."""

    MEASUREMENT = 1  # an enclave image, by its compose hash
    MODEL = 2  # a model manifest, by its digest


MAX_PUBLISHERS: Final = 32  # in one question


class Ledger(Protocol):
    """The chain: blocks, channels, operators, publishers' Reference Values.

    - A method that changes state must return only when the change is final for our purposes, and give its reference
      (a transaction hash; a counter in memory). Its sender is `signer`: whoever a contract would demand as msg.sender.
    - A refused change must raise `PaymentError` with the rule; an unreachable chain must raise `Unavailable`.
    """

    async def info(self) -> LedgerInfo: ...

    async def head(self) -> BlockHeader: ...

    async def block(self, block_hash: Digest) -> BlockHeader | None: ...

    async def balance(self, account: Address) -> Amount: ...

    async def deposit(self, config: ChannelConfig, amount: Amount, *, signer: SigningKey) -> Digest:
        """Open the channel, or top it up. Sender: the payer."""
        ...

    async def channel(self, channel: Digest) -> ChannelView | None: ...

    async def claim(self, claims: Sequence[Claim], *, signer: SigningKey) -> Digest:
        """Pay vouchers out to their receivers, all or none. Sender: each one's receiver or receiver authorizer."""
        ...

    async def claim_signed(self, claims: Sequence[Claim], authorization: bytes, *, signer: SigningKey) -> Digest:
        """The same for claims of one receiver authorizer, which signed the batch (`claim_batch_digest`): anybody may
        send them."""
        ...

    async def initiate_withdraw(self, channel: Digest, amount: Amount, *, signer: SigningKey) -> Digest:
        """Sender: the payer or its authorizer; claims stay possible until the delay has passed."""
        ...

    async def finalize_withdraw(self, channel: Digest, *, signer: SigningKey) -> Digest:
        """Sender: the payer or its authorizer, after the delay."""
        ...

    async def leaving(self) -> frozenset[Digest] | None:
        """Channels whose payers began to withdraw since this process last asked; each at least once, some again. None:
        it is not known, and whatever depends on it must look at its channels."""
        ...

    async def refund(
        self, channel: Digest, amount: Amount, nonce: int, signature: bytes, *, signer: SigningKey
    ) -> Digest:
        """Give back at once what the payee releases: `signature` is the receiver authorizer's. Sender: anybody."""
        ...

    async def register(self, operator: Operator, *, signer: SigningKey) -> Digest:
        """Publish one's own line of the registry. Sender: the operator."""
        ...

    async def operators(self, role: OperatorRole) -> tuple[Operator, ...]: ...

    async def references_agreed(self, publishers: Sequence[Address], quorum: int, kind: int, reference: Digest) -> bool:
        """Whether `quorum` of `publishers` hold it good now. None asked, quorum 0 or out of reach: no."""
        ...

    async def propose_reference(self, kind: int, reference: Digest, uri: str, *, signer: SigningKey) -> Digest:
        """Add to the signer's own list; good once the signer's delay has passed. Sender: the publisher."""
        ...

    async def revoke_reference(self, kind: int, reference: Digest, *, signer: SigningKey) -> Digest:
        """Take out of the signer's own list, at once. Sender: the publisher."""
        ...

    async def set_publisher_delay(self, seconds: int, *, signer: SigningKey) -> Digest:
        """How long the signer's additions wait. A shorter delay counts after the one it replaces."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DepositTerms:
    """What a payer must know to sign a deposit that others carry: the collector, and the token's EIP-712 domain."""

    collector: Address
    token_name: str
    token_version: str


class Carrier(Protocol):
    """Takes deposits to the chain for payers without gas (ERC-3009).

    - `carry` must return once the deposit is final for our purposes, as `Ledger.deposit` does; `signer` pays the gas.
    - A deposit the chain refuses must cost no gas where that can be told beforehand, and raise `PaymentError`.
    """

    async def terms(self) -> DepositTerms: ...

    async def carry(self, config: ChannelConfig, deposit: Deposit, *, signer: SigningKey) -> Digest: ...


# --- stake and cases -------------------------------------------------------------------------------------------------


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


# --- enclave ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """What the hardware (or its simulator) says: the quote's bytes and the event log that explains its RTMRs."""

    technology: str
    quote: bytes
    event_log: bytes
    compose: bytes


class EvidenceSource(Protocol):
    """The enclave's own attestation device.

    - Must put exactly `report_data` (64 bytes) into the quote.
    - `gpu` gives GPU evidence for `nonce`, or None where the image cannot open a GPU.
    """

    async def quote(self, report_data: bytes) -> Quote: ...

    async def gpu(self, nonce: bytes) -> bytes | None: ...


class EndorsementSource(Protocol):
    """Where a Verifier gets what vouches for the hardware (RFC 9334: Endorser).

    - Must return bytes exactly as the Endorser signed them.
    - Must raise `Unavailable` when it cannot answer; never a stale default.
    """

    async def endorsements(self, quote: bytes) -> bytes: ...


# --- engine ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditAsk:
    """An answer that can be re-run is wanted: the root every choice's seed comes from (AUD-1)."""

    root: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAudit:
    """How an auditable answer was made: what nobody but the engine knows."""

    prompt_ids: tuple[int, ...] = field(repr=False)
    sampler: SamplerBlock = field(repr=False)
    engine: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One OpenAI request. `repr` shows no content."""

    path: str  # "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
    body: bytes = field(repr=False)
    stream: bool
    cache_salt: bytes = field(repr=False)  # the engine isolates its prefix cache by it, or has none
    max_output: int  # tokens
    deadline_seconds: float
    audit: AuditAsk | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineHead:
    status: int
    content_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChunk:
    """Bytes for the application (whole SSE events, or the whole JSON body), and the output ids they carry by choice."""

    data: bytes = field(repr=False)
    ids: tuple[tuple[int, tuple[int, ...]], ...] = field(default=(), repr=False)
    input: int | None = None  # tokens of input, where the engine tells before its end: checkpoints bill them
    cached_input: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineUsage:
    """What the engine counted. `ids` per choice, or None when the engine gives none; `verified` when both agree."""

    input: int
    cached_input: int
    output: int
    ids: tuple[tuple[int, ...], ...] | None = field(repr=False)
    finish: tuple[str, ...]
    verified: bool
    note: str
    audit: EngineAudit | None = None  # none: this answer cannot be re-run
    audit_why: str = ""  # and why not, for people


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEnd:
    usage: EngineUsage


EngineEvent = EngineHead | EngineChunk | EngineEnd


class Engine(Protocol):
    """A model server on loopback, inside the enclave.

    - `run` must yield one EngineHead, then EngineChunks, then one EngineEnd; closing it must cancel the work.
    - Must pass the request through untouched but for what is needed to learn ids and usage, and must take those
      additions out of the answer again.
    - Must raise `EngineUnavailable` for a crash, a hang or garbage, `DeadlineExceeded` past the deadline.
    """

    async def models(self) -> tuple[str, ...]: ...

    def run(self, request: EngineRequest) -> AsyncIterator[EngineEvent]: ...

    async def close(self) -> None: ...


class Prefill(Protocol):
    """The claimed model, read in one pass over a prompt and the answer somebody says it gave: rows, never text.

    - `render` must give the prompt's ids as the pinned chat template and tokenizer make them. What cannot be re-run, or
      is not understood, it must refuse with `BadRequest`, never leave out.
    - `score` must give one row for each output id, in order, each with at least `top` candidates (all there are, if the
      vocabulary is smaller). Row i predicts output_ids[i] from everything before it.
    - Must not block the caller's loop. Must raise `EngineUnavailable` for a crash, a hang or garbage, and
      `BadRequest` for more ids than the model's context holds, or ids it does not have.
    """

    async def render(self, path: str, body: bytes) -> tuple[int, ...]: ...

    async def score(self, prompt_ids: Sequence[int], output_ids: Sequence[int], *, top: int) -> tuple[Row, ...]: ...

    async def close(self) -> None: ...


# --- the wires between roles -----------------------------------------------------------------------------------------


class ProxyResponse(Protocol):
    """A proxy's answer to one sealed request: status, headers, and bytes as they come."""

    status: int
    headers: dict[str, str]

    def body(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None: ...


class ProxyTransport(Protocol):
    """How a client reaches one proxy.

    - Must raise `Unavailable` when the proxy cannot be reached or the connection breaks before the head.
    - A connection that breaks inside the body must raise `StreamTruncated` out of `body()`.
    """

    async def get(self, path: str) -> tuple[int, bytes]: ...

    async def post(self, path: str, content_type: str, body: bytes) -> ProxyResponse: ...

    async def close(self) -> None: ...


class Link(Protocol):
    """One WebSocket between a worker and a proxy, seen from either end: whole messages of link frames.

    - `send` must not block the caller's loop; `buffered` tells how many bytes wait (back-pressure is the caller's).
    - Messages are taken in one of two ways, chosen once: `messages()` for a task, `attach()` for callbacks (hot paths).
    - `messages` must end (not raise) when the other side closes; `on_close` must be called exactly once.
    - Must stop reading from the network when the reader falls behind, rather than grow.
    """

    def send(self, data: bytes) -> None: ...

    @property
    def buffered(self) -> int: ...

    async def drain(self) -> None: ...

    def messages(self) -> AsyncIterator[bytes]: ...

    def attach(self, on_message: Callable[[bytes], None], on_close: Callable[[], None]) -> None: ...

    async def close(self) -> None: ...


class Dialer(Protocol):
    """How a worker reaches a proxy. Must raise `Unavailable` when it cannot."""

    async def dial(self, url: str) -> Link: ...


# --- HTTP, served ----------------------------------------------------------------------------------------------------


class HttpRequest(Protocol):
    """One whole request: within limits, unambiguous (RFC 9112 section 6.3). Header names in lower case."""

    @property
    def method(self) -> str: ...

    @property
    def path(self) -> str: ...

    @property
    def query(self) -> str: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def body(self) -> bytes: ...

    @property
    def peer(self) -> str: ...


class HttpExchange(Protocol):
    """One request and the way to answer it: `respond` at once, or `start`, `write`..., `end`.

    - Nothing here blocks or raises when the other side is gone: `disconnected` is true and writes go nowhere.
    - `on_disconnect` must be called once, and only if the other side goes before the answer ended.
    - `paused` is true while the other side reads slower than we write; `on_resume` is called when it catches up.
    - `abort` must cut the connection so that the other side sees a truncated answer, never a short one.
    """

    on_disconnect: Callable[[], None] | None
    on_resume: Callable[[], None] | None

    @property
    def request(self) -> HttpRequest: ...

    @property
    def paused(self) -> bool: ...

    @property
    def disconnected(self) -> bool: ...

    @property
    def started(self) -> bool: ...

    def respond(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None: ...

    def start(self, status: int, headers: Mapping[str, str]) -> None: ...

    def write(self, data: bytes) -> None: ...

    def end(self, data: bytes = b"") -> None: ...

    def abort(self) -> None: ...

    async def drain(self) -> None: ...


HttpHandler = Callable[[HttpExchange], None]  # may start a task; must not block
