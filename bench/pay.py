# SPDX-License-Identifier: Apache-2.0
"""What paying costs: vouchers, session MACs, receipts, group commit; as ratios to one bare signature recovery.

The limit measured in the same run is coincurve's `PublicKey.from_signature_and_message`: no design that lets a contract
judge can check a signature for less. Processor time; the store's rows are wall-clock time, as an fsync is waiting.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
import time
from pathlib import Path

from _machine import Goal, options, per_call, report
from coincurve import PublicKey

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.memory_chain import MemoryChain
from bombyx.adapters.sqlite import SqliteStore
from bombyx.errors import Peer
from bombyx.ports import Write
from bombyx.protocol.pay.channel import check_voucher, sign_voucher
from bombyx.protocol.pay.grant import mac
from bombyx.protocol.pay.payee import PayeeBook, PayeeTerms
from bombyx.protocol.pay.payer import PayerChannel, PayerPolicy
from bombyx.protocol.pay.receipts import Expectation
from bombyx.protocol.pay.trail import ReceiptTrail
from bombyx.protocol.primitives import Digest, RequestId, Secret, sha256
from bombyx.protocol.wire.channel import ChannelConfig
from bombyx.protocol.wire.eip712 import typed_digest
from bombyx.protocol.wire.market import ModelPrice, PriceSheet
from bombyx.protocol.wire.receipt import Kind, Outcome, Receipt, SignedReceipt
from bombyx.protocol.wire.signing import SigningKey

META, BODY = sha256(b"meta"), sha256(b"body")
KEYS = [SigningKey(Secret(bytes([n]) * 32)) for n in range(1, 4)]
BATCH = 128  # writers that share one commit


class Bench:
    """One channel and one answer, ready to be measured."""

    def __init__(self) -> None:
        clock = SystemClock()
        chain = MemoryChain(clock)
        payer, session, payee = KEYS
        self.domain = chain.domain
        config = ChannelConfig(
            payer=payer.address,
            payer_authorizer=session.address,
            receiver=payee.address,
            receiver_authorizer=payee.address,
            token=chain.info.token,
            withdraw_delay=3_600,
            salt=Digest.zero(),
        )
        chain.mint(payer.address, 10**15)
        chain.deposit(payer.address, config, 10**15)
        self.channel = config.channel_id(self.domain)
        view = chain.channel(self.channel)
        assert view is not None
        self.view, self.now, self.clock = view, clock.now(), clock
        terms = PayeeTerms(receiver=payee.address, receiver_authorizer=payee.address, token=chain.info.token)
        self.book = PayeeBook(terms, self.domain)
        self.book.open(view)
        self.payer = PayerChannel(config, self.domain, PayerPolicy(budget=10**15, window=10**9))
        self.payer.observe(view)
        self.key = Secret(b"\x09" * 32)
        until = self.now.plus(seconds=7_200)
        self.payer.open_session(self.key, sealed_key=b"", not_after=until, signer=session)
        self.session = session
        self.number = 0

    def request(self) -> None:
        """Both sides of one paid request: authorise, accept, settle, agree, and take the rows."""
        self.number += 1
        name = RequestId(self.number.to_bytes(16))
        payment = self.payer.authorize(name, cap=1_000, meta_hash=META, body_hash=BODY, signer=self.session)
        key = self.key if self.book.wants_key(payment) else None
        self.book.accept(
            payment,
            request_id=name,
            cap=1_000,
            meta_hash=META,
            body_hash=BODY,
            now=self.now,
            view=self.view,
            session_key=key,
        )
        self.book.settle(self.channel, name, 700, now=self.now)
        self.payer.agree(name, 700)
        self.book.take_rows()
        self.payer.take_rows()


def receipt_of(model: Digest, sheet: PriceSheet) -> Receipt:
    return Receipt(
        kind=Kind.FINAL,
        request_id=RequestId(bytes(16)),
        request_hash=META,
        response_hash=BODY,
        model=model,
        price_sheet=sheet.digest(),
        operator=sheet.operator,
        frames=1,
        input_units=32,
        cached_units=0,
        output_units=16,
        charge=48,
        usage_commitment=META,
        audit_commitment=Digest.zero(),
        outcome=Outcome.COMPLETE,
        seq=1,
        started_at=SystemClock().now(),
        finished_at=SystemClock().now(),
        previous=Digest.zero(),
    )


async def commits(writers: int, rounds: int, folder: Path) -> float:
    """Seconds for one row when `writers` wait for the same commit."""
    store = SqliteStore.open(folder / f"{writers}.db")
    value, took = os.urandom(120), []
    for number in range(rounds):
        rows = [[Write(table="t", key=b"%d.%d" % (number, one), value=value)] for one in range(writers)]
        start = time.perf_counter()
        await asyncio.gather(*(store.write(row) for row in rows))
        took.append((time.perf_counter() - start) / writers)
    await store.close()
    return sorted(took)[len(took) // 2]


def fsync_alone(folder: Path, rounds: int) -> float:
    """Seconds of one bare write and fsync of as many bytes as a batch has: the disk's own limit."""
    took = []
    with (folder / "plain").open("wb") as file:
        for _ in range(rounds):
            start = time.perf_counter()
            file.write(bytes(BATCH * 160))
            file.flush()
            os.fsync(file.fileno())
            took.append(time.perf_counter() - start)
    return sorted(took)[len(took) // 2]


def main() -> None:
    chosen = options(__doc__)
    seconds = 0.1 if chosen.quick else 0.6
    bench = Bench()
    session = bench.session
    digest = typed_digest(bench.domain, META)
    signature = session.sign(digest)
    raw = signature[:64] + bytes([signature[64] - 27])
    voucher = sign_voucher(bench.channel, 1_000, bench.domain, session)
    state = bench.book.channel(bench.channel)
    model = sha256(b"model")
    line = ModelPrice(model=model, input=10**6, cached_input=10**6, output=10**6)
    sheet = PriceSheet(v=1, operator=KEYS[2].address, grain=16, prices=(line,))
    receipt = receipt_of(model, sheet)
    signed = SignedReceipt.sign(receipt, bench.domain, session)
    expected = Expectation.of(
        sheet,
        domain=bench.domain,
        receipt_address=session.address,
        request_id=receipt.request_id,
        request_hash=META,
        model=model,
        max_input=64,
        max_output=64,
        cap=1_000,
    )

    def check_receipt() -> None:
        trail = ReceiptTrail(expected)
        trail.delivered(BODY, 1_024)
        trail.receive(signed)

    long_trail, frame = ReceiptTrail(expected), os.urandom(1_030)

    def one_frame() -> None:
        long_trail.delivered(sha256(META, frame), 1_030)

    timed = {
        "recover, bare (the limit)": lambda: PublicKey.from_signature_and_message(raw, digest, hasher=None),
        "voucher: sign": lambda: sign_voucher(bench.channel, 1_000, bench.domain, session),
        "voucher: check": lambda: check_voucher(voucher, state, bench.domain, peer=Peer.CLIENT),
        "session MAC: make or check": lambda: mac(bench.key, bench.channel, 7, META, BODY, 1_000),
        "paid request, both sides": bench.request,
        "receipt: sign": lambda: SignedReceipt.sign(receipt, bench.domain, session),
        "receipt: all checks": check_receipt,
        "frame: hash and trail": one_frame,
        "frame: SHA-256 alone": lambda: hashlib.sha256(META + frame).digest(),
    }
    costs = {name: per_call(work, seconds=seconds) for name, work in timed.items()}
    limit = costs["recover, bare (the limit)"]
    rows: list[dict[str, object]] = [
        {"what": name, "us": round(cost * 1e6, 2), "x recover": round(cost / limit, 3)} for name, cost in costs.items()
    ]
    with tempfile.TemporaryDirectory() as name:
        folder, rounds = Path(name), 20 if chosen.quick else 100
        shared, alone = asyncio.run(commits(BATCH, rounds, folder)), asyncio.run(commits(1, rounds, folder))
        disk = fsync_alone(folder, rounds)
    rows += [
        {"what": f"store: one row of {BATCH} in a commit (wall)", "us": round(shared * 1e6, 2)},
        {"what": "store: one row, one commit (wall)", "us": round(alone * 1e6, 2)},
        {"what": f"disk: write and fsync {BATCH * 160} bytes (wall)", "us": round(disk * 1e6, 2)},
    ]
    report(
        "pay",
        rows,
        [
            Goal("voucher checks per second per core", 1 / costs["voucher: check"], ">=", 20_000),
            Goal("voucher check / bare recover", costs["voucher: check"] / limit, "<=", 1.35),
            Goal("session MAC / bare recover", costs["session MAC: make or check"] / limit, "<=", 0.15),
            Goal("receipt, all checks / bare recover", costs["receipt: all checks"] / limit, "<=", 2.0),
            Goal(
                "frame with trail / SHA-256 alone",
                costs["frame: hash and trail"] / costs["frame: SHA-256 alone"],
                "<=",
                2.5,
            ),
            Goal("a row in a shared commit / a row alone", shared / alone, "<=", 0.2),
        ],
        as_json=chosen.json,
    )


if __name__ == "__main__":
    main()
