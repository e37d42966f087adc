# SPDX-License-Identifier: Apache-2.0
"""`ports.Stakes` on an EVM chain: contracts/StakeManager.vy, by the selectors EigenLayer's AllocationManager has.

Where EigenLayer itself stands behind the address, operators deposit, withdraw and allocate by its own tools: its
staking has contracts of its own, which are not spoken to here. Joining, leaving and reading are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bombyx.adapters.evm import abi
from bombyx.adapters.evm.abi import Reader, call
from bombyx.adapters.evm.calls import ROLES
from bombyx.adapters.evm.ledger import EvmLedger
from bombyx.errors import ConfigError
from bombyx.ports import OperatorRole, StakeInfo, StakeView
from bombyx.protocol.primitives import Address, Amount, Digest
from bombyx.protocol.wire.eip712 import word
from bombyx.protocol.wire.signing import SigningKey

_SET: Final = "(address,uint32)"


class EvmStakes:
    """Beside a ledger of the same chain; the two share nonces, and whoever opened the ledger closes it."""

    def __init__(self, ledger: EvmLedger) -> None:
        if ledger.book.stake_manager == Address.zero():
            raise ConfigError("this chain's address book names no stake manager", rule="LEDGER-7")
        self._ledger = ledger
        self._book = ledger.book
        self._info: StakeInfo | None = None

    async def info(self) -> StakeInfo:
        if self._info is None:
            asked = [(self._book.registry, call("minimumStake(uint8)", word(ROLES[role]))) for role in OperatorRole]
            asked.append((self._book.stake_manager, call("DEALLOCATION_DELAY()")))
            *minimums, delay = [answer.uint(0) for answer in await self._ledger.views(asked)]
            self._info = StakeInfo(
                manager=self._book.stake_manager,
                registry=self._book.registry,
                token=self._book.token,
                minimum={role: Amount(least) for role, least in zip(OperatorRole, minimums, strict=True)},
                deallocation_blocks=delay,
            )
        return self._info

    async def stake(self, operator: Address) -> StakeView:
        manager, registry = self._book.stake_manager, self._book.registry
        asked = [
            (manager, call("shares(address)", word(operator))),
            (manager, call("withdrawals(address)", word(operator))),
            (registry, call("ejectedUntil(address)", word(operator))),
        ]
        for role in OperatorRole:
            asked += [
                (manager, self._allocated(operator, role)),
                (manager, call(f"isMemberOfOperatorSet(address,{_SET})", word(operator), self._set(role))),
                (manager, call(f"isOperatorSlashable(address,{_SET})", word(operator), self._set(role))),
            ]
        shares, waiting, ejected, *rows = await self._ledger.views(asked)
        per_role = {role: rows[3 * n : 3 * n + 3] for n, role in enumerate(OperatorRole)}
        queued, since = waiting.uint(0), waiting.uint(2)
        return StakeView(
            operator=operator,
            deposited=Amount(shares.uint(0)),
            allocated={role: _first_stake(found[0]) for role, found in per_role.items()},
            member=frozenset(role for role, found in per_role.items() if found[1].uint(0)),
            slashable=frozenset(role for role, found in per_role.items() if found[2].uint(0)),
            withdrawing=Amount(queued),
            withdraw_block=since + (await self.info()).deallocation_blocks + 1 if queued else 0,
            ejected_until=ejected.uint(0),
        )

    async def members(self, role: OperatorRole) -> tuple[Address, ...]:
        answer = await self._ledger.view(self._book.stake_manager, call(f"getMembers({_SET})", self._set(role)))
        return tuple(answer.items(0, lambda body, index: body.address(index)))

    async def is_slashable(self, operator: Address, role: OperatorRole) -> bool:
        data = call(f"isOperatorSlashable(address,{_SET})", word(operator), self._set(role))
        return (await self._ledger.view(self._book.stake_manager, data)).uint(0) == 1

    # --- changes ---

    async def deposit(self, amount: Amount, *, signer: SigningKey) -> Digest:
        await self._ledger.allow(self._book.stake_manager, amount, signer)
        strategy, token = word(self._book.stake_strategy), word(self._book.token)
        return await self._send(
            call("depositIntoStrategy(address,address,uint256)", strategy, token, word(amount)), signer
        )

    async def allocate(self, role: OperatorRole, wad: int, *, signer: SigningKey) -> Digest:
        row = abi.struct(self._set(role), abi.array([self._strategy]), abi.array([word(wad)]))
        kinds = f"modifyAllocations(address,({_SET},address[],uint64[])[])"
        return await self._send(call(kinds, word(signer.address), abi.array([row])), signer)

    async def join(self, role: OperatorRole, *, signer: SigningKey) -> Digest:
        wanted = abi.struct(word(self._book.registry), abi.array([word(ROLES[role])]), abi.blob(b""))
        data = call("registerForOperatorSets(address,(address,uint32[],bytes))", word(signer.address), wanted)
        return await self._send(data, signer)

    async def leave(self, role: OperatorRole, *, signer: SigningKey) -> Digest:
        left = abi.struct(word(signer.address), word(self._book.registry), abi.array([word(ROLES[role])]))
        return await self._send(call("deregisterFromOperatorSets((address,address,uint32[]))", left), signer)

    async def queue_withdrawal(self, amount: Amount, *, signer: SigningKey) -> Digest:
        return await self._send(call("queueWithdrawal(uint256)", word(amount)), signer)

    async def withdraw(self, *, signer: SigningKey) -> Digest:
        return await self._send(call("completeWithdrawal()"), signer)

    async def close(self) -> None:
        """The ledger is closed by whoever opened it."""

    async def _send(self, data: bytes, signer: SigningKey) -> Digest:
        return (await self._ledger.mined(self._book.stake_manager, data, signer)).hash

    # --- encodings ---

    @property
    def _strategy(self) -> bytes:
        return word(self._book.stake_strategy)

    def _set(self, role: OperatorRole) -> bytes:
        return word(self._book.registry) + word(ROLES[role])

    def _allocated(self, operator: Address, role: OperatorRole) -> bytes:
        whom: Sequence[bytes] = [word(operator)]
        return call(
            f"getAllocatedStake({_SET},address[],address[])",
            self._set(role),
            abi.array(whom),
            abi.array([self._strategy]),
        )


def _first_stake(answer: Reader) -> Amount:
    """Of one operator in one strategy, out of a uint256[][]."""
    rows = answer.items(0, lambda body, index: body.inside(index))
    return Amount(rows[0].uint(1)) if rows and rows[0].uint(0) else Amount(0)
