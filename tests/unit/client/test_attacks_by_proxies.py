# SPDX-License-Identifier: Apache-2.0
"""A proxy that lies, drops, repeats, reorders, forges or over-charges: what the client makes of each."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.client.pair import Pair, Records, account_key, chat, make_pair

from bombyx.errors import (
    MalformedMessage,
    PaymentError,
    Peer,
    PeerError,
    ReceiptError,
    SealError,
    StreamTruncated,
    UntrustedProxyError,
)
from bombyx.protocol.primitives import Digest
from bombyx.protocol.wire.receipt import SignedReceipt, receipt_domain
from bombyx.protocol.wire.records import Record, ResponseHead, Settlement


async def ask(pair: Pair, **more: Any) -> tuple[int, dict[str, Any], Any]:
    """(status, body, the typed error) of one unstreamed request."""
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat(**more))
    return response.status, json.loads(await response.read()), response.error


def data_places(records: Records) -> list[int]:
    return [place for place, (kind, _) in enumerate(records) if kind is Record.DATA]


async def test_another_candidate_named_in_the_head(pair: Pair) -> None:
    """SEAL-3: what one worker sealed does not open as another's."""

    def swap(records: Records) -> Records:
        answering = ResponseHead.decode(records[0][1]).candidate
        other = next(c for c in pair.proxy.seen[-1].meta.candidates if c != answering)
        return [(Record.HEAD, ResponseHead(candidate=other).encode()), *records[1:]]

    pair.proxy.tamper = swap
    status, body, error = await ask(pair)
    assert status >= 400 and isinstance(error, SealError) and error.peer is Peer.PROXY
    assert body["error"]["fault"] == "proxy"


async def test_a_candidate_nobody_sealed_to(pair: Pair) -> None:
    """SEAL-3: a head may only name a candidate."""
    stranger = (Record.HEAD, ResponseHead(candidate=Digest(b"\x07" * 32)).encode())
    pair.proxy.tamper = lambda records: [stranger, *records[1:]]
    _, _, error = await ask(pair)
    assert isinstance(error, MalformedMessage) and error.peer is Peer.PROXY


async def test_the_final_frame_dropped(pair: Pair) -> None:
    """SEAL-7: a missing final frame is an error in the application's loop, never a short answer."""
    pair.proxy.tamper = lambda records: [r for i, r in enumerate(records) if i != data_places(records)[-1]]
    _, body, error = await ask(pair)
    assert isinstance(error, ReceiptError | StreamTruncated), error
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat(stream=True))
    with pytest.raises((StreamTruncated, ReceiptError)):
        await response.read()


async def test_everything_after_the_first_frame_dropped(pair: Pair) -> None:
    """SEAL-7: StreamTruncated, and nothing beyond the last checkpoint is agreed to."""
    pair.proxy.tamper = lambda records: records[: data_places(records)[0] + 1]
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat(stream=True))
    with pytest.raises(StreamTruncated):
        await response.read()
    channel = pair.client.wallet.channel(pair.proxy.key.address)
    assert channel is not None and channel.agreed == 0 and channel.open_amount > 0
    kept = await pair.client.book.newest()
    assert kept[0].outcome == "cut"


async def test_frames_in_another_order(pair: Pair) -> None:
    """SEAL-7: frames open only in their order."""

    def reorder(records: Records) -> Records:
        first, second = data_places(records)[:2]
        records[first], records[second] = records[second], records[first]
        return records

    pair.proxy.tamper = reorder
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat(stream=True))
    with pytest.raises(PeerError) as caught:
        await response.finished()
    assert caught.value.peer is Peer.PROXY and caught.value.rule == "SEAL-7"


async def test_a_frame_twice(pair: Pair) -> None:
    """SEAL-7: a repeated frame does not open."""

    def repeat(records: Records) -> Records:
        place = data_places(records)[0]
        return [*records[: place + 1], records[place], *records[place + 1 :]]

    pair.proxy.tamper = repeat
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat(stream=True))
    with pytest.raises(PeerError) as caught:
        await response.read()
    assert caught.value.peer is Peer.PROXY and caught.value.rule == "SEAL-7"


async def test_a_frame_after_the_final_one(pair: Pair) -> None:
    """SEAL-7: nothing follows the end."""

    def append(records: Records) -> Records:
        last = data_places(records)[-1]
        return [*records[: last + 1], records[last], *records[last + 1 :]]

    pair.proxy.tamper = append
    _, _, error = await ask(pair)
    assert isinstance(error, SealError) and error.peer is Peer.PROXY


