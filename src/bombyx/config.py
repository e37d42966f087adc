# SPDX-License-Identifier: Apache-2.0
"""What an operator may set, per role; the only reader of environment variables and configuration files.

Order, later wins: the defaults below, a TOML file (one table a role), `BOMBYX_<ROLE>_<NAME>`, command-line options.
Always: an unknown name, an ill-typed value or one out of bounds is a `ConfigError` that says where it stood.
`bombyx config show` prints every value and where it came from.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar, get_type_hints

from bombyx.errors import ConfigError
from bombyx.protocol.pay.price import MAX_COMMISSION, MAX_GRAIN
from bombyx.protocol.primitives import Address
from bombyx.protocol.wire.evidence import MAX_KEYSET_LIFE
from bombyx.protocol.wire.request import MAX_DEADLINE, MAX_FRAME, MIN_FRAME

BEACON_AGE: Final = 120  # seconds a beacon may be older than the keyset that names it; a block takes 12 on slow chains
MAX_FILE: Final = 1 << 20  # bytes of a configuration file or a network descriptor


SQLITE: Final = "sqlite"


def _setting(
    default: Any, help_text: str, *, least: float | None = None, most: float | None = None, secret: bool = False
) -> Any:
    """`secret`: it may hold a password, and is shown and printed without."""
    bounds = {"help": help_text, "least": least, "most": most, "secret": secret}
    return field(default=default, metadata=bounds, repr=not secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """The client role: the local OpenAI endpoint and what it spends."""

    ROLE: ClassVar[str] = "client"
    host: str = _setting("127.0.0.1", "address of the local endpoint; a non-loopback one needs --expose")
    port: int = _setting(10_000, "port of the local endpoint", least=0, most=65_535)
    k: int = _setting(3, "candidates each request is sealed to", least=1, most=8)
    single_share_bps: int = _setting(1_000, "share of requests sent at k = 1, in 1/10 000", least=0, most=10_000)
    shape: str = _setting("constant", "how answers are laid out in size and time: constant, bucket or off")
    frame_size: int = _setting(0, "bytes of one sealed frame; 0: 1 024, for bucket 256", least=0, most=MAX_FRAME)
    max_output: int = _setting(1_024, "output tokens when the application names no limit", least=1, most=1_000_000)
    deadline: float = _setting(120.0, "seconds a request may take", least=1, most=MAX_DEADLINE)
    deposit: int = _setting(5_000_000, "token base units placed in a channel when it is opened", least=1)
    max_commission_bps: int = _setting(
        2_000, "commission a proxy may take, in 1/10 000; others are not asked", least=0, most=MAX_COMMISSION
    )
    max_price_input: int = _setting(0, "most base units per million input units; 0: any", least=0)
    max_price_output: int = _setting(0, "most base units per million output units; 0: any", least=0)
    budget: int = _setting(50_000_000, "token base units this client may commit in all", least=1)
    claim_refunds: bool = _setting(True, "claim refunds from convicted workers; a claim shows that a receipt was ours")
    refund_to: str = _setting("", "address refunds are paid to; empty: the owner's own")
    keep_audits: bool = _setting(False, "keep what re-runs an answer, prompt included, for `bombyx audit`")
    audits_days: int = _setting(7, "days such a package is kept", least=1, most=3_650)
    signer: str = _setting("", "URL of an external signer (clef) that holds the owner key; empty: the key is here")
    signer_account: str = _setting("", "the owner's address there")

    def check(self) -> None:
        """What no single bound can say. Raises `ConfigError`."""
        if 0 < self.frame_size < MIN_FRAME:
            raise ConfigError(f"client.frame_size = {self.frame_size} is below {MIN_FRAME}", rule="SEAL-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyConfig:
    """The proxy role: where it listens and what it takes."""

    ROLE: ClassVar[str] = "proxy"
    host: str = _setting("127.0.0.1", "address to listen on")
    port: int = _setting(11_000, "port for clients and workers; 0 takes a free one", least=0, most=65_535)
    public_url: str = _setting("", "URL others reach this proxy at; empty: made from host and port")
    commission_bps: int = _setting(500, "commission on workers' prices, in 1/10 000", least=0, most=MAX_COMMISSION)
    max_body: int = _setting(36 << 20, "bytes of one sealed request", least=1_024, most=1 << 30)
    open_per_channel: int = _setting(32, "requests one channel may have open", least=1, most=10_000)
    rate_per_channel: float = _setting(50.0, "requests per second one channel may make", least=0.01)
    float_limit: int = _setting(20_000_000, "token base units placed in each worker's channel", least=1)
    claim_threshold: int = _setting(1_000_000, "token base units owed on one channel that are claimed at once", least=1)
    claim_age: int = _setting(86_400, "seconds after which any debt is claimed", least=1)
    claim_every: float = _setting(
        30.0, "seconds between looks at the chain: a withdrawal is answered within", least=0.1, most=300
    )
    store: str = _setting(
        SQLITE, "`sqlite`: a file of its own; postgresql://USER:PASSWORD@HOST/NAME: shared by replicas", secret=True
    )
    replica_url: str = _setting("", "URL this one of several replicas is reached at; empty: public_url")
    tls_cert: str = _setting("", "certificate chain (PEM); empty: no TLS here")
    tls_key: str = _setting("", "its private key (PEM)")
    expose_views: bool = _setting(False, "serve what this proxy saw of each request (for demonstrations)")

    def check(self) -> None:
        """What no single bound can say. Raises `ConfigError`."""
        if self.store != SQLITE and not self.store.startswith(("postgresql://", "postgres://")):
            raise ConfigError("proxy.store is `sqlite` or a postgresql:// URL")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """The worker role: which engine it runs and what it asks for."""

    ROLE: ClassVar[str] = "worker"
    engine: str = _setting("embedded", "`embedded`, or the base URL of an OpenAI-compatible server on loopback")
    dialect: str = _setting(
        "auto", "what an external engine is: vllm, sglang, llama.cpp, plain for any other; auto asks it"
    )
    model: str = _setting("", "model name offered; empty: what the engine calls it")
    model_file: str = _setting("", "GGUF file for the embedded engine; empty: the packaged model")
    manifest: str = _setting("", "an external engine's manifest, as `bombyx model manifest` wrote it; empty: none")
    tokens: str = _setting("", "the token table that manifest names")
    pccs: str = _setting("", "URL of the PCCS that endorses this hardware; empty: Intel's own service")
    hardware: str = _setting("cpu", "hardware class offered: cpu, gpu, h100")
    price_input: int = _setting(200_000, "token base units per million input units", least=0)
    price_cached: int = _setting(20_000, "token base units per million cached input units", least=0)
    price_output: int = _setting(800_000, "token base units per million output units", least=0)
    grain: int = _setting(16, "units are rounded up to multiples of this", least=1, most=MAX_GRAIN)
    capacity: int = _setting(4, "requests at once", least=1, most=4_096)
    claim_threshold: int = _setting(1_000_000, "token base units owed on one channel that are claimed at once", least=1)
    claim_age: int = _setting(86_400, "seconds after which any debt is claimed", least=1)
    claim_every: float = _setting(
        60.0, "seconds between looks at the chain: a withdrawal is answered within", least=0.1, most=300
    )
    threads: int = _setting(1, "threads of the embedded engine", least=1, most=256)
    context: int = _setting(2_048, "tokens of context of each request, embedded engine", least=256, most=1_048_576)
    rotation: float = _setting(3_600.0, "seconds between key rotations", least=1, most=5_400)
    overlap: float = _setting(600.0, "seconds an old key still opens requests", least=0.1, most=1_800)
    receipts_kept: int = _setting(200_000, "receipts kept, the newest", least=1_000)
    receipts_days: float = _setting(30.0, "days a receipt is kept", least=0.1, most=3_650)
    enclave: str = _setting("simulated", "the enclave's device: simulated, dstack, tappd (older dstack) or configfs")
    enclave_endpoint: str = _setting("", "socket or URL of the dstack agent; empty: where its own clients look")
    stake: int = _setting(0, "token base units staked for the answers at start; 0: none are added", least=0)
    appeal: bool = _setting(True, "appeal at once when a jury convicts; it costs a bond, lost if the next one agrees")

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
    host: str = _setting("127.0.0.1", "address to listen on")
    port: int = _setting(10_402, "port to listen on; 0 takes a free one", least=0, most=65_535)
    public_url: str = _setting("", "URL strangers reach it at; empty: made from host and port")
    margin_bps: int = _setting(1_000, "on what an answer costs us, in 1/10 000", least=0, most=MAX_COMMISSION)
    min_deposit: int = _setting(1_000_000, "base units; we pay the gas of every deposit", least=1)
    withdraw_delay: int = _setting(86_400, "seconds, of channels to us", least=900, most=2_592_000)
    claim_threshold: int = _setting(1_000_000, "base units owed on a channel before they are claimed", least=1)
    claim_every: float = _setting(300.0, "seconds between looks at what is to be claimed", least=1, most=3_600)
    max_open: int = _setting(64, "answers under way", least=1, most=10_000)
    max_body: int = _setting(4 << 20, "bytes of one request", least=1_024, most=32 << 20)
    rate: float = _setting(20.0, "requests per second of one address", least=0.01)

    def check(self) -> None:
        """Every bound stands alone but one, which the client's deadline decides (`compose/sell.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidatorConfig:
    """The validator role: what it checks answers with, how often it asks, what it stakes."""

    ROLE: ClassVar[str] = "validator"
    host: str = _setting("127.0.0.1", "address to listen on")
    port: int = _setting(
        12_000, "port of its page, where jurors fetch evidence; 0 takes a free one", least=0, most=65_535
    )
    public_url: str = _setting("", "URL others reach that page at; empty: made from host and port")
    model_file: str = _setting("", "GGUF file answers are re-run with; empty: the packaged model")
    threads: int = _setting(1, "threads of re-running", least=1, most=256)
    context: int = _setting(2_048, "tokens of prompt and answer together", least=256, most=1_048_576)
    stake: int = _setting(0, "token base units deposited and allocated at start; 0: what the set demands", least=0)
    canaries: int = _setting(4, "canaries per worker, model and epoch", least=1, most=1_000)
    canaries_new: int = _setting(8, "the same of a new or suspected worker", least=1, most=1_000)
    most_tokens: int = _setting(256, "tokens of a canary's answer, at most", least=8, most=1_024)
    single_bps: int = _setting(5_000, "share of canaries for one worker alone, in 1/10 000", least=0, most=10_000)
    at_once: int = _setting(2, "canaries under way", least=1, most=256)
    watch_every: float = _setting(2.0, "seconds between looks at the chain's cases", least=0.2, most=300)
    accuse: bool = _setting(True, "open cases; false: only watch, and sit on juries")
    plants: int = _setting(
        0,
        "accusations of the innocent per 1 000 epochs: they find jurors who convict unseen, each for its bond",
        least=0,
        most=1_000,
    )
    decoy: str = _setting("", "address of our own worker that answers wrongly: it finds jurors who acquit unseen")
    figures: bool = _setting(False, "show everybody what was found of each worker; it tells samples from accusations")
    payers: int = _setting(16, "accounts canaries are paid from, one an epoch in turn", least=1, most=4_096)
    deposit: int = _setting(1_000_000, "base units placed in an epoch's channel", least=1)
    enclave: str = _setting("simulated", "device behind the key that users' answers are sealed to; empty: takes none")
    enclave_endpoint: str = _setting("", "socket or URL of the dstack agent; empty: where its own clients look")
    pccs: str = _setting("", "URL of the PCCS that endorses this hardware; empty: Intel's own service")

    def check(self) -> None:
        """What no single bound can say. Raises `ConfigError`."""
        if self.canaries_new < self.canaries:
            raise ConfigError("validator.canaries_new is below validator.canaries", rule="AUD-50")
        if self.decoy:
            try:
                Address.parse(self.decoy)
            except ValueError as error:
                raise ConfigError(f"validator.decoy: {error}", rule="AUD-59") from None


