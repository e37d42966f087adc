# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed beside attestation: what roles, payers, engines and kernels hand in. Beside `targets.py`."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable

import orjson

from bombyx.adapters.configfs_tsm import certificates_of
from bombyx.adapters.gguf import parse_gguf, token_table
from bombyx.adapters.prefill_vllm import _rows
from bombyx.adapters.tokenizer_json import parse_tokenizer
from bombyx.adapters.vllm_sampler import read_arguments
from bombyx.errors import ConfigError, EngineUnavailable, MalformedMessage, PaymentError, SealError, StreamTruncated
from bombyx.protocol.audit import calibration
from bombyx.protocol.audit.asked import CHAT, COMPLETIONS, read_sampling
from bombyx.protocol.audit.commitment import mark_line
from bombyx.protocol.audit.eprocess import Evidence
from bombyx.protocol.pay.tickets import sign_ticket, tickets_from_json, tickets_to_json
from bombyx.protocol.pay.view import Claim
from bombyx.protocol.pay.x402 import Asking
from bombyx.protocol.pay.x402_payment import check_deposit, read_payment
from bombyx.protocol.primitives import Address, Amount, Digest, Instant, Secret
from bombyx.protocol.seal import bhttp
from bombyx.protocol.seal.chunked import ChunkOpener, ChunkSealer, open_whole, seal_whole
from bombyx.protocol.seal.fields import read_usage, usage_trailers
from bombyx.protocol.wire.channel import ChannelConfig
from bombyx.protocol.wire.records import (
    LinkType,
    Record,
    RecordReader,
    read_link_frames,
    write_link_frame,
    write_record,
)
from bombyx.protocol.wire.signing import SigningKey, recover
from bombyx.protocol.wire.tokens import TokenTable
from bombyx.roles.client.marks import MarkReader
from bombyx.roles.worker.signed import answer_id

KEY = SigningKey(Secret(b"\x11" * 32))
NOW = Instant(1_800_000_000_000)
ASKING = Asking(
    chain_id=31337,
    token=Address(b"\x01" * 20),
    token_name="USD Coin",
    token_version="2",
    collector=Address(b"\x02" * 20),
    receiver=Address(b"\x03" * 20),
    receiver_authorizer=Address(b"\x04" * 20),
    withdraw_delay=900,
    min_deposit=1_000,
)
CONFIG = ChannelConfig(
    payer=KEY.address,
    payer_authorizer=KEY.address,
    receiver=ASKING.receiver,
    receiver_authorizer=KEY.address,
    token=ASKING.token,
    withdraw_delay=900,
    salt=Digest(bytes(32)),
)
CHUNK_KEY, CHUNK_NONCE = bytes(16), bytes(12)


def http(data: bytes) -> None:
    """What is read of a request or an answer is written back to what reads the same."""
    for decode, encode in (
        (bhttp.decode_request, bhttp.encode_request),
        (bhttp.decode_response, bhttp.encode_response),
    ):
        try:
            read = decode(data)
        except MalformedMessage:
            continue
        assert decode(encode(read)) == read
        assert decode(encode(read, indeterminate=True)) == read


