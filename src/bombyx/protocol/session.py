# SPDX-License-Identifier: Apache-2.0
"""One request's life, as a table: offered .. settled. And the one door from an appraisal to a key (spec SES).

The table is the client's view; a proxy's and a worker's are parts of it. What a stage does not allow is refused, so
money is never agreed twice and nothing is sealed to a key that was not appraised.

Always: SETTLED, REFUSED and FROZEN are ends; only an ANSWERED request is settled; a TRUNCATED one is settled at its
last checkpoint; a request that was SENT may be sent again (same id, same bytes), one that is ANSWERING never.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from bombyx.errors import AttestationError, LocalError
from bombyx.protocol.attest import AttestationResult
from bombyx.protocol.primitives import Digest, Instant
from bombyx.protocol.seal import Kem, KeyConfig, parse_key_configs

KEM_PREFERENCE: Final = (Kem.MLKEM768_X25519, Kem.X25519)


class Stage(StrEnum):
    """Where a request stands."""

    OFFERED = "offered"  # the application asked; nothing is drawn yet
    SEALED = "sealed"  # candidates drawn, request sealed, cap reserved and written
    SENT = "sent"  # bytes left for the proxy
    ANSWERING = "answering"  # a candidate's first frame was opened
    ANSWERED = "answered"  # final frame opened and final receipt checked
    TRUNCATED = "truncated"  # the stream stopped before its final frame
    SETTLED = "settled"  # the charge is agreed and written
    REFUSED = "refused"  # nothing was delivered and nothing is owed
    FROZEN = "frozen"  # proxy or worker contradicted what was delivered: evidence kept, channel frozen


class Event(StrEnum):
    """`Action*` is ours, `Receive*` a peer's, `Observe*` the world's."""

    ACTION_SEAL = "action seal"
    ACTION_SEND = "action send"
    ACTION_SETTLE = "action settle"
    ACTION_CANCEL = "action cancel"
    RECEIVE_FRAME = "receive frame"
    RECEIVE_FINAL = "receive final"
    RECEIVE_REFUSAL = "receive refusal"
    RECEIVE_CONTRADICTION = "receive contradiction"
    OBSERVE_CUT = "observe cut"


_S, _E = Stage, Event
TRANSITIONS: Final[dict[Stage, dict[Event, Stage]]] = {
    _S.OFFERED: {_E.ACTION_SEAL: _S.SEALED, _E.ACTION_CANCEL: _S.REFUSED},
    _S.SEALED: {_E.ACTION_SEND: _S.SENT, _E.ACTION_CANCEL: _S.REFUSED},
    _S.SENT: {
        _E.ACTION_SEND: _S.SENT,
        _E.RECEIVE_FRAME: _S.ANSWERING,
        _E.RECEIVE_REFUSAL: _S.REFUSED,
        _E.RECEIVE_CONTRADICTION: _S.FROZEN,
        _E.OBSERVE_CUT: _S.TRUNCATED,
        _E.ACTION_CANCEL: _S.TRUNCATED,
    },
    _S.ANSWERING: {
        _E.RECEIVE_FRAME: _S.ANSWERING,
        _E.RECEIVE_FINAL: _S.ANSWERED,
        _E.RECEIVE_CONTRADICTION: _S.FROZEN,
        _E.OBSERVE_CUT: _S.TRUNCATED,
        _E.ACTION_CANCEL: _S.TRUNCATED,
    },
    _S.ANSWERED: {_E.ACTION_SETTLE: _S.SETTLED, _E.RECEIVE_CONTRADICTION: _S.FROZEN},
    _S.TRUNCATED: {_E.ACTION_SETTLE: _S.SETTLED, _E.RECEIVE_CONTRADICTION: _S.FROZEN},
    _S.SETTLED: {},
    _S.REFUSED: {},
    _S.FROZEN: {},
}
ENDS: Final = frozenset(stage for stage, moves in TRANSITIONS.items() if not moves)


def advance(stage: Stage, event: Event) -> Stage:
    """The stage after `event`. Raises `LocalError` for what the table does not allow: the fault is ours (SES-1)."""
    following = TRANSITIONS[stage].get(event)
    if following is None:
        raise LocalError(f"a request that is {stage} does not take `{event}`", rule="SES-1")
    return following


def recipient(result: AttestationResult, now: Instant) -> KeyConfig:
    """The key a request may be sealed to: out of an appraised keyset, and only while the appraisal holds (SES-2).

    Post-quantum first. Raises `AttestationError` when the appraisal is over or its keyset holds no key we can use.
    """
    if now >= result.until:
        raise AttestationError("the appraisal has run out", steps=result.steps, rule="SES-2")
    by_kem = {config.kem: config for config in parse_key_configs(result.key_configs)}
    for kem in KEM_PREFERENCE:
        if kem in by_kem:
            return by_kem[kem]
    raise AttestationError("the keyset holds no key of a known KEM", steps=result.steps, rule="SES-2")


def holds_candidate(result: AttestationResult, candidate: Digest) -> bool:
    """Whether `candidate` names a key of this appraised keyset (SES-3)."""
    return any(config.candidate_id() == candidate for config in parse_key_configs(result.key_configs))
