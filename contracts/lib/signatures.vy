# pragma version 0.4.3
# SPDX-License-Identifier: Apache-2.0
"""
@title EIP-712 digests and the two kinds of signature that stand behind them
@license Apache-2.0
@notice A module, not a contract: it holds no storage.
@custom:security A signature is 65 bytes r || s || v with s in the lower half of the order (EIP-2) and v 27 or 28, so
    that no second form of it exists. Where the signer has code, EIP-1271 is asked after ECDSA failed: an EOA that
    delegates (EIP-7702) has code and still signs with its own key. The EIP-1271 call is static.
"""

MAX_SIGNATURE: constant(uint256) = 1024  # bytes; holds those of common smart wallets
ERC1271_MAGIC: constant(bytes4) = 0x1626ba7e
HALF_ORDER: constant(uint256) = 57896044618658097711785492504343953926418782139537452191302581570759080747168
DOMAIN_TYPEHASH: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)


@view
@internal
def _separator(name_hash: bytes32, version_hash: bytes32) -> bytes32:
    """
    @dev Computed at every call: a fork of the chain gets its own domain at once; so does copied code.
    """
    return keccak256(abi_encode(DOMAIN_TYPEHASH, name_hash, version_hash, chain.id, self))


@pure
@internal
def _typed(separator: bytes32, struct_hash: bytes32) -> bytes32:
    return keccak256(concat(b"\x19\x01", separator, struct_hash))


@pure
@internal
def _recovered(digest: bytes32, signature: Bytes[MAX_SIGNATURE]) -> address:
    """@dev Who signed, or the zero address; callers must never compare that with a signer that may be zero."""
    if len(signature) != 65:
        return empty(address)
    r: uint256 = convert(slice(signature, 0, 32), uint256)
    s: uint256 = convert(slice(signature, 32, 32), uint256)
    v: uint256 = convert(slice(signature, 64, 1), uint256)
    if s > HALF_ORDER or (v != 27 and v != 28):
        return empty(address)
    return ecrecover(digest, v, r, s)


@view
@internal
def _is_signed(signer: address, digest: bytes32, signature: Bytes[MAX_SIGNATURE]) -> bool:
    if signer == empty(address):
        return False
    if self._recovered(digest, signature) == signer:
        return True
    if not signer.is_contract:
        return False
    ok: bool = False
    answer: Bytes[32] = b""
    ok, answer = raw_call(
        signer,
        abi_encode(digest, signature, method_id=method_id("isValidSignature(bytes32,bytes)")),
        max_outsize=32,
        is_static_call=True,
        revert_on_failure=False,
    )
    return ok and len(answer) == 32 and convert(slice(answer, 0, 4), bytes4) == ERC1271_MAGIC
