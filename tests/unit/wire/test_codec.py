# SPDX-License-Identifier: Apache-2.0
"""Every CBOR message: one spelling, typed fields, bounded, and nothing foreign crashes the reader."""

from __future__ import annotations

import dataclasses
import enum
import importlib
import pkgutil
import sys
from typing import Any, get_args, get_origin, get_type_hints

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bombyx.protocol.wire as wire
from bombyx.errors import MalformedMessage
from bombyx.protocol.primitives import Address, Amount, Digest, Instant, RequestId
from bombyx.protocol.wire.audit import AuditBlock, AuditMode, SamplerBlock, SeedSource
from bombyx.protocol.wire.codec import MAX_ITEMS, Message
from bombyx.protocol.wire.receipt import ChoiceIds, SignedReceipt, UsageOpening
from bombyx.protocol.wire.request import Meta, Payment, SignedVoucher
from bombyx.protocol.wire.scanning import scanner
from bombyx.protocol.wire.tokens import TokenTable

for _module in pkgutil.iter_modules(wire.__path__, wire.__name__ + "."):
    importlib.import_module(_module.name)
# A slotted dataclass is made twice; only the one its module holds is meant.
ALL = [cls for cls in Message.__subclasses__() if getattr(sys.modules[cls.__module__], cls.__name__, None) is cls]
MESSAGES = sorted((cls for cls in ALL if cls is not TokenTable), key=lambda cls: cls.TAG)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Whatever a field of this type may hold."""
    origin = get_origin(hint)
    if origin is tuple:
        return st.lists(values(get_args(hint)[0]), max_size=3).map(tuple)
    if origin is not None:
        inner = next(arg for arg in get_args(hint) if arg is not type(None))
        return st.none() | values(inner)
    if issubclass(hint, Message):
        return messages(hint)
    if issubclass(hint, enum.Enum):
        return st.sampled_from(list(hint))
    if hint in (Digest, Address, RequestId):
        return st.binary(min_size=hint.SIZE, max_size=hint.SIZE).map(hint)
    simple = {
        bool: st.booleans(),
        bytes: st.binary(max_size=40),
        str: st.text(max_size=20),
        Instant: st.integers(0, 2**63 - 1).map(Instant),
        Amount: st.integers(0, 2**128 - 1).map(Amount),
    }
    return simple.get(hint, st.integers(0, 2**32 - 1))


SAMPLERS = st.builds(
    SamplerBlock,
    algorithm=st.text(max_size=20),
    temperature_e6=st.integers(1, 2_000_000),
    top_p_e6=st.integers(1, 1_000_000),
    top_k=st.integers(1, 64),
    presence_e6=st.integers(0, 2_000_000),
    frequency_e6=st.integers(0, 2_000_000),
    max_output=st.integers(0, 2**32 - 1),
    seed_source=st.sampled_from([SeedSource.JOINT, SeedSource.APPLICATION]),
    stop=st.lists(st.text(max_size=8), max_size=4).map(tuple),
)


def audit_blocks() -> st.SearchStrategy[Any]:
    """Those that can be audited have a sampler, the others a reason."""
    hints = get_type_hints(AuditBlock)
    fields = {f.name: values(hints[f.name]) for f in dataclasses.fields(AuditBlock)} | {"nonce": st.binary(max_size=32)}
    seeded = fields | {"mode": st.just(AuditMode.SEEDED), "why": st.just(""), "sampler": SAMPLERS}
    none = fields | {"mode": st.just(AuditMode.NONE), "why": st.text(min_size=1, max_size=9), "sampler": st.none()}
    return st.builds(AuditBlock, **seeded) | st.builds(AuditBlock, **none)


def messages(cls: type[Message]) -> st.SearchStrategy[Any]:
    if cls is SamplerBlock:
        return SAMPLERS
    if cls is AuditBlock:
        return audit_blocks()
    hints = get_type_hints(cls)
    fields = {f.name: values(hints[f.name]) for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return st.builds(cls, **fields)


any_message = st.sampled_from(MESSAGES).flatmap(messages)
cbor_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.binary(max_size=40)
    | st.text(max_size=10)
    | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10) | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


def test_every_message_has_a_tag_of_its_own() -> None:
    """WIRE-1: no signed or hashed message can be read as another."""
    tags = [cls.TAG for cls in ALL]
    assert 0 not in tags
    assert len(set(tags)) == len(tags)


@given(any_message)
def test_what_was_encoded_is_decoded(message: Message) -> None:
    """WIRE-1: decode(encode(m)) == m, for every message of the protocol."""
    assert type(message).decode(message.encode()) == message
    assert message.digest() == type(message).decode(message.encode()).digest()


@given(any_message, st.sampled_from(MESSAGES))
def test_no_message_is_read_as_another(message: Message, other: type[Message]) -> None:
    """WIRE-1."""
    if type(message) is not other:
        with pytest.raises(MalformedMessage):
            other.decode(message.encode())


@given(any_message, st.data())
def test_a_changed_byte_is_refused_or_means_something_else(message: Message, data: st.DataObject) -> None:
    """WIRE-1: encode(decode(b)) == b for every b that is accepted at all."""
    raw = bytearray(message.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = type(message).decode(bytes(raw))
    except MalformedMessage:
        return
    assert found.encode() == bytes(raw)


@given(st.sampled_from(MESSAGES), st.binary(max_size=200))
def test_garbage_is_a_malformed_message(cls: type[Message], garbage: bytes) -> None:
    """WIRE-1: whatever the bytes, the reader raises its own error and nothing else."""
    with pytest.raises(MalformedMessage):
        cls.decode(garbage)


@given(any_message, cbor_values, st.data())
def test_fields_of_the_wrong_type_are_refused(message: Message, value: Any, data: st.DataObject) -> None:
    """WIRE-3: any CBOR value in the place of any field, in canonical form."""
    decoded = cbor2.loads(message.encode())
    fields = dict(decoded.value)
    if not fields:
        return
    fields[data.draw(st.sampled_from(sorted(fields)))] = value
    raw = cbor2.dumps(cbor2.CBORTag(decoded.tag, fields), canonical=True)
    try:
        found = type(message).decode(raw)
    except MalformedMessage:
        return
    assert found.encode() == raw


def voucher() -> SignedVoucher:
    return SignedVoucher(channel=Digest.zero(), ceiling=7, signature=b"\x01")


def respell(change: Any, **options: Any) -> bytes:
    fields = dict(cbor2.loads(voucher().encode()).value)
    change(fields)
    return cbor2.dumps(cbor2.CBORTag(SignedVoucher.TAG, fields), **{"canonical": True, **options})


OTHER_SPELLINGS = {
    "a field more": respell(lambda f: f.update(more=1)),
    "a field less": respell(lambda f: f.pop("ceiling")),
    "another order": respell(lambda f: f.update(channel=f.pop("channel")), canonical=False),
    "something behind": voucher().encode() + b"\x00",
    "a negative number": respell(lambda f: f.update(ceiling=-1)),
    "a boolean for a number": respell(lambda f: f.update(ceiling=True)),
    "a digest too short": respell(lambda f: f.update(channel=bytes(31))),
    "text for bytes": respell(lambda f: f.update(signature="x")),
    "a long form of a small number": voucher().encode().replace(b"gceiling\x07", b"gceiling\x18\x07"),
    "a field twice": voucher().encode().replace(b"\xa3", b"\xa4", 1) + b"gceiling\x07",
    "indefinite length": voucher().encode().replace(b"\xa3", b"\xbf", 1) + b"\xff",
    "cut short": voucher().encode()[:-1],
    "nothing": b"",
    "deeply nested": b"\x81" * 10_000,
    "a promise of more than there is": b"\xd9\x69\x89\xbb" + b"\xff" * 8,
    "a shared reference": cbor2.dumps(cbor2.CBORTag(29, 0)),
}


@pytest.mark.parametrize("spelling", OTHER_SPELLINGS, ids=str)
def test_another_spelling_is_refused(spelling: str) -> None:
    """WIRE-1, WIRE-3: a message has one encoding, so that its digest is its name."""
    with pytest.raises(MalformedMessage):
        SignedVoucher.decode(OTHER_SPELLINGS[spelling])


def test_sizes_are_checked_before_anything_is_decoded() -> None:
    """WIRE-2."""
    for cls in (Meta, Payment, SignedReceipt):
        with pytest.raises(MalformedMessage, match="WIRE-2"):
            cls.decode(bytes(cls.MAX_SIZE + 1))


def test_lists_are_bounded() -> None:
    """WIRE-3: a list that passes the size limit may still be too long."""
    long = cbor2.dumps(cbor2.CBORTag(ChoiceIds.TAG, {"ids": [0] * (MAX_ITEMS + 1), "finish": ""}), canonical=True)
    if MAX_ITEMS < len(long) <= ChoiceIds.MAX_SIZE:
        with pytest.raises(MalformedMessage, match="WIRE-3"):
            ChoiceIds.decode(long)


def test_an_opening_shows_no_ids_in_errors() -> None:
    """WIRE-3: messages of errors hold no content."""
    bad = cbor2.dumps(cbor2.CBORTag(UsageOpening.TAG, {"v": "a secret word"}), canonical=True)
    with pytest.raises(MalformedMessage) as error:
        UsageOpening.decode(bad)
    assert "secret" not in str(error.value)


@given(any_message, st.data())
def test_the_short_way_and_the_long_way_read_the_same(message: Message, data: st.DataObject) -> None:
    """WIRE-1: what the scanner takes is what the general reader finds, and it takes what is canonical."""
    cls, raw = type(message), bytearray(message.encode())
    assert scanner(cls)(bytes(raw)) is not None or _numbers_are_large(message)  # type: ignore[arg-type]
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    found = scanner(cls)(bytes(raw[: data.draw(st.integers(0, len(raw)))]))  # type: ignore[arg-type]
    if found is not None:
        assert found == cls._read(found.encode())
    found = scanner(cls)(bytes(raw))  # type: ignore[arg-type]
    if found is not None:
        assert found == cls._read(bytes(raw))


def _numbers_are_large(value: object) -> bool:
    """Whether a message holds what is left to the long way: more than 64 bits, or an instant of early 1970."""
    if isinstance(value, Message):
        return any(_numbers_are_large(getattr(value, f.name)) for f in dataclasses.fields(value))  # type: ignore[arg-type]
    if isinstance(value, tuple):
        return any(map(_numbers_are_large, value))
    return (isinstance(value, int) and value >= 1 << 64) or (isinstance(value, Instant) and value < 1 << 32)
