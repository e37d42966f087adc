# SPDX-License-Identifier: Apache-2.0
"""A staked worker's duty to its receipts: a root of them for every epoch, and an answer to whoever misses one (VAL-1).

A receipt's place follows from its seq, so a root covers every seq up to the last one that is durable. A receipt that
was signed and lost with a crash was never sent; its place holds the zero digest, so that those after it can be shown.

Not here: signing receipts (`notary.py`), or whether an answer was right.

Always: the leaves of a root are durable before it is posted, and kept as long as they can be asked for; an epoch
without new receipts posts nothing; the chain says where to go on after a restart.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from bombyx.errors import BombyxError, MalformedMessage, PaymentError
from bombyx.ports import Clock, OperatorRole, Stakes, Store, Validation, Write
from bombyx.protocol.audit.case import Challenge, EpochRoot
from bombyx.protocol.audit.merkle import merkle_proof, merkle_root
from bombyx.protocol.primitives import Address, Digest
from bombyx.protocol.wire.receipt import SignedReceipt, receipt_domain
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.worker.notary import RECEIPTS

ROOT_KEYS: Final = "worker_root_keys"  # receipt address -> nothing: keys of this boot and of earlier ones
ROOT_LEAVES: Final = "worker_root_leaves"  # receipt address || first seq -> the root's leaves, one after the other
LEAF: Final = 32  # bytes
MAX_LEAVES: Final = 100_000  # of one root; more wait for the next epoch
GAP: Final = 1_024  # seqs in a row without a receipt: there are no more
KEPT: Final = 512  # roots of a key whose leaves are kept
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """What the duty asks of the chain."""

    validation: Validation
    stakes: Stakes


class Roots:
    """One a worker. `receipt_key` is this boot's; `run` until cancelled, or `round` by hand."""

    def __init__(self, chain: Chain, store: Store, clock: Clock, operator: SigningKey, receipt_key: Address) -> None:
        self._validation = chain.validation
        self._stakes = chain.stakes
        self._store = store
        self._clock = clock
        self._operator = operator
        self._current = receipt_key
        self._waited: tuple[int, int] = (0, 0)  # epoch and seq: this boot's first receipt that was not durable then
        self._answered = 0  # every challenge up to this id is settled, or another worker's

    async def start(self) -> None:
        """Before the first receipt: a later boot must know that this key has signed."""
        await self._store.write([Write(table=ROOT_KEYS, key=bytes(self._current), value=b"")])

    async def run(self) -> None:
        """For ever. What fails is tried again: the window is longer than the pause."""
        while True:
            pause = 5.0
            try:
                terms = await self._validation.parameters()
                pause = max(1.0, min(terms.epoch_seconds, terms.root_window) / 4)
                await self.round()
            except BombyxError as error:
                log.warning("roots: %s", error)
            await self._clock.sleep(pause)

    async def round(self) -> int:
        """Post what is due and answer what is asked; how many roots were posted."""
        if not await self._stakes.is_slashable(self._operator.address, OperatorRole.WORKER):
            return 0
        posted = 0
        for key in [Address(key) for key, _ in await self._store.scan(ROOT_KEYS)]:
            posted += await self._post(key)
        await self._answer()
        return posted

    # --- posting ---

    async def _post(self, key: Address) -> bool:
        terms = await self._validation.parameters()
        now, _ = await self._validation.now()
        epoch = terms.epoch_of(now) - 1
        if now >= terms.epoch_start(epoch + 1) + terms.root_window:
            return False
        roots = await self._validation.roots_of(self._operator.address, key)
        if roots and roots[-1].epoch >= epoch:
            return False
        first = roots[-1].first_seq + roots[-1].count if roots else 1
        domain = receipt_domain(terms.chain_id, terms.registry)
        leaves = await self._leaves(key, first, domain, gap=0 if key == self._current else GAP)
        if key == self._current:
            missing = (epoch, first + len(leaves))
            if (
                self._waited[1] == missing[1] and self._waited[0] < epoch
            ):  # an epoch is longer than any write: it is lost
                leaves = await self._leaves(key, first, domain, gap=GAP)
            else:
                self._waited = missing
        if not leaves:
            if key != self._current and not roots:
                await self._forget(key)
            return False
        await self._store.write(self._kept(key, first, leaves, roots))
        try:
            root = merkle_root(leaves)
            await self._validation.post_root(key, epoch, root, first, len(leaves), signer=self._operator)
        except PaymentError as error:  # the window has closed meanwhile: the next epoch takes these too
            log.warning("root of epoch %d: %s", epoch, error)
            return False
        return True

    async def _leaves(self, key: Address, first: int, domain: Digest, *, gap: int) -> list[Digest]:
        """In order of seq, up to the last durable receipt before more than `gap` places without one."""
        found: list[Digest] = []
        missing = 0
        seq = first
        while len(found) + missing < MAX_LEAVES and missing <= gap:
            row = await self._store.read(RECEIPTS, bytes(key) + seq.to_bytes(8))
            leaf = _leaf(row, domain)
            if leaf is None:
                missing += 1
            else:
                found += [Digest.zero()] * missing + [leaf]
                missing = 0
            seq += 1
            if seq % 256 == 0:
                await asyncio.sleep(0)
        return found

    def _kept(self, key: Address, first: int, leaves: list[Digest], roots: tuple[EpochRoot, ...]) -> list[Write]:
        rows = [Write(table=ROOT_LEAVES, key=_place(key, first), value=b"".join(leaves))]
        if len(roots) >= KEPT:
            rows.append(Write(table=ROOT_LEAVES, key=_place(key, roots[-KEPT].first_seq), value=None))
        return rows

    async def _forget(self, key: Address) -> None:
        """A past boot that signed nothing."""
        await self._store.write([Write(table=ROOT_KEYS, key=bytes(key), value=None)])

    # --- answering ---

    async def _answer(self) -> None:
        settled = True
        for challenge in await self._validation.challenges(self._answered + 1):
            mine = challenge.worker == self._operator.address and not challenge.settled
            if mine and not await self._show(challenge):
                settled = False
            if settled:
                self._answered = challenge.id

    async def _show(self, challenge: Challenge) -> bool:
        """False: its root is not there yet."""
        roots = await self._validation.roots_of(challenge.worker, challenge.receipt_key)
        for index, root in enumerate(roots):
            place = challenge.seq - root.first_seq
            if not 0 <= place < root.count:
                continue
            stored = await self._store.read(ROOT_LEAVES, _place(challenge.receipt_key, root.first_seq)) or b""
            leaves = [Digest(stored[n : n + LEAF]) for n in range(0, len(stored), LEAF)]
            if len(leaves) != root.count or leaves[place] != challenge.leaf:
                log.error("challenge %d: this worker cannot show receipt %d", challenge.id, challenge.seq)
                return True
            proof = merkle_proof(leaves, place)
            await self._validation.answer_challenge(challenge.id, index, proof, signer=self._operator)
            return True
        return False


def _place(key: Address, first: int) -> bytes:
    return bytes(key) + first.to_bytes(8)


def _leaf(row: bytes | None, domain: Digest) -> Digest | None:
    if row is None:
        return None
    try:
        return SignedReceipt.decode(row).receipt.typed_digest(domain)
    except MalformedMessage:
        return None
