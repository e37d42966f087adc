# SPDX-License-Identifier: Apache-2.0
"""A whole worker over a link in memory, and the other end played by hand: a proxy that pays and a client that seals.

Real parts but for the network, the chain and the enclave's hardware: memory link, memory ledger, simulated quote.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.engine_scripted import TOKENS, Script, ScriptedEngine
from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.memory import MemoryLedger, MemoryStore
from bombyx.adapters.memory_link import MemoryDialer, MemoryLink
from bombyx.adapters.simulator.enclave import SimulatedEnclave, SimulatedEndorsements, development_policy
from bombyx.adapters.simulator.platform import SimulatedPlatform
from bombyx.ports import Engine, Operator, OperatorRole, Store
from bombyx.protocol.attest import RegisteredWorker, appraise
from bombyx.protocol.attest.result import AttestationResult
from bombyx.protocol.pay.payee import PayeeBook
from bombyx.protocol.pay.payer import PayerChannel, PayerPolicy
from bombyx.protocol.pay.price import price_of, worker_cap
from bombyx.protocol.pay.receipts import Expectation
from bombyx.protocol.pay.trail import ReceiptTrail
from bombyx.protocol.primitives import Amount, Digest, RequestId, Secret, sha256, tagged_hash
from bombyx.protocol.seal import (
    SESSION_LABEL,
    BhttpResponseReader,
    Body,
    Head,
    KeyConfig,
    Request,
    ResponseChain,
    ResponseOpener,
    SealedRequest,
    Trailers,
    encapsulate_request,
    encode_request,
    pad_request,
    parse_key_configs,
    payload_hash,
    seal_request,
)
from bombyx.protocol.seal.fields import CACHE_SALT_FIELD, NONCE_FIELD, Fields, read_usage
from bombyx.protocol.seal.ohttp import parse_key_config
from bombyx.protocol.wire.channel import ChannelConfig, settlement_domain
from bombyx.protocol.wire.evidence import EvidenceBundle, Keyset, ModelManifest
from bombyx.protocol.wire.market import PriceSheet
from bombyx.protocol.wire.receipt import Receipt, SignedReceipt, UsageOpening, receipt_domain
from bombyx.protocol.wire.records import (
    LinkChallenge,
    LinkHello,
    LinkLoad,
    LinkRefusal,
    LinkType,
    LinkWelcome,
    WorkerRequest,
    read_link_frames,
    write_link_frame,
)
from bombyx.protocol.wire.request import Meta, Payment, Shape
from bombyx.protocol.wire.signing import SigningKey, recover
from bombyx.roles.worker import Limits, Price, ProxyPeer, ServedModel, Timings, Worker, WorkerPorts, WorkerSettings

URL = "memory://proxy"
CLOCK, ENTROPY = SystemClock(), SystemEntropy()
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
QUICK = Timings(load_report=0.05, reconnect_first=0.02, reconnect_most=0.05, engine_probe=0.05, drain=5.0)


def new_key() -> SigningKey:
    return SigningKey(Secret(ENTROPY.bytes(32)))


def manifest(name: str = "scripted") -> ModelManifest:
    return ModelManifest(
        v=1, name=name, weights=(), tokenizer=TOKENS.digest(), chat_template=None, quantisation="none",
        engine="scripted 1", arguments=(), context=4096, parameters=0,
    )  # fmt: skip


@dataclass(kw_only=True)
class Reply:
    """Everything one stream brought, and what the client made of it."""

    frames: list[bytes] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    receipts: list[SignedReceipt] = field(default_factory=list)
    refusal: LinkRefusal | None = None
    ended: bool = False
    status: int = 0
    headers: Fields = ()
    body: bytes = b""
    usage: UsageOpening | None = None
    complete: bool = False  # the final frame opened
    trail: ReceiptTrail | None = None

    @property
    def final(self) -> Receipt:
        assert self.receipts, self.refusal
        return self.receipts[-1].receipt

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The SSE events' data."""
        lines = [line[6:] for line in self.body.split(b"\n") if line.startswith(b"data: ")]
        return [orjson.loads(line) for line in lines if line != b"[DONE]"]

    @property
    def text(self) -> str:
        choices = [event["choices"][0] for event in self.events if event.get("choices")]
        return "".join(choice.get("delta", {}).get("content") or "" for choice in choices)


