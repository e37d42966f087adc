# SPDX-License-Identifier: Apache-2.0
"""x402 over HTTP, without HTTP: what is asked can be read by the package from the registry, and what it says by us."""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.errors import BombyxError, MalformedMessage, PaymentError
from bombyx.protocol.pay.x402 import (
    Asking,
    Standing,
    comment,
    header,
    payment_required,
    payment_response,
    reason_of,
)
from bombyx.protocol.pay.x402_payment import MAX_HEADER, Presented, check_deposit, read_payment
from bombyx.protocol.primitives import Address, Amount, Digest, Instant, Secret, keccak256
from bombyx.protocol.wire.channel import ChannelConfig, settlement_domain
from bombyx.protocol.wire.eip712 import word
from bombyx.protocol.wire.signing import SigningKey

PAYER = SigningKey(Secret(b"\x11" * 32))
ASKING = Asking(
    chain_id=31337,
    token=Address(b"\x01" * 20),
    token_name="USD Coin",
    token_version="2",
    collector=Address(b"\x02" * 20),
    receiver=Address(b"\x03" * 20),
    receiver_authorizer=Address(b"\x04" * 20),
    withdraw_delay=900,
    min_deposit=1_000,
    notice="read in clear",
)
NOW = Instant(1_800_000_000_000)


def payload(kind: str = "voucher") -> dict[str, Any]:
    value: dict[str, Any] = {
        "x402Version": 2,
        "accepted": ASKING.requirements(120),
        "payload": {
            "type": kind,
            "channelConfig": {
                "payer": str(PAYER.address),
                "payerAuthorizer": str(PAYER.address),
                "receiver": str(ASKING.receiver),
                "receiverAuthorizer": str(ASKING.receiver_authorizer),
                "token": str(ASKING.token),
                "withdrawDelay": 900,
                "salt": "0x" + "00" * 32,
            },
            "voucher": {
                "channelId": "0x" + "05" * 32,
                "maxClaimableAmount": "120",
                "signature": "0x" + "06" * 65,
            },
        },
    }
    if kind == "deposit":
        authorization = {
            "validAfter": "0",
            "validBefore": str(NOW.seconds + 600),
            "salt": "0x" + "07" * 32,
            "signature": "0x" + "08" * 65,
        }
        value["payload"]["deposit"] = {"amount": "5000", "authorization": {"erc3009Authorization": authorization}}
    return value


def read(value: Any) -> Presented:
    return read_payment(header(value), ASKING)


def test_what_is_asked_and_answered_reads_in_the_stock_package() -> None:
    """X402-1, X402-7: the same objects as the package's own servers send."""
    x402 = pytest.importorskip("x402.http.utils")
    standing = Standing(channel=Digest(b"\x05" * 32), charged=57, ceiling=120, signature=b"\x06" * 65, view=None)
    required = payment_required(ASKING, 120, url="http://x/v1", description="d", error="why", standing=standing)
    told = x402.decode_payment_required_header(header(required))
    assert told.accepts[0].scheme == "batch-settlement" and told.accepts[0].amount == "120" and told.error == "why"
    assert told.accepts[0].extra["channelState"]["chargedCumulativeAmount"] == "57"
    assert told.accepts[0].extra["voucherState"]["signedMaxClaimable"] == "120"
    settled = payment_response(ASKING, standing, payer=PAYER.address, charged=57, transaction="")
    assert x402.decode_payment_response_header(header(settled)).extra["chargedAmount"] == "57"
    assert comment(settled).startswith(b": PAYMENT-RESPONSE ") and comment(settled).count(b"\n") == 2


def test_a_voucher_and_a_deposit_are_read() -> None:
    """X402-3: the two payloads of a paid request."""
    plain, with_deposit = read(payload()), read(payload("deposit"))
    assert plain.deposit is None and plain.amount == 120 and plain.voucher.ceiling == 120
    assert with_deposit.deposit is not None and with_deposit.deposit.amount == 5_000
    assert plain.config == with_deposit.config and plain.config.payer == PAYER.address


