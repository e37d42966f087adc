# SPDX-License-Identifier: Apache-2.0
"""Load for a shipped worker: the proxy's end of its link in this process, and an engine that speaks 50 times a second.

The proxy is the shipped one over a store in memory: it appraises the worker, opens a channel to it and pays for every
stream. Requests are truly sealed; their answers are timed and counted, not opened.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import cast

from _load import Pacer, Peak, Taken, Upstream, cpu_of
from _sealed import CLOCK, ENTROPY, key

from bombyx.adapters.http_server import HttpServer
from bombyx.adapters.ledger_http import LedgerServer, serve_ledger
from bombyx.adapters.memory import MemoryLedger, MemoryStore
from bombyx.adapters.processes import Child, start_child
from bombyx.adapters.websocket import websocket_upgrade
from bombyx.compose import new_simulated_platform
from bombyx.compose.policy import read_policy
from bombyx.config import NetworkDescriptor, ProxyAddress
from bombyx.ports import Operator, OperatorRole
from bombyx.protocol.pay.price import line_cap
from bombyx.protocol.primitives import Digest, RequestId
from bombyx.protocol.seal import (
    GatewayKey,
    Kem,
    Request,
    encode_request,
    pad_request,
    parse_key_configs,
    payload_hash,
    seal_request,
)
from bombyx.protocol.seal.fields import CACHE_SALT_FIELD, NONCE_FIELD
from bombyx.protocol.wire.receipt import Kind, SignedReceipt
from bombyx.protocol.wire.records import WorkerRequest
from bombyx.protocol.wire.request import Meta, Shape
from bombyx.roles.proxy.relay import Stream
from bombyx.roles.proxy.roster import Seat
from bombyx.roles.proxy.runtime import Proxy
from bombyx.roles.proxy.settings import ProxySettings

MONEY = 10**15
BPS = 500


class Engine(Upstream):
    """`Upstream`, and the list of its one model."""

    def _answer(self, data: bytes, end: int) -> None:
        if data.startswith(b"GET"):
            models = b'{"object":"list","data":[{"id":"m","object":"model"}]}'
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(models)
            self.transport.write(head + models)
        else:
            super()._answer(data, end)


class Listener:
    """A stream of the link, as far as the link looks: times frames, remembers the final receipt."""

    def __init__(self, taken: Taken, name: bytes, sent_at: dict[bytes, list[float]]) -> None:
        self.number = 0  # given by the link
        self.touched = False
        self.frames = 0
        self.charge = 0
        self.ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._taken = taken
        self._name = name
        self._sent_at = sent_at

    def on_data(self, _payload: bytes) -> None:
        times = self._sent_at.get(self._name, ())
        if self.frames < len(times):
            self._taken.delays.append(time.perf_counter() - times[self.frames])
        self.frames += 1

    def on_receipt(self, payload: bytes) -> None:
        receipt = SignedReceipt.decode(payload).receipt
        if receipt.kind is Kind.FINAL:
            self.charge = receipt.charge

    def on_end(self) -> None:
        self._end(True)

    def on_refuse(self, payload: bytes) -> None:
        self._taken.first_failure = self._taken.first_failure or payload
        self._end(False)

    def lost(self) -> None:
        self._end(False)

    def flush(self) -> None:
        self.touched = False

    def _end(self, well: bool) -> None:
        if not self.ended.done():
            self.ended.set_result(well)


class WorkerLoad:
    """Chain, proxy's end and engine here; one worker, a process."""

    def __init__(self, folder: Path, pacer: Pacer, sent_at: dict[bytes, list[float]]) -> None:
        self._folder = folder
        self._pacer = pacer
        self._sent_at = sent_at
        self._count = 0

    async def start(self) -> Child:
        ledger = MemoryLedger(CLOCK)
        self._chain: LedgerServer = await serve_ledger(ledger, 0)
        policy = new_simulated_platform(self._folder / "platform")
        owner, gateway = key("bench proxy"), GatewayKey.generate(1, Kem.MLKEM768_X25519, ENTROPY)
        await ledger.faucet(owner.address, MONEY)
        settings = ProxySettings(policy=read_policy(policy), float_limit=MONEY // 10)
        self.proxy = Proxy(
            settings, key=owner, pay_key=gateway, ledger=ledger, store=MemoryStore(), clock=CLOCK, randomness=ENTROPY
        )
        await self.proxy.start()
        self._server = HttpServer(self.proxy.handle, upgrades={"/v1/link": websocket_upgrade(self.proxy.on_link)})
        await self._server.start("127.0.0.1", 0)
        url = f"http://127.0.0.1:{self._server.port}"
        line = Operator(
            address=owner.address, role=OperatorRole.PROXY, endpoint=url, receipt_address=owner.address,
            pay_authorizer=owner.address, pay_key_config=gateway.config.encode(), price_sheet=Digest.zero(), models=(),
        )  # fmt: skip
        await ledger.register(line, signer=owner)
        loop = asyncio.get_running_loop()
        engine = await loop.create_server(lambda: Engine(self._pacer, self._sent_at), "127.0.0.1", 0, backlog=4096)
        self._engine = engine
        network = NetworkDescriptor(
            chain_url=self._chain.url, proxies=(ProxyAddress(address=owner.address, url=url),), policy=policy,
            simulated=policy.parent,
        )  # fmt: skip
        file = self._folder / "network.json"
        file.write_text(network.to_json())
        arguments = [
            "worker", "--engine", f"http://127.0.0.1:{engine.sockets[0].getsockname()[1]}", "--dialect", "plain",
            "--capacity", "4096", "--network", str(file), "--state", str(self._folder / "worker"), "--child",
        ]  # fmt: skip
        self.child = await start_child("worker", arguments, log=self._folder / "worker.log")
        while not self.proxy.roster.workers:  # noqa: ASYNC110 - a roster has no event; this happens once
            await asyncio.sleep(0.05)
        return self.child

    async def stop(self) -> None:
        await self.proxy.stop()
        await self._server.close(grace=0.1)
        self._engine.close()
        await self._chain.close()

    @property
    def _seat(self) -> Seat:
        (worker,) = self.proxy.roster.workers.values()
        return worker.seats[-1]

    async def run(self, streams: int, spread: float, rounds: int) -> tuple[Taken, float]:
        """`streams` side by side, `rounds` times each, begun within `spread` seconds; and the most memory used."""
        self._sent_at.clear()
        taken = Taken()
        prepared = [[self._sealed() for _ in range(rounds)] for _ in range(streams)]
        cpu, began = cpu_of(self.child.pid), time.perf_counter()
        with Peak(self.child.pid) as peak:
            await asyncio.gather(
                *(self._client(mine, spread * place / streams, taken) for place, mine in enumerate(prepared))
            )
        taken.seconds, taken.cpu = time.perf_counter() - began, cpu_of(self.child.pid) - cpu
        return taken, peak.megabytes

    async def _client(self, mine: list[tuple[bytes, Meta, bytes, bytes]], wait: float, taken: Taken) -> None:
        await asyncio.sleep(wait)
        for one in mine:
            well = await self._stream(*one, taken)
            taken.answers += well
            taken.failed += not well

    async def _stream(self, name: bytes, meta: Meta, wrap: bytes, body: bytes, taken: Taken) -> bool:
        seat, wallet = self._seat, self.proxy._wallet
        link, channel = seat.worker.link, seat.account.channel
        payment = await wallet.authorize(
            seat.account, meta.request_id, cap=line_cap(seat.lines[meta.model], seat.sheet.grain, 512, 1024),
            meta_hash=meta.digest(), body_hash=payload_hash((wrap,), body),
        )  # fmt: skip
        made = link.open(cast(Stream, Listener(taken, name, self._sent_at)))
        listener = cast(Listener, made)
        request = WorkerRequest(payment=payment, meta=meta.encode(), wrap=wrap, body=body)
        await link.upload(cast(Stream, listener), request.encode())
        well = await asyncio.wait_for(listener.ended, 60)
        link.forget(listener.number)
        channel.confirm(payment)
        if listener.charge:
            wallet.agree(channel, meta.request_id, listener.charge, final=True)
        else:
            wallet.release(channel, meta.request_id)
        return well

    def _sealed(self) -> tuple[bytes, Meta, bytes, bytes]:
        """(name, Meta, wrap, body) of one question."""
        seat, self._count = self._seat, self._count + 1
        name = b"name-%011d" % self._count
        config = parse_key_configs(seat.result.key_configs)[-1]  # X25519 alone: hundreds are sealed before each run
        meta = Meta(
            v=1, request_id=RequestId(ENTROPY.bytes(16)), model=seat.result.keyset.models[0], proxy=self.proxy.address,
            price_sheets=(seat.sheet_digest,), commission_bps=BPS, max_input=512, max_output=1024,
            deadline=CLOCK.now().plus(seconds=280), candidates=(config.candidate_id(),), shape=Shape.OFF,
            frame_size=1024,
        )  # fmt: skip
        content = b'{"model":"m","stream": true,"messages":[{"role":"user","content":"%b paced"}]}' % name
        headers = (
            (b"content-type", b"application/json"),
            (NONCE_FIELD, ENTROPY.bytes(32).hex().encode()),
            (CACHE_SALT_FIELD, ENTROPY.bytes(32).hex().encode()),
        )
        inner = Request(method=b"POST", path=b"/v1/chat/completions", headers=headers, content=content)
        sealed = seal_request(
            meta=meta, bhttp=pad_request(encode_request(inner)), recipients=[config], randomness=ENTROPY,
            not_after=meta.deadline,
        )  # fmt: skip
        return name, meta, sealed.wraps[0], sealed.body
