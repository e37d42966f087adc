# SPDX-License-Identifier: Apache-2.0
"""A proxy's or worker's books, read beside the running process, held against the chain; and a watchtower."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.keys import KeyFiles
from bombyx.adapters.sqlite import SqliteStore
from bombyx.compose.service import fund, open_ledger
from bombyx.config import NetworkDescriptor
from bombyx.errors import ConfigError, MalformedMessage, Peer
from bombyx.ports import ChannelView, Ledger, Store
from bombyx.protocol.pay.payee import PayeeBook, PayeeTerms
from bombyx.protocol.pay.payer import PayerChannel, PayerPolicy
from bombyx.protocol.pay.tickets import MAX_TEXT, sign_ticket, tickets_from_json, tickets_to_json
from bombyx.protocol.primitives import MAX_AMOUNT, Address, Digest
from bombyx.protocol.wire.channel import settlement_domain
from bombyx.roles.proxy.holdings import PAYEE, PAYER
from bombyx.roles.proxy.money import income, statement
from bombyx.roles.watchtower import Watchtower

PROXY, WORKER = "proxy", "worker"
WORKER_BOOK = "worker_book"  # roles/worker/payments.py; not imported, it needs a worker's libraries
LOOKS_AT_ONCE = 16


async def money(role: str, network: NetworkDescriptor, state: Path, store_url: str) -> dict[str, Any]:
    """The statement of one role."""
    async with _opened(role, network, state, store_url) as (ledger, store):
        address = KeyFiles(state, SystemEntropy()).load(role).address
        balance = int(await ledger.balance(address))
        domain = await _domain(ledger)
        table = PAYEE if role == PROXY else WORKER_BOOK
        book = await _book(ledger, store, table, address, Peer.CLIENT if role == PROXY else Peer.PROXY)
        rows = await store.scan(PAYER) if role == PROXY else []
        paying = PayerChannel.load(domain, PayerPolicy(budget=MAX_AMOUNT, window=1), rows, payee=Peer.WORKER)
        views = await _views(ledger, [*book.channels, *(one.id for one in paying)])
        if role == PROXY:
            return statement(book, paying, views, balance=balance)
        return {"account": str(address), "balance": balance, "income": income(book, views)}


async def tickets(network: NetworkDescriptor, state: Path, store_url: str) -> tuple[str, int]:
    """Every claim a proxy could make now, signed for others to present; and how many."""
    async with _opened(PROXY, network, state, store_url) as (ledger, store):
        key = KeyFiles(state, SystemEntropy()).load(PROXY)
        book = await _book(ledger, store, PAYEE, key.address, Peer.CLIENT)
        claims = [claim for channel in book.channels if (claim := book.claim_now(channel)) is not None]
        return tickets_to_json(sign_ticket(claim, book.domain, key) for claim in claims), len(claims)


@asynccontextmanager
async def watchtower(
    network: NetworkDescriptor, state: Path, files: Sequence[Path], *, threshold: int | None
) -> AsyncIterator[tuple[Watchtower, int]]:
    """A tower with the tickets of `files`; and how many tickets were refused."""
    ledger = open_ledger(network)
    try:
        gas = KeyFiles(state, SystemEntropy()).load_or_create("watchtower")
        await fund(ledger, gas.address, 1)  # on development chains; elsewhere its operator gives it gas
        tower = Watchtower(ledger, gas, threshold=threshold)
        yield tower, await take_in(tower, files)
    finally:
        await ledger.close()


async def take_in(tower: Watchtower, files: Sequence[Path]) -> int:
    """Read the files (again). How many tickets were refused."""
    refused = 0
    for file in files:
        refused += await tower.keep(tickets_from_json(await asyncio.to_thread(_read, file)))
    return refused


@asynccontextmanager
async def _opened(
    role: str, network: NetworkDescriptor, state: Path, store_url: str
) -> AsyncIterator[tuple[Ledger, Store]]:
    store = await _store(role, state, store_url)
    ledger = open_ledger(network)
    try:
        yield ledger, store
    finally:
        await ledger.close()
        await store.close()


async def _store(role: str, state: Path, url: str) -> Store:
    if url:
        from bombyx.adapters.postgres import PostgresStore

        return await PostgresStore.open(url)
    path = state / f"{role}.db"
    if not await asyncio.to_thread(path.exists):
        raise ConfigError(f"no {role} has kept books in {state}: name its folder with --state")
    return SqliteStore.open(path)


async def _book(ledger: Ledger, store: Store, table: str, address: Address, payer: Peer) -> PayeeBook:
    info = await ledger.info()
    terms = PayeeTerms(receiver=address, receiver_authorizer=address, token=info.token)
    return PayeeBook.load(terms, await _domain(ledger), await store.scan(table), payer=payer)


async def _domain(ledger: Ledger) -> Digest:
    info = await ledger.info()
    return settlement_domain(info.chain_id, info.settlement)


async def _views(ledger: Ledger, channels: Sequence[Digest]) -> dict[Digest, ChannelView | None]:
    turn = asyncio.Semaphore(LOOKS_AT_ONCE)

    async def look(channel: Digest) -> ChannelView | None:
        async with turn:
            return await ledger.channel(channel)

    return dict(zip(channels, await asyncio.gather(*map(look, channels)), strict=True))


def _read(file: Path) -> str:
    try:
        if file.stat().st_size > MAX_TEXT:
            raise MalformedMessage(f"{file} is too large", rule="PAY-26")
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {file}: {type(error).__name__}") from None
