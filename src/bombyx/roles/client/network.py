# SPDX-License-Identifier: Apache-2.0
"""What a client knows of the network: the chain's registry, and each proxy's directory held against it (spec CLI-2).

A directory is a proxy's word: an operator that the registry does not have, or lists with another price sheet, does not
exist for us. Not here: evidence (`evidence.py`) and the draw (`candidates.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from bombyx.errors import BadRequest, MalformedMessage, Peer, Unavailable, UntrustedProxyError
from bombyx.ports import Clock, Ledger, Operator, OperatorRole
from bombyx.protocol.market import DirectoryReport, compare_directory
from bombyx.protocol.primitives import Address, Digest
from bombyx.protocol.wire.evidence import ModelManifest
from bombyx.protocol.wire.market import Directory, DirectoryReader, Offer
from bombyx.roles.client.blobs import Blobs
from bombyx.roles.client.settings import ClientSettings, ProxyLine

_NONE: Final[Mapping[Address, Offer]] = {}
PATIENCE: Final = 2.0  # seconds a request waits for a chain, where what was read before will do
ASK_AGAIN: Final = 10.0  # seconds after which a chain that did not answer is asked again


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One proxy's directory at one moment, and the registry it was held against."""

    line: ProxyLine
    directory: Directory
    workers: dict[Address, Operator]
    report: DirectoryReport
    by_model: Mapping[Digest, Mapping[Address, Offer]]  # of `report.fit`; made once, for every request asks
    expires: float  # monotonic seconds

    def offers(self, model: Digest) -> Mapping[Address, Offer]:
        """Who offers a model, by operator. The same object for as long as this view lasts."""
        return self.by_model.get(model, _NONE)

    @property
    def commission_bps(self) -> int:
        return self.directory.commission_bps


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model somebody registered serves, by its manifest."""

    digest: Digest
    manifest: ModelManifest
    operators: int  # that list it


@dataclass(slots=True, kw_only=True)
class _Lines:
    lines: dict[Address, Operator]
    read_at: float
    until: float


class Network:
    """Fetches and remembers; everything it returns was checked against the registry."""

    def __init__(self, settings: ClientSettings, *, clock: Clock, ledger: Ledger, blobs: Blobs) -> None:
        self._settings = settings
        self._clock = clock
        self._ledger = ledger
        self._blobs = blobs
        self._registry: dict[OperatorRole, _Lines] = {}
        self._views: dict[tuple[Address, str], View] = {}  # replicas of one proxy have one address
        self._readers: dict[tuple[Address, str], DirectoryReader] = {}
        self._locks: dict[tuple[Address, str], asyncio.Lock] = {}

    async def operators(self, role: OperatorRole, *, fresh: bool = False) -> dict[Address, Operator]:
        """The registry's lines of one role, by address; at most `registry_seconds` old. While the chain does not answer
        older ones serve, for `registry_stale_seconds`, unless they must be `fresh`."""
        known = self._registry.get(role)
        if known is not None and not fresh and known.until > self._clock.monotonic():
            return known.lines
        spare = known if known is not None and not fresh and self._serves_on(known) else None
        try:
            async with asyncio.timeout(None if spare is None else PATIENCE):
                found = {operator.address: operator for operator in await self._ledger.operators(role)}
        except (Unavailable, TimeoutError):
            if spare is None:
                raise
            spare.until = self._clock.monotonic() + ASK_AGAIN
            return spare.lines
        now = self._clock.monotonic()
        self._registry[role] = _Lines(lines=found, read_at=now, until=now + self._settings.registry_seconds)
        return found

    def _serves_on(self, known: _Lines) -> bool:
        return self._clock.monotonic() <= known.read_at + self._settings.registry_stale_seconds

    async def proxy(self, line: ProxyLine, *, fresh: bool = False) -> Operator:
        """The registry's line of a proxy: where its payments go and what session keys are sealed to."""
        for now in (True,) if fresh else (False, True):
            found = (await self.operators(OperatorRole.PROXY, fresh=now)).get(line.address)
            if found is not None:
                return found
        raise Unavailable(f"proxy {line.address} is not in the registry", rule="CLI-2")

    async def view(self, line: ProxyLine, *, fresh: bool = False) -> View:
        """The proxy's directory, fetched when the one we have is too old."""
        lock = self._locks.setdefault(line.key, asyncio.Lock())
        async with lock:
            known = self._views.get(line.key)
            if known is not None and not fresh and known.expires > self._clock.monotonic():
                return known
            view = await self._fetch(line)
            self._views[line.key] = view
            return view

    def known_views(self) -> tuple[View, ...]:
        """What was fetched last, without asking anybody; for `/verification`."""
        return tuple(self._views.values())

    async def models(self, view: View) -> tuple[Model, ...]:
        """Every model that a registered operator offers there, by name and digest."""
        found = await asyncio.gather(*(self._model(digest, len(who), view) for digest, who in view.by_model.items()))
        return tuple(sorted((m for m in found if m is not None), key=lambda m: (m.manifest.name, m.digest)))

    async def resolve(self, name: str, view: View) -> Model:
        """The model an application means: a pinned name, a digest, or the manifest most operators list under a name."""
        models = await self.models(view)
        pinned = dict(self._settings.models).get(name)
        fitting = [m for m in models if (m.digest == pinned if pinned else name in _names(m))]
        if not fitting:
            raise BadRequest(
                f"no registered worker offers the model {name[:120]!r}",
                status=404,
                peer=Peer.APPLICATION,
                rule="CLI-1",
                code="model_not_found",
            )
        return min(fitting, key=lambda m: (-m.operators, m.digest))

    async def _model(self, digest: Digest, operators: int, view: View) -> Model | None:
        try:
            data = await self._blobs.get(digest, view.line.transport)
            return Model(digest=digest, manifest=ModelManifest.decode(data), operators=operators)
        except (MalformedMessage, Unavailable):
            return None  # one operator's missing manifest must not hide the models of the others

    async def _fetch(self, line: ProxyLine) -> View:
        status, data = await line.transport.get("/v1/directory")
        if status != 200:
            raise UntrustedProxyError(f"the proxy gave no directory (status {status})", status=502, rule="CLI-2")
        directory = self._readers.setdefault(line.key, DirectoryReader()).read(data)
        if directory.v != 1 or directory.proxy != line.address:
            raise MalformedMessage(
                f"a directory of {directory.proxy} where {line.address} was asked", peer=Peer.PROXY, rule="CLI-2"
            )
        workers = await self.operators(OperatorRole.WORKER)
        if not all(_registered(workers.get(offer.operator), offer) for offer in directory.offers):
            workers = await self.operators(OperatorRole.WORKER, fresh=True)  # it may have registered since
        believed = [o for o in directory.offers if _same_sheet(workers.get(o.operator), o.price_sheet)]
        report = compare_directory(
            replace(directory, offers=tuple(believed)),
            {address: operator.models for address, operator in workers.items()},
            None,
            self._clock.now(),
        )
        expires = self._clock.monotonic() + self._settings.directory_seconds
        return View(
            line=line,
            directory=directory,
            workers=workers,
            report=report,
            by_model=_by_model(report.fit),
            expires=expires,
        )


def _names(model: Model) -> tuple[str, ...]:
    return model.manifest.name, model.digest.hex(), str(model.digest)


def _same_sheet(operator: Operator | None, sheet: Digest) -> bool:
    """A price sheet is not signed: the registry is what makes it the operator's."""
    return operator is None or operator.price_sheet == sheet


def _registered(operator: Operator | None, offer: Offer) -> bool:
    if operator is None:
        return False
    return offer.price_sheet == operator.price_sheet and set(offer.models) <= set(operator.models)


def _by_model(offers: Iterable[Offer]) -> dict[Digest, dict[Address, Offer]]:
    found: dict[Digest, dict[Address, Offer]] = {}
    for offer in offers:
        for model in offer.models:
            found.setdefault(model, {})[offer.operator] = offer
    return found
