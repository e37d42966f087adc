# SPDX-License-Identifier: Apache-2.0
"""The guest agent's calls, by name: JSON arguments in, JSON answer out (dstack's agent_rpc, current and legacy).

Not here: the path a call came by (`serve.py`) and what it needs done (`guest.py`, `tls.py`, protocol/attest/appkeys).
Differences from the real agent, both by choice: EmitEvent is still served (upstream removed it, clients still call
it), and Attest answers version 0 of dstack's binary form (SCALE), where newer agents answer version 1 (MessagePack).

Always: arguments are bounded and of their type; a call nobody knows is `BadRequest` 404.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any, Final

import sha3

from bombyx.adapters.dstack_server import tls
from bombyx.adapters.dstack_server.guest import SimulatedGuest
from bombyx.errors import BadRequest, MalformedMessage
from bombyx.ports import Clock
from bombyx.protocol.attest import appkeys
from bombyx.protocol.attest.appkeys import Algorithm
from bombyx.protocol.attest.dstack_binary import BinaryAttestation

MAX_FIELD: Final = 65_536  # characters of one argument
Arguments = dict[str, Any]
Answer = dict[str, Any]
_KECCAK: Final = {"keccak256": sha3.keccak_256, "keccak384": sha3.keccak_384, "keccak512": sha3.keccak_512}
_HASHLIB: Final = {
    **{name: name for name in ("sha256", "sha384", "sha512")},
    **{f"sha3-{bits}": f"sha3_{bits}" for bits in (256, 384, 512)},
}


class GuestAgent:
    """Every call of one simulated guest. `current` and `legacy` are the tables of the two sockets."""

    def __init__(self, guest: SimulatedGuest, clock: Clock) -> None:
        self.guest = guest
        self._clock = clock
        self.current: dict[str, Callable[[Arguments], Awaitable[Answer]]] = {
            "Info": self._info,
            "GetKey": self._get_key,
            "GetQuote": self._quote,
            "Attest": self._attest,
            "GetTlsKey": self._get_tls_key,
            "Sign": self._sign,
            "Verify": self._verify,
            "EmitEvent": self._emit,
            "Version": self._version,
            "GpuInfo": self._gpu_info,
        }
        self.legacy: dict[str, Callable[[Arguments], Awaitable[Answer]]] = {
            "Info": self._info,
            "DeriveKey": self._derive_key,
            "DeriveK256Key": self._derive_k256,
            "TdxQuote": self._tdx_quote,
            "RawQuote": self._quote,
        }

    # --- what it is ---

    async def _info(self, arguments: Arguments) -> Answer:
        return self.guest.info(tls.app_certificate(self.guest.keys, self._clock.now()))

    async def _version(self, arguments: Arguments) -> Answer:
        return {"version": f"0.5.8-bombyx-{version('bombyx')}", "rev": "simulated"}

    async def _gpu_info(self, arguments: Arguments) -> Answer:
        return {"attestation": ""}  # no simulated image opens a GPU

    # --- quotes and events ---

    async def _quote(self, arguments: Arguments) -> Answer:
        return await self.guest.quote(_hex(arguments, "report_data"))

    async def _attest(self, arguments: Arguments) -> Answer:
        """dstack's versioned attestation, version 0. A shorter report data is filled as for a quote."""
        made = await self._quote(arguments)
        attested = BinaryAttestation(
            quote=bytes.fromhex(made["quote"]),
            events=self.guest.events,
            report_data=bytes.fromhex(made["report_data"]),
            config=made["vm_config"],
        )
        return {"attestation": attested.encode().hex()}

    async def _emit(self, arguments: Arguments) -> Answer:
        self.guest.emit(_text(arguments, "event"), _hex(arguments, "payload"))
        return {}

    async def _tdx_quote(self, arguments: Arguments) -> Answer:
        """Legacy: the agent hashes, with a prefix, unless told `raw`."""
        name = _text(arguments, "hash_algorithm") or "sha512"
        data = _hex(arguments, "report_data")
        prefix = "" if name == "raw" else _text(arguments, "prefix") or "app-data:"
        if name != "raw":
            data = _hashed(name, prefix.encode() + data)
        made = await self.guest.quote(data)
        return {"quote": made["quote"], "event_log": made["event_log"], "hash_algorithm": name, "prefix": prefix}

    # --- keys ---

    async def _get_key(self, arguments: Arguments) -> Answer:
        key = self._derive(arguments)
        return {"key": key.secret.reveal().hex(), "signature_chain": [link.hex() for link in key.chain]}

    async def _derive_k256(self, arguments: Arguments) -> Answer:
        key = self._derive({**arguments, "algorithm": ""})
        return {"k256_key": key.secret.reveal().hex(), "k256_signature_chain": [link.hex() for link in key.chain]}

    async def _get_tls_key(self, arguments: Arguments) -> Answer:
        key = tls.fresh_key()
        request = _tls_request(arguments)
        if _flag(arguments, "usage_ra_tls"):
            request = await self._with_quote(request, tls.public_der(key))
        return tls.issue(self.guest.keys, key, request, self._clock.now())

    async def _derive_key(self, arguments: Arguments) -> Answer:
        fresh = _flag(arguments, "random_seed")
        key = tls.fresh_key() if fresh else tls.path_key(self.guest.keys, _text(arguments, "path"))
        return tls.issue(self.guest.keys, key, _tls_request(arguments), self._clock.now())

    async def _with_quote(self, request: tls.TlsRequest, public: bytes) -> tls.TlsRequest:
        made = await self.guest.quote(hashlib.sha512(tls.RA_TLS_TAG + public).digest())
        return tls.TlsRequest(
            subject=request.subject,
            alt_names=request.alt_names,
            server=request.server,
            client=request.client,
            not_before=request.not_before,
            not_after=request.not_after,
            extensions=(
                (tls.QUOTE_OID, bytes.fromhex(made["quote"])),
                (tls.EVENT_LOG_OID, made["event_log"].encode()),
                (tls.APP_ID_OID, self.guest.keys.app_id),
            ),
        )

    async def _sign(self, arguments: Arguments) -> Answer:
        algorithm = Algorithm.parse(_text(arguments, "algorithm"))
        curve = Algorithm.ED25519 if algorithm is Algorithm.ED25519 else Algorithm.SECP256K1
        key = self.guest.keys.derive("vms", "signing", curve)
        signature = appkeys.sign(key, _hex(arguments, "data"), algorithm)
        chain = [signature.hex(), *(link.hex() for link in key.chain)]
        return {"signature": signature.hex(), "signature_chain": chain, "public_key": key.public.hex()}

    async def _verify(self, arguments: Arguments) -> Answer:
        algorithm = Algorithm.parse(_text(arguments, "algorithm"))
        data, signature, public = (_hex(arguments, name) for name in ("data", "signature", "public_key"))
        return {"valid": appkeys.verify(algorithm, data, signature, public)}

    def _derive(self, arguments: Arguments) -> appkeys.DerivedKey:
        algorithm = Algorithm.parse(_text(arguments, "algorithm"))
        if algorithm is Algorithm.PREHASHED:
            raise MalformedMessage("secp256k1_prehashed is a way to sign, not a kind of key", rule="ENC-2")
        return self.guest.keys.derive(_text(arguments, "path"), _text(arguments, "purpose"), algorithm)


