# SPDX-License-Identifier: Apache-2.0
"""Where the contracts are: the address book of a chain, putting the contracts there, and seeding a development node.

`deploy` sends ordinary transactions to any chain. `seed` writes code into a development node at the canonical addresses
that stock x402 SDKs have built in; on public chains the published x402 contracts are there already.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from bombyx.adapters.evm.abi import call
from bombyx.adapters.evm.rpc import Rpc, RpcError, as_bytes
from bombyx.adapters.evm.staked import DEVELOPMENT, NOBODY, Seats, Staked, StakeTerms, Word, put_staked, start_calls
from bombyx.adapters.evm.transactions import Transactions
from bombyx.errors import ConfigError, Unavailable
from bombyx.ports import LedgerInfo
from bombyx.protocol.primitives import Address, Secret
from bombyx.protocol.wire.eip712 import word
from bombyx.protocol.wire.signing import SigningKey

# Constants of the x402 SDKs and of Multicall3: the same on every chain that has them.
X402_SETTLEMENT: Final = Address.parse("0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003")
X402_ERC3009_COLLECTOR: Final = Address.parse("0x4020806089470a89826cB9fB1f4059150b550004")
MULTICALL3: Final = Address.parse("0xcA11bde05977b3631167028862bE2a173976CA11")
# Ours on development chains: readable, and nobody's key.
DEV_ALLOWANCE_COLLECTOR: Final = Address.parse("0xb0b0000000000000000000000000000000000001")
DEV_REGISTRY: Final = Address.parse("0xb0b0000000000000000000000000000000000002")
DEV_REFERENCE_VALUES: Final = Address.parse("0xb0b0000000000000000000000000000000000003")
DEV_TOKEN: Final = Address.parse("0xb0b0000000000000000000000000000000000004")
DEV_PLACES: Final = {
    "OperatorRegistry": DEV_REGISTRY,
    "StakeManager": Address.parse("0xb0b0000000000000000000000000000000000005"),
    "Slasher": Address.parse("0xb0b0000000000000000000000000000000000006"),
    "ReceiptRoots": Address.parse("0xb0b0000000000000000000000000000000000007"),
    "ReceiptFaults": Address.parse("0xb0b0000000000000000000000000000000000008"),
    "ValidationService": Address.parse("0xb0b0000000000000000000000000000000000009"),
    "Restitution": Address.parse("0xb0b000000000000000000000000000000000000a"),
    "ValidationRegistry8004": Address.parse("0xb0b000000000000000000000000000000000000b"),
}
# The first account every anvil makes; its key is public knowledge. It mints the development token.
DEV_MINTER: Final = SigningKey(
    Secret(bytes.fromhex("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressBook:
    """The contracts of one chain. `deposit_by`: "erc3009" (one transaction), "allowance" (cheaper, once approved), or
    "auto": an account's first deposit by the one, its later ones by the other (docs/adr/0011)."""

    chain_id: int
    settlement: Address
    registry: Address
    token: Address
    erc3009_collector: Address
    allowance_collector: Address
    reference_values: Address
    multicall: Address = MULTICALL3
    stake_manager: Address = NOBODY  # zero: this chain has no stake
    stake_strategy: Address = NOBODY
    slasher: Address = NOBODY
    receipt_roots: Address = NOBODY
    receipt_faults: Address = NOBODY
    validation: Address = NOBODY
    restitution: Address = NOBODY
    validation_registry: Address = NOBODY
    first_block: int = 0  # nothing of ours is in older blocks
    reorg_depth: int = 0  # blocks that may still be replaced
    deposit_by: str = "auto"
    development: bool = False  # tokens and gas come from nowhere

    @property
    def info(self) -> LedgerInfo:
        return LedgerInfo(
            chain_id=self.chain_id, settlement=self.settlement, registry=self.registry, token=self.token, kind="evm"
        )

    def as_dict(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: str(value) if isinstance(value, Address) else value for name, value in fields.items()}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> AddressBook:
        """Raises `ConfigError` for what is no address book."""
        try:
            made = {}
            for field in dataclasses.fields(cls):
                if field.name in raw:
                    kind = {"Address": Address.parse, "int": int, "str": str, "bool": bool}[str(field.type)]
                    made[field.name] = kind(raw[field.name])  # type: ignore[operator]  # one of four callables
            return cls(**made)
        except (TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"not an address book: {error}", rule="LEDGER-7") from None

    @classmethod
    def load(cls, path: Path, chain_id: int) -> AddressBook:
        """The entry of `chain_id` in a file of several chains."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            entry = raw[str(chain_id)]
        except OSError as error:
            raise ConfigError(f"cannot read the address book {path}: {error.strerror}", rule="LEDGER-7") from None
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{path} has no entry for chain {chain_id}", rule="LEDGER-7") from None
        return cls.from_dict({**entry, "chain_id": chain_id})

    def save(self, path: Path) -> None:
        """Add or replace this chain's entry; other chains' entries stay."""
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        found[str(self.chain_id)] = self.as_dict()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


@functools.cache
def artifact(name: str) -> dict[str, Any]:
    """ABI and creation code of a contract, as compiled by scripts/compile_contracts.py."""
    text = resources.files("bombyx").joinpath("contracts", f"{name}.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def creation_code(name: str, *arguments: Word) -> bytes:
    return bytes.fromhex(artifact(name)["bytecode"][2:]) + b"".join(word(one) for one in arguments)


async def deploy(
    rpc: Rpc,
    *,
    signer: SigningKey,
    token: Address | None = None,
    settlement: Address | None = None,
    erc3009_collector: Address | None = None,
    stake_manager: Address | None = None,
    stake_strategy: Address | None = None,
    committee: Address | None = None,
    terms: StakeTerms | None = None,
    transactions: Transactions | None = None,
) -> AddressBook:
    """Put the contracts on a chain; those named are taken as they are. Without a token a worthless one is made.

    `signer` is the admin that tells the contracts of each other; it can do nothing afterwards.
    """
    sender = transactions or Transactions(rpc)
    chosen = terms or StakeTerms()
    chosen.check()
    blocks: list[int] = []

    async def put(name: str, arguments: tuple[Word, ...] = ()) -> Address:
        mined = await sender.send(None, creation_code(name, *arguments), signer=signer)
        if mined.contract is None:
            raise Unavailable(f"the chain says nothing of where {name} is", rule="LEDGER-2")
        blocks.append(mined.block)
        return mined.contract

    async def named(known: Address | None, name: str, *arguments: Word) -> Address:
        return known or await put(name, arguments)

    there = MULTICALL3 if await code_at(rpc, MULTICALL3) else None
    at, multicall, money, values = await asyncio.gather(
        named(settlement, "BatchSettlement"),
        named(there, "Multicall3"),
        named(token, "Token3009", signer.address),
        named(None, "ReferenceValues"),
    )
    seats = Seats(admin=signer.address, committee=committee or NOBODY, steward=committee or NOBODY)
    erc3009, allowance, staked = await asyncio.gather(
        named(erc3009_collector, "ERC3009DepositCollector", at),
        named(None, "AllowanceDepositCollector", at),
        put_staked(put, money, seats, chosen, manager=stake_manager, strategy=stake_strategy),
    )
    for to, data in start_calls(staked):
        await sender.send(to, data, signer=signer)
    return AddressBook(
        chain_id=await rpc.chain_id(),
        settlement=at,
        token=money,
        erc3009_collector=erc3009,
        allowance_collector=allowance,
        reference_values=values,
        multicall=multicall,
        first_block=min(blocks),
        **_places(staked),
    )


async def seed(rpc: Rpc, *, terms: StakeTerms = DEVELOPMENT) -> AddressBook:
    """Make a development node a network: every contract at its known address. Idempotent; does nothing to balances."""
    seats = Seats(admin=DEV_MINTER.address, committee=DEV_MINTER.address, steward=DEV_MINTER.address)

    async def put(name: str, arguments: tuple[Word, ...]) -> Address:
        await _place(rpc, DEV_PLACES[name], creation_code(name, *arguments))
        return DEV_PLACES[name]

    staked = await put_staked(put, DEV_TOKEN, seats, terms, manager=None, strategy=None)
    book = AddressBook(
        chain_id=await rpc.chain_id(),
        settlement=X402_SETTLEMENT,
        token=DEV_TOKEN,
        erc3009_collector=X402_ERC3009_COLLECTOR,
        allowance_collector=DEV_ALLOWANCE_COLLECTOR,
        reference_values=DEV_REFERENCE_VALUES,
        development=True,
        **_places(staked),
    )
    plain: tuple[tuple[str, Address, tuple[Word, ...]], ...] = (
        ("BatchSettlement", book.settlement, ()),
        ("ERC3009DepositCollector", book.erc3009_collector, (book.settlement,)),
        ("AllowanceDepositCollector", book.allowance_collector, (book.settlement,)),
        ("ReferenceValues", book.reference_values, ()),
        ("Token3009", book.token, (DEV_MINTER.address,)),
        ("Multicall3", book.multicall, ()),
    )
    await asyncio.gather(*(_place(rpc, at, creation_code(name, *arguments)) for name, at, arguments in plain))
    await _start(rpc, staked)
    return book


def _places(staked: Staked) -> dict[str, Any]:
    return {field.name: getattr(staked, field.name) for field in dataclasses.fields(staked)}


async def _start(rpc: Rpc, staked: Staked) -> None:
    """The node knows the minter's account, so it signs; one block for both calls."""
    view = {"to": str(staked.registry), "data": "0x" + call("enforcer()").hex()}
    if int.from_bytes(as_bytes(await rpc.call("eth_call", view, "latest"), 32)):
        return
    for to, data in start_calls(staked):
        order = {"from": str(DEV_MINTER.address), "to": str(to), "data": "0x" + data.hex(), "gas": hex(2_000_000)}
        await rpc.call("eth_sendTransaction", order)
    await rpc.call("evm_mine")
    if not int.from_bytes(as_bytes(await rpc.call("eth_call", view, "latest"), 32)):
        raise Unavailable("the contracts were not told of each other", rule="LEDGER-7")


async def _place(rpc: Rpc, at: Address, creation: bytes) -> None:
    """What a constructor returns is the code, immutables and all; a call without a receiver tells, without sending."""
    if await code_at(rpc, at):
        return
    try:
        runtime = as_bytes(await rpc.call("eth_call", {"data": "0x" + creation.hex()}, "latest"))
        await rpc.call("anvil_setCode", str(at), "0x" + runtime.hex())
    except RpcError as error:
        raise ConfigError(f"this is no development node: {error.message}", rule="LEDGER-7") from None


async def code_at(rpc: Rpc, address: Address) -> bytes:
    try:
        return as_bytes(await rpc.call("eth_getCode", str(address), "latest"))
    except RpcError as error:
        raise Unavailable(f"the chain node says {error.message}", rule="LEDGER-2") from None
