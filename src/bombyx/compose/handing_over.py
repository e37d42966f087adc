# SPDX-License-Identifier: Apache-2.0
"""Hands an answer to a validator's enclave: appraise its evidence, seal to the key in it, send (spec AUD-57).

Not here: which answers (`auditing.py`, `roles/validator/alarms.py`). Always: sealed to the very key that the registry
names, and only if our own policy accepts the enclave behind it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from bombyx.adapters.entropy import SystemEntropy
from bombyx.errors import AttestationError, Unavailable
from bombyx.ports import Clock, Ledger, Operator, OperatorRole
from bombyx.protocol.attest import AppraisalPolicy, AttestationResult, appraise
from bombyx.protocol.primitives import Address
from bombyx.protocol.seal import encapsulate_request, parse_key_configs
from bombyx.protocol.wire.audit import AuditPackage
from bombyx.roles.validator.opt_in import LABEL

MAX_EVIDENCE: Final = 1 << 20
# What to ask the validator ("GET": its evidence, "POST": to take these bytes) -> status, answer. Raises `Unavailable`.
Carry = Callable[[str, bytes], Awaitable[tuple[int, bytes]]]
# Method, URL, body, most bytes of the answer -> status, answer. Raises `Unavailable`, `MalformedMessage`.
Forward = Callable[[str, str, bytes, int], Awaitable[tuple[int, bytes]]]


async def deliver(
    carry: Carry, package: AuditPackage, line: Operator, policy: AppraisalPolicy, clock: Clock
) -> tuple[AttestationResult, int]:
    """One package to the validator of this line; how it was appraised, and the bytes that left."""
    status, bundle = await carry("GET", b"")
    if status != 200:
        raise Unavailable(f"no evidence of the validator (status {status})", rule="AUD-57")
    result = appraise(bundle, policy.offline(), now=clock.now())
    # An enclave says of itself whom it works for; the registry makes that true.
    if result.keyset.operator != line.address or line.pay_key_config != result.key_configs:
        raise AttestationError("not the key that the registry names for this validator", rule="AUD-57")
    configs = parse_key_configs(result.key_configs)
    if not configs:
        raise AttestationError("no key that we know how to seal to", rule="AUD-57")
    sealed, _ = encapsulate_request(configs[0], package.encode(), SystemEntropy(), label=LABEL)
    status, _ = await carry("POST", sealed)
    if status != 202:
        raise Unavailable(f"the validator did not take it (status {status})", rule="AUD-57")
    return result, len(sealed)


class OtherValidators:
    """`roles.validator.asking.Others`, over the pages that the registry names: no proxy learns of an alarm."""

    def __init__(
        self,
        own: Address,
        *,
        ledger: Ledger,
        members: Callable[[], Awaitable[Sequence[Address]]],
        forward: Forward,
        policy: AppraisalPolicy,
        clock: Clock,
    ) -> None:
        """`members`: who has a stake in what it says; anybody may write a line."""
        self._own = own
        self._ledger = ledger
        self._members = members
        self._forward = forward
        self._policy = policy
        self._clock = clock
        self._lines: dict[Address, Operator] = {}

    async def taking(self) -> tuple[Address, ...]:
        staked = frozenset(await self._members()) - {self._own}
        lines = await self._ledger.operators(OperatorRole.VALIDATOR)
        self._lines = {line.address: line for line in lines if line.address in staked and line.pay_key_config}
        return tuple(self._lines)

    async def tell(self, validator: Address, package: AuditPackage) -> None:
        line = self._lines.get(validator)
        if line is None:
            raise Unavailable("no such validator takes answers", rule="AUD-60")
        page = line.endpoint.rstrip("/")

        async def carry(method: str, body: bytes) -> tuple[int, bytes]:
            path = "/v1/enclave" if method == "GET" else "/v1/opt-in"
            return await self._forward(method, page + path, body, MAX_EVIDENCE)

        await deliver(carry, package, line, self._policy, self._clock)
