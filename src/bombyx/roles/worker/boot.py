# SPDX-License-Identifier: Apache-2.0
"""One boot of a worker: fresh keys, and the parts that hang on them, joined once (spec ATT-1, PAY-2).

Not here: anything that runs; `runtime.py` drives what is made here.

Always: a boot's receipt key, payment authorizer and payment key are the same in its keysets, its registry line and its
book; a model without a price makes no worker.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from bombyx.errors import BombyxError, ConfigError
from bombyx.ports import (
    Clock,
    Dialer,
    EndorsementSource,
    EvidenceSource,
    Ledger,
    LedgerInfo,
    Operator,
    OperatorRole,
    Store,
)
from bombyx.protocol.pay.payee import PayeeTerms
from bombyx.protocol.pay.price import check_sheet
from bombyx.protocol.pay.retention import Retention
from bombyx.protocol.primitives import Address, Digest
from bombyx.protocol.wire.channel import settlement_domain
from bombyx.protocol.wire.market import ModelPrice, PriceSheet
from bombyx.protocol.wire.receipt import receipt_domain
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.worker.desk import Desk
from bombyx.roles.worker.ended import Ended
from bombyx.roles.worker.evidence import EvidenceMaker
from bombyx.roles.worker.gate import Gate
from bombyx.roles.worker.health import EngineHealth
from bombyx.roles.worker.keys import BootKeys, Keyring
from bombyx.roles.worker.notary import Notary
from bombyx.roles.worker.payments import Till
from bombyx.roles.worker.serve import Server
from bombyx.roles.worker.settings import ServedModel, WorkerSettings
from bombyx.roles.worker.signed import SignedAnswers

MAX_IN_FLIGHT: Final = 4_096  # requests a proxy may have open on its channel; the engine's capacity ends sooner


class EnclaveEntropy(Protocol):
    """`ports.Entropy` and `seal.Randomness` in one: the enclave's own source."""

    def bytes(self, size: int) -> builtins.bytes: ...

    def mlkem768_encapsulate(self, public_key: builtins.bytes) -> tuple[builtins.bytes, builtins.bytes]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPorts:
    """The outside world of one worker."""

    clock: Clock
    entropy: EnclaveEntropy
    store: Store
    ledger: Ledger
    device: EvidenceSource
    endorser: EndorsementSource | None
    dialer: Dialer


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What one boot needs to make its parts."""

    settings: WorkerSettings
    ports: WorkerPorts
    operator: SigningKey
    models: Mapping[Digest, ServedModel]
    sheet: PriceSheet
    chain: LedgerInfo
    keys: BootKeys

    def registration(self) -> Operator:
        """Our line of the registry."""
        return Operator(
            address=self.operator.address,
            role=OperatorRole.WORKER,
            endpoint="",
            receipt_address=self.keys.receipt.address,
            pay_authorizer=self.keys.pay_authorizer.address,
            pay_key_config=self.keys.pay_gateway.config.encode(),
            price_sheet=self.sheet.digest(),
            models=tuple(self.models),
        )

    def till(self) -> Till:
        terms = PayeeTerms(
            receiver=self.operator.address,
            receiver_authorizer=self.keys.pay_authorizer.address,
            token=self.chain.token,
            longest_request=int(self.settings.limits.deadline_seconds),
            claim_threshold=self.settings.claim_threshold,
            claim_age=self.settings.claim_age,
            max_in_flight=MAX_IN_FLIGHT,
        )
        return Till(
            terms,
            settlement_domain(self.chain.chain_id, self.chain.settlement),
            store=self.ports.store,
            ledger=self.ports.ledger,
            gateway=self.keys.pay_gateway,
            clock=self.ports.clock,
        )

    def evidence(self) -> EvidenceMaker:
        return EvidenceMaker(
            operator=self.operator.address,
            chain=self.chain,
            boot=self.keys,
            manifests=[model.manifest for model in self.models.values()],
            device=self.ports.device,
            endorser=self.ports.endorser,
            ledger=self.ports.ledger,
            clock=self.ports.clock,
            timings=self.settings.timings,
        )

    def notary(self) -> Notary:
        settings = self.settings
        return Notary(
            self.keys.receipt,
            receipt_domain(self.chain.chain_id, self.chain.registry),
            self.operator.address,
            self.ports.store,
            Retention(most=settings.receipts_kept, seconds=settings.receipts_seconds),
        )

    def desk(
        self,
        *,
        keyring: Keyring,
        till: Till,
        notary: Notary,
        gate: Gate,
        ended: Ended,
        health: Mapping[Digest, EngineHealth],
    ) -> Desk:
        """What links talk to, and the server behind it."""
        settings, ports = self.settings, self.ports
        server = Server(
            models=self.models,
            sheet=self.sheet,
            keyring=keyring,
            till=till,
            notary=notary,
            ended=ended,
            gate=gate,
            health=health,
            limits=settings.limits,
            clock=ports.clock,
            entropy=ports.entropy,
            signed=SignedAnswers(
                key=self.keys.receipt,
                device=ports.device,
                keyring=keyring,
                clock=ports.clock,
                entropy=ports.entropy,
            ),
        )
        return Desk(
            operator=self.operator,
            keyring=keyring,
            sheet=self.sheet,
            blobs=[model.token_table for model in self.models.values() if model.token_table is not None],
            hardware=settings.hardware,
            trusted=frozenset(peer.address for peer in settings.proxies if peer.address is not None),
            gate=gate,
            server=server,
            till=till,
            ledger=ports.ledger,
            entropy=ports.entropy,
        )


def price_sheet(settings: WorkerSettings, operator: Address, models: tuple[Digest, ...]) -> PriceSheet:
    """The sheet this worker publishes. `ConfigError` for a model without a price: nothing is served by accident."""
    unpriced = [model for model in models if model not in settings.prices]
    if unpriced:
        raise ConfigError(f"{len(unpriced)} models have no price")
    lines = [(model, settings.prices[model]) for model in models]
    sheet = PriceSheet(
        v=1,
        operator=operator,
        grain=settings.grain,
        prices=tuple(
            ModelPrice(model=model, input=price.input, cached_input=price.cached_input, output=price.output)
            for model, price in lines
        ),
    )
    try:
        check_sheet(sheet)
    except BombyxError as error:
        raise ConfigError(f"the prices do not make a price sheet: {error}") from None
    return sheet
