# SPDX-License-Identifier: Apache-2.0
"""secp256k1 signatures and EIP-712 digests, against published values and the EVM's own rules."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.errors import MalformedMessage
from bombyx.protocol.primitives import Address, Digest, Instant, RequestId, Secret, keccak256, sha256
from bombyx.protocol.wire.channel import (
    CHANNEL_CONFIG_TYPE,
    ChannelConfig,
    grant_digest,
    refund_digest,
    settlement_domain,
    voucher_digest,
)
from bombyx.protocol.wire.eip712 import domain_separator, struct_hash, type_hash, typed_digest, word
from bombyx.protocol.wire.receipt import Kind, Outcome, Receipt, SignedReceipt, receipt_domain
from bombyx.protocol.wire.signing import SigningKey, recover

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
COW = SigningKey(Secret(keccak256(b"cow")))  # the key of EIP-712's own example


def test_the_example_of_eip_712() -> None:
    """WIRE-6: the "Mail" of the EIP, its published digest and signature."""
    mail = type_hash("Mail(Person from,Person to,string contents)Person(string name,address wallet)")
    person = type_hash("Person(string name,address wallet)")

    def who(name: bytes, wallet: str) -> Digest:
        return struct_hash(person, keccak256(name), word(Address.parse(wallet)))

    domain = domain_separator("Ether Mail", "1", 1, Address.parse("0xCcCCccccCCCCcCCCCCCcCcCccCcCCCcCcccccccC"))
    assert domain.hex() == "f2cee375fa42b42143804025fc449deafd50cc031ca257e0b194a650a912090f"
    digest = typed_digest(
        domain,
        struct_hash(
            mail,
            who(b"Cow", "0xCD2a3d9F938E13CD947Ec05AbC7FE734Df8DD826"),
            who(b"Bob", "0xbBbBBBBbbBBBbbbBbbBbbbbBBbBbbbbBbBbbBBbB"),
            keccak256(b"Hello, Bob!"),
        ),
    )
    assert digest.hex() == "be609aee343fb3c4b28e1df9e632fca64fcfaede20f02e86244efddf30957bd2"
    signature = COW.sign(digest)
    assert signature[:32].hex() == "4355c47d63924e8a72e509b65029052eb6c299d53a04e167c5775fd466751c9d"
    assert signature[32:64].hex() == "07299936d304c153f6443dfa05f40ff007d72911b6f72307f996231605b91562"
    assert signature[64] == 28
    assert str(COW.address) == "0xCD2a3d9F938E13CD947Ec05AbC7FE734Df8DD826"


def test_the_structs_of_x402_by_their_type_hashes() -> None:
    """PAY-1: verbatim, so that a stock client and contract compute the same."""
    assert (
        keccak256(
            b"ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,"
            b"address token,uint40 withdrawDelay,bytes32 salt)"
        )
        == CHANNEL_CONFIG_TYPE
    )


@given(
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32).filter(lambda s: 0 < int.from_bytes(s) < ORDER),
)
def test_who_signed_is_who_is_recovered(message: bytes, secret: bytes) -> None:
    """WIRE-5: s in the lower half, v 27 or 28, deterministic."""
    key, digest = SigningKey(Secret(secret)), Digest(message)
    signature = key.sign(digest)
    assert recover(digest, signature) == key.address
    assert int.from_bytes(signature[32:64]) <= ORDER // 2
    assert signature[64] in (27, 28)
    assert key.sign(digest) == signature


def test_a_malleated_signature_is_refused() -> None:
    """WIRE-5, EIP-2: (r, n - s, flipped v) is the same key's, and yet not a signature."""
    digest = sha256(b"x")
    signature = COW.sign(digest)
    twin = signature[:32] + (ORDER - int.from_bytes(signature[32:64])).to_bytes(32) + bytes([55 - signature[64]])
    with pytest.raises(MalformedMessage, match="WIRE-5"):
        recover(digest, twin)


@pytest.mark.parametrize(
    "signature",
    [
        b"",
        bytes(64),
        bytes(66),
        bytes(65),
        bytes(64) + b"\x1b",
        b"\xff" * 32 + bytes(31) + b"\x01\x1b",
        bytes(31) + b"\x05" + bytes(31) + b"\x01\x1b",
        COW.sign(sha256(b"x"))[:64] + b"\x00",
        COW.sign(sha256(b"x"))[:64] + b"\x1d",
    ],
    ids=str,
)
def test_what_ecrecover_would_refuse_is_malformed(signature: bytes) -> None:
    """WIRE-5."""
    try:
        found = recover(sha256(b"x"), signature)
    except MalformedMessage:
        return
    assert found != COW.address


