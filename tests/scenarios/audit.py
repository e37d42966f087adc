# SPDX-License-Identifier: Apache-2.0
"""Every account held against every receipt: the rows each role keeps, and what the chain shows, to the unit.

Reads the roles' stores from outside while they run. Three sums must agree on each channel: what the receipts in the
payee's store say, what its book charged, and what the chain paid. Each request that ended well must have one price on
both hops, in all three stores. Payer and payee may differ only on a request that a crash cut.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.scenarios.procs import Processes

from bombyx.adapters.evm import AddressBook, EvmLedger, Rpc
from bombyx.adapters.sqlite_file import unpack
from bombyx.ports import Store
from bombyx.protocol.pay.payee import PayeeBook, PayeeTerms
from bombyx.protocol.pay.payer import PayerChannel, PayerPolicy
from bombyx.protocol.primitives import Address, Digest
from bombyx.protocol.wire.channel import settlement_domain
from bombyx.protocol.wire.receipt import SignedReceipt
from bombyx.roles.client.kept import KeptReceipt

Charges = dict[bytes, int]  # by request id
Rows = list[tuple[bytes, bytes]]


@dataclass
class Hop:
    """One channel's account at the payee, and the same at the payer."""

    payee: Charges = field(default_factory=dict)
    charged: int = 0
    paid: int = 0  # on chain
    held: int = 0
    payer: Charges = field(default_factory=dict)


@dataclass
class Accounts:
    """What `read` found."""

    client: dict[Digest, Hop] = field(default_factory=dict)  # client -> proxy
    worker: dict[Digest, Hop] = field(default_factory=dict)  # proxy -> worker
    worker_receipts: Charges = field(default_factory=dict)
    whole: Charges = field(default_factory=dict)  # requests that ended well at the client, and what it paid

    def faults(self) -> list[str]:
        """Every sentence is money in the wrong place."""
        found = [] if self.client and self.worker else ["no channel is booked: nothing was read"]
        for name, hops in (("client", self.client), ("worker", self.worker)):
            for channel, hop in hops.items():
                what = f"{name} channel {channel.hex()[:8]}"
                if hop.held:
                    found.append(f"{what}: {hop.held} still reserved")
                if hop.paid != hop.charged:
                    found.append(f"{what}: the chain paid {hop.paid}, {hop.charged} is charged")
                if sum(hop.payee.values()) != hop.charged:
                    found.append(f"{what}: settled {sum(hop.payee.values())}, {hop.charged} is charged")
        settled = Counter[bytes]()
        for hop in self.worker.values():
            settled.update(hop.payee)
        if _paid_for(settled) != _paid_for(self.worker_receipts):
            found.append("a worker's receipts and its book differ")
        return found + self._unequal()

    def _unequal(self) -> list[str]:
        """A request that ended well costs the same in every store."""
        found = []
        for request, paid in self.whole.items():
            booked = [hop.payee.get(request) for hop in self.client.values() if request in hop.payee]
            agreed = [hop.payer.get(request) for hop in self.worker.values() if request in hop.payer]
            if booked != [paid]:
                found.append(f"request {request.hex()[:8]}: the client paid {paid}, the proxy booked {booked}")
            if agreed != [self.worker_receipts.get(request)]:
                found.append(f"request {request.hex()[:8]}: the proxy agreed {agreed}, the worker earned otherwise")
        return found

    def cut(self) -> dict[bytes, tuple[int, int]]:
        """Requests the two ends of a hop price differently: (payer's, payee's)."""
        found = {}
        for hop in [*self.client.values(), *self.worker.values()]:
            for request in hop.payee.keys() | hop.payer.keys():
                both = hop.payer.get(request, 0), hop.payee.get(request, 0)
                if both[0] != both[1]:
                    found[request] = both
        return found


def _paid_for(charges: Charges) -> Charges:
    return {request: charge for request, charge in charges.items() if charge}


