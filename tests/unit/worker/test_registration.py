# SPDX-License-Identifier: Apache-2.0
"""LEDGER-5: a worker's line of the registry stays there, whatever a reorg takes, and never pushes a successor out."""

from __future__ import annotations

import dataclasses

from tests.unit.proxy.kit import CLOCK, key

from bombyx.adapters.memory import MemoryLedger
from bombyx.ports import Operator, OperatorRole
from bombyx.protocol.primitives import Digest
from bombyx.roles.worker.registration import Registration

WORKER = key("operator")


def line(boot: str) -> Operator:
    return Operator(
        address=WORKER.address,
        role=OperatorRole.WORKER,
        endpoint="",
        receipt_address=key(boot).address,
        pay_authorizer=key(boot).address,
        pay_key_config=b"\x01",
        price_sheet=Digest.zero(),
        models=(),
    )


async def test_a_line_that_a_reorg_took_is_published_again() -> None:
    """LEDGER-5: whether nothing stands there now or what stood there before us."""
    for before in (None, line("the boot before")):
        ledger = MemoryLedger(CLOCK)
        if before is not None:
            await ledger.register(before, signer=WORKER)
        ours = Registration(line("ours"), ledger=ledger, signer=WORKER)
        await ours.publish()
        assert not await ours.keep()
        old = MemoryLedger(CLOCK)  # the chain as it was
        if before is not None:
            await old.register(before, signer=WORKER)
        ledger.chain = old.chain
        assert await ours.keep()
        assert await ledger.operators(OperatorRole.WORKER) == (line("ours"),)
        assert not await ours.keep()


async def test_the_line_of_a_later_boot_stays() -> None:
    """LEDGER-5, WRK-8: the process that drains must not push its successor out."""
    ledger = MemoryLedger(CLOCK)
    ours = Registration(line("ours"), ledger=ledger, signer=WORKER)
    await ours.publish()
    later = dataclasses.replace(line("later"), pay_key_config=b"\x02")
    await ledger.register(later, signer=WORKER)
    assert not await ours.keep()
    assert await ledger.operators(OperatorRole.WORKER) == (later,)
