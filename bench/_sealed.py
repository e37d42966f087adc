# SPDX-License-Identifier: Apache-2.0
"""The shipped proxy's surroundings for `relay.py`: a chain, clients that paid, and a worker that answers at once.

Requests are made beforehand: true envelopes with true payments (PayerChannel: sessions, MACs, vouchers as a client
sends them), and for each the answer a worker will give, with true receipts. Only what the proxy cannot see is filler:
wraps and bodies are random bytes of the right size. So while the clock runs, the proxy is what works.
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from _load import FRAME_BYTES, MARK, STREAM_FRAMES, Pacer, client_context

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.ledger_http import LedgerServer, serve_ledger
from bombyx.adapters.memory import MemoryLedger
from bombyx.adapters.processes import Child, start_child
from bombyx.adapters.simulator import SimulatedEnclave
from bombyx.adapters.simulator.enclave import SimulatedEndorsements
from bombyx.adapters.simulator.platform import SimulatedPlatform
from bombyx.adapters.websocket import WebSocketDialer
from bombyx.compose import new_simulated_platform
from bombyx.config import NetworkDescriptor
from bombyx.ports import Link, Operator, OperatorRole
from bombyx.protocol.pay.payer import PayerChannel, PayerPolicy
from bombyx.protocol.pay.price import cap_for, charge, with_commission
from bombyx.protocol.primitives import Address, Amount, Digest, RequestId, Secret, sha256, tagged_hash
from bombyx.protocol.seal import SESSION_LABEL, ResponseChain, encapsulate_request, payload_hash, request_hash
from bombyx.protocol.seal.envelope import encode_envelope
from bombyx.protocol.seal.ohttp import parse_key_config, parse_key_configs
from bombyx.protocol.wire.channel import ChannelConfig, settlement_domain
from bombyx.protocol.wire.evidence import ModelManifest
from bombyx.protocol.wire.market import ModelPrice, PriceSheet
from bombyx.protocol.wire.receipt import Kind, Outcome, Receipt, SignedReceipt, receipt_domain
from bombyx.protocol.wire.records import LinkChallenge, LinkHello, LinkType, LinkWelcome, read_link_frames
from bombyx.protocol.wire.request import Meta, Shape
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.worker.evidence import EvidenceMaker
from bombyx.roles.worker.keys import BootKeys, Keyring
from bombyx.roles.worker.settings import Timings

CLOCK, ENTROPY = SystemClock(), SystemEntropy()
MONEY = 10**13
BPS = 500
WRAP = 1_231  # bytes of a hybrid wrap (X25519 and ML-KEM-768)
ASKED = 1_360  # bytes of a sealed body around 1 kB of prompt
SEALED_ANSWER = 700  # bytes of the one frame that holds 500 bytes of answer, its HTTP head, usage and padding
WINDOW = 1_000_000  # base units a client's voucher reaches beyond need, as the client's own
LAG = 24  # a client's channel agrees to an answer so many requests later, as with requests in flight
_HEADER = struct.Struct(">IIB")
_ID = b"jrequest_id\x50"  # where a request's id stands in Meta's canonical bytes
MANIFEST = ModelManifest(
    v=1, name="scripted", weights=(), tokenizer=None, chat_template=None, quantisation="none", engine="scripted",
    arguments=(), context=4096, parameters=0,
)  # fmt: skip
MODEL = MANIFEST.digest()
PRICE = ModelPrice(model=MODEL, input=200_000, cached_input=20_000, output=800_000)


def key(name: str) -> SigningKey:
    return SigningKey(Secret(hashlib.sha256(name.encode()).digest()))


@dataclass
class Payer:
    """One client's channel."""

    channel: PayerChannel
    owner: SigningKey
    pending: list[tuple[RequestId, int]] = field(default_factory=list)


@dataclass
class Reply:
    """What the worker sends for one request: (kind, payload), and whether it is paced."""

    frames: tuple[tuple[int, bytes], ...]
    paced: bool