async def settled(
    net: Processes, *, clients: tuple[str, ...] = ("client",), workers: tuple[str, ...] = ("worker-0",),
    within: float = 40.0, shared: Store | None = None,
) -> Accounts:  # fmt: skip
    """Wait until every account on chain equals what the receipts say. Raises with what does not. `shared`: where the
    proxy's replicas keep their books."""
    book = AddressBook.from_dict(net.children["devnet"].ready["contracts"])
    ledger = EvmLedger(Rpc(net.children["devnet"].ready["url"].split(",")), book)
    until = time.monotonic() + within
    try:
        while True:
            accounts = await read(net, ledger, clients, workers, shared)
            if not (faults := accounts.faults()):
                return accounts
            if time.monotonic() > until:
                raise AssertionError("\n".join(faults))
            await asyncio.sleep(0.25)
    finally:
        await ledger.close()


async def read(
    net: Processes, ledger: EvmLedger, clients: tuple[str, ...], workers: tuple[str, ...], shared: Store | None = None
) -> Accounts:
    domain = settlement_domain(ledger.book.chain_id, ledger.book.settlement)
    found = Accounts()
    own = net.state("proxy") / "proxy.db"
    payee, payer = [
        await shared.scan(table) if shared else _rows(own, table) for table in ("proxy_payee", "proxy_payer")
    ]
    found.client = _payee(payee, domain)
    for name in workers:
        store = net.state(name) / "worker.db"
        found.worker |= _payee(_rows(store, "worker_book"), domain)
        for _, row in _rows(store, "worker_receipts"):
            receipt = SignedReceipt.decode(row).receipt
            known = found.worker_receipts.get(bytes(receipt.request_id), 0)
            found.worker_receipts[bytes(receipt.request_id)] = max(known, receipt.charge)
    _payer(payer, domain, found.worker)
    for name in clients:
        store = net.state(name) / "client.db"
        _payer(_rows(store, "client_channel"), domain, found.client)
        for key, row in _rows(store, "client_receipt"):
            kept = KeptReceipt.decode(row)
            if kept.outcome == "complete":
                found.whole[key] = kept.paid
    for channel, hop in [*found.client.items(), *found.worker.items()]:
        view = await ledger.channel(channel)
        hop.paid = int(view.total_claimed) if view is not None else 0
    return found


def _payee(rows: Rows, domain: Digest) -> dict[Digest, Hop]:
    nobody = Address.zero()
    book = PayeeBook.load(PayeeTerms(receiver=nobody, receiver_authorizer=nobody, token=nobody), domain, rows)
    found = {}
    for channel in book.channels:
        account = book.account(channel)
        settled = {bytes(name): charge for name, charge in book._finished[channel]._charges.items()}
        found[channel] = Hop(payee=settled, charged=int(account.charged), held=int(account.reserved))
    return found


def _payer(rows: Rows, domain: Digest, hops: dict[Digest, Hop]) -> None:
    policy = PayerPolicy(budget=1, window=1)
    for channel in PayerChannel.load(domain, policy, rows):
        if channel.id in hops:
            hops[channel.id].payer |= {bytes(name): charge for name, charge in channel._finished._charges.items()}
            hops[channel.id].payer |= {bytes(name): charge for name, charge in channel.left.items() if charge}
        assert channel.frozen is None, channel.frozen


def _rows(store: Path, table: str) -> Rows:
    if not store.exists():
        return []
    return [(key, value) for (name, key), value in sorted(_everything(store).items()) if name == table]


def tables(store: Path) -> set[str]:
    """Every table a role has written a row of that is still there."""
    return {name for name, _ in _everything(store)}


def _everything(store: Path) -> dict[tuple[str, bytes], bytes]:
    """By table and key: the table of rows, and over it the log of what was not folded in yet."""
    connection = sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=10)
    try:
        connection.execute("BEGIN")
        rows = {(name, key): value for name, key, value in connection.execute("SELECT name, key, value FROM rows")}
        for (batch,) in connection.execute("SELECT batch FROM log ORDER BY id"):
            for name, key, value in unpack(batch):
                rows.pop((name, key), None)
                if value is not None:
                    rows[name, key] = value
        return rows
    finally:
        connection.close()