@given(st.binary(min_size=65, max_size=65), st.binary(min_size=32, max_size=32))
def test_any_65_bytes_recover_somebody_or_are_malformed(signature: bytes, digest: bytes) -> None:
    """WIRE-5: nothing else comes out."""
    try:
        assert isinstance(recover(Digest(digest), signature), Address)
    except MalformedMessage:
        pass


def test_every_digest_differs_by_domain_channel_and_kind() -> None:
    """WIRE-6: a voucher, a refund and a grant of the same numbers are three things; on another chain, three others."""
    channel, contract = sha256(b"channel"), COW.address
    seen = set()
    for chain in (1, 2):
        domain = settlement_domain(chain, contract)
        seen |= {
            voucher_digest(domain, channel, 1),
            voucher_digest(domain, channel, 2),
            voucher_digest(domain, sha256(b"other"), 1),
            refund_digest(domain, channel, 1, 1),
            grant_digest(domain, channel, contract, channel, Instant(1_000)),
        }
    assert len(seen) == 10


def test_a_channels_id_depends_on_every_field() -> None:
    """PAY-1."""
    config = ChannelConfig(
        payer=COW.address,
        payer_authorizer=COW.address,
        receiver=COW.address,
        receiver_authorizer=COW.address,
        token=COW.address,
        withdraw_delay=900,
        salt=Digest.zero(),
    )
    domain = settlement_domain(1, COW.address)
    other = Address(b"\x01" * 20)
    changes = [{name: other} for name in ("payer", "payer_authorizer", "receiver", "receiver_authorizer", "token")]
    ids = {config.channel_id(domain), config.channel_id(settlement_domain(1, other))}
    for change in [*changes, {"withdraw_delay": 901}, {"salt": sha256(b"1")}]:
        ids.add(dataclasses.replace(config, **change).channel_id(domain))  # type: ignore[arg-type]
    assert len(ids) == 9


def receipt() -> Receipt:
    return Receipt(
        kind=Kind.FINAL,
        request_id=RequestId(bytes(16)),
        request_hash=Digest.zero(),
        response_hash=Digest.zero(),
        model=Digest.zero(),
        price_sheet=Digest.zero(),
        operator=COW.address,
        frames=1,
        input_units=1,
        cached_units=1,
        output_units=1,
        charge=1,
        usage_commitment=Digest.zero(),
        audit_commitment=Digest.zero(),
        outcome=Outcome.COMPLETE,
        seq=1,
        started_at=Instant(1),
        finished_at=Instant(1),
        previous=Digest.zero(),
    )


def test_a_receipts_digest_depends_on_every_field() -> None:
    """RCT-1: what was signed cannot be bent afterwards."""
    domain = receipt_domain(1, COW.address)
    base, digests = receipt(), set()
    for field in dataclasses.fields(Receipt):
        value = getattr(base, field.name)
        if isinstance(value, bytes):
            changed: object = type(value)(b"\x07" * len(value))
        elif field.name in ("kind", "outcome"):
            changed = type(value)(0)
        else:
            changed = type(value)(value + 1)
        digests.add(dataclasses.replace(base, **{field.name: changed}).typed_digest(domain))  # type: ignore[arg-type]
    digests |= {base.typed_digest(domain), base.typed_digest(receipt_domain(2, COW.address))}
    assert len(digests) == len(dataclasses.fields(Receipt)) + 2
    signed = SignedReceipt.sign(base, domain, COW)
    assert signed.signer(domain) == COW.address
    assert SignedReceipt.decode(signed.encode()) == signed


@pytest.mark.parametrize(
    ("field", "bits"),
    [("frames", 32), ("input_units", 64), ("cached_units", 64), ("output_units", 64), ("charge", 128), ("seq", 64)],
)
def test_a_number_the_contract_could_not_hold_is_refused(field: str, bits: int) -> None:
    """RCT-1: the struct says uint32, uint64, uint128; a larger number would be signed here and refused there."""
    dataclasses.replace(receipt(), **{field: 2**bits - 1})
    with pytest.raises(ValueError):
        dataclasses.replace(receipt(), **{field: 2**bits})


def test_a_key_does_not_print_itself() -> None:
    """WIRE-5."""
    secret = COW.secret().reveal().hex()
    assert secret not in repr(COW) + str(COW)
