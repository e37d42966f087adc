# pragma version 0.4.3
# SPDX-License-Identifier: Apache-2.0
"""
@title What a case costs and pays: bonds, jurors' fees, strikes; and how it is closed
@license Apache-2.0
@notice A module with storage, for ValidationService.vy alone.
    Always: what a round's bond does not pay in fees goes to one party; a case is closed once; credits are taken out by
    those they belong to.
"""

from ethereum.ercs import IERC20
from interfaces import ISlasher
from lib import cases
from lib import votes

uses: cases
uses: votes

token: public(immutable(address))
slasher: public(immutable(ISlasher))
credits: public(HashMap[address, uint256])
strikes: public(HashMap[address, uint256])  # of jurors: verdicts missed; a right one takes one away
blunders: public(HashMap[address, uint256])  # verdicts against planted samples; a right one about a sample takes one away


@deploy
def __init__(token_: address, slasher_: address):
    token = token_
    slasher = ISlasher(slasher_)


@external
@nonreentrant
def collect(account: address):
    """@notice Send an account its fees and returned bonds. Anyone."""
    amount: uint256 = self.credits[account]
    self.credits[account] = 0
    assert extcall IERC20(token).transfer(account, amount, default_return_value=True)


@internal
def _close(id: uint256, row: cases.Case, ending: uint8, final: uint8):
    """@dev `final` is what jurors are measured by; ABSTAIN: nobody was right, and bonds go back."""
    cases.rows[id].state = cases.CLOSED
    cases.rows[id].ending = ending
    log cases.CaseClosed(id=id, accused=row.accused, ending=ending, sentence=row.sentence)
    for index: uint8 in range(1, 3):
        if index > row.round:
            break
        payer: address = row.accuser if index == 1 else row.appellant
        left: uint256 = cases.PARAMETERS.bond if index == 1 else self._appeal_bond()
        left -= self._pay_jury(id, index, final)
        if final == cases.ABSTAIN or (payer == row.accuser) == (final == cases.GUILTY):
            self.credits[payer] += left
        else:
            self.credits[row.accused if payer == row.accuser else row.accuser] += left


@internal
def _pay_jury(id: uint256, index: uint8, final: uint8) -> uint256:
    """@dev A fee to who said what came out; a strike or a fine to who said nothing. @return all fees"""
    fees: uint256 = 0
    for juror: address in votes.jury[id][index]:
        verdict: uint8 = votes.verdicts[id][index][juror]
        if verdict == 0:
            self._strike(juror)
            if votes.commitments[id][index][juror] != empty(bytes32):
                extcall slasher.fine(juror)
        elif verdict == final and final != cases.ABSTAIN:
            self.credits[juror] += cases.PARAMETERS.jurorFee
            fees += cases.PARAMETERS.jurorFee
            if self.strikes[juror] > 0:
                self.strikes[juror] -= 1
    return fees


@internal
def _tell(juror: address, right: bool):
    """@dev What a juror said of a sample. Apart from other strikes: where most accused are guilty, who always says so
        would be right often enough to be forgiven everything."""
    if not right:
        self.blunders[juror] += 1
        if self.blunders[juror] >= cases.PARAMETERS.patience:
            self.blunders[juror] = 0
            extcall slasher.dismiss(juror)
    elif self.blunders[juror] > 0:
        self.blunders[juror] -= 1


@internal
def _strike(juror: address):
    self.strikes[juror] += 1
    if self.strikes[juror] >= cases.PARAMETERS.patience:
        self.strikes[juror] = 0
        extcall slasher.dismiss(juror)


@view
@internal
def _appeal_bond() -> uint256:
    """@dev Fees of the bigger jury, and what is left of a first bond."""
    return cases.PARAMETERS.bond + cases.PARAMETERS.jurorFee * (cases.PARAMETERS.jury + 1)
