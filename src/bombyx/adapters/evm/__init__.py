# SPDX-License-Identifier: Apache-2.0
"""`ports.Ledger` on an EVM chain: a thin JSON-RPC client, signed transactions, and what the contracts' calls look like.

Nothing here needs a general web3 library: the calls are few, their encodings are checked against one in the tests.
"""

from bombyx.adapters.evm.deploy import AddressBook, deploy, seed
from bombyx.adapters.evm.history import SettlementStep, settlement_steps
from bombyx.adapters.evm.ledger import EvmLedger
from bombyx.adapters.evm.node import ChainNode, start_node
from bombyx.adapters.evm.rpc import Rpc
from bombyx.adapters.evm.stake import EvmStakes
from bombyx.adapters.evm.staked import DEVELOPMENT, StakeTerms
from bombyx.adapters.evm.validation import EvmValidation

__all__ = [
    "DEVELOPMENT",
    "AddressBook",
    "ChainNode",
    "EvmLedger",
    "EvmStakes",
    "EvmValidation",
    "Rpc",
    "SettlementStep",
    "StakeTerms",
    "deploy",
    "seed",
    "settlement_steps",
    "start_node",
]
