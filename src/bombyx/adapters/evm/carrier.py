# SPDX-License-Identifier: Apache-2.0
"""`ports.Carrier` on an EVM chain: other people's deposits, signed by them, sent and paid for by us (LEDGER-1, X402-4).

It is what x402 calls a facilitator, for deposits alone. Always: the payer's signature binds channel, amount and time;
a sender can carry it or leave it, never change it.
"""

from __future__ import annotations

from bombyx.adapters.evm import calls
from bombyx.adapters.evm.abi import Reader, blob, call, sequence
from bombyx.adapters.evm.ledger import GAS_MONEY, EvmLedger
from bombyx.adapters.evm.rpc import RpcError, as_bytes
from bombyx.errors import Unavailable
from bombyx.ports import DepositTerms
from bombyx.protocol.pay.x402_payment import Deposit
from bombyx.protocol.primitives import Digest
from bombyx.protocol.wire.channel import ChannelConfig
from bombyx.protocol.wire.eip712 import word
from bombyx.protocol.wire.signing import SigningKey


class EvmCarrier:
    """Beside a ledger of the same chain; the two share nonces."""

    def __init__(self, ledger: EvmLedger) -> None:
        self._ledger = ledger
        self._fuelled = False

    async def terms(self) -> DepositTerms:
        """Asked of the token: its own words are what its signatures are checked under."""
        return DepositTerms(
            collector=self._ledger.book.erc3009_collector,
            token_name=await self._text("name()"),
            token_version=await self._text("version()"),
        )

    async def carry(self, config: ChannelConfig, deposit: Deposit, *, signer: SigningKey) -> Digest:
        await self._fuel(signer)
        book = self._ledger.book
        data = sequence(word(deposit.valid_after), word(deposit.valid_before), deposit.salt, blob(deposit.signature))
        call_data = calls.deposit(config, deposit.amount, book.erc3009_collector, data)
        return (await self._ledger.transactions.send(book.settlement, call_data, signer=signer)).hash

    async def _fuel(self, signer: SigningKey) -> None:
        """Gas, on development chains; elsewhere the account is funded by its owner."""
        if self._ledger.book.development and not self._fuelled:
            await self._ledger.rpc.call("anvil_setBalance", str(signer.address), hex(GAS_MONEY))
            self._fuelled = True

    async def _text(self, getter: str) -> str:
        try:
            answer = await self._ledger.rpc.call(
                "eth_call", {"to": str(self._ledger.book.token), "data": "0x" + call(getter).hex()}, "latest"
            )
        except RpcError as error:
            raise Unavailable(f"the token does not tell its {getter}: {error.message[:100]}", rule="LEDGER-2") from None
        return Reader(as_bytes(answer)).blob(0)[:128].decode("utf-8", "replace")
