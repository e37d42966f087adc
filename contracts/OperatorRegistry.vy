# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title Who runs proxies, workers and validators, and with which keys
@license Apache-2.0
@notice Anyone may register its own line. What contracts may need is stored; the rest (endpoint, key configuration,
    price sheet, models) is in the event, and its digest is stored: whoever reads a line checks it against the digest.
    Also the registrar of an AVS in EigenLayer's sense: its stake manager tells it who joined which operator set.
    Always: an operator keeps its role; a key once published stays attributable to its operator.
@custom:security Being registered says nothing good about an operator: evidence does, and stake. Two operators may name
    the same receipt key: naming a key proves nothing, and a fault is proven by the key's signature and the operator
    inside the receipt. `stakeManager` may only move operators in and out of sets. Registering costs gas, nothing else.
"""

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

stakeManager: public(immutable(address))
lines: public(HashMap[address, Line])
keySince: public(HashMap[address, HashMap[address, uint64]])  # operator -> receipt key -> first block, or 0
inSet: public(HashMap[address, HashMap[uint32, bool]])
_members: HashMap[uint8, HashMap[uint256, address]]  # role -> index -> operator, in order of registration
memberCount: public(HashMap[uint8, uint256])


@deploy
def __init__(stakeManager_: address):
    stakeManager = stakeManager_


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


# --- IAVSRegistrar ---


@view
@external
def supportsAVS(avs: address) -> bool:
    return avs == self


@external
def registerOperator(operator: address, avs: address, operatorSetIds: DynArray[uint32, MAX_SETS], data: Bytes[1024]):
    """@notice The stake manager says that `operator` joins; set ids are role numbers, and the role must be its own."""
    self._check_manager(avs)
    for id: uint32 in operatorSetIds:
        if convert(self.lines[operator].role, uint32) != id or not self.lines[operator].active:
            raw_revert(method_id("NotRegistered()"))
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
def _check_manager(avs: address):
    if msg.sender != stakeManager:
        raw_revert(method_id("OnlyStakeManager()"))
    if avs != self:
        raw_revert(method_id("OtherAVS()"))


# --- views ---


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
