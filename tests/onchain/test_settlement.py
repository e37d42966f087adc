# SPDX-License-Identifier: Apache-2.0
"""The settlement contract, told as what payers and payees do, and what thieves try."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from eth_abi import encode
from tests.onchain.conftest import (
    AUTHORIZER,
    FUNDS,
    PAYER,
    RECEIVER,
    SESSION,
    STRANGER,
    Bench,
    address,
    claim_row,
    row,
)

from bombyx.protocol.primitives import Address, Digest, keccak256
from bombyx.protocol.wire.channel import refund_digest, settlement_domain, voucher_digest

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


# --- money in, vouchers, money out ---


def test_a_channel_from_deposit_to_refund(bench: Bench) -> None:
    """PAY-2: deposit, top up, claim, settle, refund: every token is where the numbers say."""
    config = bench.config()
    channel = bench.deposit(config, 1_000)
    bench.settlement.deposit(row(config), 500, bench.signed.address, bench.authorization(config, 500, 1))
    bench.claim(bench.voucher(config, 900, 700))
    bench.claim(bench.voucher(config, 1_200), sender=AUTHORIZER)
    assert bench.state(config) == (1_500, 1_200)
    bench.settlement.settle(str(RECEIVER.address), bench.token.address)
    assert bench.paid(RECEIVER) == 1_200
    digest = refund_digest(bench.domain, channel, 0, 300)
    bench.settlement.refundWithSignature(row(config), 300, 0, AUTHORIZER.sign(digest))
    assert bench.state(config) == (1_200, 1_200)
    assert bench.paid(PAYER) == FUNDS - 1_200
    assert bench.token.balanceOf(bench.settlement.address) == 0


def test_a_payer_leaves_alone_after_the_delay(bench: Bench) -> None:
    """PAY-6: a withdrawal waits, a claim in between is paid first, and the rest comes back."""
    config = bench.config()
    bench.deposit(config, 1_000)
    with bench.refused("InvalidChannel"):
        bench.settlement.initiateWithdraw(row(config), 1_000, sender=str(STRANGER.address))
    with bench.refused("WithdrawAmountExceedsAvailable"):
        bench.settlement.initiateWithdraw(row(config), 1_001, sender=str(PAYER.address))
    bench.settlement.initiateWithdraw(row(config), 1_000, sender=str(SESSION.address))
    with bench.refused("WithdrawalAlreadyPending"):
        bench.settlement.initiateWithdraw(row(config), 1, sender=str(PAYER.address))
    with bench.refused("WithdrawDelayNotElapsed"):
        bench.settlement.finalizeWithdraw(row(config), sender=str(PAYER.address))
    bench.claim(bench.voucher(config, 400))
    bench.pass_time(900)
    with bench.refused("NotAuthorizedToFinalizeWithdraw"):
        bench.settlement.finalizeWithdraw(row(config), sender=str(STRANGER.address))
    bench.settlement.finalizeWithdraw(row(config), sender=str(PAYER.address))
    assert bench.state(config) == (400, 400)
    with bench.refused("WithdrawalNotPending"):
        bench.settlement.finalizeWithdraw(row(config), sender=str(PAYER.address))
    assert bench.paid(PAYER) == FUNDS - 400


def test_a_watchtower_claims_without_keys(bench: Bench) -> None:
    """PAY-15: a batch the receiver's authorizer signed may be brought by anyone; another batch may not."""
    configs = [bench.config(salt=Digest(bytes([n]) * 32)) for n in range(3)]
    for config in configs:
        bench.deposit(config, 100)
    rows = [claim_row(bench.voucher(config, 60 + n)) for n, config in enumerate(configs)]
    signature = AUTHORIZER.sign(Digest(bench.settlement.getClaimBatchDigest(rows)))
    with bench.refused("InvalidSignature"):
        bench.settlement.claimWithSignature(rows[:2], signature, sender=str(STRANGER.address))
    bench.settlement.claimWithSignature(rows, signature, sender=str(STRANGER.address))
    assert [bench.state(config)[1] for config in configs] == [60, 61, 62]
    other = claim_row(bench.voucher(bench.config(receiver_authorizer=STRANGER.address), 1))
    with bench.refused("NotReceiverAuthorizer"):
        bench.settlement.claimWithSignature([rows[0], other], signature)