async def call(table: dict[str, Callable[[Arguments], Awaitable[Answer]]], name: str, arguments: Any) -> Answer:
    """One call. Raises `BadRequest` or `MalformedMessage`."""
    method = table.get(name)
    if method is None:
        raise BadRequest("no such call", status=404, code="not_found", rule="ENC-8")
    if not isinstance(arguments, dict):
        raise MalformedMessage("a call's arguments are a JSON object", rule="ENC-8")
    return await method(arguments)


def _hashed(name: str, data: bytes) -> bytes:
    if name in _KECCAK:
        return bytes(_KECCAK[name](data).digest())
    if name in _HASHLIB:
        return hashlib.new(_HASHLIB[name], data).digest()
    known = ", ".join(("raw", *_HASHLIB, *_KECCAK))
    raise MalformedMessage(f"no hash algorithm of this name; known: {known}", rule="ENC-8")


def _tls_request(arguments: Arguments) -> tls.TlsRequest:
    names = arguments.get("alt_names") or []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise MalformedMessage("alt_names is a list of names", rule="ENC-8")
    return tls.TlsRequest(
        subject=_text(arguments, "subject") or "dstack",
        alt_names=tuple(names),
        server=_flag(arguments, "usage_server_auth"),
        client=_flag(arguments, "usage_client_auth"),
        not_before=_seconds(arguments, "not_before"),
        not_after=_seconds(arguments, "not_after"),
    )


def _text(arguments: Arguments, name: str) -> str:
    value = arguments.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > MAX_FIELD or not value.isprintable():
        raise MalformedMessage(f"{name} is not a text of at most {MAX_FIELD} printable characters", rule="ENC-8")
    return value


def _hex(arguments: Arguments, name: str) -> bytes:
    value = arguments.get(name) or ""
    try:
        if len(value) <= 2 * MAX_FIELD:
            return bytes.fromhex(value.removeprefix("0x"))
    except (AttributeError, TypeError, ValueError):
        pass
    raise MalformedMessage(f"{name} is not at most {MAX_FIELD} bytes in hex", rule="ENC-8")


def _flag(arguments: Arguments, name: str) -> bool:
    return arguments.get(name) in (True, "true", "1")


def _seconds(arguments: Arguments, name: str) -> int | None:
    value = arguments.get(name)
    if value is None:
        return None
    try:
        return int(value)
    except (TypeError, ValueError):
        raise MalformedMessage(f"{name} is not a number of seconds", rule="ENC-8") from None