_KINDS: Final = (ClientConfig, ProxyConfig, WorkerConfig, SellConfig, ValidatorConfig)
RoleConfig = ClientConfig | ProxyConfig | WorkerConfig | SellConfig | ValidatorConfig
C = TypeVar("C", ClientConfig, ProxyConfig, WorkerConfig, SellConfig, ValidatorConfig)
ROLES: Final[dict[str, type[RoleConfig]]] = {c.ROLE: c for c in _KINDS}


def load(kind: type[C], *, file: Path | None = None, overrides: Mapping[str, Any] | None = None) -> C:
    """The settings of one role. `overrides` holds command-line options; None in it means "not given"."""
    return explain(kind, file=file, overrides=overrides)[0]


def explain(
    kind: type[C], *, file: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> tuple[C, dict[str, str]]:
    """The settings of one role, and for each name where its value came from."""
    values: dict[str, Any] = {}
    origin = dict.fromkeys(_names(kind), "default")
    for source, given in (
        (f"file {file}" if file else "", _from_file(kind, file)),
        ("environment", _from_environment(kind)),
        ("command line", {k: v for k, v in (overrides or {}).items() if v is not None}),
    ):
        for name, value in given.items():
            values[name] = _checked(kind, name, value, source)
            origin[name] = source
    settings = kind(**values)
    settings.check()
    return settings, origin


def shown(settings: RoleConfig) -> dict[str, Any]:
    """Every value, as anybody may see it."""
    hidden = {f.name for f in dataclasses.fields(settings) if f.metadata["secret"]}
    values = dataclasses.asdict(settings)
    return {name: _without_password(value) if name in hidden else value for name, value in values.items()}


def _without_password(url: str) -> str:
    """Everything up to the last @ may be a user and a password; so may what follows a question mark."""
    scheme, found, rest = url.partition("://")
    if not found:
        return url
    place = rest.rpartition("@")[2].partition("?")[0]
    return f"{scheme}://{'***@' if '@' in rest else ''}{place}"


def help_of(kind: type[RoleConfig], name: str) -> str:
    """The sentence that explains one setting."""
    return next(str(f.metadata["help"]) for f in dataclasses.fields(kind) if f.name == name)


def _names(kind: type[RoleConfig]) -> list[str]:
    return [f.name for f in dataclasses.fields(kind)]


def _from_file(kind: type[RoleConfig], file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        table = tomllib.loads(_read(file)).get(kind.ROLE, {})
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not TOML: {error}") from None
    if not isinstance(table, dict):
        raise ConfigError(f"{file}: [{kind.ROLE}] must be a table")
    return table


def _from_environment(kind: type[RoleConfig]) -> dict[str, str]:
    prefix = f"BOMBYX_{kind.ROLE.upper()}_"
    return {n: os.environ[prefix + n.upper()] for n in _names(kind) if prefix + n.upper() in os.environ}


def _checked(kind: type[RoleConfig], name: str, value: Any, source: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if name not in fields:
        raise ConfigError(f"{source}: {kind.ROLE} has no setting {name!r}; it has {', '.join(fields)}")
    wanted = get_type_hints(kind)[name]
    try:
        typed = _typed(wanted, value)
    except (TypeError, ValueError):
        raise ConfigError(f"{source}: {kind.ROLE}.{name} takes a {wanted.__name__}, not {value!r}") from None
    least, most = fields[name].metadata["least"], fields[name].metadata["most"]
    if (least is not None and typed < least) or (most is not None and typed > most):
        raise ConfigError(f"{source}: {kind.ROLE}.{name} = {typed} is outside {least} .. {most or 'any'}")
    return typed


def _typed(wanted: type, value: Any) -> Any:
    if wanted is bool and isinstance(value, str):
        return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[value.lower()]
    if isinstance(value, str) and wanted in (int, float):
        return wanted(value)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not wanted:
        raise TypeError
    return value


def _read(file: Path) -> str:
    try:
        if file.stat().st_size > MAX_FILE:
            raise ConfigError(f"{file} is larger than {MAX_FILE} bytes")
        return file.read_text()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not UTF-8 text") from None


# --- the network a role belongs to -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyAddress:
    """One proxy of a network: its account on chain and where it answers."""

    address: Address
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkDescriptor:
    """How to join a network: its chain, its proxies, and the policy its clients appraise evidence with.

    A descriptor is a starting point, not a source of trust: policies are the reader's own choice. `simulated` is set
    for a network whose enclaves are simulated.
    """

    chain_url: str  # several JSON-RPC nodes of one chain: separated by commas
    proxies: tuple[ProxyAddress, ...]
    policy: Path
    simulated: Path | None  # folder of the simulated platform, for workers that join on this machine
    contracts: dict[str, Any] | None = None  # an EVM chain's address book; none: the in-memory chain

    def to_json(self) -> str:
        return json.dumps(
            {
                "version": 1,
                "chain": {"url": self.chain_url, "contracts": self.contracts},
                "proxies": [{"address": str(p.address), "url": p.url} for p in self.proxies],
                "policy": str(self.policy),
                "simulated_platform": str(self.simulated) if self.simulated else None,
            },
            indent=2,
        )

    @classmethod
    def from_json(cls, text: str, *, where: str = "network descriptor") -> NetworkDescriptor:
        """Raises `ConfigError` that names the missing or ill-typed part."""
        try:
            raw = json.loads(text)
            if raw["version"] != 1:
                raise ConfigError(f"{where}: version {raw['version']} is not 1")
            return cls(
                chain_url=str(raw["chain"]["url"]),
                proxies=tuple(
                    ProxyAddress(address=Address.parse(p["address"]), url=str(p["url"])) for p in raw["proxies"]
                ),
                policy=Path(raw["policy"]),
                simulated=Path(raw["simulated_platform"]) if raw.get("simulated_platform") else None,
                contracts=dict(raw["chain"]["contracts"]) if raw["chain"].get("contracts") else None,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"{where}: {type(error).__name__}: {error}") from None

    @classmethod
    def load(cls, file: Path | None = None) -> NetworkDescriptor:
        """From `file`, or from where a running `bombyx up` left its own."""
        path = file or default_descriptor_path()
        if not path.exists():
            raise ConfigError(f"no network here: {path} does not exist. Start one with `bombyx up`, or name a file")
        return cls.from_json(_read(path), where=str(path))


def state_home() -> Path:
    """What outlives a process: $BOMBYX_HOME, else $XDG_STATE_HOME/bombyx, else ~/.local/state/bombyx."""
    if home := os.environ.get("BOMBYX_HOME"):
        return Path(home)
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "bombyx"


def default_descriptor_path() -> Path:
    """Where `bombyx up` announces the network it runs."""
    return state_home() / "network.json"


def passphrase_file() -> Path | None:
    """The file that holds a wallet's passphrase, where $BOMBYX_PASSPHRASE_FILE names one. The passphrase itself is
    never in the environment: other processes of the same user could read it there."""
    named = os.environ.get("BOMBYX_PASSPHRASE_FILE")
    return Path(named) if named else None


# --- for tests of whole processes ------------------------------------------------------------------------------------


def crash_orders() -> Path | None:
    """The file in which a test says where this process is to die: $BOMBYX_CRASH_AT. Not for operators."""
    named = os.environ.get("BOMBYX_CRASH_AT")
    return Path(named) if named else None


def clock_error() -> float:
    """Seconds by which a test wants this process' clock to be wrong: $BOMBYX_CLOCK_ERROR. Not for operators."""
    try:
        return float(os.environ.get("BOMBYX_CLOCK_ERROR", "0"))
    except ValueError:
        raise ConfigError("BOMBYX_CLOCK_ERROR is a number of seconds") from None
