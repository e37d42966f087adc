# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title ERC-8004's validation registry: who asked whom to validate what, and what was answered
@license Apache-2.0
@notice The published ABI, own code, for chains that have no such registry yet. An agent's owner asks a validator about
    a hash (for us: the root of an epoch's receipts); the validator answers 0 .. 100, and may answer again.
    Always: only the validator that was asked answers; a question is asked once.
@custom:security An answer is its validator's opinion: read who gave it. Without an identity registry (zero address) an
    agent's id is its owner's address as a number, and nobody acts for others. Lists are bounded: at most 4096
    questions an agent and a validator; a stranger can fill a validator's list, which changes no answer.
"""

interface Identity:
    def ownerOf(tokenId: uint256) -> address: view
    def isApprovedForAll(owner: address, operator: address) -> bool: view

MOST: constant(uint256) = 4096

struct Status:
    validatorAddress: address
    agentId: uint256
    response: uint8
    responseHash: bytes32
    tag: String[64]
    lastUpdate: uint256

event ValidationRequest:
    validatorAddress: indexed(address)
    agentId: indexed(uint256)
    requestURI: String[1024]
    requestHash: indexed(bytes32)

event ValidationResponse:
    validatorAddress: indexed(address)
    agentId: indexed(uint256)
    requestHash: indexed(bytes32)
    response: uint8
    responseURI: String[1024]
    responseHash: bytes32
    tag: String[64]

_identity: immutable(address)
_status: HashMap[bytes32, Status]
_of_agent: HashMap[uint256, DynArray[bytes32, MOST]]
_of_validator: HashMap[address, DynArray[bytes32, MOST]]


@deploy
def __init__(identity: address):
    _identity = identity


@external
def validationRequest(validatorAddress: address, agentId: uint256, requestURI: String[1024], requestHash: bytes32):
    """@notice The agent's owner, or who it approved, asks."""
    if not self._may_ask(agentId) or validatorAddress == empty(address):
        raw_revert(method_id("NotTheAgent()"))
    if self._status[requestHash].validatorAddress != empty(address):
        raw_revert(method_id("AskedAlready()"))
    self._status[requestHash] = Status(
        validatorAddress=validatorAddress,
        agentId=agentId,
        response=0,
        responseHash=empty(bytes32),
        tag="",
        lastUpdate=block.timestamp,
    )
    self._of_agent[agentId].append(requestHash)
    self._of_validator[validatorAddress].append(requestHash)
    log ValidationRequest(
        validatorAddress=validatorAddress, agentId=agentId, requestURI=requestURI, requestHash=requestHash
    )


@external
def validationResponse(
    requestHash: bytes32, response: uint8, responseURI: String[1024], responseHash: bytes32, tag: String[64]
):
    """@notice The validator that was asked answers: 0 is wrong, 100 is right."""
    asked: Status = self._status[requestHash]
    if asked.validatorAddress != msg.sender or msg.sender == empty(address):
        raw_revert(method_id("NotAsked()"))
    if response > 100:
        raw_revert(method_id("OutOfRange()"))
    self._status[requestHash].response = response
    self._status[requestHash].responseHash = responseHash
    self._status[requestHash].tag = tag
    self._status[requestHash].lastUpdate = block.timestamp
    log ValidationResponse(
        validatorAddress=msg.sender,
        agentId=asked.agentId,
        requestHash=requestHash,
        response=response,
        responseURI=responseURI,
        responseHash=responseHash,
        tag=tag,
    )


@view
@internal
def _may_ask(agent: uint256) -> bool:
    if _identity == empty(address):
        return agent == convert(msg.sender, uint256)
    owner: address = staticcall Identity(_identity).ownerOf(agent)
    return msg.sender == owner or staticcall Identity(_identity).isApprovedForAll(owner, msg.sender)


# --- views ---


@view
@external
def getIdentityRegistry() -> address:
    return _identity


@view
@external
def getValidationStatus(requestHash: bytes32) -> (address, uint256, uint8, bytes32, String[64], uint256):
    asked: Status = self._status[requestHash]
    return (
        asked.validatorAddress, asked.agentId, asked.response, asked.responseHash, asked.tag, asked.lastUpdate
    )


@view
@external
def getSummary(agentId: uint256, validatorAddresses: DynArray[address, 64], tag: String[64]) -> (uint64, uint8):
    """@return how many questions of the agent match, and the mean answer; an empty list or tag matches all"""
    count: uint256 = 0
    total: uint256 = 0
    for requestHash: bytes32 in self._of_agent[agentId]:
        asked: Status = self._status[requestHash]
        if len(validatorAddresses) != 0 and asked.validatorAddress not in validatorAddresses:
            continue
        if len(tag) != 0 and keccak256(asked.tag) != keccak256(tag):
            continue
        count += 1
        total += convert(asked.response, uint256)
    if count == 0:
        return 0, 0
    return convert(count, uint64), convert(total // count, uint8)


@view
@external
def getAgentValidations(agentId: uint256) -> DynArray[bytes32, MOST]:
    return self._of_agent[agentId]


@view
@external
def getValidatorRequests(validatorAddress: address) -> DynArray[bytes32, MOST]:
    return self._of_validator[validatorAddress]
