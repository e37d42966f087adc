# SPDX-License-Identifier: Apache-2.0
"""The prompt both sides of an audit make: the same ids from the same body."""

from __future__ import annotations

from typing import Any, cast

import pytest

from bombyx.adapters.chat_prompt import PromptMaker
from bombyx.adapters.gguf import find_packaged_model
from bombyx.adapters.llama_api import LlamaModel
from bombyx.errors import BadRequest, EngineUnavailable
from bombyx.protocol.audit.asked import CHAT, COMPLETIONS


@pytest.fixture(scope="module")
def prompts() -> PromptMaker:
    return PromptMaker(LlamaModel(find_packaged_model()))


class Stub:
    """A model of which only the template matters; every character is a token."""

    adds_bos, bos, eos, size = True, "<s>", "</s>", 1 << 21

    def __init__(self, template: str | None) -> None:
        self.chat_template = template

    def tokenise(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))


def stub(template: str | None) -> PromptMaker:
    return PromptMaker(cast(LlamaModel, Stub(template)))


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def test_the_models_own_template_speaks(prompts: PromptMaker) -> None:
    """AUD-8: as the model was trained, its own system message where the application sends none."""
    assert prompts.render([user("hi")]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    own = [{"role": "developer", "content": "Be brief."}, user([{"type": "text", "text": "a"}] * 2)]
    assert prompts.render(own) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\na\na<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompts.ids(CHAT, {"messages": [user("hi")]})[0] == 1


def test_prompts_come_as_text_or_as_ids(prompts: PromptMaker) -> None:
    """AUD-8"""
    assert prompts.ids(COMPLETIONS, {"prompt": [5, 6]}) == (5, 6)
    assert len(prompts.ids(COMPLETIONS, {"prompt": "The sea is"})) == 3
    with pytest.raises(BadRequest):
        prompts.ids(COMPLETIONS, {"prompt": [10**6]})


def test_bos_stands_once() -> None:
    """AUD-8: a template that writes BOS does not double the tokenizer's."""
    made = stub("{{ bos_token }}{{ messages[0]['content'] }}").ids(CHAT, {"messages": [user("x")]})
    assert made == (ord("x"),)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ strftime_now('%Y') }}",
        "{{ messages[7].content }}",
        None,
    ],
)
def test_a_template_cannot_reach_out_and_its_refusal_is_the_applications_fault(template: str | None) -> None:
    """AUD-8: no Python, no clock, no endless loop, no change of what it was given; nothing it says is repeated."""
    with pytest.raises(BadRequest) as caught:
        stub(template).render([user("secret words")])
    assert "secret" not in str(caught.value)


def test_a_template_that_does_not_parse_serves_nothing() -> None:
    """AUD-8"""
    with pytest.raises(EngineUnavailable):
        stub("{% if %}")