class Flow:
    """One stream at the proxy's end. Collects until END or REFUSE; grants credit unless told to be slow."""

    def __init__(
        self, proxy: ProxyDouble, number: int, sealed: SealedRequest, candidate: Digest, *, slow: bool
    ) -> None:
        self.proxy, self.number, self.slow = proxy, number, slow
        self.reply = Reply(trail=proxy.trail(sealed, candidate))
        self.first_frame = asyncio.Event()
        self.over = asyncio.Event()
        self.receipted = asyncio.Semaphore(0)
        self._opener = ResponseOpener(sealed, candidate)
        self._reader = BhttpResponseReader()
        self._chain = ResponseChain()

    def on(self, kind: LinkType, payload: bytes) -> None:
        reply = self.reply
        if kind is LinkType.DATA:
            reply.frames.append(payload)
            reply.times.append(CLOCK.monotonic())
            assert reply.trail is not None
            reply.trail.delivered(self._chain.update(payload), len(payload))
            self._read(self._opener.feed(payload))
            self.first_frame.set()
            if not self.slow:
                self.grant(len(payload))
        elif kind is LinkType.RECEIPT:
            assert reply.trail is not None
            signed = SignedReceipt.decode(payload)
            reply.trail.receive(signed)
            reply.receipts.append(signed)
            self.receipted.release()
        elif kind is LinkType.REFUSE:
            reply.refusal = LinkRefusal.decode(payload)
            self.over.set()
        else:
            assert kind is LinkType.END
            reply.ended, reply.complete = True, self._opener.finished
            self.over.set()

    def _read(self, plaintext: bytes) -> None:
        for event in self._reader.feed(plaintext):
            if isinstance(event, Head):
                self.reply.status, self.reply.headers = event.status, event.headers
            elif isinstance(event, Body):
                self.reply.body += event.data
            elif isinstance(event, Trailers):
                self.reply.usage = read_usage(event.fields)

    def grant(self, size: int) -> None:
        self.proxy.send(LinkType.WINDOW, self.number, size.to_bytes(4))

    def cancel(self) -> None:
        self.proxy.send(LinkType.CANCEL, self.number)

    async def receipts(self, count: int) -> None:
        """Wait for `count` more receipts."""
        for _ in range(count):
            await asyncio.wait_for(self.receipted.acquire(), 10)

    async def done(self, seconds: float = 10.0) -> Reply:
        await asyncio.wait_for(self.over.wait(), seconds)
        return self.reply


