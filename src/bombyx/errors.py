# SPDX-License-Identifier: Apache-2.0
"""Whose fault is it? Every error of bombyx answers that first.

    BombyxError
    ├── LocalError                  we did it: wrong settings, a broken promise of our own
    │   ├── ConfigError             a setting is missing, contradicts another or is out of bounds
    │   └── BudgetExceeded          our own spending limit says no
    ├── PeerError                   the other side did it; carries peer, rule and, where there is one, the proof
    │   ├── MalformedMessage        bytes that are not what the specification says
    │   ├── BadRequest              an application asked for what no worker could serve (HTTP 4xx)
    │   ├── AttestationError        evidence that does not convince; carries every step
    │   ├── SealError               a sealed message that cannot be opened, or is bound to something else
    │   │   ├── ReplayError         it was opened before
    │   │   └── KeyConfigError      sealed to a key we no longer hold (RFC 9458 section 5.3, `ohttp-key`)
    │   ├── StreamTruncated         an answer that stopped before its final frame
    │   ├── PaymentError            a channel, voucher or session that does not pay
    │   ├── ReceiptError            a receipt that does not match what was delivered
    │   │   └── Equivocation        two receipts that contradict each other: slashable by proof alone
    │   └── UntrustedProxyError     an unsealed word of the proxy's: a hint, never a fact
    └── Unavailable                 nobody's fault yet: not there, not now; carries retry_after
        ├── Unreachable             no connection: not one byte was sent, so that another may be asked
        ├── NoWorkers               no valid worker fits the request
        ├── Overloaded              a limit is reached; try again
        ├── HeldElsewhere           another process of the same role has this in hand; carries where
        ├── LeaseLost               we had it in hand, and another process has taken it over
        ├── EngineUnavailable       the model server crashed, hung or spoke nonsense
        └── DeadlineExceeded        the time the request allowed has passed

A message says what was found, what was expected and which rule: "PAY-7: voucher 41 is below 57 already held".
Messages never hold prompt or answer text, keys, or bytes of either.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any


class Peer(StrEnum):
    """Whom a `PeerError` blames."""

    APPLICATION = "application"
    CLIENT = "client"
    PROXY = "proxy"
    WORKER = "worker"
    HOST = "host"
    VALIDATOR = "validator"
    ENGINE = "engine"
    ENDORSER = "endorser"
    CHAIN = "chain"
    UNKNOWN = "unknown"


class BombyxError(Exception):
    """The root. `status` is the HTTP status a server answers with; `code` is a stable word for programs."""

    status: int = 500
    code: str = "bombyx_error"

    def __init__(self, message: str, *, rule: str | None = None) -> None:
        self.rule = rule
        self.message = message if rule is None or message.startswith(rule) else f"{rule}: {message}"
        super().__init__(self.message)

    def as_dict(self) -> dict[str, Any]:
        """What may be shown to anybody: `{code, message, fault, rule}`."""
        return {"code": self.code, "message": self.message, "fault": "local", "rule": self.rule}


class LocalError(BombyxError):
    """We did it."""

    code = "local_error"


class ConfigError(LocalError):
    """A setting is missing, contradicts another or is out of bounds."""

    code = "config_error"


class BudgetExceeded(LocalError):
    """Our own spending limit says no."""

    status = 402
    code = "budget_exceeded"


class PeerError(BombyxError):
    """The other side did it."""

    status = 400
    code = "peer_error"

    def __init__(
        self, message: str, *, peer: Peer = Peer.UNKNOWN, rule: str | None = None, proof: object | None = None
    ) -> None:
        super().__init__(message, rule=rule)
        self.peer = peer
        self.proof = proof

    def as_dict(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, "fault": str(self.peer), "rule": self.rule}


class MalformedMessage(PeerError):
    """Bytes that are not what the specification says."""

    code = "malformed_message"


class BadRequest(PeerError):
    """An application asked for what no worker could serve; `status` is the 4xx it deserves."""

    code = "bad_request"

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        peer: Peer = Peer.APPLICATION,
        rule: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message, peer=peer, rule=rule)
        self.status = status
        self.code = code or type(self).code


class AttestationError(PeerError):
    """Evidence that does not convince. `steps` holds every appraisal step, the failed one last or marked."""

    status = 502
    code = "attestation_failed"

    def __init__(
        self,
        message: str,
        *,
        steps: tuple[Any, ...] = (),
        peer: Peer = Peer.WORKER,
        rule: str | None = None,
        proof: object | None = None,
    ) -> None:
        super().__init__(message, peer=peer, rule=rule, proof=proof)
        self.steps = steps


class SealError(PeerError):
    """A sealed message that cannot be opened, or is bound to something else than what came with it."""

    code = "seal_error"


class ReplayError(SealError):
    """This sealed message was opened before."""

    status = 409
    code = "replayed"


class KeyConfigError(SealError):
    """Sealed to a key we do not hold (any more): appraise again, then retry once to the same worker."""

    status = 401
    code = "ohttp_key"


class StreamTruncated(PeerError):
    """An answer that stopped before its final frame: what was shown is not the whole."""

    status = 502
    code = "stream_truncated"


class PaymentError(PeerError):
    """A channel, voucher or session that does not pay for what was asked."""

    status = 402
    code = "payment_required"


class ReceiptError(PeerError):
    """A receipt that does not match what was delivered."""

    status = 502
    code = "receipt_mismatch"


class Equivocation(ReceiptError):
    """Two receipts of one key that contradict each other; `proof` is the pair."""

    code = "equivocation"


class UntrustedProxyError(PeerError):
    """An unsealed word of the proxy's: a hint, never a fact."""

    status = 502
    code = "untrusted_proxy"

    def __init__(
        self,
        message: str,
        *,
        status: int = 502,
        hint: str = "",
        rule: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, peer=Peer.PROXY, rule=rule)
        self.status = status
        self.hint = hint
        self.retry_after = retry_after


