# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's C API: the logits both sides of an audit stand on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bombyx.adapters.gguf import find_packaged_model, read_gguf
from bombyx.adapters.llama_api import Item, LlamaContext, LlamaModel
from bombyx.adapters.llama_logits import log_normaliser, rank_of, top_candidates

ROWS = arrays.arrays(np.float32, st.integers(1, 700), elements=st.integers(-20, 20).map(float), fill=st.just(-20.0))


@pytest.fixture(scope="module")
def model() -> Iterator[LlamaModel]:
    loaded = LlamaModel(find_packaged_model())
    yield loaded
    loaded.close()


@given(row=ROWS, count=st.integers(1, 80) | st.integers(1, 9))
def test_candidates_are_the_largest_logits_and_ties_go_to_the_lower_id(
    row: np.ndarray[tuple[int], np.dtype[np.float32]], count: int
) -> None:
    """AUD-4: the same row gives the same candidates anywhere, shared edges too."""
    wanted = sorted(((token, float(z)) for token, z in enumerate(row)), key=lambda pair: (-pair[1], pair[0]))[:count]
    assert top_candidates(row, count) == tuple(wanted)
    assert [rank_of(row, token) for token, _ in wanted] == list(range(len(wanted)))


@given(row=ROWS)
@settings(max_examples=50)
def test_the_normaliser_makes_probabilities(row: np.ndarray[tuple[int], np.dtype[np.float32]]) -> None:
    assert np.exp(row.astype(float) - log_normaliser(row)).sum() == pytest.approx(1, abs=1e-5)


def test_the_library_and_the_file_agree_on_every_token(model: LlamaModel) -> None:
    """RCT-6: text is made of the pieces that stand in the token table clients hold."""
    table = read_gguf(find_packaged_model()).tokens
    assert model.size == table.size
    assert all(model.piece(token) == table.piece(token) for token in range(0, table.size, 37))
    assert model.is_end(2)
    assert not model.is_end(100)
    assert (model.bos, model.eos) == ("<|im_start|>", "<|im_end|>")


def test_sequences_do_not_hear_each_other(model: LlamaModel) -> None:
    """WRK: the same logits beside strangers, after a copy and after a cut."""
    context = LlamaContext(model, context=256, sequences=3, batch=64)
    try:
        prompt = model.tokenise("The capital of France is")
        alone = _last(context, prompt, 0)
        strange = model.tokenise("Nothing at all to do with it, in many more words than that")
        _last(context, strange, 1)
        context.copy(0, 2)
        follow = [Item(28, len(prompt), 0, True), Item(28, len(strange), 1, True), Item(28, len(prompt), 2, True)]
        rows = [row.copy() for _, row in context.decode(follow)]
        assert np.array_equal(rows[0], rows[2])
        assert not np.array_equal(rows[0], rows[1])
        context.cut(1)
        assert np.array_equal(_last(context, prompt, 1), alone)
    finally:
        context.close()


def _last(
    context: LlamaContext, prompt: tuple[int, ...], sequence: int
) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    items = [Item(token, at, sequence, at == len(prompt) - 1) for at, token in enumerate(prompt)]
    return next(row.copy() for _, row in context.decode(items))
