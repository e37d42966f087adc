# SPDX-License-Identifier: Apache-2.0
"""From a request's body to the prompt's ids: the model's own chat template and tokenizer (spec AUD-8).

Worker and Verifier run these same lines over what the manifest pins, so both get the same ids. NOT for tools, images or
several prompts: `protocol/audit/asked.py` says which requests come here.

Always: the template runs in Jinja's sandbox, without clock, files or state, so that the same messages give the same
bytes; a template that refuses the messages is the application's fault.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bombyx.adapters.llama_api import LlamaModel
from bombyx.errors import BadRequest, EngineUnavailable
from bombyx.protocol.audit.asked import CHAT, message_text

MAX_PROMPT: Final = 4 << 20  # characters of a rendered prompt


class PromptMaker:
    """Makes prompts for one model. Raises `EngineUnavailable` when its template does not even parse."""

    def __init__(self, model: LlamaModel) -> None:
        self._model = model
        self._bos, self._eos = model.bos, model.eos
        source = model.chat_template
        self._template = None if source is None else _compile(source)

    @property
    def chats(self) -> bool:
        """Does the model have a chat template of its own?"""
        return self._template is not None

    def ids(self, path: str, asked: Mapping[str, Any]) -> tuple[int, ...]:
        """The prompt's ids. The request is one that `asked.uncovered` has nothing against."""
        if path == CHAT:
            return self._model.tokenise(self._without_bos(self.render(asked["messages"])))
        prompt = asked["prompt"]
        if isinstance(prompt, str):
            return self._model.tokenise(prompt)
        if any(token >= self._model.size for token in prompt):
            raise BadRequest("the prompt has a token the model does not have")
        return tuple(prompt)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The text the model reads. Raises `BadRequest` when the template refuses these messages."""
        if self._template is None:
            raise BadRequest("this model has no chat template")
        try:
            text = self._template.render(
                messages=[_message(message) for message in messages],
                add_generation_prompt=True,
                bos_token=self._bos,
                eos_token=self._eos,
                tools=None,
                documents=None,
            )
        except Exception:  # noqa: BLE001  a template may raise anything, and what it says may quote the messages
            raise BadRequest("the model's chat template refuses these messages") from None
        if len(text) > MAX_PROMPT:
            raise BadRequest("the prompt is too long", code="context_length_exceeded")
        return text

    def _without_bos(self, text: str) -> str:
        """A template that writes BOS and a tokenizer that adds it would make two of them."""
        return text.removeprefix(self._bos) if self._model.adds_bos and self._bos else text


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    role = "system" if message["role"] == "developer" else message["role"]
    named = {"name": message["name"]} if isinstance(message.get("name"), str) else {}
    return {"role": role, "content": message_text(message), **named}


def _compile(source: str) -> jinja2.Template:
    # As the libraries that models are published with render them; HTML is not what comes out.
    world = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    world.filters["tojson"] = _to_json
    world.globals["raise_exception"] = _refuse
    try:
        return world.from_string(source)
    except jinja2.TemplateError:
        raise EngineUnavailable("the model's chat template cannot be read") from None


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
