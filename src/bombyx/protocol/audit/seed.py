# SPDX-License-Identifier: Apache-2.0
"""Where an answer's noise comes from: nobody's single choice (spec AUD-1).

The worker cannot choose: the client's nonce is in it. The client cannot choose: its nonce is sealed before it knows
which of its candidates answers, and the worker's address is in it. An application that sets OpenAI's `seed` chooses
alone; its answers can be checked, and count in no sequential test.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from bombyx.protocol.primitives import Address, Digest, tagged_hash

NO_BEACON: Final = Digest.zero()  # nothing is paid per amount of traffic, so self-made traffic earns nothing


def joint_root(request_hash: Digest, nonce: bytes, operator: Address, beacon: Digest = NO_BEACON) -> Digest:
    """What both ends make together. `request_hash` is the receipt's, `nonce` the client's, sealed with the request."""
    return tagged_hash("bombyx seed v1", request_hash, nonce, operator, beacon)


def application_root(seed: int) -> Digest:
    """The application's own choice: the same seed gives the same noise at every worker."""
    return tagged_hash("bombyx seed application v1", (seed & (1 << 64) - 1).to_bytes(8))


def root_of(asked: Mapping[str, Any], joint: Digest) -> Digest:
    """The root that counts for a request body: the application's where it names a `seed`."""
    seed = asked.get("seed")
    return application_root(seed) if isinstance(seed, int) and not isinstance(seed, bool) else joint


def choice_seed(root: Digest, choice: int) -> int:
    """The seed of one choice of an answer, 64 bits."""
    return int.from_bytes(tagged_hash("bombyx seed choice v1", root, choice.to_bytes(4))[:8])
