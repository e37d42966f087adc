# SPDX-License-Identifier: Apache-2.0
"""The client: one OpenAI request in, one checked answer out (spec CLI).

`Client.request` finds a reachable proxy, draws the candidates, seals, pays, sends, and hands the answer's task
(`delivery.py`) to the caller. It changes nothing in the application's body. No sockets here: transports and stores
come in.

Always: a request is sent again only with the same id and only where nobody can have been paid for it: to another
proxy while nothing was sent; once to the same workers after an `ohttp-key` problem; once after a proxy that forgot
our session; once to the replica that a proxy says keeps our channel; once to the rest of its draw.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from bombyx.errors import (
    BadRequest,
    BombyxError,
    BudgetExceeded,
    DeadlineExceeded,
    HeldElsewhere,
    Unavailable,
    Unreachable,
)
from bombyx.ports import Clock, EndorsementSource, Ledger, Store, Validation
from bombyx.protocol.attest import AppraisalPolicy
from bombyx.protocol.primitives import Address, Digest, RequestId
from bombyx.protocol.seal import Randomness
from bombyx.protocol.wire.audit import AuditPackage
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.client.alarm import LOOK_SECONDS, Watch
from bombyx.roles.client.answer import content_type_of
from bombyx.roles.client.asked import SERVED, Asked, read_asked
from bombyx.roles.client.blobs import Blobs
from bombyx.roles.client.candidates import Candidates, client_secret
from bombyx.roles.client.delivery import Delivery, Desk, Finished
from bombyx.roles.client.evidence import EvidenceCache
from bombyx.roles.client.kept import KeptReceipt
from bombyx.roles.client.network import Model, Network, View
from bombyx.roles.client.problem import step_row
from bombyx.roles.client.receipts import ReceiptBook
from bombyx.roles.client.recording import Chain
from bombyx.roles.client.refunds import RefundKeys
from bombyx.roles.client.replicas import Replicas
from bombyx.roles.client.response import ClientResponse, failure, local, marks
from bombyx.roles.client.restitution import Restitution
from bombyx.roles.client.sending import Journey, Sender, Sent
from bombyx.roles.client.settings import ClientKeys, ClientSettings, ProxyLine
from bombyx.roles.client.shelf import AuditShelf
from bombyx.roles.client.signed import Teller, Told, answer_id, ask_for, is_signed, wanted
from bombyx.roles.client.tally import Tally
from bombyx.roles.client.tokens import TokenTables
from bombyx.roles.client.wallet import Wallet
from bombyx.roles.client.withdrawals import Withdrawals

log = logging.getLogger(__name__)
GRACE_SECONDS: Final = 10.0  # after a request's deadline, for a sealed error and its receipt to arrive
CLOSE_SECONDS: Final = 10.0  # how long answers that are being checked may take when the client closes


class Client:
    """One client of one network. `await start()` before the first request."""

    def __init__(
        self,
        settings: ClientSettings,
        *,
        keys: ClientKeys,
        proxies: Sequence[ProxyLine],
        policy: AppraisalPolicy,
        clock: Clock,
        randomness: Randomness,
        store: Store,
        ledger: Ledger,
        endorsements: EndorsementSource | None = None,
        validation: Validation | None = None,
    ) -> None:
        self.settings = settings
        self.policy = policy
        self.lines = tuple(proxies)
        self._replicas = Replicas(self.lines, keys.payer)
        self.book = ReceiptBook(store)
        self.tally = Tally()
        self.watch = Watch()
        self._clock = clock
        self._randomness = randomness
        self._store = store
        self._ledger = ledger
        self._blobs = Blobs(store)
        self.network = Network(settings, clock=clock, ledger=ledger, blobs=self._blobs)
        self.evidence = EvidenceCache(
            policy,
            clock=clock,
            ledger=ledger,
            blobs=self._blobs,
            endorsements=endorsements,
            recheck_seconds=settings.registry_seconds,
        )
        self.wallet = Wallet(settings, keys, clock=clock, randomness=randomness, store=store, ledger=ledger)
        self.withdrawals = Withdrawals(
            self.wallet, ledger=ledger, clock=clock, owner=keys.owner, every=settings.withdrawal_seconds
        )
        self._fetching: asyncio.Task[None] | None = None
        self._tables = TokenTables(self._blobs)
        self.shelf = AuditShelf(store, keep=settings.keep_audits, days=settings.audits_days, most=settings.audits_most)
        self._refunds: RefundKeys | None = None
        self._desk: Desk | None = None
        self._sender: Sender | None = None
        self._running: set[asyncio.Task[Finished]] = set()
        self._tidying: set[asyncio.Future[int]] = set()
        self._last: KeptReceipt | None = None
        self._watching: asyncio.Task[None] | None = None
        self._told = Told()
        self._keys = keys
        self._validation = validation
        self._claiming: asyncio.Task[None] | None = None

    @property
    def payer(self) -> Address:
        """Whose tokens it spends, and where they come back to."""
        return self._keys.payer

    @property
    def ledger(self) -> Ledger:
        return self._ledger

    @property
    def store(self) -> Store:
        return self._store

    async def start(self) -> None:
        """Read the secret, the channels and the chain's constants."""
        if not self.lines:
            raise Unavailable("no proxy is configured", rule="CLI-1")
        secret = await client_secret(self._store, self._randomness)
        candidates = Candidates(
            self.settings, secret, clock=self._clock, evidence=self.evidence, blobs=self._blobs, tally=self.tally
        )
        self._refunds = RefundKeys(secret)
        await self.wallet.load()
        await self.shelf.tidy(self._clock.now(), at_once=True)
        self._fetching = asyncio.create_task(self.withdrawals.run())
        info = await self.wallet.info()
        chain = Chain(chain_id=info.chain_id, registry=info.registry)
        self._desk = Desk(
            clock=self._clock,
            wallet=self.wallet,
            blobs=self._blobs,
            tally=self.tally,
            watch=self.watch,
            candidates=candidates,
            chain=chain,
            max_answer=self.settings.max_answer,
            keep_openings=self.settings.keep_openings,
            shelf=self.shelf,
            on_kept=self._remember,
        )
        self._sender = Sender(
            self.settings,
            self._desk,
            network=self.network,
            tables=self._tables,
            randomness=self._randomness,
            refunds=self._refunds,
        )
        if self._validation is not None and self.settings.claim_refunds:
            claims = Restitution(
                self._store,
                validation=self._validation,
                key=self.refund_key,
                payout=self.settings.refund_to or self._keys.payer,
                sender=self._keys.owner,
                clock=self._clock,
            )
            self._claiming = asyncio.create_task(claims.run())
        if len(self.lines) > 1:  # one proxy alone has nobody to be compared with
            self._watching = asyncio.create_task(self._keep_watch())

    async def close(self) -> None:
        """Let answers that are being checked end, then close what was handed in."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if self._running:
            _, late = await asyncio.wait(set(self._running), timeout=CLOSE_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await asyncio.gather(*self._tidying, return_exceptions=True)
        for chore in (self._fetching, self._claiming):
            if chore is not None:
                chore.cancel()
                await asyncio.gather(chore, return_exceptions=True)
        for line in self.lines:
            await line.transport.close()
        await self._ledger.close()
        await self._store.close()

    async def look(self) -> None:
        """Hold every proxy's directory against the registry and against the others' (MKT-11)."""
        found = await asyncio.gather(
            *(self.network.view(line, fresh=True) for line in self.lines), return_exceptions=True
        )
        self.watch.looked([view for view in found if isinstance(view, View)], self._clock.now())

    async def _keep_watch(self) -> None:
        while True:
            await self.look()
            await self._clock.sleep(LOOK_SECONDS)

    async def settled(self) -> None:
        """Wait until every answer under way is checked and settled, its application gone or not."""
        if self._running:
            await asyncio.wait(set(self._running), timeout=GRACE_SECONDS)

    async def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        *,
        request_id: RequestId | None = None,
        ceiling: int | None = None,
        candidates: tuple[Address, ...] = (),
        nonce: bytes = b"",
    ) -> ClientResponse:
        """Serve one OpenAI request. Never raises for what went wrong on the way: that is an OpenAI-shaped error answer.

        `headers` are not passed on: a worker must not learn the application's keys or name. `request_id`: a fresh
        random one, where the caller must know it beforehand. `ceiling`: no more than this is authorised for it.
        `candidates` and `nonce`: a draw and a share of the seed that the caller committed to, instead of our own.
        """
        try:
            path, _, query = path.partition("?")
            if is_signed(path):
                return await self._vouched(method, path, query)
            if path == "/v1/models" or path.startswith("/v1/models/"):
                return await self._models(method, path)
            if method != "POST" and path in SERVED:
                raise BadRequest(f"{path} takes POST", status=405, rule="CLI-1", code="method_not_allowed")
            asked = self._asked(path, body)
        except BombyxError as error:
            return failure(error, sent=False)
        journey = Journey(
            request_id=request_id or RequestId(self._randomness.bytes(16)),
            ceiling=ceiling,
            candidates=candidates,
            nonce=nonce,
        )
        return await self._blind(asked, body, journey)

    async def quote(self, path: str, body: bytes) -> int:
        """The most this request would be authorised for at the first proxy that answers. Raises what is wrong."""
        asked = self._asked(path, body)
        if self._sender is None:
            raise Unavailable("the client is not started", rule="CLI-1")
        return await self._sender.quote(await self.view(), asked)

    async def paid_for(self, request_id: RequestId) -> int:
        """What the answer to an earlier request cost us, by its kept receipt; 0 where none was kept."""
        try:
            _, kept = await self.book.get(request_id.hex())
        except BadRequest:
            return 0
        return kept.paid

    async def models(self) -> tuple[Model, ...]:
        """Every model somebody registered offers at the first proxy that answers."""
        view = await self.view()
        return await self.network.models(view)

    async def view(self) -> View:
        """The directory of the first proxy that answers."""
        reason: BombyxError | None = None
        for line in self._replicas.lines():
            try:
                return await self.network.view(line)
            except BombyxError as error:
                reason = error
        raise reason or Unavailable("no proxy is configured", rule="CLI-1")

    async def warm(self) -> None:
        """Appraise each model's candidates now, so that the first request waits for nobody's evidence."""
        view = await self.view()
        models = await self.network.models(view)
        if self._desk is not None:
            preview = self._desk.candidates.preview
            await asyncio.gather(*(preview(view, model) for model in models), return_exceptions=True)

    async def proxy_view(self, request_id: RequestId) -> dict[str, Any] | None:
        """What a proxy says it saw of a request, where it shows that (demonstrations); None where it does not."""
        for line in self.lines:
            try:
                status, data = await line.transport.get(f"/v1/view/{request_id.hex()}")
                value = orjson.loads(data) if status == 200 else None
            except (BombyxError, orjson.JSONDecodeError):
                continue
            if isinstance(value, dict):
                return value
        return None

    async def blob(self, digest: Digest) -> bytes | None:
        """A token table, manifest, bundle or price sheet this client holds; nobody is asked."""
        return await self._blobs.kept(digest)

    async def audit_package(self, name: str) -> AuditPackage:
        """What re-runs an answer we were given, by its request id; where packages are kept (`keep_audits`)."""
        request_id, _ = await self.book.get(name)
        found = await self.shelf.get(request_id)
        if found is None:
            raise BadRequest("no audit package was kept of this request", status=404, code="not_found", rule="AUD-9")
        return found

    def refund_key(self, request_id: RequestId) -> SigningKey:
        """What signs a claim of this request's refund."""
        if self._refunds is None:
            raise Unavailable("the client is not started", rule="CLI-1")
        return self._refunds.key(request_id)

    @property
    def distrusted(self) -> dict[str, str]:
        """Workers whose signed words were false, and what was false."""
        if self._desk is None:
            return {}
        return {str(who): why for who, why in self._desk.candidates.distrusted.items()}

    @property
    def last_receipt(self) -> KeptReceipt | None:
        return self._last

    # --- within ---

    def _asked(self, path: str, body: bytes) -> Asked:
        settings = self.settings
        return read_asked(path, body, default_output=settings.default_output, max_body=settings.max_body)

    async def _blind(self, asked: Asked, body: bytes, journey: Journey) -> ClientResponse:
        try:
            async with asyncio.timeout(self.settings.deadline_seconds + GRACE_SECONDS):
                sent = await self._send(asked, body, journey)
            if sent.instead is not None:
                self._deliver(sent).stop_reading()
                raise sent.instead
            return await self._answered(sent, journey.request_id)
        except TimeoutError:
            late = DeadlineExceeded(f"no answer after {self.settings.deadline_seconds:.0f} s", rule="CLI-7")
            return failure(late, sent=journey.posted, request_id=journey.request_id)
        except BombyxError as error:
            return failure(error, sent=journey.posted, request_id=journey.request_id)

    async def _send(self, asked: Asked, body: bytes, journey: Journey) -> Sent:
        """Through the first proxy that serves it. Another is asked only while not one byte was sent."""
        if self._sender is None:
            raise Unavailable("the client is not started", rule="CLI-1")
        reason: BombyxError | None = None
        for line in self._replicas.lines():
            try:
                return await self._through(line, asked, body, journey)
            except BombyxError as error:
                if journey.posted or isinstance(error, BudgetExceeded):
                    raise
                # The first proxy's reason is the one to tell, unless a later one got further than "unreachable".
                reason = error if reason is None or isinstance(reason, Unreachable) else reason
        raise reason or Unavailable("no proxy is configured", rule="CLI-1")

    async def _through(self, line: ProxyLine, asked: Asked, body: bytes, journey: Journey) -> Sent:
        """Through this proxy; once more through the replica of it that keeps our channel, if it names one of ours."""
        assert self._sender is not None
        try:
            sent = await self._sender.send(await self.network.view(line), asked, body, journey)
        except HeldElsewhere as error:
            other = self._replicas.named(line, error.holder)
            if other is None:
                raise
            line = other
            try:
                sent = await self._sender.send(await self.network.view(line), asked, body, journey)
            except Unreachable:
                raise error from None  # it is gone, and its lease runs out: the first answer says when
        self._replicas.served(line)
        return sent

    def _deliver(self, sent: Sent) -> Delivery:
        assert self._desk is not None
        left = (sent.terms.sealed.meta.deadline - self._clock.now()) / 1_000
        delivery = Delivery(self._desk, sent.terms, sent.response, sent.payment, seconds=max(0.0, left + GRACE_SECONDS))
        self._running.add(delivery.task)
        delivery.task.add_done_callback(self._running.discard)
        delivery.task.add_done_callback(lambda _: self._note(delivery))
        return delivery

    async def _answered(self, sent: Sent, request_id: RequestId) -> ClientResponse:
        delivery = self._deliver(sent)
        try:
            head = await delivery.head()
            if not delivery.answer.streamed:
                await delivery.finished()  # nothing of an unstreamed answer is shown before every check passed
        except asyncio.CancelledError:
            await delivery.aclose()
            raise
        candidate = delivery.answer.candidate
        assert candidate is not None
        headers = marks(request_id) | {
            "content-type": content_type_of(head),
            "x-bombyx-trust-class": str(candidate.result.trust_class),
            "x-bombyx-operator": str(candidate.operator),
        }
        if head.status >= 500:
            headers["x-should-retry"] = "false"
        return ClientResponse(
            status=head.status,
            headers=headers,
            body=delivery.body(),
            request_id=request_id,
            steps=tuple(step_row(step) for step in candidate.result.steps),
            delivery=delivery,
        )

    async def _models(self, method: str, path: str) -> ClientResponse:
        if method != "GET":
            raise BadRequest(f"{path} takes GET", status=405, rule="CLI-1", code="method_not_allowed")
        cards = [_card(model) for model in await self.models()]
        if path == "/v1/models":
            return local(orjson.dumps({"object": "list", "data": cards}))
        name = path.removeprefix("/v1/models/")
        for card in cards:
            if name in (card["id"], card["bombyx"]["digest"]):
                return local(orjson.dumps(card))
        raise BadRequest(f"no model {name[:120]!r}", status=404, rule="CLI-1", code="model_not_found")

    async def _vouched(self, method: str, path: str, query: str) -> ClientResponse:
        """A worker's signature over an answer it gave, or a fresh report of one."""
        if method != "GET":
            raise BadRequest(f"{path} takes GET", status=405, rule="CLI-1", code="method_not_allowed")
        name = answer_id(path)
        if name and self._told.get(name) is None:
            await self.settled()  # an application may ask while the answer's checks still run
        model = wanted(query, "model")
        if not name and not model:
            offered = await self.models()
            model = offered[0].manifest.name if offered else ""
        journey = Journey(request_id=RequestId(self._randomness.bytes(16)))
        return await self._blind(ask_for(path, query, self._told.get(name), model), b"", journey)

    def _note(self, delivery: Delivery) -> None:
        text, candidate = delivery.answer.text, delivery.answer.candidate
        if text is not None and candidate is not None:
            self._told.note(text.id, Teller(candidate.operator, candidate.manifest.name))

    def _remember(self, kept: KeptReceipt) -> None:
        self._last = kept
        if self.settings.keep_audits:
            tidying = asyncio.ensure_future(self.shelf.tidy(self._clock.now()))
            self._tidying.add(tidying)
            tidying.add_done_callback(self._tidied)

    def _tidied(self, tidying: asyncio.Future[int]) -> None:
        self._tidying.discard(tidying)
        if not tidying.cancelled() and tidying.exception() is not None:
            log.warning("old audit packages could not be deleted; the next answer tries again")


def _card(model: Model) -> dict[str, Any]:
    manifest = model.manifest
    return {
        "id": manifest.name,
        "object": "model",
        "created": 0,
        "owned_by": "bombyx",
        "bombyx": {
            "digest": model.digest.hex(),
            "engine": manifest.engine,
            "quantisation": manifest.quantisation,
            "context": manifest.context,
            "parameters": manifest.parameters,
            "workers": model.operators,
        },
    }
