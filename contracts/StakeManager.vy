# pragma version 0.4.3
# pragma evm-version cancun
# pragma nonreentrancy off
# SPDX-License-Identifier: Apache-2.0
"""
@title Stake in one ERC-20, allocated to operator sets and slashed by each set's own slasher
@license Apache-2.0
@notice The part of EigenLayer's AllocationManager that an AVS and its operators use, with the same selectors, events
    and errors, for chains where EigenLayer is not; there its address takes this one's place. Own code. The one strategy
    is this contract itself: a share is a token. Only operators stake; nobody delegates.
    Always: allocated magnitudes together are at most the maximum; what is slashed is at most what is allocated; the
    tokens held are the sum of all shares; who left a set stays slashable for DEALLOCATION_DELAY blocks.
@custom:security Accepted, as in EigenLayer: a slasher is trusted by the sets that name it, and may take all that is
    allocated to them. Where this one differs: allocations grow at once (no allocation delay); a set's slasher and
    recipient are fixed for ever; slashed tokens go to the recipient in the same call, so a recipient the token blocks
    cannot be slashed for; 512 members a set, which its registrar's minimum stake makes dear to fill. The token must
    neither rebase nor take fees on transfers.
"""

from ethereum.ercs import IERC20
from interfaces import IAllocationManager
from lib import allocations
from lib import stake

implements: IAllocationManager
initializes: allocations
exports: (
    allocations.DEALLOCATION_DELAY,
    allocations.shares,
    allocations.totalShares,
    allocations.encumbered,
    allocations.withdrawals,
    allocations.slasher,
    allocations.getMaxMagnitude,
    allocations.getAllocation,
    allocations.isOperatorSlashable,
    allocations.isMemberOfOperatorSet,
    allocations.getMembers,
    allocations.getMemberCount,
    allocations.getMinimumSlashableStake,
    allocations.getAllocatedStake,
)

interface Registrar:
    def supportsAVS(avs: address) -> bool: view
    def registerOperator(operator: address, avs: address, ids: DynArray[uint32, 16], data: Bytes[1024]): nonpayable
    def deregisterOperator(operator: address, avs: address, ids: DynArray[uint32, 16]): nonpayable

WAD: constant(uint256) = 10**18

token: public(immutable(address))
getAVSRegistrar: public(HashMap[address, address])
recipient: public(HashMap[bytes32, address])  # of a set's slashed stake
slashCount: public(HashMap[bytes32, uint256])
_described: HashMap[address, bool]


@deploy
def __init__(token_: address, delay: uint32):
    token = token_
    allocations.__init__(delay)


# --- operators ---


@external
@nonreentrant
def depositIntoStrategy(strategy: address, token_: address, amount: uint256) -> uint256:
    """@notice Stake the sender's own tokens; it must have approved this contract."""
    if strategy != self or token_ != token or amount == 0 or allocations._maximum(msg.sender) == 0:
        raw_revert(method_id("InvalidStrategy()"))
    allocations.shares[msg.sender] += amount
    allocations.totalShares += amount
    assert extcall IERC20(token).transferFrom(msg.sender, self, amount, default_return_value=True)
    log stake.Deposit(staker=msg.sender, token=token, strategy=self, shares=amount)
    return amount


@external
def queueWithdrawal(amount: uint256):
    """@notice Ask for stake back. It can be slashed until it is paid out; one at a time."""
    if amount == 0 or amount > allocations.shares[msg.sender] or allocations.withdrawals[msg.sender].amount != 0:
        raw_revert(method_id("InvalidWithdrawal()"))
    allocations.withdrawals[msg.sender] = allocations.Withdrawal(
        amount=amount, magnitude=allocations._maximum(msg.sender), since=block.number
    )
    ready: uint256 = block.number + allocations._delay() + 1
    log stake.WithdrawalQueued(operator=msg.sender, amount=amount, completableFrom=convert(ready, uint32))


@external
@nonreentrant
def completeWithdrawal():
    """@notice Pay out what was queued, less the share of it that was slashed since."""
    queued: allocations.Withdrawal = allocations.withdrawals[msg.sender]
    if queued.amount == 0 or block.number <= queued.since + allocations._delay():
        raw_revert(method_id("WithdrawalDelayNotElapsed()"))
    allocations.withdrawals[msg.sender] = empty(allocations.Withdrawal)
    amount: uint256 = allocations._still_queued(msg.sender, queued)
    allocations.shares[msg.sender] -= amount
    allocations.totalShares -= amount
    assert extcall IERC20(token).transfer(msg.sender, amount, default_return_value=True)
    log stake.WithdrawalCompleted(operator=msg.sender, amount=amount)


@external
def modifyAllocations(operator: address, params: DynArray[IAllocationManager.AllocateParams, 4]):
    """@notice Say which part of the stake, in 1/10^18, answers for which set. Less counts after the delay."""
    self._check_caller(operator)
    for one: IAllocationManager.AllocateParams in params:
        if len(one.strategies) != len(one.newMagnitudes):
            raw_revert(method_id("InputArrayLengthMismatch()"))
        self._check_strategies(one.strategies)
        key: bytes32 = allocations._existing(one.operatorSet)
        effect: uint256 = allocations._allocate(operator, key, convert(one.newMagnitudes[0], uint256))
        self._log_encumbered(operator)
        log stake.AllocationUpdated(
            operator=operator,
            operatorSet=one.operatorSet,
            strategy=self,
            magnitude=one.newMagnitudes[0],
            effectBlock=convert(effect, uint32),
        )


