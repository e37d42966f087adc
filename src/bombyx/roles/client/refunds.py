# SPDX-License-Identifier: Apache-2.0
"""The address each request names for refunds: another one every time, so that nobody can link two (spec AUD-5).

Always: the key follows from the client's secret and the request's id, so it need not be kept and cannot be lost alone.
"""

from __future__ import annotations

import hashlib
import hmac

from bombyx.protocol.primitives import Address, RequestId, Secret
from bombyx.protocol.wire.signing import SigningKey


class RefundKeys:
    """Made from the secret of all draws."""

    def __init__(self, secret: Secret) -> None:
        self._secret = secret

    def key(self, request_id: RequestId) -> SigningKey:
        """What signs a claim of this request's refund."""
        label = b"bombyx claim key v1\x00"
        return SigningKey(Secret(hmac.new(self._secret.reveal(), label + request_id, hashlib.sha256).digest()))

    def address(self, request_id: RequestId) -> Address:
        """What the request names."""
        return self.key(request_id).address
