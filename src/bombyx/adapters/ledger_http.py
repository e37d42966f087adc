# SPDX-License-Identifier: Apache-2.0
"""A `MemoryLedger` served over loopback HTTP, and the client for it: one chain for the processes of one machine.

It is a development stand-in and nothing else: the faucet gives to anybody, nothing is stored, and the server binds to
loopback addresses alone. What a contract would ask of `msg.sender` is asked here too: a call that changes state is
signed by its sender over method, parameters and a fresh call id. A call id is carried out once; sent again, it gives
the first answer, so a client may repeat a call whose answer was lost.

    POST /call  {"method", "params": "<JSON text>", "id": "<16 bytes hex>", "signature": "<65 bytes hex>" or ""}
    200 {"result"} | 4xx {"code", "message", "rule"}
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import aiohttp
from aiohttp import web

from bombyx.adapters import ledger_json as j
from bombyx.adapters.memory import MemoryLedger
from bombyx.adapters.memory_chain import MemoryChain
from bombyx.errors import ConfigError, MalformedMessage, PaymentError, PeerError, Unavailable
from bombyx.ports import ChannelView, Claim, LedgerInfo, Operator, OperatorRole
from bombyx.protocol.primitives import Address, Amount, Digest, tagged_hash
from bombyx.protocol.wire.channel import ChannelConfig
from bombyx.protocol.wire.evidence import BlockHeader
from bombyx.protocol.wire.signing import SigningKey, recover

MAX_CALL: Final = 1 << 20  # bytes
MAX_ANSWER: Final = 16 << 20  # bytes; a registry of many operators is the largest
TIMEOUT: Final = 10.0  # seconds for one call
KEPT_CALLS: Final = 10_000  # answers kept for calls that are sent again
Read = Callable[[MemoryChain, j.Json], Any]
Change = Callable[[MemoryChain, Address, j.Json], Digest]

_READS: Final[Mapping[str, Read]] = {
    "info": lambda chain, p: j.info_to(chain.info),
    "head": lambda chain, p: j.header_to(chain.head()),
    "block": lambda chain, p: _maybe(j.header_to, chain.block(Digest.parse(p["hash"]))),
    "balance": lambda chain, p: str(int(chain.balance(Address.parse(p["account"])))),
    "channel": lambda chain, p: _maybe(j.view_to, chain.channel(Digest.parse(p["channel"]))),
    "operators": lambda chain, p: [j.operator_to(one) for one in chain.operators(OperatorRole(p["role"]))],
    "references_agreed": lambda chain, p: chain.references.agreed(
        [Address.parse(one) for one in p["publishers"]], int(p["quorum"]), int(p["kind"]), Digest.parse(p["reference"])
    ),
    "faucet": lambda chain, p: str(chain.mint(Address.parse(p["account"]), j.amount(p["amount"]))),
}
_CHANGES: Final[Mapping[str, Change]] = {
    "deposit": lambda chain, sender, p: chain.deposit(
        sender, ChannelConfig.decode(bytes.fromhex(p["config"])), j.amount(p["amount"])
    ),
    "claim": lambda chain, sender, p: chain.claim(sender, [j.claim_from(one) for one in p["claims"]]),
    "claim_signed": lambda chain, sender, p: chain.claim_signed(
        [j.claim_from(one) for one in p["claims"]], bytes.fromhex(p["authorization"])
    ),
    "initiate_withdraw": lambda chain, sender, p: chain.initiate_withdraw(
        sender, Digest.parse(p["channel"]), j.amount(p["amount"])
    ),
    "finalize_withdraw": lambda chain, sender, p: chain.finalize_withdraw(sender, Digest.parse(p["channel"])),
    "refund": lambda chain, sender, p: chain.refund(
        sender, Digest.parse(p["channel"]), j.amount(p["amount"]), int(p["nonce"]), bytes.fromhex(p["signature"])
    ),
    "register": lambda chain, sender, p: chain.register(sender, j.operator_from(p["operator"])),
    "propose_reference": lambda chain, sender, p: chain.propose_reference(
        sender, int(p["kind"]), Digest.parse(p["reference"]), str(p["uri"])
    ),
    "revoke_reference": lambda chain, sender, p: chain.revoke_reference(
        sender, int(p["kind"]), Digest.parse(p["reference"])
    ),
    "set_publisher_delay": lambda chain, sender, p: chain.set_publisher_delay(sender, int(p["seconds"])),
}


def _maybe(convert: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else convert(value)


def _call_digest(call_id: str, method: str, params: str) -> Digest:
    return tagged_hash("bombyx ledger call v1", call_id.encode(), b"\x00", method.encode(), b"\x00", params.encode())


# --- server ----------------------------------------------------------------------------------------------------------


class LedgerServer:
    """A running server. `url` is where it is."""

    def __init__(self, ledger: MemoryLedger, runner: web.AppRunner) -> None:
        self.ledger = ledger
        self._runner = runner
        self.url = ""

    async def close(self) -> None:
        await self._runner.cleanup()


class _Calls:
    """Carries out calls on one chain, each id once."""

    def __init__(self, chain: MemoryChain) -> None:
        self._chain = chain
        self._answers: dict[str, Any] = {}

    async def handle(self, request: web.Request) -> web.Response:
        try:
            body = await request.read()
            return web.json_response({"result": self._answer(body)})
        except PeerError as error:
            return web.json_response(
                {"code": error.code, "message": error.message, "rule": error.rule}, status=error.status
            )

    def _answer(self, body: bytes) -> Any:
        method, params, call_id, signature = j.reading(lambda: _parse(body))
        if method in _READS:
            return j.reading(lambda: _READS[method](self._chain, json.loads(params)))
        if method not in _CHANGES:
            raise MalformedMessage(f"the ledger has no method {method[:40]!r}", rule="LEDGER-2")
        sender = recover(_call_digest(call_id, method, params), signature)
        if call_id not in self._answers:
            change = _CHANGES[method]
            self._answers[call_id] = str(j.reading(lambda: change(self._chain, sender, json.loads(params))))
            if len(self._answers) > KEPT_CALLS:
                del self._answers[next(iter(self._answers))]
        return self._answers[call_id]


def _parse(body: bytes) -> tuple[str, str, str, bytes]:
    call = json.loads(body)
    texts = (call["method"], call["params"], call["id"])
    if not all(isinstance(text, str) for text in texts) or len(call["id"]) != 32:
        raise ValueError("not a call")
    return call["method"], call["params"], call["id"], bytes.fromhex(call["signature"])


async def serve_ledger(ledger: MemoryLedger, port: int = 0, *, host: str = "127.0.0.1") -> LedgerServer:
    """Serve `ledger` on a loopback address; port 0 takes a free one."""
    if not ipaddress.ip_address(host).is_loopback:
        raise ConfigError(f"a memory ledger is served on loopback only, not on {host}", rule="LEDGER-3")
    app = web.Application(client_max_size=MAX_CALL)
    app.router.add_post("/call", _Calls(ledger.chain).handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError as error:
        await runner.cleanup()
        raise Unavailable(f"cannot serve the ledger on port {port}: {error}") from error
    server = LedgerServer(ledger, runner)
    bound = runner.addresses[0]
    server.url = f"http://{host}:{bound[1]}"
    return server


# --- client ----------------------------------------------------------------------------------------------------------


class HttpLedger:
    """`ports.Ledger` over `serve_ledger`."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._http: aiohttp.ClientSession | None = None
        self._info: LedgerInfo | None = None

    async def info(self) -> LedgerInfo:
        if self._info is None:
            found = await self._call("info", {})
            self._info = j.reading(lambda: j.info_from(found))
        return self._info

    async def head(self) -> BlockHeader:
        found = await self._call("head", {})
        return j.reading(lambda: j.header_from(found))

    async def block(self, block_hash: Digest) -> BlockHeader | None:
        found = await self._call("block", {"hash": str(block_hash)})
        return j.reading(lambda: None if found is None else j.header_from(found))

    async def balance(self, account: Address) -> Amount:
        found = await self._call("balance", {"account": str(account)})
        return j.reading(lambda: j.amount(found))

    async def faucet(self, account: Address, amount: int) -> Digest:
        """Money from nowhere, for development accounts. Not part of the port."""
        return await self._reference("faucet", {"account": str(account), "amount": str(int(amount))}, None)

    async def deposit(self, config: ChannelConfig, amount: Amount, *, signer: SigningKey) -> Digest:
        params = {"config": config.encode().hex(), "amount": str(int(amount))}
        return await self._reference("deposit", params, signer)

    async def channel(self, channel: Digest) -> ChannelView | None:
        found = await self._call("channel", {"channel": str(channel)})
        return j.reading(lambda: None if found is None else j.view_from(found))

    async def claim(self, claims: Sequence[Claim], *, signer: SigningKey) -> Digest:
        return await self._reference("claim", {"claims": [j.claim_to(one) for one in claims]}, signer)

    async def claim_signed(self, claims: Sequence[Claim], authorization: bytes, *, signer: SigningKey) -> Digest:
        params = {"claims": [j.claim_to(one) for one in claims], "authorization": authorization.hex()}
        return await self._reference("claim_signed", params, signer)

    async def initiate_withdraw(self, channel: Digest, amount: Amount, *, signer: SigningKey) -> Digest:
        params = {"channel": str(channel), "amount": str(int(amount))}
        return await self._reference("initiate_withdraw", params, signer)

    async def finalize_withdraw(self, channel: Digest, *, signer: SigningKey) -> Digest:
        return await self._reference("finalize_withdraw", {"channel": str(channel)}, signer)

    async def leaving(self) -> frozenset[Digest] | None:
        return None  # one machine's channels are few: they are looked at

    async def refund(
        self, channel: Digest, amount: Amount, nonce: int, signature: bytes, *, signer: SigningKey
    ) -> Digest:
        params = {
            "channel": str(channel),
            "amount": str(int(amount)),
            "nonce": nonce,
            "signature": signature.hex(),
        }
        return await self._reference("refund", params, signer)

    async def register(self, operator: Operator, *, signer: SigningKey) -> Digest:
        return await self._reference("register", {"operator": j.operator_to(operator)}, signer)

    async def operators(self, role: OperatorRole) -> tuple[Operator, ...]:
        found = await self._call("operators", {"role": str(role)})
        return j.reading(lambda: tuple(j.operator_from(one) for one in found))

    async def references_agreed(self, publishers: Sequence[Address], quorum: int, kind: int, reference: Digest) -> bool:
        params: j.Json = {"publishers": [str(one) for one in publishers], "quorum": quorum, "kind": kind}
        return await self._call("references_agreed", {**params, "reference": str(reference)}) is True

    async def propose_reference(self, kind: int, reference: Digest, uri: str, *, signer: SigningKey) -> Digest:
        params: j.Json = {"kind": kind, "reference": str(reference), "uri": uri}
        return await self._reference("propose_reference", params, signer)

    async def revoke_reference(self, kind: int, reference: Digest, *, signer: SigningKey) -> Digest:
        return await self._reference("revoke_reference", {"kind": kind, "reference": str(reference)}, signer)

    async def set_publisher_delay(self, seconds: int, *, signer: SigningKey) -> Digest:
        return await self._reference("set_publisher_delay", {"seconds": seconds}, signer)

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def _reference(self, method: str, params: j.Json, signer: SigningKey | None) -> Digest:
        found = await self._call(method, params, signer)
        return j.reading(lambda: Digest.parse(found))

    async def _call(self, method: str, params: j.Json, signer: SigningKey | None = None) -> Any:
        text, call_id = json.dumps(params), secrets.token_hex(16)
        signature = signer.sign(_call_digest(call_id, method, text)).hex() if signer else ""
        call = {"method": method, "params": text, "id": call_id, "signature": signature}
        try:
            return await self._post(call)
        except (aiohttp.ClientConnectionError, TimeoutError):
            if method == "faucet":
                raise Unavailable(f"the ledger at {self.url} does not answer", retry_after=1.0) from None
        await asyncio.sleep(0.05)  # a connection cut between calls: the same call id is carried out once
        try:
            return await self._post(call)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(f"the ledger at {self.url} does not answer", retry_after=1.0) from error

    async def _post(self, call: j.Json) -> Any:
        if self._http is None:
            self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT))
        async with self._http.post(f"{self.url}/call", json=call) as response:
            body = await _bounded(response)
        answer = j.reading(lambda: dict(json.loads(body)))
        if response.status == 200:
            return answer.get("result")
        if answer.get("code") == PaymentError.code:
            raise PaymentError(str(answer.get("message")), rule=str(answer.get("rule")))
        if response.status >= 500:
            raise Unavailable(f"the ledger at {self.url} answers {response.status}", retry_after=1.0)
        raise MalformedMessage(str(answer.get("message")), rule="LEDGER-2")


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for part in response.content.iter_any():
        body += part
        if len(body) > MAX_ANSWER:
            raise MalformedMessage(f"the ledger answers with more than {MAX_ANSWER} bytes", rule="LEDGER-2")
    return bytes(body)