async def test_a_flipped_bit(pair: Pair) -> None:
    """SEAL-7: no frame opens after a change."""

    def flip(records: Records) -> Records:
        place = data_places(records)[-1]
        kind, payload = records[place]
        return [*records[:place], (kind, payload[:-1] + bytes([payload[-1] ^ 1])), *records[place + 1 :]]

    pair.proxy.tamper = flip
    _, _, error = await ask(pair)
    assert isinstance(error, SealError)


async def test_a_forged_receipt_is_not_held_against_the_worker(pair: Pair) -> None:
    """RCT-1: what the attested key did not sign is the proxy's."""
    forger = account_key()
    info = await pair.ledger.info()

    def forge(records: Records) -> Records:
        place = max(i for i, (kind, _) in enumerate(records) if kind is Record.RECEIPT)
        receipt = SignedReceipt.decode(records[place][1]).receipt
        forged = SignedReceipt.sign(receipt, receipt_domain(info.chain_id, info.registry), forger)
        records[place] = (Record.RECEIPT, forged.encode())
        return records

    pair.proxy.tamper = forge
    _, body, error = await ask(pair)
    assert isinstance(error, ReceiptError) and error.peer is Peer.PROXY and error.rule == "RCT-1"
    assert not pair.client.distrusted


async def test_a_receipt_of_another_answer(pair: Pair) -> None:
    """RCT-2: a receipt names its request."""
    kept: list[bytes] = []

    def swap(records: Records) -> Records:
        place = max(i for i, (kind, _) in enumerate(records) if kind is Record.RECEIPT)
        kept.append(records[place][1])
        records[place] = (Record.RECEIPT, kept[0])
        return records

    pair.proxy.chosen = pair.workers[0]
    pair.proxy.tamper = swap
    assert (await ask(pair))[0] == 200
    _, _, error = await ask(pair)
    assert isinstance(error, ReceiptError)


async def test_no_final_receipt(pair: Pair) -> None:
    """RCT-8: every answer carries a receipt, or it is an error that blames who passed it on."""
    pair.proxy.tamper = lambda records: [r for r in records if r[0] is not Record.RECEIPT]
    _, _, error = await ask(pair)
    assert isinstance(error, ReceiptError) and error.peer is Peer.PROXY


async def test_a_receipt_twice(pair: Pair) -> None:
    """RCT-8: nothing follows the final; a repeated one is not the worker's doing."""

    def repeat(records: Records) -> Records:
        place = max(i for i, (kind, _) in enumerate(records) if kind is Record.RECEIPT)
        return [*records[: place + 1], records[place], *records[place + 1 :]]

    pair.proxy.tamper = repeat
    _, _, error = await ask(pair)
    assert isinstance(error, ReceiptError) and error.peer is Peer.PROXY


async def test_an_account_above_the_receipt_freezes_the_channel(pair: Pair) -> None:
    """PAY-21: the right charge is agreed to, nothing more is ever signed, what is left is withdrawn."""
    pair.proxy.extra_charge = 1
    _, _, error = await ask(pair)
    assert isinstance(error, PaymentError) and error.peer is Peer.PROXY and error.rule == "PAY-21"
    channel = pair.client.wallet.channel(pair.proxy.key.address)
    assert channel is not None and channel.frozen and channel.agreed == 17
    view = await pair.ledger.channel(channel.id)
    assert view is not None and view.withdrawing
    count = len(pair.proxy.seen)
    status, body, _ = await ask(pair)
    assert status == 402 and len(pair.proxy.seen) == count
    await pair.restarted()
    assert (await ask(pair))[0] == 402, "the freeze survives a restart"


async def test_a_total_above_all_that_was_agreed_freezes_the_channel(pair: Pair) -> None:
    """PAY-21: the proxy's books may not hold more than ours."""
    pair.proxy.extra_total = 10**6
    _, _, error = await ask(pair)
    assert isinstance(error, PaymentError) and error.rule == "PAY-21"
    channel = pair.client.wallet.channel(pair.proxy.key.address)
    assert channel is not None and channel.frozen


