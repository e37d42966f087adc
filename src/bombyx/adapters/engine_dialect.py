# SPDX-License-Identifier: Apache-2.0
"""What is added to an application's request so that its engine tells ids and usage, and what must then be removed.

Everything else passes untouched, known or unknown. Three kinds of field are set whatever the application says, because
they are not its to choose: the output limit, the prefix cache's isolation, and which cache slot is used.

Ways to learn ids, by engine (all measured as free: under the noise of 3 %):

    llama.cpp   whole answers: `verbose` + `return_tokens` give every id; streams: one `logprobs` entry per piece of
                text, plus a running count (`timings_per_token`) that betrays withheld ids (`token_gaps.py`).
                Streams with tools refuse logprobs: ids follow from text and count alone, those of tool calls are lost.
    vLLM        `return_token_ids`; `cache_salt` isolates its prefix cache
    vLLM with the seeded sampler (`vllm_sampler.py`): the same, and a request that can be re-run is drawn by it: its
                sampling fields become arguments of the processor, the temperature 0
    SGLang      no ids; `cache_salt`
    plain       (Ollama and others) no ids, no known way to isolate a prefix cache
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from bombyx.adapters.vllm_sampler import PREFIX, arguments
from bombyx.errors import BadRequest
from bombyx.ports import EngineRequest
from bombyx.protocol.audit.asked import read_sampling
from bombyx.protocol.audit.seed import choice_seed, root_of
from bombyx.protocol.wire.audit import SamplerBlock

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
EMBEDDINGS: Final = "/v1/embeddings"
PATHS: Final = (CHAT, COMPLETIONS, EMBEDDINGS)

MAX_CHOICES: Final = 128  # of one request; OpenAI's own limit


class Dialect(StrEnum):
    """Which engine is spoken to."""

    PLAIN = "plain"
    VLLM = "vllm"
    VLLM_SEEDED = "vllm+seeded"  # an operator's word: nothing in vLLM's answers tells which processors it loaded
    SGLANG = "sglang"
    LLAMA_CPP = "llama.cpp"


class IdSource(StrEnum):
    """Where an answer carries its output ids."""

    NOWHERE = "nowhere"
    TOKEN_IDS = "token_ids"  # noqa: S105  # a field's name
    VERBOSE = "verbose"
    LOGPROBS = "logprobs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One request as the engine gets it, and what its answer must lose again."""

    body: bytes = field(repr=False)
    stream: bool
    choices: int
    ids: IdSource
    counts_all: bool  # the engine's usage counts every choice, not only the first
    stop: tuple[str, ...] = field(repr=False)
    drop: frozenset[str]  # of "logprobs", "usage", "timings", "__verbose", "token_ids"
    sampler: SamplerBlock | None = None  # the answer can be re-run: so it is drawn
    why: str = ""  # and if not, why


def plan_request(request: EngineRequest, dialect: Dialect, additions: Mapping[str, Any] | None = None) -> Plan:
    """Raises `BadRequest` for what no engine could serve."""
    asked = read_body(request)
    choices, made = (1, 1) if request.path == EMBEDDINGS else _choices(asked, dialect)
    body = dict(asked)
    ids, drop = IdSource.NOWHERE, frozenset[str]()
    if request.path != EMBEDDINGS:
        _limit_output(body, request, dialect, made)
        ids, drop = _ask_for_ids(body, request, dialect, choices)
    _isolate(body, request, dialect)
    sampler, why = None, ""
    if dialect is Dialect.VLLM_SEEDED:
        sampler, why = _seed(body, asked, request)
    body.update(additions or {})
    return Plan(
        body=json.dumps(body).encode(),
        stream=request.stream,
        choices=choices,
        ids=ids,
        counts_all=dialect is not Dialect.LLAMA_CPP or choices == 1,
        stop=_stop(asked),
        drop=drop,
        sampler=sampler,
        why=why,
    )


def read_body(request: EngineRequest) -> dict[str, Any]:
    """The request as an object. Raises `BadRequest` for what is none."""
    if request.path not in PATHS:
        raise BadRequest("no engine path of this name", status=404)
    try:
        asked = json.loads(request.body)
    except (ValueError, RecursionError):
        raise BadRequest("the request's body is not JSON") from None
    if not isinstance(asked, dict):
        raise BadRequest("the request's body is not a JSON object")
    if bool(asked.get("stream", False)) != request.stream:
        raise BadRequest("the body's `stream` contradicts the way it was sent")
    return asked


