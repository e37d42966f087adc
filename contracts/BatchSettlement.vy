# pragma version 0.4.3
# pragma evm-version cancun
# pragma nonreentrancy off
# SPDX-License-Identifier: Apache-2.0
"""
@title Payment channels with cumulative vouchers: the x402 v2 `batch-settlement` interface
@license Apache-2.0
@notice A payer deposits into a channel; its authorizer signs ever larger vouchers; the receiver claims the last one.
    Same ABI, EIP-712 domain, events and errors as the published x402 contract, so that stock clients, servers and
    facilitators work against either. Own code. Nobody owns this contract and nothing in it can be changed.
    Always: claimed <= balance of each channel; a claim never goes back; this contract's tokens are at least
    sum(balance - claimed) + sum(claimed - settled).
@custom:security Accepted, as in the published contract:
    - Vouchers that are not yet claimed reserve nothing. A payee must claim before a withdrawal's delay ends.
    - Anyone may deposit into anyone's channel, with any collector; such money belongs to the channel's payer.
    - Tokens that take fees on transfer fail in `deposit`. Tokens that rebase or take fees later can make the last
      `settle` or refund fail: channels in such tokens endanger only channels in the same token.
    - A blocked receiver (token deny-list) cannot be settled; a blocked payer cannot be refunded. Claims still count.
    - Views read inside a collector or token call show the deposit or withdrawal as already made.
    Where this one is stricter: at most 100 claims a call, 256 bytes a voucher signature, 8 KiB a call in `multicall`.
"""

from ethereum.ercs import IERC20
from interfaces import IDepositCollector
from lib import channel
from lib import signatures

exports: (
    channel.CHANNEL_CONFIG_TYPEHASH,
    channel.VOUCHER_TYPEHASH,
    channel.REFUND_TYPEHASH,
    channel.CLAIM_ENTRY_TYPEHASH,
    channel.CLAIM_BATCH_TYPEHASH,
    channel.getChannelId,
    channel.getVoucherDigest,
    channel.getRefundDigest,
    channel.getClaimBatchDigest,
)

# --- constants ---

MIN_WITHDRAW_DELAY: public(constant(uint40)) = 900  # 15 minutes
MAX_WITHDRAW_DELAY: public(constant(uint40)) = 2_592_000  # 30 days
LOW: constant(uint256) = 2**128 - 1  # Vyper does not pack structs: two uint128 share a word by hand

# --- storage ---

_channels: HashMap[bytes32, uint256]  # balance << 128 | totalClaimed
_pending: HashMap[bytes32, uint256]  # amount << 128 | initiatedAt
_receivers: HashMap[address, HashMap[address, uint256]]  # totalClaimed << 128 | totalSettled
refundNonce: public(HashMap[bytes32, uint256])  # counts every refund, signed or not

# --- deposits ---


@external
@nonreentrant
def deposit(config: channel.ChannelConfig, amount: uint128, collector: address, collectorData: Bytes[2048]):
    """@notice Open a channel, or top it up, with tokens that `collector` brings. Anyone may call."""
    if config.payer == empty(address) or config.receiver == empty(address):
        raw_revert(method_id("InvalidChannel()"))
    if config.receiverAuthorizer == empty(address) or config.token == empty(address):
        raw_revert(method_id("InvalidChannel()"))
    if config.withdrawDelay < MIN_WITHDRAW_DELAY or config.withdrawDelay > MAX_WITHDRAW_DELAY:
        raw_revert(method_id("WithdrawDelayOutOfRange()"))
    if amount == 0:
        raw_revert(method_id("ZeroDeposit()"))
    if collector == empty(address):
        raw_revert(method_id("InvalidCollector()"))
    value: uint256 = convert(amount, uint256)
    id: bytes32 = channel._channel_id(channel._domain(), config)
    before: uint256 = self._channels[id]
    balance: uint256 = (before >> 128) + value
    if balance > LOW:
        raw_revert(method_id("DepositOverflow()"))
    self._channels[id] = (balance << 128) | (before & LOW)
    held: uint256 = staticcall IERC20(config.token).balanceOf(self)
    extcall IDepositCollector(collector).collect(config.payer, config.token, value, id, collectorData)
    if staticcall IERC20(config.token).balanceOf(self) != held + value:
        raw_revert(method_id("DepositCollectionFailed()"))
    if before == 0:
        log channel.ChannelCreated(channelId=id, config=config)
    log channel.Deposited(channelId=id, sender=msg.sender, amount=amount, newBalance=convert(balance, uint128))


# --- claims ---


