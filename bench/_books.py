# SPDX-License-Identifier: Apache-2.0
"""The books of client, proxy and workers after they have stopped, read from their stores, held against each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bombyx.adapters.sqlite import SqliteStore
from bombyx.ports import LedgerInfo
from bombyx.protocol.pay.payee import PayeeBook, PayeeTerms
from bombyx.protocol.pay.payer import PayerChannel, PayerPolicy
from bombyx.protocol.pay.price import with_commission
from bombyx.protocol.primitives import Address, Amount, Digest
from bombyx.protocol.wire.channel import settlement_domain
from bombyx.protocol.wire.receipt import SignedReceipt
from bombyx.roles.client.kept import KeptReceipt

Rows = list[tuple[bytes, bytes]]


@dataclass
class Books:
    """Sums in base units; `earned` is each request's last charge by its worker's receipts."""

    client_agreed: int = 0
    client_left: dict[bytes, int] = field(default_factory=dict)  # requests it stopped listening to: agreed so far
    client_kept: dict[bytes, int] = field(default_factory=dict)  # answers that ended well, and what each cost
    proxy_charged: int = 0
    proxy_held: int = 0
    proxy_agreed: int = 0
    worker_charged: int = 0
    worker_held: int = 0
    earned: dict[bytes, int] = field(default_factory=dict)

    def faults(self, bps: int, answers: int) -> list[str]:
        """Every sentence is money, or a receipt, that is not where it belongs."""
        found = []
        # An application that leaves does not see the final receipt: the client agreed to the last one it holds.
        unseen = sum(self._owed(name, bps) - agreed for name, agreed in self.client_left.items())
        owed = sum(with_commission(Amount(charge), bps) for charge in self.earned.values())
        for what, here, there in (
            ("still reserved", self.proxy_held + self.worker_held, 0),
            ("workers charged, their receipts say", self.worker_charged, sum(self.earned.values())),
            ("the proxy agreed to workers, they charged", self.proxy_agreed, self.worker_charged),
            ("the proxy charged, receipts and commission say", self.proxy_charged, owed),
            ("the client agreed, the proxy charged", self.client_agreed + unseen, self.proxy_charged),
            ("whole answers with a receipt, answers", len(self.client_kept), answers),
        ):
            if here != there:
                found.append(f"{what}: {here}, {there}")
        unlike = [name for name, paid in self.client_kept.items() if paid != self._owed(name, bps)]
        if unlike:
            found.append(f"{len(unlike)} answers cost the client something else than their worker's receipt says")
        return found

    def _owed(self, name: bytes, bps: int) -> int:
        """What its worker's receipt makes a request cost the client."""
        return with_commission(Amount(self.earned.get(name, 0)), bps)


async def read(folder: Path, workers: int, info: LedgerInfo) -> Books:
    domain = settlement_domain(info.chain_id, info.settlement)
    found = Books()
    proxy = SqliteStore.open(folder / "proxy" / "proxy.db")
    found.proxy_charged, found.proxy_held = _payee(domain, await proxy.scan("proxy_payee"))
    found.proxy_agreed = sum(one.agreed for one in _payers(domain, await proxy.scan("proxy_payer")))
    await proxy.close()
    client = SqliteStore.open(folder / "client" / "client.db")
    for channel in _payers(domain, await client.scan("client_channel")):
        found.client_agreed += channel.agreed
        found.client_left |= {bytes(name): agreed for name, agreed in channel.left.items()}
    for name, row in await client.scan("client_receipt"):
        kept = KeptReceipt.decode(row)
        if kept.outcome == "complete":
            found.client_kept[name] = kept.paid
    await client.close()
    for number in range(workers):
        await _worker(folder / f"worker-{number}" / "worker.db", domain, found)
    return found


async def _worker(path: Path, domain: Digest, found: Books) -> None:
    store = SqliteStore.open(path)
    charged, held = _payee(domain, await store.scan("worker_book"))
    found.worker_charged += charged
    found.worker_held += held
    for _, row in await store.scan("worker_receipts"):
        receipt = SignedReceipt.decode(row).receipt
        name = bytes(receipt.request_id)
        found.earned[name] = max(found.earned.get(name, 0), receipt.charge)
    await store.close()


def _payee(domain: Digest, rows: Rows) -> tuple[int, int]:
    """(charged, still reserved) on all channels."""
    nobody = Address.zero()
    book = PayeeBook.load(PayeeTerms(receiver=nobody, receiver_authorizer=nobody, token=nobody), domain, rows)
    accounts = [book.account(channel) for channel in book.channels]
    return sum(int(one.charged) for one in accounts), sum(int(one.reserved) for one in accounts)


def _payers(domain: Digest, rows: Rows) -> tuple[PayerChannel, ...]:
    return PayerChannel.load(domain, PayerPolicy(budget=1, window=1), rows)
