# SPDX-License-Identifier: Apache-2.0
"""What a client is told at its start. Values only: nothing here reads a file or an environment variable.

Always: every limit is finite, and the budget is the most that can ever be lost to a proxy that cheats (spec PAY-22).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from bombyx.ports import ProxyTransport
from bombyx.protocol.primitives import Address, Digest
from bombyx.protocol.wire.request import DEFAULT_FRAME, Shape
from bombyx.protocol.wire.signing import SigningKey

DEFAULT_PORT: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyLine:
    """One proxy: its registered address, and how to reach it."""

    address: Address
    transport: ProxyTransport = field(repr=False)
    url: str = ""

    @property
    def key(self) -> tuple[Address, str]:
        """Replicas of one proxy have its address, and each a URL."""
        return self.address, self.url


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientKeys:
    """`owner` deposits and withdraws (payer); `session` signs vouchers and grants (payerAuthorizer)."""

    owner: SigningKey
    session: SigningKey
    external: Address | None = None  # the payer's account where its key is elsewhere; `owner` then sends and pays gas

    @property
    def payer(self) -> Address:
        """Whose tokens are deposited."""
        return self.external or self.owner.address


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """Everything a client needs to know besides its ports and keys."""

    k: int = 3  # candidates of one request
    single_share_bps: int = 1000  # this share of requests goes out at k = 1, as canaries do (MKT-4)
    shape: Shape = Shape.CONSTANT
    frame_size: int = 0  # bytes of one sealed frame; 0: the shape's own default
    default_output: int = 1024  # tokens, when the application names no limit
    deadline_seconds: float = 120.0
    max_body: int = 32 << 20  # bytes of one request from the application
    max_answer: int = 64 << 20  # bytes of one answer that is not streamed
    max_price_input: int | None = None  # base units per million input units; dearer workers are not asked
    max_price_output: int | None = None  # the same of output units
    max_commission_bps: int = 2_000  # a proxy that takes more is not asked
    budget: int = 100_000_000  # token base units this client may ever sign away; 100 of a 6-decimal token
    deposit: int = 10_000_000  # token base units put into a channel at a time
    withdraw_delay: int = 86_400  # seconds; how long the payee may still claim after we start to withdraw
    withdrawal_seconds: float = 60.0  # how often withdrawals under way are looked at
    directory_seconds: float = 10.0  # how long a proxy's directory is used before it is asked again
    registry_seconds: float = 30.0
    registry_stale_seconds: float = 300.0  # how old it may get while the chain does not answer
    keep_openings: bool = False  # keep output ids beside receipts; they spell the answers
    claim_refunds: bool = True  # from convicted workers; each claim shows on chain that its receipt was ours
    refund_to: Address | None = None  # None: the payer's own account
    keep_audits: bool = False  # keep what re-runs an answer: it holds the prompt
    audits_days: int = 7
    audits_most: int = 1_000
    models: tuple[tuple[str, Digest], ...] = ()  # names pinned to a manifest by the user
    endpoint_hosts: tuple[str, ...] = ()  # further Host names the endpoint answers to; loopback names always

    @property
    def frame(self) -> int:
        """Bytes of one sealed frame."""
        return self.frame_size or DEFAULT_FRAME[self.shape]


@dataclass(frozen=True, slots=True, kw_only=True)
class PaidSettings:
    """What a client that sells answers to strangers is told besides. Amounts in token base units, times in seconds."""

    margin_bps: int = 1_000  # on what an answer costs us, in 1/10 000
    min_deposit: int = 1_000_000  # a smaller one is not carried to the chain: each costs us gas
    withdraw_delay: int = 86_400  # of channels to us
    claim_threshold: int = 1_000_000
    claim_seconds: float = 300.0  # between looks at what is to be claimed
    claim_age: int = 86_400
    view_seconds: float = 15.0  # how old the chain's view of a channel may be
    max_open: int = 64  # answers under way
    lookups: int = 8  # channels looked up, and deposits carried, at once
    rate: float = 20.0  # requests per second of one address, with a burst of two seconds' worth
    linger_seconds: float = 10.0  # how long an answer that was left runs on, for a receipt of what was delivered
