# SPDX-License-Identifier: Apache-2.0
"""dstack's guest agent as the enclave's device (`ports.EvidenceSource`), and as the giver of keys to code inside.

The agent is found as its own SDKs find it: the endpoint given, $DSTACK_SIMULATOR_ENDPOINT, then the usual sockets.
Legacy agents (tappd) are `tappd.py`'s.

Always: a quote is used only if it carries exactly our report data; answers are bounded; nothing of a key is logged.
GPU evidence that does not answer our nonce is not passed on (spec ENC-1).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson

from bombyx.errors import ConfigError, MalformedMessage, Peer, Unavailable
from bombyx.ports import Quote
from bombyx.protocol.attest.appkeys import Algorithm, DerivedKey, public_of
from bombyx.protocol.primitives import Secret, sha256

SOCKETS: Final = (
    "/var/run/dstack.sock",
    "/run/dstack.sock",
    "/var/run/dstack/dstack.sock",
    "/run/dstack/dstack.sock",
)
ENDPOINT_VARIABLE: Final = "DSTACK_SIMULATOR_ENDPOINT"
MAX_ANSWER: Final = 4 << 20  # bytes; GPU evidence of eight devices is 0.1 MB
SECONDS: Final = 30.0  # a quote takes well under one; GPU evidence a few
REPORT_DATA_AT: Final = 48 + 520  # TDX quote v4: header, then the report data's place in the TD report
REPORT_DATA_AT_V5: Final = REPORT_DATA_AT + 6
REPORT_DATA_SIZE: Final = 64


class AgentSocket:
    """JSON calls to an agent over a UNIX socket or http URL. One connection a call: quotes are rare."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    async def call(self, path: str, arguments: dict[str, Any]) -> dict[str, Any] | None:
        """The answer; None when the agent does not know the call. Raises `Unavailable` for all else."""
        url = (self.endpoint.rstrip("/") if self._is_url else "http://localhost") + path
        connector = aiohttp.TCPConnector() if self._is_url else aiohttp.UnixConnector(self.endpoint)
        timeout = aiohttp.ClientTimeout(total=SECONDS)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.post(url, json=arguments, allow_redirects=False) as response,
            ):
                data = await _bounded(response)
                status = response.status
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unavailable(
                f"the enclave's agent at {self.endpoint} does not answer ({type(error).__name__})"
            ) from None
        if status == 404:
            return None
        answer = _object(data)
        if status != 200 or "error" in answer:
            raise Unavailable(f"the enclave's agent refused {path}: {str(answer.get('error', status))[:200]}")
        return answer

    @property
    def _is_url(self) -> bool:
        return self.endpoint.startswith(("http://", "https://"))


class DstackEnclave:
    """One dstack machine, seen from inside."""

    def __init__(self, endpoint: str = "") -> None:
        self._socket = AgentSocket(endpoint or find_endpoint(ENDPOINT_VARIABLE, SOCKETS))
        self._compose: bytes | None = None

    async def quote(self, report_data: bytes) -> Quote:
        answer = await self._asked("/GetQuote", {"report_data": report_data.hex()})
        quote, events = hex_of(answer, "quote"), text_of(answer, "event_log")
        check_echo(quote, report_data)
        return Quote(technology="tdx", quote=quote, event_log=events.encode(), compose=await self._measured_compose())

    async def gpu(self, nonce: bytes) -> bytes | None:
        """NVIDIA evidence for `nonce`, or None where the agent knows of no GPU."""
        answer = await self._socket.call("/AttestGpu", {"nonce": nonce.hex()})
        if answer is not None:
            return nvidia_evidence(answer)
        told = await self._socket.call("/GpuInfo", {})
        if told and told.get("attestation"):
            # what it took at boot answers a nonce of its own: a verifier would have to refuse it
            raise Unavailable("this machine has a GPU, and its agent is too old to attest it for our nonce")
        return None

    async def key(self, path: str, purpose: str = "", algorithm: Algorithm = Algorithm.SECP256K1) -> DerivedKey:
        """A key bound to the code that is measured here (spec ENC-2)."""
        arguments = {"path": path, "purpose": purpose, "algorithm": str(algorithm)}
        answer = await self._asked("/GetKey", arguments)
        links = answer.get("signature_chain")
        try:
            secret = Secret(hex_of(answer, "key"))
            chain = tuple(bytes.fromhex(link) for link in links) if isinstance(links, list) else ()
            public = public_of(secret, algorithm)
        except (TypeError, ValueError):
            raise MalformedMessage("the agent's key is none of this algorithm", peer=Peer.HOST, rule="ENC-2") from None
        if len(chain) != 2:
            raise MalformedMessage("the agent's key has no chain of two signatures", peer=Peer.HOST, rule="ENC-3")
        return DerivedKey(
            algorithm=algorithm, purpose=purpose, secret=secret, public=public, chain=(chain[0], chain[1])
        )

    async def _measured_compose(self) -> bytes:
        """The app-compose file whose hash was measured; it does not change while we run."""
        if self._compose is None:
            self._compose = compose_of(await self._asked("/Info", {}))
        return self._compose

    async def _asked(self, path: str, arguments: dict[str, Any]) -> dict[str, Any]:
        answer = await self._socket.call(path, arguments)
        if answer is None:
            raise Unavailable(f"the agent at {self._socket.endpoint} does not know {path}: is it a legacy tappd?")
        return answer


