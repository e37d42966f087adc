# pragma version 0.4.3
# SPDX-License-Identifier: Apache-2.0
"""@notice A smart wallet (EIP-1271) that accepts one digest with one long signature; or answers with rubbish."""

good: bytes32
signature: Bytes[1024]
rubbish: bool


@external
def accept(digest: bytes32, signature: Bytes[1024], rubbish: bool):
    self.good = digest
    self.signature = signature
    self.rubbish = rubbish


@external
def call(target: address, data: Bytes[2048]):
    raw_call(target, data)


@view
@external
def isValidSignature(digest: bytes32, signature: Bytes[1024]) -> bytes32:
    if self.rubbish:
        return convert(1, bytes32)
    if digest == self.good and keccak256(signature) == keccak256(self.signature):
        return 0x1626ba7e00000000000000000000000000000000000000000000000000000000
    return empty(bytes32)
