# SPDX-License-Identifier: Apache-2.0
"""`bombyx conformance`: one JSON request on standard input, one JSON answer on standard output.

So that other implementations can be run against our vectors and ours against theirs, without linking either. Nothing is
fetched, no clock is read, no file is opened: the request holds everything. The form of both is in
docs/verify-a-provider.md.
Exit codes: 0 verified, 1 refused, 2 the request is not one, 3 not enough to decide.
"""

from __future__ import annotations

import base64
import binascii
import sys
import zlib
from typing import Any, Final

import orjson
import typer

from bombyx.cli.examined import EXIT_CODES, as_dict
from bombyx.errors import AttestationError, BombyxError, ConfigError, MalformedMessage
from bombyx.protocol.attest import (
    Archive,
    AtHand,
    RegisteredWorker,
    Step,
    appraise,
    examine,
    policy_from_toml,
    recognise,
)
from bombyx.protocol.primitives import Address, Instant
from bombyx.protocol.wire.evidence import BlockHeader, EvidenceBundle

MAX_REQUEST: Final = 33_554_432  # bytes
_KEYS: Final = {
    "evidence",
    "bundle",
    "policy",
    "now_ms",
    "registered",
    "beacon",
    "nonce",
    "report_data",
    "endorsements",
    "tokens",
    "jwks",
    "rims",
    "ocsp",
}
_IGNORED: Final = {"attack", "fails_at_step", "part", "verdict"}  # what a vector says beside its request


def conformance() -> None:
    """Read one JSON request, write one JSON answer. Exit codes: 0 verified, 1 refused, 2 bad request, 3 undecided."""
    code, answer = answered(sys.stdin.buffer.read(MAX_REQUEST + 1))
    sys.stdout.buffer.write(orjson.dumps(answer, default=str) + b"\n")
    raise typer.Exit(code)


def answered(raw: bytes) -> tuple[int, dict[str, Any]]:
    """Exit code and answer for one request."""
    try:
        if len(raw) > MAX_REQUEST:
            raise ConfigError(f"a request has at most {MAX_REQUEST} bytes")
        return _appraised(_request(raw))
    except ConfigError as error:
        return 2, {"passed": False, "verdict": "bad request", "error": str(error)}


def _request(raw: bytes) -> dict[str, Any]:
    try:
        request = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise ConfigError("the request is not JSON") from None
    if not isinstance(request, dict):
        raise ConfigError("the request is not a JSON object")
    unknown = sorted(set(request) - _KEYS - _IGNORED)
    if unknown:
        raise ConfigError(f"unknown key {unknown[0]!r}; known: {', '.join(sorted(_KEYS))}")
    return request


def _appraised(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    policy = policy_from_toml(_typed(request, "policy", str))
    now = _now(request)
    try:
        evidence = _evidence(request)
        found = recognise(evidence)
    except MalformedMessage as error:
        return 1, {"passed": False, "verdict": "refused", "error": str(error), "step": 1}
    if isinstance(found, EvidenceBundle):
        return _bundle(evidence, request, policy, now)
    at_hand = AtHand()
    if isinstance(found, Archive):
        at_hand, found = found.at_hand(), recognise(found.report)
    if isinstance(found, Archive | EvidenceBundle):
        raise ConfigError("an archive holds a provider's report")
    examination = examine(found, policy, now=now, at_hand=_at_hand(request, at_hand))
    return EXIT_CODES[examination.verdict], as_dict(examination)


def _evidence(request: dict[str, Any]) -> bytes:
    """`evidence`: base64. `bundle`: base64 of zlib, as our bundle vectors keep it."""
    if ("evidence" in request) == ("bundle" in request):
        raise ConfigError("the request holds either `evidence` or `bundle`")
    if "evidence" in request:
        return _bytes(request["evidence"], "evidence")
    unpacker = zlib.decompressobj()
    try:
        return unpacker.decompress(_bytes(request["bundle"], "bundle"), MAX_REQUEST)
    except zlib.error:
        raise ConfigError("bundle is not compressed with zlib") from None


def _bundle(evidence: bytes, request: dict[str, Any], policy: Any, now: Instant) -> tuple[int, dict[str, Any]]:
    endorsements = _list(request, "endorsements")
    try:
        result = appraise(
            evidence,
            policy,
            now=now,
            registered=_registered(request.get("registered")),
            beacon=_beacon(request.get("beacon")),
            endorsements=endorsements[0] if endorsements else None,
        )
    except AttestationError as error:
        steps = _steps(error.steps)
        failed = next((step["number"] for step in steps if step["status"] == "failed"), None)
        return 1, {"passed": False, "verdict": "refused", "error": str(error), "step": failed, "steps": steps}
    answer = {"passed": True, "verdict": "verified", "trust_class": str(result.trust_class), "until_ms": result.until}
    return 0, {**answer, "steps": _steps(result.steps)}


def _steps(steps: tuple[Step, ...]) -> list[dict[str, Any]]:
    return [{"number": s.number, "name": s.name, "status": str(s.status), "detail": s.detail} for s in steps]


def _registered(value: Any) -> RegisteredWorker | None:
    if value is None:
        return None
    try:
        names = ("operator", "receipt_address", "pay_authorizer")
        addresses = {name: Address.parse(value[name]) for name in names}
        return RegisteredWorker(chain_id=value.get("chain_id"), **addresses)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ConfigError("registered: three addresses in hex, and chain_id") from None


def _beacon(value: Any) -> BlockHeader | None:
    try:
        return None if value is None else BlockHeader.decode(bytes.fromhex(value))
    except (TypeError, ValueError, BombyxError):
        raise ConfigError("beacon: a block header's canonical CBOR in hex") from None


def _at_hand(request: dict[str, Any], base: AtHand) -> AtHand:
    return AtHand(
        endorsements=(*_list(request, "endorsements"), *base.endorsements),
        tokens=_list(request, "tokens") or base.tokens,
        jwks=_bytes(request["jwks"], "jwks") if "jwks" in request else base.jwks,
        rims=(*_list(request, "rims"), *base.rims),
        ocsp=(*_list(request, "ocsp"), *base.ocsp),
        nonce=_hex(request, "nonce") or base.nonce,
        report_data=_hex(request, "report_data"),
    )


def _list(request: dict[str, Any], name: str) -> tuple[bytes, ...]:
    values = request.get(name, [])
    if not isinstance(values, list):
        raise ConfigError(f"{name} is not a list of base64")
    return tuple(_bytes(value, name) for value in values)


def _bytes(value: Any, name: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise ConfigError(f"{name} is not base64") from None


def _hex(request: dict[str, Any], name: str) -> bytes | None:
    value = request.get(name)
    try:
        return None if value is None else bytes.fromhex(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{name} is not hex") from None


def _typed(request: dict[str, Any], name: str, kind: type) -> Any:
    value = request.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigError(f"{name} is missing, or no {kind.__name__}")
    return value


def _now(request: dict[str, Any]) -> Instant:
    try:
        return Instant(_typed(request, "now_ms", int))
    except ValueError:
        raise ConfigError("now_ms is out of range") from None
