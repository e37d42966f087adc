# SPDX-License-Identifier: Apache-2.0
"""The table of one request's life."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.errors import LocalError
from bombyx.protocol.session import ENDS, TRANSITIONS, Event, Stage, advance


def play(*events: Event) -> Stage:
    stage = Stage.OFFERED
    for event in events:
        stage = advance(stage, event)
    return stage


def test_a_request_that_goes_well() -> None:
    """SES-1: offered, sealed, sent, answering, answered, settled."""
    frames = (Event.RECEIVE_FRAME,) * 3
    assert (
        play(Event.ACTION_SEAL, Event.ACTION_SEND, *frames, Event.RECEIVE_FINAL, Event.ACTION_SETTLE) is Stage.SETTLED
    )


def test_money_is_never_agreed_twice() -> None:
    """SES-1: a settled request takes nothing more."""
    done = play(Event.ACTION_SEAL, Event.ACTION_SEND, Event.RECEIVE_FRAME, Event.RECEIVE_FINAL, Event.ACTION_SETTLE)
    for event in Event:
        with pytest.raises(LocalError, match="SES-1"):
            advance(done, event)


def test_a_running_answer_is_not_settled_before_it_ends_or_is_cut() -> None:
    """SES-1: only ANSWERED and TRUNCATED lead to SETTLED."""
    allowed = {stage for stage, moves in TRANSITIONS.items() if Stage.SETTLED in moves.values()}
    assert allowed == {Stage.ANSWERED, Stage.TRUNCATED}


def test_the_same_bytes_may_be_sent_again_until_a_frame_comes() -> None:
    """SES-1: a retry keeps the request; once a frame was opened nothing is sent again."""
    assert play(Event.ACTION_SEAL, Event.ACTION_SEND, Event.ACTION_SEND) is Stage.SENT
    with pytest.raises(LocalError):
        play(Event.ACTION_SEAL, Event.ACTION_SEND, Event.RECEIVE_FRAME, Event.ACTION_SEND)


@given(st.lists(st.sampled_from(list(Event)), max_size=12))
def test_whatever_happens_an_end_stays_an_end(events: list[Event]) -> None:
    """SES-1: after an end nothing moves; every other stage can still end."""
    stage = Stage.OFFERED
    for event in events:
        try:
            following = advance(stage, event)
        except LocalError:
            continue
        assert stage not in ENDS
        stage = following


def test_every_stage_can_reach_an_end() -> None:
    """SES-1: nothing hangs for ever."""
    reaching = set(ENDS)
    while True:
        more = {stage for stage, moves in TRANSITIONS.items() if set(moves.values()) & reaching} | reaching
        if more == reaching:
            break
        reaching = more
    assert reaching == set(Stage)
