# SPDX-License-Identifier: Apache-2.0
"""Foreign bytes into every parser: a value, or a typed refusal; never another exception, never a pass."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bombyx.adapters.endorsements import expires
from bombyx.errors import AttestationError, MalformedMessage, Unavailable
from bombyx.protocol.attest import Archive, appraise, recognise, sgx, snp
from bombyx.protocol.attest.events import parse_event_log, write_event_log
from bombyx.protocol.attest.gpu import parse_gpu_evidence
from bombyx.protocol.attest.nras import parse_jwks, parse_tokens
from bombyx.protocol.attest.ocsp import parse_response
from bombyx.protocol.attest.rim import parse_rim
from bombyx.protocol.attest.tdx import parse_collateral, parse_quote

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
EVENTS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "imr": st.integers(-1, 5) | JSON,
            "event_type": st.sampled_from([0x0800_0001, 4, -1]) | JSON,
            "digest": st.text("0123456789abcdefxyz ", max_size=100) | JSON,
            "event": st.sampled_from(["compose-hash", "app-id", "a:b", "\udc00"]) | JSON,
            "event_payload": st.text("0123456789abcdef", max_size=100) | JSON,
            "version": st.integers(-1, 4) | JSON,
        },
    ),
    max_size=6,
)
PARSERS = [
    parse_quote,
    parse_collateral,
    parse_event_log,
    parse_gpu_evidence,
    sgx.parse_quote,
    snp.parse_quote,
    snp.parse_collateral,
    parse_tokens,
    parse_jwks,
    parse_response,
    parse_rim,
    recognise,
    Archive.decode,
]
NAMES = [f"{parse.__module__.rpartition('.')[2]}.{parse.__name__}" for parse in PARSERS]


@pytest.mark.parametrize("parse", PARSERS, ids=NAMES)
@given(raw=st.binary(max_size=2000))
def test_any_bytes(parse: Any, raw: bytes) -> None:
    """ATT-6.1."""
    try:
        parse(raw)
    except MalformedMessage:
        pass


@pytest.mark.parametrize("parse", PARSERS, ids=NAMES)
@given(document=JSON)
def test_any_json(parse: Any, document: Any) -> None:
    """ATT-6.1."""
    try:
        parse(orjson.dumps(document))
    except (MalformedMessage, orjson.JSONEncodeError):
        pass


@pytest.mark.parametrize("parse", PARSERS, ids=NAMES)
@pytest.mark.parametrize("raw", [b"[" * 200_000, b"\x00" * 600_000, b'{"evidence_list":' + b"[" * 5000], ids=len)
def test_deep_or_large(parse: Any, raw: bytes) -> None:
    """ATT-6.1: bounded before anything is decoded."""
    with pytest.raises(MalformedMessage):
        parse(raw)


@given(EVENTS)
def test_events_that_parse_are_written_back_alike(entries: list[dict[str, Any]]) -> None:
    """ATT-6.5: nothing read from a log is lost or invented."""
    try:
        events = parse_event_log(orjson.dumps(entries))
    except (MalformedMessage, orjson.JSONEncodeError):
        return
    again = parse_event_log(write_event_log(events))
    assert [event.measured() for event in again] == [event.measured() for event in events]


@given(raw=st.binary(max_size=300) | JSON.map(lambda value: repr(value).encode()))
def test_dates_of_any_endorsements(raw: bytes) -> None:
    """ATT-11: an unreadable date is a past one."""
    try:
        assert expires(raw) >= 0
    except Unavailable:
        pass


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_single_changed_byte_of_a_bundle_passes(scene: Any, data: st.DataObject) -> None:
    """ATT-6: everything in a bundle is signed, hashed, or compared, but for three places named below."""
    bundle = scene.make_bundle()
    raw = bundle.encode()
    position = data.draw(st.integers(0, len(raw) - 1))
    altered = bytearray(raw)
    altered[position] ^= data.draw(st.integers(1, 255))
    try:
        result = appraise(bytes(altered), scene.policy, now=scene.now, registered=scene.registered, beacon=scene.beacon)
    except AttestationError:
        return
    assert _where(bundle, raw, position) != "elsewhere"
    assert result.keyset == scene.make_keyset()  # a spelling changed; nothing that counts did


def _where(bundle: Any, raw: bytes, position: int) -> str:
    """Three places hold bytes nothing depends on."""
    places = {
        "line breaks of the PEM chain": bundle.quote[bundle.quote.index(b"-----BEGIN") :],
        "spaces and unread keys of the event log": bundle.event_log,
        "an issuer chain that is taken from the quote instead": bundle.endorsements,
    }
    for name, part in places.items():
        start = raw.index(part)
        if start <= position < start + len(part):
            return name
    return "elsewhere"
