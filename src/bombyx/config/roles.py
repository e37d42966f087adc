# SPDX-License-Identifier: Apache-2.0
"""What an operator may set, per role: each setting with its default, its bounds and its sentence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, TypeVar

from bombyx.errors import ConfigError
from bombyx.protocol.pay.price import MAX_COMMISSION, MAX_GRAIN
from bombyx.protocol.primitives import Address
from bombyx.protocol.wire.evidence import MAX_KEYSET_LIFE
from bombyx.protocol.wire.request import MAX_DEADLINE, MAX_FRAME, MIN_FRAME

BEACON_AGE: Final = 120  # seconds a beacon may be older than the keyset that names it; a block takes 12 on slow chains
SQLITE: Final = "sqlite"


def setting(
    default: Any, help_text: str, *, least: float | None = None, most: float | None = None, secret: bool = False
) -> Any:
    """`secret`: it may hold a password, and is shown and printed without."""
    bounds = {"help": help_text, "least": least, "most": most, "secret": secret}
    return field(default=default, metadata=bounds, repr=not secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """The client role: the local OpenAI endpoint and what it spends."""

    ROLE: ClassVar[str] = "client"
    host: str = setting("127.0.0.1", "address of the local endpoint; a non-loopback one needs --expose")
    port: int = setting(10_000, "port of the local endpoint", least=0, most=65_535)
    k: int = setting(3, "candidates each request is sealed to", least=1, most=8)
    single_share_bps: int = setting(1_000, "share of requests sent at k = 1, in 1/10 000", least=0, most=10_000)
    shape: str = setting("constant", "how answers are laid out in size and time: constant, bucket or off")
    frame_size: int = setting(0, "bytes of one sealed frame; 0: 1 024, for bucket 256", least=0, most=MAX_FRAME)
    max_output: int = setting(1_024, "output tokens when the application names no limit", least=1, most=1_000_000)
    deadline: float = setting(120.0, "seconds a request may take", least=1, most=MAX_DEADLINE)
    deposit: int = setting(5_000_000, "token base units placed in a channel when it is opened", least=1)
    max_commission_bps: int = setting(
        2_000, "commission a proxy may take, in 1/10 000; others are not asked", least=0, most=MAX_COMMISSION
    )
    max_price_input: int = setting(0, "most base units per million input units; 0: any", least=0)
    max_price_output: int = setting(0, "most base units per million output units; 0: any", least=0)
    budget: int = setting(50_000_000, "token base units this client may commit in all", least=1)
    claim_refunds: bool = setting(True, "claim refunds from convicted workers; a claim shows that a receipt was ours")
    refund_to: str = setting("", "address refunds are paid to; empty: the owner's own")
    keep_audits: bool = setting(False, "keep what re-runs an answer, prompt included, for `bombyx audit`")
    audits_days: int = setting(7, "days such a package is kept", least=1, most=3_650)
    signer: str = setting("", "URL of an external signer (clef) that holds the owner key; empty: the key is here")
    signer_account: str = setting("", "the owner's address there")

    def check(self) -> None:
        """What no single bound can say. Raises `ConfigError`."""
        if 0 < self.frame_size < MIN_FRAME:
            raise ConfigError(f"client.frame_size = {self.frame_size} is below {MIN_FRAME}", rule="SEAL-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyConfig:
    """The proxy role: where it listens and what it takes."""

    ROLE: ClassVar[str] = "proxy"
    host: str = setting("127.0.0.1", "address to listen on")
    port: int = setting(11_000, "port for clients and workers; 0 takes a free one", least=0, most=65_535)
    public_url: str = setting("", "URL others reach this proxy at; empty: made from host and port")
    commission_bps: int = setting(500, "commission on workers' prices, in 1/10 000", least=0, most=MAX_COMMISSION)
    max_body: int = setting(36 << 20, "bytes of one sealed request", least=1_024, most=1 << 30)
    open_per_channel: int = setting(32, "requests one channel may have open", least=1, most=10_000)
    rate_per_channel: float = setting(50.0, "requests per second one channel may make", least=0.01)
    float_limit: int = setting(20_000_000, "token base units placed in each worker's channel", least=1)
    claim_threshold: int = setting(1_000_000, "token base units owed on one channel that are claimed at once", least=1)
    claim_age: int = setting(86_400, "seconds after which any debt is claimed", least=1)
    claim_every: float = setting(
        30.0, "seconds between looks at the chain: a withdrawal is answered within", least=0.1, most=300
    )
    store: str = setting(
        SQLITE, "`sqlite`: a file of its own; postgresql://USER:PASSWORD@HOST/NAME: shared by replicas", secret=True
    )
    replica_url: str = setting("", "URL this one of several replicas is reached at; empty: public_url")
    tls_cert: str = setting("", "certificate chain (PEM); empty: no TLS here")
    tls_key: str = setting("", "its private key (PEM)")
    expose_views: bool = setting(False, "serve what this proxy saw of each request (for demonstrations)")

    def check(self) -> None:
        """What no single bound can say. Raises `ConfigError`."""
        if self.store != SQLITE and not self.store.startswith(("postgresql://", "postgres://")):
            raise ConfigError("proxy.store is `sqlite` or a postgresql:// URL")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """The worker role: which engine it runs and what it asks for."""

    ROLE: ClassVar[str] = "worker"
    engine: str = setting("embedded", "`embedded`, or the base URL of an OpenAI-compatible server on loopback")
    dialect: str = setting(
        "auto", "what an external engine is: vllm, sglang, llama.cpp, plain for any other; auto asks it"
    )
    model: str = setting("", "model name offered; empty: what the engine calls it")
    model_file: str = setting("", "GGUF file for the embedded engine; empty: the packaged model")
    manifest: str = setting("", "an external engine's manifest, as `bombyx model manifest` wrote it; empty: none")
    tokens: str = setting("", "the token table that manifest names")
    calibration: str = setting("", "the embedded engine's, of `bombyx calibrate --out`; empty: what ships, if any")
    pccs: str = setting("", "URL of the PCCS that endorses this hardware; empty: Intel's own service")
    hardware: str = setting("cpu", "hardware class offered: cpu, gpu, h100")
    price_input: int = setting(200_000, "token base units per million input units", least=0)
    price_cached: int = setting(20_000, "token base units per million cached input units", least=0)
    price_output: int = setting(800_000, "token base units per million output units", least=0)
    grain: int = setting(16, "units are rounded up to multiples of this", least=1, most=MAX_GRAIN)
    capacity: int = setting(4, "requests at once", least=1, most=4_096)
    claim_threshold: int = setting(1_000_000, "token base units owed on one channel that are claimed at once", least=1)
    claim_age: int = setting(86_400, "seconds after which any debt is claimed", least=1)
    claim_every: float = setting(
        60.0, "seconds between looks at the chain: a withdrawal is answered within", least=0.1, most=300
    )
    threads: int = setting(1, "threads of the embedded engine", least=1, most=256)
    context: int = setting(2_048, "tokens of context of each request, embedded engine", least=256, most=1_048_576)
    rotation: float = setting(3_600.0, "seconds between key rotations", least=1, most=5_400)
    overlap: float = setting(600.0, "seconds an old key still opens requests", least=0.1, most=1_800)
    receipts_kept: int = setting(200_000, "receipts kept, the newest", least=1_000)
    receipts_days: float = setting(30.0, "days a receipt is kept", least=0.1, most=3_650)
    enclave: str = setting("simulated", "the enclave's device: simulated, dstack, tappd (older dstack) or configfs")
    enclave_endpoint: str = setting("", "socket or URL of the dstack agent; empty: where its own clients look")
    stake: int = setting(0, "token base units staked for the answers at start; 0: none are added", least=0)
    appeal: bool = setting(True, "appeal at once when a jury convicts; it costs a bond, lost if the next one agrees")

    def check(self) -> None:
        """What no single bound can say. Raises `ConfigError`."""
        life, most = self.rotation + self.overlap, MAX_KEYSET_LIFE - BEACON_AGE
        if life > most:
            raise ConfigError(
                f"worker.rotation + worker.overlap = {life:g} s is above {most}: verifiers grant a keyset"
                f" {MAX_KEYSET_LIFE} s from its beacon, which is up to {BEACON_AGE} s older",
                rule="ATT-3",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SellConfig:
    """A client that sells answers to strangers by x402; what it spends itself stands in `ClientConfig`."""

    ROLE: ClassVar[str] = "sell"
    host: str = setting("127.0.0.1", "address to listen on")
    port: int = setting(10_402, "port to listen on; 0 takes a free one", least=0, most=65_535)
    public_url: str = setting("", "URL strangers reach it at; empty: made from host and port")
    margin_bps: int = setting(1_000, "on what an answer costs us, in 1/10 000", least=0, most=MAX_COMMISSION)
    min_deposit: int = setting(1_000_000, "base units; we pay the gas of every deposit", least=1)
    withdraw_delay: int = setting(86_400, "seconds, of channels to us", least=900, most=2_592_000)
    claim_threshold: int = setting(1_000_000, "base units owed on a channel before they are claimed", least=1)
    claim_every: float = setting(300.0, "seconds between looks at what is to be claimed", least=1, most=3_600)
    max_open: int = setting(64, "answers under way", least=1, most=10_000)
    max_body: int = setting(4 << 20, "bytes of one request", least=1_024, most=32 << 20)
    rate: float = setting(20.0, "requests per second of one address", least=0.01)

    def check(self) -> None:
        """Every bound stands alone but one, which the client's deadline decides (`compose/sell.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidatorConfig:
    """The validator role: what it checks answers with, how often it asks, what it stakes."""

    ROLE: ClassVar[str] = "validator"
    host: str = setting("127.0.0.1", "address to listen on")
    port: int = setting(
        12_000, "port of its page, where jurors fetch evidence; 0 takes a free one", least=0, most=65_535
    )
    public_url: str = setting("", "URL others reach that page at; empty: made from host and port")
    model_file: str = setting("", "GGUF file answers are re-run with; empty: the packaged model")
    engine: str = setting("", "URL of a vLLM on loopback that re-runs answers instead; needs manifest and tokens")
    manifest: str = setting("", "manifest of the model that vLLM serves, as `bombyx model manifest` wrote it")
    tokens: str = setting("", "the token table that manifest names")
    ends: str = setting("", "its end-of-generation ids, a turn's first, with commas; empty: known by their names")
    threads: int = setting(1, "threads of re-running", least=1, most=256)
    context: int = setting(2_048, "tokens of prompt and answer together", least=256, most=1_048_576)
    stake: int = setting(0, "token base units deposited and allocated at start; 0: what the set demands", least=0)
    canaries: int = setting(4, "canaries per worker, model and epoch", least=1, most=1_000)
    canaries_new: int = setting(8, "the same of a new or suspected worker", least=1, most=1_000)
    most_canaries: int = setting(64, "canaries per worker, model and epoch, whatever it serves", least=1, most=1_000)
    answer_price: int = setting(2_000, "base units an answer costs, about: it says how many are audited", least=1)
    saving_bps: int = setting(5_000, "what a cheat saves of that price, in 1/10 000", least=0, most=10_000)
    opt_in_bps: int = setting(10_000, "share of opted-in answers re-run, in 1/10 000", least=0, most=10_000)
    most_tokens: int = setting(256, "tokens of a canary's answer, at most", least=8, most=1_024)
    single_bps: int = setting(5_000, "share of canaries for one worker alone, in 1/10 000", least=0, most=10_000)
    at_once: int = setting(2, "canaries under way", least=1, most=256)
    watch_every: float = setting(2.0, "seconds between looks at the chain's cases", least=0.2, most=300)
    accuse: bool = setting(True, "open cases; false: only watch, and sit on juries")
    appeal: bool = setting(True, "appeal acquittals of whom we accused, where a second look says guilty; for a bond")
    plants: int = setting(
        0,
        "accusations of the innocent per 1 000 epochs: they find jurors who convict unseen, each for its bond",
        least=0,
        most=1_000,
    )
    decoy: str = setting("", "address of our own worker that answers wrongly: it finds jurors who acquit unseen")
    figures: bool = setting(False, "show everybody what was found of each worker; it tells samples from accusations")
    payers: int = setting(16, "accounts canaries are paid from, one an epoch in turn", least=1, most=4_096)
    deposit: int = setting(1_000_000, "base units placed in an epoch's channel", least=1)
    enclave: str = setting("simulated", "device behind the key that users' answers are sealed to; empty: takes none")
    enclave_endpoint: str = setting("", "socket or URL of the dstack agent; empty: where its own clients look")
    pccs: str = setting("", "URL of the PCCS that endorses this hardware; empty: Intel's own service")

    def check(self) -> None:
        """What no single bound can say. Raises `ConfigError`."""
        if self.canaries_new < self.canaries:
            raise ConfigError("validator.canaries_new is below validator.canaries", rule="AUD-50")
        if self.engine and (self.model_file or not self.manifest or not self.tokens):
            raise ConfigError("validator.engine needs manifest and tokens, and no model_file", rule="AUD-55")
        if not all(part.strip().isdecimal() for part in self.ends.split(",") if self.ends):
            raise ConfigError("validator.ends are ids with commas between them", rule="JDG-4")
        if self.most_canaries < self.canaries_new:
            raise ConfigError("validator.most_canaries is below validator.canaries_new", rule="AUD-50")
        if self.decoy:
            try:
                Address.parse(self.decoy)
            except ValueError as error:
                raise ConfigError(f"validator.decoy: {error}", rule="AUD-59") from None


_KINDS: Final = (ClientConfig, ProxyConfig, WorkerConfig, SellConfig, ValidatorConfig)
RoleConfig = ClientConfig | ProxyConfig | WorkerConfig | SellConfig | ValidatorConfig
C = TypeVar("C", ClientConfig, ProxyConfig, WorkerConfig, SellConfig, ValidatorConfig)
ROLES: Final[dict[str, type[RoleConfig]]] = {c.ROLE: c for c in _KINDS}