@external
@nonreentrant
def registerForOperatorSets(operator: address, params: IAllocationManager.RegisterParams):
    """@notice Join sets of one AVS; its registrar may refuse."""
    self._check_caller(operator)
    for id: uint32 in params.operatorSetIds:
        joined: IAllocationManager.OperatorSet = IAllocationManager.OperatorSet(avs=params.avs, id=id)
        allocations._join(operator, allocations._existing(joined))
        log stake.OperatorAddedToOperatorSet(operator=operator, operatorSet=joined)
    extcall Registrar(self.getAVSRegistrar[params.avs]).registerOperator(
        operator, params.avs, params.operatorSetIds, params.data
    )


@external
@nonreentrant
def deregisterFromOperatorSets(params: IAllocationManager.DeregisterParams):
    """@notice Leave sets, by the operator or its AVS. Slashable for the delay still."""
    if msg.sender != params.operator and msg.sender != params.avs:
        raw_revert(method_id("InvalidCaller()"))
    for id: uint32 in params.operatorSetIds:
        left: IAllocationManager.OperatorSet = IAllocationManager.OperatorSet(avs=params.avs, id=id)
        allocations._leave(params.operator, allocations._existing(left))
        log stake.OperatorRemovedFromOperatorSet(operator=params.operator, operatorSet=left)
    extcall Registrar(self.getAVSRegistrar[params.avs]).deregisterOperator(
        params.operator, params.avs, params.operatorSetIds
    )


# --- an AVS and its slasher ---


@external
def updateAVSMetadataURI(avs: address, metadataURI: String[256]):
    self._check_caller(avs)
    self._described[avs] = True
    log stake.AVSMetadataURIUpdated(avs=avs, metadataURI=metadataURI)


@external
def setAVSRegistrar(avs: address, registrar: address):
    self._check_caller(avs)
    if not staticcall Registrar(registrar).supportsAVS(avs):
        raw_revert(method_id("InvalidAVSRegistrar()"))
    self.getAVSRegistrar[avs] = registrar
    log stake.AVSRegistrarSet(avs=avs, registrar=registrar)


@external
def createRedistributingOperatorSets(
    avs: address,
    params: DynArray[IAllocationManager.CreateSetParamsV2, 4],
    redistributionRecipients: DynArray[address, 4],
):
    """@notice Sets whose slashed stake goes to a recipient. There are no others here: nothing is burnt."""
    self._check_caller(avs)
    if len(params) != len(redistributionRecipients):
        raw_revert(method_id("InputArrayLengthMismatch()"))
    if not self._described[avs]:
        raw_revert(method_id("NonexistentAVSMetadata()"))
    index: uint256 = 0
    for one: IAllocationManager.CreateSetParamsV2 in params:
        created: IAllocationManager.OperatorSet = IAllocationManager.OperatorSet(avs=avs, id=one.operatorSetId)
        key: bytes32 = allocations._key(created)
        if allocations.slasher[key] != empty(address) or one.slasher == empty(address):
            raw_revert(method_id("InvalidOperatorSet()"))
        if redistributionRecipients[index] == empty(address) or redistributionRecipients[index] == self:
            raw_revert(method_id("InvalidRedistributionRecipient()"))
        self._check_strategies(one.strategies)
        allocations.slasher[key] = one.slasher
        self.recipient[key] = redistributionRecipients[index]
        log stake.OperatorSetCreated(operatorSet=created)
        log stake.StrategyAddedToOperatorSet(operatorSet=created, strategy=self)
        log stake.RedistributionAddressSet(operatorSet=created, redistributionRecipient=self.recipient[key])
        index += 1


@external
@nonreentrant
def slashOperator(avs: address, params: IAllocationManager.SlashingParams) -> (uint256, DynArray[uint256, 4]):
    """@notice Take a share (in 1/10^18) of what the operator has allocated to the set. Its slasher only."""
    slashed: IAllocationManager.OperatorSet = IAllocationManager.OperatorSet(avs=avs, id=params.operatorSetId)
    key: bytes32 = allocations._existing(slashed)
    if msg.sender != allocations.slasher[key]:
        raw_revert(method_id("InvalidCaller()"))
    if len(params.strategies) != len(params.wadsToSlash):
        raw_revert(method_id("InputArrayLengthMismatch()"))
    self._check_strategies(params.strategies)
    wad: uint256 = params.wadsToSlash[0]
    if wad == 0 or wad > WAD:
        raw_revert(method_id("InvalidWadToSlash()"))
    if not allocations._is_slashable(params.operator, key):
        raw_revert(method_id("OperatorNotSlashable()"))
    before: uint256 = allocations._maximum(params.operator)
    amount: uint256 = allocations._slash(params.operator, key, wad)
    after: uint256 = allocations._maximum(params.operator)
    self.slashCount[key] += 1
    self._log_encumbered(params.operator)
    log stake.MaxMagnitudeUpdated(operator=params.operator, strategy=self, maxMagnitude=convert(after, uint64))
    log stake.OperatorSlashed(
        operator=params.operator,
        operatorSet=slashed,
        strategies=params.strategies,
        wadSlashed=[(before - after) * WAD // before if before != 0 else 0],  # of all stake, as EigenLayer says it
        description=params.description,
    )
    assert extcall IERC20(token).transfer(self.recipient[key], amount, default_return_value=True)
    return self.slashCount[key], [amount]


@view
@internal
def _check_caller(account: address):
    if msg.sender != account:
        raw_revert(method_id("InvalidCaller()"))


@view
@internal
def _check_strategies(strategies: DynArray[address, 4]):
    if len(strategies) != 1 or strategies[0] != self:
        raw_revert(method_id("StrategyNotInOperatorSet()"))


@internal
def _log_encumbered(operator: address):
    log stake.EncumberedMagnitudeUpdated(
        operator=operator, strategy=self, encumberedMagnitude=convert(allocations.encumbered[operator], uint64)
    )