async def test_an_account_of_another_request(pair: Pair) -> None:
    """PAY-21: END speaks of this request."""

    def other(records: Records) -> Records:
        end = Settlement.decode(records[-1][1])
        return [*records[:-1], (Record.END, replace(end, charge=end.charge - 1).encode())]

    pair.proxy.tamper = other
    _, _, error = await ask(pair)
    assert isinstance(error, PaymentError)


async def test_a_record_after_the_end(pair: Pair) -> None:
    """LINK-2: nothing follows END."""
    pair.proxy.tamper = lambda records: [*records, records[-1]]
    _, _, error = await ask(pair)
    assert isinstance(error, MalformedMessage)


async def test_unsealed_errors_are_hints(pair: Pair) -> None:
    """SEAL-7: typed, harmlessly spelt, and free of the reservation."""
    pair.proxy.refusals = [(503, {"code": "no_workers<script>", "detail": "go away"})]
    status, body, error = await ask(pair)
    assert status == 503 and isinstance(error, UntrustedProxyError)
    assert error.hint == "no_workersscript" and "go away" not in json.dumps(body)
    channel = pair.client.wallet.channel(pair.proxy.key.address)
    assert channel is not None and channel.open_amount == 0


async def test_a_hint_instead_of_an_answer(pair: Pair) -> None:
    """SEAL-7: the proxy's word on why there is no answer."""
    hint = json.dumps({"code": "engine_unavailable", "detail": "x"}).encode()
    pair.proxy.tamper = lambda records: [records[0], (Record.HINT, hint)]
    _, _, error = await ask(pair)
    assert isinstance(error, UntrustedProxyError) and error.hint == "engine_unavailable"


async def test_garbage_for_an_answer(pair: Pair) -> None:
    """LINK-2: unknown records are refused."""
    pair.proxy.tamper = lambda records: [(Record.DATA, b"\xff" * 40), *records]
    _, _, error = await ask(pair)
    assert isinstance(error, MalformedMessage)


async def test_invented_workers_are_never_asked(pair: Pair) -> None:
    """CLI-2: who is not in the registry does not exist; whoever changes an offer is found out."""
    invented = await make_pair(workers=1)
    pair.proxy.tamper_offers = lambda offers: [*offers, invented.workers[0].offer()]
    assert (await ask(pair))[0] == 200
    view = await pair.client.view()
    assert view.report.invented == (invented.workers[0].operator.address,)
    assert all(len(seen.meta.candidates) == 3 for seen in pair.proxy.seen)


async def test_an_offer_with_another_price_sheet_is_left_out(pair: Pair) -> None:
    """CLI-2: a price sheet is the operator's because the registry says so."""
    pair.proxy.tamper_offers = lambda offers: [replace(offers[0], price_sheet=Digest(b"\x01" * 32)), *offers[1:]]
    assert (await ask(pair))[0] == 200
    assert len(pair.proxy.seen[-1].meta.candidates) == 2


async def test_an_offer_with_anothers_evidence_is_left_out(pair: Pair) -> None:
    """CLI-4: evidence names its operator."""
    one, two, three = (worker.offer() for worker in pair.workers)
    pair.proxy.tamper_offers = lambda offers: [replace(one, bundle=two.bundle, candidates=two.candidates), two, three]
    assert (await ask(pair))[0] == 200
    assert len(pair.proxy.seen[-1].meta.candidates) == 2


async def test_a_blob_of_other_bytes(pair: Pair) -> None:
    """CLI-2: a blob is what its digest says."""
    pair.proxy.blobs[pair.workers[0].period.bundle_digest.hex()] = b"something else"
    assert (await ask(pair))[0] == 200
    assert len(pair.proxy.seen[-1].meta.candidates) == 2


async def test_hiding_workers_does_not_bring_others_into_the_draw() -> None:
    """MKT-3: a hidden candidate's place stays empty; only when all are hidden another is drawn, and it shows."""
    pair = await make_pair(workers=8)
    assert (await ask(pair))[0] == 200
    drawn = set(pair.proxy.seen[-1].meta.candidates)
    hidden: set[Any] = set()
    pair.proxy.tamper_offers = lambda offers: [o for o in offers if o.operator not in hidden]
    owners = {c: w.operator.address for w in pair.workers for c in w.period.candidates}
    for candidate in list(drawn)[:2]:
        hidden.add(owners[candidate])
    assert (await ask(pair))[0] == 200
    assert set(pair.proxy.seen[-1].meta.candidates) == set(list(drawn)[2:])
    assert sum(row["absent"] for row in pair.client.tally.as_rows()) == 2
