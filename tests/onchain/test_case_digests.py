# SPDX-License-Identifier: Apache-2.0
"""One digest, two authors: what the contracts hash in cases and receipts is what protocol/ hashes, for any values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
from eth_abi import encode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.onchain.conftest import STRANGER, Bench
from tests.onchain.court import GUILTY, VALIDATORS, Court, signed

from bombyx.adapters.evm import judged
from bombyx.protocol.audit.case import (
    Verdict,
    certificate_digest,
    certificate_message,
    encode_certificate,
    verdict_commitment,
)
from bombyx.protocol.primitives import Digest, sha256

shared = settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def court(deployed: Bench) -> Iterator[Court]:
    with deployed.boa.env.anchor():
        yield Court(deployed, validators=4)


@shared
@given(
    case=st.integers(0, 2**256 - 1),
    turn=st.integers(0, 255),
    verdict=st.sampled_from(list(Verdict)),
    at=st.integers(0, 2**32 - 1),
)
def test_certificates_agree(court: Court, case: int, turn: int, verdict: Verdict, at: int) -> None:
    """VAL-8: the digest jurors sign is the one the service recovers from."""
    message = certificate_message(court.bench.chain_id, court.staked.validation, case, turn, verdict)
    ours = certificate_digest(court.staked.validation, at, message)
    assert bytes(court.service.certificateDigest(case, turn, verdict, at)) == ours


@shared
@given(salt=st.binary(min_size=32, max_size=32).map(Digest), verdict=st.sampled_from(list(Verdict)))
def test_commitments_open(court: Court, salt: Digest, verdict: Verdict) -> None:
    """VAL-8: what Python commits to, the contract opens, for every salt and verdict; another salt does not."""
    with court.boa.env.anchor():
        case = court.open(VALIDATORS[0])
        jury = court.draw(case)
        for juror in jury:
            court.commit(case, juror, verdict, salt)
        with court.bench.refused("NotWhatWasCommitted"):
            court.reveal(case, jury[0], verdict, sha256(salt))
        court.reveal(case, jury[0], verdict, salt)
        assert court.service.verdictOf(case, 1, str(jury[0].address)) == verdict


@shared
@given(
    seq=st.integers(1, 2**64 - 1),
    charge=st.integers(0, 2**128 - 1),
    frames=st.integers(0, 2**32 - 1),
    model=st.binary(min_size=32, max_size=32).map(Digest),
)
def test_receipts_agree(court: Court, seq: int, charge: int, frames: int, model: Digest) -> None:
    """VAL-4, RCT-1: the contract's EIP-712 digest of a receipt is the protocol's; so it recovers the same key."""
    with court.boa.env.anchor():
        held = court.receipt(seq, charge=charge, frames=frames, model=model)
        number = court.faults.challengeReceipt(signed(held), 0, sender=str(VALIDATORS[0].address))
        assert bytes(court.faults.challenges(number)[4]) == held.receipt.typed_digest(court.domain)
        assert court.faults.challenges(number)[2] == str(held.signer(court.domain))


@shared
@given(seq=st.integers(0, 2**64 - 1), signature=st.binary(max_size=65))
def test_our_calldata_is_the_common_one(court: Court, seq: int, signature: bytes) -> None:
    """VAL-3: a signed receipt written by hand is what a general encoder writes."""
    held = dataclasses.replace(court.receipt(seq), signature=signature)
    general = encode([judged.SIGNED], [signed(held)])
    assert general[32:] == judged.signed_receipt(held).data


def test_certificates_are_sorted_by_signer() -> None:
    """VAL-8: whoever collected them in whatever order."""
    signatures = {one.address: bytes([n]) * 65 for n, one in enumerate(VALIDATORS)}
    shuffled = dict(reversed(signatures.items()))
    assert encode_certificate(signatures) == encode_certificate(shuffled)
    assert encode_certificate({}) == b""
    assert verdict_commitment(1, 1, GUILTY, sha256(b""), STRANGER.address) != verdict_commitment(
        1, 2, GUILTY, sha256(b""), STRANGER.address
    )
