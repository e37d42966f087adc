# pragma version 0.4.3
# SPDX-License-Identifier: Apache-2.0
"""
@title Events of EigenLayer's AllocationManager that our stake manager has too, and three of its own
@license Apache-2.0
@notice A module, not a contract: it holds no storage. Names, order and types are the published ones, so that one
    indexer serves both; own text. Staking and withdrawing have contracts of their own in EigenLayer.
"""

from interfaces import IAllocationManager

event AVSMetadataURIUpdated:
    avs: indexed(address)
    metadataURI: String[256]

event AVSRegistrarSet:
    avs: address
    registrar: address

event OperatorSetCreated:
    operatorSet: IAllocationManager.OperatorSet

event StrategyAddedToOperatorSet:
    operatorSet: IAllocationManager.OperatorSet
    strategy: address

event RedistributionAddressSet:
    operatorSet: IAllocationManager.OperatorSet
    redistributionRecipient: address

event OperatorAddedToOperatorSet:
    operator: indexed(address)
    operatorSet: IAllocationManager.OperatorSet

event OperatorRemovedFromOperatorSet:
    operator: indexed(address)
    operatorSet: IAllocationManager.OperatorSet

event AllocationUpdated:
    operator: address
    operatorSet: IAllocationManager.OperatorSet
    strategy: address
    magnitude: uint64
    effectBlock: uint32

event EncumberedMagnitudeUpdated:
    operator: address
    strategy: address
    encumberedMagnitude: uint64

event MaxMagnitudeUpdated:
    operator: address
    strategy: address
    maxMagnitude: uint64

event OperatorSlashed:
    operator: address
    operatorSet: IAllocationManager.OperatorSet
    strategies: DynArray[address, 4]
    wadSlashed: DynArray[uint256, 4]
    description: String[256]

event Deposit:
    staker: address
    token: address
    strategy: address
    shares: uint256

event WithdrawalQueued:
    operator: indexed(address)
    amount: uint256
    completableFrom: uint32

event WithdrawalCompleted:
    operator: indexed(address)
    amount: uint256