class ProxyDouble:
    """The proxy's end of the link, honest unless a test makes it otherwise."""

    def __init__(self, ledger: MemoryLedger, key: SigningKey) -> None:
        self.ledger, self.key = ledger, key
        self.window = 1 << 16
        self.link: MemoryLink | None = None
        self.hellos: list[LinkHello] = []
        self.loads: list[LinkLoad] = []
        self.drained = asyncio.Event()
        self.greeted = asyncio.Event()
        self.flows: dict[int, Flow] = {}
        self.stray: list[tuple[LinkType, int]] = []  # frames on streams this proxy never opened
        self.channel: PayerChannel | None = None
        self.challenge: LinkChallenge | None = None
        self.change_challenge: Callable[[LinkChallenge], LinkChallenge] = lambda challenge: challenge
        self.change_welcome: Callable[[LinkWelcome], LinkWelcome] = lambda welcome: welcome
        self._next = 1

    # --- link ---

    async def accept(self, link: MemoryLink) -> None:
        self.link = link
        info = await self.ledger.info()
        self.challenge = self.change_challenge(
            LinkChallenge(
                v=1, proxy=self.key.address, chain_id=info.chain_id, nonce=Digest(ENTROPY.bytes(32)), at=CLOCK.now()
            )
        )
        self._next = 1
        self.send(LinkType.CHALLENGE, 0, self.challenge.encode())
        async for message in link.messages():
            for kind, number, payload in read_link_frames(message):
                if number in self.flows:
                    self.flows[number].on(kind, payload)
                elif number:
                    self.stray.append((kind, number))
                else:
                    self._on_link(kind, payload)
        self.greeted.clear()

    def _on_link(self, kind: LinkType, payload: bytes) -> None:
        if kind is LinkType.HELLO:
            hello = LinkHello.decode(payload)
            assert self.challenge is not None
            bundle = sha256(hello.bundle)
            signed = tagged_hash("bombyx link v1", self.challenge.nonce, self.challenge.proxy, bundle)
            keyset = Keyset.decode(EvidenceBundle.decode(hello.bundle).keyset)
            assert recover(signed, hello.signature) == keyset.operator
            self.hellos.append(hello)
            welcome = LinkWelcome(
                v=1, proxy=self.key.address, commission_bps=500, channel_config=b"", window=self.window,
                signature=self.key.sign(tagged_hash("bombyx welcome v1", hello.nonce, bundle)),
            )  # fmt: skip
            self.send(LinkType.WELCOME, 0, self.change_welcome(welcome).encode())
            self.greeted.set()
        elif kind is LinkType.LOAD:
            self.loads.append(LinkLoad.decode(payload))
        else:
            assert kind is LinkType.DRAIN
            self.drained.set()

    def send(self, kind: LinkType, number: int, payload: bytes = b"") -> None:
        assert self.link is not None
        self.link.send(write_link_frame(kind, number, payload))

    # --- what the worker said of itself ---

    @property
    def keyset(self) -> Keyset:
        return Keyset.decode(EvidenceBundle.decode(self.hellos[-1].bundle).keyset)

    @property
    def configs(self) -> tuple[KeyConfig, ...]:
        return parse_key_configs(self.keyset.ohttp_key_config)

    @property
    def sheet(self) -> PriceSheet:
        return PriceSheet.decode(self.hellos[-1].price_sheet)

    def trail(self, sealed: SealedRequest, candidate: Digest) -> ReceiptTrail:
        meta, info = sealed.meta, self.ledger.chain.info
        return ReceiptTrail(
            Expectation.of(
                self.sheet,
                domain=receipt_domain(info.chain_id, info.registry),
                receipt_address=self.keyset.receipt_address,
                request_id=meta.request_id,
                request_hash=sealed.request_hash(candidate),
                model=meta.model,
                max_input=meta.max_input,
                max_output=meta.max_output,
                cap=worker_cap(self.sheet, meta.model, meta.max_input, meta.max_output),
            )
        )

    # --- money ---

    async def open_channel(self, deposit: int = 10_000_000) -> PayerChannel:
        info, keyset = await self.ledger.info(), self.keyset
        config = ChannelConfig(
            payer=self.key.address, payer_authorizer=self.key.address, receiver=keyset.operator,
            receiver_authorizer=keyset.pay_authorizer, token=info.token, withdraw_delay=86_400,
            salt=Digest(ENTROPY.bytes(32)),
        )  # fmt: skip
        await self.ledger.faucet(self.key.address, deposit)
        await self.ledger.deposit(config, Amount(deposit), signer=self.key)
        domain = settlement_domain(info.chain_id, info.settlement)
        self.channel = PayerChannel(config, domain, PayerPolicy(budget=deposit, window=100_000))
        view = await self.ledger.channel(self.channel.id)
        assert view is not None
        self.channel.observe(view)
        await self.open_session()
        return self.channel

    async def open_session(self) -> None:
        assert self.channel is not None
        (line,) = [
            one for one in await self.ledger.operators(OperatorRole.WORKER) if one.address == self.keyset.operator
        ]
        key = Secret(ENTROPY.bytes(32))
        sealed, _ = encapsulate_request(
            parse_key_config(line.pay_key_config), key.reveal(), ENTROPY, label=SESSION_LABEL
        )
        self.channel.open_session(key, sealed_key=sealed, not_after=CLOCK.now().plus(seconds=3600), signer=self.key)

    def pay(self, sealed: SealedRequest, wraps: tuple[bytes, ...], cap: int | None = None) -> Payment:
        assert self.channel is not None
        meta = sealed.meta
        return self.channel.authorize(
            meta.request_id,
            cap=worker_cap(self.sheet, meta.model, meta.max_input, meta.max_output) if cap is None else cap,
            meta_hash=sealed.meta_hash,
            body_hash=payload_hash(wraps, sealed.body),
            signer=self.key,
        )

    # --- one request ---

    def meta(self, **changes: Any) -> Meta:
        config = self.configs[0]
        plain = Meta(
            v=1, request_id=RequestId(ENTROPY.bytes(16)), model=self.keyset.models[0], proxy=self.key.address,
            price_sheets=(self.sheet.digest(),), commission_bps=500, max_input=512, max_output=256,
            deadline=CLOCK.now().plus(seconds=30), candidates=(config.candidate_id(),), shape=Shape.OFF,
            frame_size=1024,
        )  # fmt: skip
        return replace(plain, **changes)

    def seal(self, request: Request, meta: Meta | None = None) -> SealedRequest:
        meta = meta or self.meta()
        by_id = {config.candidate_id(): config for hello in self.hellos for config in _configs(hello)}
        return seal_request(
            meta=meta,
            bhttp=pad_request(encode_request(request)),
            recipients=tuple(by_id[candidate] for candidate in meta.candidates),
            randomness=ENTROPY,
            not_after=meta.deadline,
        )

    def send_sealed(
        self, sealed: SealedRequest, *, payment: Payment | None = None, free: bool = False, slow: bool = False,
        half: bool = False, change: Callable[[WorkerRequest], WorkerRequest] = lambda request: request,
    ) -> Flow:  # fmt: skip
        wrap = sealed.wraps[0] if sealed.wraps else b""
        if payment is None and not free:
            payment = self.pay(sealed, (wrap,) if wrap else ())
        request = change(WorkerRequest(payment=payment, meta=sealed.meta_bytes, wrap=wrap, body=sealed.body)).encode()
        number, self._next = self._next, self._next + 1
        flow = self.flows[number] = Flow(self, number, sealed, sealed.meta.candidates[0], slow=slow)
        middle = len(request) // 2
        self.send(LinkType.REQUEST_PART, number, request[:middle])
        if not half:
            self.send(LinkType.REQUEST_END, number, request[middle:])
        return flow

    def ask(self, request: Request, *, slow: bool = False, free: bool = False, **meta: Any) -> Flow:
        return self.send_sealed(self.seal(request, self.meta(**meta)), slow=slow, free=free)


