# SPDX-License-Identifier: Apache-2.0
"""What sizes, counts and times of frames tell: nothing of the words, and of their number to 12 %."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from bombyx.errors import MalformedMessage
from bombyx.protocol.seal import BhttpResponseReader, Body, Frame, Head, Shaper, Trailers, pad_request, padme
from bombyx.protocol.seal.bhttp import Request as HttpRequest
from bombyx.protocol.seal.bhttp import decode_request, encode_request
from bombyx.protocol.seal.shape import filler
from bombyx.protocol.wire.request import Shape

SSE = ((b"content-type", b"text/event-stream"),)
JSON = ((b"content-type", b"application/json"),)
USAGE = ((b"bombyx-usage", b"x" * 300),)
DONE = b"data: [DONE]\n\n"


def event(text: str) -> bytes:
    """One event as an OpenAI server writes it."""
    choice = {"index": 0, "delta": {"content": text}}
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice]}
    return f"data: {json.dumps(chunk)}\n\n".encode()


@dataclass
class Watcher:
    """Sits on the wire: writes down when a frame passed and how long it was. Also keeps what the client reads."""

    shaper: Shaper
    seen: list[tuple[int, int]] = field(default_factory=list)  # (tick, bytes)
    frames: list[Frame] = field(default_factory=list)
    content_at: list[tuple[int, bytes]] = field(default_factory=list)  # (tick, content the client got)
    events: list[object] = field(default_factory=list)
    reader: BhttpResponseReader = field(default_factory=BhttpResponseReader)

    def take(self, tick: int, frames: tuple[Frame, ...]) -> None:
        for frame in frames:
            self.seen.append((tick, len(frame.plaintext)))
            self.frames.append(frame)
            for item in self.reader.feed(frame.plaintext):
                self.events.append(item)
                if isinstance(item, Body):
                    self.content_at.append((tick, item.data))

    @property
    def content(self) -> bytes:
        return b"".join(data for _, data in self.content_at)


def play(
    shape: Shape,
    script: dict[int, list[bytes]],
    *,
    end: int,
    size: int = 1024,
    trailers: tuple[tuple[bytes, bytes], ...] = USAGE,
) -> Watcher:
    """An engine that says `script[tick]` just after each tick and ends at tick `end`."""
    watcher = Watcher(Shaper(shape, size))
    watcher.shaper.begin(200, SSE, streamed=True)
    for tick in range(end + 2000):
        watcher.take(tick, watcher.shaper.tick())
        for data in script.get(tick, ()):
            watcher.shaper.put(data)
            watcher.take(tick, watcher.shaper.ready())
        if tick == end:
            watcher.shaper.end(trailers)
            watcher.take(tick, watcher.shaper.ready())
        if watcher.shaper.finished:
            break
    assert watcher.shaper.finished
    watcher.reader.finish()
    return watcher


def as_applications_read(content: bytes) -> list[str]:
    """What the stock openai package's own decoder gives."""
    return [sse.data for sse in SSEDecoder().iter_bytes(iter([content]))]


# --- constant --------------------------------------------------------------------------------------------------------


def test_two_answers_of_like_length_look_the_same() -> None:
    """SEAL-8: other words, in other pieces, at other times: sizes, counts and times on the wire are equal."""
    terse = {tick: [event("a")] for tick in range(0, 100, 10)} | {100: [DONE]}
    wordy = {tick: [event("antidisestablishmentarianism ")] for tick in range(100)} | {100: [DONE]}
    bursty = {50: [event("many words at once ")] * 60, 100: [DONE]}
    seen = [play(Shape.CONSTANT, script, end=100).seen for script in (terse, wordy, bursty)]
    assert seen[0] == seen[1] == seen[2]


def test_a_watcher_guesses_no_better_than_by_chance() -> None:
    """SEAL-8: over many answers of like length, counts, sizes and times have one value: there is nothing to learn
    from.
    """
    chance = random.Random(7)
    views = set()
    for _ in range(60):
        script = {
            chance.randrange(0, 240): [event("x" * chance.randrange(1, 60)) for _ in range(chance.randrange(4))]
            for _ in range(200)
        }
        views.add(tuple(play(Shape.CONSTANT, script, end=chance.randrange(240, 250)).seen))
    assert len(views) == 1


def test_one_full_frame_every_tick_from_the_first_to_the_last() -> None:
    """SEAL-8: no tick without a frame, no tick with two, no frame between ticks; only the last is final."""
    watcher = play(Shape.CONSTANT, {3: [event("hello")], 90: [DONE]}, end=90)
    ticks = [tick for tick, _ in watcher.seen]
    assert ticks == list(range(len(ticks)))
    assert {size for _, size in watcher.seen} == {1024 - 16}
    assert [frame.final for frame in watcher.frames] == [False] * (len(ticks) - 1) + [True]


