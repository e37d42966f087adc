# SPDX-License-Identifier: Apache-2.0
"""The one door from an appraisal to a key."""

from __future__ import annotations

from typing import Any, cast

import pytest

from bombyx.adapters.entropy import SystemEntropy
from bombyx.errors import AttestationError
from bombyx.protocol.attest import AttestationResult, TrustClass
from bombyx.protocol.primitives import Address, Digest, Instant
from bombyx.protocol.seal import GatewayKey, Kem, KeyConfig, encode_key_configs
from bombyx.protocol.session import holds_candidate, recipient
from bombyx.protocol.wire.evidence import Keyset

NOW = Instant(1_790_000_000_000)
KEYS = {kem: GatewayKey.generate(1 + place, kem, SystemEntropy()).config for place, kem in enumerate(Kem)}


def appraised(*configs: KeyConfig) -> AttestationResult:
    """A result as an appraisal would give it, until a minute from now."""
    keyset = Keyset(
        v=1,
        ohttp_key_config=encode_key_configs(configs),
        receipt_address=Address.zero(),
        operator=Address.zero(),
        chain_id=1,
        pay_authorizer=Address.zero(),
        models=(),
        gpu_evidence=None,
        beacon=Digest.zero(),
        not_before=NOW,
        not_after=NOW.plus(seconds=60),
    )
    return AttestationResult(
        trust_class=TrustClass.SIMULATED,
        keyset=keyset,
        key_configs=keyset.ohttp_key_config,
        manifests=(),
        claims=cast(Any, None),
        steps=(),
        until=keyset.not_after,
        bundle=Digest.zero(),
    )


def test_the_post_quantum_key_comes_first() -> None:
    """SES-2: 0x647a before 0x0020, in whatever order they are listed."""
    classical, hybrid = KEYS[Kem.X25519], KEYS[Kem.MLKEM768_X25519]
    assert recipient(appraised(classical, hybrid), NOW) == hybrid
    assert recipient(appraised(classical), NOW) == classical


def test_an_appraisal_that_ran_out_gives_no_key() -> None:
    """SES-2: `until` is the first moment it no longer holds."""
    result = appraised(KEYS[Kem.X25519])
    assert recipient(result, NOW.plus(seconds=59.999)) == KEYS[Kem.X25519]
    with pytest.raises(AttestationError, match="SES-2"):
        recipient(result, NOW.plus(seconds=60))


def test_a_keyset_without_a_key_we_know_gives_none() -> None:
    """SES-2: refused, never a fallback."""
    with pytest.raises(AttestationError, match="SES-2"):
        recipient(appraised(), NOW)


def test_a_candidate_holds_a_key_of_its_own_keyset() -> None:
    """SES-3: by the digest of the configuration, and no other."""
    result = appraised(KEYS[Kem.X25519])
    assert holds_candidate(result, KEYS[Kem.X25519].candidate_id())
    assert not holds_candidate(result, KEYS[Kem.MLKEM768_X25519].candidate_id())
