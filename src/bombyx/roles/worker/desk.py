# SPDX-License-Identifier: Apache-2.0
"""What links ask of the worker behind them: who we are, who a proxy is, and the requests they bring (spec LINK).

Always: the hello is signed for one proxy and one challenge, so it cannot be carried to another; a proxy nobody
registered and nobody named in the settings gets no hello's answer accepted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from bombyx.errors import BombyxError, Unavailable
from bombyx.ports import Entropy, Ledger, OperatorRole
from bombyx.protocol.primitives import Address, Digest, sha256, tagged_hash
from bombyx.protocol.wire.market import PriceSheet
from bombyx.protocol.wire.records import LinkChallenge, LinkHello, LinkLoad
from bombyx.protocol.wire.request import Payment
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.worker.gate import Gate
from bombyx.roles.worker.greeting import LINK_VERSION
from bombyx.roles.worker.keys import Keyring
from bombyx.roles.worker.payments import Till
from bombyx.roles.worker.serve import Server
from bombyx.roles.worker.streams import Stream

log = logging.getLogger("bombyx.worker")


class Desk:
    """One for all links of a worker."""

    def __init__(
        self,
        *,
        operator: SigningKey,
        keyring: Keyring,
        sheet: PriceSheet,
        blobs: Iterable[bytes],
        hardware: str,
        trusted: frozenset[Address],
        gate: Gate,
        server: Server,
        till: Till,
        ledger: Ledger,
        entropy: Entropy,
    ) -> None:
        self._operator = operator
        self._keyring = keyring
        self._sheet = sheet.encode()
        self._blobs = {sha256(blob): blob for blob in blobs}
        self._hardware = hardware
        self._trusted = trusted
        self._gate = gate
        self._server = server
        self._till = till
        self._ledger = ledger
        self._entropy = entropy

    def introduce(self, challenge: LinkChallenge) -> LinkHello:
        period = self._keyring.current
        if period is None:
            raise Unavailable("no keys to introduce ourselves with")
        signed = tagged_hash("bombyx link v1", challenge.nonce, challenge.proxy, period.bundle_digest)
        return LinkHello(
            v=LINK_VERSION,
            bundle=period.bundle,
            price_sheet=self._sheet,
            blobs=tuple(self._blobs),
            hardware=self._hardware,
            capacity=self._gate.load.capacity,
            nonce=Digest(self._entropy.bytes(Digest.SIZE)),
            signature=self._operator.sign(signed),
        )

    def blob(self, digest: Digest) -> bytes | None:
        return self._blobs.get(digest)

    async def proxy_keys(self, proxy: Address) -> frozenset[Address]:
        known = {proxy} & self._trusted
        for entry in await self._ledger.operators(OperatorRole.PROXY):
            if entry.address == proxy:
                known |= {entry.address, entry.receipt_address}
        return frozenset(known)

    def admit(self) -> None:
        self._gate.check()

    async def serve(self, proxy: Address, request: bytes, stream: Stream) -> None:
        await self._server.serve(proxy, request, stream)

    async def voucher(self, proxy: Address, payment: bytes) -> None:
        try:
            await self._till.voucher(Payment.decode(payment))
        except BombyxError as error:
            log.warning("voucher from %s: %s %s", proxy, error.code, error.rule or "")

    def load(self) -> LinkLoad:
        return self._gate.load
