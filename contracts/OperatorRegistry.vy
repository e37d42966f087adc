# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title Who runs proxies, workers and validators, and with which keys
@license Apache-2.0
@notice Anyone may register its own line. What contracts may need is stored; the rest (endpoint, key configuration,
    price sheet, models) is in the event, and its digest is stored: whoever reads a line checks it against the digest.
    Also an AVS in EigenLayer's sense, and its registrar: an operator set for each role, set ids are role numbers.
    Always: an operator keeps its role; a key once published stays attributable to its operator; who joins a set has at
    least the set's minimum allocated; an ejected operator has no line and joins nothing until its time is over.
@custom:security Being registered says nothing good about an operator: evidence does, and stake. Two operators may name
    the same receipt key: naming a key proves nothing, and a fault is proven by the key's signature and the operator
    inside the receipt. `stakeManager` may only move operators in and out of sets; the enforcer, which `start` names
    once and for ever, may eject and is the sets' slasher. `admin` can do nothing after `start`; until then nobody can
    join a set. The minimum is checked on joining, not later: whoever counts on stake asks the stake manager.
"""

from interfaces import IAllocationManager

MAX_LINES: constant(uint256) = 256  # in one answer
MAX_ENDPOINT: constant(uint256) = 512
MAX_KEY_CONFIG: constant(uint256) = 4096  # ML-KEM-768 with X25519 takes 1,230 bytes
MAX_MODELS: constant(uint256) = 64
MAX_SETS: constant(uint256) = 16
PROXY: public(constant(uint8)) = 1
WORKER: public(constant(uint8)) = 2
VALIDATOR: public(constant(uint8)) = 3

struct Line:
    operator: address
    role: uint8
    active: bool
    updatedAt: uint64  # block number of the event with the whole line
    receiptAddress: address
    payAuthorizer: address
    digest: bytes32  # keccak256(abi.encode(endpoint, payKeyConfig, priceSheet, models))

event OperatorUpdated:
    operator: indexed(address)
    role: indexed(uint8)
    receiptAddress: address
    payAuthorizer: address
    endpoint: String[MAX_ENDPOINT]
    payKeyConfig: Bytes[MAX_KEY_CONFIG]
    priceSheet: bytes32
    models: DynArray[bytes32, MAX_MODELS]

event OperatorRetired:
    operator: indexed(address)
    role: indexed(uint8)

event OperatorSetJoined:
    operator: indexed(address)
    operatorSetId: indexed(uint32)

event OperatorSetLeft:
    operator: indexed(address)
    operatorSetId: indexed(uint32)

event OperatorEjected:
    operator: indexed(address)
    role: indexed(uint8)
    until: uint64

event Started:
    enforcer: indexed(address)
    recipient: indexed(address)

stakeManager: public(immutable(address))
strategy: public(immutable(address))
admin: public(immutable(address))
MINIMUMS: immutable(uint256[3])
enforcer: public(address)
ejectedUntil: public(HashMap[address, uint64])  # seconds
lines: public(HashMap[address, Line])
keySince: public(HashMap[address, HashMap[address, uint64]])  # operator -> receipt key -> first block, or 0
inSet: public(HashMap[address, HashMap[uint32, bool]])
_members: HashMap[uint8, HashMap[uint256, address]]  # role -> index -> operator, in order of registration
memberCount: public(HashMap[uint8, uint256])


@deploy
def __init__(stakeManager_: address, strategy_: address, admin_: address, minimums: uint256[3]):
    """@param minimums allocated stake a proxy, a worker and a validator need to join their sets"""
    stakeManager = stakeManager_
    strategy = strategy_
    admin = admin_
    MINIMUMS = minimums


@external
def start(enforcer_: address, recipient: address, metadataURI: String[256]):
    """@notice Become an AVS: create the sets, slashed by `enforcer_` to `recipient`. The admin, once."""
    if msg.sender != admin or self.enforcer != empty(address) or enforcer_ == empty(address):
        raw_revert(method_id("OnlyOnce()"))
    self.enforcer = enforcer_
    manager: IAllocationManager = IAllocationManager(stakeManager)
    extcall manager.updateAVSMetadataURI(self, metadataURI)
    extcall manager.setAVSRegistrar(self, self)
    sets: DynArray[IAllocationManager.CreateSetParamsV2, 4] = []
    recipients: DynArray[address, 4] = []
    for id: uint32 in [1, 2, 3]:
        sets.append(
            IAllocationManager.CreateSetParamsV2(operatorSetId=id, strategies=[strategy], slasher=enforcer_)
        )
        recipients.append(recipient)
    extcall manager.createRedistributingOperatorSets(self, sets, recipients)
    log Started(enforcer=enforcer_, recipient=recipient)


@external
def register(
    role: uint8,
    receiptAddress: address,
    payAuthorizer: address,
    endpoint: String[MAX_ENDPOINT],
    payKeyConfig: Bytes[MAX_KEY_CONFIG],
    priceSheet: bytes32,
    models: DynArray[bytes32, MAX_MODELS],
):
    """@notice Publish or replace the sender's own line."""
    if role < PROXY or role > VALIDATOR:
        raw_revert(method_id("UnknownRole()"))
    self._check_not_ejected(msg.sender)
    known: uint8 = self.lines[msg.sender].role
    if known == 0:
        index: uint256 = self.memberCount[role]
        self._members[role][index] = msg.sender
        self.memberCount[role] = index + 1
    elif known != role:
        raw_revert(method_id("RoleIsKept()"))
    self.lines[msg.sender] = Line(
        operator=msg.sender,
        role=role,
        active=True,
        updatedAt=convert(block.number, uint64),
        receiptAddress=receiptAddress,
        payAuthorizer=payAuthorizer,
        digest=keccak256(abi_encode(endpoint, payKeyConfig, priceSheet, models)),
    )
    if receiptAddress != empty(address) and self.keySince[msg.sender][receiptAddress] == 0:
        self.keySince[msg.sender][receiptAddress] = convert(block.number, uint64)
    log OperatorUpdated(
        operator=msg.sender,
        role=role,
        receiptAddress=receiptAddress,
        payAuthorizer=payAuthorizer,
        endpoint=endpoint,
        payKeyConfig=payKeyConfig,
        priceSheet=priceSheet,
        models=models,
    )