def _choices(asked: Mapping[str, Any], dialect: Dialect) -> tuple[int, int]:
    """How many choices are answered, and how many are made to choose from."""
    prompts = 1
    prompt = asked.get("prompt")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        prompts = len(prompt)
    if prompts > 1 and dialect is Dialect.LLAMA_CPP:
        # llama.cpp counts only the first prompt's tokens: the rest could not be billed
        raise BadRequest("this model takes one prompt per request")
    each, best_of = _whole(asked, "n"), _whole(asked, "best_of")
    each = 1 if each is None else each
    made = max(each, 1 if best_of is None else best_of)
    if each < 1 or prompts * made > MAX_CHOICES:
        raise BadRequest(f"between 1 and {MAX_CHOICES} choices can be asked for")
    return prompts * each, prompts * made


def _limit_output(body: dict[str, Any], request: EngineRequest, dialect: Dialect, made: int) -> None:
    share = request.max_output // made
    if share < 1:
        raise BadRequest("more choices asked for than output tokens allowed")
    names = ["max_tokens", "max_completion_tokens", "n_predict"]  # llama.cpp: the last one wins over the others
    given = {name: value for name in names if (value := _whole(body, name)) is not None}
    limit = min([share, *(value for value in given.values() if value >= 0)])
    if dialect is Dialect.LLAMA_CPP:
        body.pop("n_predict", None)
    for name in given.keys() - {"n_predict"} or {"max_tokens"}:
        body[name] = limit


def _isolate(body: dict[str, Any], request: EngineRequest, dialect: Dialect) -> None:
    if dialect in (Dialect.VLLM, Dialect.VLLM_SEEDED, Dialect.SGLANG):
        body["cache_salt"] = base64.b64encode(request.cache_salt).decode()
        body.pop("kv_transfer_params", None)  # would name another request's cache
    elif dialect is Dialect.LLAMA_CPP:
        body["cache_prompt"] = False  # `engine_embedded` allows it again inside one conversation
        body.pop("id_slot", None)


def _ask_for_ids(
    body: dict[str, Any], request: EngineRequest, dialect: Dialect, choices: int
) -> tuple[IdSource, frozenset[str]]:
    drop: set[str] = set()
    if request.stream:
        options = body.get("stream_options")
        options = options if isinstance(options, dict) else {}
        if options.get("include_usage") is not True:
            drop.add("usage")
        body["stream_options"] = {**options, "include_usage": True}
    if dialect in (Dialect.VLLM, Dialect.VLLM_SEEDED):
        return IdSource.TOKEN_IDS, frozenset(drop | _set(body, "token_ids", return_token_ids=True))
    if dialect is not Dialect.LLAMA_CPP:
        return IdSource.NOWHERE, frozenset(drop)
    if not request.stream and choices == 1:
        return IdSource.VERBOSE, frozenset(drop | _set(body, "__verbose", verbose=True, return_tokens=True))
    if request.stream:
        drop |= _set(body, "timings", timings_per_token=True)
        if body.get("stop"):
            drop |= _set(body, "__verbose", verbose=True)  # tells a stop string from the model's own end
    if not body.get("logprobs") and not (request.stream and body.get("tools")):
        drop.add("logprobs")
        body.update({"logprobs": True, "top_logprobs": 1} if request.path == CHAT else {"logprobs": 1})
    return IdSource.LOGPROBS, frozenset(drop)


def _seed(body: dict[str, Any], asked: Mapping[str, Any], request: EngineRequest) -> tuple[SamplerBlock | None, str]:
    """Hand the draw to the seeded sampler, where the request can be re-run. Nobody else's word reaches it."""
    given = body.pop("vllm_xargs", None)
    given = given if isinstance(given, dict) else {}
    others = {name: value for name, value in given.items() if not name.startswith(PREFIX)}
    if others:
        body["vllm_xargs"] = others
    sampling = read_sampling(request.path, asked, cap=request.max_output)
    if sampling.sampler is None or request.audit is None or sampling.choices != 1:
        # vLLM gives every choice of a request the same arguments: they would all be drawn with one seed.
        why = sampling.why or ("no seed was given" if request.audit is None else "several choices in one request")
        return None, why
    for name in ("top_p", "top_k", "presence_penalty", "frequency_penalty", "repetition_penalty", "min_p", "seed"):
        body.pop(name, None)
    body["temperature"] = 0
    seed = choice_seed(root_of(asked, request.audit.root), 0)
    body["vllm_xargs"] = others | arguments(sampling.sampler, seed)
    return sampling.sampler, ""


def _set(body: dict[str, Any], drop: str, **fields: Any) -> set[str]:
    """Set `fields`; what to drop from the answer, unless the application had asked for it itself."""
    asked = all(body.get(name) is True for name in fields)
    body.update(fields)
    return set() if asked else {drop}


def _stop(asked: Mapping[str, Any]) -> tuple[str, ...]:
    stop = asked.get("stop")
    words = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
    return tuple(word for word in words if isinstance(word, str) and word)


def _whole(asked: Mapping[str, Any], name: str) -> int | None:
    value = asked.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadRequest(f"`{name}` is not a whole number")
    return value