def test_claim_and_settle_in_one_transaction(bench: Bench) -> None:
    """The sender of a multicall is the sender of each call; a failure inside undoes all of it."""
    config = bench.config()
    bench.deposit(config, 100)
    claim = bench.settlement.claim.prepare_calldata([claim_row(bench.voucher(config, 80))])
    settle = bench.settlement.settle.prepare_calldata(str(RECEIVER.address), bench.token.address)
    with bench.refused("NotAuthorizedToClaim"):
        bench.settlement.multicall([settle, claim], sender=str(STRANGER.address))
    bench.settlement.multicall([claim, settle], sender=str(RECEIVER.address))
    assert bench.paid(RECEIVER) == 80


def test_a_hundred_claims_fit_in_one_call(bench: Bench) -> None:
    """Stock channel managers send batches of a hundred."""
    configs = [bench.config(salt=Digest(n.to_bytes(32))) for n in range(100)]
    for config in configs:
        bench.deposit(config, 10)
    bench.claim(*(bench.voucher(config, 7) for config in configs))
    bench.settlement.settle(str(RECEIVER.address), bench.token.address)
    assert bench.paid(RECEIVER) == 700


# --- what a deposit must be ---


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"payer": Address.zero()}, "InvalidChannel"),
        ({"receiver": Address.zero()}, "InvalidChannel"),
        ({"receiver_authorizer": Address.zero()}, "InvalidChannel"),
        ({"token": Address.zero()}, "InvalidChannel"),
        ({"withdraw_delay": 899}, "WithdrawDelayOutOfRange"),
        ({"withdraw_delay": 2_592_001}, "WithdrawDelayOutOfRange"),
    ],
)
def test_a_channel_nobody_could_use_is_refused(bench: Bench, changes: dict[str, Any], error: str) -> None:
    """PAY-2: empty parties, and delays out of x402's bounds."""
    with bench.refused(error):
        bench.settlement.deposit(row(bench.config(**changes)), 1, bench.signed.address, b"")


def test_a_deposit_needs_an_amount_a_collector_and_room(bench: Bench) -> None:
    """PAY-2: nothing, from nobody, or above uint128."""
    config = bench.config()
    with bench.refused("ZeroDeposit"):
        bench.settlement.deposit(row(config), 0, bench.signed.address, b"")
    with bench.refused("InvalidCollector"):
        bench.settlement.deposit(row(config), 1, str(Address.zero()), b"")
    bench.deposit(config, 1)
    with bench.refused("DepositOverflow"):
        bench.settlement.deposit(row(config), 2**128 - 1, bench.signed.address, b"")


# --- vouchers that do not pay ---


def test_replayed_and_smaller_vouchers_move_nothing(bench: Bench) -> None:
    """PAY-7: claimed never goes back, and the rest of the batch is not lost for it."""
    config, other = bench.config(), bench.config(salt=Digest(b"\x01" * 32))
    bench.deposit(config, 100)
    bench.deposit(other, 100)
    bench.claim(bench.voucher(config, 50))
    bench.claim(bench.voucher(config, 50), bench.voucher(config, 30), bench.voucher(other, 10))
    assert bench.state(config) == (100, 50)
    assert bench.state(other) == (100, 10)


def test_a_voucher_of_a_foreign_channel(bench: Bench) -> None:
    """PAY-3: a voucher names its channel; it pays nowhere else."""
    config, other = bench.config(), bench.config(salt=Digest(b"\x01" * 32))
    bench.deposit(config, 100)
    bench.deposit(other, 100)
    stolen = dataclasses.replace(bench.voucher(config, 50), config=other)
    with bench.refused("InvalidSignature"):
        bench.claim(stolen)


@pytest.mark.parametrize("where", ["chain", "contract"])
def test_a_voucher_of_another_chain_or_contract(bench: Bench, where: str) -> None:
    """PAY-3: the domain holds both, and so does the channel's id."""
    config = bench.config()
    bench.deposit(config, 100)
    here = address(bench.settlement)
    domain = (
        settlement_domain(bench.chain_id + 1, here)
        if where == "chain"
        else settlement_domain(bench.chain_id, Address(b"\x01" * 20))
    )
    for channel in (config.channel_id(domain), config.channel_id(bench.domain)):
        signature = SESSION.sign(voucher_digest(domain, channel, 50))
        with bench.refused("InvalidSignature"):
            bench.claim(dataclasses.replace(bench.voucher(config, 50), signature=signature))