@external
def retire():
    """@notice Take the sender's line out of service; `register` brings it back."""
    role: uint8 = self.lines[msg.sender].role
    if role == 0:
        raw_revert(method_id("NotRegistered()"))
    self.lines[msg.sender].active = False
    log OperatorRetired(operator=msg.sender, role=role)


@external
def eject(operator: address, until: uint64):
    """@notice Take an operator's line and its place in the set, until a time. The enforcer only; never refused."""
    if msg.sender != self.enforcer:
        raw_revert(method_id("OnlyEnforcer()"))
    role: uint8 = self.lines[operator].role
    self.lines[operator].active = False
    self.ejectedUntil[operator] = max(until, self.ejectedUntil[operator])
    id: uint32 = convert(role, uint32)
    if self.inSet[operator][id]:
        extcall IAllocationManager(stakeManager).deregisterFromOperatorSets(
            IAllocationManager.DeregisterParams(operator=operator, avs=self, operatorSetIds=[id])
        )
    log OperatorEjected(operator=operator, role=role, until=until)


# --- IAVSRegistrar ---


@view
@external
def supportsAVS(avs: address) -> bool:
    return avs == self


@external
def registerOperator(operator: address, avs: address, operatorSetIds: DynArray[uint32, MAX_SETS], data: Bytes[1024]):
    """@notice The stake manager says that `operator` joins; set ids are role numbers, and the role must be its own."""
    self._check_manager(avs)
    self._check_not_ejected(operator)
    for id: uint32 in operatorSetIds:
        if convert(self.lines[operator].role, uint32) != id or not self.lines[operator].active:
            raw_revert(method_id("NotRegistered()"))
        if not self._has_enough(operator, id):
            raw_revert(method_id("StakeTooSmall()"))
        self.inSet[operator][id] = True
        log OperatorSetJoined(operator=operator, operatorSetId=id)


@external
def deregisterOperator(operator: address, avs: address, operatorSetIds: DynArray[uint32, MAX_SETS]):
    """@notice The stake manager says that `operator` leaves. Never refused: nobody is kept in a set."""
    self._check_manager(avs)
    for id: uint32 in operatorSetIds:
        self.inSet[operator][id] = False
        log OperatorSetLeft(operator=operator, operatorSetId=id)


@view
@internal
def _has_enough(operator: address, id: uint32) -> bool:
    if MINIMUMS[id - 1] == 0:
        return True
    joined: IAllocationManager.OperatorSet = IAllocationManager.OperatorSet(avs=self, id=id)
    found: DynArray[DynArray[uint256, 4], 64] = staticcall IAllocationManager(
        stakeManager
    ).getMinimumSlashableStake(joined, [operator], [strategy], convert(block.number, uint32))
    return found[0][0] >= MINIMUMS[id - 1]


@view
@internal
def _check_not_ejected(operator: address):
    if block.timestamp < convert(self.ejectedUntil[operator], uint256):
        raw_revert(method_id("Ejected()"))


@view
@internal
def _check_manager(avs: address):
    if msg.sender != stakeManager:
        raw_revert(method_id("OnlyStakeManager()"))
    if avs != self:
        raw_revert(method_id("OtherAVS()"))


# --- views ---


@view
@external
def minimumStake(role: uint8) -> uint256:
    return MINIMUMS[role - 1]


@view
@external
def isFit(operator: address, role: uint8) -> bool:
    """@notice Whether it is in its set now and its stake, as of now, still reaches the minimum."""
    if role < PROXY or role > VALIDATOR or not self.inSet[operator][convert(role, uint32)]:
        return False
    return self._has_enough(operator, convert(role, uint32))


@view
@external
def operators(role: uint8, start: uint256, count: uint256) -> DynArray[Line, MAX_LINES]:
    """@notice Lines of one role in order of registration, retired ones left out; shorter than `count` at the end."""
    found: DynArray[Line, MAX_LINES] = []
    last: uint256 = min(self.memberCount[role], start + min(count, MAX_LINES))
    for offset: uint256 in range(MAX_LINES):
        if start + offset >= last:
            break
        line: Line = self.lines[self._members[role][start + offset]]
        if line.active:
            found.append(line)
    return found
