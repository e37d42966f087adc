# SPDX-License-Identifier: Apache-2.0
"""Images that publishers vouch for on chain, as a client sees them (ATT-14)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.client.pair import ENTROPY, Pair, chat, make_client

from bombyx.adapters.simulator import WORKER_IMAGE, development_policy
from bombyx.errors import BombyxError, Unavailable
from bombyx.ports import ReferenceKind
from bombyx.protocol.attest import AppraisalPolicy
from bombyx.protocol.primitives import Digest
from bombyx.roles.client.core import Client
from bombyx.roles.worker.keys import new_signing_key

IMAGE = WORKER_IMAGE.compose_hash
PUBLISHERS = [new_signing_key(ENTROPY) for _ in range(3)]


def two_of_three(pair: Pair) -> AppraisalPolicy:
    """No image is named; publishers are."""
    names = tuple(key.address for key in PUBLISHERS)
    return replace(development_policy(pair.platform), reference_values=(), publishers=names, publishers_agree=2)


async def vouch(pair: Pair, *keys: Any, image: Digest = IMAGE) -> None:
    for key in keys:
        await pair.ledger.propose_reference(ReferenceKind.MEASUREMENT, image, "", signer=key)


async def started(pair: Pair, **changes: Any) -> Client:
    pair.client = make_client(pair, replace(pair.settings, **changes), policy=two_of_three(pair))
    await pair.client.start()
    return pair.client


async def answered(client: Client) -> bool:
    try:
        response = await client.request("POST", "/v1/chat/completions", {}, chat())
    except BombyxError:
        return False
    assert [part async for part in response.body]
    return response.status == 200


async def test_two_of_three_publishers_admit_an_image_no_file_names(pair: Pair) -> None:
    """ATT-14: and the report says whose word it was."""
    await vouch(pair, PUBLISHERS[0], PUBLISHERS[2])
    client = await started(pair)
    assert await answered(client)
    results = [entry.result for entry in client.evidence.all() if entry.result]
    assert results and {result.claims.reference_value for result in results} == {"2 of 3 publishers"}


async def test_one_publisher_alone_admits_nothing(pair: Pair) -> None:
    """ATT-14: a publisher that turned, or whose key was stolen; a stranger's word does not help it."""
    await vouch(pair, PUBLISHERS[0], new_signing_key(ENTROPY))
    client = await started(pair)
    assert not await answered(client)
    assert "Reference Value" in str(client.evidence.all()[0].error)


async def test_publishers_of_another_image_do_not_admit_this_one(pair: Pair) -> None:
    """ATT-14."""
    await vouch(pair, *PUBLISHERS, image=Digest(bytes(32)))
    assert not await answered(await started(pair))


async def test_a_revoked_image_is_refused_within_seconds(pair: Pair) -> None:
    """ATT-14: though its evidence is good for an hour more."""
    await vouch(pair, PUBLISHERS[0], PUBLISHERS[1])
    client = await started(pair, registry_seconds=0.1)
    assert await answered(client)
    await pair.ledger.revoke_reference(ReferenceKind.MEASUREMENT, IMAGE, signer=PUBLISHERS[1])
    await asyncio.sleep(0.15)
    assert not await answered(client)


async def test_a_publishers_delay_is_waited_out(pair: Pair) -> None:
    """ATT-14: an addition in the open counts for nothing yet."""
    await pair.ledger.set_publisher_delay(3_600, signer=PUBLISHERS[1])
    await vouch(pair, PUBLISHERS[0], PUBLISHERS[1])
    assert not await answered(await started(pair))


async def test_a_chain_that_cannot_be_asked_means_no(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """ATT-14."""
    await vouch(pair, *PUBLISHERS)

    async def away(*_: object) -> bool:
        raise Unavailable("the chain is away")

    monkeypatch.setattr(pair.ledger, "references_agreed", away)
    assert not await answered(await started(pair))
