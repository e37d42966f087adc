# SPDX-License-Identifier: Apache-2.0
"""What a contract or a node said no with, in words: custom errors by their four bytes, `Error(string)`, messages."""

from __future__ import annotations

from typing import Final

from bombyx.adapters.evm.abi import Reader, selector
from bombyx.adapters.evm.rpc import RpcError
from bombyx.errors import BombyxError, PaymentError, Peer, Unavailable

_NAMES: Final = (
    # BatchSettlement, as x402 names them
    "InvalidChannel",
    "ZeroDeposit",
    "DepositOverflow",
    "InvalidSignature",
    "NotReceiverAuthorizer",
    "NotAuthorizedToClaim",
    "NotAuthorizedToRefund",
    "ClaimExceedsCeiling",
    "ClaimExceedsBalance",
    "WithdrawalAlreadyPending",
    "WithdrawalNotPending",
    "NotAuthorizedToFinalizeWithdraw",
    "WithdrawDelayNotElapsed",
    "NothingToWithdraw",
    "WithdrawAmountExceedsAvailable",
    "WithdrawDelayOutOfRange",
    "EmptyBatch",
    "DepositCollectionFailed",
    "InvalidCollector",
    "InvalidRefundNonce",
    "ZeroRefund",
    # collectors, registry, Reference Values
    "OnlySettlement",
    "OnlyPayer",
    "NotAnnounced",
    "UnknownRole",
    "RoleIsKept",
    "NotRegistered",
    "OnlyStakeManager",
    "OtherAVS",
    "UnknownKind",
    "AlreadyListed",
    "NotListed",
    "DelayTooLong",
    # stake (EigenLayer's names where it has one), cases, roots, faults, restitution
    "OnlyOnce",
    "OnlyEnforcer",
    "StakeTooSmall",
    "Ejected",
    "InvalidStrategy",
    "InvalidWithdrawal",
    "WithdrawalDelayNotElapsed",
    "InputArrayLengthMismatch",
    "InvalidCaller",
    "InvalidAVSRegistrar",
    "NonexistentAVSMetadata",
    "InvalidOperatorSet",
    "InvalidRedistributionRecipient",
    "InvalidWadToSlash",
    "OperatorNotSlashable",
    "StrategyNotInOperatorSet",
    "AlreadyMemberOfSet",
    "NotMemberOfSet",
    "ModificationAlreadyPending",
    "SameMagnitude",
    "InsufficientMagnitude",
    "NotItsKey",
    "OutsideWindow",
    "AlreadyPosted",
    "NotConsecutive",
    "NotAValidator",
    "TooEarly",
    "NoContradiction",
    "ProvenAlready",
    "ChallengedAlready",
    "TooLate",
    "NotIncluded",
    "NoSuchChallenge",
    "OnlyVetoCommittee",
    "NotQueued",
    "OnlyItsCaller",
    "OnlySlasher",
    "NothingCame",
    "OtherReceipt",
    "RefundedAlready",
    "NotItsClaimant",
    "NothingOwed",
    "OnlySteward",
    "NotAccusable",
    "NotYetOver",
    "OutsidePhase",
    "NotTheLoser",
    "NotWhatWasCommitted",
    "NothingToSay",
    "NotAJuror",
    "AlreadyVoted",
    "NoQuorum",
    "InvalidSignatureLength",
    "SignersNotOrdered",
    "NotSignedByOperator",
)
CUSTOM_ERRORS: Final = {selector(f"{name}()"): name for name in _NAMES}
_ERROR_STRING: Final = selector("Error(string)")
_FUNDS: Final = ("insufficient funds", "gas required exceeds allowance")


def refusal(error: RpcError) -> BombyxError:
    """`PaymentError` where the call itself is refused; `Unavailable` where the node only could not carry it out."""
    reason = reason_of(error.data)
    if reason is None and "revert" not in error.message.lower():
        if any(text in error.message.lower() for text in _FUNDS):
            return PaymentError("the sender cannot pay for gas", peer=Peer.CHAIN, rule="LEDGER-6")
        return Unavailable(f"the chain node says {error.message[:200]}", retry_after=1.0, rule="LEDGER-2")
    return PaymentError(f"the chain refuses: {reason or 'without a reason'}", peer=Peer.CHAIN, rule="LEDGER-1")


def reason_of(data: bytes) -> str | None:
    """The reason inside revert data, or None where there is none."""
    if data[:4] in CUSTOM_ERRORS:
        return CUSTOM_ERRORS[data[:4]]
    if data[:4] == _ERROR_STRING:
        try:
            return Reader(data[4:]).blob(0)[:200].decode("utf-8", "replace")
        except Unavailable:
            return None
    return f"error {data[:4].hex()}" if len(data) >= 4 else None
