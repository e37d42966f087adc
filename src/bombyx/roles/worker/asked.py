# SPDX-License-Identifier: Apache-2.0
"""What stands inside the seal: the application's HTTP request, and whether this worker may run it (WRK-1 .. WRK-3).

Not here: any change to it. What the engine needs on top is the engine adapter's to add and to take out again.

Always: only the paths named here reach an engine; the model named inside is the one Meta names and the client pays
for; an error is the application's and travels back sealed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import orjson

from bombyx.errors import BadRequest, MalformedMessage
from bombyx.protocol.primitives import Address
from bombyx.protocol.seal.bhttp import Request, decode_request, header
from bombyx.protocol.seal.fields import CACHE_SALT_FIELD, CLAIMANT_FIELD, NONCE_FIELD
from bombyx.roles.worker.signed import REPORT_PATH, SIGNATURE_PATH

MODELS_PATH: Final = "/v1/models"
ENGINE_PATHS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
METHODS: Final = {MODELS_PATH: "GET", **dict.fromkeys(ENGINE_PATHS, "POST")}
SALT_SIZE: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request an engine may run, or a look at the models or the evidence (`body` empty)."""

    path: str
    stream: bool
    query: str = ""
    body: bytes = field(default=b"", repr=False)
    cache_salt: bytes = field(default=b"", repr=False)
    client_nonce: bytes = field(default=b"", repr=False)
    claimant: Address = field(default=Address.zero(), repr=False)


def read_asked(bhttp: bytes, model: str) -> Asked:
    """Raises `BadRequest`, with the status the application shall see."""
    try:
        request = decode_request(bhttp)
    except MalformedMessage as error:
        raise BadRequest("the sealed message is not a binary HTTP request", rule=error.rule) from None
    path, query = _path(request)
    if path == MODELS_PATH or _signed(path):
        return Asked(path=path, stream=False, query=query)
    return Asked(
        path=path,
        stream=_stream(request.content, model),
        body=request.content,
        cache_salt=_secret(request, CACHE_SALT_FIELD),
        client_nonce=_secret(request, NONCE_FIELD),
        claimant=_claimant(request),
    )


def _path(request: Request) -> tuple[str, str]:
    whole = request.path.decode("ascii", "replace")
    path, _, query = whole.partition("?")
    wanted = "GET" if _signed(path) else METHODS.get(whole)  # the engine's paths take no query
    if wanted is None:
        raise BadRequest("this path is not served here", status=404, code="not_found", rule="WRK-1")
    if request.method != wanted.encode():
        raise BadRequest(f"{path} takes {wanted} only", status=405, code="method_not_allowed", rule="WRK-1")
    return path, query


def _signed(path: str) -> bool:
    return path == REPORT_PATH or path.startswith(SIGNATURE_PATH)


def _stream(content: bytes, model: str) -> bool:
    try:
        asked = orjson.loads(content)
    except orjson.JSONDecodeError:
        raise BadRequest("the request's body is not JSON", code="invalid_json", rule="WRK-2") from None
    if not isinstance(asked, dict):
        raise BadRequest("the request's body is not a JSON object", code="invalid_json", rule="WRK-2")
    if asked.get("model") != model:
        raise BadRequest(
            "the body names another model than the request was sealed for", code="wrong_model", rule="WRK-2"
        )
    stream = asked.get("stream") or False
    if not isinstance(stream, bool):
        raise BadRequest("`stream` is neither true nor false", code="invalid_parameter", rule="WRK-2")
    return stream


def _secret(request: Request, name: bytes) -> bytes:
    try:
        value = bytes.fromhex((header(request.headers, name) or b"").decode("ascii"))
    except ValueError:
        value = b""
    if len(value) != SALT_SIZE:
        raise BadRequest(f"{name.decode()} is not {SALT_SIZE} bytes in hex", rule="WRK-3")
    return value


def _claimant(request: Request) -> Address:
    """Zero where the client wants no refunds."""
    value = header(request.headers, CLAIMANT_FIELD)
    if value is None:
        return Address.zero()
    try:
        return Address(bytes.fromhex(value.decode("ascii")))
    except ValueError:
        raise BadRequest("bombyx-claimant is not an address in hex", rule="WRK-3") from None


def error_body(message: str, *, status: int, code: str) -> bytes:
    """An error in the form applications of the OpenAI API read."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


def models_body(names: tuple[str, ...]) -> bytes:
    """The answer to GET /v1/models: what this worker's manifests say, not what its engine calls them."""
    listed = [{"id": name, "object": "model", "created": 0, "owned_by": "bombyx"} for name in names]
    return orjson.dumps({"object": "list", "data": listed})
