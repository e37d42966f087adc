# SPDX-License-Identifier: Apache-2.0
"""An error of ours in the shape applications of OpenAI's API know: `{"error": {message, type, param, code, ...}}`.

Two fields are added to OpenAI's four: `fault` (whose) and `rule` (of the specification); an `AttestationError` also
shows its steps. Not here: what went wrong.

Always: `x-should-retry: false` wherever asking again could pay a second time (spec CLI-6).
"""

from __future__ import annotations

import math
from typing import Any, Final

import orjson

from bombyx.errors import (
    AttestationError,
    BombyxError,
    HeldElsewhere,
    LocalError,
    MalformedMessage,
    Overloaded,
    Peer,
    Unavailable,
    UntrustedProxyError,
)

RETRY_AFTER: Final = 1.0  # seconds, where whoever turned the request away did not say
_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


def problem_of(error: BombyxError, *, param: str | None = None) -> dict[str, Any]:
    """The JSON body, as a value."""
    told = error.as_dict()
    body: dict[str, Any] = {
        "message": told["message"],
        "type": _TYPES.get(status_of(error), "server_error"),
        "param": param,
        "code": told["code"],
        "fault": told["fault"],
        "rule": told["rule"],
    }
    if isinstance(error, AttestationError):
        body["steps"] = [step_row(step) for step in error.steps]
    return {"error": body}


def problem_body(error: BombyxError, *, param: str | None = None) -> bytes:
    return orjson.dumps(problem_of(error, param=param))


def problem_headers(error: BombyxError, *, sent: bool) -> dict[str, str]:
    """`sent`: the sealed request may have reached a worker."""
    headers = {"content-type": "application/json"}
    retry_after = error.retry_after if isinstance(error, Unavailable | UntrustedProxyError) else None
    if not _may_retry(error, sent=sent):
        headers["x-should-retry"] = "false"
    elif status_of(error) in (429, 503) and retry_after is None:
        retry_after = RETRY_AFTER
    if retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(retry_after)))
    return headers


def status_of(error: BombyxError) -> int:
    """The HTTP status the application sees; 500 for what is nobody else's, 502 for bytes a peer of ours got wrong."""
    if isinstance(error, MalformedMessage) and error.peer not in (Peer.APPLICATION, Peer.CLIENT):
        return 502
    return error.status if 400 <= error.status <= 599 else 500


def step_row(step: Any) -> dict[str, Any]:
    """One appraisal step, for JSON."""
    return {"number": step.number, "name": step.name, "status": str(step.status), "detail": step.detail}


def _may_retry(error: BombyxError, *, sent: bool) -> bool:
    """A refusal for load says that nothing ran; every other failure after sending leaves that open."""
    if isinstance(error, LocalError):
        return False
    if isinstance(error, Overloaded | HeldElsewhere):
        return True
    if isinstance(error, UntrustedProxyError):
        return error.status in (429, 503)
    return isinstance(error, Unavailable) and not sent
