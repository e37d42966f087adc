# SPDX-License-Identifier: Apache-2.0
"""Where the contracts are: the address book of a chain, putting the contracts there, and seeding a development node.

`deploy` sends ordinary transactions to any chain. `seed` writes code into a development node at the canonical addresses
that stock x402 SDKs have built in; on public chains the published x402 contracts are there already.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from bombyx.adapters.evm.rpc import Rpc, RpcError, as_bytes
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
# The first account every anvil makes; its key is public knowledge. It mints the development token.
DEV_MINTER: Final = SigningKey(
    Secret(bytes.fromhex("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressBook:
    """The contracts of one chain. `deposit_by`: "erc3009" (one transaction) or "allowance" (cheaper, once approved)."""

    chain_id: int
    settlement: Address
    registry: Address
    token: Address
    erc3009_collector: Address
    allowance_collector: Address
    reference_values: Address
    multicall: Address = MULTICALL3
    first_block: int = 0  # nothing of ours is in older blocks
    reorg_depth: int = 0  # blocks that may still be replaced
    deposit_by: str = "erc3009"
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


def creation_code(name: str, *arguments: Address) -> bytes:
    return bytes.fromhex(artifact(name)["bytecode"][2:]) + b"".join(word(one) for one in arguments)


async def deploy(
    rpc: Rpc,
    *,
    signer: SigningKey,
    token: Address | None = None,
    settlement: Address | None = None,
    erc3009_collector: Address | None = None,
    stake_manager: Address | None = None,
    transactions: Transactions | None = None,
) -> AddressBook:
    """Put the contracts on a chain; those named are taken as they are. Without a token a worthless one is made."""
    sender = transactions or Transactions(rpc)
    blocks: list[int] = []

    async def put(name: str, *arguments: Address) -> Address:
        mined = await sender.send(None, creation_code(name, *arguments), signer=signer)
        if mined.contract is None:
            raise Unavailable(f"the chain says nothing of where {name} is", rule="LEDGER-2")
        blocks.append(mined.block)
        return mined.contract

    at = settlement or await put("BatchSettlement")
    multicall = MULTICALL3 if await code_at(rpc, MULTICALL3) else await put("Multicall3")
    return AddressBook(
        chain_id=await rpc.chain_id(),
        settlement=at,
        registry=await put("OperatorRegistry", stake_manager or Address.zero()),
        token=token or await put("Token3009", signer.address),
        erc3009_collector=erc3009_collector or await put("ERC3009DepositCollector", at),
        allowance_collector=await put("AllowanceDepositCollector", at),
        reference_values=await put("ReferenceValues"),
        multicall=multicall,
        first_block=min(blocks),
    )


async def seed(rpc: Rpc, *, stake_manager: Address | None = None) -> AddressBook:
    """Make a development node a network: every contract at its known address. Idempotent; does nothing to balances."""
    book = AddressBook(
        chain_id=await rpc.chain_id(),
        settlement=X402_SETTLEMENT,
        registry=DEV_REGISTRY,
        token=DEV_TOKEN,
        erc3009_collector=X402_ERC3009_COLLECTOR,
        allowance_collector=DEV_ALLOWANCE_COLLECTOR,
        reference_values=DEV_REFERENCE_VALUES,
        development=True,
    )
    for name, at, arguments in (
        ("BatchSettlement", book.settlement, ()),
        ("ERC3009DepositCollector", book.erc3009_collector, (book.settlement,)),
        ("AllowanceDepositCollector", book.allowance_collector, (book.settlement,)),
        ("OperatorRegistry", book.registry, (stake_manager or Address.zero(),)),
        ("ReferenceValues", book.reference_values, ()),
        ("Token3009", book.token, (DEV_MINTER.address,)),
        ("Multicall3", book.multicall, ()),
    ):
        await _place(rpc, at, creation_code(name, *arguments))
    return book


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