WRONG: dict[str, tuple[tuple[str, ...], Any]] = {
    "another_version": (("x402Version",), 1),
    "no_requirements": (("accepted",), None),
    "no_payload": (("payload",), []),
    "a_short_address": (("payload", "channelConfig", "payer"), "0x00"),
    "an_address_without_0x": (("payload", "channelConfig", "payer"), "00" * 21),
    "a_delay_as_text": (("payload", "channelConfig", "withdrawDelay"), "900"),
    "a_delay_that_is_true": (("payload", "channelConfig", "withdrawDelay"), True),
    "a_delay_above_uint40": (("payload", "channelConfig", "withdrawDelay"), 1 << 40),
    "a_ceiling_as_a_number": (("payload", "voucher", "maxClaimableAmount"), 120),
    "a_negative_ceiling": (("payload", "voucher", "maxClaimableAmount"), "-1"),
    "a_ceiling_above_uint128": (("payload", "voucher", "maxClaimableAmount"), str(2**128)),
    "a_ceiling_in_other_digits": (("payload", "voucher", "maxClaimableAmount"), "\u0661\u0662"),
    "a_signature_that_is_not_hex": (("payload", "voucher", "signature"), "0xzz"),
    "a_signature_without_end": (("payload", "voucher", "signature"), "0x" + "11" * 2_000),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_payment_that_is_not_x402_is_malformed(name: str) -> None:
    """X402-3: 400, not 402: asking again with the same bytes would not help."""
    path, wrong = WRONG[name]
    value = payload()
    inner = value
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = wrong
    with pytest.raises(MalformedMessage, match="X402-3"):
        read(value)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("scheme", "exact"), ("network", "eip155:1"), ("asset", "0x" + "09" * 20), ("payTo", "0x" + "09" * 20)],
)
def test_a_payment_of_something_else_than_was_asked(name: str, wrong: str) -> None:
    """X402-3: well formed, and not for us."""
    value = payload()
    value["accepted"][name] = wrong
    with pytest.raises(PaymentError, match="X402-3"):
        read(value)


def test_a_refund_is_not_a_payment() -> None:
    """X402-3: payloads of the scheme that this endpoint does not take are refused by name."""
    with pytest.raises(PaymentError, match="neither a voucher nor a deposit"):
        read(payload("refund"))


@given(st.binary(max_size=600))
def test_any_bytes_in_the_header_are_refused_or_read(data: bytes) -> None:
    """X402-3: nothing but typed errors."""
    for text in (data.decode("latin-1"), base64.b64encode(data).decode()):
        with pytest.raises(BombyxError):
            read_payment(text, ASKING)


@given(st.data())
def test_any_change_of_one_field_is_refused_or_read(data: st.DataObject) -> None:
    """X402-3: every leaf replaced by every kind of JSON value."""
    value = copy.deepcopy(payload("deposit"))
    inner: Any = value
    while isinstance(inner, dict) and inner:
        holder, key = inner, data.draw(st.sampled_from(sorted(inner)))
        inner = inner[key]
        if not data.draw(st.booleans()):
            break
    anything: st.SearchStrategy[Any] = (
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=80) | st.just({}) | st.just([])
    )
    holder[key] = data.draw(anything)
    try:
        assert isinstance(read(value), Presented)
    except BombyxError:
        pass


def test_a_header_beyond_the_bound_is_not_even_decoded() -> None:
    """X402-3: bounded."""
    with pytest.raises(MalformedMessage, match=str(MAX_HEADER)):
        read_payment("A" * (MAX_HEADER + 1), ASKING)
    nested = base64.b64encode(b'{"x402Version":' + b"[" * 5_000 + b"]" * 5_000 + b"}").decode()
    with pytest.raises(MalformedMessage):
        read_payment(nested, ASKING)


