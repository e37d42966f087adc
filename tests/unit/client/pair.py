# SPDX-License-Identifier: Apache-2.0
"""A worker and a proxy in one process that say what a script tells them: real seals, quotes, receipts and payments.

Nothing of the protocol is mocked. What a test changes is what these two put on the wire: `Script` is the worker's part
(text, ids, counts, which model it signs), `Proxy.tamper` the proxy's (the records of the answer, in order).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.memory import MemoryLedger, MemoryStore
from bombyx.adapters.simulator import SimulatedEnclave, SimulatedEndorsements, SimulatedPlatform, development_policy
from bombyx.errors import BombyxError, PaymentError, Peer, StreamTruncated, Unavailable, Unreachable
from bombyx.ports import EngineAudit, EngineChunk, EngineUsage, Operator, OperatorRole
from bombyx.protocol.attest import AppraisalPolicy
from bombyx.protocol.audit.asked import read_sampling
from bombyx.protocol.audit.commitment import audit_commitment, unauditable
from bombyx.protocol.pay.payee import PayeeBook, PayeeTerms
from bombyx.protocol.pay.price import charge, price_of, units, with_commission
from bombyx.protocol.pay.usage import usage_commitment
from bombyx.protocol.primitives import Address, Digest, Secret, sha256
from bombyx.protocol.seal import (
    SESSION_LABEL,
    OpenedRequest,
    ReplayGuard,
    ResponseSealer,
    Shaper,
    decapsulate_request,
    open_request,
    parse_envelope,
)
from bombyx.protocol.seal.bhttp import decode_request
from bombyx.protocol.seal.fields import audit_trailers, usage_trailers
from bombyx.protocol.wire.audit import AuditBlock
from bombyx.protocol.wire.channel import settlement_domain
from bombyx.protocol.wire.evidence import FileDigest, ModelManifest
from bombyx.protocol.wire.market import Directory, ModelPrice, Offer, PriceSheet
from bombyx.protocol.wire.receipt import (
    ChoiceIds,
    Kind,
    Outcome,
    Receipt,
    SignedReceipt,
    UsageOpening,
    receipt_domain,
)
from bombyx.protocol.wire.records import Record, ResponseHead, Settlement, write_record
from bombyx.protocol.wire.request import Meta, Payment, Shape
from bombyx.protocol.wire.signing import SigningKey
from bombyx.protocol.wire.tokens import TokenTable
from bombyx.roles.client.core import Client
from bombyx.roles.client.settings import ClientKeys, ClientSettings, ProxyLine
from bombyx.roles.worker.asked import read_asked
from bombyx.roles.worker.auditing import AnswerAudit
from bombyx.roles.worker.evidence import EvidenceMaker
from bombyx.roles.worker.keys import BootKeys, Keyring, Period, new_signing_key
from bombyx.roles.worker.settings import Timings

MODEL = "tiny"
WORDS = [b"<|end|>", b"Par", b"is", b" is", b" a", b" town", b".", "\u00e9".encode()]
TABLE = TokenTable.build(WORDS, special=[0])
IDS = (1, 2, 3, 4, 5, 6, 0)
TEXT = "Paris is a town."
BPS = 500
ENTROPY = SystemEntropy()
CLOCK = SystemClock()
Records = list[tuple[Record, bytes]]


@dataclass(kw_only=True)
class Script:
    """What a worker answers. `ids` are what it says it made, `billed` what it charges for (None: len(ids))."""

    text: str = TEXT
    ids: tuple[int, ...] = IDS
    billed: int | None = None
    status: int = 200
    body: bytes | None = None
    model: Digest | None = None  # signs for another model
    finals: int = 1  # 2: signs twice, the second for more
    outcome: Outcome = Outcome.COMPLETE
    verified: bool = True
    checkpoint: bool = True
    extra_charge: int = 0
    charge_refused: bool = False
    seeded: bool = False  # calls its answers auditable
    spoil: Callable[[AuditBlock], AuditBlock | None] = lambda block: block  # what it says of them; None: nothing
    marks: Callable[[bytes], bytes] = lambda mark: mark


class Worker:
    """One operator with one enclave."""

    def __init__(self, platform: SimulatedPlatform, ledger: MemoryLedger, *, context: int = 2048) -> None:
        self.operator = new_signing_key(ENTROPY)
        self.boot = BootKeys.make(ENTROPY)
        self.ring = Keyring()
        self.replays = ReplayGuard()
        self.platform = platform
        self.ledger = ledger
        self.script = Script()
        self.seq = 0
        self.opened: list[OpenedRequest] = []
        self.manifest = ModelManifest(
            v=1,
            name=MODEL,
            weights=(FileDigest(name="tiny.gguf", sha256=sha256(b"weights"), size=7),),
            tokenizer=TABLE.digest(),
            chat_template=None,
            quantisation="q8_0",
            engine="scripted",
            arguments=(),
            context=context,
            parameters=0,
        )
        price = ModelPrice(model=self.manifest.digest(), input=200_000, cached_input=20_000, output=800_000)
        self.sheet = PriceSheet(v=1, operator=self.operator.address, grain=16, prices=(price,))

    @property
    def period(self) -> Period:
        assert self.ring.current is not None
        return self.ring.current

    async def boot_up(self) -> None:
        """Register, and make the first evidence."""
        operator = Operator(
            address=self.operator.address,
            role=OperatorRole.WORKER,
            endpoint="",
            receipt_address=self.boot.receipt.address,
            pay_authorizer=self.boot.pay_authorizer.address,
            pay_key_config=self.boot.pay_gateway.config.encode(),
            price_sheet=self.sheet.digest(),
            models=(self.manifest.digest(),),
        )
        await self.ledger.register(operator, signer=self.operator)
        await self.rotate()

    async def rotate(self) -> None:
        """New keys, new evidence; the old keys are gone."""
        maker = EvidenceMaker(
            operator=self.operator.address,
            chain=await self.ledger.info(),
            boot=self.boot,
            manifests=[self.manifest],
            device=SimulatedEnclave(platform=self.platform),
            endorser=SimulatedEndorsements(platform=self.platform, clock=CLOCK),
            ledger=self.ledger,
            clock=CLOCK,
            timings=Timings(),
        )
        self.ring.add(await maker.period(self.ring.new_gateways(ENTROPY)))

    def offer(self) -> Offer:
        return Offer(
            v=1,
            operator=self.operator.address,
            bundle=self.period.bundle_digest,
            candidates=self.period.candidates,
            models=(self.manifest.digest(),),
            price_sheet=self.sheet.digest(),
            hardware="cpu",
            not_after=self.period.keyset.not_after,
        )

    def blobs(self) -> list[bytes]:
        return [self.period.bundle, self.sheet.encode(), self.manifest.encode(), TABLE.encode()]

    async def answer(self, meta_bytes: bytes, wrap: bytes, body: bytes, proxy: Address) -> Records:
        """HEAD, frames, receipts: what an honest proxy would pass on."""
        opened = open_request(
            self.period.gateways,
            meta_bytes=meta_bytes,
            wrap=wrap,
            body=body,
            proxy=proxy,
            now=CLOCK.now(),
            replays=self.replays,
        )
        self.opened.append(opened)
        info = await self.ledger.info()
        return _Telling(self, opened, receipt_domain(info.chain_id, info.registry)).records()


class _Telling:
    """One answer as a worker's script tells it."""

    def __init__(self, worker: Worker, opened: OpenedRequest, domain: Digest) -> None:
        self.worker, self.opened, self.domain, self.script = worker, opened, domain, worker.script
        self.asked: dict[str, Any] = json.loads(decode_request(opened.bhttp).content)
        self.sealer = ResponseSealer(opened, ENTROPY.bytes(16))
        self.previous = Digest.zero()
        self.started = CLOCK.now()
        asked = read_asked(opened.bhttp, MODEL)
        self.audit = AnswerAudit(opened, asked, worker.manifest, worker.operator.address)
        self.block: AuditBlock = unauditable("not made yet")

    def records(self) -> Records:
        script, meta = self.script, self.opened.meta
        stream = bool(self.asked.get("stream")) and script.status == 200
        shaper = Shaper(meta.shape, meta.frame_size)
        kind = b"text/event-stream" if stream else b"application/json"
        shaper.begin(script.status, ((b"content-type", kind),), streamed=stream)
        for piece in self._content(stream):
            shaper.put(piece)
        out: Records = [(Record.HEAD, ResponseHead(candidate=self.opened.candidate).encode())]
        if stream:
            self._frames(out, shaper.ready() + shaper.tick())
            if script.checkpoint:
                out.append((Record.RECEIPT, self._sign(Kind.CHECKPOINT, self._usage(0)).encode()))
        usage = self._usage(script.billed if script.billed is not None else len(script.ids))
        self.block = self._audited(usage)
        block = script.spoil(self.block)
        self.block = block or self.block
        shaper.end((*usage_trailers(usage), *(audit_trailers(block) if block is not None else ())))
        self._frames(out, shaper.ready())
        while not shaper.finished:
            self._frames(out, shaper.tick())
        for count in range(script.finals):
            more = usage if count == 0 else replace(usage, output=usage.output + 64)
            out.append((Record.RECEIPT, self._sign(Kind.FINAL, more, bump=count).encode()))
        return out

    def _frames(self, out: Records, frames: Sequence[Any]) -> None:
        for frame in frames:
            seal = self.sealer.seal_final if frame.final else self.sealer.seal
            out.append((Record.DATA, seal(frame.plaintext)))

    def _content(self, stream: bool) -> list[bytes]:
        script = self.script
        if script.body is not None:
            return [script.body]
        base = {"id": "chatcmpl-1", "created": 1, "model": MODEL}
        if not stream:
            message = {"role": "assistant", "content": script.text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return [json.dumps({**base, "object": "chat.completion", "choices": [choice]}).encode()]
        half = len(script.text) // 2
        deltas: list[tuple[dict[str, str], str | None]] = [
            ({"role": "assistant", "content": script.text[:half]}, None),
            ({"content": script.text[half:]}, None),
            ({}, "stop"),
        ]
        events = [
            {**base, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": d, "finish_reason": f}]}
            for d, f in deltas
        ]
        said = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
        marks = self.audit.marked(EngineChunk(data=b"", ids=((0, script.ids),))).data
        return [*said, script.marks(marks), b"data: [DONE]\n\n"]

    def _audited(self, usage: UsageOpening) -> AuditBlock:
        """What an honest worker says of it."""
        sampling = read_sampling("/v1/chat/completions", self.asked, cap=self.opened.meta.max_output)
        seeded = self.script.seeded and sampling.sampler is not None
        audit = None
        if seeded and sampling.sampler is not None:
            audit = EngineAudit(prompt_ids=tuple(range(usage.input)), sampler=sampling.sampler, engine="scripted")
        said = EngineUsage(
            input=usage.input,
            cached_input=0,
            output=usage.output,
            ids=tuple(choice.ids for choice in usage.choices),
            finish=("stop",),
            verified=usage.verified,
            note=usage.note,
            audit=audit,
            audit_why="scripted",
        )
        return self.audit.block(said, usage)

    def _usage(self, output: int) -> UsageOpening:
        script = self.script
        ids = script.ids if output else ()
        plain = script.status == 200 or script.charge_refused
        return UsageOpening(
            v=1,
            input=12 if plain else 0,
            cached_input=0,
            output=output if plain else 0,
            choices=(ChoiceIds(ids=ids, finish="stop"),) if plain else (),
            verified=script.verified,
            note="" if script.verified else "usage unverified: scripted",
        )

    def _outcome(self) -> Outcome:
        served = self.script.status == 200 or self.script.charge_refused
        return self.script.outcome if served else Outcome.REFUSED

    def _sign(self, kind: Kind, usage: UsageOpening, *, bump: int = 0) -> SignedReceipt:
        worker, meta, script = self.worker, self.opened.meta, self.script
        grain = worker.sheet.grain
        counts = tuple(units(n, grain) for n in (usage.input, usage.cached_input, usage.output))
        price = price_of(worker.sheet, worker.manifest.digest())
        due = int(charge(price, *counts)) + script.extra_charge
        final = kind is Kind.FINAL
        worker.seq += 1
        chain = self.sealer.chain
        receipt = Receipt(
            kind=kind,
            request_id=meta.request_id,
            request_hash=self.opened.request_hash,
            response_hash=chain.digest,
            model=script.model or meta.model,
            price_sheet=worker.sheet.digest(),
            operator=worker.operator.address,
            frames=chain.frames,
            input_units=counts[0],
            cached_units=counts[1],
            output_units=counts[2],
            charge=due if script.status == 200 or script.charge_refused else 0,
            usage_commitment=usage_commitment(self.opened.salt, usage),
            audit_commitment=audit_commitment(self.opened.salt, self.block, usage) if final else Digest.zero(),
            outcome=self._outcome() if final else Outcome.RUNNING,
            seq=worker.seq,
            started_at=self.started,
            finished_at=CLOCK.now(),
            previous=self.previous,
        )
        signed = SignedReceipt.sign(receipt, self.domain, worker.boot.receipt)
        if not bump:
            self.previous = receipt.typed_digest(self.domain)
        return signed


Tamper = Callable[[Records], Records]


@dataclass
class Seen:
    """One request as the proxy got it."""

    meta: Meta
    payment: Payment
    envelope: bytes = field(repr=False)


class Proxy:
    """A `ProxyTransport` that is the proxy itself."""

    def __init__(self, ledger: MemoryLedger, workers: Sequence[Worker]) -> None:
        self.key = new_signing_key(ENTROPY)
        self.gateway = BootKeys.make(ENTROPY).pay_gateway
        self.ledger = ledger
        self.workers = list(workers)
        self.blobs: dict[str, bytes] = {}
        self.seen: list[Seen] = []
        self.gets: list[str] = []
        self.refusals: list[tuple[int, dict[str, Any]]] = []  # given instead of an answer, first one first
        self.tamper: Tamper = lambda records: records
        self.tamper_offers: Callable[[list[Offer]], list[Offer]] = lambda offers: offers
        self.extra_charge = 0
        self.extra_total = 0
        self.pause = 0.0
        self.down = False
        self.broken = 0  # so many times, the connection breaks after the request arrived and before an answer
        self.cut_bytes: int | None = None
        self.chosen: Worker | None = None
        self.finished_body = 0
        self.closed_early = 0
        self.book: PayeeBook | None = None

    async def boot_up(self) -> None:
        operator = Operator(
            address=self.key.address,
            role=OperatorRole.PROXY,
            endpoint="http://proxy.invalid",
            receipt_address=self.key.address,
            pay_authorizer=self.key.address,
            pay_key_config=self.gateway.config.encode(),
            price_sheet=Digest.zero(),
            models=(),
        )
        await self.ledger.register(operator, signer=self.key)
        await self.forget_sessions()

    async def forget_sessions(self) -> None:
        """A restart: rows would survive, sessions do not."""
        info = await self.ledger.info()
        terms = PayeeTerms(receiver=self.key.address, receiver_authorizer=self.key.address, token=info.token)
        self.book = PayeeBook(terms, settlement_domain(info.chain_id, info.settlement))

    async def get(self, path: str) -> tuple[int, bytes]:
        self._check_up()
        self.gets.append(path)
        if path == "/v1/directory":
            return 200, self.directory().encode()
        if path.startswith("/v1/channel/") and self.book is not None:
            account = self.book.account(Digest.parse(path.removeprefix("/v1/channel/")))
            return 200, json.dumps({"charged": account.charged, "reserved": account.reserved}).encode()
        for worker in self.workers:
            for blob in worker.blobs():
                self.blobs.setdefault(sha256(blob).hex(), blob)
        blob = self.blobs.get(path.removeprefix("/v1/blob/"), b"")
        return (200, blob) if blob else (404, b"")

    def directory(self) -> Directory:
        offers = self.tamper_offers([worker.offer() for worker in self.workers])
        return Directory(v=1, proxy=self.key.address, commission_bps=BPS, at=CLOCK.now(), offers=tuple(offers))

    async def post(self, path: str, content_type: str, body: bytes) -> ScriptedResponse:
        self._check_up()
        envelope = parse_envelope(body)
        meta, payment = Meta.decode(envelope.meta_bytes), Payment.decode(envelope.payment_bytes)
        self.seen.append(Seen(meta, payment, body))
        if self.broken:
            self.broken -= 1
            raise Unavailable("the connection broke before the answer")
        if self.refusals:
            status, problem = self.refusals.pop(0)
            return ScriptedResponse(self, status, "application/problem+json", [json.dumps(problem).encode()])
        try:
            await self._accept(payment, meta, envelope.payload_hash)
            worker, place = self._pick(meta)
            records = await worker.answer(envelope.meta_bytes, envelope.wraps[place], envelope.body, self.key.address)
        except BombyxError as error:
            kind = "about:blank"
            if error.code == "ohttp_key":
                kind = "https://iana.org/assignments/http-problem-types#ohttp-key"
            await self._release(payment, meta)
            problem = {"type": kind, "status": error.status, **error.as_dict()}
            return ScriptedResponse(self, error.status, "application/problem+json", [json.dumps(problem).encode()])
        records.append((Record.END, self._settle(payment, meta, records).encode()))
        pieces = [write_record(kind, payload) for kind, payload in self.tamper(records)]
        return ScriptedResponse(self, 200, "application/vnd.bombyx.response", pieces)

    async def close(self) -> None:
        pass

    def _check_up(self) -> None:
        if self.down:
            raise Unreachable("no connection to the proxy")

    def _pick(self, meta: Meta) -> tuple[Worker, int]:
        for worker in [self.chosen] if self.chosen else self.workers:
            for place, candidate in enumerate(meta.candidates):
                if candidate in worker.period.candidates:
                    return worker, place
        return (self.chosen or self.workers[0]), 0

    async def _accept(self, payment: Payment, meta: Meta, body_hash: Digest) -> None:
        assert self.book is not None
        view = await self.ledger.channel(payment.channel)
        if view is None:
            raise PaymentError("no such channel", peer=Peer.CLIENT, rule="PAY-2")
        self.book.open(view)
        key = None
        if self.book.wants_key(payment):
            assert payment.grant is not None
            plain, _, _ = decapsulate_request([self.gateway], payment.grant.sealed_key, label=SESSION_LABEL)
            key = Secret(plain)
        self.book.accept(
            payment,
            request_id=meta.request_id,
            cap=payment.cap,
            meta_hash=sha256(meta.encode()),
            body_hash=body_hash,
            now=CLOCK.now(),
            view=view,
            session_key=key,
        )

    async def _release(self, payment: Payment, meta: Meta) -> None:
        assert self.book is not None
        if payment.channel in self.book and meta.request_id in self.book.channel(payment.channel).reserved:
            self.book.release(payment.channel, meta.request_id)

    def _settle(self, payment: Payment, meta: Meta, records: Records) -> Settlement:
        assert self.book is not None
        last = SignedReceipt.decode(next(p for k, p in reversed(records) if k is Record.RECEIPT)).receipt
        cost = int(with_commission(last.charge, BPS))
        self.book.settle(payment.channel, meta.request_id, min(cost, payment.cap), now=CLOCK.now())
        return Settlement(
            request_id=meta.request_id,
            channel=payment.channel,
            worker_charge=last.charge,
            charge=cost + self.extra_charge,
            charged_total=int(self.book.account(payment.channel).charged) + self.extra_total,
        )


class ScriptedResponse:
    """`ports.ProxyResponse`."""

    def __init__(self, proxy: Proxy, status: int, content_type: str, pieces: list[bytes]) -> None:
        self.status = status
        self.headers = {"content-type": content_type}
        self._proxy = proxy
        self._pieces = pieces
        self._done = False

    async def body(self) -> AsyncIterator[bytes]:
        left = self._proxy.cut_bytes
        for piece in self._pieces:
            if self._proxy.pause:
                await asyncio.sleep(self._proxy.pause)
            if left is not None:
                piece, left = piece[:left], left - len(piece)
            if piece:
                yield piece
            if left is not None and left <= 0:
                raise StreamTruncated("the connection broke", peer=Peer.PROXY, rule="SEAL-7")
        self._done = True
        self._proxy.finished_body += 1

    async def aclose(self) -> None:
        if not self._done:
            self._proxy.closed_early += 1


@dataclass
class Pair:
    """A client, one or more proxies, some workers."""

    client: Client
    proxy: Proxy
    workers: list[Worker]
    ledger: MemoryLedger
    store: MemoryStore
    platform: SimulatedPlatform
    keys: ClientKeys
    settings: ClientSettings

    async def restarted(self, **changes: Any) -> Client:
        """The client's next life over the same store and keys."""
        self.client = make_client(self, replace(self.settings, **changes))
        await self.client.start()
        return self.client


def make_client(
    pair: Pair, settings: ClientSettings, *, proxies: Sequence[Proxy] = (), policy: AppraisalPolicy | None = None
) -> Client:
    lines = [ProxyLine(address=p.key.address, transport=p, url="memory") for p in proxies or [pair.proxy]]
    return Client(
        settings,
        keys=pair.keys,
        proxies=lines,
        policy=policy or development_policy(pair.platform),
        clock=CLOCK,
        randomness=ENTROPY,
        store=pair.store,
        ledger=pair.ledger,
    )


async def make_pair(
    *, workers: int = 3, funds: int = 10**9, ledger: MemoryLedger | None = None, **changes: Any
) -> Pair:
    """Everything started, nothing asked yet."""
    platform = SimulatedPlatform.create(seed=b"client tests, one platform", now=CLOCK.now())
    ledger = ledger or MemoryLedger(CLOCK)  # or another that has a faucet
    made = [Worker(platform, ledger) for _ in range(workers)]
    for worker in made:
        await worker.boot_up()
    proxy = Proxy(ledger, made)
    await proxy.boot_up()
    keys = ClientKeys(owner=new_signing_key(ENTROPY), session=new_signing_key(ENTROPY))
    await ledger.faucet(keys.owner.address, funds)
    settings = ClientSettings(**{"shape": Shape.OFF, "single_share_bps": 0, "directory_seconds": 0.0, **changes})
    pair = Pair(None, proxy, made, ledger, MemoryStore(), platform, keys, settings)  # type: ignore[arg-type]
    pair.client = make_client(pair, settings)
    await pair.client.start()
    return pair


def chat(**more: Any) -> bytes:
    messages = [{"role": "user", "content": "Where is Paris?"}]
    return json.dumps({"model": MODEL, "messages": messages, "max_tokens": 32, **more}).encode()


def account_key() -> SigningKey:
    return new_signing_key(ENTROPY)
