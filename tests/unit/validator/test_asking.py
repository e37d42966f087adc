# SPDX-License-Identifier: Apache-2.0
"""How a canary ended, as the client that asked it saw it."""

from __future__ import annotations

import pytest

from bombyx.compose.validator_client import _failed
from bombyx.errors import (
    AttestationError,
    BombyxError,
    MalformedMessage,
    NoWorkers,
    PaymentError,
    Peer,
    ReceiptError,
    StreamTruncated,
    Unavailable,
    UntrustedProxyError,
)
from bombyx.roles.validator.asking import Ended

BY_WORKER = (
    ReceiptError("ids that are not what was billed", peer=Peer.WORKER),
    MalformedMessage("a sealed answer that is none", peer=Peer.WORKER),
)
BY_OTHERS = (
    StreamTruncated("cut", peer=Peer.PROXY),
    StreamTruncated("cut", peer=Peer.WORKER),
    UntrustedProxyError("the proxy says no"),
    PaymentError("the proxy booked more", peer=Peer.PROXY),
    ReceiptError("a receipt of another's", peer=Peer.PROXY),
    NoWorkers("it is not listed"),
    Unavailable("nobody answers"),
)


@pytest.mark.parametrize("error", BY_WORKER, ids=lambda error: type(error).__name__)
def test_only_what_the_workers_key_signed_is_held_against_it(error: BombyxError) -> None:
    """AUD-53: and it is counted as an answer refused by the client, never as evidence."""
    heard = _failed(error, None, 1.0)
    assert heard.ended is Ended.CHEATED
    assert not heard.package


@pytest.mark.parametrize("error", BY_OTHERS, ids=lambda error: type(error).__name__)
def test_whatever_a_proxy_or_the_line_may_have_done_is_a_lost_canary(error: BombyxError) -> None:
    """AUD-53: a colluding proxy cannot frame a worker by cutting its answers."""
    assert _failed(error, None, 1.0).ended is Ended.LOST


def test_what_went_wrong_is_told_by_its_code_alone() -> None:
    """AUD-58: messages of errors stay out of books and pages."""
    assert _failed(AttestationError("step 3 of a worker's evidence"), None, 1.0).why == "attestation_failed"
