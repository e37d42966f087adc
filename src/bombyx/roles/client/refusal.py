# SPDX-License-Identifier: Apache-2.0
"""What a proxy answers instead of an answer, read as an error of the right kind (spec SEAL-7, CLI-6, MKT-14).

Always: bounded, and a hint: whatever it says, no money follows from it, and at most one more sending.
"""

from __future__ import annotations

from typing import Final

import orjson

from bombyx.errors import BombyxError, HeldElsewhere, KeyConfigError, NoWorkers, Peer, UntrustedProxyError
from bombyx.ports import ProxyResponse
from bombyx.roles.client.answer import read_hint

OHTTP_KEY_TYPE: Final = "https://iana.org/assignments/http-problem-types#ohttp-key"
MAX_PROBLEM: Final = 65_536  # bytes
_PASSED_ON: Final = frozenset({400, 402, 404, 408, 409, 413, 429, 503, 504})


def wants_workers(error: BombyxError) -> bool:
    """Nobody it was sealed to could begin. Where a proxy says so it is a hint: it frees nothing it had not to free."""
    if isinstance(error, UntrustedProxyError):
        return error.status == NoWorkers.status and error.hint == NoWorkers.code
    return isinstance(error, NoWorkers)


async def refusal_of(response: ProxyResponse) -> tuple[BombyxError, str | None]:
    """What a proxy answered instead of an answer, as an error of the right kind, and the rule it names."""
    data = bytearray()
    try:
        async for piece in response.body():
            data += piece
            if len(data) > MAX_PROBLEM:
                break
    except BombyxError:
        pass  # the status alone must do
    finally:
        await response.aclose()
    problem = json_object(bytes(data))
    if problem.get("type") == OHTTP_KEY_TYPE:
        return KeyConfigError("the proxy says a worker no longer holds our key", peer=Peer.PROXY, rule="SEAL-10"), None
    code, replica = read_hint(bytes(data)), problem.get("replica")
    if code == HeldElsewhere.code and isinstance(replica, str):
        pause = _seconds(response.headers.get("retry-after"))
        return HeldElsewhere("another replica of the proxy keeps our channel", holder=replica, retry_after=pause), None
    status = response.status if response.status in _PASSED_ON else 502
    rule = problem.get("rule")
    named = rule if isinstance(rule, str) and len(rule) <= 16 and rule.isascii() else None
    error = UntrustedProxyError(
        f"the proxy refused with status {response.status} and says {code!r}",
        status=status,
        hint=code,
        rule=None,
        retry_after=_seconds(response.headers.get("retry-after")),
    )
    return error, named


def json_object(data: bytes) -> dict[str, object]:
    """What a proxy sent, where it is a JSON object; else an empty one."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _seconds(text: str | None) -> float | None:
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 6:
        return None
    return float(text)