def records(data: bytes) -> None:
    """Cut anywhere, the same records come out."""

    def read(*parts: bytes) -> tuple[list[tuple[Record, bytes]], int | None]:
        reader, found = RecordReader(), []
        try:
            for part in parts:
                found.extend(reader.feed(part))
        except MalformedMessage:
            return found, None
        return found, reader.pending

    assert read(data) == read(data[: len(data) // 2], data[len(data) // 2 :])


def frames(data: bytes) -> None:
    assert b"".join(write_link_frame(*one) for one in read_link_frames(data)) == data


def chunks(data: bytes) -> None:
    """Nobody without the key makes a chunk that opens."""
    try:
        opened = open_whole(ChunkOpener(CHUNK_KEY, CHUNK_NONCE), data)
    except (SealError, StreamTruncated):
        return
    assert opened == b"honest" * 9, "a stream nobody sealed"


def usage(data: bytes) -> None:
    fields = bhttp.parse_fields(data)
    opening = read_usage(fields)
    assert opening is None or read_usage(usage_trailers(opening)) == opening


def marks(data: bytes) -> None:
    """Cut anywhere, the same passes, and the same marks are found."""

    def read(*parts: bytes) -> tuple[bytes, list[tuple[int, Digest]]] | None:
        reader, shown = MarkReader(), b""
        try:
            for part in parts:
                shown += reader.feed(part)
        except MalformedMessage:
            return None
        return shown + reader.rest(), reader.marks

    half = len(data) // 2
    assert read(data) == read(data[:half], data[half:])


def sampling(data: bytes) -> None:
    """Whatever a body says, it is covered or there is a reason."""
    try:
        asked = orjson.loads(data)
    except orjson.JSONDecodeError:
        return
    for path in (CHAT, COMPLETIONS):
        found = read_sampling(path, asked if isinstance(asked, dict) else {}, cap=100)
        assert (found.sampler is None) == bool(found.why)


def payment(data: bytes) -> None:
    """The first byte picks whether the bytes are the header or the JSON inside it."""
    text = data[1:].decode("latin-1") if data[:1] == b"\x01" else base64.b64encode(data[1:]).decode()
    try:
        presented = read_payment(text, ASKING)
        if presented.deposit is not None:
            check_deposit(presented, Digest(bytes(32)), ASKING, now=NOW)
    except PaymentError:
        pass


def tickets(data: bytes) -> None:
    read = tickets_from_json(data.decode("utf-8", "replace"))
    assert tickets_from_json(tickets_to_json(read)) == read


def gguf(data: bytes) -> None:
    metadata, _ = parse_gguf(data)
    try:
        token_table(metadata)
    except ConfigError:
        pass


def tokenizer(data: bytes) -> None:
    """A table that is made is one that can be read."""
    table = parse_tokenizer(data)
    assert TokenTable.decode(table.encode()) == table


def answer(data: bytes) -> None:
    assert isinstance(answer_id(data), str)


def signature(data: bytes) -> None:
    recover(Digest(data[:32].ljust(32, b"\0")), data[32:])


def _payment() -> bytes:
    authorization = {"validAfter": "0", "validBefore": "1800000600", "salt": "0x" + "07" * 32}
    given = {
        "x402Version": 2,
        "accepted": ASKING.requirements(120),
        "payload": {
            "type": "deposit",
            "channelConfig": {
                "payer": str(CONFIG.payer),
                "payerAuthorizer": str(CONFIG.payer_authorizer),
                "receiver": str(CONFIG.receiver),
                "receiverAuthorizer": str(CONFIG.receiver_authorizer),
                "token": str(CONFIG.token),
                "withdrawDelay": 900,
                "salt": "0x" + "00" * 32,
            },
            "voucher": {
                "channelId": "0x" + "05" * 32,
                "maxClaimableAmount": "120",
                "signature": "0x" + "06" * 65,
            },
            "deposit": {
                "amount": "5000",
                "authorization": {"erc3009Authorization": {**authorization, "signature": "0x" + "08" * 65}},
            },
        },
    }
    return b"\x00" + orjson.dumps(given)


def _asked() -> dict[str, object]:
    return {
        "model": "m",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        "prompt": [1, 2],
        "n": 2,
        "max_tokens": 9,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 70,
        "seed": 5,
        "stop": ["a"],
        "presence_penalty": 0.5,
        "logprobs": True,
        "tools": [],
        "response_format": {"type": "text"},
    }


def _tickets() -> bytes:
    claim = Claim(config=CONFIG, ceiling=Amount(9), signature=bytes(65), total_claimed=Amount(9))
    return tickets_to_json([sign_ticket(claim, Digest(bytes(32)), KEY)]).encode()


def _gguf() -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    def words(values: list[str]) -> bytes:
        return struct.pack("<IQ", 8, len(values)) + b"".join(map(text, values))

    pairs = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("tokenizer.ggml.model") + struct.pack("<I", 8) + text("gpt2"),
        text("tokenizer.ggml.tokens") + struct.pack("<I", 9) + words(["a", "b", "<|end|>"]),
        text("tokenizer.ggml.token_type") + struct.pack("<IIQ", 9, 5, 3) + struct.pack("<iii", 1, 1, 3),
        text("tokenizer.ggml.eos_token_id") + struct.pack("<II", 4, 2),
    ]
    tensor = text("t") + struct.pack("<IQIQ", 1, 8, 0, 0)
    return b"GGUF" + struct.pack("<IQQ", 3, 1, len(pairs)) + b"".join(pairs) + tensor


def _tokenizers() -> list[bytes]:
    added = [{"id": 3, "content": "<|end|>", "special": True}, {"id": 4, "content": "<tool>", "special": False}]
    words = {"a": 0, "\u0120b": 1, "\u2581c": 2, "<0x0A>": 5}
    families = ({"type": "ByteLevel"}, {"type": "Sequence", "decoders": [{"type": "Metaspace"}, {"type": "Strip"}]})
    return [
        orjson.dumps({"added_tokens": added, "model": {"type": "BPE", "vocab": words}, "decoder": decoder})
        for decoder in families
    ] + [orjson.dumps({"model": {"vocab": [["<unk>", 0], ["a", -1]]}, "pre_tokenizer": {"type": "Metaspace"}})]


def _certificates() -> bytes:
    vcek = bytes.fromhex("63da758de6644564adc5f4b93be8accd")
    return struct.pack("<16sII", vcek, 48, 9) + bytes(24) + b"a DER one"


def _http() -> list[bytes]:
    headers = ((b"content-type", b"application/json"),)
    request = bhttp.Request(
        method=b"POST", scheme=b"https", authority=b"a", path=b"/v1", headers=headers, content=b"{}", trailers=()
    )
    answered = bhttp.Response(status=200, headers=headers, content=b"{}" * 70, trailers=headers)
    return [
        encoded
        for loose in (False, True)
        for encoded in (
            bhttp.encode_request(request, indeterminate=loose),
            bhttp.encode_response(answered, indeterminate=loose),
        )
    ]


Seeds = Callable[[], list[bytes]]


def vllm_rows(data: bytes) -> None:
    """A Verifier's own engine, spoken to over HTTP: rows or a typed error."""
    try:
        told = orjson.loads(data)
    except orjson.JSONDecodeError:
        return
    try:
        _rows(told, (1, 2, 3), 1, 4)
    except EngineUnavailable:
        pass
    try:
        read_arguments(told if isinstance(told, dict) else None)
    except ValueError:
        pass


PLAIN: dict[str, tuple[Seeds, Callable[[bytes], object]]] = {
    "binary_http": (_http, http),
    "records": (lambda: [write_record(kind, b"x" * 200) for kind in Record], records),
    "link_frames": (lambda: [write_link_frame(LinkType(kind), 7, b"x" * 20) for kind in list(LinkType)], frames),
    "chunks": (lambda: [seal_whole(ChunkSealer(CHUNK_KEY, CHUNK_NONCE), b"honest" * 9)], chunks),
    "usage": (lambda: [b"\x0ebombyx-usage\x04AAAA"], usage),
    "marks": (lambda: [b"data: {}\n\n" + mark_line(32, Digest(bytes(32))) + b"data: [DONE]\n\n"], marks),
    "sampling": (lambda: [orjson.dumps(_asked())], sampling),
    "payment": (lambda: [_payment(), b"\x01" + base64.b64encode(_payment()[1:])], payment),
    "tickets": (lambda: [_tickets()], tickets),
    "gguf": (lambda: [_gguf()], gguf),
    "calibration": (lambda: [calibration.to_json(calibration.DEFAULT).encode()], calibration.from_json),
    "audit_evidence": (lambda: [Evidence.none(calibration.DEFAULT).encode()], Evidence.decode),
    "vllm_rows": (
        lambda: [
            b'{"choices":[{"prompt_logprobs":[null,{"2":{"logprob":-1.5,"rank":1}},{"3":{"logprob":0.5,"rank":9}}]}]}',
            b'{"bombyx_seed":"00000000000000ff","bombyx_top_k":50}',
        ],
        vllm_rows,
    ),
    "tokenizer": (_tokenizers, tokenizer),
    "certificates_of": (lambda: [_certificates()], certificates_of),
    "answer_id": (
        lambda: [b'{"id":"chatcmpl-1"}', b': hello\n\ndata: {"id":"chatcmpl-1"}\n\n', b'{"id":"x"' + b" " * 9000],
        answer,
    ),
    "signature": (lambda: [bytes(32) + KEY.sign(Digest(bytes(32)))], signature),
}
