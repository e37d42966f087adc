# SPDX-License-Identifier: Apache-2.0
"""The secret draw: stable, unpredictable without the secret, and moved by nobody else."""

from __future__ import annotations

import hashlib
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from bombyx.protocol.market import draw, epoch_of, goes_single
from bombyx.protocol.primitives import Address, Digest, Instant, RequestId, Secret

MODEL = Digest(hashlib.sha256(b"model").digest())


def operators(count: int) -> list[Address]:
    return [Address(hashlib.sha256(b"op%d" % i).digest()[:20]) for i in range(count)]


def secret(number: int) -> Secret:
    return Secret(hashlib.sha256(b"secret%d" % number).digest())


@given(st.integers(0, 40), st.integers(0, 8), st.integers(0, 10_000))
def test_the_draw_is_a_set_of_k_and_does_not_depend_on_order(count: int, k: int, epoch: int) -> None:
    """MKT-1: the same secret, model and epoch give the same candidates, however the directory is ordered."""
    people = operators(count)
    drawn = draw(secret(1), MODEL, epoch, people, k)
    assert drawn == draw(secret(1), MODEL, epoch, list(reversed(people)) + people[:3], k)
    assert len(drawn) == len(set(drawn)) == min(k, count)


def test_a_retry_never_redraws() -> None:
    """MKT-3: a proxy cannot refuse its way to an accomplice."""
    people = operators(30)
    assert {draw(secret(1), MODEL, 7, people, 3) for _ in range(20)} == {draw(secret(1), MODEL, 7, people, 3)}


def test_a_worker_that_leaves_moves_only_its_own_share() -> None:
    """MKT-2: rendezvous hashing; whoever did not have the leaver keeps its candidates."""
    people = operators(30)
    gone = people[4]
    for number in range(200):
        before = draw(secret(number), MODEL, 1, people, 3)
        after = draw(secret(number), MODEL, 1, [p for p in people if p != gone], 3)
        assert (before == after) == (gone not in before)


def test_every_worker_gets_its_share_of_clients() -> None:
    """MKT-1: over many clients the draw is even: no worker is out by more than half of its due."""
    people = operators(20)
    hits = Counter(who for number in range(2000) for who in draw(secret(number), MODEL, 1, people, 3))
    assert set(hits) == set(people)
    assert all(150 < count < 450 for count in hits.values())


def test_a_new_epoch_and_another_model_draw_anew() -> None:
    """MKT-2: epochs last an hour."""
    people = operators(30)
    draws = {draw(secret(1), MODEL, epoch, people, 3) for epoch in range(5)}
    draws.add(draw(secret(1), Digest.zero(), 0, people, 3))
    assert len(draws) == 6
    assert epoch_of(Instant.from_seconds(3599)) == 0
    assert epoch_of(Instant.from_seconds(3600)) == 1


def test_the_published_share_goes_out_at_k_one() -> None:
    """MKT-4: canaries at k = 1 look like anyone's; a retry of the same request id decides the same."""
    ids = [RequestId(hashlib.sha256(b"%d" % i).digest()[:16]) for i in range(5000)]
    single = [goes_single(secret(1), i, 1000) for i in ids]
    assert 400 < sum(single) < 600
    assert single == [goes_single(secret(1), i, 1000) for i in ids]
    assert not any(goes_single(secret(1), i, 0) for i in ids)
    assert all(goes_single(secret(1), i, 10_000) for i in ids)