class Surroundings:
    """Chain, proxy process, worker, clients."""

    def __init__(self, folder: Path, pacer: Pacer, sent_at: dict[bytes, list[float]]) -> None:
        self.folder = folder
        self.ledger = MemoryLedger(CLOCK)
        self.replies: dict[bytes, Reply] = {}
        self.payers: dict[str, list[Payer]] = {}
        self.worker_key = key("bench worker")
        self.boot = BootKeys.make(ENTROPY)
        self.keyring = Keyring()
        self.sheet = PriceSheet(v=1, operator=self.worker_key.address, grain=16, prices=(PRICE,))
        self._pacer = pacer
        self._sent_at = sent_at
        self._seq = self._turn = 0
        self._data = _frames()

    # --- start ---

    async def start(self, certificate: tuple[Path, Path], channels: int, *, program: Path | None = None) -> Child:
        """Clients are of two kinds: `session` (a voucher a window) and `voucher` (a fresh one with every request).

        `program`: a script that runs in place of `python -m bombyx`.
        """
        policy = new_simulated_platform(self.folder / "platform")
        self.server: LedgerServer = await serve_ledger(self.ledger, 0)
        file = self.folder / "network.json"
        file.write_text(
            NetworkDescriptor(chain_url=self.server.url, proxies=(), policy=policy, simulated=policy.parent).to_json()
        )
        tls = {"BOMBYX_PROXY_TLS_CERT": str(certificate[0]), "BOMBYX_PROXY_TLS_KEY": str(certificate[1])}
        arguments = ["proxy", "--port", "0", "--network", str(file), "--state", str(self.folder / "proxy"), "--child"]
        log = self.folder / "proxy.log"
        self.proxy = await start_child("proxy", arguments, log=log, environment=tls, program=program)
        self.address = Address.parse(self.proxy.ready["address"])
        self.port = int(str(self.proxy.ready["url"]).rsplit(":", 1)[1])
        await self._link(SimulatedPlatform.load(policy.parent))
        for kind, window in (("session", WINDOW), ("voucher", 0)):
            self.payers[kind] = [await self._payer(f"bench {kind} {n}", window) for n in range(channels)]
        return self.proxy

    async def _link(self, platform: SimulatedPlatform) -> None:
        info = await self.ledger.info()
        self.domain = receipt_domain(info.chain_id, info.registry)
        maker = EvidenceMaker(
            operator=self.worker_key.address, chain=info, boot=self.boot, manifests=[MANIFEST],
            device=SimulatedEnclave(platform=platform),
            endorser=SimulatedEndorsements(platform=platform, clock=CLOCK),
            ledger=self.ledger, clock=CLOCK, timings=Timings(),
        )  # fmt: skip
        self.keyring.add(await maker.period(self.keyring.new_gateways(ENTROPY)))
        line = Operator(
            address=self.worker_key.address, role=OperatorRole.WORKER, endpoint="",
            receipt_address=self.boot.receipt.address, pay_authorizer=self.boot.pay_authorizer.address,
            pay_key_config=self.boot.pay_gateway.config.encode(), price_sheet=self.sheet.digest(), models=(MODEL,),
        )  # fmt: skip
        await self.ledger.register(line, signer=self.worker_key)
        self.link = await WebSocketDialer(ssl=client_context()).dial(f"https://127.0.0.1:{self.port}/v1/link")
        self.worker = Worker(self.link, self.replies, self._pacer, self._sent_at)
        period = self.keyring.current
        assert period is not None
        challenge = await asyncio.wait_for(self.worker.challenge, 10)
        hello = LinkHello(
            v=1, bundle=period.bundle, price_sheet=self.sheet.encode(), blobs=(), hardware="h100", capacity=4096,
            nonce=Digest(ENTROPY.bytes(32)),
            signature=self.worker_key.sign(
                tagged_hash("bombyx link v1", challenge.nonce, challenge.proxy, period.bundle_digest)
            ),
        )  # fmt: skip
        self.worker.send(LinkType.HELLO, 0, hello.encode())
        await asyncio.wait_for(self.worker.welcome, 10)
        self.candidate = parse_key_configs(period.keyset.ohttp_key_config)[-1].candidate_id()

    async def _payer(self, name: str, window: int) -> Payer:
        info, owner = await self.ledger.info(), key(name)
        line = next(o for o in await self.ledger.operators(OperatorRole.PROXY) if o.address == self.address)
        config = ChannelConfig(
            payer=owner.address, payer_authorizer=owner.address, receiver=self.address,
            receiver_authorizer=self.address, token=info.token, withdraw_delay=86_400, salt=Digest.zero(),
        )  # fmt: skip
        policy = PayerPolicy(budget=MONEY, window=window, max_in_flight=1_024)
        channel = PayerChannel(config, settlement_domain(info.chain_id, info.settlement), policy)
        await self.ledger.faucet(owner.address, MONEY)
        await self.ledger.deposit(config, Amount(MONEY // 10), signer=owner)
        view = await self.ledger.channel(channel.id)
        assert view is not None
        channel.observe(view)
        secret = Secret(ENTROPY.bytes(32))
        pay_key = parse_key_config(line.pay_key_config)
        sealed, _ = encapsulate_request(pay_key, secret.reveal(), ENTROPY, label=SESSION_LABEL)
        channel.open_session(secret, sealed_key=sealed, not_after=CLOCK.now().plus(seconds=3600), signer=owner)
        return Payer(channel, owner)

    async def stop(self) -> None:
        await self.link.close()
        await self.server.close()

    # --- requests ---

    def requests(self, kind: str, count: int, *, paid: str = "session") -> Iterator[tuple[bytes, bytes]]:
        """(request id, HTTP request) of `count` requests, all made before the first is given; channels take turns."""
        self.replies.clear()
        payers = self.payers[paid]
        self._turn = (self._turn + 1) % len(payers)
        return iter([self._request(kind, payers[(n + self._turn) % len(payers)]) for n in range(count)])

    def _request(self, kind: str, payer: Payer) -> tuple[bytes, bytes]:
        meta = Meta(
            v=1, request_id=RequestId(ENTROPY.bytes(16)), model=MODEL, proxy=self.address,
            price_sheets=(self.sheet.digest(),), commission_bps=BPS, max_input=512, max_output=1024,
            deadline=CLOCK.now().plus(seconds=280), candidates=(self.candidate,),
            shape=Shape.BUCKET, frame_size=FRAME_BYTES,
        )  # fmt: skip
        meta_bytes, wrap, body = meta.encode(), ENTROPY.bytes(WRAP), ENTROPY.bytes(ASKED)
        cap = cap_for(self.sheet, MODEL, meta.max_input, meta.max_output, BPS)
        payment = payer.channel.authorize(
            meta.request_id, cap=cap, meta_hash=sha256(meta_bytes), body_hash=payload_hash((wrap,), body),
            signer=payer.owner,
        )  # fmt: skip
        due = self._prepare(kind, meta, request_hash(meta_bytes, wrap, body))
        payer.pending.append((meta.request_id, with_commission(due, BPS)))
        if len(payer.pending) > LAG:
            payer.channel.agree(*payer.pending.pop(0))
        payer.channel.take_rows()
        envelope = encode_envelope(payment.encode(), meta_bytes, (wrap,), body)
        head = (
            b"POST /v1/blind HTTP/1.1\r\nhost: bench\r\ncontent-type: application/vnd.bombyx.request\r\n"
            b"content-length: %d\r\n\r\n" % len(envelope)
        )
        return bytes(meta.request_id), head + envelope

    def confirmed(self) -> None:
        """Every channel's first request was answered: grants need not be sent again."""
        for payer in (payer for payers in self.payers.values() for payer in payers):
            while payer.pending:
                payer.channel.agree(*payer.pending.pop(0))

    def _prepare(self, kind: str, meta: Meta, name: Digest) -> Amount:
        frames: list[tuple[int, bytes]] = []
        chain, last, due = ResponseChain(), None, Amount(0)
        data = (ENTROPY.bytes(SEALED_ANSWER),) if kind == "json" else self._data
        for payload in data:
            chain.update(payload)
            frames.append((LinkType.DATA, payload))
            final = chain.frames == len(data)
            if final or chain.frames == 1 or chain.frames % 64 == 0:
                output = 64 if kind == "json" else min(128, -(-chain.frames // 16) * 16)
                due = charge(PRICE, 256, 0, output)
                last = self._sign(meta, name, chain, output, due, last, final=final)
                frames.append((LinkType.RECEIPT, last.encode()))
        frames.append((LinkType.END, b""))
        self.replies[bytes(meta.request_id)] = Reply(tuple(frames), kind == "paced")
        return due

    def _sign(
        self, meta: Meta, name: Digest, chain: ResponseChain, output: int, due: Amount, last: SignedReceipt | None,
        *, final: bool,
    ) -> SignedReceipt:  # fmt: skip
        self._seq += 1
        now = CLOCK.now()
        receipt = Receipt(
            kind=Kind.FINAL if final else Kind.CHECKPOINT, request_id=meta.request_id, request_hash=name,
            response_hash=chain.digest, model=MODEL, price_sheet=self.sheet.digest(),
            operator=self.worker_key.address, frames=chain.frames, input_units=256, cached_units=0,
            output_units=output, charge=due, usage_commitment=Digest.zero(), audit_commitment=Digest.zero(),
            outcome=Outcome.COMPLETE if final else Outcome.RUNNING, seq=self._seq,
            started_at=last.receipt.started_at if last else now, finished_at=now,
            previous=last.receipt.typed_digest(self.domain) if last else Digest.zero(),
        )  # fmt: skip
        return SignedReceipt.sign(receipt, self.domain, self.boot.receipt)


def _frames() -> tuple[bytes, ...]:
    """Payloads of a stream. All streams carry the same: the proxy cannot tell, and their hashes differ per request."""
    one = MARK + bytes(FRAME_BYTES - len(MARK))
    return (bytes(16) + one, *(one for _ in range(STREAM_FRAMES - 1)))


class Worker:
    """The far end of the link: looks up the answer that was prepared for a request and sends it."""

    def __init__(
        self, link: Link, replies: dict[bytes, Reply], pacer: Pacer, sent_at: dict[bytes, list[float]]
    ) -> None:
        loop = asyncio.get_running_loop()
        self.challenge: asyncio.Future[LinkChallenge] = loop.create_future()
        self.welcome: asyncio.Future[LinkWelcome] = loop.create_future()
        self.refused = 0
        self._link = link
        self._replies = replies
        self._pacer = pacer
        self._sent_at = sent_at
        link.attach(self._on_message, lambda: None)

    def send(self, kind: int, stream: int, payload: bytes) -> None:
        self._link.send(_HEADER.pack(len(payload), stream, kind) + payload)

    def _on_message(self, message: bytes) -> None:
        position = 0
        while position < len(message):
            length, stream, kind = _HEADER.unpack_from(message, position)
            start = position + _HEADER.size
            position = start + length
            if kind == LinkType.REQUEST_END:
                at = message.find(_ID, start, position) + len(_ID)
                self._answer(stream, message[at : at + 16])
            elif stream == 0:
                self._on_link(message[start - _HEADER.size : position])

    def _on_link(self, frame: bytes) -> None:
        for kind, _, payload in read_link_frames(frame):
            if kind is LinkType.CHALLENGE:
                self.challenge.set_result(LinkChallenge.decode(payload))
            elif kind is LinkType.WELCOME:
                self.welcome.set_result(LinkWelcome.decode(payload))

    def _answer(self, stream: int, name: bytes) -> None:
        reply = self._replies.pop(name, None)
        if reply is None:
            self.refused += 1
        elif reply.paced:
            self._paced(stream, name, reply)
        else:
            pack = _HEADER.pack
            self._link.send(b"".join([pack(len(data), stream, kind) + data for kind, data in reply.frames]))

    def _paced(self, stream: int, name: bytes, reply: Reply) -> None:
        times = self._sent_at[name] = []
        left = list(reply.frames)

        def step() -> bool:
            times.append(time.perf_counter())
            self.send(*_placed(left.pop(0), stream))
            while left and left[0][0] != LinkType.DATA:
                self.send(*_placed(left.pop(0), stream))
            return bool(left)

        self._pacer.add(step)


def _placed(frame: tuple[int, bytes], stream: int) -> tuple[int, int, bytes]:
    return frame[0], stream, frame[1]