@pytest.mark.parametrize("end", [0, 1, 5, 37, 100, 333, 1000])
def test_the_count_of_frames_is_a_padme_size(end: int) -> None:
    """SEAL-8: how long an answer took shows to 12 % at most."""
    count = len(play(Shape.CONSTANT, {0: [DONE]}, end=end).seen)
    assert count == padme(count)
    assert count <= (end + 3) * 1.12 + 1


def test_nothing_is_early_and_done_is_not_late() -> None:
    """SEAL-8: content waits for the tick after it; `[DONE]` does not wait for the padding."""
    watcher = play(Shape.CONSTANT, {10: [event("hello")], 130: [DONE]}, end=130)
    hello = next(tick for tick, data in watcher.content_at if b"hello" in data)
    done = next(tick for tick, data in watcher.content_at if b"[DONE]" in data)
    assert hello == 11
    assert done == 131
    assert watcher.seen[-1][0] > 133


def test_backlog_is_carried_over_in_order() -> None:
    """SEAL-8: a burst larger than a frame leaves over several ticks, whole and in order."""
    burst = [event(f"word {number} ") for number in range(200)]
    watcher = play(Shape.CONSTANT, {0: burst, 20: [DONE]}, end=20)
    assert as_applications_read(watcher.content) == as_applications_read(b"".join(burst) + DONE)


@given(
    words=st.lists(st.tuples(st.integers(0, 30), st.text(max_size=80)), max_size=40),
    size=st.sampled_from([64, 100, 256, 1024]),
)
def test_filler_is_legal_sse(words: list[tuple[int, str]], size: int) -> None:
    """SEAL-8: a stock decoder reads the same events with filler as without, at any frame size and any pace."""
    words.sort(key=lambda word: word[0])
    script: dict[int, list[bytes]] = {}
    for tick, text in words:
        script.setdefault(tick, []).append(event(text))
    script.setdefault(31, []).append(DONE)
    for shape in Shape:
        watcher = play(shape, script, end=31, size=size)
        said = b"".join(b"".join(script[tick]) for tick in sorted(script))
        assert as_applications_read(watcher.content) == as_applications_read(said)
        assert watcher.events[0] == Head(status=200, headers=SSE)
        assert watcher.events[-1] == Trailers(fields=USAGE)


@given(st.integers(0, 3000))
def test_filler_has_any_size(size: int) -> None:
    """SEAL-8: exactly as many bytes as asked for, none of them an event."""
    assert len(filler(size)) == size
    assert as_applications_read(DONE + filler(size) + DONE) == ["[DONE]", "[DONE]"]


def test_a_piece_of_an_event_waits_for_the_rest() -> None:
    """SEAL-8: filler never lands inside an event, even when an engine writes half of one."""
    whole = event("cut in two")
    watcher = play(Shape.CONSTANT, {0: [whole[:30]], 5: [whole[30:], DONE]}, end=8)
    assert as_applications_read(watcher.content) == as_applications_read(whole + DONE)
    assert not any(b"data" in data for tick, data in watcher.content_at if tick <= 5)