def _configs(hello: LinkHello) -> tuple[KeyConfig, ...]:
    return parse_key_configs(Keyset.decode(EvidenceBundle.decode(hello.bundle).keyset).ohttp_key_config)


def inner(path: str, body: Any, *, method: str = "POST", headers: Fields | None = None) -> Request:
    secrets = ((NONCE_FIELD, ENTROPY.bytes(32).hex().encode()), (CACHE_SALT_FIELD, b"ab" * 32))
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    return Request(
        method=method.encode(), path=path.encode(), headers=secrets if headers is None else headers, content=content
    )


def chat(text: str = "hello", *, stream: bool = True, model: str = "scripted", **more: Any) -> Request:
    return inner(CHAT, {"model": model, "messages": [{"role": "user", "content": text}], "stream": stream, **more})


@dataclass(kw_only=True)
class Rig:
    worker: Worker
    proxy: ProxyDouble
    engine: Engine
    ledger: MemoryLedger
    store: Store
    dialer: MemoryDialer
    platform: SimulatedPlatform
    operator: SigningKey
    others: list[ProxyDouble] = field(default_factory=list)

    @property
    def scripted(self) -> ScriptedEngine:
        assert isinstance(self.engine, ScriptedEngine)
        return self.engine

    @property
    def book(self) -> PayeeBook:
        """The worker's own books."""
        return self.worker._booted.till.book

    def appraise(self) -> AttestationResult:
        """What any client makes of the bundle in the last hello."""
        keyset = self.proxy.keyset
        return appraise(
            self.proxy.hellos[-1].bundle,
            development_policy(self.platform),
            now=CLOCK.now(),
            registered=RegisteredWorker(
                operator=keyset.operator, receipt_address=keyset.receipt_address, pay_authorizer=keyset.pay_authorizer
            ),
            beacon=self.ledger.chain.block(keyset.beacon),
        )

    @property
    def price(self) -> Any:
        return price_of(self.proxy.sheet, self.proxy.keyset.models[0])


