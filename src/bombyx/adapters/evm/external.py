# SPDX-License-Identifier: Apache-2.0
"""The ledger of a client whose owner key is elsewhere: deposits by a signed authorization (EIP-3009), sent by its
session key, which pays the gas and, as payer authorizer, may also withdraw. Everything else is `EvmLedger`'s."""

from __future__ import annotations

import secrets
from typing import Any

from bombyx.adapters.evm import calls
from bombyx.adapters.evm.abi import Reader, call
from bombyx.adapters.evm.deploy import AddressBook
from bombyx.adapters.evm.fees import Patience
from bombyx.adapters.evm.ledger import AUTHORIZATION_LIFE, EvmLedger
from bombyx.adapters.evm.rpc import Rpc
from bombyx.ports import Signer, Store
from bombyx.protocol.primitives import Amount, Digest, keccak256
from bombyx.protocol.wire.channel import ChannelConfig
from bombyx.protocol.wire.eip712 import domain_separator, struct_hash, type_hash, typed_digest, word
from bombyx.protocol.wire.signing import SigningKey

FIELDS = (
    ("from", "address"),
    ("to", "address"),
    ("value", "uint256"),
    ("validAfter", "uint256"),
    ("validBefore", "uint256"),
    ("nonce", "bytes32"),
)
_TYPE = type_hash("ReceiveWithAuthorization(" + ",".join(f"{kind} {name}" for name, kind in FIELDS) + ")")
_DOMAIN = (("name", "string"), ("version", "string"), ("chainId", "uint256"), ("verifyingContract", "address"))


class ExternallyOwned(EvmLedger):
    """`signer` holds the payer's key."""

    def __init__(
        self,
        rpc: Rpc,
        book: AddressBook,
        signer: Signer,
        *,
        patience: Patience | None = None,
        kept: Store | None = None,
    ) -> None:
        super().__init__(rpc, book, patience=patience, kept=kept)
        self._signer = signer

    async def deposit(self, config: ChannelConfig, amount: Amount, *, signer: SigningKey) -> Digest:
        """For channels of the external account `signer` only sends, and pays the gas."""
        if config.payer != self._signer.address:
            return await super().deposit(config, amount, signer=signer)
        collector = self.book.erc3009_collector
        before = (await self.head()).timestamp.seconds + AUTHORIZATION_LIFE
        salt = secrets.randbits(256)
        nonce = keccak256(config.channel_id(self._domain), word(salt))
        signature = await self._authorized(config, amount, before, nonce)
        data = calls.erc3009_data(before, salt, signature)
        done = await self._send(self.book.settlement, calls.deposit(config, amount, collector, data), signer)
        self._configs[config.channel_id(self._domain)] = config
        return done

    async def _authorized(self, config: ChannelConfig, amount: Amount, before: int, nonce: Digest) -> bytes:
        token, collector = self.book.token, self.book.erc3009_collector
        name, version = [
            Reader(await self.answer(token, call(f"{what}()"))).blob(0).decode() for what in ("name", "version")
        ]
        domain = domain_separator(name, version, self.book.chain_id, token)
        words = (word(config.payer), word(collector), word(amount), word(0), word(before), nonce)
        values = (str(config.payer), str(collector), str(int(amount)), "0", str(before), str(nonce))
        shown: dict[str, Any] = {
            "types": {
                "EIP712Domain": [{"name": field, "type": kind} for field, kind in _DOMAIN],
                "ReceiveWithAuthorization": [{"name": field, "type": kind} for field, kind in FIELDS],
            },
            "primaryType": "ReceiveWithAuthorization",
            "domain": {
                "name": name,
                "version": version,
                "chainId": str(self.book.chain_id),
                "verifyingContract": str(token),
            },
            "message": dict(zip((field for field, _ in FIELDS), values, strict=True)),
        }
        return await self._signer.sign_typed(shown, typed_digest(domain, struct_hash(_TYPE, *words)))
