# pragma version 0.4.3
# SPDX-License-Identifier: Apache-2.0
"""@notice Asked to collect, it makes one call of its own choice: into settlement again, or to a token of its own."""

target: address
again: Bytes[4096]


@external
def call_back_with(target: address, data: Bytes[4096]):
    self.target = target
    self.again = data


@external
def collect(payer: address, token: address, amount: uint256, channelId: bytes32, collectorData: Bytes[2048]):
    if len(self.again) != 0:
        raw_call(self.target, self.again)
