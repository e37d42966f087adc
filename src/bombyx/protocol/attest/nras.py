# SPDX-License-Identifier: Apache-2.0
"""Tokens of NVIDIA's Remote Attestation Service: a detached EAT of JSON Web Tokens (RFC 9711, RFC 7519, RFC 7515).

Not a replacement for the GPU's own evidence: a token says that NVIDIA looked and found it good.
Always: a token counts only if ES384 verifies under a key whose certificate was issued by an authority the policy names;
every other algorithm, an unsigned token, a key without a certificate counts for nothing. What the service did not find
good is refused. A token about another GPU than the one whose evidence we verified is refused.
"""

from __future__ import annotations

import base64
from typing import Any, Final

import orjson

from bombyx.errors import MalformedMessage
from bombyx.protocol.attest.findings import Finding
from bombyx.protocol.attest.steps import Refused
from bombyx.protocol.attest.x509chain import Chain, check_chain, check_p384, der, load_chain
from bombyx.protocol.primitives import Instant, sha256

MAX_TOKENS: Final = 262_144  # bytes; eight GPUs need 17 kB
MAX_KEYS: Final = 524_288  # bytes of a JWKS; NVIDIA's has 91 kB
MAX_DEVICES: Final = 32
CLOCK_SKEW: Final = 60  # seconds
_ISSUER: Final = "https://nras.attestation.nvidia.com"
_DOUBTFUL: Final = "x-nvidia-gpu-"  # every boolean claim under this name must be true
_GOOD: Final = {"measres": "success", "dbgstat": "disabled", "secboot": True}


def check_tokens(
    tokens: bytes,
    jwks: bytes,
    roots: tuple[bytes, ...],
    now: Instant,
    *,
    nonce: bytes,
    serials: frozenset[int] | None = None,
) -> Finding:
    """Check a detached EAT for `nonce`, and that it speaks of the GPUs with these certificate `serials`."""
    if not tokens:
        return Finding("NVIDIA's token (none at hand)")
    overall, devices = parse_tokens(tokens)
    if not jwks:
        return Finding("NVIDIA's token (its keys are not at hand)")
    if not roots:
        return Finding("NVIDIA's token (the policy names no authority for it)")
    keys = parse_jwks(jwks)
    claims = _verified(overall, keys, roots, now, nonce)
    if claims.get("x-nvidia-overall-att-result") is not True:
        raise Refused("NVIDIA's token says that the attestation failed")
    _check_digests(claims, devices)
    spoken = {_device(token, keys, roots, now, nonce) for token in devices.values()}
    if serials is not None and spoken != {str(serial) for serial in serials}:
        raise Refused("NVIDIA's token speaks of other GPUs than those in the evidence")
    return Finding(f"NVIDIA's token for {len(devices)} GPUs verifies", True, Instant(claims["exp"] * 1000))


# PARSE


def parse_tokens(raw: bytes) -> tuple[str, dict[str, str]]:
    """`[["JWT", overall], {"GPU-0": token, ...}]`. Raises `MalformedMessage`."""
    document = _json(raw, MAX_TOKENS, "tokens")
    try:
        (kind, overall), devices = document
        sound = kind == "JWT" and isinstance(overall, str) and 1 <= len(devices) <= MAX_DEVICES
        if sound and all(isinstance(name, str) and isinstance(token, str) for name, token in devices.items()):
            return overall, dict(devices)
    except (TypeError, ValueError, AttributeError):
        pass
    raise _malformed("tokens are not a detached EAT")


def parse_jwks(raw: bytes) -> dict[str, list[Any]]:
    """Encoded certificate chains by key id (RFC 7517); keys without one are left out. Raises `MalformedMessage`."""
    document = _json(raw, MAX_KEYS, "key set")
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list) or len(entries) > 256:
        raise _malformed("not a key set")
    return {entry["kid"]: entry["x5c"] for entry in entries if _certified(entry)}


def _certified(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("kid"), str) and isinstance(entry.get("x5c"), list)


def _certificates(encoded: list[Any]) -> Chain:
    try:
        return load_chain([base64.b64decode(one, validate=True) for one in encoded], "key set", longest=4)
    except (TypeError, ValueError):
        raise _malformed("a key's certificate is not base64") from None


