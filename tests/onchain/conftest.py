# SPDX-License-Identifier: Apache-2.0
"""The contracts, compiled from their sources into an EVM in this process, and the parties that meet on them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bombyx.protocol.pay.view import Claim
from bombyx.protocol.primitives import Address, Amount, Digest, Secret, keccak256
from bombyx.protocol.wire.channel import ChannelConfig, settlement_domain, voucher_digest
from bombyx.protocol.wire.eip712 import struct_hash, type_hash, typed_digest, word
from bombyx.protocol.wire.signing import SigningKey

ARTIFACTS = Path(__file__).resolve().parents[2] / "src" / "bombyx" / "contracts"
MALICE = Path(__file__).resolve().parent / "malice"
PAYER = SigningKey(Secret(b"\xa1" * 32))
SESSION = SigningKey(Secret(b"\xb2" * 32))
RECEIVER = SigningKey(Secret(b"\xc3" * 32))
AUTHORIZER = SigningKey(Secret(b"\xd4" * 32))
STRANGER = SigningKey(Secret(b"\xe5" * 32))
FUNDS = 10**12
RECEIVE = type_hash(
    "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,"
    "bytes32 nonce)"
)


class Bench:
    """One settlement contract with its token and collectors, and shorthands for what a test does with them."""

    def __init__(self) -> None:
        import boa

        self.boa = boa
        self.settlement = self.deploy("BatchSettlement")
        self.token = self.deploy("Token3009", STRANGER.address)
        self.signed = self.deploy("ERC3009DepositCollector", address(self.settlement))
        self.allowed = self.deploy("AllowanceDepositCollector", address(self.settlement))
        self.token.mint(str(PAYER.address), FUNDS, sender=str(STRANGER.address))
        self.token.approve(self.allowed.address, FUNDS, sender=str(PAYER.address))
        self.chain_id = boa.env.evm.patch.chain_id
        self.domain = settlement_domain(self.chain_id, address(self.settlement))

    def deploy(self, name: str, *arguments: Address | int) -> Any:
        """A contract as it is shipped: compiling anew is another test's business."""
        artifact = json.loads((ARTIFACTS / f"{name}.json").read_text())
        code = bytes.fromhex(artifact["bytecode"][2:]) + b"".join(word(one) for one in arguments)
        deployed, _ = self.boa.env.deploy_code(bytecode=code)
        return self.boa.loads_abi(json.dumps(artifact["abi"]), name=name).at(deployed)

    def load(self, name: str, *arguments: Address) -> Any:
        """A hostile contract of tests/onchain/malice."""
        from vyper.compiler.output import build_abi_output

        made = self.boa.load_partial(str(MALICE / f"{name}.vy")).compiler_data
        code = made.bytecode + b"".join(word(one) for one in arguments)
        deployed, _ = self.boa.env.deploy_code(bytecode=code)
        return self.boa.loads_abi(json.dumps(build_abi_output(made)), name=name).at(deployed)

    def config(self, **changes: Any) -> ChannelConfig:
        plain = ChannelConfig(
            payer=PAYER.address,
            payer_authorizer=SESSION.address,
            receiver=RECEIVER.address,
            receiver_authorizer=AUTHORIZER.address,
            token=address(self.token),
            withdraw_delay=900,
            salt=Digest.zero(),
        )
        return dataclasses.replace(plain, **changes)

    def deposit(self, config: ChannelConfig, amount: int) -> Digest:
        self.allowed.deposit(row(config), amount, sender=str(config.payer))
        return config.channel_id(self.domain)

    def voucher(
        self, config: ChannelConfig, ceiling: int, total: int | None = None, *, signer: SigningKey = SESSION
    ) -> Claim:
        digest = voucher_digest(self.domain, config.channel_id(self.domain), ceiling)
        paid = Amount(ceiling if total is None else total)
        return Claim(config=config, ceiling=Amount(ceiling), signature=signer.sign(digest), total_claimed=paid)

    def claim(self, *claims: Claim, sender: SigningKey = RECEIVER) -> None:
        self.settlement.claim([claim_row(one) for one in claims], sender=str(sender.address))

    def authorization(self, config: ChannelConfig, amount: int, salt: int, **changes: Any) -> bytes:
        """collectorData of a deposit by EIP-3009."""
        from eth_abi import encode

        channel = config.channel_id(self.domain)
        nonce = keccak256(channel + word(salt))
        terms = {"to": address(self.signed), "before": 2**40, "signer": PAYER, **changes}
        digest = typed_digest(
            Digest(self.token.DOMAIN_SEPARATOR()),
            struct_hash(
                RECEIVE, word(config.payer), word(terms["to"]), word(amount), word(0), word(terms["before"]), nonce
            ),
        )
        signature = terms["signer"].sign(digest)
        return bytes(encode(["uint256", "uint256", "uint256", "bytes"], [0, terms["before"], salt, signature]))

    def refused(self, error: str) -> Any:
        """The call inside reverts with the custom error `error()`."""
        return _Refused(self.boa, error)

    def state(self, config: ChannelConfig) -> tuple[int, int]:
        balance, claimed = self.settlement.channels(bytes(config.channel_id(self.domain)))
        return balance, claimed

    def paid(self, account: SigningKey) -> int:
        return int(self.token.balanceOf(str(account.address)))

    def pass_time(self, seconds: int) -> None:
        self.boa.env.time_travel(seconds=seconds)


class _Refused:
    def __init__(self, boa: Any, error: str) -> None:
        self._boa, self._error = boa, error

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: Any, trace: object) -> bool:
        assert isinstance(error, self._boa.BoaError), f"expected {self._error}, got {error!r}"
        found = bytes(error.call_trace.output)
        assert found[:4] == keccak256(f"{self._error}()".encode())[:4], f"expected {self._error}, got {found.hex()}"
        return True


def address(contract: Any) -> Address:
    return Address.parse(str(contract.address))


def row(config: ChannelConfig) -> tuple[Any, ...]:
    """A ChannelConfig as the ABI takes it."""
    parties = (config.payer, config.payer_authorizer, config.receiver, config.receiver_authorizer, config.token)
    return (*(str(party) for party in parties), config.withdraw_delay, bytes(config.salt))


def claim_row(claim: Claim) -> tuple[Any, ...]:
    """A Claim as the ABI takes it."""
    return ((row(claim.config), int(claim.ceiling)), claim.signature, int(claim.total_claimed))


@pytest.fixture(scope="session")
def deployed() -> Bench:
    return Bench()


@pytest.fixture
def bench(deployed: Bench) -> Iterator[Bench]:
    """The same deployment for every test, each rolled back at its end."""
    with deployed.boa.env.anchor():
        yield deployed
