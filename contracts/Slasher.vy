# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title From verdicts to slashes: strikes, grades, the veto, ejection
@license Apache-2.0
@notice The one slasher of the operator sets. A jury's conviction is a strike; enough of them within an operator's last
    cases queue a slash, which waits out a veto. A fault that proves itself (an equivocation) is slashed at once, and
    no veto stands against it. Who is slashed is ejected from its set.
    Always: nothing is slashed unless the validation service or the prover of faults says so; a queued slash is
    fulfilled or cancelled once; an offence in epochs that were punished already is not punished again.
@custom:security The veto committee, a contract or a multisig of others than the validators, can stop a jury's slash and
    nothing else: captured, it lets the guilty keep their stake in public (`SlashingRequestCancelled`), and takes from
    nobody. The zero address as committee means no veto. `admin` names the two callers once, and can do nothing after.
    An operator whose deregistration delay has passed is ejected, not slashed. The surface is that of EigenLayer's
    VetoableSlasher but for queueing, which says more here; the AllocationManager behind it may be either.
"""

from interfaces import IAllocationManager
from interfaces import IRestitution
from interfaces import ISlasher

implements: ISlasher

interface Registry:
    def eject(operator: address, until: uint64): nonpayable

WAD: constant(uint256) = 10**18
FIRST: public(constant(uint256)) = WAD // 10
REPEATED: public(constant(uint256)) = WAD // 2
FINE: public(constant(uint256)) = WAD // 100  # of a juror's allocation, for a verdict it hid
WORKER: constant(uint32) = 2
VALIDATOR: constant(uint32) = 3
QUEUED: constant(uint8) = 1
CANCELLED: constant(uint8) = 2
FULFILLED: constant(uint8) = 3
SLASHED: constant(uint8) = 1
STRUCK: constant(uint8) = 2
VETOED: constant(uint8) = 5

struct Parameters:
    vetoSeconds: uint256
    strikes: uint256
    strikeCases: uint256
    ejectionSeconds: uint256

struct Sentence:
    operator: address
    accuser: address
    model: bytes32
    fromEpoch: uint64
    toEpoch: uint64
    wad: uint256
    executableAt: uint256
    state: uint8

event SlashingRequested:
    id: indexed(uint256)
    operator: indexed(address)
    wad: uint256
    executableAt: uint256

event SlashingRequestCancelled:
    id: indexed(uint256)
    by: indexed(address)

event SlashingRequestFulfilled:
    id: indexed(uint256)
    operator: indexed(address)
    amount: uint256
    why: String[64]

event Struck:
    operator: indexed(address)
    strikes: uint256

event Fined:
    juror: indexed(address)
    amount: uint256

manager: immutable(IAllocationManager)
registry: public(immutable(address))
strategy: public(immutable(address))
committee: public(immutable(address))
admin: public(immutable(address))
PARAMETERS: immutable(Parameters)
service: public(address)
faults: public(address)
restitution: public(address)
sentences: public(HashMap[uint256, Sentence])
sentenceCount: public(uint256)
offences: public(HashMap[address, uint256])
punishedBefore: public(HashMap[address, uint64])  # epochs before this one have been punished
_history: HashMap[address, uint256]  # one bit a case, the newest lowest: 1 is a conviction


@deploy
def __init__(
    manager_: address, registry_: address, strategy_: address, committee_: address, admin_: address, terms: Parameters
):
    assert terms.strikes > 0 and terms.strikes <= terms.strikeCases and terms.strikeCases <= 64
    manager = IAllocationManager(manager_)
    registry = registry_
    strategy = strategy_
    committee = committee_
    admin = admin_
    PARAMETERS = terms


@external
def start(service_: address, faults_: address, restitution_: address):
    """@notice Name who may convict, who may prove faults, and where slashed stake goes. The admin, once."""
    if msg.sender != admin or self.service != empty(address) or service_ == empty(address):
        raw_revert(method_id("OnlyOnce()"))
    self.service = service_
    self.faults = faults_
    self.restitution = restitution_


# --- what juries say ---

@external
def convict(accused: address, accuser: address, model: bytes32, fromEpoch: uint64, toEpoch: uint64) -> uint256:
    """@notice A strike. @return the queued slash, or 0 while there are too few, or the offence was punished already"""
    self._check(self.service)
    self._history[accused] = (self._history[accused] << 1) | 1
    count: uint256 = self._strikes(accused)
    log Struck(operator=accused, strikes=count)
    if count < PARAMETERS.strikes or fromEpoch < self.punishedBefore[accused]:
        return 0
    self.sentenceCount += 1
    id: uint256 = self.sentenceCount
    wad: uint256 = FIRST if self.offences[accused] == 0 else REPEATED
    self.sentences[id] = Sentence(
        operator=accused,
        accuser=accuser,
        model=model,
        fromEpoch=fromEpoch,
        toEpoch=toEpoch,
        wad=wad,
        executableAt=block.timestamp + PARAMETERS.vetoSeconds,
        state=QUEUED,
    )
    log SlashingRequested(id=id, operator=accused, wad=wad, executableAt=block.timestamp + PARAMETERS.vetoSeconds)
    return id


@external
def acquit(accused: address):
    """@notice An acquittal moves older strikes out of the window."""
    self._check(self.service)
    self._history[accused] = self._history[accused] << 1


@external
def cancelSlashingRequest(id: uint256):
    """@notice The committee, before the time is up; or the service, for a planted sample."""
    row: Sentence = self.sentences[id]
    vetoed: bool = msg.sender == committee and block.timestamp < row.executableAt
    if not vetoed and msg.sender != self.service:
        raw_revert(method_id("OnlyVetoCommittee()"))
    if row.state != QUEUED:
        raw_revert(method_id("NotQueued()"))
    self.sentences[id].state = CANCELLED
    log SlashingRequestCancelled(id=id, by=msg.sender)


@external
def fulfillSlashingRequest(id: uint256) -> uint8:
    """@notice Slash; the service calls when a case ends. @return that ending, as lib/cases.vy numbers it"""
    self._check(self.service)
    row: Sentence = self.sentences[id]
    if row.state == CANCELLED:
        return VETOED
    if row.state != QUEUED or block.timestamp < row.executableAt:
        raw_revert(method_id("NotQueued()"))
    self.sentences[id].state = FULFILLED
    if row.fromEpoch < self.punishedBefore[row.operator]:
        return STRUCK  # another case about the same epochs was faster
    self.punishedBefore[row.operator] = row.toEpoch + 1
    self._execute(id, row, "wrong answers, found by a jury")
    return SLASHED


@external
def fine(juror: address):
    """@notice A small slash for a verdict that was committed and not shown."""
    self._check(self.service)
    amount: uint256 = self._slash(juror, VALIDATOR, FINE, "verdict not revealed")
    if amount > 0:
        extcall IRestitution(self.restitution).insure(amount)
    log Fined(juror=juror, amount=amount)


@external
def dismiss(juror: address):
    """@notice Eject a juror that votes without looking or never votes. Its stake stays its own."""
    self._check(self.service)
    self._eject(juror)


# --- what proves itself ---

@external
def punish(operator: address, accuser: address, wad: uint256, why: String[64]):
    """@notice At once: no jury, no strikes, no veto. `wad` 0: the grade a jury's conviction would have."""
    self._check(self.faults)
    self.sentenceCount += 1
    id: uint256 = self.sentenceCount
    share: uint256 = wad
    if share == 0:
        share = FIRST if self.offences[operator] == 0 else REPEATED
    row: Sentence = Sentence(
        operator=operator,
        accuser=accuser,
        model=empty(bytes32),
        fromEpoch=0,
        toEpoch=0,
        wad=share,
        executableAt=block.timestamp,
        state=FULFILLED,
    )
    self.sentences[id] = row
    self._execute(id, row, why)


