# SPDX-License-Identifier: Apache-2.0
"""PAY-26: a watchtower claims for a payee that is away, and a proxy sees its own money."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.proxy.kit import key
from tests.unit.wallet.test_channels import DEPOSIT, KEYS, Party, party

from bombyx.adapters.memory import MemoryLedger
from bombyx.errors import MalformedMessage
from bombyx.protocol.pay.tickets import Ticket, sign_ticket, tickets_from_json, tickets_to_json
from bombyx.protocol.primitives import Amount
from bombyx.roles.proxy.money import statement
from bombyx.roles.watchtower import Watchtower

__all__ = ["party"]  # the fixture


async def earned(party: Party, charge: int = 20_000) -> Ticket:
    """The proxy is owed `charge`, and has signed a ticket for it."""
    if not party.wallet.channels():
        await party.channels.deposit(party.net.key.address, DEPOSIT)
    await party.pay(bytes([charge % 251]), 50_000)
    party.served(charge)
    book = party.net.proxy._accounts.book
    claim = book.claim_now(book.channels[0])
    assert claim is not None
    return sign_ticket(claim, book.domain, party.net.key)


async def test_while_the_payee_is_away_a_withdrawal_is_answered_by_a_claim(party: Party) -> None:
    """PAY-26: the tower has no key of the payee's; the payee has its money, the payer the rest."""
    before = int(await party.net.ledger.balance(party.net.key.address))
    ticket = await earned(party)
    tower = Watchtower(party.net.ledger, key("gas"))
    assert await tower.keep(tickets_from_json(tickets_to_json([ticket]))) == 0
    assert await tower.look() == ()  # nobody withdraws: nothing is due
    channel = party.channels.find(None)
    await party.channels.withdraw(channel, wait=False)
    (claimed,) = await tower.look()
    assert claimed.amount == 20_000
    assert await tower.look() == ()
    await party.channels.withdraw(channel, wait=True)
    assert int(await party.net.ledger.balance(party.net.key.address)) == before + 20_000
    assert int(await party.net.ledger.balance(KEYS.owner.address)) == 1_000_000 - 20_000


async def test_a_threshold_claims_without_a_withdrawal_and_the_newest_ticket_stands(party: Party) -> None:
    """PAY-26: tickets only ever grow; an older one that arrives late changes nothing."""
    old = await earned(party, 20_000)
    new = await earned(party, 30_000)
    tower = Watchtower(party.net.ledger, key("gas"), threshold=40_000)
    await tower.keep([new, old])
    (claimed,) = await tower.look()
    assert claimed.amount == 50_000


@pytest.mark.parametrize("forgery", ["authorization", "voucher", "total", "ceiling", "receiver"])
async def test_a_forged_ticket_is_not_kept(party: Party, forgery: str) -> None:
    """PAY-26: the tower spends gas on nothing the chain would refuse, and pays nobody else."""
    ticket = await earned(party)
    claim = ticket.claim
    forged = {
        "authorization": dataclasses.replace(ticket, authorization=bytes(65)),
        "voucher": dataclasses.replace(ticket, claim=dataclasses.replace(claim, signature=bytes(65))),
        "total": dataclasses.replace(ticket, claim=dataclasses.replace(claim, total_claimed=Amount(21_000))),
        "ceiling": dataclasses.replace(ticket, claim=dataclasses.replace(claim, ceiling=Amount(10_000))),
        "receiver": dataclasses.replace(
            ticket,
            claim=dataclasses.replace(claim, config=dataclasses.replace(claim.config, receiver=key("x").address)),
        ),
    }[forgery]
    tower = Watchtower(party.net.ledger, key("gas"), threshold=1)
    assert await tower.keep([forged]) == 1
    assert tower.watched == ()


async def test_one_channels_failure_does_not_keep_another_from_its_claim(party: Party) -> None:
    """PAY-26: a chain that refuses one claim is asked for the next."""
    ticket = await earned(party)

    class Refusing(MemoryLedger):
        asked = 0

        async def claim_signed(self, *args: Any, **more: Any) -> Any:
            Refusing.asked += 1
            raise MalformedMessage("not today")

    refusing = Refusing(party.clock)
    refusing.chain = party.net.ledger.chain
    tower = Watchtower(refusing, key("gas"), threshold=1)
    await tower.keep([ticket])
    assert await tower.look() == ()
    assert Refusing.asked == 1


@given(st.text(max_size=300) | st.dictionaries(st.text(max_size=8), st.integers(), max_size=3).map(json.dumps))
def test_what_is_no_file_of_tickets_is_said_to_be_none(text: str) -> None:
    """PAY-26: a file from elsewhere is bounded and refused by our own error."""
    with pytest.raises(MalformedMessage):
        tickets_from_json(text)


@given(st.sampled_from(["config", "ceiling", "voucher", "authorization"]), st.none() | st.text(max_size=90))
def test_a_damaged_row_spoils_the_file_and_nothing_else(name: str, value: str | None) -> None:
    """PAY-26: the same for a row."""
    row = {"config": "00", "ceiling": "1", "total_claimed": "1", "voucher": "00", "authorization": "00", name: value}
    with pytest.raises(MalformedMessage):
        tickets_from_json(json.dumps({"version": 1, "tickets": [row]}))


async def test_the_network_page_tells_totals_and_names_nobody(party: Party) -> None:
    """PROXY-7: clients and value locked are counts; no channel, no payer."""
    await earned(party, 20_000)
    status, data = await party.transport.get("/network")
    told = json.loads(data)
    assert (status, told["clients"], told["channels"], told["value_locked"]) == (200, 1, 1, DEPOSIT)
    assert told["registered"]["proxies"] == 1
    assert KEYS.owner.address.hex() not in data.decode().lower()


async def test_a_proxy_sees_income_debt_exposure_and_commission(party: Party) -> None:
    """PAY-26: charged and claimed, reserved, what lies locked; every number is the books' and the chain's."""
    await earned(party, 20_000)
    await party.pay(b"q", 7_000)
    book, ledger = party.net.proxy._accounts.book, party.net.ledger
    views = {channel: await ledger.channel(channel) for channel in book.channels}
    told = statement(book, (), views, balance=5)
    assert told["income"] == {
        "channels": 1,
        "charged": 20_000,
        "claimed": 0,
        "owed": 20_000,
        "reserved": 7_000,
        "vouchers": int(party.wallet.channels()[0].ceiling),
        "locked": DEPOSIT,
        "withdrawing": 0,
        "not_covered": 0,
    }
    assert (told["commission"], told["debt"]["debt"], told["balance"]) == (20_000, 0, 5)
    await party.net.proxy.claim(everything=True)
    views = {channel: await ledger.channel(channel) for channel in book.channels}
    told = statement(book, (), views, balance=5)
    assert (told["income"]["claimed"], told["income"]["owed"], told["income"]["locked"]) == (
        20_000,
        0,
        DEPOSIT - 20_000,
    )
