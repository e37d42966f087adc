# SPDX-License-Identifier: Apache-2.0
"""Signed answers and a report on demand, in the form other providers' clients know, through the blind path (ENC-7).

    GET /v1/attestation/report?nonce=64 hex     a fresh quote over receipt address || nonce, with its evidence
    GET /v1/signature/ID                        the enclave's signature over one answer of this boot

    text = "bombyx signed answer v1:MODEL:REQUEST:RESPONSE:BUNDLE:MILLISECONDS"

MODEL is the manifest's digest, REQUEST and RESPONSE are SHA-256 of the bytes the application sent and got (of a stream:
of its events, without the filler of its shape: wire/answer_hash), BUNDLE is the Evidence bundle (hence the quote and
the keyset) of the period it was answered in. EIP-191, by the receipt key.

Always: hashes are the enclave's own, of the bytes themselves: no header can replace one, so nobody gets arbitrary text
signed. Both answers travel sealed and cost nothing. Memory is bounded and dies with the boot; receipts outlive it.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs

import orjson

from bombyx.errors import BadRequest
from bombyx.ports import Clock, Entropy, EvidenceSource
from bombyx.protocol.primitives import Digest, Instant, keccak256, sha256
from bombyx.protocol.wire.answer_hash import EventHash
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.worker.keys import Keyring

REPORT_PATH: Final = "/v1/attestation/report"
SIGNATURE_PATH: Final = "/v1/signature/"
TAG: Final = "bombyx signed answer v1"
NONCE_SIZE: Final = 32  # bytes
KEPT: Final = 4_096  # answers
MAX_HEAD: Final = 16_384  # bytes of an answer in which its id is looked for
MIN_ID: Final = 16  # characters: whoever knows an id may ask for the hashes, so it must not be guessable
MAX_ID: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class _Signable:
    """What one answer's signature is over."""

    model: Digest
    request: Digest
    response: Digest
    bundle: Digest
    at: Instant

    def text(self) -> str:
        parts = (self.model.hex(), self.request.hex(), self.response.hex(), self.bundle.hex(), str(int(self.at)))
        return ":".join((TAG, *parts))


class Recorder:
    """Hashes one answer as it is handed on."""

    def __init__(self, book: SignedAnswers, model: Digest, request: bytes) -> None:
        self._book = book
        self._model = model
        self._request = sha256(request)
        self._whole = hashlib.sha256()
        self._events: EventHash | None = None
        self._head = bytearray()

    def put(self, data: bytes) -> None:
        """Of an answer that is not streamed."""
        self._whole.update(data)
        self._look(data)

    def put_events(self, data: bytes) -> None:
        """Of a stream."""
        self._events = self._events or EventHash()
        self._events.put(data)
        self._look(data)

    def _look(self, data: bytes) -> None:
        if len(self._head) < MAX_HEAD:
            self._head += data[: MAX_HEAD - len(self._head)]

    def finish(self) -> None:
        """The answer is whole: it may be asked for by its id."""
        response = Digest(self._whole.digest()) if self._events is None else self._events.digest()
        self._book.keep(answer_id(bytes(self._head)), self._model, self._request, response)


class SignedAnswers:
    """Of one boot."""

    def __init__(
        self, *, key: SigningKey, device: EvidenceSource, keyring: Keyring, clock: Clock, entropy: Entropy
    ) -> None:
        self._key = key
        self._device = device
        self._keyring = keyring
        self._clock = clock
        self._entropy = entropy
        self._kept: OrderedDict[str, _Signable] = OrderedDict()

    def recorder(self, model: Digest, request: bytes) -> Recorder:
        return Recorder(self, model, request)

    def keep(self, name: str, model: Digest, request: Digest, response: Digest) -> None:
        period = self._keyring.current
        if period is None or name in self._kept or not MIN_ID <= len(name) <= MAX_ID:
            return  # an id that comes twice names the first answer: the engine's ids are its own affair
        self._kept[name] = _Signable(
            model=model, request=request, response=response, bundle=period.bundle_digest, at=self._clock.now()
        )
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    def signature(self, name: str, query: str) -> bytes:
        """The signed answer's JSON. Raises `BadRequest` 404 for an id of no answer of this boot."""
        _check_algorithm(query)
        found = self._kept.get(name)
        if found is None:
            raise BadRequest("no answer of this enclave has that id", status=404, code="not_found", rule="ENC-7")
        text = found.text()
        return orjson.dumps(
            {
                "text": text,
                "signature": "0x" + self._key.sign(personal_digest(text)).hex(),
                "signing_address": str(self._key.address),
                "signing_algo": "ecdsa",
            }
        )

    async def report(self, query: str) -> bytes:
        """A fresh quote over our receipt address and the caller's nonce."""
        _check_algorithm(query)
        nonce = _nonce(query) or self._entropy.bytes(NONCE_SIZE)
        quote = await self._device.quote(self._key.address.ljust(32, b"\0") + nonce)
        period = self._keyring.current
        compose = quote.compose.decode("utf-8", "replace")
        tcb = {"app_compose": compose, "event_log": json.loads(quote.event_log or b"[]")}
        node: dict[str, Any] = {
            "signing_address": str(self._key.address),
            "signing_algo": "ecdsa",
            "request_nonce": nonce.hex(),
            "intel_quote": quote.quote.hex(),
            "event_log": quote.event_log.decode(),
            "nvidia_payload": None,
            "info": {"compose_hash": sha256(quote.compose).hex(), "tcb_info": tcb},
            "bombyx_bundle": period.bundle_digest.hex() if period is not None else None,
        }
        return orjson.dumps({**node, "all_attestations": [node]})


def personal_digest(text: str) -> Digest:
    """EIP-191, version 0x45: what wallets sign as a personal message."""
    data = text.encode()
    return keccak256(b"\x19Ethereum Signed Message:\n", str(len(data)).encode(), data)


def answer_id(head: bytes) -> str:
    """The `id` of an OpenAI answer, or of a stream's first event; empty where there is none."""
    for line in head.split(b"\n", 8)[:8] if head.startswith((b"data:", b":")) else [head]:
        try:
            value = orjson.loads(line.removeprefix(b"data:").strip())
        except orjson.JSONDecodeError:
            continue
        if isinstance(value, dict) and isinstance(value.get("id"), str):
            return str(value["id"])
    return _id_of_cut(head)


def _id_of_cut(head: bytes) -> str:
    """A body longer than what is looked at: its `id` as written, if it stands at the top."""
    before, _, after = head[:512].partition(b'"id":')
    name = after.strip().removeprefix(b'"').split(b'"', 1)[0]
    return name.decode("ascii", "replace") if before.count(b"{") == 1 and len(head) == MAX_HEAD else ""


def _check_algorithm(query: str) -> None:
    wanted = parse_qs(query).get("signing_algo", ["ecdsa"])[0]
    if wanted != "ecdsa":
        raise BadRequest("this enclave signs with ecdsa", code="unsupported_algorithm", rule="ENC-7")


def _nonce(query: str) -> bytes | None:
    given = parse_qs(query).get("nonce")
    if not given:
        return None
    try:
        nonce = bytes.fromhex(given[0])
    except ValueError:
        nonce = b""
    if len(nonce) != NONCE_SIZE:
        raise BadRequest("a nonce is 32 bytes in hex", code="invalid_nonce", rule="ENC-7")
    return nonce
