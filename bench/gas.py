# SPDX-License-Identifier: Apache-2.0
"""What does a request cost in gas, when a channel carries a thousand of them?

Measured on a development node, whole transactions (21,000, calldata, execution, refunds), the contracts as shipped.
A request is paid by a voucher or a MAC off chain and costs nothing by itself; what it costs is its share of opening
the channel, of one row in a batch of claims, and of the sweep to the receiver. Beside it: x402 `exact`, which is one
transfer on chain for each request; and Cocoon, whose documents name 0.01 TON for each operation on chain.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any, Final

from bombyx.adapters.evm import AddressBook, Rpc, abi, calls, seed, start_node
from bombyx.adapters.evm.deploy import DEV_MINTER
from bombyx.adapters.evm.transactions import Patience, Transactions
from bombyx.ports import Claim
from bombyx.protocol.primitives import Address, Amount, Digest, Secret, keccak256
from bombyx.protocol.wire.channel import ChannelConfig, refund_digest, settlement_domain, voucher_digest
from bombyx.protocol.wire.eip712 import struct_hash, type_hash, typed_digest, word
from bombyx.protocol.wire.signing import SigningKey

REQUESTS: Final = 1_000  # in one channel's life
BATCH: Final = 50  # channels in one claim
FOREVER: Final = 2**40  # seconds
PAYER, SESSION, RECEIVER, AUTHORIZER, RELAYER = (SigningKey(Secret(bytes([n]) * 32)) for n in range(0xA1, 0xA6))
TERMS: Final = "(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"


class _MiningRpc(Rpc):
    """Asks for a block after each transaction, instead of waiting for the next second."""

    async def call(self, method: str, *params: Any) -> Any:
        result = await super().call(method, *params)
        if method == "eth_sendRawTransaction":
            await super().call("evm_mine")
        return result


class Gas:
    """The steps of a channel's life, each measured by its receipt."""

    def __init__(self, rpc: Rpc, book: AddressBook) -> None:
        self.rpc, self.book = rpc, book
        self.found: dict[str, int] = {}
        self.domain = settlement_domain(book.chain_id, book.settlement)
        self._transactions = Transactions(rpc, patience=Patience(poll=0.005))

    async def send(self, to: Address, data: bytes, signer: SigningKey, name: str = "", *, share: int = 1) -> None:
        mined = await self._transactions.send(to, data, signer=signer)
        if name:
            self.found[name] = mined.gas_used // share

    def config(self, number: int) -> ChannelConfig:
        return ChannelConfig(
            payer=PAYER.address,
            payer_authorizer=SESSION.address,
            receiver=RECEIVER.address,
            receiver_authorizer=AUTHORIZER.address,
            token=self.book.token,
            withdraw_delay=900,
            salt=keccak256(word(number)),
        )

    def claim(self, number: int, total: int) -> Claim:
        config = self.config(number)
        signature = SESSION.sign(voucher_digest(self.domain, config.channel_id(self.domain), total))
        return Claim(config=config, ceiling=Amount(total), signature=signature, total_claimed=Amount(total))

    async def signed_transfer(self, kind: str, to: Address, amount: int, nonce: Digest) -> bytes:
        """A signature for EIP-3009."""
        answer = await self.rpc.call(
            "eth_call", {"to": str(self.book.token), "data": "0x" + abi.call("DOMAIN_SEPARATOR()").hex()}, "latest"
        )
        hashed = struct_hash(
            type_hash(kind + TERMS), word(PAYER.address), word(to), word(amount), word(0), word(FOREVER), nonce
        )
        return PAYER.sign(typed_digest(Digest.parse(answer), hashed))

    # --- what is measured ---

    async def deposits(self) -> None:
        book = self.book
        for salt, name in ((1, "deposit by authorization, new channel"), (2, "deposit by authorization, top-up")):
            config = self.config(0)
            nonce = keccak256(config.channel_id(self.domain), word(salt))
            signature = await self.signed_transfer("ReceiveWithAuthorization", book.erc3009_collector, 10**6, nonce)
            data = calls.erc3009_data(FOREVER, salt, signature)
            await self.send(book.settlement, calls.deposit(config, 10**6, book.erc3009_collector, data), RELAYER, name)
        await self.send(book.token, calls.approve(book.allowance_collector, 2**256 - 1), PAYER, "approve, once a payer")
        for name in ("deposit by allowance, new channel", "deposit by allowance, top-up"):
            await self.send(book.allowance_collector, calls.deposit_from_allowance(self.config(1), 10**6), PAYER, name)

    async def claims(self) -> None:
        book = self.book
        settle = calls.settle(RECEIVER.address, book.token)
        await self.send(book.settlement, calls.claim([self.claim(0, 100)]), RECEIVER, "claim of 1, first of a receiver")
        await self.send(book.settlement, settle, RECEIVER, "settle, first of a receiver")
        await self.send(book.settlement, calls.claim([self.claim(0, 200)]), RECEIVER, "claim of 1, later")
        await self.send(book.settlement, settle, RECEIVER, "settle, later")
        both = calls.multicall([calls.claim([self.claim(0, 300)]), settle])
        await self.send(book.settlement, both, RECEIVER, "claim of 1 and settle, in one transaction")
        for number in range(2, 102):
            deposit = calls.deposit_from_allowance(self.config(number), 10**6)
            await self.send(book.allowance_collector, deposit, PAYER)
        for count, total in ((10, 100), (50, 200), (100, 300)):
            rows = [self.claim(number, total) for number in range(2, 2 + count)]
            await self.send(book.settlement, calls.claim(rows), RECEIVER, f"claim of {count}, a channel", share=count)
        await self.send(book.settlement, settle, RECEIVER)

    async def ways_out(self) -> None:
        book, config = self.book, self.config(0)
        digest = refund_digest(self.domain, config.channel_id(self.domain), 0, 100)
        refund = calls.refund_with_signature(config, 100, 0, AUTHORIZER.sign(digest))
        await self.send(book.settlement, refund, RELAYER, "refund")
        await self.send(book.settlement, calls.initiate_withdraw(config, 100), PAYER, "withdrawal, start")
        await self.rpc.call("evm_increaseTime", 901)
        await self.rpc.call("evm_mine")
        await self.send(book.settlement, calls.finalize_withdraw(config), PAYER, "withdrawal, end")

    async def exact(self) -> None:
        """x402 `exact`: a facilitator submits the payer's signed transfer for every request."""
        for number in (1, 2):
            nonce = keccak256(b"exact", word(number))
            signature = await self.signed_transfer("TransferWithAuthorization", RECEIVER.address, 300, nonce)
            data = abi.call(
                "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)",
                word(PAYER.address),
                word(RECEIVER.address),
                word(300),
                word(0),
                word(FOREVER),
                nonce,
                abi.blob(signature),
            )
            await self.send(self.book.token, data, RELAYER, "x402 exact, a request")