@external
@nonreentrant
def claim(voucherClaims: DynArray[channel.VoucherClaim, channel.MAX_CLAIMS]):
    """@notice Book vouchers, all or none. Each row's receiver or receiverAuthorizer must be the sender."""
    if len(voucherClaims) == 0:
        raw_revert(method_id("EmptyBatch()"))
    domain: bytes32 = channel._domain()
    for row: channel.VoucherClaim in voucherClaims:
        if msg.sender != row.voucher.channel.receiver and msg.sender != row.voucher.channel.receiverAuthorizer:
            raw_revert(method_id("NotAuthorizedToClaim()"))
        self._claim(domain, channel._channel_id(domain, row.voucher.channel), row)


@external
@nonreentrant
def claimWithSignature(
    voucherClaims: DynArray[channel.VoucherClaim, channel.MAX_CLAIMS], authorizerSignature: Bytes[1024]
):
    """@notice Book vouchers in a batch its receiverAuthorizer signed. Anyone may relay: a watchtower needs no keys."""
    if len(voucherClaims) == 0:
        raw_revert(method_id("EmptyBatch()"))
    domain: bytes32 = channel._domain()
    authorizer: address = voucherClaims[0].voucher.channel.receiverAuthorizer
    entries: DynArray[bytes32, channel.MAX_CLAIMS] = []
    for row: channel.VoucherClaim in voucherClaims:
        if row.voucher.channel.receiverAuthorizer != authorizer:
            raw_revert(method_id("NotReceiverAuthorizer()"))
        id: bytes32 = channel._channel_id(domain, row.voucher.channel)
        entries.append(channel._entry(id, row))
        self._claim(domain, id, row)
    if not signatures._is_signed(authorizer, channel._batch(domain, entries), authorizerSignature):
        raw_revert(method_id("InvalidSignature()"))


@external
@nonreentrant
def settle(receiver: address, token: address):
    """@notice Send a receiver everything claimed for it and not yet sent. Anyone may call."""
    state: uint256 = self._receivers[receiver][token]
    claimed: uint256 = state >> 128
    amount: uint256 = claimed - (state & LOW)
    if amount == 0:
        return
    self._receivers[receiver][token] = (claimed << 128) | claimed
    assert extcall IERC20(token).transfer(receiver, amount, default_return_value=True)
    log channel.Settled(receiver=receiver, token=token, sender=msg.sender, amount=convert(amount, uint128))


@internal
def _claim(domain: bytes32, id: bytes32, row: channel.VoucherClaim):
    state: uint256 = self._channels[id]
    before: uint256 = state & LOW
    total: uint256 = convert(row.totalClaimed, uint256)
    if total <= before:
        return  # replayed or smaller: nothing to do, and no reason to fail the rest of the batch
    if row.totalClaimed > row.voucher.maxClaimableAmount:
        raw_revert(method_id("ClaimExceedsCeiling()"))
    if total > state >> 128:
        raw_revert(method_id("ClaimExceedsBalance()"))
    digest: bytes32 = channel._voucher_digest(domain, id, row.voucher.maxClaimableAmount)
    valid: bool = False
    if row.voucher.channel.payerAuthorizer != empty(address):
        valid = signatures._recovered(digest, row.signature) == row.voucher.channel.payerAuthorizer
    else:
        valid = signatures._is_signed(row.voucher.channel.payer, digest, row.signature)
    if not valid:
        raw_revert(method_id("InvalidSignature()"))
    self._channels[id] = (state & (LOW << 128)) | total
    self._receivers[row.voucher.channel.receiver][row.voucher.channel.token] += (total - before) << 128
    log channel.Claimed(
        channelId=id,
        sender=msg.sender,
        claimAmount=convert(total - before, uint128),
        newTotalClaimed=row.totalClaimed,
    )


# --- ways out ---


@external
@nonreentrant
def initiateWithdraw(config: channel.ChannelConfig, amount: uint128):
    """@notice Start the clock of a withdrawal. The payer or its authorizer; one at a time; claims stay possible."""
    if msg.sender != config.payer and msg.sender != config.payerAuthorizer:
        raw_revert(method_id("InvalidChannel()"))
    if amount == 0:
        raw_revert(method_id("NothingToWithdraw()"))
    id: bytes32 = channel._channel_id(channel._domain(), config)
    if self._pending[id] != 0:
        raw_revert(method_id("WithdrawalAlreadyPending()"))
    state: uint256 = self._channels[id]
    if convert(amount, uint256) > (state >> 128) - (state & LOW):
        raw_revert(method_id("WithdrawAmountExceedsAvailable()"))
    self._pending[id] = (convert(amount, uint256) << 128) | block.timestamp
    log channel.WithdrawInitiated(
        channelId=id, amount=amount, finalizeAfter=convert(block.timestamp, uint40) + config.withdrawDelay
    )