def test_an_event_does_not_wait_for_the_next_one() -> None:
    """SEAL-8: wherever frames cut it, also between its two line breaks, an event leaves in the ticks its bytes take."""
    for length in range(1, 260):
        said = event("x" * length)
        watcher = play(Shape.CONSTANT, {3: [said]}, end=20, size=128)
        needed = -(-len(said) // (128 - 16 - 2))
        arrived = b"".join(data for tick, data in watcher.content_at if tick <= 3 + needed + 1)
        assert as_applications_read(arrived) == as_applications_read(said)


@given(st.lists(st.integers(1, 40), min_size=1))
def test_events_written_in_any_pieces(sizes: list[int]) -> None:
    """SEAL-8: an engine's reads need not end where its events do."""
    said = b"".join(event(f"word {number}") for number in range(12)).replace(b"\n\n", b"\r\n\r\n", 5) + DONE
    script: dict[int, list[bytes]] = {}
    at = turn = 0
    while at < len(said):
        size = sizes[turn % len(sizes)]
        script.setdefault(turn // 3, []).append(said[at : at + size])
        at, turn = at + size, turn + 1
    for shape in Shape:
        watcher = play(shape, script, end=turn // 3 + 1, size=256)
        assert as_applications_read(watcher.content) == as_applications_read(said)


def test_an_engine_that_ends_inside_an_event_still_ends() -> None:
    """SEAL-8: what is left goes out with the end."""
    watcher = play(Shape.CONSTANT, {0: [b"data: half"]}, end=2)
    assert watcher.content.endswith(b"data: half")


def test_a_body_that_is_not_streamed_is_padded_whole() -> None:
    """SEAL-8: nothing before the end, then a Padme number of full frames, at once."""
    for size in (10, 5000, 100_000):
        watcher = Watcher(Shaper(Shape.CONSTANT, 1024))
        watcher.shaper.begin(200, JSON, streamed=False)
        watcher.shaper.put(b"{" + b" " * size)
        watcher.take(0, watcher.shaper.ready() + watcher.shaper.tick())
        assert watcher.seen == []
        watcher.shaper.end(USAGE)
        watcher.take(0, watcher.shaper.ready())
        assert watcher.shaper.finished
        assert {length for _, length in watcher.seen} == {1008}
        assert len(watcher.seen) == padme(len(watcher.seen))
        assert watcher.content == b"{" + b" " * size
        assert watcher.shaper.ready() == watcher.shaper.tick() == ()


# --- bucket and off --------------------------------------------------------------------------------------------------


def test_buckets_go_when_full_or_at_the_tick() -> None:
    """SEAL-8: full frames at once, the rest at the next tick, nothing while idle; all of one size."""
    shaper = Shaper(Shape.BUCKET, 256)
    shaper.begin(200, SSE, streamed=True)
    assert len(shaper.tick()) == 1  # the head
    assert shaper.tick() == ()
    shaper.put(event("hi"))
    assert shaper.ready() == ()
    assert len(shaper.tick()) == 1
    assert shaper.tick() == ()
    shaper.put(event("x" * 500))
    assert len(shaper.ready()) >= 2
    shaper.end(USAGE)
    rest = shaper.ready()
    assert [frame.final for frame in rest] == [False] * (len(rest) - 1) + [True]
    assert {len(frame.plaintext) for frame in rest} == {240}


def test_off_sends_at_once_and_as_it_is() -> None:
    """SEAL-8: no padding, no waiting."""
    shaper = Shaper(Shape.OFF, 1024)
    shaper.begin(200, SSE, streamed=True)
    shaper.put(event("hi"))
    (frame,) = shaper.ready()
    assert frame.plaintext.endswith(event("hi"))
    assert shaper.tick() == shaper.ready() == ()
    shaper.end(())
    assert shaper.ready() == (Frame(b"\x00\x00", final=True),)
    assert shaper.finished


def test_off_splits_what_no_receiver_need_take() -> None:
    """SEAL-7: chunks of at most 16 384 bytes."""
    shaper = Shaper(Shape.OFF, 1024)
    shaper.begin(200, JSON, streamed=False)
    shaper.put(bytes(50_000))
    shaper.end(())
    frames = shaper.ready()
    assert max(len(frame.plaintext) for frame in frames) == 16_384
    assert [frame.final for frame in frames] == [False, False, False, True]


@pytest.mark.parametrize("size", [0, 63, 16_401, 1 << 40])
def test_frame_sizes_are_bounded(size: int) -> None:
    """SEAL-8: Meta names the size; not every size is served."""
    with pytest.raises(MalformedMessage, match="SEAL-8"):
        Shaper(Shape.CONSTANT, size)


def test_misuse_is_our_own_mistake() -> None:
    """SEAL-8: one head, one end, nothing after it."""
    shaper = Shaper(Shape.CONSTANT, 1024)
    shaper.begin(200, SSE, streamed=True)
    with pytest.raises(ValueError, match="one head"):
        shaper.begin(200, SSE, streamed=True)
    shaper.end()
    with pytest.raises(ValueError, match="after the end"):
        shaper.put(b"more")
    with pytest.raises(ValueError, match="ends once"):
        shaper.end()


# --- requests --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**7))
def test_padme_costs_at_most_twelve_percent(size: int) -> None:
    """SEAL-13: never smaller, never more than 12 % larger, and stable."""
    padded = padme(size)
    assert size <= padded <= size * 1.12 + 1
    assert padme(padded) == padded


def test_padme_leaves_few_sizes() -> None:
    """SEAL-13: a million lengths become a few hundred."""
    assert len({padme(size) for size in range(0, 1_000_000, 7)}) < 300


@given(st.binary(max_size=5000))
def test_a_padded_request_is_the_same_request(content: bytes) -> None:
    """SEAL-13: short prompts all look alike."""
    request = HttpRequest(method=b"POST", path=b"/v1/chat/completions", content=content)
    padded = pad_request(encode_request(request))
    assert decode_request(padded) == request
    assert len(padded) == 1024 or len(padded) == padme(len(padded)) > 1024
