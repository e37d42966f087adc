# SPDX-License-Identifier: Apache-2.0
"""One answer, opened and checked while it arrives: records in, the application's bytes out (spec SEAL-7, RCT,
CLI-5).

No I/O. Whoever gets a `Verdict` from `finish` holds an answer that one attested worker sealed for this request,
whole, with a final receipt that says neither more nor less than what was delivered. Anything else raises, and says
who did it as far as bytes can tell: what does not open or comes in the wrong order is the proxy's doing, what the
attested key signed is the worker's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import orjson

from bombyx.errors import (
    KeyConfigError,
    MalformedMessage,
    PaymentError,
    Peer,
    PeerError,
    ReceiptError,
    SealError,
    StreamTruncated,
    UntrustedProxyError,
)
from bombyx.protocol.audit.structure import Sent
from bombyx.protocol.pay.price import with_commission, worker_cap
from bombyx.protocol.pay.receipts import Expectation
from bombyx.protocol.pay.trail import ReceiptTrail
from bombyx.protocol.pay.usage import check_text, open_usage
from bombyx.protocol.primitives import Digest
from bombyx.protocol.seal import BhttpResponseReader, Body, Head, ResponseOpener, SealedRequest, Trailers
from bombyx.protocol.seal.fields import Fields, read_usage
from bombyx.protocol.wire.audit import AuditPackage
from bombyx.protocol.wire.receipt import Receipt, SignedReceipt, UsageOpening
from bombyx.protocol.wire.records import Record, RecordReader, ResponseHead, Settlement
from bombyx.protocol.wire.tokens import Relation, TokenTable
from bombyx.roles.client.asked import Asked
from bombyx.roles.client.candidates import Candidate
from bombyx.roles.client.checked import Opened, open_audit, package, shown
from bombyx.roles.client.marks import MarkReader
from bombyx.roles.client.text import AnswerText

MAX_HINT: Final = 4096  # bytes
_PASSED_ON: Final = frozenset({"application/json", "application/problem+json", "text/event-stream", "text/plain"})
_CODE: Final = 48  # characters of a proxy's word that are shown
_SPELT: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Everything about one answer that passed."""

    candidate: Candidate
    receipts: tuple[SignedReceipt, ...]
    usage: UsageOpening = field(repr=False)
    text: str  # how the text was held against the billed ids
    audit: str  # "seeded", or "none" and why
    package: AuditPackage | None = field(repr=False)  # what re-runs it; None: it was no engine's answer
    settlement: Settlement | None
    salt: bytes = field(repr=False)

    @property
    def final(self) -> Receipt:
        return self.receipts[-1].receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What an answer is held against."""

    sealed: SealedRequest
    candidates: Mapping[Digest, Candidate]
    asked: Asked
    sent: Sent = field(repr=False)
    domain: Digest  # receipt_domain
    tables: Mapping[Digest, TokenTable] = field(repr=False)  # by digest, as manifests name them

    @property
    def bps(self) -> int:
        return self.sealed.meta.commission_bps


class Answer:
    """Feed the proxy's bytes; get the response's head and its content."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._records = RecordReader()
        self._reader = BhttpResponseReader()
        self._opener: ResponseOpener | None = None
        self._trailers: Fields = ()
        self._marks = MarkReader()
        self._hint: str | None = None
        self.candidate: Candidate | None = None
        self.trail: ReceiptTrail | None = None
        self.receipts: list[SignedReceipt] = []
        self.settlement: Settlement | None = None
        self.head: Head | None = None
        self.text: AnswerText | None = None

    @property
    def frames(self) -> int:
        return self.trail.frames if self.trail else 0

    @property
    def streamed(self) -> bool:
        """Whether the content is a stream of events."""
        return self.head is not None and _content_type(self.head).startswith("text/event-stream")

    @property
    def done(self) -> bool:
        """Whether the application has all it waits for, whatever padding and receipts follow."""
        return self.text is not None and self.text.done

    def feed(self, data: bytes) -> Iterator[Head | bytes]:
        """What `data` completes: the head once, then content. Raises `PeerError` at the first thing that is wrong."""
        for kind, payload in self._records.feed(data):
            if self.settlement is not None:
                raise _proxy("something follows the END record", "LINK-2")
            yield from self._record(kind, payload)

    def finish(self) -> Verdict:
        """The proxy's stream has ended: check that everything is there."""
        if self._records.pending and not self._is_whole():
            raise self._cut("it ends inside a record")
        if self._opener is None or not self.frames:
            raise self._cut("no frame came")
        if not self._is_whole():
            raise self._cut(f"it stopped after {self.frames} frames, before its final one")
        assert self.candidate is not None
        assert self.trail is not None
        if self.trail.final is None:
            raise ReceiptError("the answer came without its final receipt", peer=Peer.PROXY, rule="RCT-8")
        usage = self._open_usage(self.candidate, self.trail.final.receipt)
        text, relations = self._check_text(self.candidate, usage)
        audit, package = self._check_audit(self.candidate, usage, relations)
        self._check_settlement(self.trail.final.receipt)
        return Verdict(
            candidate=self.candidate,
            receipts=tuple(self.receipts),
            usage=usage,
            text=text,
            audit=audit,
            package=package,
            settlement=self.settlement,
            salt=self._terms.sealed.keys_of(self.candidate.id).salt,
        )

    # --- records ---

    def _record(self, kind: Record, payload: bytes) -> Iterator[Head | bytes]:
        match kind:
            case Record.HEAD:
                self._receive_head(payload)
            case Record.DATA:
                yield from self._receive_data(payload)
            case Record.RECEIPT:
                self._receive_receipt(payload)
            case Record.END:
                self.settlement = Settlement.decode(payload)
            case Record.HINT:
                self._hint = read_hint(payload)

    def _receive_head(self, payload: bytes) -> None:
        if self.candidate is not None:
            raise _proxy("a second HEAD record", "SEAL-3")
        named = ResponseHead.decode(payload).candidate
        candidate = self._terms.candidates.get(named)
        if candidate is None:
            raise _proxy("the answer is said to come from a worker this request was not sealed to", "SEAL-3")
        self._opener = ResponseOpener(self._terms.sealed, named)
        self.candidate = candidate
        self.trail = ReceiptTrail(self._expected(candidate))

    def _receive_data(self, payload: bytes) -> Iterator[Head | bytes]:
        if self._opener is None or self.trail is None:
            raise _proxy("a DATA record before the HEAD", "SEAL-3")
        if self._opener.finished:
            self._opener.refuse_more()
        try:
            plaintext = self._opener.feed(payload)
        except SealError as error:
            raise _seal_error(error) from None
        self.trail.delivered(self._opener.chain.digest, len(payload))
        yield from self._opened(plaintext)

    def _opened(self, plaintext: bytes) -> Iterator[Head | bytes]:
        """What came out of the seal: whatever is wrong with it is the worker's doing."""
        try:
            yield from self._read(plaintext)
        except MalformedMessage as error:
            error.peer = Peer.WORKER
            raise

    def _read(self, plaintext: bytes) -> Iterator[Head | bytes]:
        for event in self._reader.feed(plaintext):
            if isinstance(event, Head):
                self.head = _checked(event)
                self.text = AnswerText(self._terms.asked.path, streamed=self.streamed)
                yield event
            elif isinstance(event, Body):
                assert self.text is not None
                data = self._marks.feed(event.data) if self.streamed else event.data
                if self.head is not None and self.head.status == 200:
                    self.text.feed(data)
                if data:
                    yield data
            elif isinstance(event, Trailers):
                if rest := self._marks.rest():
                    yield rest
                self._trailers = event.fields

    def _receive_receipt(self, payload: bytes) -> None:
        signed = SignedReceipt.decode(payload)
        if self.trail is None:
            raise _proxy("a receipt before the HEAD", "RCT-2")
        try:
            self.trail.receive(signed)
        except ReceiptError as error:
            raise self._blamed(error, signed) from None
        self.receipts.append(signed)

    # --- checks at the end ---

    def _expected(self, candidate: Candidate) -> Expectation:
        meta = self._terms.sealed.meta
        return Expectation.of(
            candidate.sheet,
            domain=self._terms.domain,
            receipt_address=candidate.result.keyset.receipt_address,
            request_id=meta.request_id,
            request_hash=self._terms.sealed.request_hash(candidate.id),
            model=meta.model,
            max_input=meta.max_input,
            max_output=meta.max_output,
            cap=worker_cap(candidate.sheet, meta.model, meta.max_input, meta.max_output),
        )

    def _is_whole(self) -> bool:
        return self._opener is not None and self._opener.finished and self._reader.finished

    def _open_usage(self, candidate: Candidate, receipt: Receipt) -> UsageOpening:
        opening = read_usage(self._trailers)
        if opening is None:
            raise ReceiptError("the final frame opens no usage", peer=Peer.WORKER, rule="RCT-6")
        if receipt.charge and self.head is not None and self.head.status >= 400:
            raise ReceiptError(f"charge {receipt.charge} for an error", peer=Peer.WORKER, rule="RCT-9")
        salt = self._terms.sealed.keys_of(candidate.id).salt
        return open_usage(receipt, salt=salt, opening=opening.encode(), grain=candidate.sheet.grain)

    def _check_text(self, candidate: Candidate, usage: UsageOpening) -> tuple[str, tuple[Relation, ...]]:
        """Detokenise(ids) = text, for every choice that has a text of its own."""
        tokenizer = candidate.manifest.tokenizer
        if self.head is None or self.head.status != 200 or self.text is None:
            return "no text", ()
        if not usage.verified:
            return f"unchecked: {usage.note or 'usage unverified'}"[:200], ()
        if tokenizer is None:
            return "unchecked: the model names no token table", ()
        texts = self.text.texts()
        if self._terms.asked.echo or any(text is None for text in texts):
            return "unchecked: the engine rewrote the text", ()
        if not texts and not usage.choices:
            return "no text", ()
        table = self._terms.tables[tokenizer]
        plain = [text for text in texts if text is not None]
        relations = check_text(usage, plain, table, stop=self._terms.asked.stop)
        return ", ".join(sorted({str(relation) for relation in relations})), relations

    def _check_audit(
        self, candidate: Candidate, usage: UsageOpening, relations: Sequence[Relation]
    ) -> tuple[str, AuditPackage | None]:
        """Whether it can be re-run, and what for; nothing but an engine's answer can."""
        if self.head is None or self.head.status != 200 or self._terms.asked.method != "POST":
            return "none (no answer of a model)", None
        opened = Opened(
            receipt=self.receipts[-1],
            salt=self._terms.sealed.keys_of(candidate.id).salt,
            usage=usage,
            sent=self._terms.sent,
            manifest=candidate.manifest,
            marks=self._marks.marks,
        )
        tokenizer = candidate.manifest.tokenizer
        table = self._terms.tables[tokenizer] if tokenizer is not None else None
        block = open_audit(opened, self._trailers, relations, table)
        return shown(block), package(opened, block)

    def _check_settlement(self, final: Receipt) -> None:
        """The proxy's account of this request must be what the receipt and its own commission give."""
        told = self.settlement
        if told is None:
            return
        due = with_commission(final.charge, self._terms.bps)
        if told.request_id != final.request_id or told.worker_charge != final.charge or told.charge != due:
            raise PaymentError(
                f"the proxy booked {told.charge} ({told.worker_charge} for the worker), the receipt says {int(due)}"
                f" ({final.charge})",
                peer=Peer.PROXY,
                rule="PAY-21",
                proof=self.receipts[-1],
            )

    # --- blame ---

    def _cut(self, how: str) -> PeerError:
        if not self.frames and self._hint is not None:
            return UntrustedProxyError(f"the proxy says {self._hint!r} and sent no answer", hint=self._hint)
        said = f"; the proxy says {self._hint!r}" if self._hint else ""
        return StreamTruncated(f"the answer was cut: {how}{said}", peer=Peer.PROXY, rule="SEAL-7")

    def _blamed(self, error: ReceiptError, signed: SignedReceipt) -> ReceiptError:
        """What the attested key did not sign cannot be held against its worker: then it is the proxy's."""
        assert self.trail is not None
        try:
            by_worker = signed.signer(self._terms.domain) == self.trail.expected.receipt_address
        except (MalformedMessage, OverflowError):
            by_worker = False
        repeated = any(signed == known for known in self.receipts)
        if not by_worker or repeated:
            error.peer = Peer.PROXY
        elif error.rule in ("RCT-7", "RCT-8"):
            error.peer = Peer.UNKNOWN  # a receipt left out on the way looks the same as one never signed
        return error


