# SPDX-License-Identifier: Apache-2.0
"""Other providers' calls for signed answers and reports, as requests of ours to the one worker that can answer (ENC-7).

Always: a signature is asked of the worker that gave the answer and of nobody else; both calls travel sealed, as every
request does, so a proxy cannot tell them from one.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs

from bombyx.errors import BadRequest
from bombyx.protocol.primitives import Address
from bombyx.roles.client.asked import Asked

REPORT: Final = "/v1/attestation/report"
SIGNATURE: Final = "/v1/signature/"
REMEMBERED: Final = 4_096  # answers, as many as a worker keeps
MAX_TARGET: Final = 512  # characters of path and query
INPUT_BOUND: Final = 16  # tokens: there is no input; zero would look unlike any request


@dataclass(frozen=True, slots=True)
class Teller:
    """Who gave an answer."""

    operator: Address
    model: str


class Told:
    """Answers of this process by the id the application saw. Nothing is stored."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Teller] = OrderedDict()

    def note(self, answer_id: str, teller: Teller) -> None:
        if answer_id:
            self._known[answer_id] = teller
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    def get(self, answer_id: str) -> Teller | None:
        return self._known.get(answer_id)


def is_signed(path: str) -> bool:
    """Whether this path is one of the two."""
    return path == REPORT or path.startswith(SIGNATURE)


def answer_id(path: str) -> str:
    """The id asked for; empty for a report."""
    return path.removeprefix(SIGNATURE) if path.startswith(SIGNATURE) else ""


def wanted(query: str, name: str) -> str:
    """One value of the query; empty when it is not there."""
    return parse_qs(query).get(name, [""])[0]


def ask_for(path: str, query: str, teller: Teller | None, model: str) -> Asked:
    """The request. Raises `BadRequest` for a signature of an answer that this client was not given."""
    if teller is None and path != REPORT:
        raise BadRequest("no answer of that id was given here", status=404, code="not_found", rule="ENC-7")
    target = f"{path}?{query}" if query else path
    if len(target) > MAX_TARGET or not target.isascii() or not target.isprintable():
        raise BadRequest("the path is too long, or not plain text", rule="ENC-7")
    return Asked(
        path=target,
        method="GET",
        model=teller.model if teller is not None else model,
        only=(teller.operator,) if teller is not None else (),
        stream=False,
        input_bound=INPUT_BOUND,
        output_bound=0,
        prompts=1,
        choices=1,
        conversation=b"",
        stop=(),
        echo=False,
    )
