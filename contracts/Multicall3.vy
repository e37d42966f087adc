# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title The two calls of Multicall3 that stock SDKs make, for development chains that have no Multicall3
@license Apache-2.0
@notice Public chains have the real one at 0xcA11bde05977b3631167028862bE2a173976CA11.
@custom:security Calls whatever it is told to call, as itself: it must never hold tokens, allowances or a role.
"""

MAX_CALLS: constant(uint256) = 16

struct Call:
    target: address
    callData: Bytes[4096]

struct Call3:
    target: address
    allowFailure: bool
    callData: Bytes[4096]

struct Result:
    success: bool
    returnData: Bytes[1024]


@payable
@external
def tryAggregate(requireSuccess: bool, calls: DynArray[Call, MAX_CALLS]) -> DynArray[Result, MAX_CALLS]:
    """@notice Every call in order; any failure fails all of them if `requireSuccess`."""
    results: DynArray[Result, MAX_CALLS] = []
    for call: Call in calls:
        results.append(self._call(call.target, call.callData, not requireSuccess))
    return results


@payable
@external
def aggregate3(calls: DynArray[Call3, MAX_CALLS]) -> DynArray[Result, MAX_CALLS]:
    """@notice Every call in order; each says whether its own failure is allowed."""
    results: DynArray[Result, MAX_CALLS] = []
    for call: Call3 in calls:
        results.append(self._call(call.target, call.callData, call.allowFailure))
    return results


@internal
def _call(target: address, data: Bytes[4096], may_fail: bool) -> Result:
    ok: bool = False
    answer: Bytes[1024] = b""
    ok, answer = raw_call(target, data, max_outsize=1024, revert_on_failure=False)
    assert ok or may_fail, "Multicall3: call failed"
    return Result(success=ok, returnData=answer)