class Unavailable(BombyxError):
    """Nobody's fault yet: not there, not now. `retry_after` is in seconds."""

    status = 503
    code = "unavailable"

    def __init__(self, message: str, *, retry_after: float | None = None, rule: str | None = None) -> None:
        super().__init__(message, rule=rule)
        self.retry_after = retry_after

    def as_dict(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, "fault": "nobody", "rule": self.rule}


class Unreachable(Unavailable):
    """No connection: not one byte was sent, so that asking another pays nobody twice."""

    code = "unreachable"


class NoWorkers(Unavailable):
    """No valid worker fits the request."""

    code = "no_workers"


class Overloaded(Unavailable):
    """A limit is reached; try again after `retry_after` seconds."""

    status = 429
    code = "overloaded"


class HeldElsewhere(Unavailable):
    """Another process has this in hand; ask it. `holder`: the URL it is reached at."""

    code = "held_elsewhere"

    def __init__(
        self, message: str, *, holder: str = "", retry_after: float | None = None, rule: str | None = None
    ) -> None:
        super().__init__(message, retry_after=retry_after, rule=rule)
        self.holder = holder


class LeaseLost(Unavailable):
    """Another process took over what we had in hand: nothing was written, nothing may be acted on.

    `lost`: (name, token) of each lease that has a successor.
    """

    code = "lease_lost"

    def __init__(
        self, message: str, *, lost: frozenset[tuple[bytes, int]] = frozenset(), rule: str | None = None
    ) -> None:
        super().__init__(message, retry_after=1.0, rule=rule)
        self.lost = lost


class EngineUnavailable(Unavailable):
    """The model server crashed, hung or spoke nonsense."""

    status = 502
    code = "engine_unavailable"


class DeadlineExceeded(Unavailable):
    """The time the request allowed has passed."""

    status = 504
    code = "deadline_exceeded"
