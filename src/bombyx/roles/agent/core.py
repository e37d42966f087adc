# SPDX-License-Identifier: Apache-2.0
"""The agent: asks a model, pays with keys that only its code can derive, and states what was said (spec ENC-2, ENC-4).

It stands on a client that it is handed as one function, `Ask`; no role is imported here.

Always: its keys come from the enclave's key provider at each start and are kept nowhere; the quote is made over the
whole body, after the answer was checked and paid for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import orjson

from bombyx.errors import Unavailable
from bombyx.ports import Clock, EndorsementSource, EvidenceSource
from bombyx.protocol.attest.appkeys import DerivedKey
from bombyx.protocol.attest.statement import KEY_PURPOSE, VERSION, Statement, StatementBody
from bombyx.protocol.primitives import Address, Digest, RequestId, sha256
from bombyx.protocol.wire.signing import SigningKey

WALLET_PATH: Final = "bombyx/wallet"
SESSION_PATH: Final = "bombyx/session"
MANNER: Final = "You are a helpful assistant."


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One checked answer, with what proves it."""

    text: str = field(repr=False)
    model: Digest
    request_id: RequestId
    proof: bytes = field(repr=False)
    tokens: bytes = field(repr=False)


Ask = Callable[[bytes], Awaitable[Answered]]  # the body of a chat completion; raises what went wrong
GetKey = Callable[[str, str], Awaitable[DerivedKey]]  # path, purpose


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentWallet:
    """The agent's keys, as the enclave derived them."""

    identity: DerivedKey
    owner: SigningKey  # holds the money, signs statements
    session: SigningKey  # signs vouchers

    @classmethod
    async def derive(cls, get_key: GetKey) -> AgentWallet:
        identity = await get_key(WALLET_PATH, KEY_PURPOSE)
        session = await get_key(SESSION_PATH, KEY_PURPOSE)
        return cls(identity=identity, owner=SigningKey(identity.secret), session=SigningKey(session.secret))


class Agent:
    """One agent. `close` hands the client back to whoever made it."""

    def __init__(
        self,
        *,
        wallet: AgentWallet,
        device: EvidenceSource,
        endorser: EndorsementSource | None,
        clock: Clock,
        ask: Ask,
        close: Callable[[], Awaitable[None]],
    ) -> None:
        self._wallet = wallet
        self._device = device
        self._endorser = endorser
        self._clock = clock
        self._ask = ask
        self.close = close

    @property
    def address(self) -> Address:
        """Where its money is; the same after a restart of the same code."""
        return self._wallet.owner.address

    async def say(self, question: str, *, model: str, max_tokens: int = 64) -> Statement:
        """Ask `model`, pay for it, and state its answer. Raises what went wrong on the way."""
        messages = [{"role": "system", "content": MANNER}, {"role": "user", "content": question}]
        body = {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0}
        return await self.state(await self._ask(orjson.dumps(body)), question)

    async def state(self, answered: Answered, question: str) -> Statement:
        """A statement of one answer: body, signature and chain, quote."""
        wallet = self._wallet
        body = StatementBody(
            v=VERSION,
            said=answered.text,
            asked=question,
            model=answered.model,
            request_id=answered.request_id,
            proof=sha256(answered.proof),
            public=wallet.identity.public,
            at=self._clock.now(),
        )
        quote = await self._device.quote(body.report_data())
        return Statement(
            v=VERSION,
            body=body.encode(),
            signature=wallet.owner.sign(body.signed()),
            chain=wallet.identity.chain,
            technology=quote.technology,
            quote=quote.quote,
            event_log=quote.event_log,
            compose=quote.compose,
            endorsements=await self._endorsements(quote.quote),
            proof=answered.proof,
            tokens=answered.tokens,
        )

    async def _endorsements(self, quote: bytes) -> bytes:
        """Left out where they cannot be had: a verifier brings its own."""
        if self._endorser is None:
            return b""
        try:
            return await self._endorser.endorsements(quote)
        except Unavailable:
            return b""
