# SPDX-License-Identifier: Apache-2.0
"""Whose choice a seed is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bombyx.protocol.audit.seed import application_root, choice_seed, joint_root, root_of
from bombyx.protocol.primitives import Address, Digest

REQUEST, NONCE, OPERATOR = Digest(bytes(range(32))), bytes(range(32, 64)), Address(bytes(range(20)))


def test_roots_and_seeds_are_the_published_ones(repo: Path) -> None:
    """AUD-1: client, worker and Verifier make the same seed from the same parts."""
    cases = json.loads((repo / "tests" / "vectors" / "sampler.json").read_text())["seeds"]
    roots = [joint_root(REQUEST, NONCE, OPERATOR), application_root(1234), application_root(-1)]
    for case, root in zip(cases, roots, strict=True):
        assert case["root"] == root.hex()
        assert case["choices"] == [str(choice_seed(root, choice)) for choice in range(3)]


def test_every_part_changes_the_seed() -> None:
    """AUD-1: neither the client, nor the worker, nor the request alone fixes it."""
    roots = {
        joint_root(REQUEST, NONCE, OPERATOR),
        joint_root(Digest(bytes(32)), NONCE, OPERATOR),
        joint_root(REQUEST, bytes(32), OPERATOR),
        joint_root(REQUEST, NONCE, Address(bytes(20))),
        joint_root(REQUEST, NONCE, OPERATOR, Digest(b"\x01" * 32)),
    }
    assert len(roots) == 5
    assert len({choice_seed(root, choice) for root in roots for choice in range(8)}) == 40


@pytest.mark.parametrize("seed", [0, 1234, -1, 2**63, 2**70])
def test_an_applications_seed_counts_alone(seed: int) -> None:
    """AUD-1: the same `seed` gives the same answer at every worker, as the OpenAI API promises."""
    assert root_of({"seed": seed}, joint_root(REQUEST, NONCE, OPERATOR)) == application_root(seed)
    assert root_of({"seed": seed}, Digest.zero()) == application_root(seed)


@pytest.mark.parametrize("asked", [{}, {"seed": None}, {"seed": True}])
def test_without_a_seed_of_its_own_the_joint_one_counts(asked: dict[str, object]) -> None:
    """AUD-1"""
    joint = joint_root(REQUEST, NONCE, OPERATOR)
    assert root_of(asked, joint) == joint