def parse_token(token: str) -> tuple[dict[str, Any], dict[str, Any], bytes, bytes]:
    """Header, claims, what is signed, signature. Nothing of it verified. Raises `MalformedMessage`."""
    parts = token.split(".")
    if len(parts) != 3 or not token.isascii():
        raise _malformed("a token has three parts")
    header, claims = (_json(_base64url(part), MAX_TOKENS, "token") for part in parts[:2])
    if not isinstance(header, dict) or not isinstance(claims, dict):
        raise _malformed("a token's parts are not JSON objects")
    return header, claims, token.rpartition(".")[0].encode(), _base64url(parts[2])


def _base64url(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise _malformed("a token's part is not base64url") from None


def _json(raw: bytes, limit: int, what: str) -> Any:
    if len(raw) > limit:
        raise _malformed(f"{what} of {len(raw)} bytes, at most {limit}")
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise _malformed(f"{what} not JSON") from None


def _malformed(what: str) -> MalformedMessage:
    return MalformedMessage(f"attestation token: {what}", rule="ATT-6.9")


# CHAIN


def _verified(
    token: str, keys: dict[str, list[Any]], roots: tuple[bytes, ...], now: Instant, nonce: bytes
) -> dict[str, Any]:
    """The claims, once signature, authority, dates, issuer and nonce hold."""
    header, claims, signed, signature = parse_token(token)
    if header.get("alg") != "ES384" or len(signature) != 96:
        raise Refused("NVIDIA's token is not signed with ES384")
    encoded = keys.get(str(header.get("kid")))
    if encoded is None:
        raise Refused("NVIDIA's token is signed with a key that is not in the key set")
    chain = _certificates(encoded)
    _check_authority(chain, roots, now)
    r, s = (int.from_bytes(half, "big") for half in (signature[:48], signature[48:]))
    check_p384(chain[0], r, s, signed, "the signature of NVIDIA's token")
    _check_times(claims, now)
    if claims.get("iss") != _ISSUER:
        raise Refused("NVIDIA's token names another issuer")
    if str(claims.get("eat_nonce", "")).lower() != nonce.hex():
        raise Refused("NVIDIA's token answers another nonce")
    return claims


def _check_authority(chain: Chain, roots: tuple[bytes, ...], now: Instant) -> None:
    if der(chain[-1]) not in roots:
        raise Refused("the token's key was certified by an authority the policy does not name")
    check_chain(chain, "a token's key", now, anchored=True)


def _check_times(claims: dict[str, Any], now: Instant) -> None:
    times = tuple(claims.get(name) for name in ("nbf", "exp"))
    if not all(isinstance(one, int) and 0 <= one < 2**40 for one in times):
        raise Refused("NVIDIA's token does not say when it is valid")
    if not times[0] - CLOCK_SKEW <= now.seconds <= times[1]:  # type: ignore[operator]
        raise Refused("NVIDIA's token is not valid at this time")


# CLAIMS


def _check_digests(claims: dict[str, Any], devices: dict[str, str]) -> None:
    """The overall token names each device's token by its SHA-256, all of them and no others."""
    named = claims.get("submods")
    if not isinstance(named, dict) or set(named) != set(devices):
        raise Refused("NVIDIA's token names other devices than those that came with it")
    for name, token in devices.items():
        if named[name] != ["DIGEST", ["SHA-256", sha256(token.encode()).hex()]]:
            raise Refused("NVIDIA's token names another token of a device than the one that came with it")


def _device(token: str, keys: dict[str, list[Any]], roots: tuple[bytes, ...], now: Instant, nonce: bytes) -> str:
    claims = _verified(token, keys, roots, now, nonce)
    bad = sorted(key for key, value in claims.items() if key.startswith(_DOUBTFUL) and value is False)
    bad += sorted(key for key, value in _GOOD.items() if claims.get(key) != value)
    if bad:
        raise Refused(f"NVIDIA's token finds fault with a device: {bad[0]}")
    return str(claims.get("ueid"))
