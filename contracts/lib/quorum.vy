# pragma version 0.4.3
# SPDX-License-Identifier: Apache-2.0
"""
@title Quorum certificates: EigenLayer's ECDSA digest and its encoding, signatures sorted by signer; own text
@license Apache-2.0
@notice A module, not a contract: it holds no storage.
@custom:security EigenLayer's domain names no chain. The message must, with everything else a certificate is good for.
"""

from . import signatures

MAX_SIGNERS: constant(uint256) = 31
DOMAIN_TYPEHASH: constant(bytes32) = keccak256("EIP712Domain(string name,string version,address verifyingContract)")
CERTIFICATE_TYPEHASH: constant(bytes32) = keccak256("ECDSACertificate(uint32 referenceTimestamp,bytes32 messageHash)")


@view
@internal
def _certificate_digest(timestamp: uint32, message: bytes32) -> bytes32:
    separator: bytes32 = keccak256(abi_encode(DOMAIN_TYPEHASH, keccak256("EigenLayer"), keccak256("v1"), self))
    return signatures._typed(separator, keccak256(abi_encode(CERTIFICATE_TYPEHASH, timestamp, message)))


@view
@internal
def _signers(digest: bytes32, certificate: Bytes[65 * MAX_SIGNERS]) -> DynArray[address, MAX_SIGNERS]:
    """@dev Who signed: strictly ascending, so nobody twice. Reverts for anything else."""
    count: uint256 = len(certificate) // 65
    if count == 0 or len(certificate) % 65 != 0:
        raw_revert(method_id("InvalidSignatureLength()"))
    found: DynArray[address, MAX_SIGNERS] = []
    last: uint256 = 0
    for index: uint256 in range(count, bound=MAX_SIGNERS):
        signer: address = signatures._recovered(digest, slice(certificate, index * 65, 65))
        if convert(signer, uint256) <= last:
            raw_revert(method_id("SignersNotOrdered()"))
        last = convert(signer, uint256)
        found.append(signer)
    return found