@asynccontextmanager
async def running(
    script: Script | None = None, *, engine: Engine | None = None, timings: Timings = QUICK,
    limits: Limits | None = None, price: Price | None = None, store: Store | None = None, funded: bool = True,
    ledger: MemoryLedger | None = None, operator: SigningKey | None = None, trusted: bool = True, grain: int = 16,
    more_proxies: int = 0,
) -> AsyncIterator[Rig]:  # fmt: skip
    ledger = ledger or MemoryLedger(CLOCK)
    engine = engine or ScriptedEngine(script)
    store = store or MemoryStore()
    operator, proxy = operator or new_key(), ProxyDouble(ledger, new_key())
    platform = SimulatedPlatform.create(seed=bytes(32), now=CLOCK.now())
    dialer = MemoryDialer().listen(URL, proxy.accept)
    others = [ProxyDouble(ledger, new_key()) for _ in range(more_proxies)]
    for number, other in enumerate(others):
        dialer.listen(f"{URL}/{number}", other.accept)
    peers = [ProxyPeer(url=f"{URL}/{number}", address=other.key.address) for number, other in enumerate(others)]
    model = ServedModel(manifest=manifest(), engine=engine, token_table=TOKENS.encode())
    settings = WorkerSettings(
        proxies=(ProxyPeer(url=URL, address=proxy.key.address if trusted else None), *peers),
        prices={model.digest: price or Price(input=200_000, cached_input=20_000, output=800_000)},
        grain=grain,
        timings=timings,
        limits=limits or Limits(),
    )
    ports = WorkerPorts(
        clock=CLOCK, entropy=ENTROPY, store=store, ledger=ledger, device=SimulatedEnclave(platform=platform),
        endorser=SimulatedEndorsements(platform=platform, clock=CLOCK), dialer=dialer,
    )  # fmt: skip
    worker = Worker(settings, ports, operator=operator, models=(model,))
    rig = Rig(
        worker=worker, proxy=proxy, engine=engine, ledger=ledger, store=store, dialer=dialer, platform=platform,
        operator=operator, others=others,
    )  # fmt: skip
    await worker.start()
    try:
        if funded:
            for one in (proxy, *others):
                await asyncio.wait_for(one.greeted.wait(), 5)
                await one.open_channel()
        yield rig
    finally:
        await worker.stop()


def register_proxy(rig: Rig) -> Operator:
    """The registry's line for the proxy double."""
    zero = Digest.zero()
    return Operator(
        address=rig.proxy.key.address, role=OperatorRole.PROXY, endpoint=URL, receipt_address=rig.proxy.key.address,
        pay_authorizer=rig.proxy.key.address, pay_key_config=b"", price_sheet=zero, models=(),
    )  # fmt: skip