def deposit(**changes: Any) -> tuple[Presented, Digest]:
    """A deposit its payer signed, and its channel."""
    value = payload("deposit")
    authorization = value["payload"]["deposit"]["authorization"]["erc3009Authorization"]
    authorization |= {name: text for name, text in changes.items() if name != "amount"}
    value["payload"]["deposit"]["amount"] = changes.get("amount", "5000")
    config = read(value).config
    channel = config.channel_id(settlement_domain(31337, Address(b"\x0a" * 20)))
    digest = eip3009(config, value["payload"]["deposit"]["amount"], authorization, channel)
    authorization["signature"] = "0x" + PAYER.sign(digest).hex()
    return read(value), channel


def eip3009(config: ChannelConfig, amount: str, authorization: dict[str, str], channel: Digest) -> Digest:
    """What the token would check, by another library than ours."""
    messages = pytest.importorskip("eth_account.messages")
    fields = [("from", "address"), ("to", "address"), ("value", "uint256"), ("validAfter", "uint256")]
    fields += [("validBefore", "uint256"), ("nonce", "bytes32")]
    encoded = messages.encode_typed_data(
        {"name": "USD Coin", "version": "2", "chainId": 31337, "verifyingContract": str(ASKING.token)},
        {"ReceiveWithAuthorization": [{"name": name, "type": kind} for name, kind in fields]},
        {
            "from": str(config.payer),
            "to": str(ASKING.collector),
            "value": int(amount),
            "validAfter": int(authorization["validAfter"]),
            "validBefore": int(authorization["validBefore"]),
            "nonce": bytes(keccak256(channel, word(int(authorization["salt"], 16)))),
        },
    )
    return keccak256(b"\x19", encoded.version, encoded.header, encoded.body)


def test_a_deposit_its_payer_signed_is_good() -> None:
    """X402-4: checked under the token's domain, as the token will."""
    presented, channel = deposit()
    check_deposit(presented, channel, ASKING, now=NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"amount": "999"},
        {"validBefore": str(NOW.seconds + 59)},
        {"validAfter": str(NOW.seconds)},
    ],
)
def test_a_deposit_that_would_only_cost_gas(changes: dict[str, str]) -> None:
    """X402-4: below the least, or not valid for as long as a transaction takes."""
    presented, channel = deposit(**changes)
    with pytest.raises(PaymentError, match="X402-4"):
        check_deposit(presented, channel, ASKING, now=NOW)


def test_a_deposit_for_another_channel() -> None:
    """X402-4: the signature binds the channel, so that nobody can carry it into his own."""
    presented, _ = deposit()
    with pytest.raises(PaymentError, match="not signed by its payer"):
        check_deposit(presented, Digest(b"\x0b" * 32), ASKING, now=NOW)


def test_refusals_have_the_schemes_words() -> None:
    """X402-5: a stock client takes up our state when it reads this one, and only then."""
    codes = pytest.importorskip("x402.mechanisms.evm.batch_settlement.errors")
    assert reason_of(PaymentError("x", rule="PAY-14")) == codes.ERR_CUMULATIVE_AMOUNT_MISMATCH
    assert reason_of(PaymentError("x", rule="PAY-4")) == codes.ERR_CUMULATIVE_EXCEEDS_BALANCE
    assert reason_of(PaymentError("x", rule="PAY-3")) == codes.ERR_INVALID_VOUCHER_SIGNATURE
    assert reason_of(PaymentError("x", rule="X402-4")) == codes.ERR_VOUCHER_PAYLOAD


def test_a_proposed_deposit_lasts_for_some_requests() -> None:
    """X402-4: proposed: five requests' worth, at least the least; refused: only what is below the least."""
    assert ASKING.requirements(120)["extra"]["minDeposit"] == "1000"
    assert ASKING.requirements(4_000)["extra"]["minDeposit"] == "20000"
    assert ASKING.least_deposit(4_000) == 4_000
    assert json.loads(base64.b64decode(header({"a": str(Amount(1))}))) == {"a": "1"}
