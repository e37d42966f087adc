# SPDX-License-Identifier: Apache-2.0
"""The accounts of a client's folder: `<name>.json` is a wallet encrypted at rest, `<name>.key` lies open.

An open key is for development chains, where money is worth nothing: there one is made without asking. Always: one
file a name, so that nobody spends from another account than they see; on a chain with real money no key is made here
unasked (spec WAL-2).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.evm.external import ExternallyOwned
from bombyx.adapters.evm.ledger import EvmLedger
from bombyx.adapters.keys import KeyFiles
from bombyx.adapters.keystore import Keystore, Work, seal, unseal, write_new
from bombyx.adapters.ledger_http import HttpLedger
from bombyx.adapters.rpc_signer import RpcSigner
from bombyx.compose.service import chain_store, open_ledger
from bombyx.config import ClientConfig, NetworkDescriptor, passphrase_file
from bombyx.errors import ConfigError
from bombyx.ports import Ledger
from bombyx.protocol.primitives import Address, Secret
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.client.settings import ClientKeys

log = logging.getLogger("bombyx.wallet")
OWNER: Final = "owner"
ENCRYPTED: Final = "encrypted"
OPEN: Final = "development key, not encrypted"
MAX_PASSPHRASE: Final = 4_096  # bytes

Ask = Callable[[str], Secret]  # a question, and its answer: the passphrase


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One account of the folder, as shown."""

    name: str
    address: Address
    kind: str
    file: Path

    def as_dict(self) -> dict[str, str]:
        return {name: str(value) for name, value in asdict(self).items()} | {"address": str(self.address)}


class Wallets:
    """All accounts of one folder."""

    def __init__(self, folder: Path, *, work: Work | None = None) -> None:
        self.folder = folder
        self._entropy = SystemEntropy()
        self._open = KeyFiles(folder, self._entropy)
        self._work = work
        self._sealed = Keystore(folder, self._entropy, work=work)

    def accounts(self) -> list[Account]:
        found = [
            Account(name=name, address=address, kind=ENCRYPTED, file=self._sealed.path(name))
            for name, address in self._sealed.accounts().items()
        ]
        known = {one.name for one in found}
        found += [
            Account(name=name, address=address, kind=OPEN, file=self.folder / f"{name}.key")
            for name, address in self._open.accounts().items()
            if name not in known
        ]
        return sorted(found, key=lambda one: one.name)

    def account(self, name: str) -> Account:
        found = next((one for one in self.accounts() if one.name == name), None)
        if found is None:
            raise ConfigError(f"no account named {name!r} in {self.folder}: make one with `bombyx wallet new`")
        return found

    def create(self, name: str, ask: Ask) -> Account:
        """A fresh key, encrypted."""
        self._check_free(name)
        self._sealed.create(name, ask(f"passphrase for the new wallet {name}"))
        return self.account(name)

    def load(self, name: str, ask: Ask) -> SigningKey:
        if self._sealed.has(name):
            return self._sealed.load(name, ask(f"passphrase of the wallet {name}"))
        return self._open.load(name)

    def encrypt(self, name: str, ask: Ask) -> Account:
        """Turn an open key into a wallet; the open file goes once the wallet was written and opened again."""
        if self._sealed.has(name):
            raise ConfigError(f"{name} is encrypted already")
        key, passphrase = self._open.load(name), ask(f"passphrase for the wallet {name}")
        self._sealed.store(name, key, passphrase)
        if self._sealed.load(name, passphrase).address == key.address:
            (self.folder / f"{name}.key").unlink()
        return self.account(name)

    def take_in(self, name: str, text: str, ask: Ask) -> Account:
        """A wallet made elsewhere (version 3 JSON), or a key as 64 hex digits, which is encrypted here."""
        self._check_free(name)
        if text.lstrip().startswith("{"):
            unseal(text, ask("passphrase of the wallet you bring"))
            write_new(self._sealed.path(name), text)
        else:
            self._sealed.store(name, _key_of(text), ask(f"passphrase for the wallet {name}"))
        return self.account(name)

    def give_out(self, name: str, out: Path, ask: Ask) -> Account:
        """Write an encrypted copy. A key never leaves in the open."""
        account = self.account(name)
        if account.kind == ENCRYPTED:
            text = self._sealed.text(name)
        else:
            passphrase = ask("passphrase for the copy")
            text = seal(self._open.load(name), passphrase, entropy=self._entropy, work=self._work)
        write_new(out, text)
        return account

    def _check_free(self, name: str) -> None:
        if self._sealed.has(name) or (self.folder / f"{name}.key").exists():
            raise ConfigError(f"there is an account named {name!r} in {self.folder} already")