def read_hint(payload: bytes) -> str:
    """The `code` of a proxy's problem, spelt harmlessly: it is shown, never acted on."""
    try:
        value = orjson.loads(payload[:MAX_HINT])
    except orjson.JSONDecodeError:
        return "unreadable"
    code = value.get("code") if isinstance(value, dict) else None
    return "".join(c for c in str(code)[:_CODE] if c in _SPELT) or "unreadable"


def content_type_of(head: Head) -> str:
    """The media type an application is told. Of a worker's fields this alone is passed on, and only one that no browser
    takes for a page."""
    told = _content_type(head)
    return told if told.partition(";")[0].strip() in _PASSED_ON and told.isprintable() else "application/octet-stream"


def _checked(head: Head) -> Head:
    if not (200 <= head.status < 300 or 400 <= head.status < 600):
        raise MalformedMessage(f"an answer of status {head.status}", peer=Peer.WORKER, rule="WRK-5")
    return head


def _content_type(head: Head) -> str:
    found = dict(head.headers).get(b"content-type", b"")
    return found.decode("latin-1").strip().lower()


def _seal_error(error: SealError) -> SealError:
    """Frames that do not open came out of the proxy's hands; whether its or the worker's fault cannot be told."""
    if not isinstance(error, KeyConfigError):
        error.peer = Peer.PROXY
    return error


def _proxy(message: str, rule: str) -> MalformedMessage:
    return MalformedMessage(message, peer=Peer.PROXY, rule=rule)
