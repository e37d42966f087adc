# SPDX-License-Identifier: Apache-2.0
"""One canonical spelling for every message, bounds before parsing, and signatures of one form."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx import protocol
from bombyx.errors import MalformedMessage
from bombyx.protocol.primitives import Address, Digest, Instant, RequestId, Secret, sha256, tagged_hash
from bombyx.protocol.wire.channel import ChannelConfig, settlement_domain, voucher_digest
from bombyx.protocol.wire.codec import Message
from bombyx.protocol.wire.receipt import receipt_domain
from bombyx.protocol.wire.request import Meta, Payment, Shape, SignedVoucher
from bombyx.protocol.wire.signing import SigningKey, recover

ONE = Digest(bytes([1]) * 32)
VOUCHER = SignedVoucher(channel=ONE, ceiling=57, signature=bytes(65))
PAYMENT = Payment(v=1, channel=ONE, cap=9, voucher=VOUCHER, grant=None, counter=3, mac=bytes(32))
META = Meta(
    v=1,
    request_id=RequestId(bytes(16)),
    model=ONE,
    proxy=Address(bytes(20)),
    price_sheets=(ONE,),
    commission_bps=500,
    max_input=32,
    max_output=16,
    deadline=Instant(1_700_000_000_000),
    candidates=(ONE,),
    shape=Shape.CONSTANT,
    frame_size=1024,
)


def kinds() -> list[type[Message]]:
    """Every message type the protocol has."""
    for module in pkgutil.walk_packages(protocol.__path__, "bombyx.protocol."):
        importlib.import_module(module.name)
    found = {k for k in Message.__subclasses__() if getattr(sys.modules[k.__module__], k.__name__, None) is k}
    return sorted(found, key=lambda kind: kind.TAG)


def spelt(message: Message, **changes: object) -> bytes:
    """The message with some fields changed or, by None, as they are; always canonical CBOR."""
    fields = dict(cbor2.loads(message.encode()).value)
    return cbor2.dumps(cbor2.CBORTag(message.TAG, fields | changes), canonical=True)


@pytest.mark.parametrize("message", [VOUCHER, PAYMENT, META])
def test_a_message_comes_back_as_it_went(message: Message) -> None:
    """WIRE-1: decode(encode(m)) == m, and its digest is that of its bytes."""
    assert type(message).decode(message.encode()) == message
    assert message.digest() == sha256(message.encode())


def test_another_spelling_is_refused() -> None:
    """WIRE-1: keys in another order, a number written longer than need be, bytes behind the end."""
    fields = dict(cbor2.loads(VOUCHER.encode()).value)
    turned = cbor2.dumps(cbor2.CBORTag(VOUCHER.TAG, dict(reversed(list(fields.items())))))
    wider = VOUCHER.encode().replace(b"\x18\x39", b"\x19\x00\x39")
    for other in (turned, wider, VOUCHER.encode() + b"\x00"):
        assert other != VOUCHER.encode()
        with pytest.raises(MalformedMessage, match="WIRE-1"):
            SignedVoucher.decode(other)


def test_one_message_is_not_read_as_another() -> None:
    """WIRE-1, WIRE-4: the tag decides, even where all fields would fit."""
    retagged = cbor2.dumps(cbor2.CBORTag(Payment.TAG, cbor2.loads(VOUCHER.encode()).value), canonical=True)
    with pytest.raises(MalformedMessage, match="WIRE-1"):
        SignedVoucher.decode(retagged)


def test_too_many_bytes_are_not_even_read() -> None:
    """WIRE-2: the size comes first."""
    with pytest.raises(MalformedMessage, match="WIRE-2"):
        Payment.decode(bytes(Payment.MAX_SIZE + 1))


@pytest.mark.parametrize(
    "changes",
    [
        {"extra": 1},
        {"ceiling": -1},
        {"ceiling": True},
        {"ceiling": "57"},
        {"channel": bytes(31)},
        {"channel": None},
        {"signature": 65},
    ],
    ids=str,
)
def test_a_field_that_does_not_belong_or_fit_is_refused(changes: dict[str, object]) -> None:
    """WIRE-3: unknown, negative, of another type or length."""
    with pytest.raises(MalformedMessage, match="WIRE-3"):
        SignedVoucher.decode(spelt(VOUCHER, **changes))


def test_a_missing_field_is_refused() -> None:
    """WIRE-3: also an optional one, which is written as null."""
    fields = dict(cbor2.loads(PAYMENT.encode()).value)
    del fields["grant"]
    with pytest.raises(MalformedMessage, match="WIRE-3"):
        Payment.decode(cbor2.dumps(cbor2.CBORTag(Payment.TAG, fields), canonical=True))


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
@given(data=st.binary(max_size=200))
def test_any_bytes_as_any_message(kind: type[Message], data: bytes) -> None:
    """WIRE-1, WIRE-3: a message or MalformedMessage, whatever comes; also behind the right tag."""
    for tried in (data, cbor2.dumps(cbor2.CBORTag(kind.TAG, 0))[:-1] + data):
        try:
            assert kind.decode(tried).encode() == tried
        except MalformedMessage:
            pass


@given(place=st.integers(0, len(META.encode()) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_another_message_or_none(place: int, bit: int) -> None:
    """WIRE-1: nothing that differs in one bit reads as the same."""
    changed = bytearray(META.encode())
    changed[place] ^= 1 << bit
    try:
        assert Meta.decode(bytes(changed)) != META
    except MalformedMessage:
        pass


def test_hashes_of_different_meanings_differ() -> None:
    """WIRE-4: same bytes, another label, chain, contract or domain: another digest."""
    contract, other = Address(bytes([7]) * 20), Address(bytes([8]) * 20)
    assert len({tagged_hash("a", b"x"), tagged_hash("b", b"x"), tagged_hash("a", b"", b"x"), sha256(b"ax")}) == 3
    domains = [settlement_domain(1, contract), settlement_domain(2, contract), settlement_domain(1, other)]
    domains.append(receipt_domain(1, contract))
    assert len({voucher_digest(domain, ONE, 57) for domain in domains}) == 4
    config = ChannelConfig(
        payer=contract,
        payer_authorizer=contract,
        receiver=other,
        receiver_authorizer=other,
        token=other,
        withdraw_delay=900,
        salt=ONE,
    )
    assert config.channel_id(domains[0]) != voucher_digest(domains[0], ONE, 57)


def test_a_signature_has_one_form() -> None:
    """WIRE-5: another length, another v, the upper half of the order, no point at all."""
    key = SigningKey(Secret(bytes([9]) * 32))
    good = key.sign(ONE)
    assert recover(ONE, good) == key.address
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    upper = (order - int.from_bytes(good[32:64])).to_bytes(32)
    twins = (
        good[:64],
        good + b"\x00",
        good[:64] + b"\x00",
        good[:32] + upper + bytes([55 - good[64]]),
        bytes(64) + b"\x1b",
    )
    for twin in twins:
        with pytest.raises(MalformedMessage, match="WIRE-5"):
            recover(ONE, twin)
