# SPDX-License-Identifier: Apache-2.0
"""A worker that does as its script says, over a real link, with real evidence, seals and signatures; and a bare client.

The script decides what is sent and when, so that every misbehaviour a proxy must survive can be played.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
from tests.unit.proxy.kit import CLOCK, ENTROPY, MONEY, ProxyNet, key, manifest

from bombyx.adapters.websocket import WebSocketDialer, WebSocketLink
from bombyx.ports import Operator, OperatorRole
from bombyx.protocol.pay.payer import PayerChannel, PayerPolicy
from bombyx.protocol.pay.price import cap_for, charge
from bombyx.protocol.pay.usage import usage_commitment
from bombyx.protocol.primitives import Amount, Digest, Instant, RequestId, Secret, sha256, tagged_hash
from bombyx.protocol.seal import (
    SESSION_LABEL,
    KeyConfig,
    ReplayGuard,
    ResponseSealer,
    SealedRequest,
    encapsulate_request,
    open_request,
    parse_key_configs,
    seal_request,
)
from bombyx.protocol.wire.channel import ChannelConfig, settlement_domain
from bombyx.protocol.wire.market import Directory, ModelPrice, PriceSheet
from bombyx.protocol.wire.receipt import Kind, Outcome, Receipt, SignedReceipt, UsageOpening, receipt_domain
from bombyx.protocol.wire.records import (
    LinkChallenge,
    LinkHello,
    LinkLoad,
    LinkType,
    LinkWelcome,
    Record,
    RecordReader,
    Settlement,
    WorkerRequest,
    read_link_frames,
    write_link_frame,
)
from bombyx.protocol.wire.request import Meta, Payment, Shape
from bombyx.roles.worker.evidence import EvidenceMaker
from bombyx.roles.worker.keys import BootKeys, Keyring, Period
from bombyx.roles.worker.settings import Timings

MANIFEST = manifest()
MODEL = MANIFEST.digest()
PRICE = ModelPrice(model=MODEL, input=200_000, cached_input=20_000, output=800_000)
GRAIN = 16
OPENING = UsageOpening(v=1, input=16, cached_input=0, output=32, choices=(), verified=True, note="")


class Call:
    """One request as the script sees it."""

    def __init__(self, worker: ScriptedWorker, stream: int, request: WorkerRequest) -> None:
        self.worker = worker
        self.stream = stream
        self.request = request
        self.meta = Meta.decode(request.meta)
        self.cancelled = asyncio.Event()
        self.credit = worker.window
        self.last: SignedReceipt | None = None
        opened = open_request(
            worker.period.gateways,
            meta_bytes=request.meta,
            wrap=request.wrap,
            body=request.body,
            proxy=worker.net.key.address,
            now=CLOCK.now(),
            replays=ReplayGuard(),
        )
        self.request_hash = opened.request_hash
        self.salt = opened.salt
        self.sealer = ResponseSealer(opened, ENTROPY.bytes(16))
        self.started_at = CLOCK.now()

    def send(self, kind: LinkType, payload: bytes = b"") -> None:
        self.worker.send(kind, self.stream, payload)

    def data(self, text: bytes = b"x" * 100, *, final: bool = False) -> None:
        frame = self.sealer.seal_final(text) if final else self.sealer.seal(text)
        self.credit -= len(frame)
        self.send(LinkType.DATA, frame)

    def sign(self, kind: Kind, outcome: Outcome, **changes: Any) -> SignedReceipt:
        worker = self.worker
        worker.seq += 1
        receipt = Receipt(
            kind=kind,
            request_id=self.meta.request_id,
            request_hash=self.request_hash,
            response_hash=self.sealer.chain.digest,
            model=MODEL,
            price_sheet=worker.sheet.digest(),
            operator=worker.operator.address,
            frames=self.sealer.chain.frames,
            input_units=16,
            cached_units=0,
            output_units=changes.pop("output_units", 32),
            charge=0,
            usage_commitment=usage_commitment(self.salt, OPENING),
            audit_commitment=Digest.zero(),
            outcome=outcome,
            seq=worker.seq,
            started_at=self.started_at,
            finished_at=CLOCK.now(),
            previous=self.last.receipt.typed_digest(worker.domain) if self.last else Digest.zero(),
        )
        due = charge(PRICE, receipt.input_units, 0, receipt.output_units) if receipt.frames else Amount(0)
        receipt = replace(receipt, charge=due)
        signer = changes.pop("signer", worker.boot.receipt)
        return SignedReceipt.sign(replace(receipt, **changes), worker.domain, signer)

    def receipt(
        self, kind: Kind = Kind.CHECKPOINT, outcome: Outcome = Outcome.RUNNING, **changes: Any
    ) -> SignedReceipt:
        self.last = self.sign(kind, outcome, **changes)
        self.send(LinkType.RECEIPT, self.last.encode())
        return self.last

    def finish(self, outcome: Outcome = Outcome.COMPLETE, **changes: Any) -> None:
        self.receipt(Kind.FINAL, outcome, **changes)
        self.send(LinkType.END)


Script = Callable[[Call], Awaitable[None]]


async def answer(call: Call) -> None:
    """The good script: three frames, a checkpoint, a final."""
    call.data()
    call.receipt(output_units=16)
    call.data()
    call.data(b"the end", final=True)
    call.finish()


class ScriptedWorker:
    """One operator, one enclave, one link."""

    def __init__(self, net: ProxyNet, name: str, script: Script = answer, *, capacity: int = 64) -> None:
        self.net = net
        self.name = name
        self.script = script
        self.capacity = capacity
        self.operator = key(name)
        self.boot = BootKeys.make(ENTROPY)
        self.keyring = Keyring()
        self.calls: list[Call] = []
        self.seq = 0
        self.window = 0
        self.welcomes: asyncio.Queue[LinkWelcome] = asyncio.Queue()
        self.wanted: asyncio.Queue[bytes] = asyncio.Queue()
        self.received: list[bytes] = []  # every byte of the link
        self.sheet = PriceSheet(v=1, operator=self.operator.address, grain=GRAIN, prices=(PRICE,))
        self._parts: dict[int, bytes] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def prepare(self) -> None:
        """Keys, evidence, registration."""
        info = await self.net.ledger.info()
        self.domain = receipt_domain(info.chain_id, info.registry)
        self.maker = EvidenceMaker(
            operator=self.operator.address,
            chain=info,
            boot=self.boot,
            manifests=[MANIFEST],
            device=self.net.enclave(self.name),
            endorser=self.net.endorser,
            ledger=self.net.ledger,
            clock=CLOCK,
            timings=Timings(),
        )
        await self.rotate()
        line = Operator(
            address=self.operator.address,
            role=OperatorRole.WORKER,
            endpoint="",
            receipt_address=self.boot.receipt.address,
            pay_authorizer=self.boot.pay_authorizer.address,
            pay_key_config=self.boot.pay_gateway.config.encode(),
            price_sheet=self.sheet.digest(),
            models=(MODEL,),
        )
        await self.net.ledger.register(line, signer=self.operator)

    async def rotate(self) -> None:
        self.keyring.add(await self.maker.period(self.keyring.new_gateways(ENTROPY)))

    @property
    def period(self) -> Period:
        assert self.keyring.current is not None
        return self.keyring.current

    async def start(self) -> ScriptedWorker:
        await self.prepare()
        await self.dial()
        self.hello()
        welcome = await asyncio.wait_for(self.welcomes.get(), 5)
        self.window = welcome.window
        return self

    async def dial(self) -> None:
        link = await WebSocketDialer().dial(self.net.link_url)
        assert isinstance(link, WebSocketLink)
        self.link = link
        self.challenged: asyncio.Future[LinkChallenge] = asyncio.get_running_loop().create_future()
        self._spawn(self._read())
        self.challenge = await asyncio.wait_for(self.challenged, 5)

    def hello(self, **changes: Any) -> None:
        digest = changes.pop("signed_digest", self.period.bundle_digest)
        nonce = changes.pop("signed_nonce", self.challenge.nonce)
        signer = changes.pop("signer", self.operator)
        hello = LinkHello(
            v=1,
            bundle=self.period.bundle,
            price_sheet=self.sheet.encode(),
            blobs=(),
            hardware="cpu",
            capacity=self.capacity,
            nonce=Digest(ENTROPY.bytes(32)),
            signature=signer.sign(tagged_hash("bombyx link v1", nonce, self.challenge.proxy, digest)),
        )
        self.send(LinkType.HELLO, 0, replace(hello, **changes).encode())

    def load(self, active: int, queued: int, capacity: int) -> None:
        self.send(LinkType.LOAD, 0, LinkLoad(active=active, queued=queued, capacity=capacity).encode())

    def send(self, kind: LinkType, stream: int, payload: bytes) -> None:
        self.link.send(write_link_frame(kind, stream, payload))

    async def stop(self) -> None:
        await self.link.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _read(self) -> None:
        async for message in self.link.messages():
            self.received.append(message)
            for kind, stream, payload in read_link_frames(message):
                self._on_frame(kind, stream, payload)

    def _on_frame(self, kind: LinkType, stream: int, payload: bytes) -> None:
        if kind is LinkType.CHALLENGE:
            self.challenged.set_result(LinkChallenge.decode(payload))
        elif kind is LinkType.WELCOME:
            self.welcomes.put_nowait(LinkWelcome.decode(payload))
        elif kind is LinkType.WANT:
            self.wanted.put_nowait(payload)
        elif kind is LinkType.REQUEST_PART:
            self._parts[stream] = self._parts.get(stream, b"") + payload
        elif kind is LinkType.REQUEST_END:
            whole = self._parts.pop(stream, b"") + payload
            call = Call(self, stream, WorkerRequest.decode(whole))
            self.calls.append(call)
            self._spawn(self.script(call))
        elif kind is LinkType.CANCEL:
            next(c for c in self.calls if c.stream == stream).cancelled.set()
        elif kind is LinkType.WINDOW:
            next(c for c in self.calls if c.stream == stream).credit += int.from_bytes(payload)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@dataclass
class Answer:
    """What came back for one sealed request."""

    status: int
    headers: dict[str, str]
    records: list[tuple[Record, bytes]]
    problem: dict[str, Any]
    cut: bool = False  # the connection broke

    def payloads(self, kind: Record) -> list[bytes]:
        return [payload for found, payload in self.records if found is kind]

    @property
    def kinds(self) -> list[Record]:
        return [kind for kind, _ in self.records]

    @property
    def settlement(self) -> Settlement:
        return Settlement.decode(self.payloads(Record.END)[0])

    @property
    def hint(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.payloads(Record.HINT)[0])
        return found


class BareClient:
    """Seals and pays as a client does, checks nothing, and can be made to misbehave."""

    def __init__(self, net: ProxyNet, name: str = "bare client", *, deposit: int = 10_000_000) -> None:
        self.net = net
        self.owner = key(name)
        self.deposit = deposit
        self.http = aiohttp.ClientSession()

    async def start(self) -> BareClient:
        info = await self.net.ledger.info()
        domain = settlement_domain(info.chain_id, info.settlement)
        config = ChannelConfig(
            payer=self.owner.address,
            payer_authorizer=self.owner.address,
            receiver=self.net.key.address,
            receiver_authorizer=self.net.key.address,
            token=info.token,
            withdraw_delay=86_400,
            salt=Digest.zero(),
        )
        self.channel = PayerChannel(config, domain, PayerPolicy(budget=MONEY, window=100_000))
        await self.net.ledger.faucet(self.owner.address, MONEY)
        if self.deposit:
            await self.net.ledger.deposit(config, Amount(self.deposit), signer=self.owner)
            view = await self.net.ledger.channel(self.channel.id)
            assert view is not None
            self.channel.observe(view)
        return self

    async def close(self) -> None:
        await self.http.close()

    def new_session(self) -> None:
        secret = Secret(ENTROPY.bytes(32))
        sealed, _ = encapsulate_request(self.net.pay_key.config, secret.reveal(), ENTROPY, label=SESSION_LABEL)
        not_after = CLOCK.now().plus(seconds=3600)
        self.channel.open_session(secret, sealed_key=sealed, not_after=not_after, signer=self.owner)

    def seal(
        self, workers: Sequence[ScriptedWorker], *, body: bytes = b"sealed words", **changes: Any
    ) -> SealedRequest:
        keys: list[KeyConfig] = [parse_key_configs(w.period.keyset.ohttp_key_config)[-1] for w in workers]
        meta = Meta(
            v=1,
            request_id=RequestId(ENTROPY.bytes(16)),
            model=MODEL,
            proxy=self.net.key.address,
            price_sheets=tuple(w.sheet.digest() for w in workers),
            commission_bps=500,
            max_input=160,
            max_output=1024,
            deadline=CLOCK.now().plus(seconds=30),
            candidates=tuple(config.candidate_id() for config in keys),
            shape=Shape.OFF,
            frame_size=1024,
        )
        meta = replace(meta, **changes)
        until = Instant(max(int(meta.deadline), int(CLOCK.now()) + 1000))
        return seal_request(meta=meta, bhttp=body, recipients=keys, randomness=ENTROPY, not_after=until)

    def pay(self, sealed: SealedRequest, workers: Sequence[ScriptedWorker], *, strict: bool = False) -> Payment:
        meta = sealed.meta
        cap = max(cap_for(w.sheet, MODEL, meta.max_input, meta.max_output, meta.commission_bps) for w in workers)
        if strict:
            return self.channel.authorize_strict(meta.request_id, cap=cap, signer=self.owner)
        if self.channel.needs_session(CLOCK.now()):
            self.new_session()
        return self.channel.authorize(
            meta.request_id, cap=cap, meta_hash=sealed.meta_hash, body_hash=sealed.payload_hash, signer=self.owner
        )

    async def ask(self, *workers: ScriptedWorker, strict: bool = False, **changes: Any) -> Answer:
        sealed = self.seal(workers, **changes)
        payment = self.pay(sealed, workers, strict=strict)
        answer = await self.post(sealed.envelope(payment.encode()))
        if answer.status == 200:
            self.channel.confirm(payment)
        if Record.END in answer.kinds:
            self.channel.agree(sealed.meta.request_id, answer.settlement.charge)
        return answer

    async def post(self, body: bytes, content_type: str = "application/vnd.bombyx.request") -> Answer:
        async with self.opened(body, content_type) as response:
            reader, records, cut, raw = RecordReader(), [], False, b""
            try:
                async for piece in response.content.iter_any():
                    raw += piece
                    if response.status == 200:
                        records += list(reader.feed(piece))
            except aiohttp.ClientError:
                cut = True
            problem = json.loads(raw) if response.status != 200 else {}
            return Answer(response.status, dict(response.headers), records, problem, cut)

    @asynccontextmanager
    async def opened(
        self, body: bytes, content_type: str = "application/vnd.bombyx.request"
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"content-type": content_type}
        async with self.http.post(self.net.url + "/v1/blind", data=body, headers=headers) as response:
            yield response

    async def get(self, path: str) -> tuple[int, bytes]:
        async with self.http.get(self.net.url + path) as response:
            return response.status, await response.read()

    async def directory(self) -> Directory:
        return Directory.decode((await self.get("/v1/directory"))[1])


def digest_of(blob: bytes) -> str:
    return sha256(blob).hex()
