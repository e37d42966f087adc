# SPDX-License-Identifier: Apache-2.0
"""Endorsements from files: fresh ones come out unchanged, others not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bombyx.adapters.endorsements import CachedEndorsements, FileEndorsements, expires, platform_of
from bombyx.errors import Unavailable
from bombyx.protocol.primitives import Instant

DAY = 86_400


class HandClock:
    """A clock that stands until it is moved."""

    def __init__(self, now: Instant) -> None:
        self.at = now

    def now(self) -> Instant:
        return self.at

    def monotonic(self) -> float:
        return self.at / 1000

    async def sleep(self, seconds: float) -> None:
        self.at = self.at.plus(seconds=seconds)


class CountingSource:
    """The simulator's maker, counting how often it is asked; unreachable when `down`."""

    def __init__(self, platform: Any, clock: HandClock) -> None:
        self.platform, self.clock, self.asked, self.down = platform, clock, 0, False

    async def endorsements(self, quote: bytes) -> bytes:
        self.asked += 1
        if self.down:
            raise Unavailable("the Endorser does not answer")
        endorsements: bytes = self.platform.endorsements(self.clock.now())
        return endorsements


@pytest.fixture
def clock(scene: Any) -> HandClock:
    return HandClock(scene.now)


def test_the_first_date_to_pass_is_the_end(scene: Any) -> None:
    """ATT-11: revocation lists may run out before TCB info does, or after."""
    for settings in ({"crl_days": 3}, {"collateral_days": 3}):
        endorsements = scene.platform.with_settings(**settings).endorsements(scene.now)
        assert expires(endorsements) == scene.now.plus(seconds=3 * DAY)


async def test_a_file_is_given_as_it_is_until_it_expires(scene: Any, clock: HandClock, tmp_path: Path) -> None:
    """ATT-11: exactly the bytes the Endorser signed; past their date, `Unavailable`."""
    path, signed = tmp_path / "collateral.json", scene.platform.endorsements(scene.now)
    path.write_bytes(signed)
    source = FileEndorsements(path, clock)
    assert await source.endorsements(b"") == signed
    await clock.sleep(30 * DAY)
    with pytest.raises(Unavailable, match="expired"):
        await source.endorsements(b"")


@pytest.mark.parametrize("content", [None, b"", b"nonsense", b"[" * 300_000])
async def test_an_absent_or_unreadable_file_is_unavailable(
    clock: HandClock, tmp_path: Path, content: bytes | None
) -> None:
    """ATT-11."""
    path = tmp_path / "collateral.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Unavailable):
        await FileEndorsements(path, clock).endorsements(b"")


async def test_a_cache_asks_once_and_again_before_the_end(scene: Any, clock: HandClock, tmp_path: Path) -> None:
    """ATT-11: one question a platform and month; a second process finds the answer on disk."""
    source, quote = CountingSource(scene.platform, clock), scene.make_bundle().quote
    cache = CachedEndorsements(source, tmp_path / "cache", clock)
    first = await cache.endorsements(quote)
    assert await CachedEndorsements(source, tmp_path / "cache", clock).endorsements(quote) == first
    assert source.asked == 1
    await clock.sleep(30 * DAY - 600)
    assert await cache.endorsements(quote) != first
    assert source.asked == 2


async def test_a_cache_gives_nothing_stale_when_its_source_is_down(
    scene: Any, clock: HandClock, tmp_path: Path
) -> None:
    """ATT-11."""
    source, quote = CountingSource(scene.platform, clock), scene.make_bundle().quote
    cache = CachedEndorsements(source, tmp_path, clock)
    await cache.endorsements(quote)
    await clock.sleep(31 * DAY)
    source.down = True
    with pytest.raises(Unavailable):
        await cache.endorsements(quote)


async def test_a_cache_that_cannot_be_written_still_answers(scene: Any, clock: HandClock, tmp_path: Path) -> None:
    """ATT-11."""
    (tmp_path / "file").write_text("in the way")
    cache = CachedEndorsements(CountingSource(scene.platform, clock), tmp_path / "file" / "cache", clock)
    assert await cache.endorsements(scene.make_bundle().quote)


def test_two_platforms_do_not_share_a_file(scene: Any) -> None:
    """ATT-11: nor does a quote that cannot be parsed choose a file's name."""
    mine = scene.make_bundle().quote
    scene.platform = type(scene.platform).create(seed=b"somebody else's seed", now=scene.now)
    assert platform_of(mine) != platform_of(scene.make_bundle().quote)
    with pytest.raises(Unavailable):
        platform_of(b"../../etc/passwd")