@external
@nonreentrant
def finalizeWithdraw(config: channel.ChannelConfig):
    """@notice Send the payer what it asked for, or what is left of it. The payer or its authorizer, after the delay."""
    if msg.sender != config.payer and msg.sender != config.payerAuthorizer:
        raw_revert(method_id("NotAuthorizedToFinalizeWithdraw()"))
    id: bytes32 = channel._channel_id(channel._domain(), config)
    pending: uint256 = self._pending[id]
    if pending == 0:
        raw_revert(method_id("WithdrawalNotPending()"))
    if block.timestamp < (pending & LOW) + convert(config.withdrawDelay, uint256):
        raw_revert(method_id("WithdrawDelayNotElapsed()"))
    state: uint256 = self._channels[id]
    amount: uint256 = min(pending >> 128, (state >> 128) - (state & LOW))
    self._pending[id] = 0
    self._channels[id] = state - (amount << 128)
    log channel.WithdrawFinalized(channelId=id, sender=msg.sender, amount=convert(amount, uint128))
    self._give_back(id, config, amount)


@external
@nonreentrant
def refund(config: channel.ChannelConfig, amount: uint128):
    """@notice Give unclaimed money back at once. The receiver or its authorizer."""
    if msg.sender != config.receiver and msg.sender != config.receiverAuthorizer:
        raw_revert(method_id("NotAuthorizedToRefund()"))
    self._refund(channel._channel_id(channel._domain(), config), config, amount)


@external
@nonreentrant
def refundWithSignature(
    config: channel.ChannelConfig, amount: uint128, nonce: uint256, receiverAuthorizerSignature: Bytes[1024]
):
    """@notice Give unclaimed money back at once, as the receiverAuthorizer signed. Anyone may relay."""
    domain: bytes32 = channel._domain()
    id: bytes32 = channel._channel_id(domain, config)
    if nonce != self.refundNonce[id]:
        raw_revert(method_id("InvalidRefundNonce()"))
    digest: bytes32 = channel._refund_digest(domain, id, nonce, amount)
    if not signatures._is_signed(config.receiverAuthorizer, digest, receiverAuthorizerSignature):
        raw_revert(method_id("InvalidSignature()"))
    self._refund(id, config, amount)


@internal
def _refund(id: bytes32, config: channel.ChannelConfig, requested: uint128):
    if requested == 0:
        raw_revert(method_id("ZeroRefund()"))
    self.refundNonce[id] += 1
    state: uint256 = self._channels[id]
    amount: uint256 = min(convert(requested, uint256), (state >> 128) - (state & LOW))
    if amount == 0:
        return
    self._channels[id] = state - (amount << 128)
    pending: uint256 = self._pending[id]
    if pending != 0:
        self._pending[id] = pending - (amount << 128) if amount < pending >> 128 else 0
    log channel.Refunded(channelId=id, sender=msg.sender, amount=convert(amount, uint128))
    self._give_back(id, config, amount)


@internal
def _give_back(id: bytes32, config: channel.ChannelConfig, amount: uint256):
    if self._channels[id] == 0:
        log channel.ChannelClosed(channelId=id, config=config)
    if amount > 0:
        assert extcall IERC20(config.token).transfer(config.payer, amount, default_return_value=True)


@external
def multicall(data: DynArray[Bytes[8192], 4]) -> DynArray[Bytes[64], 4]:
    """
    @notice Several calls of this contract in one transaction, all or none. Not payable, so no value is counted twice.
    """
    results: DynArray[Bytes[64], 4] = []
    for call: Bytes[8192] in data:
        results.append(raw_call(self, call, max_outsize=64, is_delegate_call=True))
    return results


# --- views ---


@view
@external
def channels(channelId: bytes32) -> (uint128, uint128):
    """@return balance (deposits minus withdrawals and refunds; claims do not lower it), totalClaimed"""
    return self._halves(self._channels[channelId])


@view
@external
def pendingWithdrawals(channelId: bytes32) -> (uint128, uint40):
    """@return amount, initiatedAt (zero: none is pending)"""
    state: uint256 = self._pending[channelId]
    return convert(state >> 128, uint128), convert(state & LOW, uint40)


@view
@external
def receivers(receiver: address, token: address) -> (uint128, uint128):
    """@return totalClaimed, totalSettled"""
    return self._halves(self._receivers[receiver][token])


@pure
@internal
def _halves(state: uint256) -> (uint128, uint128):
    return convert(state >> 128, uint128), convert(state & LOW, uint128)