def test_a_claim_above_its_voucher_or_above_the_deposit(bench: Bench) -> None:
    """PAY-4, PAY-8: paid <= ceiling, paid <= deposited."""
    config = bench.config()
    bench.deposit(config, 100)
    with bench.refused("ClaimExceedsCeiling"):
        bench.claim(bench.voucher(config, 50, 51))
    with bench.refused("ClaimExceedsBalance"):
        bench.claim(bench.voucher(config, 101))
    with bench.refused("EmptyBatch"):
        bench.claim()


@pytest.mark.parametrize("signer", [PAYER, STRANGER, AUTHORIZER])
def test_a_voucher_signed_by_anybody_else(bench: Bench, signer: Any) -> None:
    """PAY-3: not even the payer signs where an authorizer is named."""
    config = bench.config()
    bench.deposit(config, 100)
    with bench.refused("InvalidSignature"):
        bench.claim(bench.voucher(config, 50, signer=signer))


def test_only_the_receivers_side_claims(bench: Bench) -> None:
    """PAY-15: a stranger with a good voucher still cannot choose the moment or the amount."""
    config = bench.config()
    bench.deposit(config, 100)
    for sender in (STRANGER, PAYER, SESSION):
        with bench.refused("NotAuthorizedToClaim"):
            bench.claim(bench.voucher(config, 50), sender=sender)


def test_malleable_and_misshapen_signatures(bench: Bench) -> None:
    """WIRE-5: the other s, other v, other lengths: one signature has one form."""
    config = bench.config()
    bench.deposit(config, 100)
    good = bench.voucher(config, 50)
    r, s, v = good.signature[:32], int.from_bytes(good.signature[32:64]), good.signature[64]
    bad = [
        r + (ORDER - s).to_bytes(32) + bytes([55 - v]),  # the twin in the upper half
        r + s.to_bytes(32) + bytes([v - 27]),
        r + s.to_bytes(32) + bytes([v + 8]),
        good.signature[:64],
        good.signature + b"\x00",
        b"",
        bytes(65),
        bytes(64) + b"\x1b",
    ]
    for signature in bad:
        with bench.refused("InvalidSignature"):
            bench.claim(dataclasses.replace(good, signature=signature))
    bench.claim(good)


def test_zero_authorizer_is_not_everybody(bench: Bench) -> None:
    """An unrecoverable signature gives the zero address; with no authorizer named, the payer must have signed."""
    config = bench.config(payer_authorizer=Address.zero())
    bench.deposit(config, 100)
    with bench.refused("InvalidSignature"):
        bench.claim(dataclasses.replace(bench.voucher(config, 50), signature=bytes(65)))
    bench.claim(bench.voucher(config, 50, signer=PAYER))


# --- races ---


def test_the_withdrawal_race(bench: Bench) -> None:
    """PAY-6: whoever claims before the delay ends is paid; whoever comes after is not, and nothing is paid twice."""
    config = bench.config()
    bench.deposit(config, 100)
    bench.settlement.initiateWithdraw(row(config), 100, sender=str(PAYER.address))
    bench.pass_time(900)
    with bench.boa.env.anchor():
        bench.claim(bench.voucher(config, 100))
        bench.settlement.finalizeWithdraw(row(config), sender=str(PAYER.address))
        assert bench.state(config) == (100, 100)
        assert bench.paid(PAYER) == FUNDS - 100
    bench.settlement.finalizeWithdraw(row(config), sender=str(PAYER.address))
    with bench.refused("ClaimExceedsBalance"):
        bench.claim(bench.voucher(config, 100))


def test_a_withdrawal_started_before_a_top_up_takes_only_what_it_named(bench: Bench) -> None:
    """PAY-6: the clock of a small withdrawal is no clock for a later deposit."""
    config = bench.config()
    bench.deposit(config, 100)
    bench.settlement.initiateWithdraw(row(config), 100, sender=str(PAYER.address))
    bench.pass_time(900)
    bench.deposit(config, 1_000)
    bench.settlement.finalizeWithdraw(row(config), sender=str(PAYER.address))
    assert bench.state(config) == (1_000, 0)