async def open_owner(state: Path, ledger: Ledger, ask: Ask | None = None) -> SigningKey:
    """The client's owner key. Made here, in the open, only where money is worth nothing."""
    wallets = Wallets(state)
    if any(one.name == OWNER for one in wallets.accounts()):
        key = wallets.load(OWNER, ask or from_file)
        if wallets.account(OWNER).kind == OPEN and not await gives_money(ledger):
            log.warning("the owner key is not encrypted: `bombyx wallet encrypt`")
        return key
    if not await gives_money(ledger):
        raise ConfigError(f"no owner account in {state}: `bombyx wallet new` or `bombyx wallet import`", rule="WAL-2")
    return KeyFiles(state, SystemEntropy()).create(OWNER)


def client_ledger(
    config: ClientConfig, network: NetworkDescriptor, state: Path | None = None
) -> HttpLedger | EvmLedger:
    """The chain, with deposits signed elsewhere where `signer` says so. `state`: the folder, where it is held."""
    if not config.signer:
        return open_ledger(network, state)
    ledger = open_ledger(network)
    if not isinstance(ledger, EvmLedger):
        raise ConfigError("an external signer needs an EVM chain", rule="WAL-6")
    try:
        account = Address.parse(config.signer_account)
    except ValueError:
        raise ConfigError("client.signer_account is the owner's address at the signer", rule="WAL-6") from None
    return ExternallyOwned(ledger.rpc, ledger.book, RpcSigner(config.signer, account), kept=chain_store(state))


async def kept_keys(config: ClientConfig, state: Path, ledger: Ledger, ask: Ask | None) -> ClientKeys:
    """Session key from its file; the owner's from its own, or its account's name where it is elsewhere."""
    session = KeyFiles(state, SystemEntropy()).load_or_create("session")
    if config.signer:
        return ClientKeys(owner=session, session=session, external=Address.parse(config.signer_account))
    return ClientKeys(owner=await open_owner(state, ledger, ask), session=session)


async def gives_money(ledger: Ledger) -> bool:
    """Whether this is a development chain."""
    if isinstance(ledger, EvmLedger):
        return ledger.book.development
    return isinstance(ledger, HttpLedger) and (await ledger.info()).kind == "memory"


async def fund_account(ledger: Ledger, account: Address, amount: int) -> str:
    """Development money; the transaction's reference. Refused elsewhere."""
    if not isinstance(ledger, HttpLedger | EvmLedger) or not await gives_money(ledger):
        raise ConfigError("this chain gives no money away: send tokens to the account", rule="WAL-2")
    return str(await ledger.faucet(account, amount))


async def holdings(ledger: Ledger, account: Address) -> dict[str, Any]:
    """What the chain shows of an account."""
    info = await ledger.info()
    return {
        "balance": int(await ledger.balance(account)),
        "token": str(info.token),
        "chain_id": info.chain_id,
        "chain": info.kind,
        "development": await gives_money(ledger),
    }


# --- passphrases -----------------------------------------------------------------------------------------------------


def from_file(question: str) -> Secret:
    """From the file $BOMBYX_PASSPHRASE_FILE names: for services, where nobody is there to ask."""
    path = passphrase_file()
    if path is None:
        raise ConfigError(f"{question}: nobody is here to ask; name a file in BOMBYX_PASSPHRASE_FILE", rule="WAL-1")
    try:
        with path.open("rb") as file:
            return passphrase_of(file.read(MAX_PASSPHRASE + 2))
    except OSError as error:
        raise ConfigError(f"cannot read the passphrase file {path}: {error.strerror}", rule="WAL-1") from None


def passphrase_of(data: bytes) -> Secret:
    """One line, without its end. Raises `ConfigError` for an empty or endless one."""
    line = data.removesuffix(b"\n").removesuffix(b"\r")
    if not line or len(line) > MAX_PASSPHRASE:
        raise ConfigError(f"a passphrase has 1 to {MAX_PASSPHRASE} bytes", rule="WAL-1")
    return Secret(line)


def _key_of(text: str) -> SigningKey:
    digits = text.strip().removeprefix("0x")
    try:
        if len(digits) != 64:
            raise ValueError
        return SigningKey(Secret(bytes.fromhex(digits)))
    except ValueError:
        raise ConfigError("neither a wallet (JSON, version 3) nor a key of 64 hex digits") from None
