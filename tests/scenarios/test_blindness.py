# SPDX-License-Identifier: Apache-2.0
"""Who can see what, looked for in every byte: real processes, a real model, wire taps on both sides of the proxy."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.scenarios.procs import MODEL, Processes, network_of_processes

from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.gguf import find_packaged_model, read_gguf
from bombyx.adapters.keys import KeyFiles
from bombyx.protocol.seal import parse_envelope
from bombyx.protocol.wire.request import Payment

PIECE = 8  # bytes

CONVERSATIONS: list[list[str]] = [
    ["My sister Philippa keeps 41 zebra finches in Ouagadougou. What might she feed them?", "And in winter?"],
    ["Übersetze ins Englische: Der Seidenspinner frisst Maulbeerblätter.", "Und auf Französisch, bitte?"],
]


def pieces(text: str) -> set[bytes]:
    """Every 8-byte piece of a text, as UTF-8 and as it stands inside JSON."""
    found: set[bytes] = set()
    for form in (text.encode(), json.dumps(text)[1:-1].encode(), json.dumps(text, ensure_ascii=False)[1:-1].encode()):
        found.update(form[i : i + PIECE] for i in range(len(form) - PIECE + 1))
    return found


async def converse(endpoint: str, turns: list[str], *, stream: bool, tokens: int = 24) -> list[str]:
    """A chat of several turns; gives everything that was said, by both."""
    messages: list[dict[str, str]] = []
    async with aiohttp.ClientSession() as http:
        for turn in turns:
            messages.append({"role": "user", "content": turn})
            body = {"model": MODEL, "messages": messages, "max_tokens": tokens, "stream": stream}
            async with http.post(f"{endpoint}/chat/completions", json=body) as answer:
                assert answer.status == 200, await answer.text()
                text = _streamed(await answer.read()) if stream else _whole(await answer.json())
            assert text
            messages.append({"role": "assistant", "content": text})
    return [message["content"] for message in messages]


def _streamed(body: bytes) -> str:
    events = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: {")]
    choices = [json.loads(event)["choices"] for event in events]
    return "".join(c[0]["delta"].get("content") or "" for c in choices if c)


def _whole(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def kept_by(net: Processes, name: str) -> bytes:
    """Every byte a role has on disk: books, journals, logs."""
    files = [p for p in net.state(name).rglob("*") if p.is_file()]
    return b"\n".join(p.read_bytes() for p in files) + net.log(name).encode()


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Real conversations over a tapped network; what was said, what passed, what was kept."""
    return asyncio.run(_listen(tmp_path_factory.mktemp("network")))


async def _listen(folder: Path) -> dict[str, Any]:
    async with network_of_processes(folder, workers=2, listened=True) as net:
        # A conversation too short to hold a piece: what passes and is kept of it are the network's own words.
        for stream in (True, False):
            await converse(net.endpoint, ["7"], stream=stream, tokens=1)
        own_words = b"\n".join((*(tap.everything() for tap in net.taps), kept_by(net, "proxy")))
        said = await asyncio.gather(
            converse(net.endpoint, CONVERSATIONS[0], stream=True),
            converse(net.endpoint, CONVERSATIONS[1], stream=False),
        )
        client_tap, worker_tap = net.taps
        channels = [c["id"] for c in (await net.verification())["channels"]]
        keys = KeyFiles(net.state("client"), SystemEntropy())
        return {
            "own_words": own_words,
            "said": [text for conversation in said for text in conversation],
            "client_tap": client_tap,
            "worker_tap": worker_tap,
            "proxy_kept": kept_by(net, "proxy"),
            "channels": channels,
            "payer": [keys.load("owner").address, keys.load("session").address],
        }


def test_the_proxy_receives_stores_and_logs_no_piece_of_prompt_or_answer(heard: dict[str, Any]) -> None:
    """SEAL-3: every byte on both sides of the proxy, on its disk and in its log: no 8-byte piece of what was said."""
    haystack = b"\n".join((heard["client_tap"].everything(), heard["worker_tap"].everything(), heard["proxy_kept"]))
    vocabulary = read_gguf(find_packaged_model()).tokens.encode()
    assert heard["worker_tap"].blobs() == {vocabulary}, "the public token table holds every word there is, nothing else"
    haystack = haystack.replace(vocabulary, b"")
    assert len(haystack) > 100_000, "the taps heard the conversations"
    said = {piece for text in heard["said"] for piece in pieces(text)}
    telling = {piece for piece in said if piece not in heard["own_words"]}  # "attribut" stands in every bundle
    assert len(telling) > 0.8 * len(said)
    assert not {piece for piece in telling if piece in haystack}


def test_the_search_would_find_a_prompt_that_was_sent_in_the_clear(heard: dict[str, Any]) -> None:
    """SEAL-3: the same search finds what the proxy does see, so it is not blind itself."""
    assert b"/v1/blind" in heard["client_tap"].everything()
    assert MODEL.encode() in heard["worker_tap"].everything(), "manifests pass in the clear, unmasked by the tap"


def test_no_payer_byte_reaches_a_worker(heard: dict[str, Any]) -> None:
    """SEAL-1: PAY is stripped: nothing of channel, voucher, grant, MAC or payer is on the worker's link."""
    link = heard["worker_tap"].everything()
    values: list[bytes] = [bytes(address) for address in heard["payer"]]
    values += [str(address).encode() for address in heard["payer"]] + [a.hex().encode() for a in heard["payer"]]
    for payment in _payments(heard["client_tap"].sent):
        values += [bytes(payment.channel), payment.channel.hex().encode(), payment.mac]
        if payment.voucher is not None:
            values.append(payment.voucher.signature)
        if payment.grant is not None:
            values += [payment.grant.signature, payment.grant.sealed_key, bytes(payment.grant.key_hash)]
    assert len(values) >= 12
    found = [v for v in values for i in range(len(v) - PIECE + 1) if v[i : i + PIECE] in link]
    assert not found


def test_the_payer_is_on_the_proxys_side(heard: dict[str, Any]) -> None:
    """SEAL-1: the same values are where they belong, so the search looked for the right ones."""
    said = b"".join(bytes(stream) for stream in heard["client_tap"].sent)
    assert all(bytes.fromhex(channel) in said for channel in heard["channels"])


def _payments(streams: list[bytearray]) -> list[Payment]:
    """The PAY part of every sealed request that went to the proxy."""
    found = []
    for stream in streams:
        for part in bytes(stream).split(b"POST /v1/blind ")[1:]:
            head, _, rest = part.partition(b"\r\n\r\n")
            length = next(int(h.split(b":")[1]) for h in head.lower().split(b"\r\n") if h.startswith(b"content-length"))
            found.append(Payment.decode(parse_envelope(rest[:length]).payment_bytes))
    return found
