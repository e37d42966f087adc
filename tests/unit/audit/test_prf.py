# SPDX-License-Identifier: Apache-2.0
"""The noise is the same for everybody."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.protocol.audit.prf import gumbel, uniform

U64 = st.integers(0, 2**64 - 1)


def test_the_published_numbers() -> None:
    """AUD-2: an independent numpy implementation gave these."""
    found = [uniform(42, 0, token) for token in (0, 1, 49_151)]
    assert found == [0.09976902494262468, 0.36633061836740527, 0.49536176622880906]
    assert [gumbel(42, 7, token) for token in (5, 6)] == pytest.approx([-1.270535, 0.369068], abs=1e-6)


@given(U64, st.integers(0, 2**32), st.integers(0, 2**32))
def test_noise_is_finite_whatever_is_asked(seed: int, position: int, token: int) -> None:
    """AUD-2: the ends of the interval are left out, so no logarithm fails."""
    assert 0.0 < uniform(seed, position, token) < 1.0
    assert math.isfinite(gumbel(seed, position, token))
