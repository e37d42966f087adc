# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title Reference Values: which enclave images and model manifests are good, in whose opinion
@license Apache-2.0
@notice Anyone may publish, each in its own list. Whoever appraises names the publishers it trusts and how many must
    agree. Nobody can admit a value for everyone. Adding waits for the publisher's own delay; revoking does not.
    Always: no publisher can touch another's list; a value is good only between its time and its revocation; no
    publishers or no quorum means no.
@custom:security A publisher whose key is stolen can add bad values after its delay and revoke good ones at once: watch
    `Proposed`, and name more than one publisher. A delay may grow at once and shrink only after the old one. A
    publisher that never set a delay has none, which `delayOf` shows: policies may refuse it.
"""

MAX_PUBLISHERS: constant(uint256) = 32
MAX_DELAY: constant(uint64) = 31_536_000  # seconds; one year
MEASUREMENT: public(constant(uint8)) = 1  # an enclave image
MODEL: public(constant(uint8)) = 2  # a model manifest

event Proposed:
    publisher: indexed(address)
    kind: indexed(uint8)
    reference: indexed(bytes32)
    goodFrom: uint64
    uri: String[256]

event Revoked:
    publisher: indexed(address)
    kind: indexed(uint8)
    reference: indexed(bytes32)

event DelayChanged:
    publisher: indexed(address)
    delay: uint64
    since: uint64

goodFrom: public(HashMap[address, HashMap[uint8, HashMap[bytes32, uint64]]])  # 0: not in the list
_delay: HashMap[address, uint64]
_next_delay: HashMap[address, uint64]
_next_since: HashMap[address, uint64]  # 0: no change is waiting


@external
def propose(kind: uint8, reference: bytes32, uri: String[256]):
    """@notice Add a value to the sender's list. It is good once the sender's delay has passed."""
    if kind != MEASUREMENT and kind != MODEL:
        raw_revert(method_id("UnknownKind()"))
    if self.goodFrom[msg.sender][kind][reference] != 0:
        raw_revert(method_id("AlreadyListed()"))
    good: uint64 = convert(block.timestamp, uint64) + self._delay_of(msg.sender)
    self.goodFrom[msg.sender][kind][reference] = good
    log Proposed(publisher=msg.sender, kind=kind, reference=reference, goodFrom=good, uri=uri)


@external
def revoke(kind: uint8, reference: bytes32):
    """@notice Take a value out of the sender's list at once. Proposed again, it waits again."""
    if self.goodFrom[msg.sender][kind][reference] == 0:
        raw_revert(method_id("NotListed()"))
    self.goodFrom[msg.sender][kind][reference] = 0
    log Revoked(publisher=msg.sender, kind=kind, reference=reference)


@external
def setDelay(delay: uint64):
    """@notice How long the sender's additions wait from now on. A shorter delay counts after the one it replaces."""
    if delay > MAX_DELAY:
        raw_revert(method_id("DelayTooLong()"))
    now: uint64 = convert(block.timestamp, uint64)
    current: uint64 = self._delay_of(msg.sender)
    since: uint64 = now if delay >= current else now + current
    self._delay[msg.sender] = current
    self._next_delay[msg.sender] = delay
    self._next_since[msg.sender] = since
    log DelayChanged(publisher=msg.sender, delay=delay, since=since)


# --- views ---


@view
@external
def delayOf(publisher: address) -> uint64:
    return self._delay_of(publisher)


@view
@external
def isGood(publisher: address, kind: uint8, reference: bytes32) -> bool:
    return self._is_good(publisher, kind, reference)


@view
@external
def agreed(publishers: DynArray[address, MAX_PUBLISHERS], quorum: uint256, kind: uint8, reference: bytes32) -> bool:
    """@notice Whether `quorum` of `publishers` hold the value good. Each counts once; a quorum of zero is never met."""
    votes: uint256 = 0
    seen: DynArray[address, MAX_PUBLISHERS] = []
    for publisher: address in publishers:
        if publisher not in seen and self._is_good(publisher, kind, reference):
            votes += 1
        seen.append(publisher)
    return quorum > 0 and votes >= quorum


@view
@internal
def _is_good(publisher: address, kind: uint8, reference: bytes32) -> bool:
    good: uint64 = self.goodFrom[publisher][kind][reference]
    return good != 0 and convert(block.timestamp, uint64) >= good


@view
@internal
def _delay_of(publisher: address) -> uint64:
    since: uint64 = self._next_since[publisher]
    if since != 0 and convert(block.timestamp, uint64) >= since:
        return self._next_delay[publisher]
    return self._delay[publisher]
