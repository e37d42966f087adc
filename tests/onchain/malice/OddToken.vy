# pragma version 0.4.3
# SPDX-License-Identifier: Apache-2.0
"""@notice A token that takes a fee, or calls settlement again while it pays out. `transfer` gives no answer, as USDT's."""

balanceOf: public(HashMap[address, uint256])
fee: public(uint256)
target: address
again: Bytes[4096]


@external
def mint(to: address, amount: uint256):
    self.balanceOf[to] += amount


@external
def set_fee(fee: uint256):
    self.fee = fee


@external
def call_back_with(target: address, data: Bytes[4096]):
    self.target = target
    self.again = data


@external
def transfer(to: address, amount: uint256):
    self._move(msg.sender, to, amount)
    if len(self.again) != 0:
        raw_call(self.target, self.again)


@external
def transferFrom(sender: address, to: address, amount: uint256):
    self._move(sender, to, amount)


@internal
def _move(sender: address, to: address, amount: uint256):
    self.balanceOf[sender] -= amount
    self.balanceOf[to] += amount - self.fee
