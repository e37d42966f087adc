# SPDX-License-Identifier: Apache-2.0
"""A scripted network per test."""

from __future__ import annotations

import pytest
from tests.unit.client.pair import Pair, make_pair


@pytest.fixture
async def pair() -> Pair:
    return await make_pair()