def test_a_refund_is_signed_once(bench: Bench) -> None:
    """PAY-16: each refund moves the nonce on, signed or not; it cancels what it covers of a withdrawal."""
    config = bench.config()
    channel = bench.deposit(config, 100)
    bench.settlement.initiateWithdraw(row(config), 60, sender=str(PAYER.address))
    signature = AUTHORIZER.sign(refund_digest(bench.domain, channel, 0, 20))
    bench.settlement.refundWithSignature(row(config), 20, 0, signature)
    assert bench.settlement.pendingWithdrawals(bytes(channel))[0] == 40
    with bench.refused("InvalidRefundNonce"):
        bench.settlement.refundWithSignature(row(config), 20, 0, signature)
    with bench.refused("InvalidSignature"):
        bench.settlement.refundWithSignature(row(config), 20, 1, signature)
    with bench.refused("NotAuthorizedToRefund"):
        bench.settlement.refund(row(config), 20, sender=str(PAYER.address))
    with bench.refused("ZeroRefund"):
        bench.settlement.refund(row(config), 0, sender=str(RECEIVER.address))
    bench.settlement.refund(row(config), 10**9, sender=str(RECEIVER.address))
    assert bench.state(config) == (0, 0)
    assert bench.settlement.pendingWithdrawals(bytes(channel)) == (0, 0)
    assert bench.paid(PAYER) == FUNDS
    bench.settlement.refund(row(config), 1, sender=str(RECEIVER.address))  # nothing left: only the nonce moves
    assert bench.settlement.refundNonce(bytes(channel)) == 3


# --- other people's allowances and authorizations ---


def test_an_allowance_cannot_be_spent_by_others(bench: Bench) -> None:
    """A stranger opens a channel that pays itself, from the payer's allowance: refused on every way in."""
    theft = bench.config(payer_authorizer=STRANGER.address, receiver=STRANGER.address)
    with bench.refused("NotAnnounced"):
        bench.settlement.deposit(row(theft), 100, bench.allowed.address, b"", sender=str(STRANGER.address))
    with bench.refused("OnlyPayer"):
        bench.allowed.deposit(row(theft), 100, sender=str(STRANGER.address))
    for collector in (bench.allowed, bench.signed):
        with bench.refused("OnlySettlement"):
            collector.collect(str(PAYER.address), bench.token.address, 1, bytes(32), b"", sender=str(STRANGER.address))


def test_an_authorization_pays_into_one_channel_once(bench: Bench) -> None:
    """An EIP-3009 authorization seen in the open is brought by a stranger: same channel, same amount, once."""
    config = bench.config()
    data = bench.authorization(config, 100, 7)
    theft = bench.config(receiver=STRANGER.address)
    for target, amount in ((theft, 100), (config, 99)):
        with pytest.raises(bench.boa.BoaError, match="not signed"):
            bench.settlement.deposit(row(target), amount, bench.signed.address, data, sender=str(STRANGER.address))
    bench.settlement.deposit(row(config), 100, bench.signed.address, data, sender=str(STRANGER.address))
    with pytest.raises(bench.boa.BoaError, match="used already"):
        bench.settlement.deposit(row(config), 100, bench.signed.address, data)
    late = bench.authorization(config, 100, 8, before=1)
    with pytest.raises(bench.boa.BoaError, match="no longer valid"):
        bench.settlement.deposit(row(config), 100, bench.signed.address, late)


def test_griefing_deposits_are_gifts(bench: Bench) -> None:
    """A stranger's money in somebody's channel belongs to that channel's payer, and changes no claim."""
    config = bench.config()
    bench.deposit(config, 10)
    giver = bench.load("ThievingCollector")
    bench.token.mint(giver.address, 5, sender=str(STRANGER.address))
    with bench.refused("DepositCollectionFailed"):  # it brings nothing
        bench.settlement.deposit(row(config), 5, giver.address, b"", sender=str(STRANGER.address))
    giver.call_back_with(bench.token.address, bench.token.transfer.prepare_calldata(bench.settlement.address, 5))
    with bench.refused("DepositCollectionFailed"):  # nor more than it says
        bench.settlement.deposit(row(config), 4, giver.address, b"", sender=str(STRANGER.address))
    bench.settlement.deposit(row(config), 5, giver.address, b"", sender=str(STRANGER.address))
    bench.settlement.refund(row(config), 15, sender=str(RECEIVER.address))
    assert bench.paid(PAYER) == FUNDS + 5


# --- hostile tokens and collectors ---