async def measure() -> dict[str, int]:
    """Gas of every step, by name. The same on every machine."""
    node = await start_node()
    rpc = _MiningRpc([node.url])
    try:
        gas = Gas(rpc, await seed(rpc))
        for key in (PAYER, RECEIVER, RELAYER):
            await rpc.call("anvil_setBalance", str(key.address), hex(10**20))
        await gas.send(gas.book.token, calls.mint(PAYER.address, 10**12), DEV_MINTER)
        for part in (gas.deposits, gas.claims, gas.ways_out, gas.exact):
            await part()
        return gas.found
    finally:
        await rpc.close()
        await node.close()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """A channel's way from opening to the receiver's account."""

    name: str
    steps: Sequence[tuple[str, float]]  # name of a step, and this channel's share of it

    def a_request(self, gas: dict[str, int]) -> float:
        return sum(gas[name] * share for name, share in self.steps) / REQUESTS


LIVES: Final = (
    Life(
        name="allowance, claimed with 49 others",
        steps=(
            ("deposit by allowance, new channel", 1),
            ("claim of 50, a channel", 1),
            ("settle, later", 1 / BATCH),
        ),
    ),
    Life(
        name="authorization (stock x402), claimed with 49 others",
        steps=(
            ("deposit by authorization, new channel", 1),
            ("claim of 50, a channel", 1),
            ("settle, later", 1 / BATCH),
        ),
    ),
    Life(
        name="a payer's ten channels as deposited by default: the first by authorization, then an approval, nine by it",
        steps=(
            ("deposit by authorization, new channel", 1 / 10),
            ("approve, once a payer", 1 / 10),
            ("deposit by allowance, new channel", 9 / 10),
            ("claim of 50, a channel", 1),
            ("settle, later", 1 / BATCH),
        ),
    ),
    Life(
        name="topped up, claimed with 49 others",
        steps=(
            ("deposit by allowance, top-up", 1),
            ("claim of 50, a channel", 1),
            ("settle, later", 1 / BATCH),
        ),
    ),
    Life(
        name="allowance, alone, closed by refund",
        steps=(
            ("deposit by allowance, new channel", 1),
            ("claim of 1 and settle, in one transaction", 1),
            ("refund", 1),
        ),
    ),
)


def main() -> None:
    """Print the steps, what they come to for one request, and the goal."""
    from _machine import Goal, options, report

    chosen = options(__doc__)
    gas = asyncio.run(measure())
    rows: list[dict[str, object]] = [{"what": name, "gas": used} for name, used in gas.items()]
    rows += [
        {"what": f"a request at {REQUESTS} a channel: {life.name}", "gas": round(life.a_request(gas), 1)}
        for life in LIVES
    ]
    rows.append({"what": "Cocoon, an operation on chain (its documents; not measured)", "gas": "0.01 TON"})
    amortised = LIVES[0].a_request(gas)
    goals = [
        Goal("gas a request, amortised", round(amortised, 1), "<", 100),
        Goal("times cheaper than x402 exact", round(gas["x402 exact, a request"] / amortised), ">", 100),
    ]
    report("gas", rows, goals, as_json=chosen.json)


if __name__ == "__main__":
    main()
