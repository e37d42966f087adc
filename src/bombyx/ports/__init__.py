# SPDX-License-Identifier: Apache-2.0
"""Everything bombyx asks of the outside world: Protocols, each with its promises.

Roles know these and nothing of what stands behind them; `compose.py` joins the two. `adapters/memory.py` doubles
them all for tests. Foreign exceptions never pass: an adapter raises `bombyx.errors` only.
"""

from bombyx.ports.chain import (
    MAX_PUBLISHERS,
    Carrier,
    DepositTerms,
    Ledger,
    LedgerInfo,
    Operator,
    OperatorRole,
    ReferenceKind,
)
from bombyx.ports.enclave import EndorsementSource, EvidenceSource, Quote
from bombyx.ports.engine import (
    AuditAsk,
    Engine,
    EngineAudit,
    EngineChunk,
    EngineEnd,
    EngineEvent,
    EngineHead,
    EngineRequest,
    EngineUsage,
    Prefill,
)
from bombyx.ports.http import HttpExchange, HttpHandler, HttpRequest
from bombyx.ports.stakes import StakeInfo, Stakes, StakeView, Validation
from bombyx.ports.storage import Lease, Leases, Store, Write
from bombyx.ports.time import Clock, Entropy, Signer
from bombyx.ports.wires import Dialer, Link, ProxyResponse, ProxyTransport
from bombyx.protocol.pay.view import ChannelView, Claim

__all__ = [
    "AuditAsk",
    "Carrier",
    "ChannelView",
    "Claim",
    "Clock",
    "DepositTerms",
    "Dialer",
    "EndorsementSource",
    "Engine",
    "EngineAudit",
    "EngineChunk",
    "EngineEnd",
    "EngineEvent",
    "EngineHead",
    "EngineRequest",
    "EngineUsage",
    "Entropy",
    "EvidenceSource",
    "HttpExchange",
    "HttpHandler",
    "HttpRequest",
    "Lease",
    "Leases",
    "Ledger",
    "LedgerInfo",
    "Link",
    "MAX_PUBLISHERS",
    "Operator",
    "OperatorRole",
    "Prefill",
    "ProxyResponse",
    "ProxyTransport",
    "Quote",
    "ReferenceKind",
    "Signer",
    "StakeInfo",
    "StakeView",
    "Stakes",
    "Store",
    "Validation",
    "Write",
]
