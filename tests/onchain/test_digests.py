# SPDX-License-Identifier: Apache-2.0
"""One digest, three authors: the contract, protocol/wire, and the stock x402 package."""

from __future__ import annotations

import json
from typing import Any

from eth_account import Account
from eth_account.messages import encode_typed_data
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.onchain.conftest import ARTIFACTS, PAYER, SESSION, Bench, address, claim_row, row
from x402.mechanisms.evm.batch_settlement import abi, constants, utils
from x402.mechanisms.evm.batch_settlement.types import ChannelConfig as StockConfig

from bombyx.protocol.primitives import MAX_AMOUNT, Address, Digest, keccak256
from bombyx.protocol.wire.channel import ChannelConfig, refund_digest, settlement_domain, voucher_digest
from bombyx.protocol.wire.eip712 import struct_hash, type_hash, typed_digest, word
from bombyx.protocol.wire.signing import SigningKey

ENTRY = type_hash("ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)")
BATCH = type_hash(
    "ClaimBatch(ClaimEntry[] claims)ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)"
)
amounts = st.integers(0, MAX_AMOUNT)
digests = st.binary(min_size=32, max_size=32).map(Digest)
addresses = st.binary(min_size=20, max_size=20).map(Address)
configs = st.builds(
    ChannelConfig,
    payer=addresses,
    payer_authorizer=addresses,
    receiver=addresses,
    receiver_authorizer=addresses,
    token=addresses,
    withdraw_delay=st.integers(0, 2**40 - 1),
    salt=digests,
)
shared_bench = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@shared_bench
@given(config=configs, amount=amounts, nonce=st.integers(0, 2**256 - 1))
def test_contract_and_protocol_agree(deployed: Bench, config: ChannelConfig, amount: int, nonce: int) -> None:
    """PAY-1: channel id, voucher and refund digests for any values."""
    contract, domain = deployed.settlement, deployed.domain
    channel = config.channel_id(domain)
    assert bytes(contract.getChannelId(row(config))) == channel
    assert bytes(contract.getVoucherDigest(bytes(channel), amount)) == voucher_digest(domain, channel, amount)
    assert bytes(contract.getRefundDigest(bytes(channel), nonce, amount)) == refund_digest(
        domain, channel, nonce, amount
    )


def _typed(types: dict[str, Any], primary: str, message: dict[str, Any], chain_id: int) -> Digest:
    domain = {
        "name": constants.BATCH_SETTLEMENT_DOMAIN_NAME,
        "version": constants.BATCH_SETTLEMENT_DOMAIN_VERSION,
        "chainId": chain_id,
        "verifyingContract": constants.BATCH_SETTLEMENT_ADDRESS,
    }
    signable = encode_typed_data(domain_data=domain, message_types=types, message_data=message)
    return keccak256(b"\x19" + signable.version + signable.header + signable.body)


@shared_bench
@given(config=configs, amount=amounts, nonce=st.integers(0, 2**256 - 1))
def test_the_stock_package_and_the_protocol_agree(config: ChannelConfig, amount: int, nonce: int) -> None:
    """PAY-1: what x402 computes at the canonical address is what we compute."""
    domain = settlement_domain(31337, Address.parse(constants.BATCH_SETTLEMENT_ADDRESS))
    stock = StockConfig(
        payer=str(config.payer),
        payer_authorizer=str(config.payer_authorizer),
        receiver=str(config.receiver),
        receiver_authorizer=str(config.receiver_authorizer),
        token=str(config.token),
        withdraw_delay=config.withdraw_delay,
        salt=str(config.salt),
    )
    channel = config.channel_id(domain)
    assert utils.compute_channel_id(stock, "eip155:31337") == str(channel)
    voucher = {"channelId": bytes(channel), "maxClaimableAmount": amount}
    assert _typed(constants.VOUCHER_TYPES, "Voucher", voucher, 31337) == voucher_digest(domain, channel, amount)
    refund = {"channelId": bytes(channel), "nonce": nonce, "amount": amount}
    assert _typed(constants.REFUND_TYPES, "Refund", refund, 31337) == refund_digest(domain, channel, nonce, amount)


