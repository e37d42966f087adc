# SPDX-License-Identifier: Apache-2.0
"""PAY-27: a worker whose account is above ours, by answers that were cut, is paid on; one that invents debts is not."""

from __future__ import annotations

from tests.unit.proxy.conftest import Hire
from tests.unit.proxy.kit import ProxyNet
from tests.unit.proxy.scripted import BareClient, Call, answer

from bombyx.protocol.wire.records import LinkRefusal, LinkType
from bombyx.roles.proxy.holdings import PAYER

OWED = "PAY-5: ceiling 100 is below charged 90 + reserved 0 + cap 100"


async def demanding(call: Call) -> None:
    """Serves the first request, and later ones only under a voucher that reaches further than the one it holds."""
    payment = call.request.payment
    if len(call.worker.calls) == 1 or (payment is not None and payment.voucher is not None):
        await answer(call)
    else:
        refusal = LinkRefusal(code="payment_required", message=OWED, retry_after_ms=0)
        call.send(LinkType.REFUSE, refusal.encode())


async def test_a_worker_that_booked_more_of_cut_answers_is_paid_on(
    net: ProxyNet, client: BareClient, hire: Hire
) -> None:
    """PAY-27: its refusal brings back what lapsed, and the same request goes to it again under a higher voucher."""
    worker = await hire("worker a", demanding)
    assert (await client.ask(worker)).status == 200
    (account,) = net.proxy._wallet._channels.values()
    account.lapsed = 2_000_000  # of answers that were cut long ago; more than a voucher's window
    assert (await client.ask(worker)).status == 200
    assert len(worker.calls) == 3
    assert (account.lapsed, account.disputed) == (0, 2_000_000)


async def test_after_a_crash_what_was_never_written_may_be_booked_all_the_same(
    net: ProxyNet, client: BareClient, hire: Hire
) -> None:
    """PAY-17, PAY-27: the ceiling was written, so it bounds what requests that were forgotten can have cost."""
    worker = await hire("worker a", demanding)
    assert (await client.ask(worker)).status == 200
    wallet = net.proxy._wallet
    (before,) = wallet._channels.values()
    wallet.load(await net.store.scan(PAYER))
    (after,) = wallet._channels.values()
    assert after.ceiling == before.ceiling > after.agreed
    assert after.concede()
    assert after.disputed == after.ceiling - after.agreed
    assert not after.concede()


async def test_a_worker_that_invents_debts_gets_no_further(net: ProxyNet, client: BareClient, hire: Hire) -> None:
    """PAY-27, PAY-22: nothing lapsed, so nothing explains it: it is passed over, and nothing more is signed."""
    worker = await hire("worker a", demanding)
    assert (await client.ask(worker)).status == 200
    (account,) = net.proxy._wallet._channels.values()
    before = account.ceiling
    assert (await client.ask(worker)).status >= 400
    assert len(worker.calls) == 2
    assert (account.ceiling, account.disputed, account.open_amount) == (before, 0, 0)
