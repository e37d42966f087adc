# SPDX-License-Identifier: Apache-2.0
"""dstack's binary attestation: what `Attest` answers is verified as any quote is, and nothing else is taken for one."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.attest.providers import ENDORSEMENTS, NOW, PLATFORM, POLICY

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.dstack_server import SimulatedGuest
from bombyx.adapters.dstack_server.methods import GuestAgent
from bombyx.adapters.simulator import SimulatedImage
from bombyx.errors import MalformedMessage
from bombyx.protocol.attest import AtHand, Report, Verdict, examine, recognise
from bombyx.protocol.attest.dstack_binary import BinaryAttestation, parse_attestation
from bombyx.protocol.attest.events import RUNTIME_EVENT, Event

IMAGE = SimulatedImage.of("agent")
DATA = b"what the caller asked for".ljust(64, b"\0")
EVENTS = (
    Event(register=0, kind=1, digest=b"\x11" * 48, name="", payload=b""),
    Event(register=3, kind=RUNTIME_EVENT, digest=b"", name="app-id", payload=b"\x22" * 20),
)
THIRD, NINTH = ((n).to_bytes(4, "little") + RUNTIME_EVENT.to_bytes(4, "little") for n in (3, 9))
SMALL = BinaryAttestation(quote=b"q" * 70, events=EVENTS, report_data=DATA, config="{}").encode()


async def attested() -> bytes:
    agent = GuestAgent(SimulatedGuest(PLATFORM, IMAGE), SystemClock())
    answer = await agent.current["Attest"]({"report_data": DATA.hex()})
    return orjson.dumps(answer)


def verdict(answer: bytes) -> Verdict:
    report = recognise(answer)
    assert isinstance(report, Report) and report.form == "dstack attestation"
    policy = replace(POLICY, reference_values=(IMAGE.reference_value(),), require_gpu=False)
    at_hand = AtHand(endorsements=(ENDORSEMENTS,), report_data=DATA)
    return examine(report, policy, now=NOW, at_hand=at_hand).verdict


async def test_what_attest_answers_is_verified() -> None:
    """ENC-8, ATT-13: quote, event log and configuration out of the binary form; ten steps, as any quote."""
    assert verdict(await attested()) is Verdict.VERIFIED


async def test_an_attestation_with_another_event_in_it() -> None:
    """ATT-13.5."""
    raw = bytes.fromhex(orjson.loads(await attested())["attestation"])
    read = parse_attestation(raw)
    assert read.encode() == raw and read.report_data == DATA
    events = tuple(replace(e, payload=bytes(20)) if e.name == "app-id" else e for e in read.events)
    changed = replace(read, events=events).encode()
    assert verdict(orjson.dumps({"attestation": changed.hex()})) is Verdict.REFUSED


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "ends early"),
        (b"\x01" + SMALL[1:], "not of version 0"),
        (b"\x00\x01" + SMALL[2:], "not of a plain TDX machine"),
        (b"\x83\xa7version\x01", "MessagePack"),
        (SMALL[:-1], "ends early"),
        (SMALL + b"\0", "after its end"),
        (b"\x00\x00\x03", "beyond all bounds"),
        (b"\x00\x00\x00\xfe\xff\xff\xff", "events, at most"),
        (SMALL.replace(b"app-id", b"\xff" * 6), "a text that is none"),
        (SMALL.replace(THIRD, NINTH), "register"),
        (bytes(2 << 20), "at most"),
    ],
    ids=range(11),
)
def test_what_is_no_attestation(raw: bytes, why: str) -> None:
    """ATT-6.1: and says what it is, where it is something else of dstack's."""
    assert parse_attestation(SMALL).events[1].name == "app-id"
    with pytest.raises(MalformedMessage, match=why):
        parse_attestation(raw)


def test_an_attestation_of_something_else_than_a_quote() -> None:
    """ATT-6.1."""
    with pytest.raises(MalformedMessage, match="without a quote"):
        recognise(orjson.dumps({"attestation": SMALL.hex()}))


@given(st.binary(max_size=300), st.integers(0, len(SMALL) - 1))
def test_any_bytes_are_read_or_refused(data: bytes, at: int) -> None:
    """ATT-6.1: what is read is written back alike."""
    for raw in (data, SMALL[:at] + data, SMALL[:at] + data[:1] + SMALL[at + 1 :]):
        try:
            read = parse_attestation(raw)
        except MalformedMessage:
            continue
        assert parse_attestation(read.encode()).quote == read.quote