def test_claim_batches_agree(bench: Bench) -> None:
    """PAY-15: the batch a receiver's authorizer signs, from none to a hundred rows."""
    for count in (0, 1, 2, 100):
        claims = [bench.voucher(bench.config(salt=Digest(n.to_bytes(32))), 10 + n, n) for n in range(count)]
        entries = [
            struct_hash(ENTRY, one.config.channel_id(bench.domain), word(one.ceiling), word(one.total_claimed))
            for one in claims
        ]
        ours = typed_digest(bench.domain, struct_hash(BATCH, keccak256(*entries)))
        assert bytes(bench.settlement.getClaimBatchDigest([claim_row(one) for one in claims])) == ours


def test_a_claim_batch_of_the_stock_package(bench: Bench) -> None:
    """PAY-15: x402's nested typed data gives the same digest as our hand-made one."""
    config = bench.config()
    entry = {"channelId": bytes(config.channel_id(bench.domain)), "maxClaimableAmount": 9, "totalClaimed": 7}
    domain = settlement_domain(5, Address.parse(constants.BATCH_SETTLEMENT_ADDRESS))
    ours = struct_hash(ENTRY, config.channel_id(bench.domain), word(9), word(7))
    stock = _typed(constants.CLAIM_BATCH_TYPES, "ClaimBatch", {"claims": [entry, entry]}, 5)
    assert stock == typed_digest(domain, struct_hash(BATCH, keccak256(ours, ours)))


def test_signatures_of_either_side_are_the_same(bench: Bench) -> None:
    """RFC 6979: eth-account and coincurve give the same 65 bytes, which the contract takes."""
    config = bench.config()
    digest = voucher_digest(bench.domain, config.channel_id(bench.domain), 5)
    stock = Account.unsafe_sign_hash(bytes(digest), SESSION.secret().reveal())
    assert bytes(stock.signature) == SESSION.sign(digest)


def _selectors(entries: list[dict[str, Any]], kind: str) -> dict[str, str]:
    def plain(item: dict[str, Any]) -> str:
        if item["type"].startswith("tuple"):
            return f"({','.join(plain(one) for one in item['components'])}){item['type'][5:]}"
        return str(item["type"])

    return {
        f"{one['name']}({','.join(plain(item) for item in one['inputs'])})": str(
            [plain(item) for item in one.get("outputs", [])] + [item.get("indexed") for item in one["inputs"]]
        )
        for one in entries
        if one["type"] == kind
    }


def test_every_function_and_event_of_the_stock_abi_is_there() -> None:
    """Names, argument types, answers and indexed fields are those of x402's ABI."""
    ours = json.loads((ARTIFACTS / "BatchSettlement.json").read_text())["abi"]
    for kind in ("function", "event"):
        wanted, found = _selectors(abi.BATCH_SETTLEMENT_ABI, kind), _selectors(ours, kind)
        assert {name: found.get(name) for name in wanted} == wanted


def test_a_token_authorization_is_the_stock_one(bench: Bench) -> None:
    """EIP-3009: the digest x402's payers sign is the one the development token checks."""
    config, amount = bench.config(), 50
    nonce = keccak256(config.channel_id(bench.domain), word(1))
    message = {
        "from": str(PAYER.address),
        "to": bench.signed.address,
        "value": amount,
        "validAfter": 0,
        "validBefore": 2**40,
        "nonce": bytes(nonce),
    }
    domain = {"name": "USD Coin", "version": "2", "chainId": bench.chain_id, "verifyingContract": bench.token.address}
    signed = Account.sign_typed_data(PAYER.secret().reveal(), domain, constants.RECEIVE_AUTHORIZATION_TYPES, message)
    assert bytes(signed.signature) in bench.authorization(config, amount, 1)
    assert isinstance(PAYER, SigningKey)
    assert address(bench.token) == config.token