def find_endpoint(variable: str, sockets: tuple[str, ...]) -> str:
    """Where an agent is. Raises `ConfigError` when this machine has none."""
    if named := os.environ.get(variable):
        return named
    for path in sockets:
        if Path(path).exists():
            return path
    raise ConfigError(f"no agent of an enclave here: none of {', '.join(sockets)} exists, and ${variable} is not set")


def check_echo(quote: bytes, report_data: bytes) -> None:
    """A quote over other report data binds nothing of ours. Raises `MalformedMessage` (ENC-1)."""
    start = REPORT_DATA_AT_V5 if quote[:2] == b"\x05\x00" else REPORT_DATA_AT
    if len(report_data) != REPORT_DATA_SIZE or quote[start : start + REPORT_DATA_SIZE] != report_data:
        raise MalformedMessage("the quote does not carry our report data", peer=Peer.HOST, rule="ENC-1")


def compose_of(info: dict[str, Any]) -> bytes:
    """The app-compose file in an agent's Info, held against the hash beside it."""
    told = info.get("tcb_info")
    tcb = _object(told.encode()) if isinstance(told, str) else told
    compose = tcb.get("app_compose") if isinstance(tcb, dict) else None
    if not isinstance(compose, str) or not compose:
        raise Unavailable("the agent does not show its app-compose file: set public_tcbinfo in it")
    stated = info.get("compose_hash") or (tcb or {}).get("compose_hash")
    if stated and sha256(compose.encode()).hex() != stated:
        raise MalformedMessage("the agent's app-compose file is not the one it says was measured", peer=Peer.HOST)
    return compose.encode()


def nvidia_evidence(answer: dict[str, Any]) -> bytes | None:
    """NVIDIA's bundle of AttestGpu's answer, in NVIDIA's own JSON form; None when no bundle is NVIDIA's."""
    bundles = answer.get("bundles")
    if not isinstance(bundles, list):
        raise MalformedMessage("AttestGpu's answer has no list of bundles", peer=Peer.HOST, rule="ENC-1")
    for bundle in bundles:
        if isinstance(bundle, dict) and str(bundle.get("vendor", "")).lower() == "nvidia":
            evidence = bundle.get("evidence")
            found = evidence.encode() if isinstance(evidence, str) else orjson.dumps(evidence)
            return (
                found if isinstance(orjson.loads(found), dict) else orjson.dumps({"evidence_list": orjson.loads(found)})
            )
    return None


def hex_of(answer: dict[str, Any], name: str) -> bytes:
    try:
        return bytes.fromhex(answer[name].removeprefix("0x"))
    except (KeyError, AttributeError, ValueError):
        raise MalformedMessage(f"the agent's {name} is not hex", peer=Peer.HOST, rule="ENC-1") from None


def text_of(answer: dict[str, Any], name: str) -> str:
    value = answer.get(name)
    if not isinstance(value, str):
        raise MalformedMessage(f"the agent's {name} is not a text", peer=Peer.HOST, rule="ENC-1")
    return value


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise MalformedMessage("the agent's answer is not a JSON object", peer=Peer.HOST, rule="ENC-1")
    return value


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for piece in response.content.iter_any():
        data += piece
        if len(data) > MAX_ANSWER:
            raise MalformedMessage(f"the agent's answer has more than {MAX_ANSWER} bytes", peer=Peer.HOST, rule="ENC-1")
    return bytes(data)