# --- how ---

@internal
def _execute(id: uint256, row: Sentence, why: String[64]):
    self.offences[row.operator] += 1
    self._history[row.operator] = 0
    amount: uint256 = self._slash(row.operator, WORKER, row.wad, why)
    extcall IRestitution(self.restitution).open(id, row.operator, row.model, row.fromEpoch, row.accuser, amount)
    self._eject(row.operator)
    log SlashingRequestFulfilled(id=id, operator=row.operator, amount=amount, why=why)


@internal
def _slash(operator: address, set_id: uint32, wad: uint256, why: String[64]) -> uint256:
    """@return tokens taken; none where the stake is out of reach"""
    slashed: IAllocationManager.OperatorSet = IAllocationManager.OperatorSet(avs=registry, id=set_id)
    if not staticcall manager.isOperatorSlashable(operator, slashed):
        return 0
    id: uint256 = 0
    amounts: DynArray[uint256, 4] = []
    id, amounts = extcall manager.slashOperator(
        registry,
        IAllocationManager.SlashingParams(
            operator=operator, operatorSetId=set_id, strategies=[strategy], wadsToSlash=[wad], description=why
        ),
    )
    return amounts[0]


@internal
def _eject(operator: address):
    extcall Registry(registry).eject(operator, convert(block.timestamp + PARAMETERS.ejectionSeconds, uint64))


@view
@internal
def _check(caller: address):
    if msg.sender != caller:
        raw_revert(method_id("OnlyItsCaller()"))


# --- views ---


@view
@external
def parameters() -> Parameters:
    return PARAMETERS


@view
@external
def strikesOf(operator: address) -> uint256:
    return self._strikes(operator)


@view
@external
def executableAt(id: uint256) -> uint256:
    return self.sentences[id].executableAt


@view
@internal
def _strikes(operator: address) -> uint256:
    recent: uint256 = self._history[operator] & ((1 << PARAMETERS.strikeCases) - 1)
    count: uint256 = 0
    for _: uint256 in range(64):
        if recent == 0:
            break
        count += recent & 1
        recent = recent >> 1
    return count