@pytest.mark.parametrize("inner", ["deposit", "settle", "claim", "finalizeWithdraw", "multicall"])
def test_reentry_from_a_collector(bench: Bench, inner: str) -> None:
    """A collector calls settlement again while the deposit is booked and the tokens are not there yet."""
    config = bench.config()
    bench.deposit(config, 100)
    bench.claim(bench.voucher(config, 50))
    thief = bench.load("ThievingCollector")
    settle = bench.settlement.settle.prepare_calldata(str(RECEIVER.address), bench.token.address)
    data = {
        "deposit": bench.settlement.deposit.prepare_calldata(row(config), 1, thief.address, b""),
        "settle": settle,
        "claim": bench.settlement.claim.prepare_calldata([claim_row(bench.voucher(config, 60))]),
        "finalizeWithdraw": bench.settlement.finalizeWithdraw.prepare_calldata(row(config)),
        "multicall": bench.settlement.multicall.prepare_calldata([settle]),
    }[inner]
    thief.call_back_with(bench.settlement.address, data)
    with pytest.raises(bench.boa.BoaError):
        bench.settlement.deposit(row(config), 5, thief.address, b"")
    assert bench.state(config) == (100, 50)
    assert bench.token.balanceOf(bench.settlement.address) == 100


def test_reentry_from_a_token_that_pays_out(bench: Bench) -> None:
    """A token calls settlement again during a refund: the lock refuses, and the whole refund with it."""
    token = bench.load("OddToken")
    token.mint(str(PAYER.address), 100)
    config = bench.config(token=address(token))
    bench.deposit(config, 100)
    refund = bench.settlement.refund.prepare_calldata(row(config), 10)
    token.call_back_with(bench.settlement.address, refund)
    with pytest.raises(bench.boa.BoaError):
        bench.settlement.refund(row(config), 10, sender=str(RECEIVER.address))
    token.call_back_with(bench.settlement.address, b"")
    bench.settlement.refund(row(config), 10, sender=str(RECEIVER.address))
    assert bench.state(config) == (90, 0)


def test_a_token_that_takes_a_fee(bench: Bench) -> None:
    """What did not arrive is not booked. A token without return values (USDT) works."""
    token = bench.load("OddToken")
    token.mint(str(PAYER.address), 100)
    config = bench.config(token=address(token))
    token.set_fee(1)
    with bench.refused("DepositCollectionFailed"):
        bench.deposit(config, 50)
    token.set_fee(0)
    bench.deposit(config, 50)
    assert bench.state(config) == (50, 0)


# --- smart wallets ---


def test_smart_wallets_pay_and_receive(bench: Bench) -> None:
    """EIP-1271: a payer without an authorizer, and a receiver's authorizer, may be contracts."""
    wallet = bench.load("Wallet")
    bench.token.mint(wallet.address, 100, sender=str(STRANGER.address))
    config = bench.config(payer=address(wallet), payer_authorizer=Address.zero(), receiver_authorizer=address(wallet))
    channel = config.channel_id(bench.domain)
    approve = encode(["address", "uint256"], [bench.allowed.address, 100])
    wallet.call(bench.token.address, keccak256(b"approve(address,uint256)")[:4] + approve)
    wallet.call(bench.allowed.address, bench.allowed.deposit.prepare_calldata(row(config), 100))
    long = b"\x05" * 200
    wallet.accept(bytes(voucher_digest(bench.domain, channel, 40)), long, False)
    bench.claim(dataclasses.replace(bench.voucher(config, 40), signature=long))
    with bench.refused("InvalidSignature"):
        bench.claim(dataclasses.replace(bench.voucher(config, 41), signature=long))
    refund = b"\x06" * 1000
    wallet.accept(bytes(refund_digest(bench.domain, channel, 0, 60)), refund, False)
    bench.settlement.refundWithSignature(row(config), 60, 0, refund)
    assert bench.state(config) == (40, 40)


def test_a_wallet_that_answers_rubbish_signed_nothing(bench: Bench) -> None:
    """EIP-1271: true is not the magic value; neither is the answer of a contract that has no such function."""
    wallet = bench.load("Wallet")
    bench.token.mint(wallet.address, 100, sender=str(STRANGER.address))
    config = bench.config(payer=address(wallet), payer_authorizer=Address.zero())
    approve = encode(["address", "uint256"], [bench.allowed.address, 100])
    wallet.call(bench.token.address, keccak256(b"approve(address,uint256)")[:4] + approve)
    wallet.call(bench.allowed.address, bench.allowed.deposit.prepare_calldata(row(config), 100))
    wallet.accept(bytes(32), b"", True)
    with bench.refused("InvalidSignature"):
        bench.claim(bench.voucher(config, 40))
    silent = bench.config(receiver_authorizer=address(bench.token))
    bench.deposit(silent, 100)
    with bench.refused("InvalidSignature"):
        bench.settlement.refundWithSignature(row(silent), 1, 0, bytes(65))
